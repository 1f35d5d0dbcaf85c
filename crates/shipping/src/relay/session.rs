//! One client of the relay: login, replication commands, refusals in PostgreSQL's own words.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::sync::CancellationToken;
use understudy_types::{Lsn, SegmentSize, SystemId, Timeline, TimelineHistory, WalSegment};
use understudy_wal::protocol::{
    Authentication, BackendMessage, Column, ErrorFields, FrontendMessage, MESSAGE_BYTES_MAX,
    OID_BYTEA, OID_INT4, OID_INT8, OID_TEXT, ProtocolError, ReplicationCommand, Startup,
    StartupRequest, take_frame, take_startup,
};

use super::Shared;
use super::sending::StreamEnd;
use crate::journal::JournalPositions;

const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// A client asks for TLS and GSSAPI at most once each before it goes on.
const ENCRYPTION_REQUESTS_MAX: usize = 2;

/// Why a session is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionEnd {
    /// The client left, or was too slow to log in.
    #[error("connection is over")]
    Gone,
    /// It is told why.
    #[error("refuse client: {}", .0.message())]
    Fatal(ErrorFields),
    /// Reading or writing failed.
    #[error("talk to client")]
    Io(#[from] std::io::Error),
    /// The client does not speak the protocol.
    #[error("read from client")]
    Protocol(#[from] ProtocolError),
}

pub(super) fn fatal(sqlstate: &str, message: impl Into<String>) -> SessionEnd {
    SessionEnd::Fatal(ErrorFields::new("FATAL", sqlstate, message))
}

/// Tells a client that it is not let in, without waiting for what it has to say.
pub(super) fn refuse(stream: UnixStream, sqlstate: &str, message: &str) {
    let mut out = BytesMut::new();
    let report = ErrorFields::new("FATAL", sqlstate, message);
    BackendMessage::ErrorResponse(report).encode(&mut out);
    // A fresh socket has room for it; a client that is gone already does not need it.
    let _ = stream.try_write(&out);
}

/// Serves one client to its end.
pub(super) async fn serve(
    shared: &Shared,
    stream: UnixStream,
    serial: u64,
    shutdown: CancellationToken,
) {
    let (reader, writer) = stream.into_split();
    let frames = Frames { reader, buffer: BytesMut::with_capacity(8192) };
    let name = String::new();
    let out = BytesMut::new();
    let mut session = Session { shared, frames, writer, out, name, serial, shutdown };
    let end = match session.run().await {
        Ok(()) => return,
        Err(end) => end,
    };
    let client = session.name.as_str();
    match &end {
        SessionEnd::Gone => tracing::debug!(client, "relay client left"),
        end => {
            let error = end as &dyn std::error::Error;
            tracing::info!(client, error, "relay session ended");
        }
    }
    let report = match end {
        SessionEnd::Fatal(report) => report,
        SessionEnd::Protocol(error) => ErrorFields::new("FATAL", "08P01", error.to_string()),
        SessionEnd::Gone | SessionEnd::Io(_) => return,
    };
    BackendMessage::ErrorResponse(report).encode(&mut session.out);
    // Best effort: a client that does not read is not waited for.
    let _ = tokio::time::timeout(Duration::from_secs(1), session.flush()).await;
}

/// Whole messages off the socket; cancel-safe.
pub(super) struct Frames {
    reader: OwnedReadHalf,
    buffer: BytesMut,
}

impl Frames {
    async fn fill(&mut self) -> Result<(), SessionEnd> {
        match self.reader.read_buf(&mut self.buffer).await? {
            0 => Err(SessionEnd::Gone),
            _ => Ok(()),
        }
    }

    pub(super) async fn next(&mut self) -> Result<FrontendMessage, SessionEnd> {
        loop {
            if let Some(frame) = take_frame(&mut self.buffer, MESSAGE_BYTES_MAX)? {
                return Ok(FrontendMessage::decode(frame)?);
            }
            self.fill().await?;
        }
    }

    async fn startup(&mut self) -> Result<StartupRequest, SessionEnd> {
        loop {
            if let Some(request) = take_startup(&mut self.buffer)? {
                return Ok(request);
            }
            self.fill().await?;
        }
    }
}

pub(super) struct Session<'a> {
    pub(super) shared: &'a Shared,
    pub(super) frames: Frames,
    pub(super) writer: OwnedWriteHalf,
    /// What is to be written; commands flush it before they wait for the client.
    pub(super) out: BytesMut,
    /// The client's application_name.
    pub(super) name: String,
    pub(super) serial: u64,
    pub(super) shutdown: CancellationToken,
}

impl Session<'_> {
    async fn run(&mut self) -> Result<(), SessionEnd> {
        let startup = tokio::time::timeout(LOGIN_TIMEOUT, self.login());
        let startup = startup.await.map_err(|_| SessionEnd::Gone)??;
        self.name = startup.parameter("application_name").unwrap_or_default().to_owned();
        self.welcome(&startup).await?;
        loop {
            self.put(BackendMessage::ReadyForQuery { status: b'I' });
            self.flush().await?;
            let message = tokio::select! {
                () = self.shutdown.cancelled() => return Err(shutting_down()),
                message = self.frames.next() => message?,
            };
            match message {
                FrontendMessage::Query(text) => self.command(&text).await?,
                FrontendMessage::Terminate => return Ok(()),
                FrontendMessage::Sync | FrontendMessage::Flush => {}
                // The rest of a stream that has ended on our side; PostgreSQL ignores it too.
                FrontendMessage::CopyData(_)
                | FrontendMessage::CopyDone
                | FrontendMessage::CopyFail(_) => {}
                FrontendMessage::Password(_) => {
                    return Err(fatal("08P01", "no password was asked for"));
                }
            }
        }
    }

    async fn login(&mut self) -> Result<Startup, SessionEnd> {
        for _ in 0..=ENCRYPTION_REQUESTS_MAX {
            match self.frames.startup().await? {
                StartupRequest::Ssl | StartupRequest::GssEncryption => {
                    self.writer.write_all(b"N").await?;
                }
                StartupRequest::Cancel { .. } => return Err(SessionEnd::Gone),
                StartupRequest::Startup(startup) => {
                    let asks = startup.parameter("replication").map(str::to_ascii_lowercase);
                    return match asks.as_deref() {
                        Some("true" | "on" | "yes" | "1") => Ok(startup),
                        Some("database") => {
                            let why = "logical replication is not served by the WAL relay";
                            Err(fatal("0A000", why))
                        }
                        _ => Err(fatal("0A000", "this is a WAL relay and not a database")),
                    };
                }
            }
        }
        Err(fatal("08P01", "too many encryption requests"))
    }

    async fn welcome(&mut self, startup: &Startup) -> Result<(), SessionEnd> {
        self.identity()?;
        let version = startup.protocol_version;
        let unknown: Vec<String> = (startup.parameters.iter())
            .filter(|(name, _)| name.starts_with("_pq_."))
            .map(|(name, _)| name.clone())
            .collect();
        if version & 0xFFFF != 0 || !unknown.is_empty() {
            let newest_minor = 0;
            self.put(BackendMessage::NegotiateProtocolVersion { newest_minor, options: unknown });
        }
        self.put(BackendMessage::Authentication(Authentication::Ok));
        let server_version = self.shared.options.server_version.clone();
        let settings = [
            ("server_version", server_version.as_str()),
            ("server_encoding", "UTF8"),
            ("client_encoding", "UTF8"),
            ("application_name", &self.name.clone()),
            ("session_authorization", startup.user()),
            ("is_superuser", "off"),
            ("in_hot_standby", "on"),
            ("default_transaction_read_only", "off"),
            ("DateStyle", "ISO, MDY"),
            ("IntervalStyle", "postgres"),
            ("TimeZone", "UTC"),
            ("integer_datetimes", "on"),
            ("standard_conforming_strings", "on"),
        ];
        for (name, value) in settings {
            let (name, value) = (name.to_owned(), value.to_owned());
            self.put(BackendMessage::ParameterStatus { name, value });
        }
        // A cancel request does nothing here, so the key need not be secret.
        let process_id = std::process::id();
        self.put(BackendMessage::BackendKeyData {
            process_id,
            secret: Bytes::from_static(&[0; 4]),
        });
        self.flush().await
    }

    /// Whose WAL the journal holds and how far; while it is empty the client shall come again.
    fn identity(&self) -> Result<(SystemId, SegmentSize, JournalPositions), SessionEnd> {
        let positions = self.shared.journal.positions().borrow().clone();
        match (self.shared.journal.identity(), positions) {
            (Some((system_id, size)), Some(positions)) => Ok((system_id, size, positions)),
            _ => {
                let report =
                    ErrorFields::new("FATAL", "57P03", "the database system is starting up");
                let report = report.with_detail("The journal of the WAL relay is still empty.");
                Err(SessionEnd::Fatal(report))
            }
        }
    }

    pub(super) fn put(&mut self, message: BackendMessage) {
        message.encode(&mut self.out);
    }

    pub(super) async fn flush(&mut self) -> Result<(), SessionEnd> {
        self.writer.write_all_buf(&mut self.out).await?;
        Ok(())
    }

    fn error(&mut self, sqlstate: &str, message: impl Into<String>) {
        let report = ErrorFields::new("ERROR", sqlstate, message);
        self.put(BackendMessage::ErrorResponse(report));
    }

    fn result(&mut self, columns: &[(&str, u32)], row: Vec<Option<Bytes>>) {
        let columns = columns.iter().map(|(name, oid)| Column::new(name, *oid)).collect();
        self.put(BackendMessage::RowDescription(columns));
        self.put(BackendMessage::DataRow(row));
    }

    fn complete(&mut self, tag: &str) {
        self.put(BackendMessage::CommandComplete(tag.to_owned()));
    }

    async fn command(&mut self, text: &str) -> Result<(), SessionEnd> {
        tracing::debug!(client = %self.name, command = text, "relay got a command");
        let command = match ReplicationCommand::parse(text) {
            Ok(command) => command,
            Err(error) => {
                let message = format!("{error}; the WAL relay runs no SQL");
                self.error("42601", message);
                return Ok(());
            }
        };
        match command {
            ReplicationCommand::IdentifySystem => {
                let (system_id, _, positions) = self.identity()?;
                let columns = [
                    ("systemid", OID_TEXT),
                    ("timeline", OID_INT4),
                    ("xlogpos", OID_TEXT),
                    ("dbname", OID_TEXT),
                ];
                let row = vec![
                    text_value(system_id),
                    text_value(positions.timeline),
                    text_value(positions.durable_lsn),
                    None,
                ];
                self.result(&columns, row);
                self.complete("IDENTIFY_SYSTEM");
            }
            ReplicationCommand::TimelineHistory(timeline) => self.timeline_history(timeline),
            ReplicationCommand::Show(setting) => self.show(&setting)?,
            ReplicationCommand::ReadReplicationSlot(_) => {
                // There are no slots here, and this is how PostgreSQL says that there is none.
                let columns =
                    [("slot_type", OID_TEXT), ("restart_lsn", OID_TEXT), ("restart_tli", OID_INT8)];
                self.result(&columns, vec![None, None, None]);
                self.complete("READ_REPLICATION_SLOT");
            }
            ReplicationCommand::StartReplication { slot: Some(slot), .. } => {
                let message = format!(
                    "replication slot \"{slot}\" does not exist: the WAL relay has no slots, \
                     it keeps WAL by its own policy"
                );
                self.error("42704", message);
            }
            ReplicationCommand::StartReplication { slot: None, start_lsn, timeline } => {
                self.start_replication(start_lsn, timeline).await?;
            }
            ReplicationCommand::Unsupported(name) => {
                let message = format!(
                    "{name} is not served by the WAL relay; connect to PostgreSQL itself for it"
                );
                self.error("0A000", message);
            }
        }
        Ok(())
    }

    fn timeline_history(&mut self, timeline: Timeline) {
        let held = self.shared.journal.history_raw(timeline).or_else(|| self.passed_over(timeline));
        let Some(raw) = held else {
            let name = timeline.history_file_name();
            self.error("58P01", format!("could not open file \"pg_wal/{name}\": not held here"));
            return;
        };
        let row = vec![text_value(timeline.history_file_name()), Some(raw)];
        self.result(&[("filename", OID_TEXT), ("content", OID_BYTEA)], row);
        self.complete("TIMELINE_HISTORY");
    }

    /// A standby asks for every number between its own timeline and ours, and goes no further without
    /// an answer; of those that no promotion used there is none to be held.
    fn passed_over(&self, timeline: Timeline) -> Option<Bytes> {
        let current = self.shared.journal.positions().borrow().as_ref()?.timeline;
        let history = self.shared.journal.history(current)?;
        let used = history.ancestors.iter().any(|entry| entry.timeline == timeline);
        let unused = timeline < current && !used;
        unused.then(|| Bytes::from_static(TimelineHistory::PASSED_OVER.as_bytes()))
    }

    fn show(&mut self, setting: &str) -> Result<(), SessionEnd> {
        let value = match setting {
            "wal_segment_size" => segment_size(self.identity()?.1),
            "data_directory_mode" => "0700".to_owned(),
            "server_version" => self.shared.options.server_version.clone(),
            "server_encoding" => "UTF8".to_owned(),
            "wal_sender_timeout" => {
                format!("{}ms", self.shared.options.client_timeout.as_millis())
            }
            _ => {
                let message = format!("unrecognized configuration parameter \"{setting}\"");
                self.error("42704", message);
                return Ok(());
            }
        };
        self.result(&[(setting, OID_TEXT)], vec![text_value(value)]);
        self.complete("SHOW");
        Ok(())
    }

    /// Checks the position as PostgreSQL's `StartReplication` does, then streams.
    async fn start_replication(
        &mut self,
        start_lsn: Lsn,
        timeline: Option<Timeline>,
    ) -> Result<(), SessionEnd> {
        let (_, size, positions) = self.identity()?;
        let current = positions.timeline;
        let timeline = timeline.unwrap_or(current);
        let not_here = |what: &str| {
            format!(
                "requested {what}{start_lsn} on timeline {timeline} is not in this server's history"
            )
        };
        let mut next = None;
        if timeline != current {
            let history = self.shared.journal.history(current);
            let left = history.as_ref().and_then(|history| {
                let index = history.ancestors.iter().position(|e| e.timeline == timeline)?;
                let after = history.ancestors.get(index + 1).map_or(current, |e| e.timeline);
                Some((after, history.ancestors[index].switch_lsn))
            });
            let Some((after, end_lsn)) = left else {
                self.error("XX000", not_here("timeline of "));
                return Ok(());
            };
            if start_lsn > end_lsn {
                self.error("XX000", not_here("starting point "));
                return Ok(());
            }
            next = (start_lsn == end_lsn).then_some((after, end_lsn));
        } else if start_lsn > positions.durable_lsn {
            let message = format!(
                "requested starting point {start_lsn} is ahead of the WAL flush position of this \
                 server {}",
                positions.durable_lsn
            );
            self.error("XX000", message);
            return Ok(());
        }
        if next.is_none() {
            let reader = match self.shared.journal.reader(timeline, start_lsn) {
                Ok(reader) if start_lsn >= positions.begin_lsn => reader,
                other => {
                    if let Err(error) = other {
                        let error = &error as &dyn std::error::Error;
                        tracing::info!(error, %start_lsn, "relay cannot read its journal there");
                    }
                    let name = WalSegment::containing(timeline, start_lsn, size).file_name(size);
                    let message = format!("requested WAL segment {name} has already been removed");
                    self.error("58P01", message);
                    return Ok(());
                }
            };
            next = match self.stream(reader).await? {
                StreamEnd::Client => None,
                StreamEnd::Timeline { next, switch_lsn } => Some((next, switch_lsn)),
            };
        }
        if let Some((timeline, switch_lsn)) = next {
            let columns = [("next_tli", OID_INT8), ("next_tli_startpos", OID_TEXT)];
            self.result(&columns, vec![text_value(timeline), text_value(switch_lsn)]);
        }
        // Two of them: libpqwalreceiver reads the second after the result set (walsender.c).
        self.complete("START_STREAMING");
        self.complete("START_REPLICATION");
        Ok(())
    }
}

pub(super) fn shutting_down() -> SessionEnd {
    fatal("57P01", "terminating connection because the WAL relay shuts down")
}

fn text_value(value: impl std::fmt::Display) -> Option<Bytes> {
    Some(Bytes::from(value.to_string()))
}

/// The size as PostgreSQL shows a setting in bytes: in the greatest unit that divides it.
fn segment_size(size: SegmentSize) -> String {
    let mib = size.bytes() >> 20;
    if mib.is_multiple_of(1024) { format!("{}GB", mib / 1024) } else { format!("{mib}MB") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_segment_size_is_shown_as_postgresql_shows_it() {
        let shown = |mib: u32| segment_size(SegmentSize::new(mib << 20).unwrap());
        assert_eq!([shown(1), shown(16), shown(1024)], ["1MB", "16MB", "1GB"]);
    }
}
