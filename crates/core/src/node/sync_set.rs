//! Whom the holder's gate waits for, and how that changes (RULE 1).
//!
//! A strengthening is done at the gate first and recorded after; a weakening is recorded first and done
//! after. Where fewer than all suffice (k of n), neither a join nor a leave is one or the other: what k
//! of the old ones have need not be at k of the new ones. So the gate waits for both quorums from before
//! the change is proposed until its outcome is known, and it is proposed only when whatever was ever
//! acknowledged satisfies the new one (decision 0029). Who is promoted is decided elsewhere.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::{
    BootInstant, DurabilityMode, Lsn, NodeId, PermitSerial, Quorum, ReceiverPosition, SeededBug,
    SourcePositions,
};

use super::holder::HolderStage;
use super::{Core, Slot, receiver_of};
use crate::OnPassiveLoss;
use crate::state::Command;

/// In `bounded`, a passive that is further behind than this has not caught up yet.
const CAUGHT_UP: Duration = Duration::from_secs(1);
/// A node that joins a quorum may lack this much: under load nobody has everything at any moment.
const NEARLY_ALL_BYTES: u64 = 16 * 1024 * 1024;

/// A node that is about to leave a quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Leaving {
    node: NodeId,
    /// It was proposed for this generation, and the outcome may be unknown.
    proposed: Option<u64>,
}

impl HolderStage {
    /// The permit since which the gate waits for this quorum, without a break.
    fn waits_since(&self, quorum: &Quorum) -> Option<PermitSerial> {
        let found = self.quorums_since.iter().find(|(known, _)| known == quorum);
        found.map(|(_, serial)| *serial)
    }

    /// The permit of this serial waits for exactly these.
    pub(super) fn note_quorums(&mut self, quorums: &[Quorum], serial: PermitSerial) {
        let since = |quorum: &Quorum| self.waits_since(quorum).unwrap_or(serial);
        let noted = quorums.iter().map(|quorum| (quorum.clone(), since(quorum))).collect();
        self.quorums_since = noted;
    }
}

impl Core {
    /// Proposes who joins and who leaves.
    pub(super) fn change_sync_set(&mut self, now: BootInstant) {
        let Some(source) = self.source.clone() else { return };
        for receiver in source.receivers.iter().filter(|receiver| receiver.attached) {
            self.stage().last_attached.insert(receiver.node, now);
        }
        self.forget_leaving();
        let members: Vec<NodeId> = self.state.wal_nodes().filter(|node| *node != self.me).collect();
        for node in members {
            // Waited for and not eligible: a mark came late. It is cleared, and the node recorded anew, as
            // for one that joins; else it would be waited for without ever protecting anything.
            let waited = self.state.durability.waited.contains(&node);
            let protects = match self.state.is_journal(node) {
                true => waited,
                false => self.state.durability.eligible.contains(&node),
            };
            if waited && !protects {
                self.weaken_if_lost(now, &source, node);
                self.strengthen(now, &source, node);
            } else if protects {
                let stage = self.stage();
                stage.pending_adds.remove(&node);
                stage.proposed_adds.remove(&node);
                self.weaken_if_lost(now, &source, node);
            } else {
                self.strengthen(now, &source, node);
            }
        }
    }

    /// What the permit has to demand instead of all; none where it is all of them anyway.
    pub(super) fn quorums(&mut self) -> Vec<Quorum> {
        let durability = &self.state.durability;
        let recorded = Quorum {
            members: durability.waited.iter().copied().collect(),
            needed: durability.copies_count(),
        };
        let mut quorums = vec![recorded];
        if !SeededBug::QuorumChangedAlone.is_on() {
            let (adds, leaving) = (self.stage().pending_adds.clone(), self.stage().leaving);
            quorums.extend(adds.iter().map(|node| self.quorum_with(*node)));
            quorums.extend(leaving.map(|leaving| self.quorum_without(leaving.node)));
        }
        quorums.retain(|quorum| !quorum.members.is_empty());
        // All of a set that contains every other is what the permit means without any quorum.
        if quorums.iter().all(Quorum::is_all) { Vec::new() } else { quorums }
    }

    /// What would be recorded with `node`.
    fn quorum_with(&self, node: NodeId) -> Quorum {
        let mut members = self.state.durability.waited.clone();
        members.insert(node);
        self.quorum_of(members)
    }

    /// What would be recorded without `node`.
    fn quorum_without(&self, node: NodeId) -> Quorum {
        let mut members = self.state.durability.waited.clone();
        members.remove(&node);
        self.quorum_of(members)
    }

    fn quorum_of(&self, members: BTreeSet<NodeId>) -> Quorum {
        let needed = match self.state.config.copies_of(members.len()) {
            0 => members.len(),
            fewer => fewer as usize,
        };
        Quorum { members: members.into_iter().collect(), needed }
    }

    fn strengthen(&mut self, now: BootInstant, source: &SourcePositions, node: NodeId) {
        let generation = self.state.durability.generation;
        let unknown = self.stage().proposed_adds.get(&node) == Some(&generation);
        let journal = self.state.is_journal(node);
        let ready = receiver_of(source, node)
            .filter(|receiver| receiver.attached && (journal || receiver.replay_lsn.is_some()))
            .copied();
        let Some(receiver) = ready else {
            if unknown {
                // It may be recorded any moment, so it stays in the gate's set until that is known.
                let at = receiver_of(source, node).map_or(Lsn::ZERO, |r| r.durable_lsn);
                self.propose_add(now, generation, node, at);
            } else {
                self.stage().pending_adds.remove(&node);
            }
            return;
        };
        if self.state.marks.contains_key(&node) {
            let by = self.proof();
            self.propose(now, Slot::Mark, Command::ClearMark { by, node });
            return;
        }
        let pending = self.stage().pending_adds.contains(&node);
        if !pending && !self.worth_waiting_for(source, &receiver) {
            return;
        }
        if !SeededBug::JoinBeforeWait.is_on() && self.stage().pending_adds.insert(node) {
            let next = PermitSerial(self.permit_serial.0 + 1);
            self.stage().added_by.insert(node, next);
            return; // publish_permit hands out the widened permit; its being in force comes back
        }
        let quorum = self.quorum_with(node);
        let waits_since = if quorum.is_all() {
            self.stage().added_by.get(&node).copied()
        } else {
            self.stage().waits_since(&quorum)
        };
        let waits = waits_since.is_some_and(|serial| self.read_under(source, serial))
            || SeededBug::JoinBeforeWait.is_on()
            || SeededBug::QuorumChangedAlone.is_on();
        if waits && self.caught_up(source, &receiver) {
            self.propose_add(now, generation, node, receiver.durable_lsn);
        }
    }

    /// Whether the gate should begin to wait for it. Of what was acknowledged before this server began
    /// nothing is known but that it may be missing there: until it has that, what it lacks cannot be put
    /// as a time. And in `zero` every commit would stand still until a long way has been caught up with.
    fn worth_waiting_for(&mut self, source: &SourcePositions, receiver: &ReceiverPosition) -> bool {
        let lacks = source.flush_lsn.bytes_since(receiver.durable_lsn);
        let near = self.mode_in_force() != DurabilityMode::Zero || lacks <= NEARLY_ALL_BYTES;
        receiver.durable_lsn >= self.stage().floor && near
    }

    /// That permit, or a later one, is in force, and the positions were read under it: what an earlier one
    /// released since they were read would be missing in them (mistake 16).
    fn read_under(&self, source: &SourcePositions, serial: PermitSerial) -> bool {
        self.permit_in_force >= serial && source.permit.is_some_and(|read| read >= serial)
    }

    /// Everything that was ever acknowledged is durable there (`zero`), or as good as (`bounded`).
    fn caught_up(&mut self, source: &SourcePositions, receiver: &ReceiverPosition) -> bool {
        if SeededBug::StrengthenWithoutFloor.is_on() {
            return true;
        }
        let quorum = self.quorum_with(receiver.node);
        if !quorum.is_all() {
            let lacks = source.flush_lsn.bytes_since(receiver.durable_lsn);
            let near = lacks <= NEARLY_ALL_BYTES;
            return near && self.joins_up(source, &quorum) && self.satisfied(source, &quorum);
        }
        let floor = self.stage().floor.max(source.released_lsn);
        match self.mode_in_force() {
            DurabilityMode::Zero => receiver.durable_lsn >= floor,
            DurabilityMode::Bounded | DurabilityMode::BestEffort => {
                let floor = self.stage().floor;
                receiver.durable_lsn >= floor && source.exposure.time <= CAUGHT_UP
            }
        }
    }

    /// Whether everything that was ever acknowledged is where this quorum promises it: durable at so many
    /// in `zero`, and what the server began with in every mode.
    pub(super) fn satisfied(&mut self, source: &SourcePositions, quorum: &Quorum) -> bool {
        let floor = match self.mode_in_force() {
            DurabilityMode::Zero => self.stage().floor.max(source.released_lsn),
            DurabilityMode::Bounded | DurabilityMode::BestEffort => self.stage().floor,
        };
        let has = |node: &&NodeId| {
            receiver_of(source, **node).is_some_and(|receiver| receiver.durable_lsn >= floor)
        };
        quorum.members.iter().filter(has).count() >= quorum.needed_count()
    }

    /// Whoever of these may be promoted finds in the journals of the others whatever it lacks: none of
    /// them begins after what it has.
    fn joins_up(&self, source: &SourcePositions, quorum: &Quorum) -> bool {
        let members = &quorum.members;
        let heirs = members.iter().filter(|node| !self.state.is_journal(**node));
        heirs.copied().all(|heir| self.missed_by(source, heir, members).is_none())
    }

    /// The first of these whose journal begins after what `heir` is known to have, so that what lies
    /// between could not be fetched from there.
    fn missed_by(
        &self,
        source: &SourcePositions,
        heir: NodeId,
        members: &[NodeId],
    ) -> Option<NodeId> {
        let said = receiver_of(source, heir).map_or(Lsn::ZERO, |receiver| receiver.durable_lsn);
        let has = said.max(self.state.known_durable(heir));
        let begins_after = |node: &&NodeId| {
            receiver_of(source, **node).is_some_and(|receiver| receiver.begin_lsn > has)
        };
        members.iter().find(begins_after).copied()
    }

    /// What stands between this node and being of use in a quorum, besides being away: a journal that
    /// begins after what an attached heir has is of no use to it, and to an heir that is away the journals
    /// are of no use. Where all are waited for, no journal is ever asked for anything.
    fn is_cut_off(&self, source: &SourcePositions, node: NodeId) -> bool {
        let members: Vec<NodeId> = self.state.durability.waited.iter().copied().collect();
        let attached = |node: NodeId| receiver_of(source, node).is_some_and(|r| r.attached);
        if !self.state.is_journal(node) {
            return !attached(node) && self.missed_by(source, node, &members).is_some();
        }
        let mut heirs = members.iter().copied().filter(|heir| attached(*heir));
        heirs.any(|heir| self.missed_by(source, heir, &[node]).is_some())
    }

    fn propose_add(&mut self, now: BootInstant, generation: u64, node: NodeId, at: Lsn) {
        self.stage().proposed_adds.insert(node, generation);
        let by = self.proof();
        let copies = self.state.config.copies_of(self.quorum_with(node).members.len());
        let command = Command::SyncAdd { by, generation, node, copies, at };
        self.propose(now, Slot::SyncAdd(node), command);
    }

    fn weaken_if_lost(&mut self, now: BootInstant, source: &SourcePositions, node: NodeId) {
        let last = *self.stage().last_attached.entry(node).or_insert(now);
        let away = now.since(last);
        if self.state.durability.is_quorum() {
            // The others are still as many as have to have a commit: nothing is weakened by it, and
            // without it the loss of the active would have to wait for whoever is away. The last that
            // may be promoted stays: the journals that are left keep for it what it lacks.
            let eligible = &self.state.durability.eligible;
            let last_heir = eligible.len() == 1 && eligible.contains(&node);
            let lost = away >= self.state.config.degrade_after && !last_heir;
            let cut_off = self.is_cut_off(source, node);
            self.leave(now, source, node, lost || cut_off);
            return;
        }
        if self.state.config.on_passive_loss != OnPassiveLoss::Degrade {
            return;
        }
        let lost = match self.mode_in_force() {
            DurabilityMode::Zero => away >= self.state.config.degrade_after,
            DurabilityMode::Bounded => {
                let near = self.state.config.rpo.saturating_sub(self.timing.ttl * 2);
                !away.is_zero() && source.exposure.time >= near
            }
            DurabilityMode::BestEffort => false,
        };
        if lost {
            self.propose_remove(now, node);
        }
    }

    /// One at a time: the gate waits for the quorum without it too, then it is recorded, then it is gone.
    fn leave(&mut self, now: BootInstant, source: &SourcePositions, node: NodeId, lost: bool) {
        let Some(leaving) = self.stage().leaving else {
            if lost {
                self.stage().leaving = Some(Leaving { node, proposed: None });
            }
            return; // publish_permit hands out the permit with both quorums
        };
        if leaving.node != node {
            return;
        }
        let generation = self.state.durability.generation;
        let unknown = leaving.proposed == Some(generation);
        if !lost && !unknown {
            self.stage().leaving = None;
            return;
        }
        let without = self.quorum_without(node);
        let waits_since = self.stage().waits_since(&without);
        let waits = waits_since.is_some_and(|serial| self.read_under(source, serial))
            && self.joins_up(source, &without)
            && self.satisfied(source, &without);
        if unknown || waits || SeededBug::QuorumChangedAlone.is_on() {
            self.stage().leaving = Some(Leaving { proposed: Some(generation), ..leaving });
            self.propose_remove(now, node);
        }
    }

    /// Whoever was about to leave is gone, or nothing is left of what was proposed for it.
    fn forget_leaving(&mut self) {
        let Some(leaving) = self.stage().leaving else { return };
        let durability = &self.state.durability;
        if !durability.waited.contains(&leaving.node) || !durability.is_quorum() {
            self.stage().leaving = None;
        }
    }

    fn propose_remove(&mut self, now: BootInstant, node: NodeId) {
        let generation = self.state.durability.generation;
        let by = self.proof();
        let copies = self.state.config.copies_of(self.quorum_without(node).members.len());
        let command = Command::SyncRemove { by, generation, node, copies };
        self.propose(now, Slot::SyncRemove(node), command);
    }
}
