//! Prometheus as its users run it: the distribution's programs, the rules of `deploy/`, a real cluster.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::compare::finish_segment;
use support::lab::{DATA, HTTP_PORT, Lab, NODES, WITNESS, ZERO};
use support::processes::Background;
use support::{PATIENCE, wait_for};

/// Not its usual one: a service of the machine may have that.
const PORT: u16 = 19090;

fn deploy(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy")).join(path)
}

fn promtool(directory: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("promtool");
    // The cases of all alerts take half a minute where nothing else runs.
    Background::start(command.current_dir(directory).args(arguments)).wait(4 * PATIENCE).good()
}

#[test]
fn the_rules_are_sound_and_every_alert_fires_in_a_case_of_its_own() {
    promtool(&deploy("prometheus"), &["check", "config", "prometheus.yml"]);
    promtool(&deploy("prometheus"), &["check", "rules", "rules/understudy.rules.yml"]);
    promtool(&deploy("prometheus/tests"), &["test", "rules", "understudy.test.yml"]);
    let rules = std::fs::read_to_string(deploy("prometheus/rules/understudy.rules.yml")).unwrap();
    let cases = std::fs::read_to_string(deploy("prometheus/tests/understudy.test.yml")).unwrap();
    let runbook = std::fs::read_to_string(deploy("../docs/runbook.md")).unwrap();
    let alerts: Vec<&str> =
        rules.lines().filter_map(|l| l.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 40, "{alerts:?}");
    for alert in alerts {
        assert!(cases.contains(&format!("{{alertname=\"{alert}\"")), "no case of {alert}");
        assert!(runbook.lines().any(|line| line == format!("### {alert}")), "no entry for {alert}");
        let anchor = format!("docs/runbook.md#{}", alert.to_lowercase());
        assert!(rules.contains(&anchor), "{alert} does not lead to its entry");
    }
}

/// A Prometheus that watches the lab every second, at the witness's address, with the rules as they are
/// but for the time that a condition has to last.
struct Prometheus {
    process: Background,
    host: String,
}

impl Prometheus {
    fn start(lab: &Lab) -> Prometheus {
        let directory = lab.root().join("prometheus");
        std::fs::create_dir(&directory).unwrap();
        let rules =
            std::fs::read_to_string(deploy("prometheus/rules/understudy.rules.yml")).unwrap();
        let at_once = rules.lines().map(|line| match line.split_once("for: ") {
            Some((before, _)) if before.trim().is_empty() => format!("{before}for: 0s\n"),
            _ => format!("{line}\n"),
        });
        std::fs::write(directory.join("rules.yml"), at_once.collect::<String>()).unwrap();
        let example = std::fs::read_to_string(deploy("prometheus/prometheus.yml")).unwrap();
        let mut text = example
            .replace("rules/*.rules.yml", "rules.yml")
            .replace("interval: 10s", "interval: 1s")
            .replace("timeout: 5s", "timeout: 1s");
        for name in NODES {
            let from = format!("{name}.example.org");
            assert!(text.contains(&from), "the example has no {from}");
            text = text.replace(&from, lab.address(name));
        }
        let config = directory.join("prometheus.yml");
        std::fs::write(&config, text).unwrap();
        let host = lab.address(WITNESS).to_owned();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", directory.join("data").display()));
        command.arg(format!("--web.listen-address={host}:{PORT}"));
        Prometheus { process: Background::start(&mut command), host }
    }

    fn get(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect((self.host.as_str(), PORT)).ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.host);
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        let value: Value = serde_json::from_str(body).ok()?;
        (value["status"] == "success").then(|| value["data"].clone())
    }

    /// The values of an instant query without characters that an address would have to escape.
    fn query(&self, name: &str) -> Option<Vec<String>> {
        let data = self.get(&format!("/api/v1/query?query={name}"))?;
        let rows = data["result"].as_array()?.iter();
        Some(rows.map(|row| row["value"][1].as_str().unwrap_or_default().to_owned()).collect())
    }

    fn firing(&self) -> Option<BTreeSet<String>> {
        let data = self.get("/api/v1/alerts")?;
        let alerts = data["alerts"].as_array()?.iter();
        Some(alerts.filter_map(|a| Some(a["labels"]["alertname"].as_str()?.to_owned())).collect())
    }

    fn wait_for_alert(&mut self, alert: &str) {
        wait_for(&format!("the alert {alert}"), || {
            assert!(self.process.runs(), "Prometheus ended");
            self.firing()?.contains(alert).then_some(())
        });
    }

    fn wait_for_calm(&self, alert: &str) {
        wait_for(&format!("the alert {alert} to end"), || {
            (!self.firing()?.contains(alert)).then_some(())
        });
    }
}

#[test]
fn prometheus_scrapes_every_node_and_its_alerts_follow_what_happens() {
    let mut lab = Lab::founded(ZERO);
    let mut prometheus = Prometheus::start(&lab);
    wait_for("three targets that are up", || {
        (prometheus.query("up")? == ["1", "1", "1"]).then_some(())
    });
    wait_for("one writable node", || {
        (prometheus.query("cluster:understudy_node_writable:sum")? == ["1"]).then_some(())
    });
    wait_for("every rule to have been looked at", || {
        let groups = prometheus.get("/api/v1/rules")?["groups"].as_array()?.clone();
        let looked = |group: &Value| {
            !group["lastEvaluation"].as_str().is_none_or(|at| at.starts_with("0001"))
        };
        (groups.len() > 3 && groups.iter().all(looked)).then_some(())
    });
    // The founding counts as news of the last minutes, and the disk is the machine's; nothing else is to be
    // told of a healthy cluster.
    let tolerated: BTreeSet<String> =
        ["UnderstudyFailoverHappened", "UnderstudyDiskFillingUp", "UnderstudyValidationRisks"]
            .map(str::to_owned)
            .into();
    wait_for("a cluster of which nothing is to be told", || {
        prometheus.firing()?.is_subset(&tolerated).then_some(())
    });

    lab.operator(&["pause", "--for", "5m", "--reason", "test"]).good();
    prometheus.wait_for_alert("UnderstudyPausedLong");
    lab.operator(&["resume"]).good();
    prometheus.wait_for_calm("UnderstudyPausedLong");

    lab.sql(DATA[0], "postgres", "CREATE UNLOGGED TABLE quick (n int)");
    lab.sql(
        DATA[0],
        "postgres",
        "CREATE ROLE hasty; ALTER ROLE hasty SET synchronous_commit = off",
    );
    prometheus.wait_for_alert("UnderstudyUngatedDefaults");
    prometheus.wait_for_alert("UnderstudyUnloggedTables");

    lab.kill_site(DATA[1]);
    prometheus.wait_for_alert("UnderstudyDaemonDown");
    prometheus.wait_for_alert("UnderstudyMemberSilent");
    lab.kill_node(WITNESS);
    prometheus.wait_for_alert("UnderstudyNoMajority");
    prometheus.wait_for_alert("UnderstudyNoActive");
    lab.start(WITNESS);
    lab.start(DATA[1]);
    lab.wait("the passive to be back", |lab| lab.writable_at(DATA[0]) || lab.writable_at(DATA[1]));
    for alert in ["UnderstudyDaemonDown", "UnderstudyNoMajority", "UnderstudyNoActive"] {
        prometheus.wait_for_calm(alert);
    }
}

/// A hook at that node that fails whatever it is told.
fn with_a_failing_hook(lab: &mut Lab, name: &str) {
    let script = lab.root().join("fails");
    std::fs::write(&script, "#!/bin/sh\ncat > /dev/null\nexit 3\n").unwrap();
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    lab.edit_config(name, |config| {
        let mut hook = toml::Table::new();
        hook.insert("on".to_owned(), vec!["active-change"].into());
        hook.insert("command".to_owned(), vec![script.to_str().unwrap()].into());
        config.insert("hooks".to_owned(), vec![toml::Value::Table(hook)].into());
    });
}

#[test]
fn what_is_done_to_a_cluster_and_what_spoils_it_fires_its_alerts() {
    let mut lab = Lab::prepared(ZERO);
    let [first, second] = DATA;
    with_a_failing_hook(&mut lab, first);
    for name in NODES {
        lab.start(name);
    }
    lab.wait("a protected cluster", |lab| lab.protected_under(first));
    let mut prometheus = Prometheus::start(&lab);
    wait_for("three targets that are up", || {
        (prometheus.query("up")? == ["1", "1", "1"]).then_some(())
    });

    // A library that is installed nowhere, and a setting of the node's that is another one: the nodes look by
    // and by.
    lab.sql(first, "postgres", "CREATE FUNCTION gone() RETURNS int LANGUAGE sql AS 'SELECT 1'");
    let library = "UPDATE pg_proc SET probin = '$libdir/understudy_gone' WHERE proname = 'gone'";
    lab.sql(first, "postgres", library);
    lab.sql(first, "postgres", "ALTER SYSTEM SET wal_keep_size = '2GB'");
    lab.sql(first, "postgres", "SELECT pg_reload_conf()");

    // A parameter that PostgreSQL does not take.
    lab.edit_config(second, |config| {
        let postgres = config["postgres"].as_table_mut().unwrap();
        let parameters = postgres.entry("parameters").or_insert(toml::Table::new().into());
        parameters.as_table_mut().unwrap().insert("work_mem".to_owned(), "much".into());
    });
    let reload = lab.operator(&["reload", second, "--reason", "test", "--wait"]);
    assert_eq!(reload.status.code(), Some(1), "{reload:?}");
    prometheus.wait_for_alert("UnderstudyOperationFailed");
    lab.edit_config(second, |config| {
        config["postgres"]["parameters"].as_table_mut().unwrap().remove("work_mem");
    });

    // A byte of WAL that has turned at rest.
    finish_segment(&lab, first);
    let finished = finish_segment(&lab, first);
    let segment = lab.journal_dir(second).join("00000001").join(&finished);
    wait_for("the segment at the other site", || segment.exists().then_some(()));
    let file = File::options().read(true).write(true).open(&segment).unwrap();
    // In its first record, behind the file's header of 40 bytes.
    let (mut byte, at) = ([0], 64);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    let verified = lab.operator(&["wal", "verify", "--node", second, "--rate", "1GiB"]);
    assert_eq!(verified.status.code(), Some(1), "{verified:?}");
    prometheus.wait_for_alert("UnderstudyWalFindings");
    file.write_all_at(&byte, at).unwrap();
    lab.operator(&["wal", "verify", "--node", second, "--rate", "1GiB"]).good();
    prometheus.wait_for_calm("UnderstudyWalFindings");

    for to in [second, first, second] {
        let epoch = "cluster:understudy_cluster_epoch:max";
        let before = prometheus.query(epoch).unwrap();
        lab.operator(&["switchover", "--to", to, "--reason", "test", "--wait"]).good();
        lab.wait("protection under the new active", |lab| lab.protected_under(to));
        // Each has to be seen, or two count as one change.
        wait_for("the epoch to be seen", || (prometheus.query(epoch)? != before).then_some(()));
    }
    prometheus.wait_for_alert("UnderstudyFlapping");
    prometheus.wait_for_alert("UnderstudyHookFails");

    prometheus.wait_for_alert("UnderstudyValidationBlocks");
    prometheus.wait_for_alert("UnderstudyValidationRisks");
    lab.kill_site(first);
    prometheus.wait_for_alert("UnderstudyPassiveDetached");
    prometheus.wait_for_alert("UnderstudyFailoverNotReady");
}

#[test]
fn every_metric_has_help_and_is_used_by_a_rule_or_a_panel() {
    let lab = Lab::founded(ZERO);
    let rules = std::fs::read_to_string(deploy("prometheus/rules/understudy.rules.yml")).unwrap();
    let dashboard = std::fs::read_to_string(deploy("grafana/understudy.json")).unwrap();
    let panels: Value = serde_json::from_str(&dashboard).unwrap();
    assert!(panels["panels"].as_array().is_some_and(|panels| panels.len() > 20));
    let mut names = BTreeSet::new();
    for node in NODES {
        let (code, text) = lab.get(node, "/metrics").unwrap();
        assert_eq!(code, 200, "{}:{HTTP_PORT}", lab.address(node));
        for line in text.lines().filter(|line| line.starts_with("# TYPE understudy_")) {
            let name = line.split(' ').nth(2).unwrap().to_owned();
            assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
            names.insert(name);
        }
    }
    assert!(names.len() > 50, "{names:?}");
    let used = |name: &&String| rules.contains(name.as_str()) || dashboard.contains(name.as_str());
    let unused: Vec<_> = names.iter().filter(|name| !used(name)).collect();
    assert!(unused.is_empty(), "used by no rule and no panel: {unused:?}");
}
