//! Many tenants: one `CREATE DATABASE` after the other, each of which writes a whole template as WAL
//! (`STRATEGY wal_log`, the default since 15).

use std::io::Write as _;
use std::process::Stdio;
use std::time::Instant;

use crate::chain::Chain;
use crate::rig::{Make, lsn};

/// How many: its value, or else a number that fits the test.
const COUNT_VARIABLE: &str = "UNDERSTUDY_TEST_DATABASES";
/// Of disk for each of them: two data directories of 7.5 MB and the WAL between them, three times.
const DISK_BYTES_EACH: u64 = 32 << 20;

fn count(usual: u64) -> u64 {
    let said = std::env::var(COUNT_VARIABLE).ok();
    said.map_or(usual, |said| said.parse().expect("a number of databases"))
}

async fn follows_databases(count: u64) {
    // A test must not fill the machine's disk to find that it does not fit.
    let free = rustix::fs::statvfs(std::env::temp_dir()).unwrap();
    let free_bytes = free.f_bavail * free.f_frsize;
    let needed_bytes = count * DISK_BYTES_EACH;
    assert!(free_bytes > needed_bytes, "{count} databases need {} GiB", needed_bytes >> 30);
    let chain = Chain::new(Make::default()).await;
    let rig = &chain.rig;
    let standby = chain.standby().await;
    let before = lsn(&rig.sql("SELECT pg_current_wal_flush_lsn()"));
    let begun = Instant::now();
    let mut psql = rig.psql("SELECT 1");
    let mut psql =
        psql.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut input = psql.stdin.take().unwrap();
    for tenant in 0..count {
        writeln!(input, "CREATE DATABASE tenant_{tenant};").unwrap();
    }
    drop(input);
    let created = tokio::task::spawn_blocking(move || psql.wait().unwrap()).await.unwrap();
    assert!(created.success(), "{}", rig.state(&chain.source, &chain.receiver));
    let creating = begun.elapsed();
    // Every one of them is durable at the other side, or its commit would not have returned.
    let end_lsn = lsn(&rig.sql("SELECT pg_current_wal_flush_lsn()"));
    while !chain.positions.borrow().is_some_and(|p| p.replay_lsn >= Some(end_lsn)) {
        chain.positions.clone().changed().await.unwrap();
    }
    let replaying = begun.elapsed() - creating;
    let wal_bytes = end_lsn.bytes_since(before);
    println!(
        "{count} databases in {:.1} s ({:.0} ms each), {:.1} MiB of WAL each; replayed {:.1} s later",
        creating.as_secs_f64(),
        creating.as_secs_f64() * 1000.0 / count as f64,
        wal_bytes as f64 / f64::from(1 << 20) / count as f64,
        replaying.as_secs_f64(),
    );
    let tenants = "SELECT count(*) FROM pg_database WHERE datname LIKE 'tenant%'";
    assert_eq!(standby.sql(tenants), count.to_string());
    for tenant in [0, count / 2, count - 1] {
        let relations = |mut psql: std::process::Command| {
            crate::postgres::run(psql.args(["-d", &format!("tenant_{tenant}")]))
        };
        let sql = "SELECT count(*), sum(pg_relation_size(oid)) FROM pg_class";
        assert_eq!(relations(standby.psql(sql)), relations(rig.psql(sql)), "tenant {tenant}");
    }
    drop(standby);
    chain.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_created_in_a_row_are_followed() {
    follows_databases(count(25)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "hours, and 313 GiB of disk; UNDERSTUDY_TEST_DATABASES makes it less"]
async fn ten_thousand_databases_created_in_a_row_are_followed() {
    follows_databases(count(10_000)).await;
}
