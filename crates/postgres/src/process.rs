//! Finds the processes of one instance in /proc, and ends them.
//!
//! A process belongs to the instance when its program is `postgres` and its working directory is
//! PGDATA (every process of PostgreSQL changes there), or when it descends from such a process. An
//! operator's shell that happens to stand in PGDATA does not.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::{Error, IoContext, Result};
use crate::os;
use crate::settings::GateName;

/// A postmaster that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot: tells it from a later process of the same id.
    pub start_time_ticks: u64,
    /// The TCP port, also part of the socket's name.
    pub port: u16,
    /// Where its socket is; `None` when it has none.
    pub socket_dir: Option<PathBuf>,
    /// The gate's name on its command line; `None` when somebody else started it without one.
    pub gate_name: Option<GateName>,
    /// The last line of `postmaster.pid`: starting, ready, standby, stopping.
    pub status: String,
}

/// Names one shared memory segment. Ids alone are given anew after each boot, so that the one in a stale
/// `postmaster.pid` may be another instance's by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShmSegment {
    key: u32,
    id: u32,
}

impl ShmSegment {
    fn parse(line: &str) -> Option<ShmSegment> {
        let mut numbers = line.split_whitespace();
        Some(ShmSegment { key: number(numbers.next()?)?, id: number(numbers.next()?)? })
    }
}

/// A 32-bit number that some print signed and some unsigned.
fn number(text: &str) -> Option<u32> {
    text.parse::<i64>().ok().map(|number| number as u32)
}

/// `postmaster.pid`, which outlives a postmaster that was killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PidFile {
    pub(crate) pid: u32,
    port: u16,
    socket_dir: Option<PathBuf>,
    /// The System V shared memory segment, absent in the first moments of a start.
    pub(crate) shm: Option<ShmSegment>,
    status: String,
}

impl PidFile {
    /// Reads it (lines as in `src/include/utils/pidfile.h`); `None` when there is none or it is not
    /// yet written.
    pub(crate) fn read(data_dir: &Path) -> Result<Option<PidFile>> {
        let Some(content) = os::read_if_present(&data_dir.join("postmaster.pid"))? else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&content);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let line = |index: usize| lines.get(index).copied().unwrap_or_default();
        // A single-user server writes its own id negated.
        let Ok(pid) = line(0).trim_start_matches('-').parse() else { return Ok(None) };
        Ok(Some(PidFile {
            pid,
            port: line(3).parse().unwrap_or(0),
            socket_dir: Some(line(4)).filter(|dir| !dir.is_empty()).map(PathBuf::from),
            shm: ShmSegment::parse(line(6)),
            status: line(7).to_owned(),
        }))
    }

    /// The postmaster accepts connections, also if for reading only.
    pub(crate) fn says_ready(&self) -> bool {
        matches!(self.status.as_str(), "ready" | "standby")
    }
}

/// One line of /proc/PID/stat.
struct Stat {
    parent: u32,
    start_time_ticks: u64,
    ended: bool,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name may hold spaces and parentheses: count from the last one.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    Some(Stat {
        ended: matches!(*fields.first()?, "Z" | "X" | "x"),
        parent: fields.get(1)?.parse().ok()?,
        start_time_ticks: fields.get(19)?.parse().ok()?,
    })
}

fn is_postgres_in(pid: u32, data_dir: (u64, u64)) -> bool {
    // By device and inode, since the path may lead over symbolic links or other mounts.
    let Ok(cwd) = fs::metadata(format!("/proc/{pid}/cwd")) else { return false };
    if (cwd.dev(), cwd.ino()) != data_dir {
        return false;
    }
    let Ok(exe) = fs::read_link(format!("/proc/{pid}/exe")) else { return false };
    // "postgres (deleted)" after an upgrade of the package.
    exe.file_name().is_some_and(|name| name.to_string_lossy().starts_with("postgres"))
}

/// True while the process of this number that started then is there and not merely unburied.
pub(crate) fn lives(pid: u32, start_time_ticks: u64) -> bool {
    stat(pid).is_some_and(|stat| !stat.ended && stat.start_time_ticks == start_time_ticks)
}

/// True while a process has ended and its parent has not heard of it: to whoever only sends it a signal it
/// looks alive.
pub(crate) fn is_unburied(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.ended)
}

/// Every living process of the instance, descendants included, with its start in clock ticks since
/// boot, by which a later process of the same number is told from it.
///
/// # Errors
/// When /proc or the data directory cannot be looked at: then nothing is known, and nothing may be
/// concluded.
pub(crate) fn instance_processes(data_dir: &Path) -> Result<BTreeMap<u32, u64>> {
    let directory = match fs::metadata(data_dir) {
        Ok(directory) => (directory.dev(), directory.ino()),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error).during("look at", data_dir),
    };
    let proc = Path::new("/proc");
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut starts: BTreeMap<u32, u64> = BTreeMap::new();
    let mut found = Vec::new();
    for entry in fs::read_dir(proc).during("list", proc)? {
        let name = entry.during("list", proc)?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Some(stat) = stat(pid) else { continue };
        if stat.ended {
            continue;
        }
        children.entry(stat.parent).or_default().push(pid);
        starts.insert(pid, stat.start_time_ticks);
        if is_postgres_in(pid, directory) {
            found.push(pid);
        }
    }
    let mut instance = BTreeMap::new();
    while let Some(pid) = found.pop() {
        if instance.insert(pid, starts[&pid]).is_none() {
            found.extend(children.get(&pid).into_iter().flatten());
        }
    }
    Ok(instance)
}

/// The arguments a process was started with. Backends overwrite theirs with a title, the postmaster
/// does not.
fn arguments(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .filter(|part| !part.is_empty())
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect()
}

/// The postmaster of the data directory, if it lives. A stale `postmaster.pid` whose number went to
/// another process is seen through.
pub(crate) fn running(data_dir: &Path) -> Result<Option<Running>> {
    let Some(file) = PidFile::read(data_dir)? else { return Ok(None) };
    let Ok(directory) = fs::metadata(data_dir) else { return Ok(None) };
    let Some(stat) = stat(file.pid).filter(|stat| !stat.ended) else { return Ok(None) };
    let arguments = arguments(file.pid);
    let title = arguments.first().is_some_and(|first| first.starts_with("postgres: "));
    if title || !is_postgres_in(file.pid, (directory.dev(), directory.ino())) {
        return Ok(None);
    }
    let gate_name = arguments
        .iter()
        .rev()
        .find_map(|argument| {
            argument.trim_start_matches("--").strip_prefix("synchronous_standby_names=")
        })
        .and_then(|value| value.trim_matches('"').parse().ok());
    Ok(Some(Running {
        pid: file.pid,
        start_time_ticks: stat.start_time_ticks,
        port: file.port,
        socket_dir: file.socket_dir,
        gate_name,
        status: file.status,
    }))
}

/// Sends a signal to one process, known by its number and start; false when it is gone.
///
/// The handle is taken before the start is compared, so that the signal cannot hit another process to
/// which the number went in between.
pub(crate) fn signal_one(pid: u32, start_time_ticks: u64, signal: Signal) -> Result<bool> {
    let Some(target) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(false) };
    let handle = match pidfd_open(target, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error).during("open process", &proc_path(pid)),
    };
    if !lives(pid, start_time_ticks) {
        return Ok(false);
    }
    match pidfd_send_signal(&handle, signal) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(error) => Err(error).during("signal process", &proc_path(pid)),
    }
}

/// A descriptor that becomes readable when the process ends; `None` when it is gone.
pub(crate) fn end_of(pid: u32, start_time_ticks: u64) -> Result<Option<OwnedFd>> {
    let Some(target) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match pidfd_open(target, PidfdFlags::NONBLOCK) {
        Ok(handle) => Ok(lives(pid, start_time_ticks).then_some(handle)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error).during("open process", &proc_path(pid)),
    }
}

fn proc_path(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// How many processes are attached to a System V shared memory segment; 0 when it is gone.
pub(crate) fn shm_attached(segment: ShmSegment) -> Result<u64> {
    let path = Path::new("/proc/sysvipc/shm");
    let text = fs::read_to_string(path).during("read", path)?;
    attached_in(&text, segment).ok_or_else(|| Error::Output {
        program: path.display().to_string(),
        reason: "no columns key, shmid and nattch".to_owned(),
    })
}

fn attached_in(table: &str, segment: ShmSegment) -> Option<u64> {
    let mut lines = table.lines();
    let columns: Vec<&str> = lines.next()?.split_whitespace().collect();
    let column = |name: &str| columns.iter().position(|column| *column == name);
    let (key, id, attached) = (column("key")?, column("shmid")?, column("nattch")?);
    for line in lines {
        let values: Vec<&str> = line.split_whitespace().collect();
        let value = |index: usize| values.get(index).and_then(|text| number(text));
        if value(key) == Some(segment.key) && value(id) == Some(segment.id) {
            return value(attached).map(u64::from);
        }
    }
    Some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
       key      shmid perms                  size  cpid  lpid nattch   uid   gid
  12345678          3   600                    56   100   200      7   101   104
-294967296          4   600                    56   100   200      2   101   104
";

    #[test]
    fn attachments_are_those_of_the_segment_with_both_key_and_id() {
        let attached = |line| attached_in(TABLE, ShmSegment::parse(line).unwrap());
        assert_eq!(attached(" 12345678         3"), Some(7));
        assert_eq!(attached("4000000000         4"), Some(2));
        assert_eq!(attached(" 99999999         3"), Some(0), "another instance's since the boot");
        assert_eq!(attached_in("", ShmSegment { key: 1, id: 1 }), None);
    }
}
