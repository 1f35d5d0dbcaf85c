//! Opens a journal's files after whatever happened: finds the end of what can be verified, makes it
//! durable, and clears what is behind it.
//!
//! It never removes or changes a byte before that end, and a finished segment that does not verify
//! stops the journal instead of being shortened: all of it had been acknowledged.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use understudy_types::{Lsn, Timeline, WalSegment};
use understudy_wal::format::PAGE_BYTES;

use super::error::JournalError;
use super::files::{self, History};
use super::held::Chain;
use super::meta::{Content, Meta};
use super::tip::{OpenSegment, Tip};

/// The end of the journal in `dir`; `None` if it holds no WAL.
pub(super) fn recover(
    dir: &Path,
    meta: &Meta,
    histories: &BTreeMap<Timeline, History>,
) -> Result<Option<Tip>, JournalError> {
    let Some(content) = meta.content else {
        return match files::timelines(dir)?.as_slice() {
            [] => Ok(None),
            _ => Err(JournalError::corrupt(dir, "there is WAL that the metadata does not know")),
        };
    };
    let mut timeline = None;
    for candidate in files::timelines(dir)? {
        if !files::segments(dir, candidate, content.size)?.is_empty() {
            timeline = Some(candidate);
        }
    }
    let Some(timeline) = timeline else {
        // Begun and not one segment made yet, or set aside and not recorded yet.
        let begun = content.first_durable_lsn.is_none();
        return if begun { Tip::create(dir, content).map(Some) } else { Ok(None) };
    };
    let chain = Chain::new(dir, content.size, timeline, histories);
    let held = chain.segments()?;
    let last = *held.keys().next_back().expect("the timeline was chosen for having a segment");
    let mut first = last;
    while first > 0 && held.contains_key(&(first - 1)) {
        first -= 1;
    }
    let (end_lsn, last_record_lsn, page_magic) = if content.first_durable_lsn.is_none() {
        (content.begin_lsn, None, None)
    } else {
        find_end(&chain, &content, first, last)?
    };
    check_floors(dir, meta, &content, timeline, end_lsn)?;
    for (segment, finished) in held.range(first..).map(|(_, held)| *held) {
        if finished && segment.end(content.size) > end_lsn {
            let path = files::finished(dir, segment, content.size);
            let detail = format!("finished segment verifies only up to {end_lsn}");
            return Err(JournalError::LostWal { path, detail, max_epoch: meta.max_epoch });
        }
    }
    let own = files::segments(dir, timeline, content.size)?;
    let open = clear_behind(dir, &content, timeline, &own, end_lsn)?;
    let begin_lsn = Lsn(first * content.size.bytes());
    let mut tip = Tip::new(dir, content, chain, timeline, begin_lsn, end_lsn, last_record_lsn);
    tip.expect_magic(page_magic);
    tip.adopt(open);
    Ok(Some(tip))
}

/// The last complete record that verifies, from the beginning of one of the last segments: its end, its
/// start, and the magic of the pages up to there.
fn find_end(
    chain: &Chain,
    content: &Content,
    first: u64,
    last: u64,
) -> Result<(Lsn, Option<Lsn>, Option<u16>), JournalError> {
    let pages = content.size.bytes() / PAGE_BYTES;
    let room = content.size.bytes() - pages * 40;
    let mut from = last;
    // A record that reaches into the last segment is verified from its beginning.
    let mut continued = chain.continued_bytes(from)?;
    while from > first && continued != Some(0) {
        from -= 1;
        continued = chain.continued_bytes(from)?;
        if continued.is_some_and(|bytes| bytes < room) {
            break;
        }
    }
    loop {
        let options = chain.scan_options(Some(content.system_id));
        let scanner = chain.scan(options, from)?;
        if scanner.last_record_lsn().is_some() || from == first {
            let page_magic = scanner.options().page_magic;
            return Ok((scanner.end_lsn(), scanner.last_record_lsn(), page_magic));
        }
        from -= 1;
    }
}

/// What was promised before must still be there.
fn check_floors(
    dir: &Path,
    meta: &Meta,
    content: &Content,
    timeline: Timeline,
    end_lsn: Lsn,
) -> Result<(), JournalError> {
    let sealed = meta.sealed.and_then(|seal| seal.end).filter(|end| end.timeline == timeline);
    let first = content.first_durable_lsn.filter(|_| content.begin_timeline == timeline);
    for floor_lsn in [sealed.map(|end| end.durable_lsn), first].into_iter().flatten() {
        if end_lsn < floor_lsn {
            let detail = format!("WAL ends at {end_lsn}, {floor_lsn} was durable");
            let (path, max_epoch) = (dir.to_owned(), meta.max_epoch);
            return Err(JournalError::LostWal { path, detail, max_epoch });
        }
    }
    Ok(())
}

/// Makes what was verified durable and the rest zero; returns the unfinished segments.
fn clear_behind(
    dir: &Path,
    content: &Content,
    timeline: Timeline,
    own: &BTreeMap<u64, bool>,
    end_lsn: Lsn,
) -> Result<BTreeMap<u64, OpenSegment>, JournalError> {
    let size = content.size;
    let mut open = BTreeMap::new();
    for number in own.iter().filter(|(_, finished)| !**finished).map(|(number, _)| *number) {
        let segment = WalSegment { timeline, number };
        let path = files::partial(dir, segment, size);
        if segment.start(size) > end_lsn {
            fs::remove_file(&path).map_err(JournalError::io("remove", &path))?;
            continue;
        }
        let file = files::open_partial(&path, size)?;
        if end_lsn < segment.end(size) {
            let offset = end_lsn.bytes_since(segment.start(size));
            files::clear_from(&file, &path, offset, size)?;
        }
        file.sync_all().map_err(JournalError::io("sync", &path))?;
        if segment.end(size) <= end_lsn {
            files::rename(&path, &files::finished(dir, segment, size))?;
        } else {
            open.insert(number, OpenSegment { file, path, dirty: false });
        }
    }
    files::sync_dir(&files::timeline_dir(dir, timeline))?;
    files::sync_dir(dir)?;
    Ok(open)
}
