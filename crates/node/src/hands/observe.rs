//! Looks at the own machine, regularly and after every task, and tells the core.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use understudy_core::node::{DataView, LocalView, PostgresFacts, PostgresView};
use understudy_postgres::{
    DataDirectory, GateName, Observation, Probe, Running, Server, ServerParameter,
};
use understudy_types::BootInstant;

use super::Hands;
use crate::journal_node::journal_view;

/// How long one question to the server may take before it counts as unanswered.
const PROBE_PATIENCE: Duration = Duration::from_millis(1000);
/// The data directory is looked at again after this while no server runs on it.
const INSPECT_INTERVAL: Duration = Duration::from_secs(2);

/// A new session is asked for this often, and may take this long. The first is in the background: what
/// it waits for must not keep the regular look.
const KNOCK_INTERVAL: Duration = Duration::from_secs(1);
const KNOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Its settings are asked for this often, in the background too.
const PARAMETERS_INTERVAL: Duration = Duration::from_secs(2);

/// The gate's walsender may owe an answer for this long.
const GATE_PATIENCE: Duration = Duration::from_secs(3);

/// Watches one postmaster beside the regular look: its end is noticed at once, and whether it still lets
/// sessions in is asked all the time.
struct Watcher {
    /// Nanoseconds since boot.
    door_answered_at: Arc<AtomicU64>,
    parameters: watch::Receiver<Vec<ServerParameter>>,
    /// Replay is paused, as the regular look has seen.
    paused: Arc<AtomicBool>,
    /// It is because of a parameter.
    short: Arc<AtomicBool>,
    tasks: [JoinHandle<()>; 3],
}

impl Watcher {
    fn start(hands: &Hands, running: &Running) -> Watcher {
        let door_answered_at = Arc::new(AtomicU64::new(hands.options().clock.now().0));
        let (answered, door) = (door_answered_at.clone(), hands.clone());
        let knocking = tokio::spawn(async move {
            let mut every = tokio::time::interval(KNOCK_INTERVAL);
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                every.tick().await;
                match door.server().knock(KNOCK_PATIENCE).await {
                    Ok(()) => answered.store(door.options().clock.now().0, Ordering::Relaxed),
                    Err(error) => tracing::debug!(
                        error = super::chain(&error),
                        "the server lets no session in"
                    ),
                }
            }
        });
        let (asked, parameters) = watch::channel(Vec::new());
        let server = hands.server().clone();
        let (paused, short) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (is_paused, is_short) = (paused.clone(), short.clone());
        let asking = tokio::spawn(async move {
            loop {
                match server.server_parameters().await {
                    Ok(found) => {
                        if is_paused.load(Ordering::Relaxed) {
                            is_short.store(lacks(&server, &found).await, Ordering::Relaxed);
                        }
                        asked.send_replace(found);
                    }
                    Err(error) => tracing::debug!(
                        error = super::chain(&error),
                        "the server does not tell its settings"
                    ),
                }
                tokio::time::sleep(PARAMETERS_INTERVAL).await;
            }
        });
        let (hands, running) = (hands.clone(), running.clone());
        let waiting = tokio::spawn(async move {
            match hands.server().ended(&running).await {
                Ok(()) => {
                    let left = hands.server().processes().unwrap_or(0);
                    tracing::info!(pid = running.pid, left, "the postmaster has ended");
                }
                // The regular look tells too, only later.
                Err(error) => tracing::warn!(
                    error = super::chain(&error),
                    "cannot wait for the postmaster's end"
                ),
            }
            hands.wish_look();
        });
        Watcher { door_answered_at, parameters, paused, short, tasks: [knocking, asking, waiting] }
    }

    /// Zero while the last attempt is not overdue.
    fn door_silent_for(&self, now: BootInstant) -> Duration {
        let answered_at = BootInstant(self.door_answered_at.load(Ordering::Relaxed));
        let silent = now.since(answered_at);
        if silent < KNOCK_INTERVAL + KNOCK_PATIENCE { Duration::ZERO } else { silent }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Sees the machine through the hands' handles; keeps one session to the server open.
pub(crate) struct Observer {
    hands: Hands,
    probe: Option<(Running, Probe, Watcher)>,
    answered_at: BootInstant,
    facts: PostgresFacts,
    data: DataView,
    inspected_at: Option<BootInstant>,
    inspected_task: u64,
    /// How often to look, in milliseconds; the driver shortens it while it waits for replay.
    interval_ms: Arc<AtomicU64>,
    /// The last full answer, for status.
    pub(crate) seen: Option<Observation>,
}

impl Observer {
    pub(crate) fn new(hands: Hands, interval_ms: Arc<AtomicU64>) -> Observer {
        Observer {
            hands,
            probe: None,
            answered_at: BootInstant::ZERO,
            facts: PostgresFacts::default(),
            data: DataView::Unknown,
            inspected_at: None,
            inspected_task: 0,
            interval_ms,
            seen: None,
        }
    }

    /// Waits for the next regular look, or for somebody's wish for one.
    pub(crate) async fn wait(&self) {
        let interval = Duration::from_millis(self.interval_ms.load(Ordering::Relaxed));
        let wish = self.hands.inner.observed.clone();
        // Either is a reason to look; which one it was does not matter.
        let _ = tokio::time::timeout(interval, wish.notified()).await;
    }

    /// What the server that runs has said of its settings last; nothing until it has.
    pub(crate) fn parameters(&self) -> Vec<ServerParameter> {
        let watcher = self.probe.as_ref().map(|(_, _, watcher)| watcher);
        watcher.map(|watcher| watcher.parameters.borrow().clone()).unwrap_or_default()
    }

    /// Looks.
    pub(crate) async fn look(&mut self) -> LocalView {
        let now = self.hands.options().clock.now();
        let postgres = self.postgres(now).await;
        self.inspect_if_due(now, &postgres).await;
        LocalView { data: self.data.clone(), postgres, journal: journal_view(self.hands.journal()) }
    }

    async fn postgres(&mut self, now: BootInstant) -> PostgresView {
        let running = match self.hands.server().running() {
            Ok(Some(running)) => running,
            Ok(None) => {
                self.probe = None;
                self.seen = None;
                return PostgresView::Stopped;
            }
            Err(error) => {
                tracing::warn!(error = super::chain(&error), "cannot look for the server");
                return PostgresView::Unknown;
            }
        };
        let same = |known: &Running| {
            (known.pid, known.start_time_ticks) == (running.pid, running.start_time_ticks)
        };
        if !self.probe.as_ref().is_some_and(|(known, _, _)| same(known)) {
            let gate = running.gate_name.clone().unwrap_or_else(nobody);
            let probe = Probe::new(self.hands.server(), gate, PROBE_PATIENCE);
            let watcher = Watcher::start(&self.hands, &running);
            self.probe = Some((running, probe, watcher));
            self.answered_at = now;
            self.facts = PostgresFacts::default();
            self.seen = None;
        }
        let Some((known, probe, watcher)) = &mut self.probe else { return PostgresView::Unknown };
        match probe.probe().await {
            Ok(seen) => {
                self.answered_at = self.hands.options().clock.now();
                self.facts = facts(&seen, self.hands.gate_backend_pid());
                let paused = seen.in_recovery && seen.replay_paused;
                // At once: who is short of a parameter must not be promoted.
                if paused && !watcher.paused.swap(paused, Ordering::Relaxed) {
                    let server = self.hands.server();
                    let short = match server.server_parameters().await {
                        Ok(running) => lacks(server, &running).await,
                        Err(_) => false, // the background asks again
                    };
                    watcher.short.store(short, Ordering::Relaxed);
                }
                watcher.paused.store(paused, Ordering::Relaxed);
                let short = paused && watcher.short.load(Ordering::Relaxed);
                self.facts.short_of_parameters = short;
                self.seen = Some(seen);
            }
            Err(error) => {
                tracing::debug!(error = super::chain(&error), "the server does not answer");
            }
        }
        let silent_for = self.hands.options().clock.now().since(self.answered_at);
        let silent_for = if silent_for < PROBE_PATIENCE { Duration::ZERO } else { silent_for };
        let door_silent_for = watcher.door_silent_for(self.hands.options().clock.now());
        // A walsender that stands still confirms nothing and keeps its place: it is as bad as a door that
        // lets nobody in, and only another start of the server gets rid of it.
        let gate_silent_for = self.hands.gate_silent_for();
        let door_silent_for = if gate_silent_for >= GATE_PATIENCE {
            tracing::warn!(?gate_silent_for, "the gate's walsender does not answer");
            door_silent_for.max(gate_silent_for)
        } else {
            door_silent_for
        };
        let foreign_server =
            self.hands.held().is_some_and(|held| held != (known.pid, known.start_time_ticks));
        let not_ours = known.gate_name.is_none();
        let facts = self.facts.clone();
        PostgresView::Running(PostgresFacts {
            silent_for,
            door_silent_for,
            foreign_server,
            not_ours,
            ..facts
        })
    }

    /// The control file is read by a program of its own, so not at every look.
    async fn inspect_if_due(&mut self, now: BootInstant, postgres: &PostgresView) {
        let task = self.hands.inner.task_serial.load(Ordering::Relaxed);
        let settled = matches!(self.data, DataView::Cluster { .. })
            && matches!(postgres, PostgresView::Running(_));
        let recent = self.inspected_at.is_some_and(|at| now.since(at) < INSPECT_INTERVAL);
        if task == self.inspected_task && (settled || recent) {
            return;
        }
        self.inspected_task = task;
        self.inspected_at = Some(now);
        self.data = match self.hands.server().inspect().await {
            Ok(DataDirectory::Missing | DataDirectory::Empty) => DataView::Empty,
            Ok(DataDirectory::Cluster(control)) => {
                DataView::Cluster { system_id: control.system_id, timeline: control.timeline }
            }
            // Not whole: the survey tells more, and the ladder mends it.
            Ok(other) => DataView::Unusable(unusable(&other)),
            Err(error) => DataView::Unusable(super::chain(&error)),
        };
    }
}

impl Hands {
    /// Asks for a look as soon as possible.
    pub(crate) fn wish_look(&self) {
        self.inner.observed.notify_one();
    }

    fn gate_backend_pid(&self) -> Option<u32> {
        self.inner.source.borrow().as_ref().and_then(|source| source.gate_backend_pid())
    }

    fn gate_silent_for(&self) -> Duration {
        let source = self.inner.source.borrow();
        source.as_ref().map_or(Duration::ZERO, |source| source.gate_silent_for())
    }
}

fn facts(seen: &Observation, own_gate: Option<u32>) -> PostgresFacts {
    // While our own connection is not up yet, nobody's row can be told from ours.
    let foreign = own_gate.is_some_and(|own| seen.gate_rows.iter().any(|r| r.walsender_pid != own));
    PostgresFacts {
        silent_for: Duration::ZERO,
        door_silent_for: Duration::ZERO,
        in_recovery: Some(seen.in_recovery),
        timeline: seen.timeline,
        flush_lsn: seen.flush_lsn,
        replay_lsn: seen.replay_lsn,
        foreign_server: false,
        foreign_gate: foreign,
        not_ours: false,
        short_of_parameters: false,
    }
}

/// Whether replay is paused for want of a parameter, not by a person.
async fn lacks(server: &Server, running: &[ServerParameter]) -> bool {
    match server.short_of(running).await {
        Ok(names) => {
            if !names.is_empty() {
                tracing::warn!(
                    ?names,
                    "replay is paused: the primary has more of these parameters"
                );
            }
            !names.is_empty()
        }
        Err(error) => {
            tracing::warn!(
                error = super::chain(&error),
                "why replay is paused cannot be looked at"
            );
            false
        }
    }
}

/// A name that no connection bears.
fn nobody() -> GateName {
    "gate_unknown".parse().expect("a gate's name")
}

/// Why a data directory cannot be used, and what to do about it.
pub(super) fn unusable(directory: &DataDirectory) -> String {
    match directory {
        DataDirectory::Missing | DataDirectory::Empty => "the data directory is empty".to_owned(),
        DataDirectory::NotACluster { what } => format!(
            "the data directory holds something that is not a PostgreSQL cluster ({what}); move it \
             away or set postgres.data_directory to another place"
        ),
        DataDirectory::WrongVersion { found, wanted } => format!(
            "the data directory belongs to PostgreSQL {found}, the programs are of {wanted}; set \
             postgres.bin_dir to those of {found}, or move the directory away"
        ),
        DataDirectory::Dirty { what } => format!("the data directory is incomplete: {what}"),
        DataDirectory::Cluster(_) => "the data directory is a whole cluster".to_owned(),
    }
}
