//! What happens in a server by itself: clients commit, WAL is flushed, a gate's message is read, a
//! standby replays what its journal holds.

use super::machine::Acked;
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
            let id = self.number();
            let length = self.random.spread(40, most);
            self.machines[node].postgres.write(length, id);
        }
        if commits {
            let id = self.number();
            let length = self.random.spread(40, most.min(8_000));
            self.machines[node].postgres.commit(length, id);
        }
        self.cancel_a_wait(node);
        let upto = self.machines[node].postgres.data.wal.inserted();
        let takes = self.fsync(node);
        self.in_server(node, takes, InServer::Flush { upto });
    }

    /// Whoever cancels is told that the commit stands here only: nothing is promised, and nothing that
    /// is lost of it counts.
    fn cancel_a_wait(&mut self, node: usize) {
        let postgres = &mut self.machines[node].postgres;
        let Some(server) = &postgres.server else { return };
        let Some(dice) = &mut self.cancels else { return };
        if !server.waiting.is_empty() && dice.chance(30) {
            let index = dice.between(0, server.waiting.len() as u64 - 1) as usize;
            let id = server.waiting[index].id;
            postgres.cancel(id);
        }
    }

    pub(crate) fn flush(&mut self, node: usize, upto: u64) {
        let torn = self.random.chance(100);
        let inserted = self.machines[node].postgres.data.wal.inserted();
        // Pages are flushed, not records: the next record may be there in part.
        let upto = match torn && inserted > upto {
            true => self.random.between(upto, inserted),
            false => upto,
        };
        let machine = &mut self.machines[node];
        if machine.postgres.server.as_ref().is_some_and(|server| server.primary) {
            machine.postgres.data.wal.flush(upto);
            if self.runs(node) {
                self.source_moves(node);
            }
        }
    }

    /// The walsender reads the gate's status update, and PostgreSQL releases commits.
    pub(crate) fn read_socket(&mut self, node: usize) {
        let Some(server) = &mut self.machines[node].postgres.server else { return };
        let Some(written) = server.socket.take() else { return };
        let postgres = &mut self.machines[node].postgres;
        let acked: Vec<Acked> = postgres
            .confirm(written.upto)
            .into_iter()
            .map(|waiter| Acked {
                start: waiter.start,
                end: waiter.end,
                id: waiter.id,
                epoch: written.epoch,
                mode: written.permit.mode,
                waited: !written.permit.waited_for.is_empty(),
                decided_at: written.decided_at,
                written_at: written.written_at,
            })
            .collect();
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
        if let Some(server) = &mut self.machines[node].postgres.server
            && !server.primary
            && !server.replaying
        {
            server.replaying = true;
            self.in_server(node, takes, InServer::Replay);
        }
    }

    pub(crate) fn replay(&mut self, node: usize) {
        if let Some(server) = &mut self.machines[node].postgres.server {
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
        let went_on = machine.postgres.replay(wal, machine.journal.synced);
        if went_on {
            self.check_replay(node);
        }
        went_on
    }
}
