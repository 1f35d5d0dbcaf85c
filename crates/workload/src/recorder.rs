//! The ledger as the writers share it, with the clock that stamps it and the counts that are watched.
//!
//! It notes; it does not judge (that is `understudy-checks`).

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use understudy_checks::{Ledger, LedgerFull, Outcome, RowId, Tenant, WriteId};

/// A ledger, a clock that began with it, and identities that are never given out twice.
pub struct Recorder {
    began: Instant,
    ledger: Mutex<Ledger>,
    next_row: AtomicU64,
    /// Which server each connection leads to, in the order of their identities (from 1).
    connections: Mutex<Vec<usize>>,
    acknowledged_count: AtomicU64,
    failed_count: AtomicU64,
    unknown_count: AtomicU64,
    last_acknowledged_us: AtomicU64,
}

impl Recorder {
    /// An empty ledger for at most `capacity_count` writes; time begins now.
    pub fn new(capacity_count: usize) -> Recorder {
        Recorder {
            began: Instant::now(),
            ledger: Mutex::new(Ledger::new(capacity_count)),
            next_row: AtomicU64::new(1),
            connections: Mutex::new(Vec::new()),
            acknowledged_count: AtomicU64::new(0),
            failed_count: AtomicU64::new(0),
            unknown_count: AtomicU64::new(0),
            last_acknowledged_us: AtomicU64::new(0),
        }
    }

    /// Time since the ledger began.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// A row identity that nobody else has.
    pub(crate) fn new_row(&self) -> RowId {
        RowId(self.next_row.fetch_add(1, Ordering::Relaxed))
    }

    /// A connection identity that nobody else has, for a connection to the server with this index.
    pub(crate) fn new_connection(&self, server: usize) -> u64 {
        let mut connections = self.lock_connections();
        connections.push(server);
        connections.len() as u64
    }

    /// Which server a connection led to, as [`crate::Writable::index`] counts; `None` for an identity
    /// that was never given out.
    pub fn server_of(&self, connection: u64) -> Option<usize> {
        let index = usize::try_from(connection).ok()?.checked_sub(1)?;
        self.lock_connections().get(index).copied()
    }

    /// Notes a write before it is sent.
    pub(crate) fn begin(
        &self,
        row: RowId,
        tenant: Tenant,
        revision: u32,
        connection: u64,
    ) -> Result<WriteId, LedgerFull> {
        let now = self.now();
        self.lock().begin(row, tenant, revision, connection, now)
    }

    /// Notes what the client was told, and returns when.
    pub(crate) fn finish(
        &self,
        write: WriteId,
        outcome: Outcome,
        transaction: Option<u32>,
    ) -> Duration {
        let now = self.now();
        let noted = self.lock().finish(write, outcome, transaction, now);
        noted.expect("each writer ends its own write once");
        let count = match outcome {
            Outcome::Acknowledged => {
                let now_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
                self.last_acknowledged_us.fetch_max(now_us, Ordering::Relaxed);
                &self.acknowledged_count
            }
            Outcome::Failed => &self.failed_count,
            Outcome::Unknown => &self.unknown_count,
        };
        count.fetch_add(1, Ordering::Relaxed);
        now
    }

    /// Acknowledged, failed and unknown writes so far; those under way are in none of them.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.acknowledged_count), load(&self.failed_count), load(&self.unknown_count))
    }

    /// When a write was acknowledged last; `None` before the first one.
    pub(crate) fn last_acknowledged_at(&self) -> Option<Duration> {
        let at_us = self.last_acknowledged_us.load(Ordering::Relaxed);
        (at_us > 0).then(|| Duration::from_micros(at_us))
    }

    /// Looks at the ledger. Writers wait meanwhile, so a long look belongs after they have stopped.
    pub fn with_ledger<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.lock())
    }

    /// When the ledger began: what its moments count from.
    pub fn began(&self) -> Instant {
        self.began
    }

    fn lock_connections(&self) -> std::sync::MutexGuard<'_, Vec<usize>> {
        self.connections.lock().expect("no holder of this lock panics: it only pushes to a vector")
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("no holder of this lock panics: it only pushes to a vector")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_known_by_the_server_that_it_led_to() {
        let recorder = Recorder::new(10);
        let (first, second) = (recorder.new_connection(1), recorder.new_connection(0));
        assert_ne!(first, second);
        assert_eq!(recorder.server_of(first), Some(1));
        assert_eq!(recorder.server_of(second), Some(0));
        assert_eq!([recorder.server_of(0), recorder.server_of(3)], [None, None]);
    }
}
