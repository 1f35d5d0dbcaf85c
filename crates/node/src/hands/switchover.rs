//! The holder's tasks of a planned switchover: a checkpoint ahead of time, clients shut out, the clean
//! stop. Each leaves the server in a state from which the core can also go back.

use std::time::Duration;

use tokio::time::Instant;
use understudy_core::node::{Completion, TaskFailure};
use understudy_postgres::{ControlState, HbaMode};
use understudy_shipping::journal::scan_pg_wal;
use understudy_types::{Lsn, NodeId};

use super::{HBA_PATIENCE, Hands, blocking, transient, transient_words};

/// How long the checkpoint ahead of time may take; clients are served meanwhile.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(110);
/// PostgreSQL ends only when its receivers have confirmed everything, so this is for the last message.
const LAST_ACK_PATIENCE: Duration = Duration::from_millis(500);

impl Hands {
    pub(super) async fn prepare_switchover(&self) -> Result<Completion, TaskFailure> {
        let begun = Instant::now();
        self.server().checkpoint(CHECKPOINT_PATIENCE).await.map_err(transient)?;
        tracing::info!(took = ?begun.elapsed(), "checkpoint ahead of a switchover written");
        Ok(Completion::SwitchoverPrepared)
    }

    pub(super) async fn shut_clients_out(
        &self,
        grace: Duration,
    ) -> Result<Completion, TaskFailure> {
        let begun = Instant::now();
        self.server().apply_hba(HbaMode::Closed, HBA_PATIENCE).await.map_err(transient)?;
        let drained = self.server().drain_clients(grace).await.map_err(transient)?;
        tracing::info!(
            idle_count = drained.idle_count,
            interrupted_count = drained.interrupted_count,
            took = ?begun.elapsed(),
            "clients shut out"
        );
        Ok(Completion::ClientsShutOut)
    }

    /// The gate and the receivers' streams stay up until the server is gone: its fast stop waits until
    /// they have confirmed everything, the shutdown checkpoint included.
    pub(super) async fn stop_cleanly(
        &self,
        to: NodeId,
        within: Duration,
    ) -> Result<Completion, TaskFailure> {
        let begun = Instant::now();
        self.server().stop_fast(within).await.map_err(transient)?;
        let stopped = begun.elapsed();
        let end_lsn = self.clean_end().await?;
        self.durable_at(to, end_lsn).await?;
        self.stop_source().await;
        let _proof = self.server().fence().await.map_err(transient)?;
        tracing::info!(%end_lsn, ?stopped, took = ?begun.elapsed(), "PostgreSQL stopped cleanly");
        Ok(Completion::StoppedCleanly { end_lsn })
    }

    /// The end of the shutdown checkpoint's record, which is the last one.
    async fn clean_end(&self) -> Result<Lsn, TaskFailure> {
        let control = self.control().await?;
        if control.state != ControlState::ShutDown {
            return Err(transient_words(&format!(
                "PostgreSQL has stopped, but not cleanly: its control file says {:?}",
                control.state
            )));
        }
        let pg_wal = self.server().pg_wal_dir();
        let (timeline, size) = (control.timeline, control.segment_size);
        let from = control.checkpoint_lsn;
        let scan = blocking(move || scan_pg_wal(&pg_wal, timeline, from, size)).await;
        let end_lsn = scan.map_err(transient)?.end_lsn;
        if end_lsn <= from {
            let words = format!("the shutdown checkpoint at {from} cannot be read back");
            return Err(transient_words(&words));
        }
        Ok(end_lsn)
    }

    async fn durable_at(&self, to: NodeId, end_lsn: Lsn) -> Result<(), TaskFailure> {
        let source = self.inner.source.borrow().clone();
        let source = source.ok_or_else(|| transient_words("the active's WAL path is down"))?;
        let mut positions = source.positions();
        let there = positions.wait_for(|positions| {
            positions.receivers.iter().any(|r| r.node == to && r.durable_lsn >= end_lsn)
        });
        match tokio::time::timeout(LAST_ACK_PATIENCE, there).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(transient_words(&format!(
                "the candidate has not confirmed the end of the WAL, {end_lsn}"
            ))),
        }
    }
}
