//! The two ends of Understudy's WAL path, each a process: what it costs there can be told apart.
//!
//! They are the daemon's own parts without its consensus: the source with its gate behind a permit that
//! is renewed as a lease would be, and the receiver with journal and walsender. A side ends when its
//! standard input does, so that none outlives the benchmark.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver as Lines, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::Stream;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing_subscriber::filter::LevelFilter;
use understudy_proto::v1;
use understudy_proto::v1::wal_server::{Wal, WalServer};
use understudy_shipping::journal::{Journal, JournalOptions};
use understudy_shipping::permit_cell::PermitCell;
use understudy_shipping::receiver::{EmptyStart, Receiver, ReceiverOptions, StandbyProgress};
use understudy_shipping::relay::{Relay, RelayOptions};
use understudy_shipping::source::{Peer, Source, SourceHandle, SourceIdentity, SourceOptions};
use understudy_transport::{ChannelOptions, ListenOptions, Listener, TlsIdentity};
use understudy_types::{
    Admission, BootInstant, Clock, ClusterId, DurabilityMode, Epoch, Incarnation, Lsn, NodeId,
    NodeName, Permit, PermitSerial, PromotionId, SegmentSize, SystemId, Timeline, TimelineHistory,
};
use uuid::Uuid;

/// Who sends.
pub(super) const SENDER: &str = "north";
/// Who receives: its name in certificates, and that of its standby at the walsender.
pub(super) const RECEIVER: &str = "south";
const RECEIVER_ID: NodeId = NodeId(2);
pub(super) const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(0xBE7C));
const EPOCH: Epoch = Epoch { incarnation: 0, number: 1 };
const PROMOTION: PromotionId = PromotionId(Uuid::from_u128(0xBE7D));
/// A permit's life and renewal, about as the default timings of a cluster have them.
const PERMIT_LIFE: Duration = Duration::from_secs(2);
const PERMIT_RENEWAL: Duration = Duration::from_millis(100);
/// The ceiling of `bounded`.
const EXPOSURE_MAX: Duration = Duration::from_secs(3600);
/// As many as the daemon's.
const WORKERS: usize = 4;
/// Said when a side is ready for what comes next.
const READY: &str = "ready";

/// Where certificates are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Papers {
    pub(super) ca: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Papers {
    fn load(&self) -> Result<TlsIdentity> {
        Ok(TlsIdentity::load(&self.ca, &self.certificate, &self.key)?)
    }
}

/// What the sending side is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SourceTask {
    pub(super) papers: Papers,
    pub(super) listen: SocketAddr,
    pub(super) socket_dir: PathBuf,
    pub(super) port: u16,
    pub(super) gate_name: String,
    pub(super) system_id: u64,
    pub(super) mode: DurabilityMode,
}

/// What the receiving side is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ReceiverTask {
    pub(super) papers: Papers,
    pub(super) holder: SocketAddr,
    pub(super) system_id: u64,
    /// A directory that does not exist yet.
    pub(super) journal: PathBuf,
    pub(super) start: Lsn,
    pub(super) socket_dir: PathBuf,
    pub(super) relay_port: u16,
    pub(super) server_version: String,
    pub(super) standby_uid: u32,
}

/// `CLOCK_BOOTTIME`, as the daemon's.
struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> BootInstant {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        BootInstant::ZERO + Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
}

struct Service(SourceHandle);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Wal for Service {
    type StreamStream = Answers<v1::FromSource>;
    type TunnelStream = Answers<v1::TunnelChunk>;
    type FetchTailStream = Answers<v1::Frame>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::ToSource>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let name = understudy_transport::require_any_node(&request)?.clone();
        let peer = Peer { node: RECEIVER_ID, name };
        Ok(Response::new(Box::pin(self.0.attach(request.into_inner(), peer))))
    }

    async fn tunnel(
        &self,
        _: Request<Streaming<v1::TunnelChunk>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        Err(Status::unimplemented("a benchmark of WAL has no tunnel"))
    }

    async fn seal(
        &self,
        _: Request<v1::SealRequest>,
    ) -> Result<Response<v1::SealResponse>, Status> {
        Err(Status::unimplemented("a benchmark of WAL promotes nobody"))
    }

    async fn fetch_tail(
        &self,
        _: Request<v1::FetchTailRequest>,
    ) -> Result<Response<Self::FetchTailStream>, Status> {
        Err(Status::unimplemented("a benchmark of WAL promotes nobody"))
    }
}

/// The body of the sending side's process.
pub(crate) fn source(task: &str) -> Result<()> {
    let task: SourceTask = serde_json::from_str(task).context("read the task")?;
    side(async move {
        let identity = task.papers.load()?;
        let options = SourceOptions {
            socket_dir: task.socket_dir,
            port: task.port,
            user: "postgres".to_owned(),
            gate_name: task.gate_name,
            identity: SourceIdentity {
                cluster: CLUSTER,
                system_id: SystemId(task.system_id),
                epoch: EPOCH,
                promotion: PROMOTION,
                history: TimelineHistory::root(Timeline::FIRST),
            },
            segment_size: SegmentSize::DEFAULT,
            slot_prefix: "understudy_".to_owned(),
            assumed_since: BootClock.now(),
            journal: None,
        };
        let cell = Arc::new(PermitCell::new(EPOCH));
        let source = Source::start(options, Arc::clone(&cell), Arc::new(BootClock))?;
        tokio::spawn(renew(cell, task.mode));
        let listener = Listener::bind(task.listen, &identity, ListenOptions::default()).await?;
        let serving = understudy_transport::server()
            .add_service(WalServer::new(Service(source.clone())))
            .serve_with_incoming(listener.incoming());
        tokio::spawn(serving);
        let mut positions = source.positions();
        positions.wait_for(|positions| positions.gate_connected).await?;
        say(READY)?;
        until_told().await;
        source.stop().await;
        Ok(())
    })
}

/// Renews the permit as the core would under a lease that is renewed.
async fn renew(cell: Arc<PermitCell>, mode: DurabilityMode) {
    let mut ticks = tokio::time::interval(PERMIT_RENEWAL);
    for serial in 1.. {
        ticks.tick().await;
        let permit = Permit {
            serial: PermitSerial(serial),
            epoch: EPOCH,
            promotion: PROMOTION,
            deadline: BootClock.now() + PERMIT_LIFE,
            mode,
            waited_for: vec![RECEIVER_ID],
            quorums: Vec::new(),
            sole_survivor: false,
            credit: Lsn::MAX,
            exposure_max: (mode == DurabilityMode::Bounded).then_some(EXPOSURE_MAX),
        };
        if cell.set(permit).is_err() {
            return;
        }
    }
}

/// The body of the receiving side's process.
pub(crate) fn receiver(task: &str) -> Result<()> {
    let task: ReceiverTask = serde_json::from_str(task).context("read the task")?;
    side(async move {
        let identity = task.papers.load()?;
        let (holder, bulk) = (SENDER.parse::<NodeName>()?, ChannelOptions::bulk());
        let dialer =
            understudy_transport::dialer(&task.holder.to_string(), &holder, &identity, &bulk)?;
        let journal = Journal::open(&task.journal, JournalOptions::default())?;
        let uids = vec![rustix::process::geteuid().as_raw(), task.standby_uid];
        let relay = RelayOptions {
            port: task.relay_port,
            ..RelayOptions::new(task.socket_dir, uids, task.server_version, RECEIVER.to_owned())
        };
        let relay = Relay::bind(relay, journal.clone())?;
        let standby = StandbyProgress::of_relay(relay.positions());
        let shutdown = CancellationToken::new();
        tokio::spawn(relay.run(shutdown.clone()));
        let options = ReceiverOptions {
            connect: Arc::new(move || dialer.channel()),
            journal: journal.clone(),
            admission: Admission {
                serial: PermitSerial(1),
                epoch: EPOCH,
                promotion: PROMOTION,
                timeline: Timeline::FIRST,
            },
            lineage: Vec::new(),
            cluster: CLUSTER,
            system_id: Some(SystemId(task.system_id)),
            node: RECEIVER_ID,
            name: RECEIVER.parse()?,
            incarnation: Incarnation(Uuid::from_u128(0xBE7E)),
            empty_start: Some(EmptyStart::At {
                timeline: Timeline::FIRST,
                lsn: task.start,
                segment_size: SegmentSize::DEFAULT,
            }),
            only_journal: false,
            standby,
        };
        let mut running = Receiver::start(options, Arc::new(BootClock))?;
        let told = async {
            say(READY)?;
            report(&journal).await
        };
        tokio::select! {
            said = told => said?,
            end = running.ended() => bail!("the receiver ended: {end:?}"),
            () = until_told() => {}
        }
        shutdown.cancel();
        Ok(())
    })
}

/// How often the durable end is reported.
const REPORT: Duration = Duration::from_millis(10);

/// Says how far the journal is durable, whenever that has changed.
async fn report(journal: &Journal) -> Result<()> {
    let mut positions = journal.positions();
    loop {
        let durable = positions.borrow_and_update().as_ref().map(|now| now.durable_lsn);
        if let Some(lsn) = durable {
            say(&lsn.to_string())?;
        }
        tokio::time::sleep(REPORT).await;
        positions.changed().await?;
    }
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("speak to the benchmark")
}

/// Until standard input ends.
async fn until_told() {
    let read = || std::io::stdin().lock().read_to_end(&mut Vec::new());
    // However reading ends, whoever would have told us is gone.
    let _ = tokio::task::spawn_blocking(read).await;
}

fn side(work: impl Future<Output = Result<()>>) -> Result<()> {
    understudy_shipping::memory::keep_freed_memory();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(LevelFilter::WARN).init();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    let ended = runtime.block_on(work);
    // The thread that waits on standard input cannot be called back.
    runtime.shutdown_background();
    ended
}

/// A side that runs, seen from the benchmark.
pub(super) struct Side {
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines<String>,
    name: &'static str,
}

/// For a side to be ready, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

impl Side {
    pub(super) fn source(task: &SourceTask) -> Result<Side> {
        Side::start("source", task)
    }

    pub(super) fn receiver(task: &ReceiverTask) -> Result<Side> {
        Side::start("receiver", task)
    }

    fn start<T: Serialize>(name: &'static str, task: &T) -> Result<Side> {
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.arg(name).arg(serde_json::to_string(task)?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start the {name}"))?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("a side without output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let side = Side { child, input, lines, name };
        let said = side.line(Instant::now() + PATIENCE)?;
        anyhow::ensure!(said == READY, "the {name} said {said:?} before it was ready");
        Ok(side)
    }

    fn line(&self, until: Instant) -> Result<String> {
        match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!("the {} says nothing", self.name),
            Err(RecvTimeoutError::Disconnected) => bail!("the {} has ended", self.name),
        }
    }

    /// Waits until the receiver says that everything up to `lsn` is durable.
    ///
    /// # Errors
    /// When it ends, or is silent for half a minute.
    pub(super) fn durable(&self, lsn: Lsn) -> Result<()> {
        loop {
            let said = self.line(Instant::now() + PATIENCE)?;
            let position: Lsn = said.parse().with_context(|| format!("read position {said:?}"))?;
            if position >= lsn {
                return Ok(());
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        drop(self.input.take());
        let until = Instant::now() + PATIENCE;
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if Instant::now() > until {
                // It was asked and does not go.
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
