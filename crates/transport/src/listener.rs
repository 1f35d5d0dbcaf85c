//! The server's side: accepts TCP, proves who is there, and hands on only what is proven.
//!
//! Each handshake has its own task and its own time limit, so that a peer that stalls holds up nobody
//! else. Garbage is logged at debug and dropped. At either bound a new connection is closed at once:
//! its peer tries again, and what is established goes on undisturbed.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::tcp::configure_tcp;
use crate::tls::{Peer, TlsError, TlsIdentity, explain};

/// The bounds of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// Handshakes at the same time.
    pub handshakes_max: usize,
    /// Established connections at the same time.
    pub connections_max: usize,
    /// How long the kernel keeps unacknowledged data (`TCP_USER_TIMEOUT`).
    pub tcp_user_timeout: Duration,
}

impl Default for ListenOptions {
    fn default() -> ListenOptions {
        ListenOptions {
            handshake_timeout: Duration::from_secs(5),
            handshakes_max: 128,
            connections_max: 512,
            tcp_user_timeout: Duration::from_secs(10),
        }
    }
}

/// Nobody can be accepted.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody has the port.
    #[error(
        "listen on {address}: the port is in use; stop the other process (`ss -ltnp` shows it) \
         or choose another address in [listen]"
    )]
    InUse {
        /// Where.
        address: SocketAddr,
    },
    /// The address is not this machine's, or the port needs a privilege.
    #[error("listen on {address}: check that the address is this machine's")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Our own identity does not do.
    #[error("prepare TLS for listening")]
    Tls(#[from] TlsError),
}

/// A bound port; accepts from the moment [`Listener::incoming`] is called.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    address: SocketAddr,
    gate: Gate,
}

/// What each handshake task needs.
#[derive(Clone)]
struct Gate {
    identity: TlsIdentity,
    options: ListenOptions,
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Listener {
    /// Binds the port. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be bound; says which and what to do.
    pub async fn bind(
        address: SocketAddr,
        identity: &TlsIdentity,
        options: ListenOptions,
    ) -> Result<Listener, ListenError> {
        // What cannot be served is said now, and not at the first handshake.
        identity.proof().server_config()?;
        let bind = async {
            let tcp = TcpListener::bind(address).await?;
            let bound = tcp.local_addr()?;
            Ok::<_, io::Error>((tcp, bound))
        };
        let (tcp, bound) = bind.await.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::InUse { address },
            _ => ListenError::Bind { address, source },
        })?;
        let gate = Gate {
            identity: identity.clone(),
            handshakes: Arc::new(Semaphore::new(options.handshakes_max)),
            connections: Arc::new(Semaphore::new(options.connections_max)),
            options,
        };
        Ok(Listener { tcp, address: bound, gate })
    }

    /// Where it listens, with the port that was really taken.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Begins to accept, in a task that ends when the stream is dropped.
    pub fn incoming(self) -> Incoming {
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(accept_loop(self.tcp, self.gate, sender));
        Incoming { receiver }
    }
}

/// Proven connections, for `tonic::transport::Server::serve_with_incoming_shutdown`.
#[derive(Debug)]
pub struct Incoming {
    receiver: mpsc::Receiver<PeerStream>,
}

impl tokio_stream::Stream for Incoming {
    type Item = io::Result<PeerStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(cx).map(|stream| stream.map(Ok))
    }
}

async fn accept_loop(tcp: TcpListener, gate: Gate, sender: mpsc::Sender<PeerStream>) {
    loop {
        let accepted = tokio::select! {
            () = sender.closed() => return,
            accepted = tcp.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                // Out of descriptors, most likely: asking again at once would only burn the processor.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = gate.handshakes.clone().try_acquire_owned() else {
            tracing::warn!(%address, "connection closed, too many handshakes at once");
            continue;
        };
        let (gate, sender) = (gate.clone(), sender.clone());
        tokio::spawn(async move {
            let handshake = gate.handshake(stream, address);
            let finished = tokio::time::timeout(gate.options.handshake_timeout, handshake).await;
            drop(permit);
            match finished {
                // At the channel's bound this waits for the server; a closed server closes it.
                Ok(Ok(stream)) => drop(sender.send(stream).await),
                Ok(Err(error)) => {
                    tracing::debug!(%address, error = explain(&error), "handshake refused")
                }
                Err(_) => tracing::debug!(%address, "handshake timed out"),
            }
        });
    }
}

impl Gate {
    async fn handshake(&self, tcp: TcpStream, address: SocketAddr) -> io::Result<PeerStream> {
        configure_tcp(&tcp, self.options.tcp_user_timeout)?;
        let config = self.identity.proof().server_config().map_err(io::Error::other)?;
        let tls = TlsAcceptor::from(config).accept(tcp).await?;
        let certificate = self
            .identity
            .read_peer(tls.get_ref().1.peer_certificates())
            .map_err(io::Error::other)?;
        let permit = self.connections.clone().try_acquire_owned().map_err(|_| {
            tracing::warn!(%address, "connection closed, too many of them");
            io::Error::other("too many connections")
        })?;
        let (identity, not_after) = (certificate.identity, certificate.not_after);
        Ok(PeerStream { tls, peer: Peer { identity, address, not_after }, _permit: permit })
    }
}

/// An encrypted connection with a known peer.
#[derive(Debug)]
pub struct PeerStream {
    tls: TlsStream<TcpStream>,
    peer: Peer,
    _permit: OwnedSemaphorePermit,
}

impl PeerStream {
    /// Whom it is with.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Connected for PeerStream {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// A gRPC server with windows for bulk, and keepalive that notices a peer whose machine vanished.
pub fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(2)))
        .http2_keepalive_timeout(Some(Duration::from_secs(3)))
        .initial_stream_window_size(16 << 20)
        .initial_connection_window_size(32 << 20)
}
