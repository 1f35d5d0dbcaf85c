//! The newest snapshot in a file: whole and durable, or the one before it.
//!
//! It must not guess at a damaged one: the log below it is gone, so a state made up in its place
//! would differ from what this node has promised.

use std::io;
use std::sync::Arc;

use openraft::alias::SnapshotMetaOf;
use prost::Message;
use understudy_core::ClusterState;
use understudy_proto::v1;

use super::StateMachineError;
use crate::RaftTypes;
use crate::codec::{decode_state, encode_state};
use crate::device::Device;

/// Says what the file is and how it is laid out: this, a crc32c of the rest (little-endian), and a
/// `SnapshotFile` message.
const MAGIC: &[u8; 8] = b"USDYSNP1";

/// A snapshot as it is stored and sent.
#[derive(Clone)]
pub(super) struct Snapshot {
    pub(super) meta: SnapshotMetaOf<RaftTypes>,
    /// An encoded `ClusterState`.
    pub(super) data: Vec<u8>,
}

impl Snapshot {
    pub(super) fn of(meta: SnapshotMetaOf<RaftTypes>, state: &ClusterState) -> Snapshot {
        Snapshot { meta, data: encode_state(state) }
    }
}

/// Where it is kept.
pub(super) struct SnapshotFile {
    device: Arc<dyn Device>,
}

impl SnapshotFile {
    pub(super) fn on(device: Arc<dyn Device>) -> SnapshotFile {
        SnapshotFile { device }
    }

    /// Replaces the file. When this returns, the new one survives a crash.
    pub(super) fn write(&self, snapshot: &Snapshot) -> io::Result<()> {
        let meta = serde_json::to_vec(&snapshot.meta).map_err(io::Error::other)?;
        let body = v1::SnapshotFile { meta, state: snapshot.data.clone() }.encode_to_vec();
        let sum = crc32c::crc32c(&body).to_le_bytes();
        self.device.replace_snapshot(&[MAGIC.as_slice(), &sum, &body].concat())
    }

    /// Reads it with the state that it holds; `None` when there is none.
    pub(super) fn read(&self) -> Result<Option<(Snapshot, ClusterState)>, StateMachineError> {
        let path = || self.device.name();
        let Some(bytes) = self
            .device
            .read_snapshot()
            .map_err(|source| StateMachineError::Read { path: path(), source })?
        else {
            return Ok(None);
        };
        let damaged = |problem| StateMachineError::Damaged { path: path(), problem };
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("it is not a snapshot"))?;
        let (sum, body) =
            rest.split_first_chunk::<4>().ok_or_else(|| damaged("it is too short"))?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
            return Err(damaged("its checksum is wrong"));
        }
        let message = v1::SnapshotFile::decode(body).map_err(|_| damaged("it is not a message"))?;
        let meta = serde_json::from_slice(&message.meta)
            .map_err(|_| damaged("its metadata cannot be read"))?;
        let state = decode_state(&message.state)
            .map_err(|source| StateMachineError::Unreadable { path: path(), source })?;
        Ok(Some((Snapshot { meta, data: message.state }, state)))
    }
}
