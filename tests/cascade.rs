//! A passive feeds others: a stock standby behind the passive's server follows it over a failover, and is
//! never what anything waits for.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use support::lab::{DATA, Lab, ZERO};
use support::postgres::{give, tool};
use support::processes::run;

const PORT: &str = "5499";

/// A stock standby, made and run with PostgreSQL's own tools.
struct Replica {
    dir: PathBuf,
}

impl Replica {
    /// Copied from a node's server, which it follows.
    fn behind(lab: &Lab, name: &str) -> Replica {
        let dir = lab.root().join("replica");
        std::fs::create_dir(&dir).unwrap();
        give(&dir);
        let mut backup = lab.tool_at(name, "pg_basebackup");
        backup.args(["-X", "stream", "-c", "fast", "-R", "-D"]).arg(&dir);
        run(&mut backup).good();
        let replica = Replica { dir };
        let settings = format!("-p {PORT} -k {} -h '' -c shared_buffers=16MB", replica.shown());
        let mut start = tool("pg_ctl");
        start.arg("-D").arg(&replica.dir).args(["-w", "-o", &settings, "-l"]);
        run(start.arg(replica.dir.join("log")).arg("start")).good();
        replica
    }

    fn shown(&self) -> std::path::Display<'_> {
        Path::display(&self.dir)
    }

    fn ask(&self, sql: &str) -> String {
        let mut psql = tool("psql");
        psql.arg("-h").arg(&self.dir).args(["-p", PORT, "-U", "postgres", "-d", "postgres"]);
        run(psql.args(["-X", "-q", "-A", "-t", "-c", sql])).good().trim_end().to_owned()
    }

    fn rows(&self) -> String {
        self.ask("SELECT count(*) FROM kept")
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let mut stop = tool("pg_ctl");
        let ended = run(stop.arg("-D").arg(&self.dir).args(["-m", "immediate", "-w", "stop"]));
        if !ended.status.success() {
            eprintln!("the replica was not stopped: {ended:#?}");
        }
    }
}

#[test]
fn a_stock_standby_behind_the_passive_follows_it_over_a_failover() {
    let mut lab = Lab::founded(ZERO);
    let [first, second] = DATA;
    lab.sql(first, "postgres", "CREATE TABLE kept (n int)");
    lab.sql(first, "postgres", "INSERT INTO kept SELECT generate_series(1, 1000)");
    let replica = Replica::behind(&lab, second);
    lab.wait("the replica to have what was there", |_| replica.rows() == "1000");
    lab.sql(first, "postgres", "INSERT INTO kept SELECT generate_series(1001, 2000)");
    lab.wait("the replica to have what was written since", |_| replica.rows() == "2000");
    // It belongs to nobody's quorum.
    assert_eq!(lab.status().unwrap()["waited_for"], serde_json::json!([second]));

    lab.kill_site(first);
    lab.wait("the passive to take over", |lab| lab.writable_at(second));
    lab.sql(second, "postgres", "INSERT INTO kept SELECT generate_series(2001, 3000)");
    lab.wait("the replica to follow the new timeline", |_| replica.rows() == "3000");
    let timeline = "SELECT received_tli FROM pg_stat_wal_receiver";
    assert_eq!(replica.ask(timeline), "2");
    assert_eq!(replica.ask("SELECT pg_is_in_recovery()"), "t");

    lab.start(first);
    lab.wait("the lost site to protect the new active", |lab| lab.protected_under(second));
    lab.sql(second, "postgres", "INSERT INTO kept SELECT generate_series(3001, 4000)");
    lab.wait("the replica to go on", |_| replica.rows() == "4000");
}
