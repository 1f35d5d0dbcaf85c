//! The table's stage, on real servers: made, started and stopped as a node does it, with a gate that is
//! a replication connection of the test's own.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use understudy_postgres::{
    Binaries, ControlState, CopySource, DataDirectory, GateName, HbaMode, OsUser, ROLE_REPLICATION,
    Server, Settings, StartMode,
};
use understudy_shipping::replication::{
    ConnectOptions, ReplicationClient, ReplicationEvent, Started, StatusSender, WalStream,
};
use understudy_types::{Lsn, Timeline};

use super::{Commit, Rewound, Runs, Site, Stage, Told};

const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);
const PORT: u16 = 5432;

/// A client's `psql`, which runs one statement.
struct Begun {
    at: Site,
    backend: i32,
    psql: Option<Child>,
    said: Option<Output>,
    /// The end of the WAL before it was begun, and when it waited.
    before: Lsn,
    through: Lsn,
}

struct Gate {
    sender: StatusSender,
    /// The end of what has come.
    received: Arc<AtomicU64>,
    reader: JoinHandle<()>,
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

struct Place {
    server: Server,
    gate: Option<Gate>,
    /// A postmaster that was not started the node's way.
    restartable: Option<Child>,
    dir: tempfile::TempDir,
}

pub(super) struct Real {
    runtime: Runtime,
    sites: [Place; 2],
    commits: Vec<Begun>,
}

fn gate_name() -> GateName {
    "gate_table".parse().expect("it is a name")
}

fn os_user() -> OsUser {
    let me = OsUser::current().expect("find this process' user");
    if me.uid == 0 { OsUser::lookup("postgres").expect("find the user postgres") } else { me }
}

fn as_os_user(command: &mut Command) {
    let user = os_user();
    if rustix::process::geteuid().as_raw() != user.uid {
        command.uid(user.uid).gid(user.gid);
    }
}

impl Place {
    fn new(name: &str) -> Place {
        let dir = tempfile::Builder::new().prefix("understudy-table-").tempdir();
        let dir = dir.expect("make a directory");
        let wide = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(dir.path(), wide).expect("let the server's user in");
        let user = os_user();
        std::os::unix::fs::chown(dir.path(), Some(user.uid), Some(user.gid))
            .expect("give the directory to the server's user");
        let settings = Settings {
            data_dir: dir.path().join("data"),
            state_dir: dir.path().join("state"),
            port: PORT,
            listen_addresses: String::new(),
            socket_dir: dir.path().join("socket"),
            os_user: user,
            log_file: dir.path().join("log/postgres.log"),
            parameters: [("shared_buffers", "16MB"), ("autovacuum", "off")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            node_name: name.to_owned(),
        };
        let binaries = Binaries::find(None, None).expect("find PostgreSQL");
        let server = Server::new(settings, binaries).expect("check the settings");
        Place { server, gate: None, restartable: None, dir }
    }

    fn socket_dir(&self) -> PathBuf {
        self.server.settings().socket_dir.clone()
    }

    fn psql(&self, sql: &str) -> Command {
        let mut command = Command::new(self.server.binaries().program("psql"));
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h"]).arg(self.socket_dir());
        command.args(["-p", &PORT.to_string(), "-U", "postgres", "-d", "postgres", "-c", sql]);
        command.current_dir("/").env("LC_ALL", "C");
        as_os_user(&mut command);
        command
    }

    /// What the query gives; nothing it does waits for the gate. `None` where nobody answers.
    fn try_ask(&self, sql: &str) -> Option<String> {
        let mut psql = self.psql(sql);
        let output = psql.env("PGOPTIONS", "-c synchronous_commit=local").output();
        let output = output.expect("run psql");
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    }

    fn ask(&self, sql: &str) -> String {
        self.try_ask(sql).unwrap_or_else(|| panic!("nobody answers {sql:?}"))
    }

    fn flush_lsn(&self) -> Lsn {
        self.ask("SELECT pg_current_wal_flush_lsn()").parse().expect("an LSN")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let server = self.server.clone();
        let ended = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("make a runtime").block_on(server.fence()).map(|_| ())
        });
        if let Ok(Err(error)) = ended.join() {
            eprintln!("{}: {error}", self.dir.path().display());
        }
        if let Some(mut postmaster) = self.restartable.take() {
            let _reaped = postmaster.wait();
        }
    }
}

fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} until {what}");
        std::thread::sleep(POLL);
    }
}

/// Takes what comes; only the test answers.
async fn read(mut stream: WalStream, received: Arc<AtomicU64>) {
    while let Ok(event) = stream.recv().await {
        match event {
            ReplicationEvent::WalData { start_lsn, data, .. } => {
                received.store(start_lsn.0 + data.len() as u64, Ordering::Relaxed);
            }
            ReplicationEvent::Keepalive { .. } => {}
            ReplicationEvent::TimelineEnd { .. } => break,
        }
    }
}

impl Real {
    pub(super) fn begin() -> Real {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.expect("make a runtime");
        let sites = [Place::new("north"), Place::new("south")];
        let mut stage = Real { runtime, sites, commits: Vec::new() };
        let north = stage.sites[0].server.clone();
        stage.runtime.block_on(north.init_db()).expect("make a cluster");
        stage.start_primary(Site::North);
        stage.sites[0].ask("CREATE TABLE t (n int)");
        stage.gate_connects(Site::North);
        stage
    }

    fn at(&self, site: Site) -> &Place {
        &self.sites[site as usize]
    }

    fn start(&mut self, at: Site, mode: &StartMode) {
        let server = self.at(at).server.clone();
        let gate = gate_name();
        let started = server.start(mode, &gate, HbaMode::Open, PATIENCE);
        self.runtime.block_on(started).expect("start the server");
    }

    fn standby_of(&self, other: Site) -> StartMode {
        StartMode::Standby {
            primary_conninfo: format!(
                "host={} port={PORT} user={ROLE_REPLICATION} application_name=standby",
                self.at(other).socket_dir().display()
            ),
            restore_command: None,
        }
    }

    fn source(&self, at: Site) -> CopySource {
        CopySource { socket_dir: self.at(at).socket_dir(), port: PORT }
    }

    fn control(&self, at: Site) -> understudy_postgres::ControlData {
        match self.runtime.block_on(self.at(at).server.inspect()).expect("look at the data") {
            DataDirectory::Cluster(control) => *control,
            other => panic!("{other:?}"),
        }
    }

    fn confirm(&mut self, at: Site, upto: Lsn) {
        let place = &self.sites[at as usize];
        let gate = place.gate.as_ref().expect("no gate is connected");
        let sent = gate.sender.send_status(upto, upto, upto, false);
        self.runtime.block_on(sent).expect("tell the walsender");
        let seen = || -> Option<()> {
            let sql = format!(
                "SELECT flush_lsn >= '{upto}' FROM pg_stat_replication WHERE application_name = '{}'",
                gate_name()
            );
            // A server that stops answers nobody; that it ends is waited for elsewhere.
            place.try_ask(&sql).is_none_or(|seen| seen == "t").then_some(())
        };
        until("the walsender has read it", seen);
        // It releases after it has told its position; each client's end is the sign.
        let over = |commit: &&mut Begun| commit.at == at && commit.through <= upto;
        self.commits.iter_mut().filter(over).filter(|c| c.said.is_none()).for_each(reap);
    }

    fn has_ended(&self, at: Site) {
        let server = &self.at(at).server;
        let count = || server.processes().expect("count its processes");
        until("the server has ended", || (count() == 0).then_some(()));
    }

    fn kill(backend: i32) {
        let pid = rustix::process::Pid::from_raw(backend).expect("a process' number");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill it");
        let process = PathBuf::from(format!("/proc/{backend}"));
        until("the postmaster has seen its end", || (!process.exists()).then_some(()));
    }
}

/// The backend waits for the gate; `None` where nobody answers.
fn waits(place: &Place, backend: i32) -> Option<bool> {
    let sql = format!(
        "SELECT coalesce(bool_or(wait_event = 'SyncRep'), false) FROM pg_stat_activity WHERE pid = {backend}"
    );
    place.try_ask(&sql).map(|answer| answer == "t")
}

/// Waits for the client's end and keeps what it said.
fn reap(commit: &mut Begun) {
    let mut psql = commit.psql.take().expect("it is reaped once");
    let status = until("the client's end", || psql.try_wait().expect("look at psql"));
    let mut stderr = Vec::new();
    let mut pipe = psql.stderr.take().expect("it was asked for");
    pipe.read_to_end(&mut stderr).expect("read what psql said");
    commit.said = Some(Output { status, stdout: Vec::new(), stderr });
}

impl Stage for Real {
    fn commit(&mut self, at: Site) -> Commit {
        let number = self.commits.len();
        let place = self.at(at);
        let before = place.flush_lsn();
        let name = format!("client_{number}");
        let mut psql = place.psql(&format!("INSERT INTO t VALUES ({number})"));
        psql.env("PGAPPNAME", &name).stdin(Stdio::null()).stdout(Stdio::null());
        let psql = psql.stderr(Stdio::piped()).spawn().expect("run psql");
        let sql = format!(
            "SELECT pid FROM pg_stat_activity WHERE application_name = '{name}' AND wait_event = 'SyncRep'"
        );
        let backend = until("the commit waits", || place.ask(&sql).parse().ok());
        let through = place.flush_lsn();
        let psql = Some(psql);
        self.commits.push(Begun { at, backend, psql, said: None, before, through });
        Commit(number)
    }

    fn told(&mut self, of: Commit) -> Told {
        let commit = &mut self.commits[of.0];
        if commit.said.is_none() {
            if waits(&self.sites[commit.at as usize], commit.backend) == Some(true) {
                return Told::Waits;
            }
            reap(commit);
        }
        let said = commit.said.as_ref().expect("it was reaped");
        let words = String::from_utf8_lossy(&said.stderr);
        match said.status.success() {
            true if words.contains("canceling wait for synchronous replication") => {
                Told::CommittedHereOnly
            }
            true => Told::Acknowledged,
            false => Told::Nothing,
        }
    }

    fn shows(&mut self, at: Site, what: Commit) -> bool {
        let sql = format!("SELECT count(*) FROM t WHERE n = {}", what.0);
        self.at(at).ask(&sql) == "1"
    }

    fn confirm_through(&mut self, commit: Commit) {
        let Begun { at, through, .. } = self.commits[commit.0];
        self.confirm(at, through);
    }

    fn confirm_before(&mut self, commit: Commit) {
        let Begun { at, before, through, .. } = self.commits[commit.0];
        self.confirm(at, before);
        self.confirm(at, Lsn(through.0 - 1));
    }

    fn confirm_all(&mut self, at: Site) {
        if self.runs(at) != Runs::Stopping {
            let end = self.at(at).flush_lsn();
            return self.confirm(at, end);
        }
        let last = self.control(at).checkpoint_lsn;
        let gate = self.at(at).gate.as_ref().expect("no gate is connected");
        let received = || Lsn(gate.received.load(Ordering::Relaxed));
        let end = until("the last record has come", || Some(received()).filter(|end| *end > last));
        self.confirm(at, end);
        self.has_ended(at);
    }

    fn gate_connects(&mut self, at: Site) {
        let options = ConnectOptions {
            socket_dir: self.at(at).socket_dir(),
            port: PORT,
            user: ROLE_REPLICATION.to_owned(),
            application_name: gate_name().to_string(),
            answer_timeout: PATIENCE,
        };
        let gate = self.runtime.block_on(async {
            let mut client = ReplicationClient::connect(&options).await.expect("connect");
            let identity = client.identify_system().await.expect("ask who it is");
            let started =
                client.start_replication(None, identity.flush_lsn, identity.timeline).await;
            match started.expect("begin to stream") {
                Started::Streaming(stream, sender) => {
                    let received = Arc::new(AtomicU64::new(0));
                    let reader = tokio::spawn(read(stream, received.clone()));
                    Gate { sender, received, reader }
                }
                other => panic!("{other:?}"),
            }
        });
        self.sites[at as usize].gate = Some(gate);
        let sql = format!(
            "SELECT count(*) FROM pg_stat_replication WHERE application_name = '{}' AND state = 'streaming'",
            gate_name()
        );
        until("the gate streams", || (self.at(at).ask(&sql) == "1").then_some(()));
    }

    fn gate_goes(&mut self, at: Site) {
        let gate = self.sites[at as usize].gate.take().expect("no gate is connected");
        drop(gate);
        let sql = format!(
            "SELECT count(*) FROM pg_stat_replication WHERE application_name = '{}'",
            gate_name()
        );
        until("the gate is gone", || (self.at(at).ask(&sql) == "0").then_some(()));
    }

    fn cancel(&mut self, commit: Commit) {
        let Begun { at, backend, .. } = self.commits[commit.0];
        assert_eq!(self.at(at).ask(&format!("SELECT pg_cancel_backend({backend})")), "t");
        reap(&mut self.commits[commit.0]);
    }

    fn end_session(&mut self, commit: Commit) {
        let Begun { at, backend, .. } = self.commits[commit.0];
        assert_eq!(self.at(at).ask(&format!("SELECT pg_terminate_backend({backend})")), "t");
        reap(&mut self.commits[commit.0]);
    }

    fn crash(&mut self, at: Site) {
        let server = self.at(at).server.clone();
        let _proof = self.runtime.block_on(server.fence()).expect("kill every process");
        self.sites[at as usize].gate = None;
    }

    fn kill_backend_of(&mut self, commit: Commit) {
        let Begun { at, backend, .. } = self.commits[commit.0];
        Real::kill(backend);
        self.sites[at as usize].gate = None;
        reap(&mut self.commits[commit.0]);
        if self.at(at).restartable.is_some() {
            let recovering = "SELECT pg_is_in_recovery()";
            let place = self.at(at);
            until("it is up again", || (place.try_ask(recovering)? == "t").then_some(()));
        } else {
            self.has_ended(at);
        }
    }

    fn start_restartable_primary(&mut self, at: Site) {
        let server = self.at(at).server.clone();
        server.remove_standby_signal().expect("remove standby.signal");
        let mut postmaster = Command::new(server.binaries().program("postgres"));
        postmaster.arg("-D").arg(&server.settings().data_dir).current_dir("/");
        for setting in [
            format!("unix_socket_directories={}", server.settings().socket_dir.display()),
            format!("port={PORT}"),
            "listen_addresses=".to_owned(),
            "shared_buffers=16MB".to_owned(),
            "restart_after_crash=on".to_owned(),
            format!("synchronous_standby_names=\"{}\"", gate_name()),
        ] {
            postmaster.arg("-c").arg(setting);
        }
        as_os_user(&mut postmaster);
        let postmaster = postmaster.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.sites[at as usize].restartable = Some(postmaster.expect("start the server"));
        let place = self.at(at);
        until("it accepts writes", || {
            (place.try_ask("SELECT pg_is_in_recovery()")? == "f").then_some(())
        });
        server.put_standby_signal().expect("put standby.signal back");
    }

    fn start_primary(&mut self, at: Site) {
        self.start(at, &StartMode::Primary);
    }

    fn start_standby(&mut self, at: Site) {
        let other = if at == Site::North { Site::South } else { Site::North };
        let mode = self.standby_of(other);
        self.start(at, &mode);
    }

    fn runs(&mut self, at: Site) -> Runs {
        let place = self.at(at);
        let processes = place.server.processes().expect("count its processes");
        if processes == 0 {
            return Runs::Not;
        }
        match place.try_ask("SELECT pg_is_in_recovery()").as_deref() {
            Some("t") => Runs::Standby,
            Some(_) => Runs::Primary,
            None if self.control(at).state == ControlState::ShutDown => Runs::Stopping,
            None => panic!("{processes} processes run, and nobody answers"),
        }
    }

    fn stop_fast(&mut self, at: Site) {
        let place = self.at(at);
        let running = place.server.running().expect("find the postmaster").expect("it runs");
        let pid = rustix::process::Pid::from_raw(running.pid as i32).expect("a process' number");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("order the stop");
        until("the last record is written", || {
            (self.control(at).state == ControlState::ShutDown).then_some(())
        });
        if self.at(at).gate.is_none() {
            self.has_ended(at);
        }
    }

    fn checkpoint(&mut self, at: Site) {
        let server = self.at(at).server.clone();
        self.runtime.block_on(server.checkpoint(PATIENCE)).expect("write a checkpoint");
    }

    fn copy(&mut self, from: Site, to: Site) {
        let (source, server) = (self.source(from), self.at(to).server.clone());
        let copied = self.runtime.block_on(server.base_backup(&source, &mut |_| {}));
        copied.expect("make a base backup");
    }

    fn stream(&mut self, from: Site, to: Site) {
        let upto = self.at(from).flush_lsn();
        let place = self.at(to);
        until("the standby has replayed it", || {
            let replayed = place.ask("SELECT pg_last_wal_replay_lsn()");
            replayed.parse::<Lsn>().is_ok_and(|lsn| lsn >= upto).then_some(())
        });
    }

    fn promote(&mut self, at: Site, to: Timeline) {
        let server = self.at(at).server.clone();
        let promoted = self.runtime.block_on(server.promote(to, PATIENCE)).expect("promote");
        assert_eq!(promoted.timeline, to);
    }

    fn timeline(&mut self, at: Site) -> Timeline {
        let sql = "SELECT CASE WHEN pg_is_in_recovery() \
                   THEN (SELECT received_tli FROM pg_stat_wal_receiver) \
                   ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END";
        let number: u32 = self.at(at).ask(sql).parse().expect("a timeline's number");
        Timeline::new(number).expect("timelines begin at one")
    }

    fn checkpoint_timeline(&mut self, at: Site) -> Timeline {
        self.control(at).timeline
    }

    fn rewind(&mut self, from: Site, target: Site) -> Rewound {
        let (source, server) = (self.source(from), self.at(target).server.clone());
        let rewound = self.runtime.block_on(server.rewind(&source, None, &mut |_| {}));
        match rewound.expect("rewind") {
            understudy_postgres::Rewound::Done => Rewound::Done,
            understudy_postgres::Rewound::NotNeeded => Rewound::NotNeeded,
            understudy_postgres::Rewound::Refused { output } => panic!("refused: {output}"),
        }
    }
}
