//! A planned switchover, transcribed from `understudy_core::node` (`switchover.rs`): ordered, handed over,
//! carried out or undone. Patience and the pause budget are any moment here.

use std::time::Duration;

use understudy_core::Command;

use super::book::NODES;
use super::protocol::Protocol;
use super::world::{Step, World};

impl Protocol {
    /// An operator orders that the other data node is to be active.
    pub(super) fn order_switchover(&self, world: &mut World) -> Option<()> {
        let head = self.head(world);
        if world.used.switchovers >= self.configuration.switchovers || !head.running {
            return None;
        }
        world.used.switchovers += 1;
        let command = Command::OrderSwitchover {
            to: NODES[1 - head.holder],
            epoch: self.book.state(world.head).epoch,
            budget: Duration::from_secs(1),
            caller: String::new(),
            reason: String::new(),
            at_unix_us: 0,
        };
        self.propose(world, command)
    }

    /// The leader ends an order that does not come to its end.
    pub(super) fn end_order(&self, world: &mut World) -> Option<()> {
        let operation = u64::from(self.head(world).switchover);
        if operation == 0 {
            return None;
        }
        self.propose(world, Command::EndOrder { operation, why: String::new(), at_unix_us: 0 })
    }

    /// Serving all along: the candidate is attached and may take over, so the handover is proposed.
    pub(super) fn propose_handover(&self, world: &mut World, node: usize) -> Option<()> {
        let facts = self.facts(world, node);
        let data = &world.data[node];
        let open = self.is_at(world, node, Step::Serving) && data.let_in;
        let ordered = facts.switchover > 0 && !facts.handing && !facts.released;
        let ready = data.attached && data.lease_runs() && facts.eligible[1 - node];
        if !open || world.voters[node].away || !ordered || !ready {
            return None;
        }
        let by = self.proof(world, node);
        world.data[node].asked = true;
        world.data[node].strict = true;
        self.propose(world, Command::Handover { by, operation: u64::from(facts.switchover) })
    }

    fn is_at(&self, world: &World, node: usize, step: Step) -> bool {
        self.holds(world, node) && world.data[node].step == step
    }

    /// It is accepted, and this process asked for it: no client writes from here on.
    pub(super) fn shut_out(&self, world: &mut World, node: usize) -> Option<()> {
        let facts = self.facts(world, node);
        let data = &world.data[node];
        let open = self.is_at(world, node, Step::Serving) && data.let_in;
        if !open || !facts.handing || !data.asked || !data.lease_runs() {
            return None;
        }
        let data = &mut world.data[node];
        data.let_in = false;
        data.strict = true;
        data.step = Step::HandingOver;
        Some(())
    }

    /// No process of the server is left, and the candidate has every byte.
    pub(super) fn stop_cleanly(&self, world: &mut World, node: usize) -> Option<()> {
        let facts = self.facts(world, node);
        let data = &world.data[node];
        let hands_over = self.is_at(world, node, Step::HandingOver);
        let there = data.known >= data.wal.end();
        if !hands_over || !facts.handing || !there {
            return None;
        }
        let data = &mut world.data[node];
        data.clean_end = data.wal.end();
        data.fence();
        data.step = Step::Releasing;
        Some(())
    }

    /// The candidate is not close enough any more: the gate is as the dial says, and what was asked for
    /// may be granted all the same.
    pub(super) fn ready_again(&self, world: &mut World, node: usize) -> Option<()> {
        if !self.is_at(world, node, Step::Serving) || !world.data[node].strict {
            return None;
        }
        world.data[node].strict = false;
        Some(())
    }

    /// It takes too long while the server is told to stop: it can only be started again.
    pub(super) fn start_again(&self, world: &mut World, node: usize) -> Option<()> {
        if !self.is_at(world, node, Step::HandingOver) {
            return None;
        }
        let data = &mut world.data[node];
        data.fence();
        data.forget_handover();
        data.step = Step::Acquiring;
        Some(())
    }

    /// It takes too long, or was ended: the same holder lets its clients in again.
    pub(super) fn go_back(&self, world: &mut World, node: usize) -> Option<()> {
        if !self.is_at(world, node, Step::HandingOver) {
            return None;
        }
        let data = &mut world.data[node];
        data.forget_handover();
        data.let_in = true;
        data.step = Step::Serving;
        Some(())
    }

    /// The order is given up, or its handover is not carried out by this process; not once the gate is
    /// shut for good. What was asked for before is not begun after it.
    pub(super) fn propose_undo(&self, world: &mut World, node: usize) -> Option<()> {
        let facts = self.facts(world, node);
        let data = &world.data[node];
        let may = matches!(data.step, Step::Acquiring | Step::Serving);
        if !self.holds(world, node) || world.voters[node].away || !may || facts.switchover == 0 {
            return None;
        }
        let by = self.proof(world, node);
        world.data[node].forget_handover();
        let command = Command::Undo {
            by,
            operation: u64::from(facts.switchover),
            why: String::new(),
            at_unix_us: 0,
        };
        self.propose(world, command)
    }
}
