//! That each way in which a journal can differ from the primary's WAL is found.

use super::*;

/// A journal and a primary with the same three segments, 0A to 0C, each of its own bytes.
struct Sites(tempfile::TempDir);

impl Sites {
    fn alike() -> Sites {
        let sites = Sites(tempfile::tempdir().unwrap());
        fs::create_dir_all(sites.journal().join("00000001")).unwrap();
        fs::create_dir(sites.pg_wal()).unwrap();
        for number in 10..13 {
            let content =
                vec![u8::try_from(number).unwrap(); usize::try_from(SEGMENT_BYTES).unwrap()];
            fs::write(sites.in_journal(number), &content).unwrap();
            fs::write(sites.at_primary(number), &content).unwrap();
        }
        sites
    }

    fn journal(&self) -> PathBuf {
        self.0.path().join("journal")
    }

    fn pg_wal(&self) -> PathBuf {
        self.0.path().join("pg_wal")
    }

    fn in_journal(&self, number: u64) -> PathBuf {
        self.journal().join("00000001").join(segment(number).name())
    }

    fn at_primary(&self, number: u64) -> PathBuf {
        self.pg_wal().join(segment(number).name())
    }

    fn copies(&self) -> Copies {
        Copies::of(self.journal(), self.pg_wal())
    }

    /// What a look and a comparison of everything find wrong.
    fn wrong(&self) -> [Vec<String>; 2] {
        let (mut look, mut all) = (self.copies(), self.copies());
        look.look().unwrap();
        all.all(segment(12)).unwrap();
        [look.wrong, all.wrong]
    }
}

fn segment(number: u64) -> Segment {
    Segment { timeline: 1, number }
}

fn write_at(path: &Path, at: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn a_name_is_read_as_postgresql_writes_it() {
    let name = "0000000100000002000000FE";
    let parsed = Segment::named(name).unwrap();
    assert_eq!((parsed.timeline, parsed.number), (1, 2 * 256 + 254));
    assert_eq!(parsed.name(), name);
    assert_eq!(parsed.next().next().name(), "000000010000000300000000");
    let others = ["00000001000000020000FE", "000000010000000200000100", "00000002.history", ""];
    for other in others {
        assert_eq!(Segment::named(other), None, "{other}");
    }
    // The position at a segment's beginning ends the one before.
    assert_eq!(Segment::before(1, 11 * SEGMENT_BYTES), segment(10));
}

#[test]
fn equal_segments_are_counted_and_nothing_is_wrong() {
    let sites = Sites::alike();
    let mut copies = sites.copies();
    copies.look().unwrap();
    copies.look().unwrap();
    assert_eq!((copies.segments, copies.bytes), (3, 3 * SEGMENT_BYTES));
    assert_eq!(copies.span(), Some((segment(10), segment(12))));
    assert_eq!(copies.all(segment(12)).unwrap(), 3);
    assert_eq!(copies.wrong, Vec::<String>::new());
    assert_eq!(copies.journal_bytes().unwrap(), 3 * SEGMENT_BYTES);
}

#[test]
fn one_flipped_bit_is_found_wherever_it_is() {
    for at in [0, 1 << 20, SEGMENT_BYTES - 1] {
        for in_journal in [true, false] {
            let sites = Sites::alike();
            let file = if in_journal { sites.in_journal(11) } else { sites.at_primary(11) };
            write_at(&file, at, &[11 ^ 1]);
            for wrong in sites.wrong() {
                let expected = format!("differs from the primary's from byte {at} on");
                assert_eq!(wrong.len(), 1, "{wrong:?}");
                assert!(wrong[0].contains(&expected), "{wrong:?}");
            }
        }
    }
}

#[test]
fn a_segment_that_is_too_short_is_found_even_at_both_sides() {
    let sites = Sites::alike();
    for file in [sites.in_journal(11), sites.at_primary(11)] {
        File::options().write(true).open(file).unwrap().set_len(SEGMENT_BYTES - 1).unwrap();
    }
    for wrong in sites.wrong() {
        assert!(wrong.len() == 1 && wrong[0].contains("differs"), "{wrong:?}");
    }
}

#[test]
fn a_segment_that_the_journal_does_not_have_is_a_gap() {
    let sites = Sites::alike();
    fs::remove_file(sites.in_journal(11)).unwrap();
    let [look, all] = sites.wrong();
    assert!(look.len() == 1 && look[0].contains("a gap in the journal"), "{look:?}");
    assert!(all.len() == 1 && all[0].contains("missing in the journal"), "{all:?}");
}

#[test]
fn a_segment_that_was_never_finished_is_a_gap() {
    let sites = Sites::alike();
    let finished = sites.in_journal(11);
    fs::rename(&finished, finished.with_extension("partial")).unwrap();
    let [look, all] = sites.wrong();
    assert!(look.len() == 1 && all.len() == 1, "{look:?} {all:?}");
}

#[test]
fn a_segment_that_the_primary_does_not_have_is_found() {
    let sites = Sites::alike();
    fs::remove_file(sites.at_primary(11)).unwrap();
    for wrong in sites.wrong() {
        assert!(wrong.len() == 1 && wrong[0].contains("missing at the primary"), "{wrong:?}");
    }
}

#[test]
fn what_retention_removed_from_the_beginning_is_no_gap_but_the_end_has_to_be_there() {
    let sites = Sites::alike();
    fs::remove_file(sites.at_primary(10)).unwrap();
    assert_eq!(sites.wrong(), [Vec::<String>::new(), Vec::new()]);
    let mut copies = sites.copies();
    copies.all(segment(13)).unwrap();
    assert_eq!(copies.wrong, ["00000001000000000000000D is missing in the journal"]);
}

#[test]
fn a_comparison_of_nothing_is_no_proof() {
    let sites = Sites::alike();
    assert!(sites.copies().all(segment(9)).is_err());
    for number in 10..13 {
        fs::remove_file(sites.in_journal(number)).unwrap();
    }
    assert!(sites.copies().all(segment(12)).is_err());
}

#[test]
fn a_journal_reaches_a_position_only_with_the_primary_s_bytes_before_it() {
    let sites = Sites::alike();
    let begin = 11 * SEGMENT_BYTES;
    let lsn = begin + 5000;
    assert!(sites.copies().journal_reaches(1, lsn).unwrap());
    assert!(sites.copies().journal_reaches(1, begin).unwrap());
    // In an unfinished one, of which the rest is not written yet.
    let partial = sites.in_journal(11).with_extension("partial");
    fs::rename(sites.in_journal(11), &partial).unwrap();
    write_at(&partial, 5000, &[0; 9000]);
    assert!(sites.copies().journal_reaches(1, lsn).unwrap());
    assert!(!sites.copies().journal_reaches(1, lsn + 1).unwrap());
    fs::remove_file(partial).unwrap();
    assert!(!sites.copies().journal_reaches(1, lsn).unwrap());
}
