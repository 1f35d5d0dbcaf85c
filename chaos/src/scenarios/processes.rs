//! F-1 to F-10, F-13, F-17, F-18: processes of the active site that end, stand still or starve.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;

use super::{LEASE, RESTART_AFTER, TAKEOVER, last, seconds};
use crate::command::said;
use crate::faults::acts::Act;
use crate::faults::processes::{FrozenSite, Killed, OutOfMemory, StarvedSite, Stopped};
use crate::lab::{DATA, Lab};
use crate::process;
use crate::stage::Stage;

/// F-1.
pub(crate) fn active_s_daemon_is_killed(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    stage.inflict(|lab| Killed::daemon(lab, active))?;
    ensure!(stage.lab.postmaster(active).is_some(), "its server went with it");
    last(RESTART_AFTER);
    stage.lab.start(active)?;
    stage.somebody_serves(TAKEOVER)
}

/// F-2.
pub(crate) fn active_s_postmaster_is_killed(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    let before = stage.lab.postmaster(active);
    stage.inflict(|lab| Killed::postmaster(lab, active))?;
    stage.somebody_serves(TAKEOVER)?;
    stage.protected_again()?;
    ensure!(stage.lab.postmaster(active) != before, "the killed postmaster is said to live");
    Ok(())
}

/// F-13. It dies again and again some while after its start, and at last is not started any more: what
/// it leaves behind without a lease takes no writes.
pub(crate) fn active_s_daemon_crash_loops(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    stage.inflict(|lab| Killed::daemon(lab, active))?;
    for lives in [200, 2000, 50, 800, 3500, 400].map(Duration::from_millis) {
        last(RESTART_AFTER / 2);
        stage.lab.start(active)?;
        last(lives);
        stage.add(|lab| Killed::daemon(lab, active))?;
    }
    let lab = stage.lab;
    let takes_writes = || {
        lab.postmaster(active).is_some()
            && lab
                .sql(active, "postgres", "SELECT pg_is_in_recovery()")
                .is_ok_and(|said| said == "f")
    };
    lab.until("no server that takes writes beside a dead daemon", LEASE * 2, || !takes_writes())?;
    lab.until("a site that is active and writable", TAKEOVER, || lab.active().is_some())?;
    ensure!(!takes_writes(), "a server of {active} takes writes without a daemon");
    // In one of its lives it may have become the other's passive, which `zero` waits for.
    lab.start(active)?;
    stage.acknowledged_again(TAKEOVER)
}

/// F-3.
pub(crate) fn one_backend_is_killed(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    let backend = stage.lab.server_process(active, "chaos tenant_0001");
    let backend = backend.context("find a backend of the workload")?;
    stage.inflict(|_| Killed::one(format!("backend at {active}"), backend))?;
    stage.somebody_serves(TAKEOVER)
}

/// F-4: half a lease, one, and five.
pub(crate) fn active_s_daemon_stands_still(stage: &mut Stage) -> Result<()> {
    // A failover may follow, and then has its time; an outage as long as the freeze is none.
    stage.outage_at_most(LEASE * 3);
    for duration in [LEASE / 2, LEASE, LEASE * 5] {
        stage.new_round()?;
        let (active, passive) = stage.sites();
        let stopped = stage.inflict(|lab| Stopped::daemon(lab, active))?;
        let begun = Instant::now();
        if duration > LEASE * 2 {
            stage.takes_over(passive, TAKEOVER)?;
            let seconds = begun.elapsed().as_secs_f64();
            stage.note(format!("{passive} took over {seconds:.1} s after the daemon was stopped"));
        }
        last(duration.saturating_sub(begun.elapsed()));
        stage.heal(stopped)?;
        stage.protected_again()?;
    }
    Ok(())
}

/// F-5. Sessions that exist go on; only a new one shows that the server is not well.
pub(crate) fn active_s_postmaster_stands_still(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    stage.inflict(|lab| Stopped::postmaster(lab, active))?;
    let lab = stage.lab;
    let serves_new_sessions = |site: &&str| {
        let answer = lab.application_sql(site, "postgres", "SELECT NOT pg_is_in_recovery()");
        answer.is_ok_and(|answer| answer == "t")
    };
    lab.until("new sessions at some site", seconds(60), || DATA.iter().any(serves_new_sessions))?;
    stage.somebody_serves(TAKEOVER)
}

/// For series: it stands still for two leases, and goes on unless the node has ended it.
pub(crate) fn active_s_postmaster_stands_still_a_while(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    let stopped = stage.inflict(|lab| Stopped::postmaster(lab, active))?;
    last(LEASE * 2);
    stage.heal(stopped)?;
    stage.somebody_serves(TAKEOVER)
}

/// F-6.
pub(crate) fn one_backend_stands_still(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    let sql = "BEGIN; CREATE TABLE held_f6 (); SELECT pg_sleep(600)";
    let session = stage.lab.session(active, "tenant_0001", sql)?;
    let backend = backend_with(stage.lab, active, "held_f6", "state = 'active'")?;
    let stopped = stage.inflict(|_| Stopped::one(format!("backend at {active}"), backend))?;
    stage.commits_go_on_for(seconds(8))?;
    stage.heal(stopped)?;
    drop(session);
    Ok(())
}

/// F-7. Nobody lets it go on: another connection would not take its place, so the server is started again.
pub(crate) fn gate_s_walsender_stands_still(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    let walsender = gate_s_walsender(stage.lab, active)?;
    let stopped =
        stage.inflict(|_| Stopped::one(format!("gate's walsender at {active}"), walsender))?;
    stage.commits_wait_for(seconds(1))?;
    stage.somebody_serves(TAKEOVER)?;
    stage.acknowledged_again(TAKEOVER)?;
    ensure!(process::state(walsender).is_none_or(|state| state != 'T'), "it still stands there");
    stage.heal(stopped)
}

/// F-8.
pub(crate) fn active_site_stands_still(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    stage.outage_at_most(LEASE * 3);
    let frozen = stage.inflict(|lab| FrozenSite::begin(lab, active))?;
    stage.takes_over(passive, TAKEOVER)?;
    stage.commits_go_on_at_the_new_side(seconds(3))?;
    stage.heal(frozen)?;
    stage.protected_again()
}

/// F-10.
pub(crate) fn active_s_daemon_runs_out_of_memory(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    let starved = stage.inflict(|lab| OutOfMemory::daemon(lab, active))?;
    stage.heal(starved)?;
    last(RESTART_AFTER);
    stage.lab.start(active)?;
    stage.somebody_serves(TAKEOVER)
}

/// F-17.
pub(crate) fn active_site_starves(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    let starved = stage.inflict(|lab| StarvedSite::begin(lab, active, 3))?;
    last(LEASE * 4);
    stage.heal(starved)?;
    stage.somebody_serves(TAKEOVER)
}

/// F-18.
pub(crate) fn active_s_daemon_gets_no_descriptors(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    let limited = stage.inflict(|lab| {
        let daemon = lab.daemon(active).context("find the active's daemon")?;
        limit_descriptors(daemon, 16)?;
        let proof = move || {
            // Whoever cannot accept does not answer.
            let silent = Lab::get(active, "/readyz", seconds(1)).is_none();
            Ok(silent.then(|| format!("daemon of {active}: no descriptor for a new connection")))
        };
        Ok(Act::seen_by(proof).undone_by(move || limit_descriptors(daemon, 1024)))
    })?;
    last(LEASE * 3);
    stage.heal(limited)?;
    stage.somebody_serves(TAKEOVER)
}

/// Only the soft limit: a hard one cannot be raised again everywhere, not even by root.
fn limit_descriptors(pid: Pid, count: u32) -> Result<()> {
    let mut prlimit = std::process::Command::new("prlimit");
    said(prlimit.arg(format!("--pid={pid}")).arg(format!("--nofile={count}:")))
}

/// The backend whose query contains `words`, once `condition` holds for it.
pub(crate) fn backend_with(lab: &Lab, site: &str, words: &str, condition: &str) -> Result<Pid> {
    let sql = format!(
        "SELECT pid FROM pg_stat_activity WHERE query LIKE '%{words}%' AND {condition} \
         AND pid <> pg_backend_pid() LIMIT 1"
    );
    let found = || Pid::from_raw(lab.sql(site, "postgres", &sql).ok()?.parse().ok()?);
    lab.until(&format!("a backend with {words:?}"), seconds(15), || found().is_some())?;
    found().context("find the backend again")
}

/// The server's process behind the connection that confirms commits.
pub(crate) fn gate_s_walsender(lab: &Lab, site: &str) -> Result<Pid> {
    let sql = "SELECT pid FROM pg_stat_replication WHERE sync_state = 'sync' LIMIT 1";
    let pid = lab.sql(site, "postgres", sql)?.parse().ok().and_then(Pid::from_raw);
    pid.context("find the gate's walsender")
}
