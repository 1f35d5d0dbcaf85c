//! The status page in a real browser: what it makes of every field that is there or not, and the page of
//! a real node.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use support::PATIENCE;
use support::lab::{DATA, HTTP_PORT, Lab, ZERO};
use support::processes::Background;

const DRIVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/page/run.py");

/// `tests/page/run.py` says what it asserts, and prints what failed.
#[test]
fn what_is_absent_is_called_unknown_and_what_is_old_is_not_shown_as_present() {
    let ended = Background::start(Command::new("python3").arg(DRIVER)).wait(4 * PATIENCE);
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
        let mut driver = Command::new("python3");
        driver.arg(DRIVER).arg("--live");
        driver.arg(format!("http://{}:{HTTP_PORT}/ui", lab.address(node)));
        driver.arg("--says").arg(format!("{active} accepts writes"));
        driver.arg("--says").arg(format!("{passive} takes over by itself"));
        let ended = Background::start(&mut driver).wait(3 * PATIENCE);
        assert!(ended.status.success(), "{}{}", ended.stdout, ended.stderr);
    }
}
