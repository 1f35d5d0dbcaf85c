//! The rows' scenarios: each says what is done to whom, and what is waited for. What every row is judged
//! by (nothing lost, one active, both sites equal and in their roles again) is not repeated here.

pub(crate) mod clocks;
pub(crate) mod disks;
pub(crate) mod histories;
pub(crate) mod links;
pub(crate) mod ports;
pub(crate) mod postgres;
pub(crate) mod power;
pub(crate) mod processes;
pub(crate) mod rejoin;
pub(crate) mod rot;
pub(crate) mod sites;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The lease's ttl with the default timings.
pub(crate) const LEASE: Duration = Duration::from_secs(3);
/// What a failover may take on a busy machine before the row fails: detection, promotion, first commit.
pub(crate) const TAKEOVER: Duration = Duration::from_secs(30);
/// After which systemd starts a daemon that has ended.
pub(crate) const RESTART_AFTER: Duration = Duration::from_secs(1);

/// How long a fault lasts, or systemd waits: time is the fault here, nothing is waited for.
pub(crate) fn last(duration: Duration) {
    std::thread::sleep(duration);
}

/// Every file below a directory; what is not there has none.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let files = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files_below(&entry.path()),
        Ok(_) => vec![entry.path()],
        Err(_) => Vec::new(),
    };
    entries.flat_map(files).collect()
}

pub(crate) const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
