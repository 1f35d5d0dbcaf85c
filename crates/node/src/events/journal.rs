//! The journal of a node's events: bounded, in memory, numbered from 1 with each start of the daemon.
//!
//! Writing never waits. A reader asks for what follows the number that it has seen, and is told how
//! many of those are not kept any more. There is no file: what the cluster agrees on is on record and is
//! told again after a restart, and every event also goes to the log.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use understudy_types::Epoch;

use super::{EVENT_VERSION, Event, Happening, Kind, Severity};
use crate::clock::wall_unix_us;

/// Events that are kept.
pub(crate) const EVENTS_KEPT: usize = 2000;
/// Longer sentences are cut: a program's words may be of any length.
const WORDS_BYTES_MAX: usize = 4096;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct EventJournal {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    node: String,
    started_unix_us: i64,
    kept: Mutex<VecDeque<Event>>,
    newest: watch::Sender<u64>,
}

/// What a reader is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    /// In their order.
    pub(crate) events: Vec<Event>,
    /// So many before them are not kept any more.
    pub(crate) missed_count: u64,
    /// Where to go on.
    pub(crate) upto: u64,
}

impl EventJournal {
    /// An empty journal of this node, which begins now.
    pub(crate) fn new(node: &str) -> EventJournal {
        let started_unix_us = wall_unix_us();
        let (kept, newest) = (Mutex::default(), watch::Sender::new(0));
        EventJournal {
            inner: Arc::new(Inner { node: node.to_owned(), started_unix_us, kept, newest }),
        }
    }

    /// Whose it is.
    pub(crate) fn node(&self) -> &str {
        &self.inner.node
    }

    /// When it began.
    pub(crate) fn started_unix_us(&self) -> i64 {
        self.inner.started_unix_us
    }

    /// Puts it in its place; the event.
    pub(crate) fn add(&self, happening: Happening) -> Event {
        let Happening { kind, severity, subject, words, epoch, from, to, at_unix_us } = happening;
        let mut kept = self.kept();
        let sequence = *self.inner.newest.borrow() + 1;
        let event = Event {
            version: EVENT_VERSION,
            sequence,
            at_unix_us,
            node: self.inner.node.clone(),
            kind,
            severity,
            subject,
            words: cut(words),
            epoch,
            from,
            to,
        };
        if kept.len() == EVENTS_KEPT {
            kept.pop_front();
        }
        kept.push_back(event.clone());
        // While the lock is held, so that numbers are given once and grow.
        self.inner.newest.send_replace(sequence);
        drop(kept);
        log(&event);
        event
    }

    /// The same for what this node did or saw just now, in the epoch of the newest event.
    pub(crate) fn add_now(
        &self,
        (kind, severity): (Kind, Severity),
        subject: &str,
        (from, to): (Option<String>, Option<String>),
        words: String,
    ) -> Event {
        let epoch = self.kept().back().map_or(Epoch::NONE, |newest| newest.epoch);
        let (subject, at_unix_us) = (subject.to_owned(), wall_unix_us());
        self.add(Happening { kind, severity, subject, words, epoch, from, to, at_unix_us })
    }

    /// The events after this number, so many at most, of these kinds or of all.
    pub(crate) fn after(&self, sequence: u64, kinds: &[Kind], count_max: usize) -> Batch {
        let kept = self.kept();
        let newest = *self.inner.newest.borrow();
        let oldest = kept.front().map_or(newest + 1, |oldest| oldest.sequence);
        let missed_count = oldest.saturating_sub(sequence + 1);
        let mut batch = Batch { events: Vec::new(), missed_count, upto: newest.max(sequence) };
        // Numbers have no gaps, so that the place follows from the number.
        let seen = usize::try_from((sequence + 1).saturating_sub(oldest)).unwrap_or(usize::MAX);
        for event in kept.iter().skip(seen) {
            if !kinds.is_empty() && !kinds.contains(&event.kind) {
                continue;
            }
            if batch.events.len() == count_max {
                batch.upto = batch.events.last().map_or(sequence, |last| last.sequence);
                break;
            }
            batch.events.push(event.clone());
        }
        batch
    }

    /// The newest number; changes with every event.
    pub(crate) fn newest(&self) -> watch::Receiver<u64> {
        self.inner.newest.subscribe()
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cut(mut words: String) -> String {
    if words.len() > WORDS_BYTES_MAX {
        words.truncate(words.floor_char_boundary(WORDS_BYTES_MAX));
        words.push('…');
    }
    words
}

fn log(event: &Event) {
    let Event { sequence, kind, subject, words, .. } = event;
    let kind = kind.as_str();
    match event.severity {
        Severity::Info => tracing::info!(sequence, kind, subject, words, "event"),
        Severity::Warning | Severity::Alert => {
            tracing::warn!(sequence, kind, subject, words, "event");
        }
    }
}
