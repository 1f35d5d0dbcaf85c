//! The loop is never held up, what is missing is said, and the ring keeps within its bound.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use understudy_core::Timing;
use understudy_core::node::{CoreOptions, LocalView};
use understudy_trace::{Finding, Lines, Replay};
use understudy_types::{NodeKind, PromotionId};

use super::ring::Ring;
use super::*;

fn core() -> Core {
    Core::new(CoreOptions {
        me: NodeId(1),
        kind: NodeKind::Data,
        process: ProcessStart(7),
        timing: Timing::DEFAULT,
    })
}

fn options(dir: &Path, bytes_max: u64) -> RecorderOptions {
    let (node, name, process) = (NodeId(1), "north".to_owned(), ProcessStart(7));
    RecorderOptions { dir: dir.to_owned(), bytes_max, node, name, process }
}

/// One turn of the loop, as the driver does it.
fn turn(recorder: &mut Recorder, core: &mut Core, number: u64) {
    let at = BootInstant(number * 1_000_000);
    let fresh = PromotionId(uuid::Uuid::from_u128(u128::from(number)));
    let event = Event::Local { view: LocalView::default(), fresh, wall_unix_us: 1 };
    recorder.event(at, &event, core);
    let before = core.decided().len();
    core.handle_event(at, event);
    recorder.actions(core.decided().skip(before));
    while core.poll_action().is_some() {}
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn replay(dir: &Path) -> Vec<Finding> {
    let (mut replay, mut found) = (Replay::default(), Vec::new());
    for file in files(dir) {
        let bytes = std::fs::read(&file).unwrap();
        let mut lines = Lines::new(&bytes).unwrap();
        while let Some(line) = lines.next_line().unwrap() {
            found.extend(replay.take(line));
        }
    }
    found.extend(replay.finish());
    found
}

fn turns(found: &[Finding]) -> Vec<u64> {
    let number = |finding: &Finding| match finding {
        Finding::Turn(turn) => Some(turn.number),
        _ => None,
    };
    found.iter().filter_map(number).collect()
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::yield_now();
    }
}

#[test]
fn what_goes_through_the_door_is_replayed_from_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::start(options(dir.path(), 64 << 20)).unwrap();
    let mut core = core();
    for number in 1..=500 {
        turn(&mut recorder, &mut core, number);
    }
    recorder.last_words().unwrap().speak();
    let found = replay(dir.path());
    assert_eq!(turns(&found), (1..=500).collect::<Vec<u64>>(), "{found:?}");
    let mode = std::fs::metadata(&files(dir.path())[0]).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_full_queue_drops_counts_and_says_so_where_it_happened() {
    let dir = tempfile::tempdir().unwrap();
    let (mut recorder, receiver, shared) = Recorder::pair();
    let mut core = core();
    let more = QUEUE_MAX as u64 + 100;
    for number in 1..=more {
        turn(&mut recorder, &mut core, number);
    }
    // The snapshot took one place.
    let dropped = more - (QUEUE_MAX as u64 - 1);
    assert_eq!(shared.missed_total.load(Ordering::Relaxed), dropped);
    let options = options(dir.path(), 64 << 20);
    std::thread::scope(|scope| {
        let (options, shared) = (&options, &*shared);
        let writer = scope.spawn(move || writer::run(options, &receiver, shared));
        recorder.last_words().unwrap().speak();
        wait_until("the end of the queue", || {
            let before = shared.missed_total.load(Ordering::Relaxed);
            turn(&mut recorder, &mut core, more + 1);
            shared.missed_total.load(Ordering::Relaxed) == before
        });
        drop(recorder);
        writer.join().unwrap();
    });
    let found = replay(dir.path());
    let gap = found.iter().find_map(|finding| match finding {
        Finding::Gap(count) => Some(*count),
        _ => None,
    });
    assert!(gap.is_some_and(|gap| gap >= dropped), "{gap:?}");
    assert!(!found.iter().any(|f| matches!(f, Finding::Diverged { .. } | Finding::Skipped(_))));
    let last = turns(&found).last().copied().unwrap();
    assert!(last > more, "the turn after the gap is replayed: {last}");
}

#[test]
fn the_ring_keeps_within_its_bound_and_each_file_can_be_replayed_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let bytes_max = 256 * 1024;
    let mut recorder = Recorder::start(options(dir.path(), bytes_max)).unwrap();
    let mut core = core();
    for number in 1..=20_000 {
        turn(&mut recorder, &mut core, number);
        if number % 100 == 0 {
            recorder.last_words().unwrap().speak();
        }
    }
    let sizes: Vec<u64> =
        files(dir.path()).iter().map(|file| std::fs::metadata(file).unwrap().len()).collect();
    let occupied: u64 = sizes.iter().sum();
    // A file may grow by what is handed over until the loop's next turn.
    assert!(occupied <= bytes_max * 3 / 2, "{occupied} bytes in {sizes:?}");
    assert!(sizes.len() >= 4, "{sizes:?}");
    let found = replay(dir.path());
    let turns = turns(&found);
    assert_eq!(turns.last(), Some(&20_000));
    assert!(turns[0] > 1, "the oldest file is gone");
    assert!(turns.windows(2).all(|pair| pair[1] == pair[0] + 1), "nothing is missing in between");
    assert!(!found.iter().any(|f| matches!(f, Finding::Diverged { .. })));
}

#[test]
fn a_directory_that_cannot_be_written_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::start(options(&dir.path().join("gone"), 64 << 20)).unwrap();
    let mut core = core();
    for number in 1..=100 {
        turn(&mut recorder, &mut core, number);
    }
    recorder.last_words().unwrap().speak();
    assert!(!dir.path().join("gone").exists());
}

#[test]
fn a_daemon_that_starts_again_and_again_leaves_a_bounded_number_of_files() {
    let dir = tempfile::tempdir().unwrap();
    let ring = Ring::new(dir.path(), 64 << 20);
    for number in 1..=4199 {
        std::fs::write(dir.path().join(format!("{number:010}.trace")), "").unwrap();
    }
    ring.open_next().unwrap();
    let files = files(dir.path());
    assert_eq!(files.len(), 4096);
    assert!(files.last().unwrap().ends_with("0000004200.trace"));
}
