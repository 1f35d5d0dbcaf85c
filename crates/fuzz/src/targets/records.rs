//! Which transactions ended where: in WAL as it comes, and in records whose headers and checksums are right
//! whatever is in them.

use understudy_types::Lsn;
use understudy_wal::format::{
    EndedTransaction, ScanOptions, Stop, TransactionEnd, TransactionReader, WalVersion,
};

use super::layout::{Record, lay_out};
use super::wal::{Wal, polish};
use super::{Target, about, as_it_is, pieces};
use crate::allocation::within;

pub(super) const TRANSACTIONS: Target = Target {
    name: "transactions",
    about: "WAL from a page boundary on, read for transactions",
    words: &[],
    polish: |input, random| polish(input, random),
    judge: judge_wal,
};

pub(super) const RECORDS: Target = Target {
    name: "records",
    about: "records: block headers, and the ends of transactions",
    words: &[&[0xFF], &[0xFE], &[0xFD], &[0xFC], &[1, 0x80], &[0, 0x10, 0, 0, 0, 0], b"gid\0"],
    polish: as_it_is,
    judge: judge_records,
};

/// Memory for each byte of WAL: a transaction whose database is remembered takes a node of a tree.
const MEMORY_TIMES: usize = 64;

#[derive(Debug, PartialEq)]
struct Told {
    ended: Vec<EndedTransaction>,
    unreadable_count: u64,
    forgotten_count: u64,
    end_lsn: Lsn,
    stop: Option<Stop>,
}

fn read<'a>(
    options: ScanOptions,
    version: WalVersion,
    begin: Lsn,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Told {
    let mut reader = TransactionReader::new(options, version, begin);
    let mut ended: Vec<EndedTransaction> = Vec::new();
    for piece in pieces {
        let before = reader.end_lsn();
        let result = reader.push(piece, &mut |one| {
            assert!(ended.last().is_none_or(|before| before.end_lsn <= one.lsn), "out of order");
            assert!(one.lsn < one.end_lsn && one.end != TransactionEnd::Rollback);
            ended.push(one);
        });
        assert!(reader.end_lsn() >= before, "backwards");
        if result.is_err() {
            break;
        }
    }
    Told {
        ended,
        unreadable_count: reader.unreadable_count(),
        forgotten_count: reader.forgotten_count(),
        end_lsn: reader.end_lsn(),
        stop: reader.stop().cloned(),
    }
}

fn judge_wal(input: &[u8]) -> String {
    let wal = Wal::of(input);
    let options = wal.loose();
    let told =
        within(input.len(), MEMORY_TIMES, || read(options, wal.version, wal.begin, [wal.bytes]));
    assert_eq!(told, read(options, wal.version, wal.begin, pieces(wal.bytes)), "in pieces");
    word(&told)
}

/// Versions whose records differ, by the first byte of an input.
const VERSIONS: [WalVersion; 3] = [WalVersion::V15To17, WalVersion::V14, WalVersion::V18];
/// Before each body: its length, resource manager, info and transaction.
const FRAME_BYTES: usize = 8;
const XLOG: u8 = 0;

fn judge_records(input: &[u8]) -> String {
    let Some((which, mut rest)) = input.split_first() else { return "nothing".to_owned() };
    let version = VERSIONS[usize::from(*which) % VERSIONS.len()];
    let mut records = Vec::new();
    while let Some((frame, bodies)) = rest.split_first_chunk::<FRAME_BYTES>() {
        let length = usize::from(u16::from_le_bytes([frame[0], frame[1]]));
        let (body, others) = bodies.split_at(length.min(bodies.len()));
        let xid = u32::from_le_bytes([frame[4], frame[5], frame[6], frame[7]]);
        // A segment switch has no body, and would have to be followed by a megabyte of zeroes.
        let manager = if frame[2] == XLOG { 1 } else { frame[2] };
        records.push(Record { manager, info: frame[3], xid, body });
        rest = others;
    }
    let (bytes, end_lsn) = lay_out(&records);
    let options = Wal::of(&bytes).strict();
    let begin = Wal::of(&bytes).begin;
    let told = within(bytes.len(), MEMORY_TIMES, || read(options, version, begin, [&bytes[..]]));
    assert_eq!((told.end_lsn, &told.stop), (end_lsn.max(begin), &None), "whole records");
    assert_eq!(told, read(options, version, begin, pieces(&bytes)), "in pieces");
    let unreadable = usize::try_from(told.unreadable_count).unwrap_or(usize::MAX);
    assert!(told.ended.len() <= records.len() && unreadable <= records.len());
    word(&told)
}

fn word(told: &Told) -> String {
    let mut ends: Vec<String> = told
        .ended
        .iter()
        .map(|one| {
            let (database, gid) = (one.database.is_some(), one.gid.is_some());
            let (tablespace, below) =
                (one.tablespace.is_some(), about(one.subtransaction_count as usize));
            format!("{:?} {database} {tablespace} {gid} {below}", one.end)
        })
        .collect();
    ends.sort();
    ends.dedup();
    let unreadable = told.unreadable_count > 0;
    format!("{} {unreadable} {}", ends.join(", "), told.stop.is_some())
}
