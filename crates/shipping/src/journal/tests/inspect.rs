//! What is held, and whether it is sound: a real server's WAL over two timelines, in its `pg_wal` and in a
//! journal, whole and then damaged in one place at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::*;
use crate::journal::inspect::{
    Ended, Finding, FindingKind, Place, SegmentDigest, Step, VerifyOptions, WalEnd, WalFileKind,
    verify,
};

fn t2() -> Timeline {
    T1.next()
}

/// A server's WAL, a journal of both its timelines, closed, and the durable end.
struct Stored {
    wal: RealWal,
    dir: tempfile::TempDir,
    end_lsn: Lsn,
}

fn stored() -> Stored {
    let wal = real_wal();
    let dir = tempfile::tempdir().unwrap();
    let journal = begun(dir.path(), &wal);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut random = Random(3);
    let end_lsn = scan_pg_wal(&wal.dir, t2(), wal.fork_lsn, size()).unwrap().end_lsn;
    let mut second = wal.bytes(t2());
    second.truncate(end_lsn.bytes_since(wal.begin_lsn) as usize);
    let second = &second[wal.fork_lsn.bytes_since(wal.begin_lsn) as usize..];
    runtime.block_on(async {
        feed(&journal, T1, wal.begin_lsn, &first_timeline(&wal), &mut random).await;
        durable(&journal, wal.fork_lsn).await;
        journal.switch_timeline(epoch(1), t2(), &wal.history, wal.fork_lsn).await.unwrap();
        feed(&journal, t2(), wal.fork_lsn, second, &mut random).await;
        durable(&journal, end_lsn).await;
    });
    drop(journal);
    Stored { wal, dir, end_lsn }
}

impl Stored {
    fn place(&self) -> Place {
        let place = Place::of_journal_files(self.dir.path()).unwrap().unwrap();
        // As its daemon would say.
        Place { end: WalEnd::Durable(self.end_lsn), ..place }
    }

    fn pg_wal(&self) -> Place {
        let wal = &self.wal;
        Place::of_pg_wal(&wal.dir, wal.system_id, size(), t2(), self.end_lsn)
    }

    /// The file of the segment that holds a position, whatever it is called.
    fn file(&self, timeline: Timeline, lsn: Lsn) -> PathBuf {
        let segment = WalSegment::containing(timeline, lsn, size());
        let finished = files::finished(self.dir.path(), segment, size());
        if finished.exists() { finished } else { files::partial(self.dir.path(), segment, size()) }
    }

    /// The second finished segment of a timeline, by its start.
    fn finished(&self, timeline: Timeline, index: usize) -> Lsn {
        let held = files::segments(self.dir.path(), timeline, size()).unwrap();
        let finished: Vec<u64> = held.into_iter().filter(|(_, f)| *f).map(|(n, _)| n).collect();
        WalSegment { timeline, number: finished[index] }.start(size())
    }

    /// Flips one bit in the data of a record, in a finished segment of the first timeline; where.
    fn flip_in_a_record(&self, index: usize) -> Lsn {
        let start = self.finished(T1, index);
        let in_data = |lsn: &Lsn| {
            self.flip(T1, *lsn);
            let told = verified(&self.place()).findings;
            let found = told.iter().any(|finding| finding.expected.contains("checksum 0x"));
            if !found {
                self.flip(T1, *lsn);
            }
            found
        };
        (0..20).map(|step| start + 4000 + step * 50).find(in_data).expect("records have data")
    }

    /// Flips one bit of the byte at a position.
    fn flip(&self, timeline: Timeline, lsn: Lsn) {
        let path = self.file(timeline, lsn);
        let file = fs::File::options().read(true).write(true).open(path).unwrap();
        let (mut byte, at) = ([0], lsn.0 % size().bytes());
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    }
}

#[derive(Debug, Default)]
struct Told {
    total_bytes: u64,
    findings: Vec<Finding>,
    digests: Vec<SegmentDigest>,
    removed: Vec<String>,
    histories: Vec<Timeline>,
}

fn fast() -> VerifyOptions {
    let bytes_per_second = 4 << 30;
    VerifyOptions { from_lsn: None, to_lsn: None, bytes_per_second, cuts: BTreeMap::new() }
}

fn run(place: &Place, options: &VerifyOptions, mut at: impl FnMut(&Step)) -> (Told, Ended) {
    let mut told = Told::default();
    let ended = verify(place, options, &mut |step| {
        at(&step);
        match step {
            Step::Begun { total_bytes } => told.total_bytes = total_bytes,
            Step::Progress { .. } => {}
            Step::History { timeline, .. } => told.histories.push(timeline),
            Step::Segment(digest) => told.digests.push(digest),
            Step::Finding(finding) => told.findings.push(finding),
            Step::Removed { file } => told.removed.push(file),
        }
        ControlFlow::Continue(())
    });
    (told, ended.unwrap().unwrap())
}

fn verified(place: &Place) -> Told {
    let (told, ended) = run(place, &fast(), |_| {});
    assert_eq!(ended.findings_count, told.findings.len() as u64);
    if told.removed.is_empty() && told.findings.iter().all(|f| f.kind == FindingKind::Damaged) {
        assert_eq!(ended.read_bytes, told.total_bytes);
    }
    told
}

fn only(told: &Told) -> &Finding {
    let [finding] = told.findings.as_slice() else { panic!("{told:#?}") };
    finding
}

#[test]
fn sound_wal_over_two_timelines_has_no_finding_and_the_same_digests_at_both_places() {
    let stored = stored();
    let (journal, server) = (verified(&stored.place()), verified(&stored.pg_wal()));
    assert_eq!((&journal.findings, &server.findings), (&vec![], &vec![]));
    assert_eq!((journal.histories, server.histories), (vec![t2()], vec![t2()]));
    assert_eq!(journal.digests, server.digests);
    let timelines: BTreeSet<_> = journal.digests.iter().map(|digest| digest.timeline).collect();
    assert_eq!(timelines, BTreeSet::from([T1, t2()]));
    assert!(journal.digests.len() >= 10, "{}", journal.digests.len());
}

#[test]
fn the_ranges_reach_without_a_gap_from_the_first_byte_over_the_fork_to_the_end() {
    let stored = stored();
    for place in [stored.place(), stored.pg_wal()] {
        let coverage = place.survey().unwrap().coverage(&place);
        assert_eq!(coverage.gaps, []);
        let [first, second] = coverage.ranges.as_slice() else { panic!("{coverage:?}") };
        assert_eq!((first.timeline, first.from_lsn), (T1, stored.wal.begin_lsn));
        assert_eq!((first.to_lsn, second.from_lsn), (stored.wal.fork_lsn, stored.wal.fork_lsn));
        assert_eq!((second.timeline, second.to_lsn), (t2(), stored.end_lsn));
    }
}

#[test]
fn every_file_is_listed_as_what_it_is() {
    let stored = stored();
    let place = stored.place();
    let listed = place.survey().unwrap().files(&place);
    let names: BTreeSet<_> = listed.iter().map(|file| file.name.clone()).collect();
    let mut expected: BTreeSet<_> = BTreeSet::from(["00000002.history".to_owned()]);
    for timeline in [T1, t2()] {
        expected.extend(files::names(&files::timeline_dir(stored.dir.path(), timeline)).unwrap());
    }
    assert_eq!(names, expected);
    let partial: Vec<_> = listed.iter().filter(|f| f.kind == WalFileKind::Partial).collect();
    let ends: Vec<_> = partial.iter().map(|file| file.to_lsn).collect();
    assert_eq!(ends, [Some(stored.wal.fork_lsn), Some(stored.end_lsn)]);
    for file in listed.iter().filter(|file| file.kind == WalFileKind::Finished) {
        let (from, to) = (file.from_lsn.unwrap(), file.to_lsn.unwrap());
        assert_eq!((to.bytes_since(from), file.bytes), (size().bytes(), size().bytes()));
        assert!(file.modified_unix_us > 1_700_000_000_000_000, "{file:?}");
    }
    // A server keeps files for later.
    let server = stored.pg_wal();
    let unused = server.survey().unwrap().files(&server);
    let unused = unused.iter().filter(|file| file.kind == WalFileKind::Unused);
    assert!(unused.clone().all(|file| file.from_lsn.is_none()), "{:?}", unused.collect::<Vec<_>>());
}

#[test]
fn any_flipped_bit_is_found_in_its_file_and_the_bytes_before_it_are_called_sound() {
    let stored = stored();
    let (place, mut random) = (stored.place(), Random(23));
    let whole = verified(&place);
    let mut finished = 0;
    for round in 0..60 {
        let digest = &whole.digests[random.below(whole.digests.len() as u64) as usize];
        let length = digest.to_lsn.bytes_since(digest.from_lsn);
        let lsn = digest.from_lsn + random.below(length);
        stored.flip(digest.timeline, lsn);
        let told = verified(&place);
        stored.flip(digest.timeline, lsn);
        let differing: Vec<_> =
            told.digests.iter().zip(&whole.digests).filter(|(a, b)| a.sha256 != b.sha256).collect();
        let [(flipped, sound)] = differing.as_slice() else { panic!("{lsn}: {differing:#?}") };
        assert_eq!(flipped.file, digest.file, "round {round}, {lsn}");
        let page = lsn.bytes_since(digest.from_lsn) / 8192;
        let first = flipped.page_crc32c.iter().zip(&sound.page_crc32c).position(|(a, b)| a != b);
        assert_eq!(first, Some(page as usize), "round {round}, {lsn}");
        // Unused bytes (alignment, a page header's padding) and what continues from before the first
        // byte held carry no checksum: only the other site's digest tells.
        let Some(finding) = told.findings.first() else { continue };
        assert_eq!(finding.kind, FindingKind::Damaged, "{finding:?}");
        assert_eq!(finding.timeline, digest.timeline, "{finding:?}");
        assert!(finding.sound_lsn <= lsn, "{lsn}: {finding:?}");
        assert!(!flipped.sound || finding.file != digest.file, "{finding:?}");
        finished += 1;
    }
    assert!(finished >= 45, "only {finished} of 60 flips were found by the WAL itself");
    assert_eq!(verified(&place).findings, []);
}

#[test]
fn a_flipped_bit_in_a_record_names_the_record_and_what_its_checksum_is() {
    let stored = stored();
    let flipped = stored.flip_in_a_record(4);
    let told = verified(&stored.place());
    let finding = only(&told);
    assert_eq!(finding.kind, FindingKind::Damaged);
    assert!(finding.lsn <= flipped && finding.sound_lsn <= finding.lsn, "{finding:?}");
    assert!(finding.found.contains("checksum 0x"), "{finding:?}");
}

#[test]
fn a_missing_segment_is_a_gap_of_its_size_and_the_rest_is_still_verified() {
    let stored = stored();
    let lost = stored.finished(T1, 3);
    fs::remove_file(stored.file(T1, lost)).unwrap();
    let place = stored.place();
    let coverage = place.survey().unwrap().coverage(&place);
    let [gap] = coverage.gaps.as_slice() else { panic!("{coverage:?}") };
    assert_eq!((gap.from_lsn, gap.to_lsn), (lost, lost + size().bytes()));
    assert_eq!(coverage.ranges.len(), 3);
    let told = verified(&place);
    let finding = only(&told);
    assert_eq!((finding.kind, finding.lsn), (FindingKind::Gap, lost));
    let name = WalSegment::containing(T1, lost, size()).file_name(size());
    assert_eq!(finding.file, name);
    assert!(told.digests.iter().all(|digest| digest.sound));
    assert!(told.digests.iter().any(|digest| digest.from_lsn > lost));
}

#[test]
fn a_missing_end_and_a_short_file_are_found() {
    let stored = stored();
    let last = stored.file(t2(), stored.end_lsn);
    let length = stored.end_lsn.0 % size().bytes() / 2;
    fs::File::options().write(true).open(&last).unwrap().set_len(length).unwrap();
    let told = verified(&stored.place());
    assert_eq!(only(&told).kind, FindingKind::Short, "{told:#?}");
    fs::remove_file(&last).unwrap();
    let told = verified(&stored.place());
    assert_eq!(only(&told).kind, FindingKind::Gap, "{told:#?}");
}

#[test]
fn a_history_that_leaves_the_parent_elsewhere_is_not_believed() {
    let stored = stored();
    let path = stored.dir.path().join("00000002.history");
    let parent = scan_pg_wal(&stored.wal.dir, T1, stored.wal.fork_lsn, size()).unwrap();
    // In the middle of a record.
    let elsewhere = parent.last_record_lsn.unwrap() + 8;
    fs::write(&path, format!("1\t{elsewhere}\tno reason\n")).unwrap();
    let kinds: BTreeSet<_> =
        verified(&stored.place()).findings.iter().map(|finding| finding.kind.as_str()).collect();
    assert!(kinds.contains("end"), "{kinds:?}");
    fs::write(&path, "nonsense\n").unwrap();
    let told = verified(&stored.place());
    let history = told.findings.iter().find(|f| f.kind == FindingKind::History).unwrap();
    assert_eq!(history.file, "00000002.history");
    fs::remove_file(&path).unwrap();
    let told = verified(&stored.place());
    let history = told.findings.iter().find(|f| f.kind == FindingKind::History).unwrap();
    assert_eq!((history.file.as_str(), history.found.as_str()), ("00000002.history", "no file"));
}

#[test]
fn what_retention_removes_meanwhile_is_told_as_removed_and_a_hole_is_not() {
    let stored = stored();
    let place = stored.place();
    let oldest = stored.finished(T1, 0);
    let (told, ended) = run(&place, &fast(), |step| {
        if matches!(step, Step::Begun { .. }) {
            fs::remove_file(stored.file(T1, oldest)).unwrap();
        }
    });
    let name = WalSegment::containing(T1, oldest, size()).file_name(size());
    assert_eq!((told.removed, ended.findings_count), (vec![name], 0));
    let hole = stored.finished(T1, 2);
    let (told, _) = run(&place, &fast(), |step| {
        if matches!(step, Step::Begun { .. }) {
            fs::remove_file(stored.file(T1, hole)).unwrap();
        }
    });
    assert_eq!((only(&told).kind, only(&told).lsn), (FindingKind::Vanished, hole));
}

#[test]
fn a_segment_that_the_server_uses_again_is_removed_and_not_damaged() {
    let (stored, copy) = (stored(), tempfile::tempdir().unwrap());
    let server = stored.pg_wal();
    for name in files::names(&server.dir).unwrap() {
        if server.dir.join(&name).is_file() {
            fs::copy(server.dir.join(&name), copy.path().join(name)).unwrap();
        }
    }
    let place = Place { dir: copy.path().to_owned(), ..server };
    let to_lsn = Some(stored.wal.begin_lsn + 4 * size().bytes());
    let options = VerifyOptions { to_lsn, bytes_per_second: 1 << 20, ..fast() };
    let mut reused = None;
    let (told, ended) = run(&place, &options, |step| {
        // In the middle of a segment, it gets a name far ahead and new content, and older ones go.
        let Step::Progress { lsn, .. } = step else { return };
        if reused.is_none() && !lsn.0.is_multiple_of(size().bytes()) {
            let segment = WalSegment::containing(T1, *lsn, size());
            for number in stored.wal.begin_lsn.0 / size().bytes()..segment.number {
                let older = WalSegment { timeline: T1, number };
                fs::remove_file(copy.path().join(older.file_name(size()))).unwrap();
            }
            let name = segment.file_name(size());
            let file = fs::File::options().write(true).open(copy.path().join(&name)).unwrap();
            fs::rename(copy.path().join(&name), copy.path().join("0000000200000000000000F0"))
                .unwrap();
            file.write_all_at(&vec![7; size().bytes() as usize], 0).unwrap();
            reused = Some(name);
        }
    });
    let reused = reused.expect("it was told in the middle of a segment");
    assert_eq!((told.removed, ended.findings_count), (vec![reused], 0), "{:?}", told.findings);
}

#[test]
fn without_a_daemon_the_end_is_found_and_a_torn_tail_is_none_of_its_business() {
    let stored = stored();
    let place = Place::of_journal_files(stored.dir.path()).unwrap().unwrap();
    assert!(matches!(place.end, WalEnd::Unknown { .. }));
    let (told, ended) = run(&place, &fast(), |_| {});
    assert_eq!((told.findings, ended.found_end_lsn), (vec![], Some(stored.end_lsn)));
    // Bytes that were on their way and never acknowledged.
    let path = stored.file(t2(), stored.end_lsn);
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&[9; 100], stored.end_lsn.0 % size().bytes()).unwrap();
    let (told, ended) = run(&place, &fast(), |_| {});
    assert_eq!((told.findings, ended.found_end_lsn), (vec![], Some(stored.end_lsn)));
    // A finished segment has no tail.
    stored.flip_in_a_record(4);
    assert_eq!(run(&place, &fast(), |_| {}).1.findings_count, 1);
}

#[test]
fn a_directory_that_is_no_journal_is_refused_with_what_to_give() {
    let dir = tempfile::tempdir().unwrap();
    let error = Place::of_journal_files(dir.path()).unwrap_err().to_string();
    assert!(error.contains("journal.meta") && error.contains("data directory"), "{error}");
}

#[test]
fn a_part_is_verified_alone_and_a_cut_ends_the_digest_there() {
    let stored = stored();
    let place = stored.place();
    let (from, to) = (stored.finished(T1, 2), stored.finished(T1, 5));
    let part = VerifyOptions { from_lsn: Some(from + 77), to_lsn: Some(to + 100), ..fast() };
    let (told, ended) = run(&place, &part, |_| {});
    assert_eq!((told.findings, ended.read_bytes), (vec![], to.bytes_since(from) + 100));
    // Damage outside of it is not its business.
    let outside = stored.flip_in_a_record(6);
    assert_eq!(run(&place, &part, |_| {}).0.findings, []);
    stored.flip(T1, outside);
    let cut = Lsn(stored.end_lsn.0 - 5000);
    let cuts = BTreeMap::from([(t2(), cut)]);
    let (told, _) = run(&place, &VerifyOptions { cuts, ..fast() }, |_| {});
    let last = told.digests.last().unwrap();
    let first = stored.file(t2(), stored.end_lsn) == stored.file(t2(), cut);
    assert_eq!(last.to_lsn, if first { cut } else { stored.end_lsn });
}

#[test]
fn it_keeps_below_the_rate_and_stops_when_it_is_told_to() {
    let stored = stored();
    let place = stored.place();
    let slow = VerifyOptions { bytes_per_second: 4 << 20, ..fast() };
    let began = std::time::Instant::now();
    let part =
        VerifyOptions { to_lsn: Some(stored.wal.begin_lsn + 3 * size().bytes()), ..slow.clone() };
    run(&place, &part, |_| {});
    // Three of four mebibytes a second, the first piece at once.
    assert!(began.elapsed() > Duration::from_millis(600), "{:?}", began.elapsed());
    let began = std::time::Instant::now();
    let stopped = verify(&place, &slow, &mut |step| match step {
        Step::Progress { .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert_eq!(stopped.unwrap(), None);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}
