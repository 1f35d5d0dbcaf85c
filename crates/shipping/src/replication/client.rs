//! The command part of a replication connection: logging in, asking, and starting a stream.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::net::UnixStream;
use understudy_types::{Lsn, SystemId, Timeline, TimelineHistory};
use understudy_wal::protocol::{
    Authentication, BackendMessage, FrontendMessage, MESSAGE_BYTES_MAX, Startup, StartupRequest,
    encode_startup, take_frame,
};

use super::stream::WalStream;
use super::{NextTimeline, ReplicationError, StatusSender};

/// Read ahead at least this much, so that a busy walsender's messages take few system calls.
const READ_BUFFER_BYTES: usize = 512 * 1024;
/// More parameters than this are not kept; PostgreSQL reports about fifteen.
const PARAMETERS_MAX: usize = 128;
/// More rows than this are not kept; replication commands answer with one.
const ROWS_MAX: usize = 64;

/// How to reach a server.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The directory of the Unix socket.
    pub socket_dir: PathBuf,
    /// The port in the socket's name.
    pub port: u16,
    /// The role, which needs REPLICATION.
    pub user: String,
    /// What `pg_stat_replication.application_name` and the synchronous standby names compare with.
    pub application_name: String,
    /// Bounds the connection with its login, and each command (not the stream).
    pub answer_timeout: Duration,
}

/// What IDENTIFY_SYSTEM answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Which initdb the server descends from.
    pub system_id: SystemId,
    /// Its present timeline.
    pub timeline: Timeline,
    /// Its flush position (on a standby: the end of what it received and replayed).
    pub flush_lsn: Lsn,
}

/// What READ_REPLICATION_SLOT answers for a slot that exists (PostgreSQL 15 on).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotPosition {
    /// The oldest WAL the slot keeps; `None` before it reserves any.
    pub restart_lsn: Option<Lsn>,
    /// The timeline of `restart_lsn`.
    pub restart_timeline: Option<Timeline>,
}

/// What START_REPLICATION led to.
#[derive(Debug)]
pub enum Started {
    /// WAL is coming.
    Streaming(WalStream, StatusSender),
    /// The requested timeline ended exactly where the stream was to begin.
    TimelineEnded {
        /// The connection, ready for the next command.
        client: ReplicationClient,
        /// What follows.
        next: NextTimeline,
    },
}

/// The socket and what has not gone out of it yet; shared by a stream's two ends.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) stream: UnixStream,
    /// The rest of a message of which a first part was written.
    pub(super) unsent: Mutex<Vec<u8>>,
}

/// A replication connection that waits for a command.
///
/// Not cancel-safe: after a command's future was dropped the connection has to be dropped too.
#[derive(Debug)]
pub struct ReplicationClient {
    wire: Arc<Wire>,
    buffer: BytesMut,
    backend_pid: u32,
    parameters: Vec<(String, String)>,
    answer_timeout: Duration,
}

type Row = Vec<Option<Bytes>>;

impl ReplicationClient {
    /// Connects and logs in, as a physical replication connection.
    ///
    /// # Errors
    /// When nobody listens, the login is refused or a password is asked for, or time is up.
    pub async fn connect(options: &ConnectOptions) -> Result<ReplicationClient, ReplicationError> {
        let limit = options.answer_timeout;
        let error = |_| ReplicationError::TimedOut { action: "connect and log in", limit };
        tokio::time::timeout(limit, ReplicationClient::log_in(options)).await.map_err(error)?
    }

    async fn log_in(options: &ConnectOptions) -> Result<ReplicationClient, ReplicationError> {
        let path = options.socket_dir.join(format!(".s.PGSQL.{}", options.port));
        let stream = UnixStream::connect(&path)
            .await
            .map_err(|source| ReplicationError::Connect { path, source })?;
        let mut client = ReplicationClient {
            wire: Arc::new(Wire { stream, unsent: Mutex::default() }),
            buffer: BytesMut::with_capacity(READ_BUFFER_BYTES),
            backend_pid: 0,
            parameters: Vec::new(),
            answer_timeout: options.answer_timeout,
        };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let startup = Startup {
            protocol_version: 3 << 16,
            parameters: vec![
                pair("user", &options.user),
                pair("replication", "true"),
                pair("application_name", &options.application_name),
                pair("client_encoding", "UTF8"),
            ],
        };
        let mut out = BytesMut::new();
        encode_startup(&StartupRequest::Startup(startup), &mut out);
        let action = "log in";
        client.write(action, &out).await?;
        loop {
            match client.next(action).await? {
                BackendMessage::Authentication(Authentication::Ok) => {}
                BackendMessage::Authentication(Authentication::Requested(code)) => {
                    let user = options.user.clone();
                    return Err(ReplicationError::Authentication { user, code });
                }
                BackendMessage::ParameterStatus { name, value } => client.keep(name, value),
                BackendMessage::BackendKeyData { process_id, .. } => {
                    client.backend_pid = process_id;
                }
                BackendMessage::ReadyForQuery { .. } => return Ok(client),
                BackendMessage::ErrorResponse(report) => {
                    return Err(ReplicationError::Server { action, report });
                }
                BackendMessage::NoticeResponse(_)
                | BackendMessage::NegotiateProtocolVersion { .. } => {}
                other => return Err(unexpected(action, &other)),
            }
        }
    }

    /// Rebuilds the client after a stream has ended, see [`WalStream::into_client`].
    pub(super) fn resume(
        wire: Arc<Wire>,
        buffer: BytesMut,
        (backend_pid, answer_timeout): (u32, Duration),
        parameters: Vec<(String, String)>,
    ) -> ReplicationClient {
        ReplicationClient { wire, buffer, backend_pid, parameters, answer_timeout }
    }

    fn keep(&mut self, name: String, value: String) {
        if let Some(known) = self.parameters.iter_mut().find(|(key, _)| *key == name) {
            known.1 = value;
        } else if self.parameters.len() < PARAMETERS_MAX {
            self.parameters.push((name, value));
        }
    }

    /// The process id of the server's walsender, as in `pg_stat_replication.pid`.
    pub fn backend_pid(&self) -> u32 {
        self.backend_pid
    }

    /// A setting that the server reported at login, such as `server_version`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// IDENTIFY_SYSTEM.
    ///
    /// # Errors
    /// When the connection fails or the answer has another shape.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, ReplicationError> {
        let action = "IDENTIFY_SYSTEM";
        let row = self.one_row(action, action).await?;
        Ok(SystemIdentity {
            system_id: parse(action, &row, 0)?,
            timeline: parse(action, &row, 1)?,
            flush_lsn: parse(action, &row, 2)?,
        })
    }

    /// TIMELINE_HISTORY: the history of a timeline, parsed and as the server's file has it.
    ///
    /// # Errors
    /// When the server has no such file (timeline 1 never has one), or it cannot be read.
    pub async fn timeline_history(
        &mut self,
        timeline: Timeline,
    ) -> Result<(TimelineHistory, Bytes), ReplicationError> {
        let action = "TIMELINE_HISTORY";
        let row = self.one_row(action, &format!("TIMELINE_HISTORY {timeline}")).await?;
        let raw = row.get(1).cloned().flatten().ok_or_else(|| missing(action, 1))?;
        let history = TimelineHistory::parse(timeline, &String::from_utf8_lossy(&raw))
            .map_err(|e| ReplicationError::Unexpected { action, problem: e.to_string() })?;
        Ok((history, raw))
    }

    /// SHOW: the value of a setting, in PostgreSQL's words ("16MB").
    ///
    /// # Errors
    /// When the server does not know it.
    pub async fn show(&mut self, setting: &str) -> Result<String, ReplicationError> {
        let row = self.one_row("SHOW", &format!("SHOW {}", quote(setting))).await?;
        parse("SHOW", &row, 0)
    }

    /// Creates a permanent physical slot; with `reserve` it keeps WAL from now on.
    ///
    /// # Errors
    /// When one of that name exists (SQLSTATE 42710) or there are too many.
    pub async fn create_physical_slot(
        &mut self,
        name: &str,
        reserve: bool,
    ) -> Result<(), ReplicationError> {
        let reserve = if reserve { " RESERVE_WAL" } else { "" };
        let command = format!("CREATE_REPLICATION_SLOT {} PHYSICAL{reserve}", quote(name));
        self.one_row("CREATE_REPLICATION_SLOT", &command).await.map(drop)
    }

    /// Drops a slot that nobody uses.
    ///
    /// # Errors
    /// When there is none (SQLSTATE 42704) or it is in use (55006).
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), ReplicationError> {
        let command = format!("DROP_REPLICATION_SLOT {}", quote(name));
        self.run("DROP_REPLICATION_SLOT", &command).await.map(drop)
    }

    /// Where a physical slot stands; `None` if there is none of that name.
    ///
    /// # Errors
    /// When the connection fails, or the slot is a logical one.
    pub async fn read_slot(
        &mut self,
        name: &str,
    ) -> Result<Option<SlotPosition>, ReplicationError> {
        let action = "READ_REPLICATION_SLOT";
        let command = format!("READ_REPLICATION_SLOT {}", quote(name));
        let row = self.one_row(action, &command).await?;
        if row.first().is_none_or(Option::is_none) {
            return Ok(None);
        }
        let some = |index: usize| row.get(index).is_some_and(Option::is_some);
        let restart_lsn = if some(1) { Some(parse(action, &row, 1)?) } else { None };
        let restart_timeline = if some(2) { Some(parse(action, &row, 2)?) } else { None };
        Ok(Some(SlotPosition { restart_lsn, restart_timeline }))
    }

    /// START_REPLICATION, physical.
    ///
    /// # Errors
    /// When the server refuses: the WAL is gone (SQLSTATE 58P01), the position is ahead of it or not
    /// in its history, the slot is in use.
    pub async fn start_replication(
        mut self,
        slot: Option<&str>,
        start_lsn: Lsn,
        timeline: Timeline,
    ) -> Result<Started, ReplicationError> {
        let action = "START_REPLICATION";
        let slot = slot.map(|slot| format!("SLOT {} ", quote(slot))).unwrap_or_default();
        let command = format!("START_REPLICATION {slot}PHYSICAL {start_lsn} TIMELINE {timeline}");
        let limit = self.answer_timeout;
        let error = |_| ReplicationError::TimedOut { action, limit };
        let answer = async {
            self.query(action, &command).await?;
            let mut rows: Vec<Row> = Vec::new();
            loop {
                match self.next(action).await? {
                    BackendMessage::CopyBothResponse => return Ok(None),
                    BackendMessage::DataRow(row) if rows.len() < ROWS_MAX => rows.push(row),
                    BackendMessage::ReadyForQuery { .. } => return next_timeline(&rows).map(Some),
                    BackendMessage::ErrorResponse(report) => {
                        return Err(ReplicationError::Server { action, report });
                    }
                    BackendMessage::ParameterStatus { .. }
                    | BackendMessage::NoticeResponse(_)
                    | BackendMessage::RowDescription(_)
                    | BackendMessage::CommandComplete(_) => {}
                    other => return Err(unexpected(action, &other)),
                }
            }
        };
        let next = tokio::time::timeout(limit, answer).await.map_err(error)??;
        if let Some(next) = next {
            return Ok(Started::TimelineEnded { client: self, next });
        }
        let kept = (self.backend_pid, self.answer_timeout);
        let sender = StatusSender::new(Arc::clone(&self.wire));
        let stream = WalStream::new(self.wire, self.buffer, kept, self.parameters);
        Ok(Started::Streaming(stream, sender))
    }

    async fn one_row(&mut self, action: &'static str, text: &str) -> Result<Row, ReplicationError> {
        let mut rows = self.run(action, text).await?;
        if rows.len() == 1 {
            return Ok(rows.remove(0));
        }
        let problem = format!("{} rows instead of one", rows.len());
        Err(ReplicationError::Unexpected { action, problem })
    }

    /// Runs a command to its ReadyForQuery, so that the connection is usable after an error too.
    async fn run(
        &mut self,
        action: &'static str,
        text: &str,
    ) -> Result<Vec<Row>, ReplicationError> {
        let limit = self.answer_timeout;
        let answer = async {
            self.query(action, text).await?;
            let (mut rows, mut failure) = (Vec::new(), None);
            loop {
                match self.next(action).await? {
                    BackendMessage::DataRow(row) if rows.len() < ROWS_MAX => rows.push(row),
                    BackendMessage::ErrorResponse(report) => failure = Some(report),
                    BackendMessage::ReadyForQuery { .. } => break,
                    BackendMessage::RowDescription(_)
                    | BackendMessage::CommandComplete(_)
                    | BackendMessage::ParameterStatus { .. }
                    | BackendMessage::NoticeResponse(_) => {}
                    other => return Err(unexpected(action, &other)),
                }
            }
            match failure {
                Some(report) => Err(ReplicationError::Server { action, report }),
                None => Ok(rows),
            }
        };
        let error = |_| ReplicationError::TimedOut { action, limit };
        tokio::time::timeout(limit, answer).await.map_err(error)?
    }

    async fn query(&mut self, action: &'static str, text: &str) -> Result<(), ReplicationError> {
        let mut out = BytesMut::new();
        FrontendMessage::Query(text.to_owned()).encode(&mut out);
        self.write(action, &out).await
    }

    async fn write(&self, action: &'static str, mut out: &[u8]) -> Result<(), ReplicationError> {
        let io = |source| ReplicationError::Io { action, source };
        while !out.is_empty() {
            self.wire.stream.writable().await.map_err(io)?;
            match self.wire.stream.try_write(out) {
                Ok(written) => out = &out[written..],
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                // A server that refuses closes its end at once; its reason is still to be read.
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                Err(source) => return Err(io(source)),
            }
        }
        Ok(())
    }

    async fn next(&mut self, action: &'static str) -> Result<BackendMessage, ReplicationError> {
        next_message(&self.wire.stream, &mut self.buffer, action).await
    }
}

/// The next message from the server. Cancel-safe: what was read stays in `buffer`.
pub(super) async fn next_message(
    stream: &UnixStream,
    buffer: &mut BytesMut,
    action: &'static str,
) -> Result<BackendMessage, ReplicationError> {
    loop {
        let protocol = |source| ReplicationError::Protocol { action, source };
        if let Some(frame) = take_frame(buffer, MESSAGE_BYTES_MAX).map_err(protocol)? {
            return BackendMessage::decode(frame).map_err(protocol);
        }
        if buffer.capacity() - buffer.len() < READ_BUFFER_BYTES / 4 {
            buffer.reserve(READ_BUFFER_BYTES);
        }
        let io = |source| ReplicationError::Io { action, source };
        stream.readable().await.map_err(io)?;
        match stream.try_read_buf(buffer) {
            Ok(0) => return Err(ReplicationError::Closed { action }),
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(source) => return Err(io(source)),
        }
    }
}

/// Reads the result set that follows the stream of an older timeline.
pub(super) fn next_timeline(rows: &[Row]) -> Result<NextTimeline, ReplicationError> {
    let action = "read the next timeline";
    match rows {
        [row] => Ok((parse(action, row, 0)?, parse(action, row, 1)?)),
        _ => {
            let problem = format!("{} rows instead of one", rows.len());
            Err(ReplicationError::Unexpected { action, problem })
        }
    }
}

pub(super) fn unexpected(action: &'static str, message: &BackendMessage) -> ReplicationError {
    let mut problem = format!("{message:?}");
    problem.truncate(problem.floor_char_boundary(200));
    ReplicationError::Unexpected { action, problem }
}

fn missing(action: &'static str, column: usize) -> ReplicationError {
    ReplicationError::Unexpected { action, problem: format!("column {column} is missing or null") }
}

fn parse<T>(action: &'static str, row: &Row, column: usize) -> Result<T, ReplicationError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    let value = row.get(column).and_then(Option::as_ref).ok_or_else(|| missing(action, column))?;
    let text = String::from_utf8_lossy(value);
    text.parse().map_err(|error: T::Err| {
        let problem = format!("column {column}: {error}");
        ReplicationError::Unexpected { action, problem }
    })
}

/// A quoted identifier of the replication grammar.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
