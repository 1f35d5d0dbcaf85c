//! Everything between a primary and a stock standby, in `zero`: a commit returns when the journal has it.

use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use understudy_shipping::journal::{JournalReader, ReadOutcome};
use understudy_shipping::receiver::{ReceiverHandle, StandbyProgress};
use understudy_shipping::source::SourceHandle;
use understudy_types::{DurabilityMode, Lsn, NodeId, Timeline, WalSegment};

use crate::postgres::{Server, until};
use crate::relayed::{self, Relayed, relay};
use crate::rig::{Make, Rig, lsn};

pub(crate) struct Chain {
    pub(crate) rig: Rig,
    pub(crate) source: SourceHandle,
    pub(crate) receiver: ReceiverHandle,
    pub(crate) positions: Relayed,
    stop: CancellationToken,
    relaying: JoinHandle<()>,
}

impl Chain {
    pub(crate) async fn new(make: Make) -> Chain {
        let rig = Rig::with(make).await;
        let source = rig.source();
        rig.serve(&source).await;
        rig.permit(DurabilityMode::Zero, &[NodeId(2)], Duration::from_secs(36_000));
        let (stop, relaying, positions) = relay(rig.dir(), &rig.journal).await;
        rig.report(StandbyProgress::of_relay(positions.clone()));
        let receiver = rig.receiver();
        let chain = Chain { rig, source, receiver, positions, stop, relaying };
        chain.commits().await;
        chain
    }

    /// A commit passes.
    async fn commits(&self) {
        let committed = self.rig.commit("CREATE TABLE chain (value int)");
        let state = || self.rig.state(&self.source, &self.receiver);
        assert!(committed.within(Duration::from_secs(20)).await, "{}", state());
    }

    /// The standby that the relay reports on.
    pub(crate) async fn standby(&self) -> Server {
        relayed::standby(self.rig.dir(), "standby", &self.rig.socket_dir()).await
    }

    /// Returns when the standby has replayed what the primary has flushed now.
    pub(crate) async fn replayed(&self) -> Lsn {
        let flush_lsn = lsn(&self.rig.sql("SELECT pg_current_wal_flush_lsn()"));
        self.replayed_to(flush_lsn).await;
        flush_lsn
    }

    pub(crate) async fn replayed_to(&self, end_lsn: Lsn) {
        until("the standby has replayed it all", || {
            self.positions.borrow().is_some_and(|p| p.replay_lsn >= Some(end_lsn))
        })
        .await;
    }

    /// The bytes of the journal's first timeline, from where it begins, up to `end_lsn`.
    pub(crate) fn journal_bytes(&self, begin_lsn: Lsn, end_lsn: Lsn) -> Vec<u8> {
        let mut reader: JournalReader =
            self.rig.journal.reader(Timeline::FIRST, begin_lsn).unwrap();
        let length = usize::try_from(end_lsn.bytes_since(begin_lsn)).unwrap();
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            match reader.read(length - bytes.len()).unwrap() {
                ReadOutcome::Data { bytes: more, .. } => bytes.extend_from_slice(&more),
                other => panic!("the journal ends at {} bytes: {other:?}", bytes.len()),
            }
        }
        bytes
    }

    /// Where the journal begins.
    pub(crate) fn begin_lsn(&self) -> Lsn {
        self.rig.journal.positions().borrow().as_ref().unwrap().begin_lsn
    }

    /// The journal's file of a finished segment.
    pub(crate) fn finished(&self, segment: WalSegment) -> PathBuf {
        self.timeline_dir(segment.timeline).join(segment.file_name(self.rig.size()))
    }

    pub(crate) fn timeline_dir(&self, timeline: Timeline) -> PathBuf {
        self.rig.dir().join("journal").join(format!("{:08X}", timeline.get()))
    }

    /// Ends the relay, the receiver and the source.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.relaying.await.unwrap();
        self.rig.end(self.receiver).await;
        self.source.stop().await;
    }
}
