//! The guardian: a small process of its own that ends PostgreSQL when the lease's deadline passes and
//! the daemon does nothing about it, because it is dead, frozen or starved.
//!
//! The gate alone keeps a node without a lease from confirming commits. The guardian ends what the gate
//! does not reach: sessions that go on reading old data, and those that opted out of it. It never
//! decides who may hold, never gives a lease back, and starts nothing.
//!
//! - `watch` is the process: it listens for the deadline, and sweeps when it has passed.
//! - `link` is the daemon's end: it starts the process, and says the deadline again and again.
//! - `record` is the log of what the process did, for the daemon that comes back.
//!
//! The two speak in datagrams over Unix sockets in a directory that only their user can enter. One
//! datagram is one whole statement of how things stand, so none is torn, a lost one is made good by the
//! next, and a late one does no harm: deadlines are moments of `CLOCK_BOOTTIME`, never spans. (A page of
//! shared memory would do as well; it needs unsafe code, a check for torn values, and a way for the next
//! daemon to find it.) A lock that the guardian holds for its life keeps it the only one; a daemon that
//! starts anew finds it at the socket and takes it over, deadline and all.

mod link;
mod record;
mod watch;

use std::path::{Path, PathBuf};

use understudy_types::BootInstant;

pub use link::{GuardianError, GuardianLink, GuardianOptions};
pub use record::GuardianRecord;
pub use watch::{WatchError, WatchOptions, watch};

/// First bytes of every datagram; another form gets another number.
const MAGIC: [u8; 8] = *b"USGUARD1";
/// Length of a datagram.
const LENGTH: usize = 48;

/// What the daemon wants guarded, as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Nothing runs here that a lease covers.
    Nothing,
    /// Fence at this moment, unless something else is said before.
    Until(BootInstant),
    /// The daemon is new and holds no lease yet: what an earlier one said stands. If none said
    /// anything, fence at this moment.
    AsBefore(BootInstant),
    /// The guardian is to end.
    Retire,
}

impl Guard {
    fn code(self) -> (u64, u64) {
        match self {
            Guard::Nothing => (0, 0),
            Guard::Until(at) => (1, at.0),
            Guard::AsBefore(at) => (2, at.0),
            Guard::Retire => (3, 0),
        }
    }

    fn decode(code: u64, at: u64) -> Option<Guard> {
        match code {
            0 => Some(Guard::Nothing),
            1 => Some(Guard::Until(BootInstant(at))),
            2 => Some(Guard::AsBefore(BootInstant(at))),
            3 => Some(Guard::Retire),
            _ => None,
        }
    }
}

/// What the daemon says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Statement {
    /// The start of the daemon's process; an older one is not listened to any more.
    process: u64,
    serial: u64,
    guard: Guard,
}

impl Statement {
    fn encode(&self) -> [u8; LENGTH] {
        let (code, at) = self.guard.code();
        pack([self.process, self.serial, code, at, 0])
    }

    fn decode(bytes: &[u8]) -> Option<Statement> {
        let [process, serial, code, at, _] = unpack(bytes)?;
        Some(Statement { process, serial, guard: Guard::decode(code, at)? })
    }
}

/// What the guardian answers to each statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    /// Whose statement, and which.
    process: u64,
    serial: u64,
    /// The moment at which it fences; `None` while it guards nothing.
    armed_until: Option<BootInstant>,
    pid: u32,
    /// How often it has fenced since it started.
    fences: u64,
}

impl Answer {
    fn encode(&self) -> [u8; LENGTH] {
        let armed = self.armed_until.map_or(u64::MAX, |at| at.0);
        pack([self.process, self.serial, armed, u64::from(self.pid), self.fences])
    }

    fn decode(bytes: &[u8]) -> Option<Answer> {
        let [process, serial, armed, pid, fences] = unpack(bytes)?;
        let armed_until = (armed != u64::MAX).then_some(BootInstant(armed));
        Some(Answer { process, serial, armed_until, pid: u32::try_from(pid).ok()?, fences })
    }
}

fn pack(words: [u64; 5]) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[..8].copy_from_slice(&MAGIC);
    for (place, word) in bytes[8..].chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn unpack(bytes: &[u8]) -> Option<[u64; 5]> {
    let body = bytes.strip_prefix(&MAGIC)?;
    let words: Vec<u64> = body
        .chunks_exact(8)
        .filter_map(|word| word.try_into().ok().map(u64::from_le_bytes))
        .collect();
    (bytes.len() == LENGTH).then_some(())?;
    words.try_into().ok()
}

/// Where the guardian listens.
fn guardian_socket(dir: &Path) -> PathBuf {
    dir.join("guard.sock")
}

/// Where the daemon listens for its answers.
fn daemon_socket(dir: &Path) -> PathBuf {
    dir.join("daemon.sock")
}

/// Locked while a guardian lives.
fn lock_file(dir: &Path) -> PathBuf {
    dir.join("lock")
}

/// The kernel's boot-time clock, which goes on while the machine is suspended (I4).
fn boot_now() -> BootInstant {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    BootInstant(seconds * 1_000_000_000 + nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_is_heard_and_anything_else_is_nothing() {
        let at = BootInstant(77);
        for guard in [Guard::Nothing, Guard::Until(at), Guard::AsBefore(at), Guard::Retire] {
            let said = Statement { process: 3, serial: 9, guard };
            let bytes = said.encode();
            assert_eq!(Statement::decode(&bytes), Some(said));
            assert_eq!(Statement::decode(&bytes[..47]), None);
            assert_eq!(Statement::decode(&[&bytes[..], &[0]].concat()), None);
        }
        for armed_until in [None, Some(at)] {
            let answer = Answer { process: 1, serial: 2, armed_until, pid: 4, fences: 5 };
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }
        let mut stranger = Statement { process: 1, serial: 1, guard: Guard::Nothing }.encode();
        stranger[24] = 9;
        assert_eq!(Statement::decode(&stranger), None, "an unknown word");
        stranger[0] = b'X';
        assert_eq!(Statement::decode(&stranger), None);
    }
}
