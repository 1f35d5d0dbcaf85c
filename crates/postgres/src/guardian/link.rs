//! The daemon's end: starts a guardian where none lives, says how things stand, hears what it answers.
//!
//! Nothing here waits for the guardian except `until_armed`, and what the core says is only carried.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use understudy_types::BootInstant;

use super::record::{self, GuardianRecord};
use super::{
    Answer, Guard, LENGTH, Statement, boot_now, daemon_socket, guardian_socket, lock_file,
};
use crate::error::Result as PostgresResult;
use crate::os::OsUser;

/// Between two looks at what the guardian answers.
const POLL: Duration = Duration::from_millis(5);
/// A guardian that was started and ended at once is started again after this.
const START_AGAIN: Duration = Duration::from_secs(1);

/// What a link is made of.
#[derive(Clone, Debug)]
pub struct GuardianOptions {
    /// The directory of the two; made when it is missing, for this user alone.
    pub dir: PathBuf,
    /// PGDATA, absolute.
    pub data_dir: PathBuf,
    /// Whose PostgreSQL it is.
    pub owner: OsUser,
    /// This start of the daemon's process; grows with every start.
    pub process: u64,
}

/// There is no guardian to rely on.
#[derive(Debug, thiserror::Error)]
pub enum GuardianError {
    /// A file, a socket or the process is in the way.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// It does not say that it guards.
    #[error(
        "wait {waited:?} for the guardian to confirm the deadline; it must be able to start and to \
         use {}, or postgres.guardian has to be false",
        dir.display()
    )]
    Silent {
        /// For how long.
        waited: Duration,
        /// Where the two meet.
        dir: PathBuf,
    },
}

fn failed(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> GuardianError + use<> {
    let path = path.to_owned();
    move |source| GuardianError::Io { action, path, source }
}

#[derive(Debug)]
struct Inner {
    serial: u64,
    guard: Option<Guard>,
    answer: Option<(Answer, Instant)>,
    child: Option<Child>,
    started_at: Option<Instant>,
}

/// The daemon's end.
#[derive(Debug)]
pub struct GuardianLink {
    options: GuardianOptions,
    socket: UnixDatagram,
    inner: Mutex<Inner>,
}

impl GuardianLink {
    /// Makes the directory and the own socket. Starts nothing yet.
    ///
    /// # Errors
    /// When one of them cannot be had.
    pub fn new(options: GuardianOptions) -> Result<GuardianLink, GuardianError> {
        let dir = &options.dir;
        fs::create_dir_all(dir).map_err(failed("create directory", dir))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
            .map_err(failed("set mode of", dir))?;
        let path = daemon_socket(dir);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(failed("remove", &path)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let socket = UnixDatagram::bind(&path).map_err(failed("bind", &path))?;
        socket.set_nonblocking(true).map_err(failed("use", &path))?;
        let inner = Inner { serial: 0, guard: None, answer: None, child: None, started_at: None };
        Ok(GuardianLink { options, socket, inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how things stand; to be repeated several times a second, since a statement may be lost.
    /// Never waits.
    pub fn say(&self, guard: Guard) {
        let mut inner = self.lock();
        inner.guard = Some(guard);
        self.send(&mut inner);
    }

    fn send(&self, inner: &mut Inner) {
        let Some(guard) = inner.guard else { return };
        inner.serial += 1;
        let said = Statement { process: self.options.process, serial: inner.serial, guard };
        // Nobody there, or one that does not listen: the next statement says it again, and `keep`
        // sees to it that there is one.
        let _ = self.socket.send_to(&said.encode(), guardian_socket(&self.options.dir));
    }

    /// Takes in what the guardian has answered.
    fn hear(&self, inner: &mut Inner) {
        let mut bytes = [0; LENGTH + 1];
        // As many as a socket holds, and not without end.
        for _ in 0..1024 {
            let Ok(length) = self.socket.recv(&mut bytes) else { return };
            let answer = Answer::decode(&bytes[..length])
                .filter(|answer| answer.process == self.options.process);
            if let Some(answer) = answer {
                inner.answer = Some((answer, Instant::now()));
            }
        }
    }

    /// Starts a guardian if none lives and there was something to say. Cheap when one does; to be
    /// called about once a second.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn keep(&self) -> Result<(), GuardianError> {
        let mut inner = self.lock();
        self.hear(&mut inner);
        if inner.guard.is_none() {
            return Ok(());
        }
        self.start_if_none(&mut inner)
    }

    fn start_if_none(&self, inner: &mut Inner) -> Result<(), GuardianError> {
        let program = Path::new("/proc/self/exe");
        if let Some(child) = &mut inner.child {
            match child.try_wait() {
                Ok(None) => return Ok(()),
                Ok(Some(_)) => inner.child = None,
                Err(source) => return Err(failed("wait for", program)(source)),
            }
        }
        if inner.started_at.is_some_and(|at| at.elapsed() < START_AGAIN) || self.one_lives()? {
            return Ok(());
        }
        let dir = &self.options.dir;
        let owner = &self.options.owner;
        // Through /proc, so that a program that was replaced on disk since does not matter.
        let child = Command::new(program)
            .arg("guard")
            .arg("--dir")
            .arg(dir)
            .arg("--data-directory")
            .arg(&self.options.data_dir)
            .args(["--owner-uid", &owner.uid.to_string(), "--owner-gid", &owner.gid.to_string()])
            .current_dir(dir)
            // The service manager's watchdog is the daemon's affair.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed("start the guardian from", program))?;
        tracing::info!(pid = child.id(), "guardian started");
        inner.child = Some(child);
        inner.started_at = Some(Instant::now());
        Ok(())
    }

    /// A guardian holds its lock for its whole life.
    fn one_lives(&self) -> Result<bool, GuardianError> {
        let path = lock_file(&self.options.dir);
        let lock: File = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open lock", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(false),
            Err(fs::TryLockError::WouldBlock) => Ok(true),
            Err(fs::TryLockError::Error(source)) => Err(failed("try lock", &path)(source)),
        }
    }

    /// Has a guardian end that lives, and waits for it. Whoever calls it has made sure that no daemon of
    /// this node runs, and that nothing is left to guard.
    ///
    /// # Errors
    /// When it does not within `patience`.
    pub async fn end_guardian(&self, patience: Duration) -> Result<(), GuardianError> {
        let begun = Instant::now();
        while self.one_lives()? {
            self.say(Guard::Retire);
            if begun.elapsed() > patience {
                let dir = self.options.dir.clone();
                return Err(GuardianError::Silent { waited: patience, dir });
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits until the guardian has confirmed a deadline that has not passed; starts it if need be.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// When it does not within `patience`, or cannot be started: then nothing may be made writable.
    pub async fn until_armed(&self, patience: Duration) -> Result<(), GuardianError> {
        let begun = Instant::now();
        loop {
            {
                let mut inner = self.lock();
                self.start_if_none(&mut inner)?;
                self.send(&mut inner);
                self.hear(&mut inner);
                let now = boot_now();
                let armed = |(answer, heard_at): (Answer, Instant)| {
                    heard_at >= begun && answer.armed_until.is_some_and(|at| at > now)
                };
                if inner.answer.is_some_and(armed) {
                    return Ok(());
                }
            }
            if begun.elapsed() > patience {
                let dir = self.options.dir.clone();
                return Err(GuardianError::Silent { waited: patience, dir });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// How long ago the guardian last answered; `None` when it never did.
    pub fn silent_for(&self) -> Option<Duration> {
        let mut inner = self.lock();
        self.hear(&mut inner);
        inner.answer.map(|(_, at)| at.elapsed())
    }

    /// The guardian's process id and the moment at which it would fence, as it said last.
    pub fn guards(&self) -> Option<(u32, Option<BootInstant>)> {
        let mut inner = self.lock();
        self.hear(&mut inner);
        inner.answer.map(|(answer, _)| (answer.pid, answer.armed_until))
    }

    /// What the guardian did since a daemon last asked. Reads and writes small files.
    ///
    /// # Errors
    /// When they cannot be read or written.
    pub fn take_records(&self) -> PostgresResult<Vec<GuardianRecord>> {
        let me = OsUser {
            name: String::new(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        };
        record::take_new(&self.options.dir, &me)
    }

    /// The daemon ends. A guardian that guards nothing ends with it; one that guards goes on, so that a
    /// daemon that is not back before the deadline leaves no server behind.
    pub fn leave(&self) {
        let mut inner = self.lock();
        if inner.guard == Some(Guard::Nothing) {
            inner.guard = Some(Guard::Retire);
        }
        self.send(&mut inner);
    }
}
