//! Consensus' storage with the daemon stopped: what is in it, and the switch to a new incarnation.
//!
//! The old storage is never written: it stays, under a name that says which incarnation it is of, and
//! the switch is one `rename` of a finished file. So whenever it is cut off, the node is of the old
//! incarnation or of the new one, and it can be done again. It must not decide whether to do it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf};
use openraft::entry::RaftEntry;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::{BasicNode, EntryPayload, Membership};
use redb::{Database, DatabaseError, ReadableDatabase};
use understudy_core::state::ClusterState;
use understudy_types::{ClusterIncarnation, Incarnation, NodeId, NodeName};
use uuid::Uuid;

use crate::codec::{CodecError, decode_command};
use crate::device::{make_dir, sync_dir};
use crate::state_machine::{Snapshot, SnapshotFile, StateMachineError, snapshot_dir};
use crate::store::{self, FILE, LOG, StoreError, StoredIdentity};
use crate::{LogCommand, RaftTypes};

/// A finished store that is not yet the node's.
const FRESH: &str = "raft.redb.new";

/// Why the storage cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The daemon has it.
    #[error("open {path}: the daemon of this node is running; stop it first")]
    InUse {
        /// The database file.
        path: String,
    },
    /// The log.
    #[error("read the log")]
    Store(#[from] StoreError),
    /// The snapshot.
    #[error("read the state")]
    StateMachine(#[from] StateMachineError),
    /// An entry of the log cannot be read.
    #[error("read log entry {index}")]
    Entry {
        /// Which.
        index: u64,
        /// Why.
        #[source]
        source: CodecError,
    },
    /// The disk.
    #[error("{what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Nothing was ever stored, or the identity is missing.
    #[error("read {path}: it holds no identity")]
    NoIdentity {
        /// The database file.
        path: String,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OfflineError {
    let path = path.display().to_string();
    move |source| OfflineError::Io { what, path, source }
}

/// The storage of a node whose daemon is stopped. While it lives the daemon cannot start.
pub struct Offline {
    dir: PathBuf,
    // Holds redb's lock.
    _db: Database,
    /// Whose it is.
    pub identity: StoredIdentity,
    /// The state with every entry that is here, committed or not: what might have been decided counts.
    pub state: ClusterState,
    /// Who has a vote, by the newest membership here.
    pub voters: BTreeSet<NodeId>,
    /// The last log index here; 0 when there is none.
    pub last_index: u64,
    term: u64,
    /// Neither a vote nor a log is here.
    pub empty: bool,
    /// Others knew a newer storage of this node, with what this one has forgotten; the words say more.
    pub older_copy: Option<String>,
}

/// The identity in a node's storage, read without keeping it; `None` when there is none yet.
///
/// # Errors
/// When the file is in use or cannot be read.
pub fn stored_identity(dir: &Path) -> Result<Option<StoredIdentity>, OfflineError> {
    let Some(db) = open(dir)? else { return Ok(None) };
    store::read_identity(&db).map_err(failed("read", &dir.join(FILE)))
}

fn open(dir: &Path) -> Result<Option<Database>, OfflineError> {
    let path = dir.join(FILE);
    if !path.try_exists().map_err(failed("look for", &path))? {
        return Ok(None);
    }
    match Database::open(&path) {
        Ok(db) => Ok(Some(db)),
        Err(DatabaseError::DatabaseAlreadyOpen) => {
            Err(OfflineError::InUse { path: path.display().to_string() })
        }
        Err(error) => Err(failed("open", &path)(io::Error::other(error))),
    }
}

impl Offline {
    /// Opens and reads everything; `None` when the node has no storage.
    ///
    /// # Errors
    /// When the daemon runs, or something in it cannot be read.
    pub fn open(dir: &Path) -> Result<Option<Offline>, OfflineError> {
        let Some(db) = open(dir)? else { return Ok(None) };
        let path = dir.join(FILE);
        let identity = store::read_identity(&db).map_err(failed("read", &path))?;
        let identity = identity
            .ok_or_else(|| OfflineError::NoIdentity { path: path.display().to_string() })?;
        let empty = store::check_contents(&db, true)
            .map_err(failed("read", &path))?
            .map_err(StoreError::Inconsistent)?;
        let snapshot = SnapshotFile::in_dir(&snapshot_dir(dir, identity.cluster_incarnation));
        let (meta, mut state) = match snapshot.read()? {
            Some((snapshot, state)) => (snapshot.meta, state),
            None => (SnapshotMetaOf::<RaftTypes>::default(), ClusterState::default()),
        };
        let mut last_index = meta.last_log_id.map_or(0, |id| id.index);
        let mut membership = meta.last_membership.clone();
        for entry in entries_above(&db, meta.last_log_id.map(|id| id.index))
            .map_err(failed("read", &path))?
        {
            last_index = entry.log_id().index;
            match &entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Membership(found) => {
                    membership =
                        StoredMembershipOf::<RaftTypes>::new(Some(entry.log_id()), found.clone());
                }
                EntryPayload::Normal(LogCommand(bytes)) => {
                    let command = decode_command(bytes)
                        .map_err(|source| OfflineError::Entry { index: last_index, source })?;
                    // What it comes to is the state's own business, as on every node.
                    let _ = state.apply(last_index, &command);
                }
            }
        }
        let vote: Option<VoteOf<RaftTypes>> =
            store::read_meta(&db, store::VOTE).map_err(failed("read", &path))?;
        let term = vote.map_or(0, |vote| vote.leader_id.term);
        let voters = membership.voter_ids().map(NodeId).collect();
        Ok(Some(Offline {
            dir: dir.to_owned(),
            identity,
            state,
            voters,
            last_index,
            term,
            empty,
            older_copy: store::read_meta(&db, store::CONDEMNED).map_err(failed("read", &path))?,
            _db: db,
        }))
    }

    /// The storage becomes that of a new incarnation whose only member is this node: `state`, as of log
    /// index `last_index + 1`. When it returns, that survives a crash.
    ///
    /// # Errors
    /// When the disk says no; the node is then still of the old incarnation.
    pub fn begin_incarnation(
        self,
        incarnation: ClusterIncarnation,
        node: NodeId,
        storage: Incarnation,
        address: &str,
        state: &ClusterState,
    ) -> Result<(), OfflineError> {
        let leader = LeaderId { term: self.term + 1, node_id: node.0 };
        let at = LogIdOf::<RaftTypes>::new(leader, self.last_index + 1);
        let nodes = BTreeMap::from([(node.0, BasicNode::new(address))]);
        let membership = Membership::new(vec![BTreeSet::from([node.0])], nodes)
            .expect("the only voter has its node");
        let meta = SnapshotMetaOf::<RaftTypes> {
            last_log_id: Some(at),
            last_membership: StoredMembershipOf::<RaftTypes>::new(Some(at), membership),
        };
        let snapshots = snapshot_dir(&self.dir, incarnation);
        SnapshotFile::in_dir(&snapshots)
            .write(&Snapshot::of(meta, state))
            .map_err(failed("write the new state into", &snapshots))?;
        let identity = StoredIdentity {
            node_id: node.0,
            incarnation: storage.0,
            cluster_incarnation: incarnation,
            starts: Vec::new(),
            ..self.identity.clone()
        };
        let vote = VoteOf::<RaftTypes>::new(leader.term, node.0);
        self.switch(&identity, Some((vote, at)))
    }

    /// The storage becomes an empty one of `incarnation`, to be filled by its leader. The old one is
    /// kept aside.
    ///
    /// # Errors
    /// When the disk says no; the node is then still of the old incarnation.
    pub fn begin_empty(
        self,
        incarnation: ClusterIncarnation,
        node: NodeId,
    ) -> Result<(), OfflineError> {
        let identity = StoredIdentity {
            node_id: node.0,
            incarnation: Uuid::new_v4(),
            cluster_incarnation: incarnation,
            starts: Vec::new(),
            ..self.identity.clone()
        };
        self.switch(&identity, None)
    }

    fn switch(
        self,
        identity: &StoredIdentity,
        begin: Option<(VoteOf<RaftTypes>, LogIdOf<RaftTypes>)>,
    ) -> Result<(), OfflineError> {
        let (path, fresh) = (self.dir.join(FILE), self.dir.join(FRESH));
        remove_if_there(&fresh).map_err(failed("remove", &fresh))?;
        store::create(&fresh, identity, begin).map_err(failed("write", &fresh))?;
        File::open(&fresh).and_then(|file| file.sync_all()).map_err(failed("sync", &fresh))?;
        let aside = self.aside();
        remove_if_there(&aside).map_err(failed("remove", &aside))?;
        std::fs::hard_link(&path, &aside).map_err(failed("keep the old storage as", &aside))?;
        sync_dir(&self.dir).map_err(failed("sync", &self.dir))?;
        // The one step: before it the node is of the old incarnation, after it of the new one.
        std::fs::rename(&fresh, &path).map_err(failed("put the new storage in place of", &path))?;
        sync_dir(&self.dir).map_err(failed("sync", &self.dir))
    }

    /// Named by the storage's own identity as well, so that nothing kept earlier is replaced: only the
    /// link of an attempt that was cut off is, and it leads to the same file.
    fn aside(&self) -> PathBuf {
        let incarnation = self.identity.cluster_incarnation.number;
        let storage = self.identity.incarnation.simple().to_string();
        self.dir.join(format!("raft-of-incarnation-{incarnation}-{}.redb", &storage[..8]))
    }
}

/// Makes the storage of a node that has none: an empty one of `incarnation`.
///
/// # Errors
/// When there is one, or the disk says no.
pub fn create_empty(
    dir: &Path,
    cluster: understudy_types::ClusterId,
    incarnation: ClusterIncarnation,
    node: NodeId,
    name: &NodeName,
) -> Result<(), OfflineError> {
    let (path, fresh) = (dir.join(FILE), dir.join(FRESH));
    make_dir(dir).map_err(failed("make", dir))?;
    let exists = io::Error::from(io::ErrorKind::AlreadyExists);
    if path.try_exists().map_err(failed("look for", &path))? {
        return Err(failed("make", &path)(exists));
    }
    remove_if_there(&fresh).map_err(failed("remove", &fresh))?;
    let identity = StoredIdentity {
        format: store::FORMAT,
        cluster: cluster.0,
        node_id: node.0,
        name: name.to_string(),
        incarnation: Uuid::new_v4(),
        process_start: 0,
        cluster_incarnation: incarnation,
        starts: Vec::new(),
    };
    store::create(&fresh, &identity, None).map_err(failed("write", &fresh))?;
    std::fs::rename(&fresh, &path).map_err(failed("put in place", &path))?;
    sync_dir(dir).map_err(failed("sync", dir))
}

fn entries_above(db: &Database, index: Option<u64>) -> io::Result<Vec<EntryOf<RaftTypes>>> {
    let tx = db.begin_read().map_err(store::other)?;
    let log = tx.open_table(LOG).map_err(store::other)?;
    let first = index.map_or(0, |index| index + 1);
    let mut entries = Vec::new();
    for row in log.range::<u64>(first..).map_err(store::other)? {
        entries.push(store::decode(row.map_err(store::other)?.1.value())?);
    }
    Ok(entries)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
