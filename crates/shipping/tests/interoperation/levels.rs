//! What a session asks for with `synchronous_commit`, with the gate as PostgreSQL's synchronous standby.

use std::time::Duration;

use understudy_types::{DurabilityMode, NodeId};

use crate::chain::Chain;
use crate::postgres::until;
use crate::rig::{Make, Rig, lsn};

/// Long enough to see a commit wait.
const A_WHILE: Duration = Duration::from_millis(600);
const SOON: Duration = Duration::from_secs(10);

fn insert(level: &str, value: usize) -> String {
    format!("SET synchronous_commit = {level}; INSERT INTO t VALUES ({value})")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_level_that_waits_for_a_standby_waits_until_the_journal_is_durable() {
    let rig = Rig::new().await;
    let source = rig.source();
    rig.serve(&source).await;
    let levels = ["remote_write", "on", "remote_apply"];
    let commits = levels.map(|level| (level, rig.commit(&insert(level, 0))));
    for (level, commit) in &commits {
        assert!(!commit.within(A_WHILE).await, "{level} did not wait for a permit");
    }
    rig.permit(DurabilityMode::Zero, &[NodeId(2)], Duration::from_secs(600));
    for (level, commit) in &commits {
        assert!(!commit.within(A_WHILE).await, "{level} did not wait for the journal");
    }
    let receiver = rig.receiver();
    let [write, flush, apply] = &commits;
    for (level, commit) in [write, flush] {
        assert!(commit.within(SOON).await, "{level} waits: {}", rig.state(&source, &receiver));
        for value in 1..5 {
            let before = lsn(&rig.sql("SELECT pg_current_wal_insert_lsn()"));
            assert!(rig.commit(&insert(level, value)).within(SOON).await, "{level}");
            assert!(rig.durable_lsn() > before, "{level} returned before its WAL was durable");
        }
    }
    // Durable it is, and nobody replays.
    assert!(!apply.1.within(A_WHILE).await, "{} did not wait for a standby", apply.0);
    rig.end(receiver).await;
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_and_off_go_around_the_gate_as_documented() {
    let rig = Rig::new().await;
    let source = rig.source();
    until("the gate is connected", || source.positions().borrow().gate_connected).await;
    for level in ["local", "off"] {
        assert!(rig.commit(&insert(level, 1)).within(SOON).await, "{level} waited");
    }
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_at_remote_apply_is_seen_at_the_stock_standby_when_it_returns() {
    let chain = Chain::new(Make::default()).await;
    let standby = chain.standby().await;
    let rows = || standby.sql("SELECT string_agg(value::text, ' ' ORDER BY value) FROM t");
    for value in 0..10 {
        let committed = chain.rig.commit(&insert("remote_apply", value));
        let state = || chain.rig.state(&chain.source, &chain.receiver);
        assert!(committed.within(SOON).await, "{}", state());
        assert!(rows().ends_with(&value.to_string()), "{value} is not among {}", rows());
    }
    // The other levels' rows come too, when they come; those of `off` with the next that waits.
    for (number, level) in ["remote_write", "on", "local", "off"].into_iter().enumerate() {
        assert!(chain.rig.commit(&insert(level, 10 + number)).within(SOON).await, "{level}");
    }
    chain.rig.sql(&insert("remote_apply", 14));
    assert_eq!(rows(), (0..15).map(|value| value.to_string()).collect::<Vec<_>>().join(" "));
    drop(standby);
    chain.end().await;
}
