//! What operators order in the modelled world, by way of the leader.
//!
//! Only what a careful operator would order: what is refused at once is not counted as a fault.

use std::time::Duration;

use understudy_core::state::{Dial, LossLimit};
use understudy_core::{ClusterState, Command, OnPassiveLoss};
use understudy_types::{DurabilityMode, NodeId};

use super::raft::Proposal;
use super::world::World;

/// The data node that is not active.
fn other_than_active(state: &ClusterState) -> Option<NodeId> {
    let active = state.active()?;
    Some(if active == NodeId(1) { NodeId(2) } else { NodeId(1) })
}

impl World {
    pub(crate) fn order_switchover(&mut self, length: u64) -> bool {
        let state = self.raft.state().clone();
        let Some(to) = other_than_active(&state) else { return false };
        let can = state.check_switchover(to, state.epoch).is_ok();
        can && self.command(Command::OrderSwitchover {
            to,
            epoch: state.epoch,
            budget: Duration::from_nanos(length),
            caller: "operator".to_owned(),
            reason: "simulated".to_owned(),
            at_unix_us: 1,
        })
    }

    /// Not to the faster promotion: under it two permits overlap by design, and the seal alone keeps
    /// the two apart.
    pub(crate) fn turn_dial(&mut self) -> bool {
        let state = self.raft.state().clone();
        let shortest = self.plan.timing.ttl.as_secs() * 2 + 1;
        let seconds = self.random.pick(&[shortest, 15, 30, 120]);
        let dial = Dial {
            mode: self.random.pick(&[
                DurabilityMode::Zero,
                DurabilityMode::Bounded,
                DurabilityMode::BestEffort,
            ]),
            rpo: Duration::from_secs(seconds),
            on_passive_loss: self.random.pick(&[OnPassiveLoss::Stall, OnPassiveLoss::Degrade]),
            promote_without_lease_wait: false,
        };
        let can = state.active().is_some() && state.check_dial(&dial).is_ok();
        can && self.command(Command::SetDial {
            dial,
            epoch: state.epoch,
            config_version: state.config_version,
            caller: "operator".to_owned(),
            reason: "simulated".to_owned(),
            at_unix_us: 1,
        })
    }

    pub(crate) fn accept_loss(&mut self) -> bool {
        let state = self.raft.state().clone();
        let Some(to) = other_than_active(&state) else { return false };
        let stated = [None, Some(Duration::from_secs(10)), Some(Duration::from_secs(120))];
        let limit = LossLimit { age_max: self.random.pick(&stated), bytes_max: None };
        let command = Command::AcceptLoss {
            to,
            epoch: state.epoch,
            limit,
            caller: "operator".to_owned(),
            reason: "simulated".to_owned(),
            at_unix_us: 1,
        };
        let index = self.raft.log.len() as u64 + 1;
        ClusterState::clone(&state).apply(index, &command).is_accepted() && self.command(command)
    }

    pub(crate) fn order(&mut self) -> bool {
        let state = self.raft.state().clone();
        let Some(active) = state.active() else { return false };
        let to = if active == NodeId(1) { NodeId(2) } else { NodeId(1) };
        let can = state.order.is_none() && state.durability.eligible.contains(&to);
        can && self.command(Command::OrderFailover {
            to,
            epoch: state.epoch,
            caller: "operator".to_owned(),
            reason: "simulated".to_owned(),
            at_unix_us: 1,
        })
    }

    pub(crate) fn pause(&mut self, length: u64) -> bool {
        let until = i64::try_from((self.now + length) / 1000).expect("a run is short");
        self.command(Command::Pause {
            until_unix_us: until,
            caller: "operator".to_owned(),
            reason: "simulated".to_owned(),
            at_unix_us: 1,
        })
    }

    /// An operator's command, by way of the leader.
    pub(super) fn command(&mut self, command: Command) -> bool {
        let Some(leader) = self.raft.leader else { return false };
        let id = self.number();
        let before = self.raft.log.len();
        let proposal = Proposal::new(leader, command, self.raft.term);
        self.raft.proposals.insert(id, proposal);
        self.commit(id, u8::MAX - 1);
        self.raft.log.len() > before
            && self.raft.log.last().is_some_and(|entry| entry.outcome.is_accepted())
    }
}
