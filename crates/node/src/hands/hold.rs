//! The holder's tasks: take the server, let clients in, drain; and the candidate's: seal, promote.

use std::str::FromStr;
use std::time::Duration;

use understudy_core::node::{Completion, Grant, TaskFailure};
use understudy_postgres::{GateName, HbaMode, Probe, ROLE_REPLICATION, Running, StartMode};
use understudy_shipping::source::{Source, SourceIdentity, SourceOptions};
use understudy_types::{Epoch, Lsn, NodeId, TimelineHistory};

use super::{HBA_PATIENCE, Hands, START_PATIENCE, blocking, suspect, transient, transient_words};

/// How long the gate's connection may take to come up.
const GATE_PATIENCE: Duration = Duration::from_secs(10);
/// How long a promotion of the server may take.
const PROMOTE_PATIENCE: Duration = Duration::from_secs(60);
/// How long an ordered step-down waits for the passive.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);
/// How long the checkpoint after opening may take.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(600);
/// How long one question to the server may take.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);
/// Before the node's name in the names of retention slots.
pub(crate) const SLOT_PREFIX: &str = "understudy_";

/// A name that nobody can guess, for each start of the server.
pub(super) fn fresh_gate_name() -> GateName {
    let random = uuid::Uuid::new_v4().simple().to_string();
    GateName::from_str(&format!("gate_{random}")).expect("hexadecimal digits are a gate name")
}

impl Hands {
    pub(super) async fn hold(&self, grant: &Grant) -> Result<Completion, TaskFailure> {
        self.follower().unfollow().await;
        self.stop_source().await;
        let journal = self.journal().clone();
        let (epoch, history) = (grant.epoch, grant.history.clone());
        blocking(move || {
            journal.raise_epoch(epoch)?;
            if history.is_empty() { Ok(()) } else { journal.set_lineage(history) }
        })
        .await
        .map_err(transient)?;
        self.open_cell(grant.epoch)?;
        self.set_held(None);
        self.guarded().await?;
        let running = self.primary(grant).await?;
        let gate = running.gate_name.ok_or_else(|| {
            transient_words("the server runs without a gate's name on its command line")
        })?;
        let mut probe = Probe::new(self.server(), gate.clone(), PROBE_PATIENCE);
        let seen = probe.probe().await.map_err(transient)?;
        if seen.timeline != Some(grant.timeline) {
            return Err(transient_words(&format!(
                "the server is on timeline {:?} instead of {}",
                seen.timeline.map(|timeline| timeline.get()),
                grant.timeline
            )));
        }
        let end_lsn = seen.flush_lsn.ok_or_else(|| transient_words("the server is in recovery"))?;
        self.set_held(Some((running.pid, running.start_time_ticks)));
        self.own_as_holder()?;
        self.start_source(grant, &gate).await?;
        tracing::info!(epoch = %grant.epoch, timeline = %grant.timeline, %end_lsn, "holding");
        Ok(Completion::Held { end_lsn })
    }

    fn open_cell(&self, epoch: Epoch) -> Result<(), TaskFailure> {
        let cell = &self.options().cell;
        let status = cell.status();
        if status.epoch < epoch {
            cell.reopen(epoch).map_err(transient)?;
        } else if status.closed || status.epoch > epoch {
            return Err(transient_words(&format!("the gate of epoch {epoch} is shut for good")));
        }
        Ok(())
    }

    /// A primary behind the gate: the one that runs, if it is the right one, else a fresh start.
    async fn primary(&self, grant: &Grant) -> Result<Running, TaskFailure> {
        if let Some(running) = self.server().running().map_err(transient)? {
            if let Some(gate) = &running.gate_name {
                let mut probe = Probe::new(self.server(), gate.clone(), PROBE_PATIENCE);
                let fits = probe
                    .probe()
                    .await
                    .is_ok_and(|seen| !seen.in_recovery && seen.timeline == Some(grant.timeline));
                if fits {
                    tracing::info!(pid = running.pid, "taking up the server that runs");
                    return Ok(running);
                }
            }
            let _proof = self.server().fence().await.map_err(transient)?;
        }
        // Started without standby.signal it would go on writing wherever it stands. Directly after a
        // promotion only the minimum recovery point tells of the new timeline.
        let control = self.control().await?;
        let stands_on = control.min_recovery_timeline.max(Some(control.timeline));
        if stands_on != Some(grant.timeline) {
            return Err(transient_words(&format!(
                "the data directory is on timeline {} instead of {}",
                stands_on.unwrap_or(control.timeline),
                grant.timeline
            )));
        }
        let gate = fresh_gate_name();
        self.server()
            .start(&StartMode::Primary, &gate, HbaMode::Closed, START_PATIENCE)
            .await
            .map_err(transient)
    }

    async fn start_source(&self, grant: &Grant, gate: &GateName) -> Result<(), TaskFailure> {
        let options = self.options();
        let settings = self.server().settings();
        let control = self.control().await?;
        let history = self.server().history_file(grant.timeline).map_err(transient)?;
        let source = Source::start(
            SourceOptions {
                socket_dir: settings.socket_dir.clone(),
                port: settings.port,
                user: ROLE_REPLICATION.to_owned(),
                gate_name: gate.to_string(),
                identity: SourceIdentity {
                    cluster: options.cluster,
                    system_id: grant.system_id,
                    epoch: grant.epoch,
                    promotion: grant.promotion,
                    history: history.unwrap_or_else(|| TimelineHistory::root(grant.timeline)),
                },
                segment_size: control.segment_size,
                slot_prefix: SLOT_PREFIX.to_owned(),
                assumed_since: grant.exposed_since,
                journal: Some(options.journal.clone()),
            },
            options.cell.clone(),
            options.clock.clone(),
        )
        .map_err(transient)?;
        let mut positions = source.positions();
        let connected = positions.wait_for(|positions| positions.gate_connected);
        let up = matches!(tokio::time::timeout(GATE_PATIENCE, connected).await, Ok(Ok(_)));
        if !up {
            source.stop().await;
            return Err(transient_words("the gate's connection did not come up"));
        }
        self.inner.source.send_replace(Some(source));
        Ok(())
    }

    pub(super) async fn let_clients_in(&self) -> Result<Completion, TaskFailure> {
        self.server().apply_hba(HbaMode::Open, HBA_PATIENCE).await.map_err(transient)?;
        // After a promotion a rewind of the other side needs it; nothing here waits for it.
        let server = self.server().clone();
        tokio::spawn(async move {
            if let Err(error) = server.checkpoint(CHECKPOINT_PATIENCE).await {
                tracing::warn!(error = super::chain(&error), "checkpoint after opening failed");
            }
        });
        Ok(Completion::ClientsLetIn)
    }

    /// The gate was shut by the driver; what it released is given a moment to reach the passive.
    pub(super) async fn drain(&self) -> Result<Completion, TaskFailure> {
        let source = self.inner.source.borrow().clone();
        if let Some(source) = source {
            let released = self.options().cell.status().released_upto;
            let mut positions = source.positions();
            let there = positions.wait_for(|positions| {
                positions.receivers.iter().any(|r| r.attached && r.durable_lsn >= released)
            });
            if tokio::time::timeout(DRAIN_PATIENCE, there).await.is_err() {
                tracing::warn!(%released, "stepping down before the passive has everything");
            }
        }
        Ok(Completion::Drained)
    }

    pub(super) async fn seal(&self, epoch: Epoch) -> Result<Completion, TaskFailure> {
        self.follower().unfollow().await;
        let journal = self.journal().clone();
        let sealed = blocking(move || journal.seal(epoch)).await.map_err(transient)?;
        tracing::info!(%epoch, end = ?sealed.map(|sealed| sealed.durable_lsn), "journal sealed");
        Ok(Completion::Sealed(sealed))
    }

    async fn reserve_slots(&self, peers: &[NodeId]) {
        for peer in peers {
            let Some(slot) = self.slot_of(*peer) else { continue };
            // Without it the old active may have to be cloned instead of rewound: dear, not unsafe.
            if let Err(error) = self.server().create_slot(&slot).await {
                tracing::warn!(
                    slot,
                    error = super::chain(&error),
                    "cannot reserve a retention slot"
                );
            }
        }
    }

    pub(super) async fn promote_locally(
        &self,
        grant: &Grant,
        target_lsn: Lsn,
        peers: &[NodeId],
    ) -> Result<Completion, TaskFailure> {
        // Closed before the promotion: clients that look for a read-write server get in at once. The
        // four have nothing to do with each other, and writes stand still meanwhile.
        let (closed, resumed, (), guarded) = tokio::join!(
            self.server().apply_hba(HbaMode::Closed, HBA_PATIENCE),
            self.server().resume_replay(),
            self.reserve_slots(peers),
            self.guarded(),
        );
        closed.map_err(transient)?;
        resumed.map_err(transient)?;
        guarded?;
        let promoted =
            self.server().promote(grant.timeline, PROMOTE_PATIENCE).await.map_err(transient)?;
        if promoted.timeline != grant.timeline {
            return Err(TaskFailure {
                words: format!(
                    "PostgreSQL chose timeline {} where {} was granted",
                    promoted.timeline, grant.timeline
                ),
                suspect: true,
            });
        }
        if target_lsn != Lsn::ZERO && promoted.fork_lsn != target_lsn {
            return Err(TaskFailure {
                words: format!(
                    "the promotion forked at {} where the journal was sealed at {target_lsn}",
                    promoted.fork_lsn
                ),
                suspect: true,
            });
        }
        let journal = self.journal().clone();
        let history = promoted.history.clone();
        blocking(move || journal.put_history(history.timeline, history.format().as_bytes()))
            .await
            .map_err(suspect)?;
        Ok(Completion::PromotedLocally { timeline: promoted.timeline, fork_lsn: promoted.fork_lsn })
    }
}
