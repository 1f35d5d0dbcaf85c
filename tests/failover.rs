//! Sites that are lost and orders that are given: the demo's account, a failover by hand, a pause,
//! and a promotion that is interrupted.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::compare::wait_for_replay;
use support::lab::{DATA, Lab, ZERO, other};
use support::processes::{Background, kill_all_below};
use support::{BINARY, PATIENCE};

/// Ends what a demo that failed may have left.
struct DemoDirectory(tempfile::TempDir);

impl Drop for DemoDirectory {
    fn drop(&mut self) {
        kill_all_below(self.0.path());
    }
}

/// Runs the demo with one loss of the active site; its account, and whether it ended well.
fn demo(mode: &str) -> Value {
    // Two demos that look for free ports at the same moment may find the same ones.
    let lock = File::create(std::env::temp_dir().join("understudy-test-demo.lock")).unwrap();
    lock.lock().unwrap();
    let directory = tempfile::Builder::new().prefix("understudy-").tempdir().unwrap();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o711)).unwrap();
    let directory = DemoDirectory(directory);
    let mut demo = Command::new(BINARY);
    demo.args(["demo", "--plain", "--output=json", "--fail=active", "--mode", mode]);
    demo.args(["--tenants=4", "--write-seconds=3", "--rate=150", "--dir"]);
    demo.arg(directory.0.path()).current_dir(directory.0.path());
    let said = Background::start(&mut demo).wait(Duration::from_secs(180));
    assert!(said.status.success(), "{}\n{}\n{}", said.status, said.stdout, said.stderr);
    let last = said.stdout.lines().last().expect("the account is printed");
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {last}"))
}

fn assert_kept_its_promise(account: &Value) {
    for key in ["ok", "rejoined", "sites_equal"] {
        assert_eq!(account[key], true, "{key}: {account:#}");
    }
    assert_eq!(account["violations"], serde_json::json!([]), "{account:#}");
    assert_eq!(account["rounds"].as_array().unwrap().len(), 1, "{account:#}");
    assert!(account["acknowledged_rows"].as_u64().unwrap() > 0, "{account:#}");
    assert_ne!(account["rounds"][0]["killed"], account["rounds"][0]["took_over"], "{account:#}");
}

#[test]
fn in_zero_the_loss_of_the_active_site_loses_no_acknowledged_row() {
    let account = demo("zero");
    assert_kept_its_promise(&account);
    assert_eq!(account["lost_rows"], 0, "{account:#}");
}

#[test]
fn in_bounded_the_loss_of_the_active_site_loses_no_more_than_the_ceiling() {
    let account = demo("bounded");
    assert_kept_its_promise(&account);
    assert!(account["lost_seconds"].as_f64().unwrap() <= 3600.0, "{account:#}");
}

#[test]
fn a_failover_by_hand_moves_the_active_keeps_every_row_and_ends_as_done() {
    let mut lab = Lab::founded(ZERO);
    let [first, second] = DATA;
    let epoch = lab.epoch();
    lab.sql(first, "postgres", "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n");

    let unconfirmed = lab.operator(&["failover", "--reason", "a test"]);
    assert_eq!(unconfirmed.status.code(), Some(2), "{unconfirmed:#?}");
    let to_itself = lab.operator(&["failover", "--to", first, "--reason", "a test", "--yes"]);
    assert_eq!(to_itself.status.code(), Some(3), "{to_itself:#?}");
    assert_eq!(lab.epoch(), epoch);

    let order =
        ["failover", "--reason", "a test", "--yes", "--wait", "--timeout=90s", "--output=json"];
    let said = lab.operator(&order).good();
    let operation: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(operation["operation"]["outcome"], "done", "{said}");
    assert_eq!(operation["operation"]["reason"], "a test", "{said}");

    lab.wait("the roles to be exchanged", |lab| lab.protected_under(second));
    assert_ne!(lab.epoch(), epoch);
    assert_eq!(lab.sql(second, "postgres", "SELECT count(*) FROM kept"), "1000");
    lab.sql(second, "postgres", "INSERT INTO kept SELECT generate_series(1001, 1100)");
    wait_for_replay(&lab, second, first);
    assert_eq!(lab.sql(first, "postgres", "SELECT count(*) FROM kept"), "1100");
}

#[test]
fn a_pause_holds_automatic_failover_back_until_it_is_ended() {
    let mut lab = Lab::founded(ZERO);
    let [lost, heir] = DATA;
    let epoch = lab.epoch();
    lab.operator(&["pause", "--for", "10m", "--reason", "a test"]).good();
    let paused = |status: Value| {
        status["failover"]["reason"] == "paused" && status["failover"]["would_fail_over"] == false
    };
    lab.wait("the pause to show", |lab| lab.status_of(heir).is_some_and(paused));

    lab.kill_site(lost);
    lab.wait("the lease to be over, and nothing to happen", |lab| {
        lab.status_of(heir).is_some_and(|status| status["phase"] == "no-active" && paused(status))
    });
    assert_eq!(lab.epoch(), epoch);
    assert_eq!(lab.who_says_yes("/primary"), Vec::<&str>::new());

    lab.operator(&["resume"]).good();
    lab.wait("the other site to take over", |lab| lab.writable_at(heir));
    assert_ne!(lab.epoch(), epoch);
}

/// Loses the active site, and the heir's daemon as soon as its log says `words`.
fn lose_both(lab: &mut Lab, lost: &str, words: &str) {
    let heir = other(lost);
    let said = |lab: &Lab| lab.log_text(heir).matches(words).count();
    let before = said(lab);
    lab.kill_site(lost);
    // Each step takes some milliseconds only, so this looks more often than `wait_for`.
    let deadline = Instant::now() + PATIENCE;
    while said(lab) == before {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {words:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    lab.kill_node(heir);
    lab.start(heir);
    lab.wait("the heir to go on where it was", |lab| lab.writable_at(heir));
    lab.start(lost);
    lab.wait("the lost site to be back as the passive", |lab| lab.protected_under(heir));
}

#[test]
fn a_candidate_that_dies_in_the_middle_of_its_promotion_finishes_it_when_it_is_back() {
    let mut lab = Lab::founded(ZERO);
    let [first, second] = DATA;
    lab.sql(first, "postgres", "CREATE TABLE kept AS SELECT generate_series(1, 100) AS n");
    lose_both(&mut lab, first, "journal sealed");
    assert_eq!(lab.sql(second, "postgres", "SELECT count(*) FROM kept"), "100");
    lab.sql(second, "postgres", "INSERT INTO kept SELECT generate_series(101, 200)");
    lose_both(&mut lab, second, "promoted timeline");
    assert_eq!(lab.sql(first, "postgres", "SELECT count(*) FROM kept"), "200");
}
