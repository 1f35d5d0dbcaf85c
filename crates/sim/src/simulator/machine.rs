//! The parts of a modelled machine: what its disks hold, what runs on it, and its clocks.
//!
//! Durable and volatile are apart: a power loss keeps `Journal`, `Postgres::data` and the counters, and
//! of those only what was synced. Nothing here decides or schedules.

use std::collections::{BTreeMap, VecDeque};

use understudy_core::node::{Core, CoreOptions, Event, Task, TaskId};
use understudy_types::{
    Admission, BootInstant, DurabilityMode, Epoch, Lineage, Lsn, NodeId, NodeKind, Permit,
    PermitSerial, ProcessStart, PromotionId, ReceiverPosition, SeededBug,
};
use understudy_wal::exposure::ExposureTracker;

use super::content::Wal;
use super::plan::Plan;
use super::postgres::{Postgres, Server};

/// The journal of a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    /// Written; `None` while it is empty.
    pub(crate) wal: Option<Wal>,
    /// Of that, synced.
    pub(crate) synced: u64,
    /// What it had, durably, when its disk was lost: acknowledged in truth, whatever became of it.
    pub(crate) had: u64,
    /// When that was.
    pub(crate) lost_at: u64,
    pub(crate) max_epoch: Epoch,
    pub(crate) lineage: Vec<Lineage>,
    /// Volatile.
    pub(crate) admitted: Option<Epoch>,
    /// Volatile: a sync is under way.
    pub(crate) syncing: bool,
}

impl Journal {
    /// Durable, verified: the end of a record.
    pub(crate) fn durable(&self) -> Option<u64> {
        self.wal.as_ref().map(|wal| wal.record_end_before(self.synced))
    }

    pub(crate) fn lose_what_is_not_synced(&mut self) {
        let durable = self.synced;
        if let Some(wal) = &mut self.wal {
            wal.cut(durable);
        }
        self.admitted = None;
        self.syncing = false;
    }

    pub(crate) fn raise_epoch(&mut self, epoch: Epoch) {
        self.max_epoch = self.max_epoch.max(epoch);
        if self.admitted.is_some_and(|admitted| admitted < self.max_epoch) {
            self.admitted = None;
        }
    }
}

/// A status update of the gate.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) upto: u64,
    pub(crate) decided_at: u64,
    pub(crate) decided_local: BootInstant,
    /// When it was written; a process may be frozen between the decision and the write.
    pub(crate) written_at: u64,
    /// How far everybody's journal was durable when it was decided.
    pub(crate) durable: BTreeMap<NodeId, Lsn>,
    pub(crate) epoch: Epoch,
    pub(crate) permit: Permit,
}

/// The holder's end of the WAL path.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) id: u64,
    pub(crate) server_life: u64,
    pub(crate) epoch: Epoch,
    pub(crate) promotion: PromotionId,
    pub(crate) flush: u64,
    pub(crate) tracker: ExposureTracker,
    pub(crate) receivers: BTreeMap<NodeId, ReceiverPosition>,
    /// Between check and write, under the permit's lock.
    pub(crate) busy: Option<Written>,
    pub(crate) look_at: u64,
}

/// Where the permit lies; as `shipping::permit_cell`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    pub(crate) epoch: Epoch,
    pub(crate) closed: bool,
    pub(crate) permit: Option<Permit>,
    pub(crate) serial: Option<PermitSerial>,
    pub(crate) released: u64,
}

impl Cell {
    /// As `PermitCell::set`.
    pub(crate) fn set(&mut self, permit: Permit) -> bool {
        let late = self.serial.is_some_and(|serial| permit.serial <= serial);
        if permit.epoch != self.epoch || self.closed || late {
            return false;
        }
        self.serial = Some(permit.serial);
        self.permit = Some(permit);
        true
    }

    /// As `Hands::open_cell`.
    pub(crate) fn open_for(&mut self, epoch: Epoch) -> bool {
        if self.epoch < epoch {
            *self = Cell { epoch, ..Cell::default() };
            return true;
        }
        !self.closed && self.epoch == epoch
    }

    pub(crate) fn close(&mut self, epoch: Epoch) {
        if self.epoch <= epoch {
            self.closed = true;
            self.permit = None;
        }
    }

    /// The permit under which something may be released now.
    pub(crate) fn in_force(&self, now: BootInstant, source: &Source) -> Option<&Permit> {
        let runs = |permit: &&Permit| now < permit.deadline || SeededBug::DeadlineIgnored.is_on();
        self.permit
            .as_ref()
            .filter(|permit| permit.epoch == source.epoch && permit.promotion == source.promotion)
            .filter(runs)
    }
}

/// What a passive follows.
#[derive(Clone, Debug)]
pub(crate) struct Following {
    pub(crate) id: u64,
    pub(crate) holder: usize,
    pub(crate) admission: Admission,
    pub(crate) session: Option<u64>,
}

/// A task under way.
#[derive(Clone, Debug)]
pub(crate) struct Doing {
    pub(crate) id: TaskId,
    pub(crate) task: Task,
    pub(crate) begun: u64,
    /// ReadIndex: what has to be applied before it is done.
    pub(crate) read_index: Option<usize>,
    /// What an earlier stage found.
    pub(crate) found: u64,
    /// Since when the present stage waits.
    pub(crate) since: Option<u64>,
}

/// A machine with everything on it.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) id: NodeId,
    pub(crate) kind: NodeKind,
    // Durable.
    pub(crate) process: u64,
    pub(crate) journal: Journal,
    pub(crate) postgres: Postgres,
    /// The log index of the last snapshot of the replicated state.
    pub(crate) snapshot: usize,
    // The machine.
    pub(crate) powered: bool,
    pub(crate) booted_at: u64,
    pub(crate) slept: u64,
    pub(crate) drift_ppm: i64,
    pub(crate) wall_offset_us: i64,
    pub(crate) suspended_until: u64,
    pub(crate) slow_disk_until: u64,
    pub(crate) slow_replay_until: u64,
    pub(crate) tasks_fail_until: u64,
    // The daemon.
    pub(crate) daemon: bool,
    pub(crate) life: u64,
    pub(crate) frozen_until: u64,
    pub(crate) stalled_until: u64,
    pub(crate) core: Core,
    pub(crate) inbox: VecDeque<Event>,
    pub(crate) applied: usize,
    pub(crate) tick_at: u64,
    pub(crate) doing: Option<Doing>,
    pub(crate) cell: Cell,
    pub(crate) source: Option<Source>,
    /// A write of a gate that was told to end: its source, its server, what it writes.
    pub(crate) last_write: Option<(u64, u64, Written)>,
    pub(crate) following: Option<Following>,
    pub(crate) answered_at: BootInstant,
    pub(crate) believes_leader_until: u64,
    pub(crate) release_proposed: Option<Epoch>,
    // Its processes.
    pub(crate) server_frozen_until: u64,
}

impl Machine {
    pub(crate) fn new(index: usize, plan: &Plan) -> Machine {
        let id = NodeId(index as u64 + 1);
        let kind = plan.kind(index);
        Machine {
            id,
            kind,
            process: 1,
            journal: Journal::default(),
            postgres: Postgres::nothing(),
            snapshot: 0,
            powered: true,
            booted_at: 0,
            slept: 0,
            drift_ppm: plan.drift_ppm[index],
            wall_offset_us: 0,
            suspended_until: 0,
            slow_disk_until: 0,
            slow_replay_until: 0,
            tasks_fail_until: 0,
            daemon: true,
            life: 1,
            frozen_until: 0,
            stalled_until: 0,
            core: core(id, kind, 1, plan),
            inbox: VecDeque::new(),
            applied: 0,
            tick_at: u64::MAX,
            doing: None,
            cell: Cell::default(),
            source: None,
            last_write: None,
            following: None,
            answered_at: BootInstant::ZERO,
            believes_leader_until: 0,
            release_proposed: None,
            server_frozen_until: 0,
        }
    }

    /// The machine's own BOOTTIME.
    pub(crate) fn clock(&self, now: u64) -> BootInstant {
        let mut passed = u128::from(now - self.booted_at);
        if SeededBug::ClockStopsInSuspend.is_on() {
            passed = passed.saturating_sub(u128::from(self.slept));
        }
        let rate = u128::try_from(1_000_000 + self.drift_ppm).expect("clocks go forward");
        let nanos = passed * rate / 1_000_000;
        BootInstant(1_000_000_000 + u64::try_from(nanos).expect("a run is shorter than centuries"))
    }

    /// How long the truth takes until this clock has gone on by `nanos`, rounded up.
    pub(crate) fn real(&self, nanos: u64) -> u64 {
        let rate = u128::try_from(1_000_000 + self.drift_ppm).expect("clocks go forward");
        u64::try_from(u128::from(nanos) * 1_000_000 / rate).map_or(u64::MAX / 4, |real| real + 1)
    }

    /// Everything that the daemon held in memory is gone.
    pub(crate) fn daemon_dies(&mut self) {
        self.daemon = false;
        self.life += 1;
        self.inbox.clear();
        self.doing = None;
        self.source = None;
        self.last_write = None;
        if self.postgres.server.as_ref().is_some_and(|server| server.stopping) {
            self.server_dies();
        }
        self.following = None;
        self.journal.lose_what_is_not_synced();
        self.cell = Cell::default();
        self.frozen_until = 0;
        self.stalled_until = 0;
        self.believes_leader_until = 0;
        self.release_proposed = None;
        self.tick_at = u64::MAX;
    }

    pub(crate) fn server_dies(&mut self) {
        self.postgres.die();
        self.server_frozen_until = 0;
    }

    /// The server that answers; a frozen one does not.
    pub(crate) fn server_running(&self, now: u64) -> Option<&Server> {
        let frozen = now < self.server_frozen_until || now < self.suspended_until;
        self.postgres.server.as_ref().filter(|_| self.powered && !frozen)
    }

    /// The gate could release now.
    pub(crate) fn gate_is_open(&self, now: u64) -> bool {
        self.daemon
            && self.source.as_ref().is_some_and(|source| {
                let serves =
                    self.postgres.server.as_ref().is_some_and(|s| s.life == source.server_life);
                serves && self.cell.in_force(self.clock(now), source).is_some()
            })
    }

    pub(crate) fn durable_lsn(&self) -> Lsn {
        self.journal.durable().map_or(Lsn::ZERO, Lsn)
    }
}

pub(crate) fn core(id: NodeId, kind: NodeKind, process: u64, plan: &Plan) -> Core {
    let process = ProcessStart(process);
    Core::new(CoreOptions { me: id, kind, process, timing: plan.timing })
}

/// A commit that a client was told of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acked {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) id: u64,
    pub(crate) epoch: Epoch,
    pub(crate) mode: DurabilityMode,
    /// Somebody else was waited for.
    pub(crate) waited: bool,
    pub(crate) decided_at: u64,
    pub(crate) written_at: u64,
}
