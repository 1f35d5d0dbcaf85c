//! Processes of a site: found by the directory they work in, and what state the kernel says they are in.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

/// A process at a site.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    /// The file that it runs.
    pub(crate) program: String,
    /// How it calls itself: `postgres: walsender …`.
    pub(crate) title: String,
}

impl Process {
    pub(crate) fn is_postgres(&self) -> bool {
        self.program == "postgres"
    }
}

/// Our program's and PostgreSQL's processes that work at `directory` or below it.
pub(crate) fn below(directory: &Path) -> Vec<Process> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|text| text.parse().ok());
        let (Some(pid), Ok(cwd), Ok(program)) = (
            pid.and_then(Pid::from_raw),
            fs::read_link(entry.path().join("cwd")),
            fs::read_link(entry.path().join("exe")),
        ) else {
            continue;
        };
        let program = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let program = program.trim_end_matches(" (deleted)").to_owned();
        let ours = program == "understudy" || program == "postgres" || program.starts_with("pg_");
        if ours && cwd.starts_with(directory) {
            let title = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let title = String::from_utf8_lossy(&title).replace('\0', " ").trim().to_owned();
            found.push(Process { pid, program, title });
        }
    }
    found
}

/// A process that runs `program` and has `words` on its command line.
pub(crate) fn running(program: &str, words: &str) -> Option<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids = entries.filter_map(|entry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        let exe = fs::read_link(entry.path().join("exe")).ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let ours = exe.file_name()? == program && String::from_utf8_lossy(&line).contains(words);
        ours.then_some(pid)
    });
    pids.next()
}

/// Field 3 of `/proc/<pid>/stat`: R, S, D, T (stopped), Z (dead, not yet waited for); `None` when the
/// process is gone.
pub(crate) fn state(pid: Pid) -> Option<char> {
    stat(pid)?.first()?.chars().next()
}

/// When it was started, in clock ticks since the machine started: tells a process from a later one with
/// the same number.
pub(crate) fn started(pid: Pid) -> Option<String> {
    stat(pid)?.get(19).cloned()
}

/// The most memory that a process has had in use at once, bytes (`VmHWM` of `/proc/<pid>/status`);
/// `None` when it is gone.
pub(crate) fn memory_peak_bytes(pid: Pid) -> Option<u64> {
    let status = PathBuf::from("/proc").join(pid.to_string()).join("status");
    peak_in(&fs::read_to_string(status).ok()?)
}

fn peak_in(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kib * 1024)
}

/// The fields after the name, which may hold anything.
fn stat(pid: Pid) -> Option<Vec<String>> {
    let text =
        fs::read_to_string(PathBuf::from("/proc").join(pid.to_string()).join("stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_of_memory_is_read_as_the_kernel_writes_it() {
        let status = "Name:\tunderstudy\nVmPeak:\t  900 kB\nVmHWM:\t   18432 kB\nVmRSS:\t  9 kB\n";
        assert_eq!(peak_in(status), Some(18 << 20));
        assert_eq!(peak_in("Name:\tkthreadd\n"), None);
        let own = Pid::from_raw(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(memory_peak_bytes(own) > Some(100_000));
    }

    #[test]
    fn a_process_is_seen_as_it_is_and_a_dead_one_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        assert!(started(pid).is_some());
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while state(pid) != Some('T') {
            assert!(std::time::Instant::now() < deadline, "never seen as stopped");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(state(pid), None);
    }
}
