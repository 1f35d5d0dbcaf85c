//! Whether sites hold the same WAL: segments by their digests, histories by what they say.
//!
//! Pure: it is told what each node found, and judges at the end.

use std::collections::{BTreeMap, BTreeSet};

use understudy_proto::v1;
use understudy_types::Lsn;

/// Bytes of a page that has a checksum of its own.
const PAGE_BYTES: u64 = 8192;

/// Where something is: a node, and journal or pg_wal.
pub(super) type Whose = (String, String);

/// What a history file says: timelines and where each was left.
type Ancestors = Vec<(u32, u64)>;

/// Copies of a segment that are the same.
struct Version {
    to_lsn: u64,
    sha256: Vec<u8>,
    page_crc32c: Vec<u32>,
    /// Each with whether nothing was found wrong in it there.
    holders: Vec<(Whose, bool)>,
}

/// Everything that was told.
#[derive(Default)]
pub(super) struct Comparison {
    /// By timeline and position; a file's name follows from these.
    segments: BTreeMap<(u32, u64, String), Vec<Version>>,
    histories: BTreeMap<u32, Vec<(Whose, Ancestors)>>,
}

/// A segment that is not the same everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) timeline: u32,
    pub(super) file: String,
    /// The first page that differs.
    pub(super) page_lsn: Lsn,
    /// Who has one content, and who has another.
    pub(super) sides: Vec<Vec<Whose>>,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Judgement {
    /// Segments that more than one node holds, and that are the same at all of them.
    pub(super) same_segments: u64,
    /// The WAL in these.
    pub(super) same_bytes: u64,
    /// In the order of the WAL.
    pub(super) differences: Vec<Difference>,
    /// Timelines whose history files do not say the same, and who has them.
    pub(super) histories: Vec<(u32, Vec<Whose>)>,
}

impl Comparison {
    pub(super) fn take_segment(&mut self, whose: &Whose, segment: v1::VerifiedSegment) {
        let v1::VerifiedSegment { timeline, file, from_lsn, to_lsn, sha256, page_crc32c, sound } =
            segment;
        let versions = self.segments.entry((timeline, from_lsn, file)).or_default();
        let holder = (whose.clone(), sound);
        let same = |version: &&mut Version| version.to_lsn == to_lsn && version.sha256 == sha256;
        match versions.iter_mut().find(same) {
            // Only one list of pages is kept, whoever has them.
            Some(version) => version.holders.push(holder),
            None => {
                let holders = vec![holder];
                versions.push(Version { to_lsn, sha256, page_crc32c, holders });
            }
        }
    }

    pub(super) fn take_history(&mut self, whose: &Whose, history: &v1::VerifiedHistory) {
        let ancestors = history.ancestors.iter().map(|entry| (entry.timeline, entry.lsn));
        let told = (whose.clone(), ancestors.collect());
        self.histories.entry(history.timeline).or_default().push(told);
    }

    /// Where else a file is, on another node and sound.
    pub(super) fn sound_copies(&self, node: &str, timeline: u32, file: &str) -> Vec<Whose> {
        // Unfinished here, it may be finished there.
        let file = file.trim_end_matches(".partial");
        let of = |(key, _): &(&(u32, u64, String), _)| key.0 == timeline && key.2 == file;
        let versions = self.segments.iter().filter(of).flat_map(|(_, versions)| versions);
        let holders = versions.flat_map(|version| &version.holders);
        let elsewhere = holders.filter(|((holder, _), sound)| *sound && holder != node);
        elsewhere.map(|(whose, _)| whose.clone()).collect()
    }

    pub(super) fn judge(&self) -> Judgement {
        let mut judgement = Judgement::default();
        for ((timeline, from_lsn, file), versions) in &self.segments {
            let nodes = |versions: &[Version]| {
                let holders = versions.iter().flat_map(|version| &version.holders);
                holders.map(|((node, _), _)| node.clone()).collect::<BTreeSet<_>>().len()
            };
            if let Some(page) = first_difference(versions) {
                judgement.differences.push(Difference {
                    timeline: *timeline,
                    file: file.clone(),
                    page_lsn: Lsn(from_lsn + page * PAGE_BYTES),
                    sides: versions.iter().map(Version::whose).collect(),
                });
            } else if let [version] = versions.as_slice()
                && nodes(versions) > 1
            {
                judgement.same_segments += 1;
                judgement.same_bytes += version.to_lsn - from_lsn;
            }
        }
        for (timeline, told) in &self.histories {
            if told.iter().any(|(_, ancestors)| *ancestors != told[0].1) {
                let whose = told.iter().map(|(whose, _)| whose.clone()).collect();
                judgement.histories.push((*timeline, whose));
            }
        }
        judgement
    }
}

impl Version {
    fn whose(&self) -> Vec<Whose> {
        self.holders.iter().map(|(whose, _)| whose.clone()).collect()
    }
}

/// The first page in which two versions differ. Where they do not end at the same position, only what
/// both have counts, in whole pages.
fn first_difference(versions: &[Version]) -> Option<u64> {
    let mut first = None;
    for (index, one) in versions.iter().enumerate() {
        for other in &versions[index + 1..] {
            let pages = one.page_crc32c.iter().zip(&other.page_crc32c);
            let differs = |(page, (a, b)): (usize, (&u32, &u32))| (a != b).then_some(page as u64);
            let found = if one.to_lsn == other.to_lsn {
                // The same checksums of all pages and another digest: where it is cannot be said.
                pages.enumerate().find_map(differs).or(Some(0))
            } else {
                let shorter = one.page_crc32c.len().min(other.page_crc32c.len());
                pages.take(shorter.saturating_sub(1)).enumerate().find_map(differs)
            };
            first = [first, found].into_iter().flatten().min();
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whose(node: &str) -> Whose {
        (node.to_owned(), "journal".to_owned())
    }

    fn segment(number: u64, pages: &[u32]) -> v1::VerifiedSegment {
        let from_lsn = number << 20;
        v1::VerifiedSegment {
            timeline: 1,
            file: format!("{number:024X}"),
            from_lsn,
            to_lsn: from_lsn + pages.len() as u64 * PAGE_BYTES,
            sha256: pages.iter().flat_map(|page| page.to_le_bytes()).collect(),
            page_crc32c: pages.to_vec(),
            sound: true,
        }
    }

    #[test]
    fn the_first_page_that_differs_is_named_and_what_one_site_holds_alone_is_not_compared() {
        let mut comparison = Comparison::default();
        for (node, number, pages) in [
            ("north", 1, [1, 2, 3]),
            ("south", 1, [1, 2, 3]),
            ("north", 2, [4, 5, 6]),
            ("south", 2, [4, 9, 9]),
            ("south", 3, [7, 8, 9]),
        ] {
            comparison.take_segment(&whose(node), segment(number, &pages));
        }
        let judgement = comparison.judge();
        assert_eq!((judgement.same_segments, judgement.same_bytes), (1, 3 * PAGE_BYTES));
        let [difference] = judgement.differences.as_slice() else { panic!("{judgement:?}") };
        assert_eq!(difference.page_lsn, Lsn((2 << 20) + PAGE_BYTES));
        assert_eq!(difference.file, format!("{:024X}", 2));
        assert_eq!(difference.sides, [[whose("north")], [whose("south")]]);
    }

    #[test]
    fn a_tail_that_ends_elsewhere_differs_only_where_both_have_whole_pages() {
        let of = |north: &[u32], south: &[u32]| {
            let mut comparison = Comparison::default();
            comparison.take_segment(&whose("north"), segment(1, north));
            comparison.take_segment(&whose("south"), segment(1, south));
            comparison.judge()
        };
        // The last page of the shorter one is not whole.
        assert_eq!(of(&[1, 2, 3], &[1, 9]), Judgement::default());
        assert_eq!(of(&[1, 2, 3], &[9, 9]).differences.len(), 1);
    }

    #[test]
    fn the_same_node_twice_is_no_other_site() {
        let mut comparison = Comparison::default();
        let server = ("north".to_owned(), "pg_wal".to_owned());
        comparison.take_segment(&whose("north"), segment(1, &[1]));
        comparison.take_segment(&server, segment(1, &[1]));
        assert_eq!(comparison.judge(), Judgement::default());
        assert!(comparison.sound_copies("north", 1, &format!("{:024X}", 1)).is_empty());
        comparison.take_segment(&whose("south"), segment(1, &[1]));
        assert_eq!(comparison.judge().same_segments, 1);
        let copies = comparison.sound_copies("north", 1, &format!("{:024X}", 1));
        assert_eq!(copies, [whose("south")]);
    }

    #[test]
    fn histories_that_leave_a_timeline_elsewhere_are_named() {
        let mut comparison = Comparison::default();
        let history = |lsn| v1::VerifiedHistory {
            timeline: 2,
            ancestors: vec![v1::WalCut { timeline: 1, lsn }],
        };
        comparison.take_history(&whose("north"), &history(5));
        comparison.take_history(&whose("south"), &history(5));
        assert_eq!(comparison.judge().histories, []);
        comparison.take_history(&whose("west"), &history(6));
        assert_eq!(comparison.judge().histories.len(), 1);
    }
}
