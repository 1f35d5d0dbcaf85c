//! The HTTP door: health answers for load balancers, status and metrics, in plain HTTP and read only.
//!
//! Everything is answered from memory: no query is made and nothing is waited for, so that an answer
//! comes even while the database hangs. `/primary` asks the permit cell at the moment of the request
//! and so cannot outlive the lease. Slow or too many clients are cut off and hold up nobody.

mod answer;
mod lag;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, Response, StatusCode, Uri, header};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use understudy_types::{BootInstant, Clock};

use crate::metrics;
use crate::status::{ClusterStatus, WritabilityFn};
use answer::{Answer, Content, Facts};

/// Connections at the same time; beyond it a new one is closed at once.
const CONNECTIONS_MAX: usize = 512;
/// How long a client may take to send a request, counted also while it is idle.
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
    /// When the loop that owns the core last ticked, as `BootInstant` nanoseconds.
    pub last_tick: Arc<AtomicU64>,
    /// The clock of `last_tick`.
    pub clock: Arc<dyn Clock>,
    /// What `/metrics` renders.
    pub metrics: PrometheusHandle,
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
}

/// A bound port; answers from the moment [`HttpDoor::serve`] runs.
#[derive(Debug)]
pub struct HttpDoor {
    tcp: TcpListener,
    address: SocketAddr,
}

impl HttpDoor {
    /// Binds the port. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be bound; says which and what to do.
    pub async fn bind(address: SocketAddr) -> Result<HttpDoor, HttpError> {
        let bind = async {
            let tcp = TcpListener::bind(address).await?;
            let address = tcp.local_addr()?;
            Ok::<_, io::Error>(HttpDoor { tcp, address })
        };
        bind.await.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => HttpError::InUse { address },
            _ => HttpError::Bind { address, source },
        })
    }

    /// The bound address, with the port that was chosen if it was asked for as 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown`; open connections are dropped then.
    pub async fn serve(self, state: HttpState, shutdown: CancellationToken) {
        let router = Router::new().fallback(handle).with_state(state);
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = self.tcp.accept() => accepted,
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
            let Ok(permit) = connections.clone().try_acquire_owned() else {
                tracing::warn!(%peer, "connection closed, too many of them");
                continue;
            };
            let (router, shutdown) = (router.clone(), shutdown.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    served = tokio::time::timeout(CONNECTION_TIMEOUT, serve_one(stream, router)) => {
                        if let Ok(Err(error)) = served {
                            tracing::debug!(%peer, %error, "connection ended");
                        }
                    }
                }
                drop(permit);
            });
        }
    }
}

async fn serve_one(stream: TcpStream, router: Router) -> Result<(), hyper::Error> {
    // An answer is one small packet; waiting for more of it would only delay a health check.
    let _ = stream.set_nodelay(true);
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_READ_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await
}

async fn handle(State(state): State<HttpState>, method: Method, uri: Uri) -> Response<Body> {
    if !matches!(method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return respond(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".into());
    }
    let snapshot = state.status.borrow().clone();
    let ticked = BootInstant(state.last_tick.load(Ordering::Acquire));
    let facts = Facts {
        status: &snapshot,
        writability: (state.writability)(),
        tick_age: state.clock.now().since(ticked),
    };
    let Answer { code, content } = answer::answer(uri.path(), uri.query(), &facts);
    // A HEAD's body is left out by hyper, with the length of the GET's.
    let content = if method == Method::OPTIONS { Content::Nothing } else { content };
    match content {
        Content::Json(json) => respond(code, "application/json", json),
        Content::Metrics => {
            metrics::set_writable(facts.writability.writable);
            state.metrics.run_upkeep();
            respond(code, "text/plain; version=0.0.4; charset=utf-8", state.metrics.render())
        }
        Content::Nothing => respond(code, "text/plain", String::new()),
    }
}

fn respond(code: StatusCode, content_type: &str, body: String) -> Response<Body> {
    Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::CACHE_CONTROL, "no-store")
        .header(header::ALLOW, "GET, HEAD, OPTIONS")
        .body(Body::from(body))
        .expect("every header is a constant of visible ASCII")
}
