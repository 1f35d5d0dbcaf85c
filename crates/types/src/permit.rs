//! What the core allows the WAL path to do, and what the WAL path tells the core about positions.
//!
//! A permit expires by itself: a core that is stuck, starved or frozen closes the gate without doing
//! anything. The admission is its twin at the passive.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    BootInstant, DurabilityMode, Epoch, Exposure, Lsn, NodeId, PromotionId, Survival, Timeline,
};

/// Numbers the permits and admissions of one process, ascending; a late one is recognised by it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct PermitSerial(pub u64);

/// Leave to acknowledge commits, under conditions, until a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permit {
    /// Which permit this is.
    pub serial: PermitSerial,
    /// The epoch whose lease it rests on.
    pub epoch: Epoch,
    /// The promotion whose WAL it speaks of.
    pub promotion: PromotionId,
    /// The holder's deadline (I4): nothing is released at or after it.
    pub deadline: BootInstant,
    /// The dial, the stricter of what is in force and what is pending.
    pub mode: DurabilityMode,
    /// Who is waited for. In mode `zero` all of them must have made a commit durable before it is
    /// released, unless `quorums` says otherwise; exposure counts from the one that has least.
    pub waited_for: Vec<NodeId>,
    /// In mode `zero`: each of these has to be met instead of all of `waited_for`. None where all are
    /// waited for; two or more while who is waited for changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quorums: Vec<Quorum>,
    /// It is recorded that nobody is waited for: only then may `zero` release with an empty set.
    pub sole_survivor: bool,
    /// In `bounded` and `best-effort`: nothing is released beyond this position.
    pub credit: Lsn,
    /// In `bounded`: the oldest released commit that is not durable at the passive may be this old
    /// (R − D); `None` when there is no ceiling or it has been lifted in Raft.
    pub exposure_max: Option<Duration>,
}

/// Of these members so many must have made a commit durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quorum {
    /// Who counts; nobody twice.
    pub members: Vec<NodeId>,
    /// How many of them suffice.
    pub needed: usize,
}

impl Quorum {
    /// How many suffice: a quorum of none would be no durability at all; it cannot be configured, and
    /// means all.
    pub fn needed_count(&self) -> usize {
        if self.needed == 0 { self.members.len() } else { self.needed }
    }

    /// All of its members are needed.
    pub fn is_all(&self) -> bool {
        self.needed_count() >= self.members.len()
    }
}

/// Leave to store and acknowledge WAL at a passive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// Which admission this is.
    pub serial: PermitSerial,
    /// Frames of this epoch are stored, of any other refused.
    pub epoch: Epoch,
    /// The promotion whose WAL is stored.
    pub promotion: PromotionId,
    /// Its timeline.
    pub timeline: Timeline,
}

/// Where one receiver of WAL stands, as the source knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiverPosition {
    /// Who.
    pub node: NodeId,
    /// It is attached to this process, for the current epoch and promotion.
    pub attached: bool,
    /// Everything before this is fsynced and verified there.
    pub durable_lsn: Lsn,
    /// Everything before this is replayed by its PostgreSQL, if it has one and says so.
    pub replay_lsn: Option<Lsn>,
    /// What it has begins here: the journal of a node without a PostgreSQL. Zero where nothing is missing
    /// before, because the data is there.
    #[serde(default)]
    pub begin_lsn: Lsn,
}

/// Where the WAL path of a holder stands; sent to the core in bulk and on edges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcePositions {
    /// When all of this was read, on this node's clock: it may be handled long after that.
    pub read_at: BootInstant,
    /// The primary's local flush position.
    pub flush_lsn: Lsn,
    /// What the gate has released: the greatest flush position reported to PostgreSQL.
    pub released_lsn: Lsn,
    /// The permit that was in force when `released_lsn` was read: whatever an earlier one let pass is
    /// contained in it. `None` before the first.
    pub permit: Option<PermitSerial>,
    /// What would be lost now; an upper figure only, while `survives` is unknown.
    pub exposure: Exposure,
    /// Against what `exposure` was measured; `None` while nobody is known to hold anything.
    pub survives: Option<Survival>,
    /// How long a release is held back at least, because exposure is near the ceiling.
    pub release_delay: Duration,
    /// The gate's own connection is up and verified.
    pub gate_connected: bool,
    /// Every receiver that has ever attached to this process.
    pub receivers: Vec<ReceiverPosition>,
}

/// The verified, durable end of a sealed journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedEnd {
    /// Frames of epochs before this one are refused from now on, durably.
    pub epoch: Epoch,
    /// The timeline of the last byte.
    pub timeline: Timeline,
    /// The durable end, maybe in the middle of a record.
    pub durable_lsn: Lsn,
    /// The end of the last complete record before it: what replay can reach.
    pub record_end_lsn: Lsn,
}
