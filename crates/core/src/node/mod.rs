//! The machine that drives one node: events in, actions out.
//!
//! One task owns it. `handle_event` never waits; `poll_action` hands out what is to be done;
//! `poll_timeout` says when to come back without an event. The executor carries actions out and
//! brings every result back as an event, failures and timeouts included; it never decides.
//!
//! Ordering rules hang on results, never on an action having been sent: the gate's set is widened
//! before it is recorded, the seal is durable before the promotion, the process tree is gone before
//! the release.

mod candidate;
mod damping;
mod dial;
mod exposure;
mod fast;
mod guard;
mod holder;
mod journal;
mod leader;
pub mod lease;
mod orders;
mod passive;
mod settled;
mod switchover;
mod sync_set;
mod views;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::{
    Admission, BootInstant, Epoch, Lineage, Lsn, NodeId, NodeKind, Permit, PermitSerial,
    ProcessStart, PromotionId, SealedEnd, SourcePositions, SystemId, Timeline,
};

pub use damping::Damping;
pub use guard::GuardWish;
pub use settled::Settled;
pub use views::{
    DataView, HeardReport, JournalView, LocalView, PeerReport, PostgresFacts, PostgresView,
    SourceView,
};

use crate::rejoin::{Rung, Survey};
use crate::state::{Command, Outcome};
use crate::verdict::{self, Verdict};
use crate::{ClusterState, Timing};

use candidate::Candidate;
use damping::FlapWatch;
use holder::HolderStage;
use journal::JournalStage;
use lease::{ChallengerClock, HolderLease};
use passive::PassiveStage;

/// A one-off proposal whose outcome has not been seen is proposed again after this.
const PROPOSAL_RETRY: Duration = Duration::from_millis(800);
/// A proposal that failed is sent again after this.
const FAILED_RETRY: Duration = Duration::from_millis(150);
/// A task that failed is tried again after this.
const TASK_RETRY: Duration = Duration::from_millis(500);
/// A report older than this does not speak for its node any more.
pub const REPORT_FRESH: Duration = Duration::from_millis(1500);

/// What a core is made for.
#[derive(Clone, Debug)]
pub struct CoreOptions {
    /// This node.
    pub me: NodeId,
    /// What it can be.
    pub kind: NodeKind,
    /// This start of its process.
    pub process: ProcessStart,
    /// The protocol's durations.
    pub timing: Timing,
}

/// Names one run of a task; a late result of an older one is recognised by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct TaskId(pub u64);

/// What a proposal is for; at most one of each kind is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Slot {
    /// The holder's renewal; several may be under way.
    Renew,
    /// The holder's release.
    Release,
    /// A node joins those who are waited for.
    SyncAdd(NodeId),
    /// A node leaves them.
    SyncRemove(NodeId),
    /// The mode that is wanted comes in force.
    SetEff,
    /// A grant.
    Promote,
    /// The candidate's report.
    Promoted,
    /// The beginning of a handover, or its undoing, by the holder.
    Switchover,
    /// The end of an order or of a pause, by the leader.
    Housekeeping,
    /// A mark.
    Mark,
    /// This node begins or ends what it was ordered to do.
    NodeOrder,
}

/// Something happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Event {
    /// Time passed.
    Tick,
    /// The applied state, in log order. `applied` is the entry that led to it, if one did.
    State {
        /// The state after it.
        #[serde(with = "crate::serde_parts::shared")]
        state: Arc<ClusterState>,
        /// The command and what became of it.
        applied: Option<(Command, Outcome)>,
    },
    /// Who leads the consensus, as far as this node knows.
    Leadership {
        /// This node leads and has applied an entry of its own term.
        is_leader: bool,
        /// A majority was heard within an election timeout, as far as this node can tell.
        majority: bool,
    },
    /// A proposal did not come through; its outcome may be unknown.
    ProposalFailed(Slot),
    /// An observation of the own machine, with a promotion identity that nobody has used.
    Local {
        /// What was seen.
        view: LocalView,
        /// Fresh randomness for the next grant this node may propose.
        fresh: PromotionId,
        /// The wall clock, microseconds since the Unix epoch: data for records, never a decision
        /// that opens something.
        wall_unix_us: i64,
    },
    /// The WAL path of the holder.
    Source(SourceView),
    /// A peer's report.
    Peer(PeerReport),
    /// This permit is in force at the gate.
    PermitInForce(PermitSerial),
    /// A task ended.
    TaskDone(TaskId, Result<Completion, TaskFailure>),
    /// The stream from the holder ended for a reason that reconnecting does not mend.
    FollowEnded(FollowEnd),
}

/// What a task that went well came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Completion {
    /// A linearizable read: the state is at least as new as the moment it was asked for.
    ReadDone,
    /// The data directory is there.
    DataReady,
    /// No process of the server is left, its shared memory is unattached, it will not start writable.
    Fenced,
    /// The server runs as a primary behind the gate; its WAL ends at `end_lsn`.
    Held {
        /// Its flush position when it was taken.
        end_lsn: Lsn,
    },
    /// Clients are let in.
    ClientsLetIn,
    /// The journal is sealed; `None` when it holds nothing.
    Sealed(Option<SealedEnd>),
    /// The local server was promoted.
    PromotedLocally {
        /// Its new timeline.
        timeline: Timeline,
        /// Where it left the old one.
        fork_lsn: Lsn,
    },
    /// What was found in the data directory.
    Surveyed(Survey),
    /// A rung of the ladder was climbed; the standby runs.
    Joined,
    /// The gate let nothing pass any more, and what it had released is durable at the passive, or the
    /// time for that was up.
    Drained,
    /// A checkpoint is written, so that the one at the stop is small.
    SwitchoverPrepared,
    /// No client session is left, and none can begin.
    ClientsShutOut,
    /// The server stopped cleanly, nothing of it is left, and everything is durable at the candidate.
    StoppedCleanly {
        /// The end of its WAL, the shutdown checkpoint included.
        end_lsn: Lsn,
    },
    /// The journal is set aside, and an empty one is in its place.
    JournalEmptied,
    /// The standby was stopped and runs again.
    StandbyRestarted,
    /// PostgreSQL has read its settings anew.
    Reloaded {
        /// What changed by that, for people.
        words: String,
    },
}

/// A task did not go well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFailure {
    /// What happened, for people.
    pub words: String,
    /// Trying again does not mend it: after a promotion only a rejoin does, in a join the next rung.
    pub suspect: bool,
}

/// Why the stream from the holder ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FollowEnd {
    /// The two do not agree about the epoch yet; to be tried again a little later.
    Again(String),
    /// What is held here is not in the holder's history.
    Diverged(String),
    /// The holder no longer has the WAL that is needed next.
    WalGone(String),
    /// The journal cannot go on; the words say why.
    JournalFailed(String),
}

/// Something that takes time. One at a time: a newer one replaces the older, whose result is dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// A linearizable read.
    ReadIndex,
    /// At founding: make the cluster, or take the one that is there.
    PrepareData,
    /// Stop everything: drop the gate's connection, kill the process tree, prove that it is gone.
    Fence,
    /// Have the server run as a primary behind a shut gate and a closed pg_hba, taking up one that
    /// runs; connect the gate.
    Hold(Grant),
    /// Open pg_hba; a checkpoint begins in the background.
    LetClientsIn {
        /// The epoch it rests on.
        epoch: Epoch,
    },
    /// Shut the gate for good and wait, bounded, until what it released is durable at the passive.
    Drain,
    /// Write a checkpoint while clients are served, so that the one at the stop is small.
    PrepareSwitchover,
    /// Close pg_hba and end every client session; those in a transaction are given `grace` first.
    ShutClientsOut {
        /// How long a transaction may take to end by itself.
        grace: Duration,
    },
    /// Stop the server the fast way with the gate open, prove that nothing of it is left and that it
    /// ended cleanly, and wait until all of its WAL is durable at `to`.
    StopCleanly {
        /// The candidate.
        to: NodeId,
        /// How long that may take.
        within: Duration,
    },
    /// Stop following, make the epoch durable, refuse older frames from now on.
    Seal(Epoch),
    /// Have others seal their journals for this epoch, and fetch what the furthest of them has beyond the
    /// own sealed journal. Answered by `Sealed` with the end after that.
    CollectSeals {
        /// The epoch.
        epoch: Epoch,
        /// Who may be asked, and what each is known to have had: one that has less has lost WAL, and its
        /// seal says nothing of what it acknowledged.
        members: Vec<(NodeId, Lsn)>,
        /// So many of them have to have answered.
        needed: usize,
    },
    /// Promote the local standby to the granted timeline, behind a closed pg_hba.
    PromoteLocally {
        /// What was granted.
        grant: Grant,
        /// Replay must have reached this, and the fork must be it.
        target_lsn: Lsn,
        /// Other data nodes, for which retention slots are reserved before the promotion.
        peers: Vec<NodeId>,
    },
    /// With the server stopped: see what is in the data directory.
    Survey,
    /// Climb a rung of the ladder and start the standby, its journal following the holder.
    Join {
        /// Which rung.
        rung: Rung,
        /// Keep the own WAL from here on first.
        keep_from: Option<Lsn>,
        /// Whose data.
        holder: NodeId,
        /// The cluster's history, oldest first.
        history: Vec<Lineage>,
        /// The epoch on whose behalf.
        epoch: Epoch,
    },
    /// At a node that has nothing but a journal: set it aside, on behalf of this epoch.
    BeginJournalAnew(Epoch),
    /// Stop the server of a holder the fast way with the gate open, or the hard way once `within` is over,
    /// and prove that nothing of it is left. Answered by `Fenced`.
    StopForRestart {
        /// How long the fast stop may take.
        within: Duration,
    },
    /// Stop the standby the fast way and start it again; the journal goes on following.
    RestartStandby {
        /// How long the fast stop may take.
        within: Duration,
    },
    /// Read the node's settings anew, and have the server that runs read them.
    Reload,
}

/// An epoch with all that identifies it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The epoch.
    pub epoch: Epoch,
    /// The promotion whose WAL it is.
    pub promotion: PromotionId,
    /// The timeline.
    pub timeline: Timeline,
    /// PostgreSQL's system identifier.
    pub system_id: SystemId,
    /// The cluster's history up to and including this, oldest first; without it while it is not yet
    /// reported.
    pub history: Vec<Lineage>,
    /// Since when what was acknowledged before may have been exposed, on this node's clock: counted in, so
    /// that a restart never makes exposure look smaller. A moment, because the server's start takes time.
    pub exposed_since: BootInstant,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Put this into the log.
    Propose(Slot, Command),
    /// This permit replaces the one in force. Answered by `PermitInForce`.
    SetPermit(Permit),
    /// The gate of this epoch is shut for good.
    CloseGate(Epoch),
    /// Follow the holder's stream under this admission, reconnecting as needed.
    Follow {
        /// Who sends.
        holder: NodeId,
        /// What may be stored.
        admission: Admission,
        /// The cluster's history, oldest first.
        history: Vec<Lineage>,
    },
    /// Stop following.
    Unfollow,
    /// Begin a task, replacing one that is under way.
    Run(TaskId, Task),
}

/// How this node stands, for status and reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// A word: "holder", "passive", "candidate", …
    pub word: &'static str,
    /// Why it is not where it should be.
    pub trouble: Option<String>,
    /// Attached as a passive, on complete data.
    pub promotable: bool,
    /// It could go on as the holder that it was.
    pub resumable: bool,
    /// As the holder: it has let clients in, and the lease runs.
    pub serving: bool,
    /// As the holder: the moment from which nothing is released.
    pub deadline: Option<BootInstant>,
}

/// What this node is doing. A struct or enum for each state carries what only it needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Role {
    /// Nothing to do yet.
    Idle,
    Holder(Box<HolderStage>),
    Candidate(Candidate),
    Passive(PassiveStage),
    Journal(JournalStage),
}

/// The task under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Running {
    id: TaskId,
    task: Task,
}

/// The deciding part of one node. See the module's documentation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Core {
    me: NodeId,
    kind: NodeKind,
    process: ProcessStart,
    timing: Timing,
    #[serde(with = "crate::serde_parts::shared")]
    state: Arc<ClusterState>,
    local: LocalView,
    source: SourceView,
    /// The moment of the event in hand.
    now: BootInstant,
    /// The newest accepted renewal, and when it was applied here; at first the own start.
    published_at: Option<((Epoch, u64), BootInstant)>,
    #[serde(default)]
    settled: Settled,
    /// Whatever this process released and was not durable elsewhere, when its positions were read last,
    /// was released at this moment or later.
    exposed_from: Option<BootInstant>,
    /// The position that those are beyond, where this process has read it.
    #[serde(default)]
    exposed_beyond: Option<Lsn>,
    peers: BTreeMap<NodeId, HeardReport>,
    is_leader: bool,
    majority: bool,
    wall_unix_us: i64,
    fresh: Option<PromotionId>,
    role: Role,
    lease: HolderLease,
    challenger: ChallengerClock,
    leader: leader::LeaderView,
    flaps: FlapWatch,
    permit_serial: PermitSerial,
    permit: Option<Permit>,
    permit_in_force: PermitSerial,
    #[serde(with = "crate::serde_parts::pairs")]
    pending: BTreeMap<Slot, BootInstant>,
    task_counter: TaskId,
    running: Option<Running>,
    retry_at: BootInstant,
    /// At founding: the data directory was made, or the one that is there was made ready.
    prepared: bool,
    /// A majority has confirmed, since this process began, that the state here is not an old one.
    confirmed: bool,
    trouble: Option<String>,
    /// What an operator ordered this node to do, while it does.
    #[serde(default)]
    doing: Option<orders::Doing>,
    actions: VecDeque<Action>,
}

impl Core {
    /// A core that has seen nothing yet.
    pub fn new(options: CoreOptions) -> Core {
        Core {
            me: options.me,
            kind: options.kind,
            process: options.process,
            timing: options.timing,
            state: Arc::default(),
            local: LocalView::default(),
            source: None,
            now: BootInstant::ZERO,
            published_at: None,
            settled: Settled::default(),
            exposed_from: None,
            exposed_beyond: None,
            peers: BTreeMap::new(),
            is_leader: false,
            majority: false,
            wall_unix_us: 0,
            fresh: None,
            role: Role::Idle,
            lease: HolderLease::default(),
            challenger: ChallengerClock::default(),
            leader: leader::LeaderView::default(),
            flaps: FlapWatch::new(Damping::OFF),
            permit_serial: PermitSerial(0),
            permit: None,
            permit_in_force: PermitSerial(0),
            pending: BTreeMap::new(),
            task_counter: TaskId(0),
            running: None,
            retry_at: BootInstant::ZERO,
            prepared: false,
            confirmed: false,
            trouble: None,
            doing: None,
            actions: VecDeque::new(),
        }
    }

    /// Takes an event and decides what follows from it.
    pub fn handle_event(&mut self, now: BootInstant, event: Event) {
        self.now = now;
        match event {
            Event::Tick => {}
            Event::State { state, applied } => self.take_state(now, state, applied),
            Event::Leadership { is_leader, majority } => {
                self.is_leader = is_leader;
                self.majority = majority;
            }
            Event::ProposalFailed(Slot::Renew) => self.lease.failed(now, &self.timing),
            Event::ProposalFailed(slot) => self.retry_soon(now, slot),
            Event::Local { view, fresh, wall_unix_us } => {
                self.local = view;
                self.wall_unix_us = wall_unix_us;
                self.fresh.get_or_insert(fresh);
            }
            Event::Source(view) => self.take_positions(view),
            Event::Peer(report) => {
                self.peers.insert(report.node, HeardReport { at: now, report });
            }
            Event::PermitInForce(serial) => {
                self.permit_in_force = self.permit_in_force.max(serial);
            }
            Event::TaskDone(id, result) => {
                if self.running.as_ref().is_some_and(|running| running.id == id) {
                    let running = self.running.take().expect("just seen");
                    self.note_order_task(id, &result);
                    self.take_result(now, running.task, result);
                }
            }
            Event::FollowEnded(end) => self.follow_ended(now, end),
        }
        self.advance(now);
    }

    /// The next thing to do, if any.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// What was decided and not polled yet, oldest first.
    pub fn decided(&self) -> impl ExactSizeIterator<Item = &Action> {
        self.actions.iter()
    }

    /// The newest epoch that it knows is held by this node.
    pub fn is_own_epoch(&self) -> bool {
        self.state.holder.as_ref().is_some_and(|holder| holder.node == self.me)
    }

    /// The newest applied state that this core has been given.
    pub fn state(&self) -> &Arc<ClusterState> {
        &self.state
    }

    /// When to come back with a `Tick` if nothing else happens before.
    pub fn poll_timeout(&self, now: BootInstant) -> BootInstant {
        let mut at = now + Duration::from_millis(100);
        if self.is_holder() {
            at = at.min(self.lease.next_due(&self.timing).max(now));
            at = self.lease.deadline().filter(|d| *d > now).map_or(at, |deadline| at.min(deadline));
        }
        self.challenger.over_at().filter(|over| *over > now).map_or(at, |over| at.min(over))
    }

    /// How this node stands.
    pub fn standing(&self, now: BootInstant) -> Standing {
        let (word, promotable, serving) = match &self.role {
            Role::Idle if self.kind == NodeKind::Witness => ("witness", false, false),
            Role::Idle => ("waiting", false, false),
            Role::Holder(stage) => (stage.word(), false, stage.is_open() && self.lease_runs(now)),
            Role::Candidate(candidate) => (candidate.word(), true, false),
            Role::Passive(stage) => (stage.word(), self.promotable(stage), false),
            Role::Journal(stage) => (stage.word(), false, false),
        };
        Standing {
            word,
            trouble: self.trouble.clone().or_else(|| self.mode_trouble().filter(|_| serving)),
            promotable,
            resumable: self.resumable(),
            serving,
            deadline: self.is_holder().then(|| self.lease.deadline()).flatten(),
        }
    }

    /// This node's own clock says that the lease of the present epoch is over.
    pub fn lease_over(&self, now: BootInstant) -> bool {
        self.challenger.is_over(now)
    }

    /// Would an automatic failover happen now, and why or why not. Any node can say, from the
    /// replicated state and from what it has heard.
    pub fn verdict(&self, now: BootInstant) -> Verdict {
        self.damped(now, verdict::judge(&self.evidence(now)))
    }

    /// What to tell the peers.
    pub fn own_report(&self, now: BootInstant) -> PeerReport {
        let standing = self.standing(now);
        PeerReport {
            node: self.me,
            process: self.process,
            epoch: self.state.epoch,
            data: match &self.local.data {
                // The first grant waits until the directory is ready for it.
                DataView::Cluster { .. } if matches!(self.role, Role::Idle) && !self.prepared => {
                    None
                }
                DataView::Cluster { system_id, timeline } => Some((*system_id, *timeline)),
                DataView::Unknown | DataView::Empty | DataView::Unusable(_) => None,
            },
            durable_lsn: self.local.journal.map(|journal| journal.durable_lsn),
            promotion: self.local.journal.and_then(|journal| journal.promotion),
            promotable: standing.promotable,
            resumable: standing.resumable,
            begin_lsn: self.local.journal.map_or(Lsn::ZERO, |journal| journal.begin_lsn),
        }
    }

    /// The peers' reports, as they came in.
    pub fn peers(&self) -> &BTreeMap<NodeId, HeardReport> {
        &self.peers
    }

    fn take_state(
        &mut self,
        now: BootInstant,
        state: Arc<ClusterState>,
        applied: Option<(Command, Outcome)>,
    ) {
        self.state = state;
        self.challenger.observe(now, &self.state, &self.timing);
        self.flaps.observe(now, &self.state);
        let newest = self.state.holder.as_ref().map_or(0, |holder| holder.seq);
        let newest = (self.state.epoch, newest);
        // A grant publishes nothing: what was published last only grows older by it.
        if self.published_at.is_none_or(|(known, _)| known != newest && newest.1 > 0) {
            self.published_at = Some((newest, now));
        }
        if let Some(published) = self.state.holder.as_ref().and_then(|h| h.published.as_ref()) {
            self.settled.note(now, published);
        }
        if let Some((command, outcome)) = applied {
            self.settle(now, &command, &outcome);
        }
        self.leader.observe(now, &self.state);
    }

    /// An outcome arrived: whatever waited for it may be proposed anew, or is done. What was rejected waits
    /// a little: a proposer that asks again at once for what is refused fills the log.
    fn settle(&mut self, now: BootInstant, command: &Command, outcome: &Outcome) {
        let slots = match command {
            Command::Renew { by, seq, .. } if by.node == self.me && by.process == self.process => {
                self.lease.settled(by.epoch, *seq, outcome, &self.timing);
                [None, None]
            }
            Command::SyncAdd { node, .. } => [Some(Slot::SyncAdd(*node)), None],
            Command::SyncRemove { node, .. } => [Some(Slot::SyncRemove(*node)), None],
            Command::SetEff { .. } => [Some(Slot::SetEff), None],
            Command::Promote { .. } => [Some(Slot::Promote), None],
            Command::Promoted { .. } => [Some(Slot::Promoted), None],
            Command::Release { .. } => [Some(Slot::Release), None],
            Command::Handover { .. } | Command::Undo { .. } => [Some(Slot::Switchover), None],
            Command::SetMark { .. } | Command::ClearMark { .. } => [Some(Slot::Mark), None],
            Command::EndOrder { .. } | Command::Resume { .. } | Command::BeginScheduled { .. } => {
                [Some(Slot::Housekeeping), None]
            }
            Command::BeginNodeOrder { .. } | Command::EndNodeOrder { .. } => {
                [Some(Slot::NodeOrder), Some(Slot::Housekeeping)]
            }
            Command::Renew { .. }
            | Command::Found { .. }
            | Command::AdmitMember { .. }
            | Command::SetVoters { .. }
            | Command::OrderFailover { .. }
            | Command::OrderSwitchover { .. }
            | Command::SetDial { .. }
            | Command::AcceptLoss { .. }
            | Command::OrderNode { .. }
            | Command::ScheduleSwitchover { .. }
            | Command::CancelScheduled { .. }
            | Command::Pause { .. } => [None, None],
        };
        for slot in slots.into_iter().flatten() {
            let waited = self.pending.remove(&slot).is_some();
            if waited && !outcome.is_accepted() {
                self.retry_soon(now, slot);
            }
        }
    }

    fn retry_soon(&mut self, now: BootInstant, slot: Slot) {
        self.pending.insert(slot, (now + FAILED_RETRY) - PROPOSAL_RETRY);
    }

    fn take_result(
        &mut self,
        now: BootInstant,
        task: Task,
        result: Result<Completion, TaskFailure>,
    ) {
        if task == Task::Reload {
            // It changes nothing of how this node stands, however it went.
            return;
        }
        match result {
            Ok(completion) => {
                self.trouble = None;
                self.completed(now, completion);
            }
            Err(failure) => {
                self.trouble = Some(failure.words.clone());
                self.retry_at = now + TASK_RETRY;
                self.failed(now, &task, &failure);
            }
        }
    }

    fn completed(&mut self, now: BootInstant, completion: Completion) {
        match &mut self.role {
            Role::Holder(_) => self.holder_completed(now, completion),
            Role::Candidate(_) => self.candidate_completed(completion),
            Role::Passive(_) => self.passive_completed(now, completion),
            Role::Journal(_) => self.journal_completed(&completion),
            Role::Idle => self.prepared = matches!(completion, Completion::DataReady),
        }
    }

    fn failed(&mut self, now: BootInstant, task: &Task, failure: &TaskFailure) {
        match &mut self.role {
            Role::Holder(_) => self.holder_failed(now, task),
            Role::Candidate(_) => self.candidate_failed(failure),
            Role::Passive(_) => self.passive_failed(task, failure),
            Role::Idle | Role::Journal(_) => {}
        }
    }

    /// Decides, from all that is known, what comes next.
    fn advance(&mut self, now: BootInstant) {
        self.choose_role(now);
        match self.role {
            Role::Idle => self.advance_idle(now),
            Role::Holder(_) => self.advance_holder(now),
            Role::Candidate(_) => self.advance_candidate(now),
            Role::Passive(_) => self.advance_passive(now),
            Role::Journal(_) => self.advance_journal(now),
        }
        self.advance_orders(now);
        if self.is_leader {
            self.advance_leader(now);
        }
    }

    /// The role follows from the state alone.
    fn choose_role(&mut self, now: BootInstant) {
        use crate::state::Phase;
        match self.kind {
            NodeKind::Data => {}
            NodeKind::Witness => return,
            NodeKind::Journal => {
                if matches!(self.role, Role::Idle) {
                    self.role = Role::Journal(JournalStage::default());
                }
                return;
            }
        }
        let holder = self.state.holder.as_ref().map(|holder| holder.node);
        match (&self.state.phase, holder) {
            (Phase::Bootstrap, _) | (_, None) => self.role = Role::Idle,
            (Phase::Promoting(promoting), _) if promoting.to == self.me => {
                let promotion = promoting.promotion;
                let same = matches!(&self.role, Role::Candidate(c) if c.promotion() == promotion);
                if !same {
                    self.leave_role();
                    self.role = Role::Candidate(Candidate::begin(promotion));
                }
            }
            (Phase::Running | Phase::Handover(_), Some(holder)) if holder == self.me => {
                let same = matches!(&self.role, Role::Holder(s) if s.epoch() == self.state.epoch);
                if !same {
                    self.leave_role();
                    let stage = HolderStage::begin(self.state.epoch, now);
                    self.role = Role::Holder(Box::new(stage));
                }
            }
            (Phase::Promoting(_) | Phase::Running | Phase::Handover(_), _) => {
                if !matches!(self.role, Role::Passive(_)) {
                    self.close_gate_for_good();
                    self.leave_role();
                    self.exposed_from = None;
                    self.exposed_beyond = None;
                    self.role = Role::Passive(PassiveStage::begin());
                }
            }
        }
        self.lease.enter(self.state.epoch);
        let _ = now;
    }

    fn leave_role(&mut self) {
        self.running = None;
        self.trouble = None;
        self.retry_at = BootInstant::ZERO;
        self.permit = None;
    }

    /// A newer epoch than the one this node acknowledged under: nothing is released any more.
    fn close_gate_for_good(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.actions.push_back(Action::CloseGate(permit.epoch));
        }
    }

    /// Nobody was ever granted anything: the initial active makes its data ready.
    fn advance_idle(&mut self, now: BootInstant) {
        let Some(identity) = &self.state.identity else { return };
        let mine = identity.initial_active == self.me && self.kind == NodeKind::Data;
        let idle = self.running.is_none() && now >= self.retry_at;
        match &self.local.data {
            DataView::Empty | DataView::Cluster { .. } if mine && idle && !self.prepared => {
                self.run(Task::PrepareData);
            }
            // While the directory is being made it is nothing yet, and that is no trouble.
            DataView::Unusable(what) if idle => self.trouble = Some(what.clone()),
            DataView::Unusable(_)
            | DataView::Empty
            | DataView::Unknown
            | DataView::Cluster { .. } => {}
        }
    }

    fn run(&mut self, task: Task) {
        self.task_counter = TaskId(self.task_counter.0 + 1);
        let id = self.task_counter;
        self.running = Some(Running { id, task: task.clone() });
        self.actions.push_back(Action::Run(id, task));
    }

    fn propose(&mut self, now: BootInstant, slot: Slot, command: Command) {
        if slot != Slot::Renew {
            if self.pending.get(&slot).is_some_and(|at| now.since(*at) < PROPOSAL_RETRY) {
                return;
            }
            self.pending.insert(slot, now);
        }
        self.actions.push_back(Action::Propose(slot, command));
    }

    fn is_holder(&self) -> bool {
        matches!(self.role, Role::Holder(_))
    }

    fn lease_runs(&self, now: BootInstant) -> bool {
        self.lease.deadline().is_some_and(|deadline| now < deadline)
    }

    /// Complete data, and nothing else under way: it could go on as the holder that it was.
    fn resumable(&self) -> bool {
        let ran_last = self.state.last_granted().is_some_and(|(_, last)| last.node == self.me);
        let whole = matches!(self.local.data, DataView::Cluster { .. });
        ran_last && whole && !self.state.marks.contains_key(&self.me)
    }

    fn postgres_facts(&self) -> Option<&PostgresFacts> {
        match &self.local.postgres {
            PostgresView::Running(facts) => Some(facts),
            PostgresView::Unknown | PostgresView::Stopped => None,
        }
    }

    /// The grant of a running epoch.
    fn running_grant(&self) -> Option<Grant> {
        let current = self.state.current()?;
        Some(Grant {
            epoch: self.state.epoch,
            promotion: current.promotion,
            timeline: current.timeline,
            system_id: self.state.identity.as_ref()?.system_id?,
            history: self.state.history(),
            exposed_since: self.exposed_since(),
        })
    }
}

/// The positions of one receiver in what the source said.
fn receiver_of(
    source: &SourcePositions,
    node: NodeId,
) -> Option<&understudy_types::ReceiverPosition> {
    source.receivers.iter().find(|receiver| receiver.node == node)
}
