//! The RPO dial: what operators want, and what the holder has brought in force (RULE 1).
//!
//! An operator writes only the configuration. The mode in force changes by the holder's `SetEff`,
//! for exactly the generation and the configuration that it was meant for, or with a new epoch,
//! where nothing has been acknowledged yet. Whether a strengthening has been done is the holder's
//! duty; that nothing has changed since is checked here.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::{DurabilityMode, Lsn, NodeId, SeededBug};

use super::apply::Applied;
use super::{
    ClusterState, Command, ConfigChange, FailoverOrder, HolderProof, Ineligible, LossLimit,
    OperationKind, OperationStatus, Rejection,
};
use crate::{ClusterConfig, OnPassiveLoss};

/// What an operator sets; the rest of the configuration stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dial {
    /// The mode.
    pub mode: DurabilityMode,
    /// R: see [`ClusterConfig::rpo`].
    pub rpo: Duration,
    /// The policy for a lost passive.
    pub on_passive_loss: OnPassiveLoss,
    /// See [`ClusterConfig::promote_without_lease_wait`].
    pub promote_without_lease_wait: bool,
}

impl Dial {
    /// The dial of a configuration.
    pub fn of(config: &ClusterConfig) -> Dial {
        Dial {
            mode: config.mode,
            rpo: config.rpo,
            on_passive_loss: config.on_passive_loss,
            promote_without_lease_wait: config.promote_without_lease_wait,
        }
    }
}

impl fmt::Display for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.mode)?;
        match self.mode {
            DurabilityMode::Zero => {}
            DurabilityMode::Bounded => write!(f, " up to {:?}", self.rpo)?,
            DurabilityMode::BestEffort => {
                write!(f, ", failover without a person up to {:?}", self.rpo)?;
            }
        }
        f.write_str(match self.on_passive_loss {
            OnPassiveLoss::Stall => ", stall when the passive is lost",
            OnPassiveLoss::Degrade => ", degrade when the passive is lost",
        })?;
        if self.promote_without_lease_wait {
            f.write_str(", promote without waiting for the lease")?;
        }
        Ok(())
    }
}

impl ClusterState {
    /// Whether an operator may set this dial now: what `apply` checks, for a look ahead.
    ///
    /// # Errors
    /// Which value is wrong and what would be right.
    pub fn check_dial(&self, dial: &Dial) -> Result<(), Rejection> {
        let ttl = self.holder.as_ref().map(|holder| holder.ttl).unwrap_or_default();
        if dial.mode == DurabilityMode::Bounded && dial.rpo < ttl * 2 {
            let words = format!(
                "the ceiling {:?} is below twice the lease's ttl, {:?}: at least {:?} is needed",
                dial.rpo,
                ttl,
                ttl * 2
            );
            return Err(Rejection::BadDial(words));
        }
        if dial.rpo.is_zero() && dial.mode != DurabilityMode::Zero {
            let words = "the ceiling is 0: say a duration, or set the mode zero".to_owned();
            return Err(Rejection::BadDial(words));
        }
        if *dial == Dial::of(&self.config) { Err(Rejection::NoChange) } else { Ok(()) }
    }

    pub(super) fn set_dial(&mut self, index: u64, command: &Command) -> Applied {
        let Command::SetDial { dial, epoch, config_version, caller, reason, at_unix_us } = command
        else {
            unreachable!("called for SetDial only");
        };
        self.check_dial_change(dial, *epoch, *config_version)?;
        let before = Dial::of(&self.config);
        let replaced = format!("replaced by operation {index} before it was in force");
        self.end_dial_changes(OperationStatus::Failed(replaced), *at_unix_us);
        self.config.mode = dial.mode;
        self.config.rpo = dial.rpo;
        self.config.on_passive_loss = dial.on_passive_loss;
        self.config.promote_without_lease_wait = dial.promote_without_lease_wait;
        self.config_version += 1;
        self.remember_change(ConfigChange {
            operation: index,
            caller: caller.clone(),
            reason: reason.clone(),
            at_unix_us: *at_unix_us,
            before,
            after: *dial,
        });
        let kind = OperationKind::SetDial;
        self.begin(index, kind, caller, reason, *at_unix_us, OperationStatus::Running);
        self.say_what(index, dial.to_string());
        // Ceiling and policies hold from here on: `apply` judges every promotion by them. Only the
        // mode has to be brought in force by the holder.
        if self.durability.mode == dial.mode {
            self.end_dial_changes(OperationStatus::Done, *at_unix_us);
        }
        Ok(Some(index))
    }

    pub(super) fn set_eff(
        &mut self,
        by: &HolderProof,
        generation: u64,
        config_version: u64,
        mode: DurabilityMode,
        at_unix_us: i64,
    ) -> Applied {
        self.check_holder(by)?;
        self.check_running()?;
        self.check_generation(generation)?;
        // Without this a strengthening whose outcome is unknown could be recorded after an operator
        // has turned the dial back and the gate has followed.
        if !SeededBug::ModeOfOldConfiguration.is_on() {
            self.check_config_version(config_version)?;
        }
        if mode != self.config.mode {
            return Err(Rejection::Mode(self.config.mode));
        }
        if mode == self.durability.mode {
            return Err(Rejection::NoChange);
        }
        self.durability.mode = mode;
        self.durability.generation += 1;
        self.end_dial_changes(OperationStatus::Done, at_unix_us);
        Ok(None)
    }

    /// An operator's failover to a node that may lack something, recorded before anything is lost.
    pub(super) fn accept_loss(&mut self, index: u64, command: &Command) -> Applied {
        let Command::AcceptLoss { to, epoch, limit, caller, reason, at_unix_us } = command else {
            unreachable!("called for AcceptLoss only");
        };
        self.check_epoch(*epoch)?;
        self.check_running()?;
        self.check_data_node(*to)?;
        if let Some(order) = &self.order {
            return Err(Rejection::Busy(order.operation));
        }
        if let Some(switchover) = &self.switchover {
            return Err(Rejection::Busy(switchover.operation));
        }
        let refuse = |why| Err(Rejection::NotEligible { node: *to, why });
        if self.active() == Some(*to) {
            return refuse(Ineligible::IsHolder);
        }
        if let Err(why) = self.check_accepted(*to, self.known_durable(*to), limit) {
            return refuse(why);
        }
        let kind = OperationKind::AcceptLoss;
        self.begin(index, kind, caller, reason, *at_unix_us, OperationStatus::Running);
        self.say_what(index, format!("{} to {}, accepting {limit}", epoch, self.name_of(*to)));
        self.order = Some(FailoverOrder { operation: index, to: *to, accepts: Some(*limit) });
        Ok(Some(index))
    }

    /// What an acceptance does not override: marks, and a journal that lost what it once had (I7).
    pub(super) fn check_accepted(
        &self,
        to: NodeId,
        durable_lsn: Lsn,
        limit: &LossLimit,
    ) -> Result<(), Ineligible> {
        if let Some(mark) = self.marks.get(&to) {
            return Err(Ineligible::Marked(mark.to_string()));
        }
        if durable_lsn < self.known_durable(to) {
            return Err(Ineligible::LostWal);
        }
        let known = self.loss_bound(to, durable_lsn);
        if limit.covers(&known) {
            Ok(())
        } else {
            Err(Ineligible::LossNotAccepted { known, accepted: *limit })
        }
    }

    /// Ends whatever change of the dial is still on its way.
    pub(super) fn end_dial_changes(&mut self, status: OperationStatus, at_unix_us: i64) {
        let running = |kind: OperationKind, status: &OperationStatus| {
            kind == OperationKind::SetDial && *status == OperationStatus::Running
        };
        let found = self.operations.iter().find(|(_, o)| running(o.kind, &o.status));
        if let Some(id) = found.map(|(id, _)| *id) {
            self.end(id, status, at_unix_us);
        }
    }

    fn say_what(&mut self, operation: u64, what: String) {
        if let Some(operation) = self.operations.get_mut(&operation) {
            operation.what = Some(what);
        }
    }

    /// Whether the fast policy allows a promotion of `to` on its seal (decision 0009).
    pub fn promotes_on_seal(&self, to: NodeId) -> bool {
        self.config.promote_without_lease_wait
            && self.durability.mode == DurabilityMode::Zero
            // With a quorum the others could go on without the one that is sealed.
            && !self.durability.is_quorum()
            && self.durability.eligible.contains(&to)
    }
}
