//! What can go wrong in the journal, and which of it ends the journal until it is opened again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use understudy_types::{Epoch, HistoryError, Lsn, SystemId, Timeline};
use understudy_wal::format::Stop;

/// A journal operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file operation failed.
    #[error("{verb} {}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file system has no space left. Nothing durable was lost; open the journal again when
    /// there is space.
    #[error("{verb} {}: no space left", path.display())]
    Full {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// The next segment would go over what the journal may hold.
    #[error(
        "begin a segment: the journal would hold {bytes} bytes, and wal.max is {bytes_max}; raise it, or \
         look at what keeps WAL from being removed"
    )]
    OverMax {
        /// With the segment.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// The next segment would not leave enough of the file system free.
    #[error(
        "begin a segment: {free_bytes} bytes are free on the journal's file system, and wal.reserve keeps \
         {reserve_bytes} of them; make room"
    )]
    InReserve {
        /// Free now.
        free_bytes: u64,
        /// To be left.
        reserve_bytes: u64,
    },
    /// Another process has this journal open.
    #[error("lock journal {}: another process holds it", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// What is stored contradicts itself. A person has to look; nothing was changed.
    #[error("read journal {}: {detail}", path.display())]
    Corrupt {
        /// File or directory.
        path: PathBuf,
        /// The contradiction.
        detail: String,
    },
    /// WAL that was durable here is damaged or gone, so that the journal would be shorter than what was
    /// acknowledged. Nothing was changed: `Journal::open_without_wal` begins anew.
    #[error("read journal {}: {detail}", path.display())]
    LostWal {
        /// File or directory.
        path: PathBuf,
        /// What is missing.
        detail: String,
        /// The newest epoch that the journal knows.
        max_epoch: Epoch,
    },
    /// A history file is not one.
    #[error("read history of timeline {timeline}")]
    History {
        /// Whose history.
        timeline: Timeline,
        /// The cause.
        #[source]
        source: HistoryError,
    },
    /// A newer epoch is known.
    #[error("act under epoch {epoch}: epoch {max_epoch} is known")]
    StaleEpoch {
        /// The epoch of the request.
        epoch: Epoch,
        /// The newest one known.
        max_epoch: Epoch,
    },
    /// The epoch is not the admitted one.
    #[error("act under epoch {epoch}: {admitted:?} is admitted")]
    NotAdmitted {
        /// The epoch of the request.
        epoch: Epoch,
        /// The admitted one.
        admitted: Option<Epoch>,
    },
    /// `begin` on a journal that has content.
    #[error("begin journal: it holds WAL already")]
    NotEmpty,
    /// The operation needs content.
    #[error("use journal: it is empty")]
    Empty,
    /// An empty journal begins at a segment boundary.
    #[error("begin journal at {0}: not the beginning of a segment")]
    NotSegmentStart(Lsn),
    /// The WAL received does not verify. The journal went back to its durable end.
    #[error("verify received WAL of timeline {timeline}")]
    BadWal {
        /// Its timeline.
        timeline: Timeline,
        /// What is wrong.
        #[source]
        source: Stop,
    },
    /// The WAL received differs from what is durable here: not the same history. Nothing was changed.
    #[error("compare received WAL with what is held: timeline {timeline} differs at {lsn}")]
    Diverged {
        /// The timeline.
        timeline: Timeline,
        /// The first byte that differs, or the fork that lies before the durable end.
        lsn: Lsn,
    },
    /// WAL between what is held and what was offered is missing.
    #[error("go on with WAL at {lsn}: the journal ends at {expected_lsn}")]
    Gap {
        /// Where the journal ends.
        expected_lsn: Lsn,
        /// What was offered.
        lsn: Lsn,
    },
    /// WAL of another cluster.
    #[error("check system identifier: found {found}, expected {expected}")]
    WrongSystem {
        /// What was found.
        found: SystemId,
        /// Whose journal it is.
        expected: SystemId,
    },
    /// The directory that WAL was to be moved into has content.
    #[error("set WAL aside into {}: the directory is not empty", path.display())]
    TargetInUse {
        /// The directory.
        path: PathBuf,
    },
    /// The bytes are not held (any more, or yet).
    #[error("read WAL of timeline {timeline} at {lsn}: not held")]
    NotHeld {
        /// The timeline.
        timeline: Timeline,
        /// The position.
        lsn: Lsn,
    },
    /// The journal failed earlier and has to be opened again.
    #[error("use journal: it failed earlier")]
    Failed(#[source] Arc<JournalError>),
    /// The journal is being closed.
    #[error("use journal: it is closed")]
    Closed,
}

impl JournalError {
    /// Nothing more will be stored or acknowledged until the journal is opened again.
    pub fn is_fatal(&self) -> bool {
        match self {
            JournalError::Io { .. }
            | JournalError::Full { .. }
            | JournalError::Locked { .. }
            | JournalError::Corrupt { .. }
            | JournalError::LostWal { .. }
            | JournalError::Failed(_)
            | JournalError::Closed => true,
            JournalError::History { .. }
            | JournalError::StaleEpoch { .. }
            | JournalError::NotAdmitted { .. }
            | JournalError::NotEmpty
            | JournalError::Empty
            | JournalError::NotSegmentStart(_)
            | JournalError::BadWal { .. }
            | JournalError::Diverged { .. }
            | JournalError::Gap { .. }
            | JournalError::WrongSystem { .. }
            | JournalError::TargetInUse { .. }
            | JournalError::OverMax { .. }
            | JournalError::InReserve { .. }
            | JournalError::NotHeld { .. } => false,
        }
    }

    /// There is no room for more, until somebody makes some.
    pub fn is_no_room(&self) -> bool {
        matches!(self, JournalError::OverMax { .. } | JournalError::InReserve { .. })
    }

    /// For `map_err`: what was tried on which file.
    pub(super) fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                JournalError::Full { verb, path }
            }
            _ => JournalError::Io { verb, path, source },
        }
    }

    pub(super) fn corrupt(path: &Path, detail: impl Into<String>) -> JournalError {
        JournalError::Corrupt { path: path.to_owned(), detail: detail.into() }
    }
}

/// Why a frame was not taken into the queue.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Its epoch is not the admitted one; nothing is admitted when sealed.
    #[error("append frame of epoch {epoch}: {admitted:?} is admitted, {max_epoch} is known")]
    Refused {
        /// The frame's epoch.
        epoch: Epoch,
        /// The admitted one.
        admitted: Option<Epoch>,
        /// The newest one known.
        max_epoch: Epoch,
    },
    /// It does not follow what is held and queued. Attach again at the durable end.
    #[error("append frame at {lsn}: the journal goes on at {expected_lsn}")]
    Gap {
        /// Where the journal goes on.
        expected_lsn: Lsn,
        /// The frame's position.
        lsn: Lsn,
    },
    /// Its timeline is not the journal's.
    #[error("append frame of timeline {timeline}: the journal is on {expected}")]
    WrongTimeline {
        /// The frame's timeline.
        timeline: Timeline,
        /// The journal's timeline.
        expected: Timeline,
    },
    /// The journal is empty: it has to begin first.
    #[error("append frame: the journal is empty")]
    Empty,
    /// The frame is larger than the whole queue may be.
    #[error("append frame of {bytes} bytes: the queue holds {bytes_max}")]
    TooLarge {
        /// The frame's size.
        bytes: usize,
        /// The queue's bound.
        bytes_max: usize,
    },
    /// The journal failed and has to be opened again.
    #[error("append frame: the journal failed")]
    Failed(#[source] Arc<JournalError>),
}
