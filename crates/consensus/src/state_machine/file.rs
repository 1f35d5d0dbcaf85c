//! The newest snapshot in a file: whole and durable, or the one before it.
//!
//! It must not guess at a damaged one: the log below it is gone, so a state made up in its place
//! would differ from what this node has promised.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::alias::SnapshotMetaOf;
use prost::Message;
use understudy_core::ClusterState;
use understudy_proto::v1;
use understudy_types::ClusterIncarnation;

use super::StateMachineError;
use crate::RaftTypes;
use crate::codec::{decode_state, encode_state};
use crate::device::{Device, Directory};

/// Says what the file is and how it is laid out: this, a crc32c of the rest (little-endian), and a
/// `SnapshotFile` message.
const MAGIC: &[u8; 8] = b"USDYSNP1";

/// Where the snapshots of an incarnation are. Each has a place of its own, so that the switch from one
/// to the next is that of the log alone.
pub(crate) fn snapshot_dir(dir: &Path, incarnation: ClusterIncarnation) -> PathBuf {
    if incarnation.is_founded() {
        return dir.to_owned();
    }
    dir.join(format!("incarnation-{incarnation}"))
}

/// A snapshot as it is stored and sent.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) meta: SnapshotMetaOf<RaftTypes>,
    /// An encoded `ClusterState`.
    pub(super) data: Vec<u8>,
}

impl Snapshot {
    pub(crate) fn of(meta: SnapshotMetaOf<RaftTypes>, state: &ClusterState) -> Snapshot {
        Snapshot { meta, data: encode_state(state) }
    }
}

/// Where it is kept.
pub(crate) struct SnapshotFile {
    device: Arc<dyn Device>,
}

impl SnapshotFile {
    pub(super) fn on(device: Arc<dyn Device>) -> SnapshotFile {
        SnapshotFile { device }
    }

    pub(crate) fn in_dir(dir: &Path) -> SnapshotFile {
        SnapshotFile::on(Arc::new(Directory::new(dir)))
    }

    /// Replaces the file. When this returns, the new one survives a crash.
    pub(crate) fn write(&self, snapshot: &Snapshot) -> io::Result<()> {
        let meta = serde_json::to_vec(&snapshot.meta).map_err(io::Error::other)?;
        let body = v1::SnapshotFile { meta, state: snapshot.data.clone() }.encode_to_vec();
        let sum = crc32c::crc32c(&body).to_le_bytes();
        self.device.replace_snapshot(&[MAGIC.as_slice(), &sum, &body].concat())
    }

    /// Reads it with the state that it holds; `None` when there is none.
    pub(crate) fn read(&self) -> Result<Option<(Snapshot, ClusterState)>, StateMachineError> {
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
