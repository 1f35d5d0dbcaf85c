//! The reader against records that are built here, byte by byte, whole and damaged.
//! (PostgreSQL's own WAL is compared with `pg_waldump` in the crate `postgres`.)

use proptest::prelude::*;

use super::*;
use crate::format::scanner::tests::{Builder, options};

/// The number that the builder puts into every record's header.
const XID: u32 = 700;
const HEAP: u8 = 10;
const COMMIT_WITH_INFO: u8 = 0x80;

/// A record's body with main data alone.
fn main_data(data: &[u8]) -> Vec<u8> {
    let mut body = vec![254];
    body.extend((data.len() as u32).to_le_bytes());
    body.extend(data);
    body
}

/// A block's header without an image.
fn block(id: u8, database: Option<u32>, data_bytes: u16) -> Vec<u8> {
    let flags = if database.is_none() { 0x80 } else { 0 } | if data_bytes > 0 { 0x20 } else { 0 };
    let mut header = vec![id, flags];
    header.extend(data_bytes.to_le_bytes());
    if let Some(database) = database {
        for number in [1663, database, 16_400] {
            header.extend(u32::to_le_bytes(number));
        }
    }
    header.extend(0u32.to_le_bytes());
    header
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn read(built: &Builder, version: WalVersion) -> (Vec<EndedTransaction>, TransactionReader) {
    let mut reader = TransactionReader::new(options(), version, built.begin);
    let mut ended = Vec::new();
    for piece in built.bytes.chunks(1000) {
        reader.push(piece, &mut |one| ended.push(one)).unwrap();
    }
    (ended, reader)
}

#[test]
fn a_commit_without_a_database_has_that_of_the_blocks_its_transaction_touched() {
    let mut built = Builder::new();
    // A shared relation first: it says nothing. Then one of database 5, by a subtransaction whose top
    // transaction the record names, and a second block in the same relation.
    let mut body = vec![252];
    body.extend(XID.to_le_bytes());
    body.extend(block(0, Some(0), 3));
    body.extend(block(1, Some(5), 0));
    body.extend(block(2, None, 0));
    body.extend([1, 2, 3]);
    built.record_of(HEAP, 0, &body, false, 0);
    built.record_of(1, 0, &main_data(&0i64.to_le_bytes()), false, 0);
    // The same number again, as nothing is remembered beyond the end.
    built.record_of(1, 0, &main_data(&1i64.to_le_bytes()), false, 0);
    let (ended, reader) = read(&built, WalVersion::V15To17);
    assert_eq!(ended.iter().map(|one| one.database).collect::<Vec<_>>(), [Some(5), None]);
    assert_eq!(ended[0].unix_us, 946_684_800_000_000);
    assert_eq!((ended[0].lsn, ended[0].end_lsn), built.records[1]);
    assert_eq!(ended[0].xid, XID);
    assert_eq!(reader.unreadable_count(), 0);
}

#[test]
fn the_parts_of_a_commit_are_found_behind_one_another_in_each_version() {
    for (version, statistic) in
        [(WalVersion::V14, None), (WalVersion::V15To17, Some(12)), (WalVersion::V18, Some(16))]
    {
        let dropped = if statistic.is_some() { 1 << 8 } else { 0 };
        let mut data = 7i64.to_le_bytes().to_vec();
        data.extend(words(&[0xBF | dropped])); // everything but locks
        data.extend(words(&[16_384, 1663]));
        data.extend(words(&[2, 701, 702]));
        data.extend(words(&[1, 1663, 16_384, 99]));
        if let Some(bytes) = statistic {
            data.extend(words(&[1]));
            data.extend(vec![9; bytes]);
        }
        data.extend(words(&[1, 0, 0, 0, 0]));
        data.extend(words(&[650]));
        data.extend(b"branch\0");
        data.extend([0; 16]);
        let mut built = Builder::new();
        built.record_of(1, COMMIT_WITH_INFO | 0x30, &main_data(&data), false, 0);
        let (ended, reader) = read(&built, version);
        assert_eq!(reader.unreadable_count(), 0, "{version:?}");
        let [one] = ended.as_slice() else { panic!("{ended:?}") };
        assert_eq!(one.end, TransactionEnd::CommitPrepared);
        assert_eq!((one.xid, one.database, one.tablespace), (650, Some(16_384), Some(1663)));
        assert_eq!((one.subtransaction_count, one.gid.as_deref()), (2, Some("branch")));
    }
}

/// A record that lies whole in a page is told in one piece, header and all.
#[test]
fn a_commit_with_many_subtransactions_is_read_whole_in_one_piece_and_in_many() {
    let mut data = 7i64.to_le_bytes().to_vec();
    data.extend(words(&[1 << 1, 600]));
    data.extend(words(&(1000..1600).collect::<Vec<_>>()));
    let mut built = Builder::new();
    built.record_of(1, COMMIT_WITH_INFO, &main_data(&data), false, 0);
    for chunk in [1, 100, built.bytes.len()] {
        let mut reader = TransactionReader::new(options(), WalVersion::V15To17, built.begin);
        let mut ended = Vec::new();
        for piece in built.bytes.chunks(chunk) {
            reader.push(piece, &mut |one| ended.push(one)).unwrap();
        }
        let counts = ended.iter().map(|one| one.subtransaction_count).collect::<Vec<_>>();
        assert_eq!((counts.as_slice(), reader.unreadable_count()), (&[600][..], 0), "{chunk}");
    }
}

#[test]
fn a_transaction_that_is_rolled_back_is_not_told_and_a_cut_commit_is() {
    let mut built = Builder::new();
    built.record_of(1, 0x20, &main_data(&0i64.to_le_bytes()), false, 0);
    let mut data = 7i64.to_le_bytes().to_vec();
    data.extend(words(&[1 << 1, 5, 701]));
    built.record_of(1, COMMIT_WITH_INFO, &main_data(&data), false, 0);
    built.record_of(1, 0, &main_data(&[1, 2, 3]), false, 0);
    built.record_of(1, 0, &[77; 40], false, 0);
    let (ended, reader) = read(&built, WalVersion::V15To17);
    let [one] = ended.as_slice() else { panic!("{ended:?}") };
    assert_eq!((one.xid, one.subtransaction_count), (XID, 5));
    assert_eq!(reader.unreadable_count(), 3);
}

#[test]
fn what_is_remembered_of_open_transactions_is_bounded() {
    let mut collector =
        TransactionReader::new(options(), WalVersion::V15To17, options().timeline_since.unwrap())
            .collector;
    for xid in 1..=OPEN_MAX as u32 + 10 {
        collector.remember(xid, 5);
    }
    assert_eq!((collector.databases.len(), collector.forgotten_count), (OPEN_MAX, 10));
    collector.record.clear();
    let mut header = [0; RECORD_HEADER_BYTES];
    header[17] = TRANSACTION_MANAGER;
    collector.keep(&header);
    for _ in 0..40 {
        collector.keep(&[0; 1 << 20]);
    }
    assert_eq!(collector.record.len(), TRANSACTION_BYTES_MAX);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// The checksums are right, what is inside is not: neither a panic nor memory without bound.
    #[test]
    fn records_of_nonsense_never_panic(
        bodies in prop::collection::vec(
            (prop_oneof![Just(1u8), any::<u8>()], any::<u8>(), any::<bool>(),
             prop::collection::vec(any::<u8>(), 0..300)), 1..12),
        version in prop_oneof![
            Just(WalVersion::V14), Just(WalVersion::V15To17), Just(WalVersion::V18)],
    ) {
        let mut built = Builder::new();
        for (manager, info, as_main_data, body) in &bodies {
            // A segment switch would want zeroes behind it, which is the scanner's business.
            let manager = if *manager == 0 { 1 } else { *manager };
            let body = if *as_main_data { main_data(body) } else { body.clone() };
            built.record_of(manager, *info, &body, false, 0);
        }
        let (ended, reader) = read(&built, version);
        prop_assert!(ended.len() <= bodies.len());
        prop_assert_eq!(reader.end_lsn(), built.records.last().unwrap().1);
    }

    /// Damaged bytes end the reading; everything before them is told, nothing behind.
    #[test]
    fn damage_ends_the_reading_where_it_is(
        count in 1usize..60,
        place in 0.0f64..1.0,
        garbage in prop::collection::vec(any::<u8>(), 1..64),
        chunk in 1usize..5000,
    ) {
        let mut built = Builder::new();
        for _ in 0..count {
            let mut data = 7i64.to_le_bytes().to_vec();
            data.extend(words(&[1 << 1, 100]));
            data.extend(words(&vec![9; 100]));
            built.record_of(1, COMMIT_WITH_INFO, &main_data(&data), false, 0);
        }
        let at = (built.bytes.len() as f64 * place) as usize;
        let touched = built.begin + at as u64;
        for (byte, wrong) in built.bytes[at..].iter_mut().zip(&garbage) {
            *byte ^= wrong;
        }
        let mut reader = TransactionReader::new(options(), WalVersion::V15To17, built.begin);
        let mut ended = Vec::new();
        for piece in built.bytes.chunks(chunk) {
            if reader.push(piece, &mut |one| ended.push(one)).is_err() {
                break;
            }
        }
        let whole = built.records.iter().filter(|(_, end)| *end <= touched).count();
        prop_assert!(ended.len() >= whole.saturating_sub(1), "{} of {whole}", ended.len());
        // What is told was verified: records of the builder, in their order.
        for (one, record) in ended.iter().zip(&built.records) {
            prop_assert_eq!((one.lsn, one.end_lsn), *record);
        }
    }
}
