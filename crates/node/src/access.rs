//! Who may call what: one table over every gRPC method, enforced in front of all of them (I21).
//!
//! A method without a row is nobody's. What depends on a request's content, such as a stated loss, its
//! handler judges in addition. The same table is printed in `docs/access.md`.

use http::Uri;
use tonic::Status;
use understudy_transport::{Door, Identity, Peer, Role};

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Whoever has a certificate of the cluster.
    Anybody,
    /// The cluster's nodes.
    Nodes,
    /// Nodes, and persons with at least this role.
    NodesAnd(Role),
    /// Persons with at least this role.
    Persons(Role),
}

use Access::{Anybody, Nodes, NodesAnd, Persons};

/// Every method, by its path.
pub const TABLE: &[(&str, Access)] = &[
    ("/understudy.v1.Admin/GetStatus", NodesAnd(Role::Viewer)),
    ("/understudy.v1.Admin/WatchStatus", NodesAnd(Role::Viewer)),
    ("/understudy.v1.Admin/GetOperation", NodesAnd(Role::Viewer)),
    ("/understudy.v1.Admin/GetConfig", NodesAnd(Role::Viewer)),
    ("/understudy.v1.Admin/PlanSwitchover", Persons(Role::Operator)),
    ("/understudy.v1.Admin/Switchover", Persons(Role::Operator)),
    ("/understudy.v1.Admin/CancelSwitchover", Persons(Role::Operator)),
    ("/understudy.v1.Admin/PlanNodeOrder", Persons(Role::Operator)),
    ("/understudy.v1.Admin/OrderNode", Persons(Role::Operator)),
    ("/understudy.v1.Admin/Failover", Persons(Role::Operator)),
    ("/understudy.v1.Admin/Pause", Persons(Role::Operator)),
    ("/understudy.v1.Admin/Resume", Persons(Role::Operator)),
    ("/understudy.v1.Admin/SetRpo", Persons(Role::Administrator)),
    ("/understudy.v1.Receipts/ListReceipts", NodesAnd(Role::Viewer)),
    ("/understudy.v1.Receipts/GetReceipt", NodesAnd(Role::Viewer)),
    ("/understudy.v1.WalFiles/GetWalStatus", NodesAnd(Role::Viewer)),
    ("/understudy.v1.WalFiles/ListWalFiles", NodesAnd(Role::Viewer)),
    ("/understudy.v1.WalFiles/VerifyWal", Persons(Role::Operator)),
    ("/understudy.v1.Validation/Validate", NodesAnd(Role::Viewer)),
    ("/understudy.v1.Validation/DescribeFitness", NodesAnd(Role::Viewer)),
    ("/understudy.v1.Events/Watch", NodesAnd(Role::Viewer)),
    ("/understudy.v1.Log/GetLevel", NodesAnd(Role::Viewer)),
    ("/understudy.v1.Log/SetLevel", Persons(Role::Administrator)),
    ("/understudy.v1.Debug/Collect", Persons(Role::Operator)),
    ("/understudy.v1.Recovery/Describe", NodesAnd(Role::Viewer)),
    ("/understudy.v1.Peer/Hello", Nodes),
    ("/understudy.v1.Peer/AppendEntries", Nodes),
    ("/understudy.v1.Peer/Vote", Nodes),
    ("/understudy.v1.Peer/PreVote", Nodes),
    ("/understudy.v1.Peer/InstallSnapshot", Nodes),
    ("/understudy.v1.Peer/TransferLeader", Nodes),
    ("/understudy.v1.Peer/Propose", Nodes),
    ("/understudy.v1.Peer/ReadIndex", Nodes),
    ("/understudy.v1.Peer/Reach", Nodes),
    ("/understudy.v1.Peer/Report", Nodes),
    ("/understudy.v1.Wal/Stream", Nodes),
    ("/understudy.v1.Wal/Tunnel", Nodes),
    ("/understudy.v1.Wal/Seal", Nodes),
    ("/understudy.v1.Wal/FetchTail", Nodes),
    ("/grpc.health.v1.Health/Check", Anybody),
    ("/grpc.health.v1.Health/Watch", Anybody),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Anybody),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Anybody),
];

impl Access {
    /// Whether it lets this caller in.
    pub fn allows(self, identity: &Identity) -> bool {
        match (self, identity) {
            (Anybody, _) | (Nodes | NodesAnd(_), Identity::Node(_)) => true,
            (NodesAnd(least) | Persons(least), Identity::Person { role, .. }) => *role >= least,
            (Nodes, Identity::Person { .. }) | (Persons(_), Identity::Node(_)) => false,
        }
    }

    /// What it takes, in words.
    fn words(self) -> String {
        match self {
            Anybody => "a certificate of the cluster".to_owned(),
            Nodes => "a node of the cluster".to_owned(),
            NodesAnd(least) => format!("a node, or a person with the role {least}"),
            Persons(least) => format!("a person with the role {least} or a stronger one"),
        }
    }
}

// A Status is what tonic's handlers must return; boxing it here would only be undone there.
#[allow(clippy::result_large_err)]
fn judge(path: &str, peer: Option<&Peer>) -> Result<(), Status> {
    let peer =
        peer.ok_or_else(|| Status::unauthenticated("the connection has no proven identity"))?;
    let Some((_, access)) = TABLE.iter().find(|(known, _)| *known == path) else {
        return Err(Status::unimplemented(format!("{path}: there is no such method here")));
    };
    if access.allows(&peer.identity) {
        return Ok(());
    }
    let (who, takes) = (&peer.identity, access.words());
    tracing::warn!(peer = %who, address = %peer.address, path, takes, "request refused");
    Err(Status::permission_denied(format!("{who} may not do this: it takes {takes}")))
}

/// The door that enforces the table.
#[derive(Clone, Copy, Debug)]
pub struct AccessDoor;

impl Door for AccessDoor {
    fn judge(&self, uri: &Uri, peer: Option<&Peer>) -> Result<(), Status> {
        judge(uri.path(), peer)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write as _;

    use prost::Message as _;

    use super::*;

    /// Every method that this program implements, as its descriptors and those of the stock services say.
    fn methods() -> BTreeSet<String> {
        let sets = [
            understudy_proto::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let files =
            sets.iter().flat_map(|set| prost_types::FileDescriptorSet::decode(*set).unwrap().file);
        let of = |file: prost_types::FileDescriptorProto| {
            let package = file.package().to_owned();
            let services = file.service.into_iter();
            services.flat_map(move |service| {
                let prefix = format!("/{package}.{}/", service.name());
                service.method.into_iter().map(move |m| format!("{prefix}{}", m.name()))
            })
        };
        files.flat_map(of).collect()
    }

    #[test]
    fn every_method_has_exactly_one_row_and_every_row_is_a_method() {
        let rows: Vec<String> = TABLE.iter().map(|(path, _)| (*path).to_owned()).collect();
        let unique: BTreeSet<String> = rows.iter().cloned().collect();
        assert_eq!(rows.len(), unique.len(), "a method has two rows");
        assert_eq!(unique, methods());
    }

    #[test]
    fn the_table_is_the_one_that_operators_read() {
        let node = Identity::Node("north".parse().unwrap());
        let person = |role| Identity::Person { name: "ada".to_owned(), role };
        let mut text = String::from(
            "# Who may call what\n\n\
             Written by a test from `crates/node/src/access.rs`, which is what the nodes enforce; a method \
             without a row is nobody's.\n\
             The role is in the caller's certificate (`spiffe://CLUSTER/person/NAME/ROLE`); `understudy init` \
             makes one for each role.\n\
             A failover with `--accept-loss` takes the role break-glass.\n\n\
             | method | node | viewer | operator | administrator | break-glass |\n\
             | --- | --- | --- | --- | --- | --- |\n",
        );
        for (path, access) in TABLE {
            let callers = std::iter::once(node.clone()).chain(Role::ALL.map(person));
            let cells = callers.map(|who| if access.allows(&who) { " yes |" } else { " – |" });
            let method = path.trim_start_matches('/').trim_start_matches("understudy.v1.");
            writeln!(text, "| {method} |{}", cells.collect::<String>()).unwrap();
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/access.md");
        if std::env::var_os("UNDERSTUDY_WRITE_GOLDEN").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(written, text, "write it again with UNDERSTUDY_WRITE_GOLDEN=1");
    }
}
