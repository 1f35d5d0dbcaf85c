//! PostgreSQL servers of a benchmark and questions to them.
//!
//! Started as root, everything of PostgreSQL runs as the user `postgres`, as the daemon does it.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection, Row};
use tokio::runtime::{Builder, Runtime};
use understudy_postgres::{Binaries, OsUser};
use understudy_types::Lsn;

/// For a server to start, answer or stop.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// PostgreSQL's programs, and the user they run as.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    binaries: Binaries,
    pub(crate) user: OsUser,
}

impl Programs {
    pub(crate) fn find() -> Result<Programs> {
        let root = rustix::process::geteuid().is_root();
        let user = if root { OsUser::lookup("postgres") } else { OsUser::current() };
        Ok(Programs { binaries: Binaries::find(None, None)?, user: user? })
    }

    /// The version, such as 15.18.
    pub(crate) fn version(&self) -> String {
        self.binaries.version().to_string()
    }

    /// One of its programs, to be run as its user.
    pub(crate) fn command(&self, program: &str) -> Command {
        self.as_user(self.binaries.program(program))
    }

    /// Any program, to be run as PostgreSQL's user.
    pub(crate) fn as_user(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        if rustix::process::geteuid().is_root() {
            command.uid(self.user.uid).gid(self.user.gid);
        }
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    /// Gives a file or directory to PostgreSQL's user.
    pub(crate) fn give(&self, path: &Path) -> Result<()> {
        std::os::unix::fs::chown(path, Some(self.user.uid), Some(self.user.gid))
            .with_context(|| format!("give {} to {}", path.display(), self.user.name))
    }
}

/// Runs a program to its end; what it said is the answer or the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    answer(&name, &command.output().with_context(|| format!("run {name}"))?)
}

/// The same for a program that may have to be ended; what it says is little.
pub(crate) fn output_within(command: &mut Command, limit: Duration) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let said = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = said.spawn().with_context(|| format!("run {name}"))?;
    let until = Instant::now() + limit;
    while child.try_wait()?.is_none() {
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            bail!("{name} did not end within {limit:?}: something that it waits for is gone");
        }
        std::thread::sleep(POLL);
    }
    answer(&name, &child.wait_with_output()?)
}

fn answer(name: &str, ended: &Output) -> Result<String> {
    if !ended.status.success() {
        bail!("{name} ended with {}: {}", ended.status, String::from_utf8_lossy(&ended.stderr));
    }
    Ok(String::from_utf8_lossy(&ended.stdout).trim_end().to_owned())
}

/// A running server; stopped at once when dropped.
pub(crate) struct Instance {
    programs: Programs,
    socket_dir: PathBuf,
    pub(crate) port: u16,
    postmaster: Child,
}

impl Instance {
    /// Starts a server on `data` and waits until it lets clients in.
    ///
    /// # Errors
    /// When it ends instead, with the end of its log.
    pub(crate) fn start(
        programs: &Programs,
        data: &Path,
        socket_dir: &Path,
        port: u16,
        settings: &[(&str, String)],
    ) -> Result<Instance> {
        let log = data.with_extension("log");
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut command = programs.command("postgres");
        command.arg("-D").arg(data).arg("-k").arg(socket_dir).args(["-p", &port.to_string()]);
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdout(file.try_clone()?).stderr(file);
        let postmaster = command.spawn().context("start PostgreSQL")?;
        let (programs, socket_dir) = (programs.clone(), socket_dir.to_owned());
        let mut instance = Instance { programs, socket_dir, port, postmaster };
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = instance.postmaster.try_wait()? {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("PostgreSQL ended with {status} while it was started:\n{said}");
            }
            if instance.sql("postgres").is_ok() {
                return Ok(instance);
            }
            if Instant::now() > until {
                bail!("PostgreSQL on {} lets nobody in after {PATIENCE:?}", data.display());
            }
            std::thread::sleep(POLL);
        }
    }

    /// A connection of its superuser.
    pub(crate) fn sql(&self, database: &str) -> Result<Sql> {
        Sql::connect(&self.socket_dir, self.port, database)
    }

    /// A client program that is told where this server is.
    pub(crate) fn client(&self, program: &str) -> Command {
        let mut command = self.programs.command(program);
        command.arg("-h").arg(&self.socket_dir);
        command.args(["-p", &self.port.to_string(), "-U", "postgres"]);
        command
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Immediate: what it holds is thrown away, or is recovered at its next start.
        let _ = kill_process(Pid::from_child(&self.postmaster), Signal::QUIT);
        let _ = self.postmaster.wait();
    }
}

/// One connection, asked one thing after the other.
pub(crate) struct Sql {
    runtime: Runtime,
    connection: PgConnection,
}

impl Sql {
    fn connect(socket_dir: &Path, port: u16, database: &str) -> Result<Sql> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let options = PgConnectOptions::new_without_pgpass()
            .socket(socket_dir)
            .port(port)
            .username("postgres")
            .database(database);
        let connection = runtime.block_on(async {
            tokio::time::timeout(PATIENCE, PgConnection::connect_with(&options)).await
        });
        Ok(Sql { runtime, connection: connection.context("connect to PostgreSQL")?? })
    }

    /// Runs statements whose answers do not matter, each by itself.
    pub(crate) fn run(&mut self, statements: &[&str]) -> Result<()> {
        for statement in statements {
            let asked = sqlx::raw_sql(AssertSqlSafe(*statement)).execute(&mut self.connection);
            self.runtime.block_on(asked).with_context(|| format!("run `{statement}`"))?;
        }
        Ok(())
    }

    /// The columns of the first row as texts; the question casts them. `None` without a row.
    pub(crate) fn row(&mut self, question: &str) -> Result<Option<Vec<Option<String>>>> {
        let asked = sqlx::query(AssertSqlSafe(question)).fetch_optional(&mut self.connection);
        let row = self.runtime.block_on(asked).with_context(|| format!("ask `{question}`"))?;
        let columns = |row: sqlx::postgres::PgRow| {
            (0..row.len()).map(|index| row.try_get(index)).collect::<Result<Vec<_>, _>>()
        };
        row.map(columns).transpose().with_context(|| format!("read the answer to `{question}`"))
    }

    /// The only value of the only row; `None` for none or SQL's null.
    pub(crate) fn value(&mut self, question: &str) -> Result<Option<String>> {
        Ok(self.row(question)?.and_then(|row| row.into_iter().next().flatten()))
    }

    /// A position, zero when there is none.
    pub(crate) fn lsn(&mut self, question: &str) -> Result<Lsn> {
        let Some(text) = self.value(question)? else { return Ok(Lsn::ZERO) };
        text.parse().with_context(|| format!("`{question}` said {text:?}, which is no position"))
    }

    /// The end of what the primary has flushed.
    pub(crate) fn flushed(&mut self) -> Result<Lsn> {
        self.lsn("SELECT pg_current_wal_flush_lsn()::text")
    }

    /// Asks until the answer is true; the question casts it to text.
    ///
    /// # Errors
    /// When it is not within two minutes; `what` says what was waited for.
    pub(crate) fn until(&mut self, what: &str, question: &str) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while self.value(question)?.as_deref() != Some("true") {
            if Instant::now() > until {
                bail!("waited {PATIENCE:?} in vain: {what}");
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}
