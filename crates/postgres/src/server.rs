//! `Server`: a handle on the local instance. It looks, starts, stops and writes files; it never
//! decides whether it should.
//!
//! The postmaster is started directly and detached, so that it outlives the daemon; `running` takes
//! it up again. Nothing here holds state between calls: PGDATA and /proc are asked each time, and
//! calls that change something must not overlap (their one owner is the daemon's executor).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Gid, Signal, Uid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::access::{self, HbaMode};
use crate::binaries::Binaries;
use crate::connection;
use crate::control::{self, ControlData, ControlState, DataDirectory};
use crate::error::{Error, IoContext, Result};
use crate::os::{self, OsUser};
use crate::parameters::{STANDBY_PARAMETERS, ServerParameter};
use crate::process::{self, Running};
use crate::roles;
use crate::settings::{GateName, Settings, StartMode, command_line};

/// How often a condition is looked at while waiting for it.
pub(crate) const POLL: Duration = Duration::from_millis(20);
/// The same for a server that starts or stops, where one file is read and clients wait.
const SWITCH_POLL: Duration = Duration::from_millis(5);
/// How much of a log or of a tool's output goes into an error.
pub(crate) const TAIL_LINES: usize = 15;
/// How much of the log's end is read for it.
const TAIL_BYTES_MAX: u64 = 64 * 1024;
const MARKER: &str = "understudy.dirty";
const STANDBY_SIGNAL: &str = "standby.signal";

/// The local instance; cheap to clone.
#[derive(Clone, Debug)]
pub struct Server {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    binaries: Binaries,
    /// The operator's settings, as they were given last.
    parameters: Mutex<BTreeMap<String, String>>,
    /// The groups of the server's user, where this process is root and gives them.
    groups: Vec<Gid>,
    /// Who this process is, which peer authentication has to know beside the server's user.
    daemon: OsUser,
}

impl Server {
    /// A handle; touches nothing yet.
    ///
    /// # Errors
    /// When the daemon is neither root nor the server's user, or a setting cannot be used.
    pub fn new(settings: Settings, binaries: Binaries) -> Result<Server> {
        settings.check()?;
        let euid = rustix::process::geteuid().as_raw();
        let user = &settings.os_user;
        if euid != 0 && euid != user.uid {
            return Err(Error::WrongOsUser { user: user.name.clone(), uid: user.uid, euid });
        }
        if user.uid == 0 {
            let reason = "PostgreSQL refuses to run as root".to_owned();
            return Err(Error::Setting { name: "os_user", reason });
        }
        let daemon = OsUser::current()?;
        let parameters = Mutex::new(settings.parameters.clone());
        let groups = if euid == user.uid { Vec::new() } else { user.groups()? };
        Ok(Server { inner: Arc::new(Inner { settings, binaries, parameters, groups, daemon }) })
    }

    /// What it was made with.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// The programs in use.
    pub fn binaries(&self) -> &Binaries {
        &self.inner.binaries
    }

    /// The operator's settings, as they were given last.
    pub(crate) fn parameters(&self) -> BTreeMap<String, String> {
        self.inner.parameters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_parameters(&self, parameters: BTreeMap<String, String>) {
        *self.inner.parameters.lock().unwrap_or_else(PoisonError::into_inner) = parameters;
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.inner.settings.data_dir
    }

    /// Where PostgreSQL keeps its WAL.
    pub fn pg_wal_dir(&self) -> PathBuf {
        self.data_dir().join("pg_wal")
    }

    /// The last lines of the server's log.
    pub fn read_last_log_lines(&self, lines: usize) -> String {
        self.log_tail(0, lines)
    }

    /// The last lines of the log that were written from `offset` bytes on.
    fn log_tail(&self, offset: u64, lines: usize) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = fs::File::open(&self.settings().log_file)?;
            let end = file.metadata()?.len();
            file.seek(SeekFrom::Start(offset.max(end.saturating_sub(TAIL_BYTES_MAX)).min(end)))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        tail(&read().unwrap_or_default(), lines)
    }

    /// A command for one of PostgreSQL's programs, as its user, with messages in English. It ends
    /// when its handle is dropped.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.inner.binaries.program(program));
        command.env_clear().current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
        command.env("LC_ALL", "C");
        // The last two are for the postmaster: what its backends' standing with the kernel's OOM killer is
        // (the manual, 19.4.4), which would otherwise be the daemon's own.
        for name in ["PATH", "TZ", "HOME", "PG_OOM_ADJUST_FILE", "PG_OOM_ADJUST_VALUE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let user = &self.inner.settings.os_user;
        if rustix::process::geteuid().as_raw() != user.uid {
            become_user(&mut command, self.inner.groups.clone(), user);
        }
        command
    }

    /// Runs a program to its end and returns what it wrote to stdout.
    pub(crate) async fn run_tool<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
        input: &str,
    ) -> Result<String> {
        let failed = |action| {
            let path = self.inner.binaries.program(program);
            move |source| Error::Io { action, path, source }
        };
        let mut command = self.command(program);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(Stdio::piped());
        let mut child = command.spawn().map_err(failed("start"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read its input is no failure; its status tells.
            let _unread = stdin.write_all(input.as_bytes()).await;
        }
        let output = child.wait_with_output().await.map_err(failed("wait for"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Err(Error::Tool {
            program: program.to_owned(),
            status: output.status.to_string(),
            output: tail(&text, TAIL_LINES),
        })
    }

    /// What lies at PGDATA; changes nothing, and works while the server runs.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn inspect(&self) -> Result<DataDirectory> {
        let dir = self.data_dir();
        if let Some(what) = self.marker()? {
            return Ok(DataDirectory::Dirty { what });
        }
        let mut entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(DataDirectory::Missing),
            Err(error) if error.kind() == ErrorKind::NotADirectory => {
                return Ok(DataDirectory::NotACluster { what: "a file".to_owned() });
            }
            Err(error) => return Err(error).during("list", dir),
        };
        let Some(first) = entries.next() else { return Ok(DataDirectory::Empty) };
        let first = first.during("list", dir)?.file_name().to_string_lossy().into_owned();
        let Some(version) = os::read_if_present(&dir.join("PG_VERSION"))? else {
            let what = format!("no PG_VERSION beside {first:?}");
            return Ok(DataDirectory::NotACluster { what });
        };
        let found = String::from_utf8_lossy(&version).trim().to_owned();
        let wanted = self.inner.binaries.version().major;
        if found != wanted.to_string() {
            return Ok(DataDirectory::WrongVersion { found, wanted });
        }
        match self.run_tool("pg_controldata", [OsStr::new("-D"), dir.as_os_str()], "").await {
            Ok(output) => {
                let signal = dir.join(STANDBY_SIGNAL).exists();
                Ok(DataDirectory::Cluster(Box::new(control::parse(&output, signal)?)))
            }
            Err(Error::Tool { output, .. }) => Ok(DataDirectory::NotACluster { what: output }),
            Err(error) => Err(error),
        }
    }

    /// Makes a new cluster with checksums and the node's roles in a missing or empty PGDATA.
    ///
    /// # Errors
    /// When something lies there, or initdb fails.
    pub async fn init_db(&self) -> Result<()> {
        match self.inspect().await? {
            DataDirectory::Missing | DataDirectory::Empty => {}
            other => return Err(self.unusable(format!("not empty: {other:?}"))),
        }
        os::make_dir(self.data_dir(), 0o700, &self.settings().os_user)?;
        let data_dir = self.data_dir().as_os_str();
        let fixed = [
            "--data-checksums",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--auth-local=peer",
            "--auth-host=scram-sha-256",
            "--username=postgres",
            "-D",
        ];
        let arguments = fixed.iter().map(OsStr::new).chain([data_dir]);
        self.run_tool("initdb", arguments, "").await?;
        self.set_own()?;
        self.prepare_roles().await
    }

    /// Makes the node's roles in a stopped cluster, in single-user mode: nobody else can get in.
    /// Idempotent. It writes, so only where the cluster is founded or adopted as the first node's.
    ///
    /// # Errors
    /// When the server runs, or a statement fails.
    pub async fn prepare_roles(&self) -> Result<()> {
        let script = roles::creation();
        self.single_user("make the node's roles", &script).await
    }

    /// Runs statements, one a line, in single-user mode; crash recovery comes first where needed.
    /// `standby.signal` is out of the way meanwhile, since such a server refuses to start with it.
    pub(crate) async fn single_user(&self, action: &'static str, script: &str) -> Result<()> {
        self.must_be_stopped(action)?;
        self.refuse_dirty()?;
        let signal = self.remove_standby_signal()?;
        let data_dir = self.data_dir().as_os_str();
        // A name in the configuration would make each statement wait for a gate that is not there. And
        // the checkpoint after recovery must not remove the WAL that a rewind reads next.
        let fixed = [
            "-c",
            "wal_keep_size=1TB",
            "-c",
            "synchronous_standby_names=",
            "-c",
            "exit_on_error=on",
            "-c",
            "fsync=on",
            "-c",
            "archive_mode=off",
        ];
        let arguments = ["--single", "-D"].iter().map(OsStr::new).chain([data_dir]);
        let arguments =
            arguments.chain(fixed.iter().map(OsStr::new)).chain([OsStr::new("postgres")]);
        let outcome = self.run_tool("postgres", arguments, script).await;
        if signal {
            self.put_standby_signal()?;
        }
        outcome.map(drop)
    }

    pub(crate) fn unusable(&self, reason: String) -> Error {
        Error::DataDirectory { path: self.data_dir().to_owned(), reason }
    }

    pub(crate) fn must_be_stopped(&self, action: &'static str) -> Result<()> {
        match process::instance_processes(self.data_dir())?.keys().next() {
            Some(pid) => Err(Error::Running { action, pid: *pid }),
            None => Ok(()),
        }
    }

    /// The dirty marker's text, `None` when there is no marker.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn marker(&self) -> Result<Option<String>> {
        for path in self.marker_paths() {
            if let Some(text) = os::read_if_present(&path)? {
                return Ok(Some(String::from_utf8_lossy(&text).trim().to_owned()));
            }
        }
        Ok(None)
    }

    /// In PGDATA, where whoever comes by sees it; and outside, since `pg_rewind` removes from its
    /// target every file that the source does not have.
    fn marker_paths(&self) -> [PathBuf; 2] {
        [self.data_dir().join(MARKER), self.settings().state_dir.join(MARKER)]
    }

    pub(crate) fn refuse_dirty(&self) -> Result<()> {
        match self.marker()? {
            Some(what) => Err(self.unusable(format!("marked as incomplete: {what}"))),
            None => Ok(()),
        }
    }

    /// Marks PGDATA as incomplete, durably, before the first destructive byte (invariant I14).
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub fn set_marker(&self, what: &str) -> Result<()> {
        let user = &self.settings().os_user;
        self.make_state_dir()?;
        os::make_dir(self.data_dir(), 0o700, user)?;
        for path in self.marker_paths() {
            os::write_durably(&path, format!("{what}\n").as_bytes(), user)?;
        }
        Ok(())
    }

    pub(crate) fn make_state_dir(&self) -> Result<()> {
        os::make_dir(&self.settings().state_dir, 0o700, &self.inner.daemon)
    }

    /// Removes the marker, durably; only after the data was proven complete.
    ///
    /// # Errors
    /// When the removal cannot be made durable.
    pub fn clear_marker(&self) -> Result<()> {
        for path in self.marker_paths() {
            os::remove_durably(&path)?;
        }
        Ok(())
    }

    /// Puts `standby.signal` in place, durably: any start from here on comes up read-only.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub fn put_standby_signal(&self) -> Result<()> {
        let path = self.data_dir().join(STANDBY_SIGNAL);
        if path.exists() {
            return os::sync_dir(self.data_dir());
        }
        os::write_durably(&path, b"", &self.settings().os_user)
    }

    /// Removes `standby.signal`; true if it was there.
    ///
    /// # Errors
    /// When the removal cannot be made durable.
    pub fn remove_standby_signal(&self) -> Result<bool> {
        os::remove_durably(&self.data_dir().join(STANDBY_SIGNAL))
    }

    /// Writes our blocks of `pg_hba.conf` and `pg_ident.conf` and, if the server runs, has it read
    /// them. Sessions that exist are not touched (`terminate_clients`). The postmaster reads the
    /// files after the signal: connections of the next moment may still meet the old ones.
    ///
    /// # Errors
    /// When a file cannot be replaced or the server not be signalled.
    pub fn write_hba(&self, mode: HbaMode) -> Result<()> {
        let user = &self.settings().os_user;
        let mut names = vec![self.inner.daemon.name.as_str()];
        if user.name != self.inner.daemon.name {
            names.push(&user.name);
        }
        let hba = self.data_dir().join("pg_hba.conf");
        let ident = self.data_dir().join("pg_ident.conf");
        let rewrite = |path: &Path, change: &dyn Fn(&[u8]) -> Vec<u8>| -> Result<()> {
            let old = os::read_if_present(path)?;
            let new = change(old.as_deref().unwrap_or_default());
            if old.as_ref() == Some(&new) {
                return Ok(());
            }
            os::write_durably(path, &new, user)
        };
        rewrite(&ident, &|text| access::ident_with_block(text, &names))?;
        rewrite(&hba, &|text| access::hba_with_block(text, mode))?;
        if let Some(running) = self.running()? {
            process::signal_one(running.pid, running.start_time_ticks, Signal::HUP)?;
        }
        Ok(())
    }

    /// The postmaster of PGDATA if it lives, whoever started it.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn running(&self) -> Result<Option<Running>> {
        process::running(self.data_dir())
    }

    /// How many processes of the instance live, orphans of a dead postmaster included.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn processes(&self) -> Result<usize> {
        Ok(process::instance_processes(self.data_dir())?.len())
    }

    /// Starts the server and waits until it accepts the node's connections.
    ///
    /// As a primary, `standby.signal` is lifted for the start alone and put back whatever comes of
    /// it: a later start that is not ours comes up read-only.
    ///
    /// # Errors
    /// `StartFailed` with the last log lines when it ends; `StartTimeout` when it does not accept
    /// connections in time (a standby that has not reached consistency), and is left running.
    pub async fn start(
        &self,
        mode: &StartMode,
        gate: &GateName,
        hba: HbaMode,
        patience: Duration,
    ) -> Result<Running> {
        self.must_be_stopped("start PostgreSQL")?;
        let control = self.must_be_startable().await?;
        let user = &self.settings().os_user;
        os::make_dir(&self.settings().socket_dir, 0o755, user)?;
        os::make_dir(os::parent(&self.settings().log_file), 0o750, user)?;
        self.remove_unused_burned()?;
        self.write_hba(hba)?;
        self.write_parameters()?;
        let outcome = match mode {
            StartMode::Standby { .. } => {
                self.put_standby_signal()?;
                let raised = self.raised_for(&control, mode, gate).await?;
                self.launch(mode, gate, &raised, patience).await
            }
            StartMode::Primary => {
                self.remove_standby_signal()?;
                let outcome = self.launch(mode, gate, &[], patience).await;
                self.put_standby_signal()?;
                outcome
            }
        };
        outcome?;
        self.running()?.ok_or(Error::NotRunning { action: "take up the started server" })
    }

    async fn must_be_startable(&self) -> Result<Box<ControlData>> {
        let control = match self.inspect().await? {
            DataDirectory::Cluster(control) => control,
            other => return Err(self.unusable(format!("not a whole cluster: {other:?}"))),
        };
        if !self.data_dir().join("postgresql.conf").is_file() {
            return Err(self.unusable(
                "no postgresql.conf in it; move the configuration there (Debian keeps it in /etc)"
                    .to_owned(),
            ));
        }
        Ok(control)
    }

    /// What the standby would be started with too little of for the WAL that it has to replay: PostgreSQL
    /// would not start, or pause replay, or end at its promotion. It gets what its primary had.
    async fn raised_for(
        &self,
        control: &ControlData,
        mode: &StartMode,
        gate: &GateName,
    ) -> Result<Vec<(String, String)>> {
        let mut raised = Vec::new();
        for (name, needed) in STANDBY_PARAMETERS.into_iter().zip(control.standby_parameters) {
            let mut arguments = self.arguments(mode, gate, &[]);
            arguments.extend(["-C".into(), name.into()]);
            let said = self.run_tool("postgres", arguments, "").await?;
            let configured: u64 = said.trim().parse().map_err(|_| Error::Output {
                program: "postgres -C".to_owned(),
                reason: format!("{name:?} is {said:?}"),
            })?;
            if configured < needed {
                tracing::warn!(name, configured, needed, "a standby must not have less: raised");
                raised.push((name.to_owned(), needed.to_string()));
            }
        }
        Ok(raised)
    }

    /// The postmaster's arguments; what is `raised` comes last and counts.
    fn arguments(
        &self,
        mode: &StartMode,
        gate: &GateName,
        raised: &[(String, String)],
    ) -> Vec<OsString> {
        let mut arguments: Vec<OsString> =
            vec!["-D".into(), self.data_dir().into(), "-c".into(), self.config_file_argument()];
        let ours = command_line(self.settings(), &self.parameters(), mode, gate);
        for (name, value) in ours.iter().chain(raised) {
            arguments.extend(["-c".into(), format!("{name}={value}").into()]);
        }
        arguments
    }

    /// Of which parameters the standby that runs has less than it needs for the WAL that it replays.
    ///
    /// # Errors
    /// When the data directory cannot be looked at.
    pub async fn short_of(&self, running: &[ServerParameter]) -> Result<Vec<&'static str>> {
        let DataDirectory::Cluster(control) = self.inspect().await? else { return Ok(Vec::new()) };
        let needed = STANDBY_PARAMETERS.into_iter().zip(control.standby_parameters);
        let has = |name: &str| running.iter().find(|parameter| parameter.name == name);
        let short = needed.filter(|(name, needed)| {
            has(name).is_some_and(|p| p.running.parse::<u64>().is_ok_and(|has| has < *needed))
        });
        Ok(short.map(|(name, _)| name).collect())
    }

    /// Launches the postmaster and waits for it.
    async fn launch(
        &self,
        mode: &StartMode,
        gate: &GateName,
        raised: &[(String, String)],
        patience: Duration,
    ) -> Result<()> {
        let log = os::open_log(&self.settings().log_file, &self.settings().os_user)?;
        let log_offset = log.metadata().during("look at", &self.settings().log_file)?.len();
        let errors = log.try_clone().during("share", &self.settings().log_file)?;
        let mut command = self.command("postgres");
        command.args(self.arguments(mode, gate, raised));
        command.stdout(log).stderr(errors).kill_on_drop(false);
        in_own_session(&mut command);
        let program = self.inner.binaries.program("postgres");
        let mut child = command.spawn().during("start", &program)?;
        let outcome = self.wait_for_child(&mut child, log_offset, patience).await;
        // Only so that no zombie stays once it ends.
        tokio::spawn(async move { child.wait().await });
        outcome
    }

    async fn wait_for_child(
        &self,
        child: &mut Child,
        log_offset: u64,
        patience: Duration,
    ) -> Result<()> {
        let begun = Instant::now();
        let program = self.inner.binaries.program("postgres");
        loop {
            if let Some(status) = child.try_wait().during("wait for", &program)? {
                let log = self.log_tail(log_offset, TAIL_LINES);
                return Err(Error::StartFailed { status: status.to_string(), log });
            }
            let left = patience.saturating_sub(begun.elapsed());
            // A try before it says so would only start a process there that refuses, and fill its log.
            let ready = process::PidFile::read(self.data_dir())?
                .is_some_and(|file| Some(file.pid) == child.id() && file.says_ready());
            let last = if ready {
                match connection::open(self.settings(), left.max(POLL)).await {
                    Ok(session) => {
                        connection::close(session).await;
                        return Ok(());
                    }
                    Err(error) => connection::words(&error),
                }
            } else {
                "it is still starting: the log says how far recovery is".to_owned()
            };
            if left.is_zero() {
                let log = self.log_tail(log_offset, TAIL_LINES);
                return Err(Error::StartTimeout { waited: patience, last, log });
            }
            tokio::time::sleep(SWITCH_POLL).await;
        }
    }

    /// Stops it the fast way (sessions are ended, a shutdown checkpoint is written, and its WAL goes
    /// to whoever replicates, which is waited for).
    ///
    /// # Errors
    /// `StopTimeout` when something is left after `patience`: it goes on stopping.
    pub async fn stop_fast(&self, patience: Duration) -> Result<()> {
        self.stop(Signal::INT, patience).await
    }

    /// Stops it the immediate way: no checkpoint, nothing is waited for; recovery comes next time.
    ///
    /// # Errors
    /// `StopTimeout` when something is left after `patience`; `fence` goes further.
    pub async fn stop_immediate(&self, patience: Duration) -> Result<()> {
        self.stop(Signal::QUIT, patience).await
    }

    async fn stop(&self, signal: Signal, patience: Duration) -> Result<()> {
        if let Some(running) = self.running()? {
            process::signal_one(running.pid, running.start_time_ticks, signal)?;
        }
        let begun = Instant::now();
        loop {
            let over = begun.elapsed() >= patience;
            // The postmaster ends last; looking through all processes of the machine before that
            // would only take time from the stop.
            if over || self.running()?.is_none() {
                let left = process::instance_processes(self.data_dir())?.len();
                if left == 0 {
                    return Ok(());
                }
                if over {
                    return Err(Error::StopTimeout { waited: patience, left });
                }
            }
            tokio::time::sleep(SWITCH_POLL).await;
        }
    }

    /// True when the control file says that the server was stopped cleanly.
    ///
    /// # Errors
    /// When PGDATA is not a whole cluster.
    pub(crate) async fn cleanly_stopped(&self) -> Result<bool> {
        match self.inspect().await? {
            DataDirectory::Cluster(data) => {
                Ok(matches!(data.state, ControlState::ShutDown | ControlState::ShutDownInRecovery))
            }
            other => Err(self.unusable(format!("not a whole cluster: {other:?}"))),
        }
    }
}

/// Makes the command run as the user with all of its groups; the standard library would give it none but
/// the first.
#[allow(unsafe_code)]
fn become_user(command: &mut Command, groups: Vec<Gid>, user: &OsUser) {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; these are three system
    // calls on what was made before, and the child has this one thread.
    unsafe {
        command.pre_exec(move || {
            set_thread_groups(&groups)?;
            set_thread_gid(gid)?;
            set_thread_uid(uid).map_err(Into::into)
        });
    }
}

/// Makes the command the leader of a session of its own, so that neither the daemon's end nor a key
/// pressed in its terminal reaches PostgreSQL.
#[allow(unsafe_code)]
fn in_own_session(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; setsid is one system
    // call, allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into));
    }
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
