//! What this node says of itself, for its peers and for status. What it does not know it leaves out.

use std::sync::atomic::Ordering;

use understudy_core::node::{DataView, PostgresView};
use understudy_proto::v1;
use understudy_types::{BootInstant, NodeKind};

use crate::clock::wall_unix_us;
use crate::doors::Doors;
use crate::driver::View;

/// Makes the report of this moment.
pub(crate) fn make(doors: &Doors, view: &View, sequence: u64, now: BootInstant) -> v1::NodeReport {
    let config = &doors.config;
    let seen = doors.seen.borrow().clone();
    let hands = doors.hands.as_ref();
    let source = hands.and_then(|hands| hands.source().borrow().clone());
    let positions = source.map(|source| source.positions().borrow().clone());
    let holds = positions.is_some();
    // While nobody is known to hold anything, what would be lost is not known either.
    let measured = positions.as_ref().filter(|positions| positions.survives.is_some());
    let exposure = measured.map(|positions| positions.exposure);
    let following = doors.follower.as_ref().and_then(|follower| follower.following());
    let attached = following.is_some_and(|following| following.status.borrow().attached);
    let foreign_gate = matches!(&seen.view.postgres, PostgresView::Running(f) if f.foreign_gate);
    let running = matches!(&seen.view.postgres, PostgresView::Running(f) if f.silent_for.is_zero());
    let observation = seen.observation.clone().filter(|_| running);
    let journal = seen.view.journal.filter(|_| !holds);
    let system_id = match &seen.view.data {
        DataView::Cluster { system_id, .. } => Some(system_id.0),
        DataView::Unknown | DataView::Empty | DataView::Unusable(_) => None,
    };
    let data_timeline = view.report.data.map(|(_, timeline)| timeline.get());
    let parameters = seen.parameters.iter().filter(|_| running);
    let progress = hands.and_then(|hands| hands.progress()).unwrap_or_default();
    let deadline = view.standing.deadline.filter(|_| holds);
    let writable = doors.shared.serving.load(Ordering::Relaxed) && doors.cell.is_open(now);
    v1::NodeReport {
        node_id: config.id.0,
        sequence,
        process_start: doors.consensus.process_start().0,
        epoch: Some(view.report.epoch.into()),
        state: view.standing.word.to_owned(),
        postgres_running: running,
        in_recovery: observation.as_ref().map(|seen| seen.in_recovery),
        system_id: view.report.data.map(|(id, _)| id.0).or(system_id.filter(|_| running)),
        timeline: observation
            .as_ref()
            .and_then(|seen| seen.timeline)
            .map(|timeline| timeline.get())
            .or(data_timeline),
        durable_lsn: journal.map(|journal| journal.durable_lsn.0),
        receive_lsn: observation.as_ref().and_then(|seen| seen.receive_lsn).map(|lsn| lsn.0),
        replay_lsn: observation.as_ref().and_then(|seen| seen.replay_lsn).map(|lsn| lsn.0),
        flush_lsn: positions.as_ref().map(|positions| positions.flush_lsn.0),
        released_lsn: positions.as_ref().map(|positions| positions.released_lsn.0),
        exposure_ns: exposure.map(|exposure| nanos(exposure.time)),
        exposure_bytes: exposure.map(|exposure| exposure.lost_wal_bytes),
        attached,
        promotion: view.report.promotion.map(|promotion| promotion.to_string()),
        progress_what: progress.what.to_owned(),
        progress_done_bytes: progress.done_bytes,
        progress_total_bytes: progress.total_bytes,
        progress_bytes_per_second: progress.bytes_per_second,
        trouble: view.standing.trouble.clone().unwrap_or_default(),
        postgres_address: config
            .postgres
            .as_ref()
            .filter(|_| config.kind == NodeKind::Data)
            .map(|postgres| postgres.advertise.clone())
            .unwrap_or_default(),
        version: program_version().to_owned(),
        http_address: config.http.advertise.clone(),
        lease_left_ms: deadline.map(|deadline| nanos(deadline.since(now)) / 1_000_000),
        writable,
        promotable: view.report.promotable,
        resumable: view.report.resumable,
        warnings: warnings(doors, running, foreign_gate),
        newest_receipt: hands.and_then(|hands| hands.newest_receipt()).as_ref().map(Into::into),
        begin_lsn: Some(view.report.begin_lsn.0).filter(|begin_lsn| *begin_lsn > 0),
        server_version_num: observation.as_ref().map(|seen| seen.server_version),
        postmaster_start_unix_us: observation.as_ref().map(|seen| seen.postmaster_start_unix_us),
        replayed_commit_unix_us: observation
            .as_ref()
            .filter(|seen| seen.in_recovery)
            .and_then(|seen| seen.last_replay_age)
            .map(|age| wall_unix_us() - i64::try_from(age.as_micros()).unwrap_or(0)),
        replay_paused: observation.as_ref().is_some_and(|seen| seen.replay_paused),
        parameters: parameters
            .map(|parameter| v1::ServerParameter {
                name: parameter.name.clone(),
                running: parameter.running.clone(),
                after_restart: parameter.after_restart.clone(),
            })
            .collect(),
        release_delay_ns: positions.as_ref().map(|positions| nanos(positions.release_delay)),
    }
}

/// Read from the program's text and not folded into its code, so that a program can be given another
/// version where an upgrade is tested.
pub(crate) fn program_version() -> &'static str {
    std::hint::black_box(env!("CARGO_PKG_VERSION"))
}

/// What the gate cannot hold here; only a server that runs has limits.
fn warnings(doors: &Doors, running: bool, foreign_gate: bool) -> Vec<String> {
    let mut warnings = if running { doors.warnings.borrow().clone() } else { Vec::new() };
    warnings.extend_from_slice(&doors.room_words.borrow());
    if foreign_gate {
        warnings.push("somebody else is connected under the gate's name".to_owned());
    }
    warnings
}

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
