//! The status page in a real browser: what it makes of every field that is there or not, and the page of
//! a real node.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use support::lab::{DATA, HTTP_PORT, Lab, ZERO};
use support::processes::{Background, run};
use support::{PATIENCE, wait_for};

/// `tests/page/run.py` says what it asserts, and prints what failed.
#[test]
fn what_is_absent_is_called_unknown_and_what_is_old_is_not_shown_as_present() {
    let driver = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/page/run.py");
    let ended = Background::start(Command::new("python3").arg(driver)).wait(4 * PATIENCE);
    let said = ended.stdout.clone() + &ended.stderr;
    assert!(ended.status.success(), "{said}");
    assert!(said.contains(" 0 failed"), "{said}");
}

#[test]
fn a_node_shows_its_cluster_to_a_browser_that_knows_nothing_else() {
    let lab = Lab::founded(ZERO);
    let [active, passive] = DATA;
    for node in [active, passive] {
        let (code, page) = lab.get(node, "/ui").unwrap();
        assert_eq!(code, 200, "{page}");
        let url = format!("http://{}:{HTTP_PORT}/ui", lab.address(node));
        let profile = tempfile::tempdir().unwrap();
        let seen = wait_for("a page that has heard of its cluster", || {
            let mut chromium = Command::new("chromium");
            chromium.args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]);
            chromium.arg(format!("--user-data-dir={}", profile.path().display()));
            chromium.args(["--virtual-time-budget=5000", "--dump-dom", &url]);
            let ended = run(&mut chromium);
            let ready = format!("{passive} takes over by itself");
            (ended.status.success() && ended.stdout.contains(&ready)).then_some(ended.stdout)
        });
        assert!(seen.contains(&format!("{active} accepts writes")), "{seen}");
    }
}
