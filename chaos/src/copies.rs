//! The passive's journal against the primary's own WAL, byte by byte.
//!
//! It reads both directories as any program would: segments have PostgreSQL's names, the journal has a
//! directory for each timeline, and a segment that is not finished ends in `.partial`. Nothing of the
//! program is asked, and its checksums are not believed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// PostgreSQL's usual size of a segment, which `initdb` gives.
pub(crate) const SEGMENT_BYTES: u64 = 16 << 20;
/// Segments for each of the middle eight digits of a name.
const PER_LOG: u64 = (1 << 32) / SEGMENT_BYTES;
/// What is read at once.
const PIECE_BYTES: usize = 1 << 20;
/// How much before a position is compared to say whether a journal reaches it.
const TAIL_BYTES: u64 = 8192;

/// A segment of WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Segment {
    timeline: u32,
    number: u64,
}

impl Segment {
    /// From the name of a whole segment: 24 hexadecimal digits.
    pub(crate) fn named(name: &str) -> Option<Segment> {
        let digits = |c: char| c.is_ascii_digit() || ('A'..='F').contains(&c);
        if name.len() != 24 || !name.chars().all(digits) {
            return None;
        }
        let part = |at: usize| u64::from_str_radix(&name[at..at + 8], 16).ok();
        let (log, low) = (part(8)?, part(16)?);
        let timeline = u32::try_from(part(0)?).ok()?;
        (low < PER_LOG).then_some(Segment { timeline, number: log * PER_LOG + low })
    }

    /// The one that holds the byte before `lsn`.
    fn before(timeline: u32, lsn: u64) -> Segment {
        Segment { timeline, number: lsn.saturating_sub(1) / SEGMENT_BYTES }
    }

    pub(crate) fn name(self) -> String {
        let Segment { timeline, number } = self;
        format!("{timeline:08X}{:08X}{:08X}", number / PER_LOG, number % PER_LOG)
    }

    /// How many segments there are from this one to another, both included; `None` on another timeline.
    pub(crate) fn count_to(self, end: Segment) -> Option<u64> {
        let same = self.timeline == end.timeline;
        same.then(|| (end.number + 1).saturating_sub(self.number))
    }

    fn next(self) -> Segment {
        Segment { number: self.number + 1, ..self }
    }
}

/// What came of comparing one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compared {
    /// So many bytes are the same, and there are no others.
    Same(u64),
    /// From this byte on they differ, or one of them ends.
    Differs(u64),
    MissingInJournal,
    MissingAtPrimary,
}

/// Where both are, and what has been compared by now.
#[derive(Debug)]
pub(crate) struct Copies {
    journal: PathBuf,
    pg_wal: PathBuf,
    first: Option<Segment>,
    last: Option<Segment>,
    /// Segments that were compared when they were finished.
    pub(crate) segments: u64,
    /// The bytes in them.
    pub(crate) bytes: u64,
    /// Everything that was not as it should be.
    pub(crate) wrong: Vec<String>,
}

impl Copies {
    pub(crate) fn of(journal: PathBuf, pg_wal: PathBuf) -> Copies {
        let (first, last, wrong) = (None, None, Vec::new());
        Copies { journal, pg_wal, first, last, segments: 0, bytes: 0, wrong }
    }

    /// The first and the last segment that were compared.
    pub(crate) fn span(&self) -> Option<(Segment, Segment)> {
        self.first.zip(self.last)
    }

    /// Compares every segment that the journal has finished since the last look. Each follows the one
    /// before: a segment that is left out is a gap.
    ///
    /// # Errors
    /// When a directory or file cannot be read.
    pub(crate) fn look(&mut self) -> Result<()> {
        let primary_begins = segments_of_primary(&self.pg_wal)?.into_keys().next();
        for (segment, file) in finished_in_journal(&self.journal)? {
            if self.last.is_some_and(|last| segment <= last) {
                continue;
            }
            // What the primary removed before the first look is not held by both.
            if self.last.is_none() && primary_begins.is_some_and(|begins| segment < begins) {
                continue;
            }
            if let Some(expected) = self.last.map(Segment::next)
                && segment != expected
            {
                let (expected, found) = (expected.name(), segment.name());
                self.wrong.push(format!("a gap in the journal: {found} where {expected} follows"));
            }
            let compared = compare(&file, &self.pg_wal.join(segment.name()))?;
            self.take(segment, compared);
        }
        Ok(())
    }

    fn take(&mut self, segment: Segment, compared: Compared) {
        self.first = self.first.or(Some(segment));
        self.last = Some(segment);
        match compared {
            Compared::Same(bytes) => {
                self.segments += 1;
                self.bytes += bytes;
            }
            other => self.wrong.push(in_words(segment, other)),
        }
    }

    /// Compares once more everything that both hold now, up to and including `last`; how many segments.
    ///
    /// # Errors
    /// When a directory or file cannot be read, or there is nothing to compare.
    pub(crate) fn all(&mut self, last: Segment) -> Result<u64> {
        let begin = self.begin_of_both()?;
        ensure!(begin <= last, "both begin with {}, behind {}", begin.name(), last.name());
        let (mut segment, mut same) = (begin, 0);
        while segment <= last {
            let file = self.journal.join(format!("{:08X}", segment.timeline)).join(segment.name());
            let compared = compare(&file, &self.pg_wal.join(segment.name()))?;
            match compared {
                Compared::Same(_) => same += 1,
                // Retention removes from the beginning meanwhile.
                Compared::MissingInJournal | Compared::MissingAtPrimary
                    if segment < self.begin_of_both()? => {}
                other => self.wrong.push(in_words(segment, other)),
            }
            segment = segment.next();
        }
        ensure!(same > 0, "there was nothing to compare up to {}", last.name());
        Ok(same)
    }

    fn begin_of_both(&self) -> Result<Segment> {
        let journal = finished_in_journal(&self.journal)?.into_keys().next();
        let primary = segments_of_primary(&self.pg_wal)?.into_keys().next();
        let both = journal.zip(primary).context("find finished segments at both sites")?;
        Ok(both.0.max(both.1))
    }

    /// Whether the journal has the primary's bytes up to `lsn`, which the primary has written itself.
    ///
    /// # Errors
    /// When the primary's file cannot be read, or one of the journal's for another reason than that it
    /// is missing.
    pub(crate) fn journal_reaches(&self, timeline: u32, lsn: u64) -> Result<bool> {
        let segment = Segment::before(timeline, lsn);
        let begin = segment.number * SEGMENT_BYTES;
        let from = lsn.saturating_sub(TAIL_BYTES).max(begin);
        let length = usize::try_from(lsn - from).context("a page fits in memory")?;
        let read = |path: &Path| -> io::Result<Vec<u8>> {
            let mut bytes = vec![0; length];
            File::open(path)?.read_exact_at(&mut bytes, from - begin)?;
            Ok(bytes)
        };
        let primary = self.pg_wal.join(segment.name());
        let wanted = read(&primary).with_context(|| format!("read {}", primary.display()))?;
        let finished = self.journal.join(format!("{timeline:08X}")).join(segment.name());
        let partial = finished.with_extension("partial");
        // It may be finished between two looks.
        for path in [&finished, &partial, &finished] {
            match read(path) {
                Ok(bytes) => return Ok(bytes == wanted),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // While a tail is cleared the file is shorter than a segment.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                Err(error) => {
                    return Err(error).with_context(|| format!("read {}", path.display()));
                }
            }
        }
        Ok(false)
    }

    /// What the journal's files take up, bytes.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub(crate) fn journal_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for directory in timelines(&self.journal)? {
            for entry in entries(&directory)? {
                // One that is removed meanwhile takes nothing up.
                bytes += entry.metadata().map_or(0, |metadata| metadata.len());
            }
        }
        Ok(bytes)
    }
}

fn in_words(segment: Segment, compared: Compared) -> String {
    let name = segment.name();
    match compared {
        Compared::Same(bytes) => format!("{name}: {bytes} bytes are the same"),
        Compared::Differs(at) => format!("{name} differs from the primary's from byte {at} on"),
        Compared::MissingInJournal => format!("{name} is missing in the journal"),
        Compared::MissingAtPrimary => format!("{name} is missing at the primary"),
    }
}

fn compare(journal: &Path, primary: &Path) -> Result<Compared> {
    let open = |path: &Path| match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("open {}", path.display())),
    };
    let Some(mut own) = open(journal)? else { return Ok(Compared::MissingInJournal) };
    let Some(mut other) = open(primary)? else { return Ok(Compared::MissingAtPrimary) };
    let (mut ours, mut theirs) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    let mut same = 0;
    loop {
        let here = fill(&mut own, &mut ours).context("read the journal")?;
        let there = fill(&mut other, &mut theirs).context("read the primary's WAL")?;
        let pairs = ours[..here].iter().zip(&theirs[..there]);
        let equal = pairs.take_while(|(a, b)| a == b).count();
        same += equal as u64;
        if equal < here.max(there) {
            return Ok(Compared::Differs(same));
        }
        if here == 0 {
            // Less than a segment is no finished one, at whichever side.
            let whole = same == SEGMENT_BYTES;
            return Ok(if whole { Compared::Same(same) } else { Compared::Differs(same) });
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read(&mut buffer[read..])? {
            0 => break,
            more => read += more,
        }
    }
    Ok(read)
}

fn entries(directory: &Path) -> Result<Vec<fs::DirEntry>> {
    let what = || format!("list {}", directory.display());
    fs::read_dir(directory).with_context(what)?.map(|entry| entry.with_context(what)).collect()
}

/// The journal's directories, one for each timeline.
fn timelines(journal: &Path) -> Result<Vec<PathBuf>> {
    let is_timeline = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        name.len() == 8 && name.to_str().is_some_and(|name| u32::from_str_radix(name, 16).is_ok())
    };
    Ok(entries(journal)?.into_iter().filter(is_timeline).map(|entry| entry.path()).collect())
}

fn finished_in_journal(journal: &Path) -> Result<BTreeMap<Segment, PathBuf>> {
    let mut found = BTreeMap::new();
    for directory in timelines(journal)? {
        found.extend(segments_of_primary(&directory)?);
    }
    Ok(found)
}

/// Those with a future name too, which PostgreSQL makes of old files.
fn segments_of_primary(directory: &Path) -> Result<BTreeMap<Segment, PathBuf>> {
    let segment =
        |entry: fs::DirEntry| Some((Segment::named(entry.file_name().to_str()?)?, entry.path()));
    Ok(entries(directory)?.into_iter().filter_map(segment).collect())
}

#[cfg(test)]
#[path = "copies_tests.rs"]
mod tests;
