//! What nodes tell each other a few times a second: exchanged both ways with each call.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;
use understudy_core::node::{Event, PeerReport};
use understudy_proto::v1::peer_client::PeerClient;
use understudy_proto::{parse_promotion, v1};
use understudy_transport::refused_by_newer;
use understudy_types::{BootInstant, Clock, Lsn, NodeId, ProcessStart, SystemId, Timeline};

use crate::recovery::Superseded;

/// The reports that were heard, the own one included, with the moment they came in.
pub(crate) type Reports = BTreeMap<NodeId, (BootInstant, v1::NodeReport)>;

/// Time between two exchanges with a peer.
const INTERVAL: Duration = Duration::from_millis(250);
/// How long one exchange may take.
const PATIENCE: Duration = Duration::from_millis(750);

/// The board on which every report is pinned, the own one included.
pub(crate) struct Board {
    reports: Mutex<Reports>,
    clock: Arc<dyn Clock>,
    events: mpsc::UnboundedSender<Event>,
    hurried: watch::Sender<()>,
}

impl Board {
    pub(crate) fn new(clock: Arc<dyn Clock>, events: mpsc::UnboundedSender<Event>) -> Board {
        Board { reports: Mutex::default(), clock, events, hurried: watch::Sender::new(()) }
    }

    /// The own report is wanted elsewhere: it does not wait for its turn.
    pub(crate) fn hurry(&self) {
        self.hurried.send_replace(());
    }

    /// Every report with the moment it came in.
    pub(crate) fn all(&self) -> Reports {
        self.lock().clone()
    }

    /// A node's newest report.
    pub(crate) fn of(&self, node: NodeId) -> Option<v1::NodeReport> {
        self.lock().get(&node).map(|(_, report)| report.clone())
    }

    /// Pins the own report.
    pub(crate) fn pin_own(&self, node: NodeId, report: v1::NodeReport) {
        let now = self.clock.now();
        self.lock().insert(node, (now, report));
    }

    /// Takes a peer's report, from whichever side the exchange began.
    pub(crate) fn take(&self, node: NodeId, report: v1::NodeReport) {
        if report.node_id != node.0 {
            tracing::warn!(%node, claims = report.node_id, "report of another node ignored");
            return;
        }
        let now = self.clock.now();
        let mut reports = self.lock();
        // A late report of the same process must not replace a newer one.
        let stale = reports.get(&node).is_some_and(|(_, known)| {
            (known.process_start, known.sequence) >= (report.process_start, report.sequence)
        });
        if stale {
            return;
        }
        let read = read(&report);
        reports.insert(node, (now, report));
        drop(reports);
        // Only a daemon that ends has nobody to tell.
        let _ = self.events.send(Event::Peer(read));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Exchanges reports with one peer for as long as the daemon runs.
pub(crate) async fn exchange(
    board: Arc<Board>,
    me: NodeId,
    peer: NodeId,
    channel: Channel,
    superseded: Arc<Superseded>,
) {
    let mut client = PeerClient::new(channel);
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut hurried = board.hurried.subscribe();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            // The board outlives its readers.
            _ = hurried.changed() => {}
        }
        let Some(report) = board.of(me) else { continue };
        let request = v1::ReportRequest { report: Some(report) };
        match tokio::time::timeout(PATIENCE, client.report(request)).await {
            Ok(Ok(response)) => {
                if let Some(report) = response.into_inner().report {
                    board.take(peer, report);
                }
            }
            Ok(Err(status)) => {
                tracing::debug!(%peer, %status, "report not exchanged");
                if let Some(newer) = refused_by_newer(&status, superseded.own) {
                    superseded.heard(&format!("node {peer}"), newer);
                }
            }
            Err(_) => tracing::debug!(%peer, "report not answered in time"),
        }
    }
}

fn read(report: &v1::NodeReport) -> PeerReport {
    let data = report.system_id.zip(report.timeline.and_then(Timeline::new));
    let promotion = report.promotion.as_deref();
    PeerReport {
        node: NodeId(report.node_id),
        process: ProcessStart(report.process_start),
        epoch: report.epoch.unwrap_or_default().into(),
        data: data.map(|(system_id, timeline)| (SystemId(system_id), timeline)),
        durable_lsn: report.durable_lsn.map(Lsn),
        promotion: promotion.and_then(|text| parse_promotion("promotion", text).ok()),
        promotable: report.promotable,
        resumable: report.resumable,
        begin_lsn: Lsn(report.begin_lsn.unwrap_or(0)),
    }
}
