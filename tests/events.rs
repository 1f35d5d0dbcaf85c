//! What happened, as operators and their programs are told: the verb `events` and the hooks of a real
//! cluster through a switchover, a failover and restarts.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use support::BINARY;
use support::lab::{DATA, Lab, NODES, WITNESS, ZERO};
use support::processes::{Background, run};

/// The hooks of a node: scripts, and where they write.
struct Desk {
    takes: PathBuf,
    hangs: PathBuf,
    out: PathBuf,
}

impl Desk {
    /// One hook that keeps what it is told, and one that hangs with everything it could hold on to.
    fn of(lab: &mut Lab, name: &str) -> Desk {
        let dir = lab.root().join("hooks").join(name);
        let desk =
            Desk { takes: dir.join("takes"), hangs: dir.join("hangs"), out: dir.join("out") };
        fs::create_dir_all(&desk.out).unwrap();
        let script = |path: &PathBuf, text: &str| {
            fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        };
        fs::set_permissions(&desk.out, Permissions::from_mode(0o777)).unwrap();
        script(&desk.takes, "cat > \"$1/$$.new\" && mv \"$1/$$.new\" \"$1/$$.json\"");
        // It reads nothing, ends only with the test's directory, and its child has the pipe too.
        let hangs = "echo $$ > \"$1/hangs\"; (while [ -d \"$1\" ]; do sleep 0.2; done) & \
                     trap '' TERM; while [ -d \"$1\" ]; do sleep 0.2; done";
        script(&desk.hangs, hangs);
        let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
        lab.edit_config(name, |config| {
            let hook = |on: &[&str], program: &PathBuf, timeout: &str| {
                let mut hook = toml::Table::new();
                hook.insert("on".to_owned(), on.to_vec().into());
                hook.insert("command".to_owned(), vec![text(program), text(&desk.out)].into());
                hook.insert("timeout".to_owned(), timeout.into());
                toml::Value::Table(hook)
            };
            let on = ["role-change", "active-change", "operation-started", "alert"];
            let takes = hook(&on, &desk.takes, "30s");
            let hangs = hook(&["info"], &desk.hangs, "5m");
            config.insert("hooks".to_owned(), vec![hangs, takes].into());
        });
        desk
    }

    /// What the hook was told, in the order of the journals.
    fn told(&self) -> Vec<Value> {
        let files = fs::read_dir(&self.out).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| path.extension().is_some_and(|found| found == "json"));
        files.map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap()).collect()
    }

    /// Whether it was told this.
    fn was_told(
        &self,
        kind: &str,
        (from, to): (Option<&str>, Option<&str>),
        epochs: RangeInclusive<u64>,
    ) -> bool {
        let is = |value: &Value, wanted: Option<&str>| value.as_str() == wanted;
        self.told().iter().any(|event| {
            event["kind"] == kind
                && is(&event["from"], from)
                && is(&event["to"], to)
                && event["epoch"]["number"].as_u64().is_some_and(|epoch| epochs.contains(&epoch))
        })
    }
}

fn events(lab: &Lab, arguments: &[&str]) -> Value {
    let mut words = vec!["events", "--output=json"];
    if !arguments.contains(&"--limit") {
        words.push("--limit=10000");
    }
    words.extend(arguments);
    serde_json::from_str(&lab.person("viewer", &words).good()).unwrap()
}

/// How often it happened, by whoever saw it.
fn count(told: &Value, kind: &str, matches: impl Fn(&Value) -> bool) -> usize {
    let events = told["events"].as_array().unwrap().iter();
    events.filter(|event| event["kind"] == kind && matches(event)).count()
}

fn seen_by_all(event: &Value) -> bool {
    event["seen_by"].as_array().unwrap().len() == NODES.len()
}

#[test]
fn hooks_of_both_sides_and_the_verb_tell_of_a_switchover_and_a_failover_and_nothing_waits() {
    let mut lab = Lab::prepared(ZERO);
    let [first, second] = DATA;
    let desks = DATA.map(|name| Desk::of(&mut lab, name));
    for name in NODES {
        lab.start(name);
    }
    lab.wait("a protected cluster", |lab| lab.protected_under(first));
    let [one, two] = &desks;
    lab.wait("both to be told what they are", |_| {
        one.was_told("role-change", (Some("passive"), Some("active")), 1..=1)
            || one.was_told("role-change", (None, Some("active")), 1..=1)
    });
    lab.wait("the hooks that hang to hang", |_| desks.iter().all(|d| d.out.join("hangs").exists()));

    let followed = lab.root().join("followed");
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" events --follow --output json > \"$1\"", BINARY]);
    command.arg(&followed);
    command.env("UNDERSTUDY_CONTEXT", lab.cluster_dir().join("contexts/viewer.toml"));
    let mut following = Background::start(&mut command);
    lab.wait("the follower to have begun", |_| {
        fs::read_to_string(&followed).is_ok_and(|text| text.contains("daemon-started"))
    });

    let ended =
        lab.operator(&["switchover", "--wait", "--reason", "a test", "--output=json"]).good();
    let id = serde_json::from_str::<Value>(&ended).unwrap()["operation"]["id"].clone();
    lab.wait("the other site to be covered", |lab| lab.protected_under(second));
    lab.wait("the hooks of both sides to be told", |_| {
        one.was_told("role-change", (Some("active"), Some("passive")), 1..=2)
    });
    lab.wait("the new active's hook to be told", |_| {
        two.was_told("role-change", (Some("passive"), Some("active")), 2..=2)
            && desks
                .iter()
                .all(|desk| desk.was_told("operation-started", (None, Some("switchover")), 1..=2))
    });

    lab.kill_site(second);
    lab.wait("the first site to take over", |lab| lab.writable_at(first));
    lab.wait("its hook to be told of the loss and of its new role", |_| {
        let lost = |to| one.was_told("active-change", (Some(second), to), 2..=3);
        (lost(None) || lost(Some(first)))
            && one.was_told("role-change", (Some("passive"), Some("active")), 3..=3)
    });
    lab.start(second);
    lab.wait("the lost site to be back", |lab| lab.protected_under(first));
    lab.wait("its hook to be told what it is now", |_| {
        two.was_told("role-change", (None, Some("passive")), 3..=3)
    });
    lab.wait("the follower to have told of the promotions", |_| {
        let text = fs::read_to_string(&followed).unwrap();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let to: Vec<Value> = lines
            .filter(|event| event["kind"] == "active-change" && event["to"].is_string())
            .map(|event| event["to"].clone())
            .collect();
        to.ends_with(&[second.into(), first.into()])
    });
    assert!(following.runs(), "it follows over the loss of a node");

    let told = events(&lab, &[]);
    let of_operation = |event: &Value| event["subject"] == format!("operation {id}").as_str();
    for kind in ["operation-started", "operation-ended"] {
        assert_eq!(count(&told, kind, |e| of_operation(e) && seen_by_all(e)), 1, "{told:#}");
        assert_eq!(count(&told, kind, of_operation), 1, "{told:#}");
    }
    let promoted = |event: &Value| event["subject"] == second && seen_by_all(event);
    assert_eq!(count(&told, "promotion", promoted), 1, "{told:#}");
    let switched = |e: &Value| e["from"] == first && e["to"].is_null() && e["severity"] == "alert";
    assert_eq!(count(&told, "active-change", switched), 0, "asked for, so no alert: {told:#}");
    assert!(count(&told, "node-unreachable", |e| e["subject"] == second) > 0, "{told:#}");
    assert!(count(&told, "hook-done", |e| e["node"] == first) > 3, "{told:#}");
    // The hook that hangs is still in its first run, as everything above did not wait for it.
    let hangs = one.hangs.to_str().unwrap();
    assert_eq!(count(&told, "hook-failed", |e| e["subject"] == hangs), 0, "{told:#}");
    assert_eq!(count(&told, "hook-done", |e| e["subject"] == hangs), 0, "{told:#}");
    let metrics = lab.get(first, "/metrics").unwrap().1;
    let takes = one.takes.to_str().unwrap();
    let line = format!("understudy_hook_ended_total{{hook=\"{takes}\",outcome=\"done\"}} ");
    let done = metrics.lines().find_map(|found| found.strip_prefix(&line)).unwrap();
    assert!(done.parse::<u64>().unwrap() > 3, "{done}");

    // A daemon that starts anew tells what is on record, with the times of the record.
    let times = |told: &Value, kind: &str| {
        let events = told["events"].as_array().unwrap().iter();
        let of = events.filter(|event| event["kind"] == kind);
        of.map(|event| event["at_unix_us"].as_i64().unwrap()).collect::<Vec<i64>>()
    };
    lab.kill_node(WITNESS);
    lab.start(WITNESS);
    let asked = ["--node", WITNESS, "--kind", "promotion", "--kind", "role-change"];
    lab.wait("the witness to have told the record", |lab| {
        let record = ["events", "--node", WITNESS, "--kind", "promotion"];
        let told = lab.person("viewer", &record);
        told.status.success() && !told.stdout.is_empty()
    });
    let anew = events(&lab, &asked);
    assert_eq!(times(&anew, "promotion"), times(&told, "promotion"), "{anew:#}");
    assert_eq!(count(&anew, "role-change", |e| e["from"].is_null() && e["to"] == "witness"), 1);
    assert_eq!(anew["events"].as_array().unwrap().len(), 4, "{anew:#}");
    let newest = events(&lab, &["--node", WITNESS, "--limit", "1"]);
    assert_eq!(newest["events"].as_array().unwrap().len(), 1);

    let text = lab.person("viewer", &["events", "--kind", "promotion"]).good();
    assert!(text.contains(&format!("{second} was promoted for epoch 2")), "{text}");
    lab.kill_node(WITNESS);
    let partly = lab.person("viewer", &["events", "--output=json"]);
    assert_eq!(partly.status.code(), Some(1), "{partly:?}");
    assert!(partly.stderr.contains("witness cannot be asked"), "{partly:?}");
}

#[test]
fn the_example_of_a_hook_sends_the_event_to_a_webhook_and_says_when_it_cannot() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/hooks/understudy-notify");
    let webhook = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/understudy", webhook.local_addr().unwrap());
    let call = |answer: &'static str| {
        let webhook = webhook.try_clone().unwrap();
        let told = std::thread::spawn(move || {
            let (mut stream, _) = webhook.accept().unwrap();
            let mut request = String::new();
            let mut piece = [0; 4096];
            while !request.ends_with("}\n") {
                let count = stream.read(&mut piece).unwrap();
                request.push_str(std::str::from_utf8(&piece[..count]).unwrap());
            }
            stream.write_all(answer.as_bytes()).unwrap();
            request
        });
        let line = "printf '%s\\n' '{\"kind\":\"promotion\"}' | sh \"$0\" \"$1\"";
        let ended = run(Command::new("sh").args(["-c", line, script, &address]));
        (ended, told.join().unwrap())
    };
    let (ended, request) = call("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
    ended.good();
    assert!(request.starts_with("POST /understudy ") && request.contains("application/json"));
    assert!(request.ends_with("{\"kind\":\"promotion\"}\n"), "{request}");
    let refuses = "HTTP/1.1 500 Broken\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    call(refuses).0.refused_with(&["500"]);
}
