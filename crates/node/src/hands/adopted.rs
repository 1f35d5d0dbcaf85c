//! A data directory that was not made here: the founding on one, and its first time as a passive.
//!
//! Nothing here rewinds, copies over or removes it, and a cluster is founded on one only after a person
//! gave it with `understudy adopt`.

use std::time::Duration;

use understudy_core::node::{Completion, TaskFailure};
use understudy_postgres::{ControlData, DataDirectory, Ownership, Server};
use understudy_shipping::journal::scan_pg_wal;
use understudy_types::Lsn;

use super::{Hands, blocking, chain, observe, transient, transient_words};

/// A server that is to be taken over is waited for so long before the node says again what it waits for.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks: nobody can write meanwhile.
const HANDOVER_POLL: Duration = Duration::from_millis(20);

impl Hands {
    /// At founding, on the initial active.
    pub(super) async fn prepare_data(&self) -> Result<Completion, TaskFailure> {
        match self.server().inspect().await.map_err(transient)? {
            DataDirectory::Missing | DataDirectory::Empty => {
                tracing::info!("making a new PostgreSQL cluster");
                self.server().init_db().await.map_err(transient)?;
            }
            DataDirectory::Cluster(_) => self.take_over().await?,
            DataDirectory::Dirty { what } => {
                return Err(transient_words(&format!("the data directory is incomplete: {what}")));
            }
            other @ (DataDirectory::NotACluster { .. } | DataDirectory::WrongVersion { .. }) => {
                return Err(transient_words(&observe::unusable(&other)));
            }
        }
        Ok(Completion::DataReady)
    }

    /// Founds on the cluster that is there, once a person has given it and whoever ran it has stopped it.
    async fn take_over(&self) -> Result<(), TaskFailure> {
        let begun = tokio::time::Instant::now();
        while let Some(waits_for) = self.not_yet()? {
            if begun.elapsed() >= HANDOVER_PATIENCE {
                return Err(transient_words(waits_for));
            }
            tokio::time::sleep(HANDOVER_POLL).await;
        }
        let found = self.control().await?;
        if found.state.is_in_recovery() {
            return Err(transient_words(
                "the data directory is a standby's: a cluster is founded on a primary; set \
                 initial_active to the node that has it",
            ));
        }
        self.server().prepare_roles().await.map_err(transient)?;
        tracing::info!(system_id = %found.system_id, timeline = %found.timeline, "taken over");
        self.server().set_own().map_err(transient)
    }

    /// Why the cluster that is there is not taken now.
    fn not_yet(&self) -> Result<Option<&'static str>, TaskFailure> {
        match self.server().ownership().map_err(transient)? {
            Ownership::Unrecorded | Ownership::Foreign => Ok(Some(
                "a PostgreSQL cluster lies in the data directory that this node did not make; take it \
                 over with `understudy adopt plan` and `understudy adopt apply`, or move it away to \
                 have a new one made",
            )),
            Ownership::Adopted | Ownership::Own => {
                let runs = self.server().running().map_err(transient)?.is_some();
                Ok(runs.then_some(
                    "PostgreSQL runs on the data directory that is to be taken over; `understudy \
                     adopt apply` stops it at the right moment, and the node starts it again by itself",
                ))
            }
        }
    }

    /// The data directory has come to be this node's own: it holds the epoch on it.
    pub(super) fn own_as_holder(&self) -> Result<(), TaskFailure> {
        self.server().set_own().map_err(transient)
    }

    /// Neither made here nor come to be the node's own. What was never recorded is from before that was
    /// done, if this node has held or followed on it.
    pub(super) fn is_foreign(&self) -> Result<bool, TaskFailure> {
        Ok(match self.server().ownership().map_err(transient)? {
            Ownership::Own => false,
            Ownership::Unrecorded => self.lineage_recorded().is_empty(),
            Ownership::Foreign | Ownership::Adopted => true,
        })
    }

    /// Once the journal holds everything that the standby replays after a restart, nothing of what was
    /// there before is needed, and the data is the cluster's like any other passive's.
    pub(super) fn own_what_was_adopted(&self, redo_lsn: Lsn) {
        // What is there may still be somebody else's that waits to be followed.
        let runs_it = |server: &Server| {
            let running = server.running().ok().flatten();
            running.is_some_and(|running| running.gate_name.is_some())
        };
        if self.server().ownership().is_ok_and(|now| now == Ownership::Own)
            || !runs_it(self.server())
        {
            return;
        }
        let held = self.journal().positions().borrow().as_ref().map(|held| held.begin_lsn);
        if held.is_none_or(|begin_lsn| begin_lsn > redo_lsn) {
            return;
        }
        if let Err(error) = self.server().set_own() {
            tracing::warn!(error = chain(&error), "cannot record whose the data directory is");
        }
    }

    /// Where the WAL in pg_wal ends, if the data directory is foreign and all from its last restart point
    /// on is there: the holder may have removed that long ago, and the server finds it where it is.
    pub(super) async fn foreign_end(
        &self,
        control: &ControlData,
    ) -> Result<Option<Lsn>, TaskFailure> {
        if !self.is_foreign()? {
            return Ok(None);
        }
        let (pg_wal, timeline, from) =
            (self.server().pg_wal_dir(), control.timeline, control.redo_lsn);
        let size = control.segment_size;
        let scanned = blocking(move || scan_pg_wal(&pg_wal, timeline, from, size)).await;
        let needed = control.min_recovery_lsn.unwrap_or(from).max(control.checkpoint_lsn);
        Ok(scanned.ok().map(|scan| scan.end_lsn).filter(|end_lsn| *end_lsn >= needed))
    }
}
