//! What a scenario plays on: the cluster under load, faults that are begun and ended, and waits that say
//! what they waited for.
//!
//! It refuses to begin a fault while nobody is acknowledged, and to go on before the fault has proved
//! itself: a row that tested nothing must not pass.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};
use tokio::sync::watch;
use understudy_workload::{Stats, Workload};

use crate::faults::Fault;
use crate::faults::processes::Stopped;
use crate::lab::{Lab, Mode, other};
use crate::play::Pace;

/// A fault that nothing is seen of by then did not happen.
const PROOF_TIMEOUT: Duration = Duration::from_secs(15);
/// The workload counts as acknowledged when its last acknowledgement is not older.
const FRESH: Duration = Duration::from_millis(600);
/// For that before a fault is begun.
const FRESH_TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);
/// For anybody to be back.
pub(crate) const RETURN_TIMEOUT: Duration = Duration::from_secs(180);

/// A fault that was begun on a stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun(usize);

/// One row's stage.
pub(crate) struct Stage<'a> {
    pub(crate) lab: &'a Lab,
    workload: &'a Workload,
    stats: watch::Receiver<Stats>,
    active: &'static str,
    epoch: u64,
    /// The one that the row began in.
    pub(crate) first_epoch: u64,
    /// The cluster is not to be used for another row.
    pub(crate) spent: bool,
    faults: Vec<Box<dyn Fault + 'a>>,
    /// What the faults' probes said.
    pub(crate) evidence: Vec<String>,
    /// What a reader of the result should know.
    pub(crate) notes: Vec<String>,
    /// The longest write outage that this row allows.
    pub(crate) outage_max: Option<Duration>,
    /// What the caller of the rig has said: how long, how much, which sequence.
    pub(crate) pace: Pace,
    /// What the row measured, for the record.
    pub(crate) figures: Map<String, Value>,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(lab: &'a Lab, workload: &'a Workload, pace: Pace) -> Result<Stage<'a>> {
        let active = lab.active().context("find the active site")?;
        let epoch = lab.epoch().context("read the epoch")?;
        Ok(Stage {
            lab,
            workload,
            stats: workload.stats(),
            active,
            epoch,
            first_epoch: epoch,
            spent: false,
            faults: Vec::new(),
            evidence: Vec::new(),
            notes: Vec::new(),
            outage_max: None,
            pace,
            figures: Map::new(),
        })
    }

    /// From here on, waits compare with the present active and epoch instead of those of the beginning.
    ///
    /// # Errors
    /// When nobody is active.
    pub(crate) fn new_round(&mut self) -> Result<()> {
        self.active = self.lab.active().context("find the active site")?;
        self.epoch = self.lab.epoch().context("read the epoch")?;
        Ok(())
    }

    /// The active and the passive, as they were when the row (or its present round) began.
    pub(crate) fn sites(&self) -> (&'static str, &'static str) {
        (self.active, other(self.active))
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.lab.shape.mode == Mode::Zero
    }

    // --- faults

    /// Begins the row's fault: the workload is being acknowledged before, and the probe sees it after.
    ///
    /// # Errors
    /// When either is not so.
    pub(crate) fn inflict<F: Fault + 'a>(
        &mut self,
        begin: impl FnOnce(&'a Lab) -> Result<F>,
    ) -> Result<Begun> {
        // A busy machine may hold the last one up; a fault that began then would have tested nothing.
        let fresh = || self.last_acknowledged_ago().is_some_and(|quiet| quiet < FRESH);
        match self.lab.until("the workload to be acknowledged", FRESH_TIMEOUT, fresh) {
            Ok(waited) if waited > FRESH => {
                self.note(format!("the fault waited {waited:?} for an acknowledged write"));
            }
            Ok(_) => {}
            Err(_) => {
                let quiet = self.last_acknowledged_ago();
                bail!(
                    "the workload was not being acknowledged before the fault: last {quiet:?} ago"
                );
            }
        }
        self.add(begin)
    }

    fn last_acknowledged_ago(&self) -> Option<Duration> {
        let stats = self.stats.borrow();
        let since = self.workload.now().saturating_sub(stats.at);
        stats.last_acknowledged_ago.map(|ago| ago + since)
    }

    /// Begins a further fault, under which acknowledgements may have ceased already.
    ///
    /// # Errors
    /// When its probe sees nothing of it.
    pub(crate) fn add<F: Fault + 'a>(
        &mut self,
        begin: impl FnOnce(&'a Lab) -> Result<F>,
    ) -> Result<Begun> {
        self.workload.fault();
        let mut fault = begin(self.lab).context("begin the fault")?;
        let deadline = Instant::now() + PROOF_TIMEOUT;
        let proof = loop {
            match fault.proof() {
                Ok(Some(proof)) => break proof,
                Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
                Ok(None) => {
                    fault.heal()?;
                    bail!("the probe saw nothing of the fault within {PROOF_TIMEOUT:?}");
                }
                Err(error) => {
                    fault.heal()?;
                    return Err(error.context("probe the fault"));
                }
            }
        };
        self.evidence.push(proof);
        self.faults.push(Box::new(fault));
        Ok(Begun(self.faults.len() - 1))
    }

    /// Ends a fault; its probe speaks once more before.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub(crate) fn heal(&mut self, begun: Begun) -> Result<()> {
        let fault = &mut self.faults[begun.0];
        if let Ok(Some(proof)) = fault.proof()
            && !self.evidence.contains(&proof)
        {
            self.evidence.push(proof);
        }
        fault.heal().context("end the fault")
    }

    /// Ends every fault that is still there, also after a failure.
    ///
    /// # Errors
    /// The first one that cannot be ended; the others are tried all the same.
    pub(crate) fn heal_all(&mut self) -> Result<()> {
        let ends: Vec<_> = self.faults.iter_mut().map(|fault| fault.heal()).collect();
        ends.into_iter().collect::<Result<()>>().context("end the faults")
    }

    // --- what is waited for

    /// `site` is granted a later epoch than the row began with, and commits are acknowledged there.
    ///
    /// # Errors
    /// When not within `patience`.
    pub(crate) fn takes_over(&mut self, site: &str, patience: Duration) -> Result<()> {
        let epoch = self.epoch;
        self.lab.until(&format!("{site} to take over"), patience, || {
            self.lab.writable_at(site) && self.lab.epoch().is_some_and(|now| now > epoch)
        })?;
        self.acknowledged_again(patience)
    }

    /// Some site is active and writable, the one of before or the other.
    ///
    /// # Errors
    /// When not within `patience`.
    pub(crate) fn somebody_serves(&mut self, patience: Duration) -> Result<()> {
        self.lab.until("a site that is active and writable", patience, || {
            self.lab.active().is_some()
        })?;
        self.acknowledged_again(patience)
    }

    /// A write that was sent after now is acknowledged.
    ///
    /// # Errors
    /// When not within `patience`.
    pub(crate) fn acknowledged_again(&mut self, patience: Duration) -> Result<()> {
        // Two publications of the statistics lie between, so the newer one counts only later writes.
        let before = self.acknowledged_after(Duration::from_millis(300));
        self.lab.until("an acknowledged write", patience, || self.acknowledged() > before + 3)?;
        Ok(())
    }

    fn acknowledged_after(&self, pause: Duration) -> u64 {
        std::thread::sleep(pause);
        self.acknowledged()
    }

    /// Writes acknowledged so far; up to a quarter of a second old.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.stats.borrow().acknowledged_count
    }

    /// For this long nobody takes over, and the active stays what it is.
    ///
    /// # Errors
    /// When the epoch changes.
    pub(crate) fn nobody_takes_over_for(&self, duration: Duration) -> Result<()> {
        let deadline = Instant::now() + duration;
        while Instant::now() < deadline {
            self.nobody_has_taken_over()?;
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// The epoch is the one that the row began with.
    ///
    /// # Errors
    /// When a node knows of a later one.
    pub(crate) fn nobody_has_taken_over(&self) -> Result<()> {
        for site in crate::arena::SITES {
            let epoch = self.lab.status_of(site).and_then(|s| s["epoch"]["number"].as_u64());
            if let Some(epoch) = epoch.filter(|epoch| *epoch > self.epoch) {
                bail!("{site} is in epoch {epoch}, it began in {}: a failover", self.epoch);
            }
        }
        Ok(())
    }

    /// Commits go on for this long, without a gap that a client would call an outage.
    ///
    /// # Errors
    /// When they do not, or somebody takes over.
    pub(crate) fn commits_go_on_for(&mut self, duration: Duration) -> Result<()> {
        let (before, begun) = (self.acknowledged(), Instant::now());
        self.nobody_takes_over_for(duration)?;
        self.enough_since(before, begun)
    }

    /// The same after a failover.
    ///
    /// # Errors
    /// When commits do not go on.
    pub(crate) fn commits_go_on_at_the_new_side(&mut self, duration: Duration) -> Result<()> {
        let (before, begun) = (self.acknowledged(), Instant::now());
        std::thread::sleep(duration);
        self.enough_since(before, begun)
    }

    fn enough_since(&self, before: u64, begun: Instant) -> Result<()> {
        let (more, seconds) = (self.acknowledged() - before, begun.elapsed().as_secs_f64());
        ensure!(more as f64 > seconds * 5.0, "only {more} commits in {seconds:.1} s");
        Ok(())
    }

    /// Commits cease, and then nothing is acknowledged for this long.
    ///
    /// # Errors
    /// When they do not cease within twenty seconds, or something is acknowledged afterwards.
    pub(crate) fn commits_wait_for(&mut self, duration: Duration) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut before = self.acknowledged();
        loop {
            // What was under way has a moment to arrive.
            let now = self.acknowledged_after(Duration::from_millis(700));
            if now == before {
                break;
            }
            ensure!(Instant::now() < deadline, "commits go on, and should wait");
            before = now;
        }
        self.nobody_takes_over_for(duration)?;
        let more = self.acknowledged() - before;
        ensure!(more == 0, "{more} commits were acknowledged, and none should have been");
        Ok(())
    }

    /// Both sites are in their roles again, and the passive could take over.
    ///
    /// # Errors
    /// When not within [`RETURN_TIMEOUT`].
    pub(crate) fn protected_again(&mut self) -> Result<()> {
        self.lab.until("a passive that could take over", RETURN_TIMEOUT, || {
            self.lab.protected().is_some()
        })?;
        self.acknowledged_again(Duration::from_secs(20))
    }

    /// Sees to it that the consensus is led by a node that is `wanted`: a leader that is not stands still
    /// until another is elected.
    ///
    /// # Errors
    /// When no such leader is found in a dozen elections.
    pub(crate) fn let_lead(&mut self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        for _ in 0..12 {
            let leader = self.leader()?;
            if wanted(&leader) {
                self.protected_again()?;
                if wanted(&self.leader()?) {
                    self.note(format!("{leader} leads the consensus"));
                    return self.new_round();
                }
                continue;
            }
            let mut stopped = Stopped::daemon(self.lab, &leader)?;
            let moved = self.lab.until("another leader", Duration::from_secs(10), || {
                self.leader().is_ok_and(|now| now != leader)
            });
            stopped.heal()?;
            moved?;
            self.protected_again()?;
        }
        bail!("no leader was elected that this row asks for")
    }

    fn leader(&self) -> Result<String> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let status = self.lab.status();
            if let Some(leader) = status.as_ref().and_then(|status| status["leader"].as_str()) {
                return Ok(leader.to_owned());
            }
            ensure!(Instant::now() < deadline, "nobody leads the consensus");
            std::thread::sleep(POLL);
        }
    }

    /// The row's rule for its write outage.
    pub(crate) fn outage_at_most(&mut self, limit: Duration) {
        self.outage_max = Some(limit);
    }

    /// A figure for the record.
    pub(crate) fn measured(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.insert(name.to_owned(), value.into());
    }

    /// What a later look at the result should know.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }
}
