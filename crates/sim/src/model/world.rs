//! One state of the model: small, flat and without anything that cannot matter later.
//!
//! Every moment is kept as the time that is left or has passed, so two states that differ only in the
//! date are one. WAL positions are the real type's numbers: 1 is the end of what founding made, and each
//! write is one more.

use super::book::{CommandNo, HistoryNo, StateNo};

/// How many entries a node may be behind at most, and thus how many are kept.
pub(super) const LOG_MAX: usize = 4;
/// How many proposals may be under way at most.
pub(super) const FLIGHT_MAX: usize = 3;
/// How many writes there may be at most.
pub(super) const WRITES_MAX: usize = 4;
/// No command.
pub(super) const NO_COMMAND: CommandNo = CommandNo::MAX;
/// No generation.
pub(super) const NO_GENERATION: u8 = u8::MAX;

/// The whole world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// How far each node's clock moves in one tick of true time.
    pub(super) rates: [u8; 3],
    /// The replicated state after the last committed entry.
    pub(super) head: StateNo,
    /// The newest entries, as many as the furthest follower still has to apply.
    pub(super) log: [Entry; LOG_MAX],
    pub(super) log_len: u8,
    /// Proposals that may yet be committed, sorted.
    pub(super) flight: [CommandNo; FLIGHT_MAX],
    pub(super) voters: [Voter; 3],
    pub(super) data: [Data; 2],
    /// How often faults and other rare things have happened.
    pub(super) used: Used,
    /// What only the properties look at.
    pub(super) ghost: Ghost,
}

/// A committed entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    pub(super) command: CommandNo,
    pub(super) accepted: bool,
    /// The state after it.
    pub(super) state: StateNo,
}

/// What every node has, the witness too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Voter {
    pub(super) up: bool,
    /// Cut off from the consensus, or so late that it will be sent a snapshot.
    pub(super) away: bool,
    /// Entries committed and not applied here; without meaning while it is away.
    pub(super) behind: u8,
    pub(super) applied: StateNo,
    /// Until its own clock says that the lease is over; 0 when it does.
    pub(super) over: u8,
}

/// What a data node has besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Data {
    pub(super) process: u8,
    pub(super) step: Step,
    /// A majority has confirmed the state since this process began.
    pub(super) confirmed: bool,
    // On disk.
    pub(super) wal: Wal,
    pub(super) timeline: u8,
    pub(super) promotion: u8,
    pub(super) recorded: HistoryNo,
    /// Frames of older epochs are refused.
    pub(super) sealed: u8,
    pub(super) dirty: bool,
    /// Where its promotion is to leave, or left, the old timeline.
    pub(super) fork: u8,
    // PostgreSQL.
    pub(super) server: Server,
    pub(super) let_in: bool,
    /// The newest epoch for which a server was run as a primary here.
    pub(super) held: u8,
    // The lease, as the holder counts it.
    pub(super) newest: u8,
    pub(super) sent: [Sent; 2],
    pub(super) deadline: u8,
    // The holder's memory.
    pub(super) floor: u8,
    pub(super) pending: bool,
    pub(super) proposed: u8,
    /// Only with a seeded mistake: a removal was proposed.
    pub(super) removing: bool,
    /// It asked for the handover that it is to carry out.
    pub(super) asked: bool,
    /// And its gate waits for everybody, whatever the dial says.
    pub(super) strict: bool,
    /// Where its WAL ended at a clean stop; 0 when it did not stop for a switchover.
    pub(super) clean_end: u8,
    // The source and the gate.
    pub(super) source: bool,
    pub(super) attached: bool,
    pub(super) known: u8,
    pub(super) permit: GatePermit,
    pub(super) reported: u8,
    pub(super) look: Look,
    /// The epoch whose stream it follows; 0 when none.
    pub(super) following: u8,
}

/// WAL: which writes, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Wal {
    len: u8,
    writes: [u8; WRITES_MAX],
}

/// Where a node stands in its role. The role itself follows from the applied state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// Passive: nothing known yet.
    Assessing,
    /// Passive: a rewind or clone is under way.
    Joining,
    /// Passive: a standby runs on data of the present lineage.
    Following,
    /// Candidate: asking the majority.
    Confirming,
    /// Candidate: taking up again what it held.
    Resuming,
    /// Candidate, only with a seeded mistake: the end was read before the seal.
    EndRead,
    /// Candidate: sealed, its end read.
    Sealed,
    /// Candidate: done, telling the cluster.
    Reporting,
    /// Holder: no lease or no server yet.
    Acquiring,
    /// Holder: the server runs behind the gate.
    Serving,
    /// Holder: clients are shut out, the server is being stopped.
    HandingOver,
    /// Holder: the gate is shut for good, the process tree not yet proven gone.
    GivingUp,
    /// Holder: giving the lease back.
    Releasing,
}

/// Every process of PostgreSQL on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Server {
    Down,
    Standby,
    Primary,
}

/// A renewal whose outcome is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Sent {
    /// 0 when there is none.
    pub(super) seq: u8,
    /// For how long, on the holder's clock.
    pub(super) age: u8,
}

/// The permit in force at the gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct GatePermit {
    /// 0 when there is none.
    pub(super) epoch: u8,
    /// Until its deadline.
    pub(super) left: u8,
    pub(super) zero: bool,
    pub(super) waits: bool,
    pub(super) sole: bool,
    pub(super) credit: u8,
}

/// The gate has looked and has not written yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Look {
    /// What it will report; 0 when it has not looked.
    pub(super) upto: u8,
    /// Ticks since.
    pub(super) age: u8,
}

/// Budgets, as far as they are used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Used {
    pub(super) writes: u8,
    pub(super) crashes: u8,
    pub(super) cuts: u8,
    pub(super) removals: u8,
    pub(super) turns: u8,
    pub(super) switchovers: u8,
    pub(super) restarts: u8,
    pub(super) releases: u8,
    pub(super) reclones: u8,
}

/// History, for the properties.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Ghost {
    /// Writes that were acknowledged and must not be lost, as bits: those in `zero`, and what had been
    /// acknowledged before when `zero` came in force.
    pub(super) acked: u8,
    /// Those that were acknowledged in another mode or by a sole survivor, since the last change of
    /// holder, as bits: an operator's weaker mode may lose them.
    pub(super) weak: u8,
    /// A weaker mode came in force under a lease.
    pub(super) weakened: bool,
    /// `zero` came in force under a lease over something that was acknowledged before.
    pub(super) strengthened: bool,
    /// A handover was undone.
    pub(super) undone: bool,
    /// Epochs that acknowledged something, as bits.
    pub(super) acked_epochs: u8,
    /// The newest epoch whose gate was ever open.
    pub(super) open_epoch: u8,
    /// The furthest report in another mode since the last change of holder.
    pub(super) released: u8,
    /// Something was seen in a step that no state shows.
    pub(super) broken: Broken,
}

/// What can be seen only in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Broken {
    #[default]
    Nothing,
    /// An acknowledgement under an epoch after a later one had opened.
    LateAcknowledgement,
    /// A promotion lost more than was published.
    LossBeyondCredit,
}

impl World {
    /// Entries that somebody who is not away has still to apply are kept, the others forgotten;
    /// proposals are sorted.
    pub(super) fn normalise(&mut self) {
        let needed = self.voters.iter().filter(|v| !v.away).map(|v| v.behind).max().unwrap_or(0);
        while self.log_len > needed {
            self.log.copy_within(1.., 0);
            self.log_len -= 1;
        }
        for entry in &mut self.log[usize::from(self.log_len)..] {
            *entry = Entry::NONE;
        }
        self.flight.sort_unstable();
    }

    pub(super) fn flight_count(&self) -> usize {
        self.flight.iter().filter(|command| **command != NO_COMMAND).count()
    }
}

impl Entry {
    pub(super) const NONE: Entry = Entry { command: NO_COMMAND, accepted: false, state: 0 };
}

impl Data {
    /// The lease runs by the holder's own clock.
    pub(super) fn lease_runs(&self) -> bool {
        self.deadline > 0
    }

    /// The server runs as a primary behind an open gate, for clients or for a clean stop.
    pub(super) fn has_gate(&self) -> bool {
        matches!(self.step, Step::Serving | Step::HandingOver)
    }

    /// The gate could let something through now, or has already decided to.
    pub(super) fn gate_is_open(&self) -> bool {
        let may_look = self.source && self.permit.epoch > 0 && self.permit.left > 0;
        may_look || self.look.upto > 0
    }

    /// Every process of the server is gone.
    pub(super) fn fence(&mut self) {
        self.drop_source();
        self.server = Server::Down;
    }

    /// What was asked for a switchover is not carried out by this process.
    pub(super) fn forget_handover(&mut self) {
        self.asked = false;
        self.strict = false;
    }

    /// The gate's connection and the receivers' are gone.
    pub(super) fn drop_source(&mut self) {
        self.source = false;
        self.attached = false;
        self.known = 0;
        self.permit = GatePermit::default();
        self.look = Look::default();
        self.reported = 0;
        self.let_in = false;
    }
}

impl Wal {
    /// The position of its end.
    pub(super) fn end(&self) -> u8 {
        self.len + 1
    }

    pub(super) fn push(&mut self, write: u8) {
        self.writes[usize::from(self.len)] = write;
        self.len += 1;
    }

    /// Cuts everything from `end` on.
    pub(super) fn cut(&mut self, end: u8) {
        while self.end() > end {
            self.len -= 1;
            self.writes[usize::from(self.len)] = 0;
        }
    }

    pub(super) fn writes(&self) -> &[u8] {
        &self.writes[..usize::from(self.len)]
    }

    /// The writes before `end`, as bits.
    pub(super) fn bits(&self, end: u8) -> u8 {
        let count = usize::from(end.saturating_sub(1)).min(self.writes().len());
        self.writes()[..count].iter().fold(0, |bits, write| bits | 1 << write)
    }

    pub(super) fn is_prefix_of(&self, other: &Wal) -> bool {
        other.writes().starts_with(self.writes())
    }
}
