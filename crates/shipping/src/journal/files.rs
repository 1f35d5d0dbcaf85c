//! The journal's files: where they are, how they are made durable.
//!
//! `<dir>/<TLI>/<24 hex>` is a finished segment, all of it verified and durable; with `.partial` it
//! is one of which that is not (yet) true; `<dir>/<TLI>.history` is PostgreSQL's. What is in a
//! segment is not looked at here.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use understudy_types::{SegmentSize, Timeline, TimelineHistory, WalSegment};

use super::error::JournalError;

/// Ends the name of a segment that is not finished, as in PostgreSQL's own tools.
pub(super) const PARTIAL: &str = ".partial";
/// Ends the name of a file that is being made; whoever finds one after a crash removes it.
pub(super) const TEMPORARY: &str = ".new";

/// The directory of a timeline's segments.
pub(super) fn timeline_dir(dir: &Path, timeline: Timeline) -> PathBuf {
    dir.join(format!("{:08X}", timeline.get()))
}

/// The file of a finished segment.
pub(super) fn finished(dir: &Path, segment: WalSegment, size: SegmentSize) -> PathBuf {
    timeline_dir(dir, segment.timeline).join(segment.file_name(size))
}

/// The file of an unfinished segment.
pub(super) fn partial(dir: &Path, segment: WalSegment, size: SegmentSize) -> PathBuf {
    timeline_dir(dir, segment.timeline).join(segment.file_name(size) + PARTIAL)
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> Result<(), JournalError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(JournalError::io("sync directory", path))
}

/// Creates a directory, if it is missing, and makes its name durable.
pub(super) fn create_dir(path: &Path) -> Result<(), JournalError> {
    match fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(JournalError::io("create directory", path)(error)),
    }
    path.parent().map_or(Ok(()), sync_dir)
}

/// Renames a file within its directory, durably.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), JournalError> {
    fs::rename(from, to).map_err(JournalError::io("rename", from))?;
    to.parent().map_or(Ok(()), sync_dir)
}

/// Puts a file of this content in place of whatever has its name, durably and at once.
pub(super) fn replace_durably(path: &Path, content: &[u8]) -> Result<(), JournalError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    let temporary = PathBuf::from(temporary);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(JournalError::io("write", &temporary))?;
    rename(&temporary, path)
}

/// The content of a file, `None` if there is none.
pub(super) fn read_if_exists(path: &Path) -> Result<Option<Vec<u8>>, JournalError> {
    let mut content = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut content)) {
        Ok(_) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(JournalError::io("read", path)(error)),
    }
}

/// Opens a segment for writing, empty (all zero) and of full size if it is new.
pub(super) fn open_partial(path: &Path, size: SegmentSize) -> Result<File, JournalError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(JournalError::io("open", path))?;
    reserve(&file, size).map_err(JournalError::io("reserve space for", path))?;
    Ok(file)
}

/// Makes everything from `offset` on zero.
pub(super) fn clear_from(
    file: &File,
    path: &Path,
    offset: u64,
    size: SegmentSize,
) -> Result<(), JournalError> {
    file.set_len(offset)
        .and_then(|()| reserve(file, size))
        .map_err(JournalError::io("clear the end of", path))
}

/// Gives a file its full size, with the space behind it where the file system can promise that.
fn reserve(file: &File, size: SegmentSize) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    match fallocate(file, FallocateFlags::empty(), 0, size.bytes()) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => file.set_len(size.bytes()),
        Err(errno) => Err(errno.into()),
    }
}

/// The segments of a timeline by number; `true` if finished. Leftovers of a crash are skipped.
pub(super) fn segments(
    dir: &Path,
    timeline: Timeline,
    size: SegmentSize,
) -> Result<BTreeMap<u64, bool>, JournalError> {
    let path = timeline_dir(dir, timeline);
    let mut found = BTreeMap::new();
    for name in names(&path)? {
        let (stem, is_finished) = match name.strip_suffix(PARTIAL) {
            Some(stem) => (stem, false),
            None => (name.as_str(), true),
        };
        match WalSegment::parse(stem, size) {
            Ok(segment) if segment.timeline == timeline => {
                if found.insert(segment.number, is_finished).is_some() {
                    let detail = format!("segment {stem} is there both finished and unfinished");
                    return Err(JournalError::corrupt(&path, detail));
                }
            }
            _ => tracing::warn!(file = name, "unknown file in journal left alone"),
        }
    }
    Ok(found)
}

/// The timelines that have a directory, ascending.
pub(super) fn timelines(dir: &Path) -> Result<Vec<Timeline>, JournalError> {
    let number = |name: &String| {
        let plain = name.len() == 8;
        plain.then(|| u32::from_str_radix(name, 16).ok()).flatten().and_then(Timeline::new)
    };
    let mut timelines: Vec<_> = names(dir)?.iter().filter_map(number).collect();
    timelines.sort();
    Ok(timelines)
}

/// A history and the content of its file.
#[derive(Clone, Debug)]
pub(super) struct History {
    pub(super) parsed: TimelineHistory,
    pub(super) raw: bytes::Bytes,
}

/// Reads what PostgreSQL wrote into a history file.
pub(super) fn parse_history(timeline: Timeline, raw: &[u8]) -> Result<History, JournalError> {
    // The reason is free text in the server's encoding; only what is around it has to be read.
    let parsed = TimelineHistory::parse(timeline, &String::from_utf8_lossy(raw))
        .map_err(|source| JournalError::History { timeline, source })?;
    Ok(History { parsed, raw: bytes::Bytes::copy_from_slice(raw) })
}

/// All history files.
pub(super) fn histories(dir: &Path) -> Result<BTreeMap<Timeline, History>, JournalError> {
    let mut histories = BTreeMap::new();
    for name in names(dir)? {
        let Some(stem) = name.strip_suffix(".history").filter(|stem| stem.len() == 8) else {
            continue;
        };
        let number = u32::from_str_radix(stem, 16).ok().and_then(Timeline::new);
        let Some(timeline) = number else { continue };
        if let Some(raw) = read_if_exists(&dir.join(&name))? {
            histories.insert(timeline, parse_history(timeline, &raw)?);
        }
    }
    Ok(histories)
}

/// Makes the directory that WAL is to be moved into, which has to be empty.
pub(super) fn make_target(into: &Path) -> Result<(), JournalError> {
    fs::create_dir_all(into).map_err(JournalError::io("create directory", into))?;
    match names(into)?.as_slice() {
        [] => Ok(()),
        _ => Err(JournalError::TargetInUse { path: into.to_owned() }),
    }
}

/// Moves all segments, and the files of these histories, into a directory, durably. What goes to another
/// file system is copied first, and takes its room there.
pub(super) fn move_wal(
    dir: &Path,
    into: &Path,
    histories: impl Iterator<Item = Timeline>,
) -> Result<(), JournalError> {
    // Newest first: after a crash on the way the rest is a shorter journal, not one with a hole.
    for timeline in timelines(dir)?.into_iter().rev() {
        let from = timeline_dir(dir, timeline);
        let to = timeline_dir(into, timeline);
        rename_or(&from, &to, || copy_segments(&from, &to))?;
    }
    for timeline in histories {
        let from = dir.join(timeline.history_file_name());
        let to = into.join(timeline.history_file_name());
        rename_or(&from, &to, || {
            copy_durably(&from, &to)?;
            fs::remove_file(&from).map_err(JournalError::io("remove", &from))
        })?;
    }
    sync_dir(into)?;
    into.parent().map_or(Ok(()), sync_dir)?;
    sync_dir(dir)
}

/// Renames, or does `otherwise` where the new name is on another file system.
fn rename_or(
    from: &Path,
    to: &Path,
    otherwise: impl FnOnce() -> Result<(), JournalError>,
) -> Result<(), JournalError> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => otherwise(),
        renamed => renamed.map_err(JournalError::io("move", from)),
    }
}

/// A timeline's directory; it goes once everything in it is durable there.
fn copy_segments(from: &Path, to: &Path) -> Result<(), JournalError> {
    create_dir(to)?;
    for name in names(from)? {
        copy_durably(&from.join(&name), &to.join(&name))?;
    }
    sync_dir(to)?;
    fs::remove_dir_all(from).map_err(JournalError::io("remove", from))
}

fn copy_durably(from: &Path, to: &Path) -> Result<(), JournalError> {
    fs::copy(from, to).map_err(JournalError::io("copy", from))?;
    File::open(to).and_then(|file| file.sync_all()).map_err(JournalError::io("sync", to))
}

/// Removes files that were being made when the process ended.
pub(super) fn remove_temporary(dir: &Path) -> Result<(), JournalError> {
    let mut dirs = vec![dir.to_owned()];
    dirs.extend(timelines(dir)?.into_iter().map(|timeline| timeline_dir(dir, timeline)));
    for dir in dirs {
        for name in names(&dir)?.iter().filter(|name| name.ends_with(TEMPORARY)) {
            let path = dir.join(name);
            fs::remove_file(&path).map_err(JournalError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// The names in a directory that are text; none if it does not exist.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, JournalError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(JournalError::io("list", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(JournalError::io("list", dir))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}
