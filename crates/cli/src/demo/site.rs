//! The processes of one site of the demo: found by where they live, ended all at once.
//!
//! It ends only what lives below a directory that the demo made, and only our program and
//! PostgreSQL's: a shell that somebody left standing there is not ours to end.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A process at a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: Pid,
    pub(super) is_postgres: bool,
}

/// Every process of PostgreSQL or of this program whose working directory is `directory` or lies
/// below it. (A PostgreSQL process works in its data directory, whatever it was started with.)
pub(super) fn processes_below(directory: &Path) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let own = std::env::current_exe().ok();
    let own = own.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|text| text.parse().ok()).and_then(Pid::from_raw);
        let (Some(pid), Ok(cwd)) = (pid, std::fs::read_link(entry.path().join("cwd"))) else {
            continue;
        };
        if !cwd.starts_with(directory) || pid == rustix::process::getpid() {
            continue;
        }
        let Ok(program) = std::fs::read_link(entry.path().join("exe")) else { continue };
        let program = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // A program that was replaced since its start is called "name (deleted)".
        let program = program.trim_end_matches(" (deleted)");
        let is_postgres = program.starts_with("postgres") || program.starts_with("pg_");
        if is_postgres || Some(program) == own || program == "understudy" {
            found.push(Process { pid, is_postgres });
        }
    }
    found
}

/// SIGKILL to all of them at once, again and again until none is left. Returns those of the first
/// round: what was alive when the blow fell.
///
/// # Errors
/// When some are still there after ten seconds.
pub(super) fn kill_all_below(directory: &Path) -> Result<Vec<Process>> {
    let first = processes_below(directory);
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut left = first.clone();
    while !left.is_empty() {
        for process in &left {
            // It may be gone by now; whether any is left is looked up, not concluded.
            let _ = kill_process(process.pid, Signal::KILL);
        }
        if Instant::now() > deadline {
            bail!("end every process below {}: {left:?} are still there", directory.display());
        }
        std::thread::sleep(Duration::from_millis(2));
        left = processes_below(directory);
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_does_not_live_there_or_is_somebody_elses_program_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mut sleeper =
            Command::new("sleep").arg("60").current_dir(directory.path()).spawn().unwrap();
        assert_eq!(kill_all_below(directory.path()).unwrap(), vec![]);
        assert!(sleeper.try_wait().unwrap().is_none(), "a stranger was killed");
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
    }
}
