//! The HTTP door: health answers for load balancers, status, metrics and the status page; read only,
//! plain or with an ordinary server certificate.
//!
//! Everything is answered from memory: no query is made and nothing is waited for, so that an answer
//! comes even while the database hangs. `/primary` asks the permit cell at the moment of the request
//! and so cannot outlive the lease. It runs on a thread of its own: a flood of requests takes no turn
//! from the WAL, and the WAL none from a health check. Slow or too many clients hold up nobody.

mod answer;
mod checkers;
mod connections;
mod lag;
mod page;
mod patroni;
mod query;
#[cfg(test)]
mod tests;
mod tls;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use understudy_types::{BootInstant, Clock};

use crate::config::{HttpConfig, HttpTls};
use crate::metrics;
use crate::status::{ClusterStatus, WritabilityFn};
use answer::{Answer, Content, Facts};
use connections::{Connections, Place};
use tls::TlsNow;

pub use checkers::HealthCheckers;
pub use tls::HttpTlsError;

/// Connections at the same time; beyond it the one that has been idle longest is closed for a new one.
const CONNECTIONS_MAX: usize = 2048;
/// Connections that the kernel holds until they are accepted. With the 128 that the standard library asks
/// for, a thousand checks a second lost one now and then, to come back a second later.
const BACKLOG: i32 = 1024;
/// How long a client may take to send a request, counted also while it is idle, and for a TLS handshake.
const REQUEST_READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may live; whoever reads its answers that slowly has to come back.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);

/// What the answers are made from.
#[derive(Clone)]
pub struct HttpState {
    /// The newest snapshot.
    pub status: watch::Receiver<Arc<ClusterStatus>>,
    /// Whether writes are possible at this moment.
    pub writability: WritabilityFn,
    /// When the newest snapshot was made, as `BootInstant` nanoseconds.
    pub last_publish: Arc<AtomicU64>,
    /// When the loop that owns the core last ticked, as `BootInstant` nanoseconds.
    pub last_tick: Arc<AtomicU64>,
    /// The clock of `last_tick`.
    pub clock: Arc<dyn Clock>,
    /// What `/metrics` renders.
    pub metrics: PrometheusHandle,
    /// Whether it has Patroni's names too.
    pub patroni_metrics: bool,
    /// Who asks health paths.
    pub health_checkers: HealthCheckers,
}

impl std::fmt::Debug for HttpState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpState").finish_non_exhaustive()
    }
}

/// The door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Somebody has the port.
    #[error(
        "listen on {address} for HTTP: the port is in use; stop the other process (`ss -ltnp` shows \
         it) or choose another address as listen.http"
    )]
    InUse {
        /// Where.
        address: SocketAddr,
    },
    /// The address is not this machine's, or the port needs a privilege.
    #[error("listen on {address} for HTTP: check that listen.http is an address of this machine")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] HttpTlsError),
}

/// A bound port; answers from the moment [`HttpDoor::serve`] runs.
#[derive(Debug)]
pub struct HttpDoor {
    tcp: StdListener,
    address: SocketAddr,
    tls: Option<(HttpTls, watch::Sender<Arc<rustls::ServerConfig>>, TlsNow)>,
}

impl HttpDoor {
    /// Binds the port and loads the certificate, if there is to be one.
    ///
    /// # Errors
    /// When the address cannot be bound or the certificate not be used; says which and what to do.
    pub fn bind(address: SocketAddr, config: &HttpConfig) -> Result<HttpDoor, HttpError> {
        let bind = || {
            let tcp = StdListener::bind(address)?;
            // Once more, for the longer queue.
            rustix::net::listen(&tcp, BACKLOG)?;
            tcp.set_nonblocking(true)?;
            let address = tcp.local_addr()?;
            Ok((tcp, address))
        };
        let (tcp, address) = bind().map_err(|source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => HttpError::InUse { address },
            _ => HttpError::Bind { address, source },
        })?;
        let tls = match &config.tls {
            Some(files) => {
                let (sender, now) = watch::channel(tls::load(files)?);
                Some((files.clone(), sender, now))
            }
            None => None,
        };
        Ok(HttpDoor { tcp, address, tls })
    }

    /// The bound address, with the port that was chosen if it was asked for as 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Answers on a thread of its own until `shutdown`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn(self, state: HttpState, shutdown: CancellationToken) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("understudy-http".to_owned());
        thread.spawn(move || {
            // Without a door nobody could tell where to write: better no daemon than one that hides.
            let served = runtime.block_on(self.serve(state, shutdown));
            served.expect("a bound listener can be given to its runtime");
        })?;
        Ok(())
    }

    /// Answers until `shutdown`; open connections are dropped then.
    ///
    /// # Errors
    /// When the listener cannot be given to the runtime.
    pub async fn serve(self, state: HttpState, shutdown: CancellationToken) -> io::Result<()> {
        self.serve_at_most(CONNECTIONS_MAX, state, shutdown).await
    }

    async fn serve_at_most(
        self,
        connections_max: usize,
        state: HttpState,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let tcp = TcpListener::from_std(self.tcp)?;
        let tls = self.tls.map(|(files, sender, now)| {
            tokio::spawn(tls::follow(files, sender, shutdown.clone()));
            now
        });
        let scheme = if tls.is_some() { "https" } else { "http" };
        let connections = Connections::new(connections_max);
        let asked = Arc::new(Asked { state, scheme, connections: connections.clone() });
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                accepted = tcp.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    // Out of descriptors, most likely: asking at once would only burn the processor.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Dropped, the stream is closed at once.
            let Some(place) = connections.admit() else { continue };
            let (asked, shutdown) = (asked.clone(), shutdown.clone());
            let tls = tls.as_ref().map(|tls| tls.borrow().clone());
            tokio::spawn(async move {
                let place = Arc::new(place);
                let served = open(stream, peer.ip(), tls, asked, place.clone());
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = place.taken() => tracing::debug!(%peer, "idle connection closed for another"),
                    served = tokio::time::timeout(CONNECTION_TIMEOUT, served) => {
                        if let Ok(Err(error)) = served {
                            tracing::debug!(%peer, error, "connection ended");
                        }
                    }
                }
            });
        }
    }
}

/// What every request is answered from.
struct Asked {
    state: HttpState,
    scheme: &'static str,
    connections: Connections,
}

async fn open(
    stream: TcpStream,
    peer: IpAddr,
    tls: Option<Arc<rustls::ServerConfig>>,
    asked: Arc<Asked>,
    place: Arc<Place>,
) -> Result<(), String> {
    // An answer is one small packet; waiting for more of it would only delay a health check.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else { return serve_one(stream, peer, asked, place).await };
    let handshake = TlsAcceptor::from(tls).accept(stream);
    let opened = tokio::time::timeout(REQUEST_READ_TIMEOUT, handshake).await;
    let stream = opened.map_err(|_| "no TLS handshake in time".to_owned())?;
    serve_one(stream.map_err(|error| error.to_string())?, peer, asked, place).await
}

async fn serve_one<S>(
    stream: S,
    peer: IpAddr,
    asked: Arc<Asked>,
    place: Arc<Place>,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        place.answering();
        if answer::finds_servers(request.uri().path()) {
            asked.state.health_checkers.note(peer, Instant::now());
        }
        let answer = respond(&asked, &request);
        place.answered();
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_READ_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(|error| error.to_string())
}

fn respond(asked: &Asked, request: &Request<Incoming>) -> Response<Body> {
    let Asked { state, scheme, connections } = asked;
    let snapshot = state.status.borrow().clone();
    let now = state.clock.now();
    let since = |at: &AtomicU64| now.since(BootInstant(at.load(Ordering::Acquire)));
    let facts = Facts {
        status: &snapshot,
        writability: (state.writability)(),
        // Whichever of the two stands still: what is told then is of the past.
        age: since(&state.last_tick).max(since(&state.last_publish)),
        scheme,
    };
    let (method, uri) = (request.method(), request.uri());
    let Answer { code, content } = match *method {
        // A HEAD's body is left out by hyper, with the length of the GET's.
        Method::GET | Method::HEAD | Method::OPTIONS => {
            answer::answer(uri.path(), uri.query(), &facts)
        }
        _ => answer::refuse(uri.path(), &facts),
    };
    let (content_type, body) = match content {
        _ if *method == Method::OPTIONS => ("text/plain", String::new()),
        Content::Json(json) => ("application/json", json),
        Content::File(file) => (file.content_type, file.text.to_owned()),
        Content::Metrics => {
            if facts.is_stale() {
                metrics::set_cluster(&facts.present());
            }
            metrics::set_writable(facts.writability.writable);
            metrics::set_http(connections.counts());
            state.metrics.run_upkeep();
            let mut text = state.metrics.render();
            if state.patroni_metrics {
                text.push_str(&patroni::metrics(&facts));
            }
            ("text/plain; version=0.0.4; charset=utf-8", text)
        }
    };
    Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::CACHE_CONTROL, "no-store")
        .header(header::ALLOW, "GET, HEAD, OPTIONS")
        .header(header::CONTENT_SECURITY_POLICY, page::CONTENT_SECURITY_POLICY)
        .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
        .header(header::REFERRER_POLICY, "no-referrer")
        .body(Body::from(body))
        .expect("every header is a constant of visible ASCII")
}
