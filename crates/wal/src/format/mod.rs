//! Real PostgreSQL WAL: pages, records, checksums, and where it ends.
//!
//! The page magics of PostgreSQL 14 to 18 are accepted; 15 is what it is tested with. Nothing here
//! does IO, and nothing looks into a record's data.

mod page;
mod record;
mod scanner;

pub use page::{LONG_HEADER_BYTES, PAGE_BYTES, PageFault, PageHeader, SHORT_HEADER_BYTES};
pub use record::{RECORD_BYTES_MAX, RECORD_HEADER_BYTES, RecordHeader};
pub use scanner::{ScanOptions, Scanner, Stop};
