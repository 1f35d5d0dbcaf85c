//! What the gate, the receivers' sessions and the handle of one source share.
//!
//! Locks here are held for a few assignments, never across an await; that of the gate also over the one
//! write that does not block.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use understudy_types::{Clock, Epoch, Exposure, Lsn, NodeId, ReceiverPosition, SourcePositions};

use super::SourceOptions;
use super::release::{Known, Why};
use crate::compression::CompressionSeen;
use crate::permit_cell::PermitCell;

/// What heartbeats tell receivers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) flush_lsn: Lsn,
    pub(super) released_lsn: Lsn,
}

pub(super) struct Shared {
    pub(super) options: SourceOptions,
    pub(super) cell: Arc<PermitCell>,
    pub(super) clock: Arc<dyn Clock>,
    /// Wakes the gate: a receiver came or went, or brought news that only the gate can follow.
    pub(super) wake_gate: Notify,
    pub(super) positions: watch::Sender<SourcePositions>,
    pub(super) progress: watch::Sender<Progress>,
    /// A receiver that knows a newer epoch than this source: reason enough to fence.
    pub(super) newer_epoch: watch::Sender<Option<Epoch>>,
    /// Everything ends.
    pub(super) stopping: CancellationToken,
    /// The gate's connection ends and does not come back.
    pub(super) gate_dropped: CancellationToken,
    /// The gate's connection is closed for good.
    pub(super) gate_gone: CancellationToken,
    /// What the gate knows; locked before `state` and the permit, never while one of them is.
    pub(super) gate: Mutex<Known>,
    state: Mutex<State>,
    sessions: Mutex<Sessions>,
}

#[derive(Default)]
struct State {
    gate_backend_pid: Option<u32>,
    gate_silent_for: Duration,
    receivers: BTreeMap<NodeId, ReceiverPosition>,
    /// What the streams last decided about compression.
    compression: BTreeMap<NodeId, CompressionSeen>,
    /// Something happened that must be published without waiting for the next round.
    edge: bool,
}

#[derive(Default)]
struct Sessions {
    last_number: u64,
    of_node: BTreeMap<NodeId, Session>,
}

/// One receiver's stream; at most one a node.
#[derive(Clone)]
pub(super) struct Session {
    number: u64,
    pub(super) cancel: CancellationToken,
    done: CancellationToken,
}

impl Shared {
    pub(super) fn new(
        options: SourceOptions,
        cell: Arc<PermitCell>,
        clock: Arc<dyn Clock>,
    ) -> Shared {
        let stopping = CancellationToken::new();
        let nothing = SourcePositions {
            read_at: clock.now(),
            flush_lsn: Lsn::ZERO,
            released_lsn: Lsn::ZERO,
            permit: None,
            exposure: Exposure::NONE,
            survives: None,
            release_delay: Duration::ZERO,
            gate_connected: false,
            receivers: Vec::new(),
        };
        Shared {
            gate: Mutex::new(Known::new(options.assumed_since)),
            options,
            cell,
            clock,
            wake_gate: Notify::new(),
            positions: watch::Sender::new(nothing),
            progress: watch::Sender::new(Progress::default()),
            newer_epoch: watch::Sender::new(None),
            gate_dropped: stopping.child_token(),
            gate_gone: CancellationToken::new(),
            stopping,
            state: Mutex::default(),
            sessions: Mutex::default(),
        }
    }

    pub(super) fn receivers(&self) -> Vec<ReceiverPosition> {
        self.state().receivers.values().copied().collect()
    }

    pub(super) fn gate_backend_pid(&self) -> Option<u32> {
        self.state().gate_backend_pid
    }

    pub(super) fn set_gate_backend_pid(&self, pid: Option<u32>) {
        let mut state = self.state();
        state.gate_backend_pid = pid;
        state.gate_silent_for = Duration::ZERO;
        state.edge = true;
    }

    /// How long the gate's walsender has owed an answer.
    pub(super) fn gate_silent_for(&self) -> Duration {
        self.state().gate_silent_for
    }

    pub(super) fn set_gate_silent_for(&self, duration: Duration) {
        self.state().gate_silent_for = duration;
    }

    pub(super) fn compression_seen(&self, node: NodeId, seen: CompressionSeen) {
        let before = self.state().compression.insert(node, seen);
        if before.is_some_and(|before| before.on) != seen.on {
            let CompressionSeen { on, held_up, line_bytes_per_second, ratio, .. } = seen;
            tracing::info!(%node, on, held_up, line_bytes_per_second, ?ratio, "compression of WAL");
        }
    }

    pub(super) fn compression(&self) -> BTreeMap<NodeId, CompressionSeen> {
        self.state().compression.clone()
    }

    /// Takes the mark that something has to be published at once.
    pub(super) fn take_edge(&self) -> bool {
        std::mem::take(&mut self.state().edge)
    }

    /// A receiver's acknowledgement, which may release commits at once; attached means that it has
    /// acknowledged in this session.
    pub(super) fn acknowledged(&self, position: ReceiverPosition) {
        let mut state = self.state();
        let before = state.receivers.insert(position.node, position);
        let edge = before.is_none_or(|before| before.attached != position.attached);
        state.edge |= edge;
        drop(state);
        let for_the_gate = self.judge(Why::News);
        self.tell_progress();
        if edge || for_the_gate {
            self.wake_gate.notify_one();
        }
    }

    /// Begins a session of `node`; one that exists is told to end, and waited for by its `done`.
    pub(super) fn enter(&self, node: NodeId) -> (Session, Option<Session>) {
        let mut sessions = self.sessions();
        sessions.last_number += 1;
        let session = Session {
            number: sessions.last_number,
            cancel: self.stopping.child_token(),
            done: CancellationToken::new(),
        };
        let replaced = sessions.of_node.insert(node, session.clone());
        if let Some(old) = &replaced {
            old.cancel.cancel();
        }
        (session, replaced)
    }

    /// Ends a session of `node`. Its position stays known, as that of a detached receiver.
    pub(super) fn leave(&self, node: NodeId, session: &Session) {
        let mut sessions = self.sessions();
        // Whoever was replaced must not detach its successor.
        if sessions.of_node.get(&node).is_some_and(|current| current.number == session.number) {
            sessions.of_node.remove(&node);
        }
        drop(sessions);
        let mut state = self.state();
        if let Some(position) = state.receivers.get_mut(&node) {
            position.attached = false;
            state.edge = true;
        }
        state.compression.remove(&node);
        drop(state);
        session.done.cancel();
        self.wake_gate.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain assignments under the lock: a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Waits until the session is over and its slot is let go.
    pub(super) async fn done(&self) {
        self.done.cancelled().await;
    }
}
