//! The loop that owns the core: events in, actions out, on a thread of its own.
//!
//! `select → handle → poll`. Nothing here waits for anything but the next event or the next moment; the
//! few actions that must be in force when the core goes on (permit, gate) are carried out in place,
//! the others are handed to tasks on the main runtime, and their results come back as events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use understudy_consensus::{Consensus, ProposeError};
use understudy_core::node::{
    Action, Completion, Core, Event, PeerReport, Standing, Task, TaskFailure, TaskId,
};
use understudy_core::verdict::Verdict;
use understudy_shipping::permit_cell::PermitCell;
use understudy_types::{BootInstant, Clock};

use crate::follower::FollowOrder;
use crate::guard::GuardTeller;
use crate::hands::{Hands, TaskDone};
use crate::journal_node::JournalNode;
use crate::recorder::Recorder;

/// How long one proposal may take before its outcome counts as unknown.
const PROPOSE_PATIENCE: Duration = Duration::from_secs(2);
/// How often the machine is looked at, normally and while a replay is waited for.
const LOOK_MS: u64 = 200;
const LOOK_CLOSELY_MS: u64 = 20;

/// What the driver shares with the doors.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// As the holder: clients are let in. The gate's own state comes on top of it.
    pub(crate) serving: AtomicBool,
    /// The log index of the newest applied entry that the core has been sent.
    pub(crate) applied_index: watch::Sender<u64>,
    /// The loop's last turn, in nanoseconds since boot.
    pub(crate) last_turn_ns: Arc<AtomicU64>,
}

/// How the core stands, published after every turn that changed it.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) standing: Standing,
    pub(crate) verdict: Verdict,
    pub(crate) report: PeerReport,
    pub(crate) lease_over: bool,
    /// What this node says of itself is waited for.
    pub(crate) awaited: bool,
    /// Since when clients are let in without a break, wall-clock microseconds.
    pub(crate) serving_since_unix_us: Option<i64>,
}

/// Everything the loop works with.
pub(crate) struct Driver {
    pub(crate) core: Core,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) consensus: Consensus,
    pub(crate) hands: Option<Hands>,
    /// In place of hands, where there is nothing but a journal.
    pub(crate) journal_node: Option<JournalNode>,
    pub(crate) cell: Arc<PermitCell>,
    pub(crate) runtime: Handle,
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    pub(crate) sender: mpsc::UnboundedSender<Event>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) view: watch::Sender<Option<View>>,
    pub(crate) look_interval_ms: Arc<AtomicU64>,
    pub(crate) observed: mpsc::Sender<TaskDone>,
    pub(crate) running: Option<JoinHandle<()>>,
    pub(crate) guard: Option<GuardTeller>,
    pub(crate) recorder: Recorder,
}

impl Driver {
    /// Runs until every sender of events is gone.
    pub(crate) async fn run(mut self) {
        loop {
            let now = self.clock.now();
            self.shared.last_turn_ns.store(now.0, Ordering::Relaxed);
            let wait = self.core.poll_timeout(now).since(now).max(Duration::from_millis(1));
            let event = match tokio::time::timeout(wait, self.events.recv()).await {
                Ok(Some(event)) => event,
                Ok(None) => return,
                Err(_) => Event::Tick,
            };
            self.take(event);
            // Before the actions: a server is only started, or left alone, once this was said.
            if let Some(guard) = &mut self.guard {
                let now = self.clock.now();
                guard.tell(now, self.core.guard_wish(now));
            }
            while let Some(action) = self.core.poll_action() {
                self.act(action);
            }
            self.publish(self.clock.now());
        }
    }

    /// The core's door: every event goes through here, recorded with what is decided on it. Whatever
    /// ends the core is recorded before it.
    fn take(&mut self, event: Event) {
        let now = self.clock.now();
        self.recorder.event(now, &event, &self.core);
        let before = self.core.decided().len();
        self.core.handle_event(now, event);
        self.recorder.actions(self.core.decided().skip(before));
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Propose(slot, command) => {
                let (consensus, sender) = (self.consensus.clone(), self.sender.clone());
                let kind = command.kind();
                self.runtime.spawn(async move {
                    match consensus.propose(command, PROPOSE_PATIENCE).await {
                        // The outcome also comes with the applied state, in order; only that counts.
                        Ok((_, outcome)) if outcome.is_accepted() => {}
                        Ok((_, outcome)) => tracing::debug!(kind, ?outcome, "proposal rejected"),
                        Err(error) => {
                            tracing::debug!(kind, %error, "proposal failed");
                            let _ = sender.send(Event::ProposalFailed(slot));
                        }
                    }
                });
            }
            Action::SetPermit(permit) => {
                let serial = permit.serial;
                match self.cell.set(permit) {
                    Ok(()) => {
                        self.take(Event::PermitInForce(serial));
                    }
                    Err(error) => tracing::warn!(%error, "permit not taken"),
                }
            }
            Action::CloseGate(epoch) => {
                let status = self.cell.status();
                if status.epoch <= epoch {
                    let released_upto = self.cell.close();
                    tracing::info!(%epoch, %released_upto, "gate shut for good");
                }
            }
            Action::Follow { holder, admission, history } => {
                // The core waits for no task when it says this: one that still runs was left behind
                // with the role that wanted it, and must not end what is followed from here on.
                if let Some(left_behind) = self.running.take() {
                    left_behind.abort();
                }
                self.order(FollowOrder::Follow { holder, admission, history });
            }
            Action::Unfollow => self.order(FollowOrder::Unfollow),
            Action::Run(id, task) => self.begin(id, task),
        }
    }

    fn order(&self, order: FollowOrder) {
        match (&self.hands, &self.journal_node) {
            (Some(hands), _) => hands.order(order),
            (None, Some(node)) => node.order(order),
            (None, None) => {}
        }
    }

    /// Begins a task in place of the one that runs, if one does.
    fn begin(&mut self, id: TaskId, task: Task) {
        if let Some(before) = self.running.take() {
            before.abort();
        }
        let (consensus, observed) = (self.consensus.clone(), self.observed.clone());
        let applied = self.shared.applied_index.subscribe();
        let (hands, journal_node) = (self.hands.clone(), self.journal_node.clone());
        let name = task_name(&task);
        tracing::debug!(task = name, "task begins");
        self.running = Some(self.runtime.spawn(async move {
            let result = match (task, hands, journal_node) {
                (Task::ReadIndex, ..) => read_index(&consensus, applied).await,
                (task, Some(hands), _) => hands.carry_out(task).await,
                (task, None, Some(node)) => node.carry_out(task).await,
                (_, None, None) => {
                    Err(TaskFailure { words: "a witness has no server".to_owned(), suspect: false })
                }
            };
            if let Err(failure) = &result {
                tracing::warn!(task = name, reason = failure.words, "task failed");
            }
            // Only a daemon that ends has nobody to tell.
            let _ = observed.send((id, result)).await;
        }));
    }

    fn publish(&mut self, now: BootInstant) {
        let standing = self.core.standing(now);
        self.shared.serving.store(standing.serving, Ordering::Relaxed);
        let awaited = self.core.is_awaited();
        let closely = awaited
            || matches!(standing.word, "replaying" | "sealing" | "collecting" | "promoting");
        let interval = if closely { LOOK_CLOSELY_MS } else { LOOK_MS };
        if self.look_interval_ms.swap(interval, Ordering::Relaxed) > interval
            && let Some(hands) = &self.hands
        {
            hands.wish_look();
        }
        let verdict = self.core.verdict(now);
        let report = self.core.own_report(now);
        let lease_over = self.core.lease_over(now);
        let (before, since) = match self.view.borrow().as_ref() {
            Some(view) => (Some(view.standing.word), view.serving_since_unix_us),
            None => (None, None),
        };
        let serving_since_unix_us =
            standing.serving.then(|| since.unwrap_or_else(crate::clock::wall_unix_us));
        if before != Some(standing.word) {
            let from = before.unwrap_or("start");
            let reason = standing.trouble.as_deref().unwrap_or("");
            tracing::info!(from, to = standing.word, reason, "state changes");
        }
        let view = View { standing, verdict, report, lease_over, awaited, serving_since_unix_us };
        self.view.send_replace(Some(view));
    }
}

/// A linearizable read: done once the core has been sent everything up to the read index, so that it
/// never judges the answer by an older state.
async fn read_index(
    consensus: &Consensus,
    mut applied: watch::Receiver<u64>,
) -> Result<Completion, TaskFailure> {
    let failed = |words: String| TaskFailure { words, suspect: false };
    let index = consensus
        .read_index(PROPOSE_PATIENCE)
        .await
        .map_err(|error: ProposeError| failed(format!("ask the majority: {error}")))?;
    let sent = applied.wait_for(|applied| *applied >= index);
    match tokio::time::timeout(PROPOSE_PATIENCE, sent).await {
        Ok(Ok(_)) => Ok(Completion::ReadDone),
        Ok(Err(_)) | Err(_) => Err(failed(format!("entry {index} has not been applied here"))),
    }
}

fn task_name(task: &Task) -> &'static str {
    match task {
        Task::ReadIndex => "read-index",
        Task::PrepareData => "prepare-data",
        Task::Fence => "fence",
        Task::Hold(_) => "hold",
        Task::LetClientsIn { .. } => "let-clients-in",
        Task::Drain => "drain",
        Task::PrepareSwitchover => "prepare-switchover",
        Task::ShutClientsOut { .. } => "shut-clients-out",
        Task::StopCleanly { .. } => "stop-cleanly",
        Task::Seal(_) => "seal",
        Task::CollectSeals { .. } => "collect-seals",
        Task::PromoteLocally { .. } => "promote-locally",
        Task::Survey => "survey",
        Task::Join { .. } => "join",
        Task::BeginJournalAnew(_) => "begin-journal-anew",
        Task::StopForRestart { .. } => "stop-for-restart",
        Task::RestartStandby { .. } => "restart-standby",
        Task::Reload => "reload",
    }
}
