//! The vocabulary of Understudy: values that every other crate speaks in.
//!
//! Nothing here does IO, reads a clock, or allocates on a hot path.
//! A type earns its place here when two crates would otherwise disagree about what a number means.

mod clock;
mod epoch;
mod exposure;
mod identity;
mod lsn;
mod permit;
mod segment;
mod timeline;

pub use clock::{BootInstant, Clock};
pub use epoch::{Epoch, ParseEpochError, ProcessStart};
pub use exposure::{DurabilityMode, Exposure};
pub use identity::{
    ClusterId, Incarnation, NodeId, NodeKind, NodeName, ParseNameError, PromotionId, Region,
    SiteName, SystemId,
};
pub use lsn::{Lsn, ParseLsnError};
pub use permit::{Admission, Permit, PermitSerial, ReceiverPosition, SealedEnd, SourcePositions};
pub use segment::{ParseSegmentError, SegmentSize, WalSegment};
pub use timeline::{
    HistoryEntry, HistoryError, Lineage, ParseTimelineError, Timeline, TimelineHistory,
};
