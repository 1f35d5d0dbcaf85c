//! How much WAL a node keeps, and what is given up first when room runs out.
//!
//! Figures in, a plan out. The order, so that nobody is surprised by it:
//!
//! 1. WAL that nobody needs is kept up to a fixed amount, so that a node that was away catches up
//!    instead of being copied; it goes first.
//! 2. At the active the retention slot of a node that is away is dropped: that node is copied afresh.
//! 3. At a passive new WAL is refused: it falls behind, and the dial decides what commits do.
//!
//! WAL that something by name needs is never removed here.

use std::collections::VecDeque;
use std::time::Duration;

use understudy_types::{BootInstant, Lsn};

/// The operator's limits for one place, resolved for its file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Kept behind everything that is needed, in bytes.
    pub keep_bytes: u64,
    /// Never more than this in all, in bytes.
    pub bytes_max: u64,
    /// Bytes of the file system that WAL leaves free.
    pub reserve_bytes: u64,
}

/// Somebody for whom WAL must stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Who, in words.
    pub who: &'static str,
    /// From here on.
    pub from_lsn: Lsn,
}

/// What a place holds, and what its file system has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The first byte.
    pub begin_lsn: Lsn,
    /// The end.
    pub end_lsn: Lsn,
    /// Bytes that are free on its file system.
    pub free_bytes: u64,
}

impl Held {
    fn bytes(&self) -> u64 {
        self.end_lsn.bytes_since(self.begin_lsn)
    }
}

/// What to remove, and what is short all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// WAL before this may go; whole segments only, as they come.
    pub remove_before: Lsn,
    /// Who needs what is left, where that is more than half of what there is room for.
    pub held_for: Option<&'static str>,
    /// Bytes over a limit that are still needed.
    pub short_bytes: u64,
}

/// Plans for one place.
pub fn plan(policy: &Policy, held: &Held, needs: &[Need]) -> Plan {
    let oldest = needs.iter().min_by_key(|need| need.from_lsn);
    let needed_lsn = oldest.map_or(held.end_lsn, |need| need.from_lsn.min(held.end_lsn));
    let kept_lsn = Lsn(needed_lsn.0.saturating_sub(policy.keep_bytes));
    let over_max = held.bytes().saturating_sub(policy.bytes_max);
    let in_reserve = policy.reserve_bytes.saturating_sub(held.free_bytes);
    let over = over_max.max(in_reserve);
    let makes_room = Lsn(held.begin_lsn.0 + over).min(needed_lsn);
    let remove_before = kept_lsn.max(makes_room);
    let freed = remove_before.0.saturating_sub(held.begin_lsn.0);
    // What is needed, what could go, and what may still come: all that there is for WAL.
    let needed_bytes = held.end_lsn.0.saturating_sub(needed_lsn.0);
    let usable_bytes = held.bytes() + room(policy, held);
    Plan {
        remove_before,
        held_for: oldest.filter(|_| needed_bytes > usable_bytes / 2).map(|need| need.who),
        short_bytes: over.saturating_sub(freed),
    }
}

/// How many bytes may still come before a limit is reached, if nothing is removed meanwhile.
pub fn room(policy: &Policy, held: &Held) -> u64 {
    let below_max = policy.bytes_max.saturating_sub(held.bytes());
    below_max.min(held.free_bytes.saturating_sub(policy.reserve_bytes))
}

/// A retention slot of a node of ours, at the active.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotHeld {
    /// Its name.
    pub name: String,
    /// Somebody streams from it, or is about to.
    pub active: bool,
    /// WAL that it keeps, in bytes.
    pub retained_bytes: u64,
}

/// The slot to give up: of those that nobody uses the one that keeps most, once the reserve is touched.
pub fn slot_to_drop<'a>(
    policy: &Policy,
    free_bytes: u64,
    slots: &'a [SlotHeld],
) -> Option<&'a SlotHeld> {
    // What is kept without a slot too is not won by dropping one.
    let away = slots.iter().filter(|slot| !slot.active && slot.retained_bytes > policy.keep_bytes);
    away.max_by_key(|slot| slot.retained_bytes).filter(|_| free_bytes < policy.reserve_bytes)
}

/// How fast WAL comes, over the last minutes.
#[derive(Clone, Debug, Default)]
pub struct Growth {
    looks: VecDeque<(BootInstant, Lsn)>,
}

/// Growth is measured over so long.
const GROWTH_OVER: Duration = Duration::from_secs(300);

impl Growth {
    /// Notes where the end is now.
    pub fn note(&mut self, now: BootInstant, end_lsn: Lsn) {
        // Another history may end before the one that was left.
        if self.looks.back().is_some_and(|(_, last)| end_lsn < *last) {
            self.looks.clear();
        }
        self.looks.push_back((now, end_lsn));
        while self.looks.len() > 2 && now.since(self.looks[1].0) >= GROWTH_OVER {
            self.looks.pop_front();
        }
    }

    /// Bytes a second; `None` before there were two looks.
    pub fn bytes_per_second(&self) -> Option<f64> {
        let ((from, first), (to, last)) = self.looks.front().zip(self.looks.back())?;
        let seconds = to.since(*from).as_secs_f64();
        (seconds > 0.0).then(|| last.bytes_since(*first) as f64 / seconds)
    }

    /// When `room_bytes` are used up at this rate; `None` while nothing comes, or the rate is not known.
    pub fn full_in(&self, room_bytes: u64) -> Option<Duration> {
        let rate = self.bytes_per_second().filter(|rate| *rate > 0.0)?;
        Duration::try_from_secs_f64(room_bytes as f64 / rate).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { keep_bytes: 100, bytes_max: 1000, reserve_bytes: 50 };

    fn held(begin: u64, end: u64, free: u64) -> Held {
        Held { begin_lsn: Lsn(begin), end_lsn: Lsn(end), free_bytes: free }
    }

    fn standby(from: u64) -> [Need; 1] {
        [Need { who: "its standby", from_lsn: Lsn(from) }]
    }

    #[test]
    fn what_nobody_needs_goes_but_for_what_is_kept() {
        let plan = plan(&POLICY, &held(0, 500, 9999), &standby(400));
        assert_eq!(plan, Plan { remove_before: Lsn(300), held_for: None, short_bytes: 0 });
    }

    #[test]
    fn over_a_limit_what_is_kept_goes_too_and_what_is_needed_never() {
        // 200 over the maximum; the 100 that are kept are 50 of them, and the rest is needed.
        let over = plan(&POLICY, &held(0, 1200, 9999), &standby(50));
        let left = Plan { remove_before: Lsn(50), held_for: Some("its standby"), short_bytes: 150 };
        assert_eq!(over, left);
        // 40 bytes into the reserve: no more than that of what is kept.
        let reserve = plan(&POLICY, &held(300, 500, 10), &standby(400));
        assert_eq!(reserve, Plan { remove_before: Lsn(340), held_for: None, short_bytes: 0 });
    }

    #[test]
    fn without_a_need_the_end_is_what_is_kept_from() {
        assert_eq!(plan(&POLICY, &held(0, 500, 9999), &[]).remove_before, Lsn(400));
        // A need beyond the end is of somebody who has everything.
        assert_eq!(plan(&POLICY, &held(0, 500, 9999), &standby(900)).remove_before, Lsn(400));
    }

    #[test]
    fn the_nearer_of_the_two_limits_is_the_room() {
        assert_eq!(room(&POLICY, &held(0, 400, 9999)), 600);
        assert_eq!(room(&POLICY, &held(0, 400, 350)), 300);
        assert_eq!(room(&POLICY, &held(0, 2000, 20)), 0);
    }

    #[test]
    fn a_slot_is_given_up_only_in_the_reserve_and_only_of_who_is_away() {
        let slot = |name: &str, active, retained_bytes| SlotHeld {
            name: name.to_owned(),
            active,
            retained_bytes,
        };
        let slots = [slot("a", true, 900), slot("b", false, 300), slot("c", false, 500)];
        let little = [slot("d", false, 100)];
        assert_eq!(slot_to_drop(&POLICY, 0, &little), None, "nothing is won by it");
        assert_eq!(slot_to_drop(&POLICY, 50, &slots), None);
        assert_eq!(slot_to_drop(&POLICY, 49, &slots).unwrap().name, "c");
        assert_eq!(slot_to_drop(&POLICY, 0, &slots[..1]), None);
    }

    #[test]
    fn growth_is_over_the_last_minutes_and_forgets_another_history() {
        let at = |seconds: u64| BootInstant::ZERO + Duration::from_secs(seconds);
        let mut growth = Growth::default();
        assert_eq!(growth.full_in(100), None);
        for second in (0..=1000).step_by(10) {
            let rate = if second <= 500 { 1 } else { 3 };
            let lsn = if second <= 500 { second * rate } else { 500 + (second - 500) * rate };
            growth.note(at(second), Lsn(lsn));
        }
        assert_eq!(growth.bytes_per_second(), Some(3.0));
        assert_eq!(growth.full_in(600), Some(Duration::from_secs(200)));
        growth.note(at(1010), Lsn(5));
        assert_eq!(growth.bytes_per_second(), None);
        growth.note(at(1020), Lsn(5));
        assert_eq!(growth.full_in(600), None, "nothing comes");
    }
}
