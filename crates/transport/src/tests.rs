//! The transport over real sockets: what must be refused is refused, and the rest is not disturbed.
//!
//! The service behind it is gRPC's stock health check, guarded as a real service would be.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::HealthServer;
use understudy_types::{ClusterId, NodeName};
use uuid::Uuid;

use crate::authority::testing::with_uris;
use crate::*;

struct Fixture {
    dir: tempfile::TempDir,
    authority: Authority,
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn node(text: &str) -> Identity {
    Identity::Node(name(text))
}

fn person(role: Role) -> Identity {
    Identity::Person { name: "ada".to_owned(), role }
}

impl Fixture {
    fn new(cluster: u128) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(ClusterId(Uuid::from_u128(cluster))).unwrap();
        authority.save(&dir.path().join("ca.pem"), &dir.path().join("ca.key")).unwrap();
        Fixture { dir, authority }
    }

    fn load(&self, issued: &IssuedCertificate) -> Result<TlsIdentity, TlsError> {
        let base = self.dir.path().join(Uuid::new_v4_for_test().to_string());
        let (cert, key) = (base.with_extension("pem"), base.with_extension("key"));
        issued.save(&cert, &key).unwrap();
        TlsIdentity::load(&self.dir.path().join("ca.pem"), &cert, &key)
    }

    fn identity(&self, identity: &Identity) -> TlsIdentity {
        self.load(&self.authority.issue(identity).unwrap()).unwrap()
    }

    /// The node north, whose service is for the node south and for operators.
    async fn serve(&self, options: ListenOptions) -> SocketAddr {
        serve_as(&self.identity(&node("north")), options).await
    }
}

async fn serve_as(identity: &TlsIdentity, options: ListenOptions) -> SocketAddr {
    let any = "127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(any, identity, options).await.unwrap();
    let address = listener.local_addr();
    let guard = |request: Request<()>| -> Result<Request<()>, Status> {
        match peer(&request)?.identity {
            Identity::Node(_) => require_node(&request, &name("south"))?,
            Identity::Person { .. } => {
                require_role(&request, Role::Operator)?;
            }
        }
        Ok(request)
    };
    let (_, health) = tonic_health::server::health_reporter();
    let service = tonic::service::interceptor::InterceptedService::new(health, guard);
    let serving = server().add_service(service).serve_with_incoming(listener.incoming());
    tokio::spawn(async move { serving.await.unwrap() });
    address
}

/// Names for files; random enough within one process.
trait ForTest {
    fn new_v4_for_test() -> Uuid;
}
impl ForTest for Uuid {
    fn new_v4_for_test() -> Uuid {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Uuid::from_u128(NEXT.fetch_add(1, Ordering::Relaxed).into())
    }
}

async fn call(channel: Channel) -> Result<(), Status> {
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.map(drop)
}

async fn call_as(address: SocketAddr, expect: &str, identity: &TlsIdentity) -> Result<(), Status> {
    let options = ChannelOptions::admin();
    call(connect(&address.to_string(), &name(expect), identity, &options).unwrap()).await
}

#[tokio::test]
async fn the_meant_node_and_a_person_with_the_role_get_through() {
    let fixture = Fixture::new(1);
    let address = fixture.serve(ListenOptions::default()).await;
    call_as(address, "north", &fixture.identity(&node("south"))).await.unwrap();
    call_as(address, "north", &fixture.identity(&person(Role::BreakGlass))).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_another_node_than_the_one_meant_is_refused_with_both_names() {
    let fixture = Fixture::new(1);
    let address = fixture.serve(ListenOptions::default()).await;
    let status = call_as(address, "east", &fixture.identity(&node("south"))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let south = fixture.identity(&node("south"));
    let options = ChannelOptions::admin();
    let error = connect_now(&address.to_string(), &name("east"), &south, &options).await;
    let error = error.unwrap_err().to_string();
    for word in ["node east at", "it is node north, expected node east"] {
        assert!(status.message().contains(word), "{status:?}");
        assert!(error.contains(word), "{error}");
    }
}

#[tokio::test]
async fn a_node_or_person_without_the_right_is_denied_in_words() {
    let fixture = Fixture::new(1);
    let address = fixture.serve(ListenOptions::default()).await;
    let denied = [(node("witness"), "node south"), (person(Role::Viewer), "operator")];
    for (who, expected) in denied {
        let status = call_as(address, "north", &fixture.identity(&who)).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().contains(expected), "{status:?}");
        assert!(status.message().contains(&who.to_string()), "{status:?}");
    }
}

#[test]
fn a_person_is_not_a_node_and_a_node_is_not_a_person() {
    let address = "127.0.0.1:1".parse().unwrap();
    let request = |identity| {
        let mut request = Request::new(());
        let not_after = std::time::SystemTime::now();
        request.extensions_mut().insert(Peer { identity, address, not_after });
        request
    };
    let (ada, north) = (request(person(Role::BreakGlass)), request(node("north")));
    assert_eq!(require_any_node(&ada).unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(require_node(&ada, &name("north")).unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(require_role(&north, Role::Viewer).unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(require_any_node(&north).unwrap(), &name("north"));
    assert!(require_node_or_role(&north, Role::BreakGlass).is_ok());
    assert!(require_node_or_role(&request(person(Role::Viewer)), Role::Operator).is_err());
    assert_eq!(peer(&Request::new(())).unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn another_clusters_authority_is_refused_on_both_sides() {
    let (fixture, stranger) = (Fixture::new(1), Fixture::new(1));
    let address = fixture.serve(ListenOptions::default()).await;
    let status = call_as(address, "north", &stranger.identity(&node("south"))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");

    // A client that trusts our server, and shows a certificate of the stranger.
    let issued = stranger.authority.issue(&node("south")).unwrap();
    let forged = forge(&fixture, &issued);
    assert!(forged.is_err(), "a certificate of another authority was loaded");
    raw_handshake_is_refused(&fixture, address, Some(&issued)).await;
}

/// A client that skips every check of its own.
async fn raw_handshake_is_refused(
    fixture: &Fixture,
    address: SocketAddr,
    show: Option<&IssuedCertificate>,
) {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    let good = fixture.identity(&node("south"));
    let mut config = (*good.proof().client_config(&name("north")).unwrap()).clone();
    config.client_auth_cert_resolver = match show {
        None => std::sync::Arc::new(NoCertificate),
        Some(issued) => {
            let chain = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
            let provider = rustls::crypto::ring::default_provider();
            let key = rustls::sign::CertifiedKey::from_der(vec![chain], key, &provider).unwrap();
            std::sync::Arc::new(rustls::sign::SingleCertAndKey::from(key))
        }
    };
    let tcp = TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let connected = connector.connect(ServerName::try_from("x").unwrap(), tcp).await;
    // In TLS 1.3 the client learns of the refusal when it first reads.
    if let Ok(mut stream) = connected {
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut byte)).await;
        assert!(matches!(read, Ok(Err(_))), "the server went on: {read:?}");
    }
}

#[derive(Debug)]
struct NoCertificate;
impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<std::sync::Arc<rustls::sign::CertifiedKey>> {
        None
    }
    fn has_certs(&self) -> bool {
        false
    }
}

fn forge(fixture: &Fixture, issued: &IssuedCertificate) -> Result<TlsIdentity, TlsError> {
    fixture.load(issued)
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let fixture = Fixture::new(1);
    let address = fixture.serve(ListenOptions::default()).await;
    raw_handshake_is_refused(&fixture, address, None).await;
}

#[tokio::test]
async fn a_certificate_with_two_uris_or_of_another_cluster_is_refused() {
    let fixture = Fixture::new(1);
    let address = fixture.serve(ListenOptions::default()).await;
    let cluster = fixture.authority.cluster();
    let two = [node("south").uri(cluster), node("north").uri(cluster)];
    let elsewhere = [node("south").uri(ClusterId(Uuid::from_u128(2)))];
    for uris in [&two[..], &elsewhere[..]] {
        let issued = with_uris(&fixture.authority, uris);
        raw_handshake_is_refused(&fixture, address, Some(&issued)).await;
    }
    let error = fixture.load(&with_uris(&fixture.authority, &two)).unwrap_err();
    assert!(matches!(error, TlsError::Identity { .. }), "{error:?}");
}

#[test]
fn hosts_in_a_certificate_change_nothing_of_who_its_bearer_is() {
    let fixture = Fixture::new(1);
    let hosts = ["north", "db.example.org", "10.0.1.5", "2001:db8::5", "north"];
    let issued = fixture.authority.issue_at(&node("north"), &hosts.map(str::to_owned)).unwrap();
    assert_eq!(fixture.load(&issued).unwrap().identity(), &node("north"));
    assert!(fixture.authority.issue_at(&node("north"), &["sø.example".to_owned()]).is_err());
}

#[tokio::test]
async fn garbage_and_a_stalled_handshake_hold_up_nobody() {
    let fixture = Fixture::new(1);
    let options =
        ListenOptions { handshake_timeout: Duration::from_millis(300), ..Default::default() };
    let address = fixture.serve(options).await;
    let mut stalled = TcpStream::connect(address).await.unwrap();
    let mut garbage = TcpStream::connect(address).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let begun = Instant::now();
    call_as(address, "north", &fixture.identity(&node("south"))).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2));
    // Both are closed by the server, the stalled one at its limit.
    for stream in [&mut stalled, &mut garbage] {
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "the connection was kept");
    }
}

#[tokio::test]
async fn at_the_bound_a_new_handshake_is_closed_and_the_established_goes_on() {
    let fixture = Fixture::new(1);
    let options = ListenOptions { handshakes_max: 1, ..Default::default() };
    let address = fixture.serve(options).await;
    let south = fixture.identity(&node("south"));
    let channel =
        connect(&address.to_string(), &name("north"), &south, &ChannelOptions::admin()).unwrap();
    call(channel.clone()).await.unwrap();
    let _stalled = TcpStream::connect(address).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while call_as(address, "north", &south).await.is_ok() {
        assert!(Instant::now() < deadline, "the bound was never reached");
    }
    call(channel).await.unwrap();
}

#[tokio::test]
async fn a_channel_to_a_node_that_is_down_connects_once_it_is_up() {
    let fixture = Fixture::new(1);
    let identity = fixture.identity(&node("north"));
    let any = "127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(any, &identity, ListenOptions::default()).await.unwrap();
    let address = listener.local_addr();
    drop(listener);
    let south = fixture.identity(&node("south"));
    let channel =
        connect(&address.to_string(), &name("north"), &south, &ChannelOptions::consensus())
            .unwrap();
    let status = call(channel.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("refused"), "{status:?}");

    let listener = Listener::bind(address, &identity, ListenOptions::default()).await.unwrap();
    let (_, health): (_, HealthServer<_>) = tonic_health::server::health_reporter();
    tokio::spawn(server().add_service(health).serve_with_incoming(listener.incoming()));
    call(channel).await.unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_named_with_what_to_do() {
    let fixture = Fixture::new(1);
    let address = fixture.serve(ListenOptions::default()).await;
    let identity = fixture.identity(&node("north"));
    let error = Listener::bind(address, &identity, ListenOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    assert!(error.to_string().contains("[listen]"), "{error}");
}

#[test]
fn a_key_that_others_can_read_is_refused_with_its_mode_and_the_remedy() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new(1);
    let (cert, key) = (fixture.dir.path().join("n.pem"), fixture.dir.path().join("n.key"));
    let ca = fixture.dir.path().join("ca.pem");
    fixture.authority.issue(&node("north")).unwrap().save(&cert, &key).unwrap();
    assert!(TlsIdentity::load(&ca, &cert, &key).is_ok());
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = TlsIdentity::load(&ca, &cert, &key).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    let path = key.display().to_string();
    for word in [path.as_str(), "0644", "chmod 600"] {
        assert!(source.contains(word), "{source}");
    }
}

#[test]
fn files_that_do_not_belong_together_are_named() {
    let fixture = Fixture::new(1);
    let path = |name: &str| fixture.dir.path().join(name);
    let save = |name: &str| {
        let pair = (path(&format!("{name}.pem")), path(&format!("{name}.key")));
        fixture.authority.issue(&node(name)).unwrap().save(&pair.0, &pair.1).unwrap();
        pair
    };
    let (north, south) = (save("north"), save("south"));
    let load = |cert: &Path, key: &Path| TlsIdentity::load(&path("ca.pem"), cert, key);
    let error = load(&north.0, &south.1).unwrap_err().to_string();
    assert!(error.contains("south.key") && error.contains("north.pem"), "{error}");
    let error = load(&north.1, &north.1).unwrap_err().to_string();
    assert!(error.contains("north.key"), "{error}");
    let error = load(&path("none.pem"), &north.1).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("none.pem"));
    let year = Duration::from_secs(360 * 24 * 3600);
    assert!(load(&north.0, &north.1).unwrap().not_after() > std::time::SystemTime::now() + year);
}

#[tokio::test]
async fn an_authority_is_rotated_in_three_steps_and_nobody_is_refused_on_the_way() {
    let (old, new) = (Fixture::new(1), Fixture::new(1));
    let both = old.authority.certificate_pem().to_owned() + new.authority.certificate_pem();
    let load = |trusted: &str, issued: &IssuedCertificate| {
        let base = old.dir.path().join(Uuid::new_v4_for_test().to_string());
        let path = |extension: &str| base.with_extension(extension);
        std::fs::write(path("ca"), trusted).unwrap();
        issued.save(&path("pem"), &path("key")).unwrap();
        TlsIdentity::load(&path("ca"), &path("pem"), &path("key")).unwrap()
    };
    let names = ["north", "south"];
    let first = names.map(|name| old.authority.issue(&node(name)).unwrap());
    let second = names.map(|name| new.authority.issue(&node(name)).unwrap());
    let [server, client] = [0, 1].map(|n| load(old.authority.certificate_pem(), &first[n]));
    let address = serve_as(&server, ListenOptions::default()).await;
    let established =
        connect(&address.to_string(), &name("north"), &client, &ChannelOptions::admin()).unwrap();
    call(established.clone()).await.unwrap();
    let mut seen = vec![client.own().sha256];
    for issued in [&first, &second] {
        let step = [0, 1].map(|n| load(&both, &issued[n]));
        // One node after the other: between the two each knows the other's.
        for (held, newer) in [&server, &client].into_iter().zip(&step) {
            held.replace(newer).unwrap();
            call_as(address, "north", &client).await.unwrap();
        }
        seen.push(client.own().sha256);
    }
    let only_new = new.authority.certificate_pem();
    for (held, n) in [(&server, 0), (&client, 1)] {
        held.replace(&load(only_new, &second[n])).unwrap();
        call_as(address, "north", &client).await.unwrap();
    }
    assert!(seen[0] == seen[1] && seen[1] != seen[2], "{seen:?}");
    let [authority] = &client.authorities()[..] else { panic!("the old one is still trusted") };
    assert_eq!(client.own().issued_by.as_ref(), Some(&authority.sha256));
    // What stands goes on; who still comes with the old authority's certificate is refused.
    call(established).await.unwrap();
    assert!(call_as(address, "north", &load(&both, &first[1])).await.is_err());
    let other = old.identity(&node("east"));
    let error = client.replace(&other).unwrap_err().to_string();
    assert!(error.contains("node east") && error.contains("node south"), "{error}");
}
