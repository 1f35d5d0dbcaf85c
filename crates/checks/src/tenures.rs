//! Did a side act after it had been succeeded? Judged from what clients saw, with the moments at which
//! each thing was asked for and answered.
//!
//! An answer may be *delivered* late although it was *decided* in time (docs/safety.md, mistake 14), so
//! only what was asked for after the successor's first answer proves anything.

use std::time::Duration;

use serde::Serialize;

/// Something that only the active side may do: a confirmed commit, or a "yes" at `/primary`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Deed {
    /// Which side did it.
    pub side: usize,
    /// When it was asked for, since the ledger's beginning.
    pub asked_at: Duration,
    /// When the answer was read.
    pub answered_at: Duration,
}

/// When each tenure was seen to begin: the first answer of its side that came after the tenure before
/// it had begun. `None` for one in which its side did nothing; it and those after it are not judged.
#[must_use]
pub fn tenures_seen(deeds: &[Deed], sides: &[usize]) -> Vec<Option<Duration>> {
    let mut begins = Vec::new();
    let mut before = Some(Duration::ZERO);
    for side in sides {
        before = before.and_then(|before| {
            let own = deeds.iter().filter(|deed| deed.side == *side && deed.asked_at >= before);
            own.map(|deed| deed.answered_at).min()
        });
        begins.push(before);
    }
    begins
}

/// What a side did although another had its tenure: asked for after the other's first answer, and
/// answered before the next tenure began (I3). `sides` are the holders in their order, the same one
/// never twice in a row.
#[must_use]
pub fn deeds_outside_their_side_s_tenure(deeds: &[Deed], sides: &[usize]) -> Vec<Deed> {
    let begins = tenures_seen(deeds, sides);
    let mut wrong = Vec::new();
    for (index, (side, begin)) in sides.iter().zip(&begins).enumerate() {
        let Some(begin) = begin else { break };
        // Before the first tenure was seen nobody else had one either.
        let begin = if index == 0 { Duration::ZERO } else { *begin };
        let end = begins.get(index + 1).copied().flatten().unwrap_or(Duration::MAX);
        let stranger =
            |deed: &&Deed| deed.side != *side && deed.asked_at > begin && deed.answered_at < end;
        wrong.extend(deeds.iter().filter(stranger).copied());
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deeds(list: &[(usize, u64, u64)]) -> Vec<Deed> {
        let ms = Duration::from_millis;
        let deed = |(side, asked, answered): &(usize, u64, u64)| Deed {
            side: *side,
            asked_at: ms(*asked),
            answered_at: ms(*answered),
        };
        list.iter().map(deed).collect()
    }

    #[test]
    fn a_clean_succession_and_a_late_delivery_are_right() {
        // Side 0's last answer was asked for before side 1's first one and read after it.
        let seen = deeds(&[(0, 1, 2), (0, 8, 25), (1, 9, 20), (1, 21, 22), (0, 50, 51)]);
        assert_eq!(deeds_outside_their_side_s_tenure(&seen, &[0, 1, 0]), vec![]);
    }

    #[test]
    fn what_the_old_side_was_asked_after_the_new_one_s_first_answer_is_found() {
        let seen = deeds(&[(0, 1, 2), (1, 9, 20), (0, 21, 23), (1, 30, 31)]);
        assert_eq!(deeds_outside_their_side_s_tenure(&seen, &[0, 1]), deeds(&[(0, 21, 23)]));
    }

    #[test]
    fn a_side_that_was_never_granted_anything_may_do_nothing() {
        let seen = deeds(&[(0, 1, 2), (1, 3, 4), (0, 5, 6)]);
        assert_eq!(deeds_outside_their_side_s_tenure(&seen, &[0]), deeds(&[(1, 3, 4)]));
    }

    #[test]
    fn a_late_deed_before_the_old_side_s_return_is_found_by_the_other_s_deeds() {
        let seen = deeds(&[(0, 1, 2), (1, 9, 20), (0, 21, 23), (1, 30, 31), (0, 50, 51)]);
        assert!(!deeds_outside_their_side_s_tenure(&seen, &[0, 1, 0]).is_empty());
    }

    #[test]
    fn a_tenure_without_a_deed_ends_the_judgement() {
        let seen = deeds(&[(0, 1, 2), (0, 5, 6)]);
        assert_eq!(tenures_seen(&seen, &[0, 1]), [Some(Duration::from_millis(2)), None]);
        assert_eq!(deeds_outside_their_side_s_tenure(&seen, &[0, 1]), vec![]);
    }
}
