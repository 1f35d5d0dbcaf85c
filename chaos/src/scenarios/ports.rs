//! F-26, F-27: consensus and WAL share a port, and only one of them gets through.

use anyhow::{Result, ensure};

use super::{LEASE, TAKEOVER, seconds};
use crate::arena::SITES;
use crate::faults::flows::Flows;
use crate::stage::Stage;

/// F-26.
pub(crate) fn consensus_is_blocked_and_wal_is_not(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    stage.outage_at_most(LEASE * 3);
    let cut = stage.inflict(|lab| Flows::wal_only(&lab.arena, active, passive))?;
    stage.takes_over(passive, TAKEOVER)?;
    stage.commits_go_on_at_the_new_side(seconds(2))?;
    stage.heal(cut)?;
    stage.protected_again()
}

/// F-27.
pub(crate) fn wal_is_blocked_and_consensus_is_not(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let cut = stage.inflict(|lab| Flows::without_wal(&lab.arena, active, passive))?;
    if stage.is_zero() {
        stage.commits_wait_for(LEASE * 2)?;
    } else {
        stage.commits_go_on_for(LEASE * 3)?;
    }
    stage.nobody_takes_over_for(seconds(1))?;
    for site in SITES {
        let status = stage.lab.status_of(site);
        let majority = status.is_some_and(|status| status["majority"] == true);
        ensure!(majority, "{site} hears no majority: more than the WAL was blocked");
    }
    stage.heal(cut)?;
    stage.acknowledged_again(TAKEOVER)?;
    stage.nobody_has_taken_over()
}
