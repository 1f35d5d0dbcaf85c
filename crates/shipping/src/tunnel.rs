//! A byte pipe to the other node's PostgreSQL, for `pg_basebackup` and `pg_rewind`.
//!
//! One side listens on a Unix socket and carries each connection in one gRPC call; the other side
//! reads the startup packet, admits only the roles that it is told, and pipes to its own PostgreSQL.
//! It decides who may pass and nothing else: the bytes are not read after the startup packet.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use understudy_proto::v1::TunnelChunk;
use understudy_proto::v1::wal_client::WalClient;
use understudy_wal::protocol::{
    BackendMessage, ErrorFields, ProtocolError, StartupRequest, encode_startup, take_startup,
};

use crate::relay::socket::{self, SocketError};

/// Bytes in one chunk at most; with the chunks below the buffer of one direction.
const CHUNK_BYTES_MAX: usize = 64 * 1024;
/// Chunks that wait for the other side at most.
const CHUNKS_QUEUED_MAX: usize = 8;
const STARTUP_TIMEOUT: Duration = Duration::from_secs(10);
/// A client asks for TLS and GSSAPI at most once each before it goes on.
const ENCRYPTION_REQUESTS_MAX: usize = 2;

/// A tunnel broke.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// Reading or writing a socket failed.
    #[error("{action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The other node ended the call with an error.
    #[error("carry bytes to the other node: {} ({:?})", .0.message(), .0.code())]
    Call(Box<Status>),
    /// The client's opening is not PostgreSQL's protocol.
    #[error("read the client's startup packet")]
    Startup(#[from] ProtocolError),
    /// The client left, or was too slow, before it said who it is.
    #[error("read the client's startup packet: the client left or took too long")]
    NoStartup,
    /// The client is not let through.
    #[error("refuse the client: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
}

/// The near end: a Unix socket whose connections are carried to the other node.
pub struct TunnelListener {
    listener: UnixListener,
    allowed_uids: Vec<u32>,
    channel: Channel,
    clients: Arc<Semaphore>,
    _socket_file: socket::SocketFile,
}

impl TunnelListener {
    /// Binds `<dir>/.s.PGSQL.<port>`. Needs a tokio runtime.
    ///
    /// Processes of `allowed_uids` are let in, `clients_max` at a time; `channel` leads to the node
    /// whose PostgreSQL is meant.
    ///
    /// # Errors
    /// When the path is too long, somebody listens there already, or it cannot be made.
    pub fn bind(
        dir: &Path,
        port: u16,
        allowed_uids: Vec<u32>,
        clients_max: usize,
        channel: Channel,
    ) -> Result<TunnelListener, SocketError> {
        let (listener, socket_file) = socket::bind(dir, port)?;
        let clients = Arc::new(Semaphore::new(clients_max));
        Ok(TunnelListener { listener, allowed_uids, channel, clients, _socket_file: socket_file })
    }

    /// Carries connections until `shutdown`, which ends those that are open too.
    pub async fn run(self, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _address)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "tunnel cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&self.clients).try_acquire_owned() else {
                refuse(&stream, "53300", "too many connections through the tunnel already");
                continue;
            };
            if let Err(reason) = socket::check_peer(&stream, &self.allowed_uids) {
                tracing::warn!(reason, "tunnel refuses a connection");
                refuse(&stream, "28000", &reason);
                continue;
            }
            let client = WalClient::new(self.channel.clone());
            let shutdown = shutdown.clone();
            tasks.spawn(async move {
                let carried = tokio::select! {
                    () = shutdown.cancelled() => Ok(()),
                    carried = carry(client, stream) => carried,
                };
                if let Err(error) = carried {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "tunnel broke");
                }
                drop(permit);
            });
        }
        tasks.close();
        tasks.wait().await;
    }
}

fn refuse(stream: &UnixStream, sqlstate: &str, reason: &str) {
    // A fresh socket has room for it; a client that is gone already does not need it.
    let _ = stream.try_write(&fatal(sqlstate, reason));
}

fn fatal(sqlstate: &str, reason: &str) -> Bytes {
    let mut out = BytesMut::new();
    let report = ErrorFields::new("FATAL", sqlstate, reason);
    BackendMessage::ErrorResponse(report).encode(&mut out);
    out.freeze()
}

async fn carry(mut client: WalClient<Channel>, stream: UnixStream) -> Result<(), TunnelError> {
    let (reader, mut writer) = stream.into_split();
    let (chunks, outbound) = mpsc::channel(CHUNKS_QUEUED_MAX);
    let call = async {
        let inbound = match client.tunnel(ReceiverStream::new(outbound)).await {
            Ok(response) => response.into_inner(),
            Err(status) => {
                let reason = format!("the other node cannot be reached: {}", status.message());
                let _ = writer.write_all(&fatal("08006", &reason)).await;
                return Err(TunnelError::Call(Box::new(status)));
            }
        };
        drain(inbound, &mut writer).await
    };
    tokio::pin!(call);
    // The client's end of file ends only the way out; the way back ends the connection.
    let out = async {
        let result = pump(reader, |chunk| {
            let chunks = chunks.clone();
            async move { chunks.send(chunk).await.is_ok() }
        })
        .await;
        drop(chunks);
        result
    };
    tokio::pin!(out);
    tokio::select! {
        result = &mut call => return result,
        sent = &mut out => sent?,
    }
    call.await
}

/// Reads to the end of file, handing on chunks; `send` says whether anybody still wants them.
async fn pump<F: Future<Output = bool>>(
    mut reader: impl AsyncRead + Unpin,
    mut send: impl FnMut(TunnelChunk) -> F,
) -> Result<(), TunnelError> {
    let error = |source| TunnelError::Io { action: "read from the socket", source };
    loop {
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES_MAX);
        let read = reader.read_buf(&mut buffer).await.map_err(error)?;
        if read == 0 || !send(TunnelChunk { data: buffer.freeze() }).await {
            return Ok(());
        }
    }
}

/// Writes what comes in until it ends, then tells the socket's other end that there is no more.
async fn drain(
    mut inbound: Streaming<TunnelChunk>,
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<(), TunnelError> {
    let error = |source| TunnelError::Io { action: "write to the socket", source };
    while let Some(chunk) = inbound.next().await {
        let chunk = chunk.map_err(|status| TunnelError::Call(Box::new(status)))?;
        writer.write_all(&chunk.data).await.map_err(error)?;
    }
    match writer.shutdown().await {
        Err(e) if e.kind() != std::io::ErrorKind::NotConnected => Err(error(e)),
        _ => Ok(()),
    }
}

/// The far end: which PostgreSQL the tunnel leads to, and for whom.
#[derive(Debug, Clone)]
pub struct TunnelTarget {
    /// The directory of the local PostgreSQL's Unix socket.
    pub socket_dir: PathBuf,
    /// Its port.
    pub port: u16,
    /// The roles that are let through, such as `understudy_rewind`.
    pub users: Vec<String>,
}

/// Serves one `Wal.Tunnel` call, whose caller was authenticated and authorised before.
///
/// The task ends when both directions have ended or the call is dropped.
pub fn serve_tunnel(
    target: TunnelTarget,
    inbound: Streaming<TunnelChunk>,
) -> impl Stream<Item = Result<TunnelChunk, Status>> + Send + 'static {
    let (answers, outbound) = mpsc::channel(CHUNKS_QUEUED_MAX);
    tokio::spawn(async move {
        // The caller went away: nothing that the socket says has a reader any more.
        let gone = answers.clone();
        let served = tokio::select! {
            () = gone.closed() => return,
            served = serve(&target, inbound, &answers) => served,
        };
        if let Err(error) = served {
            tracing::warn!(error = &error as &dyn std::error::Error, "tunnel ended");
            if let TunnelError::Io { .. } = error {
                let _ = answers.send(Err(Status::unavailable(error.to_string()))).await;
            }
        }
    });
    ReceiverStream::new(outbound)
}

type Answers = mpsc::Sender<Result<TunnelChunk, Status>>;

async fn answer(answers: &Answers, data: &[u8]) {
    // Nobody to tell is noticed by `closed`.
    let _ = answers.send(Ok(TunnelChunk { data: Bytes::copy_from_slice(data) })).await;
}

async fn serve(
    target: &TunnelTarget,
    mut inbound: Streaming<TunnelChunk>,
    answers: &Answers,
) -> Result<(), TunnelError> {
    let opening = admit(target, &mut inbound, answers);
    let opening = match tokio::time::timeout(STARTUP_TIMEOUT, opening).await {
        Err(_) => return Err(TunnelError::NoStartup),
        Ok(Err(error)) => {
            if let TunnelError::Refused { reason } = &error {
                answer(answers, &fatal("28000", reason)).await;
            }
            return Err(error);
        }
        Ok(Ok(opening)) => opening,
    };
    let path = target.socket_dir.join(format!(".s.PGSQL.{}", target.port));
    let stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(source) => {
            answer(answers, &fatal("08006", "PostgreSQL at the far end does not answer")).await;
            tracing::warn!(path = %path.display(), %source, "tunnel cannot reach PostgreSQL");
            return Ok(());
        }
    };
    let (reader, mut writer) = stream.into_split();
    let error = |source| TunnelError::Io { action: "write to PostgreSQL", source };
    writer.write_all(&opening).await.map_err(error)?;
    let back = pump(reader, |chunk| async move { answers.send(Ok(chunk)).await.is_ok() });
    let forth = drain(inbound, &mut writer);
    tokio::pin!(back, forth);
    // PostgreSQL's end of file is the end; the client's only closes the way there.
    tokio::select! {
        result = &mut back => return result,
        result = &mut forth => match result {
            // PostgreSQL has closed its end: what it said last is still on its way.
            Err(TunnelError::Io { .. }) | Ok(()) => {}
            Err(error) => return Err(error),
        },
    }
    back.await
}

/// Reads until it is known who comes; returns everything that PostgreSQL has to be told.
async fn admit(
    target: &TunnelTarget,
    inbound: &mut Streaming<TunnelChunk>,
    answers: &Answers,
) -> Result<BytesMut, TunnelError> {
    let mut buffer = BytesMut::new();
    let mut encryption_requests = 0;
    let refused = |reason: &str| Err(TunnelError::Refused { reason: reason.to_owned() });
    loop {
        let Some(request) = take_startup(&mut buffer)? else {
            match inbound.next().await {
                None => return Err(TunnelError::NoStartup),
                Some(Err(status)) => return Err(TunnelError::Call(Box::new(status))),
                Some(Ok(chunk)) if chunk.data.len() > CHUNK_BYTES_MAX => {
                    return refused("a chunk is too large");
                }
                Some(Ok(chunk)) => buffer.extend_from_slice(&chunk.data),
            }
            continue;
        };
        match &request {
            StartupRequest::Ssl | StartupRequest::GssEncryption => {
                encryption_requests += 1;
                if encryption_requests > ENCRYPTION_REQUESTS_MAX {
                    return refused("too many encryption requests");
                }
                answer(answers, b"N").await; // the tunnel itself is encrypted
            }
            StartupRequest::Cancel { .. } => {
                return refused("cancel requests do not pass the tunnel");
            }
            StartupRequest::Startup(startup) => {
                let user = startup.user();
                if !target.users.iter().any(|admitted| admitted == user) {
                    return refused(&format!("role \"{user}\" may not pass the tunnel"));
                }
                let mut opening = BytesMut::new();
                encode_startup(&request, &mut opening);
                opening.unsplit(buffer);
                return Ok(opening);
            }
        }
    }
}
