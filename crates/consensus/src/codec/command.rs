//! Commands as messages and back.
//!
//! It must not judge a command: that is `apply`'s.

use std::time::Duration;

use understudy_core::state::{Command, Expect, PhaseKey};
use understudy_proto::v1::command::{self as message, Kind};
use understudy_proto::{FieldError, parse_timeline, v1};
use understudy_types::{ClusterId, Lsn, NodeId, PromotionId, SystemId};

use super::dial::{read_dial, read_limit, write_dial, write_limit};
use super::parts::{
    read_config, read_mark, read_member, read_mode, read_promote_cause, read_proof, read_published,
    read_release, write_config, write_mark, write_member, write_mode, write_promote_cause,
    write_proof, write_published, write_release,
};
use super::{epoch, nanos, orders, recovery, required, unspecified, uuid, word};

pub(super) fn write(command: &Command) -> v1::Command {
    v1::Command { kind: Some(write_kind(command)) }
}

// One flat table: as long as there are commands.
fn write_kind(command: &Command) -> Kind {
    match command {
        Command::Found { cluster, members, config, initial_active } => {
            Kind::Found(message::Found {
                cluster: cluster.0.as_bytes().to_vec(),
                members: members.iter().map(|(id, member)| write_member(*id, member)).collect(),
                config: Some(write_config(config)),
                initial_active: initial_active.0,
            })
        }
        Command::Renew { by, seq, ttl, published } => Kind::Renew(message::Renew {
            by: Some(write_proof(by)),
            seq: *seq,
            ttl_ns: nanos(*ttl),
            published: Some(write_published(published)),
        }),
        Command::Release { by, seq, cause } => Kind::Release(message::Release {
            by: Some(write_proof(by)),
            seq: *seq,
            cause: Some(write_release(cause)),
        }),
        Command::SyncAdd { by, generation, node, copies, at } => Kind::SyncAdd(message::SyncAdd {
            by: Some(write_proof(by)),
            generation: *generation,
            node: node.0,
            at_lsn: at.0,
            copies: *copies,
        }),
        Command::SyncRemove { by, generation, node, copies } => {
            Kind::SyncRemove(message::SyncRemove {
                by: Some(write_proof(by)),
                generation: *generation,
                node: node.0,
                copies: *copies,
            })
        }
        Command::SetEff { by, generation, config_version, mode, at_unix_us } => {
            Kind::SetEff(message::SetEff {
                by: Some(write_proof(by)),
                generation: *generation,
                config_version: *config_version,
                mode: write_mode(*mode),
                at_unix_us: *at_unix_us,
            })
        }
        Command::SetDial { dial, epoch, config_version, caller, reason, at_unix_us } => {
            Kind::SetDial(message::SetDial {
                dial: Some(write_dial(dial)),
                epoch: Some((*epoch).into()),
                config_version: *config_version,
                caller: caller.clone(),
                reason: reason.clone(),
                at_unix_us: *at_unix_us,
            })
        }
        Command::AcceptLoss { to, epoch, limit, caller, reason, at_unix_us } => {
            Kind::AcceptLoss(message::AcceptLoss {
                to: to.0,
                epoch: Some((*epoch).into()),
                limit: Some(write_limit(limit)),
                caller: caller.clone(),
                reason: reason.clone(),
                at_unix_us: *at_unix_us,
            })
        }
        Command::SetMark { node, mark } => {
            Kind::SetMark(message::SetMark { node: node.0, mark: Some(write_mark(mark)) })
        }
        Command::ClearMark { by, node } => {
            Kind::ClearMark(message::ClearMark { by: Some(write_proof(by)), node: node.0 })
        }
        Command::Promote {
            to,
            epoch,
            promotion,
            timeline,
            cause,
            expect,
            durable_lsn,
            system_id,
        } => Kind::Promote(message::Promote {
            to: to.0,
            epoch: Some((*epoch).into()),
            promotion: promotion.0.as_bytes().to_vec(),
            timeline: timeline.get(),
            cause: write_promote_cause(*cause),
            expect: Some(write_expect(expect)),
            durable_lsn: durable_lsn.map(|lsn| lsn.0),
            system_id: system_id.map(|id| id.0),
        }),
        Command::Promoted { epoch, node, promotion, timeline, fork_lsn, at_unix_us } => {
            Kind::Promoted(message::Promoted {
                epoch: Some((*epoch).into()),
                node: node.0,
                promotion: promotion.0.as_bytes().to_vec(),
                timeline: timeline.get(),
                fork_lsn: fork_lsn.map(|lsn| lsn.0),
                at_unix_us: *at_unix_us,
            })
        }
        Command::OrderFailover { to, epoch, caller, reason, at_unix_us } => {
            Kind::OrderFailover(message::OrderFailover {
                to: to.0,
                epoch: Some((*epoch).into()),
                caller: caller.clone(),
                reason: reason.clone(),
                at_unix_us: *at_unix_us,
            })
        }
        Command::OrderSwitchover { to, epoch, budget, caller, reason, at_unix_us } => {
            Kind::OrderSwitchover(message::OrderSwitchover {
                to: to.0,
                epoch: Some((*epoch).into()),
                budget_ns: nanos(*budget),
                caller: caller.clone(),
                reason: reason.clone(),
                at_unix_us: *at_unix_us,
            })
        }
        Command::Handover { by, operation } => {
            Kind::Handover(message::Handover { by: Some(write_proof(by)), operation: *operation })
        }
        Command::Undo { by, operation, why, at_unix_us } => Kind::Undo(message::Undo {
            by: Some(write_proof(by)),
            operation: *operation,
            why: why.clone(),
            at_unix_us: *at_unix_us,
        }),
        Command::EndOrder { operation, why, at_unix_us } => Kind::EndOrder(message::EndOrder {
            operation: *operation,
            why: why.clone(),
            at_unix_us: *at_unix_us,
        }),
        Command::Pause { until_unix_us, caller, reason, at_unix_us } => {
            Kind::Pause(message::Pause {
                until_unix_us: *until_unix_us,
                caller: caller.clone(),
                reason: reason.clone(),
                at_unix_us: *at_unix_us,
            })
        }
        Command::OrderNode { .. }
        | Command::BeginNodeOrder { .. }
        | Command::EndNodeOrder { .. }
        | Command::ScheduleSwitchover { .. }
        | Command::BeginScheduled { .. }
        | Command::CancelScheduled { .. } => {
            orders::write_command(command).expect("it writes each of these")
        }
        Command::AdmitMember { node, member } => {
            Kind::AdmitMember(message::AdmitMember { member: Some(write_member(*node, member)) })
        }
        Command::SetVoters { voters } => {
            Kind::SetVoters(message::SetVoters { voters: recovery::write_voters(voters) })
        }
        Command::Resume { caller, reason, at_unix_us } => Kind::Resume(message::Resume {
            caller: caller.clone(),
            reason: reason.clone(),
            at_unix_us: *at_unix_us,
        }),
    }
}

// The same table the other way.
pub(super) fn read(command: v1::Command) -> Result<Command, FieldError> {
    Ok(match required("kind", command.kind)? {
        Kind::Found(c) => Command::Found {
            cluster: ClusterId(uuid("cluster", &c.cluster)?),
            members: c.members.into_iter().map(read_member).collect::<Result<_, _>>()?,
            config: read_config(c.config)?,
            initial_active: NodeId(c.initial_active),
        },
        Kind::Renew(c) => Command::Renew {
            by: read_proof(c.by)?,
            seq: c.seq,
            ttl: Duration::from_nanos(c.ttl_ns),
            published: read_published(required("published", c.published)?),
        },
        Kind::Release(c) => {
            Command::Release { by: read_proof(c.by)?, seq: c.seq, cause: read_release(c.cause)? }
        }
        Kind::SyncAdd(c) => Command::SyncAdd {
            by: read_proof(c.by)?,
            generation: c.generation,
            node: NodeId(c.node),
            copies: c.copies,
            at: Lsn(c.at_lsn),
        },
        Kind::SyncRemove(c) => Command::SyncRemove {
            by: read_proof(c.by)?,
            generation: c.generation,
            node: NodeId(c.node),
            copies: c.copies,
        },
        Kind::SetEff(c) => Command::SetEff {
            by: read_proof(c.by)?,
            generation: c.generation,
            config_version: c.config_version,
            mode: read_mode(c.mode)?,
            at_unix_us: c.at_unix_us,
        },
        Kind::SetDial(c) => Command::SetDial {
            dial: read_dial(c.dial)?,
            epoch: epoch("epoch", c.epoch)?,
            config_version: c.config_version,
            caller: c.caller,
            reason: c.reason,
            at_unix_us: c.at_unix_us,
        },
        Kind::AcceptLoss(c) => Command::AcceptLoss {
            to: NodeId(c.to),
            epoch: epoch("epoch", c.epoch)?,
            limit: read_limit(required("limit", c.limit)?),
            caller: c.caller,
            reason: c.reason,
            at_unix_us: c.at_unix_us,
        },
        Kind::SetMark(c) => Command::SetMark { node: NodeId(c.node), mark: read_mark(c.mark)? },
        Kind::ClearMark(c) => Command::ClearMark { by: read_proof(c.by)?, node: NodeId(c.node) },
        Kind::Promote(c) => Command::Promote {
            to: NodeId(c.to),
            epoch: epoch("epoch", c.epoch)?,
            promotion: PromotionId(uuid("promotion", &c.promotion)?),
            timeline: parse_timeline("timeline", c.timeline)?,
            cause: read_promote_cause(c.cause)?,
            expect: read_expect(c.expect)?,
            durable_lsn: c.durable_lsn.map(Lsn),
            system_id: c.system_id.map(SystemId),
        },
        Kind::Promoted(c) => Command::Promoted {
            epoch: epoch("epoch", c.epoch)?,
            node: NodeId(c.node),
            promotion: PromotionId(uuid("promotion", &c.promotion)?),
            timeline: parse_timeline("timeline", c.timeline)?,
            fork_lsn: c.fork_lsn.map(Lsn),
            at_unix_us: c.at_unix_us,
        },
        Kind::OrderFailover(c) => Command::OrderFailover {
            to: NodeId(c.to),
            epoch: epoch("epoch", c.epoch)?,
            caller: c.caller,
            reason: c.reason,
            at_unix_us: c.at_unix_us,
        },
        Kind::OrderSwitchover(c) => Command::OrderSwitchover {
            to: NodeId(c.to),
            epoch: epoch("epoch", c.epoch)?,
            budget: Duration::from_nanos(c.budget_ns),
            caller: c.caller,
            reason: c.reason,
            at_unix_us: c.at_unix_us,
        },
        Kind::Handover(c) => Command::Handover { by: read_proof(c.by)?, operation: c.operation },
        Kind::Undo(c) => Command::Undo {
            by: read_proof(c.by)?,
            operation: c.operation,
            why: c.why,
            at_unix_us: c.at_unix_us,
        },
        Kind::EndOrder(c) => {
            Command::EndOrder { operation: c.operation, why: c.why, at_unix_us: c.at_unix_us }
        }
        Kind::Pause(c) => Command::Pause {
            until_unix_us: c.until_unix_us,
            caller: c.caller,
            reason: c.reason,
            at_unix_us: c.at_unix_us,
        },
        Kind::OrderNode(c) => orders::read_order(c)?,
        Kind::BeginNodeOrder(c) => orders::read_begin(&c),
        Kind::EndNodeOrder(c) => Command::EndNodeOrder {
            operation: c.operation,
            failed: c.failed,
            words: c.words,
            at_unix_us: c.at_unix_us,
        },
        Kind::ScheduleSwitchover(c) => orders::read_schedule(c)?,
        Kind::BeginScheduled(c) => {
            Command::BeginScheduled { operation: c.operation, at_unix_us: c.at_unix_us }
        }
        Kind::CancelScheduled(c) => Command::CancelScheduled {
            caller: c.caller,
            reason: c.reason,
            at_unix_us: c.at_unix_us,
        },
        Kind::AdmitMember(c) => {
            let (node, member) = read_member(required("member", c.member)?)?;
            Command::AdmitMember { node, member }
        }
        Kind::SetVoters(c) => Command::SetVoters { voters: recovery::read_voters(c.voters) },
        Kind::Resume(c) => {
            Command::Resume { caller: c.caller, reason: c.reason, at_unix_us: c.at_unix_us }
        }
    })
}

fn write_expect(expect: &Expect) -> v1::Expect {
    let (phase, promotion, handover) = match expect.phase {
        PhaseKey::Bootstrap => (v1::PhaseKind::Bootstrap, None, None),
        PhaseKey::Promoting(promotion) => (v1::PhaseKind::Promoting, Some(promotion), None),
        PhaseKey::Running => (v1::PhaseKind::Running, None, None),
        PhaseKey::Handover(operation) => (v1::PhaseKind::Handover, None, Some(operation)),
    };
    v1::Expect {
        epoch: Some(expect.epoch.into()),
        seq: expect.seq,
        generation: expect.generation,
        phase: phase.into(),
        promotion: promotion.map(|id| id.0.as_bytes().to_vec()),
        config_version: expect.config_version,
        handover,
    }
}

fn read_expect(expect: Option<v1::Expect>) -> Result<Expect, FieldError> {
    let expect = required("expect", expect)?;
    let phase = match word("expect.phase", expect.phase)? {
        v1::PhaseKind::Bootstrap => PhaseKey::Bootstrap,
        v1::PhaseKind::Promoting => {
            let promotion = required("expect.promotion", expect.promotion)?;
            PhaseKey::Promoting(PromotionId(uuid("expect.promotion", &promotion)?))
        }
        v1::PhaseKind::Running => PhaseKey::Running,
        v1::PhaseKind::Handover => {
            PhaseKey::Handover(required("expect.handover", expect.handover)?)
        }
        v1::PhaseKind::Unspecified => return Err(unspecified("expect.phase")),
    };
    Ok(Expect {
        epoch: epoch("expect.epoch", expect.epoch)?,
        seq: expect.seq,
        generation: expect.generation,
        phase,
        config_version: expect.config_version,
    })
}
