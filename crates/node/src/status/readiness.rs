//! Is this node of use where it stands? For `/readyz` and the gRPC health service alike.

use super::{ClusterStatus, SiteRole};

/// An answer with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// It is.
    pub ready: bool,
    /// Why or why not.
    pub reason: String,
}

/// A node is ready when it knows a leader and does its part: an active that serves, an attached
/// passive that replays, an attached journal, a witness that hears a majority. `writable` is the answer of this moment.
pub fn readiness(status: &ClusterStatus, writable: bool) -> Readiness {
    let no = |reason: &str| Readiness { ready: false, reason: reason.to_owned() };
    let yes = |reason: &str| Readiness { ready: true, reason: reason.to_owned() };
    if status.leader.is_none() {
        return no("no leader is known");
    }
    let Some(own) = status.own() else {
        return no("this node is not a member yet");
    };
    match own.role {
        SiteRole::Witness if status.majority => yes("a witness that hears a majority"),
        SiteRole::Witness => no("no majority is heard"),
        SiteRole::Journal if own.attached => yes("a journal that follows the active"),
        SiteRole::Journal => no("not attached to the active"),
        _ if writable => yes("active, and accepts writes"),
        SiteRole::Active => no("active, but does not accept writes"),
        SiteRole::Passive => match replaying(status) {
            Ok(()) => yes("passive, attached and replaying"),
            Err(reason) => no(reason),
        },
    }
}

/// Whether this node is a passive that follows the active and replays.
///
/// # Errors
/// Why it is not.
pub(crate) fn replaying(status: &ClusterStatus) -> Result<(), &'static str> {
    let own = status.own().ok_or("this node is not a member yet")?;
    match own.role {
        SiteRole::Witness => return Err("a witness keeps no data"),
        SiteRole::Journal => return Err("a journal has no PostgreSQL"),
        SiteRole::Active => return Err("this node is the active one"),
        SiteRole::Passive => {}
    }
    if !own.postgres_running {
        return Err("PostgreSQL does not answer");
    }
    if !own.attached {
        return Err("not attached to the active");
    }
    own.replay_lsn.map(drop).ok_or("replay has not begun")
}
