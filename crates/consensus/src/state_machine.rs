//! Applies the committed log to the replicated state, and keeps and installs snapshots of it.
//!
//! The state lives in memory; snapshots are durable, and openraft applies the log above the newest
//! one again after a restart. What a command does is `understudy_core`'s alone. It must not skip an
//! entry that it cannot read: its state would silently differ from its peers', so the node stops.

mod file;
#[cfg(test)]
mod tests;

use std::io::{self, Cursor};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{Stream, TryStreamExt};
use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::{mpsc, watch};
use understudy_core::state::{ClusterState, Command, Outcome};

pub(crate) use self::file::{Snapshot, SnapshotFile, snapshot_dir};
use crate::codec::{CodecError, decode_command, decode_state, encode_outcome};
use crate::device::{Device, Directory};
use crate::{LogCommand, LogReply, RaftTypes};

/// One step of the replicated state, in log order.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The log index that `state` includes everything up to.
    pub index: u64,
    /// What was applied; `None` for an entry of consensus itself and for a whole state that was
    /// taken from a snapshot.
    pub command: Option<Command>,
    /// What became of it; `Some` exactly when `command` is.
    pub outcome: Option<Outcome>,
    /// The state after it.
    pub state: Arc<ClusterState>,
}

/// Why the state machine cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StateMachineError {
    /// The file system said no.
    #[error("read snapshot {path}")]
    Read {
        /// The file.
        path: String,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The file is not what was written.
    #[error(
        "read snapshot {path}: {problem}; the disk has lost what this node had stored, so replace \
         the node as after the loss of its disk; the others go on without it"
    )]
    Damaged {
        /// The file.
        path: String,
        /// In which way.
        problem: &'static str,
    },
    /// Intact, but not readable by this program.
    #[error(
        "read snapshot {path}: it was written by a program that knows more; \
         start that version again, or a newer one"
    )]
    Unreadable {
        /// The file.
        path: String,
        /// What is not known.
        #[source]
        source: CodecError,
    },
    /// Entries are gone from the log that no snapshot holds.
    #[error(
        "open state machine: the log was purged up to {purged}, but the snapshot ends at \
         {snapshot:?}; the disk has lost what this node had stored, so replace the node as after \
         the loss of its disk; the others go on without it"
    )]
    Gap {
        /// The last entry that is gone from the log.
        purged: u64,
        /// The last entry in the snapshot.
        snapshot: Option<u64>,
    },
}

/// The replicated state behind openraft. openraft owns the one copy.
pub struct StateMachine {
    snapshots: Arc<Snapshots>,
    last_applied: Option<LogIdOf<RaftTypes>>,
    membership: StoredMembershipOf<RaftTypes>,
    state: Arc<ClusterState>,
    steps: mpsc::UnboundedSender<Applied>,
    newest: watch::Sender<Arc<ClusterState>>,
}

impl StateMachine {
    /// Opens what `dir` holds: the state of the newest snapshot, or the empty one. Every step comes
    /// through the receiver, the restored state first if there is one.
    ///
    /// # Errors
    /// When there is a snapshot that cannot be read in full.
    pub fn open(
        dir: &Path,
    ) -> Result<(StateMachine, mpsc::UnboundedReceiver<Applied>), StateMachineError> {
        StateMachine::open_on(Arc::new(Directory::new(dir)))
    }

    /// The same on any device.
    pub(crate) fn open_on(
        device: Arc<dyn Device>,
    ) -> Result<(StateMachine, mpsc::UnboundedReceiver<Applied>), StateMachineError> {
        let file = SnapshotFile::on(device);
        let restored = file.read()?;
        let (steps, receiver) = mpsc::unbounded_channel();
        let (snapshot, state) = restored.unzip();
        let state = Arc::new(state.unwrap_or_default());
        let mut machine = StateMachine {
            snapshots: Arc::new(Snapshots { file, newest: Mutex::new(snapshot.clone()) }),
            last_applied: None,
            membership: StoredMembershipOf::<RaftTypes>::default(),
            newest: watch::Sender::new(Arc::clone(&state)),
            state: Arc::clone(&state),
            steps,
        };
        if let Some(snapshot) = snapshot {
            machine.replace(&snapshot.meta, state);
        }
        Ok((machine, receiver))
    }

    /// The newest applied state.
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.newest.subscribe()
    }

    /// Checks, before anything was applied, that snapshot and log together are everything:
    /// `last_purged` is the log's. openraft would otherwise go on from an empty state.
    ///
    /// # Errors
    /// When entries are missing between them.
    pub fn check_log(
        &self,
        last_purged: Option<&LogIdOf<RaftTypes>>,
    ) -> Result<(), StateMachineError> {
        match last_purged {
            Some(purged) if self.last_applied.as_ref() < last_purged => {
                Err(StateMachineError::Gap {
                    purged: purged.index,
                    snapshot: self.last_applied.as_ref().map(|id| id.index),
                })
            }
            _ => Ok(()),
        }
    }

    fn replace(&mut self, meta: &SnapshotMetaOf<RaftTypes>, state: Arc<ClusterState>) {
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.state = state;
        self.publish(None, None);
    }

    fn apply_entry(&mut self, entry: &EntryOf<RaftTypes>) -> io::Result<LogReply> {
        let id = entry.log_id();
        let mut applied = None;
        match &entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(membership) => {
                self.membership =
                    StoredMembershipOf::<RaftTypes>::new(Some(id), membership.clone());
            }
            EntryPayload::Normal(LogCommand(bytes)) => {
                let command =
                    decode_command(bytes).map_err(|error| unreadable(id.index, &error))?;
                let outcome = Arc::make_mut(&mut self.state).apply(id.index, &command);
                applied = Some((command, outcome));
            }
        }
        self.last_applied = Some(id);
        let reply = applied.as_ref().map(|(_, outcome)| LogReply(encode_outcome(outcome)));
        let (command, outcome) = applied.unzip();
        self.publish(command, outcome);
        Ok(reply.unwrap_or_default())
    }

    fn publish(&self, command: Option<Command>, outcome: Option<Outcome>) {
        let index = self.last_applied.as_ref().map_or(0, |id| id.index);
        self.newest.send_replace(Arc::clone(&self.state));
        // Nobody listens any more while the daemon stops; the log stands all the same.
        let _ =
            self.steps.send(Applied { index, command, outcome, state: Arc::clone(&self.state) });
    }

    fn builder(&self) -> SnapshotBuilder {
        SnapshotBuilder {
            snapshots: Arc::clone(&self.snapshots),
            meta: SnapshotMetaOf::<RaftTypes> {
                last_log_id: self.last_applied,
                last_membership: self.membership.clone(),
            },
            state: Arc::clone(&self.state),
        }
    }
}

/// Whoever proposes checks that a command can be read, so this is a newer program's command (or a
/// broken disk). Going on without it would be another state; stopping is safe and is noticed.
fn unreadable(index: u64, error: &CodecError) -> io::Error {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    tracing::error!(index, %error, cause, "log entry cannot be read; this node must stop");
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "apply log entry {index}: {error} ({cause}); it was written by a program that knows \
             more: start that version here, or a newer one"
        ),
    )
}

/// The newest snapshot, in memory and on disk.
struct Snapshots {
    file: SnapshotFile,
    newest: Mutex<Option<Snapshot>>,
}

impl Snapshots {
    fn newest(&self) -> Option<Snapshot> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes it the newest one, durably, unless one that reaches further is there already: building
    /// runs beside installing.
    async fn store(self: Arc<Self>, snapshot: Snapshot) -> io::Result<()> {
        let write = move || {
            let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
            let further = newest
                .as_ref()
                .is_some_and(|there| there.meta.last_log_id > snapshot.meta.last_log_id);
            if !further {
                self.file.write(&snapshot)?;
                *newest = Some(snapshot);
            }
            Ok(())
        };
        tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
    }
}

/// The state of one moment, to be stored.
pub struct SnapshotBuilder {
    snapshots: Arc<Snapshots>,
    meta: SnapshotMetaOf<RaftTypes>,
    state: Arc<ClusterState>,
}

impl RaftSnapshotBuilder<RaftTypes> for SnapshotBuilder {
    type SnapshotData = Cursor<Vec<u8>>;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<RaftTypes, Cursor<Vec<u8>>>> {
        let snapshot = Snapshot::of(self.meta.clone(), &self.state);
        Arc::clone(&self.snapshots).store(snapshot.clone()).await?;
        tracing::debug!(bytes = snapshot.data.len(), "snapshot stored");
        Ok(sent(snapshot))
    }
}

fn sent(snapshot: Snapshot) -> SnapshotOf<RaftTypes, Cursor<Vec<u8>>> {
    SnapshotOf::<RaftTypes, _> { meta: snapshot.meta, snapshot: Cursor::new(snapshot.data) }
}

impl RaftStateMachine<RaftTypes> for StateMachine {
    type SnapshotData = Cursor<Vec<u8>>;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(
        &mut self,
    ) -> io::Result<(Option<LogIdOf<RaftTypes>>, StoredMembershipOf<RaftTypes>)> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<RaftTypes>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let reply = self.apply_entry(&entry)?;
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.builder()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<RaftTypes>,
        snapshot: Cursor<Vec<u8>>,
    ) -> io::Result<()> {
        let data = snapshot.into_inner();
        // Read before it is stored: what cannot be read must not replace what can.
        let state = decode_state(&data)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Arc::clone(&self.snapshots).store(Snapshot { meta: meta.clone(), data }).await?;
        self.replace(meta, Arc::new(state));
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<SnapshotOf<RaftTypes, Cursor<Vec<u8>>>>> {
        Ok(self.snapshots.newest().map(sent))
    }
}
