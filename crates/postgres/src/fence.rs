//! The fence: nothing of the instance is left, and that is proven, not assumed.
//!
//! Stopping the postmaster is not enough: its backends go on committing after it was killed, and a
//! frozen one leaves its sessions open. So every process of the instance is ended and counted, and its
//! shared memory must have nobody attached.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::error::{Error, Result};
use crate::process::{self, PidFile};
use crate::server::Server;

/// How long an immediate stop may take before everything is killed. The lease's margin pays for it.
const GRACE: Duration = Duration::from_millis(150);
/// How long killed processes may take to vanish (a process in uninterruptible IO does not).
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// Evidence that no process of the instance is left; only `Server::fence` makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a fence is worth what is done with its proof"]
#[non_exhaustive]
pub struct FenceProof {
    /// How many processes there were.
    pub processes_found: usize,
    /// How many SIGKILLs it took.
    pub kills: usize,
    /// How long it took.
    pub took: Duration,
}

impl Server {
    /// Ends the whole process tree of the instance and proves it gone, then puts `standby.signal` in
    /// place. Idempotent; works with a frozen postmaster and with one that died before its backends.
    ///
    /// The gate must be shut and the node's replication connection dropped before.
    ///
    /// # Errors
    /// `FenceUnproven` when something is left after ten seconds: nothing may be concluded then.
    pub async fn fence(&self) -> Result<FenceProof> {
        let begun = Instant::now();
        let data_dir = self.data_dir();
        // Read before the stop, which removes the file.
        let file = PidFile::read(data_dir)?;
        let mut shm = file.as_ref().and_then(|file| file.shm);
        let processes_found = process::instance_processes(data_dir)?.len();
        if processes_found > 0
            && let Some(file) = &file
        {
            process::signal(data_dir, Some(file.pid), Signal::QUIT)?;
        }
        let mut kills = 0;
        loop {
            // A postmaster that had just started may not have written it before.
            if let Some(file) = PidFile::read(data_dir)? {
                shm = file.shm.or(shm);
            }
            let pids = process::instance_processes(data_dir)?;
            let attached = match shm {
                Some(segment) => process::shm_attached(segment)?,
                None => 0,
            };
            if pids.is_empty() && attached == 0 {
                break;
            }
            if begun.elapsed() > PATIENCE {
                let pids = pids.into_iter().collect();
                return Err(Error::FenceUnproven { pids, attached, waited: begun.elapsed() });
            }
            if begun.elapsed() > GRACE {
                kills += process::signal(data_dir, None, Signal::KILL)?;
            }
            tokio::time::sleep(POLL).await;
        }
        if data_dir.join("PG_VERSION").exists() {
            self.put_standby_signal()?;
        }
        let took = begun.elapsed();
        tracing::info!(processes_found, kills, ?took, "fenced");
        Ok(FenceProof { processes_found, kills, took })
    }
}
