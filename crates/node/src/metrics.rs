//! What Prometheus sees: every gauge is set from the snapshot, in one place.
//!
//! What is unknown is NaN, so that it neither satisfies nor triggers a comparison; it is never zero.
//! Labels are closed sets: members' names and roles.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use understudy_types::{BootInstant, Epoch};

use crate::status::{ClusterStatus, NodeStatus, OperationView, SiteRole};
use crate::wal_files::Verified;
use understudy_shipping::source::CompressionSeen;

/// The process's metrics cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("install the metrics recorder")]
pub struct MetricsError(#[from] BuildError);

/// Installs the process's recorder; to be called once, when the daemon starts.
///
/// # Errors
/// When there is one already.
pub fn install() -> Result<PrometheusHandle, MetricsError> {
    let handle = PrometheusBuilder::new().install_recorder()?;
    describe();
    crate::limits::describe();
    crate::retention::describe();
    crate::recorder::describe();
    crate::validation::describe_metrics();
    crate::hooks::describe();
    set_verified(None);
    Ok(handle)
}

/// What the snapshot does not know about this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// Since the daemon started.
    pub uptime: Duration,
    /// Acknowledgements that may have left the gate after its deadline, since the daemon started.
    pub late_releases_count: u64,
    /// When the newest of them was over, on `CLOCK_BOOTTIME`; absent while there is none.
    pub last_late_release_at: Option<BootInstant>,
}

/// Sets the metrics; keep one for the life of the daemon.
#[derive(Debug, Default)]
pub struct StatusMetrics {
    epoch: Option<Epoch>,
    /// Operations that had ended by the last snapshot; `None` before the first.
    ended: Option<BTreeSet<u64>>,
}

impl StatusMetrics {
    /// Sets every metric from this snapshot.
    pub fn record(&mut self, status: &ClusterStatus, local: &Local) {
        self.count_failovers(status.epoch);
        self.count_operations(&status.operations);
        gauge!("understudy_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        gauge!("understudy_node_uptime_seconds").set(local.uptime.as_secs_f64());
        counter!("understudy_gate_late_releases_total").absolute(local.late_releases_count);
        let late_at = local.last_late_release_at.map(|at| at.0 as f64 / 1e9);
        gauge!("understudy_gate_last_late_release_seconds").set(or_nan(late_at));
        set_cluster(status);
    }

    /// The first grant of a cluster, and what happened before this process watched, do not count.
    fn count_failovers(&mut self, epoch: Epoch) {
        let failovers = counter!("understudy_cluster_failovers_total");
        let changed = self.epoch.is_some_and(|last| last != Epoch::NONE && epoch > last);
        failovers.increment(u64::from(changed));
        self.epoch = Some(epoch);
    }
}

impl StatusMetrics {
    /// What had ended before this process watched does not count.
    fn count_operations(&mut self, operations: &[OperationView]) {
        let running = operations.iter().filter(|operation| operation.outcome == "running").count();
        gauge!("understudy_operation_running_count").set(running as f64);
        let ended = operations.iter().filter(|operation| operation.is_over());
        let now: BTreeSet<u64> = ended.clone().map(|operation| operation.id).collect();
        for outcome in ["done", "failed", "cancelled"] {
            let new = |id| self.ended.as_ref().is_some_and(|before| !before.contains(&id));
            let of = ended.clone().filter(|o| o.outcome == outcome && new(o.id)).count();
            counter!("understudy_operation_ended_total", "outcome" => outcome).increment(of as u64);
        }
        self.ended = Some(now);
    }
}

/// Sets what the cluster is like, by this snapshot.
pub(crate) fn set_cluster(status: &ClusterStatus) {
    gauge!("understudy_cluster_incarnation").set(f64::from(status.epoch.incarnation));
    gauge!("understudy_cluster_epoch").set(status.epoch.number as f64);
    gauge!("understudy_cluster_members_count").set(status.nodes.len() as f64);
    gauge!("understudy_cluster_has_active").set(flag(status.active.is_some()));
    gauge!("understudy_cluster_paused").set(flag(status.paused_until_unix_us.is_some()));
    gauge!("understudy_cluster_pause_until_timestamp_seconds")
        .set(moment(status.paused_until_unix_us));
    let promoted = status.lineage.last().and_then(|newest| newest.at_unix_us);
    gauge!("understudy_cluster_last_promotion_timestamp_seconds").set(moment(promoted));
    gauge!("understudy_cluster_failover_ready").set(flag(status.failover.would_fail_over));
    gauge!("understudy_raft_majority").set(flag(status.majority));
    gauge!("understudy_raft_applied_index").set(status.applied_index as f64);
    gauge!("understudy_durability_generation").set(status.generation as f64);
    gauge!("understudy_durability_lifted").set(flag(status.durability_lifted));
    gauge!("understudy_durability_exposure_seconds").set(or_nan(status.exposure_seconds));
    gauge!("understudy_durability_exposure_bytes").set(bytes(status.exposure_bytes));
    gauge!("understudy_durability_rpo_ceiling_seconds").set(or_nan(status.rpo_ceiling_seconds));
    if let Some(own) = status.own() {
        set_writable(own.writable);
        gauge!("understudy_raft_leader").set(flag(own.leader));
        gauge!("understudy_lease_left_seconds").set(or_nan(own.lease_left_seconds));
        gauge!("understudy_gate_release_delay_seconds").set(or_nan(own.release_delay_seconds));
        gauge!("understudy_postgres_up").set(flag(own.postgres_running));
        for role in SiteRole::ALL {
            gauge!("understudy_node_role", "role" => role.as_str()).set(flag(own.role == role));
        }
    }
    for node in &status.nodes {
        record_node(node);
    }
}

/// Sets until when this node's certificate and the authority's are valid.
pub(crate) fn set_certificates(node: SystemTime, authority: Option<SystemTime>) {
    for (which, not_after) in [("node", Some(node)), ("authority", authority)] {
        let since = not_after.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        gauge!("understudy_certificate_expiry_timestamp_seconds", "certificate" => which)
            .set(or_nan(since.map(|since| since.as_secs_f64())));
    }
}

/// Sets whether the certificate files were refused when they were read last.
pub(crate) fn set_certificate_files_refused(refused: bool) {
    gauge!("understudy_certificate_files_refused").set(flag(refused));
}

/// Sets the one metric that must be true at the moment it is read.
pub(crate) fn set_writable(writable: bool) {
    gauge!("understudy_node_writable").set(flag(writable));
}

/// Sets how many are connected to the HTTP door, and how many were closed or turned away for want of room.
pub(crate) fn set_http((open_count, turned_away_count): (usize, u64)) {
    gauge!("understudy_http_connections_count").set(open_count as f64);
    counter!("understudy_http_connections_refused_total").absolute(turned_away_count);
}

/// Sets what the receipts that are kept say; a receipt that is removed later does not take it back.
pub(crate) fn set_lost(commits: u64, wal_bytes: u64) {
    counter!("understudy_lost_transactions_total").absolute(commits);
    counter!("understudy_lost_wal_bytes_total").absolute(wal_bytes);
}

/// Sets what the last verification of this node's WAL found, one that was not broken off.
pub(crate) fn set_wal_verified(at_unix_us: i64, verified: &Verified) {
    set_verified(Some((at_unix_us, verified)));
}

fn set_verified(last: Option<(i64, &Verified)>) {
    let of = |value: fn(i64, &Verified) -> f64| or_nan(last.map(|(at, last)| value(at, last)));
    gauge!("understudy_wal_verify_last_timestamp_seconds").set(of(|at, _| at as f64 / 1e6));
    gauge!("understudy_wal_verify_last_duration_seconds").set(of(|_, v| v.took.as_secs_f64()));
    gauge!("understudy_wal_verify_last_bytes").set(of(|_, v| v.read_bytes as f64));
    gauge!("understudy_wal_verify_last_findings_count").set(of(|_, v| v.findings_count as f64));
}

fn record_node(node: &NodeStatus) {
    let name = node.name.clone();
    gauge!("understudy_member_heard_seconds", "node" => name.clone())
        .set(or_nan(node.heard_seconds_ago));
    if node.role == SiteRole::Witness {
        return;
    }
    gauge!("understudy_member_attached", "node" => name.clone()).set(flag(node.attached));
    gauge!("understudy_replication_durable_lag_bytes", "node" => name.clone())
        .set(bytes(node.durable_lag_bytes));
    gauge!("understudy_replication_replay_lag_bytes", "node" => name.clone())
        .set(bytes(node.replay_lag_bytes));
    gauge!("understudy_replication_durable_lag_seconds", "node" => name.clone())
        .set(or_nan(node.durable_lag_seconds));
    gauge!("understudy_replication_replay_lag_seconds", "node" => name)
        .set(or_nan(node.replay_lag_seconds));
}

/// Sets what a receiver's stream last decided about compression, and what that rested on.
pub(crate) fn set_compression(node: &str, seen: Option<&CompressionSeen>) {
    let set = |name: &'static str, value: fn(&CompressionSeen) -> Option<f64>| {
        gauge!(name, "node" => node.to_owned()).set(or_nan(seen.and_then(value)));
    };
    set("understudy_wal_compression_on", |seen| Some(flag(seen.on)));
    set("understudy_wal_line_held_up_ratio", |seen| Some(seen.held_up));
    set("understudy_wal_line_bytes_per_second", |seen| Some(seen.line_bytes_per_second));
    set("understudy_wal_compression_ratio", |seen| seen.ratio);
    set("understudy_wal_compression_bytes_per_second", |seen| seen.speed_bytes_per_second);
}

fn moment(unix_us: Option<i64>) -> f64 {
    or_nan(unix_us.map(|us| us as f64 / 1e6))
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn or_nan(value: Option<f64>) -> f64 {
    value.unwrap_or(f64::NAN)
}

fn bytes(value: Option<u64>) -> f64 {
    value.map_or(f64::NAN, |bytes| bytes as f64)
}

fn describe() {
    describe_counter!(
        "understudy_cluster_failovers_total",
        "Changes of the epoch that this process has seen: failovers."
    );
    describe_counter!(
        "understudy_gate_late_releases_total",
        "Acknowledgements that may have left after the lease's deadline."
    );
    describe_counter!(
        "understudy_lost_transactions_total",
        "Commits of this node that the cluster lost, by the receipts that it keeps."
    );
    describe_counter!(
        "understudy_lost_wal_bytes_total",
        Unit::Bytes,
        "WAL of this node that the cluster lost, by the receipts that it keeps."
    );
    describe_counter!(
        "understudy_http_connections_refused_total",
        "Connections to the HTTP door that were closed or turned away for want of room."
    );
    describe_counter!(
        "understudy_operation_ended_total",
        "Orders of operators that this process has seen end, by outcome."
    );
    for (name, unit, help) in GAUGES {
        match unit {
            Some(unit) => describe_gauge!(*name, *unit, *help),
            None => describe_gauge!(*name, *help),
        }
    }
}

const SECONDS: Option<Unit> = Some(Unit::Seconds);
const BYTES: Option<Unit> = Some(Unit::Bytes);

const GAUGES: &[(&str, Option<Unit>, &str)] = &[
    ("understudy_wal_compression_on", None, "1 while WAL to that node is compressed."),
    (
        "understudy_wal_line_held_up_ratio",
        None,
        "Part of the time that the stream to that node waited for its line.",
    ),
    ("understudy_wal_line_bytes_per_second", BYTES, "What the line to that node took."),
    ("understudy_wal_compression_ratio", None, "What compression makes of a byte; NaN if untried."),
    (
        "understudy_wal_compression_bytes_per_second",
        BYTES,
        "WAL that compression takes in; NaN if untried.",
    ),
    ("understudy_build_info", None, "Always 1; the version is in the label."),
    ("understudy_node_uptime_seconds", SECONDS, "Time since this daemon started."),
    ("understudy_node_role", None, "1 for the role that this node has now, 0 for the others."),
    ("understudy_node_writable", None, "1 while clients can write here, judged at this moment."),
    (
        "understudy_cluster_incarnation",
        None,
        "Recoveries of a sole survivor in the life of the cluster.",
    ),
    ("understudy_cluster_epoch", None, "Number of the newest epoch."),
    ("understudy_cluster_members_count", None, "Members of the cluster."),
    ("understudy_cluster_has_active", None, "1 while some node holds the lease."),
    (
        "understudy_cluster_pause_until_timestamp_seconds",
        SECONDS,
        "When the pause of automatic failover ends, Unix time; NaN while there is none.",
    ),
    (
        "understudy_cluster_last_promotion_timestamp_seconds",
        SECONDS,
        "When the newest promotion was reported, Unix time; NaN if unknown.",
    ),
    ("understudy_operation_running_count", None, "Orders of operators that are under way."),
    ("understudy_http_connections_count", None, "Connections to the HTTP door."),
    (
        "understudy_certificate_expiry_timestamp_seconds",
        SECONDS,
        "Until when a certificate is valid, Unix time.",
    ),
    (
        "understudy_certificate_files_refused",
        None,
        "1 while the certificate files on disk do not do and older ones are in use.",
    ),
    ("understudy_cluster_paused", None, "1 while automatic failover is paused."),
    ("understudy_cluster_failover_ready", None, "1 while a loss of the active would be answered."),
    ("understudy_raft_leader", None, "1 at the node that leads the consensus."),
    ("understudy_raft_majority", None, "1 while this node hears a majority of the voters."),
    ("understudy_raft_applied_index", None, "Log index that has been applied here."),
    ("understudy_durability_generation", None, "Grows with every change of who is waited for."),
    ("understudy_durability_lifted", None, "1 while commits go on unprotected."),
    (
        "understudy_durability_exposure_seconds",
        SECONDS,
        "Would be lost now, as time; NaN if unknown.",
    ),
    ("understudy_durability_exposure_bytes", BYTES, "Would be lost now, as WAL; NaN if unknown."),
    ("understudy_durability_rpo_ceiling_seconds", SECONDS, "The ceiling; NaN if there is none."),
    (
        "understudy_gate_last_late_release_seconds",
        SECONDS,
        "When the newest late release was over, on the machine's boot clock; NaN if there is none.",
    ),
    ("understudy_lease_left_seconds", SECONDS, "What is left of this node's lease; NaN if none."),
    (
        "understudy_gate_release_delay_seconds",
        SECONDS,
        "How far apart commits are released, as exposure nears the ceiling; NaN unless active.",
    ),
    ("understudy_postgres_up", None, "1 while this node's PostgreSQL answers."),
    ("understudy_member_heard_seconds", SECONDS, "Since a member was heard; NaN if never."),
    ("understudy_member_attached", None, "1 while a member receives the active's stream."),
    (
        "understudy_replication_durable_lag_bytes",
        BYTES,
        "WAL not yet durable there; NaN if unknown.",
    ),
    (
        "understudy_replication_replay_lag_bytes",
        BYTES,
        "WAL not yet replayed there; NaN if unknown.",
    ),
    (
        "understudy_replication_durable_lag_seconds",
        SECONDS,
        "For how long at most its durable position has been behind; NaN if unknown.",
    ),
    (
        "understudy_replication_replay_lag_seconds",
        SECONDS,
        "For how long at most its replay has been behind; NaN if unknown.",
    ),
    (
        "understudy_wal_verify_last_timestamp_seconds",
        SECONDS,
        "When the last verification of this node's WAL ended, since 1970; NaN if none since the start.",
    ),
    ("understudy_wal_verify_last_duration_seconds", SECONDS, "How long it took; NaN if none."),
    ("understudy_wal_verify_last_bytes", BYTES, "WAL that it read; NaN if none."),
    (
        "understudy_wal_verify_last_findings_count",
        None,
        "Things that it found wrong; NaN if none has ended since the start.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{NORTH, SOUTH, Scene};

    #[test]
    fn every_metric_has_help_and_unknown_is_nan() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let mut metrics = StatusMetrics::default();
        let text = metrics::with_local_recorder(&recorder, || {
            describe();
            let status = Scene::seen_by(SOUTH).build();
            set_lost(3, 4096);
            let local = Local {
                uptime: Duration::from_secs(9),
                late_releases_count: 2,
                last_late_release_at: Some(BootInstant(1_500_000_000)),
            };
            metrics.record(&status, &local);
            set_compression(
                "south",
                Some(&CompressionSeen {
                    on: true,
                    held_up: 0.75,
                    line_bytes_per_second: 2_500_000.0,
                    ratio: Some(0.25),
                    speed_bytes_per_second: None,
                }),
            );
            set_verified(None);
            let before = recorder.handle().render();
            assert!(before.contains("understudy_wal_verify_last_findings_count NaN"), "{before}");
            let took = Duration::from_millis(2500);
            let verified = Verified { read_bytes: 4096, findings_count: 2, took };
            set_wal_verified(1_500_000, &verified);
            recorder.handle().render()
        });
        for line in [
            "understudy_wal_verify_last_timestamp_seconds 1.5",
            "understudy_wal_verify_last_duration_seconds 2.5",
            "understudy_wal_verify_last_bytes 4096",
            "understudy_wal_verify_last_findings_count 2",
            "understudy_node_role{role=\"passive\"} 1",
            "understudy_node_role{role=\"active\"} 0",
            "understudy_node_uptime_seconds 9",
            "understudy_gate_late_releases_total 2",
            "understudy_gate_last_late_release_seconds 1.5",
            "understudy_cluster_failovers_total 0",
            "understudy_lost_transactions_total 3",
            "understudy_lost_wal_bytes_total 4096",
            "understudy_replication_durable_lag_bytes{node=\"south\"} 700",
            "understudy_replication_durable_lag_bytes{node=\"north\"} NaN",
            "understudy_lease_left_seconds NaN",
            "understudy_wal_compression_on{node=\"south\"} 1",
            "understudy_wal_compression_bytes_per_second{node=\"south\"} NaN",
            "understudy_node_writable 0",
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
        }
        for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
            let name = line.split(' ').nth(2).unwrap();
            assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
        }
    }

    #[test]
    fn only_a_change_of_the_epoch_that_was_seen_counts_as_a_failover() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let mut metrics = StatusMetrics::default();
        let mut scene = Scene::seen_by(NORTH);
        let text = metrics::with_local_recorder(&recorder, || {
            let first = scene.state.epoch;
            for epoch in [Epoch::NONE, first, first, first.next(), first.next()] {
                scene.state.epoch = epoch;
                metrics.record(&scene.build(), &Local::default());
            }
            recorder.handle().render()
        });
        assert!(text.contains("understudy_cluster_failovers_total 1"), "{text}");
    }
}
