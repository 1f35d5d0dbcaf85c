//! The newest commit that a journal holds: what was confirmed after it is what a recovery may lose.

use understudy_shipping::journal::{Journal, JournalReader, ReadOutcome};
use understudy_types::Lsn;
use understudy_wal::format::{
    LONG_HEADER_BYTES, PageHeader, ScanOptions, TransactionReader, WalVersion,
};

/// How far back it is looked for: an idle server writes next to nothing, but a bulk load can put much
/// WAL behind its last commit.
const LOOK_BACK_BYTES: u64 = 1 << 30;
/// Bytes read at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// When it was made, by the clock of the machine that wrote it: microseconds since the Unix epoch.
/// `None` when no commit is found near the journal's end, or the journal cannot be read there.
pub(super) fn newest_commit(journal: &Journal) -> Option<i64> {
    let held = journal.positions().borrow().clone()?;
    let (_, size) = journal.identity()?;
    // A record may begin in one segment and end in the next, so what is read begins at a segment, from
    // where a reader finds the first whole record, and goes to the end.
    let mut from = held.durable_lsn.align_down(size.bytes());
    let lowest = held.begin_lsn.max(Lsn(from.0.saturating_sub(LOOK_BACK_BYTES)));
    let mut back_bytes = size.bytes();
    loop {
        from = from.max(lowest);
        let newest = newest_from(journal, from)?;
        if newest.is_some() || from == lowest {
            return newest;
        }
        // Twice as far each time: what is read again is no more than what is read for the first time.
        from = Lsn(from.0.saturating_sub(back_bytes));
        back_bytes *= 2;
    }
}

/// The newest commit from `from` on; the outer `None` when it cannot be read.
fn newest_from(journal: &Journal, from: Lsn) -> Option<Option<i64>> {
    let timeline = journal.positions().borrow().as_ref()?.timeline;
    let (system_id, size) = journal.identity()?;
    let mut pieces = journal.reader(timeline, from).ok()?;
    let mut newest = None;
    let Some(first) = next(&mut pieces)? else { return Some(None) };
    let head = PageHeader::identify(first.first_chunk::<LONG_HEADER_BYTES>()?).ok()?;
    let version = WalVersion::from_magic(head.magic)?;
    let (timeline_since, system_id, page_magic) = (None, Some(system_id), Some(head.magic));
    let options = ScanOptions { timeline, timeline_since, size, system_id, page_magic };
    let mut reader = TransactionReader::new(options, version, from);
    let mut piece = first;
    loop {
        let pushed = reader.push(&piece, &mut |ended| {
            if ended.end.is_commit() {
                // The last one by position: clocks of two machines do not compare.
                newest = Some(ended.unix_us);
            }
        });
        pushed.ok()?;
        match next(&mut pieces)? {
            Some(more) => piece = more,
            None => return Some(newest),
        }
    }
}

fn next(pieces: &mut JournalReader) -> Option<Option<bytes::Bytes>> {
    match pieces.read(CHUNK_BYTES).ok()? {
        ReadOutcome::Data { bytes, .. } => Some(Some(bytes)),
        ReadOutcome::AtDurableEnd | ReadOutcome::TimelineEnd { .. } => Some(None),
    }
}
