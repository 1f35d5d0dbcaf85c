//! `understudy validate` against a real cluster: in order it says so, and what is done to it by the means that
//! people have (SQL, files, ports) is found, named and gone again when it is put right.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;

use serde_json::Value;
use support::lab::{DATA, Lab, WITNESS, ZERO};

/// Findings that this machine brings along by itself: how full its disk is.
const OF_THE_MACHINE: [&str; 1] = ["disk-full"];

/// The report, and how the command ended.
fn validate(lab: &Lab) -> (Value, i32) {
    let ended = lab.person("viewer", &["validate", "--output", "json"]);
    let answer: Value =
        serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    assert_eq!(answer["version"], 1);
    (answer["validation"].clone(), ended.status.code().unwrap())
}

/// Severity, code and node of each finding.
fn found(report: &Value) -> BTreeSet<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let findings = report["findings"].as_array().unwrap();
    let parts = findings.iter().map(|f| (text(&f["severity"]), text(&f["code"]), text(&f["node"])));
    parts.filter(|(_, code, _)| !OF_THE_MACHINE.contains(&code.as_str())).collect()
}

fn expected(findings: &[(&str, &str, &str)]) -> BTreeSet<(String, String, String)> {
    findings.iter().map(|(s, c, n)| ((*s).to_owned(), (*c).to_owned(), (*n).to_owned())).collect()
}

#[track_caller]
fn wait_for_findings(lab: &mut Lab, what: &str, findings: &[(&str, &str, &str)]) {
    let wanted = expected(findings);
    let last = std::cell::RefCell::new(Value::Null);
    let finds = |lab: &Lab| {
        let (report, _) = validate(lab);
        let same = found(&report) == wanted;
        last.replace(report);
        same
    };
    // Whoever waits in vain wants to see what was found instead.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| lab.wait(what, finds)));
    if outcome.is_err() {
        panic!("{what}: wanted {wanted:?}, found {:#}", last.borrow());
    }
}

const QUIET: (&str, &str, &str) = ("note", "no-health-checks", "");

#[test]
fn what_would_spoil_a_failover_is_found_and_gone_when_it_is_put_right() {
    let mut lab = Lab::founded(ZERO);
    let [active, passive] = DATA;
    wait_for_findings(&mut lab, "a cluster in order", &[QUIET]);
    let (report, code) = validate(&lab);
    assert!(report["verdict"] != "not-ready" && code == 0, "{report:#}");
    assert!(report["expected_outage_seconds"].as_f64().unwrap() > 3.0, "{report:#}");
    assert_eq!(
        (report["expected_loss_seconds"].as_f64(), &report["expected_loss_bytes"]),
        (Some(0.0), &0.into())
    );

    // What people do to a database, all at once.
    lab.sql(active, "postgres", "ALTER SYSTEM SET work_mem = '64MB'");
    lab.sql(active, "postgres", "ALTER SYSTEM SET max_locks_per_transaction = 128");
    lab.sql(active, "postgres", "ALTER SYSTEM SET max_slot_wal_keep_size = -1");
    lab.sql(active, "postgres", "SELECT pg_reload_conf()");
    // As if it had been made with a library that is no longer installed anywhere.
    lab.sql(active, "postgres", "CREATE FUNCTION gone() RETURNS int LANGUAGE sql AS 'SELECT 1'");
    let library = "UPDATE pg_proc SET probin = '$libdir/understudy_gone' WHERE proname = 'gone'";
    lab.sql(active, "postgres", library);
    let collations = "UPDATE pg_database SET datcollversion = '1.0' WHERE datname = 'template1'";
    lab.sql(active, "postgres", collations);
    let hba = lab.pgdata(passive).join("pg_hba.conf");
    let before = fs::read(&hba).unwrap();
    fs::OpenOptions::new()
        .append(true)
        .open(&hba)
        .unwrap()
        .write_all(b"host all all 192.0.2.0/24 md5\n")
        .unwrap();
    let broken = [
        QUIET,
        ("block", "library-missing", active),
        ("block", "library-missing", passive),
        ("risk", "collation-changed", active),
        ("risk", "collation-changed", passive),
        ("risk", "restart-pending", active),
        ("risk", "setting-overridden", active),
        ("risk", "settings-differ", passive),
        ("risk", "hba-differs", passive),
    ];
    wait_for_findings(&mut lab, "everything that was broken", &broken);
    let ended = lab.person("viewer", &["validate"]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    for words in [
        "a failover would NOT work now",
        "$libdir/understudy_gone",
        "work_mem (4096 kB, not 65536 kB)",
        "`host all all 192.0.2.0 255.255.255.0 md5`",
        "max_locks_per_transaction",
        "max_slot_wal_keep_size (-1)",
        "remedy:",
    ] {
        assert!(ended.stdout.contains(words), "{words} in\n{}", ended.stdout);
    }
    // The nodes look by themselves too, and status says what they saw.
    lab.wait("a node that has seen it by itself", |lab| {
        lab.status_of(WITNESS).is_some_and(|status| status["validation"]["verdict"] == "not-ready")
    });

    fs::write(&hba, before).unwrap();
    lab.sql(active, "postgres", "DROP FUNCTION gone()");
    lab.sql(active, "postgres", "UPDATE pg_database SET datcollversion = NULL");
    // PostgreSQL goes on to call it pending until it has seen the value that is in force.
    lab.sql(active, "postgres", "ALTER SYSTEM RESET work_mem");
    lab.sql(active, "postgres", "ALTER SYSTEM RESET max_slot_wal_keep_size");
    lab.sql(active, "postgres", "ALTER SYSTEM SET max_locks_per_transaction = 64");
    lab.sql(active, "postgres", "SELECT pg_reload_conf()");
    wait_for_findings(&mut lab, "a cluster in order again", &[QUIET]);
    let (report, _) = validate(&lab);
    let ended = lab.person("viewer", &["validate", "--strict", "--node", passive]);
    assert_eq!(ended.status.success(), report["verdict"] == "ready", "{ended:?}");
}

#[test]
fn who_is_missing_is_named_and_a_pause_stands_in_the_way() {
    let mut lab = Lab::founded(ZERO);
    let [_, passive] = DATA;
    lab.kill_node(WITNESS);
    let silent = [
        QUIET,
        ("risk", "not-answering", WITNESS),
        ("risk", "not-heard", DATA[0]),
        ("risk", "not-heard", passive),
        ("block", "no-failover", ""),
    ];
    wait_for_findings(&mut lab, "a witness that is away", &silent);
    lab.start(WITNESS);
    wait_for_findings(&mut lab, "everybody back", &[QUIET]);
    lab.operator(&["pause", "--for", "10m", "--reason", "test"]).good();
    wait_for_findings(&mut lab, "a pause", &[QUIET, ("block", "no-failover", "")]);
    let (report, code) = validate(&lab);
    assert_eq!(code, 1);
    assert!(report["expected_outage_seconds"].is_null(), "{report:#}");
    assert_eq!(report["findings"][0]["remedy"], "`understudy resume`");
    let ended = lab.person("viewer", &["validate", "--node", "nobody"]);
    assert!(ended.stderr.contains("the context knows north, south, witness"), "{ended:?}");
}
