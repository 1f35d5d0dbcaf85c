//! The fast policy for `zero`: an eligible passive is promoted on its seal, before the lease of a
//! silent active is over (decision 0009).
//!
//! It is the leader's part only; what makes it safe is the candidate's seal before its promotion, and
//! the gate's rule that in `zero` nothing is released that is not durable at everybody waited for. It
//! must not act in another mode, on a pause, or while the active is heard.

use std::time::Duration;

use understudy_types::{BootInstant, NodeId};

use super::{Core, REPORT_FRESH};
use crate::state::PromoteCause;
use crate::verdict;

/// A holder that has not renewed for this many of its intervals is suspected.
const RENEWALS_MISSED: u32 = 2;

impl Core {
    /// Proposes the promotion if the policy is on, the holder is silent and its renewals stay away.
    pub(super) fn promote_on_seal(&mut self, now: BootInstant, holder: NodeId) {
        let state = &self.state;
        let allowed = state.pause.is_none() && state.order.is_none() && self.hold(now).is_none();
        if !allowed || !state.config.promote_without_lease_wait || holder == self.me {
            return;
        }
        let heard = self.peers.get(&holder).map(|heard| now.since(heard.at));
        // Never heard says nothing: this node may have begun a moment ago.
        let silent = heard.is_some_and(|span| span >= REPORT_FRESH);
        let patience = (self.timing.renew * RENEWALS_MISSED).max(Duration::from_millis(1));
        let quiet = self.challenger.quiet_for(now).is_some_and(|span| span >= patience);
        if !(silent && quiet) {
            return;
        }
        let found = verdict::choose(&self.evidence(now)).ok();
        if let Some(found) = found.filter(|found| self.state.promotes_on_seal(found.node)) {
            self.grant_next(now, found, PromoteCause::Sealed);
        }
    }
}
