//! How much room there is for WAL: the journal's own limits, and what its file system has left.

use std::io;
use std::path::Path;

use understudy_types::{Lsn, SegmentSize};

use super::error::JournalError;

/// What a file system has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// In all, in bytes.
    pub total_bytes: u64,
    /// For whoever is not root.
    pub free_bytes: u64,
}

impl Room {
    /// Of the file system that `path` lies on.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn of(path: &Path) -> io::Result<Room> {
        let seen = rustix::fs::statvfs(path)?;
        Ok(Room {
            total_bytes: seen.f_blocks * seen.f_frsize,
            free_bytes: seen.f_bavail * seen.f_frsize,
        })
    }
}

/// What a journal must not go over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// It holds no more than this, in bytes.
    pub bytes_max: u64,
    /// It leaves so many bytes of its file system free.
    pub reserve_bytes: u64,
}

impl Limits {
    /// None at all.
    pub const NONE: Limits = Limits { bytes_max: u64::MAX, reserve_bytes: 0 };

    /// Whether a journal that begins at `begin_lsn` may have one more segment, up to `end_lsn`.
    pub(super) fn check(
        &self,
        dir: &Path,
        begin_lsn: Lsn,
        end_lsn: Lsn,
        size: SegmentSize,
    ) -> Result<(), JournalError> {
        let bytes = end_lsn.bytes_since(begin_lsn);
        if bytes > self.bytes_max {
            return Err(JournalError::OverMax { bytes, bytes_max: self.bytes_max });
        }
        if self.reserve_bytes == 0 {
            return Ok(());
        }
        let room = Room::of(dir).map_err(JournalError::io("look for room in", dir))?;
        if room.free_bytes < self.reserve_bytes + size.bytes() {
            let (free_bytes, reserve_bytes) = (room.free_bytes, self.reserve_bytes);
            return Err(JournalError::InReserve { free_bytes, reserve_bytes });
        }
        Ok(())
    }
}
