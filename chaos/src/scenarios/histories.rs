//! F-12, F-36, F-90, F-93, F-96: sites whose history is not the cluster's, and role changes that are
//! disturbed.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{LEASE, TAKEOVER, last, seconds};
use crate::command::output;
use crate::faults::acts::Act;
use crate::faults::links::Links;
use crate::faults::processes::Killed;
use crate::lab::Lab;
use crate::stage::Stage;

/// F-12. The new active's server is killed whenever it is there, while the old one wants to come back.
pub(crate) fn new_active_s_server_crash_loops(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let cut = stage.inflict(|lab| Links::isolate(&lab.arena, active))?;
    stage.takes_over(passive, TAKEOVER)?;
    stage.heal(cut)?;
    let begun = Instant::now();
    let mut kills = 0;
    while begun.elapsed() < LEASE * 5 {
        if stage.lab.postmaster(passive).is_some() && Killed::postmaster(stage.lab, passive).is_ok()
        {
            kills += 1;
        }
        ensure!(!stage.lab.writable_at(active), "the lease went back to the diverged {active}");
        last(Duration::from_millis(100));
    }
    ensure!(kills > 1, "the new active's server was killed {kills} times only");
    stage.note(format!("the server of {passive} was killed {kills} times"));
    stage.somebody_serves(TAKEOVER * 3)
}

/// F-36. A node of another cluster answers at the passive's address.
pub(crate) fn another_cluster_answers(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let lab = stage.lab;
    stage.inflict(|lab| Killed::sites(lab, &[passive]))?;
    let stranger = stage.add(|lab| {
        let stranger = std::rc::Rc::new(std::cell::RefCell::new(lab.stranger(passive)?));
        let seen = stranger.clone();
        let proof = move || {
            let lives = seen.borrow_mut().lives();
            let listens = lab.listens(passive)?;
            let words = format!("a node of another cluster listens at {passive}'s address");
            Ok((lives && listens).then_some(words))
        };
        Ok(Act::seen_by(proof).undone_by(move || stranger.borrow_mut().end()))
    })?;
    if stage.is_zero() {
        stage.commits_wait_for(LEASE)?;
    }
    stage.nobody_takes_over_for(LEASE * 2)?;
    let status = lab.status_of(active).context("ask the active")?;
    let attached = crate::lab::node_in(&status, passive).is_some_and(|n| n["attached"] == true);
    ensure!(!attached, "the stranger was attached");
    let said = lab.said(active)?;
    let line = said.lines().rev().find(|line| {
        line.contains("certificate") || line.contains("identity") || line.contains("UnknownIssuer")
    });
    if let Some(line) = line {
        let end = line.char_indices().nth(200).map_or(line.len(), |(at, _)| at);
        stage.note(format!("{active} says: {}", &line[..end]));
    }
    stage.heal(stranger)?;
    lab.start(passive)?;
    stage.protected_again()
}

/// F-90. The lost active is promoted by hand, so that its new timeline bears the number of the one that
/// the other site was granted.
pub(crate) fn two_histories_have_one_number(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    stage.inflict(|lab| Killed::sites(lab, &[active]))?;
    stage.takes_over(passive, TAKEOVER)?;
    let lab = stage.lab;
    let granted = timeline(lab, passive)?;
    let pgdata = lab.pgdata(active);
    fs::write(pgdata.join("standby.signal"), "").context("make it a standby by hand")?;
    start_by_hand(lab, active)?;
    let mut promote = lab.by_hand(active, "pg_ctl");
    output(promote.args(["promote", "--wait", "--timeout=30", "--silent", "-D"]).arg(&pgdata))?;
    let forged = "CREATE TABLE forged_f90 AS SELECT 90 AS n; CHECKPOINT";
    lab.sql(active, "tenant_0001", forged)?;
    let own = timeline(lab, active)?;
    stage.add(|_| {
        let words =
            format!("{active} made timeline {own} by hand, {passive} was granted {granted}");
        Ok(Act::seen_by(move || Ok((own == granted).then(|| words.clone()))))
    })?;
    let mut stop = lab.by_hand(active, "pg_ctl");
    output(stop.args(["stop", "--mode=fast", "--silent", "-D"]).arg(&pgdata))?;
    lab.start(active)?;
    stage.protected_again()?;
    for site in crate::lab::DATA {
        let there = lab.sql(site, "tenant_0001", "SELECT to_regclass('forged_f90') IS NOT NULL")?;
        ensure!(there == "f", "the forged table is at {site}");
    }
    Ok(())
}

fn timeline(lab: &Lab, site: &str) -> Result<String> {
    lab.sql(site, "postgres", "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)")
}

fn start_by_hand(lab: &Lab, site: &str) -> Result<()> {
    let pgdata = lab.pgdata(site);
    let socket = lab.site_dir(site).join("data/run");
    let mut start = lab.by_hand(site, "pg_ctl");
    start.args(["start", "--wait", "--timeout=30", "--silent", "-D"]).arg(&pgdata);
    // With the sizes that a standby needs; nobody is waited for.
    let sizes = "-c max_connections=300 -c max_prepared_transactions=10 -c max_wal_senders=10 \
                 -c synchronous_standby_names= -c primary_conninfo=";
    let options = format!("-k {} -p 5432 {sizes}", socket.display());
    start.arg("-l").arg(pgdata.join("by-hand.log")).arg("-o").arg(options);
    output(&mut start).map(drop)
}

/// F-93. Isolated, the old active begins segment after segment; then all but the newest of its WAL is
/// gone, that of the last common checkpoint included.
pub(crate) fn rewind_needs_wal_that_is_gone(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let cut = stage.inflict(|lab| Links::isolate(&lab.arena, active))?;
    for _ in 0..4 {
        // Its lease may end meanwhile and its server with it; what was written by then is enough.
        let more = "SELECT pg_logical_emit_message(false, 'f93', repeat('x', 8000)); \
                    SELECT pg_switch_wal(); CHECKPOINT";
        stage.lab.sql(active, "postgres", more).ok();
    }
    stage.takes_over(passive, TAKEOVER)?;
    stage.add(|lab| Killed::sites(lab, &[active]))?;
    let wal = stage.lab.pgdata(active).join("pg_wal");
    let mut segments = Vec::new();
    for entry in fs::read_dir(&wal).context("list the old active's pg_wal")? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            segments.push(path);
        }
    }
    segments.sort();
    let control = control_file(stage.lab, active)?;
    // The segment of its latest checkpoint stays: without it the server could not even be started.
    let older = |path: &&std::path::PathBuf| path.file_name() < Some(control.as_ref());
    let gone: Vec<_> = segments.iter().filter(older).collect();
    for path in &gone {
        fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    }
    let count = gone.len();
    stage.add(|_| {
        let words = format!("{count} older segments of {active}'s WAL are gone");
        Ok(Act::seen_by(move || Ok((count > 0).then(|| words.clone()))))
    })?;
    stage.heal(cut)?;
    stage.lab.start(active)?;
    stage.protected_again()
}

/// The segment in which a stopped server's latest checkpoint begins.
pub(super) fn control_file(lab: &Lab, site: &str) -> Result<String> {
    let mut program = lab.by_hand(site, "pg_controldata");
    let said = output(program.arg(lab.pgdata(site)))?;
    let line = said.lines().find_map(|l| l.strip_prefix("Latest checkpoint's REDO WAL file:"));
    Ok(line.context("find the latest checkpoint's WAL file")?.trim().to_owned())
}

/// When after the order a site is killed.
const MOMENTS_MS: [u64; 10] = [0, 60, 120, 200, 300, 400, 550, 700, 900, 1200];

/// F-96. The active's and the passive's site are killed in turn, ever later after the order.
pub(crate) fn killed_at_every_step_of_a_switchover(stage: &mut Stage) -> Result<()> {
    for (index, moment) in MOMENTS_MS.into_iter().enumerate() {
        stage.new_round()?;
        let (active, passive) = stage.sites();
        let victim = if index % 2 == 0 { active } else { passive };
        let lab = stage.lab;
        let mut order = lab.operator(&["switchover", "--reason", "F-96", "--wait"]);
        order.stdin(std::process::Stdio::null());
        order.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut ordered = order.spawn().context("order a switchover")?;
        let taken = || lab.status().is_some_and(|status| under_way(&status));
        // One that was over before it was seen is as good: the kill comes just after it.
        lab.until("the order to be taken", seconds(3), taken).ok();
        last(Duration::from_millis(moment));
        let phase = lab.status().map_or("unknown".to_owned(), |status| status["phase"].to_string());
        let killed = stage.add(|lab| Killed::sites(lab, &[victim]));
        let role = if victim == active { "active" } else { "passive" };
        stage.note(format!("{moment} ms after the order, phase {phase}: {role} killed"));
        let served = killed.and_then(|_| {
            last(seconds(1));
            stage.lab.start(victim)?;
            stage.somebody_serves(TAKEOVER * 2)?;
            stage.protected_again()
        });
        ordered.kill().ok();
        ordered.wait().ok();
        served?;
    }
    Ok(())
}

fn under_way(status: &serde_json::Value) -> bool {
    status["phase"] != "running"
        || status["operations"].as_array().is_some_and(|operations| {
            operations.iter().any(|operation| operation["ended_unix_us"].is_null())
        })
}
