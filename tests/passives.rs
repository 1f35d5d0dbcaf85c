//! Two passives: who is waited for, who takes over, and what a candidate fetches from the other.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use rustix::process::Signal;
use serde_json::Value;
use support::lab::{DATA, Lab, Plan, SECOND_PASSIVE, ZERO, node_in};

/// Every commit waits for both.
const BOTH: Plan = Plan { passives: 2, ..ZERO };
/// Every commit waits for one of the two; one that is away is left out after a second.
const EITHER: Plan = Plan { durability: "durable_copies = 1", ..BOTH };
/// The same, but whoever is away is waited for, for longer than a test takes.
const EITHER_PATIENTLY: Plan =
    Plan { durability: "durable_copies = 1\ndegrade_after = \"10m\"", ..BOTH };

/// As much as no buffer between two nodes holds.
const MUCH: &str = "INSERT INTO kept SELECT n, repeat(md5(n::text), 40) FROM \
                    generate_series(1, 40000) AS n";

fn names<'a>(status: &'a Value, key: &str) -> Vec<&'a str> {
    let listed = status[key].as_array().into_iter().flatten();
    let mut names: Vec<&str> = listed.filter_map(Value::as_str).collect();
    names.sort_unstable();
    names
}

/// `active` is active, and both others are waited for and may be promoted.
fn both_protect(lab: &Lab, active: &str) -> bool {
    let mut others: Vec<&str> = lab.names();
    others.retain(|name| *name != active && *name != support::lab::WITNESS);
    others.sort_unstable();
    lab.writable_at(active)
        && lab.status_of(active).is_some_and(|status| {
            names(&status, "waited_for") == others
                && names(&status, "eligible") == others
                && status["failover"]["reason"] == "ready"
        })
}

fn founded(plan: Plan) -> Lab {
    let mut lab = Lab::founded(plan);
    lab.wait("both passives to protect the active", |lab| both_protect(lab, DATA[0]));
    lab.sql(DATA[0], "postgres", "CREATE TABLE kept (n int, filler text)");
    lab
}

fn rows(lab: &Lab, site: &str) -> Result<String, String> {
    lab.try_sql(site, "postgres", "SELECT count(*) FROM kept")
}

#[test]
fn of_two_passives_one_takes_over_and_the_other_follows_it() {
    let mut lab = founded(BOTH);
    let lost = DATA[0];
    lab.sql(lost, "postgres", "INSERT INTO kept SELECT generate_series(1, 1000)");
    lab.kill_site(lost);
    lab.wait("one of the two to take over, and the other to protect it", |lab| {
        let heir = |status: &Value| status["active"].as_str().map(str::to_owned);
        let Some(heir) = lab.status().and_then(|status| heir(&status)) else { return false };
        let eligible = lab.status_of(&heir).map(|s| names(&s, "eligible").len());
        heir != lost && lab.writable_at(&heir) && eligible == Some(1)
    });
    let heir = lab.status().unwrap()["active"].as_str().unwrap().to_owned();
    assert_eq!(rows(&lab, &heir), Ok("1000".to_owned()));
    lab.sql(&heir, "postgres", "INSERT INTO kept SELECT generate_series(1001, 1500)");

    lab.start(lost);
    lab.wait("the lost site to be back as a passive", |lab| both_protect(lab, &heir));
    for site in [DATA[0], DATA[1], SECOND_PASSIVE] {
        lab.wait("everything to be replayed", |lab| rows(lab, site) == Ok("1500".to_owned()));
    }
}

#[test]
fn where_one_copy_is_enough_a_frozen_passive_holds_no_commit_up_and_the_other_loses_nothing() {
    let mut lab = founded(EITHER);
    let [lost, frozen] = DATA;
    let status = lab.status_of(lost).unwrap();
    assert_eq!(status["durable_copies"], 1, "{status:#}");
    lab.signal_node(frozen, Signal::STOP);
    lab.sql(lost, "postgres", "INSERT INTO kept SELECT generate_series(1, 1000)");
    lab.wait("the frozen one to be left out", |lab| {
        lab.status_of(lost).is_some_and(|s| names(&s, "waited_for") == [SECOND_PASSIVE])
    });
    lab.sql(lost, "postgres", "INSERT INTO kept SELECT generate_series(1001, 2000)");

    lab.signal_node(frozen, Signal::CONT);
    lab.wait("both to protect again", |lab| both_protect(lab, lost));
    // Between the two there is a majority, and each of them may be the one.
    lab.kill_site(lost);
    lab.wait("one of the two to take over", |lab| {
        [frozen, SECOND_PASSIVE].into_iter().any(|site| lab.writable_at(site))
    });
    let heir = lab.status().unwrap()["active"].as_str().unwrap().to_owned();
    assert_eq!(rows(&lab, &heir), Ok("2000".to_owned()));
}

#[test]
fn a_candidate_that_lacks_what_was_acknowledged_fetches_it_from_the_other_before_it_opens() {
    let mut lab = founded(EITHER_PATIENTLY);
    let [active, behind] = DATA;
    lab.signal_node(behind, Signal::STOP);
    // Acknowledged by the other passive alone.
    lab.sql(active, "postgres", MUCH);
    // What it said last would speak for it for a while, and it would be granted the epoch while it sleeps.
    lab.wait("it to be missed", |lab| {
        let status = lab.status_of(SECOND_PASSIVE);
        status.is_some_and(|s| node_in(&s, behind).is_some_and(|n| n["state"] == "unreachable"))
    });
    let order = ["failover", "--to", behind, "--reason", "a test", "--yes"];
    let ordered = lab.operator(&order);
    lab.wait("the active to have stepped down", |lab| {
        lab.status_of(SECOND_PASSIVE).is_some_and(|status| status["phase"] == "no-active")
    });
    lab.signal_node(behind, Signal::CONT);
    lab.wait("the one that was behind to take over", |lab| lab.writable_at(behind));
    assert_eq!(rows(&lab, behind), Ok("40000".to_owned()), "{ordered:#?}");
    let log = lab.log_text(behind);
    assert!(log.contains("fetching the missing tail"), "it had everything: the test shows nothing");
    lab.wait("both others to protect the new active", |lab| both_protect(lab, behind));
}

#[test]
fn with_too_few_to_ask_nobody_is_promoted_and_the_status_says_why() {
    let mut lab = founded(EITHER_PATIENTLY);
    let [active, silent] = DATA;
    let epoch = lab.epoch();
    lab.signal_node(silent, Signal::STOP);
    // What it said last speaks for it for a while.
    lab.wait("it to be missed", |lab| {
        let status = lab.status_of(SECOND_PASSIVE);
        status.is_some_and(|s| node_in(&s, silent).is_some_and(|n| n["state"] == "unreachable"))
    });
    let order = ["failover", "--to", SECOND_PASSIVE, "--reason", "a test", "--yes"];
    let _ordered = lab.operator(&order);
    let said = |lab: &Lab| {
        let status = lab.status_of(SECOND_PASSIVE)?;
        (status["failover"]["reason"] == "too-few-copies").then_some(())
    };
    lab.wait("the status to say what is missing", |lab| said(lab).is_some());
    assert_eq!(lab.epoch()["number"], epoch["number"], "nobody was promoted");
    // Whoever gave the lease back has everything.
    lab.signal_node(silent, Signal::CONT);
    lab.wait("service to go on", |lab| {
        [active, silent, SECOND_PASSIVE].into_iter().any(|site| lab.writable_at(site))
    });
    let status = lab.status().unwrap();
    let now_active = status["active"].as_str().unwrap();
    assert!(node_in(&status, now_active).is_some());
    assert_eq!(rows(&lab, now_active), Ok("0".to_owned()));
}
