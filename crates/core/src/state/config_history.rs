//! What the configuration was: its last changes, each with who made it and why.
//!
//! It is for people, and to go back by; no decision rests on it. A change is kept with the values before
//! and after it, so that the oldest one that is left still says what it replaced.

use serde::{Deserialize, Serialize};
use understudy_types::Epoch;

use super::{ClusterState, Dial, Rejection};

/// Changes that are remembered; the oldest is forgotten first.
pub const CONFIG_CHANGES_KEPT: usize = 32;

/// One change of the configuration. Its version is its key in [`ClusterState::config_history`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigChange {
    /// The operation that recorded it.
    pub operation: u64,
    /// The certificate's identity of who ordered it.
    pub caller: String,
    /// Why, in the operator's words.
    pub reason: String,
    /// Wall-clock microseconds, from the proposer.
    pub at_unix_us: i64,
    /// What it replaced.
    pub before: Dial,
    /// What it set.
    pub after: Dial,
}

impl ClusterState {
    /// The dial in a version of the configuration; `None` where it is forgotten, or not there yet.
    pub fn dial_at(&self, version: u64) -> Option<Dial> {
        if version == self.config_version {
            return Some(Dial::of(&self.config));
        }
        if version > self.config_version {
            return None;
        }
        // A new incarnation has a version of its own with the values of the last one.
        if let Some((_, change)) = self.config_history.range(..=version).next_back() {
            return Some(change.after);
        }
        let (oldest, change) = self.config_history.first_key_value()?;
        (version + 1 == *oldest).then_some(change.before)
    }

    /// Keeps a change of the present version.
    pub(super) fn remember_change(&mut self, change: ConfigChange) {
        self.config_history.insert(self.config_version, change);
        while self.config_history.len() > CONFIG_CHANGES_KEPT {
            self.config_history.pop_first();
        }
    }

    /// Whether an operator who was shown this epoch and this version of the configuration may set this
    /// dial now: all that `apply` checks, for a look ahead.
    ///
    /// # Errors
    /// What has changed since, or which value is wrong and what would be right.
    pub fn check_dial_change(
        &self,
        dial: &Dial,
        epoch: Epoch,
        config_version: u64,
    ) -> Result<(), Rejection> {
        self.check_epoch(epoch)?;
        self.check_config_version(config_version)?;
        self.check_dial(dial)
    }
}
