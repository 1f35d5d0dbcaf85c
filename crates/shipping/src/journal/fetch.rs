//! What PostgreSQL's own tools need from WAL files while no daemon runs: `restore_command`, and where
//! the WAL of a data directory ends.
//!
//! Takes no lock and changes nothing but the target of a copy.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use understudy_types::{Lsn, SegmentSize, Timeline, WalSegment};
use understudy_wal::format::{LONG_HEADER_BYTES, PageHeader, ScanOptions, Scanner, Stop};

use super::error::JournalError;
use super::files;

const CHUNK_BYTES: usize = 256 * 1024;

/// What `get` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GetOutcome {
    /// The file is at its target, durable.
    Copied,
    /// The journal in that directory does not have it (or not all of it); nothing was written.
    NotFound,
}

/// Copies a finished segment or a history file by PostgreSQL's name to `target`, at once and durably.
///
/// A segment is read and verified (pages, records, checksums) before it is served. An unfinished one
/// is never served: a standby gets it over the replication protocol.
///
/// # Errors
/// When the file is there and cannot be read or does not verify, or the target cannot be written.
pub fn get(dir: &Path, name: &str, target: &Path) -> Result<GetOutcome, JournalError> {
    let hexadecimal = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let history = name.strip_suffix(".history").filter(|stem| stem.len() == 8 && hexadecimal(stem));
    let source = if history.is_some() {
        dir.join(name)
    } else if name.len() == 24 && hexadecimal(name) {
        dir.join(&name[..8]).join(name)
    } else {
        return Ok(GetOutcome::NotFound);
    };
    let Some(content) = files::read_if_exists(&source)? else { return Ok(GetOutcome::NotFound) };
    if history.is_none() {
        verify_segment(&source, name, &content)?;
    }
    files::replace_durably(target, &content)?;
    Ok(GetOutcome::Copied)
}

/// A finished segment must verify from its first byte to its last.
fn verify_segment(path: &Path, name: &str, content: &[u8]) -> Result<(), JournalError> {
    let first = content.first_chunk::<LONG_HEADER_BYTES>();
    let identity = first.and_then(|bytes| PageHeader::identify(bytes).ok());
    let size = u32::try_from(content.len()).ok().and_then(SegmentSize::new);
    let (Some(PageHeader { segment: Some((system_id, _)), .. }), Some(size)) = (identity, size)
    else {
        return Err(JournalError::corrupt(path, "not a WAL segment"));
    };
    let segment = WalSegment::parse(name, size)
        .map_err(|_| JournalError::corrupt(path, "name and segment size do not fit"))?;
    let options = ScanOptions {
        timeline: segment.timeline,
        timeline_since: None,
        size,
        system_id: Some(system_id),
        page_magic: None,
    };
    let mut scanner = Scanner::new(options, segment.start(size), None);
    scanner
        .push(content)
        .map_err(|source| JournalError::BadWal { timeline: segment.timeline, source })
}

/// Why a scan of files ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanStop {
    /// What follows is not WAL, or not this WAL.
    Invalid(Stop),
    /// There is no (complete) file for what follows.
    NoFile,
}

/// Where the WAL of a directory ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanResult {
    /// The end of the last complete record.
    pub end_lsn: Lsn,
    /// Its start; `None` if there was no complete record.
    pub last_record_lsn: Option<Lsn>,
    /// Why it ended there.
    pub stop: ScanStop,
}

/// Finds where the WAL of a data directory's `pg_wal` ends, reading from the beginning of the segment
/// that holds `from`, which must be there on `timeline`.
///
/// # Errors
/// When that segment is not there, or a file cannot be read.
pub fn scan_pg_wal(
    pg_wal: &Path,
    timeline: Timeline,
    from: Lsn,
    size: SegmentSize,
) -> Result<ScanResult, JournalError> {
    let (timeline_since, system_id, page_magic) = (None, None, None);
    let options = ScanOptions { timeline, timeline_since, size, system_id, page_magic };
    let mut segment = WalSegment::containing(timeline, from, size);
    let mut scanner = Scanner::new(options, segment.start(size), None);
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut found = false;
    let stop = 'files: loop {
        let path = pg_wal.join(segment.file_name(size));
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && found => {
                break ScanStop::NoFile;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(JournalError::NotHeld { timeline, lsn: from });
            }
            Err(error) => return Err(JournalError::io("open", &path)(error)),
        };
        found = true;
        let mut offset = 0;
        while offset < size.bytes() {
            let wanted = buffer.len().min((size.bytes() - offset) as usize);
            let got = file
                .read_at(&mut buffer[..wanted], offset)
                .map_err(JournalError::io("read", &path))?;
            if got == 0 {
                break 'files ScanStop::NoFile;
            }
            if let Err(stop) = scanner.push(&buffer[..got]) {
                break 'files ScanStop::Invalid(stop);
            }
            offset += got as u64;
        }
        segment = segment.next();
    };
    let (end_lsn, last_record_lsn) = (scanner.end_lsn(), scanner.last_record_lsn());
    Ok(ScanResult { end_lsn, last_record_lsn, stop })
}
