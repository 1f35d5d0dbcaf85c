//! `understudy replay` as its users meet it: a kept trace of a real node is decided again as it was, and
//! what is no trace is refused with a remedy.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::BINARY;
use support::processes::{Ended, run};

/// Offline: no context, no configuration, another working directory.
fn replay(arguments: &[&str], trace: &Path) -> Ended {
    run(Command::new(BINARY).arg("replay").arg(trace).args(arguments).current_dir("/"))
}

fn objects(said: &str) -> Vec<Value> {
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every `(what, why)` that was decided.
fn decisions(objects: &[Value]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for decision in objects.iter().filter_map(|object| object["decisions"].as_array()).flatten() {
        let text = |key: &str| decision[key].as_str().unwrap().to_owned();
        found.push((text("what"), text("why")));
    }
    found
}

fn assert_as_recorded(objects: &[Value]) {
    let end = objects.last().unwrap();
    assert_eq!(end["kind"], "end", "{end:#}");
    assert_eq!(end["difference_count"], 0, "{end:#}");
    assert_eq!(end["missing_count"], 0, "{end:#}");
    assert!(end["event_count"].as_u64().unwrap() > 50, "{end:#}");
}

#[test]
fn a_file_that_is_no_trace_of_this_program_is_refused_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("other.trace");
    std::fs::write(&file, "not a trace\n").unwrap();
    replay(&[], &file).refused_with(&["does not begin with the header", "<data_dir>/trace"]);
    replay(&[], &dir.path().join("none")).refused_with(&["read "]);
    let empty = tempfile::tempdir().unwrap();
    replay(&[], empty.path()).refused_with(&["holds no file that ends in .trace"]);
}

#[test]
fn every_kept_trace_is_decided_again_as_it_was() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/traces");
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|extension| extension == "trace") {
            let said = objects(&replay(&["--output", "json"], &file).good());
            assert_as_recorded(&said);
            assert!(!decisions(&said).is_empty(), "{}", file.display());
            count += 1;
        }
    }
    assert!(count > 0, "no trace is kept");
}
