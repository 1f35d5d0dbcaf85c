//! PostgreSQL, modelled: what a server makes of its WAL, of commits that wait for the gate, of a stop,
//! a crash and a promotion.
//!
//! Nothing here knows a clock, dice, a daemon or another machine: `World` says what happens when. Each
//! deed is held to a real server by the table in `agreement`.

use std::collections::VecDeque;

#[cfg(test)]
use understudy_types::Lsn;
use understudy_types::Timeline;

use super::content::{Rec, WAL_BEGINS, Wal};
use super::machine::Written;

#[cfg(test)]
mod agreement;

/// Bytes of the record that a promotion begins its timeline with.
const END_OF_RECOVERY_BYTES: u64 = 50;
/// Bytes of the record that a clean stop ends with.
const SHUTDOWN_CHECKPOINT_BYTES: u64 = 120;

/// A data directory, and the server on it while it runs.
#[derive(Clone, Debug)]
pub(crate) struct Postgres {
    pub(crate) data: Data,
    pub(crate) server: Option<Server>,
    starts: u64,
}

/// A data directory.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    pub(crate) present: bool,
    /// The truth: a rewind or clone is not finished.
    pub(crate) incomplete: bool,
    /// What the disk says about it.
    pub(crate) dirty_marker: bool,
    pub(crate) wal: Wal,
    pub(crate) timeline: Timeline,
    /// Of its last checkpoint.
    pub(crate) control_timeline: Timeline,
    /// Timelines that were left, and where.
    pub(crate) ancestors: Vec<(Timeline, u64)>,
}

/// The processes.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) life: u64,
    pub(crate) primary: bool,
    /// The postmaster is alive; without it sessions may go on all the same.
    pub(crate) postmaster: bool,
    pub(crate) open_to_clients: bool,
    /// It was told to stop; without the gate's connection nothing holds that up any more.
    pub(crate) stopping: bool,
    pub(crate) replay: u64,
    pub(crate) replaying: bool,
    pub(crate) waiting: VecDeque<Waiter>,
    /// A status update that lies in the socket.
    pub(crate) socket: Option<Written>,
}

/// A commit that waits for its standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiter {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) id: u64,
}

impl Data {
    /// Where the directory's present timeline was forked, if it was.
    pub(crate) fn fork(&self) -> Option<u64> {
        self.ancestors.last().map(|(_, switch)| *switch)
    }
}

impl Postgres {
    /// An empty place for a data directory.
    pub(crate) fn nothing() -> Postgres {
        let data = Data {
            present: false,
            incomplete: false,
            dirty_marker: false,
            wal: Wal::from(WAL_BEGINS),
            timeline: Timeline::FIRST,
            control_timeline: Timeline::FIRST,
            ancestors: Vec::new(),
        };
        Postgres { data, server: None, starts: 0 }
    }

    /// A new cluster, unless there is one; `id` names its first records.
    pub(crate) fn init_db(&mut self, id: u64) {
        if !self.data.present {
            self.data.present = true;
            let rec = self.data.wal.insert(8000, id, Timeline::FIRST);
            self.data.wal.flush(rec.end);
        }
    }

    /// Crash recovery, which ends with a checkpoint; then it may be written to.
    pub(crate) fn start_primary(&mut self) {
        self.die();
        self.data.wal.recover_as_primary();
        self.checkpoint();
        self.begin(true);
    }

    /// In recovery, for as long as nobody promotes it.
    pub(crate) fn start_standby(&mut self) {
        self.die();
        let end = self.data.wal.record_end();
        self.data.wal.cut(end);
        self.begin(false);
    }

    fn begin(&mut self, primary: bool) {
        self.starts += 1;
        self.server = Some(Server {
            life: self.starts,
            primary,
            postmaster: true,
            open_to_clients: false,
            stopping: false,
            replay: self.data.wal.record_end(),
            replaying: false,
            waiting: VecDeque::new(),
            socket: None,
        });
    }

    /// Every process ends at once; what was not flushed is gone. Nobody who waits is told anything.
    pub(crate) fn die(&mut self) {
        if self.server.take().is_some() {
            self.data.wal.crash();
        }
    }

    /// What a server does after the death of one backend where that does not end it: with
    /// `standby.signal` beside a running primary it comes up in recovery.
    pub(crate) fn restart_in_place(&mut self) {
        let Some(server) = &mut self.server else { return };
        server.primary = false;
        server.waiting.clear();
        server.socket = None;
        self.data.wal.crash();
        server.replay = self.data.wal.record_end();
    }

    /// A record that nobody waits for.
    pub(crate) fn write(&mut self, length: u64, id: u64) -> Rec {
        self.data.wal.insert(length, id, self.data.timeline)
    }

    /// A session commits, and waits.
    pub(crate) fn commit(&mut self, length: u64, id: u64) -> Rec {
        let rec = self.write(length, id);
        if let Some(server) = &mut self.server {
            server.waiting.push_back(Waiter { start: rec.start, end: rec.end, id });
        }
        rec
    }

    /// The gate says that it has everything up to there; returns whose wait is over, in order.
    pub(crate) fn confirm(&mut self, upto: u64) -> Vec<Waiter> {
        let Some(server) = &mut self.server else { return Vec::new() };
        let over = server.waiting.partition_point(|waiter| waiter.end <= upto);
        server.waiting.drain(..over).collect()
    }

    /// A session's wait is cancelled, and it is told that the commit stands here and maybe nowhere else;
    /// says whether it waited.
    pub(crate) fn cancel(&mut self, id: u64) -> bool {
        let Some(server) = &mut self.server else { return false };
        let Some(index) = server.waiting.iter().position(|waiter| waiter.id == id) else {
            return false;
        };
        server.waiting.remove(index).is_some()
    }

    /// A new session sees the commit: here it is whole, and nobody waits for it.
    #[cfg(test)]
    pub(crate) fn shows(&self, start: u64, id: u64) -> bool {
        let waits = |server: &Server| server.waiting.iter().any(|waiter| waiter.id == id);
        self.server.as_ref().is_some_and(|server| !waits(server))
            && self.data.wal.holds(Lsn(start), id)
    }

    /// Sessions are ended. Whoever waits is told so, and not that the commit is safe; it stands.
    pub(crate) fn end_sessions(&mut self) {
        if let Some(server) = &mut self.server {
            server.waiting.clear();
        }
    }

    /// The standby takes what a journal holds up to the byte `durable`, and says whether it went on.
    ///
    /// # Panics
    /// When the journal goes on with other bytes than the standby has.
    pub(crate) fn replay(&mut self, wal: &Wal, durable: u64) -> bool {
        let durable = wal.record_end_before(durable);
        let held = self.data.wal.record_end();
        if wal.begin() > held || durable <= held {
            return false;
        }
        let recs = wal.after(held);
        let took = self.data.wal.take(recs, durable);
        assert!(took.is_ok(), "a standby's WAL ends at {held}, and the journal goes on there");
        if recs.first().is_some_and(|first| first.timeline != self.data.timeline) {
            self.data.ancestors.push((self.data.timeline, held));
        }
        let switches = recs.windows(2).filter(|pair| pair[0].timeline != pair[1].timeline);
        self.data.ancestors.extend(switches.map(|pair| (pair[0].timeline, pair[1].start)));
        if let Some(timeline) = wal.timeline() {
            self.data.timeline = timeline;
        }
        if let Some(server) = &mut self.server {
            server.replay = self.data.wal.record_end();
        }
        true
    }

    /// Recovery ends: `timeline` forks off at the end of the last whole record, and begins with the
    /// record `id`. Whoever waits for that is not let in yet. Returns where it forked.
    pub(crate) fn promote(&mut self, timeline: Timeline, id: u64) -> u64 {
        let fork = self.data.wal.record_end();
        self.data.wal.cut(fork);
        self.data.ancestors.push((self.data.timeline, fork));
        self.data.timeline = timeline;
        let rec = self.write(END_OF_RECOVERY_BYTES, id);
        self.data.wal.flush(rec.end);
        if let Some(server) = &mut self.server {
            server.primary = true;
            server.open_to_clients = false;
        }
        fork
    }

    /// From now on its control file names the present timeline, which a rewind from it reads.
    pub(crate) fn checkpoint(&mut self) {
        self.data.control_timeline = self.data.timeline;
    }

    /// A fast stop begins: sessions end, nobody is let in any more.
    pub(crate) fn tell_to_stop(&mut self) {
        self.end_sessions();
        if let Some(server) = &mut self.server {
            server.open_to_clients = false;
            server.stopping = true;
        }
    }

    /// A fast stop's last record, `id`; the server ends when every walsender's client has it.
    pub(crate) fn write_shutdown_checkpoint(&mut self, id: u64) -> Rec {
        let rec = self.write(SHUTDOWN_CHECKPOINT_BYTES, id);
        self.data.wal.flush(rec.end);
        self.checkpoint();
        rec
    }

    /// A server that was told to stop ends when every walsender's client has `confirmed` its last
    /// record, whose end is `end`; with no client it ends at once. Says whether it did.
    pub(crate) fn end_if_confirmed(
        &mut self,
        end: u64,
        confirmed: impl IntoIterator<Item = u64>,
    ) -> bool {
        let over = confirmed.into_iter().all(|upto| upto >= end);
        if over {
            self.die();
        }
        over
    }

    /// Whether a rewind from `source` would change anything: `pg_rewind` compares the timelines that the
    /// control files name, and takes equal ones for one history. A cluster that crashed is recovered
    /// first, so its own names the present one.
    pub(crate) fn needs_rewind_from(&self, source: &Data) -> bool {
        self.data.timeline != source.control_timeline
    }

    /// A finished rewind or base backup: what `source` has flushed, whole records of it.
    pub(crate) fn become_copy_of(&mut self, source: Data) {
        self.data = Data { present: true, incomplete: false, dirty_marker: false, ..source };
        self.data.wal.crash();
        let end = self.data.wal.record_end();
        self.data.wal.cut(end);
    }
}
