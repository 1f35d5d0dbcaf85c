//! The door over real sockets: every path with every method, limits, and answers that flip at once.

use std::sync::atomic::AtomicBool;

use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;
use crate::status::Writability;
use crate::status::tests::{NORTH, SOUTH, Scene, WITNESS};

/// Few enough for a machine that allows a process 1024 files.
const PLACES: usize = 128;

struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> BootInstant {
        BootInstant::ZERO + Duration::from_secs(1_000)
    }
}

fn plain() -> HttpConfig {
    HttpConfig { advertise: String::new(), tls: None, patroni_metrics: true }
}

struct Door {
    address: SocketAddr,
    status: watch::Sender<Arc<ClusterStatus>>,
    writable: Arc<AtomicBool>,
    last_tick: Arc<AtomicU64>,
    last_publish: Arc<AtomicU64>,
    _stop: tokio_util::sync::DropGuard,
}

async fn open(scene: &Scene) -> Door {
    serve(HttpDoor::bind("127.0.0.1:0".parse().unwrap(), &plain()).unwrap(), scene)
}

fn serve(door: HttpDoor, scene: &Scene) -> Door {
    let address = door.local_addr();
    let (sender, status) = watch::channel(Arc::new(scene.build()));
    let writable = Arc::new(AtomicBool::new(scene.writable));
    let last_tick = Arc::new(AtomicU64::new(Fixed.now().0));
    let last_publish = Arc::new(AtomicU64::new(Fixed.now().0));
    let cell = writable.clone();
    let state = HttpState {
        status,
        writability: Arc::new(move || {
            let writable = cell.load(Ordering::Acquire);
            let reason = if writable { "the gate is open" } else { "no lease" };
            Writability { writable, reason: reason.to_owned() }
        }),
        last_tick: last_tick.clone(),
        last_publish: last_publish.clone(),
        clock: Arc::new(Fixed),
        metrics: PrometheusBuilder::new().build_recorder().handle(),
        patroni_metrics: true,
        health_checkers: HealthCheckers::default(),
    };
    let shutdown = CancellationToken::new();
    tokio::spawn(door.serve_at_most(PLACES, state, shutdown.clone()));
    Door {
        address,
        status: sender,
        writable,
        last_tick,
        last_publish,
        _stop: shutdown.drop_guard(),
    }
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
        ("/liveness", [200, 200], 200),
        ("/readyz", [200, 200], 200),
        ("/readiness", [200, 200], 200),
        ("/readiness?lag=899", [200, 503], 200),
        ("/readiness?lag=700&mode=write", [200, 200], 200),
        ("/readiness?mode=fast", [400, 400], 400),
        ("/quorum", [503, 503], 503),
        ("/read-only-quorum", [200, 503], 503),
        ("/read-only-sync", [200, 503], 503),
        ("/replica?replication_state=streaming", [503, 200], 503),
        ("/replica?replication_state=catchup", [503, 503], 503),
        ("/replica?tag_zone=a", [503, 503], 503),
        ("/primary?tag_zone=a", [200, 503], 503),
        ("/patroni", [200, 200], 200),
        ("/cluster", [200, 200], 200),
        ("/history", [200, 200], 200),
        ("/config", [200, 200], 200),
        ("/ui", [200, 200], 200),
        ("/ui/page.js", [200, 200], 200),
        ("/ui/../status", [404, 404], 404),
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
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let (code, body) = doors[0].ask(method, "/switchover").await;
        assert_eq!((code, body.contains("understudy switchover")), (405, true), "{method}: {body}");
    }
}

impl Door {
    async fn json(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&self.ask("GET", path).await.1).unwrap()
    }
}

#[tokio::test]
async fn tools_for_patroni_read_who_is_what_and_how_far() {
    let mut scene = Scene::seen_by(SOUTH);
    let report = scene.report(SOUTH);
    report.server_version_num = Some(150_018);
    report.postmaster_start_unix_us = Some(1_700_000_000_000_000);
    report.replayed_commit_unix_us = Some(1_700_000_000_500_000);
    report.postgres_address = "[2001:db8::2]:5433".to_owned();
    report.http_address = "south.example:7480".to_owned();
    scene.state.durability.mode = understudy_types::DurabilityMode::Zero;
    let [north, south] = [open(&Scene::seen_by(NORTH)).await, open(&scene).await];

    let node = south.json("/patroni").await;
    assert_eq!((&node["role"], &node["state"]), (&"replica".into(), &"running".into()));
    assert_eq!(node["postmaster_start_time"], "2023-11-14 22:13:20.000000+00:00");
    assert_eq!(node["server_version"], 150_018);
    assert_eq!(
        (&node["replication_state"], &node["sync_standby"]),
        (&"streaming".into(), &true.into())
    );
    let xlog = &node["xlog"];
    assert_eq!(
        (&xlog["received_location"], &xlog["replayed_location"]),
        (&4_300.into(), &4_100.into())
    );
    assert_eq!(xlog["replayed_timestamp"], "2023-11-14 22:13:20.500000+00:00");
    assert_eq!(node["patroni"]["name"], "south");
    let node = north.json("/patroni").await;
    assert_eq!((&node["role"], &node["xlog"]["location"]), (&"primary".into(), &5_000.into()));
    assert_eq!(node["replication"][0]["application_name"], "south");
    assert_eq!(
        node["postmaster_start_time"],
        serde_json::Value::Null,
        "what is unknown is not there"
    );

    let cluster = south.json("/cluster").await;
    let members = cluster["members"].as_array().unwrap();
    assert_eq!(members.len(), 2, "a witness has no PostgreSQL: {cluster}");
    assert_eq!(
        (&members[0]["role"], &members[1]["role"]),
        (&"leader".into(), &"sync_standby".into())
    );
    assert_eq!((&members[1]["host"], &members[1]["port"]), (&"2001:db8::2".into(), &5433.into()));
    assert_eq!((&members[1]["receive_lag"], &members[1]["lag"]), (&700.into(), &900.into()));
    assert_eq!(members[1]["api_url"], "http://south.example:7480/patroni");
    scene.silence(NORTH);
    south.status.send_replace(Arc::new(scene.build()));
    let cluster = south.json("/cluster").await;
    assert_eq!(cluster["members"][1]["lag"], "unknown", "against an active that is not heard");
    assert_eq!(cluster["members"][0]["state"], "unknown");
}

#[tokio::test]
async fn each_promotion_but_the_first_is_a_row_of_the_history() {
    let mut scene = Scene::seen_by(NORTH);
    let first = scene.state.lineage.values().next().unwrap().clone();
    let next = scene.state.epoch.next();
    let timeline = understudy_types::Timeline::new(2).unwrap();
    let fork_lsn = Some(understudy_types::Lsn(0x5000));
    let granted = understudy_core::state::Granted { node: SOUTH, timeline, fork_lsn, ..first };
    scene.state.lineage.insert(next, granted);
    let rows = open(&scene).await.json("/history").await;
    assert_eq!(rows.as_array().unwrap().len(), 1);
    assert_eq!((&rows[0][0], &rows[0][1]), (&1.into(), &0x5000.into()));
    assert_eq!(
        (&rows[0][3], &rows[0][4]),
        (&"2023-11-14 19:26:40.000000+00:00".into(), &"south".into())
    );
}

#[tokio::test]
async fn patronis_metrics_have_its_names_and_only_what_is_known() {
    let door = open(&Scene::seen_by(SOUTH)).await;
    let text = door.ask("GET", "/metrics").await.1;
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")));
        line.map(|line| line.rsplit(' ').next().unwrap().to_owned())
    };
    assert_eq!(value("patroni_replica").as_deref(), Some("1"), "{text}");
    assert_eq!(value("patroni_primary").as_deref(), Some("0"));
    assert_eq!(value("patroni_xlog_replayed_location").as_deref(), Some("4100"));
    assert_eq!(value("patroni_xlog_location"), None, "a passive has flushed nothing of its own");
    assert_eq!(value("patroni_postgres_server_version"), None, "it has not been heard");
    assert!(text.contains("# TYPE patroni_postgres_timeline gauge"));
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
async fn a_snapshot_that_is_not_renewed_says_nothing_good_although_the_loop_ticks() {
    let door = open(&Scene::seen_by(SOUTH)).await;
    let stale = Fixed.now() - Duration::from_secs(6);
    door.last_publish.store(stale.0, Ordering::Release);
    for path in ["/readyz", "/readiness", "/replica", "/health", "/read-only", "/livez"] {
        assert_eq!(door.code(path).await, 503, "{path}");
    }
    let status = door.json("/status").await;
    assert_eq!((&status["majority"], &status["active"]), (&false.into(), &serde_json::Value::Null));
    assert_eq!(status["failover"]["would_fail_over"], false);
    let cluster = door.json("/cluster").await;
    assert_eq!(cluster["members"][1]["lag"], "unknown", "{cluster}");
    assert_eq!(door.json("/patroni").await["cluster_unlocked"], true);
    let metrics = door.ask("GET", "/metrics").await.1;
    let streaming = metrics.lines().find(|line| line.starts_with("patroni_postgres_streaming{"));
    assert!(streaming.unwrap().ends_with("} 0"), "{streaming:?}");
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
async fn a_health_check_gets_through_a_door_that_is_full_of_idle_connections() {
    let door = open(&Scene::seen_by(NORTH)).await;
    let mut idle = Vec::new();
    for number in 0..PLACES + 100 {
        idle.push(TcpStream::connect(door.address).await.unwrap());
        if number % 50 == 0 {
            assert_eq!(door.code("/primary").await, 200, "with {number} idle connections");
        }
    }
    let mut first = idle.swap_remove(0);
    let closed = timeout(Duration::from_secs(2), first.read(&mut [0])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "the one that was idle longest is closed");
    let text = door.ask("GET", "/metrics").await;
    assert_eq!(text.0, 200);
}

#[tokio::test]
async fn with_a_certificate_it_speaks_https_and_a_key_that_others_can_read_is_refused() {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, ServerName};
    use understudy_transport::{Authority, Identity};

    let dir = tempfile::tempdir().unwrap();
    let cluster = understudy_types::ClusterId(uuid::Uuid::from_u128(7));
    let authority = Authority::create(cluster).unwrap();
    let files =
        HttpTls { certificate: dir.path().join("http.pem"), key: dir.path().join("http.key") };
    let issued = authority
        .issue_at(&Identity::Node("north".parse().unwrap()), &["127.0.0.1".to_owned()])
        .unwrap();
    issued.save(&files.certificate, &files.key).unwrap();
    let mut config = plain();
    config.tls = Some(files.clone());
    let door = HttpDoor::bind("127.0.0.1:0".parse().unwrap(), &config).unwrap();
    let door = serve(door, &Scene::seen_by(NORTH));
    let mut roots = rustls::RootCertStore::empty();
    let pem = authority.certificate_pem().as_bytes().to_vec();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let stream = TcpStream::connect(door.address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = connector.connect(name, stream).await.unwrap();
    stream.write_all(b"GET /primary HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let _ = timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");

    std::fs::set_permissions(&files.key, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .unwrap();
    let error = HttpDoor::bind("127.0.0.1:0".parse().unwrap(), &config).unwrap_err();
    assert!(format!("{error:?}").contains("http.key"), "a key that others can read: {error:?}");
}

#[tokio::test]
async fn a_taken_port_is_named_with_what_to_do() {
    let door = HttpDoor::bind("127.0.0.1:0".parse().unwrap(), &plain()).unwrap();
    let error = HttpDoor::bind(door.local_addr(), &plain()).unwrap_err().to_string();
    assert!(error.contains(&door.local_addr().to_string()) && error.contains("listen.http"));
}
