//! The client's side: a gRPC channel to one named node.
//!
//! A channel connects when it is first used and again after it broke; holding one to a node that is
//! down costs nothing. It has one TCP connection, so whoever must not wait behind bulk data takes a
//! channel of its own. It never retries a call: that is for who knows whether it may be repeated.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use understudy_types::NodeName;

use crate::tcp::configure_tcp;
use crate::tls::{TlsError, TlsIdentity, explain};

/// How one purpose uses its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelOptions {
    /// Name resolution, TCP and TLS together.
    pub connect_timeout: Duration,
    /// Silence after which HTTP/2 asks whether the peer is alive.
    pub keepalive_interval: Duration,
    /// How long the answer may take before the connection counts as broken.
    pub keepalive_timeout: Duration,
    /// Flow control window of a stream, in bytes.
    pub stream_window_bytes: u32,
    /// Flow control window of the connection, in bytes.
    pub connection_window_bytes: u32,
    /// The longest HTTP/2 frame that the peer may send, in bytes; 16 KiB at least.
    pub frame_bytes_max: u32,
    /// How long the kernel keeps unacknowledged data before it gives up (`TCP_USER_TIMEOUT`).
    pub tcp_user_timeout: Duration,
}

impl ChannelOptions {
    /// Small messages that must notice a dead peer at once: consensus. TCP and TLS take two round
    /// trips before the first call, so a line of half a second must fit into the connecting twice.
    pub fn consensus() -> ChannelOptions {
        ChannelOptions {
            connect_timeout: Duration::from_millis(1250),
            keepalive_interval: Duration::from_secs(1),
            keepalive_timeout: Duration::from_secs(1),
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 2 << 20,
            frame_bytes_max: 16 << 10,
            tcp_user_timeout: Duration::from_secs(2),
        }
    }

    /// Bulk with long streams: WAL, tunnels. Windows cover 100 ms at more than 1 Gbit/s.
    pub fn bulk() -> ChannelOptions {
        ChannelOptions {
            connect_timeout: Duration::from_secs(2),
            keepalive_interval: Duration::from_secs(2),
            keepalive_timeout: Duration::from_secs(3),
            stream_window_bytes: 16 << 20,
            connection_window_bytes: 32 << 20,
            // Each frame wakes whoever reads: a walsender's whole message, 128 KiB of WAL, at a time.
            frame_bytes_max: 256 << 10,
            tcp_user_timeout: Duration::from_secs(5),
        }
    }

    /// People and what is done for them.
    pub fn admin() -> ChannelOptions {
        ChannelOptions {
            connect_timeout: Duration::from_secs(2),
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(5),
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 2 << 20,
            frame_bytes_max: 16 << 10,
            tcp_user_timeout: Duration::from_secs(10),
        }
    }
}

/// A channel to the node `expect` at `address` (`host:port`); returns at once, connects when used.
///
/// A call on it fails with `Unavailable` and the whole reason in the message while the node cannot
/// be reached or turns out to be another one.
///
/// # Errors
/// When TLS cannot be configured. Must be called within a tokio runtime.
pub fn connect(
    address: &str,
    expect: &NodeName,
    identity: &TlsIdentity,
    options: &ChannelOptions,
) -> Result<Channel, TlsError> {
    Ok(dialer(address, expect, identity, options)?.channel())
}

/// Makes channels to one node, each with a connection of its own.
#[derive(Clone)]
pub struct Dialer {
    endpoint: Endpoint,
    connector: NodeConnector,
}

impl Dialer {
    /// Another channel; its work is done on the tokio runtime that this is called within.
    pub fn channel(&self) -> Channel {
        self.endpoint.connect_with_connector_lazy(self.connector.clone())
    }
}

/// What makes channels as [`connect`] does.
///
/// # Errors
/// When TLS cannot be configured.
pub fn dialer(
    address: &str,
    expect: &NodeName,
    identity: &TlsIdentity,
    options: &ChannelOptions,
) -> Result<Dialer, TlsError> {
    let (endpoint, connector) = prepare(address, expect, identity, options)?;
    Ok(Dialer { endpoint, connector })
}

/// As [`connect`], but the connection stands when it returns; for tools that try several nodes.
///
/// # Errors
/// When the node cannot be reached or is another one. That it refuses *us* shows at the first call,
/// as TLS 1.3 has it.
pub async fn connect_now(
    address: &str,
    expect: &NodeName,
    identity: &TlsIdentity,
    options: &ChannelOptions,
) -> Result<Channel, ConnectError> {
    let (endpoint, connector) = prepare(address, expect, identity, options)?;
    endpoint.connect_with_connector(connector).await.map_err(|error| {
        // tonic wraps the connector's error, whose text says everything, into its own.
        let mut inner: &dyn std::error::Error = &error;
        while let Some(source) = inner.source() {
            inner = source;
        }
        ConnectError::Unreachable { reason: inner.to_string() }
    })
}

/// No connection to a node.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not reachable, or not the node that was meant; the text names node and address.
    #[error("{reason}")]
    Unreachable {
        /// The whole story.
        reason: String,
    },
    /// Our own identity does not do.
    #[error("prepare TLS for connecting")]
    Tls(#[from] TlsError),
}

fn prepare(
    address: &str,
    expect: &NodeName,
    identity: &TlsIdentity,
    options: &ChannelOptions,
) -> Result<(Endpoint, NodeConnector), TlsError> {
    // What cannot be used is said now, and not at the first call.
    identity.proof().client_config(expect)?;
    let connector = NodeConnector {
        address: Arc::from(address),
        expect: expect.clone(),
        identity: identity.clone(),
        connect_timeout: options.connect_timeout,
        tcp_user_timeout: options.tcp_user_timeout,
    };
    // The URI only fills the :authority header: which node, of which incarnation of the cluster. Its
    // scheme says http because tonic must not add TLS of its own: the connector's stream is encrypted
    // already.
    let authority = crate::door::authority(expect, identity.incarnation());
    let uri: Uri = format!("http://{authority}")
        .parse()
        .expect("a node's name is a DNS label, and so is the rest");
    let endpoint = Endpoint::from(uri)
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(options.stream_window_bytes)
        .initial_connection_window_size(options.connection_window_bytes)
        .max_frame_size(options.frame_bytes_max);
    Ok((endpoint, connector))
}

/// A connection could not be made. The whole chain is in the text, because all that a gRPC status
/// keeps of it is this text.
#[derive(Debug, thiserror::Error)]
#[error("connect to node {expect} at {address}: {reason}")]
struct ConnectFailed {
    expect: NodeName,
    address: Arc<str>,
    reason: String,
}

#[derive(Clone)]
struct NodeConnector {
    address: Arc<str>,
    expect: NodeName,
    identity: TlsIdentity,
    connect_timeout: Duration,
    tcp_user_timeout: Duration,
}

impl NodeConnector {
    async fn connect(self) -> Result<TokioIo<TlsStream<TcpStream>>, ConnectFailed> {
        let attempt = async {
            let tcp = connect_tcp(&self.address).await?;
            configure_tcp(&tcp, self.tcp_user_timeout)?;
            let name = ServerName::try_from("understudy").expect("a valid name, sent to nobody");
            let config = self.identity.proof().client_config(&self.expect);
            let config = config.map_err(io::Error::other)?;
            TlsConnector::from(config).connect(name, tcp).await
        };
        let reason = match tokio::time::timeout(self.connect_timeout, attempt).await {
            Ok(Ok(stream)) => return Ok(TokioIo::new(stream)),
            Ok(Err(error)) => explain(&error),
            Err(_) => format!("no connection within {:?}", self.connect_timeout),
        };
        tracing::debug!(node = %self.expect, address = %self.address, %reason, "connect failed");
        Err(ConnectFailed { expect: self.expect, address: self.address, reason })
    }
}

impl tower::Service<Uri> for NodeConnector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.connect().await.map_err(Into::into) })
    }
}

/// How long a first packet is waited for before another connection is tried beside it.
const ATTEMPT_PACE: Duration = Duration::from_millis(250);

/// A TCP connection to `address`; the first that stands of those that were begun.
///
/// The kernel repeats a lost first packet after a second (RFC 6298, 2.1), which is most of the time
/// that we have; whoever begins anew beside it has another throw each [`ATTEMPT_PACE`]. A name is
/// looked up once, and its addresses are tried in turn.
///
/// # Errors
/// The last one, when every address was tried and nothing is under way any more.
async fn connect_tcp(address: &str) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
    let mut turns = addresses.iter().copied().cycle();
    let mut untried = addresses.len();
    let mut begun = FuturesUnordered::new();
    let mut pace = tokio::time::interval(ATTEMPT_PACE);
    loop {
        tokio::select! {
            _ = pace.tick() => {}
            Some(connected) = begun.next() => match connected {
                Ok(tcp) => return Ok(tcp),
                Err(_) if untried > 0 => pace.reset(),
                Err(error) if begun.is_empty() => return Err(error),
                Err(_) => continue,
            },
        }
        let Some(next) = turns.next() else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        };
        untried = untried.saturating_sub(1);
        begun.push(TcpStream::connect(next));
    }
}
