//! What a gRPC handler asks before it has any effect (I21): who is this, and may they?
//!
//! A refusal says who asked and what would have been right. Nothing here knows what a verb does.

use tonic::{Request, Status};
use understudy_types::NodeName;

use crate::identity::{Identity, Role};
use crate::tls::Peer;

/// Whom this request comes from.
///
/// # Errors
/// `Unauthenticated`, when the request did not come through a [`crate::Listener`].
// A Status is what tonic's handlers must return; boxing it here would only be undone there.
#[allow(clippy::result_large_err)]
pub fn peer<T>(request: &Request<T>) -> Result<&Peer, Status> {
    request
        .extensions()
        .get::<Peer>()
        .ok_or_else(|| Status::unauthenticated("the connection has no proven identity"))
}

fn refused(peer: &Peer, expected: &str) -> Status {
    tracing::warn!(peer = %peer.identity, address = %peer.address, expected, "request refused");
    Status::permission_denied(format!("{} may not do this: it takes {expected}", peer.identity))
}

/// Requires the node of this name.
///
/// # Errors
/// `PermissionDenied` for everybody else.
#[allow(clippy::result_large_err)]
pub fn require_node<T>(request: &Request<T>, expect: &NodeName) -> Result<(), Status> {
    let peer = peer(request)?;
    match &peer.identity {
        Identity::Node(name) if name == expect => Ok(()),
        _ => Err(refused(peer, &format!("node {expect}"))),
    }
}

/// Requires a node of the cluster, and says which.
///
/// # Errors
/// `PermissionDenied` for persons.
#[allow(clippy::result_large_err)]
pub fn require_any_node<T>(request: &Request<T>) -> Result<&NodeName, Status> {
    let peer = peer(request)?;
    match &peer.identity {
        Identity::Node(name) => Ok(name),
        Identity::Person { .. } => Err(refused(peer, "a node of the cluster")),
    }
}

/// Requires a person with at least this role, and gives their name and role.
///
/// # Errors
/// `PermissionDenied` for nodes and for weaker roles.
#[allow(clippy::result_large_err)]
pub fn require_role<T>(request: &Request<T>, least: Role) -> Result<(&str, Role), Status> {
    let peer = peer(request)?;
    match &peer.identity {
        Identity::Person { name, role } if *role >= least => Ok((name, *role)),
        _ => Err(refused(peer, &format!("a person with the role {least} or a stronger one"))),
    }
}

/// Requires a node of the cluster (which forwards) or a person with at least this role.
///
/// # Errors
/// `PermissionDenied` for weaker roles.
#[allow(clippy::result_large_err)]
pub fn require_node_or_role<T>(request: &Request<T>, least: Role) -> Result<&Identity, Status> {
    let peer = peer(request)?;
    match &peer.identity {
        Identity::Person { role, .. } if *role < least => {
            Err(refused(peer, &format!("a node, or a person with the role {least}")))
        }
        identity => Ok(identity),
    }
}
