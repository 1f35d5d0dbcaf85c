//! Orders to one node, modelled: what operators order, and the tasks as `node::hands::orders` does them.

use std::time::Duration;

use understudy_core::Command;
use understudy_core::node::Completion;
use understudy_core::state::NodeVerb;
use understudy_types::NodeId;

use super::hands::{Went, done, failed, on};
use super::plan::{MS, SEC};
use super::world::World;

impl World {
    /// A restart, a reload or a copy made afresh, of any data node; or a switchover that begins later.
    pub(crate) fn order_node(&mut self, length: u64) -> bool {
        let state = self.raft.state().clone();
        let data: Vec<NodeId> = state.data_nodes().collect();
        if data.is_empty() {
            return false;
        }
        let node = self.random.pick(&data);
        let (caller, reason) = ("operator".to_owned(), "simulated".to_owned());
        let (epoch, at_unix_us) = (state.epoch, 1);
        if self.random.chance(200) {
            let due_unix_us = i64::try_from((self.now + length) / 1000).expect("a run is short");
            let budget = Duration::from_secs(10);
            let can = state.check_schedule(node, epoch).is_ok();
            return can
                && self.command(Command::ScheduleSwitchover {
                    to: node,
                    epoch,
                    budget,
                    due_unix_us,
                    caller,
                    reason,
                    at_unix_us,
                });
        }
        let verb = self.random.pick(&[
            NodeVerb::Restart,
            NodeVerb::Restart,
            NodeVerb::Reclone,
            NodeVerb::Reload,
        ]);
        let accepts_waiting = true;
        let can = state.check_node_order(node, verb, epoch, accepts_waiting).is_ok();
        can && self.command(Command::OrderNode {
            node,
            verb,
            epoch,
            accepts_waiting,
            caller,
            reason,
            at_unix_us,
        })
    }

    /// The fast stop with the gate open; whatever goes wrong with it, the hard way follows.
    pub(super) fn stop_for_restart(
        &mut self,
        node: usize,
        until: u64,
        stage: u8,
        end: u64,
    ) -> Went {
        match stage {
            0..=2 => match self.stop_cleanly(node, NodeId(0), until, stage, end) {
                Went::On { stage, after } => on(stage, after),
                Went::Ended(_) => on(3, MS),
            },
            3 => {
                self.stop_source(node);
                on(4, self.random.between(1, 200) * MS)
            }
            _ if self.machines[node].last_write.is_some() => on(4, 10 * MS),
            _ => {
                self.machines[node].server_dies();
                done(Completion::Fenced)
            }
        }
    }

    /// The journal goes on following meanwhile.
    pub(super) fn restart_standby(&mut self, node: usize, stage: u8) -> Went {
        match stage {
            0 => on(1, self.random.between(5, 300) * MS),
            1 => {
                self.machines[node].server_dies();
                on(2, self.random.spread(50 * MS, 3 * SEC))
            }
            _ => {
                let data = &self.machines[node].postgres.data;
                if data.dirty_marker || !data.present {
                    return failed("the data directory is incomplete", false);
                }
                self.start_server(node, false);
                if let Some(server) = &mut self.machines[node].postgres.server {
                    server.open_to_clients = true;
                }
                done(Completion::StandbyRestarted)
            }
        }
    }
}
