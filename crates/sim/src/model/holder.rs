//! The holder's steps, transcribed from `understudy_core::node` (`holder.rs`, `choose_role`), around the
//! real lease and the real gate.

use understudy_core::Command;
use understudy_core::state::{HolderProof, Published, ReleaseCause};
use understudy_types::{
    DurabilityMode, Exposure, Permit, PermitSerial, ProcessStart, ReceiverPosition, SeededBug,
};
use understudy_wal::exposure::ExposureTracker;
use understudy_wal::gate::{self, GatePositions};

use super::book::{Facts, NODES, StateNo, promotion_id};
use super::protocol::{NOW, Protocol, epoch, lsn, units};
use super::world::{Broken, Data, GatePermit, Look, NO_GENERATION, Server, Step, World};

/// How far beyond its flush position a holder may release until its next renewal: one write.
const CREDIT: u8 = 1;

/// What a node is, by the state it has applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Holder { epoch: u8 },
    Candidate { promotion: u8 },
    Passive,
}

impl Facts {
    /// `zero` is in force and recorded to be kept: not by a sole survivor, whose commits are promised once
    /// somebody has joined.
    pub(super) fn promises(&self) -> bool {
        self.zero && !self.lifted
    }

    /// The stricter of what is in force and what is wanted.
    fn strictly_zero(&self) -> bool {
        self.zero || self.wants_zero
    }

    pub(super) fn role_of(&self, node: usize) -> Role {
        match (self.holder == node, self.running) {
            (false, _) => Role::Passive,
            (true, true) => Role::Holder { epoch: self.epoch },
            (true, false) => Role::Candidate { promotion: self.promotion },
        }
    }
}

impl Protocol {
    /// The role follows from the state alone; what belonged to another role or epoch is forgotten.
    pub(super) fn choose_role(&self, world: &mut World, node: usize, before: StateNo) {
        let (old, new) = (self.book.facts(before), self.facts(world, node));
        let data = &mut world.data[node];
        let mut lease = self.lease_of(data, epoch(old.epoch), node);
        lease.enter(epoch(new.epoch));
        Protocol::keep_lease(data, &lease);
        if old.role_of(node) != new.role_of(node) {
            self.begin_role(world, node);
            return;
        }
        if !matches!(new.role_of(node), Role::Holder { .. }) {
            return;
        }
        if new.released {
            data.step = Step::Releasing;
        }
        let waited = new.waited[1 - node];
        data.removing &= waited;
        if new.switchover == 0 {
            data.forget_handover();
        }
        if waited {
            data.pending = false;
            data.proposed = NO_GENERATION;
        }
        // A join of an older generation can no longer be accepted.
        if data.proposed != new.generation {
            data.proposed = NO_GENERATION;
        }
    }

    pub(super) fn begin_role(&self, world: &mut World, node: usize) {
        let role = self.facts(world, node).role_of(node);
        let data = &mut world.data[node];
        self.forget_stage(data);
        data.step = match role {
            Role::Holder { .. } => Step::Acquiring,
            Role::Candidate { .. } => Step::Confirming,
            Role::Passive => Step::Assessing,
        };
    }

    /// The holder's own memory; gone with the epoch or the process.
    pub(super) fn forget_stage(&self, data: &mut Data) {
        data.floor = 0;
        data.pending = false;
        data.proposed = NO_GENERATION;
        data.removing = false;
        data.forget_handover();
        data.clean_end = 0;
    }

    pub(super) fn proof(&self, world: &World, node: usize) -> HolderProof {
        HolderProof {
            epoch: epoch(self.facts(world, node).epoch),
            node: NODES[node],
            process: ProcessStart(u64::from(world.data[node].process)),
        }
    }

    /// A process that runs and is connected to the consensus, in the holder's role.
    pub(super) fn holds(&self, world: &World, node: usize) -> bool {
        let voter = &world.voters[node];
        let role = self.facts(world, node).role_of(node);
        voter.up && matches!(role, Role::Holder { .. })
    }

    pub(super) fn renew(&self, world: &mut World, node: usize) -> Option<()> {
        let voter = world.voters[node];
        let facts = self.facts(world, node);
        let data = &world.data[node];
        let may = match facts.role_of(node) {
            Role::Holder { .. } => {
                matches!(data.step, Step::Acquiring | Step::Serving | Step::HandingOver)
                    && !facts.released
            }
            Role::Candidate { .. } => data.step == Step::Resuming,
            Role::Passive => false,
        };
        let room = data.sent.iter().any(|sent| sent.seq == 0);
        let more = data.newest.max(facts.seq) < self.configuration.renewals;
        if !voter.up || voter.away || !may || !room || !more {
            return None;
        }
        let published = self.publication(world, node);
        let by = self.proof(world, node);
        let data = &mut world.data[node];
        let mut lease = self.lease_of(data, by.epoch, node);
        let timing = self.timing(node);
        let seq = lease.due(NOW, u64::from(facts.seq), timing)?;
        Protocol::keep_lease(data, &lease);
        self.propose(world, Command::Renew { by, seq, ttl: timing.ttl, published })
    }

    /// What is not known now keeps what was published last.
    fn publication(&self, world: &World, node: usize) -> Published {
        let state = self.book.state(world.voters[node].applied);
        let last = state.holder.as_ref().and_then(|holder| holder.published.clone());
        let mut published = last.unwrap_or_default();
        let data = &world.data[node];
        if matches!(data.step, Step::Resuming) {
            return published;
        }
        if data.source {
            published.flush_lsn = lsn(data.wal.end());
            published.exposure = Exposure::NONE;
            if data.known > 0 {
                published.raise_durable(NODES[1 - node], lsn(data.known));
            }
        }
        published.credit = published.flush_lsn + u64::from(CREDIT);
        published
    }

    /// Taking a server of the own lineage: a lease, a linearizable read, then the start.
    pub(super) fn take_server(&self, world: &mut World, node: usize) -> Option<()> {
        let facts = self.facts(world, node);
        let confirmed = Protocol::is_confirmed(world, node);
        let data = &mut world.data[node];
        let ready = match facts.role_of(node) {
            Role::Holder { .. } => data.step == Step::Acquiring && !facts.released,
            Role::Candidate { .. } => data.step == Step::Resuming,
            Role::Passive => false,
        };
        if !ready || !confirmed || !data.lease_runs() || data.dirty {
            return None;
        }
        // The executor compares the history with its own.
        if data.promotion != facts.last.1 {
            return None;
        }
        data.drop_source();
        data.server = Server::Primary;
        data.held = facts.epoch;
        if data.step == Step::Resuming {
            data.step = Step::Reporting;
            data.fork = 0;
            return Some(());
        }
        data.source = true;
        data.floor = data.wal.end();
        data.step = Step::Serving;
        Some(())
    }

    /// The lease ran out, or the server failed: fence, then begin again.
    pub(super) fn stop_server(&self, world: &mut World, node: usize) -> Option<()> {
        if !self.holds(world, node) {
            return None;
        }
        let data = &mut world.data[node];
        let failed = data.lease_runs();
        if !data.has_gate() || (failed && world.used.restarts >= self.configuration.restarts) {
            return None;
        }
        world.used.restarts += u8::from(failed);
        let handing_over = data.step == Step::HandingOver;
        data.fence();
        data.step = Step::Acquiring;
        // Whoever had begun to hand over does not begin a second time; who had only asked may.
        if handing_over {
            data.forget_handover();
        }
        Some(())
    }

    pub(super) fn give_up(&self, world: &mut World, node: usize) -> Option<()> {
        let possible = self.holds(world, node)
            && world.data[node].step == Step::Serving
            && world.data[node].look.upto == 0
            && world.used.releases < self.configuration.releases;
        if !possible {
            return None;
        }
        world.used.releases += 1;
        let data = &mut world.data[node];
        data.step = Step::GivingUp;
        data.permit = GatePermit::default();
        Some(())
    }

    pub(super) fn fence_to_release(&self, world: &mut World, node: usize) -> Option<()> {
        if !self.holds(world, node) || world.data[node].step != Step::GivingUp {
            return None;
        }
        let data = &mut world.data[node];
        data.fence();
        data.step = Step::Releasing;
        Some(())
    }

    pub(super) fn release(&self, world: &mut World, node: usize) -> Option<()> {
        let facts = self.facts(world, node);
        let data = &world.data[node];
        let too_early = data.step == Step::GivingUp && SeededBug::ReleaseBeforeTreeGone.is_on();
        let fenced = data.step == Step::Releasing || too_early;
        let renewed_here = facts.process == data.process;
        if !self.holds(world, node) || world.voters[node].away || !fenced || !renewed_here {
            return None;
        }
        if facts.released {
            return None;
        }
        let by = self.proof(world, node);
        let cause = match data.clean_end {
            0 => ReleaseCause::Fenced,
            end => ReleaseCause::CleanEnd(lsn(end)),
        };
        let command = Command::Release { by, seq: u64::from(facts.seq), cause };
        self.propose(world, command)
    }

    /// Clients are in once the recovered end is covered; PostgreSQL goes on without its node.
    pub(super) fn write(&self, world: &mut World, node: usize) -> Option<()> {
        let data = &mut world.data[node];
        let possible = data.server == Server::Primary && data.let_in;
        if !possible || world.used.writes >= self.configuration.writes {
            return None;
        }
        data.wal.push(world.used.writes);
        world.used.writes += 1;
        Some(())
    }

    /// The permit that the core publishes now; `None` when it wants the gate shut.
    fn wanted(&self, world: &World, node: usize) -> Option<GatePermit> {
        let facts = self.facts(world, node);
        let data = &world.data[node];
        let serves = matches!(facts.role_of(node), Role::Holder { .. }) && data.has_gate();
        if !serves {
            return None;
        }
        let recorded = facts.waited[1 - node] && !data.removing;
        let waits = recorded || data.pending;
        // A switchover waits for everybody, whatever the dial says.
        let zero = facts.strictly_zero() || data.strict;
        Some(GatePermit {
            epoch: facts.epoch,
            left: data.deadline,
            zero,
            waits,
            sole: facts.lifted && !waits,
            credit: if zero { 0 } else { facts.credit },
        })
    }

    /// A permit that lets more through takes effect as soon as it is wanted: later would only be safer.
    /// (The permit cell's lock: never between an evaluation and its write.)
    pub(super) fn loosen_permits(&self, world: &mut World) {
        for node in 0..2 {
            let Some(wanted) = self.wanted(world, node) else { continue };
            let data = &mut world.data[node];
            let (waits, zero) = (data.permit.waits, data.permit.zero);
            let stricter = (wanted.waits && !waits) || (wanted.zero && !zero);
            let tightens = data.permit.epoch == wanted.epoch && stricter;
            if data.look.upto > 0 || tightens || wanted.left == 0 || !world.voters[node].up {
                continue;
            }
            data.permit = wanted;
            world.ghost.open_epoch = world.ghost.open_epoch.max(wanted.epoch);
        }
    }

    /// A permit that lets less through, or none, takes effect some time later.
    pub(super) fn permit_in_force(&self, world: &mut World, node: usize) -> Option<()> {
        if !world.voters[node].up || world.data[node].look.upto > 0 {
            return None;
        }
        let wanted = self.wanted(world, node).unwrap_or_default();
        let data = &mut world.data[node];
        if data.permit.epoch == 0 || wanted == data.permit {
            return None;
        }
        data.permit = wanted;
        Some(())
    }

    /// Evaluates the real gate.
    pub(super) fn gate_looks(&self, world: &mut World, node: usize) -> Option<()> {
        let data = &mut world.data[node];
        let may = world.voters[node].up && data.source && data.permit.epoch > 0;
        if !may || data.look.upto > 0 || data.server != Server::Primary || data.permit.left == 0 {
            return None;
        }
        let other = NODES[1 - node];
        let permit = Permit {
            serial: PermitSerial(0),
            epoch: epoch(data.permit.epoch),
            promotion: promotion_id(data.promotion),
            deadline: NOW + units(data.permit.left),
            mode: if data.permit.zero { DurabilityMode::Zero } else { DurabilityMode::Bounded },
            waited_for: if data.permit.waits { vec![other] } else { Vec::new() },
            quorums: Vec::new(),
            sole_survivor: data.permit.sole,
            credit: lsn(data.permit.credit),
            // Exposure as a time is not modelled, only the credit.
            exposure_max: None,
        };
        let receiver = ReceiverPosition {
            node: other,
            attached: data.attached,
            durable_lsn: lsn(data.known),
            replay_lsn: Some(lsn(data.known)),
            begin_lsn: understudy_types::Lsn::ZERO,
        };
        let receivers = if data.known > 0 { vec![receiver] } else { Vec::new() };
        let positions = GatePositions {
            flush_lsn: lsn(data.wal.end()),
            last_report: lsn(data.reported),
            receivers: &receivers,
        };
        let release = gate::release(NOW, &permit, &positions, &ExposureTracker::new(NOW));
        let upto = u8::try_from(release.upto.0).expect("the model's positions are small");
        if upto <= data.reported {
            return None;
        }
        data.look = Look { upto, age: 0 };
        Some(())
    }

    pub(super) fn gate_writes(&self, world: &mut World, node: usize) -> Option<()> {
        let data = &mut world.data[node];
        if !world.voters[node].up || data.look.upto == 0 || !data.source {
            return None;
        }
        let (before, upto) = (data.reported, data.look.upto);
        data.look = Look::default();
        data.reported = upto;
        data.let_in |= data.step == Step::Serving && upto >= data.floor;
        let GatePermit { epoch: of, zero: in_zero, waits, .. } = data.permit;
        let newly = data.wal.bits(upto) & !data.wal.bits(before);
        let wal = data.wal;
        if newly == 0 {
            return Some(());
        }
        world.ghost.acked_epochs |= 1 << of;
        // What a gate that waits says is promised, whatever was decided elsewhere meanwhile.
        let acked = if (in_zero && waits) || self.head(world).promises() {
            &mut world.ghost.acked
        } else {
            &mut world.ghost.weak
        };
        *acked |= wal.bits(upto);
        if !in_zero {
            world.ghost.released = world.ghost.released.max(upto);
        }
        // Promoted on a seal, the old gate may still say, late, what the new side has already.
        let has = self.configuration.on_seal && in_zero && waits;
        if of < world.ghost.open_epoch && self.configuration.clocks_are_trusted && !has {
            world.ghost.broken = Broken::LateAcknowledgement;
        }
        Some(())
    }

    /// The holder can send to the other node, which follows under the same epoch.
    pub(super) fn attach(&self, world: &mut World, node: usize) -> Option<()> {
        let other = 1 - node;
        let facts = self.facts(world, node);
        let theirs = self.facts(world, other);
        let (data, passive) = (&world.data[node], &world.data[other]);
        let sends = self.holds(world, node) && data.source && data.server == Server::Primary;
        let agrees = theirs.running && theirs.epoch == facts.epoch && theirs.holder == node;
        let follows = world.voters[other].up
            && passive.step == Step::Following
            && passive.server == Server::Standby
            && passive.promotion == facts.last.1
            && passive.sealed <= facts.epoch;
        // The handshake compares the last complete record.
        let fits = passive.wal.is_prefix_of(&data.wal);
        if !sends || !agrees || !follows || !fits || data.attached {
            return None;
        }
        let end = passive.wal.end();
        world.data[node].attached = true;
        world.data[node].known = end;
        world.data[other].following = facts.epoch;
        world.data[other].sealed = facts.epoch;
        Some(())
    }

    pub(super) fn detach(&self, world: &mut World, node: usize) -> Option<()> {
        let data = &mut world.data[node];
        if !data.attached {
            return None;
        }
        data.attached = false;
        Some(())
    }

    /// A frame is stored durably and acknowledged, unless its epoch is sealed off.
    pub(super) fn deliver(&self, world: &mut World, node: usize) -> Option<()> {
        let other = 1 - node;
        let (data, passive) = (&world.data[node], &world.data[other]);
        let session = passive.following;
        let possible = world.voters[node].up
            && world.voters[other].up
            && data.attached
            && data.source
            && session > 0
            && session == data.held
            && session >= passive.sealed
            && passive.wal.end() < data.wal.end()
            && passive.wal.is_prefix_of(&data.wal);
        if !possible {
            return None;
        }
        let write = data.wal.writes()[passive.wal.writes().len()];
        world.data[other].wal.push(write);
        world.data[node].known = world.data[other].wal.end();
        Some(())
    }

    /// Strengthen first: the gate waits before anything is recorded.
    pub(super) fn wait_for(&self, world: &mut World, node: usize) -> Option<()> {
        let facts = self.facts(world, node);
        let data = &world.data[node];
        let serves = self.holds(world, node) && data.step == Step::Serving;
        let wanted = data.attached && !facts.waited[1 - node] && !data.pending;
        if !serves || !wanted || SeededBug::JoinBeforeWait.is_on() {
            return None;
        }
        world.data[node].pending = true;
        Some(())
    }

    pub(super) fn stop_waiting(&self, world: &mut World, node: usize) -> Option<()> {
        let facts = self.facts(world, node);
        let data = &mut world.data[node];
        // A join whose outcome is unknown may be recorded any moment.
        let unknown = data.proposed == facts.generation;
        if !world.voters[node].up || !data.pending || data.attached || unknown {
            return None;
        }
        data.pending = false;
        Some(())
    }

    /// … and is recorded once the permit that waits is in force and everything is durable there.
    pub(super) fn propose_add(&self, world: &mut World, node: usize) -> Option<()> {
        let facts = self.facts(world, node);
        let data = &world.data[node];
        let serves = self.holds(world, node) && data.step == Step::Serving;
        if !serves || world.voters[node].away || facts.waited[1 - node] || data.known == 0 {
            return None;
        }
        let early = SeededBug::JoinBeforeWait.is_on();
        let waits = early || (data.pending && data.permit.waits);
        let strict = facts.strictly_zero();
        let floor = if strict { data.floor.max(data.reported) } else { data.floor };
        let covers = data.known >= floor || SeededBug::StrengthenWithoutFloor.is_on();
        let ready = data.attached && waits && covers;
        let again = data.pending && !data.attached && data.proposed == facts.generation;
        if !ready && !again {
            return None;
        }
        let by = self.proof(world, node);
        let at = lsn(data.known);
        let generation = u64::from(facts.generation);
        world.data[node].proposed = facts.generation;
        self.propose(
            world,
            Command::SyncAdd { by, generation, node: NODES[1 - node], copies: 0, at },
        )
    }

    /// A weakening is recorded first: the gate goes on waiting.
    pub(super) fn propose_remove(&self, world: &mut World, node: usize) -> Option<()> {
        let facts = self.facts(world, node);
        let data = &world.data[node];
        let serves = self.holds(world, node) && data.step == Step::Serving;
        let lost = facts.waited[1 - node] && !data.attached;
        let more = world.used.removals < self.configuration.removals;
        if !serves || world.voters[node].away || !lost || !more {
            return None;
        }
        let by = self.proof(world, node);
        let generation = u64::from(facts.generation);
        world.data[node].removing = SeededBug::RemoveBeforeRecorded.is_on();
        world.used.removals += 1;
        self.propose(
            world,
            Command::SyncRemove { by, generation, node: NODES[1 - node], copies: 0 },
        )
    }

    /// The mode that is wanted: a strengthening is at the gate first, and what was acknowledged so far is
    /// where it has to be; a weakening is recorded first.
    pub(super) fn propose_mode(&self, world: &mut World, node: usize) -> Option<()> {
        let facts = self.facts(world, node);
        let data = &world.data[node];
        let serves = self.holds(world, node) && data.step == Step::Serving;
        if !serves || world.voters[node].away || facts.zero == facts.wants_zero {
            return None;
        }
        if facts.wants_zero {
            let at_the_gate = data.permit.epoch == facts.epoch && data.permit.zero;
            let eligible = facts.eligible[1 - node];
            let there = !eligible || data.known >= data.floor.max(data.reported);
            if !at_the_gate || !there {
                return None;
            }
        }
        let state = self.book.state(world.voters[node].applied);
        let command = Command::SetEff {
            by: self.proof(world, node),
            generation: u64::from(facts.generation),
            config_version: state.config_version,
            mode: state.config.mode,
            at_unix_us: 0,
        };
        self.propose(world, command)
    }
}
