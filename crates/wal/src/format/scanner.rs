//! `Scanner`: told the bytes of WAL in order, says where the last complete, valid record ends.
//!
//! It checks what PostgreSQL's own reader checks before replay (page headers, lengths, the chain of
//! `xl_prev`, CRC-32C) and the zeroes that follow a segment switch. It keeps a record's header and
//! running checksum, never its data. It does not judge whether WAL belongs to the cluster's history.

use understudy_types::{Lsn, SegmentSize, SystemId, Timeline};

use super::page::{self, LONG_HEADER_BYTES, PAGE_BYTES, PageFault, PageHeader};
use super::record::{RECORD_BYTES_MAX, RECORD_HEADER_BYTES, RecordHeader, finish_checksum};

/// Records begin at multiples of this (`MAXALIGN`).
const ALIGNMENT: u64 = 8;

/// What is known about the WAL before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanOptions {
    /// The timeline that is read: no page may be of a later one.
    pub timeline: Timeline,
    /// Pages that begin here or later must be of that very timeline; `None` if it is not known where
    /// it left its parent. Earlier ones may be of an ancestor.
    pub timeline_since: Option<Lsn>,
    /// The segment size.
    pub size: SegmentSize,
    /// Whose WAL it must be, `None` if anybody's will do.
    pub system_id: Option<SystemId>,
    /// The magic of its pages, which is that of all pages of a cluster; `None` if the first page says it.
    pub page_magic: Option<u16>,
}

/// Why a scanner will not go on. `at` is the position of what it did not believe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// A page header cannot be the one at its position.
    #[error("read WAL page at {at}")]
    Page {
        /// The page.
        at: Lsn,
        /// What is wrong with it.
        #[source]
        fault: PageFault,
    },
    /// Where a record has to begin there are only zeroes: nothing was written here.
    #[error("read WAL record at {at}: nothing was written here")]
    Zeroes {
        /// Where the record would begin.
        at: Lsn,
    },
    /// The record's length is impossible.
    #[error("read WAL record at {at}: length {total_bytes} is impossible")]
    Length {
        /// The record.
        at: Lsn,
        /// The length it states.
        total_bytes: u32,
    },
    /// The record does not name the one before it as its predecessor.
    #[error("read WAL record at {at}: predecessor is {found}, expected {expected:?}")]
    Previous {
        /// The record.
        at: Lsn,
        /// What it names.
        found: Lsn,
        /// What it must name; `None` if any earlier position will do.
        expected: Option<Lsn>,
    },
    /// The checksum does not match.
    #[error("read WAL record at {at}: checksum is {computed:#010X}, expected {stated:#010X}")]
    Checksum {
        /// The record.
        at: Lsn,
        /// What its bytes give.
        computed: u32,
        /// What its header says.
        stated: u32,
    },
    /// After a segment switch the rest of the segment is not zero.
    #[error("read WAL after a segment switch: byte at {at} is not zero")]
    AfterSwitch {
        /// The byte.
        at: Lsn,
    },
}

/// What the next byte of a page's content belongs to.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The beginning of a record.
    Between,
    /// A record that has begun.
    Record(Partial),
    /// The rest of a record whose beginning was not seen.
    Skipping { remaining_bytes: u32 },
    /// Alignment after a record, or after the rest of one (`record` is `None`).
    Padding { record: Option<Lsn> },
    /// What a segment switch left empty, up to the end of the segment.
    Switched { record: Lsn },
}

/// A record of which some bytes have been seen.
#[derive(Clone, Copy, Debug)]
struct Partial {
    start_lsn: Lsn,
    header: [u8; RECORD_HEADER_BYTES],
    seen_bytes: u32,
    /// 0 until the first four bytes of the header have been seen.
    total_bytes: u32,
    data_crc: u32,
}

/// Is told the bytes of records while a scanner reads them.
pub trait RecordSink {
    /// A record begins at `start_lsn`; what was told of one that was not completed is void.
    fn begin(&mut self, start_lsn: Lsn);
    /// Its next bytes, from the header on and without page headers, in pieces of any size, maybe all at
    /// once; not to be believed yet.
    fn bytes(&mut self, bytes: &[u8]);
    /// It is complete and its checksum is right; it ends before `end_lsn`, aligned.
    fn complete(&mut self, end_lsn: Lsn);
}

/// Wants to know nothing.
struct Deaf;

impl RecordSink for Deaf {
    fn begin(&mut self, _: Lsn) {}
    fn bytes(&mut self, _: &[u8]) {}
    fn complete(&mut self, _: Lsn) {}
}

/// Reads WAL in order, in pieces of any size.
#[derive(Clone, Debug)]
pub struct Scanner {
    options: ScanOptions,
    position: Lsn,
    end_lsn: Lsn,
    last_record_lsn: Option<Lsn>,
    page_timeline: Option<Timeline>,
    page_header: [u8; LONG_HEADER_BYTES],
    page_header_seen: usize,
    phase: Phase,
    stop: Option<Stop>,
}

impl Scanner {
    /// A scanner whose first byte will be the one at `from`: a page boundary, or the end of a record
    /// (or of the rest of one).
    ///
    /// With `last_record_lsn`, `from` is the end of that record and the next one has to name it.
    /// Without, a page may begin with the rest of a record, which is passed over unchecked.
    pub fn new(options: ScanOptions, from: Lsn, last_record_lsn: Option<Lsn>) -> Scanner {
        assert!(from.0.is_multiple_of(ALIGNMENT), "no record ends at {from}");
        Scanner {
            options,
            position: from,
            end_lsn: from,
            last_record_lsn,
            page_timeline: None,
            page_header: [0; LONG_HEADER_BYTES],
            page_header_seen: 0,
            phase: Phase::Between,
            stop: None,
        }
    }

    /// The position of the next byte it wants.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// The end of the last complete, valid record, aligned as PostgreSQL does it; of a segment switch
    /// the end of the segment; where it began if there was none yet.
    pub fn end_lsn(&self) -> Lsn {
        self.end_lsn
    }

    /// The start of that record; `None` if none was complete.
    pub fn last_record_lsn(&self) -> Option<Lsn> {
        self.last_record_lsn
    }

    /// Why it stopped; `None` while it would read on, maybe in the middle of a record.
    pub fn stop(&self) -> Option<&Stop> {
        self.stop.as_ref()
    }

    /// What it was told about the WAL, and what it learned of that: for whoever goes on from its end.
    pub fn options(&self) -> ScanOptions {
        self.options
    }

    /// A scanner at the same place in the same WAL that goes on by other options: the first segment of a
    /// timeline repeats its parent's bytes up to where it left it.
    #[must_use]
    pub fn reading_as(&self, options: ScanOptions) -> Scanner {
        Scanner { options, ..self.clone() }
    }

    /// Reads the bytes at `position()`.
    ///
    /// # Errors
    /// Why it stopped, now or earlier. `end_lsn` and `last_record_lsn` stay what they were before.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.push_to(bytes, &mut Deaf)
    }

    /// Reads the bytes at `position()` and tells `sink` of the records in them.
    ///
    /// # Errors
    /// As `push`. The record in which it stopped is not told as complete.
    pub fn push_to(&mut self, mut bytes: &[u8], sink: &mut impl RecordSink) -> Result<(), Stop> {
        if let Some(stop) = &self.stop {
            return Err(stop.clone());
        }
        while !bytes.is_empty() {
            match self.step(bytes, sink) {
                Ok(used) => {
                    self.position = self.position + used as u64;
                    bytes = &bytes[used..];
                    self.after_step(sink);
                }
                Err(stop) => {
                    self.stop = Some(stop.clone());
                    return Err(stop);
                }
            }
        }
        Ok(())
    }

    /// Reads up to the end of what it is in, at most to the end of the page; returns bytes used.
    fn step(&mut self, bytes: &[u8], sink: &mut impl RecordSink) -> Result<usize, Stop> {
        let page_start = self.position.align_down(PAGE_BYTES);
        if page_start > Lsn::MAX - PAGE_BYTES {
            return Err(Stop::Page { at: page_start, fault: PageFault::BeyondAll });
        }
        let page_offset = (self.position.0 - page_start.0) as usize;
        let left_in_page = PAGE_BYTES as usize - page_offset;
        let bytes = &bytes[..bytes.len().min(left_in_page)];
        if let Phase::Switched { .. } = self.phase {
            return match bytes.iter().position(|byte| *byte != 0) {
                None => Ok(bytes.len()),
                Some(at) => Err(Stop::AfterSwitch { at: self.position + at as u64 }),
            };
        }
        let header_bytes = page::header_bytes(page_start, self.options.size);
        if page_offset < header_bytes {
            return self.step_page_header(bytes, page_start, page_offset, header_bytes);
        }
        match &mut self.phase {
            Phase::Switched { .. } => unreachable!("handled above"),
            Phase::Between => {
                let used = self.whole_records(bytes, sink);
                if used > 0 {
                    return Ok(used);
                }
                self.phase = Phase::Record(Partial {
                    start_lsn: self.position,
                    header: [0; RECORD_HEADER_BYTES],
                    seen_bytes: 0,
                    total_bytes: 0,
                    data_crc: 0,
                });
                sink.begin(self.position);
                Ok(0)
            }
            Phase::Record(partial) => {
                let used = partial.step(bytes, self.last_record_lsn)?;
                sink.bytes(&bytes[..used]);
                Ok(used)
            }
            Phase::Skipping { remaining_bytes } => {
                let used = bytes.len().min(*remaining_bytes as usize);
                *remaining_bytes -= used as u32;
                Ok(used)
            }
            Phase::Padding { .. } => {
                let wanted = self.position.align_up(ALIGNMENT).bytes_since(self.position);
                Ok(bytes.len().min(wanted as usize))
            }
        }
    }

    /// Reads records that lie in `bytes` with their alignment, none of them remarkable; returns bytes used.
    ///
    /// Most records are such, and half of a scan's time went into keeping the state between the steps of
    /// each. Whatever is not plain is left to the steps, which know why it is wrong.
    fn whole_records(&mut self, bytes: &[u8], sink: &mut impl RecordSink) -> usize {
        let mut used = 0;
        while let Some((header, data)) = bytes[used..].split_first_chunk::<RECORD_HEADER_BYTES>() {
            let parsed = RecordHeader::parse(header);
            let record_bytes = parsed.total_bytes as usize;
            let Some(data_bytes) = record_bytes.checked_sub(RECORD_HEADER_BYTES) else { break };
            if record_bytes > bytes.len() - used {
                break;
            }
            let aligned_bytes = record_bytes.next_multiple_of(ALIGNMENT as usize);
            let start_lsn = self.position + used as u64;
            let chained = is_chained(parsed.previous_lsn, self.last_record_lsn, start_lsn);
            if !chained || aligned_bytes > bytes.len() - used || parsed.is_segment_switch() {
                break;
            }
            let computed = finish_checksum(crc32c::crc32c(&data[..data_bytes]), header);
            if computed != parsed.checksum {
                break;
            }
            sink.begin(start_lsn);
            sink.bytes(&bytes[used..used + record_bytes]);
            used += aligned_bytes;
            self.end_lsn = self.position + used as u64;
            self.last_record_lsn = Some(start_lsn);
            sink.complete(self.end_lsn);
        }
        used
    }

    fn step_page_header(
        &mut self,
        bytes: &[u8],
        page_start: Lsn,
        page_offset: usize,
        header_bytes: usize,
    ) -> Result<usize, Stop> {
        // A header that was not seen from its first byte can only be that of a start inside a header,
        // which the constructor's contract excludes.
        assert_eq!(page_offset, self.page_header_seen, "scan began inside a page header");
        let used = bytes.len().min(header_bytes - page_offset);
        self.page_header[page_offset..page_offset + used].copy_from_slice(&bytes[..used]);
        self.page_header_seen += used;
        if self.page_header_seen == header_bytes {
            self.page_header_seen = 0;
            let header = self.page_header;
            self.enter_page(&header[..header_bytes], page_start)
                .map_err(|fault| Stop::Page { at: page_start, fault })?;
        }
        Ok(used)
    }

    fn enter_page(&mut self, bytes: &[u8], page_start: Lsn) -> Result<(), PageFault> {
        let header = PageHeader::parse(bytes, page_start, self.options.size)?;
        self.check_origin(&header)?;
        let found = header.continues_record.then_some(header.remaining_bytes);
        let expected = match self.phase {
            Phase::Record(partial) => Some(partial.total_bytes - partial.seen_bytes),
            Phase::Skipping { remaining_bytes } => Some(remaining_bytes),
            Phase::Between | Phase::Padding { .. } | Phase::Switched { .. } => None,
        };
        let first = self.end_lsn == page_start && self.last_record_lsn.is_none();
        match (found, expected) {
            (None, None) => {}
            (Some(found), Some(expected)) if found == expected => {}
            (Some(found), None) if first && found > 0 => {
                self.phase = Phase::Skipping { remaining_bytes: found };
            }
            // A crash left half a record; recovery began a new one here instead of finishing it.
            (None, Some(_)) if header.overwrites_record => self.phase = Phase::Between,
            (found, expected) => return Err(PageFault::Continuation { found, expected }),
        }
        self.page_timeline = Some(header.timeline);
        self.options.page_magic = Some(header.magic);
        Ok(())
    }

    /// Version, timeline and system of a page.
    fn check_origin(&self, header: &PageHeader) -> Result<(), PageFault> {
        if let Some(expected) = self.options.page_magic.filter(|magic| *magic != header.magic) {
            return Err(PageFault::OtherMagic { found: header.magic, expected });
        }
        let expected = self.options.timeline;
        let late = self.options.timeline_since.is_some_and(|since| header.page_lsn >= since);
        let backwards = self.page_timeline.is_some_and(|before| header.timeline < before);
        if header.timeline > expected || backwards || (late && header.timeline != expected) {
            return Err(PageFault::Timeline { found: header.timeline.get(), expected });
        }
        match (header.segment, self.options.system_id) {
            (Some((found, _)), Some(expected)) if found != expected => {
                Err(PageFault::System { found, expected })
            }
            _ => Ok(()),
        }
    }

    /// Goes from phase to phase where the position says so.
    fn after_step(&mut self, sink: &mut impl RecordSink) {
        if let Phase::Record(partial) = self.phase
            && partial.is_complete()
        {
            sink.complete(self.position.align_up(ALIGNMENT));
            let switch = RecordHeader::parse(&partial.header).is_segment_switch();
            self.phase = if switch {
                Phase::Switched { record: partial.start_lsn }
            } else {
                Phase::Padding { record: Some(partial.start_lsn) }
            };
        }
        if let Phase::Skipping { remaining_bytes: 0 } = self.phase {
            self.phase = Phase::Padding { record: None };
        }
        let (record, alignment) = match self.phase {
            Phase::Padding { record } => (record, ALIGNMENT),
            Phase::Switched { record } => (Some(record), self.options.size.bytes()),
            Phase::Between | Phase::Record(_) | Phase::Skipping { .. } => return,
        };
        if self.position.0.is_multiple_of(alignment) {
            self.end_lsn = self.position;
            self.last_record_lsn = record.or(self.last_record_lsn);
            self.phase = Phase::Between;
        }
    }
}

/// Whether the record at `at` names the right predecessor; without a known one any earlier will do.
fn is_chained(found: Lsn, expected: Option<Lsn>, at: Lsn) -> bool {
    expected.map_or(found < at, |expected| found == expected)
}

impl Partial {
    fn is_complete(&self) -> bool {
        self.total_bytes > 0 && self.seen_bytes == self.total_bytes
    }

    /// Takes what belongs to the record from `bytes`, which end at the latest with the page.
    fn step(&mut self, bytes: &[u8], previous_lsn: Option<Lsn>) -> Result<usize, Stop> {
        let at = self.start_lsn;
        let seen = self.seen_bytes as usize;
        let used = if seen < 4 {
            // The length is never split between pages, and nothing else can be believed without it.
            let used = bytes.len().min(4 - seen);
            self.header[seen..seen + used].copy_from_slice(&bytes[..used]);
            used
        } else if seen < RECORD_HEADER_BYTES {
            let used = bytes.len().min(RECORD_HEADER_BYTES - seen);
            self.header[seen..seen + used].copy_from_slice(&bytes[..used]);
            used
        } else {
            let used = bytes.len().min((self.total_bytes - self.seen_bytes) as usize);
            self.data_crc = crc32c::crc32c_append(self.data_crc, &bytes[..used]);
            used
        };
        self.seen_bytes += used as u32;
        if seen < 4 && self.seen_bytes == 4 {
            let total_bytes = RecordHeader::parse(&self.header).total_bytes;
            match total_bytes {
                0 => return Err(Stop::Zeroes { at }),
                1..RECORD_HEADER_BYTES_U32 => return Err(Stop::Length { at, total_bytes }),
                _ if total_bytes > RECORD_BYTES_MAX => {
                    return Err(Stop::Length { at, total_bytes });
                }
                _ => self.total_bytes = total_bytes,
            }
        }
        if seen < RECORD_HEADER_BYTES && self.seen_bytes as usize == RECORD_HEADER_BYTES {
            let found = RecordHeader::parse(&self.header).previous_lsn;
            if !is_chained(found, previous_lsn, at) {
                return Err(Stop::Previous { at, found, expected: previous_lsn });
            }
        }
        if self.is_complete() {
            let computed = finish_checksum(self.data_crc, &self.header);
            let stated = RecordHeader::parse(&self.header).checksum;
            if computed != stated {
                return Err(Stop::Checksum { at, computed, stated });
            }
        }
        Ok(used)
    }
}

const RECORD_HEADER_BYTES_U32: u32 = RECORD_HEADER_BYTES as u32;

#[cfg(test)]
pub(super) mod tests;
