//! Following the holder, as a data node does it: from where its standby needs WAL.

use tokio::sync::mpsc::UnboundedReceiver;
use understudy_core::node::{Event, FollowEnd, TaskFailure};
use understudy_postgres::{ControlData, DataDirectory};
use understudy_shipping::receiver::EmptyStart;
use understudy_types::{Admission, Lineage, Lsn, NodeId, Timeline};

use super::{Hands, transient_words};
use crate::follower::{FollowOrder, in_turn};

impl Hands {
    /// Has an order carried out, after those that were given before.
    pub(crate) fn order(&self, order: FollowOrder) {
        // Only a daemon that ends carries out no orders.
        let _ = self.inner.orders.send(order);
    }

    pub(super) async fn carry_out_orders(self, orders: UnboundedReceiver<FollowOrder>) {
        in_turn(orders, |order| self.carry_out_order(order)).await;
    }

    async fn carry_out_order(&self, order: FollowOrder) {
        let FollowOrder::Follow { holder, admission, history } = order else {
            return self.follower().unfollow().await;
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
        if self.follower().follows(holder, &admission) {
            return Ok(());
        }
        self.follower().unfollow().await;
        let empty_start = self.empty_start(&history).await?;
        let system_id = self.system_id().await;
        self.follower().follow(holder, admission, history, empty_start, system_id).await
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
        let brought = if begin.is_none() { self.foreign_end(&control).await? } else { None };
        let lsn = begin.or(brought).unwrap_or(control.redo_lsn);
        let first = lsn.align_down(control.segment_size.bytes());
        let timeline = timeline_at(history, first)
            .ok_or_else(|| transient_words("the cluster's history is empty"))?;
        let segment_size = control.segment_size;
        Ok(Some(EmptyStart::At { timeline, lsn: first, segment_size }))
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
