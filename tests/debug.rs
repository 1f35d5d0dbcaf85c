//! What helps when something is wrong: the log's level at run time, and the bundle for a bug report,
//! with secrets wherever they could leak.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::BINARY;
use support::lab::{DATA, Lab, NODES, WITNESS, ZERO};
use support::processes::run;

/// Whatever is a secret here begins so.
const SECRET: &str = "hunter2";

fn levels(lab: &Lab) -> Vec<(String, bool)> {
    let told = lab.person("viewer", &["log", "level", "--output=json"]).good();
    let told: Value = serde_json::from_str(&told).unwrap();
    let nodes = told["nodes"].as_array().unwrap().iter();
    nodes.map(|n| (n["filter"].as_str().unwrap().to_owned(), n["until_unix_us"].is_i64())).collect()
}

fn level_is_changed_for_a_while(lab: &mut Lab) {
    let usual = || vec![("info".to_owned(), false); 3];
    let [first, second] = DATA;
    assert_eq!(levels(lab), usual());
    assert!(!lab.log_text(first).contains("DEBUG"));
    let refused = lab.operator(&["log", "level", "debug"]);
    refused.refused_with(&["it takes a person with the role administrator"]);
    assert_eq!(lab.person("administrator", &["log", "level", "debgu"]).status.code(), Some(2));
    let order = ["log", "level", "debug", "--for", "3s", "--node", first];
    let said = lab.person("administrator", &order).good();
    assert!(said.contains("debug until "), "{said}");
    lab.wait("more to be logged", |lab| lab.log_text(first).contains("DEBUG"));
    lab.wait("the level to fall back", |lab| levels(lab) == usual());
    assert!(lab.log_text(first).contains("log level falls back"));
    assert!(!lab.log_text(second).contains("DEBUG"));
    lab.person("administrator", &["log", "level", "warn", "--node", WITNESS]).good();
    assert_eq!(levels(lab)[2], ("warn".to_owned(), false));
    lab.person("administrator", &["log", "level", "--reset"]).good();
    assert_eq!(levels(lab), usual());
}

/// A bundle, unpacked: where its files are, and its manifest.
fn bundle(lab: &Lab, name: &str) -> (PathBuf, Value) {
    let file = lab.root().join(format!("{name}.tar.gz"));
    let said = lab.operator(&["debug", "bundle", "--out", file.to_str().unwrap()]).good();
    assert!(said.contains("look through it before you send it"), "{said}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let dir = lab.root().join(name);
    fs::create_dir(&dir).unwrap();
    run(Command::new("tar").arg("-xzf").arg(&file).arg("-C").arg(&dir)).good();
    let root = fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
    let manifest = fs::read(root.join("manifest.json")).unwrap();
    (root, serde_json::from_slice(&manifest).unwrap())
}

fn all_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { all_files(&path) } else { vec![path] }).collect()
}

fn missing(manifest: &Value, name: &str) -> String {
    let lacks = manifest["missing"].as_array().unwrap().iter();
    let of = lacks.filter(|lack| lack["name"].as_str().unwrap().starts_with(name));
    of.map(|lack| lack["reason"].as_str().unwrap()).collect::<Vec<_>>().join("; ")
}

fn holds(root: &Path, file: &str, words: &str) {
    let text = fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    assert!(text.contains(words), "{words:?} is not in {file}:\n{text}");
}

#[test]
fn the_log_can_be_turned_up_for_a_while_and_a_bundle_has_everything_but_secrets() {
    let mut lab = Lab::prepared(ZERO);
    let [first, second] = DATA;
    let hook = lab.root().join("hook");
    let leaks = format!(
        "#!/bin/sh\ncat >&2 <<END\nPGPASSWORD={SECRET}-env\n-----BEGIN PRIVATE KEY-----\n{SECRET}-pem\nEND\n"
    );
    fs::write(&hook, leaks).unwrap();
    fs::set_permissions(&hook, Permissions::from_mode(0o755)).unwrap();
    lab.edit_config(first, |config| {
        let parameters = config["postgres"]["parameters"].as_table_mut().unwrap();
        parameters.insert("app.api_token".to_owned(), format!("{SECRET}-parameter").into());
        let mut table = toml::Table::new();
        table.insert("on".to_owned(), vec!["pause-began"].into());
        let command = [hook.to_str().unwrap(), "--password", &format!("{SECRET}-argument")];
        table.insert("command".to_owned(), command.to_vec().into());
        config.insert("hooks".to_owned(), vec![toml::Value::Table(table)].into());
    });
    for name in NODES {
        lab.start(name);
    }
    lab.wait("a protected cluster", |lab| lab.protected_under(first));
    level_is_changed_for_a_while(&mut lab);

    let (root, manifest) = bundle(&lab, "whole");
    for node in NODES {
        let of = |file: &str| format!("nodes/{node}/{file}");
        holds(&root, &of("status.json"), "\"applied_index\"");
        holds(&root, &of("events.jsonl"), "\"daemon-started\"");
        holds(&root, &of("config.toml"), "data_dir = ");
        holds(&root, &of("metrics.txt"), "understudy_build_info");
        holds(&root, &of("machine.txt"), "/proc/loadavg");
        holds(&root, &of("log.txt"), "");
        holds(&root, &of("wal.json"), "\"places\"");
        holds(&root, &of("receipts.json"), "[]");
        holds(&root, &of("operations.json"), "[]");
        let trace = root.join(of("trace"));
        run(Command::new(BINARY).arg("replay").arg(trace).args(["--only", "decisions"])).good();
    }
    // What was refused above is a warning, whatever else has happened.
    holds(&root, &format!("nodes/{first}/log.txt"), "request refused");
    assert_eq!(
        missing(&manifest, &format!("nodes/{first}")).matches("PostgreSQL's log").count(),
        1
    );
    let there = lab.root().join("whole.tar.gz");
    let again = lab.operator(&["debug", "bundle", "--out", there.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(2), "{again:?}");
    let nowhere = lab.operator(&["debug", "bundle", "--out", "/nonexistent/x"]);
    nowhere.refused_with(&["create /nonexistent/x.partial"]);

    let reason = format!("see postgres://ada:{SECRET}-reason@north/db");
    lab.operator(&["pause", "--for", "5m", "--reason", &reason]).good();
    // What a hook says on its standard error is redacted before anybody is told of it.
    lab.wait("the hook to have tried to tell", |lab| {
        let told = lab.person("viewer", &["events", "--kind", "hook-done"]);
        assert!(!told.stdout.contains("-env"), "{told:?}");
        told.stdout.contains("PGPASSWORD=[redacted]")
    });
    lab.kill_node(second);
    let (root, manifest) = bundle(&lab, "with-secrets");
    holds(&root, &format!("nodes/{first}/events.jsonl"), "postgres://ada:[redacted]@north/db");
    holds(&root, &format!("nodes/{first}/events.jsonl"), "PGPASSWORD=[redacted]");
    holds(&root, &format!("nodes/{first}/operations.json"), "postgres://ada:[redacted]@north/db");
    holds(&root, &format!("nodes/{first}/config.toml"), "api_token\" = \"[redacted]\"");
    holds(&root, &format!("nodes/{first}/config.toml"), "\"--password\", \"[redacted]\"");
    assert!(
        missing(&manifest, &format!("nodes/{second}")).contains("cannot be reached"),
        "{manifest:#}"
    );
    let trace = missing(&manifest, &format!("nodes/{first}/trace"));
    assert!(trace.contains("looks like a secret"), "{manifest:#}");
    for file in all_files(&lab.root().join("with-secrets")) {
        let bytes = fs::read(&file).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(SECRET), "a secret is in {}", file.display());
        assert!(!text.contains("BEGIN PRIVATE KEY"), "a key is in {}", file.display());
    }
}
