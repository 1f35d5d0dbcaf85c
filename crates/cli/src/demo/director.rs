//! The course of the demo: set up, write, lose a site, watch the return, account for it.
//!
//! It looks at the cluster only through its status and at the data only through PostgreSQL, and every
//! wait has an end that says what was waited for.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::mpsc;
use understudy_types::DurabilityMode;
use understudy_workload::{
    Credentials, Endpoint, Stats, Workload, WorkloadOptions, differences_between_sites,
    prepare_tenants, read_rows, verdict_of,
};

use super::account::{Account, Round};
use super::events::epoch_text;
use super::lab::Lab;
use super::scene::{Scene, Tone};
use super::screen::{Order, SharedScene, lock};

const FOUNDING_TIMEOUT: Duration = Duration::from_secs(120);
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(60);
const RETURN_TIMEOUT: Duration = Duration::from_secs(180);
const REPLAY_TIMEOUT: Duration = Duration::from_secs(60);
/// An acknowledgement that is read later than this after the kill is not the lost site's any more.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Between the takeover and the restart of the killed daemon, so that a person sees one after the
/// other.
const RESTART_AFTER: Duration = Duration::from_secs(3);
/// The ceiling that `understudy init` gives to the bounded mode.
const CEILING_SECONDS: f64 = 3600.0;

/// What the demo is asked to do.
pub(super) struct Plan {
    pub(super) mode: DurabilityMode,
    pub(super) tenants_count: u32,
    pub(super) writes_per_second: u32,
    /// Sites to lose without being asked; `None` leaves it to the keyboard.
    pub(super) rounds: Option<u32>,
    /// How long writes go on before each of them.
    pub(super) write_for: Duration,
}

/// Runs the demo once.
pub(super) struct Director {
    pub(super) plan: Plan,
    pub(super) lab: Lab,
    pub(super) scene: SharedScene,
    pub(super) orders: mpsc::Receiver<Order>,
}

impl Director {
    /// From nothing to the account.
    ///
    /// # Errors
    /// Whatever kept the demo from its end; what was promised and not kept is in the account instead.
    pub(super) async fn run(&mut self) -> Result<Account> {
        let began = Instant::now();
        self.found_cluster().await?;
        let credentials = self.make_tenants().await?;
        let mut options = WorkloadOptions::new(
            self.lab.endpoints(),
            credentials.clone(),
            self.plan.tenants_count,
        );
        options.writes_per_second = self.plan.writes_per_second;
        let workload = Workload::start(options);
        let follower = follow(self.scene.clone(), workload.stats());
        let rounds = self.rounds(&workload).await;
        follower.abort();
        self.account(workload, &credentials, rounds?, began).await
    }

    fn say(&self, tone: Tone, text: impl Into<String>) {
        lock(&self.scene).say(tone, text);
    }

    async fn found_cluster(&mut self) -> Result<()> {
        let root = self.lab.root.display().to_string();
        self.say(Tone::Demo, format!("starting three nodes below {root}"));
        for name in self.lab.nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>() {
            self.lab.start(&name)?;
        }
        self.wait("a running cluster with a passive that may be promoted", FOUNDING_TIMEOUT, |s| {
            protected(s, None)
        })
        .await
    }

    async fn make_tenants(&mut self) -> Result<Credentials> {
        let active = self.active()?;
        let count = self.plan.tenants_count;
        self.say(Tone::Demo, format!("making {count} tenants at {active}, a database each"));
        let credentials = self.lab.create_application_role(&active)?;
        let endpoint = self.lab.node(&active)?.postgres.clone();
        let scene = self.scene.clone();
        let progress = |done: u32| {
            lock(&scene).headline = format!("making tenants: {done} of {count} databases");
        };
        prepare_tenants(&endpoint, &credentials, count, progress).await?;
        self.say(Tone::Demo, format!("{count} tenants are ready"));
        Ok(credentials)
    }

    /// Loses sites as planned, or as ordered, until there is nothing more to do.
    async fn rounds(&mut self, workload: &Workload) -> Result<Vec<Round>> {
        let mut rounds = Vec::new();
        loop {
            let passive = self.passive()?;
            self.wait("acknowledged writes", TAKEOVER_TIMEOUT, |scene| {
                scene.stats.as_ref().is_some_and(|stats| stats.writes_per_second > 0.0)
            })
            .await?;
            let number = u32::try_from(rounds.len()).unwrap_or(u32::MAX).saturating_add(1);
            let go_on = match self.plan.rounds {
                Some(planned) => {
                    self.say(Tone::Demo, format!("writing; {passive} follows"));
                    self.pause(self.plan.write_for).await?;
                    number <= planned
                }
                None => {
                    self.say(Tone::Demo, "writing; press f to lose the active site");
                    self.ordered().await?
                }
            };
            if !go_on {
                return Ok(rounds);
            }
            rounds.push(self.round(number, workload).await?);
        }
    }

    /// Loses the active site and waits until it is back as the passive.
    async fn round(&mut self, round: u32, workload: &Workload) -> Result<Round> {
        let (killed, heir) = (self.active()?, self.passive()?);
        self.wait("a passive that may be promoted", RETURN_TIMEOUT, |s| protected(s, None)).await?;
        workload.fault();
        let fault = Instant::now();
        let processes = self.lab.kill_site(&killed)?;
        let killed_after = fault.elapsed();
        let postgres_count = processes.iter().filter(|process| process.is_postgres).count();
        let message = format!(
            "{killed} is lost: SIGKILL to its node and to all {postgres_count} processes of its \
             PostgreSQL at once"
        );
        self.say(Tone::Fault, message);

        let faults_count = usize::try_from(round).expect("few rounds");
        self.wait("the other site to take over", TAKEOVER_TIMEOUT, |scene| {
            let status = scene.status.as_ref().map(|(status, _)| status);
            let active = status.is_some_and(|status| status.active == heir);
            active && scene.node(&heir).is_some_and(|node| node.writable)
        })
        .await?;
        let takeover_seen_ms = millis(fault.elapsed());
        self.wait("writes at the other site", TAKEOVER_TIMEOUT, |scene| {
            outage_of(scene, faults_count, killed_after).is_some()
        })
        .await?;
        let outage = outage_of(&lock(&self.scene), faults_count, killed_after).unwrap_or_default();
        let seconds = outage.as_secs_f64();
        self.say(Tone::Good, format!("{heir} took over: nobody could write for {seconds:.2} s"));

        self.pause(RESTART_AFTER).await?;
        self.say(Tone::Demo, format!("starting {killed}'s daemon again, as systemd would"));
        self.lab.start(&killed)?;
        let restarted = Instant::now();
        self.wait("the lost site to come back as passive", RETURN_TIMEOUT, |scene| {
            protected(scene, Some(&heir))
        })
        .await?;
        let rejoin = restarted.elapsed();
        let text = format!(
            "{killed} is back as passive after {:.1} s, and could take over in turn",
            rejoin.as_secs_f64()
        );
        self.say(Tone::Good, text);
        Ok(Round {
            round,
            killed,
            took_over: heir,
            killed_processes: processes.len(),
            write_outage_ms: millis(outage),
            takeover_seen_ms,
            rejoin_seconds: rejoin.as_secs_f64(),
        })
    }

    async fn account(
        &mut self,
        workload: Workload,
        credentials: &Credentials,
        rounds: Vec<Round>,
        began: Instant,
    ) -> Result<Account> {
        self.say(Tone::Demo, "stopping the writers, and comparing what they remember");
        let recorded = workload.stop().await;
        if let Some(stats) = &mut lock(&self.scene).stats {
            (stats.writes_per_second, stats.writable) = (0.0, None);
        }
        let (active, passive) = (self.active()?, self.passive()?);
        let tenants = self.plan.tenants_count;
        let survivor = self.lab.node(&active)?.postgres.clone();
        let rows = read_rows(&survivor, credentials, tenants).await?;
        let faults = recorded.pulse.faults();
        let verdict = recorded.recorder().with_ledger(|ledger| verdict_of(ledger, &rows, faults));
        self.say(Tone::Demo, format!("comparing every table at {active} and {passive}"));
        let differences = self.differences(&survivor, &passive, credentials).await?;
        let epoch = match &lock(&self.scene).status {
            Some((status, _)) => epoch_text(status.epoch.as_ref()),
            None => String::new(),
        };
        let mut account = Account {
            schema_version: 1,
            ok: false,
            mode: self.plan.mode.to_string(),
            tenants,
            // A round that did not end with the return of its site never got here.
            rejoined: true,
            rounds,
            write_outage_ms: None,
            write_outages_ms: Vec::new(),
            acknowledged_rows: 0,
            acknowledged_writes: 0,
            unknown: 0,
            failed: 0,
            lost_rows: 0,
            lost_seconds: 0.0,
            surviving_rows: 0,
            violations: Vec::new(),
            sites_equal: differences.is_empty(),
            differences,
            active,
            passive,
            epoch,
            duration_seconds: began.elapsed().as_secs_f64(),
        };
        account.judge(&verdict, self.plan.mode, CEILING_SECONDS);
        Ok(account)
    }

    /// The passive may let nobody in over the network but the node itself; then its socket is used,
    /// under the node's own role.
    async fn differences(
        &self,
        active: &Endpoint,
        passive: &str,
        credentials: &Credentials,
    ) -> Result<Vec<String>> {
        let node = self.lab.node(passive)?;
        let active = (active, credentials);
        let by_network = (&node.postgres, credentials);
        match differences_between_sites(active, by_network, Duration::from_secs(20)).await {
            Ok(differences) => Ok(differences),
            Err(_) => {
                let mut socket = node.postgres.clone();
                socket.host = node.socket_dir.display().to_string();
                let own = Credentials { user: "understudy".to_owned(), password: None };
                let compared = differences_between_sites(active, (&socket, &own), REPLAY_TIMEOUT);
                compared.await.with_context(|| format!("compare {passive} with the active site"))
            }
        }
    }

    fn active(&self) -> Result<String> {
        let scene = lock(&self.scene);
        let (status, _) = scene.status.as_ref().context("no node has told the status yet")?;
        if status.active.is_empty() {
            bail!("no site is active: {}", scene.plain());
        }
        Ok(status.active.clone())
    }

    /// The data site that is not active.
    fn passive(&self) -> Result<String> {
        let active = self.active()?;
        let other = self.lab.nodes.iter().find(|node| node.has_data && node.name != active);
        Ok(other.context("there is only one data site")?.name.clone())
    }

    /// Waits until the scene is as it should be; a daemon that ends meanwhile ends the wait.
    async fn wait(
        &mut self,
        what: &str,
        timeout: Duration,
        condition: impl Fn(&Scene) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            if condition(&lock(&self.scene)) {
                return Ok(());
            }
            self.check_daemons()?;
            if Instant::now() > deadline {
                let seen = lock(&self.scene).plain();
                bail!("waited {} s in vain for {what}; now: {seen}", timeout.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn check_daemons(&mut self) -> Result<()> {
        match self.lab.ended() {
            Some((name, status)) => bail!("the daemon of {name} ended by itself: {status}"),
            None => Ok(()),
        }
    }

    /// Lets time pass for the eyes of a person; not for anything to happen.
    async fn pause(&mut self, duration: Duration) -> Result<()> {
        let deadline = Instant::now() + duration;
        while Instant::now() < deadline {
            self.check_daemons()?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// True to lose the active site, false to finish.
    async fn ordered(&mut self) -> Result<bool> {
        let mut finish = false;
        // An f that was pressed while something else went on was not meant for now; a q was.
        while let Ok(order) = self.orders.try_recv() {
            finish |= order == Order::Finish;
        }
        while !finish {
            self.check_daemons()?;
            let order = tokio::time::timeout(Duration::from_millis(200), self.orders.recv()).await;
            match order {
                Ok(Some(Order::Fail)) => return Ok(true),
                Ok(Some(Order::Finish) | None) => finish = true,
                Err(_) => {}
            }
        }
        Ok(false)
    }
}

/// A site is active and writable, and the other one could take over; with `active`, that one is it.
fn protected(scene: &Scene, active: Option<&str>) -> bool {
    let Some((status, _)) = &scene.status else { return false };
    if status.active.is_empty() || active.is_some_and(|active| status.active != active) {
        return false;
    }
    let writable = scene.node(&status.active).is_some_and(|node| node.writable);
    let mut others = status.nodes.iter().filter(|n| n.kind == "data" && n.name != status.active);
    let ready = status.failover.as_ref().is_some_and(|verdict| verdict.would_fail_over);
    let passive = others.any(|node| {
        node.attached && node.mark.is_empty() && (ready || status.eligible.contains(&node.name))
    });
    writable && passive && status.phase == "running"
}

/// The write outage of the fault with this number, once it is over.
///
/// What the lost site had acknowledged may be read a moment after it was killed: only a later
/// acknowledgement comes from the other site and ends the outage.
fn outage_of(scene: &Scene, number: usize, killed_after: Duration) -> Option<Duration> {
    let outage = scene.stats.as_ref()?.outages.get(number - 1)?;
    let lost_site_speaks_until = outage.fault_at + killed_after + LAST_WORDS;
    outage.acknowledged_again_at.filter(|again| *again > lost_site_speaks_until)?;
    outage.write_outage()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Keeps the workload's figures in the scene.
fn follow(
    scene: SharedScene,
    mut stats: tokio::sync::watch::Receiver<Stats>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while stats.changed().await.is_ok() {
            let latest = stats.borrow_and_update().clone();
            lock(&scene).stats = Some(latest);
        }
    })
}
