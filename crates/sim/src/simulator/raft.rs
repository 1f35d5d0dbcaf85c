//! Consensus as a correct replicated log with the behaviour that hurts: leaders change and do not know
//! it, outcomes are unknown, entries come late or twice, followers lag, a minority commits nothing.
//!
//! The log itself is perfect; openraft is tested elsewhere. Every node applies the same entries in the
//! same order, each in its own time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use understudy_checks::protocol::{self, Grant};
use understudy_core::node::{Event, Slot};
use understudy_core::state::{Member, Phase};
use understudy_core::{ClusterState, Command, Outcome};
use understudy_types::{ClusterId, Incarnation, Lsn, NodeId, NodeKind};

use super::losses::Terms;
use super::plan::{Fault, MS, Plan, SEC};
use super::world::{Happening, InDaemon, World, note};

/// A proposer gives up after this; the outcome is unknown.
const PATIENCE: u64 = 2 * SEC;
/// An entry that could not be committed is given up after so many attempts.
const ATTEMPTS_MAX: u8 = 6;

/// A committed entry.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) command: Option<Command>,
    pub(crate) outcome: Outcome,
    pub(crate) state: Arc<ClusterState>,
    pub(crate) proposal: u64,
}

/// A proposal that may still be committed.
#[derive(Clone, Debug)]
pub(crate) struct Proposal {
    pub(crate) by: usize,
    pub(crate) command: Command,
    term: u64,
}

impl Proposal {
    pub(crate) fn new(by: usize, command: Command, term: u64) -> Proposal {
        Proposal { by, command, term }
    }
}

/// The log and its leader.
#[derive(Debug)]
pub(crate) struct Raft {
    pub(crate) log: Vec<Entry>,
    pub(crate) leader: Option<usize>,
    pub(crate) term: u64,
    /// The leader has to have applied this much before it acts as one.
    elected_at: usize,
    without_since: u64,
    election_takes: u64,
    pub(crate) proposals: BTreeMap<u64, Proposal>,
    pub(crate) slow_until: u64,
    pub(crate) late_until: u64,
    pub(crate) double_until: u64,
    /// Which simulated second it is, and how much of each node was refused in it.
    refused: (u64, [u32; 3]),
    /// The greatest credit of an accepted renewal of the newest epoch.
    pub(crate) credit: Lsn,
}

impl Raft {
    pub(crate) fn founded(plan: &Plan) -> Raft {
        let member = |name: &str, kind, n: u128| Member {
            name: name.parse().expect("a plain name"),
            site: name.parse().expect("a plain name"),
            kind,
            address: format!("{name}:1"),
            incarnation: Incarnation(uuid::Uuid::from_u128(n)),
        };
        let command = Command::Found {
            cluster: ClusterId(uuid::Uuid::from_u128(9)),
            members: vec![
                (NodeId(1), member("north", NodeKind::Data, 1)),
                (NodeId(2), member("south", NodeKind::Data, 2)),
                (NodeId(3), member("third", plan.kind(2), 3)),
            ],
            config: plan.config,
            initial_active: NodeId(1),
        };
        let mut state = ClusterState::default();
        let outcome = state.apply(1, &command);
        assert!(outcome.is_accepted(), "the founding list is usable: {outcome:?}");
        let entry = Entry { command: Some(command), outcome, state: Arc::new(state), proposal: 0 };
        Raft {
            log: vec![entry],
            leader: None,
            term: 0,
            elected_at: 0,
            without_since: 0,
            election_takes: 500 * MS,
            proposals: BTreeMap::new(),
            slow_until: 0,
            late_until: 0,
            double_until: 0,
            refused: (0, [0; 3]),
            credit: Lsn::ZERO,
        }
    }

    /// The newest state of all.
    pub(crate) fn state(&self) -> &Arc<ClusterState> {
        &self.log.last().expect("the founding is there").state
    }
}

impl World {
    /// That node can get an entry committed, or a read confirmed.
    fn leads_a_majority(&self, node: usize) -> bool {
        self.runs(node) && (0..3).filter(|other| self.reach(node, *other)).count() >= 2
    }

    pub(crate) fn propose(&mut self, node: usize, slot: Slot, command: Command) {
        let proposal = self.number();
        let life = self.machines[node].life;
        note!(self, "n{} proposes {} as {proposal}", node + 1, command.kind());
        let failed = Happening::Daemon(node, life, InDaemon::ProposalFailed { proposal, slot });
        let leader = self.raft.leader.filter(|leader| self.reach(node, *leader));
        let Some(leader) = leader else {
            let wait = self.random.spread(MS, PATIENCE);
            self.after(wait, failed);
            return;
        };
        let double = self.now < self.raft.double_until && self.random.chance(300);
        let term = self.raft.term;
        self.raft.proposals.insert(proposal, Proposal { by: node, command, term });
        let delay = self.travel(node, leader) + self.commit_takes(leader);
        self.after(delay, Happening::Commit { proposal, attempts: 0 });
        self.after(PATIENCE, failed);
        if double {
            let again = delay + self.random.spread(MS, 8 * SEC);
            self.fire(Fault::DoubleCommits);
            self.after(again, Happening::Commit { proposal, attempts: ATTEMPTS_MAX });
        }
    }

    fn commit_takes(&mut self, leader: usize) -> u64 {
        let other = (leader + 1) % 3;
        let majority = self.travel(leader, other) * 2 + self.fsync(leader) + self.fsync(other);
        let slow = self.now < self.raft.slow_until && self.random.chance(500);
        majority + if slow { self.random.spread(10 * MS, 4 * SEC) } else { 0 }
    }

    pub(crate) fn commit(&mut self, id: u64, attempts: u8) {
        let Some(proposal) = self.raft.proposals.get(&id).cloned() else { return };
        let leader = self.raft.leader.filter(|leader| self.leads_a_majority(*leader));
        let same_term = proposal.term == self.raft.term || attempts >= ATTEMPTS_MAX;
        let held_up = attempts < 2 && self.now < self.raft.late_until && self.random.chance(250);
        if held_up {
            self.fire(Fault::LateCommits);
        }
        let (Some(leader), true, false) = (leader, same_term, held_up) else {
            // It is in somebody's log: it may be lost, or be committed by a later leader.
            if attempts.saturating_add(1) < ATTEMPTS_MAX && self.random.chance(600) {
                if let Some(kept) = self.raft.proposals.get_mut(&id) {
                    kept.term = self.raft.term;
                }
                let again = self.random.spread(100 * MS, 4 * SEC);
                self.after(again, Happening::Commit { proposal: id, attempts: attempts + 1 });
            }
            return;
        };
        let index = self.raft.log.len() as u64 + 1;
        let mut state = ClusterState::clone(self.raft.state());
        let before = self.raft.state().clone();
        let outcome = state.apply(index, &proposal.command);
        note!(
            self,
            "entry {index} by n{}: {} -> {outcome:?}",
            proposal.by + 1,
            proposal.command.kind()
        );
        let state = Arc::new(state);
        let entry = Entry {
            command: Some(proposal.command.clone()),
            outcome: outcome.clone(),
            state: state.clone(),
            proposal: id,
        };
        self.raft.log.push(entry);
        if outcome.is_accepted() {
            self.accepted(&proposal.command, &before, &state);
        } else {
            self.refused(proposal.by);
        }
        for node in 0..3 {
            let delay = match node == leader {
                true => 1000,
                false => self.travel(leader, node) + self.random.between(0, 100 * MS),
            };
            if self.reach(leader, node) {
                self.in_daemon(node, delay, InDaemon::Apply);
            }
        }
    }

    fn refused(&mut self, by: usize) {
        let second = self.now / SEC;
        if self.raft.refused.0 != second {
            self.raft.refused = (second, [0; 3]);
        }
        self.raft.refused.1[by] += 1;
        let (node, refused) = (self.machines[by].id, self.raft.refused.1[by]);
        let within = Duration::from_nanos(SEC);
        self.judge(protocol::refusals_do_not_fill_the_log(node, refused, within));
    }

    /// The truth about what was just accepted.
    fn accepted(&mut self, command: &Command, before: &ClusterState, state: &ClusterState) {
        match command {
            Command::Renew { published, .. } => {
                self.raft.credit = self.raft.credit.max(published.credit);
            }
            Command::Promote { to, epoch, promotion, .. } => {
                self.terms = Terms::of(before, *to);
                let grant = Grant { epoch: *epoch, node: *to, promotion: *promotion };
                self.judge(protocol::each_grant_has_an_epoch_of_its_own(&self.grants, &grant));
                self.grants.push(grant);
                let open = self.open_gates();
                self.judge(protocol::no_gate_is_open_when_an_epoch_is_granted(&open, *epoch));
                let machine = &self.machines[self.index_of(*to)];
                // A mark on the disk keeps it from running; what is not whole and not marked would run.
                let unmarked =
                    machine.postgres.data.incomplete && !machine.postgres.data.dirty_marker;
                self.judge(protocol::what_is_incomplete_does_not_run(*to, unmarked));
            }
            Command::Promoted { node, .. } => {
                self.raft.credit = Lsn::ZERO;
                if let Some(published) = state.holder.as_ref().and_then(|h| h.published.as_ref()) {
                    self.raft.credit = published.credit;
                }
                let resumed = matches!(&before.phase, Phase::Promoting(p) if p.resumes);
                let first = before.lineage.is_empty();
                if !resumed && !first {
                    self.failovers += 1;
                    let stated = state.current().map(|granted| granted.loss);
                    self.account_for_losses(self.index_of(*node), stated);
                }
            }
            Command::Release { by, .. } => self.check_release(by.node),
            Command::SyncAdd { node, .. } => self.check_joined(*node, state),
            Command::Found { .. }
            | Command::AdmitMember { .. }
            | Command::SetVoters { .. }
            | Command::SyncRemove { .. }
            | Command::SetMark { .. }
            | Command::ClearMark { .. }
            | Command::SetEff { .. }
            | Command::SetDial { .. }
            | Command::AcceptLoss { .. }
            | Command::OrderSwitchover { .. }
            | Command::Handover { .. }
            | Command::Undo { .. }
            | Command::OrderFailover { .. }
            | Command::EndOrder { .. }
            | Command::OrderNode { .. }
            | Command::BeginNodeOrder { .. }
            | Command::EndNodeOrder { .. }
            | Command::ScheduleSwitchover { .. }
            | Command::BeginScheduled { .. }
            | Command::CancelScheduled { .. }
            | Command::Pause { .. }
            | Command::Resume { .. } => {}
        }
    }

    pub(crate) fn proposal_failed(&mut self, node: usize, proposal: u64, slot: Slot) {
        let applied = &self.raft.log[..self.machines[node].applied];
        let known = applied.iter().rev().take(200).any(|entry| entry.proposal == proposal);
        if !known {
            self.feed(node, Event::ProposalFailed(slot));
        }
    }

    /// Heartbeats: who leads, who hears a majority, who has to catch up.
    pub(crate) fn raft_beat(&mut self) {
        self.after(100 * MS, Happening::RaftBeat);
        let fit = self.raft.leader.is_some_and(|leader| self.leads_a_majority(leader));
        if fit {
            self.raft.without_since = self.now;
        } else if self.now - self.raft.without_since >= self.raft.election_takes {
            self.elect(None);
        }
        let Some(leader) = self.raft.leader else { return };
        for node in 0..3 {
            let reached = node == leader || self.reach(leader, node);
            if fit && reached && self.machines[node].applied < self.raft.log.len() {
                let delay = self.travel(leader, node);
                self.in_daemon(node, delay, InDaemon::Apply);
            }
            if self.runs(node) {
                self.tell_leadership(node);
            }
        }
    }

    /// Somebody with a majority becomes leader, never `not`.
    pub(crate) fn elect(&mut self, not: Option<usize>) -> bool {
        let old = self.raft.leader;
        let able: Vec<usize> =
            (0..3).filter(|node| Some(*node) != not && self.leads_a_majority(*node)).collect();
        if able.is_empty() {
            return false;
        }
        let chosen = self.random.pick(&able);
        if let Some(old) = old.filter(|old| *old != chosen) {
            // It does not learn of it at once.
            let late = self.random.spread(10 * MS, 4 * SEC);
            self.machines[old].believes_leader_until = self.now + late;
        }
        self.raft.term += 1;
        self.raft.leader = Some(chosen);
        self.raft.elected_at = self.raft.log.len();
        self.raft.without_since = self.now;
        self.raft.election_takes = self.random.between(400, 1100) * MS;
        note!(self, "n{} leads in term {}", chosen + 1, self.raft.term);
        true
    }

    fn tell_leadership(&mut self, node: usize) {
        let machine = &self.machines[node];
        let leads = self.raft.leader == Some(node) && machine.applied >= self.raft.elected_at;
        let is_leader = leads || self.now < machine.believes_leader_until;
        let majority = self.leads_a_majority(node);
        self.feed(node, Event::Leadership { is_leader, majority });
    }

    /// Applies everything that is committed and has reached this node.
    pub(crate) fn apply_next(&mut self, node: usize) {
        if self.raft.leader.is_none_or(|leader| leader != node && !self.reach(leader, node)) {
            return; // it did not arrive; a later heartbeat brings it
        }
        while self.machines[node].applied < self.raft.log.len() {
            let entry = self.raft.log[self.machines[node].applied].clone();
            self.machines[node].applied += 1;
            let applied = entry.command.map(|command| (command, entry.outcome));
            self.feed(node, Event::State { state: entry.state, applied });
            if self.breach.is_some() {
                return;
            }
        }
        if self.random.chance(50) {
            self.machines[node].snapshot = self.machines[node].applied;
        }
        self.read_index_done(node);
    }

    /// A linearizable read, as the leader sees it at this moment.
    pub(crate) fn read_index(&self, node: usize) -> Option<usize> {
        let leader = self.raft.leader?;
        (self.reach(node, leader) && self.leads_a_majority(leader)).then_some(self.raft.log.len())
    }
}
