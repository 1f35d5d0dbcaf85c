//! What is kept, what is kept once, and what is let go first.

use super::*;

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

fn kept(end_lsn: Lsn) -> Kept {
    Kept {
        version: 1,
        node: "north".to_owned(),
        timeline: 1,
        from_lsn: Lsn((2 << 20) + 800),
        end_lsn,
        wal_bytes: 1,
        recorded: Vec::new(),
        history: Vec::new(),
    }
}

const EPOCH: Epoch = Epoch { incarnation: 0, number: 2 };
const END: Lsn = Lsn((3 << 20) + 160);

/// A `pg_wal` of four segments and a history.
fn pg_wal(dir: &Path) -> PathBuf {
    let pg_wal = dir.join("live");
    fs::create_dir(&pg_wal).unwrap();
    for number in 1..=4 {
        fs::write(pg_wal.join(format!("0000000100000000{number:08X}")), vec![number; 1 << 20])
            .unwrap();
    }
    fs::write(pg_wal.join("00000002.history"), "1\t0/300000\t\n").unwrap();
    pg_wal
}

fn keep(root: &Path, pg_wal: &Path, kept: &Kept) -> PathBuf {
    if let Some(round) = already_kept(root, pg_wal, EPOCH, size(), kept) {
        return round;
    }
    forget_oldest(root).unwrap();
    let into = fresh_place(root, EPOCH, KEPT_WAL).unwrap();
    keep_files(pg_wal, &into, size(), kept, &|| false).unwrap();
    into.parent().unwrap().to_owned()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_same_wal_is_kept_once_and_other_wal_again() {
    let dir = tempfile::tempdir().unwrap();
    let (root, pg_wal) = (dir.path().join("divergent"), pg_wal(dir.path()));
    let first = keep(&root, &pg_wal, &kept(END));
    assert_eq!(
        names(&first.join(KEPT_WAL)),
        ["000000010000000000000002", "000000010000000000000003", "00000002.history", KEPT_FILE]
    );
    assert_eq!(keep(&root, &pg_wal, &kept(END)), first);
    // A segment that was removed meanwhile does not make it other WAL.
    fs::remove_file(pg_wal.join("000000010000000000000002")).unwrap();
    assert_eq!(keep(&root, &pg_wal, &kept(END)), first);
    let path = pg_wal.join("000000010000000000000003");
    let mut content = fs::read(&path).unwrap();
    // Behind the end it may differ, before it not.
    content[160] = 99;
    fs::write(&path, &content).unwrap();
    assert_eq!(keep(&root, &pg_wal, &kept(END)), first);
    content[159] = 99;
    fs::write(&path, &content).unwrap();
    assert_ne!(keep(&root, &pg_wal, &kept(END)), first);
    assert_eq!(names(&root), ["epoch-2-1", "epoch-2-2"]);
}

#[test]
fn a_copy_that_was_stopped_is_not_taken_for_kept_wal() {
    let dir = tempfile::tempdir().unwrap();
    let (root, pg_wal) = (dir.path().join("divergent"), pg_wal(dir.path()));
    fs::create_dir(&root).unwrap();
    let into = fresh_place(&root, EPOCH, KEPT_WAL).unwrap();
    let calls = std::cell::Cell::new(0);
    let stopped = || {
        calls.set(calls.get() + 1);
        calls.get() > 2
    };
    assert!(keep_files(&pg_wal, &into, size(), &kept(END), &stopped).is_err());
    assert!(!into.exists());
    let round = keep(&root, &pg_wal, &kept(END));
    assert_eq!((round.join(KEPT_WAL), names(&round)), (into, vec![KEPT_WAL.to_owned()]));
}

#[test]
fn the_oldest_wal_goes_first_and_its_receipt_stays() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for number in 1..=12 {
        let round = root.join(format!("epoch-{number}-1"));
        fs::create_dir_all(round.join(KEPT_WAL)).unwrap();
        if number % 2 == 0 {
            fs::write(round.join(RECEIPT_FILE), "{}").unwrap();
        }
    }
    forget_oldest(root).unwrap();
    let with_wal = |number: &i32| root.join(format!("epoch-{number}-1/{KEPT_WAL}")).exists();
    assert_eq!((1..=12).filter(with_wal).collect::<Vec<_>>(), [8, 9, 10, 11, 12]);
    let there = |number: &i32| root.join(format!("epoch-{number}-1")).exists();
    assert_eq!((1..=12).filter(there).collect::<Vec<_>>(), [2, 4, 6, 8, 9, 10, 11, 12]);
    // A round that keeps its receipt keeps its name.
    let second = Epoch { incarnation: 0, number: 2 };
    assert_eq!(fresh_place(root, second, KEPT_WAL).unwrap(), root.join("epoch-2-2").join(KEPT_WAL));
}
