//! Timeline history files: in order, and every position on one timeline of them.

use understudy_types::{Lsn, Timeline, TimelineHistory};

use super::{Target, about, as_it_is};
use crate::allocation::within;

pub(super) const TARGET: Target = Target {
    name: "history",
    about: "timeline history files",
    words: &[
        b"1\t0/3000148\tno recovery target specified\n",
        b"\n",
        b"\r\n",
        b"\t",
        b"#",
        b"FFFFFFFF/FFFFFFFF",
        b"0/0",
        b"4294967294",
        b" ",
    ],
    polish: as_it_is,
    judge,
};

/// Memory for each byte: the shortest line becomes an entry of 40 bytes in a list that doubles.
const MEMORY_TIMES: usize = 64;

fn judge(input: &[u8]) -> String {
    let text = String::from_utf8_lossy(input);
    let timeline = Timeline::new(u32::MAX).expect("it is not 0");
    let parsed = within(text.len(), MEMORY_TIMES, || TimelineHistory::parse(timeline, &text));
    let history = match parsed {
        Ok(history) => history,
        Err(error) => {
            return error
                .to_string()
                .split("line")
                .last()
                .unwrap_or("")
                .replace(|c: char| c.is_ascii_digit(), "");
        }
    };
    let again = TimelineHistory::parse(timeline, &history.format());
    assert_eq!(again.as_ref(), Ok(&history), "read, written and read again");
    for pair in history.ancestors.windows(2) {
        assert!(pair[0].timeline < pair[1].timeline && pair[0].switch_lsn <= pair[1].switch_lsn);
    }
    let ends = history.ancestors.iter().map(|entry| entry.switch_lsn.0);
    let places = ends.flat_map(|end| [end.saturating_sub(1), end, end.saturating_add(1)]);
    for lsn in places.chain([0, u64::MAX]).map(Lsn) {
        let at = history.timeline_at(lsn);
        let end = history.end_of(at).expect("the timeline at a position is part of the history");
        assert!(lsn < end || (at == timeline && end == Lsn::MAX), "{lsn} on {at}, left at {end}");
        let earlier = history.ancestors.iter().filter(|entry| entry.timeline < at);
        assert!(earlier.map(|entry| entry.switch_lsn).all(|left| left <= lsn), "{lsn} on {at}");
    }
    let reasons = history.ancestors.iter().filter(|entry| !entry.reason.is_empty()).count();
    format!("{} {}", about(history.ancestors.len()), about(reasons))
}
