//! Makes a receipt from a round of kept WAL, file by file and in bounded memory.
//!
//! It reads the kept files and, for what began before the fork, the live `pg_wal`; it writes only its
//! own three files, `receipt.json` last, so that whoever finds that one finds all of them. It may be
//! stopped and begun again at any step. WAL that ends too early is said in the receipt.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use understudy_types::{ClusterId, Epoch, Lsn, SegmentSize, Timeline, WalSegment};
use understudy_wal::format::{
    EndedTransaction, LONG_HEADER_BYTES, PAGE_BYTES, PageFault, PageHeader, SHORT_HEADER_BYTES,
    ScanOptions, Stop, TransactionEnd, TransactionReader, WalVersion,
};

use super::{
    DatabaseLoss, KEPT_WAL, Kept, LostKind, LostTransaction, Promised, RECEIPT_FILE,
    RECEIPT_VERSION, Receipt, SHOWN_MAX, StoreError, TEXT_FILE, TRANSACTIONS_FILE, Tail, load_kept,
    moment, words,
};

/// Bytes read at once.
const CHUNK_BYTES: usize = 256 * 1024;
/// How much WAL before the fork is read, to learn the databases of what began there.
const LEAD_IN_BYTES: u64 = 256 << 20;
/// Databases that are counted one by one; further ones count as unknown.
const DATABASES_MAX: usize = 100_000;

/// What the WAL does not say.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) cluster: ClusterId,
    pub(crate) epoch: Epoch,
    pub(crate) promised: Option<Promised>,
    /// Databases as the node that took over knows them; empty if it could not be asked.
    pub(crate) databases: BTreeMap<u32, String>,
    pub(crate) now_unix_us: i64,
}

/// Makes the receipt of the round in `round`, durably. `live` is the `pg_wal` that the WAL was kept
/// from, while it is still as it was; `stopped` is asked between pieces.
pub(crate) fn make(
    round: &Path,
    live: Option<&Path>,
    facts: &Facts,
    stopped: &dyn Fn() -> bool,
) -> Result<Receipt, StoreError> {
    let kept = load_kept(round)?;
    let files = Files::find(round, live, &kept)?;
    let mut lines = Replacement::begin(round, TRANSACTIONS_FILE)?;
    let mut tally = Tally::default();
    let reading = files.read_all(&kept, stopped, &mut |ended| {
        tally.take(&mut lines, ended, facts);
    })?;
    if let Some(source) = tally.failed.take() {
        return Err(StoreError::io("write", &lines.temporary)(source));
    }
    lines.finish()?;
    let receipt = assemble(round, &kept, &files, tally, reading, facts);
    let mut text = Replacement::begin(round, TEXT_FILE)?;
    text.write(words::render(&receipt).as_bytes())?;
    text.finish()?;
    let mut json = Replacement::begin(round, RECEIPT_FILE)?;
    let content = serde_json::to_vec_pretty(&receipt)
        .map_err(|error| StoreError::io("write", &round.join(RECEIPT_FILE))(error.into()))?;
    json.write(&content)?;
    json.finish()?;
    Ok(receipt)
}

/// Whether a transaction ended, or was prepared, in the live WAL between two positions; `None` when
/// that cannot be told.
pub(crate) fn ends_between(
    pg_wal: &Path,
    timeline: Timeline,
    size: SegmentSize,
    from: Lsn,
    to: Lsn,
) -> Option<bool> {
    let files = Files::of(pg_wal, None, timeline, size)?;
    let mut count = 0_u64;
    let reading = files.read(from, &|| false, &mut |_| count += 1).ok()?;
    (reading.end_lsn >= to && reading.unreadable_records == 0).then_some(count > 0)
}

/// The files that hold the WAL of one timeline and its ancestors.
struct Files {
    kept: PathBuf,
    live: Option<PathBuf>,
    timeline: Timeline,
    size: SegmentSize,
    version: WalVersion,
    system_id: understudy_types::SystemId,
}

/// What was read of the WAL.
struct Reading {
    end_lsn: Lsn,
    /// Nothing was begun behind that.
    clean: bool,
    /// Why it went no further.
    words: String,
    unreadable_records: u64,
}

impl Files {
    fn find(round: &Path, live: Option<&Path>, kept: &Kept) -> Result<Files, StoreError> {
        let dir = round.join(KEPT_WAL);
        let odd = |what: &str| StoreError::Malformed { path: dir.clone(), what: what.to_owned() };
        let timeline = Timeline::new(kept.timeline).ok_or_else(|| odd("its timeline is 0"))?;
        let head = first_header(&dir, timeline)
            .ok_or_else(|| odd("no segment in it begins with a page of PostgreSQL 14 to 18"))?;
        let size = head.segment.and_then(|(_, bytes)| SegmentSize::new(bytes));
        let size = size.ok_or_else(|| odd("its segments do not say their size"))?;
        let files = Files::of(&dir, live, timeline, size);
        files.ok_or_else(|| odd("its segments cannot be read"))
    }

    fn of(dir: &Path, live: Option<&Path>, timeline: Timeline, size: SegmentSize) -> Option<Files> {
        let head = first_header(dir, timeline)?;
        Some(Files {
            kept: dir.to_owned(),
            live: live.map(Path::to_owned),
            timeline,
            size,
            version: WalVersion::from_magic(head.magic)?,
            system_id: head.segment?.0,
        })
    }

    /// The file of a segment: the timeline's own, else that of the newest ancestor.
    fn path(&self, number: u64) -> Option<PathBuf> {
        for timeline in (1..=self.timeline.get()).rev().filter_map(Timeline::new) {
            let name = WalSegment { timeline, number }.file_name(self.size);
            let places = [Some(&self.kept), self.live.as_ref()];
            let found = places.into_iter().flatten().map(|dir| dir.join(&name));
            if let Some(path) = found.into_iter().find(|path| path.is_file()) {
                return Some(path);
            }
        }
        None
    }

    /// Where reading may begin, the best place first: before the fork as far as there is WAL, at the
    /// beginning of the fork's segment, at the fork itself.
    fn begins(&self, fork_lsn: Lsn) -> Vec<Lsn> {
        let mut first = fork_lsn.0 / self.size.bytes();
        if fork_lsn == Lsn::ZERO {
            // All that was kept.
            let held = segment_numbers(&self.kept, self.size).into_iter().min();
            return held.map(|number| Lsn(number * self.size.bytes())).into_iter().collect();
        }
        let mut begins = vec![Lsn(first * self.size.bytes()), fork_lsn];
        let lowest = first.saturating_sub(LEAD_IN_BYTES / self.size.bytes());
        while first > lowest && self.path(first - 1).is_some() {
            first -= 1;
        }
        begins.insert(0, Lsn(first * self.size.bytes()));
        begins.dedup();
        begins.retain(|lsn| can_begin_at(*lsn, self.size));
        begins
    }

    /// Tells `each` what ended from the fork on.
    fn read_all(
        &self,
        kept: &Kept,
        stopped: &dyn Fn() -> bool,
        each: &mut dyn FnMut(EndedTransaction),
    ) -> Result<Reading, StoreError> {
        let fork_lsn = kept.from_lsn;
        let mut last = None;
        for from in self.begins(fork_lsn) {
            let reading = self.read(from, stopped, &mut |ended| {
                if ended.lsn >= fork_lsn {
                    each(ended);
                }
            })?;
            // Damage before the fork costs knowledge of databases, never a lost transaction.
            if reading.end_lsn >= fork_lsn && reading.end_lsn > from {
                return Ok(reading);
            }
            last = Some(reading);
        }
        last.ok_or_else(|| StoreError::Malformed {
            path: self.kept.clone(),
            what: format!("no segment in it can hold the fork at {fork_lsn}"),
        })
    }

    fn read(
        &self,
        from: Lsn,
        stopped: &dyn Fn() -> bool,
        each: &mut dyn FnMut(EndedTransaction),
    ) -> Result<Reading, StoreError> {
        let options = ScanOptions {
            timeline: self.timeline,
            timeline_since: None,
            size: self.size,
            system_id: Some(self.system_id),
            page_magic: None,
        };
        if !can_begin_at(from, self.size) {
            let what = format!("no record can begin at {from}");
            return Err(StoreError::Malformed { path: self.kept.clone(), what });
        }
        let mut reader = TransactionReader::new(options, self.version, from);
        let mut buffer = vec![0; CHUNK_BYTES];
        let (clean, words) = loop {
            if stopped() {
                return Err(StoreError::Stopped);
            }
            match self.read_piece(&mut reader, &mut buffer, each) {
                Piece::More => {}
                Piece::End(why) => break (reader.position() == reader.end_lsn(), why),
                Piece::Stop(stop) => break (is_clean(&stop, reader.end_lsn()), chain(&stop)),
            }
        };
        let unreadable_records = reader.unreadable_count();
        Ok(Reading { end_lsn: reader.end_lsn(), clean, words, unreadable_records })
    }

    fn read_piece(
        &self,
        reader: &mut TransactionReader,
        buffer: &mut [u8],
        each: &mut dyn FnMut(EndedTransaction),
    ) -> Piece {
        let at = reader.position();
        let number = at.0 / self.size.bytes();
        let offset = at.0 % self.size.bytes();
        let Some(path) = self.path(number) else {
            return Piece::End(format!("no file holds what follows at {at}"));
        };
        let wanted = buffer.len().min((self.size.bytes() - offset) as usize);
        let got = File::open(&path).and_then(|file| file.read_at(&mut buffer[..wanted], offset));
        match got {
            Ok(0) => Piece::End(format!("{} is too short", path.display())),
            Ok(got) => match reader.push(&buffer[..got], each) {
                Ok(()) => Piece::More,
                Err(stop) => Piece::Stop(stop),
            },
            Err(error) => Piece::End(format!("{} cannot be read: {error}", path.display())),
        }
    }
}

enum Piece {
    More,
    End(String),
    Stop(Stop),
}

/// Nothing was begun where the reader stopped: unwritten space, or a page of a recycled segment.
fn is_clean(stop: &Stop, end_lsn: Lsn) -> bool {
    match stop {
        Stop::Zeroes { at } => *at <= end_lsn.align_up(PAGE_BYTES) + LONG_HEADER_BYTES as u64,
        Stop::Page { at, fault: PageFault::Zeroes | PageFault::Address(_) } => *at == end_lsn,
        Stop::Page { .. }
        | Stop::Length { .. }
        | Stop::Previous { .. }
        | Stop::Checksum { .. }
        | Stop::AfterSwitch { .. } => false,
    }
}

fn can_begin_at(lsn: Lsn, size: SegmentSize) -> bool {
    let in_page = lsn.0 % PAGE_BYTES;
    let first = lsn.0 % size.bytes() < PAGE_BYTES;
    let header = if first { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES } as u64;
    lsn.0.is_multiple_of(8) && (in_page == 0 || in_page >= header)
}

/// The head of the first segment of a timeline, or of any.
fn first_header(dir: &Path, timeline: Timeline) -> Option<PageHeader> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.len() == 24)
        .collect();
    let own = format!("{:08X}", timeline.get());
    names.sort_by_key(|name| (!name.starts_with(&own), name.clone()));
    names.into_iter().find_map(|name| {
        let mut head = [0; LONG_HEADER_BYTES];
        File::open(dir.join(name)).ok()?.read_exact_at(&mut head, 0).ok()?;
        PageHeader::identify(&head).ok()
    })
}

fn segment_numbers(dir: &Path, size: SegmentSize) -> Vec<u64> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| WalSegment::parse(&name, size).ok()).map(|s| s.number).collect()
}

/// What is counted while transactions pass.
#[derive(Default)]
struct Tally {
    shown: Vec<LostTransaction>,
    commits: u64,
    others: u64,
    first_unix_us: Option<i64>,
    last_unix_us: Option<i64>,
    databases: BTreeMap<Option<u32>, u64>,
    failed: Option<io::Error>,
}

impl Tally {
    fn take(&mut self, lines: &mut Replacement, ended: EndedTransaction, facts: &Facts) {
        let Some(kind) = kind(ended.end) else { return };
        let name = ended.database.and_then(|oid| facts.databases.get(&oid)).cloned();
        let lost = LostTransaction {
            xid: ended.xid,
            kind,
            unix_us: ended.unix_us,
            time: moment(ended.unix_us),
            lsn: ended.lsn,
            end_lsn: ended.end_lsn,
            database: ended.database,
            database_name: name,
            tablespace: ended.tablespace,
            subtransactions: ended.subtransaction_count,
            gid: ended.gid,
        };
        if kind.is_commit() {
            self.commits += 1;
            let unix_us = lost.unix_us;
            self.first_unix_us = Some(self.first_unix_us.map_or(unix_us, |us| us.min(unix_us)));
            self.last_unix_us = Some(self.last_unix_us.map_or(unix_us, |us| us.max(unix_us)));
            let counted =
                self.databases.len() < DATABASES_MAX || self.databases.contains_key(&lost.database);
            let key = lost.database.filter(|_| counted);
            *self.databases.entry(key).or_default() += 1;
        } else {
            self.others += 1;
        }
        if self.failed.is_none() {
            let written =
                serde_json::to_vec(&lost).map_err(io::Error::from).and_then(|mut line| {
                    line.push(b'\n');
                    lines.file.write_all(&line)
                });
            self.failed = written.err();
        }
        if self.shown.len() < SHOWN_MAX {
            self.shown.push(lost);
        }
    }
}

fn kind(end: TransactionEnd) -> Option<LostKind> {
    match end {
        TransactionEnd::Commit => Some(LostKind::Commit),
        TransactionEnd::CommitPrepared => Some(LostKind::CommitPrepared),
        TransactionEnd::Prepare => Some(LostKind::Prepare),
        TransactionEnd::RollbackPrepared => Some(LostKind::RollbackPrepared),
        TransactionEnd::Rollback => None,
    }
}

fn assemble(
    round: &Path,
    kept: &Kept,
    files: &Files,
    tally: Tally,
    reading: Reading,
    facts: &Facts,
) -> Receipt {
    let fork_lsn = Some(kept.from_lsn).filter(|lsn| *lsn != Lsn::ZERO);
    let own = kept.recorded.iter().rev().find(|entry| entry.timeline == files.timeline);
    let tail = match (reading.end_lsn >= kept.end_lsn, reading.clean) {
        (false, _) => Tail::Unreadable,
        (true, true) => Tail::Whole,
        (true, false) => Tail::Torn,
    };
    let name = |oid: &Option<u32>| oid.and_then(|oid| facts.databases.get(&oid)).cloned();
    let mut databases: Vec<DatabaseLoss> = tally
        .databases
        .iter()
        .map(|(oid, commits)| DatabaseLoss { oid: *oid, name: name(oid), commits: *commits })
        .collect();
    databases.sort_by_key(|loss| std::cmp::Reverse(loss.commits));
    let span = tally.first_unix_us.zip(tally.last_unix_us);
    Receipt {
        version: RECEIPT_VERSION,
        id: round.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        cluster: facts.cluster,
        system_id: files.system_id,
        node: kept.node.clone(),
        made_unix_us: facts.now_unix_us,
        lost_epoch: own.map(|entry| entry.epoch),
        epoch: kept.history.last().map_or(facts.epoch, |entry| entry.epoch),
        timeline: kept.timeline,
        fork_lsn,
        end_lsn: kept.end_lsn,
        read_lsn: reading.end_lsn,
        tail,
        tail_words: reading.words,
        lost_wal_bytes: kept.wal_bytes,
        commits: tally.commits,
        others: tally.others,
        first_commit_unix_us: tally.first_unix_us,
        last_commit_unix_us: tally.last_unix_us,
        lost_seconds: span.map(|(first, last)| last.saturating_sub(first) as f64 / 1e6),
        databases,
        promised: facts.promised,
        unreadable_records: reading.unreadable_records,
        transactions: tally.shown,
        transactions_file: TRANSACTIONS_FILE.to_owned(),
    }
}

/// A file that takes the place of whatever has its name, durably and at once.
struct Replacement {
    file: BufWriter<File>,
    temporary: PathBuf,
    target: PathBuf,
}

impl Replacement {
    fn begin(dir: &Path, name: &str) -> Result<Replacement, StoreError> {
        let (temporary, target) = (dir.join(format!("{name}.new")), dir.join(name));
        let file = File::create(&temporary).map_err(StoreError::io("create", &temporary))?;
        Ok(Replacement { file: BufWriter::new(file), temporary, target })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(bytes).map_err(StoreError::io("write", &self.temporary))
    }

    fn finish(self) -> Result<(), StoreError> {
        let Replacement { mut file, temporary, target } = self;
        let dir = target.parent().unwrap_or(Path::new("."));
        file.flush()
            .and_then(|()| file.get_ref().sync_all())
            .and_then(|()| fs::rename(&temporary, &target))
            .and_then(|()| File::open(dir)?.sync_all())
            .map_err(StoreError::io("write", &temporary))
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words.push_str(": ");
        words.push_str(&cause.to_string());
        source = cause.source();
    }
    words
}
