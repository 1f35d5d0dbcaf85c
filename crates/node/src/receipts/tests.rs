//! A receipt from kept files: whole, torn and damaged, and however often its making is begun.
//! (Receipts of real losses are compared with clients' memories in the black-box tests.)

use std::fs;
use std::path::{Path, PathBuf};

use understudy_types::{Epoch, Lineage, PromotionId, SegmentSize, Timeline};
use understudy_wal::format::{LONG_HEADER_BYTES, PAGE_BYTES, RECORD_HEADER_BYTES};

use super::make::Facts;
use super::*;

const SEGMENT_BYTES: u64 = 1 << 20;
const SYSTEM: u64 = 77;
/// Main data of a COMMIT without parts: its time.
const COMMIT: (u8, u8) = (1, 0);
const HEAP: (u8, u8) = (10, 0);

/// WAL from the second segment on, as PostgreSQL 15 lays it out.
struct Wal {
    bytes: Vec<u8>,
    previous: u64,
}

impl Wal {
    fn new() -> Wal {
        Wal { bytes: Vec::new(), previous: SEGMENT_BYTES - 64 }
    }

    fn position(&self) -> u64 {
        SEGMENT_BYTES + self.bytes.len() as u64
    }

    fn page(&mut self, continued: usize) {
        let at = self.position();
        let long = at.is_multiple_of(SEGMENT_BYTES);
        let flags = u16::from(continued > 0) | if long { 2 } else { 0 };
        self.bytes.extend(0xD110u16.to_le_bytes());
        self.bytes.extend(flags.to_le_bytes());
        self.bytes.extend(1u32.to_le_bytes());
        self.bytes.extend(at.to_le_bytes());
        self.bytes.extend((continued as u32).to_le_bytes());
        self.bytes.extend([0; 4]);
        if long {
            self.bytes.extend(SYSTEM.to_le_bytes());
            self.bytes.extend((SEGMENT_BYTES as u32).to_le_bytes());
            self.bytes.extend((PAGE_BYTES as u32).to_le_bytes());
        }
    }

    /// Appends a record; returns where it begins.
    fn record(&mut self, (manager, info): (u8, u8), xid: u32, body: &[u8]) -> Lsn {
        if self.position().is_multiple_of(PAGE_BYTES) {
            self.page(0);
        }
        let start = self.position();
        let mut header = [0; RECORD_HEADER_BYTES];
        header[0..4].copy_from_slice(&((RECORD_HEADER_BYTES + body.len()) as u32).to_le_bytes());
        header[4..8].copy_from_slice(&xid.to_le_bytes());
        header[8..16].copy_from_slice(&self.previous.to_le_bytes());
        (header[16], header[17]) = (info, manager);
        let checksum = crc32c_of(body, &header[..20]);
        header[20..].copy_from_slice(&checksum.to_le_bytes());
        let mut left = [&header[..], body].concat();
        while !left.is_empty() {
            if self.position().is_multiple_of(PAGE_BYTES) {
                self.page(left.len());
            }
            let room = PAGE_BYTES - self.position() % PAGE_BYTES;
            let rest = left.split_off(left.len().min(room as usize));
            self.bytes.extend(left);
            left = rest;
        }
        while !self.position().is_multiple_of(8) {
            self.bytes.push(0);
        }
        self.previous = start;
        Lsn(start)
    }

    fn insert(&mut self, xid: u32, database: u32) {
        let mut body = vec![0, 0, 0, 0];
        for number in [1663, database, 16_400, 0] {
            body.extend(u32::to_le_bytes(number));
        }
        self.record(HEAP, xid, &body);
    }

    fn commit(&mut self, xid: u32, seconds: i64) -> Lsn {
        let mut body = vec![255, 8];
        body.extend((seconds * 1_000_000).to_le_bytes());
        self.record(COMMIT, xid, &body)
    }

    /// Its segments into a directory, from the one of this number on; the last one filled with zeroes.
    fn save(&self, dir: &Path, first: u64) {
        fs::create_dir_all(dir).unwrap();
        for (index, segment) in self.bytes.chunks(SEGMENT_BYTES as usize).enumerate() {
            let number = index as u64 + 1;
            let mut content = segment.to_vec();
            content.resize(SEGMENT_BYTES as usize, 0);
            if number >= first {
                fs::write(dir.join(format!("0000000100000000{number:08X}")), content).unwrap();
            }
        }
    }
}

/// CRC-32C, bit by bit: the crate that the program uses is none of this one's.
fn crc32c_of(data: &[u8], header: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in data.iter().chain(header) {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    !crc
}

fn epoch(number: u64) -> Epoch {
    Epoch { incarnation: 0, number }
}

fn facts() -> Facts {
    Facts {
        cluster: "6f1a2b3c-0000-4000-8000-0123456789ab".parse().unwrap(),
        epoch: epoch(2),
        promised: Some(Promised { mode: DurabilityMode::Bounded, ceiling_seconds: Some(3600.0) }),
        databases: [(5, "five".to_owned())].into(),
        now_unix_us: 1_700_000_000_000_000,
    }
}

fn lineage(number: u64, fork_lsn: Option<Lsn>) -> Lineage {
    Lineage {
        epoch: epoch(number),
        promotion: PromotionId(uuid::Uuid::from_u128(u128::from(number))),
        timeline: Timeline::new(number as u32).unwrap(),
        fork_lsn,
    }
}

/// A round of `divergent/` with WAL that was kept from `fork` on.
struct Round {
    dir: tempfile::TempDir,
}

impl Round {
    fn new(wal: &Wal, fork: Lsn) -> Round {
        let round = Round { dir: tempfile::tempdir().unwrap() };
        wal.save(&round.kept(), fork.0 / SEGMENT_BYTES);
        wal.save(&round.live(), 1);
        let kept = Kept {
            version: 1,
            node: "north".to_owned(),
            timeline: 1,
            from_lsn: fork,
            end_lsn: Lsn(wal.position()),
            wal_bytes: wal.position() - fork.0,
            recorded: vec![lineage(1, None)],
            history: vec![lineage(1, None), lineage(2, Some(fork))],
        };
        let json = serde_json::to_vec(&kept).unwrap();
        fs::write(round.kept().join(KEPT_FILE), json).unwrap();
        round
    }

    fn divergent(&self) -> PathBuf {
        divergent_dir(self.dir.path())
    }

    fn path(&self) -> PathBuf {
        self.divergent().join("epoch-2-1")
    }

    fn kept(&self) -> PathBuf {
        self.path().join(KEPT_WAL)
    }

    fn live(&self) -> PathBuf {
        self.dir.path().join("pg_wal")
    }

    fn make(&self) -> Receipt {
        make(&self.path(), Some(&self.live()), &facts(), &|| false).unwrap()
    }

    fn lines(&self, receipt: &Receipt) -> Vec<LostTransaction> {
        let lines = transactions(&self.divergent(), receipt).unwrap();
        lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
    }
}

/// Two commits before the fork, and behind it three, of which one began before.
fn sample() -> (Wal, Lsn) {
    let mut wal = Wal::new();
    wal.insert(700, 5);
    wal.commit(700, 10);
    // It begins in the first segment and commits in the second one, behind the fork.
    wal.insert(701, 5);
    wal.record(HEAP, 0, &[&[254][..], &1_500_000u32.to_le_bytes(), &vec![9; 1_500_000]].concat());
    wal.insert(702, 6);
    wal.commit(702, 11);
    let fork = Lsn(wal.position());
    wal.commit(701, 20);
    wal.insert(703, 6);
    wal.commit(703, 23);
    wal.commit(704, 22);
    (wal, fork)
}

#[test]
fn what_committed_behind_the_fork_is_listed_with_the_databases_of_before() {
    let (wal, fork) = sample();
    let round = Round::new(&wal, fork);
    let receipt = round.make();
    let of = |one: &LostTransaction| (one.xid, one.database);
    let listed: Vec<_> = receipt.transactions.iter().map(of).collect();
    assert_eq!(listed, [(701, Some(5)), (703, Some(6)), (704, None)]);
    assert_eq!(round.lines(&receipt), receipt.transactions);
    assert_eq!(receipt.transactions[0].database_name.as_deref(), Some("five"));
    assert_eq!(receipt.transactions[0].lsn, fork);
    assert_eq!(receipt.transactions[0].time, "2000-01-01T00:00:20.000000Z");
    assert_eq!((receipt.commits, receipt.others, receipt.tail), (3, 0, Tail::Whole));
    assert_eq!((receipt.lost_seconds, receipt.lost_epoch), (Some(3.0), Some(epoch(1))));
    assert_eq!((receipt.fork_lsn, receipt.end_lsn), (Some(fork), Lsn(wal.position())));
    let commits: Vec<_> = receipt.databases.iter().map(|d| (d.oid, d.commits)).collect();
    assert_eq!(commits, [(None, 1), (Some(5), 1), (Some(6), 1)]);
    assert_eq!(load(&round.divergent(), "").unwrap(), receipt);
    let listed = list(&round.divergent()).unwrap();
    assert_eq!(totals(&listed), (3, wal.position() - fork.0));
    assert_eq!(listed, [receipt]);
}

#[test]
fn kept_files_alone_give_the_same_transactions_without_what_began_before() {
    let (wal, fork) = sample();
    let round = Round::new(&wal, fork);
    let receipt = make(&round.path(), None, &facts(), &|| false).unwrap();
    let of = |one: &LostTransaction| (one.xid, one.database);
    let listed: Vec<_> = receipt.transactions.iter().map(of).collect();
    assert_eq!(listed, [(701, None), (703, Some(6)), (704, None)]);
}

#[test]
fn damage_before_the_fork_costs_no_lost_transaction() {
    let (wal, fork) = sample();
    let round = Round::new(&wal, fork);
    // In the segment before the fork's, and in the fork's own before the fork.
    for (dir, number, at) in
        [(round.live(), 1, 500_000), (round.kept(), 2, fork.0 % SEGMENT_BYTES - 8)]
    {
        let path = dir.join(format!("0000000100000000{number:08X}"));
        let mut content = fs::read(&path).unwrap();
        content[at as usize] ^= 0xFF;
        fs::write(&path, content).unwrap();
    }
    let receipt = round.make();
    let xids: Vec<_> = receipt.transactions.iter().map(|one| one.xid).collect();
    assert_eq!((xids, receipt.tail), (vec![701, 703, 704], Tail::Whole));
}

#[test]
fn an_end_that_is_torn_or_cannot_be_read_is_said() {
    let (mut wal, fork) = sample();
    let whole = wal.position();
    // A record that was begun and never finished.
    let cut = wal.bytes.len() + 40;
    wal.record(HEAP, 705, &[254, 100, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9].repeat(8));
    wal.bytes.truncate(cut);
    let round = Round::new(&wal, fork);
    let rewrite = |end_lsn: Lsn| {
        let mut kept = load_kept(&round.path()).unwrap();
        kept.end_lsn = end_lsn;
        fs::write(round.kept().join(KEPT_FILE), serde_json::to_vec(&kept).unwrap()).unwrap();
    };
    rewrite(Lsn(whole));
    let torn = round.make();
    assert_eq!((torn.tail, torn.commits, torn.read_lsn), (Tail::Torn, 3, Lsn(whole)));
    assert!(render(&torn).contains("never finished"), "{}", render(&torn));
    // The kept copy lost what is behind the first lost commit.
    let path = round.kept().join("000000010000000000000002");
    let mut content = fs::read(&path).unwrap();
    let second = torn.transactions[1].lsn.0 % SEGMENT_BYTES;
    content[second as usize + 30] ^= 1;
    fs::write(&path, content).unwrap();
    let damaged = round.make();
    assert_eq!((damaged.tail, damaged.commits), (Tail::Unreadable, 1));
    assert!(render(&damaged).contains("INCOMPLETE"), "{}", render(&damaged));
}

#[test]
fn a_receipt_is_complete_or_not_there_and_can_be_made_again() {
    let (wal, fork) = sample();
    let round = Round::new(&wal, fork);
    let stopped = make(&round.path(), Some(&round.live()), &facts(), &|| true);
    assert!(matches!(stopped, Err(StoreError::Stopped)), "{stopped:?}");
    assert!(matches!(load(&round.divergent(), ""), Err(StoreError::Unknown { .. })));
    let first = round.make();
    assert_eq!(round.make(), first);
    assert_eq!(round.lines(&first).len(), 3);
    assert_eq!(
        fs::read_to_string(round.path().join(TEXT_FILE)).unwrap(),
        render(&first),
        "the text is another"
    );
    let names: Vec<_> =
        fs::read_dir(round.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().ends_with(".new")), "{names:?}");
}

#[test]
fn rubbish_in_place_of_kept_wal_is_an_error() {
    let (wal, fork) = sample();
    let round = Round::new(&wal, fork);
    let kept = round.kept().join(KEPT_FILE);
    for rubbish in ["", "{}", "[1]"] {
        fs::write(&kept, rubbish).unwrap();
        let made = make(&round.path(), None, &facts(), &|| false);
        assert!(matches!(made, Err(StoreError::Malformed { .. })), "{rubbish}: {made:?}");
    }
    let (wal, fork) = sample();
    for odd in [Lsn(fork.0 + 3), Lsn(SEGMENT_BYTES * 2 + 8), Lsn(SEGMENT_BYTES * 9)] {
        let round = Round::new(&wal, fork);
        let mut text = load_kept(&round.path()).unwrap();
        text.from_lsn = odd;
        let json = serde_json::to_vec(&text).unwrap();
        fs::write(round.kept().join(KEPT_FILE), json).unwrap();
        // Whatever it says, it does not panic and does not invent.
        if let Ok(receipt) = make(&round.path(), None, &facts(), &|| false) {
            let behind = |one: &LostTransaction| one.lsn >= odd;
            assert!(receipt.transactions.iter().all(behind), "{odd}: {receipt:?}");
        }
    }
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(list(empty.path()).unwrap(), []);
}

#[test]
fn whether_recovery_wrote_more_than_its_own_records_can_be_told() {
    let (mut wal, _) = sample();
    let end = Lsn(wal.position());
    wal.record((0, 0), 0, &[255, 3, 1, 2, 3]);
    let recovered = Lsn(wal.position());
    let dir = tempfile::tempdir().unwrap();
    wal.save(dir.path(), 1);
    let size = SegmentSize::new(SEGMENT_BYTES as u32).unwrap();
    let between = |from, to| ends_between(dir.path(), Timeline::FIRST, size, from, to);
    assert_eq!(between(end, recovered), Some(false));
    let since = Lsn(SEGMENT_BYTES + LONG_HEADER_BYTES as u64);
    assert_eq!(between(since, recovered), Some(true));
    assert_eq!(between(end, Lsn(recovered.0 + 8)), None);
    assert_eq!(between(Lsn(end.0 + 4), recovered), None);
}

#[test]
fn rounds_are_ordered_by_epoch_and_number_not_by_their_names() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["epoch-10-1", "epoch-9-2", "epoch-9-10", "epoch-x-1", "other"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    let names: Vec<_> = rounds(dir.path())
        .unwrap()
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["epoch-9-2", "epoch-9-10", "epoch-10-1"]);
}
