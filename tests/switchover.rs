//! Planned switchovers under load: nothing acknowledged is lost in any mode, the old active follows from
//! where it stopped, and whoever is killed in the middle, it ends in a known state.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::PATIENCE;
use support::lab::{DATA, Lab, Plan, ZERO, other};
use support::load::Load;

/// Orders a switchover and waits for its end: the operation.
fn switch(lab: &Lab, more: &[&str]) -> Value {
    let mut order = vec!["switchover", "--reason", "a test", "--output=json"];
    order.extend(more);
    let ended = lab.operator(&order);
    assert!(ended.status.success(), "{ended:#?}");
    let said: Value = serde_json::from_str(&ended.stdout).unwrap();
    said["operation"].clone()
}

fn outcome(lab: &Lab, operation: &Value) -> Option<Value> {
    let id = operation["id"].to_string();
    let ended = lab.operator(&["operation", &id, "--output=json"]);
    let said: Value = serde_json::from_str(&ended.stdout).ok()?;
    Some(said["operation"].clone())
}

/// Waits until the operation has ended, done or failed.
fn end_of(lab: &mut Lab, operation: &Value) -> Value {
    lab.wait("the operation to end", |lab| {
        outcome(lab, operation).is_some_and(|now| now["outcome"] != "running")
    });
    outcome(lab, operation).unwrap()
}

fn joined_by(lab: &Lab, name: &str, rung: &str) -> usize {
    lab.log_text(name).matches(&format!("to=\"joining: {rung}\"")).count()
}

/// Switches back and forth under load, and prints how long writes stood still.
fn back_and_forth(mode: &'static str, rounds: usize) {
    let mut lab = Lab::founded(Plan { mode, ..ZERO });
    let mut active = DATA[0];
    let load = Load::start(&lab, active);
    let mut outages = Vec::new();
    for _ in 0..rounds {
        let passive = other(active);
        let inode = std::fs::metadata(lab.pgdata(active)).unwrap().ino();
        let before = ["follow", "rewind", "clone"].map(|rung| joined_by(&lab, active, rung));
        let begun = Instant::now();
        let ended = switch(&lab, &["--to", passive, "--wait"]);
        assert_eq!(ended["outcome"], "done", "{ended:#}");
        assert_eq!(ended["kind"], "switchover", "{ended:#}");
        lab.wait("the old active to be back", |lab| lab.protected_under(passive));
        load.wait_for_more("writes at the new active");
        outages.push(load.outage_since(begun));
        let after = ["follow", "rewind", "clone"].map(|rung| joined_by(&lab, active, rung));
        assert_eq!(after, [before[0] + 1, before[1], before[2]], "follow, rewind, clone");
        assert_eq!(std::fs::metadata(lab.pgdata(active)).unwrap().ino(), inode);
        active = passive;
    }
    outages.sort_unstable();
    println!("{mode}: writes stood still for {outages:?}, median {:?}", outages[rounds / 2]);
    assert!(outages[rounds - 1] < Duration::from_secs(10), "within the pause budget");
    load.finish(&lab, active);
}

#[test]
fn in_zero_switchovers_lose_nothing_and_the_old_active_follows() {
    back_and_forth("zero", 5);
}

#[test]
fn in_bounded_switchovers_lose_nothing_and_the_old_active_follows() {
    back_and_forth("bounded", 2);
}

#[test]
fn in_best_effort_switchovers_lose_nothing_and_the_old_active_follows() {
    back_and_forth("best-effort", 2);
}

#[test]
fn a_dry_run_says_what_would_happen_and_what_stands_against_it() {
    let mut lab = Lab::founded(ZERO);
    let [first, second] = DATA;
    let epoch = lab.epoch();
    let plan = |lab: &Lab, code: i32| -> Value {
        let said = lab.operator(&["switchover", "--dry-run", "--output=json"]);
        assert_eq!(said.status.code(), Some(code), "{said:#?}");
        serde_json::from_str::<Value>(&said.stdout).unwrap()["plan"].clone()
    };
    let possible = plan(&lab, 0);
    assert_eq!((&possible["active"], &possible["to"]), (&first.into(), &second.into()));
    assert_eq!(possible["reasons"], serde_json::json!([]), "{possible:#}");

    for wrong in [vec!["--to", first], vec!["--epoch", "99"]] {
        let mut order = vec!["switchover", "--reason", "a test"];
        order.extend(wrong);
        let refused = lab.operator(&order);
        assert_eq!(refused.status.code(), Some(3), "{refused:#?}");
    }
    lab.kill_site(second);
    lab.wait("the loss of the passive to be seen", |lab| {
        let reachable = |status: Value| {
            support::lab::node_in(&status, second).is_none_or(|node| node["state"] != "unreachable")
        };
        lab.status_of(first).is_some_and(|status| !reachable(status))
    });
    assert_ne!(plan(&lab, 3)["reasons"], serde_json::json!([]));
    assert_eq!(lab.epoch(), epoch);
}

/// Orders a switchover, and lets `strike` happen once the active's log says `words`.
fn struck(lab: &mut Lab, active: &str, words: &str, strike: impl FnOnce(&mut Lab)) -> Value {
    let before = lab.log_text(active).matches(words).count();
    let operation = switch(lab, &[]);
    let deadline = Instant::now() + PATIENCE;
    // Each step takes some milliseconds only, so this looks more often than `wait_for`.
    while lab.log_text(active).matches(words).count() == before {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {words:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    strike(lab);
    operation
}

fn who_serves(lab: &mut Lab) -> &'static str {
    let serving = |lab: &Lab| DATA.into_iter().find(|name| lab.protected_under(name));
    lab.wait("one site to serve and the other to cover it", |lab| serving(lab).is_some());
    serving(lab).unwrap()
}

#[test]
fn an_active_whose_daemon_dies_in_the_middle_loses_nothing_and_the_operation_ends() {
    let mut lab = Lab::founded(ZERO);
    let mut active = DATA[0];
    let load = Load::start(&lab, active);
    for words in ["clients shut out", "gate shut for good"] {
        let operation = struck(&mut lab, active, words, |lab| lab.kill_node(active));
        lab.start(active);
        let ended = end_of(&mut lab, &operation);
        println!("killed after {words:?}: {ended}");
        active = who_serves(&mut lab);
        load.wait_for_more("writes after it");
    }
    load.finish(&lab, active);
}

#[test]
fn a_candidate_whose_daemon_dies_in_the_middle_loses_nothing_and_the_operation_ends() {
    let mut lab = Lab::founded(ZERO);
    let mut active = DATA[0];
    let load = Load::start(&lab, active);
    for words in ["clients shut out", "gate shut for good"] {
        let passive = other(active);
        let operation = struck(&mut lab, active, words, |lab| lab.kill_node(passive));
        // It ends without the candidate's coming back; commits, in `zero`, wait for that.
        let ended = end_of(&mut lab, &operation);
        println!("killed after {words:?}: {ended}");
        assert_eq!(ended["outcome"], "failed", "{ended:#}");
        lab.start(passive);
        active = who_serves(&mut lab);
        load.wait_for_more("writes after it");
    }
    load.finish(&lab, active);
}
