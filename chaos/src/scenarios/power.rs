//! F-59 to F-62: power that is lost, at every sync and in the middle of a write, and syncs that lie.
//!
//! What a passive has acknowledged is read from the active's own server, what it holds from its files
//! while nothing of it runs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::disks::{broken, door_is_free, line_since, raft_file, said_by_now};
use super::{LEASE, TAKEOVER, files_below, seconds};
use crate::arena::SITES;
use crate::faults::Fault as _;
use crate::faults::acts::Act;
use crate::faults::processes::Killed;
use crate::faults::syscalls::{Disk, Moment, stands_still_at, until_sync};
use crate::faults::volumes::Volume;
use crate::lab::{Lab, WITNESS};
use crate::stage::{RETURN_TIMEOUT, Stage};

/// The syncs that are each tried, counted from a daemon's start: all of the first ones, and later ones
/// for what only comes while it is at work.
const POINTS: [u32; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 20, 40, 80, 160];
/// The witness syncs once a second.
const WITNESS_S_POINTS: usize = 12;
const MOMENTS: [Moment; 2] = [Moment::Before, Moment::After];
/// For a traced site to come to a sync.
const SYNC_TIMEOUT: std::time::Duration = seconds(60);
const SECTOR_BYTES: usize = 512;
const SEGMENT_BYTES: u64 = 16 << 20;

// --- what is acknowledged and what is held

/// How far a passive has acknowledged, as the active's server was told, in bytes of WAL.
pub(super) fn acknowledged_lsn(lab: &Lab, active: &str, passive: &str) -> Result<u64> {
    let sql = format!(
        "SELECT (restart_lsn - '0/0')::bigint FROM pg_replication_slots \
         WHERE slot_name = 'understudy_{passive}'"
    );
    let lsn = lab.sql(active, "postgres", &sql)?;
    lsn.trim().parse().with_context(|| format!("read the slot of {passive}: {lsn:?}"))
}

/// What `understudy wal verify` says of all nodes, or of a journal whose daemon is down.
pub(super) fn verified(lab: &Lab, journal: Option<&Path>) -> Result<Value> {
    let mut verify = lab.operator(&["wal", "verify", "--rate", "4GiB", "--output", "json"]);
    if let Some(journal) = journal {
        verify.arg("--journal").arg(journal);
    }
    let ended = verify.output().context("run wal verify")?;
    let said = String::from_utf8_lossy(&ended.stdout);
    let report = said.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
    let report = report.filter(|report| report["event"] == "report");
    let report = report.with_context(|| {
        format!("wal verify made no report: {}", String::from_utf8_lossy(&ended.stderr).trim())
    })?;
    let sound = report["sound"] == true;
    ensure!(
        ended.status.success() == sound,
        "wal verify ends with {}, sound {sound}",
        ended.status
    );
    Ok(report)
}

/// Everything that the nodes hold is sound, and the same at both sites.
pub(super) fn all_is_sound(lab: &Lab) -> Result<()> {
    let report = verified(lab, None)?;
    ensure!(report["sound"] == true, "wal verify: {report}");
    Ok(())
}

pub(super) fn journal(lab: &Lab, site: &str) -> PathBuf {
    lab.site_dir(site).join("data/wal")
}

/// Where the WAL of a journal ends, by its files alone, and whether all before is sound.
fn held(lab: &Lab, site: &str) -> Result<(u64, bool)> {
    let report = verified(lab, Some(&journal(lab, site)))?;
    let end = &report["nodes"][0]["places"][0]["found_end_lsn"];
    let end = end.as_str().and_then(lsn).with_context(|| format!("no end in {report}"))?;
    Ok((end, report["sound"] == true))
}

/// From PostgreSQL's way to write it, such as `0/3000148`.
fn lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    Some(u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?)
}

fn in_words(lsn: u64) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xFFFF_FFFF)
}

// --- a site that loses its power

/// Ends every process of a site, and waits until they are gone.
fn end_site(lab: &Lab, site: &str) -> Result<()> {
    let mut killed = Killed::sites(lab, &[site])?;
    let gone = || lab.processes(site).is_empty() && lab.daemon(site).is_none();
    lab.until(&format!("{site} to be gone"), seconds(10), gone)?;
    killed.heal()?;
    door_is_free(lab, site)
}

/// A site is down, and everything of it lies on a file system of its own.
fn on_a_volume(stage: &mut Stage, site: &'static str, what: &str) -> Result<Volume> {
    // A file system on a file system: the cluster is not used for another row.
    stage.spent = true;
    stage.inflict(|lab| Killed::sites(lab, &[site]))?;
    end_site(stage.lab, site)?;
    Volume::in_place_of(&stage.lab.site_dir(site).join(what))
}

/// Starts a site's daemon and waits until something of it stands still at a sync; says which file's.
fn starts_and_stands_still(lab: &Lab, site: &str, number: u32, moment: Moment) -> Result<PathBuf> {
    // Not on the file system that loses its power.
    let record = lab.site_dir(site).join("strace.record");
    fs::remove_file(&record).ok();
    lab.start_under(site, &until_sync(number, moment, &record))?;
    let what = format!("sync {number} of {site}");
    lab.until(&what, SYNC_TIMEOUT, || stands_still_at(&record).is_some())?;
    stands_still_at(&record).context("read the tracer's record")
}

/// What was being synced when the power went.
fn kind(file: &Path) -> &'static str {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let within = |directory| file.components().any(|part| part.as_os_str() == directory);
    match name {
        "raft.redb" => "the consensus' log",
        "raft" | "snapshot.new" => "the consensus' snapshot and names",
        _ if name.starts_with("journal.meta") => "the journal's metadata",
        _ if within("wal") && name.len() >= 24 => "the journal's segments",
        _ if within("wal") => "the journal's names",
        _ if within("pgdata") => "PostgreSQL's files",
        _ => "other files",
    }
}

/// Counted power cuts, by what was being synced.
#[derive(Default)]
struct Cuts(BTreeMap<&'static str, u32>);

impl Cuts {
    fn note(&mut self, file: &Path) {
        *self.0.entry(kind(file)).or_default() += 1;
    }

    fn in_words(&self, site: &str) -> String {
        let all: u32 = self.0.values().sum();
        let kinds: Vec<_> =
            self.0.iter().map(|(kind, count)| format!("{count} at {kind}")).collect();
        format!("{site} lost its power {all} times in a sync: {}", kinds.join(", "))
    }
}

/// A power cut of a passive, from its start to what its disk has afterwards.
fn passive_loses_power(
    lab: &Lab,
    disk: &mut Volume,
    (active, passive): (&str, &str),
    (number, moment): (u32, Moment),
) -> Result<PathBuf> {
    let file = starts_and_stands_still(lab, passive, number, moment)?;
    let before = acknowledged_lsn(lab, active, passive)?;
    disk.cut_power()?;
    end_site(lab, passive)?;
    // What it had sent last may have been on its way.
    let acknowledged = before.max(acknowledged_lsn(lab, active, passive)?);
    disk.power_on()?;
    let (end, sound) = held(lab, passive)?;
    ensure!(
        sound && end >= acknowledged,
        "after a power cut {moment:?} sync {number} ({}) the journal ends at {}, sound {sound}, and {} \
         was acknowledged",
        file.display(),
        in_words(end),
        in_words(acknowledged)
    );
    Ok(file)
}

/// F-62. First the passive's whole site, again and again, then the witness; in the end the passive is all
/// that is left of the data, and loses its power once more.
pub(crate) fn power_fails_at_every_sync(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let lab = stage.lab;
    let mut disk = on_a_volume(stage, passive, "data")?;
    let mut cuts = Cuts::default();
    for point in points(POINTS.len()) {
        cuts.note(&passive_loses_power(lab, &mut disk, (active, passive), point)?);
    }
    lab.start(passive)?;
    stage.protected_again()?;
    seen(stage, cuts.in_words(passive))?;

    let before = said_by_now(lab);
    let mut witness_s = on_a_volume(stage, WITNESS, "data")?;
    let mut cuts = Cuts::default();
    for (number, moment) in points(WITNESS_S_POINTS) {
        cuts.note(&starts_and_stands_still(lab, WITNESS, number, moment)?);
        witness_s.cut_power()?;
        end_site(lab, WITNESS)?;
        witness_s.power_on()?;
    }
    lab.start(WITNESS)?;
    witness_counts(stage, &before)?;
    stage.protected_again()?;
    seen(stage, cuts.in_words(WITNESS))?;

    // Now nobody else has what it acknowledged.
    stage.add(|lab| Killed::sites(lab, &[passive]))?;
    end_site(lab, passive)?;
    let file = starts_and_stands_still(lab, passive, 200, Moment::Before)?;
    let acknowledged = acknowledged_lsn(lab, active, passive)?;
    stage.add(|lab| Killed::sites(lab, &[active]))?;
    disk.cut_power()?;
    end_site(lab, passive)?;
    disk.power_on()?;
    let end = in_words(held(lab, passive)?.0);
    let acknowledged = in_words(acknowledged);
    stage.note(format!(
        "the active is lost while the passive loses its power in a sync of {}: {acknowledged} was \
         acknowledged, the journal ends at {end}",
        file.display()
    ));
    lab.start(passive)?;
    stage.takes_over(passive, TAKEOVER * 2)?;
    lab.start(active)?;
    stage.protected_again()?;
    all_is_sound(lab)
}

fn points(count: usize) -> impl Iterator<Item = (u32, Moment)> {
    POINTS.into_iter().take(count).flat_map(|number| MOMENTS.map(|moment| (number, moment)))
}

/// Evidence that is known already.
fn seen(stage: &mut Stage, words: String) -> Result<()> {
    stage.add(|_| Ok(Act::seen_by(move || Ok(Some(words.clone()))))).map(drop)
}

/// The witness is back, and nobody has found that its storage forgot something that it had told.
fn witness_counts(stage: &Stage, before: &[usize]) -> Result<()> {
    let lab = stage.lab;
    lab.until("the witness to hear a majority again", TAKEOVER, || {
        lab.status_of(WITNESS).is_some_and(|status| status["majority"] == true)
    })?;
    if let Some(line) = line_since(lab, &SITES, before, "older copy")? {
        anyhow::bail!("a storage has forgotten what it told: {line}");
    }
    Ok(())
}

// --- syncs that lie

/// F-59. Only the journal's disk lies. In `zero` the active is lost with the passive's power, so that
/// nobody has what was acknowledged and did not come to the disk.
pub(crate) fn passive_s_disk_lies(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let lab = stage.lab;
    let mut disk = on_a_volume(stage, passive, "data/wal")?;
    lab.start(passive)?;
    stage.protected_again()?;

    let lying = stage.inflict(|lab| broken(lab, passive, Disk::LiesAboutSync, &[]))?;
    stage.commits_go_on_for(LEASE * 2)?;
    let acknowledged = acknowledged_lsn(lab, active, passive)?;
    // The tracer goes with what it traces: until then every sync is a lie.
    disk.cut_power()?;
    end_site(lab, passive)?;
    stage.heal(lying)?;
    disk.power_on()?;
    let (end, sound) = held(lab, passive)?;
    let lost = acknowledged.saturating_sub(end);
    let (end, acknowledged) = (in_words(end), in_words(acknowledged));
    stage.add(|_| {
        let words = format!(
            "the journal of {passive} ends at {end} (sound {sound}), and {acknowledged} was \
             acknowledged: {lost} bytes are gone"
        );
        Ok(Act::seen_by(move || Ok((lost > 0).then(|| words.clone()))))
    })?;
    let before = said_by_now(lab);
    if stage.is_zero() {
        stage.add(|lab| Killed::sites(lab, &[active]))?;
        lab.start(passive)?;
        nobody_is_promoted(stage, passive, LEASE * 4)?;
        lab.start(active)?;
    } else {
        lab.start(passive)?;
    }
    stage.protected_again()?;
    for word in ["behind", "aside", "lost WAL", "older copy"] {
        if let Some(line) = line_since(lab, &[passive], &before, word)? {
            stage.note(line);
        }
    }
    all_is_sound(lab)
}

/// A passive that lacks what it acknowledged runs beside the witness, and stays what it is; what it says
/// of it goes to the notes.
pub(super) fn nobody_is_promoted(
    stage: &mut Stage,
    passive: &str,
    duration: std::time::Duration,
) -> Result<()> {
    let lab = stage.lab;
    let hears = || lab.status_of(passive).is_some_and(|status| status["majority"] == true);
    lab.until(&format!("{passive} to hear a majority"), TAKEOVER, hears)?;
    stage.nobody_takes_over_for(duration)?;
    ensure!(!lab.writable_at(passive), "{passive} lacks what it acknowledged, and was opened");
    let status = lab.status_of(passive).with_context(|| format!("ask {passive}"))?;
    let verdict = status["failover"].clone();
    ensure!(verdict["reason"] != "ready", "{passive} calls itself ready: {verdict}");
    stage.note(format!("{passive} is not promoted: {verdict}"));
    Ok(())
}

// --- torn writes

/// How a write of several sectors is torn: of those that differ, which came to the disk.
#[derive(Clone, Copy, Debug)]
enum Tear {
    Odd,
    Even,
    FirstHalf,
    LastHalf,
    OnlyFirst,
    AllButFirst,
}

const TEARS: [Tear; 6] =
    [Tear::Odd, Tear::Even, Tear::FirstHalf, Tear::LastHalf, Tear::OnlyFirst, Tear::AllButFirst];

impl Tear {
    fn came(self, index: usize, count: usize) -> bool {
        match self {
            Tear::Odd => index % 2 == 1,
            Tear::Even => index.is_multiple_of(2),
            Tear::FirstHalf => index < count.div_ceil(2),
            Tear::LastHalf => index >= count / 2,
            Tear::OnlyFirst => index == 0,
            Tear::AllButFirst => index > 0,
        }
    }

    /// What the disk has when `new` was being written over `old`; and how many sectors did not come.
    fn torn(self, old: &[u8], new: &[u8]) -> (Vec<u8>, usize) {
        let mut mixed = new.to_vec();
        let old_sector = |at: usize, length: usize| {
            let mut sector = old.get(at..).unwrap_or_default().to_vec();
            sector.resize(length, 0);
            sector
        };
        let sectors = new.chunks(SECTOR_BYTES).enumerate();
        let differing: Vec<_> = sectors
            .map(|(index, sector)| (index * SECTOR_BYTES, sector.len()))
            .filter(|(at, length)| new[*at..at + length] != old_sector(*at, *length)[..])
            .collect();
        let mut missing = 0;
        for (index, (at, length)) in differing.iter().copied().enumerate() {
            if !self.came(index, differing.len()) {
                mixed[at..at + length].copy_from_slice(&old_sector(at, length));
                missing += 1;
            }
        }
        (mixed, missing)
    }
}

fn write_durably(file: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        fs::write(file, bytes)?;
        File::open(file)?.sync_all()
    };
    write().with_context(|| format!("write {}", file.display()))
}

/// F-60. The witness loses its power in a sync of its consensus, of which some sectors came to the disk
/// and others did not.
pub(crate) fn consensus_write_is_torn(stage: &mut Stage) -> Result<()> {
    let lab = stage.lab;
    let before = said_by_now(lab);
    let mut disk = on_a_volume(stage, WITNESS, "data")?;
    let file = raft_file(lab, WITNESS);
    let (mut torn, mut missing_all) = (0, 0);
    for (round, tear) in TEARS.into_iter().cycle().take(TEARS.len() * 2).enumerate() {
        let number = 12 + u32::try_from(round).context("count the rounds")? * 3;
        starts_and_stands_still(lab, WITNESS, number, Moment::Before)?;
        let new = fs::read(&file).context("read the consensus as it was written")?;
        disk.cut_power()?;
        end_site(lab, WITNESS)?;
        disk.power_on()?;
        let old = fs::read(&file).context("read the consensus as it was durable")?;
        let (mixed, missing) = tear.torn(&old, &new);
        torn += usize::from(missing > 0 && mixed != old);
        missing_all += missing;
        write_durably(&file, &mixed)?;
        lab.start(WITNESS)?;
        witness_counts(stage, &before).with_context(|| format!("after a tear {tear:?}"))?;
        end_site(lab, WITNESS)?;
    }
    ensure!(torn >= TEARS.len() / 2, "only {torn} writes were torn");
    seen(
        stage,
        format!("{torn} writes of the consensus were torn: {missing_all} sectors missing"),
    )?;
    lab.start(WITNESS)?;
    witness_counts(stage, &before)?;
    stage.commits_go_on_for(LEASE)?;
    stage.protected_again()?;
    stage.nobody_has_taken_over()
}

/// F-61. The passive is ended in a sync of its journal, and of what was not synced some sectors are what
/// they were before.
pub(crate) fn journal_write_is_torn(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let lab = stage.lab;
    stage.spent = true;
    stage.inflict(|lab| Killed::sites(lab, &[passive]))?;
    end_site(lab, passive)?;
    let (mut torn, mut missing_all) = (0, 0);
    for (round, tear) in TEARS.into_iter().enumerate() {
        let load = "SELECT count(pg_logical_emit_message(false, 'F-61', repeat(md5(n::text), 2000))) \
                    FROM generate_series(1, 3000) AS n";
        let load = lab.session(active, "postgres", load)?;
        let number = 30 + u32::try_from(round).context("count the rounds")? * 17;
        starts_and_stands_still(lab, passive, number, Moment::Before)?;
        end_site(lab, passive)?;
        let acknowledged = acknowledged_lsn(lab, active, passive)?;
        let missing = tear_behind(&journal(lab, passive), acknowledged, tear)?;
        torn += usize::from(missing > 0);
        missing_all += missing;
        let (end, _) = held(lab, passive)?;
        ensure!(
            end >= acknowledged,
            "torn {tear:?}, the journal ends at {}, and {} was acknowledged",
            in_words(end),
            in_words(acknowledged)
        );
        lab.start(passive)?;
        stage.protected_again().with_context(|| format!("after a tear {tear:?}"))?;
        all_is_sound(lab)?;
        drop(load);
        if round + 1 < TEARS.len() {
            end_site(lab, passive)?;
        }
    }
    ensure!(torn >= TEARS.len() / 2, "only {torn} writes were torn");
    seen(stage, format!("{torn} writes of the journal were torn: {missing_all} sectors missing"))?;
    stage.acknowledged_again(RETURN_TIMEOUT)?;
    stage.nobody_has_taken_over()
}

/// Tears what a journal holds behind a position; before it was zero. Says how many sectors are missing.
fn tear_behind(journal: &Path, acknowledged: u64, tear: Tear) -> Result<usize> {
    let mut missing_all = 0;
    for path in files_below(journal) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(start) = segment_start(name) else { continue };
        // A sector is written as a whole, and the first of these may hold what was acknowledged.
        let safe = acknowledged.saturating_sub(start).next_multiple_of(SECTOR_BYTES as u64);
        if safe >= SEGMENT_BYTES {
            continue;
        }
        let new = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let behind = &new[usize::try_from(safe).context("a position in a segment")?..];
        let (mixed, missing) = tear.torn(&[], behind);
        let file = File::options().write(true).open(&path)?;
        file.write_all_at(&mixed, safe).with_context(|| format!("tear {}", path.display()))?;
        missing_all += missing;
    }
    Ok(missing_all)
}

/// Where a segment begins, by its file's name.
pub(super) fn segment_start(name: &str) -> Option<u64> {
    let number = |range| u64::from_str_radix(name.get(range)?, 16).ok();
    (name.len() >= 24).then_some(())?;
    Some((number(8..16)? << 32) + number(16..24)? * SEGMENT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_write_is_what_was_there_before_where_it_did_not_come() {
        let (old, new) = (vec![0; 1200], vec![7; 2000]);
        let (mixed, missing) = Tear::Even.torn(&old, &new);
        assert_eq!((mixed.len(), missing), (2000, 2));
        assert_eq!((mixed[0], mixed[511], mixed[512], mixed[1024], mixed[1536]), (7, 7, 0, 7, 0));
        // What was the same before and after cannot be missing.
        assert_eq!(Tear::AllButFirst.torn(&new, &new), (new.clone(), 0));
        assert_eq!(Tear::OnlyFirst.torn(&[7; 512], &new).1, 2);
    }

    #[test]
    fn positions_are_read_as_postgresql_writes_them() {
        assert_eq!(lsn("1/3000148"), Some(0x1_0300_0148));
        assert_eq!(in_words(0x1_0300_0148), "1/3000148");
        assert_eq!(segment_start("000000010000000100000003.partial"), Some(0x1_0300_0000));
        assert_eq!(segment_start("journal.meta"), None);
    }
}
