//! What the guardian did, one line each time, for the daemon that comes back. It decides nothing.
//!
//! The guardian appends and syncs; the daemon remembers how far it has read. A line that is not whole
//! yet is read the next time.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{IoContext, Result};
use crate::fence::FenceProof;
use crate::os::{self, OsUser};

const LOG: &str = "log";
const READ_UPTO: &str = "log.read";
/// A log that is read and longer than this begins anew.
const LENGTH_MAX: usize = 256 * 1024;

/// One fence by the guardian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardianRecord {
    /// When, by the wall clock, in microseconds since 1970.
    pub at_unix_us: u64,
    /// How long after the deadline it began.
    pub late_by: Duration,
    /// How many processes there were.
    pub processes_found: u64,
    /// How many SIGKILLs it took.
    pub kills: u64,
    /// How long it took, or has taken so far.
    pub took: Duration,
    /// Nothing of the instance is left; false when some process would not end, or could not be seen.
    pub proven: bool,
}

impl GuardianRecord {
    pub(super) fn new(late_by: Duration, sweep: &FenceProof, proven: bool) -> GuardianRecord {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        GuardianRecord {
            at_unix_us: micros(since_1970),
            late_by,
            processes_found: count(sweep.processes_found),
            kills: count(sweep.kills),
            took: sweep.took,
            proven,
        }
    }

    fn line(&self) -> String {
        format!(
            "{} {} {} {} {} {}\n",
            self.at_unix_us,
            micros(self.late_by),
            self.processes_found,
            self.kills,
            micros(self.took),
            u8::from(self.proven)
        )
    }

    fn parse(line: &str) -> Option<GuardianRecord> {
        let numbers: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [at_unix_us, late_by, processes_found, kills, took, proven] =
            numbers.try_into().ok()?;
        Some(GuardianRecord {
            at_unix_us,
            late_by: Duration::from_micros(late_by),
            processes_found,
            kills,
            took: Duration::from_micros(took),
            proven: proven == 1,
        })
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Appends a record, durably.
pub(super) fn append(dir: &Path, record: &GuardianRecord) -> Result<()> {
    let path = dir.join(LOG);
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .during("open log", &path)?;
    file.write_all(record.line().as_bytes()).during("write", &path)?;
    file.sync_all().during("sync", &path)?;
    os::sync_dir(dir)
}

/// The records that no daemon has taken yet; they count as taken from now on.
pub(super) fn take_new(dir: &Path, owner: &OsUser) -> Result<Vec<GuardianRecord>> {
    let Some(log) = os::read_if_present(&dir.join(LOG))? else { return Ok(Vec::new()) };
    let marker = dir.join(READ_UPTO);
    let read_upto = os::read_if_present(&marker)?
        .and_then(|text| String::from_utf8_lossy(&text).trim().parse::<usize>().ok())
        // A log that began anew is shorter than what was read of the one before.
        .filter(|upto| *upto <= log.len())
        .unwrap_or(0);
    let whole = log.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if whole <= read_upto {
        return Ok(Vec::new());
    }
    let text = String::from_utf8_lossy(&log[read_upto..whole]).into_owned();
    if whole > LENGTH_MAX && whole == log.len() {
        // The marker goes first: read twice is better than not at all.
        os::remove_durably(&marker)?;
        fs::rename(dir.join(LOG), dir.join("log.old")).during("put away", &dir.join(LOG))?;
    } else {
        os::write_durably(&marker, whole.to_string().as_bytes(), owner)?;
    }
    Ok(text.lines().filter_map(GuardianRecord::parse).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kills: u64) -> GuardianRecord {
        GuardianRecord {
            at_unix_us: 1,
            late_by: Duration::from_micros(2),
            processes_found: 3,
            kills,
            took: Duration::from_micros(5),
            proven: kills != 1,
        }
    }

    #[test]
    fn each_record_is_taken_once_and_a_half_written_one_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let me = OsUser::current().unwrap();
        assert_eq!(take_new(dir.path(), &me).unwrap(), []);
        append(dir.path(), &record(1)).unwrap();
        append(dir.path(), &record(2)).unwrap();
        assert_eq!(take_new(dir.path(), &me).unwrap(), [record(1), record(2)]);
        assert_eq!(take_new(dir.path(), &me).unwrap(), []);
        let log = dir.path().join(LOG);
        let whole = fs::read(&log).unwrap();
        let third = record(3).line();
        fs::write(&log, [&whole, &third.as_bytes()[..5]].concat()).unwrap();
        assert_eq!(take_new(dir.path(), &me).unwrap(), []);
        fs::write(&log, [&whole, third.as_bytes()].concat()).unwrap();
        assert_eq!(take_new(dir.path(), &me).unwrap(), [record(3)]);
    }

    #[test]
    fn a_long_log_begins_anew_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let me = OsUser::current().unwrap();
        let many = record(7).line().repeat(LENGTH_MAX / 8);
        fs::write(dir.path().join(LOG), &many).unwrap();
        assert_eq!(take_new(dir.path(), &me).unwrap().len(), LENGTH_MAX / 8);
        append(dir.path(), &record(8)).unwrap();
        assert_eq!(take_new(dir.path(), &me).unwrap(), [record(8)]);
    }
}
