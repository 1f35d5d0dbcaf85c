//! The vocabulary of Understudy: values that every other crate speaks in.
//!
//! Nothing here does IO, reads a clock, or allocates on a hot path.
//! A type earns its place here when two crates would otherwise disagree about what a number means.

// The switch of `seeded` is a thread's own; it is absent from every other build.
#![cfg_attr(feature = "seeded-bugs", allow(clippy::disallowed_macros))]

mod clock;
mod epoch;
mod exposure;
mod identity;
mod incarnation;
mod lsn;
mod permit;
mod seeded;
mod segment;
mod timeline;

pub use clock::{BootInstant, Clock};
pub use epoch::{Epoch, ParseEpochError, ProcessStart};
pub use exposure::{DurabilityMode, Exposure, Survival};
pub use identity::{
    ClusterId, Incarnation, NodeId, NodeKind, NodeName, ParseNameError, PromotionId, Region,
    SiteName, SystemId,
};
pub use incarnation::{ClusterIncarnation, ParseIncarnationError};
pub use lsn::{Lsn, ParseLsnError};
pub use permit::{
    Admission, Permit, PermitSerial, Quorum, ReceiverPosition, SealedEnd, SourcePositions,
};
pub use seeded::SeededBug;
#[cfg(feature = "seeded-bugs")]
pub use seeded::seed_bug;
pub use segment::{ParseSegmentError, SegmentSize, WalSegment};
pub use timeline::{
    HistoryEntry, HistoryError, Lineage, ParseTimelineError, Timeline, TimelineHistory,
};
