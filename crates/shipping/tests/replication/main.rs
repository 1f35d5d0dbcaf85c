//! The replication client, the relay and the tunnel against real PostgreSQL servers and stock tools.
#![allow(clippy::unwrap_used)] // a test says what it expects by panicking

mod postgres;
mod tunnel;

use std::path::Path;
use std::time::Duration;

use postgres::{Killed, PORT, Server, bin, command, directory, owner, run, until};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use understudy_shipping::journal::{Journal, JournalOptions};
use understudy_shipping::relay::{Relay, RelayOptions, SocketError};
use understudy_shipping::replication::{
    ConnectOptions, ReplicationClient, ReplicationError, ReplicationEvent, Started, TrySend,
};
use understudy_types::{
    Admission, Epoch, Lineage, Lsn, PermitSerial, PromotionId, SegmentSize, Timeline,
};

const SIZE: SegmentSize = SegmentSize::DEFAULT;
const RELAY_PORT: u16 = 7432;
const WAIT: Duration = Duration::from_secs(20);

fn options(socket_dir: &Path, port: u16) -> ConnectOptions {
    ConnectOptions {
        socket_dir: socket_dir.to_owned(),
        port,
        user: "postgres".to_owned(),
        application_name: "probe".to_owned(),
        answer_timeout: Duration::from_secs(10),
    }
}

async fn connect(socket_dir: &Path, port: u16) -> ReplicationClient {
    ReplicationClient::connect(&options(socket_dir, port)).await.unwrap()
}

fn start_of_segment(lsn: Lsn) -> Lsn {
    lsn.align_down(SIZE.bytes())
}

fn epoch(number: u64) -> Epoch {
    Epoch { incarnation: 0, number }
}

fn admission(number: u64, timeline: Timeline) -> Admission {
    let promotion = PromotionId(uuid::Uuid::from_u128(u128::from(number)));
    Admission { serial: PermitSerial(number), epoch: epoch(number), promotion, timeline }
}

/// A relay over `journal` in `<dir>/run`.
async fn relay(dir: &Path, journal: &Journal) -> (CancellationToken, JoinHandle<()>, Relayed) {
    let socket_dir = dir.join("run");
    std::fs::create_dir_all(&socket_dir).unwrap();
    let uids = vec![owner().0, rustix::process::geteuid().as_raw()];
    let version = "15.18".to_owned();
    let relay_options = RelayOptions::new(socket_dir, uids, version, "standby".to_owned());
    let relay = Relay::bind(relay_options, journal.clone()).unwrap();
    let positions = relay.positions();
    let stop = CancellationToken::new();
    let task = tokio::spawn(relay.run(stop.clone()));
    (stop, task, positions)
}

type Relayed = tokio::sync::watch::Receiver<Option<understudy_shipping::relay::RelayPositions>>;

/// Brings a server's WAL into the journal from `start_lsn` on, until the server ends.
async fn fill(
    journal: Journal,
    server: &Server,
    number: u64,
    start_lsn: Lsn,
    timeline: Timeline,
) -> JoinHandle<()> {
    let client = connect(&server.socket_dir, PORT).await;
    let started = client.start_replication(None, start_lsn, timeline).await.unwrap();
    let Started::Streaming(mut stream, sender) = started else { panic!("{started:?}") };
    tokio::spawn(async move {
        while let Ok(event) = stream.recv().await {
            match event {
                ReplicationEvent::WalData { start_lsn, data, .. } => {
                    journal.append(epoch(number), timeline, start_lsn, data).await.unwrap();
                }
                ReplicationEvent::Keepalive { .. } => {
                    let durable_lsn = journal.positions().borrow().as_ref().unwrap().durable_lsn;
                    let lsn = durable_lsn;
                    let _ = sender.send_status(lsn, lsn, lsn, false).await;
                }
                ReplicationEvent::TimelineEnd { .. } => break,
            }
        }
    })
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
    let run_dir = dir.join("run");

    let mut backup = command("pg_basebackup");
    backup.arg("-D").arg(dir.join("standby")).arg("-h").arg(&primary.socket_dir);
    run(backup.args(["-p", &PORT.to_string(), "-U", "postgres", "-X", "none", "-c", "fast", "-N"]));
    let (uid, gid) = owner();
    let signal = dir.join("standby/standby.signal");
    std::fs::write(&signal, "").unwrap();
    std::os::unix::fs::chown(&signal, Some(uid), Some(gid)).unwrap();
    let settings = format!(
        "primary_conninfo = 'host={} port={RELAY_PORT} user=any application_name=standby'\n\
         hot_standby_feedback = on\nwal_receiver_status_interval = 1s\n",
        run_dir.display()
    );
    std::fs::write(dir.join("standby/postgresql.auto.conf"), settings).unwrap();
    let standby = Server::start(dir, "standby").await;
    let received = dir.join("received");
    std::fs::create_dir(&received).unwrap();
    std::os::unix::fs::chown(&received, Some(uid), Some(gid)).unwrap();
    let mut receivewal = command("pg_receivewal");
    receivewal.arg("-D").arg(&received).arg("-h").arg(&run_dir);
    receivewal.args(["-p", &RELAY_PORT.to_string(), "-U", "any", "-s", "1"]);
    let receiving = Killed(receivewal.spawn().unwrap());

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
    let run_dir = dir.path().join("run");
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
