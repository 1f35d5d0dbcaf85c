//! The WAL that the nodes hold: shown, listed and verified at both sites; what is damaged or missing at
//! rest is named with its file and position, and a node that does not answer is not left out.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::lab::{DATA, Lab, ZERO};
use support::processes::{Background, Ended};
use support::{BINARY, wait_for};

const SEGMENT_BYTES: u64 = 16 << 20;
const PAGE_BYTES: u64 = 8192;
/// Segments that are filled; each is left for the next before it is full.
const FILLED: usize = 6;
const MEBIBYTES_EACH: u32 = 13;

fn lsn(value: &Value) -> u64 {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is no LSN"));
    let (high, low) = text.split_once('/').unwrap();
    u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
}

fn name_of(timeline: u64, start: u64) -> String {
    format!("{timeline:08X}{:08X}{:08X}", start >> 32, (start & 0xFFFF_FFFF) / SEGMENT_BYTES)
}

/// A verb with `--output json`: how it ended, and the last object that it printed.
fn json(lab: &Lab, arguments: &[&str]) -> (Option<i32>, Value) {
    let arguments = [arguments, &["--output", "json"][..]].concat();
    let ended = lab.operator(&arguments);
    let last = ended.stdout.lines().last().unwrap_or_else(|| panic!("{ended:#?}"));
    (ended.status.code(), serde_json::from_str(last).unwrap())
}

fn verify(lab: &Lab) -> (Option<i32>, Value) {
    json(lab, &["wal", "verify", "--rate", "1GiB"])
}

#[track_caller]
fn assert_sound(lab: &Lab) -> Value {
    let (code, report) = verify(lab);
    assert_eq!((code, &report["sound"]), (Some(0), &Value::Bool(true)), "{report:#}");
    report
}

fn of_node<'a>(list: &'a Value, name: &str) -> &'a Value {
    let nodes = list["nodes"].as_array().unwrap();
    nodes.iter().find(|node| node["node"] == name).unwrap_or_else(|| panic!("{name} in {list:#}"))
}

fn place<'a>(list: &'a Value, name: &str, kind: &str) -> &'a Value {
    let places = of_node(list, name)["places"].as_array().unwrap();
    places.iter().find(|place| place["place"] == kind).unwrap_or_else(|| panic!("{list:#}"))
}

fn findings(report: &Value, name: &str, kind: &str) -> Vec<Value> {
    place(report, name, kind)["findings"].as_array().unwrap().clone()
}

/// Writes that much WAL in whole segments, and waits until the other site has it.
fn fill(lab: &mut Lab, active: &str, passive: &str, segments: usize) {
    let text = "repeat(md5(i::text), 32768)";
    let one = format!(
        "SELECT count(pg_logical_emit_message(true, 'test', {text})) \
         FROM generate_series(1, {MEBIBYTES_EACH}) AS i"
    );
    for _ in 0..segments {
        lab.sql(active, "postgres", &one);
        lab.sql(active, "postgres", "SELECT pg_switch_wal()");
    }
    lab.sql(active, "postgres", "CREATE TABLE IF NOT EXISTS last (n int)");
    let end = lab.sql(active, "postgres", "SELECT pg_current_wal_flush_lsn()");
    let end = lsn(&Value::String(end));
    lab.wait("the passive to have everything", |lab| {
        let (_, status) = json(lab, &["wal", "status"]);
        lsn(&place(&status, passive, "journal")["durable_lsn"]) >= end
    });
}

/// The finished segments of a journal's timeline, in order.
fn finished(journal: &Path, timeline: u64) -> Vec<PathBuf> {
    let entries = fs::read_dir(journal.join(format!("{timeline:08X}"))).unwrap().flatten();
    let mut found: Vec<_> = entries.map(|entry| entry.path()).collect();
    found.retain(|path| path.extension().is_none());
    found.sort();
    found
}

fn file_name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

fn start_of(path: &Path) -> u64 {
    let name = file_name(path);
    let number = |range| u64::from_str_radix(&name[range], 16).unwrap();
    (number(8..16) << 32) + number(16..24) * SEGMENT_BYTES
}

/// Flips one bit at rest.
fn flip(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

fn count_in_log(lab: &Lab, node: &str, words: &str) -> usize {
    lab.log_text(node).matches(words).count()
}

fn with_context(lab: &Lab, role: &str, arguments: &[&str]) -> Ended {
    let context = lab.cluster_dir().join(format!("contexts/{role}.toml"));
    lab.operator(&[&["--context", context.to_str().unwrap()][..], arguments].concat())
}

fn shows_and_lists(lab: &Lab, active: &str, passive: &str) {
    let (code, status) = json(lab, &["wal", "status"]);
    assert_eq!((code, &status["version"]), (Some(0), &Value::from(1)), "{status:#}");
    for (node, kind) in [(active, "pg_wal"), (passive, "journal")] {
        let place = place(&status, node, kind);
        let [range] = place["ranges"].as_array().unwrap().as_slice() else { panic!("{place:#}") };
        assert_eq!(place["gaps"].as_array().unwrap().len(), 0, "{place:#}");
        assert_eq!(range["to_lsn"], place["durable_lsn"], "{place:#}");
        let bytes = lsn(&range["to_lsn"]) - lsn(&range["from_lsn"]);
        assert_eq!(range["bytes"], bytes, "{place:#}");
        assert!(range["segments"].as_u64().unwrap() > FILLED as u64, "{place:#}");
        assert!(place["free_bytes"].as_u64().unwrap() > 0, "{place:#}");
    }
    let text = with_context(lab, "viewer", &["wal", "status"]).good();
    for words in [active, passive, "pg_wal", "journal", "DISK FREE"] {
        assert!(text.contains(words), "{text}");
    }

    let (code, listed) = json(lab, &["wal", "list", "--node", passive]);
    assert_eq!(code, Some(0), "{listed:#}");
    let files = listed["files"].as_array().unwrap();
    let names: BTreeSet<_> = files.iter().map(|file| file["name"].as_str().unwrap()).collect();
    let journal = lab.journal_dir(passive).join("00000001");
    let entries = fs::read_dir(&journal).unwrap().flatten();
    let held: BTreeSet<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert_eq!(names, held.iter().map(String::as_str).collect::<BTreeSet<_>>());
    let partial: Vec<_> = files.iter().filter(|file| file["kind"] == "partial").collect();
    assert_eq!(partial.len(), 1, "{listed:#}");
    // One of them by its position.
    let one = &finished(&lab.journal_dir(passive), 1)[2];
    let inside = format!("{:X}/{:X}", start_of(one) >> 32, (start_of(one) & 0xFFFF_FFFF) + 100);
    let behind = format!("{:X}/{:X}", start_of(one) >> 32, (start_of(one) & 0xFFFF_FFFF) + 101);
    let part = ["wal", "list", "--node", passive, "--from", &inside, "--to", &behind];
    let (_, part) = json(lab, &part);
    let [file] = part["files"].as_array().unwrap().as_slice() else { panic!("{part:#}") };
    assert_eq!(file["name"], file_name(one));
    assert_eq!((lsn(&file["from_lsn"]), &file["kind"]), (start_of(one), &Value::from("finished")));
    let (_, other) = json(lab, &["wal", "list", "--timeline", "2"]);
    assert_eq!(other["files"].as_array().unwrap().len(), 0, "{other:#}");
    lab.operator(&["wal", "list", "--node", "witness"]).refused_with(&["a witness holds no WAL"]);
}

fn finds_a_flipped_bit(lab: &Lab, active: &str, passive: &str) {
    let damaged = &finished(&lab.journal_dir(passive), 1)[3];
    let offset = 5 << 20 | 1234;
    let flipped = start_of(damaged) + offset;
    flip(damaged, offset);
    let (code, report) = verify(lab);
    assert_eq!(code, Some(1), "{report:#}");
    assert_eq!(findings(&report, active, "pg_wal"), Vec::<Value>::new(), "{report:#}");
    let found = findings(&report, passive, "journal");
    let [finding] = found.as_slice() else { panic!("{report:#}") };
    assert_eq!(finding["kind"], "damaged", "{finding:#}");
    assert_eq!(finding["file"], file_name(damaged), "{finding:#}");
    // The record that it is in: a mebibyte and its headers.
    let record = lsn(&finding["lsn"]);
    assert!(record <= flipped && flipped < record + (1 << 20) + (1 << 14), "{finding:#}");
    assert_eq!(finding["sound_at"][0]["node"], active, "{finding:#}");
    let differences = report["compared"]["differences"].as_array().unwrap();
    let [difference] = differences.as_slice() else { panic!("{report:#}") };
    assert_eq!(difference["file"], file_name(damaged));
    assert_eq!(lsn(&difference["page_lsn"]), flipped / PAGE_BYTES * PAGE_BYTES);
    let text = lab.operator(&["wal", "verify", "--rate", "1GiB"]);
    assert_eq!(text.status.code(), Some(1), "{text:#?}");
    for words in [file_name(damaged), "1 FINDING", "expected", "remedy", "DIFFERENT", "sound at"] {
        assert!(text.stdout.contains(words), "{words:?} is missing: {}", text.stdout);
    }
    for (node, count) in [(active, 0), (passive, 1)] {
        let (_, metrics) = lab.get(node, "/metrics").unwrap();
        let line = format!("understudy_wal_verify_last_findings_count {count}");
        assert!(metrics.lines().any(|found| found == line), "{node}: {metrics}");
    }
    flip(damaged, offset);
    assert_sound(lab);
}

/// The hole is mended as the remedy says.
fn finds_a_hole_and_what_fills_it(lab: &Lab, active: &str, passive: &str) {
    let missing = &finished(&lab.journal_dir(passive), 1)[3];
    fs::remove_file(missing).unwrap();
    let (code, status) = json(lab, &["wal", "status"]);
    assert_eq!(code, Some(0), "{status:#}");
    let journal = place(&status, passive, "journal");
    let [gap] = journal["gaps"].as_array().unwrap().as_slice() else { panic!("{journal:#}") };
    assert_eq!(lsn(&gap["from_lsn"]), start_of(missing));
    assert_eq!(gap["bytes"], SEGMENT_BYTES);
    assert_eq!(journal["ranges"].as_array().unwrap().len(), 2, "{journal:#}");
    let text = lab.operator(&["wal", "status"]).good();
    assert!(text.contains(&format!("GAP in {passive}'s journal: 16.0 MiB")), "{text}");
    let (code, report) = verify(lab);
    assert_eq!(code, Some(1), "{report:#}");
    let found = findings(&report, passive, "journal");
    let [finding] = found.as_slice() else { panic!("{report:#}") };
    assert_eq!(finding["kind"], "gap", "{finding:#}");
    assert_eq!(finding["file"], file_name(missing), "{finding:#}");
    let beside = missing.with_extension("copy");
    fs::copy(lab.pgdata(active).join("pg_wal").join(file_name(missing)), &beside).unwrap();
    fs::rename(&beside, missing).unwrap();
    assert_sound(lab);
}

fn one_at_a_time_and_none_without_its_caller(lab: &Lab, passive: &str) {
    let begins = "verification of WAL begins";
    let before = count_in_log(lab, passive, begins);
    let mut slow = Command::new(BINARY);
    slow.args(["wal", "verify", "--rate", "1MiB"]);
    slow.env("UNDERSTUDY_CONTEXT", lab.cluster_dir().join("contexts/operator.toml"));
    let mut slow = Background::start(&mut slow);
    wait_for("it to begin", || (count_in_log(lab, passive, begins) > before).then_some(()));
    let second = lab.operator(&["wal", "verify", "--node", passive]);
    assert_eq!(second.status.code(), Some(1), "{second:#?}");
    assert!(second.stdout.contains("another verification runs"), "{second:#?}");
    assert!(slow.runs());
    drop(slow);
    wait_for("its caller's end to end it", || {
        let again = lab.operator(&["wal", "verify", "--node", passive, "--rate", "4GiB"]);
        again.status.success().then_some(())
    });
    assert!(lab.log_text(passive).contains("broken off by its caller"));
}

fn without_its_daemon(lab: &mut Lab, active: &str, passive: &str) {
    lab.kill_node(passive);
    let (code, status) = json(lab, &["wal", "status"]);
    assert_eq!(code, Some(1), "{status:#}");
    assert!(of_node(&status, passive)["unreachable"].is_string(), "{status:#}");
    assert_eq!(place(&status, active, "pg_wal")["gaps"].as_array().unwrap().len(), 0);
    let (code, report) = verify(lab);
    assert_eq!(code, Some(1), "{report:#}");
    assert!(of_node(&report, passive)["not_verified"].is_string(), "{report:#}");
    assert_eq!(findings(&report, active, "pg_wal"), Vec::<Value>::new());

    let dir = lab.journal_dir(passive);
    let offline = ["wal", "verify", "--rate", "1GiB", "--journal", dir.to_str().unwrap()];
    let (code, report) = json(lab, &offline);
    assert_eq!((code, &report["sound"]), (Some(0), &Value::Bool(true)), "{report:#}");
    let own = &report["nodes"][0]["places"][0];
    let damaged = &finished(&dir, 1)[1];
    assert!(lsn(&own["found_end_lsn"]) > start_of(damaged), "{report:#}");
    flip(damaged, 6 << 20);
    let (code, report) = json(lab, &offline);
    assert_eq!(code, Some(1), "{report:#}");
    let found = &report["nodes"][0]["places"][0]["findings"];
    assert_eq!(found[0]["file"], file_name(damaged), "{report:#}");
    flip(damaged, 6 << 20);
    let listed = ["wal", "list", "--journal", dir.to_str().unwrap()];
    let (_, listed) = json(lab, &listed);
    let files = listed["files"].as_array().unwrap();
    let count = files.iter().filter(|file| file["kind"] == "finished").count();
    assert_eq!(count, finished(&dir, 1).len(), "{listed:#}");
    let nowhere = lab.root().join("nowhere");
    lab.operator(&["wal", "verify", "--journal", nowhere.to_str().unwrap()])
        .refused_with(&["nowhere", "journal.meta"]);
    lab.start(passive);
    lab.wait("the passive to be back", |lab| lab.protected_under(active));
}

#[test]
fn wal_is_shown_and_verified_at_both_sites_and_what_is_wrong_at_rest_is_named() {
    let mut lab = Lab::founded(ZERO);
    let [active, passive] = DATA;
    fill(&mut lab, active, passive, FILLED);
    shows_and_lists(&lab, active, passive);

    let report = assert_sound(&lab);
    let same = report["compared"]["same_segments"].as_u64().unwrap();
    assert!(same > FILLED as u64, "{report:#}");
    let text = lab.operator(&["wal", "verify", "--rate", "1GiB"]).good();
    for words in ["north pg_wal:", "south journal:", "sound", "are the same at two nodes"] {
        assert!(text.contains(words), "{words:?} is missing: {text}");
    }
    let viewer = with_context(&lab, "viewer", &["wal", "verify"]);
    assert_eq!(viewer.status.code(), Some(1), "{viewer:#?}");
    assert!(viewer.stdout.contains("a person with the role operator"), "{viewer:#?}");

    finds_a_flipped_bit(&lab, active, passive);
    finds_a_hole_and_what_fills_it(&lab, active, passive);
    one_at_a_time_and_none_without_its_caller(&lab, passive);
    without_its_daemon(&mut lab, active, passive);
    lab.check_daemons();
}

#[test]
fn over_a_failover_both_timelines_are_verified_and_the_same() {
    let mut lab = Lab::founded(ZERO);
    let [lost, heir] = DATA;
    fill(&mut lab, lost, heir, 2);
    lab.kill_site(lost);
    lab.wait("the other site to take over", |lab| lab.writable_at(heir));
    lab.start(lost);
    lab.wait("the lost site to be back as the passive", |lab| lab.protected_under(heir));
    fill(&mut lab, heir, lost, 2);
    let (_, status) = json(&lab, &["wal", "status"]);
    let timelines = |name: &str, kind: &str| {
        let ranges = place(&status, name, kind)["ranges"].as_array().unwrap();
        ranges.iter().map(|range| range["timeline"].as_u64().unwrap()).collect::<BTreeSet<_>>()
    };
    let newest = timelines(heir, "pg_wal").last().copied().unwrap();
    assert!(newest > 1, "{status:#}");
    // What it received as the passive is still there, beside what it writes now.
    assert_eq!(timelines(heir, "journal"), BTreeSet::from([1]), "{status:#}");
    assert!(timelines(lost, "journal").contains(&newest), "{status:#}");
    let report = assert_sound(&lab);
    assert!(report["compared"]["same_segments"].as_u64().unwrap() >= 2, "{report:#}");
    // The fork's segment and those behind it are told apart by their timeline.
    let behind = &finished(&lab.journal_dir(lost), newest)[1];
    assert_eq!(file_name(behind), name_of(newest, start_of(behind)));
    flip(behind, 3 << 20);
    let (code, report) = verify(&lab);
    assert_eq!(code, Some(1), "{report:#}");
    let found = findings(&report, lost, "journal");
    assert_eq!(found[0]["file"], file_name(behind), "{report:#}");
}
