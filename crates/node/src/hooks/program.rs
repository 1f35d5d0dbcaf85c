//! Runs one program for one event, to its end or to its time limit, on the calling thread.
//!
//! The program is alone in a process group. It is over when the process that was started has ended or its
//! time is up; then whatever is left of the group is killed, and pipes that somebody still holds are let
//! go. What it writes to standard error is read for as long as it runs, and its first lines are kept.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use understudy_postgres::OsUser;

/// Where programs look for programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What is kept of standard error.
const STDERR_LINES: usize = 5;
const STDERR_BYTES: usize = 2048;
/// What is read at once, and the rest after it once enough is kept: a flood costs little.
const READ_BYTES: usize = 64 * 1024;
const FLOOD_REST: Duration = Duration::from_millis(5);
/// How long a killed process may take to be gone; one that hangs in the kernel is left behind.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// What is run, how long at most, and as whom.
#[derive(Debug)]
pub(super) struct Program {
    /// The program and its arguments.
    pub(super) command: Vec<String>,
    /// When it is killed.
    pub(super) timeout: Duration,
    /// `None`: as the daemon runs. An error: why it cannot be run.
    pub(super) user: Result<Option<OsUser>, String>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By itself, with this code.
    Exited(i32),
    /// By a signal that was not ours.
    Signalled(i32),
    /// Killed at its time limit.
    Killed,
    /// It did not begin.
    NotStarted(String),
}

impl End {
    /// For the metric and the event's `to`.
    pub(super) fn word(&self) -> &'static str {
        match self {
            End::Exited(0) => "done",
            End::Exited(_) | End::Signalled(_) => "failed",
            End::Killed => "killed",
            End::NotStarted(_) => "not-started",
        }
    }

    /// For people.
    pub(super) fn words(&self) -> String {
        match self {
            End::Exited(code) => format!("ended with exit code {code}"),
            End::Signalled(signal) => format!("was ended by signal {signal}"),
            End::Killed => "was killed at its time limit".to_owned(),
            End::NotStarted(why) => format!("could not be started ({why})"),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub(super) struct Ran {
    pub(super) end: End,
    pub(super) took: Duration,
    /// The first lines of its standard error, in one line.
    pub(super) stderr: String,
}

impl Program {
    /// Runs it; `input` is its standard input, `environment` all of its environment but PATH, LANG, TZ.
    pub(super) fn run(&self, input: &[u8], environment: &[(&str, &str)]) -> Ran {
        let begun = Instant::now();
        let ended =
            |end, kept: &[u8]| Ran { end, took: begun.elapsed(), stderr: first_lines(kept) };
        let mut run = match self.start(input.to_vec(), environment) {
            Ok(run) => run,
            Err(why) => return ended(End::NotStarted(why), &[]),
        };
        let over = run.attend(begun + self.timeout);
        // The process that was started is still unburied, so that its number cannot be another's.
        let _ = kill_process_group(run.pid, Signal::KILL);
        if !over && !run.attend(Instant::now() + KILL_PATIENCE) {
            return ended(End::Killed, &run.kept);
        }
        run.read_what_is_there();
        let end = match run.child.wait() {
            _ if !over => End::Killed,
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => End::Exited(code),
                (None, signal) => End::Signalled(signal.unwrap_or_default()),
            },
            Err(error) => End::NotStarted(error.to_string()),
        };
        ended(end, &run.kept)
    }

    fn start(&self, input: Vec<u8>, environment: &[(&str, &str)]) -> Result<Run, String> {
        let user = self.user.as_ref().map_err(Clone::clone)?;
        let (program, arguments) = self.command.split_first().ok_or("it has no name")?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("PATH", PATH).env("LANG", "C.UTF-8");
        command.envs(environment.iter().copied()).envs(std::env::var_os("TZ").map(|tz| ("TZ", tz)));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.current_dir("/").process_group(0);
        if let Some(user) = user {
            // As root this also gives up every supplementary group.
            command.uid(user.uid).gid(user.gid);
        }
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let pid = Pid::from_child(&child);
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        let attended = || -> rustix::io::Result<OwnedFd> {
            for pipe in stdin.as_ref().map(|pipe| pipe.as_fd()).into_iter() {
                rustix::io::ioctl_fionbio(pipe, true)?;
            }
            for pipe in stderr.as_ref().map(|pipe| pipe.as_fd()).into_iter() {
                rustix::io::ioctl_fionbio(pipe, true)?;
            }
            pidfd_open(pid, PidfdFlags::empty())
        };
        match attended() {
            Ok(end) => {
                let (kept, ended) = (Vec::new(), false);
                Ok(Run { child, pid, end, stdin, input, written: 0, stderr, kept, ended })
            }
            Err(error) => {
                let _ = kill_process_group(pid, Signal::KILL);
                let _ = child.wait();
                Err(format!("attend to it: {error}"))
            }
        }
    }
}

/// A program that runs.
struct Run {
    child: Child,
    pid: Pid,
    /// Readable when the process has ended.
    end: OwnedFd,
    stdin: Option<ChildStdin>,
    input: Vec<u8>,
    written: usize,
    stderr: Option<ChildStderr>,
    kept: Vec<u8>,
    ended: bool,
}

impl Run {
    /// Serves its pipes until it has ended, or until the deadline: whether it has ended.
    fn attend(&mut self, deadline: Instant) -> bool {
        while !self.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.attend_once(left) {
                return self.ended;
            }
        }
        true
    }

    /// One wait for whatever comes first; false when nothing can be waited for.
    fn attend_once(&mut self, patience: Duration) -> bool {
        let Ok(patience) = Timespec::try_from(patience) else { return false };
        let (ended, may_write, may_read) = {
            let mut fds = vec![PollFd::new(&self.end, PollFlags::IN)];
            let place = |fds: &mut Vec<PollFd<'_>>| fds.len() - 1;
            let out = self.stdin.as_ref().map(|pipe| {
                fds.push(PollFd::from_borrowed_fd(borrow(pipe), PollFlags::OUT));
                place(&mut fds)
            });
            let read = self.stderr.as_ref().map(|pipe| {
                fds.push(PollFd::from_borrowed_fd(borrow(pipe), PollFlags::IN));
                place(&mut fds)
            });
            match poll(&mut fds, Some(&patience)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
            let ready = |at: Option<usize>| at.is_some_and(|at| !fds[at].revents().is_empty());
            (ready(Some(0)), ready(out), ready(read))
        };
        if may_write {
            self.write();
        }
        if may_read && self.read() && self.kept.len() == STDERR_BYTES {
            std::thread::sleep(FLOOD_REST);
        }
        self.ended = ended;
        true
    }

    /// Hands over more of the input; one that does not want it is left alone.
    fn write(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        match stdin.write(&self.input[self.written..]) {
            Ok(count) => self.written += count,
            Err(error) if waits(&error) => return,
            Err(_) => self.written = self.input.len(),
        }
        if self.written == self.input.len() {
            self.stdin = None;
        }
    }

    /// Reads what has come, keeps its beginning; whether there was something.
    fn read(&mut self) -> bool {
        let Some(stderr) = &mut self.stderr else { return false };
        let mut buffer = [0; READ_BYTES];
        match stderr.read(&mut buffer) {
            Ok(0) => {
                self.stderr = None;
                false
            }
            Ok(count) => {
                let room = STDERR_BYTES - self.kept.len();
                self.kept.extend_from_slice(&buffer[..count.min(room)]);
                true
            }
            Err(error) if waits(&error) => false,
            Err(_) => {
                self.stderr = None;
                false
            }
        }
    }

    /// What it wrote before it ended; whoever else holds the pipe is not waited for.
    fn read_what_is_there(&mut self) {
        while self.kept.len() < STDERR_BYTES && self.read() {}
    }
}

fn borrow<F: std::os::fd::AsFd>(pipe: &F) -> BorrowedFd<'_> {
    pipe.as_fd()
}

fn waits(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn first_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(STDERR_LINES);
    let joined = lines.collect::<Vec<_>>().join("; ");
    joined.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
