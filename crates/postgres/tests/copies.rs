//! Base backup, promotion and rewind, shown on real servers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use support::{Instance, PATIENCE, gate, until};
use understudy_postgres::{
    BURNED_HISTORY, DataDirectory, Error, HbaMode, Observation, Probe, Rewound, StartMode,
};
use understudy_types::{Lsn, Timeline};

fn timeline(number: u32) -> Timeline {
    Timeline::new(number).unwrap()
}

async fn observe(instance: &Instance) -> Observation {
    let mut probe = Probe::new(&instance.server, gate(), Duration::from_secs(5));
    probe.probe().await.unwrap()
}

async fn caught_up(behind: &Instance, ahead: &Instance) {
    let target = observe(ahead).await.flush_lsn.unwrap();
    until("the standby has replayed", async || {
        observe(behind).await.replay_lsn.is_some_and(|lsn| lsn >= target)
    })
    .await;
}

#[tokio::test]
async fn a_passive_is_promoted_to_the_granted_timeline_and_the_old_primary_is_rewound_to_it() {
    let a = Instance::primary("a").await;
    a.psql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)");
    let (b, c) = (Instance::new("b"), Instance::new("c"));
    let mut progress = Vec::new();
    b.server.base_backup(&a.source(), &mut |now| progress.push(now)).await.unwrap();
    let last = progress.last().unwrap();
    assert!(last.done_bytes > 1 << 20 && last.done_bytes <= last.total_bytes, "{last:?}");
    c.server.base_backup(&a.source(), &mut |_| {}).await.unwrap();
    b.start_standby_of(&a).await;
    c.start_standby_of(&a).await;
    a.psql("INSERT INTO t VALUES (2)");
    caught_up(&b, &a).await;
    caught_up(&c, &a).await;
    let seen = observe(&b).await;
    assert!(seen.in_recovery && !seen.replay_paused);
    assert_eq!(seen.timeline, Some(Timeline::FIRST));
    assert_eq!(seen.wal_receiver_status.as_deref(), Some("streaming"));

    // A writes what B never sees, and crashes.
    b.server.stop_fast(PATIENCE).await.unwrap();
    c.server.stop_fast(PATIENCE).await.unwrap();
    a.psql("INSERT INTO t SELECT generate_series(100, 200)");
    let _proof = a.server.fence().await.unwrap();

    // A number burned for a promotion that never came does not keep the standby from starting.
    b.server.burn_history_files(Timeline::FIRST, timeline(6)).unwrap();
    b.start_standby_of(&a).await;
    let replayed = observe(&b).await.replay_lsn.unwrap();
    let promoted = b.server.promote(timeline(4), PATIENCE).await.unwrap();
    assert_eq!(promoted.timeline, timeline(4));
    assert_eq!(promoted.fork_lsn, replayed);
    assert!(promoted.end_lsn >= promoted.fork_lsn);
    assert_eq!(promoted.history.end_of(Timeline::FIRST), Some(promoted.fork_lsn));
    assert!(b.data_dir().join("standby.signal").exists());
    let told_again = b.server.promote(timeline(4), PATIENCE).await.unwrap();
    assert_eq!((told_again.timeline, told_again.fork_lsn), (timeline(4), promoted.fork_lsn));
    assert!(
        !b.server.resume_replay().await.unwrap(),
        "whoever repeats a promotion asks this again"
    );
    b.psql("INSERT INTO t VALUES (3)");

    // C, never diverged, follows from 1 to 4 with the files of the burned numbers in between.
    c.start_standby_of(&b).await;
    caught_up(&c, &b).await;
    assert_eq!(c.psql("SELECT max(n) FROM t"), "3");
    let burned = std::fs::read_to_string(c.server.pg_wal_dir().join("00000003.history")).unwrap();
    assert_eq!(burned, BURNED_HISTORY);

    b.server.checkpoint(PATIENCE).await.unwrap();
    // Why the marker has a copy outside PGDATA.
    std::fs::write(a.data_dir().join("only.here"), "").unwrap();
    let restore = Some("false %f");
    let rewound = a.server.rewind(&b.source(), restore, &mut |_| {}).await.unwrap();
    assert_eq!(rewound, Rewound::Done);
    assert!(!a.data_dir().join("only.here").exists(), "pg_rewind spares files of the target alone");
    assert_eq!(a.server.marker().unwrap(), None);
    a.start_standby_of(&b).await;
    caught_up(&a, &b).await;
    assert_eq!(a.psql("SELECT string_agg(n::text, ' ' ORDER BY n) FROM t"), "1 2 3");
    assert_eq!(observe(&a).await.timeline, Some(timeline(4)));
    a.server.stop_fast(PATIENCE).await.unwrap();
    let again = a.server.rewind(&b.source(), None, &mut |_| {}).await.unwrap();
    assert_eq!(again, Rewound::NotNeeded);
}

#[tokio::test]
async fn a_promotion_to_a_number_that_is_taken_is_refused() {
    let a = Instance::primary("a").await;
    let b = Instance::new("b");
    b.server.base_backup(&a.source(), &mut |_| {}).await.unwrap();
    b.start_standby_of(&a).await;
    let error = b.server.promote(Timeline::FIRST, PATIENCE).await.unwrap_err();
    assert!(matches!(error, Error::TimelineTaken { .. }), "{error}");
    assert!(observe(&b).await.in_recovery);
}

#[tokio::test]
async fn a_base_backup_that_fails_leaves_a_marker_that_forbids_the_start_until_one_succeeds() {
    let a = Instance::primary("a").await;
    let b = Instance::new("b");
    let error = b.server.base_backup(&b.source(), &mut |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("run pg_basebackup"), "{error}");
    let DataDirectory::Dirty { what } = b.server.inspect().await.unwrap() else { panic!() };
    assert!(what.contains("base backup"), "{what}");
    let mode = StartMode::Primary;
    let error = b.server.start(&mode, &gate(), HbaMode::Open, PATIENCE).await.unwrap_err();
    assert!(matches!(error, Error::DataDirectory { .. }), "{error}");
    b.server.base_backup(&a.source(), &mut |_| {}).await.unwrap();
    assert!(matches!(b.server.inspect().await.unwrap(), DataDirectory::Cluster(_)));
    // And over a whole cluster that is there already.
    b.server.base_backup(&a.source(), &mut |_| {}).await.unwrap();
    b.start_standby_of(&a).await;
    assert!(!b.data_dir().join("understudy.incoming").exists());
}

#[tokio::test]
async fn a_rewind_that_cannot_begin_changes_nothing() {
    let a = Instance::primary("a").await;
    let _proof = a.server.fence().await.unwrap();
    let rewound = a.server.rewind(&a.source(), None, &mut |_| {}).await.unwrap();
    let Rewound::Refused { output } = rewound else { panic!("{rewound:?}") };
    assert!(output.contains("connection to server"), "{output}");
    assert_eq!(a.server.marker().unwrap(), None);
    a.start_primary().await;
}

#[tokio::test]
async fn a_slot_keeps_wal_from_its_first_moment_and_moves_only_forward() {
    let a = Instance::primary("a").await;
    a.server.create_slot("node_2").await.unwrap();
    a.server.create_slot("node_2").await.unwrap();
    let slot = |slots: Vec<understudy_postgres::Slot>| slots.into_iter().next().unwrap();
    let first = slot(a.server.slots().await.unwrap()).restart_lsn.unwrap();
    a.psql("CREATE TABLE t (n int)");
    let end = observe(&a).await.flush_lsn.unwrap();
    a.server.advance_slot("node_2", end).await.unwrap();
    a.server.advance_slot("node_2", Lsn(first.0)).await.unwrap();
    assert_eq!(slot(a.server.slots().await.unwrap()).restart_lsn, Some(end));
    assert!(a.server.drop_slot("node_2").await.unwrap());
    assert!(!a.server.drop_slot("node_2").await.unwrap());
}
