//! The durable log: vote, entries, committed and purged positions in one redb file.
//!
//! Every change goes through one writer in the order it was asked for, and nothing is reported done
//! before it is durable. After a failed write it takes no further one: what is on disk is then
//! unknown, and a node that guesses could vote twice. It must not repair.

use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::{Mutex, mpsc, oneshot};
use understudy_types::ClusterIncarnation;
use uuid::Uuid;

use crate::RaftTypes;
use crate::device::{Device, Directory};
use crate::past::{self, Pasts, Start};

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
pub(crate) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");

const IDENTITY: &str = "identity";
pub(crate) const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const REVISION: &str = "revision";
const KNOWN: &str = "known";
pub(crate) const CONDEMNED: &str = "condemned";

/// The file's name in its directory.
pub(crate) const FILE: &str = "raft.redb";
/// Grows when an older program would misread the file.
pub(crate) const FORMAT: u32 = 1;
/// Changes that may wait for the writer; openraft awaits nearly all of them, so few ever do.
const QUEUE: usize = 256;

/// Whose store it is to be.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The cluster's uuid, as configured.
    pub cluster: Uuid,
    /// This node's number in consensus.
    pub node_id: u64,
    /// This node's name.
    pub name: String,
    /// Which incarnation of the cluster.
    pub incarnation: ClusterIncarnation,
}

/// Whose store it is, as recorded in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredIdentity {
    /// Version of the file's layout.
    pub format: u32,
    /// The cluster's uuid.
    pub cluster: Uuid,
    /// The node's number in consensus.
    pub node_id: u64,
    /// The node's name.
    pub name: String,
    /// Random, made with the empty store: a wiped node has another one.
    pub incarnation: Uuid,
    /// How often the store has been opened, this time included.
    pub process_start: u64,
    /// Which incarnation of the cluster it is of; absent in what was written before there were others.
    #[serde(default)]
    pub cluster_incarnation: ClusterIncarnation,
    /// The last starts, newest last; absent in what was written before they were told to others.
    #[serde(default)]
    pub starts: Vec<Start>,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or file cannot be used, or another process has it open.
    #[error("open raft store {path}")]
    Open {
        /// The database file.
        path: String,
        /// What redb or the system said.
        #[source]
        source: io::Error,
    },
    /// Written by a program with another layout.
    #[error("open raft store: format {found} is not the supported {FORMAT}")]
    Format {
        /// What the file says.
        found: u32,
    },
    /// The store is another node's or another cluster's.
    #[error(
        "open raft store: it belongs to node {} ({}) of cluster {}, incarnation {}",
        found.node_id, found.name, found.cluster, found.cluster_incarnation
    )]
    Identity {
        /// What the file says.
        found: Box<StoredIdentity>,
    },
    /// Others knew a newer one under its name: what it has forgotten it may have promised.
    #[error(
        "open raft store: {0}; put back the newest copy of the raft directory, which alone remembers \
         its votes: with this one the node must not take part again"
    )]
    OlderCopy(String),
    /// The contents contradict themselves; going on could break a promise made before (I19).
    #[error("open raft store: {0}")]
    Inconsistent(&'static str),
}

enum Change {
    Vote(Vec<u8>),
    Committed(Vec<u8>),
    Append(Vec<(u64, Vec<u8>)>),
    /// Removes this index and everything above.
    TruncateFrom(u64),
    /// Removes this index and everything below; the bytes are the log id.
    Purge(u64, Vec<u8>),
    /// It is an older copy, for this reason.
    Condemn(String),
}

type Job = (Change, oneshot::Sender<io::Result<()>>);

/// Who writes: a thread, or in simulated time the asker, one after the other; then the flag says
/// that a write has failed.
#[derive(Clone)]
enum Writer {
    Thread(mpsc::Sender<Job>),
    Asker { device: Arc<dyn Device>, failed: Arc<Mutex<bool>> },
}

/// Since when a write has been under way, if one is.
#[derive(Debug, Default)]
pub(crate) struct UnderWay(std::sync::Mutex<Option<std::time::Instant>>);

impl UnderWay {
    fn note(&self, began: Option<std::time::Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = began;
    }

    /// How long the disk has owed an answer; zero while it owes none.
    pub(crate) fn owed_for(&self) -> Duration {
        let began = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        began.map_or(Duration::ZERO, |began| began.elapsed())
    }
}

/// Handle of the open store. Clones share the file; it closes with the last of them.
#[derive(Clone)]
pub struct LogStore {
    db: Arc<Database>,
    writer: Writer,
    identity: Arc<StoredIdentity>,
    pasts: Arc<Pasts>,
    under_way: Arc<UnderWay>,
    empty: bool,
}

impl LogStore {
    /// Opens or creates `<dir>/raft.redb` and counts this process start durably. redb's file lock
    /// keeps a second daemon out.
    pub fn open(dir: &Path, options: &StoreOptions) -> Result<LogStore, StoreError> {
        LogStore::open_on(Arc::new(Directory::new(dir)), options)
    }

    /// The same on any device.
    pub(crate) fn open_on(
        device: Arc<dyn Device>,
        options: &StoreOptions,
    ) -> Result<LogStore, StoreError> {
        let failed = |source: io::Error| StoreError::Open { path: device.name(), source };
        let db = device.log().map_err(failed)?;
        let stored = create_tables(&db).map_err(failed)?;
        let empty = check_contents(&db, stored.is_some())
            .map_err(failed)?
            .map_err(StoreError::Inconsistent)?;
        let revision = read_meta(&db, REVISION).map_err(failed)?.unwrap_or_default();
        let identity = next_identity(stored, options, revision)?;
        if let Some(why) = read_meta(&db, CONDEMNED).map_err(failed)? {
            return Err(StoreError::OlderCopy(why));
        }
        write_identity(&db, &identity).map_err(failed)?;
        device.sync_names().map_err(failed)?;
        let known = read_meta(&db, KNOWN).map_err(failed)?.unwrap_or_default();
        let starts = identity.starts.clone();
        let pasts = Arc::new(Pasts::new(identity.incarnation, starts, revision, known));

        let db = Arc::new(db);
        let under_way = Arc::<UnderWay>::default();
        let writer = if device.simulated_write().is_some() {
            Writer::Asker { device: Arc::clone(&device), failed: Arc::default() }
        } else {
            let (jobs, queue) = mpsc::channel(QUEUE);
            let (writer, told) = (Arc::clone(&db), Arc::clone(&pasts));
            let noted = Arc::clone(&under_way);
            std::thread::Builder::new()
                .name("raft-store".into())
                .spawn(move || write_loop(&writer, &told, &noted, queue))
                .map_err(failed)?;
            Writer::Thread(jobs)
        };
        Ok(LogStore { db, writer, identity: Arc::new(identity), pasts, under_way, empty })
    }

    /// Whose store this is.
    pub fn identity(&self) -> &StoredIdentity {
        &self.identity
    }

    /// Neither vote nor log was there when it was opened: only such a node may found a cluster.
    pub fn was_empty(&self) -> bool {
        self.empty
    }

    /// Its own past, and what was heard of the others.
    pub(crate) fn pasts(&self) -> Arc<Pasts> {
        Arc::clone(&self.pasts)
    }

    /// What its disk owes.
    pub(crate) fn under_way(&self) -> Arc<UnderWay> {
        Arc::clone(&self.under_way)
    }

    /// Notes that this is an older copy: it is not opened again.
    pub(crate) async fn condemn(&self, why: String) -> io::Result<()> {
        self.change(Change::Condemn(why)).await
    }

    async fn change(&self, change: Change) -> io::Result<()> {
        match &self.writer {
            Writer::Thread(jobs) => {
                let (done, answer) = oneshot::channel();
                jobs.send((change, done)).await.map_err(|_| stopped())?;
                answer.await.map_err(|_| stopped())?
            }
            Writer::Asker { device, failed } => {
                let mut failed = failed.lock().await;
                if *failed {
                    return Err(stopped());
                }
                tokio::time::sleep(device.simulated_write().unwrap_or_default()).await;
                let result = write(&self.db, &self.pasts, change);
                *failed = result.is_err();
                result
            }
        }
    }

    fn meta<T: DeserializeOwned>(&self, key: &str) -> io::Result<Option<T>> {
        read_meta(&self.db, key)
    }
}

fn stopped() -> io::Error {
    io::Error::other("the raft store's writer has stopped after a failure")
}

pub(crate) fn other(error: impl Into<redb::Error>) -> io::Error {
    io::Error::other(error.into())
}

fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(io::Error::other)
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

pub(crate) fn read_meta<T: DeserializeOwned>(db: &Database, key: &str) -> io::Result<Option<T>> {
    let tx = db.begin_read().map_err(other)?;
    let table = tx.open_table(META).map_err(other)?;
    table.get(key).map_err(other)?.map(|value| decode(value.value())).transpose()
}

/// Whose store an open file is.
pub(crate) fn read_identity(db: &Database) -> io::Result<Option<StoredIdentity>> {
    read_meta(db, IDENTITY)
}

/// Writes a whole store into a file that is not there yet: empty, or one whose log begins after `at`
/// with a vote for the node itself. When it returns, the file is whole and durable; its name is not.
pub(crate) fn create(
    path: &Path,
    identity: &StoredIdentity,
    begin: Option<(VoteOf<RaftTypes>, LogIdOf<RaftTypes>)>,
) -> io::Result<()> {
    let db = Database::create(path).map_err(other)?;
    let tx = db.begin_write().map_err(other)?;
    {
        let mut meta = tx.open_table(META).map_err(other)?;
        tx.open_table(LOG).map_err(other)?;
        meta.insert(IDENTITY, encode(identity)?.as_slice()).map_err(other)?;
        if let Some((vote, at)) = begin {
            meta.insert(VOTE, encode(&vote)?.as_slice()).map_err(other)?;
            meta.insert(PURGED, encode(&at)?.as_slice()).map_err(other)?;
            meta.insert(COMMITTED, encode(&Some(at))?.as_slice()).map_err(other)?;
        }
    }
    tx.commit().map_err(other)
}

fn create_tables(db: &Database) -> io::Result<Option<StoredIdentity>> {
    let tx = db.begin_write().map_err(other)?;
    tx.open_table(META).map_err(other)?;
    tx.open_table(LOG).map_err(other)?;
    tx.commit().map_err(other)?;
    read_meta(db, IDENTITY)
}

/// Says whether neither vote nor log is there, or what contradicts itself.
pub(crate) fn check_contents(
    db: &Database,
    has_identity: bool,
) -> io::Result<Result<bool, &'static str>> {
    let vote: Option<VoteOf<RaftTypes>> = read_meta(db, VOTE)?;
    let purged: Option<LogIdOf<RaftTypes>> = read_meta(db, PURGED)?;
    let tx = db.begin_read().map_err(other)?;
    let log = tx.open_table(LOG).map_err(other)?;
    let first = log.first().map_err(other)?.map(|(key, _)| key.value());
    let last = log.last().map_err(other)?.map(|(key, _)| key.value());
    let has_log = first.is_some() || purged.is_some();
    if vote.is_none() && has_log {
        return Ok(Err("there is a log but no vote"));
    }
    if (vote.is_some() || has_log) && !has_identity {
        return Ok(Err("there are votes or entries but no identity"));
    }
    if let (Some(first), Some(last)) = (first, last) {
        if log.len().map_err(other)? != last - first + 1 {
            return Ok(Err("the log has a gap"));
        }
        if first != purged.map_or(0, |id| id.index + 1) {
            return Ok(Err("the log does not begin where it was purged"));
        }
    }
    Ok(Ok(vote.is_none() && !has_log))
}

fn next_identity(
    stored: Option<StoredIdentity>,
    options: &StoreOptions,
    revision: u64,
) -> Result<StoredIdentity, StoreError> {
    let Some(mut found) = stored else {
        return Ok(StoredIdentity {
            format: FORMAT,
            cluster: options.cluster,
            node_id: options.node_id,
            name: options.name.clone(),
            incarnation: Uuid::new_v4(),
            process_start: 1,
            cluster_incarnation: options.incarnation,
            starts: past::started(Vec::new(), revision),
        });
    };
    if found.format != FORMAT {
        return Err(StoreError::Format { found: found.format });
    }
    if (found.cluster, found.node_id, &found.name, found.cluster_incarnation)
        != (options.cluster, options.node_id, &options.name, options.incarnation)
    {
        return Err(StoreError::Identity { found: Box::new(found) });
    }
    found.process_start += 1;
    found.starts = past::started(found.starts, revision);
    Ok(found)
}

fn write_identity(db: &Database, identity: &StoredIdentity) -> io::Result<()> {
    let tx = db.begin_write().map_err(other)?;
    tx.open_table(META)
        .map_err(other)?
        .insert(IDENTITY, encode(identity)?.as_slice())
        .map_err(other)?;
    tx.commit().map_err(other)
}

fn write_loop(db: &Database, pasts: &Pasts, under_way: &UnderWay, mut queue: mpsc::Receiver<Job>) {
    while let Some((change, done)) = queue.blocking_recv() {
        under_way.note(Some(std::time::Instant::now()));
        let result = write(db, pasts, change);
        under_way.note(None);
        let failed = result.is_err();
        if let Err(error) = &result {
            tracing::error!(%error, "raft store write failed; it takes no further one");
        }
        // The asker may have gone; the change stands all the same.
        let _ = done.send(result);
        if failed {
            return;
        }
    }
}

fn write(db: &Database, pasts: &Pasts, change: Change) -> io::Result<()> {
    let mut tx = db.begin_write().map_err(other)?;
    // A lost committed position costs a little replay only; everything else must be on disk.
    let durable = !matches!(change, Change::Committed(_));
    let durability = if durable { Durability::Immediate } else { Durability::None };
    tx.set_durability(durability).map_err(other)?;
    let revision = pasts.revision() + u64::from(durable);
    if durable {
        let mut meta = tx.open_table(META).map_err(other)?;
        meta.insert(REVISION, encode(&revision)?.as_slice()).map_err(other)?;
        // What is known of the others comes to the disk with what is written anyway.
        meta.insert(KNOWN, encode(&pasts.all_known())?.as_slice()).map_err(other)?;
    }
    {
        let mut meta = tx.open_table(META).map_err(other)?;
        let mut log = tx.open_table(LOG).map_err(other)?;
        match change {
            Change::Vote(bytes) => drop(meta.insert(VOTE, bytes.as_slice()).map_err(other)?),
            Change::Condemn(why) => {
                drop(meta.insert(CONDEMNED, encode(&why)?.as_slice()).map_err(other)?)
            }
            Change::Committed(bytes) => {
                drop(meta.insert(COMMITTED, bytes.as_slice()).map_err(other)?)
            }
            Change::TruncateFrom(index) => log.retain_in(index.., |_, _| false).map_err(other)?,
            Change::Purge(index, bytes) => {
                log.retain_in(..=index, |_, _| false).map_err(other)?;
                meta.insert(PURGED, bytes.as_slice()).map_err(other)?;
            }
            Change::Append(entries) => {
                let purged = meta.get(PURGED).map_err(other)?;
                let purged: Option<LogIdOf<RaftTypes>> =
                    purged.map(|bytes| decode(bytes.value())).transpose()?;
                // An installed snapshot empties a log that ends below it; the next entry then
                // follows the snapshot.
                let mut last = log.last().map_err(other)?.map(|(key, _)| key.value());
                last = last.max(purged.map(|id| id.index));
                for (index, bytes) in entries {
                    if last.is_some_and(|last| index != last + 1) {
                        return Err(io::Error::other(
                            "append entry: it does not follow the last one",
                        ));
                    }
                    log.insert(index, bytes.as_slice()).map_err(other)?;
                    last = Some(index);
                }
            }
        }
    }
    tx.commit().map_err(other)?;
    pasts.durable(revision);
    Ok(())
}

impl RaftLogReader<RaftTypes> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + std::fmt::Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<EntryOf<RaftTypes>>, io::Error> {
        let bounds: (Bound<u64>, Bound<u64>) =
            (range.start_bound().cloned(), range.end_bound().cloned());
        let tx = self.db.begin_read().map_err(other)?;
        let log = tx.open_table(LOG).map_err(other)?;
        let mut entries = Vec::new();
        for row in log.range::<u64>(bounds).map_err(other)? {
            entries.push(decode(row.map_err(other)?.1.value())?);
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<RaftTypes>>, io::Error> {
        self.meta(VOTE)
    }
}

impl RaftLogStorage<RaftTypes> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<RaftTypes>, io::Error> {
        let last_purged_log_id: Option<LogIdOf<RaftTypes>> = self.meta(PURGED)?;
        let tx = self.db.begin_read().map_err(other)?;
        let log = tx.open_table(LOG).map_err(other)?;
        let last = match log.last().map_err(other)? {
            Some((_, value)) => Some(decode::<EntryOf<RaftTypes>>(value.value())?.log_id()),
            None => last_purged_log_id,
        };
        Ok(LogState { last_purged_log_id, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<RaftTypes>) -> Result<(), io::Error> {
        self.change(Change::Vote(encode(vote)?)).await
    }

    async fn save_committed(
        &mut self,
        committed: Option<LogIdOf<RaftTypes>>,
    ) -> Result<(), io::Error> {
        self.change(Change::Committed(encode(&committed)?)).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogIdOf<RaftTypes>>, io::Error> {
        Ok(self.meta::<Option<LogIdOf<RaftTypes>>>(COMMITTED)?.flatten())
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<RaftTypes>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<RaftTypes>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let rows: io::Result<Vec<(u64, Vec<u8>)>> =
            entries.into_iter().map(|entry| Ok((entry.log_id().index, encode(&entry)?))).collect();
        self.change(Change::Append(rows?)).await?;
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(
        &mut self,
        last_log_id: Option<LogIdOf<RaftTypes>>,
    ) -> Result<(), io::Error> {
        self.change(Change::TruncateFrom(last_log_id.map_or(0, |id| id.index + 1))).await
    }

    async fn purge(&mut self, log_id: LogIdOf<RaftTypes>) -> Result<(), io::Error> {
        self.change(Change::Purge(log_id.index, encode(&log_id)?)).await
    }
}

#[cfg(test)]
mod tests;
