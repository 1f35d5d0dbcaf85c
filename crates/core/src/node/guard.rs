//! What the guardian beside the daemon is to be told: until when PostgreSQL may go on if nothing more
//! is heard from here. Derived from the state alone; it decides no lease and fences nothing itself.

use understudy_types::BootInstant;

use super::{Core, Role};

/// What is to be guarded, as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardWish {
    /// Nothing is known yet that would change what was said before.
    Unchanged,
    /// No server that a lease covers runs here: it is a standby, or its processes are proven gone.
    Nothing,
    /// A server runs, or is about to, that must be gone at this moment.
    Until(BootInstant),
    /// A server may run that an earlier process of this daemon held: what that one said stands; if it
    /// said nothing, this moment.
    AsBefore(BootInstant),
}

impl Core {
    /// What the guardian is to be told now. `Nothing` is only said once a fence is proven, or the server
    /// is seen to be a standby; to be told before the actions of the same turn are carried out.
    pub fn guard_wish(&self, now: BootInstant) -> GuardWish {
        let deadline = self.lease.deadline();
        match &self.role {
            Role::Idle | Role::Journal(_) => GuardWish::Unchanged,
            Role::Passive(stage) if stage.is_fenced() => GuardWish::Nothing,
            Role::Passive(_) => GuardWish::Unchanged,
            // No lease yet and nobody let in, so what matters is that this loop turns.
            Role::Candidate(candidate) if candidate.promotes() => {
                GuardWish::Until(now + self.timing.ttl)
            }
            Role::Candidate(candidate) if candidate.resumes() => match deadline {
                Some(deadline) => GuardWish::Until(deadline),
                None => GuardWish::AsBefore(now + self.timing.ttl),
            },
            Role::Candidate(_) => GuardWish::Unchanged,
            Role::Holder(stage) if stage.gave_up() => GuardWish::Nothing,
            Role::Holder(stage) => match deadline {
                Some(deadline) if !stage.is_clean() || now < deadline => GuardWish::Until(deadline),
                _ if stage.is_clean() => GuardWish::Nothing,
                _ => GuardWish::AsBefore(stage.since() + self.timing.ttl),
            },
        }
    }
}
