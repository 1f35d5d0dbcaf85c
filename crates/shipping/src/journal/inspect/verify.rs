//! Walks all WAL of a place and tells what it finds.
//!
//! Pages, records, checksums and the chain of records are checked over segments and timelines, with one
//! buffer and below a rate. It reads the disk rather than the kernel's memory of it wherever nobody else
//! needs that memory. A file that retention takes away meanwhile is told as removed, not as damage.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::mem;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use understudy_types::{Lsn, Timeline, WalSegment};
use understudy_wal::format::{ScanOptions, Scanner, Stop};

use super::digest::{Hasher, SegmentDigest};
use super::finding::{Finding, FindingKind, disbelief};
use super::pace::Pace;
use super::place::{Place, PlaceKind, WalEnd};
use super::survey::{Holding, Survey};
use crate::journal::error::JournalError;

/// Bytes read at once.
const CHUNK_BYTES: usize = 256 * 1024;
/// Between two words about how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// WAL this close to the end is what the stream and the standby read: it stays in the kernel's memory.
const IN_USE_BYTES: u64 = 64 << 20;
/// Whoever removes WAL may not do so in order: older files have this long to go too.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(5);
const REMOVAL_POLL: Duration = Duration::from_millis(200);

/// What is to be walked, and how fast.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// From the segment that holds this position on; `None` for all.
    pub from_lsn: Option<Lsn>,
    /// Up to this position; `None` for all.
    pub to_lsn: Option<Lsn>,
    /// Not faster than this.
    pub bytes_per_second: u64,
    /// The digest of the segment that holds such a position ends there, so that two sites that did not
    /// end at the same one can be compared.
    pub cuts: BTreeMap<Timeline, Lsn>,
}

/// What it tells on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Told first.
    Begun {
        /// So much is to be read.
        total_bytes: u64,
    },
    /// Told every half second.
    Progress {
        /// So much was read.
        done_bytes: u64,
        /// Where it is.
        timeline: Timeline,
        /// Where it is.
        lsn: Lsn,
    },
    /// What a history file says; only those that name ancestors.
    History {
        /// Whose history.
        timeline: Timeline,
        /// Its ancestors, and where each was left.
        ancestors: Vec<(Timeline, Lsn)>,
    },
    /// A segment was read.
    Segment(SegmentDigest),
    /// Something is wrong.
    Finding(Finding),
    /// A file was taken away by retention before it was read.
    Removed {
        /// Its name.
        file: String,
    },
}

/// How it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Things that are wrong.
    pub findings_count: u64,
    /// Segments of timelines that the newest one does not descend from: not looked into.
    pub foreign_count: u64,
    /// Where the WAL ends, by what was read, where nobody could say so before.
    pub found_end_lsn: Option<Lsn>,
}

/// Verifies everything that `place` holds now. Blocks, for as long as the rate makes it.
///
/// `tell` stops it by breaking; then the answer is `None`.
///
/// # Errors
/// When directories cannot be read. Files that cannot are findings.
pub fn verify(
    place: &Place,
    options: &VerifyOptions,
    tell: &mut dyn FnMut(Step) -> ControlFlow<()>,
) -> Result<Option<Ended>, JournalError> {
    let survey = place.survey()?;
    let mut walk = Walk {
        place,
        options,
        tell,
        pace: Pace::new(options.bytes_per_second),
        buffer: vec![0; CHUNK_BYTES],
        told: Instant::now(),
        carried: None,
        pending: Vec::new(),
        ended: Ended { foreign_count: survey.foreign.len() as u64, ..Ended::default() },
    };
    match walk.run(&survey) {
        Ok(()) => Ok(Some(walk.ended)),
        Err(Halt::Stopped) => Ok(None),
        Err(Halt::Failed(error)) => Err(error),
    }
}

/// Why it does not go on.
enum Halt {
    Stopped,
    Failed(JournalError),
}

impl From<JournalError> for Halt {
    fn from(error: JournalError) -> Halt {
        Halt::Failed(error)
    }
}

struct Walk<'a> {
    place: &'a Place,
    options: &'a VerifyOptions,
    tell: &'a mut dyn FnMut(Step) -> ControlFlow<()>,
    pace: Pace,
    buffer: Vec<u8>,
    told: Instant,
    /// The parent's scanner at the beginning of the segment in which the next timeline leaves it.
    carried: Option<Scanner>,
    /// Segments that end within a record: whether they are sound shows when that is complete.
    pending: Vec<SegmentDigest>,
    ended: Ended,
}

/// One segment, as far as it is to be read.
#[derive(Clone, Copy)]
struct Piece<'a> {
    segment: WalSegment,
    name: &'a str,
    start_lsn: Lsn,
    to_lsn: Lsn,
    /// It ends where it stops being WAL, which is no damage.
    open_ended: bool,
}

impl Walk<'_> {
    fn run(&mut self, survey: &Survey) -> Result<(), Halt> {
        let pieces = survey.holdings.iter().flat_map(|holding| self.pieces(holding));
        let total_bytes = pieces.map(|piece| piece.to_lsn.bytes_since(piece.start_lsn)).sum();
        self.tell(Step::Begun { total_bytes })?;
        for (timeline, history) in &survey.histories {
            let ancestors =
                history.ancestors.iter().map(|entry| (entry.timeline, entry.switch_lsn));
            let (timeline, ancestors) = (*timeline, ancestors.collect::<Vec<_>>());
            // A number that was passed over has a file of its own, without ancestors.
            if !ancestors.is_empty() {
                self.tell(Step::History { timeline, ancestors })?;
            }
        }
        for finding in &survey.findings {
            self.find(finding.clone())?;
        }
        self.tell_gaps(survey)?;
        for (index, holding) in survey.holdings.iter().enumerate() {
            self.timeline(holding, survey.holdings.get(index + 1))?;
        }
        Ok(())
    }

    fn tell(&mut self, step: Step) -> Result<(), Halt> {
        match (self.tell)(step) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Halt::Stopped),
        }
    }

    fn find(&mut self, finding: Finding) -> Result<(), Halt> {
        self.ended.findings_count += 1;
        self.tell(Step::Finding(finding))
    }

    fn begin_lsn(&self) -> Lsn {
        self.options.from_lsn.unwrap_or(Lsn::ZERO).align_down(self.place.size.bytes())
    }

    fn tell_gaps(&mut self, survey: &Survey) -> Result<(), Halt> {
        let (from_lsn, to_lsn) = (self.begin_lsn(), self.options.to_lsn.unwrap_or(Lsn::MAX));
        for gap in survey.coverage(self.place).gaps {
            if gap.to_lsn <= from_lsn || gap.from_lsn >= to_lsn {
                continue;
            }
            let bytes = gap.to_lsn.bytes_since(gap.from_lsn);
            self.find(Finding {
                kind: FindingKind::Gap,
                timeline: gap.timeline,
                file: gap.first_file,
                lsn: gap.from_lsn,
                sound_lsn: gap.from_lsn,
                expected: format!("WAL up to {}", gap.to_lsn),
                found: format!("no file; {bytes} bytes are missing"),
            })?;
        }
        Ok(())
    }

    /// What of a timeline is to be read, in order.
    fn pieces<'h>(&self, holding: &'h Holding) -> Vec<Piece<'h>> {
        let (size, timeline) = (self.place.size, holding.timeline);
        let mut pieces = Vec::new();
        for (number, held) in &holding.files {
            let segment = WalSegment { timeline, number: *number };
            let (start_lsn, end_lsn) = (segment.start(size), segment.end(size));
            let bounds = [holding.ends_lsn, self.options.to_lsn].into_iter().flatten();
            let to_lsn = bounds.fold(end_lsn, Lsn::min);
            if start_lsn < to_lsn && end_lsn > self.begin_lsn() {
                let open_ended = holding.ends_lsn.is_none() && held.called_partial;
                let name = held.name.as_str();
                pieces.push(Piece { segment, name, start_lsn, to_lsn, open_ended });
            }
        }
        pieces
    }

    fn timeline(&mut self, holding: &Holding, next: Option<&Holding>) -> Result<(), Halt> {
        let size = self.place.size;
        let options = ScanOptions {
            timeline: holding.timeline,
            timeline_since: holding.begins_lsn,
            size,
            system_id: Some(self.place.system_id),
            page_magic: None,
        };
        let next_lsn = next.and_then(|next| next.begins_lsn);
        let next_lsn = next_lsn.map(|fork_lsn| fork_lsn.align_down(size.bytes()));
        let mut parent = self.carried.take();
        let mut scanner: Option<Scanner> = None;
        for piece in self.pieces(holding) {
            let at = piece.start_lsn;
            // What is checked over the border of segments needs the segment before this one, of this
            // timeline or of the one that it left.
            let leaves = parent.take().map(|parent| parent.reading_as(options));
            let goes_on = scanner.take().or(leaves).filter(|scanner| scanner.position() == at);
            let entering = match goes_on {
                Some(scanner) => scanner,
                None => {
                    self.tell_pending(Lsn::MAX, true)?;
                    Scanner::new(options, at, None)
                }
            };
            if Some(at) == next_lsn {
                self.carried = Some(entering.clone());
            }
            scanner = self.segment(piece, entering)?;
        }
        self.tell_pending(Lsn::MAX, true)?;
        let Some(scanner) = scanner else { return Ok(()) };
        if Some(scanner.position()) == next_lsn {
            self.carried = Some(scanner.clone());
        }
        self.check_end(holding, &scanner, next)
    }

    /// Where a timeline was left, and where a journal's WAL ends, a record ends.
    fn check_end(
        &mut self,
        holding: &Holding,
        scanner: &Scanner,
        next: Option<&Holding>,
    ) -> Result<(), Halt> {
        let Some(ends_lsn) = holding.ends_lsn else { return Ok(()) };
        let midway = next.is_none() && matches!(self.place.end, WalEnd::Flushed(_));
        let cut = scanner.position() != ends_lsn;
        if midway || cut || scanner.end_lsn() == ends_lsn {
            return Ok(());
        }
        let timeline = holding.timeline;
        let expected = match next {
            Some(next) => {
                format!("a record that ends there, because timeline {} begins", next.timeline)
            }
            None => "a record that ends there, because everything before it was durable".to_owned(),
        };
        let lsn = scanner.end_lsn();
        self.find(Finding {
            kind: FindingKind::End,
            timeline,
            file: WalSegment::containing(timeline, lsn, self.place.size).file_name(self.place.size),
            lsn: ends_lsn,
            sound_lsn: lsn,
            expected,
            found: format!("the last whole record ends at {lsn}"),
        })
    }

    /// Reads one segment; the scanner behind it, unless the chain of records is broken here.
    fn segment(&mut self, piece: Piece<'_>, scanner: Scanner) -> Result<Option<Scanner>, Halt> {
        let (file, path) = match self.open(piece.segment) {
            Ok(Some(opened)) => opened,
            Ok(None) => {
                self.gone(piece)?;
                return Ok(None);
            }
            Err(error) => {
                let trouble = Trouble::Unreadable { at: piece.start_lsn, words: error.to_string() };
                self.find(self.described(piece, &scanner, trouble))?;
                return Ok(None);
            }
        };
        self.forget_cached(&file, piece);
        let mut buffer = mem::take(&mut self.buffer);
        let read = self.read(piece, &file, scanner, &mut buffer);
        self.buffer = buffer;
        let (scanner, hasher, trouble) = read?;
        // A server gives a file that it needs no longer another name and writes into it.
        if self.place.kind == PlaceKind::PgWal && !is_still(&file, &path) {
            self.tell(Step::Removed { file: piece.name.to_owned() })?;
            return Ok(None);
        }
        // An unfinished segment ends somewhere; that it cannot be read is another matter.
        if piece.open_ended && !matches!(trouble, Some(Trouble::Unreadable { .. })) {
            let end_lsn = scanner.end_lsn();
            self.ended.found_end_lsn = Some(end_lsn);
            self.check_floor(piece, end_lsn)?;
            return Ok(None);
        }
        let sound = trouble.is_none();
        let name = piece.segment.file_name(self.place.size);
        if let Some(trouble) = trouble {
            self.find(self.described(piece, &scanner, trouble))?;
        }
        let timeline = piece.segment.timeline;
        self.pending.push(hasher.finish(timeline, name, piece.start_lsn, sound));
        let upto_lsn = if sound { scanner.end_lsn() } else { Lsn::MAX };
        self.tell_pending(upto_lsn, sound)?;
        Ok(sound.then_some(scanner))
    }

    /// Tells of the segments that end at a position at the latest.
    fn tell_pending(&mut self, upto_lsn: Lsn, sound: bool) -> Result<(), Halt> {
        for digest in mem::take(&mut self.pending) {
            if digest.to_lsn <= upto_lsn {
                let sound = sound && digest.sound;
                self.tell(Step::Segment(SegmentDigest { sound, ..digest }))?;
            } else {
                self.pending.push(digest);
            }
        }
        Ok(())
    }

    fn read(
        &mut self,
        piece: Piece<'_>,
        file: &File,
        mut scanner: Scanner,
        buffer: &mut [u8],
    ) -> Result<(Scanner, Hasher, Option<Trouble>), Halt> {
        let (timeline, start_lsn, to_lsn) = (piece.segment.timeline, piece.start_lsn, piece.to_lsn);
        let cut = self.options.cuts.get(&timeline).copied().filter(|cut| *cut > start_lsn);
        let mut hasher = Hasher::new(start_lsn, cut.map_or(to_lsn, |cut| cut.min(to_lsn)));
        let (mut at, mut trouble) = (start_lsn, None);
        while at < to_lsn {
            let wanted = buffer.len().min(to_lsn.bytes_since(at) as usize);
            self.pace.wait_for(wanted);
            let got = match file.read_at(&mut buffer[..wanted], at.bytes_since(start_lsn)) {
                Ok(0) => {
                    trouble.get_or_insert(Trouble::Short { at });
                    break;
                }
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    trouble.get_or_insert(Trouble::Unreadable { at, words: error.to_string() });
                    break;
                }
            };
            // What follows damage is still hashed: the other site says whether it is the same.
            if trouble.is_none()
                && let Err(stop) = scanner.push(&buffer[..got])
            {
                trouble = Some(Trouble::Wal(stop));
                if piece.open_ended {
                    break;
                }
            }
            hasher.update(&buffer[..got]);
            at = at + got as u64;
            self.ended.read_bytes += got as u64;
            self.tell_progress(timeline, at)?;
        }
        Ok((scanner, hasher, trouble))
    }

    fn tell_progress(&mut self, timeline: Timeline, lsn: Lsn) -> Result<(), Halt> {
        if self.told.elapsed() < PROGRESS_INTERVAL {
            return Ok(());
        }
        self.told = Instant::now();
        let done_bytes = self.ended.read_bytes;
        self.tell(Step::Progress { done_bytes, timeline, lsn })
    }

    /// Nobody could say where the WAL ends, but how far it reached once.
    fn check_floor(&mut self, piece: Piece<'_>, end_lsn: Lsn) -> Result<(), Halt> {
        let WalEnd::Unknown { floor_lsn } = self.place.end else { return Ok(()) };
        if end_lsn >= floor_lsn || piece.to_lsn < floor_lsn {
            return Ok(());
        }
        self.find(Finding {
            kind: FindingKind::End,
            timeline: piece.segment.timeline,
            file: piece.name.to_owned(),
            lsn: end_lsn,
            sound_lsn: end_lsn,
            expected: format!("WAL up to {floor_lsn}, which was durable"),
            found: format!("the last whole record ends at {end_lsn}"),
        })
    }

    fn described(&self, piece: Piece<'_>, scanner: &Scanner, trouble: Trouble) -> Finding {
        let (timeline, size) = (piece.segment.timeline, self.place.size);
        let name = piece.name.to_owned();
        let sound_lsn = scanner.end_lsn();
        let (kind, file, lsn, expected, found) = match trouble {
            Trouble::Wal(stop) => {
                let (lsn, expected, mut found) = disbelief(&stop);
                let mut file = name;
                if lsn < piece.start_lsn {
                    found = format!("{found}; what begins there goes on in {file}");
                    file = WalSegment::containing(timeline, lsn, size).file_name(size);
                }
                (FindingKind::Damaged, file, lsn, expected, found)
            }
            Trouble::Short { at } => {
                let length = at.bytes_since(piece.start_lsn);
                let expected = format!("{} bytes", piece.to_lsn.bytes_since(piece.start_lsn));
                (FindingKind::Short, name, at, expected, format!("a file of {length} bytes"))
            }
            Trouble::Unreadable { at, words } => {
                (FindingKind::Unreadable, name, at, "bytes that can be read".to_owned(), words)
            }
        };
        Finding { kind, timeline, file, lsn, sound_lsn, expected, found }
    }

    fn open(&self, segment: WalSegment) -> io::Result<Option<(File, PathBuf)>> {
        for path in self.place.paths_of(segment) {
            match File::open(&path) {
                Ok(file) => return Ok(Some((file, path))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// A file that was there is not: retention, which takes the oldest, or something that must not be.
    fn gone(&mut self, piece: Piece<'_>) -> Result<(), Halt> {
        let deadline = Instant::now() + REMOVAL_PATIENCE;
        let number = piece.segment.number;
        loop {
            let survey = self.place.survey()?;
            let older = |holding: &Holding| holding.files.range(..number).next().is_some();
            if !survey.holdings.iter().any(older) {
                return self.tell(Step::Removed { file: piece.name.to_owned() });
            }
            if Instant::now() > deadline {
                break;
            }
            std::thread::sleep(REMOVAL_POLL);
            self.tell_progress(piece.segment.timeline, piece.start_lsn)?;
        }
        self.find(Finding {
            kind: FindingKind::Vanished,
            timeline: piece.segment.timeline,
            file: piece.name.to_owned(),
            lsn: piece.start_lsn,
            sound_lsn: piece.start_lsn,
            expected: "the file, because older ones are there".to_owned(),
            found: "no file; it was there when this began".to_owned(),
        })
    }

    /// Bits that rot on a disk are not seen in the kernel's copy of what they were.
    fn forget_cached(&self, file: &File, piece: Piece<'_>) {
        use rustix::fs::{Advice, fadvise};
        let in_use = self.place.end_lsn().map(|end_lsn| end_lsn.bytes_since(piece.to_lsn));
        if in_use.is_none_or(|behind| behind >= IN_USE_BYTES) {
            // Where the file system cannot do that, what it remembers is read.
            let _ = fadvise(file, 0, None, Advice::DontNeed);
        }
    }
}

/// Why a segment is not sound.
enum Trouble {
    Wal(Stop),
    Short { at: Lsn },
    Unreadable { at: Lsn, words: String },
}

/// Whether `path` still names the file that was opened by it.
fn is_still(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(opened), Ok(named)) => (opened.dev(), opened.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}
