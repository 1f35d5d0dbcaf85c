//! The files of a trace: numbered, bounded together, the oldest removed first. It knows nothing of what
//! is in them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The ring consists of about this many files, so that removing the oldest one takes little away.
const FILES: u64 = 8;
/// A daemon that starts again and again must not fill the directory with small files.
const FILES_MAX: usize = 4096;
const EXTENSION: &str = "trace";

/// The directory and its bound.
#[derive(Debug)]
pub(super) struct Ring {
    dir: PathBuf,
    bytes_max: u64,
}

impl Ring {
    pub(super) fn new(dir: &Path, bytes_max: u64) -> Ring {
        Ring { dir: dir.to_owned(), bytes_max }
    }

    /// A file that has grown to this is closed.
    pub(super) fn file_bytes_max(&self) -> u64 {
        self.bytes_max / FILES
    }

    /// Makes room for one whole file and opens it.
    ///
    /// # Errors
    /// When the directory cannot be read, a file not removed or not made.
    pub(super) fn open_next(&self) -> io::Result<(File, PathBuf)> {
        let mut files = files(&self.dir)?;
        let next = files.last().map_or(1, |(number, ..)| number + 1);
        let mut occupied: u64 = files.iter().map(|(.., bytes)| bytes).sum();
        let room = self.bytes_max.saturating_sub(self.file_bytes_max());
        let excess = |occupied: u64, count: usize| occupied > room || count >= FILES_MAX;
        while excess(occupied, files.len()) && !files.is_empty() {
            let (_, path, bytes) = files.remove(0);
            std::fs::remove_file(path)?;
            occupied -= bytes;
        }
        let path = self.dir.join(format!("{next:010}.{EXTENSION}"));
        // It says who ordered what: for the node's own user only.
        let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path)?;
        Ok((file, path))
    }
}

/// Every file of a ring with its number and size, oldest first.
///
/// # Errors
/// When the directory cannot be read.
pub(super) fn files(dir: &Path) -> io::Result<Vec<(u64, PathBuf, u64)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let ours = path.extension().is_some_and(|extension| extension == EXTENSION);
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let number = stem.and_then(|stem| stem.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| ours) {
            files.push((number, path, entry.metadata()?.len()));
        }
    }
    files.sort();
    Ok(files)
}
