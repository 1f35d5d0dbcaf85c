//! F-63, F-64, F-67, F-100: bits that flip on their way or at rest, votes that are not what was given, and
//! files that are gone.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use super::disks::{
    door_is_free, ends_by_itself, line_since, raft_file, said_by_now, witness_is_whole_again,
};
use super::histories::control_file;
use super::power::{
    acknowledged_lsn, all_is_sound, journal, nobody_is_promoted, segment_start, verified,
};
use super::{LEASE, TAKEOVER, files_below, seconds};
use crate::faults::acts::Act;
use crate::faults::processes::Killed;
use crate::faults::wire::{Habits, Wire};
use crate::lab::{Lab, WITNESS, node_in};
use crate::stage::Stage;

/// For a node to say that WAL is missing in its journal.
const TOLD_WITHIN: Duration = seconds(60);
/// Finished segments that a row needs in a journal.
const SEGMENTS: usize = 5;
const SEGMENT_BYTES: u64 = 16 << 20;

// --- a journal's files

/// The finished segments of a journal, in the order of the WAL.
fn finished(journal: &Path) -> Vec<PathBuf> {
    let mut found = files_below(journal);
    found.retain(|path| path.file_name().is_some_and(|name| name.len() == 24));
    found.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
    found
}

/// The newest segment of a journal, finished or not.
fn newest(journal: &Path) -> Result<PathBuf> {
    let of_segment = |path: &PathBuf| segment_start(&name(path)).is_some();
    let segments = files_below(journal).into_iter().filter(of_segment);
    segments.max_by_key(|path| name(path)).context("find a segment in the journal")
}

fn name(path: &Path) -> String {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned()
}

/// Large records, so that they reach over the ends of segments, until a journal has finished enough of
/// those and its newest one begins within a record.
fn fill(lab: &Lab, active: &str, passive: &str) -> Result<()> {
    let journal = journal(lab, passive);
    let wanted = finished(&journal).len() + SEGMENTS;
    let more = "SELECT count(pg_logical_emit_message(false, 'rot', repeat(md5(n::text), 32000))) \
                FROM generate_series(1, 9) AS n";
    for _ in 0..40 {
        if finished(&journal).len() >= wanted && begins_within_a_record(&newest(&journal)?)? {
            return Ok(());
        }
        lab.sql(active, "postgres", more)?;
        // No commit, which would wait for it; so the journal is waited for.
        let written = written_lsn(lab, active)?;
        lab.until("the passive to have what was written", seconds(20), || {
            acknowledged_lsn(lab, active, passive).is_ok_and(|lsn| lsn >= written)
        })?;
    }
    bail!("{} segments in the journal of {passive}, {wanted} are wanted", finished(&journal).len())
}

fn written_lsn(lab: &Lab, active: &str) -> Result<u64> {
    let sql = "SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint";
    lab.sql(active, "postgres", sql)?.trim().parse().context("read the flush position")
}

/// `XLP_FIRST_IS_CONTRECORD` in the first page's header (xlog_internal.h).
fn begins_within_a_record(segment: &Path) -> Result<bool> {
    let mut info = [0];
    let file = File::open(segment).with_context(|| format!("open {}", segment.display()))?;
    file.read_exact_at(&mut info, 2)?;
    Ok(info[0] & 1 == 1)
}

/// One bit at rest is another one. Undone by the same again.
fn flip(path: &Path, offset: u64) -> Result<Act<'static>> {
    let read = move |path: &Path| {
        let mut byte = [0];
        File::open(path)?.read_exact_at(&mut byte, offset)?;
        Ok::<u8, std::io::Error>(byte[0])
    };
    let write = move |path: &Path, byte| {
        let file = File::options().write(true).open(path)?;
        file.write_all_at(&[byte], offset)?;
        file.sync_all()
    };
    let good = read(path).with_context(|| format!("read {}", path.display()))?;
    write(path, good ^ 0x10).with_context(|| format!("flip a bit in {}", path.display()))?;
    let (seen, mended) = (path.to_owned(), path.to_owned());
    let proof = move || {
        let other = read(&seen).is_ok_and(|byte| byte == good ^ 0x10);
        Ok(other.then(|| format!("a bit of {} at {offset} is flipped", name(&seen))))
    };
    Ok(Act::seen_by(proof).undone_by(move || Ok(write(&mended, good)?)))
}

/// What a verification has found in a file at a site.
fn finding_in(report: &Value, site: &str, file: &str) -> Option<Value> {
    let node = report["nodes"].as_array()?.iter().find(|node| node["node"] == site)?;
    let findings = node["places"].as_array()?.iter().flat_map(|place| place["findings"].as_array());
    findings.flatten().find(|finding| finding["file"] == file).cloned()
}

/// `wal verify` names the file, and only that site's.
fn is_found(stage: &mut Stage, site: &str, file: &str) -> Result<()> {
    let report = verified(stage.lab, None)?;
    ensure!(report["sound"] == false, "wal verify calls it sound: {report}");
    let found = finding_in(&report, site, file);
    let found = found.with_context(|| format!("wal verify does not name {file}: {report}"))?;
    stage.note(format!("wal verify: {} of {file} at {}", found["kind"], found["lsn"]));
    Ok(())
}

/// PostgreSQL asks for a segment by its restore_command, and does not get what is damaged.
fn is_not_served(lab: &Lab, journal: &Path, file: &str) -> Result<()> {
    let target = journal.with_extension("fetched");
    fs::remove_file(&target).ok();
    let mut get = lab.operator(&["wal", "get", "--journal"]);
    let ended = get.arg(journal).arg(file).arg(&target).output().context("run wal get")?;
    ensure!(!ended.status.success() && !target.exists(), "wal get gives out the damaged {file}");
    Ok(())
}

/// F-64. In an old segment, in the last finished one, and in the newest one while the active is lost too.
pub(crate) fn bit_flips_at_rest(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let lab = stage.lab;
    stage.spent = true;
    fill(lab, active, passive)?;
    let journal = journal(lab, passive);

    // Nobody needs it now. It is found by whoever looks, and given to nobody.
    let old = finished(&journal).into_iter().nth_back(3).context("find an old segment")?;
    let flipped = stage.inflict(|_| flip(&old, SEGMENT_BYTES / 2))?;
    is_found(stage, passive, &name(&old))?;
    is_not_served(lab, &journal, &name(&old))?;
    stage.commits_go_on_for(LEASE)?;
    stage.heal(flipped)?;
    all_is_sound(lab)?;

    // The start of a daemon reads it.
    fill(lab, active, passive)?;
    let last = finished(&journal).pop().context("find the last finished segment")?;
    let before = said_by_now(lab);
    stage.inflict(|_| flip(&last, SEGMENT_BYTES / 2))?;
    stage.add(|lab| Killed::daemon(lab, passive))?;
    door_is_free(lab, passive)?;
    lab.start(passive)?;
    stage.protected_again()?;
    let line = line_since(lab, &[passive], &before, "WAL that was durable here is lost")?;
    stage.note(line.with_context(|| format!("{passive} has not seen the damage"))?);
    all_is_sound(lab)?;
    stage.nobody_has_taken_over()?;
    newest_bit_flips(stage)
}

/// Behind the flipped bit lies what was acknowledged, and nobody else has it.
fn newest_bit_flips(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let lab = stage.lab;
    let from = acknowledged_lsn(lab, active, passive)?;
    stage.commits_go_on_for(LEASE * 2)?;
    stage.add(|lab| Killed::sites(lab, &[active, passive]))?;
    door_is_free(lab, passive)?;
    // Within the record that begins there.
    let at = from + 30;
    let start = at / SEGMENT_BYTES * SEGMENT_BYTES;
    let holds = |path: &PathBuf| segment_start(&name(path)) == Some(start);
    let files = files_below(&journal(lab, passive)).into_iter().filter(holds);
    let file = files.max_by_key(|path| name(path)).context("find the segment of a commit")?;
    stage.add(|_| flip(&file, at - start))?;
    lab.start(passive)?;
    if stage.is_zero() {
        nobody_is_promoted(stage, passive, LEASE * 4)?;
    }
    lab.start(active)?;
    stage.protected_again()?;
    all_is_sound(lab)
}

// --- votes

/// How a vote is stored: JSON, with its term first.
const VOTE_BEGINS: &[u8] = b"{\"leader_id\":{\"term\":";
const VOTE_ENDS: &[u8] = b"\"committed\":";
/// Between the two.
const VOTE_BYTES_MAX: usize = 64;

/// Where the votes in a consensus' file begin, old ones too, and where what tells them ends.
fn votes(bytes: &[u8]) -> Vec<(usize, usize)> {
    let begins = bytes.windows(VOTE_BEGINS.len()).enumerate();
    let begins = begins.filter(|(_, window)| *window == VOTE_BEGINS).map(|(at, _)| at);
    let vote = |at: usize| {
        let rest = &bytes[at..bytes.len().min(at + VOTE_BYTES_MAX + VOTE_ENDS.len())];
        let end = rest.windows(VOTE_ENDS.len()).position(|window| window == VOTE_ENDS)?;
        Some((at, at + end + VOTE_ENDS.len()))
    };
    begins.filter_map(vote).collect()
}

/// The witness is down. Its votes become something else, and its daemon, started on that, ends and says
/// why.
fn refuses_to_start(
    stage: &mut Stage,
    what: &'static str,
    change: impl Fn(&mut [u8]),
) -> Result<PathBuf> {
    let lab = stage.lab;
    door_is_free(lab, WITNESS)?;
    let file = raft_file(lab, WITNESS);
    let good = file.with_extension("good");
    fs::copy(&file, &good).context("keep the good file")?;
    let mut bytes = fs::read(&file).context("read the witness's consensus")?;
    let votes = votes(&bytes);
    ensure!(!votes.is_empty(), "there is no vote in the witness's consensus");
    for (from, to) in &votes {
        change(&mut bytes[*from..*to]);
    }
    fs::write(&file, &bytes).context("write the witness's consensus")?;
    let (seen, kept, count) = (file.clone(), good.clone(), votes.len());
    stage.add(|_| {
        let differs = move || {
            let other = fs::read(&seen)? != fs::read(&kept)?;
            Ok(other.then(|| format!("the witness's vote is {what} ({count} places)")))
        };
        Ok(Act::seen_by(differs))
    })?;
    let before = said_by_now(lab);
    lab.start(WITNESS)?;
    ends_by_itself(stage, WITNESS, &before, "corrupted")?;
    Ok(good)
}

/// F-67. Zeroed after a crash, and after an orderly stop another term, which could be read.
pub(crate) fn witness_s_vote_is_gone(stage: &mut Stage) -> Result<()> {
    let lab = stage.lab;
    stage.inflict(|lab| Killed::daemon(lab, WITNESS))?;
    let good = refuses_to_start(stage, "zero", |vote| vote.fill(0))?;
    stage.commits_go_on_for(LEASE * 2)?;
    witness_is_whole_again(stage, &good)?;

    let daemon = lab.daemon(WITNESS).context("find the witness's daemon")?;
    kill_process(daemon, Signal::TERM).context("stop the witness's daemon")?;
    lab.until("the witness's daemon to stop", seconds(20), || lab.daemon(WITNESS).is_none())?;
    // The last digit of the term.
    let good = refuses_to_start(stage, "one of another term", |vote| {
        let digits = vote[VOTE_BEGINS.len()..].iter().take_while(|byte| byte.is_ascii_digit());
        let last = VOTE_BEGINS.len() + digits.count() - 1;
        vote[last] = if vote[last] == b'1' { b'2' } else { vote[last] - 1 };
    })?;
    stage.commits_go_on_for(LEASE)?;
    witness_is_whole_again(stage, &good)?;
    stage.nobody_has_taken_over()
}

// --- files that are gone

/// F-100. First one that nobody needs, then the one from which the passive's server would replay.
pub(crate) fn segment_is_missing(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let lab = stage.lab;
    stage.spent = true;
    fill(lab, active, passive)?;
    let journal = journal(lab, passive);
    let old = finished(&journal).into_iter().nth_back(3).context("find an old segment")?;
    let aside = lab.site_dir(passive).join("taken.segment");
    let taken = stage.inflict(|_| {
        fs::rename(&old, &aside).context("take a segment away")?;
        let (seen, from, to) = (old.clone(), aside.clone(), old.clone());
        let proof = move || Ok((!seen.exists()).then(|| format!("{} is gone", name(&seen))));
        Ok(Act::seen_by(proof).undone_by(move || Ok(fs::rename(&from, &to)?)))
    })?;
    is_found(stage, passive, &name(&old))?;
    let file = name(&old);
    let said = |status: &Value| {
        let warnings = node_in(status, passive)?["warnings"].as_array()?.clone();
        warnings
            .iter()
            .filter_map(|words| words.as_str())
            .any(|words| words.contains(&file))
            .then_some(())
    };
    let told = || lab.status_of(passive).as_ref().and_then(said).is_some();
    let waited = lab.until("the passive to say what is missing", TOLD_WITHIN, told)?;
    stage.note(format!("{passive} says after {} s that {file} is missing", waited.as_secs()));
    stage.commits_go_on_for(LEASE)?;
    stage.heal(taken)?;
    lab.until("the passive to say nothing of it any more", TOLD_WITHIN, || !told())?;
    all_is_sound(lab)?;

    lab.sql(active, "postgres", "CHECKPOINT")?;
    lab.sql(passive, "postgres", "CHECKPOINT")?;
    fill(lab, active, passive)?;
    stage.add(|lab| Killed::sites(lab, &[passive]))?;
    door_is_free(lab, passive)?;
    let redo = control_file(lab, passive)?;
    let needed = finished(&journal).into_iter().find(|path| name(path) == redo);
    let needed = needed.with_context(|| format!("{redo} is not finished"))?;
    stage.add(|_| {
        fs::remove_file(&needed).context("remove a segment")?;
        let (seen, words) = (needed.clone(), format!("{redo}, which is replayed first, is gone"));
        Ok(Act::seen_by(move || Ok((!seen.exists()).then(|| words.clone()))))
    })?;
    let before = said_by_now(lab);
    lab.start(passive)?;
    stage.protected_again()?;
    let line = line_since(lab, &[passive], &before, "setting the journal aside")?;
    stage.note(line.with_context(|| format!("{passive} goes on with a journal that has a gap"))?);
    all_is_sound(lab)?;
    stage.nobody_has_taken_over()
}

// --- bits that flip on their way

/// F-63. Frames between the passive and the others, with a checksum that fits what they carry.
pub(crate) fn bits_flip_in_flight(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let lab = stage.lab;
    let before = said_by_now(lab);
    let habits = Habits { forge_every: 500, ..Habits::default() };
    let wire = stage.inflict(|lab| Wire::begin(&lab.arena, passive, habits))?;
    stage.nobody_takes_over_for(LEASE * 6)?;
    stage.acknowledged_again(TAKEOVER)?;
    stage.heal(wire)?;
    stage.protected_again()?;
    stage.nobody_has_taken_over()?;
    // Most frames carry WAL. Whoever takes a changed one ends the connection, and another is made.
    let again = line_since(lab, &[active], &before, "receiver attached")?;
    stage.note(again.context("no connection for WAL was made anew: were changed frames taken?")?);
    all_is_sound(lab)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn votes_are_found_as_they_are_stored_and_positions_of_the_log_are_not() {
        let stored = b"..{\"leader_id\":{\"term\":12,\"node_id\":3},\"committed\":true}..\
                       {\"leader_id\":{\"term\":12,\"node_id\":3},\"index\":7}..";
        let [(from, to)] = votes(stored)[..] else { panic!("{:?}", votes(stored)) };
        assert!(stored[from..to].starts_with(VOTE_BEGINS) && stored[from..to].ends_with(VOTE_ENDS));
    }
}
