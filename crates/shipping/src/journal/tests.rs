//! The journal with PostgreSQL's own WAL: cut, repeated, damaged, crashed, forked.

mod inspect;
pub(crate) mod postgres;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::*;
use postgres::{RealWal, real_wal, size};
use understudy_types::{PermitSerial, PromotionId, WalSegment};

const T1: Timeline = Timeline::FIRST;

fn epoch(number: u64) -> Epoch {
    Epoch { incarnation: 0, number }
}

fn admission(number: u64) -> Admission {
    let promotion = PromotionId(uuid::Uuid::nil());
    let serial = PermitSerial(number);
    Admission { serial, epoch: epoch(number), promotion, timeline: T1 }
}

fn open(dir: &Path) -> Journal {
    Journal::open(dir, JournalOptions::default()).unwrap()
}

fn begun(dir: &Path, wal: &RealWal) -> Journal {
    let journal = open(dir);
    journal.begin(wal.system_id, size(), T1, Vec::new(), wal.begin_lsn).unwrap();
    journal.admit(admission(1)).unwrap();
    journal
}

/// A small generator of its own: tests must be repeatable.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Sends `bytes`, which begin at `from`, in frames of random sizes.
async fn feed(journal: &Journal, timeline: Timeline, from: Lsn, bytes: &[u8], random: &mut Random) {
    let mut at = 0;
    while at < bytes.len() {
        let length = (1 + random.below(200_000) as usize).min(bytes.len() - at);
        let data = Bytes::copy_from_slice(&bytes[at..at + length]);
        journal.append(epoch(1), timeline, from + at as u64, data).await.unwrap();
        at += length;
    }
}

async fn wait(
    journal: &Journal,
    condition: impl FnMut(&Option<JournalPositions>) -> bool,
) -> JournalPositions {
    let mut positions = journal.positions();
    let found = tokio::time::timeout(Duration::from_secs(20), positions.wait_for(condition));
    found.await.expect("in time").unwrap().clone().unwrap()
}

async fn durable(journal: &Journal, lsn: Lsn) {
    wait(journal, |positions| positions.as_ref().is_some_and(|p| p.durable_lsn >= lsn)).await;
}

/// The first timeline's bytes up to the end of its last record, which is where the second leaves it.
fn first_timeline(wal: &RealWal) -> Vec<u8> {
    let mut bytes = wal.bytes(T1);
    bytes.truncate(wal.fork_lsn.bytes_since(wal.begin_lsn) as usize);
    bytes
}

/// Copies a journal while it is written, and says what it had acknowledged before. Files are copied one
/// after the other, so that a renaming in between would show a state that no crash can leave: then it
/// begins again. A segment's end is acknowledged before it gets its final name.
fn copy_journal(journal: &Journal, from: &Path, to: &Path) -> Lsn {
    let names = || files::names(&files::timeline_dir(from, T1)).unwrap();
    loop {
        let before = names();
        let acknowledged = journal.positions().borrow().clone().unwrap().durable_lsn;
        let copy = |name: &Path| fs::copy(from.join(name), to.join(name)).is_ok();
        let inner = files::timeline_dir(Path::new(""), T1);
        fs::create_dir_all(to.join(&inner)).unwrap();
        // The metadata first: what it says of the files is true before it says so.
        let copied =
            copy(Path::new("journal.meta")) && before.iter().all(|name| copy(&inner.join(name)));
        if copied && names() == before {
            return acknowledged;
        }
        fs::remove_dir_all(to.join(&inner)).unwrap();
    }
}

#[test]
fn the_scan_of_pg_wal_ends_where_pg_waldump_ends() {
    let wal = &real_wal();
    for timeline in [T1, T1.next()] {
        let from = if timeline == T1 { wal.begin_lsn } else { wal.fork_lsn };
        let result = scan_pg_wal(&wal.dir, timeline, from, size()).unwrap();
        let output = Command::new(wal.bin.join("pg_waldump"))
            .arg("-p")
            .arg(&wal.dir)
            .args(["-t", &timeline.to_string(), "-s", &result_start(from).to_string()])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().unwrap();
        let lsn = last.split("lsn: ").nth(1).unwrap().split(',').next().unwrap();
        assert_eq!(result.last_record_lsn, Some(lsn.parse().unwrap()), "{result:?}");
        if timeline == T1 {
            assert_eq!(result.end_lsn, wal.fork_lsn);
        }
    }
}

/// `pg_waldump` finds the first record after a position by itself.
fn result_start(from: Lsn) -> Lsn {
    from.align_down(size().bytes())
}

#[tokio::test]
async fn a_journal_fed_in_random_frames_has_the_primarys_files() {
    let wal = &real_wal();
    let bytes = first_timeline(wal);
    let dir = tempfile::tempdir().unwrap();
    let journal = begun(dir.path(), wal);
    let mut random = Random(7);
    feed(&journal, T1, wal.begin_lsn, &bytes, &mut random).await;
    durable(&journal, wal.fork_lsn).await;
    // Again what is held: compared, and nothing changes.
    feed(&journal, T1, wal.begin_lsn, &bytes[..500_000], &mut random).await;
    let tail = journal.tail().unwrap().unwrap();
    let scan = scan_pg_wal(&wal.dir, T1, wal.begin_lsn, size()).unwrap();
    assert_eq!((Some(tail.tail_lsn), tail.durable_lsn), (scan.last_record_lsn, scan.end_lsn));
    drop(journal);
    let mut compared = 0;
    for (number, finished) in files::segments(dir.path(), T1, size()).unwrap() {
        let segment = WalSegment { timeline: T1, number };
        let expected = fs::read(wal.dir.join(segment.file_name(size()))).unwrap();
        if finished {
            let path = files::finished(dir.path(), segment, size());
            assert!(fs::read(path).unwrap() == expected, "segment {number} differs");
            compared += 1;
        }
    }
    assert!(compared >= 8, "only {compared} segments were finished");
    let reopened = open(dir.path());
    assert_eq!(reopened.tail().unwrap().unwrap(), tail);
}

/// Brings bytes as soon as the journal's thread has nothing to do.
fn bring(journal: &Journal, frames: &[(Lsn, Bytes)]) {
    let begun = std::time::Instant::now();
    while !journal.append_now(epoch(1), T1, frames).unwrap() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the journal is never idle");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test]
async fn bytes_brought_now_and_bytes_queued_make_one_journal() {
    let wal = &real_wal();
    let bytes = first_timeline(wal);
    let dir = tempfile::tempdir().unwrap();
    let journal = begun(dir.path(), wal);
    let (mut random, mut at, mut now, mut queued) = (Random(11), 0, 0, 0);
    while at < bytes.len() {
        let length = (1 + random.below(60_000) as usize).min(bytes.len() - at);
        let (first, rest) = bytes[at..at + length].split_at(length / 2);
        let lsn = wal.begin_lsn + at as u64;
        let frames = [
            (lsn, Bytes::copy_from_slice(first)),
            (lsn + first.len() as u64, Bytes::copy_from_slice(rest)),
        ];
        at += length;
        if random.below(2) > 0 {
            bring(&journal, &frames);
            now += 1;
            // Durable already, but for what is less than a record.
            let position = journal.positions().borrow().clone().unwrap();
            assert_eq!(position.written_lsn, wal.begin_lsn + at as u64);
            assert!(position.error.is_none());
        } else {
            queued += 1;
            for (lsn, data) in frames {
                journal.append(epoch(1), T1, lsn, data).await.unwrap();
            }
        }
    }
    assert!(now > 20 && queued > 20, "both ways were meant to be taken: {now}, {queued}");
    durable(&journal, wal.fork_lsn).await;
    let held = journal.tail().unwrap().unwrap();
    drop(journal);
    let scan = scan_pg_wal(&wal.dir, T1, wal.begin_lsn, size()).unwrap();
    assert_eq!((Some(held.tail_lsn), held.durable_lsn), (scan.last_record_lsn, scan.end_lsn));
    assert_eq!(open(dir.path()).tail().unwrap().unwrap(), held);
}

#[test]
fn bytes_brought_now_are_refused_as_a_whole_after_a_seal_with_a_gap_and_in_another_epoch() {
    let wal = &real_wal();
    let bytes = first_timeline(wal);
    let dir = tempfile::tempdir().unwrap();
    let journal = begun(dir.path(), wal);
    let frame = |from: usize, to: usize| {
        (wal.begin_lsn + from as u64, Bytes::copy_from_slice(&bytes[from..to]))
    };
    let end = || journal.positions().borrow().clone().unwrap().written_lsn;
    bring(&journal, &[frame(0, 9000)]);
    let gap = journal.append_now(epoch(1), T1, &[frame(9000, 9100), frame(9200, 9300)]);
    assert!(matches!(gap, Err(AppendError::Gap { .. })), "{gap:?}");
    let other = journal.append_now(epoch(2), T1, &[frame(9000, 9100)]);
    assert!(matches!(other, Err(AppendError::Refused { .. })), "{other:?}");
    assert_eq!(end(), wal.begin_lsn + 9000, "nothing of a refused call is stored");
    // And what was refused may come again.
    bring(&journal, &[frame(9000, 9300)]);
    let sealed = journal.seal(epoch(2)).unwrap().unwrap();
    // The thread that sealed may hold the files for a moment still.
    let late = loop {
        match journal.append_now(epoch(1), T1, &[frame(9300, 9400)]) {
            Ok(false) => std::thread::sleep(Duration::from_millis(1)),
            other => break other,
        }
    };
    assert!(matches!(late, Err(AppendError::Refused { .. })), "{late:?}");
    assert_eq!(journal.tail().unwrap().unwrap().durable_lsn, sealed.durable_lsn);
}

#[tokio::test]
async fn after_a_crash_at_any_moment_everything_acknowledged_is_there() {
    let wal = &real_wal();
    let bytes = first_timeline(wal);
    let dir = tempfile::tempdir().unwrap();
    let journal = begun(dir.path(), wal);
    let mut random = Random(11);
    let mut at = 0;
    for round in 0..12 {
        let length = (bytes.len() / 14 + random.below(5000) as usize).min(bytes.len() - at);
        let from = wal.begin_lsn + at as u64;
        feed(&journal, T1, from, &bytes[at..at + length], &mut random).await;
        at += length;
        let crashed = tempfile::tempdir().unwrap();
        let acknowledged = copy_journal(&journal, dir.path(), crashed.path());
        // What was not acknowledged may be torn in any way.
        damage_behind(crashed.path(), acknowledged, wal, &mut random);
        let reopened = open(crashed.path());
        let end = reopened.positions().borrow().clone().unwrap().durable_lsn;
        assert!(end >= acknowledged, "round {round}: {end} is before {acknowledged}");
        let mut reader = reopened.reader(T1, wal.begin_lsn).unwrap();
        let mut offset = 0;
        while let ReadOutcome::Data { bytes: read, .. } = reader.read(1 << 20).unwrap() {
            assert!(read == bytes[offset..offset + read.len()], "round {round}: bytes differ");
            offset += read.len();
        }
        assert_eq!(wal.begin_lsn + offset as u64, end);
        // It goes on from there.
        reopened.admit(admission(1)).unwrap();
        feed(&reopened, T1, end, &bytes[offset..], &mut random).await;
        durable(&reopened, wal.fork_lsn).await;
    }
}

/// Tears what is behind `acknowledged`, wherever a checksum would tell: no record's covers the bytes that
/// fill up to a multiple of eight behind it, or the rest of its segment behind a switch.
fn damage_behind(dir: &Path, acknowledged: Lsn, wal: &RealWal, random: &mut Random) {
    for (number, finished) in files::segments(dir, T1, size()).unwrap() {
        let segment = WalSegment { timeline: T1, number };
        let start = segment.start(size());
        let path = files::partial(dir, segment, size());
        let safe = acknowledged.bytes_since(start).next_multiple_of(8) as usize;
        if finished || safe >= size().bytes() as usize {
            continue;
        }
        let mut content = fs::read(&path).unwrap();
        if content.len() <= safe {
            // Caught between its making and the reservation of its space.
            continue;
        }
        let words = (content.len() - safe).div_ceil(8) as u64;
        let at = safe + 8 * random.below(words) as usize;
        let primarys = fs::read(wal.dir.join(segment.file_name(size()))).unwrap();
        let switched = primarys[at..].iter().all(|byte| *byte == 0);
        match random.below(3) {
            0 => content.truncate(at),
            1 if !switched => content[at..].fill(0xA5),
            _ => content[at..(at + 4096).min(size().bytes() as usize)].fill(0),
        }
        fs::write(&path, content).unwrap();
    }
}

#[tokio::test]
async fn damaged_or_foreign_bytes_are_refused_and_the_stream_can_go_on() {
    let wal = &real_wal();
    let bytes = first_timeline(wal);
    let dir = tempfile::tempdir().unwrap();
    let journal = begun(dir.path(), wal);
    let mut random = Random(3);
    feed(&journal, T1, wal.begin_lsn, &bytes[..700_000], &mut random).await;
    let position = |journal: &Journal| journal.positions().borrow().clone().unwrap();
    wait(&journal, |p| p.as_ref().is_some_and(|p| p.written_lsn == wal.begin_lsn + 700_000)).await;
    let before = position(&journal);
    let mut damaged = bytes[700_000..900_000].to_vec();
    damaged[1000] ^= 4;
    let at = wal.begin_lsn + 700_000;
    journal.append(epoch(1), T1, at, Bytes::from(damaged)).await.unwrap();
    let refused = wait(&journal, |p| p.as_ref().is_some_and(|p| p.error.is_some())).await;
    assert!(matches!(refused.error.as_deref(), Some(JournalError::BadWal { .. })));
    assert_eq!(refused.durable_lsn, before.durable_lsn);
    // Another history's bytes where some are durable already.
    let mut foreign = bytes[..300_000].to_vec();
    foreign[200_000] ^= 1;
    journal.append(epoch(1), T1, wal.begin_lsn, Bytes::from(foreign)).await.unwrap();
    let diverged = |error: &JournalError| matches!(error, JournalError::Diverged { .. });
    wait(&journal, |p| p.as_ref().unwrap().error.as_deref().is_some_and(diverged)).await;
    let gap = journal.append(epoch(1), T1, at + 9_000_000, Bytes::from_static(b"x")).await;
    assert!(matches!(gap, Err(AppendError::Gap { .. })));
    let offset = before.durable_lsn.bytes_since(wal.begin_lsn) as usize;
    feed(&journal, T1, before.durable_lsn, &bytes[offset..], &mut random).await;
    durable(&journal, wal.fork_lsn).await;
    assert!(position(&journal).error.is_none());
}

#[tokio::test]
async fn a_sealed_journal_refuses_older_epochs_also_after_a_restart() {
    let wal = &real_wal();
    let bytes = first_timeline(wal);
    let dir = tempfile::tempdir().unwrap();
    let journal = begun(dir.path(), wal);
    feed(&journal, T1, wal.begin_lsn, &bytes[..2_000_000], &mut Random(5)).await;
    let end = journal.seal(epoch(2)).unwrap().unwrap();
    let next = Bytes::copy_from_slice(&bytes[2_000_000..2_000_100]);
    let refused = journal.append(epoch(1), T1, wal.begin_lsn + 2_000_000, next).await;
    assert!(matches!(refused, Err(AppendError::Refused { .. })));
    assert!(matches!(journal.admit(admission(1)), Err(JournalError::StaleEpoch { .. })));
    assert!(matches!(
        Journal::open(dir.path(), JournalOptions::default()),
        Err(JournalError::Locked { .. })
    ));
    drop(journal);
    let journal = open(dir.path());
    assert_eq!((journal.max_epoch(), journal.sealed()), (epoch(2), Some(end)));
    assert!(matches!(journal.admit(admission(1)), Err(JournalError::StaleEpoch { .. })));
    assert_eq!(journal.positions().borrow().as_ref().unwrap().durable_lsn, end.durable_lsn);
    journal.raise_epoch(epoch(1)).unwrap();
    assert_eq!(journal.max_epoch(), epoch(2));
    journal.admit(admission(2)).unwrap();
}

#[tokio::test]
async fn a_timeline_switch_gives_the_files_that_postgresql_has() {
    let wal = &real_wal();
    let bytes = first_timeline(wal);
    let dir = tempfile::tempdir().unwrap();
    let journal = begun(dir.path(), wal);
    let mut random = Random(13);
    feed(&journal, T1, wal.begin_lsn, &bytes, &mut random).await;
    durable(&journal, wal.fork_lsn).await;
    let t2 = T1.next();
    for wrong in [wal.fork_lsn - 8, wal.fork_lsn + 8] {
        assert!(journal.switch_timeline(epoch(1), t2, &wal.history, wrong).await.is_err());
    }
    journal.switch_timeline(epoch(1), t2, &wal.history, wal.fork_lsn).await.unwrap();
    journal.switch_timeline(epoch(1), t2, &wal.history, wal.fork_lsn).await.unwrap();
    let second = wal.bytes(t2);
    let end = scan_pg_wal(&wal.dir, t2, wal.fork_lsn, size()).unwrap().end_lsn;
    let offset = wal.fork_lsn.bytes_since(wal.begin_lsn) as usize;
    let length = end.bytes_since(wal.begin_lsn) as usize;
    feed(&journal, t2, wal.fork_lsn, &second[offset..length], &mut random).await;
    durable(&journal, end).await;
    let tail = journal.tail().unwrap().unwrap();
    drop(journal);
    let journal = open(dir.path());
    assert_eq!(journal.tail().unwrap().unwrap(), tail);
    assert_eq!(journal.history_raw(t2).unwrap(), wal.history);
    for (number, _) in files::segments(dir.path(), t2, size()).unwrap().iter().filter(|s| *s.1) {
        let segment = WalSegment { timeline: t2, number: *number };
        let ours = fs::read(files::finished(dir.path(), segment, size())).unwrap();
        let theirs = fs::read(wal.dir.join(segment.file_name(size()))).unwrap();
        assert!(ours == theirs, "segment {number} of timeline 2 differs");
    }
    let mut reader = journal.reader(T1, wal.begin_lsn).unwrap();
    let mut read = Vec::new();
    let left = loop {
        match reader.read(300_000).unwrap() {
            ReadOutcome::Data { bytes, .. } => read.extend(bytes),
            other => break other,
        }
    };
    assert_eq!(left, ReadOutcome::TimelineEnd { switch_lsn: wal.fork_lsn, next: t2 });
    assert!(read == bytes);
    let mut reader = journal.reader(t2, wal.begin_lsn).unwrap();
    read.clear();
    while let ReadOutcome::Data { bytes, .. } = reader.read(300_000).unwrap() {
        read.extend(bytes);
    }
    assert!(read == second[..length]);
}

#[tokio::test]
async fn old_segments_are_removed_and_the_rest_can_be_fetched_and_set_aside() {
    let wal = &real_wal();
    let bytes = first_timeline(wal);
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("wal");
    let journal = begun(&inside, wal);
    feed(&journal, T1, wal.begin_lsn, &bytes, &mut Random(17)).await;
    durable(&journal, wal.fork_lsn).await;
    // Segments get their final name just after their end is published, before the next command.
    journal.raise_epoch(epoch(1)).unwrap();
    let first = WalSegment::containing(T1, wal.begin_lsn, size());
    let target = dir.path().join("RECOVERYXLOG");
    let name = |segment: WalSegment| segment.file_name(size());
    assert_eq!(get(&inside, &name(first), &target).unwrap(), GetOutcome::Copied);
    assert_eq!(fs::read(&target).unwrap(), fs::read(wal.dir.join(name(first))).unwrap());
    assert_eq!(journal.remove_before(first.end(size())).unwrap(), size().bytes());
    assert_eq!(get(&inside, &name(first), &target).unwrap(), GetOutcome::NotFound);
    assert_eq!(get(&inside, "00000002.history", &target).unwrap(), GetOutcome::NotFound);
    assert_eq!(get(&inside, "../../etc/passwd", &target).unwrap(), GetOutcome::NotFound);
    let positions = journal.positions().borrow().clone().unwrap();
    assert_eq!(positions.begin_lsn, first.end(size()));
    journal.remove_before(Lsn::MAX).unwrap();
    let tail = journal.tail().unwrap().unwrap();
    drop(journal);
    let journal = open(&inside);
    assert_eq!(journal.tail().unwrap().unwrap(), tail);
    journal.set_aside(&dir.path().join("divergent")).unwrap();
    assert!(journal.tail().unwrap().is_none() && journal.identity().is_none());
    assert_eq!(journal.max_epoch(), epoch(1));
    assert!(!files::segments(&dir.path().join("divergent"), T1, size()).unwrap().is_empty());
    journal.begin(wal.system_id, size(), T1, Vec::new(), wal.begin_lsn).unwrap();
    journal.admit(admission(1)).unwrap();
    feed(&journal, T1, wal.begin_lsn, &bytes, &mut Random(19)).await;
    durable(&journal, wal.fork_lsn).await;
}

#[tokio::test]
async fn what_goes_over_a_limit_is_refused_and_what_is_held_stays_until_there_is_room() {
    let wal = &real_wal();
    let bytes = first_timeline(wal);
    let dir = tempfile::tempdir().unwrap();
    let segments = bytes.len() as u64 / size().bytes();
    assert!(segments >= 3, "the WAL is too short for this test");
    let limited = |limits| {
        let options = JournalOptions { limits, ..JournalOptions::default() };
        Journal::open(dir.path(), options).unwrap()
    };
    let refused = async |journal: &Journal, from: Lsn, beyond: Lsn| {
        let rest = &bytes[from.bytes_since(wal.begin_lsn) as usize..];
        for (index, frame) in rest.chunks(100_000).enumerate() {
            let at = from + (index * 100_000) as u64;
            // Once the first was refused, the rest does not follow what is held.
            if journal.append(epoch(1), T1, at, Bytes::copy_from_slice(frame)).await.is_err() {
                break;
            }
        }
        let refused = |p: &JournalPositions| p.error.is_some() && p.durable_lsn >= beyond;
        wait(journal, |positions| positions.as_ref().is_some_and(refused)).await
    };
    let limits = Limits { bytes_max: 2 * size().bytes(), reserve_bytes: 0 };
    let journal = limited(limits);
    journal.begin(wal.system_id, size(), T1, Vec::new(), wal.begin_lsn).unwrap();
    journal.admit(admission(1)).unwrap();
    let full = refused(&journal, wal.begin_lsn, wal.begin_lsn).await;
    let error = full.error.clone().unwrap();
    assert!(matches!(*error, JournalError::OverMax { .. }), "{error}");
    assert!(error.is_no_room() && !error.is_fatal());
    assert!(full.durable_lsn <= wal.begin_lsn + limits.bytes_max);

    // What fits is durable, but for a record that is not whole and the frame that reached beyond.
    let second = WalSegment::containing(T1, wal.begin_lsn, size()).end(size());
    assert!(full.durable_lsn > second, "{full:?}");
    // Nobody needs the first segment: there is room again, and it goes on where it ended.
    assert_eq!(journal.remove_before(second).unwrap(), size().bytes());
    let further = refused(&journal, full.durable_lsn, second + size().bytes()).await;
    assert!(further.durable_lsn <= second + limits.bytes_max);
    drop(journal);

    // A reserve that no file system has.
    let journal = limited(Limits { bytes_max: u64::MAX, reserve_bytes: u64::MAX / 2 });
    journal.admit(admission(1)).unwrap();
    let held = journal.positions().borrow().clone().unwrap();
    let full = refused(&journal, held.durable_lsn, held.durable_lsn).await;
    assert!(matches!(*full.error.unwrap(), JournalError::InReserve { .. }));
    drop(journal);

    let journal = limited(Limits::NONE);
    journal.admit(admission(1)).unwrap();
    let held = journal.positions().borrow().clone().unwrap().durable_lsn;
    let rest = &bytes[held.bytes_since(wal.begin_lsn) as usize..];
    feed(&journal, T1, held, rest, &mut Random(23)).await;
    durable(&journal, wal.fork_lsn).await;
}

#[tokio::test]
async fn a_finished_segment_that_is_damaged_stops_the_journal_and_it_begins_anew_beside_it() {
    let wal = &real_wal();
    let bytes = first_timeline(wal);
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("wal");
    let journal = begun(&inside, wal);
    // The last finished segment is read at the start where the next one begins within a record
    // (XLP_FIRST_IS_CONTRECORD).
    let length = size().bytes() as usize;
    let mut segments = (1..bytes.len() / length).rev();
    let next = segments.find(|index| bytes[index * length + 2] & 1 == 1).expect("long WAL");
    let fed = &bytes[..next * length + length / 2];
    feed(&journal, T1, wal.begin_lsn, fed, &mut Random(29)).await;
    durable(&journal, wal.begin_lsn + (next * length + length / 4) as u64).await;
    let sealed = journal.seal(epoch(7)).unwrap();
    assert!(sealed.is_some());
    drop(journal);

    let number = wal.begin_lsn.0 / size().bytes() + next as u64 - 1;
    let path = files::finished(&inside, WalSegment { timeline: T1, number }, size());
    let mut content = fs::read(&path).unwrap();
    // More than what fills up to a multiple of eight, which no checksum covers.
    content[length / 2..][..16].iter_mut().for_each(|byte| *byte ^= 1);
    fs::write(&path, &content).unwrap();
    let opened = Journal::open(&inside, JournalOptions::default());
    let Err(JournalError::LostWal { max_epoch, .. }) = opened else { panic!("{opened:?}") };
    assert_eq!(max_epoch, epoch(7));
    assert!(fs::read(&path).unwrap() == content, "what is damaged is left as it was");

    let aside = dir.path().join("aside");
    let journal = Journal::open_without_wal(&inside, &aside, JournalOptions::default()).unwrap();
    assert!(journal.tail().unwrap().is_none() && journal.sealed().is_none());
    assert_eq!(journal.max_epoch(), epoch(7), "an epoch is never forgotten");
    let kept = files::finished(&aside, WalSegment { timeline: T1, number }, size());
    assert!(fs::read(kept).unwrap() == content);
    journal.begin(wal.system_id, size(), T1, Vec::new(), wal.begin_lsn).unwrap();
    let refused = journal.admit(admission(6));
    assert!(matches!(refused, Err(JournalError::StaleEpoch { .. })), "{refused:?}");
    journal.admit(admission(7)).unwrap();
    let frame = Bytes::copy_from_slice(&bytes[..100_000]);
    journal.append(epoch(7), T1, wal.begin_lsn, frame).await.unwrap();
    wait(&journal, |p| p.as_ref().is_some_and(|p| p.durable_lsn > wal.begin_lsn)).await;
    // A directory that holds something is not mixed with something else.
    drop(journal);
    let again = Journal::open_without_wal(&inside, &aside, JournalOptions::default());
    assert!(matches!(again, Err(JournalError::TargetInUse { .. })), "{again:?}");
}

/// Only where the machine has another file system to offer.
#[tokio::test]
async fn a_journal_is_set_aside_onto_another_file_system() {
    use std::os::unix::fs::MetadataExt as _;
    let wal = &real_wal();
    let bytes = first_timeline(wal);
    let dir = tempfile::tempdir().unwrap();
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("skipped: there is no /dev/shm");
        return;
    };
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    if device(dir.path()) == device(other.path()) {
        eprintln!("skipped: /dev/shm is on the same file system");
        return;
    }
    let journal = begun(dir.path(), wal);
    feed(&journal, T1, wal.begin_lsn, &bytes, &mut Random(31)).await;
    durable(&journal, wal.fork_lsn).await;
    journal.put_history(T1.next(), &wal.history).unwrap();
    let into = other.path().join("journal");
    journal.set_aside(&into).unwrap();
    assert!(journal.tail().unwrap().is_none() && files::timelines(dir.path()).unwrap().is_empty());
    assert_eq!(fs::read(into.join("00000002.history")).unwrap(), wal.history);
    let kept = files::segments(&into, T1, size()).unwrap();
    assert!(kept.len() as u64 >= bytes.len() as u64 / size().bytes(), "{kept:?}");
    for (number, finished) in kept.into_iter().filter(|(_, finished)| *finished) {
        let segment = WalSegment { timeline: T1, number };
        let theirs = fs::read(wal.dir.join(segment.file_name(size()))).unwrap();
        assert!(finished && fs::read(files::finished(&into, segment, size())).unwrap() == theirs);
    }
    journal.begin(wal.system_id, size(), T1, Vec::new(), wal.begin_lsn).unwrap();
}
