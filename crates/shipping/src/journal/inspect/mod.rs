//! Looks at WAL that lies in files, a journal's or those of a server's `pg_wal`: which ranges are held,
//! whether every byte of them is what PostgreSQL wrote, and what they hash to.
//!
//! It changes nothing, takes no lock and mends nothing. What is behind the end that was durable when it
//! began is not looked at, so that whoever appends meanwhile is not in its way.

mod digest;
mod finding;
mod pace;
mod place;
mod ranges;
mod survey;
mod verify;

pub use digest::SegmentDigest;
pub use finding::{Finding, FindingKind};
pub use place::{Place, PlaceKind, WalEnd};
pub use ranges::{Coverage, Gap, Range};
pub use survey::{Survey, WalFile, WalFileKind};
pub use verify::{Ended, Step, VerifyOptions, verify};
