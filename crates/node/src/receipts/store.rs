//! The receipts that lie below a node's `divergent/`: listed, loaded, their transactions read.
//!
//! It changes nothing. A receipt that cannot be read is reported and passed over: one bad file must
//! not hide the others.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use super::{KEPT_FILE, KEPT_WAL, Kept, RECEIPT_FILE, RECEIPT_VERSION, Receipt, TRANSACTIONS_FILE};

/// No receipt is longer: a thousand transactions and a hundred thousand databases.
const RECEIPT_BYTES_MAX: u64 = 64 << 20;
/// No transaction's line is longer.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// A receipt, or what it is made from, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file cannot be read or written.
    #[error("{verb} {path}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("read {path}: {what}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// No receipt has this name.
    #[error("there is no receipt {id:?} in {dir}")]
    Unknown {
        /// What was asked for.
        id: String,
        /// Where it would be.
        dir: PathBuf,
    },
    /// Whoever wanted it does not want it any more.
    #[error("make a receipt: stopped")]
    Stopped,
}

impl StoreError {
    pub(super) fn io(
        verb: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> StoreError + use<> {
        let path = path.to_owned();
        move |source| StoreError::Io { verb, path, source }
    }
}

/// The rounds of `divergent/` by age, the oldest first: their names are `epoch-<epoch>-<number>`.
pub(crate) fn rounds(divergent: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = match fs::read_dir(divergent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io("list", divergent)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(StoreError::io("list", divergent))?;
        let name = entry.file_name();
        let key = name.to_str().and_then(round_key);
        found.extend(key.map(|key| (key, entry.path())));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn round_key(name: &str) -> Option<(understudy_types::Epoch, u32)> {
    let (epoch, number) = name.strip_prefix("epoch-")?.rsplit_once('-')?;
    Some((epoch.parse().ok()?, number.parse().ok()?))
}

/// The receipts below `divergent`, the newest first.
///
/// # Errors
/// When the directory cannot be listed.
pub fn list(divergent: &Path) -> Result<Vec<Receipt>, StoreError> {
    let mut receipts = Vec::new();
    for round in rounds(divergent)?.iter().rev() {
        match read(round) {
            Ok(receipt) => receipts.extend(receipt),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, dir = %round.display(), "receipt passed over");
            }
        }
    }
    Ok(receipts)
}

/// The receipt of this name; the newest one when `id` is empty.
///
/// # Errors
/// When there is none, or it cannot be read.
pub fn load(divergent: &Path, id: &str) -> Result<Receipt, StoreError> {
    let unknown = || StoreError::Unknown { id: id.to_owned(), dir: divergent.to_owned() };
    for round in rounds(divergent)?.iter().rev() {
        let named = round.file_name().is_some_and(|name| name == id);
        if (id.is_empty() || named)
            && let Some(receipt) = read(round)?
        {
            return Ok(receipt);
        }
    }
    Err(unknown())
}

/// All transactions of a receipt, in the order of the WAL: JSON objects, as they were written.
///
/// # Errors
/// When the file cannot be opened.
pub fn transactions(divergent: &Path, receipt: &Receipt) -> Result<Transactions, StoreError> {
    let path = divergent.join(&receipt.id).join(TRANSACTIONS_FILE);
    let file = File::open(&path).map_err(StoreError::io("open", &path))?;
    Ok(Transactions { file: BufReader::new(file), path })
}

/// The lines of a receipt's transactions.
#[derive(Debug)]
pub struct Transactions {
    file: BufReader<File>,
    path: PathBuf,
}

impl Iterator for Transactions {
    type Item = Result<String, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = String::new();
        match self.file.by_ref().take(LINE_BYTES_MAX).read_line(&mut line) {
            Ok(0) => None,
            Ok(_) if line.ends_with('\n') => {
                line.pop();
                Some(Ok(line))
            }
            Ok(_) => {
                let what = "a line without an end".to_owned();
                Some(Err(StoreError::Malformed { path: self.path.clone(), what }))
            }
            Err(error) => Some(Err(StoreError::io("read", &self.path)(error))),
        }
    }
}

/// Lost commits and bytes of WAL of these receipts. Where the fork is not known, nothing is known to
/// be lost.
pub(crate) fn totals(receipts: &[Receipt]) -> (u64, u64) {
    let known = receipts.iter().filter(|receipt| receipt.fork_lsn.is_some());
    known.fold((0, 0), |(commits, bytes), receipt| {
        (commits + receipt.commits, bytes + receipt.lost_wal_bytes)
    })
}

/// What was kept in a round.
pub(crate) fn load_kept(round: &Path) -> Result<Kept, StoreError> {
    let path = round.join(KEPT_WAL).join(KEPT_FILE);
    let content = bounded(&path)?;
    let kept: Kept = serde_json::from_slice(&content)
        .map_err(|error| StoreError::Malformed { path: path.clone(), what: error.to_string() })?;
    if kept.version != 1 {
        let what = format!("version {} is not 1", kept.version);
        return Err(StoreError::Malformed { path, what });
    }
    Ok(kept)
}

/// A round's receipt, if it has one.
fn read(round: &Path) -> Result<Option<Receipt>, StoreError> {
    let path = round.join(RECEIPT_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let malformed = |what: String| StoreError::Malformed { path: path.clone(), what };
    let receipt: Receipt =
        serde_json::from_slice(&bounded(&path)?).map_err(|error| malformed(error.to_string()))?;
    if receipt.version != RECEIPT_VERSION {
        return Err(malformed(format!("version {} is not {RECEIPT_VERSION}", receipt.version)));
    }
    Ok(Some(receipt))
}

fn bounded(path: &Path) -> Result<Vec<u8>, StoreError> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(RECEIPT_BYTES_MAX).read_to_end(&mut content))
        .map_err(StoreError::io("read", path))?;
    Ok(content)
}
