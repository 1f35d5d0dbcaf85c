//! One primary whose commits wait for a gate, a source, a gRPC server, and a receiver's journal.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::{Endpoint, Server as TonicServer};
use tonic::{Request, Response, Status, Streaming};
use understudy_line::Line;
use understudy_proto::v1;
use understudy_proto::v1::from_source::Message as Outgoing;
use understudy_proto::v1::wal_server::{Wal, WalServer};
use understudy_shipping::journal::{Journal, JournalOptions};
use understudy_shipping::permit_cell::PermitCell;
use understudy_shipping::receiver::{
    EmptyStart, Receiver, ReceiverHandle, ReceiverOptions, StandbyProgress,
};
use understudy_shipping::source::{
    Peer, Source, SourceHandle, SourceIdentity, SourceOptions, ToReceiver,
};
use understudy_types::{
    Admission, BootInstant, Clock, ClusterId, DurabilityMode, Epoch, Incarnation, Lsn, NodeId,
    Permit, PermitSerial, PromotionId, SegmentSize, SystemId, Timeline, TimelineHistory,
};
use uuid::Uuid;

use crate::postgres::{PORT, command, directory, owner, run, until};

pub(crate) const EPOCH: Epoch = Epoch { incarnation: 0, number: 1 };
const PROMOTION: PromotionId = PromotionId(Uuid::from_u128(11));

/// Whose WAL is written now.
#[derive(Clone)]
struct Reign {
    epoch: Epoch,
    promotion: PromotionId,
    history: TimelineHistory,
}
const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(12));

/// What a primary is made with.
#[derive(Clone, Copy, Default)]
pub(crate) struct Make {
    /// `initdb --wal-segsize`; PostgreSQL's own choice without it.
    pub(crate) segment_mib: Option<u32>,
    /// Beside the rig's own settings.
    pub(crate) settings: &'static [&'static str],
}

impl Make {
    fn size(self) -> SegmentSize {
        let bytes = self.segment_mib.map(|mib| SegmentSize::new(mib << 20).unwrap());
        bytes.unwrap_or(SegmentSize::DEFAULT)
    }
}

/// Boot time is what the daemon uses; for a test any clock that does not stop will do.
struct TestClock(Instant);

impl Clock for TestClock {
    fn now(&self) -> BootInstant {
        BootInstant::ZERO + self.0.elapsed() + Duration::from_secs(1)
    }
}

pub(crate) fn lsn(text: &str) -> Lsn {
    text.parse().unwrap_or(Lsn::ZERO)
}

pub(crate) struct Rig {
    pub(crate) cell: Arc<PermitCell>,
    clock: Arc<TestClock>,
    serial: AtomicU64,
    permit_ends: Mutex<Instant>,
    reign: Mutex<Reign>,
    pub(crate) journal: Journal,
    make: Make,
    standby: Mutex<watch::Receiver<StandbyProgress>>,
    start: Lsn,
    holder: Mutex<Option<Endpoint>>,
    primary: Mutex<Option<Primary>>,
    dir: tempfile::TempDir,
}

/// A running primary; stopped at once when dropped.
struct Primary(Child);

impl Drop for Primary {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        let _ = self.0.wait();
    }
}

/// A commit on its way.
pub(crate) struct Committed(Mutex<Child>);

impl Committed {
    /// Whether it has returned, well, after at most this long.
    pub(crate) async fn within(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.0.lock().unwrap().try_wait().unwrap() {
                assert!(status.success(), "the commit failed");
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Committed {
    fn drop(&mut self) {
        let mut child = self.0.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Rig {
    pub(crate) async fn new() -> Rig {
        Rig::with(Make::default()).await
    }

    pub(crate) async fn with(make: Make) -> Rig {
        let dir = directory();
        let mut initdb = command("initdb");
        initdb.arg("-D").arg(dir.path().join("primary"));
        initdb.args(["-A", "trust", "-U", "postgres", "-N"]);
        if let Some(mib) = make.segment_mib {
            initdb.arg(format!("--wal-segsize={mib}"));
        }
        run(&mut initdb);
        let clock = Arc::new(TestClock(Instant::now()));
        let journal =
            Journal::open(&dir.path().join("journal"), JournalOptions::default()).unwrap();
        let rig = Rig {
            cell: Arc::new(PermitCell::new(EPOCH)),
            clock,
            serial: AtomicU64::new(0),
            permit_ends: Mutex::new(Instant::now()),
            reign: Mutex::new(Reign {
                epoch: EPOCH,
                promotion: PROMOTION,
                history: TimelineHistory::root(Timeline::FIRST),
            }),
            journal,
            make,
            standby: Mutex::new(watch::Sender::new(StandbyProgress::default()).subscribe()),
            start: Lsn::ZERO,
            holder: Mutex::new(None),
            primary: Mutex::new(None),
            dir,
        };
        rig.start_primary().await;
        rig.sql("SET synchronous_commit=local; CREATE TABLE t (value int)");
        let start = lsn(&rig.sql("SELECT pg_current_wal_flush_lsn()"));
        Rig { start, ..rig }
    }

    async fn start_primary(&self) {
        let (uid, gid) = owner();
        let socket_dir = self.dir.path().join("run");
        std::fs::create_dir_all(&socket_dir).unwrap();
        std::os::unix::fs::chown(&socket_dir, Some(uid), Some(gid)).unwrap();
        let log = std::fs::File::create(self.dir.path().join("primary.log")).unwrap();
        let mut primary = command("postgres");
        primary.arg("-D").arg(self.dir.path().join("primary")).arg("-k").arg(&socket_dir);
        primary.args(["-p", &PORT.to_string()]);
        for setting in [
            "listen_addresses=",
            "fsync=off",
            "shared_buffers=16MB",
            "autovacuum=off",
            "synchronous_standby_names=gate7f",
        ] {
            primary.args(["-c", setting]);
        }
        for setting in self.make.settings {
            primary.args(["-c", setting]);
        }
        let child = primary.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        *self.primary.lock().unwrap() = Some(Primary(child));
        until("PostgreSQL answers", || self.psql("SELECT 1").output().unwrap().status.success())
            .await;
    }

    pub(crate) fn psql(&self, sql: &str) -> std::process::Command {
        let mut psql = command("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"]);
        psql.arg(self.dir.path().join("run")).args(["-p", &PORT.to_string(), "-c", sql]);
        psql
    }

    pub(crate) fn sql(&self, sql: &str) -> String {
        run(&mut self.psql(sql)).trim().to_owned()
    }

    pub(crate) fn commit(&self, sql: &str) -> Committed {
        let mut psql = self.psql(sql);
        Committed(Mutex::new(psql.stdout(Stdio::null()).spawn().unwrap()))
    }

    pub(crate) fn size(&self) -> SegmentSize {
        self.make.size()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the primary's socket is.
    pub(crate) fn socket_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// Ends the primary at once, with whatever it is doing.
    pub(crate) fn kill_primary(&self) {
        drop(self.primary.lock().unwrap().take());
    }

    fn system_id(&self) -> SystemId {
        self.sql("SELECT system_identifier FROM pg_control_system()").parse().unwrap()
    }

    fn reign(&self) -> Reign {
        self.reign.lock().unwrap().clone()
    }

    pub(crate) fn source(&self) -> SourceHandle {
        let reign = self.reign();
        let options = SourceOptions {
            socket_dir: self.dir.path().join("run"),
            port: PORT,
            user: "postgres".to_owned(),
            gate_name: "gate7f".to_owned(),
            identity: SourceIdentity {
                cluster: CLUSTER,
                system_id: self.system_id(),
                epoch: reign.epoch,
                promotion: reign.promotion,
                history: reign.history,
            },
            segment_size: self.size(),
            slot_prefix: "understudy_".to_owned(),
            assumed_since: self.clock.now(),
            journal: None,
        };
        let clock: Arc<dyn Clock> = Arc::<TestClock>::clone(&self.clock);
        Source::start(options, Arc::clone(&self.cell), clock).unwrap()
    }

    pub(crate) async fn serve(&self, source: &SourceHandle) {
        self.serve_by(Service::Source(source.clone())).await;
    }

    /// The same, over a line whose habits can be set.
    pub(crate) async fn serve_over_a_line(&self, source: &SourceHandle) -> Line {
        let address = self.serve_by(Service::Source(source.clone())).await;
        let line = Line::to(address).await.unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{}", line.address)).unwrap();
        *self.holder.lock().unwrap() = Some(endpoint);
        line
    }

    /// Writes about so many MiB of WAL, of the kind that tables make.
    pub(crate) fn write_wal(&self, mebibytes: u32) {
        let rows = mebibytes * 16_000;
        self.sql(&format!(
            "SET synchronous_commit=local; INSERT INTO t SELECT generate_series(1, {rows})"
        ));
    }

    /// A holder that attaches whoever comes, sends the primary's first bytes of WAL in frames of 8 KiB,
    /// and fails in the same breath; says where those bytes end.
    pub(crate) async fn serve_a_few_bytes_and_fail(&self) -> Lsn {
        let (frames_count, frame_bytes) = (7, 8192);
        let begin = self.start.align_down(self.size().bytes());
        let segment = understudy_types::WalSegment::containing(Timeline::FIRST, begin, self.size());
        let file = self.dir.path().join("primary/pg_wal").join(segment.file_name(self.size()));
        let wal = std::fs::read(file).unwrap();
        let reign = self.reign();
        let mut script = vec![Outgoing::Attached(v1::Attached {
            epoch: Some(reign.epoch.into()),
            promotion: reign.promotion.to_string(),
            system_id: self.system_id().0,
            segment_size_bytes: self.size().into(),
            timeline: 1,
            start_lsn: begin.0,
        })];
        for (index, data) in wal.chunks(frame_bytes).take(frames_count).enumerate() {
            script.push(Outgoing::Frame(v1::Frame {
                epoch: Some(reign.epoch.into()),
                timeline: 1,
                lsn: begin.0 + (index * frame_bytes) as u64,
                crc32c: crc32c::crc32c(data),
                data: data.to_vec().into(),
                raw_bytes: 0,
            }));
        }
        self.serve_by(Service::Script(script)).await;
        begin + (frames_count * frame_bytes) as u64
    }

    async fn serve_by(&self, service: Service) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = WalServer::new(service);
        tokio::spawn(TonicServer::builder().add_service(service).serve_with_incoming(incoming));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        *self.holder.lock().unwrap() = Some(endpoint);
        address
    }

    pub(crate) fn permit(&self, mode: DurabilityMode, waited_for: &[NodeId], ttl: Duration) {
        let deadline = self.clock.now() + ttl;
        *self.permit_ends.lock().unwrap() = Instant::now() + ttl;
        let permit = Permit {
            serial: PermitSerial(self.serial.fetch_add(1, Ordering::SeqCst) + 1),
            epoch: self.reign().epoch,
            promotion: self.reign().promotion,
            deadline,
            mode,
            waited_for: waited_for.to_vec(),
            quorums: Vec::new(),
            sole_survivor: false,
            credit: Lsn::MAX,
            exposure_max: None,
        };
        self.cell.set(permit).unwrap();
    }

    pub(crate) fn permit_ends(&self) -> Instant {
        *self.permit_ends.lock().unwrap()
    }

    pub(crate) fn receiver(&self) -> ReceiverHandle {
        self.receiver_of_epoch(self.reign().epoch.number)
    }

    pub(crate) fn receiver_of_epoch(&self, number: u64) -> ReceiverHandle {
        let serial = PermitSerial(self.serial.fetch_add(1, Ordering::SeqCst) + 1);
        let epoch = Epoch { incarnation: 0, number };
        let holder = self.holder.lock().unwrap().clone().unwrap();
        let options = ReceiverOptions {
            connect: Arc::new(move || holder.connect_lazy()),
            journal: self.journal.clone(),
            admission: Admission {
                serial,
                epoch,
                promotion: self.reign().promotion,
                timeline: self.reign().history.timeline,
            },
            lineage: Vec::new(),
            cluster: CLUSTER,
            system_id: None,
            node: NodeId(2),
            name: "south-1".parse().unwrap(),
            incarnation: Incarnation(Uuid::from_u128(13)),
            empty_start: Some(EmptyStart::At {
                timeline: Timeline::FIRST,
                lsn: self.start,
                segment_size: self.size(),
            }),
            only_journal: false,
            standby: self.standby.lock().unwrap().clone(),
        };
        Receiver::start(options, Arc::<TestClock>::clone(&self.clock)).unwrap()
    }

    /// From now on receivers report where this standby stands.
    pub(crate) fn report(&self, standby: watch::Receiver<StandbyProgress>) {
        *self.standby.lock().unwrap() = standby;
    }

    pub(crate) async fn end(&self, mut receiver: ReceiverHandle) {
        receiver.stop();
        receiver.ended().await;
    }

    pub(crate) fn durable_lsn(&self) -> Lsn {
        let positions = self.journal.positions();
        positions.borrow().as_ref().map_or(Lsn::ZERO, |positions| positions.durable_lsn)
    }

    pub(crate) async fn caught_up(&self) {
        let flush_lsn = lsn(&self.sql("SELECT pg_current_wal_flush_lsn()"));
        until("the journal has it all", || self.durable_lsn() >= flush_lsn).await;
    }

    /// What a failing test prints.
    pub(crate) fn state(&self, source: &SourceHandle, receiver: &ReceiverHandle) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("primary.log")).unwrap_or_default();
        format!(
            "{:?}\n{:?}\n{:?}\n{:?}\n{log}",
            source.positions().borrow(),
            receiver.status().borrow(),
            self.journal.positions().borrow(),
            self.cell.status(),
        )
    }

    /// The timeline of the journal's end.
    pub(crate) fn journal_timeline(&self) -> u32 {
        let positions = self.journal.positions();
        positions.borrow().as_ref().map_or(0, |positions| positions.timeline.get())
    }

    /// The first segment of the journal that differs from the primary's, as far as it is durable.
    pub(crate) fn compare_with_primary(&self) -> Option<String> {
        let history = self.reign().history;
        let durable = self.durable_lsn();
        let mut compared = 0;
        let mut at = self.start.align_down(self.size().bytes());
        while at < durable {
            let segment =
                understudy_types::WalSegment::containing(Timeline::FIRST, at, self.size());
            // A segment is named for the timeline of its last byte.
            let last = Lsn(segment.end(self.size()).0 - 1);
            let timeline = history.timeline_at(last);
            let segment = understudy_types::WalSegment { timeline, ..segment };
            let name = segment.file_name(self.size());
            let theirs = self.dir.path().join("primary/pg_wal").join(&name);
            let theirs = std::fs::read(theirs).unwrap();
            let length = usize::try_from(durable.bytes_since(at).min(self.size().bytes())).unwrap();
            let mut reader = self.journal.reader(timeline, at).unwrap();
            let mut ours = Vec::new();
            while ours.len() < length {
                match reader.read(length - ours.len()).unwrap() {
                    understudy_shipping::journal::ReadOutcome::Data { bytes, .. } => {
                        ours.extend_from_slice(&bytes);
                    }
                    _ => return Some(format!("{name} ends after {} bytes", ours.len())),
                }
            }
            if ours[..length] != theirs[..length] {
                return Some(name);
            }
            compared += 1;
            at = segment.end(self.size());
        }
        assert!(compared > 0, "nothing was compared");
        None
    }

    /// Keeps a copy of the primary as it is now.
    pub(crate) async fn copy_primary(&self) {
        drop(self.primary.lock().unwrap().take());
        let dir = self.dir.path();
        run(command("cp").arg("-a").arg(dir.join("primary")).arg(dir.join("copy")));
        self.start_primary().await;
    }

    /// Restarts the primary as a standby and promotes it: a new epoch on a new timeline.
    pub(crate) async fn promote(&self) {
        drop(self.primary.lock().unwrap().take());
        let data = self.dir.path().join("primary");
        std::fs::write(data.join("standby.signal"), "").unwrap();
        self.start_primary().await;
        assert_eq!(self.sql("SELECT pg_promote()"), "t");
        let timeline = Timeline::FIRST.next();
        let raw = std::fs::read_to_string(data.join("pg_wal/00000002.history")).unwrap();
        let reign = Reign {
            epoch: EPOCH.next(),
            promotion: PromotionId(Uuid::from_u128(21)),
            history: TimelineHistory::parse(timeline, &raw).unwrap(),
        };
        self.cell.close();
        self.cell.reopen(reign.epoch).unwrap();
        *self.reign.lock().unwrap() = reign;
    }

    /// Replaces the primary by its copy, which goes another way from there.
    pub(crate) async fn diverge(&self) {
        drop(self.primary.lock().unwrap().take());
        let dir = self.dir.path();
        std::fs::rename(dir.join("primary"), dir.join("before")).unwrap();
        std::fs::rename(dir.join("copy"), dir.join("primary")).unwrap();
        self.start_primary().await;
        let held = self.durable_lsn();
        let fill = "SET synchronous_commit=local; INSERT INTO t SELECT generate_series(1, 2000)";
        while lsn(&self.sql("SELECT pg_current_wal_flush_lsn()")) <= held {
            self.sql(fill);
        }
    }
}

enum Service {
    Source(SourceHandle),
    /// What is sent, before an error.
    Script(Vec<Outgoing>),
}

#[tonic::async_trait]
impl Wal for Service {
    type StreamStream = ToReceiver;
    type TunnelStream =
        Pin<Box<dyn Stream<Item = Result<v1::TunnelChunk, Status>> + Send + 'static>>;
    type FetchTailStream = Pin<Box<dyn Stream<Item = Result<v1::Frame, Status>> + Send + 'static>>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::ToSource>>,
    ) -> Result<Response<ToReceiver>, Status> {
        let source = match self {
            Service::Source(source) => source,
            Service::Script(script) => {
                let (sender, answer) = tokio::sync::mpsc::channel(script.len() + 1);
                for message in script.clone() {
                    let message = v1::FromSource { message: Some(message) };
                    sender.try_send(Ok(message)).unwrap();
                }
                sender.try_send(Err(Status::unavailable("the holder is lost"))).unwrap();
                return Ok(Response::new(ToReceiver::new(answer)));
            }
        };
        let peer = Peer { node: NodeId(2), name: "south-1".parse().unwrap() };
        Ok(Response::new(source.attach(request.into_inner(), peer)))
    }

    async fn tunnel(
        &self,
        _: Request<Streaming<v1::TunnelChunk>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn seal(
        &self,
        _: Request<v1::SealRequest>,
    ) -> Result<Response<v1::SealResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn fetch_tail(
        &self,
        _: Request<v1::FetchTailRequest>,
    ) -> Result<Response<Self::FetchTailStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}
