//! The newest snapshot in a file: whole and durable, or the one before it.
//!
//! It must not guess at a damaged one: the log below it is gone, so a state made up in its place
//! would differ from what this node has promised.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use openraft::alias::SnapshotMetaOf;
use prost::Message;
use understudy_core::ClusterState;
use understudy_proto::v1;
use understudy_types::ClusterIncarnation;

use super::StateMachineError;
use crate::RaftTypes;
use crate::codec::{decode_state, encode_state};

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
    path: PathBuf,
}

impl SnapshotFile {
    pub(crate) fn in_dir(dir: &Path) -> SnapshotFile {
        SnapshotFile { path: dir.join("snapshot") }
    }

    /// Makes the directory, so that it survives a crash: a storage of a later incarnation begins without.
    pub(crate) fn make_dir(&self) -> io::Result<()> {
        let dir = self.path.parent().expect("made by joining a name to a directory");
        if dir.is_dir() {
            return Ok(());
        }
        std::fs::create_dir_all(dir)?;
        match dir.parent() {
            Some(above) => File::open(above)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Replaces the file. When this returns, the new one survives a crash.
    pub(crate) fn write(&self, snapshot: &Snapshot) -> io::Result<()> {
        let meta = serde_json::to_vec(&snapshot.meta).map_err(io::Error::other)?;
        let body = v1::SnapshotFile { meta, state: snapshot.data.clone() }.encode_to_vec();
        let fresh = self.path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(MAGIC)?;
        file.write_all(&crc32c::crc32c(&body).to_le_bytes())?;
        file.write_all(&body)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.path)?;
        let dir = self.path.parent().expect("made by joining a name to a directory");
        File::open(dir)?.sync_all()
    }

    /// Reads it with the state that it holds; `None` when there is none.
    pub(crate) fn read(&self) -> Result<Option<(Snapshot, ClusterState)>, StateMachineError> {
        let path = || self.path.display().to_string();
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateMachineError::Read { path: path(), source }),
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
