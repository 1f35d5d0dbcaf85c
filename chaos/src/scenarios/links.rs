//! F-19 to F-37: links that are cut, lossy, slow or hostile.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{LEASE, TAKEOVER, last, seconds};
use crate::faults::Fault;
use crate::faults::links::{Links, Narrow};
use crate::faults::wire::{Habits, Wire};
use crate::lab::{Lab, WITNESS};
use crate::stage::Stage;

/// F-19.
pub(crate) fn active_is_isolated(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    stage.outage_at_most(LEASE * 3);
    let cut = stage.inflict(|lab| Links::isolate(&lab.arena, active))?;
    stage.takes_over(passive, TAKEOVER)?;
    stage.commits_go_on_at_the_new_side(seconds(3))?;
    stage.heal(cut)?;
    stage.protected_again()
}

/// What every row expects in which only the passive's copy is out of reach: nobody takes over, and the
/// dial decides whether commits wait.
fn passive_is_away<'a, F: Fault + 'a>(
    stage: &mut Stage<'a>,
    begin: impl FnOnce(&'a Lab) -> Result<F>,
) -> Result<()> {
    let away = stage.inflict(begin)?;
    if stage.is_zero() {
        stage.commits_wait_for(LEASE * 2)?;
    } else {
        stage.commits_go_on_for(LEASE * 3)?;
    }
    stage.nobody_takes_over_for(seconds(1))?;
    stage.heal(away)?;
    stage.acknowledged_again(TAKEOVER)?;
    stage.nobody_has_taken_over()
}

/// F-20.
pub(crate) fn passive_is_isolated(stage: &mut Stage) -> Result<()> {
    let (_, passive) = stage.sites();
    passive_is_away(stage, |lab| Links::isolate(&lab.arena, passive))
}

/// F-21.
pub(crate) fn sites_do_not_hear_each_other(stage: &mut Stage) -> Result<()> {
    let (_, passive) = stage.sites();
    stage.let_lead(|leader| leader != passive)?;
    let (active, passive) = stage.sites();
    passive_is_away(stage, |lab| Links::cut(&lab.arena, active, passive))
}

/// F-22. The active cannot reach the leader: a failover is right, two are not.
pub(crate) fn sites_do_not_hear_each_other_and_the_passive_leads(stage: &mut Stage) -> Result<()> {
    let (_, passive) = stage.sites();
    stage.let_lead(|leader| leader == passive)?;
    let (active, passive) = stage.sites();
    let before = stage.lab.epoch().unwrap_or_default();
    let cut = stage.inflict(|lab| Links::cut(&lab.arena, active, passive))?;
    last(LEASE * 4);
    let during = stage.lab.epoch().unwrap_or_default();
    ensure!(during <= before + 1, "{} failovers while one link was cut", during - before);
    stage.note(format!("failovers: {}", during - before));
    stage.heal(cut)?;
    stage.protected_again()
}

/// F-23.
pub(crate) fn passive_does_not_hear_the_active(stage: &mut Stage) -> Result<()> {
    let (_, passive) = stage.sites();
    stage.let_lead(|leader| leader != passive)?;
    let (active, passive) = stage.sites();
    passive_is_away(stage, |lab| Links::cut_one_way(&lab.arena, active, passive))
}

/// F-24.
pub(crate) fn active_does_not_hear_the_passive(stage: &mut Stage) -> Result<()> {
    let (_, passive) = stage.sites();
    stage.let_lead(|leader| leader != passive)?;
    let (active, passive) = stage.sites();
    passive_is_away(stage, |lab| Links::cut_one_way(&lab.arena, passive, active))
}

/// F-25. It is hardest where the witness leads: the active has to renew its lease all the same.
pub(crate) fn active_and_witness_do_not_hear_each_other(stage: &mut Stage) -> Result<()> {
    stage.let_lead(|leader| leader == WITNESS)?;
    let (active, _) = stage.sites();
    stage.inflict(|lab| Links::cut(&lab.arena, active, WITNESS))?;
    stage.commits_go_on_for(LEASE * 3)
}

/// F-28.
pub(crate) fn clients_do_not_reach_the_active(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    let hidden = stage.inflict(|lab| Links::hide_from_clients(&lab.arena, active))?;
    stage.nobody_takes_over_for(LEASE * 3)?;
    stage.heal(hidden)?;
    stage.acknowledged_again(TAKEOVER)?;
    stage.nobody_has_taken_over()
}

/// F-29.
pub(crate) fn active_s_link_flaps(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    let before = stage.lab.epoch().unwrap_or_default();
    let first = stage.inflict(|lab| Links::isolate(&lab.arena, active))?;
    stage.heal(first)?;
    let (begun, mut cuts, mut lost) = (Instant::now(), 1, 0);
    for period in [100, 300, 700, 1500, 3000].into_iter().cycle().map(Duration::from_millis) {
        if begun.elapsed() > seconds(30) {
            break;
        }
        let mut cut = Links::isolate(&stage.lab.arena, active)?;
        last(period);
        cut.heal()?;
        (cuts, lost) = (cuts + 1, lost + cut.packets_hit()?);
        last(period);
    }
    stage.note(format!("{cuts} cuts, {lost} packets lost"));
    let after = stage.lab.epoch().unwrap_or_default();
    ensure!(after <= before + 1, "{} failovers in half a minute", after - before);
    Ok(())
}

/// F-30.
pub(crate) fn packets_are_lost(stage: &mut Stage) -> Result<()> {
    let lossy = stage.inflict(|lab| Links::lossy(&lab.arena, 30))?;
    stage.nobody_takes_over_for(LEASE * 5)?;
    stage.acknowledged_again(TAKEOVER)?;
    stage.heal(lossy)
}

/// F-31.
pub(crate) fn active_s_link_is_slow(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    for delay in [10, 100, 250].map(Duration::from_millis) {
        let habits = Habits { delay, jitter: delay / 5, ..Habits::default() };
        let slow = stage.inflict(|lab| Wire::begin(&lab.arena, active, habits))?;
        stage.nobody_takes_over_for(LEASE * 2)?;
        stage.acknowledged_again(TAKEOVER)?;
        stage.heal(slow)?;
        stage.acknowledged_again(TAKEOVER)?;
    }
    stage.nobody_has_taken_over()
}

/// F-32.
pub(crate) fn active_s_link_reorders_and_repeats(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    let habits = Habits {
        delay: Duration::from_millis(2),
        jitter: Duration::from_millis(6),
        straggler_every: 50,
        straggle: Duration::from_millis(40),
        twice_every: 20,
        flip_every: 200,
        forge_every: 0,
    };
    let odd = stage.inflict(|lab| Wire::begin(&lab.arena, active, habits))?;
    stage.commits_go_on_for(LEASE * 4)?;
    stage.heal(odd)
}

/// F-33.
pub(crate) fn active_s_link_is_narrow(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let narrow = stage.inflict(|lab| Narrow::begin(&lab.arena, active, passive, "256kbit"))?;
    stage.nobody_takes_over_for(LEASE * 4)?;
    stage.acknowledged_again(TAKEOVER)?;
    stage.heal(narrow)?;
    stage.nobody_has_taken_over()
}

/// F-34.
pub(crate) fn large_packets_vanish(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    passive_is_away(stage, |lab| Links::lose_large(&lab.arena, active, passive, 600))
}

/// F-35.
pub(crate) fn connections_are_reset(stage: &mut Stage) -> Result<()> {
    let before = stage.lab.epoch().unwrap_or_default();
    let first = stage.inflict(|lab| Links::reset_all(&lab.arena))?;
    stage.heal(first)?;
    for _ in 0..10 {
        let mut storm = Links::reset_all(&stage.lab.arena)?;
        last(Duration::from_millis(150));
        storm.heal()?;
        last(Duration::from_millis(850));
    }
    stage.somebody_serves(TAKEOVER)?;
    let after = stage.lab.epoch().unwrap_or_default();
    ensure!(after <= before + 1, "{} failovers during the storm", after - before);
    Ok(())
}

/// F-37.
pub(crate) fn links_are_cut_one_by_one(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let first = stage.inflict(|lab| Links::cut(&lab.arena, active, passive))?;
    last(seconds(1));
    let second = stage.add(|lab| Links::cut(&lab.arena, active, WITNESS))?;
    last(seconds(1));
    let third = stage.add(|lab| Links::cut(&lab.arena, passive, WITNESS))?;
    last(LEASE * 2);
    for cut in [second, first, third] {
        stage.heal(cut)?;
        last(seconds(1));
    }
    stage.somebody_serves(TAKEOVER)
}
