//! The door over real sockets: every path with every method, limits, and answers that flip at once.

use std::sync::atomic::AtomicBool;

use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;
use crate::status::Writability;
use crate::status::tests::{NORTH, SOUTH, Scene, WITNESS};

struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> BootInstant {
        BootInstant::ZERO + Duration::from_secs(1_000)
    }
}

struct Door {
    address: SocketAddr,
    status: watch::Sender<Arc<ClusterStatus>>,
    writable: Arc<AtomicBool>,
    last_tick: Arc<AtomicU64>,
    _stop: tokio_util::sync::DropGuard,
}

async fn open(scene: &Scene) -> Door {
    let door = HttpDoor::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = door.local_addr();
    let (sender, status) = watch::channel(Arc::new(scene.build()));
    let writable = Arc::new(AtomicBool::new(scene.writable));
    let last_tick = Arc::new(AtomicU64::new(Fixed.now().0));
    let cell = writable.clone();
    let state = HttpState {
        status,
        writability: Arc::new(move || {
            let writable = cell.load(Ordering::Acquire);
            let reason = if writable { "the gate is open" } else { "no lease" };
            Writability { writable, reason: reason.to_owned() }
        }),
        last_tick: last_tick.clone(),
        clock: Arc::new(Fixed),
        metrics: PrometheusBuilder::new().build_recorder().handle(),
    };
    let shutdown = CancellationToken::new();
    tokio::spawn(door.serve(state, shutdown.clone()));
    Door { address, status: sender, writable, last_tick, _stop: shutdown.drop_guard() }
}

impl Door {
    async fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        timeout(Duration::from_secs(5), read).await.expect("an answer in time").unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        (code, body.to_owned())
    }

    async fn code(&self, path: &str) -> u16 {
        self.ask("GET", path).await.0
    }
}

const PRIMARY: [&str; 5] = ["/", "/primary", "/master", "/leader", "/read-write"];

#[tokio::test]
async fn each_path_answers_by_the_role_of_its_node() {
    let doors = [open(&Scene::seen_by(NORTH)).await, open(&Scene::seen_by(SOUTH)).await];
    let witness = open(&Scene::seen_by(WITNESS)).await;
    let paths = [
        ("/livez", [200, 200], 200),
        ("/readyz", [200, 200], 200),
        ("/replica", [503, 200], 503),
        ("/read-only", [200, 200], 503),
        ("/synchronous", [503, 503], 503),
        ("/asynchronous", [503, 200], 503),
        ("/standby-leader", [503, 503], 503),
        ("/health", [200, 200], 503),
        ("/status", [200, 200], 200),
        ("/metrics", [200, 200], 200),
        ("/nothing", [404, 404], 404),
    ];
    let primary = PRIMARY.map(|path| (path, [200, 503], 503));
    for (path, data, voter) in paths.into_iter().chain(primary) {
        for (door, expected) in doors.iter().zip(data).chain([(&witness, voter)]) {
            for method in ["GET", "HEAD", "OPTIONS"] {
                let (code, body) = door.ask(method, path).await;
                assert_eq!(code, expected, "{method} {path}: {body}");
                assert!(method == "GET" || body.is_empty(), "{method} {path} had a body: {body}");
            }
        }
    }
    assert_eq!(doors[0].ask("POST", "/primary").await.0, 405);
}

#[tokio::test]
async fn primary_flips_with_the_permit_cell_before_any_new_snapshot() {
    let door = open(&Scene::seen_by(NORTH)).await;
    assert_eq!(door.code("/primary").await, 200);
    door.writable.store(false, Ordering::Release);
    for path in PRIMARY {
        let (code, body) = door.ask("GET", path).await;
        assert_eq!((code, body.contains("no lease")), (503, true), "{path}: {body}");
    }
    assert_eq!((door.code("/read-only").await, door.code("/readyz").await), (503, 503));
    let status: serde_json::Value =
        serde_json::from_str(&door.ask("GET", "/status").await.1).unwrap();
    assert_eq!(status["nodes"][0]["writable"], false);
    door.writable.store(true, Ordering::Release);
    assert_eq!(door.code("/primary").await, 200);
}

#[tokio::test]
async fn a_replica_beyond_the_limit_or_with_unknown_lag_is_not_good() {
    let mut scene = Scene::seen_by(SOUTH);
    let door = open(&scene).await;
    for (path, code) in [
        ("/replica?lag=900", 200),
        ("/replica?lag=899", 503),
        ("/replica?lag=10MB", 200),
        ("/read-only?lag=1", 503),
        ("/replica?lag=5s", 503), // It began before this node watched.
        ("/replica?lag=much", 400),
    ] {
        assert_eq!(door.code(path).await, code, "{path}");
    }
    scene.report(SOUTH).replay_lsn = Some(5_000);
    door.status.send_replace(Arc::new(scene.build()));
    assert_eq!(door.code("/replica?lag=5s").await, 200);
    scene.report(SOUTH).attached = false;
    door.status.send_replace(Arc::new(scene.build()));
    assert_eq!(door.code("/replica").await, 503);
}

#[tokio::test]
async fn a_loop_that_stopped_is_not_alive_and_its_snapshot_says_nothing_good() {
    let door = open(&Scene::seen_by(SOUTH)).await;
    let stale = Fixed.now() - Duration::from_secs(6);
    door.last_tick.store(stale.0, Ordering::Release);
    for path in ["/livez", "/readyz", "/replica", "/health", "/read-only"] {
        let (code, body) = door.ask("GET", path).await;
        assert_eq!((code, body.contains("not ticked for 6 s")), (503, true), "{path}: {body}");
    }
}

#[tokio::test]
async fn a_waited_for_passive_in_zero_is_synchronous() {
    let mut scene = Scene::seen_by(SOUTH);
    scene.state.durability.mode = understudy_types::DurabilityMode::Zero;
    let door = open(&scene).await;
    assert_eq!(door.code("/sync").await, 200);
    assert_eq!(door.code("/read-only-sync").await, 200);
    assert_eq!(door.code("/async").await, 503);
    scene.state.durability.waited.insert(WITNESS);
    scene.state.durability.copies = 1;
    let door = open(&scene).await;
    assert_eq!(door.code("/sync").await, 503, "a commit may be at the other one only");
}

#[tokio::test]
async fn a_client_that_sends_nothing_is_cut_off_and_holds_up_nobody() {
    let door = open(&Scene::seen_by(NORTH)).await;
    let mut silent = TcpStream::connect(door.address).await.unwrap();
    silent.write_all(b"GET /livez HT").await.unwrap();
    assert_eq!(door.code("/livez").await, 200);
    let mut rest = Vec::new();
    let cut = timeout(REQUEST_READ_TIMEOUT * 2, silent.read_to_end(&mut rest)).await;
    assert!(cut.is_ok(), "the connection is still open");
}

#[tokio::test]
async fn a_taken_port_is_named_with_what_to_do() {
    let door = HttpDoor::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let error = HttpDoor::bind(door.local_addr()).await.unwrap_err().to_string();
    assert!(error.contains(&door.local_addr().to_string()) && error.contains("listen.http"));
}
