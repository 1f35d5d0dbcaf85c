//! Which addresses have lately asked a path by which load balancers find their servers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How far back "lately" reaches; load balancers ask every few seconds.
const WINDOW: Duration = Duration::from_secs(120);
/// Addresses that are remembered; beyond it the one that asked longest ago is forgotten.
const ADDRESSES_MAX: usize = 64;

/// Who asked; cheap to clone.
#[derive(Clone, Debug)]
pub struct HealthCheckers {
    since: Instant,
    asked: Arc<Mutex<BTreeMap<IpAddr, Instant>>>,
}

impl Default for HealthCheckers {
    fn default() -> HealthCheckers {
        HealthCheckers { since: Instant::now(), asked: Arc::default() }
    }
}

impl HealthCheckers {
    /// This address asks now. A check that the machine makes of itself says nothing about others.
    pub(super) fn note(&self, address: IpAddr, now: Instant) {
        let address = address.to_canonical();
        if address == IpAddr::from([127, 0, 0, 1])
            || address == IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])
        {
            return;
        }
        let mut asked = self.lock();
        if asked.len() >= ADDRESSES_MAX && !asked.contains_key(&address) {
            let oldest = asked.iter().min_by_key(|(_, at)| **at).map(|(address, _)| *address);
            oldest.and_then(|oldest| asked.remove(&oldest));
        }
        asked.insert(address, now);
    }

    /// Those of the last two minutes, and whether so long has been listened.
    pub(crate) fn lately(&self, now: Instant) -> (Vec<String>, bool) {
        let recent = |at: &Instant| now.saturating_duration_since(*at) <= WINDOW;
        let asked = self.lock();
        let names =
            asked.iter().filter(|(_, at)| recent(at)).map(|(address, _)| address.to_string());
        (names.collect(), now.saturating_duration_since(self.since) >= WINDOW)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Instant>> {
        // Each change is one insertion or removal; none can be left half done.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asked_lately_is_told_and_whoever_stopped_is_not() {
        let checkers = HealthCheckers::default();
        let start = checkers.since;
        let at = |seconds| start + Duration::from_secs(seconds);
        checkers.note([10, 0, 0, 9].into(), at(1));
        checkers.note([127, 0, 0, 1].into(), at(1));
        checkers.note("::ffff:10.0.0.8".parse().unwrap(), at(100));
        assert_eq!(
            checkers.lately(at(110)),
            (vec!["10.0.0.8".to_owned(), "10.0.0.9".to_owned()], false)
        );
        assert_eq!(checkers.lately(at(150)), (vec!["10.0.0.8".to_owned()], true));
    }

    #[test]
    fn many_addresses_do_not_grow_without_end_and_the_newest_stay() {
        let checkers = HealthCheckers::default();
        for n in 0..200u8 {
            checkers.note([10, 0, 0, n].into(), checkers.since + Duration::from_millis(n.into()));
        }
        let (names, _) = checkers.lately(checkers.since + Duration::from_secs(1));
        assert_eq!(names.len(), ADDRESSES_MAX);
        assert!(names.contains(&"10.0.0.199".to_owned()));
    }
}
