//! Where the core's permit lies, and the one place in which "may release" and "releases" are one step.
//!
//! The lock is held over the check of the permit *and* the one non-blocking write of the status update,
//! so that `close` means closed when it returns, and can say how far was released. Writers come one
//! at a time, since they hold the gate's lock, and the core sets a permit a few times a second. Nothing
//! here may wait for anything else while it holds the lock.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;
use understudy_types::{BootInstant, Clock, Epoch, Lsn, Permit, PermitSerial};

/// A permit was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PermitError {
    /// The gate is closed for good in this epoch.
    #[error("set permit of epoch {epoch}: the gate is closed")]
    Closed {
        /// The permit's epoch.
        epoch: Epoch,
    },
    /// The permit belongs to another epoch than the gate.
    #[error("set permit of epoch {epoch}: the gate is in epoch {current}")]
    WrongEpoch {
        /// The permit's epoch.
        epoch: Epoch,
        /// The gate's.
        current: Epoch,
    },
    /// A later permit is already in force.
    #[error("set permit {serial:?}: {current:?} is in force")]
    StaleSerial {
        /// The late permit's number.
        serial: PermitSerial,
        /// The number in force.
        current: PermitSerial,
    },
    /// `reopen` needs a newer epoch than the one that was closed.
    #[error("reopen gate for epoch {epoch}: epoch {current} is not older")]
    NotNewer {
        /// The epoch asked for.
        epoch: Epoch,
        /// The gate's.
        current: Epoch,
    },
}

/// A release that was decided in time and whose write was over only after the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LateRelease {
    /// How far it released.
    pub upto_lsn: Lsn,
    /// When the write was over.
    pub at: BootInstant,
    /// The deadline that it missed.
    pub deadline: BootInstant,
}

/// What the cell can tell about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellStatus {
    /// The epoch it serves.
    pub epoch: Epoch,
    /// Closed for good in this epoch.
    pub closed: bool,
    /// The permit in force, if any.
    pub serial: Option<PermitSerial>,
    /// Its deadline.
    pub deadline: Option<BootInstant>,
    /// The greatest flush position reported to PostgreSQL in this epoch.
    pub released_upto: Lsn,
    /// How many releases were late, in the whole life of the cell.
    pub late_release_count: u64,
    /// The newest of them.
    pub last_late_release: Option<LateRelease>,
}

#[derive(Debug)]
struct Inner {
    epoch: Epoch,
    closed: bool,
    permit: Option<Permit>,
    /// Kept when the permit goes, so that a late permit stays late.
    serial: Option<PermitSerial>,
    released_upto: Lsn,
    late_release_count: u64,
    last_late_release: Option<LateRelease>,
}

/// The permit, shared by the core that sets it, the gate that acts under it, and `/primary`.
#[derive(Debug)]
pub struct PermitCell {
    inner: Mutex<Inner>,
    changed: Arc<Notify>,
}

impl PermitCell {
    /// A shut gate in `epoch`, without a permit yet.
    pub fn new(epoch: Epoch) -> PermitCell {
        PermitCell {
            inner: Mutex::new(Inner {
                epoch,
                closed: false,
                permit: None,
                serial: None,
                released_upto: Lsn::ZERO,
                late_release_count: 0,
                last_late_release: None,
            }),
            changed: Arc::new(Notify::new()),
        }
    }

    /// Puts `permit` in force in place of the one before.
    ///
    /// # Errors
    /// When the gate is closed or in another epoch, or the permit's serial does not grow.
    pub fn set(&self, permit: Permit) -> Result<(), PermitError> {
        let mut inner = self.lock();
        if permit.epoch != inner.epoch {
            return Err(PermitError::WrongEpoch { epoch: permit.epoch, current: inner.epoch });
        }
        if inner.closed {
            return Err(PermitError::Closed { epoch: permit.epoch });
        }
        if let Some(current) = inner.serial.filter(|current| permit.serial <= *current) {
            return Err(PermitError::StaleSerial { serial: permit.serial, current });
        }
        inner.serial = Some(permit.serial);
        inner.permit = Some(permit);
        drop(inner);
        self.changed.notify_one();
        Ok(())
    }

    /// Closes the gate for good in this epoch; says how far was released.
    ///
    /// When it returns, no release of this epoch is under way and none will follow.
    pub fn close(&self) -> Lsn {
        let mut inner = self.lock();
        inner.closed = true;
        inner.permit = None;
        let released_upto = inner.released_upto;
        drop(inner);
        self.changed.notify_one();
        released_upto
    }

    /// Makes the gate usable for a newer epoch: shut, without a permit, nothing released yet.
    ///
    /// Positions of the older epoch mean nothing on the new one's timeline, so the released position
    /// begins at 0/0 again.
    ///
    /// # Errors
    /// When `epoch` is not newer.
    pub fn reopen(&self, epoch: Epoch) -> Result<(), PermitError> {
        let mut inner = self.lock();
        if epoch <= inner.epoch {
            return Err(PermitError::NotNewer { epoch, current: inner.epoch });
        }
        inner.epoch = epoch;
        inner.closed = false;
        inner.permit = None;
        inner.serial = None;
        inner.released_upto = Lsn::ZERO;
        drop(inner);
        self.changed.notify_one();
        Ok(())
    }

    /// Whether commits may be acknowledged at `now`: the load balancer's answer.
    pub fn is_open(&self, now: BootInstant) -> bool {
        self.lock().permit.as_ref().is_some_and(|permit| now < permit.deadline)
    }

    /// What the cell can tell about itself.
    pub fn status(&self) -> CellStatus {
        let inner = self.lock();
        CellStatus {
            epoch: inner.epoch,
            closed: inner.closed,
            serial: inner.serial,
            deadline: inner.permit.as_ref().map(|permit| permit.deadline),
            released_upto: inner.released_upto,
            late_release_count: inner.late_release_count,
            last_late_release: inner.last_late_release,
        }
    }

    /// Woken after every change; meant for the one gate of this process.
    pub fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }

    /// The permit in force, whether or not its deadline has come.
    pub fn permit(&self) -> Option<Permit> {
        self.lock().permit.clone()
    }

    /// Lets `act` release while the permit cannot change: the one way in which anything is released.
    ///
    /// `act` gets the moment, the permit, and what was released so far; it makes at most one
    /// non-blocking write and returns what that released, or `None` if nothing was written. The clock is
    /// read under the lock, and again after the write: a release past the deadline is counted, with its
    /// position (mistake 14: what was decided in time may be *delivered* late).
    ///
    /// Returns `None`, without calling `act`, when the gate is not open for `epoch`.
    pub fn with_open<T>(
        &self,
        epoch: Epoch,
        clock: &dyn Clock,
        act: impl FnOnce(BootInstant, &Permit, Lsn) -> (Option<Lsn>, T),
    ) -> Option<T> {
        let mut inner = self.lock();
        let now = clock.now();
        let released_before = inner.released_upto;
        let permit = inner.permit.as_ref().filter(|p| p.epoch == epoch && now < p.deadline)?;
        let deadline = permit.deadline;
        let (released, result) = act(now, permit, released_before);
        if let Some(upto_lsn) = released {
            assert!(
                upto_lsn >= released_before,
                "the gate went back from {released_before} to {upto_lsn}"
            );
            inner.released_upto = upto_lsn;
            let at = clock.now();
            if at >= deadline && upto_lsn > released_before {
                inner.late_release_count += 1;
                inner.last_late_release = Some(LateRelease { upto_lsn, at, deadline });
            }
        }
        Some(result)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Poisoned means that a thread panicked between check and write: the state cannot be trusted,
        // and a daemon that stops is safe.
        self.inner.lock().expect("the thread that held the permit panicked")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use understudy_types::{DurabilityMode, PromotionId};

    use super::*;

    struct TestClock(AtomicU64);

    impl Clock for TestClock {
        fn now(&self) -> BootInstant {
            BootInstant(self.0.load(Ordering::SeqCst))
        }
    }

    const ONE: Epoch = Epoch { incarnation: 0, number: 1 };
    const TWO: Epoch = Epoch { incarnation: 0, number: 2 };

    fn permit(serial: u64, epoch: Epoch, deadline: u64) -> Permit {
        Permit {
            serial: PermitSerial(serial),
            epoch,
            promotion: PromotionId(uuid::Uuid::nil()),
            deadline: BootInstant(deadline),
            mode: DurabilityMode::BestEffort,
            waited_for: Vec::new(),
            quorums: Vec::new(),
            sole_survivor: false,
            credit: Lsn::MAX,
            exposure_max: None,
        }
    }

    fn try_release(cell: &PermitCell, clock: &TestClock, epoch: Epoch, upto: u64) -> bool {
        cell.with_open(epoch, clock, |_, _, _| (Some(Lsn(upto)), ())).is_some()
    }

    #[test]
    fn a_closed_gate_opens_only_for_a_newer_epoch() {
        let (cell, clock) = (PermitCell::new(ONE), TestClock(AtomicU64::new(10)));
        assert!(!try_release(&cell, &clock, ONE, 5));
        cell.set(permit(1, ONE, 100)).unwrap();
        assert!(try_release(&cell, &clock, ONE, 5));
        assert!(!try_release(&cell, &clock, TWO, 6), "another epoch's gate released");
        assert_eq!(cell.close(), Lsn(5));
        assert!(!cell.is_open(BootInstant(10)));
        assert_eq!(cell.set(permit(2, ONE, 100)), Err(PermitError::Closed { epoch: ONE }));
        assert!(!try_release(&cell, &clock, ONE, 7));
        assert!(cell.reopen(ONE).is_err());
        cell.reopen(TWO).unwrap();
        assert!(matches!(cell.set(permit(3, ONE, 100)), Err(PermitError::WrongEpoch { .. })));
        assert_eq!(cell.status().released_upto, Lsn::ZERO);
        cell.set(permit(3, TWO, 100)).unwrap();
        assert!(try_release(&cell, &clock, TWO, 1));
    }

    #[test]
    fn a_permit_ends_by_itself_and_a_late_one_is_refused() {
        let (cell, clock) = (PermitCell::new(ONE), TestClock(AtomicU64::new(10)));
        cell.set(permit(2, ONE, 100)).unwrap();
        assert!(matches!(cell.set(permit(2, ONE, 900)), Err(PermitError::StaleSerial { .. })));
        assert!(matches!(cell.set(permit(1, ONE, 900)), Err(PermitError::StaleSerial { .. })));
        assert!(cell.is_open(BootInstant(99)));
        assert!(!cell.is_open(BootInstant(100)));
        clock.0.store(100, Ordering::SeqCst);
        assert!(!try_release(&cell, &clock, ONE, 5));
    }

    #[test]
    fn a_release_whose_write_ends_after_the_deadline_is_counted() {
        let (cell, clock) = (PermitCell::new(ONE), TestClock(AtomicU64::new(99)));
        cell.set(permit(1, ONE, 100)).unwrap();
        cell.with_open(ONE, &clock, |_, _, _| {
            clock.0.store(150, Ordering::SeqCst);
            (Some(Lsn(7)), ())
        });
        let status = cell.status();
        assert_eq!(status.late_release_count, 1);
        let late = status.last_late_release.unwrap();
        assert_eq!((late.upto_lsn, late.at), (Lsn(7), BootInstant(150)));
    }

    #[test]
    fn nothing_is_released_after_close_has_returned() {
        let cell = Arc::new(PermitCell::new(ONE));
        cell.set(permit(1, ONE, u64::MAX)).unwrap();
        let releasing = Arc::clone(&cell);
        let thread = std::thread::spawn(move || {
            let clock = TestClock(AtomicU64::new(1));
            let mut upto = 0;
            while try_release(&releasing, &clock, ONE, upto + 1) {
                upto += 1;
            }
            upto
        });
        while cell.status().released_upto < Lsn(1000) {
            std::thread::yield_now();
        }
        let closed_at = cell.close();
        assert_eq!(thread.join().unwrap(), closed_at.0);
    }
}
