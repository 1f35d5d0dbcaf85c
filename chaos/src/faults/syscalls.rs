//! System calls that fail or are slow, as a broken disk makes them: injected into running processes by
//! strace. The proof is strace's own record of what it injected.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::Fault;

/// For strace to hold every thread of what it is attached to.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// What a disk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    /// Nothing becomes durable any more: EIO.
    FailsToSync,
    /// There is no room: ENOSPC.
    IsFull,
    /// Making durable takes so many milliseconds more.
    IsSlow(u32),
    /// Nothing becomes durable any more, and nobody is told.
    LiesAboutSync,
}

impl Disk {
    fn injection(self) -> String {
        match self {
            Disk::FailsToSync => "inject=fsync,fdatasync,sync_file_range:error=EIO".to_owned(),
            Disk::IsFull => "inject=write,pwrite64,pwritev,fallocate:error=ENOSPC".to_owned(),
            Disk::IsSlow(ms) => format!("inject=fsync,fdatasync:delay_enter={ms}000"),
            Disk::LiesAboutSync => "inject=fsync,fdatasync,sync_file_range:retval=0".to_owned(),
        }
    }

    fn in_words(self) -> String {
        match self {
            Disk::FailsToSync => "syncs failed with EIO".to_owned(),
            Disk::IsFull => "writes failed with ENOSPC".to_owned(),
            Disk::IsSlow(ms) => format!("syncs took {ms} ms more"),
            Disk::LiesAboutSync => "syncs were reported as done and not made".to_owned(),
        }
    }
}

/// A disk that is broken for some processes and what they start.
pub(crate) struct Injected {
    strace: Option<Child>,
    record: PathBuf,
    what: String,
    disk: Disk,
}

impl Injected {
    /// For these files only, unless there are none of them: then for all.
    ///
    /// # Errors
    /// When strace is not installed or cannot attach.
    pub(crate) fn begin(
        what: impl Into<String>,
        disk: Disk,
        processes: &[Pid],
        files: &[PathBuf],
        record: &Path,
    ) -> Result<Injected> {
        let what = what.into();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-e", &disk.injection(), "-o"]).arg(record);
        for file in files {
            strace.arg("-P").arg(file);
        }
        for process in processes {
            strace.arg("-p").arg(process.as_raw_nonzero().to_string());
        }
        strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child =
            strace.spawn().context("start strace; if it is missing: `apt-get install strace`")?;
        let mut injected = Injected { strace: Some(child), record: record.to_owned(), what, disk };
        let deadline = Instant::now() + ATTACH_TIMEOUT;
        while !processes.iter().all(|process| is_traced(*process)) {
            if Instant::now() > deadline {
                injected.heal()?;
                bail!("strace did not attach to the {} within {ATTACH_TIMEOUT:?}", injected.what);
            }
            std::thread::sleep(POLL);
        }
        Ok(injected)
    }
}

/// Whether somebody traces every thread of the process, or it has ended meanwhile.
fn is_traced(process: Pid) -> bool {
    let tasks = format!("/proc/{}/task", process.as_raw_nonzero());
    let Ok(entries) = fs::read_dir(tasks) else { return true };
    entries.flatten().all(|task| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        status
            .lines()
            .any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
    })
}

impl Fault for Injected {
    fn proof(&mut self) -> Result<Option<String>> {
        let record = fs::read_to_string(&self.record).unwrap_or_default();
        let injected = |line: &&str| line.contains("(INJECTED)") || line.contains("(DELAYED)");
        let count = record.lines().filter(injected).count();
        Ok((count > 0).then(|| format!("{}: {}", self.what, self.disk.in_words())))
    }

    fn heal(&mut self) -> Result<()> {
        let Some(mut strace) = self.strace.take() else { return Ok(()) };
        // On SIGTERM it lets go of what it holds; what it held goes on.
        kill_process(Pid::from_child(&strace), Signal::TERM).context("end strace")?;
        strace.wait().context("wait for strace")?;
        Ok(())
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        // What it traces would stay traced; the arena's sweep follows in any case.
        let _ = self.heal();
    }
}

/// How much of a sync is done when everything stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Nothing of it.
    Before,
    /// All of it, and whoever asked for it does not know yet.
    After,
}

/// The tracer of a program that stands still at a sync: the `number`th of one of its threads or of one
/// of the processes that it starts, whichever comes there first.
///
/// The tracer is a process of its own; the program stays its caller's child.
pub(crate) fn until_sync(number: u32, moment: Moment, record: &Path) -> Vec<OsString> {
    let syncs = "fsync,fdatasync,sync_file_range";
    let skip = if moment == Moment::Before { "retval=0:" } else { "" };
    let inject = format!("inject={syncs}:{skip}signal=SIGSTOP:when={number}");
    let trace = format!("trace={syncs}");
    let words = ["strace", "-D", "-f", "-qq", "-y", "-e", &trace, "-e", &inject];
    let mut words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
    words.extend(["-e", "signal=SIGSTOP", "-o"].map(OsString::from));
    words.push(record.into());
    words
}

/// The file whose sync a program stands still at, by its tracer's record; `None` while it runs.
pub(crate) fn stands_still_at(record: &Path) -> Option<PathBuf> {
    let record = fs::read_to_string(record).unwrap_or_default();
    file_of_the_last_sync(&record)
}

/// Lines are `<pid> fdatasync(12</a/file>) = 0 (INJECTED)` and `<pid> --- SIGSTOP {…} ---`.
fn file_of_the_last_sync(record: &str) -> Option<PathBuf> {
    let stopped = record.lines().position(|line| line.contains("--- SIGSTOP"))?;
    let lines: Vec<_> = record.lines().take(stopped + 1).collect();
    let (pid, _) = lines.last()?.split_once(' ')?;
    let own = lines.iter().rev().filter(|line| line.starts_with(pid));
    let path = own.filter_map(|line| Some(line.split_once("sync")?.1.split_once('<')?.1));
    let path = path.filter_map(|rest| rest.split_once(">)").or_else(|| rest.split_once("> ")));
    path.map(|(path, _)| PathBuf::from(path)).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sync_at_which_a_program_stands_still_is_read_as_strace_writes_it() {
        let record = "7 fdatasync(3</a/raft.redb> <unfinished ...>\n\
                      8 fdatasync(4</a/wal/000000010000000000000003.partial>) = 0\n\
                      7 <... fdatasync resumed>)          = 0\n\
                      7 fsync(5</a/raft>) = 0 (INJECTED)\n\
                      8 fdatasync(4</a/b>) = 0\n\
                      7 --- SIGSTOP {si_signo=SIGSTOP, si_code=SI_USER} ---\n\
                      7 --- stopped by SIGSTOP ---\n";
        assert_eq!(file_of_the_last_sync(record), Some(PathBuf::from("/a/raft")));
        let running = record.split_once("7 ---").map(|(before, _)| before);
        assert_eq!(file_of_the_last_sync(running.unwrap()), None);
    }
}
