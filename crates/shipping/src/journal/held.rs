//! Which file holds which bytes, through a timeline and its ancestors; reads them, and finds where
//! verified WAL ends.
//!
//! It changes nothing. How far the bytes may be believed is its callers' business.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use understudy_types::{Lsn, SegmentSize, SystemId, Timeline, WalSegment};
use understudy_wal::format::{LONG_HEADER_BYTES, PageHeader, ScanOptions, Scanner};

use super::error::JournalError;
use super::files::{self, History};

/// Bytes read at once while scanning.
const CHUNK_BYTES: usize = 256 * 1024;

/// A timeline, its ancestors, and the directory that holds their segments.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    dir: PathBuf,
    size: SegmentSize,
    /// The timeline itself, then its ancestors, newest first, each with the position it was left at.
    timelines: Vec<(Timeline, Lsn)>,
}

impl Chain {
    pub(super) fn new(
        dir: &Path,
        size: SegmentSize,
        timeline: Timeline,
        histories: &BTreeMap<Timeline, History>,
    ) -> Chain {
        let mut timelines = vec![(timeline, Lsn::MAX)];
        if let Some(history) = histories.get(&timeline) {
            let ancestors = history.parsed.ancestors.iter().rev();
            timelines.extend(ancestors.map(|entry| (entry.timeline, entry.switch_lsn)));
        }
        Chain { dir: dir.to_owned(), size, timelines }
    }

    /// All segments, by number; where a timeline and its ancestor both have one, the timeline's.
    pub(super) fn segments(&self) -> Result<BTreeMap<u64, (WalSegment, bool)>, JournalError> {
        let mut held = BTreeMap::new();
        for &(timeline, left_lsn) in self.timelines.iter().rev() {
            for (number, finished) in files::segments(&self.dir, timeline, self.size)? {
                let segment = WalSegment { timeline, number };
                if segment.start(self.size) < left_lsn {
                    held.insert(number, (segment, finished));
                }
            }
        }
        Ok(held)
    }

    /// The file that holds the segment of this number, `None` if none does.
    pub(super) fn open(&self, number: u64) -> Result<Option<(File, PathBuf)>, JournalError> {
        for &(timeline, left_lsn) in &self.timelines {
            let segment = WalSegment { timeline, number };
            if segment.start(self.size) >= left_lsn {
                continue;
            }
            let finished = files::finished(&self.dir, segment, self.size);
            let partial = files::partial(&self.dir, segment, self.size);
            // It may be renamed between the first try and the second.
            for path in [&finished, &partial, &finished] {
                match File::open(path) {
                    Ok(file) => return Ok(Some((file, path.clone()))),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(JournalError::io("open", path)(error)),
                }
            }
        }
        Ok(None)
    }

    /// Calls `each` with the bytes from `from` to `to`, in order and in pieces.
    pub(super) fn read(
        &self,
        from: Lsn,
        to: Lsn,
        mut each: impl FnMut(Lsn, &[u8]) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let mut at = from;
        let mut buffer = vec![0; CHUNK_BYTES.min(to.bytes_since(from) as usize)];
        while at < to {
            let timeline = self.timelines[0].0;
            let segment = WalSegment::containing(timeline, at, self.size);
            let not_held = JournalError::NotHeld { timeline, lsn: at };
            let (file, path) = self.open(segment.number)?.ok_or(not_held)?;
            let end = to.min(segment.end(self.size));
            while at < end {
                let wanted = buffer.len().min(end.bytes_since(at) as usize);
                let offset = at.bytes_since(segment.start(self.size));
                file.read_exact_at(&mut buffer[..wanted], offset)
                    .map_err(JournalError::io("read", &path))?;
                each(at, &buffer[..wanted])?;
                at = at + wanted as u64;
            }
        }
        Ok(())
    }

    /// Pages from here on must be of the chain's own timeline; `None` if that is not known.
    fn since(&self) -> Option<Lsn> {
        match self.timelines.as_slice() {
            [(Timeline::FIRST, _)] => Some(Lsn::ZERO),
            [_, (_, fork_lsn), ..] => Some(*fork_lsn),
            _ => None,
        }
    }

    /// How its WAL is to be verified.
    pub(super) fn scan_options(&self, system_id: Option<SystemId>) -> ScanOptions {
        ScanOptions {
            timeline: self.timelines[0].0,
            timeline_since: self.since(),
            size: self.size,
            system_id,
            page_magic: None,
        }
    }

    /// Scans from the beginning of a segment until it ends: no file, a short one, or not WAL.
    pub(super) fn scan(&self, options: ScanOptions, first: u64) -> Result<Scanner, JournalError> {
        let from = Lsn(first * self.size.bytes());
        let mut scanner = Scanner::new(options, from, None);
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut number = first;
        while let Some((file, path)) = self.open(number)? {
            let length = self.size.bytes();
            let mut offset = 0;
            while offset < length {
                let wanted = buffer.len().min((length - offset) as usize);
                let got = file
                    .read_at(&mut buffer[..wanted], offset)
                    .map_err(JournalError::io("read", &path))?;
                if got == 0 || scanner.push(&buffer[..got]).is_err() {
                    return Ok(scanner);
                }
                offset += got as u64;
            }
            number += 1;
        }
        Ok(scanner)
    }

    /// Whether a segment begins with the rest of a record, and how much of one: `Some(0)` when it
    /// begins with a record, `None` when its first page cannot be read.
    pub(super) fn continued_bytes(&self, number: u64) -> Result<Option<u64>, JournalError> {
        let Some((file, _)) = self.open(number)? else { return Ok(None) };
        let mut header = [0; LONG_HEADER_BYTES];
        if file.read_exact_at(&mut header, 0).is_err() {
            return Ok(None);
        }
        let start = Lsn(number * self.size.bytes());
        let parsed = PageHeader::parse(&header, start, self.size).ok();
        Ok(parsed.map(|h| if h.continues_record { u64::from(h.remaining_bytes) } else { 0 }))
    }
}
