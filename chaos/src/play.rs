//! Plays one row: load, fault, healing, account. What it finds is a [`Played`]; it never stops at the
//! first thing that is wrong, as long as there is a cluster to ask.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::runtime::Runtime;
use understudy_checks::{
    Deed, Outcome, ReceiptedCommit, SurvivingRow, deeds_outside_their_side_s_tenure,
    span_of_what_was_lost, tenures_seen, the_receipts_name_exactly_what_was_lost,
};
use understudy_workload::{
    Outage, Recorded, Verdict, Workload, WorkloadOptions, differences_between_sites,
    prepare_tenants, read_rows, verdict_of,
};

use crate::catalogue::Row;
use crate::clocks::Clocks;
use crate::lab::{DATA, Lab, Mode};
use crate::observer::{Observer, Seen};
use crate::receipts;
use crate::stage::{RETURN_TIMEOUT, Stage};

const TENANTS: u32 = 4;
const WRITES_PER_SECOND: u32 = 150;
const REPLAY_TIMEOUT: Duration = Duration::from_secs(60);
/// Wall clock and monotonic clock of one machine, over the minutes of a row.
const CLOCKS_DIFFER: Duration = Duration::from_secs(1);
/// The ceiling that `understudy init` gives to the bounded mode.
const CEILING_SECONDS: f64 = 3600.0;

/// How the clients behave, and how long a row lasts whose length the caller says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Between two tries of the prober.
    pub(crate) probe_interval: Duration,
    /// A client gives a write up after this, and looks for another server.
    pub(crate) statement_timeout: Duration,
    /// A client gives up to reach a server after this, log-in and first question included.
    pub(crate) connect_timeout: Duration,
    /// For rows such as the soak.
    pub(crate) duration: Duration,
    /// For rows that draw what they do.
    pub(crate) seed: u64,
    /// For rows that let an amount of WAL through.
    pub(crate) wal_bytes: u64,
    /// A write outage beyond the row's limit is a failure.
    pub(crate) timed: bool,
}

impl Pace {
    /// For rows of the catalogue.
    pub(crate) const ROWS: Pace = Pace {
        probe_interval: Duration::from_millis(15),
        statement_timeout: Duration::from_secs(2),
        connect_timeout: Duration::from_millis(750),
        duration: Duration::ZERO,
        seed: 0,
        wal_bytes: 0,
        timed: true,
    };

    /// Clients that know how far away their server is: they wait so long for each answer.
    fn patient(self, patience: Duration) -> Pace {
        Pace { statement_timeout: patience, connect_timeout: patience, ..self }
    }
}

/// What a row came to. New keys may be added; a key's meaning does not change.
#[derive(Debug, Serialize)]
pub(crate) struct Played {
    pub(crate) row: String,
    pub(crate) title: String,
    pub(crate) mode: Mode,
    pub(crate) passed: bool,
    /// The longest of all faults, as the prober saw it; absent when it never ended.
    pub(crate) write_outage_ms: Option<u64>,
    /// Acknowledged inserts and changes.
    pub(crate) acknowledged: u64,
    /// Acknowledged rows that are not there.
    pub(crate) lost: u64,
    pub(crate) lost_seconds: f64,
    /// Commits that the row's loss receipts name, acknowledged or not.
    pub(crate) receipted: u64,
    pub(crate) unknown: u64,
    /// Releases of the old gate after the new side's first write: seen by clients, or admitted by the
    /// gate itself.
    pub(crate) late_releases: u64,
    /// A "yes" at `/primary` of a side that had been succeeded.
    pub(crate) late_yes: u64,
    /// Who held the epochs, in order.
    pub(crate) actives: Vec<String>,
    /// What the faults' probes saw.
    pub(crate) fault_seen: Vec<String>,
    pub(crate) notes: Vec<String>,
    /// What the row measured.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub(crate) figures: Map<String, Value>,
    /// Everything that was not as expected.
    pub(crate) wrong: Vec<String>,
    pub(crate) seconds: f64,
    /// The cluster is not to be used for another row.
    #[serde(skip)]
    pub(crate) spent: bool,
}

/// A row under way: what is known of it by now.
struct Account {
    played: Played,
    begun: Instant,
    spent: bool,
}

impl Account {
    fn wrong(&mut self, what: impl Into<String>) {
        self.played.wrong.push(what.into());
    }

    fn check(&mut self, outcome: Result<()>) {
        if let Err(error) = outcome {
            self.wrong(format!("{error:#}"));
        }
    }

    fn close(mut self) -> Played {
        self.played.passed = self.played.wrong.is_empty();
        self.played.spent = self.spent || !self.played.passed;
        self.played.seconds = self.begun.elapsed().as_secs_f64();
        self.played
    }
}

/// Plays a row on a cluster that is protected.
pub(crate) fn play(row: &Row, lab: &Lab, runtime: &Runtime, pace: Pace) -> Played {
    let played = empty(row, lab.shape.mode);
    let mut account = Account { played, begun: Instant::now(), spent: false };
    if let Err(error) = act(row, lab, runtime, pace, &mut account) {
        account.wrong(format!("{error:#}"));
    }
    account.close()
}

/// A row for which there was not even a cluster.
pub(crate) fn never_played(row: &Row, mode: Mode, error: &anyhow::Error) -> Played {
    let mut played = empty(row, mode);
    played.wrong.push(format!("{error:#}"));
    played
}

fn empty(row: &Row, mode: Mode) -> Played {
    Played {
        row: row.id.to_owned(),
        title: row.title.to_owned(),
        mode,
        passed: false,
        write_outage_ms: None,
        acknowledged: 0,
        lost: 0,
        lost_seconds: 0.0,
        receipted: 0,
        unknown: 0,
        late_releases: 0,
        late_yes: 0,
        actives: Vec::new(),
        fault_seen: Vec::new(),
        notes: Vec::new(),
        figures: Map::new(),
        wrong: Vec::new(),
        seconds: 0.0,
        spent: false,
    }
}

fn act(row: &Row, lab: &Lab, runtime: &Runtime, pace: Pace, account: &mut Account) -> Result<()> {
    let play = row.play().context("this row has no scenario yet")?;
    lab.until("a protected cluster before the row", RETURN_TIMEOUT, || lab.protected().is_some())?;
    let pace = row.patience.map_or(pace, |patience| pace.patient(patience));
    let workload = start_workload(lab, runtime, pace)?;
    let clocks = Clocks::at(workload.now());
    let observer = Observer::start();
    let (first_epoch, outage_max) = {
        let mut stage = Stage::new(lab, &workload, pace)?;
        account.check(stage.acknowledged_again(Duration::from_secs(20)));
        account.check(play(&mut stage));
        account.check(stage.heal_all());
        account.check(back_to_normal(lab, &mut stage));
        account.played.fault_seen = std::mem::take(&mut stage.evidence);
        account.played.notes = std::mem::take(&mut stage.notes);
        account.played.figures = std::mem::take(&mut stage.figures);
        account.spent = stage.spent;
        (stage.first_epoch, stage.outage_max)
    };
    let seen = observer.end();
    let recorded = runtime.block_on(workload.stop());
    judge_outages(&recorded, outage_max.filter(|_| pace.timed), account);
    let successions = judge_tenures(lab, first_epoch, &recorded, &seen, &clocks, account);
    let rows = judge_content(lab, runtime, &recorded, &successions, account)?;
    judge_receipts(lab, &clocks, &recorded, &rows, account)
}

/// Dead daemons are started, as systemd would have, and both sites are in their roles again.
fn back_to_normal(lab: &Lab, stage: &mut Stage) -> Result<()> {
    let started = lab.start_the_dead()?;
    if !started.is_empty() {
        stage.note(format!("daemons started again: {}", started.join(", ")));
    }
    stage.protected_again()
}

fn start_workload(lab: &Lab, runtime: &Runtime, pace: Pace) -> Result<Workload> {
    let active = lab.active().context("find the active site")?;
    let endpoints = lab.endpoints();
    let endpoint = endpoints.iter().find(|endpoint| endpoint.name == active);
    let endpoint = endpoint.context("find the active's server")?;
    let credentials = lab.credentials();
    runtime.block_on(prepare_tenants(endpoint, &credentials, TENANTS, |_| {}))?;
    // What an earlier row's clients sent over a line that was cut may still be under way, and would be
    // carried out after the table was emptied.
    let role = &credentials.user;
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{role}'"
    );
    lab.sql(active, "postgres", &sql)?;
    for tenant in 0..=TENANTS {
        lab.sql(active, &understudy_workload::database_name(tenant), "TRUNCATE worklog")?;
    }
    let mut options = WorkloadOptions::new(endpoints, credentials, TENANTS);
    options.writers_count = TENANTS;
    options.writes_per_second = WRITES_PER_SECOND;
    options.statement_timeout = pace.statement_timeout;
    options.connect_timeout = pace.connect_timeout;
    options.probe_interval = pace.probe_interval;
    let _inside = runtime.enter();
    Ok(Workload::start(options))
}

fn judge_outages(recorded: &Recorded, outage_max: Option<Duration>, account: &mut Account) {
    let outages = recorded.pulse.outages();
    if outages.is_empty() {
        return account.wrong("no fault was begun");
    }
    let Some(worst) = longest(&outages) else {
        return account.wrong("the write outage never ended");
    };
    account.played.write_outage_ms = u64::try_from(worst.as_millis()).ok();
    if let Some(limit) = outage_max.filter(|limit| worst > *limit) {
        account.wrong(format!("write outage {worst:?}, at most {limit:?} expected"));
    }
}

/// The longest outage. One that had not ended when the next fault was begun ends with that fault's.
fn longest(outages: &[Outage]) -> Option<Duration> {
    let length = |(index, outage): (usize, &Outage)| {
        let end = outages[index..].iter().find_map(|later| later.acknowledged_again_at)?;
        Some(end.saturating_sub(outage.last_acknowledged_at))
    };
    let lengths: Option<Vec<Duration>> = outages.iter().enumerate().map(length).collect();
    lengths?.into_iter().max()
}

/// Nobody acted as the active after being succeeded. Returns when each successor was first asked for a
/// commit that it confirmed.
fn judge_tenures(
    lab: &Lab,
    first_epoch: u64,
    recorded: &Recorded,
    seen: &Seen,
    clocks: &Clocks,
    account: &mut Account,
) -> Vec<Duration> {
    let Some(sides) = sides(lab, first_epoch) else {
        account.wrong("the cluster does not say who held the epochs");
        return Vec::new();
    };
    let name = |side: &usize| DATA[*side].to_owned();
    account.played.actives = sides.iter().map(name).collect();
    let recorder = recorded.recorder();
    let acknowledged: Vec<Deed> = recorder.with_ledger(|ledger| {
        let deed = |write: &understudy_checks::Write| {
            let side = recorder.server_of(write.connection)?;
            Some(Deed { side, asked_at: write.sent_at, answered_at: write.ended_at? })
        };
        let good = ledger.writes().iter().filter(|write| write.outcome == Outcome::Acknowledged);
        good.filter_map(deed).collect()
    });
    let late = deeds_outside_their_side_s_tenure(&acknowledged, &sides);
    if let Some(first) = late.first() {
        let count = late.len();
        account.wrong(format!("{count} acknowledgements by a side that was succeeded: {first:?}"));
    }
    // A gate's own admission counts from the moment at which a later tenure's first write was sent.
    let successions = successions(&acknowledged, &sides);
    let admitted = seen.late.iter().filter(|(side, at)| {
        let at = clocks.of_boot(*at);
        let mut others = successions.iter().filter(|(holder, _)| holder != side);
        others.any(|(_, first)| at.is_some_and(|at| at > *first))
    });
    let admitted = admitted.count();
    if admitted > 0 {
        account.wrong(format!("{admitted} releases that the old gate itself calls late"));
    }
    account.played.late_releases = (late.len() + admitted) as u64;

    let yes = |yes: &crate::observer::Yes| Deed {
        side: yes.side,
        asked_at: clocks.of_instant(yes.asked),
        answered_at: clocks.of_instant(yes.answered),
    };
    let yes: Vec<Deed> = seen.yes.iter().map(yes).collect();
    let late = deeds_outside_their_side_s_tenure(&yes, &sides);
    account.played.late_yes = late.len() as u64;
    if let Some(first) = late.first() {
        account
            .wrong(format!("{} times 200 at /primary of a succeeded side: {first:?}", late.len()));
    }
    if seen.samples == 0 {
        account.wrong("no site ever answered at /primary");
    }
    successions.into_iter().map(|(_, first)| first).collect()
}

/// Each tenure but the first, with the moment at which its first confirmed write was sent.
fn successions(acknowledged: &[Deed], sides: &[usize]) -> Vec<(usize, Duration)> {
    let begins = tenures_seen(acknowledged, sides);
    let later = sides.iter().zip(begins).skip(1);
    let first = |(side, begin): (&usize, Option<Duration>)| {
        let own = |deed: &&Deed| deed.side == *side && Some(deed.answered_at) == begin;
        acknowledged.iter().find(own).map(|deed| (*side, deed.asked_at))
    };
    later.filter_map(first).collect()
}

/// Who held the epochs from `first_epoch` on, as the replicated lineage says; successive epochs of one
/// site are one tenure.
fn sides(lab: &Lab, first_epoch: u64) -> Option<Vec<usize>> {
    let status = lab.status()?;
    let side = |name: &Value| DATA.iter().position(|site| name == site);
    let links = status["lineage"].as_array()?;
    let holder = |link: &Value| Some((link["epoch"]["number"].as_u64()?, side(&link["node"])?));
    let mut holders = links.iter().map(holder).collect::<Option<Vec<(u64, usize)>>>()?;
    holders.sort_unstable();
    let later = holders.iter().filter(|(epoch, _)| *epoch >= first_epoch);
    let mut sides: Vec<usize> = later.map(|(_, side)| *side).collect();
    sides.dedup();
    (!sides.is_empty()).then_some(sides)
}

/// What was acknowledged is there, nothing else is, and both sites hold the same.
fn judge_content(
    lab: &Lab,
    runtime: &Runtime,
    recorded: &Recorded,
    successions: &[Duration],
    account: &mut Account,
) -> Result<Vec<SurvivingRow>> {
    let active = lab.active().context("find the active site for the account")?;
    let endpoints = lab.endpoints();
    let named = |wanted: bool| {
        let found = endpoints.iter().find(|endpoint| (endpoint.name == active) == wanted);
        found.context("find a site's server")
    };
    let (here, there) = (named(true)?, named(false)?);
    let credentials = lab.credentials();
    let rows = runtime.block_on(read_rows(here, &credentials, TENANTS))?;
    // A side that lives on confirms commits after the fault too, so what was lost of it is measured up to
    // its succession.
    let mut ends = [recorded.pulse.faults(), successions].concat();
    ends.sort_unstable();
    let verdict = recorded.recorder().with_ledger(|ledger| verdict_of(ledger, &rows, &ends));
    take_over(&verdict, lab.shape.mode, account);
    let differences = runtime.block_on(differences_between_sites(
        (here, &credentials),
        (there, &credentials),
        REPLAY_TIMEOUT,
    ))?;
    for difference in differences.iter().take(3) {
        account.wrong(format!("the sites differ: {difference}"));
    }
    Ok(rows)
}

/// The receipts name what was lost and nothing else that a client was told of, and no loss is longer
/// than was stated before.
fn judge_receipts(
    lab: &Lab,
    clocks: &Clocks,
    recorded: &Recorded,
    rows: &[SurvivingRow],
    account: &mut Account,
) -> Result<()> {
    let receipts = receipts::read(lab, clocks)?;
    let commits: Vec<ReceiptedCommit> =
        receipts.iter().flat_map(|receipt| receipt.commits.iter().copied()).collect();
    account.played.receipted = commits.len() as u64;
    let recorder = recorded.recorder();
    let side_of = |connection| recorder.server_of(connection);
    let judged = recorder.with_ledger(|ledger| {
        the_receipts_name_exactly_what_was_lost(ledger, rows, side_of, &commits, CLOCKS_DIFFER)
    });
    if let Err(violation) = judged {
        account.wrong(violation.to_string());
    }
    for receipt in &receipts {
        let lost = recorder.with_ledger(|ledger| {
            span_of_what_was_lost(ledger, rows, side_of, &receipt.commits, CLOCKS_DIFFER)
        });
        if let Some(stated) = receipt.stated.filter(|stated| lost.as_secs_f64() > *stated) {
            account.wrong(format!("{lost:?} were lost, at most {stated:.3} s were stated"));
        }
    }
    Ok(())
}

fn take_over(verdict: &Verdict, mode: Mode, account: &mut Account) {
    let played = &mut account.played;
    played.acknowledged = verdict.counts.acknowledged;
    played.unknown = verdict.counts.unknown;
    played.lost = verdict.lost_rows;
    played.lost_seconds = verdict.lost_seconds;
    let too_much = match mode {
        Mode::Zero => verdict.lost_rows > 0,
        Mode::Bounded => verdict.lost_seconds > CEILING_SECONDS,
    };
    if too_much {
        let (rows, seconds) = (verdict.lost_rows, verdict.lost_seconds);
        account.wrong(format!("{rows} acknowledged rows over {seconds:.3} s are lost"));
    }
    if verdict.counts.acknowledged == 0 {
        account.wrong("nothing was ever acknowledged");
    }
    for violation in &verdict.violations {
        account.wrong(violation.clone());
    }
}

/// Where the logs of a row that failed are kept.
pub(crate) fn logs_of(played: &Played, directory: &Path) -> std::path::PathBuf {
    directory.join(format!("{}-{}", played.row, played.mode.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outage(fault: u64, last: u64, again: Option<u64>) -> Outage {
        Outage {
            fault_at: Duration::from_secs(fault),
            last_acknowledged_at: Duration::from_secs(last),
            acknowledged_again_at: again.map(Duration::from_secs),
        }
    }

    #[test]
    fn an_outage_goes_on_through_the_next_fault_and_one_without_an_end_has_no_length() {
        let through = [outage(10, 9, None), outage(12, 12, Some(20)), outage(30, 29, Some(31))];
        assert_eq!(longest(&through), Some(Duration::from_secs(11)));
        assert_eq!(longest(&[outage(10, 9, Some(11)), outage(12, 12, None)]), None);
    }
}
