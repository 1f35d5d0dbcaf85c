//! The commit's way end to end: a real primary, its gate, one gRPC stream, and a journal.
#![allow(clippy::unwrap_used)] // a test says what it expects by panicking

#[allow(dead_code)] // shared with another test program, which uses all of it
#[path = "../replication/postgres.rs"]
mod postgres;
#[allow(dead_code)] // as above
mod rig;

use std::time::Duration;

use postgres::until;
use rig::{Rig, lsn};
use understudy_line::Habit;
use understudy_proto::v1::refused::Reason;
use understudy_shipping::receiver::ReceiverEnd;
use understudy_types::{DurabilityMode, Lsn, NodeId};

/// Long enough for a commit that is not held back, and for one that is to be seen waiting.
const A_WHILE: Duration = Duration::from_millis(600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_wait_for_a_permit_and_stop_when_it_ends() {
    let rig = Rig::new().await;
    let source = rig.source();
    until("the gate is connected", || source.positions().borrow().gate_connected).await;
    assert_eq!(
        Some(rig.sql("SELECT pid FROM pg_stat_replication WHERE application_name='gate7f'")),
        source.gate_backend_pid().map(|pid| pid.to_string())
    );

    let waiting = rig.commit("INSERT INTO t VALUES (1)");
    assert!(!waiting.within(A_WHILE).await, "a commit was acknowledged without a permit");
    rig.permit(DurabilityMode::BestEffort, &[], Duration::from_millis(1500));
    assert!(waiting.within(Duration::from_secs(1)).await, "the permit released nothing");
    assert!(rig.commit("INSERT INTO t VALUES (2)").within(Duration::from_secs(1)).await);

    tokio::time::sleep_until(rig.permit_ends()).await;
    let late = rig.commit("INSERT INTO t VALUES (3)");
    assert!(!late.within(A_WHILE).await, "an expired permit still released");
    rig.permit(DurabilityMode::BestEffort, &[], Duration::from_secs(60));
    assert!(late.within(Duration::from_secs(1)).await);

    let released_upto = rig.cell.close();
    assert!(released_upto > Lsn::ZERO);
    let never = rig.commit("INSERT INTO t VALUES (4)");
    assert!(!never.within(A_WHILE).await, "a closed gate released");
    source.drop_gate().await;
    until("the gate's walsender is gone", || {
        rig.sql("SELECT count(*) FROM pg_stat_replication WHERE application_name='gate7f'") == "0"
    })
    .await;
    assert!(!source.positions().borrow().gate_connected || source.gate_backend_pid().is_none());
    assert!(!never.within(A_WHILE).await);
    assert_eq!(rig.cell.status().released_upto, released_upto);
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_zero_a_commit_waits_until_the_receiver_has_made_it_durable() {
    let rig = Rig::new().await;
    let source = rig.source();
    rig.serve(&source).await;
    rig.permit(DurabilityMode::Zero, &[NodeId(2)], Duration::from_secs(600));
    let waiting = rig.commit("INSERT INTO t VALUES (1)");
    assert!(!waiting.within(A_WHILE).await, "acknowledged with nobody attached");

    let receiver = rig.receiver();
    assert!(waiting.within(Duration::from_secs(5)).await, "{:?}", rig.state(&source, &receiver));
    for value in 2..100 {
        let sql = format!("INSERT INTO t VALUES ({value}) RETURNING pg_current_wal_insert_lsn()");
        let committed = rig.commit(&sql);
        assert!(
            committed.within(Duration::from_secs(2)).await,
            "{:?}",
            rig.state(&source, &receiver)
        );
        let released = rig.cell.status().released_upto;
        assert!(rig.durable_lsn() >= released, "released {released} before it was durable");
    }
    let positions = source.positions().borrow().clone();
    assert!(positions.receivers[0].attached);
    until("heartbeats say how far was released", || {
        let heartbeat = receiver.status().borrow().heartbeat;
        heartbeat.is_some_and(|heartbeat| heartbeat.released_lsn >= positions.released_lsn)
    })
    .await;
    let slot = "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name='understudy_south_1'";
    until("the slot follows", || lsn(&rig.sql(slot)) >= positions.receivers[0].durable_lsn).await;

    // Without its receiver nothing is acknowledged; with it again everything goes on, byte for byte.
    rig.end(receiver).await;
    until("the source knows", || !source.positions().borrow().receivers[0].attached).await;
    let stalled = rig.commit("INSERT INTO t SELECT generate_series(1000, 30000)");
    assert!(!stalled.within(A_WHILE).await, "acknowledged with the receiver gone");
    let receiver = rig.receiver();
    assert!(stalled.within(Duration::from_secs(5)).await, "{:?}", rig.state(&source, &receiver));
    let switched = rig.commit("SELECT pg_switch_wal()");
    assert!(switched.within(Duration::from_secs(2)).await);
    assert!(rig.commit("INSERT INTO t VALUES (31000)").within(Duration::from_secs(2)).await);
    assert_eq!(rig.compare_with_primary(), None);
    rig.end(receiver).await;
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrives_with_the_end_of_a_stream_is_kept() {
    let rig = Rig::new().await;
    let end_lsn = rig.serve_a_few_bytes_and_fail().await;
    let receiver = rig.receiver();
    // The last record may not be whole, so durable is a little less; it is never sent a second time
    // from where it would help, since each stream begins with the same bytes and fails.
    until("the bytes are durable", || rig.durable_lsn().0 + 9000 > end_lsn.0).await;
    rig.end(receiver).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_with_other_wal_is_refused_and_sent_nothing() {
    let rig = Rig::new().await;
    rig.copy_primary().await;
    let source = rig.source();
    rig.serve(&source).await;
    rig.permit(DurabilityMode::BestEffort, &[], Duration::from_secs(600));
    let receiver = rig.receiver();
    assert!(rig.commit("INSERT INTO t VALUES (1)").within(Duration::from_secs(2)).await);
    rig.caught_up().await;
    rig.end(receiver).await;
    // The primary is set back to a copy of yesterday: the journal has what it never will have.
    let held = rig.durable_lsn();
    rig.diverge().await;
    let mut receiver = rig.receiver();
    let end = tokio::time::timeout(Duration::from_secs(10), receiver.ended()).await.unwrap();
    let ReceiverEnd::Refused { reason, .. } = end else { panic!("ended with {end:?}") };
    assert_eq!(reason, Reason::Diverged);
    assert_eq!(rig.durable_lsn(), held, "the journal took bytes of another history");
    assert!(source.positions().borrow().receivers.iter().all(|receiver| !receiver.attached));
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_of_another_epoch_is_refused_and_a_newer_one_is_reported() {
    let rig = Rig::new().await;
    let source = rig.source();
    rig.serve(&source).await;
    for (number, expected) in [(0, Reason::StaleEpoch), (9, Reason::NewerEpoch)] {
        let mut receiver = rig.receiver_of_epoch(number);
        let end = tokio::time::timeout(Duration::from_secs(10), receiver.ended()).await.unwrap();
        let ReceiverEnd::Refused { reason, epoch, .. } = end else { panic!("{end:?}") };
        assert_eq!((reason, epoch), (expected, rig::EPOCH));
    }
    assert_eq!(source.newer_epoch().borrow().map(|epoch| epoch.number), Some(9));
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gate_comes_back_by_itself_after_its_connection_was_cut() {
    let rig = Rig::new().await;
    let source = rig.source();
    rig.permit(DurabilityMode::BestEffort, &[], Duration::from_secs(600));
    assert!(rig.commit("INSERT INTO t VALUES (1)").within(Duration::from_secs(2)).await);
    let before = source.gate_backend_pid().unwrap();
    rig.sql(&format!("SELECT pg_terminate_backend({before})"));
    until("another walsender serves the gate", || {
        source.gate_backend_pid().is_some_and(|pid| pid != before)
    })
    .await;
    assert!(rig.commit("INSERT INTO t VALUES (2)").within(Duration::from_secs(2)).await);
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_walsender_that_stands_still_is_noticed_and_one_that_answers_is_not() {
    let rig = Rig::new().await;
    let source = rig.source();
    rig.permit(DurabilityMode::BestEffort, &[], Duration::from_secs(600));
    assert!(rig.commit("INSERT INTO t VALUES (1)").within(Duration::from_secs(2)).await);
    // Idle for longer than it takes to be asked: it answers each time.
    let idle = tokio::time::Instant::now();
    while idle.elapsed() < Duration::from_secs(3) {
        let silent = source.gate_silent_for();
        assert!(silent < Duration::from_secs(2), "an idle walsender counts as silent: {silent:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let pid = source.gate_backend_pid().unwrap().to_string();
    let signal = |name: &str| {
        let done = std::process::Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(done.success(), "kill {name} {pid}");
    };
    signal("-STOP");
    until("the frozen walsender is noticed", || source.gate_silent_for() > Duration::from_secs(3))
        .await;
    signal("-CONT");
    until("it is heard again", || source.gate_silent_for().is_zero()).await;
    assert!(rig.commit("INSERT INTO t VALUES (2)").within(Duration::from_secs(2)).await);
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_follows_a_promotion_to_the_next_timeline() {
    let rig = Rig::new().await;
    let source = rig.source();
    rig.serve(&source).await;
    rig.permit(DurabilityMode::BestEffort, &[], Duration::from_secs(600));
    let receiver = rig.receiver();
    assert!(rig.commit("INSERT INTO t VALUES (1)").within(Duration::from_secs(2)).await);
    rig.caught_up().await;
    rig.end(receiver).await;
    assert!(rig.commit("INSERT INTO t VALUES (2)").within(Duration::from_secs(2)).await);
    source.stop().await;
    // The journal lacks the end of the first timeline.
    rig.promote().await;
    let source = rig.source();
    rig.serve(&source).await;
    rig.permit(DurabilityMode::Zero, &[NodeId(2)], Duration::from_secs(600));
    let receiver = rig.receiver();
    let committed = rig.commit("INSERT INTO t VALUES (3)");
    assert!(committed.within(Duration::from_secs(5)).await, "{}", rig.state(&source, &receiver));
    assert_eq!(rig.journal_timeline(), 2);
    assert_eq!(rig.compare_with_primary(), None);
    // Attaching again on the new timeline compares a tail that may lie before the fork.
    rig.end(receiver).await;
    let receiver = rig.receiver();
    let committed = rig.commit("INSERT INTO t VALUES (4)");
    assert!(committed.within(Duration::from_secs(5)).await, "{}", rig.state(&source, &receiver));
    rig.end(receiver).await;
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_is_compressed_on_a_thin_line_and_not_on_a_fast_one_and_no_byte_changes() {
    let rig = Rig::new().await;
    let source = rig.source();
    let line = rig.serve_over_a_line(&source).await;
    let thin = Habit { bytes_per_second: Some(4 << 20), ..Habit::default() };
    let receiver = rig.receiver();
    let decided = || source.compression().get(&NodeId(2)).copied();
    for _ in 0..2 {
        line.set(thin);
        rig.write_wal(40);
        until("compression is switched on", || decided().is_some_and(|seen| seen.on)).await;
        let seen = decided().unwrap();
        assert!(seen.ratio.unwrap() < 0.6 && seen.held_up > 0.3, "{seen:?}");
        rig.caught_up().await;

        line.set(Habit::default());
        let begun = tokio::time::Instant::now();
        while decided().is_none_or(|seen| seen.on) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", decided());
            rig.write_wal(8);
            rig.caught_up().await;
        }
    }
    assert_eq!(rig.compare_with_primary(), None);
    rig.end(receiver).await;
    source.stop().await;
}
