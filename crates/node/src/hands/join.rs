//! The rejoin ladder, carried out: survey, keep diverged WAL, follow, rewind, clone.
//!
//! Which rung is the core's decision. Diverged WAL is safe in `divergent/` before anything writes to
//! the data directory; a clone or rewind that does not finish leaves the marker (I14).

use std::fs;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use understudy_core::node::{Completion, TaskFailure};
use understudy_core::rejoin::{Rung, Survey};
use understudy_postgres::{
    CopySource, DataDirectory, HbaMode, ROLE_REPLICATION, ROLE_REWIND, Rewound, StartMode,
};
use understudy_shipping::journal::{JournalError, scan_pg_wal};
use understudy_shipping::tunnel::TunnelListener;
use understudy_types::{Admission, Epoch, Lineage, Lsn, NodeId, SegmentSize, Timeline, WalSegment};

use super::hold::fresh_gate_name;
use super::{
    Hands, RELAY_PORT, START_PATIENCE, TUNNEL_PORT, blocking, suspect, transient, transient_words,
};

/// How long the holder may take to write a checkpoint on its timeline, which a rewind needs.
const SOURCE_CHECKPOINT_PATIENCE: Duration = Duration::from_secs(60);
/// Connections through the tunnel at a time: `pg_basebackup -X stream` needs two.
const TUNNEL_CLIENTS_MAX: usize = 4;
/// Where the data directory's own WAL ends.
pub(super) struct OwnEnd {
    pub(super) timeline: Timeline,
    pub(super) end_lsn: Lsn,
    pub(super) segment_size: SegmentSize,
}

impl Hands {
    pub(super) async fn survey(&self) -> Result<Completion, TaskFailure> {
        let survey = match self.server().inspect().await.map_err(transient)? {
            DataDirectory::Missing | DataDirectory::Empty => Survey::Empty,
            DataDirectory::Dirty { .. } => Survey::Dirty,
            other @ (DataDirectory::NotACluster { .. } | DataDirectory::WrongVersion { .. }) => {
                Survey::Unusable(super::observe::unusable(&other))
            }
            DataDirectory::Cluster(control) => {
                let own = self.own_end().await?;
                Survey::Cluster {
                    system_id: control.system_id,
                    timeline: own.timeline,
                    end_lsn: own.end_lsn,
                    recorded: self.lineage_recorded(),
                    foreign: self.is_foreign()?,
                }
            }
        };
        let mut newest = self.inner.surveyed.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.as_ref() != Some(&survey) {
            tracing::info!(?survey, "data directory surveyed");
            *newest = Some(survey.clone());
        }
        drop(newest);
        Ok(Completion::Surveyed(survey))
    }

    /// The newest timeline that has WAL here, and the end of its last complete record.
    pub(super) async fn own_end(&self) -> Result<OwnEnd, TaskFailure> {
        let control = self.control().await?;
        let size = control.segment_size;
        let pg_wal = self.server().pg_wal_dir();
        let mut timeline = control.timeline;
        let mut from = control.checkpoint_lsn;
        let timelines = newest_timelines(&pg_wal, size).map_err(|error| {
            transient_words(&format!(
                "the server's WAL directory {} cannot be read ({error}); put it back, or mount its disk, or \
                 empty the data directory to have it copied afresh",
                pg_wal.display()
            ))
        })?;
        for candidate in timelines {
            if candidate <= control.timeline {
                break;
            }
            // A burned number, or a history without WAL of its own, is not where the WAL ends.
            let history = self.server().history_file(candidate).map_err(transient)?;
            if let Some(fork) = history.and_then(|h| h.ancestors.last().map(|last| last.switch_lsn))
            {
                (timeline, from) = (candidate, fork);
                break;
            }
        }
        let floor = control.min_recovery_lsn.unwrap_or(Lsn::ZERO).max(from);
        let scanned = blocking(move || scan_pg_wal(&pg_wal, timeline, from, size)).await;
        let end_lsn = match scanned {
            Ok(scan) => scan.end_lsn.max(floor),
            Err(JournalError::NotHeld { .. }) => floor,
            Err(error) => return Err(transient(error)),
        };
        Ok(OwnEnd { timeline, end_lsn, segment_size: size })
    }

    pub(super) async fn join(
        &self,
        rung: Rung,
        keep_from: Option<Lsn>,
        holder: NodeId,
        history: &[Lineage],
        epoch: Epoch,
    ) -> Result<Completion, TaskFailure> {
        self.follower().unfollow().await;
        if let Some(from) = keep_from {
            self.keep_divergent(from, history, epoch).await?;
        }
        self.write_receipts(keep_from.is_some(), holder, epoch).await;
        match rung {
            Rung::Follow => self.continue_or_empty_journal(history, epoch).await?,
            Rung::Rewind => {
                self.rewind(holder, history).await?;
                self.empty_journal(epoch).await?;
            }
            Rung::Clone => {
                self.clone_from(holder).await?;
                self.empty_journal(epoch).await?;
            }
        }
        // Only a candidate that starts its own standby again is its own "holder".
        if holder != self.options().me {
            let last = history.last().ok_or_else(|| transient_words("the history is empty"))?;
            let admission = Admission {
                serial: understudy_types::PermitSerial(0),
                epoch,
                promotion: last.promotion,
                timeline: last.timeline,
            };
            self.follow(holder, admission, history.to_vec()).await?;
        }
        self.start_standby().await?;
        Ok(Completion::Joined)
    }

    pub(super) async fn start_standby(&self) -> Result<(), TaskFailure> {
        let run = self.options().data_dir.join("run");
        let conninfo = format!(
            "host={} port={RELAY_PORT} user={ROLE_REPLICATION} application_name={}",
            run.display(),
            self.options().name
        );
        let mode = StartMode::Standby {
            primary_conninfo: conninfo,
            restore_command: Some(self.restore_command()?),
        };
        self.report_progress("replaying until consistent", 0, 0);
        self.server()
            .start(&mode, &fresh_gate_name(), HbaMode::Open, START_PATIENCE)
            .await
            .map_err(transient)?;
        self.drop_own_slots().await;
        Ok(())
    }

    /// Slots from a time as primary would pin this standby's WAL for ever; whoever is promoted here
    /// reserves new ones before its promotion.
    async fn drop_own_slots(&self) {
        let drop = async {
            for slot in self.server().slots().await? {
                if slot.name.starts_with(super::hold::SLOT_PREFIX) && !slot.active {
                    self.server().drop_slot(&slot.name).await?;
                }
            }
            Ok::<(), understudy_postgres::Error>(())
        };
        if let Err(error) = drop.await {
            tracing::warn!(error = super::chain(&error), "cannot drop slots of an earlier primary");
        }
    }

    /// The journal goes on where it ends if the data came from it, and holds all that the server replays
    /// when it starts; else it begins anew.
    async fn continue_or_empty_journal(
        &self,
        history: &[Lineage],
        epoch: Epoch,
    ) -> Result<(), TaskFailure> {
        let own = self.own_end().await?;
        let control = self.control().await?;
        let needed_lsn = match self.foreign_end(&control).await? {
            Some(end_lsn) => end_lsn.align_down(control.segment_size.bytes()),
            None => control.redo_lsn,
        };
        let positions = self.journal().positions().borrow().clone();
        let goes_on = positions.is_some_and(|held| {
            held.error.as_ref().is_none_or(|error| !error.is_fatal())
                && held.durable_lsn >= own.end_lsn
                && held.begin_lsn <= needed_lsn
                && history.iter().any(|entry| entry.timeline == held.timeline)
        });
        if goes_on { Ok(()) } else { self.empty_journal(epoch).await }
    }

    async fn empty_journal(&self, epoch: Epoch) -> Result<(), TaskFailure> {
        if self.journal().identity().is_none() {
            return Ok(());
        }
        let into = self.divergent_place(epoch, "journal").await?;
        self.follower().set_journal_aside(into).await
    }

    async fn rewind(&self, holder: NodeId, history: &[Lineage]) -> Result<(), TaskFailure> {
        let (source, shutdown) = self.tunnel(holder)?;
        let _close = shutdown.drop_guard();
        let timeline = history.last().map(|last| last.timeline);
        self.wait_for_source_checkpoint(&source, timeline).await?;
        let restore = self.restore_command()?;
        let mut progress = |p: understudy_postgres::Progress| {
            self.report_progress("rewinding", p.done_bytes, p.total_bytes);
        };
        let rewound = self.server().rewind(&source, Some(&restore), &mut progress).await;
        match rewound.map_err(suspect)? {
            Rewound::Done => Ok(()),
            Rewound::NotNeeded => {
                tracing::info!("pg_rewind finds that nothing has diverged");
                Ok(())
            }
            Rewound::Refused { output } => Err(TaskFailure {
                words: format!("rewind the data directory: {output}"),
                suspect: true,
            }),
        }
    }

    /// Directly after a promotion the control file still names the old timeline, and `pg_rewind`
    /// would see no divergence; so wait until the holder's checkpoint has put that right.
    async fn wait_for_source_checkpoint(
        &self,
        source: &CopySource,
        timeline: Option<Timeline>,
    ) -> Result<(), TaskFailure> {
        let deadline = tokio::time::Instant::now() + SOURCE_CHECKPOINT_PATIENCE;
        loop {
            let seen = understudy_postgres::source_checkpoint_timeline(source).await;
            match seen {
                Ok(seen) if Some(seen) == timeline => return Ok(()),
                Ok(_) if tokio::time::Instant::now() >= deadline => {
                    return Err(transient_words(
                        "the holder has not written a checkpoint on its timeline yet",
                    ));
                }
                Err(error) if tokio::time::Instant::now() >= deadline => {
                    return Err(transient(error));
                }
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn clone_from(&self, holder: NodeId) -> Result<(), TaskFailure> {
        let (source, shutdown) = self.tunnel(holder)?;
        let _close = shutdown.drop_guard();
        let mut progress = |p: understudy_postgres::Progress| {
            self.report_progress("cloning", p.done_bytes, p.total_bytes);
        };
        self.report_progress("cloning", 0, 0);
        // An ordered clone may replace a copy that is whole: not before the source has answered.
        understudy_postgres::source_checkpoint_timeline(&source).await.map_err(transient)?;
        self.server().base_backup(&source, &mut progress).await.map_err(transient)
    }

    /// A local socket that leads to the holder's PostgreSQL while the token is not cancelled.
    fn tunnel(&self, holder: NodeId) -> Result<(CopySource, CancellationToken), TaskFailure> {
        self.tunnel_at(holder, TUNNEL_PORT)
    }

    /// The same with another number in the socket's name, for use beside the other one.
    pub(super) fn tunnel_at(
        &self,
        holder: NodeId,
        port: u16,
    ) -> Result<(CopySource, CancellationToken), TaskFailure> {
        let options = self.options();
        let dialer = (options.bulk)(holder)
            .ok_or_else(|| transient_words("the holder is not a member that can be reached"))?;
        let socket_dir = options.data_dir.join("run");
        let uids = vec![rustix::process::geteuid().as_raw(), self.server().settings().os_user.uid];
        let listener =
            TunnelListener::bind(&socket_dir, port, uids, TUNNEL_CLIENTS_MAX, dialer.channel())
                .map_err(transient)?;
        let shutdown = CancellationToken::new();
        tokio::spawn(listener.run(shutdown.clone()));
        Ok((CopySource { socket_dir, port }, shutdown))
    }
}

/// The roles that a peer's tools may use through the tunnel.
pub(crate) fn tunnel_roles() -> Vec<String> {
    vec![ROLE_REPLICATION.to_owned(), ROLE_REWIND.to_owned()]
}

/// Timelines that have segments in pg_wal, the newest first.
fn newest_timelines(pg_wal: &Path, size: SegmentSize) -> std::io::Result<Vec<Timeline>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(pg_wal)? {
        let name = entry?.file_name();
        let segment = name.to_str().and_then(|name| WalSegment::parse(name, size).ok());
        found.extend(segment.map(|segment| segment.timeline));
    }
    found.sort_unstable();
    found.dedup();
    found.reverse();
    Ok(found)
}
