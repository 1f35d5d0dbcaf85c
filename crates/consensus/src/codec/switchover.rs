//! The parts of a planned switchover in the state, as messages and back, exactly.

use std::time::Duration;

use understudy_core::state::{Handover, Switchover};
use understudy_proto::v1::cluster_state as message;
use understudy_proto::{FieldError, v1};
use understudy_types::{Lsn, NodeId};

use super::{epoch, nanos};

pub(super) fn write_state(switchover: &Switchover) -> message::Switchover {
    message::Switchover {
        operation: switchover.operation,
        to: switchover.to.0,
        epoch: Some(v1::Epoch::from(switchover.epoch)),
        budget_ns: nanos(switchover.budget),
        clean_end_lsn: switchover.clean_end.map(|lsn| lsn.0),
    }
}

pub(super) fn read_state(switchover: message::Switchover) -> Result<Switchover, FieldError> {
    Ok(Switchover {
        operation: switchover.operation,
        to: NodeId(switchover.to),
        epoch: epoch("switchover.epoch", switchover.epoch)?,
        budget: Duration::from_nanos(switchover.budget_ns),
        clean_end: switchover.clean_end_lsn.map(Lsn),
    })
}

pub(super) fn write_phase(handover: &Handover) -> message::Handover {
    message::Handover {
        operation: handover.operation,
        to: handover.to.0,
        budget_ns: nanos(handover.budget),
    }
}

pub(super) fn read_phase(handover: &message::Handover) -> Handover {
    Handover {
        operation: handover.operation,
        to: NodeId(handover.to),
        budget: Duration::from_nanos(handover.budget_ns),
    }
}
