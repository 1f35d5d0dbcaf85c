//! How processes of Understudy reach each other: mutual TLS 1.3 in which both sides know *whom* they
//! talk to (I15, I21), gRPC channels and a listener on top of it.
//!
//! Identity is the one URI in a certificate (`spiffe://<cluster-uuid>/node/<name>` or
//! `spiffe://<cluster-uuid>/person/<name>/<role>`); host names and addresses prove nothing here.
//! This crate decides nothing about the cluster; it says who asks, and services decide by that.
//! It must never offer a connection without a client certificate, nor one older than TLS 1.3.

mod auth;
mod authority;
mod channel;
mod door;
mod facts;
mod files;
mod identity;
mod listener;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;

pub use auth::{peer, require_any_node, require_node, require_node_or_role, require_role};
pub use authority::{Authority, AuthorityError, IssuedCertificate};
pub use channel::{ChannelOptions, ConnectError, Dialer, connect, connect_now, dialer};
pub use door::{Door, DoorLayer, DoorService, IncarnationDoor, refused_by_newer};
pub use facts::CertificateFacts;
pub use files::{FileError, create_private_dir, read_private_file, write_new_file};
pub use identity::{Identity, IdentityError, ParseRoleError, PeerCertificate, Role};
pub use listener::{Incoming, ListenError, ListenOptions, Listener, PeerStream, server};
pub use tls::{Peer, TlsError, TlsIdentity};
