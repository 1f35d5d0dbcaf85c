//! PostgreSQL, modelled: clients commit, WAL is flushed, commits wait for their standby, a standby
//! replays what its journal holds.

use super::content::Rec;
use super::machine::{Acked, Waiter};
use super::plan::MS;
use super::world::{Happening, InServer, World};

/// Sessions that commit at a time; each waits for its commit before it goes on.
const SESSIONS: usize = 6;

impl World {
    /// The clients that try this node.
    pub(crate) fn client(&mut self, node: usize) {
        let every = self.plan.commit_every;
        let next = self.random.between(every / 2, every * 3 / 2);
        self.after(next, Happening::Client(node));
        let Some(server) = self.machines[node].server_running(self.now) else { return };
        if !server.primary || server.stopping {
            return;
        }
        let (open, waiting) = (server.open_to_clients, server.waiting.len());
        let commits = open && waiting < SESSIONS;
        // Housekeeping writes WAL whether or not anybody may commit.
        if !commits && !self.random.chance(50) {
            return;
        }
        let most = self.plan.record_bytes_max;
        if self.random.chance(300) {
            self.insert(node, most);
        }
        if commits {
            let rec = self.insert(node, most.min(8_000));
            if let Some(server) = &mut self.machines[node].server {
                server.waiting.push_back(Waiter { start: rec.start, end: rec.end, id: rec.id });
            }
        }
        let upto = self.machines[node].data.wal.inserted();
        let takes = self.fsync(node);
        self.in_server(node, takes, InServer::Flush { upto });
    }

    fn insert(&mut self, node: usize, bytes_max: u64) -> Rec {
        let id = self.number();
        let length = self.random.spread(40, bytes_max);
        let data = &mut self.machines[node].data;
        data.wal.insert(length, id, data.timeline)
    }

    pub(crate) fn flush(&mut self, node: usize, upto: u64) {
        let torn = self.random.chance(100);
        let inserted = self.machines[node].data.wal.inserted();
        // Pages are flushed, not records: the next record may be there in part.
        let upto = match torn && inserted > upto {
            true => self.random.between(upto, inserted),
            false => upto,
        };
        let machine = &mut self.machines[node];
        if machine.server.as_ref().is_some_and(|server| server.primary) {
            machine.data.wal.flush(upto);
            if self.runs(node) {
                self.source_moves(node);
            }
        }
    }

    /// The walsender reads the gate's status update, and PostgreSQL releases commits.
    pub(crate) fn read_socket(&mut self, node: usize) {
        let Some(server) = &mut self.machines[node].server else { return };
        let Some(written) = server.socket.take() else { return };
        let mut acked = Vec::new();
        while let Some(first) = server.waiting.front().copied() {
            if first.end > written.upto {
                break;
            }
            server.waiting.pop_front();
            acked.push(Acked {
                start: first.start,
                end: first.end,
                id: first.id,
                epoch: written.epoch,
                mode: written.permit.mode,
                waited: !written.permit.waited_for.is_empty(),
                decided_at: written.decided_at,
            });
        }
        if acked.is_empty() {
            return;
        }
        self.ack_count += acked.len() as u64;
        let state = self.raft.state().clone();
        if state.epoch > acked[0].epoch {
            self.delivered_late(&acked, state.active());
            return;
        }
        self.acked_in_stage = true;
        self.acks.extend(acked);
    }

    pub(crate) fn wish_replay(&mut self, node: usize) {
        let slow = self.now < self.machines[node].slow_replay_until;
        let takes = match slow {
            true => self.random.spread(20 * MS, 3000 * MS),
            false => self.random.spread(MS / 2, 20 * MS),
        };
        if let Some(server) = &mut self.machines[node].server
            && !server.primary
            && !server.replaying
        {
            server.replaying = true;
            self.in_server(node, takes, InServer::Replay);
        }
    }

    pub(crate) fn replay(&mut self, node: usize) {
        if let Some(server) = &mut self.machines[node].server {
            server.replaying = false;
        }
        // The relay serves it; without the daemon there is nothing new.
        if !self.runs(node) {
            self.wish_replay(node);
            return;
        }
        if self.replay_all(node) {
            self.acknowledge(node);
        }
    }

    /// The standby takes everything that the journal holds durably; says whether it went on.
    pub(crate) fn replay_all(&mut self, node: usize) -> bool {
        let machine = &mut self.machines[node];
        let Some(wal) = &machine.journal.wal else { return false };
        let durable = wal.record_end_before(machine.journal.synced);
        let held = machine.data.wal.record_end();
        if wal.begin() > held || durable <= held {
            return false;
        }
        let recs = wal.after(held).to_vec();
        let timeline = wal.timeline();
        let took = machine.data.wal.take(&recs, durable);
        assert!(took.is_ok(), "a standby's WAL ends at {held}, and the journal goes on there");
        let switches: Vec<(understudy_types::Timeline, u64)> = recs
            .windows(2)
            .filter(|pair| pair[0].timeline != pair[1].timeline)
            .map(|pair| (pair[0].timeline, pair[1].start))
            .collect();
        let first = recs.first().map(|rec| rec.timeline);
        if first.is_some_and(|first| first != machine.data.timeline) {
            machine.data.ancestors.push((machine.data.timeline, held));
        }
        machine.data.ancestors.extend(switches);
        if let Some(timeline) = timeline {
            machine.data.timeline = timeline;
        }
        if let Some(server) = &mut machine.server {
            server.replay = machine.data.wal.record_end();
        }
        self.check_replay(node);
        true
    }
}
