//! F-91 to F-98: how a site that was lost comes back, and what a promotion waits for.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Pid;

use super::{LEASE, TAKEOVER, files_below, seconds};
use crate::command::output;
use crate::faults::links::Links;
use crate::faults::processes::{Killed, Stopped};
use crate::process;
use crate::stage::Stage;

/// F-91. Clients beside the isolated site go on writing what will never be confirmed.
pub(crate) fn divergent_wal_is_kept(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let before = files_below(&stage.lab.divergent(active)).len();
    let cut = stage.inflict(|lab| Links::isolate(&lab.arena, active))?;
    stage.takes_over(passive, TAKEOVER)?;
    stage.heal(cut)?;
    stage.protected_again()?;
    let after = files_below(&stage.lab.divergent(active)).len();
    ensure!(after > before, "nothing was kept of the old active's own WAL ({after} files)");
    stage.note(format!("{} files of divergent WAL kept", after - before));
    Ok(())
}

/// A program of PostgreSQL's that works on a site's data directory, once it runs.
fn program_at(stage: &Stage, site: &str, program: &str, patience: Duration) -> Result<Pid> {
    let words = stage.lab.site_dir(site).display().to_string();
    let deadline = Instant::now() + patience;
    // It may run for some milliseconds only, so this looks more often than other waits.
    while Instant::now() < deadline {
        if let Some(pid) = process::running(program, &words) {
            return Ok(pid);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("no {program} ran at {site} within {} s", patience.as_secs())
}

/// F-92.
pub(crate) fn rewind_is_killed(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let cut = stage.inflict(|lab| Links::isolate(&lab.arena, active))?;
    stage.takes_over(passive, TAKEOVER)?;
    stage.heal(cut)?;
    let rewind = program_at(stage, active, "pg_rewind", seconds(60))?;
    stage.add(|_| Killed::one(format!("pg_rewind at {active}"), rewind))?;
    stage.protected_again()
}

/// F-94.
pub(crate) fn old_active_is_started_by_hand(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    stage.inflict(|lab| Killed::sites(lab, &[active]))?;
    stage.takes_over(passive, TAKEOVER)?;
    let lab = stage.lab;
    let pgdata = lab.pgdata(active);
    let socket = lab.site_dir(active).join("data/run");
    let log = pgdata.join("by-hand.log");
    let mut start = lab.by_hand(active, "pg_ctl");
    start.args(["start", "--wait", "--timeout=20", "--silent", "-D"]).arg(&pgdata);
    // With the sizes that a standby needs, so that nothing but its role keeps it from confirming.
    let sizes = "-c max_connections=300 -c max_prepared_transactions=10 -c max_wal_senders=10";
    let socket = socket.display();
    start.arg("-l").arg(&log).arg("-o").arg(format!("-k {socket} -p 5432 {sizes}"));
    let started = output(&mut start);
    let said = fs::read_to_string(&log).unwrap_or_default();
    let last = said.lines().last().unwrap_or("it said nothing");
    let how = if started.is_ok() { "started" } else { "refused" };
    stage.note(format!("pg_ctl start by hand: {how}; {last}"));
    let runs = lab.postmaster(active).is_some();
    let wrote = lab.sql(active, "postgres", "CREATE TABLE by_hand_f94 (n int)");
    if let Err(error) = &wrote {
        stage.note(format!("a write there: {error:#}"));
    }
    if runs {
        let mut stop = lab.by_hand(active, "pg_ctl");
        output(stop.args(["stop", "--mode=immediate", "--silent", "-D"]).arg(&pgdata)).ok();
    }
    ensure!(wrote.is_err(), "a server that was started by hand confirmed a commit");
    lab.start(active)?;
    stage.protected_again()
}

/// F-95.
pub(crate) fn active_is_lost_during_a_clone(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    stage.inflict(|lab| Killed::sites(lab, &[passive]))?;
    let pgdata = stage.lab.pgdata(passive);
    for entry in fs::read_dir(&pgdata).context("list the passive's data directory")? {
        let path = entry?.path();
        let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        gone.with_context(|| format!("remove {}", path.display()))?;
    }
    stage.lab.start(passive)?;
    let copying = program_at(stage, passive, "pg_basebackup", seconds(60))?;
    stage.add(|lab| Killed::sites(lab, &[active]))?;
    stage.note(format!("pg_basebackup ran as process {copying}"));
    stage.nobody_takes_over_for(LEASE * 3)?;
    ensure!(!stage.lab.writable_at(passive), "an incomplete copy was opened");
    stage.lab.start(active)?;
    stage.protected_again()
}

/// F-98. Its startup process stands still while the active writes on, and is let go when the active is
/// lost.
pub(crate) fn promoted_with_a_backlog(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let startup = stage.lab.server_process(passive, "startup").context("find the replay")?;
    let stopped = stage.inflict(|_| Stopped::one(format!("replay at {passive}"), startup))?;
    let sql = "CREATE TABLE backlog_f98 AS SELECT n, repeat(md5(n::text), 12) AS text \
               FROM generate_series(1, 200000) AS n";
    let (done, said) = stage.lab.session(active, "tenant_0002", sql)?.ended(seconds(90))?;
    ensure!(done, "the load failed: {said}");
    stage.add(|lab| Killed::sites(lab, &[active]))?;
    stage.heal(stopped)?;
    stage.takes_over(passive, TAKEOVER * 2)?;
    let rows = stage.lab.sql(passive, "tenant_0002", "SELECT count(*) FROM backlog_f98")?;
    ensure!(rows == "200000", "{rows} rows of an acknowledged load are there");
    stage.lab.sql(passive, "tenant_0002", "DROP TABLE backlog_f98").map(drop)
}
