//! How an incarnation came to be, as a message and back, exactly.
//!
//! It must not judge it.

use std::collections::BTreeSet;

use understudy_core::state::Recovery;
use understudy_proto::FieldError;
use understudy_proto::v1::cluster_state as message;
use understudy_types::{ClusterIncarnation, NodeId};

use super::dial::{read_limit, read_loss, write_limit, write_loss};
use super::{epoch, required, uuid};

pub(super) fn write(recovery: &Recovery) -> message::Recovery {
    message::Recovery {
        incarnation: recovery.incarnation.number,
        incarnation_id: recovery.incarnation.id.as_bytes().to_vec(),
        survivor: recovery.survivor.clone(),
        from_epoch: Some(recovery.from_epoch.into()),
        caller: recovery.caller.clone(),
        reason: recovery.reason.clone(),
        loss: Some(write_loss(&recovery.loss)),
        accepted: Some(write_limit(&recovery.accepted)),
        at_unix_us: recovery.at_unix_us,
        voters: write_voters(&recovery.voters),
    }
}

pub(super) fn read(recovery: message::Recovery) -> Result<Recovery, FieldError> {
    Ok(Recovery {
        incarnation: ClusterIncarnation {
            number: recovery.incarnation,
            id: uuid("recovery.incarnation_id", &recovery.incarnation_id)?,
        },
        survivor: recovery.survivor,
        from_epoch: epoch("recovery.from_epoch", recovery.from_epoch)?,
        caller: recovery.caller,
        reason: recovery.reason,
        loss: read_loss(recovery.loss)?,
        accepted: read_limit(required("recovery.accepted", recovery.accepted)?),
        at_unix_us: recovery.at_unix_us,
        voters: read_voters(recovery.voters),
    })
}

pub(super) fn write_voters(voters: &BTreeSet<NodeId>) -> Vec<u64> {
    voters.iter().map(|voter| voter.0).collect()
}

pub(super) fn read_voters(voters: Vec<u64>) -> BTreeSet<NodeId> {
    voters.into_iter().map(NodeId).collect()
}
