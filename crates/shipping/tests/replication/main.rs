//! The replication client, the relay and the tunnel against real PostgreSQL servers and stock tools.
#![allow(clippy::unwrap_used)] // a test says what it expects by panicking

mod postgres;
#[allow(dead_code)] // shared with another test program, which uses all of it
mod relayed;
mod tunnel;

use std::path::Path;
use std::time::Duration;

use postgres::{PORT, Server, bin, directory, until};
use relayed::{
    RELAY_PORT, admission, connect, epoch, fill, options, receivewal, relay, relay_dir, standby,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use understudy_shipping::journal::{Journal, JournalOptions};
use understudy_shipping::relay::{Relay, RelayOptions, SocketError};
use understudy_shipping::replication::{
    ReplicationClient, ReplicationError, ReplicationEvent, Started, TrySend,
};
use understudy_types::{Lineage, Lsn, SegmentSize, Timeline};

const SIZE: SegmentSize = SegmentSize::DEFAULT;
const WAIT: Duration = Duration::from_secs(20);

fn start_of_segment(lsn: Lsn) -> Lsn {
    lsn.align_down(SIZE.bytes())
}

/// A journal that follows `server` from the beginning of its present segment on.
async fn follow(dir: &Path, server: &Server) -> (Journal, JoinHandle<()>) {
    let journal = Journal::open(&dir.join("wal"), JournalOptions::default()).unwrap();
    let mut client = connect(&server.socket_dir, PORT).await;
    let identity = client.identify_system().await.unwrap();
    let admission = admission(1, identity.timeline);
    let lineage = Lineage {
        epoch: admission.epoch,
        promotion: admission.promotion,
        timeline: identity.timeline,
        fork_lsn: None,
    };
    let start_lsn = start_of_segment(identity.flush_lsn);
    journal.begin(identity.system_id, SIZE, identity.timeline, vec![lineage], start_lsn).unwrap();
    journal.admit(admission).unwrap();
    let filling = fill(journal.clone(), server, 1, start_lsn, identity.timeline).await;
    (journal, filling)
}

fn durable_lsn(journal: &Journal) -> Lsn {
    journal.positions().borrow().as_ref().unwrap().durable_lsn
}

#[tokio::test]
async fn the_client_asks_streams_and_releases_a_synchronous_commit() {
    let dir = directory();
    let server = Server::create(dir.path(), "primary").await;
    let mut client = connect(&server.socket_dir, PORT).await;
    assert!(client.parameter("server_version").is_some());
    let identity = client.identify_system().await.unwrap();
    assert_eq!(client.show("wal_segment_size").await.unwrap(), "16MB");
    assert_eq!(client.read_slot("slot").await.unwrap(), None);
    client.create_physical_slot("slot", true).await.unwrap();
    let again = client.create_physical_slot("slot", true).await.unwrap_err();
    assert_eq!(again.sqlstate(), Some("42710"));
    let slot = client.read_slot("slot").await.unwrap().unwrap();
    assert!(slot.restart_lsn.is_some());
    client.drop_slot("slot").await.unwrap();
    assert!(matches!(
        client.timeline_history(Timeline::new(7).unwrap()).await,
        Err(ReplicationError::Server { .. })
    ));
    server.sql("CREATE TABLE t (i int)");
    server.sql("ALTER SYSTEM SET synchronous_standby_names = 'probe'");
    server.sql("SELECT pg_reload_conf()");

    let pid = client.backend_pid();
    let flush_lsn = identity.flush_lsn;
    let started = client.start_replication(None, flush_lsn, identity.timeline).await.unwrap();
    let Started::Streaming(mut stream, sender) = started else { panic!("{started:?}") };
    assert_eq!(stream.backend_pid(), pid);
    let commit = std::thread::spawn(move || {
        let inserted = server.sql("INSERT INTO t VALUES (1) RETURNING i");
        (server, inserted) // it has to outlive the stream
    });
    let mut end_lsn = flush_lsn;
    while !commit.is_finished() {
        let event = tokio::time::timeout(WAIT, stream.recv()).await;
        match event.expect("WAL within the deadline").unwrap() {
            ReplicationEvent::WalData { start_lsn, data, .. } => {
                assert_eq!(start_lsn, end_lsn, "WAL has no gaps");
                end_lsn = start_lsn + data.len() as u64;
            }
            ReplicationEvent::Keepalive { .. } => {}
            end => panic!("{end:?}"),
        }
        let sent = sender.try_send_status(end_lsn, end_lsn, end_lsn, true);
        assert_eq!(sent.unwrap(), TrySend::Sent);
    }
    let (_server, inserted) = commit.join().unwrap();
    assert!(end_lsn > flush_lsn);
    assert_eq!(inserted, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_standby_and_pg_receivewal_follow_the_relay_over_a_promotion() {
    let dir = directory();
    let dir = dir.path();
    let primary = Server::create(dir, "primary").await;
    let (journal, filling) = follow(dir, &primary).await;
    let (stop, relaying, positions) = relay(dir, &journal).await;
    let run_dir = relay_dir(dir);

    let standby = standby(dir, "standby", &primary.socket_dir).await;
    let (received, receiving) = receivewal(dir, "received", &[]);

    primary.sql("CREATE TABLE t AS SELECT g AS i, md5(g::text) FROM generate_series(1, 20000) g");
    let segment = primary.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    primary.sql("SELECT pg_switch_wal()");
    primary.sql("INSERT INTO t VALUES (0)");
    let flush_lsn = primary.flush_lsn();
    until("the standby has replayed and said so", || {
        positions.borrow().is_some_and(|p| p.replay_lsn >= Some(flush_lsn))
    })
    .await;
    assert_eq!(standby.sql("SELECT count(*), sum(i) FROM t"), "20001|200010000");
    until("the standby has given feedback", || {
        positions.borrow().is_some_and(|p| p.feedback.is_some())
    })
    .await;
    until("pg_receivewal has finished the segment", || received.join(&segment).exists()).await;
    let theirs = std::fs::read(received.join(&segment)).unwrap();
    let ours = std::fs::read(primary.data.join("pg_wal").join(&segment)).unwrap();
    assert!(theirs == ours, "segment {segment} differs from the primary's");

    drop(primary);
    filling.await.unwrap();
    let end_lsn = durable_lsn(&journal);
    until("the standby has replayed to the end", || {
        positions.borrow().is_some_and(|p| p.replay_lsn >= Some(end_lsn))
    })
    .await;
    assert_eq!(standby.sql("SELECT pg_promote()"), "t");
    let raw = std::fs::read(standby.data.join("pg_wal/00000002.history")).unwrap();
    let two = Timeline::new(2).unwrap();
    journal.raise_epoch(epoch(2)).unwrap();
    journal.admit(admission(2, two)).unwrap();
    journal.switch_timeline(epoch(2), two, &raw, end_lsn).await.unwrap();
    let filling = fill(journal.clone(), &standby, 2, end_lsn, two).await;
    standby.sql("INSERT INTO t VALUES (-1)");
    let flush_lsn = standby.flush_lsn();
    until("the journal has it", || durable_lsn(&journal) >= flush_lsn).await;
    let segment = standby.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    standby.sql("SELECT pg_switch_wal()");
    standby.sql("INSERT INTO t VALUES (-2)");
    until("pg_receivewal is on the new timeline", || received.join(&segment).exists()).await;
    let theirs = std::fs::read(received.join(&segment)).unwrap();
    let ours = std::fs::read(standby.data.join("pg_wal").join(&segment)).unwrap();
    assert!(theirs == ours, "segment {segment} differs from the new primary's");

    for (socket_dir, port) in [(&run_dir, RELAY_PORT), (&standby.socket_dir, PORT)] {
        old_timeline_ends(socket_dir, port, end_lsn).await;
    }
    drop(standby);
    filling.await.unwrap();
    drop(receiving);
    stop.cancel();
    relaying.await.unwrap();
    assert!(!run_dir.join(format!(".s.PGSQL.{RELAY_PORT}")).exists());
}

/// A stream of timeline 1 ends at the fork with a word about timeline 2, whoever serves it.
async fn old_timeline_ends(socket_dir: &Path, port: u16, fork_lsn: Lsn) {
    let two = Timeline::new(2).unwrap();
    let client = connect(socket_dir, port).await;
    let start_lsn = start_of_segment(fork_lsn);
    let started = client.start_replication(None, start_lsn, Timeline::FIRST).await.unwrap();
    let Started::Streaming(mut stream, sender) = started else { panic!("{started:?}") };
    let mut end_lsn = start_lsn;
    let next = loop {
        match tokio::time::timeout(WAIT, stream.recv()).await.unwrap().unwrap() {
            ReplicationEvent::WalData { start_lsn, data, .. } => {
                assert_eq!(start_lsn, end_lsn);
                end_lsn = start_lsn + data.len() as u64;
            }
            ReplicationEvent::Keepalive { .. } => {
                sender.send_status(end_lsn, end_lsn, Lsn::ZERO, false).await.unwrap();
            }
            ReplicationEvent::TimelineEnd { next } => break next,
        }
    };
    assert_eq!((end_lsn, next), (fork_lsn, Some((two, fork_lsn))));
    let mut client = stream.into_client().expect("the stream has ended");
    assert_eq!(client.identify_system().await.unwrap().timeline, two);
    let (history, _) = client.timeline_history(two).await.unwrap();
    assert_eq!(history.end_of(Timeline::FIRST), Some(fork_lsn));
    let at_end = client.start_replication(None, fork_lsn, Timeline::FIRST).await.unwrap();
    let Started::TimelineEnded { mut client, next } = at_end else { panic!("{at_end:?}") };
    assert_eq!(next, (two, fork_lsn));
    client.identify_system().await.unwrap();
    let beyond = client.start_replication(None, fork_lsn + 8, Timeline::FIRST).await;
    assert!(matches!(beyond, Err(ReplicationError::Server { .. })), "{beyond:?}");
}

#[tokio::test]
async fn the_relay_says_why_it_refuses() {
    let dir = directory();
    let journal = Journal::open(&dir.path().join("wal"), JournalOptions::default()).unwrap();
    let (stop, relaying, _) = relay(dir.path(), &journal).await;
    let run_dir = relay_dir(dir.path());
    let probe = options(&run_dir, RELAY_PORT);
    let empty = ReplicationClient::connect(&probe).await.unwrap_err();
    assert_eq!(empty.sqlstate(), Some("57P03"), "{empty}");

    let system_id = understudy_types::SystemId(7);
    let start_lsn = Lsn(0x300_0000);
    journal.begin(system_id, SIZE, Timeline::FIRST, Vec::new(), start_lsn).unwrap();
    let mut client = ReplicationClient::connect(&probe).await.unwrap();
    assert_eq!(client.identify_system().await.unwrap().system_id, system_id);
    assert_eq!(client.show("wal_segment_size").await.unwrap(), "16MB");
    let slot = client.create_physical_slot("s", true).await.unwrap_err();
    assert_eq!(slot.sqlstate(), Some("0A000"));
    assert_eq!(client.read_slot("s").await.unwrap(), None);
    for (lsn, timeline, sqlstate) in
        [(start_lsn + 8, 1, "XX000"), (start_lsn, 2, "XX000"), (Lsn(0x100_0000), 1, "58P01")]
    {
        let client = ReplicationClient::connect(&probe).await.unwrap();
        let timeline = Timeline::new(timeline).unwrap();
        let error = client.start_replication(None, lsn, timeline).await.unwrap_err();
        assert_eq!(error.sqlstate(), Some(sqlstate), "{error}");
    }
    let mut psql = std::process::Command::new(bin("psql"));
    psql.arg("-h").arg(&run_dir).args(["-p", &RELAY_PORT.to_string(), "-U", "x", "-d", "x"]);
    let output = tokio::task::spawn_blocking(move || psql.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("this is a WAL relay and not a database"), "{said}");
    stop.cancel();
    relaying.await.unwrap();
    assert!(client.identify_system().await.is_err());
}

#[tokio::test]
async fn processes_of_other_users_and_one_client_too_many_are_refused() {
    let dir = directory();
    let journal = Journal::open(&dir.path().join("wal"), JournalOptions::default()).unwrap();
    journal
        .begin(understudy_types::SystemId(7), SIZE, Timeline::FIRST, Vec::new(), Lsn(0x300_0000))
        .unwrap();
    let mine = rustix::process::geteuid().as_raw();
    for (uids, clients_max, refusal) in [(vec![mine + 1], 8, "28000"), (vec![mine], 1, "53300")] {
        let mut relay_options = RelayOptions::new(
            dir.path().to_owned(),
            uids,
            "15.18".to_owned(),
            "standby".to_owned(),
        );
        relay_options.clients_max = clients_max;
        let relay = Relay::bind(relay_options, journal.clone()).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(relay.run(stop.clone()));
        let probe = options(dir.path(), RELAY_PORT);
        let first = ReplicationClient::connect(&probe).await;
        let error = match &first {
            Ok(_) => ReplicationClient::connect(&probe).await.unwrap_err(),
            Err(_) => first.unwrap_err(),
        };
        assert_eq!(error.sqlstate(), Some(refusal), "{error}");
        stop.cancel();
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = directory();
    let journal = Journal::open(&dir.path().join("wal"), JournalOptions::default()).unwrap();
    let bind = |socket_dir: &Path| {
        let version = "15.18".to_owned();
        let relay_options =
            RelayOptions::new(socket_dir.to_owned(), Vec::new(), version, String::new());
        Relay::bind(relay_options, journal.clone())
    };
    let path = dir.path().join(format!(".s.PGSQL.{RELAY_PORT}"));
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let live = bind(dir.path()).map_err(|e| e.to_string()).expect("a stale file is replaced");
    assert!(matches!(bind(dir.path()), Err(SocketError::InUse { .. })));
    drop(live);
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(bind(dir.path()), Err(SocketError::NotASocket { .. })));
    let long = dir.path().join("x".repeat(120));
    assert!(matches!(bind(&long), Err(SocketError::TooLong { .. })));
}
