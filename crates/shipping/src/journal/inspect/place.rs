//! `Place`: a directory that holds WAL, how it is laid out, and how far its bytes may be believed.

use std::path::{Path, PathBuf};

use understudy_types::{Lsn, SegmentSize, SystemId, Timeline, WalSegment};

use crate::journal::error::JournalError;
use crate::journal::files;
use crate::journal::meta::Meta;
use crate::journal::{Journal, Shared};

/// How the files are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceKind {
    /// A node's journal: a directory for each timeline.
    Journal,
    /// A server's `pg_wal`: all in one directory, files for later use among them.
    PgWal,
}

impl PlaceKind {
    /// Its name on the wire and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            PlaceKind::Journal => "journal",
            PlaceKind::PgWal => "pg_wal",
        }
    }
}

/// How far a place's WAL may be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalEnd {
    /// Everything before it is durable; it is where a journal's last complete record ends.
    Durable(Lsn),
    /// Everything before it is flushed by a server; it may lie within a record.
    Flushed(Lsn),
    /// Nobody runs who could say: it ends where the last unfinished segment stops being WAL, and not
    /// before `floor_lsn`, which was durable once.
    Unknown {
        /// Known to have been durable; zero if nothing is.
        floor_lsn: Lsn,
    },
}

/// WAL in files.
#[derive(Clone, Debug)]
pub struct Place {
    /// How it is laid out.
    pub kind: PlaceKind,
    /// Where.
    pub dir: PathBuf,
    /// Whose WAL it is.
    pub system_id: SystemId,
    /// In segments of this size.
    pub size: SegmentSize,
    /// The newest timeline; the others that count are its ancestors.
    pub timeline: Timeline,
    /// Where its WAL ends, on that timeline.
    pub end: WalEnd,
}

impl Journal {
    /// What it holds at this moment, to be looked at; `None` while it is empty.
    pub fn place(&self) -> Option<Place> {
        Place::of_open_journal(&self.inner.shared)
    }
}

impl Place {
    fn of_open_journal(shared: &Shared) -> Option<Place> {
        let state = shared.lock();
        let (content, timeline) = (state.meta.content?, state.timeline?);
        Some(Place {
            kind: PlaceKind::Journal,
            dir: shared.dir.clone(),
            system_id: content.system_id,
            size: content.size,
            timeline,
            end: WalEnd::Durable(state.durable_lsn?),
        })
    }

    /// The journal in `dir`, by its files alone; `None` while it is empty. No daemon needs to run.
    ///
    /// # Errors
    /// When there is no journal, or its metadata cannot be read.
    pub fn of_journal_files(dir: &Path) -> Result<Option<Place>, JournalError> {
        let Some(meta) = Meta::load(dir)? else {
            let detail = "there is no journal.meta: give the node's data directory and `wal`";
            return Err(JournalError::corrupt(dir, detail));
        };
        let Some(content) = meta.content else { return Ok(None) };
        let timelines = files::timelines(dir)?;
        let own = |timeline: &Timeline| {
            let names = files::names(&files::timeline_dir(dir, *timeline)).unwrap_or_default();
            names.iter().any(|name| segment_of(name, content.size).is_some())
        };
        let Some(timeline) = timelines.into_iter().rev().find(own) else { return Ok(None) };
        let sealed = meta.sealed.and_then(|seal| seal.end).filter(|end| end.timeline == timeline);
        let first = content.first_durable_lsn.filter(|_| content.begin_timeline == timeline);
        let floor_lsn = sealed.map(|end| end.durable_lsn).max(first).unwrap_or(Lsn::ZERO);
        Ok(Some(Place {
            kind: PlaceKind::Journal,
            dir: dir.to_owned(),
            system_id: content.system_id,
            size: content.size,
            timeline,
            end: WalEnd::Unknown { floor_lsn },
        }))
    }

    /// The WAL of a server that writes `timeline` and has flushed it up to `flush_lsn`.
    pub fn of_pg_wal(
        dir: &Path,
        system_id: SystemId,
        size: SegmentSize,
        timeline: Timeline,
        flush_lsn: Lsn,
    ) -> Place {
        let dir = dir.to_owned();
        let end = WalEnd::Flushed(flush_lsn);
        Place { kind: PlaceKind::PgWal, dir, system_id, size, timeline, end }
    }

    /// Where its WAL ends, if that is known.
    pub fn end_lsn(&self) -> Option<Lsn> {
        match self.end {
            WalEnd::Durable(lsn) | WalEnd::Flushed(lsn) => Some(lsn),
            WalEnd::Unknown { .. } => None,
        }
    }

    /// The directory of a timeline's segments.
    pub(super) fn segments_dir(&self, timeline: Timeline) -> PathBuf {
        match self.kind {
            PlaceKind::Journal => files::timeline_dir(&self.dir, timeline),
            PlaceKind::PgWal => self.dir.clone(),
        }
    }

    /// A segment's file as it may be called: finished, unfinished, and finished in between.
    pub(super) fn paths_of(&self, segment: WalSegment) -> [PathBuf; 3] {
        let name = segment.file_name(self.size);
        let dir = self.segments_dir(segment.timeline);
        let finished = dir.join(&name);
        let partial = dir.join(name + files::PARTIAL);
        [finished.clone(), partial, finished]
    }
}

/// The segment that a file's name says it holds, and whether it is called unfinished.
pub(super) fn segment_of(name: &str, size: SegmentSize) -> Option<(WalSegment, bool)> {
    let (stem, partial) = match name.strip_suffix(files::PARTIAL) {
        Some(stem) => (stem, true),
        None => (name, false),
    };
    WalSegment::parse(stem, size).ok().map(|segment| (segment, partial))
}
