//! A running physical stream: WAL and keepalives in, status and feedback out.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::net::SendFlags;
use tokio::io::Interest;
use understudy_types::Lsn;
use understudy_wal::protocol::{
    BackendMessage, FrontendMessage, HotStandbyFeedback, StandbyMessage, StandbyStatus,
    WalSenderMessage, encode_standby_status,
};

use super::client::{Wire, next_message, next_timeline, unexpected};
use super::{NextTimeline, ReplicationClient, ReplicationError, pg_now};

/// What a stream brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicationEvent {
    /// A run of WAL.
    WalData {
        /// The position of its first byte.
        start_lsn: Lsn,
        /// The end of flushed WAL on the server.
        server_end_lsn: Lsn,
        /// The bytes; they share the read buffer.
        data: Bytes,
    },
    /// A sign of life.
    Keepalive {
        /// The end of flushed WAL on the server (on a caught-up stream: of what was sent).
        server_end_lsn: Lsn,
        /// It wants a status at once, or it will take the connection for dead.
        reply_requested: bool,
    },
    /// The timeline has ended and everything on it was delivered; `None` when the server just stopped.
    TimelineEnd {
        /// What follows it.
        next: Option<NextTimeline>,
    },
}

#[derive(Debug)]
enum Phase {
    Streaming,
    /// The server is done; our CopyDone may still have to go out, and results are coming.
    Ending {
        done_queued: bool,
        rows: Vec<Vec<Option<Bytes>>>,
    },
    Ended(Option<NextTimeline>),
}

/// The reading end of a stream.
#[derive(Debug)]
pub struct WalStream {
    wire: Arc<Wire>,
    buffer: BytesMut,
    kept: (u32, Duration),
    parameters: Vec<(String, String)>,
    phase: Phase,
}

const ACTION: &str = "stream WAL";

impl WalStream {
    pub(super) fn new(
        wire: Arc<Wire>,
        buffer: BytesMut,
        kept: (u32, Duration),
        parameters: Vec<(String, String)>,
    ) -> WalStream {
        WalStream { wire, buffer, kept, parameters, phase: Phase::Streaming }
    }

    /// The process id of the server's walsender, as in `pg_stat_replication.pid`.
    pub fn backend_pid(&self) -> u32 {
        self.kept.0
    }

    /// Waits for the next event; cancel-safe, without a time limit of its own.
    ///
    /// After `TimelineEnd` it gives the same again.
    ///
    /// # Errors
    /// When the connection fails or the server ends it; nothing more comes after an error.
    pub async fn recv(&mut self) -> Result<ReplicationEvent, ReplicationError> {
        loop {
            match &mut self.phase {
                Phase::Streaming => match self.next().await? {
                    BackendMessage::CopyData(body) => return event(body),
                    BackendMessage::CopyDone => {
                        self.phase = Phase::Ending { done_queued: false, rows: Vec::new() };
                    }
                    BackendMessage::NoticeResponse(_) | BackendMessage::ParameterStatus { .. } => {}
                    BackendMessage::ErrorResponse(report) => {
                        return Err(ReplicationError::Server { action: ACTION, report });
                    }
                    // Sent without CopyDone when the server shuts down.
                    BackendMessage::CommandComplete(_) => {
                        return Err(ReplicationError::Closed { action: ACTION });
                    }
                    other => return Err(unexpected(ACTION, &other)),
                },
                Phase::Ending { done_queued, .. } => {
                    if !*done_queued {
                        *done_queued = true;
                        let mut out = BytesMut::new();
                        FrontendMessage::CopyDone.encode(&mut out);
                        self.wire.lock().extend_from_slice(&out);
                    }
                    self.wire.flush().await?;
                    let message = self.next().await?;
                    self.end_with(message)?;
                }
                Phase::Ended(next) => return Ok(ReplicationEvent::TimelineEnd { next: *next }),
            }
        }
    }

    /// One step of the answer after CopyDone: maybe a row, two CommandCompletes, ReadyForQuery.
    fn end_with(&mut self, message: BackendMessage) -> Result<(), ReplicationError> {
        let Phase::Ending { rows, .. } = &mut self.phase else { return Ok(()) };
        match message {
            BackendMessage::DataRow(row) if rows.is_empty() => rows.push(row),
            BackendMessage::ReadyForQuery { .. } => {
                let next = if rows.is_empty() { None } else { Some(next_timeline(rows)?) };
                self.phase = Phase::Ended(next);
            }
            BackendMessage::RowDescription(_)
            | BackendMessage::CommandComplete(_)
            | BackendMessage::NoticeResponse(_)
            | BackendMessage::ParameterStatus { .. } => {}
            BackendMessage::ErrorResponse(report) => {
                return Err(ReplicationError::Server { action: ACTION, report });
            }
            other => return Err(unexpected(ACTION, &other)),
        }
        Ok(())
    }

    /// The connection for further commands, once `TimelineEnd` was received; else `None`, and the
    /// connection closes when its sender is dropped too.
    pub fn into_client(self) -> Option<ReplicationClient> {
        match self.phase {
            Phase::Ended(_) => {
                Some(ReplicationClient::resume(self.wire, self.buffer, self.kept, self.parameters))
            }
            Phase::Streaming | Phase::Ending { .. } => None,
        }
    }

    async fn next(&mut self) -> Result<BackendMessage, ReplicationError> {
        next_message(&self.wire.stream, &mut self.buffer, ACTION).await
    }
}

fn event(body: Bytes) -> Result<ReplicationEvent, ReplicationError> {
    let error = |source| ReplicationError::Protocol { action: ACTION, source };
    Ok(match WalSenderMessage::decode(body).map_err(error)? {
        WalSenderMessage::WalData { start_lsn, server_end_lsn, data, .. } => {
            ReplicationEvent::WalData { start_lsn, server_end_lsn, data }
        }
        WalSenderMessage::Keepalive { server_end_lsn, reply_requested, .. } => {
            ReplicationEvent::Keepalive { server_end_lsn, reply_requested }
        }
    })
}

/// What became of a message that was to be sent without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum TrySend {
    /// It is in the socket.
    Sent,
    /// A first part is in the socket, the rest is remembered and goes out before anything else.
    ///
    /// It counts as sent: the next attempt, or the stream's own ending, completes it.
    Partial,
    /// Nothing of it was written or kept.
    WouldBlock,
}

/// The writing end of a stream; clones write to the same connection.
#[derive(Debug, Clone)]
pub struct StatusSender {
    wire: Arc<Wire>,
}

impl StatusSender {
    pub(super) fn new(wire: Arc<Wire>) -> StatusSender {
        StatusSender { wire }
    }

    /// Tries to report positions with one non-blocking write; callable from any thread.
    ///
    /// # Errors
    /// When the connection is broken; the server has not got the message then, or will not act on it.
    pub fn try_send_status(
        &self,
        write_lsn: Lsn,
        flush_lsn: Lsn,
        apply_lsn: Lsn,
        reply_requested: bool,
    ) -> io::Result<TrySend> {
        let sent_at = pg_now();
        let status = StandbyStatus { write_lsn, flush_lsn, apply_lsn, sent_at, reply_requested };
        self.wire.try_send(&encode_standby_status(&status))
    }

    /// Ends the connection for both directions at once; what was not written yet never is.
    pub fn hang_up(&self) {
        // One that is broken already needs no end.
        let _ = rustix::net::shutdown(self.wire.stream.as_fd(), rustix::net::Shutdown::Both);
    }

    /// As [`StatusSender::try_send_status`], waiting for room in the socket.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn send_status(
        &self,
        write_lsn: Lsn,
        flush_lsn: Lsn,
        apply_lsn: Lsn,
        reply_requested: bool,
    ) -> Result<(), ReplicationError> {
        let sent_at = pg_now();
        let status = StandbyStatus { write_lsn, flush_lsn, apply_lsn, sent_at, reply_requested };
        self.send(&encode_standby_status(&status)).await
    }

    /// Reports which transactions a standby still needs.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn send_feedback(
        &self,
        feedback: HotStandbyFeedback,
    ) -> Result<(), ReplicationError> {
        let mut out = BytesMut::new();
        StandbyMessage::Feedback { sent_at: pg_now(), feedback }.encode(&mut out);
        self.send(&out).await
    }

    async fn send(&self, message: &[u8]) -> Result<(), ReplicationError> {
        let error = |source| ReplicationError::Io { action: "send to the walsender", source };
        loop {
            self.wire.stream.writable().await.map_err(error)?;
            let tried = self.wire.stream.try_io(Interest::WRITABLE, || {
                match self.wire.try_send(message)? {
                    TrySend::WouldBlock => Err(io::ErrorKind::WouldBlock.into()),
                    sent => Ok(sent),
                }
            });
            match tried {
                Ok(_) => return self.wire.flush().await,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(source) => return Err(error(source)),
            }
        }
    }
}

impl Wire {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        Mutex::lock(&self.unsent).unwrap_or_else(PoisonError::into_inner)
    }

    /// One non-blocking write to the socket itself: tokio's idea of its readiness may be stale, and
    /// the gate's decision must not wait for it.
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match rustix::net::send(self.stream.as_fd(), bytes, flags) {
                Err(rustix::io::Errno::INTR) => {}
                other => return other.map_err(io::Error::from),
            }
        }
    }

    /// Writes what is left over; true when nothing is left.
    fn write_unsent(&self, unsent: &mut Vec<u8>) -> io::Result<bool> {
        while !unsent.is_empty() {
            match self.write(unsent) {
                Ok(written) => drop(unsent.drain(..written)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    fn try_send(&self, message: &[u8]) -> io::Result<TrySend> {
        let mut unsent = self.lock();
        if !self.write_unsent(&mut unsent)? {
            return Ok(TrySend::WouldBlock);
        }
        match self.write(message) {
            Ok(written) if written == message.len() => Ok(TrySend::Sent),
            Ok(written) => {
                unsent.extend_from_slice(&message[written..]);
                Ok(TrySend::Partial)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(TrySend::WouldBlock),
            Err(e) => Err(e),
        }
    }

    /// Waits until nothing is left over.
    async fn flush(&self) -> Result<(), ReplicationError> {
        let error = |source| ReplicationError::Io { action: "send to the walsender", source };
        loop {
            if self.lock().is_empty() {
                return Ok(());
            }
            self.stream.writable().await.map_err(error)?;
            let tried = self.stream.try_io(Interest::WRITABLE, || {
                let done = self.write_unsent(&mut self.lock())?;
                if done { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
            });
            match tried {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(source) => return Err(error(source)),
            }
        }
    }
}
