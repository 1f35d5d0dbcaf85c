//! What the storage stands on: a directory of this machine, or whatever a simulation puts there.
//!
//! The log's database and the snapshot's bytes go through here, and nothing else does. A device says
//! what is durable; it must not interpret what it keeps.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use redb::Database;

/// A place that survives the process.
pub trait Device: std::fmt::Debug + Send + Sync + 'static {
    /// Names it in errors.
    fn name(&self) -> String;

    /// Opens or creates the database of the log. A second opener is refused while the first lives.
    ///
    /// # Errors
    /// As the system or redb says.
    fn log(&self) -> io::Result<Database>;

    /// Makes the names of new files durable: without it a node could come back blank.
    ///
    /// # Errors
    /// As the system says.
    fn sync_names(&self) -> io::Result<()>;

    /// The bytes of the newest snapshot, `None` when none was ever stored.
    ///
    /// # Errors
    /// As the system says; a missing snapshot is none.
    fn read_snapshot(&self) -> io::Result<Option<Vec<u8>>>;

    /// Replaces the snapshot: durable when this returns, and the whole old or new one at any time.
    ///
    /// # Errors
    /// As the system says; the old one is still there.
    fn replace_snapshot(&self, bytes: &[u8]) -> io::Result<()>;

    /// How long a write to the log takes where time is simulated; it is then made on the asker's
    /// task. `None`, for a real device: a thread of its own makes it, and it takes what it takes.
    fn simulated_write(&self) -> Option<Duration> {
        None
    }
}

/// A directory of this machine.
#[derive(Debug)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new(path: &Path) -> Directory {
        Directory(path.to_owned())
    }

    fn log_file(&self) -> PathBuf {
        self.0.join("raft.redb")
    }

    fn snapshot_file(&self) -> PathBuf {
        self.0.join("snapshot")
    }
}

impl Device for Directory {
    fn name(&self) -> String {
        self.0.display().to_string()
    }

    fn log(&self) -> io::Result<Database> {
        std::fs::create_dir_all(&self.0)?;
        Database::create(self.log_file()).map_err(io::Error::other)
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    fn read_snapshot(&self) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(self.snapshot_file()) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn replace_snapshot(&self, bytes: &[u8]) -> io::Result<()> {
        let (path, fresh) = (self.snapshot_file(), self.0.join("snapshot.new"));
        let mut file = File::create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)?;
        self.sync_names()
    }
}
