//! A third node that keeps the journal and has no PostgreSQL: what is durable there alone is not lost, it
//! never takes over, and it follows whoever is active.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use support::lab::{DATA, Lab, POSTGRES_PORT, Plan, WITNESS, ZERO, node_in};
use support::processes::Background;

/// The third node of the lab, which is a witness elsewhere.
const JOURNAL: &str = WITNESS;
/// A commit waits for the passive or for the journal, whichever is first.
const EITHER: Plan = Plan { third: "journal", durability: "durable_copies = 1", ..ZERO };
/// A commit waits for both, whatever happens to them.
const BOTH: Plan = Plan { third: "journal", durability: "on_passive_loss = \"stall\"", ..ZERO };

/// As much as no buffer between two nodes holds.
const MUCH: &str = "INSERT INTO kept SELECT n, repeat(md5(n::text), 40) FROM \
                    generate_series(1, 40000) AS n";

fn names<'a>(status: &'a Value, key: &str) -> Vec<&'a str> {
    let listed = status[key].as_array().into_iter().flatten();
    let mut names: Vec<&str> = listed.filter_map(Value::as_str).collect();
    names.sort_unstable();
    names
}

/// `active` is active; commits wait for `passive` and the journal, and only the passive may be promoted.
fn protects(lab: &Lab, active: &str, passive: &str) -> bool {
    let mut both = [passive, JOURNAL];
    both.sort_unstable();
    lab.writable_at(active)
        && lab.status_of(active).is_some_and(|status| {
            names(&status, "waited_for") == both
                && names(&status, "eligible") == [passive]
                && status["failover"]["reason"] == "ready"
        })
}

fn founded(plan: Plan) -> Lab {
    let mut lab = Lab::founded(plan);
    let [active, passive] = DATA;
    lab.wait("the passive and the journal to protect", |lab| protects(lab, active, passive));
    lab.sql(active, "postgres", "CREATE TABLE kept (n int, filler text)");
    lab
}

fn rows(lab: &Lab, site: &str) -> Result<String, String> {
    lab.try_sql(site, "postgres", "SELECT count(*) FROM kept")
}

/// What the cluster's nodes hold is whole, and the same wherever two of them hold it.
#[track_caller]
fn assert_sound(lab: &Lab) {
    let ended = lab.operator(&["wal", "verify", "--rate", "1GiB", "--output", "json"]);
    let last = ended.stdout.lines().last().unwrap_or_else(|| panic!("{ended:#?}"));
    let report: Value = serde_json::from_str(last).unwrap();
    assert_eq!(report["sound"], Value::Bool(true), "{report:#}");
    let nodes = report["nodes"].as_array().unwrap();
    let journal = nodes.iter().find(|node| node["node"] == JOURNAL);
    let places = journal.and_then(|node| node["places"].as_array()).map_or(0, Vec::len);
    assert_eq!(places, 1, "the journal was not looked at: {report:#}");
}

#[test]
fn what_only_the_journal_has_is_fetched_from_it_before_the_passive_opens() {
    let mut lab = founded(EITHER);
    let [lost, behind] = DATA;
    let status = lab.status_of(lost).unwrap();
    let journal = node_in(&status, JOURNAL).unwrap();
    assert_eq!((&journal["role"], &journal["kind"]), (&"journal".into(), &"journal".into()));
    assert_eq!(lab.get(JOURNAL, "/readyz").map(|(code, _)| code), Some(200));
    assert_eq!(lab.get(JOURNAL, "/replica").map(|(code, _)| code), Some(503));

    lab.signal_node(behind, Signal::STOP);
    lab.sql(lost, "postgres", MUCH);
    lab.wait("the passive to be missed", |lab| {
        let status = lab.status_of(lost);
        status.is_some_and(|s| node_in(&s, behind).is_some_and(|n| n["state"] == "unreachable"))
    });
    // Longer than it takes until somebody who is away is left out, where others could be promoted.
    lab.sql(lost, "postgres", "SELECT pg_sleep(2)");
    assert!(lab.status_of(lost).is_some_and(|s| names(&s, "eligible") == [behind]));

    lab.kill_site(lost);
    lab.signal_node(behind, Signal::CONT);
    lab.wait("the passive to take over", |lab| lab.writable_at(behind));
    assert_eq!(rows(&lab, behind), Ok("40000".to_owned()));
    let log = lab.log_text(behind);
    assert!(log.contains("fetching the missing tail"), "it had everything: the test shows nothing");

    lab.start(lost);
    lab.wait("the lost site and the journal to protect", |lab| protects(lab, behind, lost));
    lab.sql(behind, "postgres", "INSERT INTO kept SELECT generate_series(1, 500)");
    lab.wait("everything to be replayed", |lab| rows(lab, lost) == Ok("40500".to_owned()));
    assert_sound(&lab);
}

#[test]
fn a_journal_that_is_away_holds_no_commit_up_and_comes_back_by_itself() {
    let mut lab = founded(EITHER);
    let [active, passive] = DATA;
    lab.signal_node(JOURNAL, Signal::STOP);
    lab.sql(active, "postgres", "INSERT INTO kept SELECT generate_series(1, 1000)");
    lab.wait("the journal to be left out", |lab| {
        lab.status_of(active).is_some_and(|s| names(&s, "waited_for") == [passive])
    });
    lab.sql(active, "postgres", "INSERT INTO kept SELECT generate_series(1001, 2000)");
    lab.signal_node(JOURNAL, Signal::CONT);
    lab.wait("the journal to protect again", |lab| protects(lab, active, passive));

    lab.kill_node(JOURNAL);
    lab.sql(active, "postgres", "INSERT INTO kept SELECT generate_series(2001, 3000)");
    lab.start(JOURNAL);
    lab.wait("the journal to protect after its start", |lab| protects(lab, active, passive));
    assert_eq!(lab.epoch()["number"], 1, "nobody was promoted");
    assert_sound(&lab);
}

#[test]
fn a_journal_that_has_more_than_the_promoted_passive_begins_anew_and_keeps_what_it_had() {
    let mut lab = founded(BOTH);
    let [lost, behind] = DATA;
    lab.signal_node(behind, Signal::STOP);
    // Never acknowledged, since the passive does not have it.
    let mut psql: Command = lab.tool_at(lost, "psql");
    let port = POSTGRES_PORT.to_string();
    let mut waits = Background::start(psql.args(["-p", &port, "-d", "postgres", "-c", MUCH]));
    let flushed = "SELECT pg_current_wal_flush_lsn() - '0/0'";
    lab.wait("the journal to have it all", |lab| {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let upto: u64 = lab.sql(lost, "postgres", flushed).parse().unwrap();
        let status = lab.status_of(lost);
        let durable = status.and_then(|s| node_in(&s, JOURNAL).map(|n| lsn(&n["durable_lsn"])));
        lab.sql(lost, "postgres", waiting) == "1" && durable.flatten() >= Some(upto)
    });
    assert!(waits.runs(), "the commit was acknowledged");

    lab.kill_site(lost);
    lab.signal_node(behind, Signal::CONT);
    lab.wait("the passive to take over", |lab| lab.writable_at(behind));
    assert_eq!(rows(&lab, behind), Ok("0".to_owned()));
    lab.wait("the journal to follow it", |lab| {
        lab.status_of(behind).is_some_and(|s| names(&s, "waited_for") == [JOURNAL])
    });
    let log = lab.log_text(JOURNAL);
    assert!(
        log.contains("setting the journal aside"),
        "it had nothing more: the test shows nothing"
    );
    let kept = lab.node_dir(JOURNAL).join("data/divergent");
    let kept: Vec<_> = kept.read_dir().unwrap().collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    // It keeps WAL and nothing else: alone with the passive's commits, nobody may take over.
    assert_eq!(lab.status_of(behind).unwrap()["failover"]["would_fail_over"], false);

    lab.start(lost);
    lab.wait("all to protect again", |lab| protects(lab, behind, lost));
    assert_sound(&lab);
}

fn lsn(value: &Value) -> Option<u64> {
    let (high, low) = value.as_str()?.split_once('/')?;
    let half = |text| u64::from_str_radix(text, 16).ok();
    Some((half(high)? << 32) + half(low)?)
}
