//! Under load, in `zero`: kills one daemon with SIGKILL and starts it again. No commit fails, nothing
//! is missing or there twice, nothing fails over, and the sites hold the same bytes afterwards.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::compare::{assert_same_and_sound, assert_segments_equal, finish_segment};
use support::lab::{DATA, Lab, Plan, WITNESS, ZERO};
use support::processes::{Background, run};
use support::wait_for;

const CLIENTS: u32 = 4;
const TRANSACTIONS_PER_CLIENT: u32 = 700;
/// Transactions a second that are aimed at; it makes the load last some seconds, not minutes.
const RATE: u32 = 350;

/// pgbench at the active's server. Its transactions each leave one row in pgbench_history.
struct Load(Background);

impl Load {
    fn start(lab: &Lab, active: &str) -> Load {
        lab.sql(active, "postgres", "CREATE DATABASE bench");
        let mut initialise = lab.tool_at(active, "pgbench");
        run(initialise.args(["--initialize", "--quiet", "--scale=2", "bench"])).good();
        let mut pgbench = lab.tool_at(active, "pgbench");
        pgbench.arg("--no-vacuum").arg("--jobs=1").arg(format!("--client={CLIENTS}"));
        pgbench.arg(format!("--transactions={TRANSACTIONS_PER_CLIENT}"));
        pgbench.arg(format!("--rate={RATE}")).arg("bench");
        let load = Load(Background::start(&mut pgbench));
        wait_for_commits(lab, active, 200);
        load
    }

    /// Every transaction was acknowledged, and is there exactly once.
    fn finish(self, lab: &Lab, active: &str) {
        let said = self.0.wait(Duration::from_secs(120)).good();
        let all = CLIENTS * TRANSACTIONS_PER_CLIENT;
        let processed = format!("number of transactions actually processed: {all}/{all}");
        assert!(said.contains(&processed), "{said}");
        assert_eq!(commits(lab, active), u64::from(all));
        let sums = "SELECT (SELECT sum(delta) FROM pgbench_history) = ALL (ARRAY[\
                    (SELECT sum(abalance) FROM pgbench_accounts), \
                    (SELECT sum(bbalance) FROM pgbench_branches), \
                    (SELECT sum(tbalance) FROM pgbench_tellers)])";
        assert_eq!(lab.sql(active, "bench", sums), "t");
    }
}

fn commits(lab: &Lab, active: &str) -> u64 {
    lab.sql(active, "bench", "SELECT count(*) FROM pgbench_history").parse().unwrap()
}

fn wait_for_commits(lab: &Lab, active: &str, more: u64) {
    let before = commits(lab, active);
    wait_for("commits", || (commits(lab, active) >= before + more).then_some(()));
}

/// The journal is the primary's WAL, and both databases are sound and the same.
fn assert_sites_agree(lab: &Lab, active: &str, passive: &str) {
    let last = finish_segment(lab, active);
    let journal = lab.journal_dir(passive).join("00000001");
    wait_for("the journal to finish the segment", || journal.join(&last).exists().then_some(()));
    let compared = assert_segments_equal(lab, active, &journal);
    assert!(compared.contains(&last), "{compared:?}");
    assert_same_and_sound(lab, active, passive, "bench");
}

#[test]
fn a_passives_daemon_that_is_killed_costs_no_commit_and_comes_back_by_itself() {
    let mut lab = Lab::founded(ZERO);
    let [active, passive] = DATA;
    let epoch = lab.epoch();
    let mut load = Load::start(&lab, active);
    lab.kill_node(passive);
    assert!(load.0.runs(), "the load was over before the fault");
    lab.start(passive);
    load.finish(&lab, active);
    lab.wait("the passive to be able to take over", |lab| lab.protected_under(active));
    assert_eq!(lab.epoch(), epoch);
    assert_sites_agree(&lab, active, passive);
}

#[test]
fn commits_go_on_while_the_witness_is_dead() {
    let mut lab = Lab::founded(ZERO);
    let [active, passive] = DATA;
    let epoch = lab.epoch();
    let mut load = Load::start(&lab, active);
    lab.kill_node(WITNESS);
    wait_for_commits(&lab, active, 300);
    assert!(load.0.runs(), "the load was over before the fault showed");
    lab.start(WITNESS);
    load.finish(&lab, active);
    lab.wait("the witness to be of use again", |lab| lab.who_says_yes("/readyz").len() == 3);
    assert_eq!(lab.epoch(), epoch);
    assert_sites_agree(&lab, active, passive);
}

#[test]
fn an_actives_daemon_that_is_back_in_time_takes_its_server_up_again_without_a_failover() {
    // So long that a busy machine cannot make the restart miss it.
    let mut lab = Lab::founded(Plan { lease_ttl: Some("20s"), ..ZERO });
    let [active, passive] = DATA;
    let epoch = lab.epoch();
    let started = "SELECT pg_postmaster_start_time()";
    let server = lab.sql(active, "postgres", started);
    let mut load = Load::start(&lab, active);
    lab.kill_node(active);
    assert!(load.0.runs(), "the load was over before the fault");
    lab.start(active);
    load.finish(&lab, active);
    lab.wait("the passive to be able to take over", |lab| lab.protected_under(active));
    assert_eq!(lab.epoch(), epoch);
    assert_eq!(lab.sql(active, "postgres", started), server, "PostgreSQL was restarted");
    assert_sites_agree(&lab, active, passive);
}
