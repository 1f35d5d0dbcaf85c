//! The decision recorder of a real cluster: after a failover the heir's trace says what was decided and
//! why, the replayed core decides the same, and neither a kill nor a missing disk is in its way.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::lab::{DATA, Lab, NODES, ZERO};
use support::processes::{Ended, run};
use support::{BINARY, wait_for};

fn trace_dir(lab: &Lab, name: &str) -> PathBuf {
    let config: toml::Table = std::fs::read_to_string(lab.config(name)).unwrap().parse().unwrap();
    PathBuf::from(config["data_dir"].as_str().unwrap()).join("trace")
}

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
fn after_a_failover_the_traces_say_who_decided_it_and_why() {
    let mut lab = Lab::founded(ZERO);
    let [lost, heir] = DATA;
    lab.kill_site(lost);
    lab.wait("the other site to take over", |lab| lab.writable_at(heir));
    let granted = |name: &str| {
        let said = replay(&["--only", "changes", "--output", "json"], &trace_dir(&lab, name));
        let objects = objects(&said.good());
        assert_as_recorded(&objects);
        decisions(&objects).into_iter().find(|(what, _)| {
            what.starts_with(&format!("propose: promote {heir} to epoch "))
                && what.contains("epoch 2")
        })
    };
    // Whoever led the consensus then decided it: the heir itself, or the witness.
    let (_, why) = wait_for("the decision in a trace", || {
        NODES.iter().filter(|name| **name != lost).find_map(|name| granted(name))
    });
    for words in [
        "by this node's own clock the lease is over",
        &format!("the active has lost its lease; {heir} takes over"),
        &format!("{lost} was heard "),
    ] {
        assert!(why.contains(words), "{words:?} is not in {why:?}");
    }

    // The heir's own part, in the order in which safety rests on it.
    let dir = trace_dir(&lab, heir);
    let said = replay(&["--only", "decisions"], &dir).good();
    let at = |words: &str| said.find(words).unwrap_or_else(|| panic!("{words:?} is not in {said}"));
    let seal = at("seal the journal at epoch 2");
    assert!(seal < at("promote the local server to timeline 2"), "{said}");
    assert!(at("promote the local server to timeline 2") < at("let clients in under epoch 2"));
    assert!(said.contains("every decision as recorded"), "{said}");
    assert!(said.contains(&format!("held by {heir}")), "{said}");

    // A daemon that is killed in the middle of a line leaves a trace that says so.
    lab.kill_node(heir);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let newest = files.last().unwrap();
    let bytes = std::fs::read(newest).unwrap();
    std::fs::write(newest, &bytes[..bytes.len() - 7]).unwrap();
    let torn = objects(&replay(&["--output", "json"], newest).good());
    assert!(torn.iter().any(|object| object["kind"] == "torn"), "{:?}", torn.last());
    // The next daemon goes on in a file of its own.
    lab.start(heir);
    let all = wait_for("the next start in the trace", || {
        let all = objects(&replay(&["--output", "json"], &dir).good());
        let begins = all.iter().filter(|object| object["kind"] == "begins");
        let starts: std::collections::BTreeSet<String> =
            begins.map(|begin| begin["header"]["process"].to_string()).collect();
        (starts.len() == 2).then_some(all)
    });
    assert_eq!(all.last().unwrap()["difference_count"], 0);
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
