//! A node that keeps the journal and has no PostgreSQL: carries out what its core asks for.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc::{self, UnboundedSender};
use understudy_core::node::{
    Completion, Event, FollowEnd, JournalView, LocalView, Task, TaskFailure,
};
use understudy_shipping::journal::Journal;
use understudy_shipping::receiver::EmptyStart;
use understudy_types::{Epoch, Lsn};

use crate::follower::{FollowOrder, Follower, FollowerOptions, in_turn};
use crate::hands::{blocking, journal_aside, transient, transient_words};

/// Such a node's only hand. Cheap to clone.
#[derive(Clone)]
pub(crate) struct JournalNode {
    inner: Arc<Inner>,
}

struct Inner {
    follower: Follower,
    data_dir: PathBuf,
    orders: UnboundedSender<FollowOrder>,
    events: UnboundedSender<Event>,
}

impl JournalNode {
    /// Must be called within a tokio runtime.
    pub(crate) fn new(options: FollowerOptions, data_dir: PathBuf) -> JournalNode {
        let (orders, given) = mpsc::unbounded_channel();
        let events = options.events.clone();
        let follower = Follower::new(options);
        let node = JournalNode { inner: Arc::new(Inner { follower, data_dir, orders, events }) };
        let carrying = node.clone();
        tokio::spawn(async move { in_turn(given, |order| carrying.carry_out_order(order)).await });
        node
    }

    pub(crate) fn follower(&self) -> &Follower {
        &self.inner.follower
    }

    pub(crate) fn journal(&self) -> &Journal {
        self.inner.follower.journal()
    }

    /// Has an order carried out, after those that were given before.
    pub(crate) fn order(&self, order: FollowOrder) {
        // Only a daemon that ends carries out no orders.
        let _ = self.inner.orders.send(order);
    }

    /// Carries out a task.
    ///
    /// # Errors
    /// Why it could not be, or that it is not one for such a node.
    pub(crate) async fn carry_out(&self, task: Task) -> Result<Completion, TaskFailure> {
        match task {
            Task::BeginJournalAnew(epoch) => self.begin_anew(epoch).await,
            _ => Err(transient_words("this node has no PostgreSQL")),
        }
    }

    /// What there is to see here.
    pub(crate) fn look(&self) -> LocalView {
        let begin_lsn = self.journal().positions().borrow().as_ref().map(|held| held.begin_lsn);
        let journal = journal_view(self.journal()).zip(begin_lsn);
        let journal = journal.map(|(view, begin_lsn)| JournalView { begin_lsn, ..view });
        LocalView { journal, ..LocalView::default() }
    }

    async fn carry_out_order(&self, order: FollowOrder) {
        let FollowOrder::Follow { holder, admission, history } = order else {
            return self.follower().unfollow().await;
        };
        if self.follower().follows(holder, &admission) {
            return;
        }
        let start = Some(EmptyStart::AtTip);
        let followed = self.follower().follow(holder, admission, history, start, None).await;
        if let Err(failure) = followed {
            let end = FollowEnd::Again(failure.words);
            let _ = self.inner.events.send(Event::FollowEnded(end));
        }
    }

    async fn begin_anew(&self, epoch: Epoch) -> Result<Completion, TaskFailure> {
        self.follower().unfollow().await;
        if self.journal().identity().is_some() {
            let data_dir = self.inner.data_dir.clone();
            let into = blocking(move || journal_aside(&data_dir, epoch)).await;
            self.follower().set_journal_aside(into.map_err(transient)?).await?;
        }
        Ok(Completion::JournalEmptied)
    }
}

/// The journal, as the core has it where the data is there too.
pub(crate) fn journal_view(journal: &Journal) -> Option<JournalView> {
    let positions = journal.positions().borrow().clone()?;
    // The last link whose WAL this is: the journal may lag behind the recorded lineage.
    Some(JournalView {
        timeline: positions.timeline,
        durable_lsn: positions.durable_lsn,
        promotion: journal.lineage().last().map(|last| last.promotion),
        begin_lsn: Lsn::ZERO,
    })
}
