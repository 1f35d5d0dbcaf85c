//! The RPO dial: turned under load, and the loss that it refuses until an operator accepts it.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;
use support::lab::{BOUNDED, DATA, Lab, ZERO, node_in};
use support::postgres::give;
use support::processes::Background;

/// More than are written while a test runs.
const ROWS_MAX: u32 = 400_000;

/// A client that writes row after row, each in its own transaction, until its server is gone. It
/// prints a row's number once the commit was acknowledged.
fn writer(lab: &Lab, site: &str) -> Background {
    let script = lab.root().join("rows.sql");
    let mut text = String::new();
    for row in 1..=ROWS_MAX {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "INSERT INTO kept VALUES ({row}) RETURNING n;");
    }
    std::fs::write(&script, text).unwrap();
    give(&script);
    let mut psql = lab.tool_at(site, "psql");
    psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-f"]);
    Background::start(psql.arg(&script))
}

/// Turns the dial and waits until it is in force.
fn turn(lab: &mut Lab, mode: &str) {
    lab.person(
        "administrator",
        &["rpo", "set", mode, "--reason", "a test", "--wait", "--timeout=60s"],
    )
    .good();
    lab.wait("the mode to show as in force", |lab| {
        lab.status().is_some_and(|s| s["durability"] == mode && s["dial"]["mode"] == mode)
    });
}

fn rows(lab: &Lab, site: &str) -> u32 {
    lab.sql(site, "postgres", "SELECT count(*) FROM kept").parse().unwrap()
}

#[test]
fn the_dial_is_turned_under_load_and_in_zero_the_loss_of_the_site_loses_no_acknowledged_row() {
    let mut lab = Lab::founded(BOUNDED);
    let [lost, heir] = DATA;
    lab.sql(lost, "postgres", "CREATE TABLE kept (n int PRIMARY KEY)");
    let mut writer = writer(&lab, lost);

    let planned = lab
        .person("administrator", &["rpo", "set", "zero", "--reason", "a test", "--dry-run"])
        .good();
    assert!(planned.contains("strengthened"), "{planned}");
    let same = lab.person("administrator", &["rpo", "set", "bounded", "--reason", "a test"]);
    assert_eq!(same.status.code(), Some(3), "{same:#?}");
    for mode in ["zero", "best-effort", "zero"] {
        turn(&mut lab, mode);
        let before = rows(&lab, lost);
        lab.wait("writes to go on", |lab| rows(lab, lost) > before + 50);
    }
    lab.wait("the cluster to be protected", |lab| lab.protected_under(lost));
    assert!(writer.runs());
    lab.kill_site(lost);
    let said = writer.wait(Duration::from_secs(30));
    let acknowledged: Vec<u32> = said.stdout.lines().map(|line| line.parse().unwrap()).collect();
    let count = u32::try_from(acknowledged.len()).unwrap();
    assert!(count > 150, "{count} rows");

    lab.wait("the other site to take over", |lab| lab.writable_at(heir));
    let kept = format!("SELECT count(*) FROM kept WHERE n <= {}", acknowledged.last().unwrap());
    assert_eq!(lab.sql(heir, "postgres", &kept), count.to_string());
    let status = lab.status_of(heir).unwrap();
    let link = status["lineage"].as_array().unwrap().last().unwrap();
    assert_eq!((&link["lost_seconds_max"], &link["lost_wal_bytes_min"]), (&0.0.into(), &0.into()));
    assert_eq!(status["durability"], "zero");
    // Nobody is known to hold anything of what is acknowledged here: that is unknown, not a figure.
    assert!(status["exposure_bytes"].is_null(), "{status:#}");
    let turns = status["operations"].as_array().unwrap().iter();
    let done = turns.filter(|turn| turn["kind"] == "rpo" && turn["outcome"] == "done").count();
    assert_eq!(done, 3, "{status:#}");
}

fn reason_at(lab: &Lab, site: &str) -> Option<Value> {
    let status = lab.status_of(site)?;
    (status["phase"] == "no-active").then(|| status["failover"].clone())
}

#[test]
fn a_passive_that_missed_commits_is_refused_until_an_operator_accepts_the_stated_loss() {
    let mut lab = Lab::founded(ZERO);
    let [lost, heir] = DATA;
    lab.sql(lost, "postgres", "CREATE TABLE kept AS SELECT generate_series(1, 100) AS n");
    let set = ["rpo", "set", "--on-passive-loss=degrade", "--reason", "a test", "--wait"];
    lab.person("administrator", &set).good();

    lab.kill_site(heir);
    lab.wait("the weakening to be recorded", |lab| {
        lab.status_of(lost).is_some_and(|status| status["durability_lifted"] == true)
    });
    lab.sql(lost, "postgres", "INSERT INTO kept SELECT generate_series(101, 1000)");
    lab.wait("the exposure to be published", |lab| {
        let status = lab.status_of(lost).unwrap_or_default();
        status["exposure_bytes"].as_u64().is_some_and(|bytes| bytes > 0)
    });
    // A lease's time later at least one renewal has carried it.
    let seen = lab.status_of(lost).unwrap()["applied_index"].as_u64().unwrap();
    lab.wait("some renewals", |lab| {
        lab.status_of(lost).is_some_and(|s| s["applied_index"].as_u64() > Some(seen + 4))
    });
    lab.kill_site(lost);
    lab.start(heir);
    lab.wait("the refusal, with the command that would accept", |lab| {
        let verdict = reason_at(lab, heir).unwrap_or_default();
        verdict["reason"] == "unprotected" && verdict["accept_command"].is_string()
    });
    lab.wait("a standby that could be promoted", |lab| {
        lab.status_of(heir)
            .and_then(|s| node_in(&s, heir).map(|node| node["state"] == "passive"))
            .unwrap_or_default()
    });
    assert_eq!(lab.who_says_yes("/primary"), Vec::<&str>::new());

    let verdict = reason_at(&lab, heir).unwrap();
    let command = verdict["accept_command"].as_str().unwrap().to_owned();
    let words: Vec<&str> = command.split(' ').collect();
    let after = |flag: &str| words[words.iter().position(|word| *word == flag).unwrap() + 1];
    let (epoch, figure) = (after("--epoch"), after("--accept-loss"));
    let accept = |lab: &Lab, epoch: &str, figure: &str| {
        let mut order = vec!["failover", "--to", heir, "--yes", "--wait", "--reason", "a test"];
        order.extend(["--epoch", epoch, "--accept-loss", figure]);
        lab.person("break-glass", &order)
    };
    let plain = lab.operator(&["failover", "--to", heir, "--reason", "a test", "--yes"]);
    assert_eq!(plain.status.code(), Some(3), "{plain:#?}");
    let mut order = vec!["failover", "--to", heir, "--yes", "--reason", "a test"];
    order.extend(["--epoch", epoch, "--accept-loss", figure]);
    let weak = lab.person("administrator", &order);
    weak.refused_with(&["break-glass"]);
    let less = accept(&lab, epoch, "1s");
    assert_eq!(less.status.code(), Some(3), "{less:#?}");
    less.refused_with(&["bytes of WAL", "only 1.0s of commits is accepted"]);
    let other = accept(&lab, "9", figure);
    assert_eq!(other.status.code(), Some(3), "{other:#?}");
    assert_eq!(lab.who_says_yes("/primary"), Vec::<&str>::new());

    let said = accept(&lab, epoch, figure).good();
    assert!(said.contains("accept-loss") && said.contains("done"), "{said}");
    lab.wait("the heir to be active", |lab| lab.writable_at(heir));
    assert_eq!(rows(&lab, heir), 100);
    let status = lab.status_of(heir).unwrap();
    let link = status["lineage"].as_array().unwrap().last().unwrap();
    assert!(link["lost_seconds_max"].as_f64().unwrap() > 0.0, "{link:#}");
    assert!(link["lost_wal_bytes_min"].as_u64().unwrap() > 0, "{link:#}");

    lab.start(lost);
    lab.wait("the lost site to be back as the passive", |lab| lab.protected_under(heir));
    assert_eq!(rows(&lab, lost), 100);
}
