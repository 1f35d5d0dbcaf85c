//! A real PostgreSQL for the tests beside it: made, started and stopped as its own user.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where the server's programs are: the newest under /usr/lib/postgresql.
pub(crate) fn bin(program: &str) -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is installed")
        .map(|entry| entry.unwrap().path().join("bin").join(program))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| program.into())
}

/// The user and group that PostgreSQL runs as: `postgres` for root, else ourselves.
pub(crate) fn owner() -> (u32, u32) {
    if !rustix::process::geteuid().is_root() {
        return (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.starts_with("postgres:")).expect("user postgres");
    let field = |index: usize| line.split(':').nth(index).unwrap().parse().unwrap();
    (field(2), field(3))
}

/// A command of PostgreSQL's, run as its user.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(bin(program));
    if rustix::process::geteuid().is_root() {
        let (uid, gid) = owner();
        command.uid(uid).gid(gid);
    }
    command.current_dir("/").env_clear().env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Runs a command to its end; panics with what it wrote if it fails.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// A temporary directory that PostgreSQL's user owns.
pub(crate) fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (uid, gid) = owner();
    std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid)).unwrap();
    dir
}

/// Waits until the condition holds, for twenty seconds at most.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// A running server that listens on a Unix socket in its own directory only.
pub(crate) struct Server {
    pub(crate) data: PathBuf,
    pub(crate) socket_dir: PathBuf,
    child: Child,
}

pub(crate) const PORT: u16 = 5432;

impl Server {
    /// A new cluster in `<dir>/<name>`.
    pub(crate) async fn create(dir: &Path, name: &str) -> Server {
        let data = dir.join(name);
        run(command("initdb").arg("-D").arg(&data).args(["-A", "trust", "-U", "postgres", "-N"]));
        Server::start(dir, name).await
    }

    /// Starts what lies in `<dir>/<name>`; its socket is in `<dir>/<name>.run`.
    pub(crate) async fn start(dir: &Path, name: &str) -> Server {
        let data = dir.join(name);
        let socket_dir = dir.join(format!("{name}.run"));
        fs::create_dir_all(&socket_dir).unwrap();
        let (uid, gid) = owner();
        std::os::unix::fs::chown(&socket_dir, Some(uid), Some(gid)).unwrap();
        let log = fs::File::create(dir.join(format!("{name}.log"))).unwrap();
        let mut postgres = command("postgres");
        postgres.arg("-D").arg(&data).arg("-k").arg(&socket_dir).args(["-p", &PORT.to_string()]);
        for setting in [
            "listen_addresses=",
            "fsync=off",
            "shared_buffers=16MB",
            "wal_keep_size=512MB",
            "wal_retrieve_retry_interval=200ms",
            "autovacuum=off",
        ] {
            postgres.args(["-c", setting]);
        }
        let child = postgres.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let server = Server { data, socket_dir, child };
        until("PostgreSQL answers", || {
            let output = server.psql("SELECT 1").output().unwrap();
            output.status.success()
        })
        .await;
        server
    }

    pub(crate) fn psql(&self, sql: &str) -> Command {
        let mut psql = command("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"]);
        psql.arg(&self.socket_dir).args(["-p", &PORT.to_string(), "-c", sql]);
        psql
    }

    /// Runs SQL and gives its output.
    pub(crate) fn sql(&self, sql: &str) -> String {
        run(&mut self.psql(sql)).trim().to_owned()
    }

    /// The end of what is flushed.
    pub(crate) fn flush_lsn(&self) -> understudy_types::Lsn {
        self.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        let _ = self.child.wait();
    }
}

/// A child that is killed when the test ends.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
