//! The snapshot to and from `understudy.v1.ClusterStatus`: nothing is added and nothing dropped.

use understudy_proto::{FieldError, parse_promotion, parse_timeline, v1};
use understudy_types::{Lsn, NodeKind};

use super::{
    ClusterStatus, DialView, FailoverVerdict, LineageStatus, NodeStatus, OperationView,
    ParameterView, STATUS_VERSION, ScheduledView, SiteRole, StepProgress,
};

impl From<&ClusterStatus> for v1::ClusterStatus {
    fn from(status: &ClusterStatus) -> v1::ClusterStatus {
        v1::ClusterStatus {
            cluster: status.cluster.to_string(),
            answered_by: status.answered_by.clone(),
            at_unix_us: status.at_unix_us,
            leader: status.leader.clone().unwrap_or_default(),
            majority: status.majority,
            epoch: Some(status.epoch.into()),
            active: status.active.clone().unwrap_or_default(),
            phase: status.phase.clone(),
            durability: status.durability.to_string(),
            durability_lifted: status.durability_lifted,
            generation: status.generation,
            waited_for: status.waited_for.clone(),
            durable_copies: status.durable_copies,
            eligible: status.eligible.clone(),
            rpo_ceiling_seconds: status.rpo_ceiling_seconds,
            exposure_seconds: status.exposure_seconds,
            exposure_bytes: status.exposure_bytes,
            failover: Some(v1::FailoverVerdict {
                reason: status.failover.reason.clone(),
                words: status.failover.words.clone(),
                would_fail_over: status.failover.would_fail_over,
                accept_command: status.failover.accept_command.clone().unwrap_or_default(),
            }),
            nodes: status.nodes.iter().map(Into::into).collect(),
            operations: status.operations.iter().map(Into::into).collect(),
            paused_until_unix_us: status.paused_until_unix_us,
            system_id: status.system_id.map(|id| id.to_string()).unwrap_or_default(),
            lineage: status.lineage.iter().map(Into::into).collect(),
            applied_index: status.applied_index,
            writable_since_unix_us: status.writable_since_unix_us,
            dial: status.dial.as_ref().map(|dial| v1::DialStatus {
                mode: dial.mode.to_string(),
                ceiling_seconds: dial.ceiling_seconds,
                on_passive_loss: dial.on_passive_loss.clone(),
                promote_without_lease_wait: dial.promote_without_lease_wait,
                config_version: dial.config_version,
            }),
            validation: status.validation.as_ref().map(Into::into),
            scheduled_switchover: status.scheduled_switchover.as_ref().map(|scheduled| {
                v1::ScheduledSwitchover {
                    operation: scheduled.operation,
                    to: scheduled.to.clone(),
                    at_unix_us: scheduled.at_unix_us,
                }
            }),
        }
    }
}

impl From<&NodeStatus> for v1::NodeStatus {
    fn from(node: &NodeStatus) -> v1::NodeStatus {
        let text = |lsn: Option<Lsn>| lsn.map(|lsn| lsn.to_string());
        v1::NodeStatus {
            name: node.name.clone(),
            site: node.site.clone(),
            kind: node.kind.as_str().to_owned(),
            role: node.role.as_str().to_owned(),
            state: node.state.clone(),
            heard_seconds_ago: node.heard_seconds_ago,
            postgres_running: node.postgres_running,
            timeline: node.timeline.map(|timeline| timeline.get()),
            flush_lsn: text(node.flush_lsn),
            released_lsn: text(node.released_lsn),
            durable_lsn: text(node.durable_lsn),
            replay_lsn: text(node.replay_lsn),
            durable_lag_bytes: node.durable_lag_bytes,
            replay_lag_bytes: node.replay_lag_bytes,
            durable_lag_seconds: node.durable_lag_seconds,
            replay_lag_seconds: node.replay_lag_seconds,
            attached: node.attached,
            writable: node.writable,
            lease_left_seconds: node.lease_left_seconds,
            progress: node.progress.as_ref().map(|progress| v1::Progress {
                what: progress.what.clone(),
                done_bytes: progress.done_bytes,
                total_bytes: progress.total_bytes.unwrap_or_default(),
                bytes_per_second: progress.bytes_per_second.unwrap_or_default(),
            }),
            trouble: node.trouble.clone().unwrap_or_default(),
            postgres_address: node.postgres_address.clone().unwrap_or_default(),
            http_address: node.http_address.clone().unwrap_or_default(),
            grpc_address: node.grpc_address.clone(),
            version: node.program_version.clone().unwrap_or_default(),
            mark: node.mark.clone().unwrap_or_default(),
            leader: node.leader,
            warnings: node.warnings.clone(),
            newest_receipt: node.newest_receipt.as_ref().map(Into::into),
            release_delay_seconds: node.release_delay_seconds,
            receive_lsn: text(node.receive_lsn),
            server_version_num: node.server_version_num,
            postmaster_start_unix_us: node.postmaster_start_unix_us,
            replayed_commit_unix_us: node.replayed_commit_unix_us,
            replay_paused: node.replay_paused,
            pending_restart: node.pending_restart.clone(),
            parameters: node.parameters.iter().cloned().map(Into::into).collect(),
        }
    }
}

impl From<ParameterView> for v1::ServerParameter {
    fn from(parameter: ParameterView) -> v1::ServerParameter {
        let ParameterView { name, running, after_restart } = parameter;
        v1::ServerParameter { name, running, after_restart }
    }
}

impl From<v1::ServerParameter> for ParameterView {
    fn from(parameter: v1::ServerParameter) -> ParameterView {
        let v1::ServerParameter { name, running, after_restart } = parameter;
        ParameterView { name, running, after_restart }
    }
}

impl From<&OperationView> for v1::Operation {
    fn from(operation: &OperationView) -> v1::Operation {
        v1::Operation {
            id: operation.id,
            kind: operation.kind.clone(),
            caller: operation.caller.clone(),
            reason: operation.reason.clone(),
            outcome: operation.outcome.clone(),
            detail: operation.detail.clone().unwrap_or_default(),
            started_unix_us: operation.started_unix_us,
            ended_unix_us: operation.ended_unix_us,
            what: operation.what.clone().unwrap_or_default(),
        }
    }
}

impl From<&LineageStatus> for v1::LineageStatus {
    fn from(link: &LineageStatus) -> v1::LineageStatus {
        v1::LineageStatus {
            epoch: Some(link.epoch.into()),
            node: link.node.clone(),
            timeline: link.timeline.get(),
            fork_lsn: link.fork_lsn.map(|lsn| lsn.to_string()),
            promotion: link.promotion.to_string(),
            lost_seconds_max: link.lost_seconds_max,
            lost_wal_bytes_min: link.lost_wal_bytes_min,
            at_unix_us: link.at_unix_us,
        }
    }
}

impl TryFrom<v1::ClusterStatus> for ClusterStatus {
    type Error = FieldError;

    fn try_from(status: v1::ClusterStatus) -> Result<ClusterStatus, FieldError> {
        let cluster = status.cluster.parse();
        let mode = status.durability.parse();
        let system_id = present(status.system_id).map(|text| text.parse()).transpose();
        let failover = status.failover.unwrap_or_default();
        Ok(ClusterStatus {
            version: STATUS_VERSION,
            cluster: cluster.map_err(|e| FieldError::new("cluster", format!("{e}")))?,
            answered_by: status.answered_by,
            at_unix_us: status.at_unix_us,
            leader: present(status.leader),
            majority: status.majority,
            epoch: status.epoch.unwrap_or_default().into(),
            active: present(status.active),
            phase: status.phase,
            durability: mode.map_err(|e: String| FieldError::new("durability", e))?,
            durability_lifted: status.durability_lifted,
            generation: status.generation,
            waited_for: status.waited_for,
            durable_copies: status.durable_copies,
            eligible: status.eligible,
            rpo_ceiling_seconds: status.rpo_ceiling_seconds,
            exposure_seconds: status.exposure_seconds,
            exposure_bytes: status.exposure_bytes,
            failover: FailoverVerdict {
                reason: failover.reason,
                words: failover.words,
                would_fail_over: failover.would_fail_over,
                accept_command: present(failover.accept_command),
            },
            nodes: status.nodes.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            operations: status.operations.into_iter().map(Into::into).collect(),
            paused_until_unix_us: status.paused_until_unix_us,
            system_id: system_id.map_err(|_| FieldError::new("system_id", "not a number"))?,
            lineage: status.lineage.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            applied_index: status.applied_index,
            writable_since_unix_us: status.writable_since_unix_us,
            dial: status.dial.map(TryInto::try_into).transpose()?,
            validation: status.validation.map(TryInto::try_into).transpose()?,
            scheduled_switchover: status.scheduled_switchover.map(|scheduled| ScheduledView {
                operation: scheduled.operation,
                to: scheduled.to,
                at_unix_us: scheduled.at_unix_us,
            }),
        })
    }
}

impl TryFrom<v1::DialStatus> for DialView {
    type Error = FieldError;

    fn try_from(dial: v1::DialStatus) -> Result<DialView, FieldError> {
        let mode = dial.mode.parse();
        Ok(DialView {
            mode: mode.map_err(|error: String| FieldError::new("dial.mode", error))?,
            ceiling_seconds: dial.ceiling_seconds,
            on_passive_loss: dial.on_passive_loss,
            promote_without_lease_wait: dial.promote_without_lease_wait,
            config_version: dial.config_version,
        })
    }
}

impl TryFrom<v1::NodeStatus> for NodeStatus {
    type Error = FieldError;

    fn try_from(node: v1::NodeStatus) -> Result<NodeStatus, FieldError> {
        let role = SiteRole::ALL.into_iter().find(|role| role.as_str() == node.role);
        let kind = [NodeKind::Data, NodeKind::Witness, NodeKind::Journal];
        let kind = kind.into_iter().find(|kind| kind.as_str() == node.kind);
        Ok(NodeStatus {
            name: node.name,
            site: node.site,
            kind: kind.ok_or_else(|| FieldError::new("kind", format!("{:?}", node.kind)))?,
            role: role.ok_or_else(|| FieldError::new("role", format!("{:?}", node.role)))?,
            state: node.state,
            heard_seconds_ago: node.heard_seconds_ago,
            postgres_running: node.postgres_running,
            timeline: node.timeline.map(|n| parse_timeline("timeline", n)).transpose()?,
            flush_lsn: lsn("flush_lsn", node.flush_lsn)?,
            released_lsn: lsn("released_lsn", node.released_lsn)?,
            durable_lsn: lsn("durable_lsn", node.durable_lsn)?,
            replay_lsn: lsn("replay_lsn", node.replay_lsn)?,
            durable_lag_bytes: node.durable_lag_bytes,
            replay_lag_bytes: node.replay_lag_bytes,
            durable_lag_seconds: node.durable_lag_seconds,
            replay_lag_seconds: node.replay_lag_seconds,
            attached: node.attached,
            writable: node.writable,
            lease_left_seconds: node.lease_left_seconds,
            progress: node.progress.map(|progress| StepProgress {
                what: progress.what,
                done_bytes: progress.done_bytes,
                total_bytes: Some(progress.total_bytes).filter(|total| *total != 0),
                bytes_per_second: Some(progress.bytes_per_second).filter(|rate| *rate != 0.0),
            }),
            trouble: present(node.trouble),
            postgres_address: present(node.postgres_address),
            http_address: present(node.http_address),
            grpc_address: node.grpc_address,
            program_version: present(node.version),
            mark: present(node.mark),
            leader: node.leader,
            warnings: node.warnings,
            newest_receipt: node.newest_receipt.map(TryInto::try_into).transpose()?,
            release_delay_seconds: node.release_delay_seconds,
            receive_lsn: lsn("receive_lsn", node.receive_lsn)?,
            server_version_num: node.server_version_num,
            postmaster_start_unix_us: node.postmaster_start_unix_us,
            replayed_commit_unix_us: node.replayed_commit_unix_us,
            replay_paused: node.replay_paused,
            pending_restart: node.pending_restart,
            parameters: node.parameters.into_iter().map(Into::into).collect(),
        })
    }
}

impl From<v1::Operation> for OperationView {
    fn from(operation: v1::Operation) -> OperationView {
        OperationView {
            id: operation.id,
            kind: operation.kind,
            caller: operation.caller,
            reason: operation.reason,
            what: present(operation.what),
            outcome: operation.outcome,
            detail: present(operation.detail),
            started_unix_us: operation.started_unix_us,
            ended_unix_us: operation.ended_unix_us,
        }
    }
}

impl TryFrom<v1::LineageStatus> for LineageStatus {
    type Error = FieldError;

    fn try_from(link: v1::LineageStatus) -> Result<LineageStatus, FieldError> {
        Ok(LineageStatus {
            epoch: link.epoch.unwrap_or_default().into(),
            node: link.node,
            timeline: parse_timeline("timeline", link.timeline)?,
            fork_lsn: lsn("fork_lsn", link.fork_lsn)?,
            promotion: parse_promotion("promotion", &link.promotion)?,
            lost_seconds_max: link.lost_seconds_max,
            lost_wal_bytes_min: link.lost_wal_bytes_min,
            at_unix_us: link.at_unix_us,
        })
    }
}

fn present(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn lsn(field: &'static str, text: Option<String>) -> Result<Option<Lsn>, FieldError> {
    let lsn = text.map(|text| text.parse()).transpose();
    lsn.map_err(|error| FieldError::new(field, format!("{error}")))
}
