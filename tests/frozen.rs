//! A daemon that is frozen, a postmaster that is frozen or killed, a guardian that is killed: what must
//! not be confirmed is not, what must not run on does not, and everybody comes back.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use support::lab::{DATA, Lab, Plan, ZERO, other};
use support::postgres::give;
use support::processes::{Background, processes_below, run};
use support::wait_for;

const BOUNDED: Plan = Plan { mode: "bounded", ..ZERO };
/// The profile's ttl: no deadline lies further ahead.
const TTL: Duration = Duration::from_secs(3);

/// pgbench at the active's server, with a line for each transaction that was acknowledged to it.
struct Load {
    pgbench: Background,
    log: PathBuf,
}

impl Load {
    fn start(lab: &Lab, active: &str) -> Load {
        lab.sql(active, "postgres", "CREATE DATABASE bench");
        let mut initialise = lab.tool_at(active, "pgbench");
        run(initialise.args(["--initialize", "--quiet", "--scale=1", "bench"])).good();
        let log = lab.root().join("pgbench");
        fs::create_dir(&log).unwrap();
        give(&log);
        let mut pgbench = lab.tool_at(active, "pgbench");
        pgbench.args(["--no-vacuum", "--jobs=1", "--client=4", "--time=600", "--rate=200"]);
        pgbench.arg("--log").arg("--log-prefix").arg(log.join("t")).arg("bench");
        let load = Load { pgbench: Background::start(&mut pgbench), log };
        let committed = || {
            let rows = lab.sql(active, "bench", "SELECT count(*) FROM pgbench_history");
            (rows.parse::<u64>().unwrap() >= 100).then_some(())
        };
        wait_for("the load to commit", committed);
        load
    }

    /// Waits for its end, which the loss of its server brings about; the moments of all
    /// acknowledgements, since 1970.
    fn acknowledged(self) -> Vec<Duration> {
        let _ended = self.pgbench.wait(Duration::from_secs(90));
        let mut moments = Vec::new();
        for entry in fs::read_dir(&self.log).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            for line in text.lines() {
                // client, number, latency, script, seconds, microseconds
                let fields: Vec<&str> = line.split(' ').collect();
                let (Some(seconds), Some(micros)) = (fields.get(4), fields.get(5)) else {
                    continue;
                };
                let seconds = Duration::from_secs(seconds.parse().unwrap());
                moments.push(seconds + Duration::from_micros(micros.parse().unwrap()));
            }
        }
        moments
    }
}

fn rows(lab: &Lab, active: &str) -> u64 {
    lab.sql(active, "bench", "SELECT count(*) FROM pgbench_history").parse().unwrap()
}

fn postmaster(lab: &Lab, name: &str) -> Option<Pid> {
    let file = fs::read_to_string(lab.pgdata(name).join("postmaster.pid")).ok()?;
    Pid::from_raw(file.lines().next()?.trim().parse().ok()?)
}

fn guardian(lab: &Lab, name: &str) -> Option<Pid> {
    let file = fs::read_to_string(lab.node_dir(name).join("data/guard/lock")).ok()?;
    Pid::from_raw(file.trim().parse().ok()?)
}

/// The state letter of a process: R, S, D, T, Z.
fn state_of(pid: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    stat[stat.rfind(')')? + 1..].trim_start().chars().next()
}

fn lives(pid: Pid) -> bool {
    state_of(pid).is_some_and(|state| state != 'Z')
}

fn server_is_gone(lab: &Lab, name: &str) -> bool {
    processes_below(&lab.pgdata(name)).is_empty()
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// Freezes the active's daemon under load for good, and thaws it once the other site has taken over.
fn freeze_and_thaw(plan: Plan) -> (Lab, u64) {
    let mut lab = Lab::founded(plan);
    let [frozen, heir] = DATA;
    let load = Load::start(&lab, frozen);
    assert!(guardian(&lab, frozen).is_some_and(lives));
    lab.signal_node(frozen, Signal::STOP);
    let frozen_at = since_1970();

    lab.wait("the server of the frozen daemon to be gone", |lab| server_is_gone(lab, frozen));
    let acknowledged = load.acknowledged();
    let last = acknowledged.iter().max().copied().unwrap();
    assert!(last < frozen_at + TTL, "acknowledged {:?} after the freeze", last - frozen_at);
    lab.wait("the other site to take over", |lab| lab.writable_at(heir));
    assert!(server_is_gone(&lab, frozen), "it came back without a daemon");

    lab.signal_node(frozen, Signal::CONT);
    lab.wait("the thawed site to be back as the passive", |lab| lab.protected_under(heir));
    let words = "the guardian ended PostgreSQL";
    wait_for("the thawed daemon to tell", || lab.log_text(frozen).contains(words).then_some(()));
    // All that it had flushed may have been shipped; what was not lies beyond the fork, and is kept.
    let nothing_beyond = lab.log_text(frozen).contains("to=\"joining: follow\"");
    let kept = fs::read_dir(lab.node_dir(frozen).join("data/divergent")).unwrap();
    assert!(nothing_beyond || kept.count() > 0, "its WAL beyond the fork was not kept");
    lab.sql(heir, "bench", "INSERT INTO pgbench_history (tid) VALUES (1)");
    (lab, u64::try_from(acknowledged.len()).unwrap())
}

#[test]
fn in_zero_a_frozen_daemon_confirms_nothing_its_server_ends_and_no_row_is_lost() {
    let (lab, acknowledged) = freeze_and_thaw(ZERO);
    assert!(rows(&lab, DATA[1]) > acknowledged, "{acknowledged} were acknowledged");
}

#[test]
fn in_bounded_a_frozen_daemon_confirms_nothing_and_its_server_ends() {
    let _ended = freeze_and_thaw(BOUNDED);
}

/// A fault to the active's postmaster alone ends with a server that accepts writes, at either site,
/// and with every acknowledged row.
fn postmaster_lost(signal: Signal) {
    let mut lab = Lab::founded(ZERO);
    let [first, _] = DATA;
    let load = Load::start(&lab, first);
    let before = postmaster(&lab, first).unwrap();
    let began = Instant::now();
    kill_process(before, signal).unwrap();
    let writable = |lab: &Lab| {
        let in_place = postmaster(lab, first).is_some_and(|pid| pid != before && lives(pid));
        (in_place && lab.writable_at(first)) || lab.writable_at(other(first))
    };
    lab.wait("a server to be writable again", writable);
    eprintln!("writable again {:?} after {signal:?} to the postmaster", began.elapsed());
    assert!(!lives(before), "the old postmaster still lives");
    let acknowledged = u64::try_from(load.acknowledged().len()).unwrap();
    let active = if lab.writable_at(first) { first } else { other(first) };
    lab.wait("both sites to be whole again", |lab| lab.protected_under(active));
    assert!(rows(&lab, active) >= acknowledged, "{acknowledged} were acknowledged");
}

#[test]
fn a_postmaster_that_is_killed_costs_no_acknowledged_row() {
    postmaster_lost(Signal::KILL);
}

#[test]
fn a_postmaster_that_is_frozen_is_noticed_although_its_sessions_answer() {
    postmaster_lost(Signal::STOP);
}

#[test]
fn a_daemon_or_guardian_that_is_killed_and_back_in_time_disturbs_nobody() {
    // So long that a busy machine cannot make the restart miss it.
    let mut lab = Lab::founded(Plan { lease_ttl: Some("20s"), ..ZERO });
    let [active, _] = DATA;
    let epoch = lab.epoch();
    let server = postmaster(&lab, active).unwrap();
    let watcher = guardian(&lab, active).unwrap();
    lab.kill_node(active);
    lab.start(active);
    lab.wait("the daemon to be back", |lab| lab.protected_under(active));
    assert_eq!(postmaster(&lab, active), Some(server), "PostgreSQL was restarted");
    assert_eq!(guardian(&lab, active), Some(watcher), "the guardian was not taken over");

    kill_process(watcher, Signal::KILL).unwrap();
    let another = |lab: &Lab| guardian(lab, active).is_some_and(|pid| pid != watcher && lives(pid));
    lab.wait("another guardian", another);
    assert_eq!(postmaster(&lab, active), Some(server), "PostgreSQL was restarted");
    assert_eq!(lab.epoch(), epoch);
}

#[test]
fn a_daemon_that_is_stopped_and_stays_away_leaves_no_server_behind() {
    let mut lab = Lab::founded(ZERO);
    let [stopped, heir] = DATA;
    let idle = guardian(&lab, heir);
    assert!(idle.is_none_or(lives));
    lab.stop_node(stopped);
    lab.wait("its server to be gone", |lab| server_is_gone(lab, stopped));
    lab.wait("the other site to take over", |lab| lab.writable_at(heir));
    lab.start(stopped);
    lab.wait("the stopped site to be back as the passive", |lab| lab.protected_under(heir));
    // A guardian with nothing to guard ends with its daemon.
    let idle = guardian(&lab, stopped).unwrap();
    lab.stop_node(stopped);
    wait_for("the idle guardian to end", || (!lives(idle)).then_some(()));
    lab.start(stopped);
    lab.wait("the passive to be back", |lab| lab.protected_under(heir));
}
