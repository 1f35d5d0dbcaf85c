//! The holder brings the mode that is wanted in force (RULE 1).
//!
//! A strengthening is done at the gate first: the permit of the stricter mode is in force, then
//! everything ever acknowledged has to be where that mode promises it, and only then it is recorded.
//! A weakening is recorded first; the permit follows the applied state. Nothing here loosens a permit.

use serde::{Deserialize, Serialize};
use understudy_types::{
    BootInstant, DurabilityMode, NodeId, PermitSerial, Quorum, SourcePositions,
};

use super::{Core, Slot, receiver_of};
use crate::state::Command;

/// A stricter mode at the gate that is not recorded yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Strengthening {
    /// Which.
    mode: DurabilityMode,
    /// The first permit that contains it.
    permit: PermitSerial,
}

impl Core {
    /// Proposes the mode that is wanted, when it differs from the one in force and may be recorded.
    pub(super) fn change_mode(&mut self, now: BootInstant) {
        let (wanted, in_force) = (self.state.config.mode, self.state.durability.mode);
        if wanted <= in_force {
            // The gate is looser from here on, so a stricter permit of before proves nothing any more,
            // also when the same mode is wanted again before a weakening is recorded (mistake 30).
            self.stage().strengthening = None;
        }
        if wanted == in_force {
            return;
        }
        if wanted > in_force {
            let held = self.stage().strengthening.filter(|held| held.mode == wanted);
            let Some(held) = held else {
                // `publish_permit` hands out the stricter permit now; that it is in force comes back.
                let permit = PermitSerial(self.permit_serial.0 + 1);
                self.stage().strengthening = Some(Strengthening { mode: wanted, permit });
                return;
            };
            let Some(source) = self.source.clone() else { return };
            let read_under = source.permit.is_some_and(|read| read >= held.permit);
            let in_force = self.permit_in_force >= held.permit;
            if !(read_under && in_force && self.strong_enough(&source, wanted)) {
                return;
            }
        }
        let by = self.proof();
        let command = Command::SetEff {
            by,
            generation: self.state.durability.generation,
            config_version: self.state.config_version,
            mode: wanted,
            at_unix_us: self.wall_unix_us,
        };
        self.propose(now, Slot::SetEff, command);
    }

    /// Whether what was acknowledged so far is where `mode` promises it.
    fn strong_enough(&mut self, source: &SourcePositions, mode: DurabilityMode) -> bool {
        let durability = &self.state.durability;
        if mode == DurabilityMode::Zero && durability.is_quorum() {
            let members = durability.waited.iter().copied().collect();
            let quorum = Quorum { members, needed: durability.copies_count() };
            return self.satisfied(source, &quorum);
        }
        let floor = self.stage().floor.max(source.released_lsn);
        let eligible: Vec<NodeId> = self.state.durability.eligible.iter().copied().collect();
        match mode {
            DurabilityMode::Zero => eligible.iter().all(|node| {
                receiver_of(source, *node).is_some_and(|receiver| receiver.durable_lsn >= floor)
            }),
            DurabilityMode::Bounded => {
                let ceiling = self.state.config.rpo.saturating_sub(self.timing.ttl);
                eligible.is_empty() || source.exposure.time <= ceiling
            }
            // Nothing is weaker, so nothing is strengthened to it.
            DurabilityMode::BestEffort => true,
        }
    }

    /// Why a change of the mode is not in force yet, for people.
    pub(super) fn mode_trouble(&self) -> Option<String> {
        let (wanted, in_force) = (self.state.config.mode, self.state.durability.mode);
        (wanted > in_force)
            .then(|| format!("waits until what was acknowledged in {in_force} satisfies {wanted}"))
    }
}
