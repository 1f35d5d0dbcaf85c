//! Real PostgreSQL WAL: pages, records, checksums, and where it ends.
//!
//! The page magics of PostgreSQL 14 to 18 are accepted; 15 is what it is tested with. Nothing here
//! does IO. Of a record's data only what says which transaction ended, where, is looked at.

mod block;
mod fields;
mod page;
mod record;
mod scanner;
mod transaction;
mod transactions;
mod version;

pub use page::{LONG_HEADER_BYTES, PAGE_BYTES, PageFault, PageHeader, SHORT_HEADER_BYTES};
pub use record::{RECORD_BYTES_MAX, RECORD_HEADER_BYTES, RecordHeader};
pub use scanner::{RecordSink, ScanOptions, Scanner, Stop};
pub use transaction::TransactionEnd;
pub use transactions::{EndedTransaction, TransactionReader};
pub use version::WalVersion;
