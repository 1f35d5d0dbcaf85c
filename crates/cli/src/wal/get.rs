//! `understudy wal get`: what PostgreSQL's `restore_command` calls. Works while the daemon is down.
//!
//! PostgreSQL takes 1 to 125 for "not there" (a standby then goes on to stream) and anything above for
//! a reason to stop; nothing here is one.

use std::path::PathBuf;
use std::process::ExitCode;

use understudy_node::wal_get::{GetOutcome, wal_get};

use crate::output::FAILED;

/// Copy a file out of a journal.
#[derive(Debug, clap::Args)]
pub(super) struct GetArgs {
    /// The journal: the node's data directory and `wal`.
    #[arg(long, value_name = "DIR")]
    journal: PathBuf,
    /// The file's name (%f).
    name: String,
    /// Where to copy it (%p).
    target: PathBuf,
}

/// Runs the verb.
pub(super) fn run(args: &GetArgs) -> ExitCode {
    let GetArgs { journal, name, target } = args;
    match wal_get(journal, name, target) {
        Ok(GetOutcome::Copied) => ExitCode::SUCCESS,
        Ok(GetOutcome::NotFound) => ExitCode::from(FAILED),
        Err(error) => {
            let error = anyhow::Error::new(error);
            eprintln!("error: get {name} from {}: {error:#}", journal.display());
            ExitCode::from(FAILED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_journal_does_not_have_is_not_there_and_leaves_no_target() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        let get = |name: &str| {
            let journal = dir.path().to_owned();
            let (name, target) = (name.to_owned(), target.clone());
            run(&GetArgs { journal, name, target })
        };
        for name in ["000000010000000000000001", "00000002.history", "nonsense"] {
            assert_eq!(format!("{:?}", get(name)), format!("{:?}", ExitCode::from(1)), "{name}");
            assert!(!target.exists());
        }
        std::fs::write(dir.path().join("00000002.history"), "1\t0/3000000\tno reason\n").unwrap();
        assert_eq!(format!("{:?}", get("00000002.history")), format!("{:?}", ExitCode::SUCCESS));
        assert!(target.exists());
    }
}
