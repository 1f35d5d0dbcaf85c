//! Outcomes as messages and back, rejections with every value that they show.
//!
//! It must not word anything: the sentences are `Rejection`'s own.

use std::time::Duration;

use understudy_core::state::{Ineligible, Outcome, Rejection};
use understudy_proto::v1::outcome::{Accepted, Kind};
use understudy_proto::v1::rejection::Kind as Why;
use understudy_proto::{FieldError, parse_timeline, v1};
use understudy_types::{NodeId, ProcessStart};

use super::dial::{read_limit, read_loss, write_limit, write_loss};
use super::parts::{read_mode, write_mode};
use super::{epoch, nanos, required, unspecified, word};

pub(super) fn write(outcome: &Outcome) -> v1::Outcome {
    let kind = match outcome {
        Outcome::Accepted { operation } => Kind::Accepted(Accepted { operation: *operation }),
        Outcome::Rejected(rejection) => Kind::Rejected(write_rejection(rejection)),
    };
    v1::Outcome { kind: Some(kind) }
}

pub(super) fn read(outcome: v1::Outcome) -> Result<Outcome, FieldError> {
    Ok(match required("kind", outcome.kind)? {
        Kind::Accepted(accepted) => Outcome::Accepted { operation: accepted.operation },
        Kind::Rejected(rejection) => Outcome::Rejected(read_rejection(rejection)?),
    })
}

fn write_rejection(rejection: &Rejection) -> v1::Rejection {
    let mut message = v1::Rejection::default();
    let kind = match rejection {
        Rejection::AlreadyFounded => Why::AlreadyFounded,
        Rejection::NotFounded => Why::NotFounded,
        Rejection::NotADataNode(node) => {
            message.node = node.0;
            Why::NotADataNode
        }
        Rejection::BadFounding(text) => {
            message.text.clone_from(text);
            Why::BadFounding
        }
        Rejection::Epoch { expected, current } => {
            message.expected_epoch = Some((*expected).into());
            message.current_epoch = Some((*current).into());
            Why::Epoch
        }
        Rejection::Phase => Why::Phase,
        Rejection::NotHolder(node) => {
            message.node = node.0;
            Why::NotHolder
        }
        Rejection::Process { sent, current } => {
            (message.expected, message.current) = (sent.0, current.0);
            Why::Process
        }
        Rejection::Released => Why::Released,
        Rejection::Seq { expected, current } => {
            (message.expected, message.current) = (*expected, *current);
            Why::Seq
        }
        Rejection::Generation { expected, current } => {
            (message.expected, message.current) = (*expected, *current);
            Why::Generation
        }
        Rejection::ConfigVersion { expected, current } => {
            (message.expected, message.current) = (*expected, *current);
            Why::ConfigVersion
        }
        Rejection::NotEligible { node, why } => {
            message.node = node.0;
            message.why = Some(write_ineligible(why));
            Why::NotEligible
        }
        Rejection::OtherPromotion => Why::OtherPromotion,
        Rejection::BadTimeline(timeline) => {
            message.timeline = timeline.get();
            Why::BadTimeline
        }
        Rejection::Busy(operation) => {
            message.operation = *operation;
            Why::Busy
        }
        Rejection::NoOperation => Why::NoOperation,
        Rejection::NoChange => Why::NoChange,
        Rejection::BadDial(text) => {
            message.text.clone_from(text);
            Why::BadDial
        }
        Rejection::BadMember(text) => {
            message.text.clone_from(text);
            Why::BadMember
        }
        Rejection::IsActive(node) => {
            message.node = node.0;
            Why::IsActive
        }
        Rejection::WouldStall(node) => {
            message.node = node.0;
            Why::WouldStall
        }
        Rejection::Mode(mode) => {
            message.mode = write_mode(*mode);
            Why::Mode
        }
    };
    message.set_kind(kind);
    message
}

fn read_rejection(message: v1::Rejection) -> Result<Rejection, FieldError> {
    let (expected, current) = (message.expected, message.current);
    Ok(match word("rejection.kind", message.kind)? {
        Why::Unspecified => return Err(unspecified("rejection.kind")),
        Why::AlreadyFounded => Rejection::AlreadyFounded,
        Why::NotFounded => Rejection::NotFounded,
        Why::NotADataNode => Rejection::NotADataNode(NodeId(message.node)),
        Why::BadFounding => Rejection::BadFounding(message.text),
        Why::Epoch => Rejection::Epoch {
            expected: epoch("rejection.expected_epoch", message.expected_epoch)?,
            current: epoch("rejection.current_epoch", message.current_epoch)?,
        },
        Why::Phase => Rejection::Phase,
        Why::NotHolder => Rejection::NotHolder(NodeId(message.node)),
        Why::Process => {
            Rejection::Process { sent: ProcessStart(expected), current: ProcessStart(current) }
        }
        Why::Released => Rejection::Released,
        Why::Seq => Rejection::Seq { expected, current },
        Why::Generation => Rejection::Generation { expected, current },
        Why::ConfigVersion => Rejection::ConfigVersion { expected, current },
        Why::NotEligible => Rejection::NotEligible {
            node: NodeId(message.node),
            why: read_ineligible(required("rejection.why", message.why)?)?,
        },
        Why::OtherPromotion => Rejection::OtherPromotion,
        Why::BadTimeline => {
            Rejection::BadTimeline(parse_timeline("rejection.timeline", message.timeline)?)
        }
        Why::Busy => Rejection::Busy(message.operation),
        Why::NoOperation => Rejection::NoOperation,
        Why::NoChange => Rejection::NoChange,
        Why::BadDial => Rejection::BadDial(message.text),
        Why::BadMember => Rejection::BadMember(message.text),
        Why::IsActive => Rejection::IsActive(NodeId(message.node)),
        Why::WouldStall => Rejection::WouldStall(NodeId(message.node)),
        Why::Mode => Rejection::Mode(read_mode(message.mode)?),
    })
}

fn write_ineligible(why: &Ineligible) -> v1::Ineligible {
    use v1::ineligible::Kind;
    let mut message = v1::Ineligible::default();
    let kind = match why {
        Ineligible::Marked(text) => {
            message.text.clone_from(text);
            Kind::Marked
        }
        Ineligible::NotInSet => Kind::NotInSet,
        Ineligible::Lifted => Kind::Lifted,
        Ineligible::OverCeiling { exposure, ceiling } => {
            (message.exposure_ns, message.ceiling_ns) = (nanos(*exposure), nanos(*ceiling));
            Kind::OverCeiling
        }
        Ineligible::LostWal => Kind::LostWal,
        Ineligible::IsHolder => Kind::IsHolder,
        Ineligible::NotReleased => Kind::NotReleased,
        Ineligible::OverLimit(known) => {
            message.known = Some(write_loss(known));
            Kind::OverLimit
        }
        Ineligible::LossNotAccepted { known, accepted } => {
            message.known = Some(write_loss(known));
            message.accepted = Some(write_limit(accepted));
            Kind::LossNotAccepted
        }
        Ineligible::NotByPolicy => Kind::NotByPolicy,
    };
    message.set_kind(kind);
    message
}

fn read_ineligible(message: v1::Ineligible) -> Result<Ineligible, FieldError> {
    use v1::ineligible::Kind;
    Ok(match word("ineligible.kind", message.kind)? {
        Kind::Unspecified => return Err(unspecified("ineligible.kind")),
        Kind::Marked => Ineligible::Marked(message.text),
        Kind::NotInSet => Ineligible::NotInSet,
        Kind::Lifted => Ineligible::Lifted,
        Kind::OverCeiling => Ineligible::OverCeiling {
            exposure: Duration::from_nanos(message.exposure_ns),
            ceiling: Duration::from_nanos(message.ceiling_ns),
        },
        Kind::LostWal => Ineligible::LostWal,
        Kind::IsHolder => Ineligible::IsHolder,
        Kind::NotReleased => Ineligible::NotReleased,
        Kind::OverLimit => Ineligible::OverLimit(read_loss(message.known)?),
        Kind::LossNotAccepted => Ineligible::LossNotAccepted {
            known: read_loss(message.known)?,
            accepted: read_limit(required("ineligible.accepted", message.accepted)?),
        },
        Kind::NotByPolicy => Ineligible::NotByPolicy,
    })
}
