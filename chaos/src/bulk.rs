//! Bulk: an amount of WAL passes in `bounded`, and what each daemon needed of memory for it; then the
//! passive's daemon stands still while more is written, and what that costs the active's.
//!
//! How fast it passes is not judged. What is written waits for the passive, so that a disk holds it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::Cli;
use crate::arena::SITES;
use crate::catalogue::{Row, Status};
use crate::conversation::Conversation;
use crate::faults::processes::Stopped;
use crate::gauges::{self, Peaks};
use crate::lab::{Lab, Mode, Shape, WalRoom, node_in};
use crate::play::Pace;
use crate::receivers::tell;
use crate::rig::Clusters;
use crate::scenarios::seconds;
use crate::stage::{RETURN_TIMEOUT, Stage};

/// What is written at once.
const PIECE_MIB: u64 = 32;
/// How far the passive may be behind before the writer waits.
const BEHIND_MAX_BYTES: u64 = 256 << 20;
/// What is written while the passive's daemon stands still.
const STALLED_BYTES: u64 = 1 << 30;
/// The journal and `pg_wal` hold what was written under the stall, and a little more.
const ROOM: WalRoom = WalRoom { keep_mib: 64, max_mib: 4096 };
/// For the passive to come nearer, and in the end to have all of it.
const CATCHES_UP: Duration = seconds(300);
/// WAL that passes, or that a receiver does not take, must not stay in memory.
const MEMORY_MAX_BYTES: u64 = 256 << 20;

const BULK: Row = Row::new(
    "bulk",
    "an amount of WAL passes, and then a receiver stands still",
    "the daemons' memory does not grow with the amount",
    Status::Built(bulk),
);

fn bulk(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let lab = stage.lab;
    let mut session = lab.conversation(active, "postgres")?;
    // Bytes that compression makes half of, as those of tables are, kept as they are.
    session.ask(
        "DROP TABLE IF EXISTS noise; CREATE TABLE noise (text text); \
         ALTER TABLE noise ALTER text SET STORAGE EXTERNAL; \
         INSERT INTO noise SELECT string_agg(md5(random()::text), '') \
         FROM generate_series(1, 32768)",
    )?;
    let before = Peaks::of(lab);
    stage.measured("memory_before_mib", before.in_mib());

    let begun = Instant::now();
    let passed = write(lab, &mut session, stage.pace.wal_bytes, Some((active, passive)))?;
    caught_up(lab, active, passive)?;
    let took = begun.elapsed();
    stage.measured("wal_bytes", passed);
    stage.measured("wal_seconds", took.as_secs_f64().round());
    let after = Peaks::of(lab);
    stage.measured("memory_after_mib", after.in_mib());
    stage.measured("wal_gauges", gauges::of_wal());

    let stopped = stage.inflict(|lab| Stopped::daemon(lab, passive))?;
    let stalled = write(lab, &mut session, STALLED_BYTES, None)?;
    stage.measured("stalled_wal_bytes", stalled);
    let lag = lag_bytes(lab, active, passive);
    stage.measured("stalled_lag_bytes", json!(lag));
    let behind = Peaks::of(lab);
    stage.measured("memory_with_a_stalled_receiver_mib", behind.in_mib());
    stage.heal(stopped)?;
    lab.until("the passive to be back", RETURN_TIMEOUT, || lab.protected_under(active))?;
    caught_up(lab, active, passive)?;
    let end = Peaks::of(lab);
    stage.measured("memory_at_the_end_mib", end.in_mib());
    session.ask("DROP TABLE noise")?;
    drop(session);

    stage.nobody_has_taken_over()?;
    ensure_written(passed, stage.pace.wal_bytes)?;
    ensure_written(stalled, STALLED_BYTES)?;
    for peaks in [&after, &behind, &end] {
        ensure_small(peaks)?;
    }
    Ok(())
}

fn ensure_written(bytes: u64, wanted: u64) -> Result<()> {
    ensure!(bytes >= wanted, "{bytes} bytes of WAL were written, {wanted} were asked for");
    Ok(())
}

fn ensure_small(peaks: &Peaks) -> Result<()> {
    for site in SITES {
        let bytes = peaks.bytes(site).with_context(|| format!("see {site}'s memory"))?;
        ensure!(bytes <= MEMORY_MAX_BYTES, "{site}'s daemon had {bytes} bytes in use");
    }
    Ok(())
}

/// Writes until there is so much more WAL; how much. Between two pieces it waits for the passive of
/// `sites`, if there are any.
fn write(
    lab: &Lab,
    session: &mut Conversation,
    bytes: u64,
    sites: Option<(&str, &str)>,
) -> Result<u64> {
    let piece = format!(
        "SELECT count(pg_logical_emit_message(false, 'bulk', text)) \
         FROM noise, generate_series(1, {PIECE_MIB})"
    );
    let first = session.wal_bytes()?;
    let mut told = Instant::now();
    loop {
        session.ask(&piece)?;
        let done = session.wal_bytes()?.saturating_sub(first);
        if told.elapsed() > seconds(10) {
            eprintln!("chaos: {} of {} MiB written", done >> 20, bytes >> 20);
            told = Instant::now();
        }
        if done >= bytes {
            return Ok(done);
        }
        if let Some((active, passive)) = sites {
            let near = || lag_bytes(lab, active, passive).is_some_and(|lag| lag < BEHIND_MAX_BYTES);
            lab.until("the passive to come nearer", CATCHES_UP, near)?;
        }
    }
}

/// What the active says that the passive lacks.
fn lag_bytes(lab: &Lab, active: &str, passive: &str) -> Option<u64> {
    node_in(&lab.status_of(active)?, passive)?["durable_lag_bytes"].as_u64()
}

fn caught_up(lab: &Lab, active: &str, passive: &str) -> Result<()> {
    let near = || lag_bytes(lab, active, passive).is_some_and(|lag| lag < 16 << 20);
    lab.until("the passive to have caught up", CATCHES_UP, near).map(drop)
}

/// How many turns of a row's length it may take.
pub(crate) fn turns(gib: u32) -> u32 {
    gib.div_ceil(4) + 2
}

/// Runs it once; whether it passed.
pub(crate) fn run(cli: &Cli, gib: u32, clusters: &mut Clusters, runtime: &Runtime) -> Result<bool> {
    let shape = Shape { room: Some(ROOM), ..Shape::from(Mode::Bounded) };
    let pace = Pace {
        wal_bytes: u64::from(gib) << 30,
        statement_timeout: seconds(20),
        connect_timeout: seconds(5),
        ..Pace::ROWS
    };
    let played = clusters.play(&BULK, shape, pace, runtime);
    tell(cli, &played, json!({ "bulk_gib": gib }))?;
    Ok(played.passed && played.late_releases == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_wal_and_too_much_memory_are_found() {
        assert!(ensure_written(10, 10).is_ok());
        assert!(ensure_written(9, 10).is_err());
        let mut peaks = Peaks::default();
        assert!(ensure_small(&peaks).is_err(), "a daemon that was not seen");
        peaks.set_all(MEMORY_MAX_BYTES);
        assert!(ensure_small(&peaks).is_ok());
        peaks.set_all(MEMORY_MAX_BYTES + 1);
        assert!(ensure_small(&peaks).is_err());
    }
}
