//! The holder's tasks of a planned switchover, modelled as `node::hands::switchover` does them.
//!
//! A fast stop waits until the gate and every attached receiver have confirmed all WAL, the shutdown
//! checkpoint included; without the gate's connection nothing holds it up.

use std::time::Duration;

use understudy_core::node::Completion;
use understudy_types::{Lsn, NodeId};

use super::hands::{Went, done, failed, on};
use super::plan::{MS, SEC};
use super::world::World;

/// As the hands': for the last message of the candidate.
const LAST_ACK_PATIENCE: u64 = 500 * MS;

impl World {
    pub(super) fn prepare_switchover(&mut self, node: usize, stage: u8) -> Went {
        if stage == 0 {
            return on(1, self.random.spread(50 * MS, 10 * SEC));
        }
        if self.machines[node].server_running(self.now).is_none_or(|s| !s.primary || !s.postmaster)
        {
            return failed("the checkpoint was not written", false);
        }
        self.machines[node].postgres.checkpoint();
        done(Completion::SwitchoverPrepared)
    }

    pub(super) fn shut_clients_out(
        &mut self,
        node: usize,
        grace: Duration,
        begun: u64,
        stage: u8,
    ) -> Went {
        let now = self.now;
        if self.machines[node].server_running(now).is_none_or(|server| !server.postmaster) {
            return failed("the server does not answer", false);
        }
        let lasts = self.random.between(1, 300) * MS;
        let Some(server) = &mut self.machines[node].postgres.server else {
            return failed("the server does not run", false);
        };
        server.open_to_clients = false;
        if stage == 0 {
            return on(1, lasts);
        }
        let over = now - begun >= grace.as_nanos() as u64;
        if !server.waiting.is_empty() && !over {
            return on(1, 20 * MS);
        }
        self.machines[node].postgres.end_sessions();
        done(Completion::ClientsShutOut)
    }

    pub(super) fn stop_cleanly(
        &mut self,
        node: usize,
        to: NodeId,
        until: u64,
        stage: u8,
        end: u64,
    ) -> Went {
        match stage {
            0 => self.tell_to_stop(node),
            1 => self.write_shutdown_checkpoint(node),
            2 => self.wait_for_walsenders(node, until, end),
            3 => self.wait_for_candidate(node, to, end),
            4 => {
                self.stop_source(node);
                on(5, self.random.between(1, 100) * MS)
            }
            _ if self.machines[node].last_write.is_some() => on(5, 10 * MS),
            _ => done(Completion::StoppedCleanly { end_lsn: Lsn(end) }),
        }
    }

    /// The server that is to be stopped still runs as it did.
    fn stops(&mut self, node: usize) -> bool {
        self.machines[node].postgres.server.as_ref().is_some_and(|s| s.primary && s.postmaster)
    }

    fn tell_to_stop(&mut self, node: usize) -> Went {
        if !self.stops(node) {
            return failed("the server does not run", false);
        }
        self.machines[node].postgres.tell_to_stop();
        on(1, self.fsync(node))
    }

    fn write_shutdown_checkpoint(&mut self, node: usize) -> Went {
        if !self.stops(node) {
            return failed("PostgreSQL has stopped, but not cleanly", false);
        }
        let id = self.number();
        let rec = self.machines[node].postgres.write_shutdown_checkpoint(id);
        if let Some(doing) = &mut self.machines[node].doing {
            doing.found = rec.end;
        }
        self.source_moves(node);
        on(2, 2 * MS)
    }

    fn wait_for_walsenders(&mut self, node: usize, until: u64, end: u64) -> Went {
        if !self.stops(node) {
            return failed("PostgreSQL has stopped, but not cleanly", false);
        }
        if self.now >= until {
            return failed("the fast stop took too long", false);
        }
        self.source_moves(node);
        let machine = &self.machines[node];
        let frozen = machine.server_running(self.now).is_none();
        let Some(source) = &machine.source else { return on(2, 10 * MS) };
        let attached = source.receivers.values().filter(|receiver| receiver.attached);
        let mut confirmed: Vec<u64> = attached.map(|receiver| receiver.durable_lsn.0).collect();
        confirmed.push(machine.cell.released);
        if frozen || !self.machines[node].postgres.end_if_confirmed(end, confirmed) {
            return on(2, 10 * MS);
        }
        on(3, 2 * MS)
    }

    fn wait_for_candidate(&mut self, node: usize, to: NodeId, end: u64) -> Went {
        let machine = &mut self.machines[node];
        let there = machine.source.as_ref().is_some_and(|source| {
            source.receivers.get(&to).is_some_and(|receiver| receiver.durable_lsn.0 >= end)
        });
        if there {
            return on(4, MS);
        }
        let Some(doing) = &mut machine.doing else { return failed("replaced", false) };
        // The patience begins with the server's end.
        let since = *doing.since.get_or_insert(self.now);
        if self.now - since < LAST_ACK_PATIENCE {
            return on(3, 20 * MS);
        }
        failed("the candidate has not confirmed the end of the WAL", false)
    }
}
