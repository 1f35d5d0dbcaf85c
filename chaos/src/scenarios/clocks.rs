//! F-75, F-78: wall clocks that are stepped under running daemons.

use anyhow::Result;

use super::{LEASE, RESTART_AFTER, TAKEOVER, last};
use crate::arena::SITES;
use crate::faults::clocks::Stepped;
use crate::faults::processes::Killed;
use crate::stage::Stage;

const HOUR: i64 = 3600;

/// Every daemon is ended and started again with a wall clock of its own, which stands right.
fn give_clocks(stage: &mut Stage) -> Result<()> {
    // Daemons with such a clock are of no use to another row.
    stage.spent = true;
    for site in SITES {
        stage.add(|lab| Killed::daemon(lab, site))?;
        last(RESTART_AFTER);
        stage.lab.start_with_own_wall_clock(site)?;
        stage.protected_again()?;
    }
    stage.new_round()
}

/// F-75.
pub(crate) fn wall_clocks_jump(stage: &mut Stage) -> Result<()> {
    give_clocks(stage)?;
    for seconds in [HOUR, -HOUR] {
        for site in SITES {
            let stepped = stage.inflict(|lab| Stepped::begin(lab, site, seconds))?;
            stage.commits_go_on_for(LEASE * 2)?;
            stage.heal(stepped)?;
        }
    }
    stage.protected_again()
}

/// F-78.
pub(crate) fn wall_clock_steps_during_a_promotion(stage: &mut Stage) -> Result<()> {
    give_clocks(stage)?;
    let (active, passive) = stage.sites();
    stage.inflict(|lab| Killed::sites(lab, &[active]))?;
    // Back while the lease runs out, far ahead while the candidate promotes.
    let back = stage.add(|lab| Stepped::begin(lab, passive, -HOUR))?;
    let lab = stage.lab;
    let promoting = || {
        let phase = lab.status_of(passive).map(|status| status["phase"].clone());
        phase.is_some_and(|phase| phase != "running") || lab.writable_at(passive)
    };
    lab.until("the promotion to begin", TAKEOVER, promoting)?;
    let ahead = stage.add(|lab| Stepped::begin(lab, passive, HOUR))?;
    stage.takes_over(passive, TAKEOVER)?;
    stage.heal(ahead)?;
    stage.heal(back)
}
