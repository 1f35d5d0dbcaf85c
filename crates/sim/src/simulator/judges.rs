//! Holds each step against the truth of the whole world, with the functions of `checks::protocol`.

use std::collections::BTreeMap;
use std::time::Duration;

use understudy_checks::protocol::{self, GivingBack, Release, Truth};
use understudy_core::ClusterState;
use understudy_core::state::Phase;
use understudy_types::{DurabilityMode, Lineage, Lsn, NodeId, Quorum};

use super::machine::Written;
use super::plan::SEC;
use super::world::World;

/// A measured span may be too long by drift on both sides and by what is sampled together.
pub(crate) const SAMPLED: Duration = Duration::from_millis(5);

impl World {
    /// A status update was written: everything that has to be true of a release.
    pub(crate) fn check_write(&mut self, node: usize, written: &Written) {
        let state = self.raft.state().clone();
        let machine = &self.machines[node];
        let release = Release {
            node: machine.id,
            epoch: written.epoch,
            upto_lsn: Lsn(written.upto),
            mode: written.permit.mode,
            waited_for: &written.permit.waited_for,
            quorums: &written.permit.quorums,
        };
        let late = self.now > written.decided_at + self.plan.write_delay_max;
        // What was durable when it was decided may be gone when it is written: a journal was lost, or an
        // operator has accepted the loss of what a frozen process writes at last.
        let mut durable = self.durable_everywhere();
        for (node, then) in &written.durable {
            durable.entry(*node).and_modify(|now| *now = (*now).max(*then)).or_insert(*then);
        }
        let same = state.epoch == written.epoch && state.phase == Phase::Running;
        let eligible: Vec<NodeId> = match same {
            true => state.durability.eligible.iter().copied().collect(),
            false => Vec::new(),
        };
        let truth = Truth {
            newest_epoch: state.epoch,
            flush_lsn: Lsn(machine.postgres.data.wal.bytes()),
            durable: &durable,
            eligible: &eligible,
            credit: self.raft.credit,
        };
        let mut judged =
            protocol::in_zero_a_release_is_durable_at_everybody_waited_for(&release, &truth);
        if late {
            // Mistake 14: decided in time, and delivered by a process that was frozen in between.
            self.late_releases += 1;
        } else {
            judged = judged
                .and_then(|()| {
                    protocol::nobody_acknowledges_under_an_epoch_that_was_superseded(
                        &release, &truth,
                    )
                })
                .and_then(|()| protocol::whoever_is_eligible_is_waited_for(&release, &truth));
        }
        if same {
            judged =
                judged.and_then(|()| protocol::a_release_stays_within_the_credit(&release, &truth));
        }
        let decided = protocol::a_release_is_decided_before_the_deadline(
            written.decided_local,
            written.permit.deadline,
        );
        let open = self.open_gates();
        self.judge(judged);
        self.judge(decided);
        self.judge(protocol::at_most_one_gate_is_open(&open));
        self.check_exposure(node, written);
    }

    /// Whoever could acknowledge at this moment.
    pub(crate) fn open_gates(&self) -> Vec<NodeId> {
        let open = self.machines.iter().filter(|m| m.powered && m.gate_is_open(self.now));
        open.map(|machine| machine.id).collect()
    }

    fn check_exposure(&mut self, node: usize, written: &Written) {
        let Some(ceiling) = written.permit.exposure_max else { return };
        let machine = &self.machines[node];
        let new = machine.postgres.server.as_ref().and_then(|s| s.waiting.front());
        let Some(source) = &machine.source else { return };
        if new.is_none_or(|waiter| waiter.end > written.upto) {
            return;
        }
        let known = |id: &NodeId| {
            let told = source.receivers.get(id).map_or(Lsn::ZERO, |r| r.durable_lsn);
            let other = &self.machines[self.index_of(*id)];
            // A whole standby holds what its base backup brought, before its journal has it.
            let data = &other.postgres.data;
            let copied = data.wal.last_complete().filter(|last| {
                let same =
                    machine.postgres.data.wal.at(last.start).is_some_and(|rec| rec.id == last.id);
                data.present && !data.incomplete && same
            });
            // One that a rewind or a clone has spoiled had all up to the fork until then: that this is
            // lost too is a second loss, which nobody's exposure counts.
            let spoiled = data.present && data.incomplete;
            let fork = machine.postgres.data.fork().filter(|_| spoiled).unwrap_or(0);
            let copied = copied.map_or(fork, |last| last.end);
            let then = written.durable.get(id).map_or(0, |then| then.0);
            told.max(other.durable_lsn()).0.max(copied).max(then)
        };
        let permit = &written.permit;
        let best = || source.receivers.keys().map(known).max();
        let kth = |quorum: &Quorum| {
            let mut durable: Vec<u64> = quorum.members.iter().map(known).collect();
            durable.sort_unstable_by(|a, b| b.cmp(a));
            durable[quorum.needed_count() - 1]
        };
        let by_all = || permit.waited_for.iter().map(known).min();
        // A quorum that only may come in force protects nothing yet, and what it lacks is not lost: whoever
        // is promoted asks by the one that is recorded.
        let durability = &self.raft.state().durability;
        let recorded = Quorum {
            members: durability.waited.iter().copied().collect(),
            needed: durability.copies_count(),
        };
        let recorded = Some(recorded).filter(|_| !permit.quorums.is_empty());
        let by_quorum = recorded.filter(|quorum| !quorum.members.is_empty()).map(|q| kth(&q));
        let surviving = by_quorum.or_else(by_all).or_else(best).unwrap_or(0);
        let index = self.acks.partition_point(|ack| ack.end <= surviving);
        let Some(oldest) = self.acks.get(index) else { return };
        let late = self.raft.state().epoch > written.epoch;
        if late || self.somebody_was_away(oldest.decided_at, written.decided_at) {
            return;
        }
        // A process that was frozen in the middle told the client only when it was written.
        let frozen = oldest.written_at > oldest.decided_at + self.plan.write_delay_max;
        let told_at = if frozen { oldest.written_at } else { oldest.decided_at };
        let span = Duration::from_nanos(written.decided_at.saturating_sub(told_at));
        let drift = f64::from(self.plan.timing.drift_ppm) / 1e6;
        let allowed = ceiling.mul_f64(1.0 + 2.0 * drift) + SAMPLED;
        self.judge(protocol::exposure_stays_below_the_ceiling(span, allowed));
    }

    /// A daemon began in between: how long it had been away it cannot know, so exposure leaves that out
    /// (docs/decisions/0011-simulator.md).
    pub(crate) fn somebody_was_away(&self, from: u64, to: u64) -> bool {
        self.starts.iter().any(|start| (from..=to).contains(start))
    }

    /// A release was accepted: nothing of the holder may still run.
    pub(crate) fn check_release(&mut self, by: NodeId) {
        let machine = &self.machines[self.index_of(by)];
        let still = GivingBack {
            processes_left: machine.postgres.server.is_some() && machine.release_proposed.is_some(),
            gate_open: machine.gate_is_open(self.now),
            renews: false,
        };
        self.judge(protocol::a_lease_is_given_back_only_when_everything_has_stopped(by, still));
    }

    /// A node was recorded as eligible.
    pub(crate) fn check_joined(&mut self, node: NodeId, state: &ClusterState) {
        let durability = &state.durability;
        let mut durable: Vec<u64> = match durability.is_quorum() {
            // It need not have everything itself, if enough of them have.
            true => durability.waited.iter().map(|n| self.durable_at(*n)).collect(),
            false => vec![self.durable_at(node)],
        };
        durable.sort_unstable_by(|a, b| b.cmp(a));
        let enough = if durability.is_quorum() { durability.copies_count() } else { 1 };
        let durable = durable[enough - 1];
        let missing = self.acks.iter().rev().take_while(|ack| ack.end > durable).count();
        let mode = state.durability.mode;
        self.judge(protocol::whoever_joins_in_zero_holds_all_that_was_acknowledged(
            mode, node, missing,
        ));
    }

    /// With what a journal had before it was lost just now, between the proposal and its entry: that was
    /// another loss than the one in question.
    fn durable_at(&self, node: NodeId) -> u64 {
        let machine = &self.machines[self.index_of(node)];
        let just_now = self.now - machine.journal.lost_at < 5 * SEC;
        machine.durable_lsn().0.max(if just_now { machine.journal.had } else { 0 })
    }

    /// A standby starts: what it holds has to be the cluster's.
    pub(crate) fn check_standby(&mut self, node: usize, history: &[Lineage]) {
        let machine = &self.machines[node];
        let Some(last) = machine.postgres.data.wal.last_complete().copied() else { return };
        let place = history.iter().position(|entry| entry.timeline == last.timeline);
        let beyond = match place {
            None => Some(Lsn(last.start)),
            Some(place) => {
                // After an accepted loss a later promotion may fork further back than the next one.
                let fork = history[place + 1..].iter().filter_map(|next| next.fork_lsn).min();
                fork.filter(|fork| last.end > fork.0)
            }
        };
        let id = machine.id;
        self.judge(protocol::a_standby_is_on_the_cluster_s_history(id, beyond));
    }

    pub(crate) fn check_replay(&mut self, node: usize) {
        let machine = &self.machines[node];
        let replay =
            machine.postgres.server.as_ref().map_or(Lsn::ZERO, |server| Lsn(server.replay));
        self.judge(protocol::a_standby_is_not_ahead_of_its_journal(replay, machine.durable_lsn()));
    }

    /// At the end: the log once more from its beginning, and both sites' WAL beside each other.
    pub(crate) fn check_end(&mut self) {
        let mut state = ClusterState::default();
        let mut equal = true;
        let mut index = 0;
        for entry in &self.raft.log {
            index += 1;
            if let Some(command) = &entry.command {
                equal &= state.apply(index, command) == entry.outcome && state == *entry.state;
            }
        }
        self.judge(protocol::the_same_log_gives_the_same_state(equal, index));
        let wals: Vec<_> = self.machines[..self.plan.data_nodes]
            .iter()
            .map(|machine| &machine.postgres.data.wal)
            .collect();
        let differs = wals[1..].iter().find_map(|wal| wals[0].first_difference(wal)).map(Lsn);
        let missing: Vec<_> = self
            .acks
            .iter()
            .filter(|ack| !wals.iter().any(|wal| wal.holds(Lsn(ack.start), ack.id)))
            .map(|ack| (Lsn(ack.end), ack.epoch))
            .collect();
        self.judge(protocol::no_durable_byte_is_overwritten(NodeId(2), differs));
        // What is acknowledged and neither lost in a failover nor here would be lost unseen.
        self.judge(protocol::in_zero_every_acknowledged_commit_survives(
            DurabilityMode::Zero,
            &missing,
        ));
    }

    /// How many commits were acknowledged in which mode.
    pub(crate) fn acked_by_mode(&self) -> BTreeMap<DurabilityMode, u64> {
        let mut by_mode = BTreeMap::new();
        for ack in &self.acks {
            *by_mode.entry(ack.mode).or_default() += 1;
        }
        by_mode
    }
}
