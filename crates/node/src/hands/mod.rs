//! The executor: carries out what the core asks for, and reports what came of it. It never decides.
//!
//! `Hands` owns every handle to the outside of one data node: the server, the journal, the permit
//! cell, the source or the receiver. Tasks run one at a time; a newer one replaces the older, which is
//! dropped at its next await and must be safe to drop there.

mod adopted;
mod collect;
mod divergent;
mod follow;
mod hold;
mod join;
mod observe;
mod orders;
mod switchover;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc, watch};
use understudy_core::node::{Completion, Event, Task, TaskFailure, TaskId};
use understudy_core::rejoin::Survey;
use understudy_core::retention::Need;
use understudy_postgres::{DataDirectory, GuardianLink, Server};
use understudy_shipping::journal::Journal;
use understudy_shipping::permit_cell::PermitCell;
use understudy_shipping::receiver::StandbyProgress;
use understudy_shipping::source::SourceHandle;
use understudy_transport::Dialer;
use understudy_types::{Clock, ClusterId, Incarnation, Lineage, NodeId, NodeName, SystemId};

use crate::config::NodeConfig;
use crate::follower::{FollowOrder, Follower, FollowerOptions};
use crate::receipts::{Promised, ReceiptSummary};

pub(crate) use divergent::journal_aside;
pub(crate) use hold::SLOT_PREFIX;
pub(crate) use join::tunnel_roles;
pub(crate) use observe::Observer;

/// The relay's port, as in its socket's name.
pub(crate) const RELAY_PORT: u16 = 7432;
/// The tunnel's port, as in its socket's name.
const TUNNEL_PORT: u16 = 7433;
/// How long the server may take to come up and be consistent.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// How long a reload of pg_hba.conf may take.
const HBA_PATIENCE: Duration = Duration::from_secs(5);

/// How long the guardian may take to start and to confirm a deadline; a busy machine takes a while.
const GUARD_PATIENCE: Duration = Duration::from_secs(10);

/// A long step says in the log how far it is this often.
const PROGRESS_LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Finds what makes channels for bulk data to a member.
pub(crate) type BulkDialer = Arc<dyn Fn(NodeId) -> Option<Dialer> + Send + Sync>;

/// A task's result on its way: the observer looks first, so that the core never judges a result by an
/// observation from before it.
pub(crate) type TaskDone = (TaskId, Result<Completion, TaskFailure>);

/// What a data node's hands are made of.
pub(crate) struct HandsOptions {
    pub(crate) me: NodeId,
    pub(crate) name: NodeName,
    pub(crate) cluster: ClusterId,
    pub(crate) incarnation: Incarnation,
    pub(crate) data_dir: PathBuf,
    /// The node's file, for a reload, and what it said at the start.
    pub(crate) config_path: PathBuf,
    pub(crate) config: Arc<NodeConfig>,
    /// `None` where the configuration does without.
    pub(crate) guard: Option<Arc<GuardianLink>>,
    pub(crate) server: Server,
    pub(crate) journal: Journal,
    pub(crate) cell: Arc<PermitCell>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) bulk: BulkDialer,
    pub(crate) names: Arc<dyn Fn(NodeId) -> Option<NodeName> + Send + Sync>,
    pub(crate) standby: watch::Receiver<StandbyProgress>,
    pub(crate) events: mpsc::UnboundedSender<Event>,
    /// What the cluster has agreed on about losses.
    pub(crate) promised: Arc<dyn Fn() -> Promised + Send + Sync>,
    /// Why the daemon must stop, once it must.
    pub(crate) fatal: watch::Sender<Option<String>>,
}

/// Progress of a long step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) what: &'static str,
    pub(crate) done_bytes: u64,
    /// 0 while unknown.
    pub(crate) total_bytes: u64,
    /// On average since the step began; 0 while unknown.
    pub(crate) bytes_per_second: f64,
    began: Option<Instant>,
    logged: Option<Instant>,
}

/// One data node's hands. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Hands {
    inner: Arc<Inner>,
}

struct Inner {
    options: HandsOptions,
    source: watch::Sender<Option<SourceHandle>>,
    follower: Follower,
    orders: mpsc::UnboundedSender<FollowOrder>,
    progress: watch::Sender<Option<Progress>>,
    newest_receipt: watch::Sender<Option<ReceiptSummary>>,
    /// Held by whoever works below `divergent/`: the file work of a task that was dropped goes on for
    /// a while beside its successor's.
    divergent_turn: Arc<std::sync::Mutex<()>>,
    /// Held while a task runs: what changes the server must not overlap.
    turn: Mutex<()>,
    observed: Arc<tokio::sync::Notify>,
    task_serial: AtomicU64,
    /// The server that was taken as the holder: its process id and start.
    held: std::sync::Mutex<Option<(u32, u64)>>,
    /// What the newest survey found; the same is not logged again while nobody is there to follow.
    surveyed: std::sync::Mutex<Option<Survey>>,
}

impl Hands {
    /// Must be called within a tokio runtime.
    pub(crate) fn new(options: HandsOptions) -> Hands {
        let (orders, given) = mpsc::unbounded_channel();
        let follower = Follower::new(FollowerOptions {
            me: options.me,
            name: options.name.clone(),
            cluster: options.cluster,
            incarnation: options.incarnation,
            journal: options.journal.clone(),
            only_journal: false,
            clock: options.clock.clone(),
            bulk: options.bulk.clone(),
            standby: options.standby.clone(),
            events: options.events.clone(),
            fatal: options.fatal.clone(),
        });
        let hands = Hands {
            inner: Arc::new(Inner {
                options,
                source: watch::Sender::new(None),
                follower,
                orders,
                progress: watch::Sender::new(None),
                newest_receipt: watch::Sender::new(None),
                divergent_turn: Arc::default(),
                turn: Mutex::new(()),
                observed: Arc::default(),
                task_serial: AtomicU64::new(0),
                held: std::sync::Mutex::default(),
                surveyed: std::sync::Mutex::default(),
            }),
        };
        tokio::spawn(hands.clone().carry_out_orders(given));
        hands
    }

    fn options(&self) -> &HandsOptions {
        &self.inner.options
    }

    pub(crate) fn server(&self) -> &Server {
        &self.inner.options.server
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.inner.options.journal
    }

    /// The source, while this node holds.
    pub(crate) fn source(&self) -> watch::Receiver<Option<SourceHandle>> {
        self.inner.source.subscribe()
    }

    /// The receiving half, which follows while this node is passive.
    pub(crate) fn follower(&self) -> &Follower {
        &self.inner.follower
    }

    /// Progress of a long step.
    pub(crate) fn progress(&self) -> Option<Progress> {
        self.inner.progress.borrow().clone()
    }

    /// What the data directory here needs of the journal; `None` while that is not known, as before the
    /// first start on a fresh copy.
    pub(crate) async fn wal_needs(&self) -> Option<Vec<Need>> {
        let control = self.control().await.ok()?;
        let fresh = self.server().settings().data_dir.join("backup_label");
        if fresh.try_exists().unwrap_or(true) {
            return None;
        }
        self.own_what_was_adopted(control.redo_lsn);
        Some(vec![Need { who: "the standby's replay", from_lsn: control.redo_lsn }])
    }

    /// The slots of receivers that are attached.
    pub(crate) fn attached_slots(&self) -> BTreeSet<String> {
        let source = self.inner.source.borrow().clone();
        let receivers = source.map(|source| source.positions().borrow().receivers.clone());
        let attached = receivers.unwrap_or_default().into_iter().filter(|r| r.attached);
        attached.filter_map(|receiver| self.slot_of(receiver.node)).collect()
    }

    /// The name of a node's retention slot.
    fn slot_of(&self, node: NodeId) -> Option<String> {
        let name = (self.options().names)(node)?;
        Some(format!("{SLOT_PREFIX}{}", name.as_str().replace('-', "_")))
    }

    /// The newest loss receipt that is kept here.
    pub(crate) fn newest_receipt(&self) -> Option<ReceiptSummary> {
        self.inner.newest_receipt.borrow().clone()
    }

    /// Carries out a task. Cancel-safe in the sense of the module's documentation.
    pub(crate) async fn carry_out(&self, task: Task) -> Result<Completion, TaskFailure> {
        // A dropped predecessor has let go of the turn by the time that it is really gone.
        let _turn = self.inner.turn.lock().await;
        if touches_data(&task) {
            self.inner.task_serial.fetch_add(1, Ordering::Relaxed);
        }
        let result = match task {
            Task::ReadIndex => unreachable!("the driver asks the consensus itself"),
            Task::PrepareData => self.prepare_data().await,
            Task::Fence => self.fence().await,
            Task::Hold(grant) => self.hold(&grant).await,
            Task::LetClientsIn { .. } => self.let_clients_in().await,
            Task::Drain => self.drain().await,
            Task::PrepareSwitchover => self.prepare_switchover().await,
            Task::ShutClientsOut { grace } => self.shut_clients_out(grace).await,
            Task::StopCleanly { to, within } => self.stop_cleanly(to, within).await,
            Task::Seal(epoch) => self.seal(epoch).await,
            Task::CollectSeals { epoch, members, needed } => {
                self.collect_seals(epoch, &members, needed).await
            }
            Task::PromoteLocally { grant, target_lsn, peers } => {
                self.promote_locally(&grant, target_lsn, &peers).await
            }
            Task::Survey => self.survey().await,
            Task::Join { rung, keep_from, holder, history, epoch } => {
                self.join(rung, keep_from, holder, &history, epoch).await
            }
            Task::StopForRestart { within } => self.stop_for_restart(within).await,
            Task::RestartStandby { within } => self.restart_standby(within).await,
            Task::Reload => self.reload().await,
            Task::BeginJournalAnew(_) => {
                Err(transient_words("a data node begins its journal anew only with its data"))
            }
        };
        self.inner.progress.send_replace(None);
        result
    }

    async fn fence(&self) -> Result<Completion, TaskFailure> {
        self.stop_source().await;
        self.set_held(None);
        let _proof = self.server().fence().await.map_err(transient)?;
        Ok(Completion::Fenced)
    }

    /// Before a server may be writable: the guardian has confirmed until when.
    async fn guarded(&self) -> Result<(), TaskFailure> {
        match &self.options().guard {
            Some(guard) => guard.until_armed(GUARD_PATIENCE).await.map_err(transient),
            None => Ok(()),
        }
    }

    fn set_held(&self, server: Option<(u32, u64)>) {
        *self.inner.held.lock().unwrap_or_else(PoisonError::into_inner) = server;
    }

    fn held(&self) -> Option<(u32, u64)> {
        *self.inner.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn stop_source(&self) {
        let source = self.inner.source.send_replace(None);
        if let Some(source) = source {
            source.stop().await;
        }
    }

    fn report_progress(&self, what: &'static str, done_bytes: u64, total_bytes: u64) {
        let now = Instant::now();
        let before = self.inner.progress.borrow().clone().filter(|before| before.what == what);
        let began = before.as_ref().and_then(|before| before.began).unwrap_or(now);
        let mut logged = before.and_then(|before| before.logged);
        let seconds = now.duration_since(began).as_secs_f64();
        let bytes_per_second = if seconds > 0.0 { done_bytes as f64 / seconds } else { 0.0 };
        if logged.is_none_or(|at| now.duration_since(at) >= PROGRESS_LOG_INTERVAL) {
            logged = Some(now);
            let percent = (done_bytes * 100).checked_div(total_bytes);
            tracing::info!(what, done_bytes, total_bytes, ?percent, bytes_per_second, "progress");
        }
        let began = Some(began);
        let progress = Progress { what, done_bytes, total_bytes, bytes_per_second, began, logged };
        self.inner.progress.send_replace(Some(progress));
    }

    /// The command by which the server fetches WAL files from the journal; works without the daemon.
    fn restore_command(&self) -> Result<String, TaskFailure> {
        let program = std::env::current_exe().map_err(|error| {
            transient_words(&format!("find the path of this program for restore_command: {error}"))
        })?;
        let journal = self.options().data_dir.join("wal");
        let quoted = |path: &Path| shell_quote(&path.to_string_lossy()).replace('%', "%%");
        let program = quoted(&program);
        // A shell that cannot execute a program exits with 126 or 127, which PostgreSQL takes as a
        // reason to give up recovery altogether; "not found" only means that streaming is tried.
        Ok(format!(
            "if [ -x {program} ]; then {program} wal get --journal {} %f %p; else exit 1; fi",
            quoted(&journal)
        ))
    }

    fn lineage_recorded(&self) -> Vec<Lineage> {
        self.journal().lineage()
    }

    async fn system_id(&self) -> Option<SystemId> {
        match self.server().inspect().await {
            Ok(DataDirectory::Cluster(control)) => Some(control.system_id),
            Ok(_) | Err(_) => None,
        }
    }
}

/// After it the data directory may be another one, so it is looked at anew, with a program of
/// PostgreSQL's own; where it cannot be, that would only hold up the next step.
fn touches_data(task: &Task) -> bool {
    match task {
        Task::PrepareData
        | Task::Fence
        | Task::PromoteLocally { .. }
        | Task::Survey
        | Task::Join { .. } => true,
        Task::ReadIndex
        | Task::Hold(_)
        | Task::StopCleanly { .. }
        | Task::StopForRestart { .. }
        | Task::RestartStandby { .. }
        | Task::Reload
        | Task::LetClientsIn { .. }
        | Task::Drain
        | Task::PrepareSwitchover
        | Task::ShutClientsOut { .. }
        | Task::Seal(_)
        | Task::CollectSeals { .. }
        | Task::BeginJournalAnew(_) => false,
    }
}

/// Single quotes around a word for `sh`.
fn shell_quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The chain of an error, outermost first.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words.push_str(": ");
        words.push_str(&cause.to_string());
        source = cause.source();
    }
    words
}

pub(crate) fn transient(error: impl std::error::Error) -> TaskFailure {
    TaskFailure { words: chain(&error), suspect: false }
}

pub(crate) fn transient_words(words: &str) -> TaskFailure {
    TaskFailure { words: words.to_owned(), suspect: false }
}

fn suspect(error: impl std::error::Error) -> TaskFailure {
    TaskFailure { words: chain(&error), suspect: true }
}

/// Runs slow file work off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("file work does not panic and is not cancelled")
}
