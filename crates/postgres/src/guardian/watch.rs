//! The guardian's process: waits for the deadline, and fences when it passes.
//!
//! One thread, standard library, no runtime. It asks nobody and decides one thing: whether the newest
//! deadline that it was told has passed. It must not give anything back, start anything, or touch a
//! process that is not the instance's.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mm::{MlockAllFlags, mlockall};
use understudy_types::BootInstant;

use super::record::{self, GuardianRecord};
use super::{
    Answer, Guard, LENGTH, Statement, boot_now, daemon_socket, guardian_socket, lock_file,
};
use crate::error::Result;
use crate::fence::{self, Left, Manner, Sweep};
use crate::os::{self, OsUser};

/// Waits are cut into pieces of this length, since the kernel's timeouts do not count suspended time.
const TURN: Duration = Duration::from_millis(100);
/// A daemon that lives fences by itself at the deadline, in a gentler way: it gets this long.
const DAEMON_FIRST: Duration = Duration::from_millis(250);
/// A turn that took longer means that this process was not running itself. What the daemon said since
/// may be lost, so it gets a moment to say it again.
const STARVED: Duration = Duration::from_millis(1000);
const HEARING: Duration = Duration::from_millis(500);
/// With nothing to guard, a guardian whose daemon is silent this long ends.
const UNUSED_MAX: Duration = Duration::from_secs(60);
/// How often the lock is tried, a turn apart.
const LOCK_ATTEMPTS: u32 = 5;
/// After a sweep that left something: the next one begins after this.
const AGAIN: Duration = Duration::from_millis(500);

/// What a guardian is told at its start.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// Where sockets, lock and log are; exists, and nobody else can enter it.
    pub dir: PathBuf,
    /// PGDATA, absolute.
    pub data_dir: PathBuf,
    /// Who `standby.signal` is to belong to: user id and group id.
    pub owner: (u32, u32),
}

/// The guardian cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// A file or socket is in the way.
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
}

/// Runs as the guardian until it is told to retire, or has nothing to guard and nobody to serve.
/// Returns at once, without error, when another guardian lives.
///
/// # Errors
/// When the lock or the socket cannot be had.
pub fn watch(options: &WatchOptions) -> std::result::Result<(), WatchError> {
    let failed = |action, path: PathBuf| move |source| WatchError::Io { action, path, source };
    let path = lock_file(&options.dir);
    let mut lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed("open lock", path.clone()))?;
    // A daemon that looks whether a guardian lives holds the lock for a moment.
    let mut attempts = 0;
    while lock.try_lock().is_err() {
        attempts += 1;
        if attempts == LOCK_ATTEMPTS {
            return Ok(());
        }
        std::thread::sleep(TURN);
    }
    // For people; nobody reads it back.
    let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    stand_apart();
    let path = guardian_socket(&options.dir);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(failed("remove", path)(error));
        }
        Ok(()) | Err(_) => {}
    }
    let socket = UnixDatagram::bind(&path).map_err(failed("bind", path.clone()))?;
    // Walks once the way that it will have to go, so that the code is in memory by then.
    let _ = crate::process::instance_processes(&options.data_dir);
    let mut guardian = Guardian {
        options,
        answers: daemon_socket(&options.dir),
        socket,
        watching: Watching::new(boot_now()),
    };
    guardian.run();
    Ok(())
}

/// Keeps the end of a terminal, memory pressure and a full memory away, as far as this user may.
fn stand_apart() {
    let _ = rustix::process::setsid();
    if rustix::process::geteuid().is_root() {
        let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    }
    // On fault: what is used stays, and the rest of the program is not read in for it.
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    let _ = mlockall(all);
}

/// What is guarded, and what was heard last. Pure.
#[derive(Debug)]
struct Watching {
    process: u64,
    armed: Option<BootInstant>,
    /// Deadlines up to here have been answered with a proven fence.
    fenced: Option<BootInstant>,
    heard_at: BootInstant,
    turned_at: BootInstant,
    /// Not before this: the daemon is given a moment to be heard.
    not_before: BootInstant,
    fences: u64,
    retired: bool,
}

impl Watching {
    fn new(now: BootInstant) -> Watching {
        Watching {
            process: 0,
            armed: None,
            fenced: None,
            heard_at: now,
            turned_at: now,
            not_before: BootInstant::ZERO,
            fences: 0,
            retired: false,
        }
    }

    /// Takes what the daemon says; false when it is an older process that speaks.
    fn hear(&mut self, now: BootInstant, said: &Statement) -> bool {
        if said.process < self.process {
            return false;
        }
        self.process = said.process;
        self.heard_at = now;
        let open = |at: &BootInstant| self.fenced.is_none_or(|fenced| *at > fenced);
        match said.guard {
            Guard::Nothing => self.armed = None,
            Guard::Until(at) => self.armed = Some(at).filter(open),
            Guard::AsBefore(at) => self.armed = self.armed.or(Some(at).filter(open)),
            Guard::Retire => self.retired = true,
        }
        true
    }

    /// A turn begins: was this process itself held up?
    fn turn(&mut self, now: BootInstant) {
        if now.since(self.turned_at) > STARVED {
            self.not_before = now + HEARING;
        }
        self.turned_at = now;
    }

    fn is_due(&self, now: BootInstant) -> Option<BootInstant> {
        self.armed.filter(|at| now >= *at + DAEMON_FIRST && now >= self.not_before)
    }

    fn swept(&mut self, now: BootInstant, deadline: BootInstant, proven: bool) {
        // The sweep itself is no starvation.
        self.turned_at = now;
        if proven {
            self.fenced = Some(deadline);
            self.armed = None;
            self.fences += 1;
        } else {
            self.not_before = now + AGAIN;
        }
    }

    fn is_over(&self, now: BootInstant) -> bool {
        self.retired || (self.armed.is_none() && now.since(self.heard_at) > UNUSED_MAX)
    }

    /// How long to listen before the next look.
    fn wait(&self, now: BootInstant) -> Duration {
        let due = self.armed.map(|at| (at + DAEMON_FIRST).max(self.not_before).since(now));
        // A timeout of zero would mean for ever.
        due.unwrap_or(TURN).min(TURN).max(Duration::from_millis(1))
    }
}

struct Guardian<'a> {
    options: &'a WatchOptions,
    answers: PathBuf,
    socket: UnixDatagram,
    watching: Watching,
}

impl Guardian<'_> {
    fn run(&mut self) {
        loop {
            let wait = self.watching.wait(boot_now());
            self.listen(Some(wait));
            self.watching.turn(boot_now());
            // Everything that is there is heard before anything is judged.
            self.listen(None);
            let now = boot_now();
            if self.watching.is_over(now) {
                return;
            }
            if let Some(deadline) = self.watching.is_due(now) {
                self.fence(deadline);
            }
        }
    }

    /// Hears one statement within the time, or all that are there already.
    fn listen(&mut self, wait: Option<Duration>) {
        let mut bytes = [0; LENGTH + 1];
        let ready = match wait {
            Some(wait) => self
                .socket
                .set_nonblocking(false)
                .and_then(|()| self.socket.set_read_timeout(Some(wait))),
            None => self.socket.set_nonblocking(true),
        };
        if ready.is_err() {
            std::thread::sleep(TURN);
            return;
        }
        // Bounded, so that a flood cannot keep the deadline from being looked at.
        for _ in 0..1024 {
            let Ok(length) = self.socket.recv(&mut bytes) else { return };
            if let Some(said) = Statement::decode(&bytes[..length]) {
                let heard = self.watching.hear(boot_now(), &said);
                if heard {
                    self.answer(&said);
                }
            }
            if wait.is_some() {
                return;
            }
        }
    }

    fn answer(&self, said: &Statement) {
        let answer = Answer {
            process: said.process,
            serial: said.serial,
            armed_until: self.watching.armed,
            pid: std::process::id(),
            fences: self.watching.fences,
        };
        // A daemon that does not read must not hold the guardian up.
        if self.socket.set_nonblocking(true).is_ok() {
            let _ = self.socket.send_to(&answer.encode(), &self.answers);
        }
    }

    fn fence(&mut self, deadline: BootInstant) {
        let late_by = boot_now().since(deadline);
        let outcome = sweep(self.options);
        let (record, proven) = match outcome {
            Ok((proof, proven)) => (Some(GuardianRecord::new(late_by, &proof, proven)), proven),
            // /proc cannot be read: nothing is known, so it is tried again.
            Err(_) => (None, false),
        };
        self.watching.swept(boot_now(), deadline, proven);
        // An instance of which nothing was left anyway is not worth a line.
        let Some(record) = record.filter(|r| r.processes_found > 0 || !r.proven) else { return };
        // Told after the deed: a disk that does not answer must not come before it.
        let _ = record::append(&self.options.dir, &record);
    }
}

/// Kills the instance and proves it gone, or gives up for now after a while.
fn sweep(options: &WatchOptions) -> Result<(crate::FenceProof, bool)> {
    let data_dir = &options.data_dir;
    let mut sweep = Sweep::begin(data_dir, Manner::KillAtOnce)?;
    while sweep.round(data_dir)? != Left::Nothing {
        if sweep.took() > fence::PATIENCE {
            return Ok((sweep.proof(), false));
        }
        std::thread::sleep(fence::POLL);
    }
    let proof = sweep.proof();
    // Whether or not it can be put down: nothing runs, and that is what was proven.
    let _ = put_standby_signal(data_dir, options.owner);
    Ok((proof, true))
}

/// It lies there even beside a running primary; only a start that was interrupted leaves it lifted.
fn put_standby_signal(data_dir: &Path, owner: (u32, u32)) -> Result<()> {
    let path = data_dir.join("standby.signal");
    if path.exists() || !data_dir.join("PG_VERSION").exists() {
        return Ok(());
    }
    let owner = OsUser { name: String::new(), uid: owner.0, gid: owner.1 };
    os::write_durably(&path, b"", &owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> BootInstant {
        BootInstant(ms * 1_000_000)
    }

    fn said(process: u64, guard: Guard) -> Statement {
        Statement { process, serial: 1, guard }
    }

    #[test]
    fn it_fences_at_the_newest_deadline_and_at_none_before_it() {
        let mut watching = Watching::new(at(0));
        assert_eq!(watching.is_due(at(9)), None);
        watching.hear(at(1), &said(1, Guard::Until(at(100))));
        watching.hear(at(2), &said(1, Guard::Until(at(200))));
        assert_eq!(watching.is_due(at(449)), None);
        assert_eq!(watching.is_due(at(450)), Some(at(200)));
        watching.swept(at(451), at(200), true);
        assert_eq!((watching.is_due(at(500)), watching.fences), (None, 1));
        // The same deadline, said again by a daemon that was frozen, is answered already.
        watching.hear(at(501), &said(1, Guard::Until(at(200))));
        assert_eq!(watching.is_due(at(502)), None);
        watching.hear(at(503), &said(1, Guard::Until(at(600))));
        assert_eq!(watching.is_due(at(850)), Some(at(600)));
    }

    #[test]
    fn a_daemon_that_starts_anew_neither_prolongs_nor_ends_what_the_old_one_said() {
        let mut watching = Watching::new(at(0));
        watching.hear(at(1), &said(1, Guard::Until(at(100))));
        watching.hear(at(2), &said(2, Guard::AsBefore(at(500))));
        assert_eq!(watching.is_due(at(350)), Some(at(100)));
        assert!(!watching.hear(at(3), &said(1, Guard::Nothing)), "the old process");
        assert_eq!(watching.is_due(at(350)), Some(at(100)));
        watching.hear(at(4), &said(2, Guard::Until(at(300))));
        assert_eq!(watching.is_due(at(549)), None);
        // One that was never told anything counts from what the new daemon says.
        let mut fresh = Watching::new(at(0));
        fresh.hear(at(1), &said(2, Guard::AsBefore(at(500))));
        assert_eq!(fresh.is_due(at(750)), Some(at(500)));
    }

    #[test]
    fn a_guardian_that_was_held_up_itself_listens_before_it_judges() {
        let mut watching = Watching::new(at(0));
        watching.hear(at(1), &said(1, Guard::Until(at(500))));
        watching.turn(at(100));
        watching.turn(at(5000));
        assert_eq!(watching.is_due(at(5000)), None);
        assert_eq!(watching.is_due(at(5499)), None);
        assert_eq!(watching.is_due(at(5500)), Some(at(500)));
        watching.hear(at(5100), &said(1, Guard::Until(at(8000))));
        assert_eq!(watching.is_due(at(5500)), None);
    }

    #[test]
    fn what_is_not_proven_is_tried_again_until_it_is() {
        let mut watching = Watching::new(at(0));
        watching.hear(at(1), &said(1, Guard::Until(at(100))));
        watching.swept(at(10_100), at(100), false);
        assert_eq!(watching.is_due(at(10_200)), None);
        assert_eq!(watching.is_due(at(10_600)), Some(at(100)));
    }

    #[test]
    fn it_ends_when_told_or_when_it_guards_nothing_and_hears_nobody() {
        let mut watching = Watching::new(at(0));
        watching.hear(at(1), &said(1, Guard::Until(at(100))));
        assert!(!watching.is_over(at(90_000)), "it guards something");
        watching.hear(at(2), &said(1, Guard::Nothing));
        assert!(!watching.is_over(at(50_000)));
        assert!(watching.is_over(at(60_003)));
        watching.hear(at(60_004), &said(1, Guard::Retire));
        assert!(watching.is_over(at(60_004)));
    }
}
