//! `Survey`: the files of a place at one moment, ordered by the history that its newest timeline has.
//!
//! It looks at names, lengths and history files, never into a segment.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::UNIX_EPOCH;

use understudy_types::{Lsn, Timeline, TimelineHistory, WalSegment};

use super::finding::{Finding, FindingKind};
use super::place::{Place, PlaceKind, WalEnd, segment_of};
use crate::journal::error::JournalError;
use crate::journal::files;

/// What a file in a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalFileKind {
    /// A segment that is WAL to its last byte.
    Finished,
    /// A segment of which only the beginning is WAL.
    Partial,
    /// A file in `pg_wal` for WAL that is not written yet, or beyond the point where its timeline was
    /// left.
    Unused,
    /// A segment of a timeline that the newest one does not descend from.
    Foreign,
    /// A timeline's history.
    History,
}

impl WalFileKind {
    /// Its name on the wire and for people; a closed set.
    pub fn as_str(self) -> &'static str {
        match self {
            WalFileKind::Finished => "finished",
            WalFileKind::Partial => "partial",
            WalFileKind::Unused => "unused",
            WalFileKind::Foreign => "foreign",
            WalFileKind::History => "history",
        }
    }
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalFile {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: WalFileKind,
    /// The timeline in its name.
    pub timeline: Timeline,
    /// Where its WAL begins; `None` for what holds no WAL of this history.
    pub from_lsn: Option<Lsn>,
    /// Where its WAL ends; `None` as before, and where only reading it would tell.
    pub to_lsn: Option<Lsn>,
    /// Its length.
    pub bytes: u64,
    /// When it was changed last, in microseconds since 1970.
    pub modified_unix_us: i64,
}

/// A segment's file.
#[derive(Clone, Debug)]
pub(super) struct HeldFile {
    pub(super) name: String,
    pub(super) called_partial: bool,
    pub(super) bytes: u64,
    pub(super) modified_unix_us: i64,
}

/// One timeline's part of the history, and its segments.
#[derive(Clone, Debug)]
pub(super) struct Holding {
    pub(super) timeline: Timeline,
    /// Where it left its parent, zero for the first one; `None` if that is not known.
    pub(super) begins_lsn: Option<Lsn>,
    /// Where it was left, or where the place's WAL ends; `None` if that is not known.
    pub(super) ends_lsn: Option<Lsn>,
    /// By number.
    pub(super) files: BTreeMap<u64, HeldFile>,
}

/// The files of a place.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Ancestors first.
    pub(super) holdings: Vec<Holding>,
    /// Segments of timelines that are not in the history.
    pub(super) foreign: Vec<(WalSegment, HeldFile)>,
    history_files: Vec<(Timeline, HeldFile)>,
    /// As far as they can be read.
    pub(super) histories: BTreeMap<Timeline, TimelineHistory>,
    /// What is wrong with the history files.
    pub(super) findings: Vec<Finding>,
}

impl Place {
    /// Looks at the files that are there now.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn survey(&self) -> Result<Survey, JournalError> {
        let mut segments: BTreeMap<WalSegment, HeldFile> = BTreeMap::new();
        let mut history_files = Vec::new();
        let mut dirs = vec![self.dir.clone()];
        if self.kind == PlaceKind::Journal {
            let timelines = files::timelines(&self.dir)?;
            dirs.extend(timelines.into_iter().map(|timeline| self.segments_dir(timeline)));
        }
        for dir in &dirs {
            for name in files::names(dir)? {
                if let Some((segment, partial)) = segment_of(&name, self.size) {
                    let Some(held) = look(dir, name, partial)? else { continue };
                    // While it is renamed both names may be seen: the finished one is the later one.
                    let both = segments.get(&segment).is_some_and(|other| !other.called_partial);
                    if !both {
                        segments.insert(segment, held);
                    }
                } else if let Some(timeline) = history_of(&name) {
                    history_files.extend(look(dir, name, false)?.map(|held| (timeline, held)));
                }
            }
        }
        history_files.sort_by_key(|(timeline, _)| *timeline);
        let mut survey = Survey {
            holdings: Vec::new(),
            foreign: Vec::new(),
            history_files,
            histories: BTreeMap::new(),
            findings: Vec::new(),
        };
        survey.read_histories(self)?;
        survey.order(self, segments);
        survey.compare_histories();
        Ok(survey)
    }
}

impl Survey {
    fn read_histories(&mut self, place: &Place) -> Result<(), JournalError> {
        for (timeline, held) in &self.history_files {
            let Some(raw) = files::read_if_exists(&place.dir.join(&held.name))? else { continue };
            match files::parse_history(*timeline, &raw) {
                Ok(history) => drop(self.histories.insert(*timeline, history.parsed)),
                Err(error) => self.findings.push(Finding {
                    kind: FindingKind::History,
                    timeline: *timeline,
                    file: held.name.clone(),
                    lsn: Lsn::ZERO,
                    sound_lsn: Lsn::ZERO,
                    expected: "a history file as PostgreSQL writes it".to_owned(),
                    found: match std::error::Error::source(&error) {
                        Some(source) => source.to_string(),
                        None => error.to_string(),
                    },
                }),
            }
        }
        Ok(())
    }

    /// Sorts the segments into the newest timeline's history.
    fn order(&mut self, place: &Place, segments: BTreeMap<WalSegment, HeldFile>) {
        let newest = place.timeline;
        let history = self.histories.get(&newest);
        let mut begins_lsn = match history {
            Some(_) => Some(Lsn::ZERO),
            None => (newest == Timeline::FIRST).then_some(Lsn::ZERO),
        };
        for entry in history.iter().flat_map(|history| &history.ancestors) {
            self.holdings.push(Holding {
                timeline: entry.timeline,
                begins_lsn,
                ends_lsn: Some(entry.switch_lsn),
                files: BTreeMap::new(),
            });
            begins_lsn = Some(entry.switch_lsn);
        }
        let (timeline, ends_lsn) = (newest, place.end_lsn());
        self.holdings.push(Holding { timeline, begins_lsn, ends_lsn, files: BTreeMap::new() });
        for (segment, held) in segments {
            let of = |holding: &&mut Holding| holding.timeline == segment.timeline;
            match self.holdings.iter_mut().find(of) {
                Some(holding) => drop(holding.files.insert(segment.number, held)),
                None => self.foreign.push((segment, held)),
            }
        }
        let alone = self.holdings.len() == 1 && newest != Timeline::FIRST;
        let older = self.foreign.iter().any(|(segment, _)| segment.timeline < newest);
        let unread = self.findings.iter().any(|finding| finding.timeline == newest);
        if alone && older && !self.histories.contains_key(&newest) && !unread {
            self.findings.push(Finding {
                kind: FindingKind::History,
                timeline: newest,
                file: newest.history_file_name(),
                lsn: Lsn::ZERO,
                sound_lsn: Lsn::ZERO,
                expected: "a history file, which says where older timelines were left".to_owned(),
                found: "no file".to_owned(),
            });
        }
    }

    /// What an ancestor's own file says has to be the beginning of what the newest one's says.
    fn compare_histories(&mut self) {
        let Some(newest) = self.holdings.last().map(|holding| holding.timeline) else { return };
        let Some(history) = self.histories.get(&newest) else { return };
        let pairs = |history: &TimelineHistory, before: Timeline| {
            let entries = history.ancestors.iter().filter(move |entry| entry.timeline < before);
            entries.map(|entry| (entry.timeline, entry.switch_lsn)).collect::<Vec<_>>()
        };
        let words = |pairs: &[(Timeline, Lsn)]| {
            let words = pairs.iter().map(|(timeline, lsn)| format!("timeline {timeline} to {lsn}"));
            words.collect::<Vec<_>>().join(", ")
        };
        for ancestor in history.ancestors.iter().map(|entry| entry.timeline) {
            let Some(own) = self.histories.get(&ancestor) else { continue };
            let (own, expected) = (pairs(own, ancestor), pairs(history, ancestor));
            if own != expected {
                self.findings.push(Finding {
                    kind: FindingKind::History,
                    timeline: ancestor,
                    file: ancestor.history_file_name(),
                    lsn: Lsn::ZERO,
                    sound_lsn: Lsn::ZERO,
                    expected: format!("{}, as in {}", words(&expected), newest.history_file_name()),
                    found: words(&own),
                });
            }
        }
    }

    /// Every file, in the order of the WAL; history files first.
    pub fn files(&self, place: &Place) -> Vec<WalFile> {
        let size = place.size;
        let mut listed = Vec::new();
        for (timeline, held) in &self.history_files {
            listed.push(held.listed(WalFileKind::History, *timeline, None, None));
        }
        for (segment, held) in &self.foreign {
            listed.push(held.listed(WalFileKind::Foreign, segment.timeline, None, None));
        }
        for holding in &self.holdings {
            for (number, held) in &holding.files {
                let segment = WalSegment { timeline: holding.timeline, number: *number };
                let (start, end) = (segment.start(size), segment.end(size));
                let unknown = matches!(place.end, WalEnd::Unknown { .. }) && held.called_partial;
                let (kind, from, to) = match holding.ends_lsn {
                    Some(ends_lsn) if ends_lsn <= start => (WalFileKind::Unused, None, None),
                    Some(ends_lsn) if ends_lsn < end => {
                        (WalFileKind::Partial, Some(start), Some(ends_lsn))
                    }
                    None if unknown => (WalFileKind::Partial, Some(start), None),
                    Some(_) | None => (WalFileKind::Finished, Some(start), Some(end)),
                };
                listed.push(held.listed(kind, holding.timeline, from, to));
            }
        }
        listed
    }
}

impl HeldFile {
    fn listed(
        &self,
        kind: WalFileKind,
        timeline: Timeline,
        from_lsn: Option<Lsn>,
        to_lsn: Option<Lsn>,
    ) -> WalFile {
        let (bytes, modified_unix_us) = (self.bytes, self.modified_unix_us);
        let name = self.name.clone();
        WalFile { name, kind, timeline, from_lsn, to_lsn, bytes, modified_unix_us }
    }
}

/// Length and time of a file; `None` if it is gone by now.
fn look(dir: &Path, name: String, called_partial: bool) -> Result<Option<HeldFile>, JournalError> {
    let path = dir.join(&name);
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(JournalError::io("look at", &path)(error)),
    };
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let micros = modified.map_or(0, |since| since.as_micros());
    let modified_unix_us = i64::try_from(micros).unwrap_or(i64::MAX);
    Ok(Some(HeldFile { name, called_partial, bytes: metadata.len(), modified_unix_us }))
}

/// The timeline that a history file's name says.
fn history_of(name: &str) -> Option<Timeline> {
    let stem = name.strip_suffix(".history").filter(|stem| stem.len() == 8)?;
    u32::from_str_radix(stem, 16).ok().and_then(Timeline::new)
}
