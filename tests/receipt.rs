//! The loss receipt against clients that remember: after the loss of the active site, every commit
//! that was acknowledged and that the survivor lacks is in the receipt of the site that comes back,
//! and nothing else that was acknowledged.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use support::PATIENCE;
use support::lab::{DATA, Lab, Plan, ZERO};
use support::processes::Background;
use support::wait_for;

const BOUNDED: Plan = Plan { mode: "bounded", ..ZERO };
const DATABASES: [&str; 2] = ["one", "two"];
const CLIENTS_PER_DATABASE: u32 = 2;
/// More than a client can write before its site is lost.
const ROWS_PER_CLIENT: u32 = 200_000;
/// More WAL than fits into what lies between the sites: sockets, windows, queues.
const FILLING_MIB: u32 = 96;

/// A client: one psql, and what it writes into.
struct Client {
    database: &'static str,
    number: u32,
    psql: Background,
}

/// A row that its client was told of: database, client, row.
type Row = (&'static str, u32, u32);

impl Client {
    /// One row a transaction; each line that psql prints is a commit that it was told of: the row and
    /// the transaction's number.
    fn start(lab: &Lab, active: &str, database: &'static str, number: u32) -> Client {
        let mut script = String::new();
        for row in 0..ROWS_PER_CLIENT {
            writeln!(
                script,
                "INSERT INTO ledger VALUES ({number}, {row}) RETURNING n || ' ' || \
                 pg_current_xact_id();"
            )
            .unwrap();
        }
        Client::with_script(lab, active, database, number, &script)
    }

    /// One transaction that writes at once and commits when there is a row in `go`.
    fn start_patient(lab: &Lab, active: &str, database: &'static str, number: u32) -> Client {
        let script = format!(
            "BEGIN;\nSELECT pg_current_xact_id() AS xid \\gset\n\
             SAVEPOINT part1;\nINSERT INTO ledger VALUES ({number}, 0);\n\
             DO $$ BEGIN WHILE NOT EXISTS (SELECT FROM go) LOOP PERFORM pg_sleep(0.05); END LOOP; \
             END $$;\nCOMMIT;\n\\echo 0 :xid\n"
        );
        Client::with_script(lab, active, database, number, &script)
    }

    fn with_script(
        lab: &Lab,
        active: &str,
        database: &'static str,
        number: u32,
        script: &str,
    ) -> Client {
        let file = lab.root().join(format!("{database}-{number}.sql"));
        std::fs::write(&file, script).unwrap();
        let mut psql = lab.tool_at(active, "psql");
        psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", database, "-f"]).arg(file);
        Client { database, number, psql: Background::start(&mut psql) }
    }

    /// What it was told of, once its server is gone.
    fn told(self) -> Vec<(Row, u32)> {
        let said = self.psql.wait(PATIENCE).stdout;
        // The last line may be cut.
        let lines = said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let told = lines.map(|line| {
            let (row, xid) = line.split_once(' ').unwrap();
            ((self.database, self.number, row.parse().unwrap()), xid.parse().unwrap())
        });
        told.collect()
    }
}

fn commits(lab: &Lab, site: &str) -> u64 {
    let count = |database| lab.sql(site, database, "SELECT count(*) FROM ledger");
    DATABASES.into_iter().map(|database| count(database).parse::<u64>().unwrap()).sum()
}

fn wait_for_commits(lab: &Lab, active: &str, more: u64) {
    let before = commits(lab, active);
    wait_for("commits", || (commits(lab, active) >= before + more).then_some(()));
}

fn oid(lab: &Lab, site: &str, database: &str) -> u64 {
    let sql = format!("SELECT oid FROM pg_database WHERE datname = '{database}'");
    lab.sql(site, "postgres", &sql).parse().unwrap()
}

/// Has clients write, loses the active site, and lets the other take over; returns who took over and
/// every commit that a client was told of, with its transaction's number.
fn lose_active(lab: &mut Lab, freeze: bool) -> BTreeMap<Row, u32> {
    let [lost, heir] = DATA;
    for database in DATABASES {
        lab.sql(lost, "postgres", &format!("CREATE DATABASE {database}"));
        lab.sql(lost, database, "CREATE TABLE ledger (client int, n int); CREATE TABLE go ()");
    }
    let mut clients = Vec::new();
    for database in DATABASES {
        for number in 0..CLIENTS_PER_DATABASE {
            clients.push(Client::start(lab, lost, database, number));
        }
        clients.push(Client::start_patient(lab, lost, database, 9));
    }
    wait_for_commits(lab, lost, 200);
    if freeze {
        lab.signal_node(heir, Signal::STOP);
        let fill = format!(
            "SELECT count(pg_logical_emit_message(false, 'test', repeat('x', 1048576))) \
             FROM generate_series(1, {FILLING_MIB})"
        );
        lab.sql(lost, "postgres", &fill);
        for database in DATABASES {
            lab.sql(lost, database, "INSERT INTO go DEFAULT VALUES");
        }
        wait_for_commits(lab, lost, 300);
    }
    lab.kill_site(lost);
    if freeze {
        lab.signal_node(heir, Signal::CONT);
    }
    let told: BTreeMap<Row, u32> = clients.into_iter().flat_map(Client::told).collect();
    lab.wait("the other site to take over", |lab| lab.writable_at(heir));
    told
}

/// The acknowledged rows that a site lacks, with their transactions.
fn missing(lab: &Lab, site: &str, told: &BTreeMap<Row, u32>) -> BTreeMap<Row, u32> {
    let mut held = BTreeSet::new();
    for database in DATABASES {
        let rows = lab.sql(site, database, "SELECT client || ' ' || n FROM ledger");
        for line in rows.lines() {
            let (client, row) = line.split_once(' ').unwrap();
            held.insert((database, client.parse().unwrap(), row.parse().unwrap()));
        }
    }
    told.iter().filter(|(row, _)| !held.contains(*row)).map(|(row, xid)| (*row, *xid)).collect()
}

fn receipts(lab: &Lab) -> Vec<Value> {
    let said = lab.operator(&["receipt", "list", "--output", "json"]).good();
    let listed: Value = serde_json::from_str(&said).unwrap();
    listed["receipts"].as_array().unwrap().clone()
}

fn rounds(lab: &Lab, site: &str) -> Vec<PathBuf> {
    let dir = lab.node_dir(site).join("data/divergent");
    let entries = std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    entries.filter(|round| round.join("pg_wal").exists()).collect()
}

fn transactions(lab: &Lab) -> Vec<Value> {
    let said = lab.operator(&["receipt", "transactions"]).good();
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Of the acknowledged commits, exactly those that the survivor lacks are in the receipt, each with
/// its own database.
fn assert_receipt_is_the_ledgers_loss(
    lab: &Lab,
    survivor: &str,
    told: &BTreeMap<Row, u32>,
    listed: &[Value],
) {
    let lacking = missing(lab, survivor, told);
    let number = |one: &Value| u32::try_from(one["xid"].as_u64().unwrap()).unwrap();
    let commits = listed.iter().filter(|one| one["kind"] == "commit");
    let by_xid: BTreeMap<u32, &Value> = commits.map(|one| (number(one), one)).collect();
    let acknowledged: BTreeSet<u32> = told.values().copied().collect();
    let in_receipt: BTreeSet<u32> =
        by_xid.keys().copied().filter(|xid| acknowledged.contains(xid)).collect();
    let lost: BTreeSet<u32> = lacking.values().copied().collect();
    assert_eq!(in_receipt, lost, "the receipt's acknowledged commits, and the ledger's lost ones");
    for ((database, client, row), xid) in &lacking {
        let one = by_xid[xid];
        let row = format!("row {row} of client {client}");
        assert_eq!(one["database"], oid(lab, survivor, database), "{row}: {one}");
        assert_eq!(one["database_name"], *database, "{row}: {one}");
    }
}

/// Starts the lost site again, killing its daemon once as soon as it has begun to keep its WAL.
fn bring_back_with_a_kill(lab: &mut Lab, lost: &str, heir: &str) {
    lab.start(lost);
    let deadline = Instant::now() + PATIENCE;
    while !lab.log_text(lost).contains("keeping WAL that the cluster does not have") {
        assert!(Instant::now() < deadline, "it does not keep its WAL");
        std::thread::sleep(Duration::from_millis(1));
    }
    lab.kill_node(lost);
    lab.start(lost);
    lab.wait("the lost site to be back as the passive", |lab| lab.protected_under(heir));
}

#[test]
fn in_bounded_the_receipt_is_exactly_what_clients_were_told_and_the_survivor_lacks() {
    let mut lab = Lab::founded(BOUNDED);
    let [lost, heir] = DATA;
    assert_eq!(receipts(&lab), Vec::<Value>::new());
    let told = lose_active(&mut lab, true);
    let lacking = missing(&lab, heir, &told);
    assert!(lacking.len() >= 300, "only {} of {} were lost", lacking.len(), told.len());
    // Those that had begun before the fork are among them.
    assert_eq!(lacking.keys().filter(|(_, client, _)| *client == 9).count(), DATABASES.len());

    bring_back_with_a_kill(&mut lab, lost, heir);
    let summaries = receipts(&lab);
    let [summary] = summaries.as_slice() else { panic!("{summaries:#?}") };
    assert_eq!(rounds(&lab, lost).len(), 1, "the WAL was kept more than once");
    let listed = transactions(&lab);
    assert_receipt_is_the_ledgers_loss(&lab, heir, &told, &listed);

    // What the files say, and what is said about them.
    let data = lab.node_dir(lost).join("data");
    let shown = ["receipt", "show", "--output", "json", "--data-dir", data.to_str().unwrap()];
    let receipt: Value = serde_json::from_str(&lab.operator(&shown).good()).unwrap();
    assert_eq!(receipt["node"], lost, "{receipt:#}");
    assert_eq!(receipt["commits"], listed.len(), "{receipt:#}");
    assert_ne!(receipt["tail"], "unreadable", "{receipt:#}");
    assert_eq!(receipt["unreadable_records"], 0, "{receipt:#}");
    let bytes = receipt["lost_wal_bytes"].as_u64().unwrap();
    assert!(bytes > 1 << 20, "{receipt:#}");
    // No more than was promised.
    let seconds = receipt["lost_seconds"].as_f64().unwrap();
    assert!(seconds <= receipt["promised"]["ceiling_seconds"].as_f64().unwrap(), "{receipt:#}");
    let text = lab.operator(&["receipt", "show", "--node", lost]).good();
    assert_eq!(text, std::fs::read_to_string(rounds(&lab, lost)[0].join("receipt.txt")).unwrap());
    let status = lab.operator(&["status"]).good();
    let words = format!("lost {} commits", listed.len());
    assert!(status.contains(&words), "{status}");
    let (_, metrics) = lab.get(lost, "/metrics").unwrap();
    let counted = format!("understudy_lost_transactions_total {}", listed.len());
    assert!(metrics.contains(&counted), "{metrics}");
    assert_eq!(summary["commits"], listed.len(), "{summary:#}");
    eprintln!(
        "told {} commits, lost {} of them; the receipt has {} over {seconds} s, {bytes} bytes",
        told.len(),
        lacking.len(),
        listed.len()
    );
}

#[test]
fn in_zero_no_acknowledged_commit_is_in_a_receipt() {
    let mut lab = Lab::founded(ZERO);
    let [lost, heir] = DATA;
    let told = lose_active(&mut lab, false);
    lab.start(lost);
    lab.wait("the lost site to be back as the passive", |lab| lab.protected_under(heir));
    assert_eq!(missing(&lab, heir, &told), BTreeMap::new());
    // Commits that nobody was told of may have been lost.
    let listed = if receipts(&lab).is_empty() { Vec::new() } else { transactions(&lab) };
    assert_receipt_is_the_ledgers_loss(&lab, heir, &told, &listed);
}
