//! Who is connected to the HTTP door, and who has to go when it is full.
//!
//! A health check must get through whatever else happens, so a full door closes the connection that has
//! waited longest for a request and lets the new one in. Whoever is being answered is never closed for
//! that; where all are, the new one is turned away at once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Everybody who is connected; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Connections {
    count_max: usize,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By number, which grows.
    open: BTreeMap<u64, Arc<Connection>>,
    /// Grows with every event; what is smaller was earlier.
    clock: u64,
    turned_away_count: u64,
}

/// One of them.
#[derive(Debug, Default)]
struct Connection {
    closed: CancellationToken,
    answering: AtomicBool,
    /// When it was accepted or last answered.
    idle_since: AtomicU64,
}

/// A place at the door; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    connection: Arc<Connection>,
    all: Connections,
}

impl Connections {
    pub(super) fn new(count_max: usize) -> Connections {
        Connections { count_max, inner: Arc::default() }
    }

    /// A place for a new connection, if need be that of the one that has been idle longest.
    pub(super) fn admit(&self) -> Option<Place> {
        let mut inner = self.lock();
        if inner.open.len() >= self.count_max {
            inner.turned_away_count += 1;
            let idle = inner.open.iter().filter(|(_, c)| !c.answering.load(Ordering::Relaxed));
            let longest = idle.min_by_key(|(_, c)| c.idle_since.load(Ordering::Relaxed));
            let number = *longest?.0;
            if let Some(longest) = inner.open.remove(&number) {
                longest.closed.cancel();
            }
        }
        inner.clock += 1;
        let number = inner.clock;
        let connection = Arc::new(Connection::default());
        connection.idle_since.store(number, Ordering::Relaxed);
        inner.open.insert(number, connection.clone());
        Some(Place { number, connection, all: self.clone() })
    }

    /// How many there are, and how many had to go or were not let in.
    pub(super) fn counts(&self) -> (usize, u64) {
        let inner = self.lock();
        (inner.open.len(), inner.turned_away_count)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is one insertion or removal; none can be left half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Returns once the place was given to somebody else.
    pub(super) async fn taken(&self) {
        self.connection.closed.cancelled().await;
    }

    /// A request is being answered, until [`Place::answered`].
    pub(super) fn answering(&self) {
        self.connection.answering.store(true, Ordering::Relaxed);
    }

    /// The answer is made.
    pub(super) fn answered(&self) {
        let mut inner = self.all.lock();
        inner.clock += 1;
        self.connection.idle_since.store(inner.clock, Ordering::Relaxed);
        self.connection.answering.store(false, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.lock().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_door_closes_who_has_been_idle_longest_and_never_who_is_answered() {
        let all = Connections::new(2);
        let [first, second] = [all.admit().unwrap(), all.admit().unwrap()];
        first.answering();
        let third = all.admit().expect("the second goes");
        assert!(second.connection.closed.is_cancelled() && !first.connection.closed.is_cancelled());
        drop(second);
        assert_eq!(all.counts(), (2, 1));
        third.answering();
        assert!(all.admit().is_none(), "everybody is being answered");
        assert_eq!(all.counts(), (2, 2));
        first.answered();
        let fourth = all.admit().expect("the first is idle");
        assert!(first.connection.closed.is_cancelled());
        drop((first, third, fourth));
        assert_eq!(all.counts().0, 0);
    }
}
