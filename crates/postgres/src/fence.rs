//! The fence: nothing of the instance is left, and that is proven, not assumed.
//!
//! Stopping the postmaster is not enough: its backends go on committing after it was killed, and a
//! frozen one leaves its sessions open. So every process of the instance is ended and counted, and its
//! shared memory must have nobody attached. The daemon and its guardian sweep in the same way.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::error::{Error, Result};
use crate::process::{self, PidFile, ShmSegment};
use crate::server::Server;

/// How long an immediate stop may take before everything is killed. The lease's margin pays for it.
const GRACE: Duration = Duration::from_millis(150);
/// How long killed processes may take to vanish (a process in uninterruptible IO does not).
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
pub(crate) const POLL: Duration = Duration::from_millis(5);

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
        let data_dir = self.data_dir();
        let mut sweep = Sweep::begin(data_dir, Manner::StopFirst)?;
        while let Left::Some { pids, attached } = sweep.round(data_dir)? {
            let waited = sweep.took();
            if waited > PATIENCE {
                return Err(Error::FenceUnproven { pids, attached, waited });
            }
            tokio::time::sleep(POLL).await;
        }
        if data_dir.join("PG_VERSION").exists() {
            self.put_standby_signal()?;
        }
        let proof = sweep.proof();
        let FenceProof { processes_found, kills, took } = proof;
        tracing::info!(processes_found, kills, ?took, "fenced");
        Ok(proof)
    }
}

/// How a sweep begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// A postmaster that lives is told to stop immediately, and given a moment for it.
    StopFirst,
    /// Everything is killed at once.
    KillAtOnce,
}

/// What is left after a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// No process, and nobody attached to the shared memory.
    Nothing,
    /// These.
    Some {
        /// Living processes.
        pids: Vec<u32>,
        /// Processes that are attached to the instance's shared memory.
        attached: u64,
    },
}

/// Ends an instance, round by round, until nothing is left of it.
///
/// It remembers every process that it has once seen as the instance's, by number and start: what a
/// backend had started (a command of COPY or of the archiver) no longer descends from it once the
/// backend is dead.
#[derive(Debug)]
pub(crate) struct Sweep {
    begun: Instant,
    grace: Duration,
    shm: Option<ShmSegment>,
    seen: BTreeMap<u32, u64>,
    processes_found: usize,
    kills: usize,
}

impl Sweep {
    /// Looks at what is there, and has a living postmaster stop if that is wanted.
    ///
    /// # Errors
    /// When /proc or the data directory cannot be read: then nothing is known.
    pub(crate) fn begin(data_dir: &Path, manner: Manner) -> Result<Sweep> {
        // Read before the stop, which removes the file.
        let file = PidFile::read(data_dir)?;
        let seen = process::instance_processes(data_dir)?;
        let postmaster = file.as_ref().map(|file| file.pid).filter(|pid| seen.contains_key(pid));
        let mut grace = Duration::ZERO;
        if let (Manner::StopFirst, Some(pid)) = (manner, postmaster) {
            process::signal_one(pid, seen[&pid], Signal::QUIT)?;
            grace = GRACE;
        }
        Ok(Sweep {
            begun: Instant::now(),
            grace,
            shm: file.and_then(|file| file.shm),
            processes_found: seen.len(),
            seen,
            kills: 0,
        })
    }

    /// Counts what is left, and kills it once its grace is over.
    ///
    /// # Errors
    /// As `begin`.
    pub(crate) fn round(&mut self, data_dir: &Path) -> Result<Left> {
        // A postmaster that had just started may not have written it before.
        let file = PidFile::read(data_dir)?;
        self.shm = file.as_ref().and_then(|file| file.shm).or(self.shm);
        self.seen.append(&mut process::instance_processes(data_dir)?);
        self.seen.retain(|pid, start| process::lives(*pid, *start));
        let attached = match self.shm {
            Some(segment) => process::shm_attached(segment)?,
            None => 0,
        };
        if self.seen.is_empty() && attached == 0 {
            return Ok(Left::Nothing);
        }
        if self.took() >= self.grace {
            // The postmaster first: it would start processes anew.
            let postmaster = file.map(|file| file.pid);
            let mut order: Vec<(u32, u64)> = self.seen.iter().map(|(p, s)| (*p, *s)).collect();
            order.sort_by_key(|(pid, _)| Some(*pid) != postmaster);
            for (pid, start) in order {
                self.kills += usize::from(process::signal_one(pid, start, Signal::KILL)?);
            }
        }
        Ok(Left::Some { pids: self.seen.keys().copied().collect(), attached })
    }

    /// Since it began.
    pub(crate) fn took(&self) -> Duration {
        self.begun.elapsed()
    }

    /// What it took; a proof only once a round has found nothing.
    pub(crate) fn proof(&self) -> FenceProof {
        FenceProof { processes_found: self.processes_found, kills: self.kills, took: self.took() }
    }
}
