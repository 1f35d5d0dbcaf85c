//! The messages that commands and the state have in common.
//!
//! It must not accept an UNSPECIFIED or a missing part.

use std::time::Duration;

use understudy_core::state::{
    HolderProof, Mark, Measured, Member, PromoteCause, Published, ReleaseCause,
};
use understudy_core::{ClusterConfig, OnSoleSurvivor};
use understudy_proto::{FieldError, v1};
use understudy_types::{
    DurabilityMode, Exposure, Incarnation, Lsn, NodeId, NodeKind, ProcessStart, Survival,
};

use super::dial::{read_on_passive_loss, write_on_passive_loss};
use super::{epoch, nanos, required, unspecified, uuid, word};

pub(super) fn write_proof(by: &HolderProof) -> v1::HolderProof {
    v1::HolderProof { epoch: Some(by.epoch.into()), node: by.node.0, process_start: by.process.0 }
}

pub(super) fn read_proof(by: Option<v1::HolderProof>) -> Result<HolderProof, FieldError> {
    let by = required("by", by)?;
    Ok(HolderProof {
        epoch: epoch("by.epoch", by.epoch)?,
        node: NodeId(by.node),
        process: ProcessStart(by.process_start),
    })
}

pub(super) fn write_member(id: NodeId, member: &Member) -> v1::Member {
    let kind = match member.kind {
        NodeKind::Data => v1::MemberKind::Data,
        NodeKind::Witness => v1::MemberKind::Witness,
        NodeKind::Journal => v1::MemberKind::Journal,
    };
    v1::Member {
        node_id: id.0,
        name: member.name.to_string(),
        site: member.site.to_string(),
        kind: kind.into(),
        address: member.address.clone(),
        incarnation: member.incarnation.0.as_bytes().to_vec(),
    }
}

pub(super) fn read_member(member: v1::Member) -> Result<(NodeId, Member), FieldError> {
    let kind = match word("member.kind", member.kind)? {
        v1::MemberKind::Data => NodeKind::Data,
        v1::MemberKind::Witness => NodeKind::Witness,
        v1::MemberKind::Journal => NodeKind::Journal,
        v1::MemberKind::Unspecified => return Err(unspecified("member.kind")),
    };
    let bad = |field| {
        move |error: understudy_types::ParseNameError| FieldError::new(field, error.to_string())
    };
    let id = NodeId(member.node_id);
    Ok((
        id,
        Member {
            name: member.name.parse().map_err(bad("member.name"))?,
            site: member.site.parse().map_err(bad("member.site"))?,
            kind,
            address: member.address,
            incarnation: Incarnation(uuid("member.incarnation", &member.incarnation)?),
        },
    ))
}

pub(super) fn write_mode(mode: DurabilityMode) -> i32 {
    match mode {
        DurabilityMode::BestEffort => v1::DurabilityMode::BestEffort,
        DurabilityMode::Bounded => v1::DurabilityMode::Bounded,
        DurabilityMode::Zero => v1::DurabilityMode::Zero,
    }
    .into()
}

pub(super) fn read_mode(mode: i32) -> Result<DurabilityMode, FieldError> {
    match word("mode", mode)? {
        v1::DurabilityMode::BestEffort => Ok(DurabilityMode::BestEffort),
        v1::DurabilityMode::Bounded => Ok(DurabilityMode::Bounded),
        v1::DurabilityMode::Zero => Ok(DurabilityMode::Zero),
        v1::DurabilityMode::Unspecified => Err(unspecified("mode")),
    }
}

pub(super) fn write_config(config: &ClusterConfig) -> v1::ClusterConfig {
    let on_sole_survivor = match config.on_sole_survivor {
        OnSoleSurvivor::Open => v1::OnSoleSurvivor::Open,
        OnSoleSurvivor::Stall => v1::OnSoleSurvivor::Stall,
    };
    v1::ClusterConfig {
        mode: write_mode(config.mode),
        rpo_ns: nanos(config.rpo),
        on_passive_loss: write_on_passive_loss(config.on_passive_loss),
        degrade_after_ns: nanos(config.degrade_after),
        on_sole_survivor: on_sole_survivor.into(),
        promote_without_lease_wait: config.promote_without_lease_wait,
        durable_copies: config.durable_copies,
    }
}

pub(super) fn read_config(config: Option<v1::ClusterConfig>) -> Result<ClusterConfig, FieldError> {
    let config = required("config", config)?;
    let on_passive_loss = read_on_passive_loss(config.on_passive_loss)?;
    let on_sole_survivor = match word("on_sole_survivor", config.on_sole_survivor)? {
        v1::OnSoleSurvivor::Open => OnSoleSurvivor::Open,
        v1::OnSoleSurvivor::Stall => OnSoleSurvivor::Stall,
        v1::OnSoleSurvivor::Unspecified => return Err(unspecified("on_sole_survivor")),
    };
    Ok(ClusterConfig {
        mode: read_mode(config.mode)?,
        rpo: Duration::from_nanos(config.rpo_ns),
        on_passive_loss,
        degrade_after: Duration::from_nanos(config.degrade_after_ns),
        on_sole_survivor,
        promote_without_lease_wait: config.promote_without_lease_wait,
        durable_copies: config.durable_copies,
    })
}

pub(super) fn write_published(published: &Published) -> v1::Published {
    let durable =
        |(node, lsn): (&NodeId, &Lsn)| v1::published::Durable { node: node.0, lsn: lsn.0 };
    v1::Published {
        flush_lsn: published.flush_lsn.0,
        credit_lsn: published.credit.0,
        exposure_ns: nanos(published.exposure.time),
        exposure_bytes: published.exposure.lost_wal_bytes,
        durable: published.durable.iter().map(durable).collect(),
        survives: published.survives.map(|survives| v1::published::Survival {
            lsn: survives.lsn.0,
            oldest_age_ns: nanos(survives.oldest_age),
        }),
        measured: published.measured.map(|measured| v1::published::Measured {
            by: measured.by.0,
            at_unix_us: measured.at_unix_us,
        }),
    }
}

pub(super) fn read_published(published: v1::Published) -> Published {
    let durable = |d: v1::published::Durable| (NodeId(d.node), Lsn(d.lsn));
    Published {
        flush_lsn: Lsn(published.flush_lsn),
        credit: Lsn(published.credit_lsn),
        exposure: Exposure {
            time: Duration::from_nanos(published.exposure_ns),
            lost_wal_bytes: published.exposure_bytes,
        },
        durable: published.durable.into_iter().map(durable).collect(),
        survives: published.survives.map(|survives| Survival {
            lsn: Lsn(survives.lsn),
            oldest_age: Duration::from_nanos(survives.oldest_age_ns),
        }),
        measured: published
            .measured
            .map(|measured| Measured { by: NodeId(measured.by), at_unix_us: measured.at_unix_us }),
    }
}

pub(super) fn write_mark(mark: &Mark) -> v1::Mark {
    use v1::mark::{Dirty, Kind};
    let kind = match mark {
        Mark::Dirty => Kind::Dirty(Dirty {}),
        Mark::Suspect(how) => Kind::Suspect(how.clone()),
    };
    v1::Mark { kind: Some(kind) }
}

pub(super) fn read_mark(mark: Option<v1::Mark>) -> Result<Mark, FieldError> {
    use v1::mark::Kind;
    Ok(match required("mark", mark.and_then(|mark| mark.kind))? {
        Kind::Dirty(_) => Mark::Dirty,
        Kind::Suspect(how) => Mark::Suspect(how),
    })
}

pub(super) fn write_release(cause: &ReleaseCause) -> v1::ReleaseCause {
    use v1::release_cause::{Fenced, Kind};
    let kind = match cause {
        ReleaseCause::Fenced => Kind::Fenced(Fenced {}),
        ReleaseCause::CleanEnd(lsn) => Kind::CleanEndLsn(lsn.0),
    };
    v1::ReleaseCause { kind: Some(kind) }
}

pub(super) fn read_release(cause: Option<v1::ReleaseCause>) -> Result<ReleaseCause, FieldError> {
    use v1::release_cause::Kind;
    Ok(match required("release cause", cause.and_then(|cause| cause.kind))? {
        Kind::Fenced(_) => ReleaseCause::Fenced,
        Kind::CleanEndLsn(lsn) => ReleaseCause::CleanEnd(Lsn(lsn)),
    })
}

pub(super) fn write_promote_cause(cause: PromoteCause) -> i32 {
    match cause {
        PromoteCause::Bootstrap => v1::PromoteCause::Bootstrap,
        PromoteCause::LeaseOver => v1::PromoteCause::LeaseOver,
        PromoteCause::Released => v1::PromoteCause::Released,
        PromoteCause::Supersede => v1::PromoteCause::Supersede,
        PromoteCause::Sealed => v1::PromoteCause::Sealed,
    }
    .into()
}

pub(super) fn read_promote_cause(cause: i32) -> Result<PromoteCause, FieldError> {
    match word("promote cause", cause)? {
        v1::PromoteCause::Bootstrap => Ok(PromoteCause::Bootstrap),
        v1::PromoteCause::LeaseOver => Ok(PromoteCause::LeaseOver),
        v1::PromoteCause::Released => Ok(PromoteCause::Released),
        v1::PromoteCause::Supersede => Ok(PromoteCause::Supersede),
        v1::PromoteCause::Sealed => Ok(PromoteCause::Sealed),
        v1::PromoteCause::Unspecified => Err(unspecified("promote cause")),
    }
}
