//! System calls that fail or are slow, as a broken disk makes them: injected into running processes by
//! strace. The proof is strace's own record of what it injected.

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
}

impl Disk {
    fn injection(self) -> String {
        match self {
            Disk::FailsToSync => "inject=fsync,fdatasync,sync_file_range:error=EIO".to_owned(),
            Disk::IsFull => "inject=write,pwrite64,pwritev,fallocate:error=ENOSPC".to_owned(),
            Disk::IsSlow(ms) => format!("inject=fsync,fdatasync:delay_enter={ms}000"),
        }
    }

    fn in_words(self) -> String {
        match self {
            Disk::FailsToSync => "syncs failed with EIO".to_owned(),
            Disk::IsFull => "writes failed with ENOSPC".to_owned(),
            Disk::IsSlow(ms) => format!("syncs took {ms} ms more"),
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
