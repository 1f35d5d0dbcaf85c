//! F-11, F-14 to F-16, F-83: whole sites that are lost, alone and together.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::{LEASE, TAKEOVER, seconds};
use crate::arena::SITES;
use crate::faults::processes::Killed;
use crate::lab::WITNESS;
use crate::stage::{RETURN_TIMEOUT, Stage};

/// F-11: its configuration is broken, so that no restart helps.
pub(crate) fn active_s_server_cannot_start(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let file = stage.lab.pgdata(active).join("postgresql.auto.conf");
    let before = fs::read(&file).context("read the server's own settings")?;
    fs::write(&file, "this is = no 'setting\n").context("break the server's own settings")?;
    let killed = stage.inflict(|lab| Killed::postmaster(lab, active));
    let taken = killed.and_then(|_| stage.takes_over(passive, TAKEOVER * 2));
    fs::write(&file, before).context("mend the server's own settings")?;
    taken
}

/// F-14.
pub(crate) fn witness_is_killed(stage: &mut Stage) -> Result<()> {
    stage.inflict(|lab| Killed::daemon(lab, WITNESS))?;
    stage.outage_at_most(LEASE / 2);
    stage.commits_go_on_for(LEASE * 3)
}

/// F-15.
pub(crate) fn active_and_witness_are_killed(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    stage.inflict(|lab| Killed::sites(lab, &[active, WITNESS]))?;
    stage.nobody_takes_over_for(LEASE * 4)?;
    ensure!(!stage.lab.writable_at(passive), "{passive} is writable without a majority");
    stage.lab.start(WITNESS)?;
    stage.takes_over(passive, TAKEOVER)
}

/// F-16.
pub(crate) fn everything_is_killed(stage: &mut Stage) -> Result<()> {
    stage.inflict(|lab| Killed::sites(lab, &SITES))?;
    for site in SITES {
        stage.lab.start(site)?;
    }
    stage.somebody_serves(seconds(90))
}

/// F-83.
pub(crate) fn there_and_back_again(stage: &mut Stage) -> Result<()> {
    for _ in 0..2 {
        stage.new_round()?;
        let (active, passive) = stage.sites();
        stage.inflict(|lab| Killed::sites(lab, &[active]))?;
        stage.takes_over(passive, TAKEOVER)?;
        stage.lab.start(active)?;
        stage.lab.until("the lost site to be able to take over", RETURN_TIMEOUT, || {
            stage.lab.protected_under(passive)
        })?;
        stage.acknowledged_again(TAKEOVER)?;
    }
    Ok(())
}
