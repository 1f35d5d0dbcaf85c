//! Orders to one node about its PostgreSQL: settings read anew, restarts one after the other under load, a
//! passive made afresh, and switchovers that are scheduled. Nothing acknowledged is lost and nobody takes
//! over that was not asked to.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Instant;

use serde_json::{Value, json};
use support::compare::wait_for_replay;
use support::lab::{BOUNDED, DATA, Lab, ZERO, node_in};
use support::load::Load;

const ACTIVE: &str = DATA[0];
const PASSIVE: &str = DATA[1];

fn set(lab: &Lab, name: &str, parameter: &str, value: impl Into<toml::Value>) {
    lab.edit_config(name, |file| {
        let parameters = file["postgres"]["parameters"].as_table_mut().unwrap();
        parameters.insert(parameter.to_owned(), value.into());
    });
}

/// A verb of these, to its end: what was printed of the operations.
fn ordered(lab: &Lab, arguments: &[&str], code: i32) -> Vec<Value> {
    let more = ["--reason", "a test", "--wait", "--output=json"];
    let ended = lab.operator(&[arguments, &more].concat());
    assert_eq!(ended.status.code(), Some(code), "{ended:#?}");
    let said: Value = serde_json::from_str(&ended.stdout).unwrap();
    said["operations"].as_array().unwrap().clone()
}

fn detail(operation: &Value) -> String {
    operation["detail"].as_str().unwrap_or_default().to_owned()
}

fn setting(lab: &Lab, name: &str, parameter: &str) -> String {
    lab.sql(name, "postgres", &format!("SHOW {parameter}"))
}

/// As the active tells it, whom the command line asks first.
fn pending(lab: &Lab, name: &str) -> Value {
    let status = lab.status_of(ACTIVE).unwrap_or_default();
    node_in(&status, name).map_or(Value::Null, |node| node["pending_restart"].clone())
}

fn started_at(lab: &Lab, name: &str) -> String {
    lab.sql(name, "postgres", "SELECT pg_postmaster_start_time()")
}

#[test]
fn settings_are_read_anew_and_what_is_wrong_changes_nothing() {
    let mut lab = Lab::founded(BOUNDED);
    let starts = DATA.map(|name| started_at(&lab, name));
    for name in DATA {
        set(&lab, name, "work_mem", "9MB");
    }
    for operation in ordered(&lab, &["reload"], 0) {
        assert!(detail(&operation).contains("changed: work_mem = 9MB"), "{operation:#}");
    }
    assert_eq!(DATA.map(|name| setting(&lab, name, "work_mem")), ["9MB", "9MB"]);

    // What the node refuses itself, and what only PostgreSQL knows to be wrong.
    for (parameter, value) in [("fsync", "off"), ("work_mem", "plenty")] {
        set(&lab, ACTIVE, parameter, value);
        let refused = ordered(&lab, &["reload", ACTIVE], 1);
        let words = detail(&refused[0]);
        assert_eq!(refused[0]["outcome"], "failed", "{refused:#?}");
        assert!(words.contains(parameter) && words.contains(value), "{words}");
        assert_eq!(setting(&lab, ACTIVE, "work_mem"), "9MB");
        lab.edit_config(ACTIVE, |file| {
            file["postgres"]["parameters"].as_table_mut().unwrap().remove(parameter);
        });
    }
    // Taken out of the file, it is what it was without it.
    let back = ordered(&lab, &["reload", ACTIVE], 0);
    assert!(detail(&back[0]).contains("work_mem = 4MB"), "{back:#?}");

    set(&lab, PASSIVE, "shared_buffers", "24MB");
    let waits = ordered(&lab, &["reload", PASSIVE], 0);
    assert!(detail(&waits[0]).contains("pending a restart: shared_buffers"), "{waits:#?}");
    lab.wait("the pending restart to be shown", |lab| {
        pending(lab, PASSIVE) == json!(["shared_buffers"])
    });
    assert_eq!(pending(&lab, ACTIVE), Value::Null);
    let list = lab.operator(&["list", "--format", "json"]);
    assert!(list.stdout.contains("\"Pending restart\":\"*\""), "{list:#?}");
    let shown = lab.get(PASSIVE, "/patroni").unwrap().1;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["pending_restart"], true, "{shown:#}");

    let restarted = ordered(&lab, &["restart", "--pending"], 0);
    assert_eq!(restarted.len(), 1, "{restarted:#?}");
    assert_eq!(restarted[0]["what"], PASSIVE);
    assert_eq!(setting(&lab, PASSIVE, "shared_buffers"), "24MB");
    assert_eq!(started_at(&lab, ACTIVE), starts[0]);
    lab.wait("nothing to be pending", |lab| pending(lab, PASSIVE) == Value::Null);
}

#[test]
fn rolling_restarts_follow_the_order_that_postgresql_demands_and_lose_nothing() {
    let mut lab = Lab::founded(ZERO);
    let epoch = lab.epoch();
    let load = Load::start(&lab, ACTIVE);
    for (connections, order) in [(80, [PASSIVE, ACTIVE]), (50, [ACTIVE, PASSIVE])] {
        for name in DATA {
            set(&lab, name, "max_connections", connections);
        }
        ordered(&lab, &["reload"], 0);
        for name in DATA {
            lab.wait("the change to be pending", |lab| {
                pending(lab, name) == json!(["max_connections"])
            });
        }
        // The other way round a standby would have less than its primary.
        let refused = lab.operator(&["restart", order[1], "--reason", "too early"]);
        assert_eq!(refused.status.code(), Some(3), "{refused:#?}");
        assert!(refused.stderr.contains(&format!("restart {} first", order[0])), "{refused:#?}");

        let begun = Instant::now();
        let operations = ordered(&lab, &["restart"], 0);
        let nodes: Vec<&Value> = operations.iter().map(|operation| &operation["what"]).collect();
        assert_eq!(nodes, order, "{operations:#?}");
        lab.wait("both to be whole", |lab| lab.protected_under(ACTIVE));
        load.wait_for_more("writes after the restarts");
        println!(
            "max_connections {connections}: writes stood still for {:?}",
            load.outage_since(begun)
        );
        for name in DATA {
            assert_eq!(setting(&lab, name, "max_connections"), connections.to_string());
        }
        assert_eq!(lab.epoch(), epoch);
    }
    load.finish(&lab, ACTIVE);
    let plan = lab.operator(&["restart", ACTIVE, "--dry-run", "--output=json"]);
    assert!(plan.status.success() && plan.stdout.contains("same lease"), "{plan:#?}");
}

#[test]
fn a_passive_is_made_afresh_under_load_once_it_is_asked_for() {
    let mut lab = Lab::founded(ZERO);
    let epoch = lab.epoch();
    let load = Load::start(&lab, ACTIVE);
    // Nobody can be asked here, and every commit would wait.
    let unasked = lab.operator(&["reinit", PASSIVE, "--reason", "a test"]);
    assert_eq!(unasked.status.code(), Some(2), "{unasked:#?}");
    let plan = lab.operator(&["reclone", PASSIVE, "--dry-run", "--output=json"]);
    assert_eq!(plan.status.code(), Some(3), "{plan:#?}");
    assert!(plan.stdout.contains("every commit waits"), "{plan:#?}");
    let active = lab.operator(&["reclone", ACTIVE, "--yes", "--reason", "a test"]);
    assert_eq!(active.status.code(), Some(3), "{active:#?}");

    let file = lab.pgdata(PASSIVE).join("left-behind");
    std::fs::write(&file, "by the former copy").unwrap();
    let operations = ordered(&lab, &["reinit", PASSIVE, "--yes"], 0);
    assert_eq!(operations[0]["kind"], "reclone", "{operations:#?}");
    assert!(!file.exists(), "the former copy is still there");
    lab.wait("the passive to be back", |lab| lab.protected_under(ACTIVE));
    load.wait_for_more("writes after it");
    assert_eq!(lab.epoch(), epoch);
    load.finish(&lab, ACTIVE);
}

#[test]
fn a_scheduled_switchover_happens_at_its_time_and_not_once_it_is_cancelled() {
    let mut lab = Lab::founded(ZERO);
    let schedule = |lab: &Lab, when: &str| -> Value {
        let order = ["switchover", "--leader", ACTIVE, "--scheduled", when, "--reason", "at night"];
        let ended = lab.operator(&[&order[..], &["--output=json"]].concat());
        assert!(ended.status.success(), "{ended:#?}");
        serde_json::from_str::<Value>(&ended.stdout).unwrap()["operation"].clone()
    };
    let first = schedule(&lab, "+10m");
    let shown = |lab: &Lab| -> Value {
        let cluster = lab.get(PASSIVE, "/cluster").map_or_else(String::new, |(_, body)| body);
        serde_json::from_str::<Value>(&cluster).unwrap_or_default()["scheduled_switchover"].clone()
    };
    lab.wait("it to be shown", |lab| shown(lab)["to"] == PASSIVE);
    let second = lab.operator(&["switchover", "--scheduled", "+5m", "--reason", "sooner"]);
    assert_eq!(second.status.code(), Some(3), "{second:#?}");
    let cancelled = lab.operator(&["switchover", "--cancel", "--reason", "not now"]);
    assert!(cancelled.status.success(), "{cancelled:#?}");
    assert!(cancelled.stdout.contains("cancelled: by"), "{cancelled:#?}");
    assert!(cancelled.stdout.contains(&format!("operation {} ", first["id"])), "{cancelled:#?}");
    assert_eq!(first["outcome"], "scheduled", "{first:#}");
    lab.wait("it to be gone", |lab| shown(lab) == Value::Null);

    let wrong = lab.operator(&["switchover", "--leader", PASSIVE, "--reason", "a test"]);
    assert_eq!(wrong.status.code(), Some(3), "{wrong:#?}");
    let operation = schedule(&lab, "+4s");
    // It survives a change of the consensus' leader: whoever that was.
    let leader = lab.status().unwrap()["leader"].as_str().unwrap().to_owned();
    if let Some(name) = lab.names().into_iter().find(|name| *name == leader && *name != ACTIVE) {
        lab.stop_node(name);
        lab.start(name);
    }
    lab.wait("the active to have moved", |lab| lab.protected_under(PASSIVE));
    let id = operation["id"].to_string();
    let ended = lab.operator(&["operation", &id, "--output=json"]);
    let ended: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(ended["operation"]["outcome"], "done", "{ended:#}");
}

#[test]
fn a_standby_gets_what_its_primary_has_of_a_parameter_and_takes_over_with_it() {
    let mut lab = Lab::founded(ZERO);
    let [first, second] = DATA;
    lab.sql(first, "postgres", "ALTER SYSTEM SET max_locks_per_transaction = 128");
    // It comes into force with the next start, and into the WAL when the node is active again: a standby
    // with less pauses its replay, and ends when it is promoted.
    for to in [second, first] {
        lab.operator(&["switchover", "--to", to, "--reason", "test", "--wait"]).good();
        lab.wait("protection under the new active", |lab| lab.protected_under(to));
    }
    lab.sql(first, "postgres", "CREATE TABLE later AS SELECT 1 AS n");
    let show = "SHOW max_locks_per_transaction";
    lab.wait("the standby to have as much", |lab| {
        lab.try_sql(second, "postgres", show).is_ok_and(|value| value == "128")
    });
    lab.wait("protection", |lab| lab.protected_under(first));
    wait_for_replay(&lab, first, second);
    lab.kill_site(first);
    lab.wait("the standby to take over", |lab| lab.writable_at(second));
    assert_eq!(lab.sql(second, "postgres", "SELECT n FROM later"), "1");
}
