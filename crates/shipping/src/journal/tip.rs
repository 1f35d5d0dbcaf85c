//! `Tip`: the growing end of the journal. Verifies, writes, makes durable, finishes segments.
//!
//! It belongs to the writer. Bytes before `durable_lsn` are compared with what arrives for their place and
//! never rewritten; what is behind it is verified before it is written, and only ever becomes durable
//! up to the end of a complete record.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use understudy_types::{Lsn, Timeline, WalSegment};
use understudy_wal::format::{ScanOptions, Scanner};

use super::error::JournalError;
use super::files;
use super::held::Chain;
use super::meta::Content;
use super::room::Limits;

/// An unfinished segment.
pub(super) struct OpenSegment {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// It has bytes that are not synced.
    pub(super) dirty: bool,
}

pub(super) struct Tip {
    dir: PathBuf,
    pub(super) content: Content,
    pub(super) chain: Chain,
    pub(super) timeline: Timeline,
    pub(super) begin_lsn: Lsn,
    pub(super) durable_lsn: Lsn,
    /// The start of the last record before `durable_lsn`.
    pub(super) last_record_lsn: Option<Lsn>,
    pub(super) written_lsn: Lsn,
    scanner: Scanner,
    open: BTreeMap<u64, OpenSegment>,
    /// A file was created whose name is not synced.
    names_dirty: bool,
}

impl Tip {
    pub(super) fn new(
        dir: &Path,
        content: Content,
        chain: Chain,
        timeline: Timeline,
        begin_lsn: Lsn,
        durable_lsn: Lsn,
        last_record_lsn: Option<Lsn>,
    ) -> Tip {
        let options = chain.scan_options(Some(content.system_id));
        Tip {
            dir: dir.to_owned(),
            content,
            chain,
            timeline,
            begin_lsn,
            durable_lsn,
            last_record_lsn,
            written_lsn: durable_lsn,
            scanner: Scanner::new(options, durable_lsn, last_record_lsn),
            open: BTreeMap::new(),
            names_dirty: false,
        }
    }

    /// The tip of a journal that was just begun; its first segment is there, empty.
    pub(super) fn create(dir: &Path, content: Content) -> Result<Tip, JournalError> {
        let (timeline, begin_lsn) = (content.begin_timeline, content.begin_lsn);
        files::create_dir(&files::timeline_dir(dir, timeline))?;
        let histories = files::histories(dir)?;
        let chain = Chain::new(dir, content.size, timeline, &histories);
        let mut tip = Tip::new(dir, content, chain, timeline, begin_lsn, begin_lsn, None);
        tip.open_segment(begin_lsn)?;
        tip.sync()?;
        Ok(tip)
    }

    /// What follows has to be of the same version as what is held, which somebody has verified and which
    /// this scanner has not seen.
    pub(super) fn expect_magic(&mut self, page_magic: Option<u16>) {
        let options = ScanOptions { page_magic, ..self.scanner.options() };
        self.scanner = Scanner::new(options, self.durable_lsn, self.last_record_lsn);
    }

    /// Takes over unfinished segments that were found.
    pub(super) fn adopt(&mut self, open: BTreeMap<u64, OpenSegment>) {
        self.open = open;
    }

    /// Verifies and writes a run of bytes; nothing is durable before `sync`.
    pub(super) fn write(
        &mut self,
        lsn: Lsn,
        data: &[u8],
        limits: &Limits,
    ) -> Result<(), JournalError> {
        if lsn > self.written_lsn {
            return Err(JournalError::Gap { expected_lsn: self.written_lsn, lsn });
        }
        let mut data = data;
        let mut at = lsn;
        if at < self.durable_lsn {
            let held = data.len().min(self.durable_lsn.bytes_since(at) as usize);
            self.compare(at, &data[..held])?;
            data = &data[held..];
            at = at + held as u64;
            if data.is_empty() {
                return Ok(());
            }
        }
        if at == self.durable_lsn && at < self.written_lsn {
            // Sent again from the durable end: what was written behind it was never acknowledged and
            // may legitimately have become something else.
            self.rewind()?;
        } else if at < self.written_lsn {
            let held = data.len().min(self.written_lsn.bytes_since(at) as usize);
            self.compare(at, &data[..held])?;
            data = &data[held..];
            at = at + held as u64;
        }
        self.check_room(at, data.len(), limits)?;
        if let Err(source) = self.scanner.push(data) {
            return Err(JournalError::BadWal { timeline: self.timeline, source });
        }
        while !data.is_empty() {
            let (size, segment) = (self.content.size, self.segment(at));
            let fits = data.len().min(segment.end(size).bytes_since(at) as usize);
            let offset = at.bytes_since(segment.start(size));
            let open = self.open_segment(at)?;
            open.file
                .write_all_at(&data[..fits], offset)
                .map_err(JournalError::io("write", &open.path))?;
            open.dirty = true;
            data = &data[fits..];
            at = at + fits as u64;
        }
        self.written_lsn = at.max(self.written_lsn);
        Ok(())
    }

    fn segment(&self, lsn: Lsn) -> WalSegment {
        WalSegment::containing(self.timeline, lsn, self.content.size)
    }

    /// Segments that are not there yet need room, and before anything of the bytes is taken.
    fn check_room(&self, from: Lsn, bytes: usize, limits: &Limits) -> Result<(), JournalError> {
        let (size, to) = (self.content.size, from + bytes as u64);
        let mut segment = self.segment(from);
        while segment.start(size) < to {
            if !self.open.contains_key(&segment.number) {
                limits.check(&self.dir, self.begin_lsn, segment.end(size), size)?;
            }
            segment.number += 1;
        }
        Ok(())
    }

    /// Bytes that are held must be the same.
    fn compare(&self, lsn: Lsn, data: &[u8]) -> Result<(), JournalError> {
        let timeline = self.timeline;
        if lsn < self.begin_lsn {
            return Err(JournalError::NotHeld { timeline, lsn });
        }
        self.chain.read(lsn, lsn + data.len() as u64, |at, held| {
            let offset = at.bytes_since(lsn) as usize;
            let differs = held.iter().zip(&data[offset..]).position(|(held, new)| held != new);
            match differs {
                None => Ok(()),
                Some(index) => Err(JournalError::Diverged { timeline, lsn: at + index as u64 }),
            }
        })
    }

    fn open_segment(&mut self, lsn: Lsn) -> Result<&mut OpenSegment, JournalError> {
        let segment = self.segment(lsn);
        if !self.open.contains_key(&segment.number) {
            let path = files::partial(&self.dir, segment, self.content.size);
            let file = files::open_partial(&path, self.content.size)?;
            self.names_dirty = true;
            // The reserved length has to be durable too, or a crash leaves a short file.
            self.open.insert(segment.number, OpenSegment { file, path, dirty: true });
        }
        Ok(self.open.get_mut(&segment.number).expect("it was inserted if it was missing"))
    }

    /// Forgets everything behind the durable end.
    pub(super) fn rewind(&mut self) -> Result<(), JournalError> {
        let options = self.scanner.options();
        self.scanner = Scanner::new(options, self.durable_lsn, self.last_record_lsn);
        if self.written_lsn == self.durable_lsn {
            return Ok(());
        }
        let size = self.content.size;
        let keep = self.segment(self.durable_lsn);
        for (_, open) in self.open.split_off(&(keep.number + 1)) {
            fs::remove_file(&open.path).map_err(JournalError::io("remove", &open.path))?;
            self.names_dirty = true;
        }
        if let Some(open) = self.open.get_mut(&keep.number) {
            let offset = self.durable_lsn.bytes_since(keep.start(size));
            files::clear_from(&open.file, &open.path, offset, size)?;
            open.dirty = true;
        }
        self.written_lsn = self.durable_lsn;
        Ok(())
    }

    /// Makes everything written durable, and moves the durable end to that of the last record.
    ///
    /// After an error nothing may be believed: a failed `fdatasync` is never repeated, because the
    /// kernel may have dropped the pages and report success (fsyncgate).
    pub(super) fn sync(&mut self) -> Result<(), JournalError> {
        for open in self.open.values_mut().filter(|open| open.dirty) {
            open.file.sync_data().map_err(JournalError::io("sync", &open.path))?;
            open.dirty = false;
        }
        if self.names_dirty {
            files::sync_dir(&files::timeline_dir(&self.dir, self.timeline))?;
            self.names_dirty = false;
        }
        self.durable_lsn = self.scanner.end_lsn();
        self.last_record_lsn = self.scanner.last_record_lsn().or(self.last_record_lsn);
        Ok(())
    }

    /// Gives segments of which all is verified and durable their final name.
    pub(super) fn finish_segments(&mut self) -> Result<(), JournalError> {
        let size = self.content.size;
        while let Some(entry) = self.open.first_entry() {
            let segment = WalSegment { timeline: self.timeline, number: *entry.key() };
            if segment.end(size) > self.durable_lsn {
                break;
            }
            files::rename(&entry.get().path, &files::finished(&self.dir, segment, size))?;
            entry.remove();
        }
        Ok(())
    }

    /// The tip of `chain`'s timeline, which leaves this one at its durable end, with its first segment
    /// made as PostgreSQL makes it (`XLogInitNewTimeline`): a copy up to the fork, unless that is a
    /// segment boundary.
    ///
    /// The caller has made the history durable before: the new segment's name is what counts.
    pub(super) fn fork(&self, timeline: Timeline, chain: Chain) -> Result<Tip, JournalError> {
        let (size, fork_lsn) = (self.content.size, self.durable_lsn);
        let segment = WalSegment::containing(timeline, fork_lsn, size);
        let dir = files::timeline_dir(&self.dir, timeline);
        files::create_dir(&dir)?;
        let temporary = dir.join(segment.file_name(size) + files::TEMPORARY);
        let file = files::open_partial(&temporary, size)?;
        let start = segment.start(size);
        self.chain.read(start, fork_lsn, |at, bytes| {
            file.write_all_at(bytes, at.bytes_since(start))
                .map_err(JournalError::io("write", &temporary))
        })?;
        file.sync_all().map_err(JournalError::io("sync", &temporary))?;
        let path = files::partial(&self.dir, segment, size);
        files::rename(&temporary, &path)?;
        let (begin_lsn, last) = (self.begin_lsn, self.last_record_lsn);
        let mut tip = Tip::new(&self.dir, self.content, chain, timeline, begin_lsn, fork_lsn, last);
        tip.expect_magic(self.scanner.options().page_magic);
        tip.open.insert(segment.number, OpenSegment { file, path, dirty: false });
        Ok(tip)
    }
}
