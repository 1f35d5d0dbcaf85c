//! What can go wrong with the local PostgreSQL; it never says what to do about it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use understudy_types::{HistoryError, Timeline};

/// A failure of this crate. The source, where there is one, is never repeated in the text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon is neither root nor the user that owns PostgreSQL.
    #[error(
        "run PostgreSQL as user {user} (uid {uid}) from a process of uid {euid}: \
         start the daemon as root or as {user}"
    )]
    WrongOsUser {
        /// The configured user.
        user: String,
        /// Its uid.
        uid: u32,
        /// Who the daemon is.
        euid: u32,
    },
    /// The user does not exist on this machine.
    #[error("find OS user {name:?}: {reason}")]
    UnknownOsUser {
        /// As configured.
        name: String,
        /// What `id` said.
        reason: String,
    },
    /// A program of PostgreSQL is not installed.
    #[error("find {program} in {looked}: {remedy}")]
    BinaryMissing {
        /// Its name.
        program: String,
        /// The directories that were looked in.
        looked: String,
        /// What to install or set.
        remedy: String,
    },
    /// A program answered something that this version does not understand.
    #[error("read the output of {program}: {reason}")]
    Output {
        /// Its name.
        program: String,
        /// What was missing.
        reason: String,
    },
    /// A setting cannot be used.
    #[error("use setting {name}: {reason}")]
    Setting {
        /// Its name.
        name: &'static str,
        /// Why not.
        reason: String,
    },
    /// An operation on a file or process failed.
    #[error("{action} {path}")]
    Io {
        /// The verb.
        action: &'static str,
        /// The object.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A tool ended with an error.
    #[error("run {program}: {status}, last output:\n{output}")]
    Tool {
        /// Its name.
        program: String,
        /// Exit status, in words.
        status: String,
        /// The last lines that it wrote.
        output: String,
    },
    /// The data directory is not in the state that the operation needs.
    #[error("use data directory {path}: {reason}")]
    DataDirectory {
        /// PGDATA.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The server runs, and must not.
    #[error("{action} while PostgreSQL runs as process {pid}")]
    Running {
        /// What was to be done.
        action: &'static str,
        /// Its postmaster, or one process that is left of the instance.
        pid: u32,
    },
    /// The server does not run, and should.
    #[error("{action} while PostgreSQL does not run")]
    NotRunning {
        /// What was to be done.
        action: &'static str,
    },
    /// The postmaster ended instead of accepting connections.
    #[error("start PostgreSQL: it ended with {status}, last log lines:\n{log}")]
    StartFailed {
        /// Exit status, in words.
        status: String,
        /// The last lines of its log.
        log: String,
    },
    /// The postmaster runs but does not accept connections yet; it was left running.
    #[error("wait {waited:?} for PostgreSQL to accept connections: {last}; last log lines:\n{log}")]
    StartTimeout {
        /// How long was waited.
        waited: Duration,
        /// The last refusal.
        last: String,
        /// The last lines of its log.
        log: String,
    },
    /// It did not stop in time; it was left as it is.
    #[error("wait {waited:?} for PostgreSQL to stop: {left} processes left")]
    StopTimeout {
        /// How long was waited.
        waited: Duration,
        /// Processes of the instance that are left.
        left: usize,
    },
    /// The fence could not be proven: something of the instance may still run.
    #[error(
        "prove that nothing of PostgreSQL is left: processes {pids:?}, {attached} attached to its shared memory after {waited:?}"
    )]
    FenceUnproven {
        /// Processes that would not die.
        pids: Vec<u32>,
        /// Attachments to the shared memory segment.
        attached: u64,
        /// How long was tried.
        waited: Duration,
    },
    /// A connection over the Unix socket was refused or failed.
    #[error("connect to PostgreSQL in {socket_dir}")]
    Connect {
        /// The socket's directory.
        socket_dir: PathBuf,
        /// What the driver says.
        #[source]
        source: Box<sqlx::Error>,
    },
    /// A statement failed.
    #[error("query PostgreSQL for {what}")]
    Query {
        /// What it was for.
        what: &'static str,
        /// What the driver says.
        #[source]
        source: Box<sqlx::Error>,
    },
    /// A connection or statement took too long.
    #[error("wait {waited:?} for PostgreSQL's answer to {what}")]
    Timeout {
        /// What it was for.
        what: &'static str,
        /// How long was waited.
        waited: Duration,
    },
    /// A timeline of that number or a later one already exists here.
    #[error("promote to timeline {granted}: timeline {taken} is already known here")]
    TimelineTaken {
        /// The number that was granted.
        granted: Timeline,
        /// The newest that is known.
        taken: Timeline,
    },
    /// A history file could not be understood.
    #[error("read history file of timeline {timeline}")]
    History {
        /// Whose history.
        timeline: Timeline,
        /// What is wrong in it.
        #[source]
        source: HistoryError,
    },
}

/// Shorthand of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names the file in an IO error.
pub(crate) trait IoContext<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn during(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io { action, path: path.to_owned(), source: source.into() })
    }
}
