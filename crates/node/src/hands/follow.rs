//! Following the holder: one receiver at a time, for one epoch, until it is told to stop.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;
use understudy_core::node::{Event, FollowEnd};
use understudy_postgres::{ControlData, DataDirectory};
use understudy_proto::v1::refused::Reason;
use understudy_shipping::receiver::{EmptyStart, Receiver, ReceiverEnd, ReceiverOptions};
use understudy_types::{Admission, Lineage, Lsn, NodeId, Timeline};

use super::{Following, Hands, chain, transient_words};
use understudy_core::node::TaskFailure;

/// What the core wishes to be followed from now on.
pub(crate) enum FollowOrder {
    Follow { holder: NodeId, admission: Admission, history: Vec<Lineage> },
    Unfollow,
}

impl Hands {
    /// Has an order carried out, after those that were given before.
    pub(crate) fn order(&self, order: FollowOrder) {
        // Only a daemon that ends carries out no orders.
        let _ = self.inner.orders.send(order);
    }

    pub(super) async fn carry_out_orders(self, mut orders: UnboundedReceiver<FollowOrder>) {
        let mut next = orders.recv().await;
        while let Some(order) = next {
            // A newer order takes the place of one that hangs, on a disk for instance.
            next = tokio::select! {
                biased;
                newer = orders.recv() => newer,
                () = self.carry_out_order(order) => orders.recv().await,
            };
        }
    }

    async fn carry_out_order(&self, order: FollowOrder) {
        let FollowOrder::Follow { holder, admission, history } = order else {
            return self.unfollow().await;
        };
        // A task that was dropped, such as a seal of an earlier epoch, is really gone once its turn is
        // free, and ends nothing that is begun here. The turn is not kept: a fence must not wait.
        drop(self.inner.turn.lock().await);
        if let Err(failure) = self.follow(holder, admission, history).await {
            let end = FollowEnd::Again(failure.words);
            let _ = self.options().events.send(Event::FollowEnded(end));
        }
    }

    /// Follows `holder` under `admission`; does nothing if that is what is being done.
    pub(super) async fn follow(
        &self,
        holder: NodeId,
        admission: Admission,
        history: Vec<Lineage>,
    ) -> Result<(), TaskFailure> {
        if let Some(following) = self.following() {
            let same = following.holder == holder
                && following.admission.epoch == admission.epoch
                && following.admission.promotion == admission.promotion
                && !following.stop.is_cancelled()
                && !following.ended.is_cancelled();
            if same {
                return Ok(());
            }
        }
        self.unfollow().await;
        let options = self.options();
        let dialer = (options.bulk)(holder)
            .ok_or_else(|| transient_words("the holder is not a member that can be reached"))?;
        let empty_start = self.empty_start(&history).await?;
        let journal = self.journal().clone();
        let lineage = history.clone();
        super::blocking(move || {
            journal.raise_epoch(admission.epoch)?;
            journal.set_lineage(lineage)
        })
        .await
        .map_err(super::transient)?;
        let receiver = Receiver::start(
            ReceiverOptions {
                connect: Arc::new(move || dialer.channel()),
                journal: options.journal.clone(),
                admission,
                lineage: history,
                cluster: options.cluster,
                system_id: self.system_id().await,
                node: options.me,
                name: options.name.clone(),
                incarnation: options.incarnation,
                empty_start,
                standby: options.standby.clone(),
            },
            options.clock.clone(),
        )
        .map_err(super::transient)?;
        let following = Arc::new(Following {
            holder,
            admission,
            status: receiver.status(),
            stop: CancellationToken::new(),
            ended: CancellationToken::new(),
        });
        self.inner.following.send_replace(Some(following.clone()));
        let (events, fatal) = (options.events.clone(), options.fatal.clone());
        tokio::spawn(watch_receiver(receiver, following, events, fatal));
        tracing::info!(%holder, epoch = %admission.epoch, "following");
        Ok(())
    }

    /// Stops following and waits until nothing is written any more on its behalf.
    pub(super) async fn unfollow(&self) {
        let Some(following) = self.following() else { return };
        following.stop.cancel();
        following.ended.cancelled().await;
        // Only now, so that whoever comes after a wait that was dropped waits as well.
        self.inner.following.send_if_modified(|held| {
            let same = held.as_ref().is_some_and(|held| Arc::ptr_eq(held, &following));
            if same {
                *held = None;
            }
            same
        });
    }

    pub(super) async fn control(&self) -> Result<ControlData, TaskFailure> {
        match self.server().inspect().await.map_err(super::transient)? {
            DataDirectory::Cluster(control) => Ok(*control),
            other => Err(transient_words(&super::observe::unusable(&other))),
        }
    }

    /// Where an empty journal has to begin so that the standby finds all that it needs.
    async fn empty_start(&self, history: &[Lineage]) -> Result<Option<EmptyStart>, TaskFailure> {
        if self.journal().identity().is_some() {
            return Ok(None);
        }
        let control = self.control().await?;
        let label = self.server().settings().data_dir.join("backup_label");
        let begin = std::fs::read_to_string(label).ok().and_then(|text| backup_start(&text));
        let lsn = begin.unwrap_or(control.redo_lsn);
        let first = lsn.align_down(control.segment_size.bytes());
        let timeline = timeline_at(history, first)
            .ok_or_else(|| transient_words("the cluster's history is empty"))?;
        Ok(Some(EmptyStart { timeline, lsn: first, segment_size: control.segment_size }))
    }
}

/// `START WAL LOCATION: 0/2000028 (file …)` of a backup label (manual, "Continuous Archiving").
fn backup_start(label: &str) -> Option<Lsn> {
    let line = label.lines().find_map(|line| line.strip_prefix("START WAL LOCATION: "))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Which timeline the byte at `lsn` is on in the cluster's history, oldest first.
fn timeline_at(history: &[Lineage], lsn: Lsn) -> Option<Timeline> {
    let after_fork = |entry: &&Lineage| entry.fork_lsn.is_none_or(|fork| fork <= lsn);
    history.iter().rev().find(after_fork).or(history.first()).map(|entry| entry.timeline)
}

async fn watch_receiver(
    mut receiver: understudy_shipping::receiver::ReceiverHandle,
    following: Arc<Following>,
    events: tokio::sync::mpsc::UnboundedSender<Event>,
    fatal: tokio::sync::watch::Sender<Option<String>>,
) {
    let end = tokio::select! {
        end = receiver.ended() => end,
        () = following.stop.cancelled() => {
            receiver.stop();
            receiver.ended().await
        }
    };
    let asked = following.stop.is_cancelled();
    following.ended.cancel();
    if asked {
        return;
    }
    let event = match end {
        ReceiverEnd::Refused { reason: Reason::Diverged, detail, .. } => {
            FollowEnd::Diverged(format!("the holder refuses what is held here: {detail}"))
        }
        ReceiverEnd::Refused { reason: Reason::WalGone, detail, .. } => {
            FollowEnd::WalGone(format!("the holder no longer has the WAL that is needed: {detail}"))
        }
        // Epochs that do not agree are brought together by the replicated state, sooner or later.
        ReceiverEnd::Refused { detail, .. } => FollowEnd::Again(detail),
        // A journal that failed a write is good only after it was opened anew, which finds its durable
        // end from the files alone; a start does that, and the service manager sees to the start.
        ReceiverEnd::JournalFailed(error) if error.is_fatal() => {
            fatal.send_replace(Some(format!(
                "the journal cannot go on: {}; nothing that it acknowledged is lost; mend the cause \
                 and start the node again",
                chain(error.as_ref())
            )));
            return;
        }
        ReceiverEnd::JournalFailed(error) => FollowEnd::JournalFailed(chain(error.as_ref())),
        ReceiverEnd::NothingToStartFrom => {
            FollowEnd::JournalFailed("the journal does not know where to begin".to_owned())
        }
        ReceiverEnd::NotAdmitted | ReceiverEnd::Cancelled => return,
    };
    tracing::warn!(?event, "following ended");
    // Nobody listens only when the daemon ends.
    let _ = events.send(Event::FollowEnded(event));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_label_tells_where_its_wal_begins() {
        let label =
            "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT: x\n";
        assert_eq!(backup_start(label), Some(Lsn(0x200_0028)));
        assert_eq!(backup_start("nonsense"), None);
    }
}
