//! Real servers for the tests: own directories, Unix sockets only, ended when the test ends.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use understudy_postgres::{
    Binaries, CopySource, GateName, HbaMode, OsUser, Running, Server, Settings, StartMode,
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const PORT: u16 = 5432;

/// The user that servers run as: we are root in CI, and PostgreSQL refuses that.
pub(crate) fn os_user() -> OsUser {
    let me = OsUser::current().unwrap();
    if me.uid == 0 { OsUser::lookup("postgres").unwrap() } else { me }
}

pub(crate) fn gate() -> GateName {
    "gate_7f3a".parse().unwrap()
}

pub(crate) struct Instance {
    pub(crate) server: Server,
    pub(crate) dir: tempfile::TempDir,
}

impl Instance {
    /// Nothing is made yet.
    pub(crate) fn new(name: &str) -> Instance {
        let dir = tempfile::Builder::new().prefix("understudy-pg-").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let settings = Settings {
            data_dir: dir.path().join("data"),
            state_dir: dir.path().join("state"),
            port: PORT,
            listen_addresses: String::new(),
            socket_dir: dir.path().join("socket"),
            os_user: os_user(),
            log_file: dir.path().join("log/postgres.log"),
            parameters: [("shared_buffers", "16MB"), ("autovacuum", "off")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            node_name: name.to_owned(),
        };
        if os_user().uid != rustix::process::geteuid().as_raw() {
            // The server's user makes entries beside PGDATA; only it and root may.
            let user = os_user();
            std::os::unix::fs::chown(dir.path(), Some(user.uid), Some(user.gid)).unwrap();
        }
        let binaries = Binaries::find(None, None).unwrap();
        Instance { server: Server::new(settings, binaries).unwrap(), dir }
    }

    /// A new cluster that runs as a primary and lets clients in.
    pub(crate) async fn primary(name: &str) -> Instance {
        let instance = Instance::new(name);
        instance.server.init_db().await.unwrap();
        instance.start_primary().await;
        instance
    }

    pub(crate) async fn start_primary(&self) -> Running {
        self.server.start(&StartMode::Primary, &gate(), HbaMode::Open, PATIENCE).await.unwrap()
    }

    pub(crate) async fn start_standby_of(&self, other: &Instance) -> Running {
        let mode = StartMode::Standby {
            primary_conninfo: format!(
                "host={} port={PORT} user=understudy_replication application_name=standby",
                other.socket_dir().display()
            ),
            restore_command: None,
        };
        self.server.start(&mode, &gate(), HbaMode::Open, PATIENCE).await.unwrap()
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.server.settings().data_dir
    }

    pub(crate) fn socket_dir(&self) -> PathBuf {
        self.server.settings().socket_dir.clone()
    }

    pub(crate) fn source(&self) -> CopySource {
        CopySource { socket_dir: self.socket_dir(), port: PORT }
    }

    fn psql_command(&self, user: &str, sql: &str) -> Command {
        let mut command = Command::new(self.server.binaries().program("psql"));
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h"]).arg(self.socket_dir());
        command.args(["-p", &PORT.to_string(), "-U", user, "-d", "postgres", "-c", sql]);
        // Nobody is the gate here: what is gated would wait for ever.
        command.env("PGOPTIONS", "-c synchronous_commit=local").current_dir("/");
        as_os_user(&mut command);
        command
    }

    pub(crate) fn try_psql(&self, user: &str, sql: &str) -> Output {
        self.psql_command(user, sql).output().unwrap()
    }

    /// Runs SQL as the operator's superuser and returns what it prints.
    pub(crate) fn psql(&self, sql: &str) -> String {
        let output = self.try_psql("postgres", sql);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{sql}: {error}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// A client that commits without end, whoever listens.
    pub(crate) fn busy_client(&self) -> Busy {
        self.client("DO $$ BEGIN LOOP INSERT INTO t VALUES (0); COMMIT; END LOOP; END $$")
    }

    /// A client that runs one statement.
    pub(crate) fn client(&self, sql: &str) -> Busy {
        let mut command = self.psql_command("postgres", sql);
        Busy(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let server = self.server.clone();
        let ended = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(server.fence())
        });
        if let Ok(Err(error)) = ended.join() {
            eprintln!("{error}");
        }
    }
}

/// A client process that ends with the test.
pub(crate) struct Busy(Child);

impl Drop for Busy {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

pub(crate) fn as_os_user(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let user = os_user();
    if rustix::process::geteuid().as_raw() != user.uid {
        command.uid(user.uid).gid(user.gid);
    }
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
