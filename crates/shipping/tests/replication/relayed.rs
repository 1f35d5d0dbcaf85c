//! A relay over a journal, and the stock programs that follow it: a standby, `pg_receivewal`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use understudy_shipping::journal::Journal;
use understudy_shipping::relay::{Relay, RelayOptions, RelayPositions};
use understudy_shipping::replication::{
    ConnectOptions, ReplicationClient, ReplicationEvent, Started,
};
use understudy_types::{Admission, Epoch, Lsn, PermitSerial, PromotionId, Timeline};

use crate::postgres::{Killed, PORT, Server, command, owner, run};

pub(crate) const RELAY_PORT: u16 = 7432;

pub(crate) type Relayed = tokio::sync::watch::Receiver<Option<RelayPositions>>;

pub(crate) fn options(socket_dir: &Path, port: u16) -> ConnectOptions {
    ConnectOptions {
        socket_dir: socket_dir.to_owned(),
        port,
        user: "postgres".to_owned(),
        application_name: "probe".to_owned(),
        answer_timeout: Duration::from_secs(10),
    }
}

pub(crate) async fn connect(socket_dir: &Path, port: u16) -> ReplicationClient {
    ReplicationClient::connect(&options(socket_dir, port)).await.unwrap()
}

pub(crate) fn epoch(number: u64) -> Epoch {
    Epoch { incarnation: 0, number }
}

pub(crate) fn admission(number: u64, timeline: Timeline) -> Admission {
    let promotion = PromotionId(uuid::Uuid::from_u128(u128::from(number)));
    Admission { serial: PermitSerial(number), epoch: epoch(number), promotion, timeline }
}

/// Where the relay of a directory listens.
pub(crate) fn relay_dir(dir: &Path) -> PathBuf {
    dir.join("relay")
}

/// A relay over `journal`, which counts the standby called `standby` as its own.
pub(crate) async fn relay(
    dir: &Path,
    journal: &Journal,
) -> (CancellationToken, JoinHandle<()>, Relayed) {
    let socket_dir = relay_dir(dir);
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

/// Brings a server's WAL into the journal from `start_lsn` on, until the server ends.
pub(crate) async fn fill(
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

fn own(path: &Path) {
    let (uid, gid) = owner();
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
}

/// A stock standby in `<dir>/<name>`, copied from the primary behind `primary_socket_dir`, that follows the
/// relay under its own name. The copy brings no WAL: all of that comes from the relay.
pub(crate) async fn standby(dir: &Path, name: &str, primary_socket_dir: &Path) -> Server {
    let data = dir.join(name);
    let mut backup = command("pg_basebackup");
    backup.arg("-D").arg(&data).arg("-h").arg(primary_socket_dir);
    run(backup.args(["-p", &PORT.to_string(), "-U", "postgres", "-X", "none", "-c", "fast", "-N"]));
    let signal = data.join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    own(&signal);
    let settings = format!(
        "primary_conninfo = 'host={} port={RELAY_PORT} user=any application_name={name}'\n\
         hot_standby_feedback = on\nwal_receiver_status_interval = 1s\n",
        relay_dir(dir).display()
    );
    std::fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
    Server::start(dir, name).await
}

/// `pg_receivewal` from the relay into `<dir>/<name>`.
pub(crate) fn receivewal(dir: &Path, name: &str, more: &[&str]) -> (PathBuf, Killed) {
    let received = dir.join(name);
    std::fs::create_dir_all(&received).unwrap();
    own(&received);
    let mut receivewal = command("pg_receivewal");
    receivewal.arg("-D").arg(&received).arg("-h").arg(relay_dir(dir));
    receivewal.args(["-p", &RELAY_PORT.to_string(), "-U", "any", "-s", "1"]).args(more);
    let child = receivewal.spawn().unwrap();
    (received, Killed(child))
}
