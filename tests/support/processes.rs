//! The processes of a lab: found by where they work, ended all at once.
//!
//! Only our program and PostgreSQL's below a directory of the test's own are ended.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The processes of our program and of PostgreSQL that work below `directory`. (A PostgreSQL process
/// works in its data directory, whatever it was started with.)
pub(crate) fn processes_below(directory: &Path) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_str().and_then(|text| text.parse().ok());
        let (Some(pid), Ok(cwd), Ok(program)) = (
            pid.and_then(Pid::from_raw),
            std::fs::read_link(entry.path().join("cwd")),
            std::fs::read_link(entry.path().join("exe")),
        ) else {
            continue;
        };
        let program = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let ours = ["understudy", "postgres", "pg_", "psql"].iter().any(|p| program.starts_with(p));
        if ours && cwd.starts_with(directory) && pid != rustix::process::getpid() {
            found.push(pid);
        }
    }
    found
}

/// SIGKILL to all of them, again and again until none is left.
pub(crate) fn kill_all_below(directory: &Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let left = processes_below(directory);
        if left.is_empty() {
            return;
        }
        for pid in &left {
            // It may be gone by now; whether any is left is looked up, not concluded.
            let _ = kill_process(*pid, Signal::KILL);
        }
        if Instant::now() > deadline {
            eprintln!("processes {left:?} below {} do not end", directory.display());
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a program that ended by itself left behind.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Asserts that it ended well; returns its stdout.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert!(self.status.success(), "{self:#?}");
        self.stdout
    }

    /// Asserts that it ended with an error in which each of `words` occurs.
    #[track_caller]
    pub(crate) fn refused_with(&self, words: &[&str]) {
        assert!(self.status.code().is_some_and(|code| code != 0), "{self:#?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is missing: {self:#?}");
        }
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
    }
}

/// A program that runs beside the test; dropping it kills it.
pub(crate) struct Background(Option<Child>);

impl Background {
    /// Starts it with its output kept for [`Background::wait`].
    pub(crate) fn start(command: &mut Command) -> Background {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Background(Some(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))))
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.0.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Its number.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(self.0.as_ref().expect("only wait and drop take it"))
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.0.as_ref().expect("only wait and drop take it");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Waits for its end; panics when it runs longer than `patience`.
    pub(crate) fn wait(mut self, patience: Duration) -> Ended {
        let child = self.0.take().expect("only wait and drop take it");
        let pid = Pid::from_child(&child);
        // Both pipes have to be read while it runs, which `wait_with_output` does.
        let (sender, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(child.wait_with_output()));
        let output = ended.recv_timeout(patience).unwrap_or_else(|_| {
            let _ = kill_process(pid, Signal::KILL);
            let output = ended.recv().unwrap();
            panic!("it did not end within {patience:?}: {output:#?}");
        });
        let output = output.unwrap();
        Ended {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Runs a program to its end.
pub(crate) fn run(command: &mut Command) -> Ended {
    Background::start(command).wait(super::PATIENCE)
}
