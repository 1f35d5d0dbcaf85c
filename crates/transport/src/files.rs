//! Files that hold secrets: who may read them is checked before they are read, and nothing existing
//! is overwritten.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The longest key or certificate file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A file that cannot or must not be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Reading failed.
    #[error("read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Writing failed.
    #[error("write {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It exists, and we overwrite nothing.
    #[error("write {}: it exists already; move it away first", path.display())]
    Exists {
        /// Which file.
        path: PathBuf,
    },
    /// Others than its owner can read a secret.
    #[error(
        "read key {}: its mode {mode:04o} lets others than its owner in; run `chmod 600 {}`",
        path.display(), path.display()
    )]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else owns a secret.
    #[error(
        "read key {}: it is owned by uid {uid}, expected root or uid {expected}; \
         run `chown {expected} {}`",
        path.display(), path.display()
    )]
    Owner {
        /// Which file.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// This process.
        expected: u32,
    },
    /// Longer than any key or certificate.
    #[error("read {}: it has {len} bytes, more than {FILE_BYTES_MAX}", path.display())]
    TooLong {
        /// Which file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
}

/// Reads a file of bounded length.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, FileError> {
    let error = |source| FileError::Read { path: path.to_owned(), source };
    read_open(path, &mut File::open(path).map_err(error)?)
}

fn read_open(path: &Path, file: &mut File) -> Result<Vec<u8>, FileError> {
    let error = |source| FileError::Read { path: path.to_owned(), source };
    let len = file.metadata().map_err(error)?.len();
    if len > FILE_BYTES_MAX {
        return Err(FileError::TooLong { path: path.to_owned(), len });
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(error)?;
    Ok(bytes)
}

/// Reads a secret, after checking on the open file that only its owner can, and that the owner is
/// root or this process's effective user.
///
/// # Errors
/// When it cannot be read, or others could.
pub fn read_private_file(path: &Path) -> Result<Vec<u8>, FileError> {
    let error = |source| FileError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(error)?;
    let metadata = file.metadata().map_err(error)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::Mode { path: path.to_owned(), mode });
    }
    let expected = rustix::process::geteuid().as_raw();
    let uid = metadata.uid();
    if uid != 0 && uid != expected {
        return Err(FileError::Owner { path: path.to_owned(), uid, expected });
    }
    read_open(path, &mut file)
}

/// Writes a new file with this mode from the first byte on, durably; refuses to replace anything.
///
/// # Errors
/// When it exists or cannot be written.
pub fn write_new_file(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), FileError> {
    let error = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => FileError::Exists { path: path.to_owned() },
        _ => FileError::Write { path: path.to_owned(), source },
    };
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(error)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(error)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(parent.unwrap_or(Path::new("."))).map_err(error)?;
    directory.sync_all().map_err(error)
}

/// Creates a directory that only its owner can enter; fine if it is there already.
///
/// # Errors
/// When it cannot be created.
pub fn create_private_dir(path: &Path) -> Result<(), FileError> {
    let result = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    result.map_err(|source| FileError::Write { path: path.to_owned(), source })
}
