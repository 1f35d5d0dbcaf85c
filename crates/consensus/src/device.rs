//! What the storage stands on: a directory of this machine, or whatever a simulation puts there.
//!
//! The log's database and the snapshot's bytes go through here, and nothing else does. A device says
//! what is durable; it must not interpret what it keeps.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use redb::Database;

use crate::store::FILE;

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

/// A directory of this machine, or two.
#[derive(Debug)]
pub(crate) struct Directory {
    log: PathBuf,
    snapshots: PathBuf,
}

impl Directory {
    pub(crate) fn new(dir: &Path) -> Directory {
        Directory::with_snapshots(dir, dir)
    }

    /// Log and snapshots apart, so that the switch from one incarnation to the next is that of the log
    /// alone.
    pub(crate) fn with_snapshots(log: &Path, snapshots: &Path) -> Directory {
        Directory { log: log.to_owned(), snapshots: snapshots.to_owned() }
    }
}

/// Makes the directory, so that it survives a crash.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(dir)?;
    match dir.parent() {
        Some(above) if !above.as_os_str().is_empty() => sync_dir(above),
        Some(_) => sync_dir(Path::new(".")),
        None => Ok(()),
    }
}

/// Makes the names in it durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

impl Device for Directory {
    fn name(&self) -> String {
        self.log.display().to_string()
    }

    fn log(&self) -> io::Result<Database> {
        make_dir(&self.log)?;
        // A vote that has rotted would be another vote: every page is read and its checksum compared.
        let mut builder = Database::builder();
        builder.set_check_integrity_on_open(true);
        builder.create(self.log.join(FILE)).map_err(io::Error::other)
    }

    fn sync_names(&self) -> io::Result<()> {
        sync_dir(&self.log)
    }

    fn read_snapshot(&self) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(self.snapshots.join("snapshot")) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn replace_snapshot(&self, bytes: &[u8]) -> io::Result<()> {
        make_dir(&self.snapshots)?;
        let fresh = self.snapshots.join("snapshot.new");
        let mut file = File::create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, self.snapshots.join("snapshot"))?;
        sync_dir(&self.snapshots)
    }
}
