//! The dial's values as messages and back: what is wanted and was wanted before, what may be lost, what is
//! accepted.
//!
//! It must not judge them: that is `apply`'s.

use std::time::Duration;

use understudy_core::OnPassiveLoss;
use understudy_core::state::{ConfigChange, Dial, LossBound, LossLimit};
use understudy_proto::v1::cluster_state as message;
use understudy_proto::{FieldError, v1};

use super::parts::{read_mode, write_mode};
use super::{nanos, required, unspecified, word};

pub(super) fn write_on_passive_loss(policy: OnPassiveLoss) -> i32 {
    match policy {
        OnPassiveLoss::Stall => v1::OnPassiveLoss::Stall,
        OnPassiveLoss::Degrade => v1::OnPassiveLoss::Degrade,
    }
    .into()
}

pub(super) fn read_on_passive_loss(policy: i32) -> Result<OnPassiveLoss, FieldError> {
    match word("on_passive_loss", policy)? {
        v1::OnPassiveLoss::Stall => Ok(OnPassiveLoss::Stall),
        v1::OnPassiveLoss::Degrade => Ok(OnPassiveLoss::Degrade),
        v1::OnPassiveLoss::Unspecified => Err(unspecified("on_passive_loss")),
    }
}

pub(super) fn write_dial(dial: &Dial) -> v1::Dial {
    v1::Dial {
        mode: write_mode(dial.mode),
        rpo_ns: nanos(dial.rpo),
        on_passive_loss: write_on_passive_loss(dial.on_passive_loss),
        promote_without_lease_wait: dial.promote_without_lease_wait,
    }
}

pub(super) fn read_dial(dial: Option<v1::Dial>) -> Result<Dial, FieldError> {
    let dial = required("dial", dial)?;
    Ok(Dial {
        mode: read_mode(dial.mode)?,
        rpo: Duration::from_nanos(dial.rpo_ns),
        on_passive_loss: read_on_passive_loss(dial.on_passive_loss)?,
        promote_without_lease_wait: dial.promote_without_lease_wait,
    })
}

pub(super) fn write_change(version: u64, change: &ConfigChange) -> message::ConfigChange {
    message::ConfigChange {
        version,
        operation: change.operation,
        caller: change.caller.clone(),
        reason: change.reason.clone(),
        at_unix_us: change.at_unix_us,
        before: Some(write_dial(&change.before)),
        after: Some(write_dial(&change.after)),
    }
}

pub(super) fn read_change(
    change: message::ConfigChange,
) -> Result<(u64, ConfigChange), FieldError> {
    let version = change.version;
    let change = ConfigChange {
        operation: change.operation,
        caller: change.caller,
        reason: change.reason,
        at_unix_us: change.at_unix_us,
        before: read_dial(change.before)?,
        after: read_dial(change.after)?,
    };
    Ok((version, change))
}

pub(super) fn write_loss(loss: &LossBound) -> v1::LossBound {
    v1::LossBound { time_max_ns: loss.time_max.map(nanos), wal_bytes_min: loss.wal_bytes_min }
}

pub(super) fn read_loss(loss: Option<v1::LossBound>) -> Result<LossBound, FieldError> {
    let loss = required("loss", loss)?;
    let time_max = loss.time_max_ns.map(Duration::from_nanos);
    Ok(LossBound { time_max, wal_bytes_min: loss.wal_bytes_min })
}

pub(super) fn write_limit(limit: &LossLimit) -> v1::LossLimit {
    v1::LossLimit { age_max_ns: limit.age_max.map(nanos), bytes_max: limit.bytes_max }
}

pub(super) fn read_limit(limit: v1::LossLimit) -> LossLimit {
    let age_max = limit.age_max_ns.map(Duration::from_nanos);
    LossLimit { age_max, bytes_max: limit.bytes_max }
}
