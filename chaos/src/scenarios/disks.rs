//! F-52 to F-74: disks that have no room, fail, are slow, or hold something else than they should.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::power::nobody_is_promoted;
use super::{LEASE, TAKEOVER, files_below, last, seconds};
use crate::arena::SITES;
use crate::command::{output, said};
use crate::faults::acts::Act;
use crate::faults::processes::Killed;
use crate::faults::syscalls::{Disk, Injected};
use crate::faults::volumes::Volume;
use crate::lab::{Lab, WITNESS, node_in};
use crate::stage::{RETURN_TIMEOUT, Stage};

/// For a daemon to find that it cannot go on.
const ENDS: std::time::Duration = seconds(60);

/// A site begins anew with a directory of its own on a small file system, with the same owner.
fn site_on_a_small_file_system(
    stage: &mut Stage,
    site: &'static str,
    directory: &Path,
    size: &str,
) -> Result<()> {
    // A file system on a file system: the cluster is not used for another row.
    stage.spent = true;
    stage.inflict(|lab| Killed::sites(lab, &[site]))?;
    let owner = fs::metadata(directory).with_context(|| format!("{}", directory.display()))?;
    let aside = directory.with_extension("aside");
    fs::rename(directory, &aside).context("move the directory aside")?;
    fs::create_dir(directory).context("make a place for the small file system")?;
    let (uid, gid, mode) = (owner.uid(), owner.gid(), owner.mode() & 0o7777);
    let options = format!("size={size},uid={uid},gid={gid},mode={mode:o}");
    said(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(directory))?;
    said(Command::new("cp").arg("-a").arg(aside.join(".")).arg(directory))?;
    stage.lab.start(site)
}

/// Takes all the room that is left on a file system.
fn filled(directory: &Path, what: &'static str) -> Result<Act<'static>> {
    let filler = directory.join("filler");
    let write = Command::new("dd")
        .args(["if=/dev/zero", "bs=64k", "status=none"])
        .arg(format!("of={}", filler.display()))
        .output();
    // dd ends with an error: that is the proof's first half.
    let full = !write.context("run dd")?.status.success();
    let proof = move || Ok(full.then(|| format!("no space left beside {what}")));
    Ok(Act::seen_by(proof).undone_by(move || Ok(fs::remove_file(&filler)?)))
}

/// F-52. Everything of a site lies on one small disk; the site is the passive at first, and the active
/// after a switchover.
pub(crate) fn active_s_disk_is_full(stage: &mut Stage) -> Result<()> {
    let (other, chosen) = stage.sites();
    let data = stage.lab.site_dir(chosen).join("data");
    site_on_a_small_file_system(stage, chosen, &data, "1g")?;
    stage.protected_again()?;
    output(&mut stage.lab.operator(&["switchover", "--reason", "F-52", "--wait"]))?;
    stage.protected_again()?;
    stage.new_round()?;
    ensure!(stage.sites() == (chosen, other), "the switchover did not go to {chosen}");
    let filling = stage.inflict(|_| filled(&data, "everything of the active"))?;
    // Segments that are kept for reuse have their room already.
    let lab = stage.lab;
    lab.until("the disk to be needed", seconds(60), || {
        let refused = lab.sql(chosen, "postgres", "SELECT pg_switch_wal()").is_err();
        refused || lab.epoch().is_some_and(|epoch| epoch > stage.first_epoch + 1)
    })?;
    stage.takes_over(other, TAKEOVER * 2)?;
    stage.commits_go_on_at_the_new_side(seconds(3))?;
    stage.heal(filling)?;
    lab.start_the_dead()?;
    stage.protected_again()
}

/// F-53. While its site is down, the passive's journal is moved onto a small file system of its own,
/// which is filled later.
pub(crate) fn passive_s_journal_is_full(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let journal = stage.lab.site_dir(passive).join("data/wal");
    site_on_a_small_file_system(stage, passive, &journal, "400m")?;
    stage
        .lab
        .until("the passive to be back", RETURN_TIMEOUT, || stage.lab.protected_under(active))?;
    stage.acknowledged_again(TAKEOVER)?;

    let filling = stage.inflict(|_| filled(&journal, "the passive's journal"))?;
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

/// Where a site's consensus is stored.
pub(super) fn raft_file(lab: &Lab, site: &str) -> PathBuf {
    lab.site_dir(site).join("data/raft/raft.redb")
}

pub(super) fn broken(lab: &Lab, site: &str, disk: Disk, files: &[PathBuf]) -> Result<Injected> {
    let pid = lab.daemon(site).with_context(|| format!("find the daemon of {site}"))?;
    let record = lab.site_dir(site).join("strace.record");
    Injected::begin(format!("daemon of {site}"), disk, &[pid], files, &record)
}

/// What daemons have said by now, so that only what comes after it is looked at.
pub(super) fn said_by_now(lab: &Lab) -> Vec<usize> {
    SITES.iter().map(|site| lab.said(site).map_or(0, |log| log.len())).collect()
}

/// The last line with `word` in it that one of `sites` has written since.
pub(super) fn line_since(
    lab: &Lab,
    sites: &[&str],
    before: &[usize],
    word: &str,
) -> Result<Option<String>> {
    for (site, before) in SITES.iter().zip(before).filter(|(site, _)| sites.contains(site)) {
        let log = lab.said(site)?;
        let new = log.get(*before..).unwrap_or_default();
        if let Some(line) = new.lines().rev().find(|line| line.contains(word)) {
            return Ok(Some(format!("{site}: {}", line.chars().take(300).collect::<String>())));
        }
    }
    Ok(None)
}

/// A daemon ends by itself, and says why in a line that names `word`.
pub(super) fn ends_by_itself(
    stage: &mut Stage,
    site: &'static str,
    before: &[usize],
    word: &str,
) -> Result<()> {
    let lab = stage.lab;
    lab.until(&format!("the daemon of {site} to end"), ENDS, || lab.daemon(site).is_none())?;
    let why = line_since(lab, &[site], before, word)?;
    stage.note(why.with_context(|| format!("{site}'s last words do not name {word:?}"))?);
    Ok(())
}

/// F-55.
pub(crate) fn witness_s_consensus_has_no_room(stage: &mut Stage) -> Result<()> {
    let (files, before) = ([raft_file(stage.lab, WITNESS)], said_by_now(stage.lab));
    let full = stage.inflict(|lab| broken(lab, WITNESS, Disk::IsFull, &files))?;
    ends_by_itself(stage, WITNESS, &before, "No space left")?;
    stage.commits_go_on_for(LEASE * 2)?;
    stage.heal(full)?;
    stage.lab.start(WITNESS)?;
    stage.protected_again()?;
    stage.nobody_has_taken_over()
}

/// F-56. At the active: whoever cannot vote any more does not go on serving either.
pub(crate) fn active_s_consensus_cannot_sync(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let (files, before) = ([raft_file(stage.lab, active)], said_by_now(stage.lab));
    let failing = stage.inflict(|lab| broken(lab, active, Disk::FailsToSync, &files))?;
    ends_by_itself(stage, active, &before, "os error 5")?;
    stage.takes_over(passive, TAKEOVER)?;
    stage.heal(failing)?;
    stage.lab.start(active)?;
    stage.protected_again()
}

/// F-57.
pub(crate) fn passive_s_journal_cannot_sync(stage: &mut Stage) -> Result<()> {
    let (_, passive) = stage.sites();
    let journal = stage.lab.site_dir(passive).join("data/wal");
    let (files, before) = (files_below(&journal), said_by_now(stage.lab));
    ensure!(!files.is_empty(), "the passive's journal has no files");
    let failing = stage.inflict(|lab| broken(lab, passive, Disk::FailsToSync, &files))?;
    ends_by_itself(stage, passive, &before, "os error 5")?;
    if stage.is_zero() {
        stage.commits_wait_for(LEASE)?;
    } else {
        stage.commits_go_on_for(LEASE)?;
    }
    stage.heal(failing)?;
    stage.lab.start(passive)?;
    stage.acknowledged_again(RETURN_TIMEOUT)?;
    stage.nobody_has_taken_over()
}

/// F-58. A panic ends the whole server, and what is started in its place has a disk that works.
pub(crate) fn active_s_server_cannot_sync(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    let lab = stage.lab;
    let log = lab.site_dir(active).join("data/postgres-log/postgres.log");
    let panics = || fs::read_to_string(&log).map_or(0, |log| log.matches("PANIC:").count());
    let before = panics();
    let failing = stage.inflict(|lab| {
        let processes = lab.processes(active);
        let servers: Vec<_> =
            processes.iter().filter(|process| process.is_postgres()).map(|p| p.pid).collect();
        let record = lab.site_dir(active).join("strace.record");
        Injected::begin(format!("server of {active}"), Disk::FailsToSync, &servers, &[], &record)
    })?;
    lab.until("the server to panic", seconds(30), || panics() > before)?;
    stage.somebody_serves(TAKEOVER)?;
    stage.heal(failing)?;
    stage.protected_again()
}

/// The witness is down while its consensus' file is changed, and is started on that.
fn witness_starts_on(
    stage: &mut Stage,
    what: &'static str,
    change: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    stage.inflict(|lab| Killed::daemon(lab, WITNESS))?;
    door_is_free(stage.lab, WITNESS)?;
    let file = raft_file(stage.lab, WITNESS);
    let good = file.with_extension("good");
    fs::copy(&file, &good).context("keep the good file")?;
    change(&file)?;
    let (seen, kept) = (file.clone(), good.clone());
    let differs = move || {
        let other = fs::read(&seen).ok() != Some(fs::read(&kept)?);
        Ok(other.then(|| what.to_owned()))
    };
    stage.add(|_| Ok(Act::seen_by(differs)))?;
    stage.lab.start(WITNESS)?;
    Ok(good)
}

/// A process that was killed lets go of its sockets when the last of its threads is gone.
pub(super) fn door_is_free(lab: &Lab, site: &str) -> Result<()> {
    let free = || lab.listens(site).is_ok_and(|listens| !listens);
    lab.until(&format!("the door of {site} to be free"), seconds(10), free).map(drop)
}

/// It gets its own file back, and counts again.
pub(super) fn witness_is_whole_again(stage: &mut Stage, good: &Path) -> Result<()> {
    if stage.lab.daemon(WITNESS).is_some() {
        stage.add(|lab| Killed::daemon(lab, WITNESS))?;
        door_is_free(stage.lab, WITNESS)?;
    }
    fs::copy(good, raft_file(stage.lab, WITNESS)).context("put the good file back")?;
    stage.lab.start(WITNESS)?;
    let lab = stage.lab;
    lab.until("the witness to hear a majority again", TAKEOVER, || {
        lab.status_of(WITNESS).is_some_and(|status| status["majority"] == true)
    })?;
    stage.protected_again()
}

/// F-66.
pub(crate) fn witness_s_consensus_is_damaged(stage: &mut Stage) -> Result<()> {
    let before = said_by_now(stage.lab);
    let good = witness_starts_on(stage, "the witness's consensus is overwritten", |file| {
        let mut bytes = fs::read(file)?;
        // Its header stays, so that it opens; everything else is another file's.
        bytes.iter_mut().skip(4096).for_each(|byte| *byte ^= 0x5a);
        Ok(fs::write(file, bytes)?)
    })?;
    ends_by_itself(stage, WITNESS, &before, "corrupted")?;
    stage.commits_go_on_for(LEASE * 2)?;
    witness_is_whole_again(stage, &good)
}

/// F-68.
pub(crate) fn witness_s_consensus_is_gone(stage: &mut Stage) -> Result<()> {
    let before = said_by_now(stage.lab);
    let good = witness_starts_on(stage, "the witness's consensus is removed", |file| {
        Ok(fs::remove_file(file)?)
    })?;
    refused_by_the_others(stage, &before, "refuse")?;
    witness_is_whole_again(stage, &good)
}

/// F-69.
pub(crate) fn witness_s_consensus_is_an_old_copy(stage: &mut Stage) -> Result<()> {
    stage.inflict(|lab| Killed::daemon(lab, WITNESS))?;
    door_is_free(stage.lab, WITNESS)?;
    let file = raft_file(stage.lab, WITNESS);
    let old = file.with_extension("old");
    fs::copy(&file, &old).context("copy the witness's consensus")?;
    stage.lab.start(WITNESS)?;
    stage.protected_again()?;
    // What is agreed on meanwhile is not in the copy.
    output(&mut stage.lab.operator(&["switchover", "--reason", "F-69", "--wait"]))?;
    stage.protected_again()?;
    stage.new_round()?;
    let before = said_by_now(stage.lab);
    let good = witness_starts_on(stage, "the witness's consensus is an old copy", |file| {
        Ok(fs::copy(&old, file).map(drop)?)
    })?;
    refused_by_the_others(stage, &before, "older copy")?;
    witness_is_whole_again(stage, &good)
}

/// A node whose storage is not what it voted with is not counted, and the other two go on.
fn refused_by_the_others(stage: &mut Stage, before: &[usize], word: &str) -> Result<()> {
    stage.commits_go_on_for(LEASE * 3)?;
    let lab = stage.lab;
    let counted = lab.status_of(WITNESS).is_some_and(|status| status["majority"] == true);
    ensure!(!counted, "the witness counts with a storage that is not its own");
    let here = line_since(lab, &[WITNESS], before, word)?;
    let there = line_since(lab, &SITES, before, word)?;
    stage.note(here.or(there).context("nobody says that it is refused")?);
    Ok(())
}

/// F-70. Both sites' daemons, with their consensus and the passive's journal.
pub(crate) fn disks_are_slow(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let here = stage.inflict(|lab| broken(lab, active, Disk::IsSlow(200), &[]))?;
    let there = stage.add(|lab| broken(lab, passive, Disk::IsSlow(200), &[]))?;
    stage.nobody_takes_over_for(LEASE * 4)?;
    stage.acknowledged_again(TAKEOVER)?;
    stage.heal(here)?;
    stage.heal(there)?;
    stage.commits_go_on_for(LEASE)
}

/// F-74.
pub(crate) fn active_s_data_belongs_to_somebody_else(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let pgdata = stage.lab.pgdata(active);
    let owner = fs::metadata(&pgdata)?;
    let taken = stage.inflict(|_| {
        chown(&pgdata, Some(0), Some(0)).context("take the data directory away")?;
        let (seen, given) = (pgdata.clone(), pgdata.clone());
        let proof = move || {
            let uid = fs::metadata(&seen)?.uid();
            Ok((uid == 0).then(|| "the data directory belongs to root".to_owned()))
        };
        let undo = move || Ok(chown(&given, Some(owner.uid()), Some(owner.gid()))?);
        Ok(Act::seen_by(proof).undone_by(undo))
    })?;
    stage.takes_over(passive, TAKEOVER * 2)?;
    stage.heal(taken)?;
    // Its node has refused to touch what it could not read, and waits for an operator, who starts it anew.
    stage.add(|lab| Killed::daemon(lab, active))?;
    door_is_free(stage.lab, active)?;
    stage.lab.start(active)?;
    stage.protected_again()
}

/// F-101. The site that keeps little is the passive at first, and the active after a switchover.
pub(crate) fn passive_s_slot_is_lost(stage: &mut Stage) -> Result<()> {
    let (other, chosen) = stage.sites();
    stage.spent = true;
    stage.inflict(|lab| Killed::sites(lab, &[chosen]))?;
    let file = stage.lab.site_dir(chosen).join("node.toml");
    let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
    let little = [("keep = \"1GiB\"", "keep = \"32MiB\""), ("max = \"auto\"", "max = \"256MiB\"")];
    let changed = little.iter().fold(text.clone(), |text, (was, is)| text.replacen(was, is, 1));
    ensure!(
        little.iter().all(|(_, is)| changed.contains(is)),
        "{} has no such line",
        file.display()
    );
    fs::write(&file, changed)?;
    stage.lab.start(chosen)?;
    stage.protected_again()?;
    output(&mut stage.lab.operator(&["switchover", "--reason", "F-101", "--wait"]))?;
    stage.protected_again()?;
    stage.new_round()?;
    ensure!(stage.sites() == (chosen, other), "the switchover did not go to {chosen}");

    stage.inflict(|lab| Killed::sites(lab, &[other]))?;
    let before = said_by_now(stage.lab);
    for _ in 0..24 {
        // No commit, which would wait in `zero`.
        let write = "SELECT pg_logical_emit_message(false, 'F-101', repeat('x', 8000))";
        stage.lab.sql(chosen, "postgres", write)?;
        stage.lab.sql(chosen, "postgres", "SELECT pg_switch_wal()")?;
    }
    let lab = stage.lab;
    let lost = "SELECT count(*) FROM pg_replication_slots WHERE wal_status = 'lost'";
    lab.until("the slot to be given up", seconds(60), || {
        lab.sql(chosen, "postgres", "CHECKPOINT").is_ok()
            && lab.sql(chosen, "postgres", lost).is_ok_and(|count| count.trim() == "1")
    })?;
    let kept = "SELECT count(*) FROM pg_ls_waldir() \
                WHERE name < pg_walfile_name(pg_current_wal_flush_lsn())";
    let kept: u32 = lab.sql(chosen, "postgres", kept)?.trim().parse().context("count segments")?;
    ensure!(kept < 20, "{kept} segments are kept for a node that is away");
    stage.note(format!("{kept} segments kept"));
    stage.lab.start(other)?;
    stage.protected_again()?;
    let gone = line_since(stage.lab, &[other], &before, "no longer has the WAL")?;
    stage.note(gone.context("it came back without a fresh copy")?);
    stage.acknowledged_again(TAKEOVER)
}

/// A site's data directory lies on a file system of its own, and the site is the active.
fn active_on_a_volume(stage: &mut Stage) -> Result<(&'static str, &'static str, Volume)> {
    let (other, chosen) = stage.sites();
    // A file system on a file system: the cluster is not used for another row.
    stage.spent = true;
    stage.inflict(|lab| Killed::sites(lab, &[chosen]))?;
    let volume = Volume::in_place_of(&stage.lab.site_dir(chosen).join("data"))?;
    stage.lab.start(chosen)?;
    stage.protected_again()?;
    output(&mut stage.lab.operator(&["switchover", "--reason", "a disk", "--wait"]))?;
    stage.protected_again()?;
    stage.new_round()?;
    ensure!(stage.sites() == (chosen, other), "the switchover did not go to {chosen}");
    Ok((chosen, other, volume))
}

/// F-71. Every write of the active hangs in the kernel, its server's and its consensus'.
pub(crate) fn active_s_disk_hangs(stage: &mut Stage) -> Result<()> {
    let (active, passive, disk) = active_on_a_volume(stage)?;
    let frozen = stage.inflict(|_| disk.freeze())?;
    stage.takes_over(passive, TAKEOVER * 2)?;
    stage.commits_go_on_at_the_new_side(seconds(3))?;
    ensure!(
        !stage.lab.writable_at(active),
        "{active} calls itself writable with a disk that hangs"
    );
    stage.heal(frozen)?;
    // Its daemon may have ended over it; systemd would have started it again.
    stage.lab.start_the_dead()?;
    stage.protected_again()
}

/// F-72.
pub(crate) fn active_s_disk_turns_read_only(stage: &mut Stage) -> Result<()> {
    let (active, passive, disk) = active_on_a_volume(stage)?;
    let before = said_by_now(stage.lab);
    stage.inflict(|_| disk.turn_read_only())?;
    stage.takes_over(passive, TAKEOVER * 2)?;
    stage.commits_go_on_at_the_new_side(seconds(3))?;
    ensure!(!stage.lab.writable_at(active), "{active} calls itself writable with a read-only disk");
    let why = line_since(stage.lab, &[active], &before, "Read-only file system")?;
    stage.note(why.with_context(|| format!("{active} does not say that its disk is read-only"))?);
    // Somebody mends the disk and starts the machine.
    stage.add(|lab| Killed::sites(lab, &[active]))?;
    door_is_free(stage.lab, active)?;
    disk.mend()?;
    stage.lab.start(active)?;
    stage.protected_again()
}

/// F-73. The active is lost, and all that is left is a passive without its server's WAL.
pub(crate) fn passive_s_wal_directory_is_missing(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let lab = stage.lab;
    stage.spent = true;
    stage.inflict(|lab| Killed::sites(lab, &[passive]))?;
    door_is_free(lab, passive)?;
    stage.add(|lab| Killed::sites(lab, &[active]))?;
    door_is_free(lab, active)?;
    let (pg_wal, aside) =
        (lab.pgdata(passive).join("pg_wal"), lab.site_dir(passive).join("pg_wal"));
    fs::rename(&pg_wal, &aside).context("take pg_wal away")?;
    stage.add(|_| {
        let (gone, words) = (pg_wal.clone(), format!("pg_wal of {passive} is gone"));
        Ok(Act::seen_by(move || Ok((!gone.exists()).then(|| words.clone()))))
    })?;
    lab.start(passive)?;
    nobody_is_promoted(stage, passive, LEASE * 4)?;
    lab.start(active)?;
    let says = || {
        let status = lab.status_of(passive)?;
        let trouble = node_in(&status, passive)?["trouble"].as_str()?.to_owned();
        trouble.contains("pg_wal").then_some(trouble)
    };
    lab.until("the passive to say what is missing", seconds(30), || says().is_some())?;
    stage.note(says().unwrap_or_default());
    fs::remove_dir_all(&pg_wal).ok();
    fs::rename(&aside, &pg_wal).context("put pg_wal back")?;
    stage.protected_again()
}
