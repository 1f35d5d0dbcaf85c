//! F-53: disks that have no room.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use super::{LEASE, TAKEOVER, last, seconds};
use crate::command::said;
use crate::faults::acts::Act;
use crate::faults::processes::Killed;
use crate::stage::{RETURN_TIMEOUT, Stage};

/// F-53. While its site is down, the passive's journal is moved onto a small file system of its own,
/// which is filled later.
pub(crate) fn passive_s_journal_is_full(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    // A file system on a file system: the cluster is not used for another row.
    stage.spent = true;
    stage.inflict(|lab| Killed::sites(lab, &[passive]))?;
    let journal = stage.lab.site_dir(passive).join("data/wal");
    let aside = journal.with_extension("aside");
    fs::rename(&journal, &aside).context("move the journal aside")?;
    fs::create_dir(&journal).context("make a place for the small file system")?;
    said(Command::new("mount").args(["-t", "tmpfs", "-o", "size=400m", "tmpfs"]).arg(&journal))?;
    said(Command::new("cp").arg("-a").arg(aside.join(".")).arg(&journal))?;
    stage.lab.start(passive)?;
    stage
        .lab
        .until("the passive to be back", RETURN_TIMEOUT, || stage.lab.protected_under(active))?;
    stage.acknowledged_again(TAKEOVER)?;

    let filler = journal.join("filler");
    let filling = stage.inflict(|_| {
        let write = Command::new("dd")
            .args(["if=/dev/zero", "bs=1M", "status=none"])
            .arg(format!("of={}", filler.display()))
            .output();
        // dd ends with an error: that is the proof's first half.
        let full = !write.context("run dd")?.status.success();
        let filler = filler.clone();
        let proof =
            move || Ok(full.then(|| "no space left beside the passive's journal".to_owned()));
        Ok(Act::seen_by(proof).undone_by(move || Ok(fs::remove_file(&filler)?)))
    })?;
    // A segment that exists is written into without new room; a new one needs it.
    stage.lab.sql(active, "postgres", "SELECT pg_switch_wal()")?;
    if stage.is_zero() {
        stage.commits_wait_for(LEASE)?;
    } else {
        stage.commits_go_on_for(LEASE)?;
    }
    stage.nobody_takes_over_for(seconds(1))?;
    stage.heal(filling)?;
    last(seconds(1));
    // Its daemon may have ended over it; systemd would have started it again.
    stage.lab.start_the_dead()?;
    stage.acknowledged_again(RETURN_TIMEOUT)?;
    stage.nobody_has_taken_over()
}
