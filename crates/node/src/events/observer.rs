//! Looks at each snapshot as it is made, and puts what happened into the journal.
//!
//! A daemon that starts applies the log of the past before it knows the present: until the leader has
//! confirmed that it is up to date, only what it sees by itself is news. Then it tells the record once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use understudy_consensus::Consensus;
use understudy_types::Epoch;

use super::{
    EventJournal, Happening, Kind, Severity, agreed_between, events_of_record, local_between,
};
use crate::hooks::Hooks;
use crate::status::ClusterStatus;

/// How long one question to the leader may take, and the rest after one without an answer.
const ASK_PATIENCE: Duration = Duration::from_secs(2);
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Keep one for the life of the daemon.
#[derive(Debug)]
pub(crate) struct EventObserver {
    journal: EventJournal,
    /// This node's state has caught up with the cluster's, once.
    up_to_date: Arc<AtomicBool>,
    hooks: Hooks,
    /// What other parts of the daemon did, which no snapshot shows.
    news: mpsc::Receiver<Happening>,
    before: Option<ClusterStatus>,
    knows_the_agreed: bool,
}

impl EventObserver {
    /// Into `journal`, and on to the hooks; `news` with the next snapshot, in its epoch.
    pub(crate) fn new(
        journal: EventJournal,
        up_to_date: Arc<AtomicBool>,
        hooks: Hooks,
        news: mpsc::Receiver<Happening>,
    ) -> EventObserver {
        EventObserver { journal, up_to_date, hooks, news, before: None, knows_the_agreed: false }
    }

    /// The next snapshot.
    pub(crate) fn observe(&mut self, status: &ClusterStatus) {
        let mut found = match &self.before {
            None => vec![self.started(status)],
            Some(before) => local_between(before, status),
        };
        if self.knows_the_agreed {
            if let Some(before) = &self.before {
                found.splice(0..0, agreed_between(before, status));
            }
        } else if self.up_to_date.load(Ordering::Acquire) && status.epoch != Epoch::NONE {
            self.knows_the_agreed = true;
            found.extend(events_of_record(status));
        }
        while let Ok(news) = self.news.try_recv() {
            found.push(Happening { epoch: status.epoch, ..news });
        }
        self.before = Some(status.clone());
        for happening in found {
            let of_the_past = happening.at_unix_us < self.journal.started_unix_us();
            let event = self.journal.add(happening);
            // What was before this start of the daemon is told, and not done again.
            if !of_the_past {
                self.hooks.offer(&event, &self.journal);
            }
        }
    }

    fn started(&self, status: &ClusterStatus) -> Happening {
        let version = env!("CARGO_PKG_VERSION");
        Happening {
            kind: Kind::DaemonStarted,
            severity: Severity::Info,
            subject: status.answered_by.clone(),
            words: format!("the daemon of {}, version {version}, has begun", status.answered_by),
            epoch: status.epoch,
            from: None,
            to: None,
            at_unix_us: status.at_unix_us,
        }
    }
}

/// Asks until a leader has confirmed that this node has applied everything, then says so once.
pub(crate) async fn know_the_agreed(consensus: Consensus, up_to_date: Arc<AtomicBool>) {
    while consensus.read_index(ASK_PATIENCE).await.is_err() {
        tokio::time::sleep(ASK_AGAIN).await;
    }
    up_to_date.store(true, Ordering::Release);
}
