//! Starts writers and prober, tells what they achieve, and stops them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::endpoint::{Credentials, Endpoint, Locator, Writable};
use crate::pulse::{Outage, Pulse};
use crate::recorder::Recorder;
use crate::tenants::PROBE_TENANT;
use crate::writer::{Shared, Writer, lock, probe};

/// How a workload writes.
#[derive(Clone, Debug)]
pub struct WorkloadOptions {
    /// Both sites' servers; the first one is tried first.
    pub endpoints: Vec<Endpoint>,
    /// The applications' role.
    pub credentials: Credentials,
    /// Tenants 1 to this number are written to; their databases exist.
    pub tenants_count: u32,
    /// Tasks that write, besides the prober. Each keeps at most ten connections.
    pub writers_count: u32,
    /// What all writers together aim at, the prober not counted.
    pub writes_per_second: u32,
    /// Between two tries of the prober.
    pub probe_interval: Duration,
    /// For opening a connection, login included.
    pub connect_timeout: Duration,
    /// After which a write is given up as unknown and its connection closed. The server may still
    /// hold its session, so a short time-out against a server that stalls eats up its connections.
    pub statement_timeout: Duration,
    /// Writes that are remembered at most; writing stops there.
    pub ledger_capacity_count: usize,
}

impl WorkloadOptions {
    /// Usual values for these servers: 6 writers, 300 writes/s, a probe each 15 ms.
    pub fn new(
        endpoints: Vec<Endpoint>,
        credentials: Credentials,
        tenants_count: u32,
    ) -> WorkloadOptions {
        WorkloadOptions {
            endpoints,
            credentials,
            tenants_count,
            writers_count: 6,
            writes_per_second: 300,
            probe_interval: Duration::from_millis(15),
            connect_timeout: Duration::from_millis(750),
            statement_timeout: Duration::from_secs(10),
            ledger_capacity_count: 2_000_000,
        }
    }
}

/// One step of [`Stats::history`].
pub const HISTORY_STEP: Duration = Duration::from_millis(250);
/// Steps that are kept: one minute.
const HISTORY_STEPS_MAX: usize = 240;

/// What the workload achieves, several times a second.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Since the workload began.
    pub at: Duration,
    /// Confirmed writes.
    pub acknowledged_count: u64,
    /// Certainly refused ones.
    pub failed_count: u64,
    /// Without a certain outcome.
    pub unknown_count: u64,
    /// Confirmed ones during the last second.
    pub writes_per_second: f64,
    /// Since the last confirmation to anybody; `None` before the first one.
    pub last_acknowledged_ago: Option<Duration>,
    /// Where writes go; `None` while nobody takes them.
    pub writable: Option<Writable>,
    /// Confirmed writes in each [`HISTORY_STEP`], oldest first, one minute at most.
    pub history: Vec<u64>,
    /// What each fault did to the prober so far.
    pub outages: Vec<Outage>,
}

/// A workload that runs. Dropping it stops it, without waiting for what is under way.
pub struct Workload {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    ticker: JoinHandle<()>,
    stop: watch::Sender<bool>,
    stats: watch::Receiver<Stats>,
}

/// What a workload leaves behind: its ledger, and the prober's gaps.
pub struct Recorded {
    shared: Arc<Shared>,
    /// The prober's acknowledgements and the faults.
    pub pulse: Pulse,
}

impl Recorded {
    /// The ledger of every write.
    pub fn recorder(&self) -> &Recorder {
        &self.shared.recorder
    }
}

impl Workload {
    /// Starts to write. The tenants' databases have been made (`prepare_tenants`).
    ///
    /// # Panics
    /// If there is no tenant, no writer, no endpoint, or the rate is zero.
    pub fn start(options: WorkloadOptions) -> Workload {
        let WorkloadOptions { tenants_count, writers_count, writes_per_second, .. } = options;
        assert!(tenants_count > 0 && writers_count > 0 && writes_per_second > 0);
        assert!(!options.endpoints.is_empty(), "a workload needs a server");
        let locator = Locator::new(options.endpoints, options.credentials, options.connect_timeout);
        let shared = Arc::new(Shared {
            recorder: Recorder::new(options.ledger_capacity_count),
            locator,
            pulse: std::sync::Mutex::new(Pulse::default()),
            statement_timeout: options.statement_timeout,
        });
        let stop = watch::Sender::new(false);
        let writers_count = writers_count.min(tenants_count);
        let interval =
            Duration::from_secs_f64(f64::from(writers_count) / f64::from(writes_per_second));
        let mut tasks = Vec::new();
        for writer in 0..writers_count {
            let own = |tenant: &u32| tenant % writers_count == writer;
            let tenants = (1..=tenants_count).filter(own).collect();
            let writer = Writer::new(shared.clone(), tenants, interval, stop.subscribe());
            tasks.push(tokio::spawn(writer.run()));
        }
        let prober = probe(shared.clone(), PROBE_TENANT, options.probe_interval, stop.subscribe());
        tasks.push(tokio::spawn(prober));
        let (sender, stats) = watch::channel(Stats::default());
        let ticker = tokio::spawn(tick(shared.clone(), sender));
        Workload { shared, tasks, ticker, stop, stats }
    }

    /// What is achieved, several times a second.
    pub fn stats(&self) -> watch::Receiver<Stats> {
        self.stats.clone()
    }

    /// The servers, in the order that [`Writable::index`] counts.
    pub fn endpoints(&self) -> &[Endpoint] {
        self.shared.locator.endpoints()
    }

    /// Time since the workload began.
    pub fn now(&self) -> Duration {
        self.shared.recorder.now()
    }

    /// Notes that a fault is being caused now; call it just before causing it.
    pub fn fault(&self) -> Duration {
        let at = self.now();
        lock(&self.shared.pulse).fault(at);
        at
    }

    /// Lets every writer finish what it is at, for at most the statement time-out and a second, and
    /// hands over the ledger. What is under way even then stays unknown.
    pub async fn stop(mut self) -> Recorded {
        self.stop.send_replace(true);
        let deadline = tokio::time::Instant::now() + self.shared.statement_timeout;
        let deadline = deadline + Duration::from_secs(1);
        for task in &mut self.tasks {
            if tokio::time::timeout_at(deadline, &mut *task).await.is_err() {
                task.abort();
            }
        }
        let pulse = lock(&self.shared.pulse).clone();
        Recorded { shared: self.shared.clone(), pulse }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.ticker.abort();
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn tick(shared: Arc<Shared>, sender: watch::Sender<Stats>) {
    let mut ticks = tokio::time::interval(HISTORY_STEP);
    let mut history = VecDeque::with_capacity(HISTORY_STEPS_MAX + 1);
    let mut before = 0;
    loop {
        ticks.tick().await;
        let (acknowledged_count, failed_count, unknown_count) = shared.recorder.counts();
        history.push_back(acknowledged_count - before);
        before = acknowledged_count;
        if history.len() > HISTORY_STEPS_MAX {
            history.pop_front();
        }
        let last_second: u64 = history.iter().rev().take(4).sum();
        let at = shared.recorder.now();
        let last = shared.recorder.last_acknowledged_at();
        let outages = lock(&shared.pulse).outages();
        sender.send_replace(Stats {
            at,
            acknowledged_count,
            failed_count,
            unknown_count,
            writes_per_second: last_second as f64,
            last_acknowledged_ago: last.map(|last| at.saturating_sub(last)),
            writable: *shared.locator.subscribe().borrow(),
            history: history.iter().copied().collect(),
            outages,
        });
    }
}
