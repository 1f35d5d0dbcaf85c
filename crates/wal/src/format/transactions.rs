//! `TransactionReader`: told the bytes of WAL in order, tells which transactions ended where.
//!
//! A COMMIT names its database only if it changed a catalogue. For the others the reader remembers,
//! by transaction, the database of the blocks that their records touch; so it has to be told the WAL
//! from where they began. Memory is bounded whatever the bytes are; nothing here panics on damage.

use std::collections::BTreeMap;

use understudy_types::Lsn;

use super::block::{self, HEADERS_BYTES_MAX};
use super::record::{RECORD_HEADER_BYTES, RecordHeader};
use super::scanner::{RecordSink, ScanOptions, Scanner, Stop};
use super::transaction::{self, Parsed, TRANSACTION_MANAGER, TransactionEnd};
use super::version::WalVersion;

/// Of a transaction's record no more than this is looked at: four million subtransactions.
const TRANSACTION_BYTES_MAX: usize = 16 << 20;
/// Transactions whose database is remembered at a time; further ones stay without.
const OPEN_MAX: usize = 1 << 20;
/// Prepared transactions whose names are remembered at a time.
const PREPARED_MAX: usize = 1 << 16;

/// A transaction that ended, or was prepared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedTransaction {
    /// How.
    pub end: TransactionEnd,
    /// Its number; 0 if it never had one.
    pub xid: u32,
    /// Where its record begins.
    pub lsn: Lsn,
    /// Where its record ends: a commit is durable where this is.
    pub end_lsn: Lsn,
    /// When, by the clock of the machine that wrote it: microseconds since the Unix epoch.
    pub unix_us: i64,
    /// The database, by the record itself or by the blocks that the transaction touched; `None` if
    /// neither says one.
    pub database: Option<u32>,
    /// The database's default tablespace, where the record names it.
    pub tablespace: Option<u32>,
    /// How many subtransactions it had.
    pub subtransaction_count: u32,
    /// The name of a prepared transaction.
    pub gid: Option<String>,
}

/// Reads WAL in order, in pieces of any size.
#[derive(Clone, Debug)]
pub struct TransactionReader {
    scanner: Scanner,
    collector: Collector,
}

impl TransactionReader {
    /// A reader whose first byte will be the one at `from`, as for `Scanner::new`.
    pub fn new(options: ScanOptions, version: WalVersion, from: Lsn) -> TransactionReader {
        let collector = Collector {
            version,
            start_lsn: from,
            record: Vec::new(),
            total_bytes: 0,
            databases: BTreeMap::new(),
            prepared: BTreeMap::new(),
            unreadable_count: 0,
            forgotten_count: 0,
        };
        TransactionReader { scanner: Scanner::new(options, from, None), collector }
    }

    /// Reads the bytes at `position()` and tells `each` of the transactions that ended in them.
    ///
    /// # Errors
    /// Why it stopped, now or earlier.
    pub fn push(
        &mut self,
        bytes: &[u8],
        each: &mut dyn FnMut(EndedTransaction),
    ) -> Result<(), Stop> {
        self.scanner.push_to(bytes, &mut Telling { collector: &mut self.collector, each })
    }

    /// The position of the next byte it wants.
    pub fn position(&self) -> Lsn {
        self.scanner.position()
    }

    /// The end of the last complete record.
    pub fn end_lsn(&self) -> Lsn {
        self.scanner.end_lsn()
    }

    /// Why it stopped; `None` while it would read on.
    pub fn stop(&self) -> Option<&Stop> {
        self.scanner.stop()
    }

    /// Records of transactions, with a right checksum, that were not understood to their end.
    pub fn unreadable_count(&self) -> u64 {
        self.collector.unreadable_count
    }

    /// Transactions whose database could not be remembered, because too many were open.
    pub fn forgotten_count(&self) -> u64 {
        self.collector.forgotten_count
    }
}

/// What is remembered between records.
#[derive(Clone, Debug)]
struct Collector {
    version: WalVersion,
    start_lsn: Lsn,
    /// The first bytes of the record that is being read.
    record: Vec<u8>,
    total_bytes: usize,
    /// The database of each open transaction and subtransaction.
    databases: BTreeMap<u32, u32>,
    prepared: BTreeMap<u32, String>,
    unreadable_count: u64,
    forgotten_count: u64,
}

struct Telling<'a> {
    collector: &'a mut Collector,
    each: &'a mut dyn FnMut(EndedTransaction),
}

impl RecordSink for Telling<'_> {
    fn begin(&mut self, start_lsn: Lsn) {
        self.collector.start_lsn = start_lsn;
        self.collector.record.clear();
        self.collector.total_bytes = 0;
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.collector.keep(bytes);
    }

    fn complete(&mut self, end_lsn: Lsn) {
        if let Some(ended) = self.collector.complete(end_lsn) {
            (self.each)(ended);
        }
    }
}

impl Collector {
    /// The header says how much of the record is wanted; it may come with what follows it, or in pieces.
    fn keep(&mut self, bytes: &[u8]) {
        self.total_bytes += bytes.len();
        let missing = RECORD_HEADER_BYTES.saturating_sub(self.record.len());
        let (of_header, rest) = bytes.split_at(missing.min(bytes.len()));
        self.record.extend_from_slice(of_header);
        let header = self.record.first_chunk::<RECORD_HEADER_BYTES>().map(RecordHeader::parse);
        let of_transaction = header.is_some_and(|h| h.resource_manager == TRANSACTION_MANAGER);
        let headers = RECORD_HEADER_BYTES + HEADERS_BYTES_MAX;
        let wanted = if of_transaction { TRANSACTION_BYTES_MAX } else { headers };
        let room = wanted.saturating_sub(self.record.len());
        self.record.extend_from_slice(&rest[..rest.len().min(room)]);
    }

    fn complete(&mut self, end_lsn: Lsn) -> Option<EndedTransaction> {
        let header = RecordHeader::parse(self.record.first_chunk()?);
        let body = &self.record[RECORD_HEADER_BYTES..];
        let headers = block::read_headers(body, self.total_bytes, self.version);
        if header.resource_manager != TRANSACTION_MANAGER {
            let xid = headers.and_then(|found| found.top_xid).unwrap_or(header.xid);
            if let Some(database) = headers.and_then(|found| found.database) {
                self.remember(xid, database);
            }
            return None;
        }
        let Some(headers) = headers else {
            self.unreadable_count += 1;
            return None;
        };
        let data = self.record.get(headers.main_data_offset..).unwrap_or_default();
        match transaction::parse(header.info, data, self.version)? {
            Ok(parsed) => self.ended(&header, parsed, end_lsn),
            Err(()) => {
                self.unreadable_count += 1;
                None
            }
        }
    }

    fn remember(&mut self, xid: u32, database: u32) {
        if xid == 0 || self.databases.contains_key(&xid) {
            return;
        }
        if self.databases.len() < OPEN_MAX {
            self.databases.insert(xid, database);
        } else {
            self.forgotten_count += 1;
        }
    }

    fn ended(
        &mut self,
        header: &RecordHeader,
        parsed: Parsed,
        end_lsn: Lsn,
    ) -> Option<EndedTransaction> {
        self.unreadable_count += u64::from(!parsed.whole);
        let xid = parsed.two_phase_xid.unwrap_or(header.xid);
        let open = parsed.end == TransactionEnd::Prepare;
        let mut touched = None;
        for member in [xid].iter().chain(&parsed.subtransactions) {
            let known = self.databases.get(member).copied();
            touched = touched.or(known);
            if !open {
                self.databases.remove(member);
            }
        }
        // The shared catalogues' zero is no database.
        let named = parsed.database.map(|(database, _)| database).filter(|oid| *oid != 0);
        let database = named.or(touched);
        let gid = if open {
            if let (Some(gid), true) = (&parsed.gid, self.prepared.len() < PREPARED_MAX) {
                self.prepared.insert(xid, gid.clone());
            }
            // COMMIT PREPARED does not name the database either.
            if let Some(database) = database {
                self.remember(xid, database);
            }
            parsed.gid
        } else {
            parsed.gid.or(self.prepared.remove(&xid))
        };
        if parsed.end == TransactionEnd::Rollback {
            return None;
        }
        Some(EndedTransaction {
            end: parsed.end,
            xid,
            lsn: self.start_lsn,
            end_lsn,
            unix_us: parsed.unix_us,
            database,
            tablespace: parsed.database.and_then(|(_, tablespace)| tablespace),
            subtransaction_count: parsed.subtransaction_count,
            gid,
        })
    }
}

#[cfg(test)]
mod tests;
