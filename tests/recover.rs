//! The way out when a majority will not come back: the passive goes on as sole survivor with every
//! acknowledged row, the old members get nowhere with their old state, and come back as new ones.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use jiff::Timestamp;
use serde_json::Value;
use support::compare::wait_for_replay;
use support::lab::{DATA, Lab, WITNESS, ZERO};
use support::processes::{Background, Ended, run};
use support::{BINARY, PATIENCE, wait_for};

const ROWS: u32 = 200_000;

fn cluster_of(lab: &Lab, node: &str) -> String {
    let text = std::fs::read_to_string(lab.config(node)).unwrap();
    let table: toml::Table = text.parse().unwrap();
    table["cluster"].as_str().unwrap().to_owned()
}

/// `understudy recover` at a node.
fn recover(lab: &Lab, node: &str, arguments: &[&str]) -> Ended {
    let mut command = Command::new(BINARY);
    command.arg("recover").arg("--config").arg(lab.config(node)).args(arguments);
    run(&mut command)
}

fn refused(ended: &Ended, why: &str) {
    assert_eq!(ended.status.code(), Some(3), "{ended:#?}");
    assert!(ended.stderr.contains(why), "{ended:#?}");
}

/// A client that is told of each row; the numbers that it was told of, once its server is gone.
fn start_client(lab: &Lab, active: &str) -> Background {
    let script: String =
        (0..ROWS).map(|n| format!("INSERT INTO ledger VALUES ({n}) RETURNING n;\n")).collect();
    let file = lab.root().join("ledger.sql");
    std::fs::write(&file, script).unwrap();
    let mut psql = lab.tool_at(active, "psql");
    psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-f"]).arg(file);
    Background::start(&mut psql)
}

fn told(client: Background) -> Vec<u32> {
    let said = client.wait(PATIENCE).stdout;
    // The last line may be cut.
    let lines = said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    lines.map(|line| line.parse().unwrap()).collect()
}

fn count(lab: &Lab, node: &str) -> u32 {
    lab.sql(node, "postgres", "SELECT count(*) FROM ledger").parse().unwrap()
}

/// Loses the active and the witness under load; what its client was told of.
fn lose_majority(lab: &mut Lab) -> Vec<u32> {
    let [lost, survivor] = DATA;
    lab.sql(lost, "postgres", "CREATE TABLE ledger (n int)");
    let client = start_client(lab, lost);
    wait_for("rows", || (count(lab, lost) > 200).then_some(()));
    lab.kill_site(WITNESS);
    lab.kill_site(lost);
    let told = told(client);
    assert!(told.len() > 100, "the client was told of {} rows", told.len());
    lab.wait("the survivor to hear no majority", |lab| {
        lab.status_of(survivor).is_some_and(|status| status["failover"]["reason"] == "no-majority")
    });
    told
}

#[test]
fn a_sole_survivor_goes_on_and_old_members_get_nowhere_until_they_rejoin() {
    let mut lab = Lab::founded(ZERO);
    let [lost, survivor] = DATA;
    let cluster = cluster_of(&lab, survivor);

    // While its daemon runs, and while a majority answers, nothing is done.
    let running = recover(&lab, survivor, &["--sole-survivor", "--dry-run"]);
    assert_eq!(running.status.code(), Some(1), "{running:#?}");
    assert!(running.stderr.contains("stop it first"), "{running:#?}");
    lab.stop_node(survivor);
    let answered = recover(&lab, survivor, &["--sole-survivor", "--dry-run"]);
    assert_eq!(answered.status.code(), Some(3), "{answered:#?}");
    lab.start(survivor);
    lab.wait("the passive to be back", |lab| lab.protected_under(lost));

    let begun = Timestamp::now();
    let told = lose_majority(&mut lab);
    let lost_by = Timestamp::now();
    lab.stop_node(survivor);
    refused(&recover(&lab, WITNESS, &["--sole-survivor", "--dry-run"]), "witness");

    let order = ["--sole-survivor", "--accept-loss=none", "--reason=a test", "--output=json"];
    let dry = recover(&lab, survivor, &["--sole-survivor", "--dry-run", "--output=json"]).good();
    let dry: Value = serde_json::from_str(&dry).unwrap();
    assert_eq!(dry["statement"]["waited_for"], true, "{dry:#}");
    assert_eq!(dry["statement"]["loss"]["seconds_max"], 0.0, "{dry:#}");
    let newest: Timestamp = dry["statement"]["newest_commit_at"].as_str().unwrap().parse().unwrap();
    assert!(begun < newest && newest < lost_by, "{newest} is not between {begun} and {lost_by}");
    let unnamed = recover(&lab, survivor, &order);
    assert_eq!(unnamed.status.code(), Some(2), "{unnamed:#?}");
    let misnamed = [&order[..], &["--cluster-name=00000000-0000-4000-8000-000000000000"]].concat();
    refused(&recover(&lab, survivor, &misnamed), "--cluster-name");

    let name = format!("--cluster-name={cluster}");
    recover(&lab, survivor, &[&order[..], &[&name]].concat()).good();
    lab.start(survivor);
    lab.wait("the survivor to serve", |lab| lab.writable_at(survivor));
    let status = lab.status_of(survivor).unwrap();
    assert_eq!(status["failover"]["reason"], "sole-survivor", "{status:#}");
    assert_eq!(status["epoch"]["incarnation"], 1, "{status:#}");
    assert_eq!(status["durability_lifted"], true, "{status:#}");
    let recorded = status["operations"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&recorded["kind"], &recorded["reason"]), (&"recover".into(), &"a test".into()));
    let kept = lab.sql(survivor, "postgres", "SELECT n FROM ledger");
    let kept: std::collections::BTreeSet<u32> =
        kept.lines().map(|line| line.parse().unwrap()).collect();
    let missing: Vec<_> = told.iter().filter(|row| !kept.contains(row)).collect();
    assert_eq!(missing, Vec::<&u32>::new(), "acknowledged in zero and lost");
    lab.sql(survivor, "postgres", "INSERT INTO ledger VALUES (-1)");

    old_members_get_nowhere(&mut lab);
    lab.sql(survivor, "postgres", "INSERT INTO ledger VALUES (-2)");

    for node in [WITNESS, lost] {
        recover(&lab, node, &["--rejoin", &name]).good();
        lab.start(node);
    }
    lab.wait("the cluster to be protected again", |lab| lab.protected_under(survivor));
    wait_for_replay(&lab, survivor, lost);
    assert_eq!(count(&lab, lost), count(&lab, survivor));

    // It is a cluster like any other: the loss of the active is answered without a person.
    lab.kill_site(survivor);
    lab.wait("the other to take over", |lab| lab.writable_at(lost));
    let both = lab.sql(lost, "postgres", "SELECT count(*) FROM ledger WHERE n < 0");
    assert_eq!(both, "2");
}

/// Both at once, so that together they are a majority of the old incarnation.
fn old_members_get_nowhere(lab: &mut Lab) {
    let [lost, _] = DATA;
    lab.start(WITNESS);
    lab.start(lost);
    for node in [WITNESS, lost] {
        let status = lab.wait_for_end(node);
        assert_eq!(status.code(), Some(1), "{node}: {status}");
        let log = lab.log_text(node);
        assert!(log.contains("understudy recover --rejoin"), "{node}:\n{log}");
    }
    // And again, as systemd would: by now it is known without asking.
    lab.start(lost);
    assert_eq!(lab.wait_for_end(lost).code(), Some(1));
    let written = lab.try_sql(
        lost,
        "postgres",
        "SET statement_timeout = '3s'; INSERT INTO ledger VALUES (-9)",
    );
    assert!(written.is_err(), "the old active acknowledged a write: {written:?}");
}
