//! Following the holder: one receiver at a time, for one epoch, until it is told to stop.
//!
//! A data node's hands and a node that has nothing but a journal both do this; whom to follow is the
//! core's decision.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use understudy_core::node::{Event, FollowEnd, TaskFailure};
use understudy_proto::v1::refused::Reason;
use understudy_shipping::journal::Journal;
use understudy_shipping::receiver::{
    EmptyStart, Receiver, ReceiverEnd, ReceiverHandle, ReceiverOptions, ReceiverStatus,
    StandbyProgress,
};
use understudy_types::{
    Admission, Clock, ClusterId, Epoch, Incarnation, Lineage, NodeId, NodeName, SealedEnd, SystemId,
};

use crate::hands::{BulkDialer, blocking, chain, transient, transient_words};

/// What the core wishes to be followed from now on.
pub(crate) enum FollowOrder {
    Follow { holder: NodeId, admission: Admission, history: Vec<Lineage> },
    Unfollow,
}

/// What a follower is made of.
pub(crate) struct FollowerOptions {
    pub(crate) me: NodeId,
    pub(crate) name: NodeName,
    pub(crate) cluster: ClusterId,
    pub(crate) incarnation: Incarnation,
    pub(crate) journal: Journal,
    /// There is no data beside the journal.
    pub(crate) only_journal: bool,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) bulk: BulkDialer,
    pub(crate) standby: watch::Receiver<StandbyProgress>,
    pub(crate) events: UnboundedSender<Event>,
    /// Why the daemon must stop, once it must.
    pub(crate) fatal: watch::Sender<Option<String>>,
}

/// The receiver that runs, and for what.
pub(crate) struct Following {
    pub(crate) holder: NodeId,
    pub(crate) admission: Admission,
    pub(crate) status: watch::Receiver<ReceiverStatus>,
    stop: CancellationToken,
    ended: CancellationToken,
}

/// Follows; cheap to clone.
#[derive(Clone)]
pub(crate) struct Follower {
    inner: Arc<Inner>,
}

struct Inner {
    options: FollowerOptions,
    following: watch::Sender<Option<Arc<Following>>>,
}

impl Follower {
    pub(crate) fn new(options: FollowerOptions) -> Follower {
        Follower { inner: Arc::new(Inner { options, following: watch::Sender::new(None) }) }
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.inner.options.journal
    }

    /// What is followed, while anything is.
    pub(crate) fn following(&self) -> Option<Arc<Following>> {
        self.inner.following.borrow().clone()
    }

    /// This is what is being done already.
    pub(crate) fn follows(&self, holder: NodeId, admission: &Admission) -> bool {
        self.following().is_some_and(|following| {
            following.holder == holder
                && following.admission.epoch == admission.epoch
                && following.admission.promotion == admission.promotion
                && !following.stop.is_cancelled()
                && !following.ended.is_cancelled()
        })
    }

    /// Follows `holder` under `admission`, in place of what is followed.
    pub(crate) async fn follow(
        &self,
        holder: NodeId,
        admission: Admission,
        history: Vec<Lineage>,
        empty_start: Option<EmptyStart>,
        system_id: Option<SystemId>,
    ) -> Result<(), TaskFailure> {
        self.unfollow().await;
        let options = &self.inner.options;
        let dialer = (options.bulk)(holder)
            .ok_or_else(|| transient_words("the holder is not a member that can be reached"))?;
        let journal = options.journal.clone();
        let lineage = history.clone();
        blocking(move || {
            journal.raise_epoch(admission.epoch)?;
            journal.set_lineage(lineage)
        })
        .await
        .map_err(transient)?;
        let receiver = Receiver::start(
            ReceiverOptions {
                connect: Arc::new(move || dialer.channel()),
                journal: options.journal.clone(),
                admission,
                lineage: history,
                cluster: options.cluster,
                system_id,
                node: options.me,
                name: options.name.clone(),
                incarnation: options.incarnation,
                empty_start,
                only_journal: options.only_journal,
                standby: options.standby.clone(),
            },
            options.clock.clone(),
        )
        .map_err(transient)?;
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
    pub(crate) async fn unfollow(&self) {
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

    /// Seals the journal for another node that was granted `epoch`; what is followed ends before, unless
    /// that is of this epoch already: then its promotion is over, and nobody needs the seal.
    ///
    /// # Errors
    /// Why it is not sealed, in words.
    pub(crate) async fn seal_for(&self, epoch: Epoch) -> Result<Option<SealedEnd>, String> {
        if self.following().is_some_and(|following| following.admission.epoch >= epoch) {
            return Err(format!("the holder of epoch {epoch} is followed here already"));
        }
        self.unfollow().await;
        let journal = self.journal().clone();
        let sealed = blocking(move || journal.seal(epoch)).await.map_err(|error| chain(&error))?;
        let end = sealed.map(|sealed| sealed.durable_lsn);
        tracing::info!(%epoch, ?end, "journal sealed for the candidate");
        Ok(sealed)
    }

    /// Moves the journal into `into` and begins with an empty one.
    pub(crate) async fn set_journal_aside(
        &self,
        into: std::path::PathBuf,
    ) -> Result<(), TaskFailure> {
        let journal = self.journal().clone();
        tracing::info!(into = %into.display(), "setting the journal aside");
        let aside = blocking(move || journal.set_aside(&into)).await;
        aside.map_err(|error| {
            if error.is_fatal() {
                // It is good only after it was opened anew, as for a receiver that meets the same.
                self.inner.options.fatal.send_replace(Some(format!(
                    "the journal cannot go on: {}; mend the cause and start the node again",
                    chain(&error)
                )));
            }
            transient(error)
        })
    }
}

/// Carries out orders in turn; a newer one takes the place of one that hangs, on a disk for instance.
pub(crate) async fn in_turn<F: Future<Output = ()>>(
    mut orders: UnboundedReceiver<FollowOrder>,
    carry_out: impl Fn(FollowOrder) -> F,
) {
    let mut next = orders.recv().await;
    while let Some(order) = next {
        next = tokio::select! {
            biased;
            newer = orders.recv() => newer,
            () = carry_out(order) => orders.recv().await,
        };
    }
}

async fn watch_receiver(
    mut receiver: ReceiverHandle,
    following: Arc<Following>,
    events: UnboundedSender<Event>,
    fatal: watch::Sender<Option<String>>,
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
        // Sealed on behalf of somebody else while it was followed: the state says whom to follow now.
        ReceiverEnd::NotAdmitted => {
            FollowEnd::Again("the journal admits another epoch by now".to_owned())
        }
        ReceiverEnd::Cancelled => return,
    };
    tracing::warn!(?event, "following ended");
    // Nobody listens only when the daemon ends.
    let _ = events.send(Event::FollowEnded(event));
}
