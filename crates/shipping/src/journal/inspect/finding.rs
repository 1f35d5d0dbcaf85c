//! `Finding`: what is wrong with WAL, where, and what a person does about it.

use understudy_types::{Lsn, Timeline};
use understudy_wal::format::{PageFault, Stop};

use super::place::PlaceKind;

/// What sort of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindingKind {
    /// Bytes are not what PostgreSQL wrote: a page header, a record, its checksum.
    Damaged,
    /// Segments are missing between others.
    Gap,
    /// A file is shorter than its WAL.
    Short,
    /// A file was there, and is gone, though older ones are not: nobody removes WAL so.
    Vanished,
    /// A file cannot be read.
    Unreadable,
    /// A history file is missing, is none, or contradicts another.
    History,
    /// WAL that was durable is not there to its end.
    End,
}

impl FindingKind {
    /// Its name on the wire and for programs; a closed set.
    pub fn as_str(self) -> &'static str {
        match self {
            FindingKind::Damaged => "damaged",
            FindingKind::Gap => "gap",
            FindingKind::Short => "short",
            FindingKind::Vanished => "vanished",
            FindingKind::Unreadable => "unreadable",
            FindingKind::History => "history",
            FindingKind::End => "end",
        }
    }

    /// What a person does about it.
    pub fn remedy(self, at: PlaceKind) -> &'static str {
        match (self, at) {
            (FindingKind::History, PlaceKind::Journal) => {
                "take the history file of the other site, where it is sound, into the journal's \
                 directory: copy it beside under another name, then rename it"
            }
            (FindingKind::Unreadable, _) => {
                "look at the disk (kernel log) before anything is written to it again"
            }
            (_, PlaceKind::Journal) => {
                "have the bytes again from the other site, where they are sound: copy that segment \
                 beside its place under another name, give it the owner and mode of its neighbours, \
                 rename it, and verify again; where no site holds it any more, nothing that needs \
                 it (a rewind, a recovery to a moment) can pass it"
            }
            (_, PlaceKind::PgWal) => {
                "run CHECKPOINT at this server, so that a crash recovery need not read it; compare \
                 with the passive, which has its own copy, and switch over to look at the disk"
            }
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What sort.
    pub kind: FindingKind,
    /// Of which timeline the WAL is.
    pub timeline: Timeline,
    /// The file, by its name; where it is missing, the name that it would have.
    pub file: String,
    /// The position of what was not believed, or where missing WAL begins.
    pub lsn: Lsn,
    /// Everything before it was sound, so what is wrong lies between it and `lsn`, or in the record
    /// that begins at `lsn`.
    pub sound_lsn: Lsn,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

/// What a scanner did not believe: where, what it expected, and what it found.
pub(super) fn disbelief(stop: &Stop) -> (Lsn, String, String) {
    match stop {
        Stop::Page { at, fault } => {
            let (expected, found) = page(*at, fault);
            (*at, expected, found)
        }
        Stop::Zeroes { at } => (*at, "a record".to_owned(), "only zeroes".to_owned()),
        Stop::Length { at, total_bytes } => {
            (*at, "a record of a possible length".to_owned(), format!("{total_bytes} bytes"))
        }
        Stop::Previous { at, found, expected } => {
            let expected = expected.map_or_else(
                || "a record whose predecessor is before it".to_owned(),
                |lsn| format!("a record whose predecessor is {lsn}"),
            );
            (*at, expected, format!("predecessor {found}"))
        }
        Stop::Checksum { at, computed, stated } => (
            *at,
            format!("a record with the checksum {stated:#010X}, as it says itself"),
            format!("bytes with the checksum {computed:#010X}"),
        ),
        Stop::AfterSwitch { at } => (
            *at,
            "zeroes from the segment switch to the end of the segment".to_owned(),
            "another byte".to_owned(),
        ),
    }
}

fn page(at: Lsn, fault: &PageFault) -> (String, String) {
    match fault {
        PageFault::Zeroes => ("a page of WAL".to_owned(), "only zeroes".to_owned()),
        PageFault::Magic(magic) => {
            ("a page of PostgreSQL 14 to 18".to_owned(), format!("page magic {magic:#06X}"))
        }
        PageFault::OtherMagic { found, expected } => (
            format!("page magic {expected:#06X}, as before it"),
            format!("page magic {found:#06X}"),
        ),
        PageFault::BeyondAll => (
            "a page before the end of all positions".to_owned(),
            "a page that reaches to it".to_owned(),
        ),
        PageFault::Flags(flags) => {
            ("flags that a page here can have".to_owned(), format!("page flags {flags:#06X}"))
        }
        PageFault::Address(lsn) => {
            (format!("the page at {at}"), format!("a page that says it is at {lsn}"))
        }
        PageFault::Timeline { found, expected } => {
            (format!("a page of timeline {expected}"), format!("a page of timeline {found}"))
        }
        PageFault::System { found, expected } => {
            (format!("WAL of system {expected}"), format!("WAL of system {found}"))
        }
        PageFault::Geometry { segment_bytes, page_bytes } => (
            "segments and pages of this cluster's size".to_owned(),
            format!("segments of {segment_bytes} bytes with pages of {page_bytes} bytes"),
        ),
        PageFault::Continuation { found, expected } => {
            let words = |bytes: &Option<u32>| match bytes {
                Some(bytes) => format!("a page that goes on with {bytes} bytes of a record"),
                None => "a page that begins with a record".to_owned(),
            };
            (words(expected), words(found))
        }
    }
}
