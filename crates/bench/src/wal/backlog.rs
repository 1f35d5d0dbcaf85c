//! Catching up: a passive that was away takes a backlog from the primary, which has kept all of it.
//!
//! Every contender begins with a standby made anew from the same copy, so every one has the same way to
//! go. The clock runs until all of it is durable at the passive; the standby replays beside it.

use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use super::lab::Lab;
use super::link::Link;
use super::turn::{Contender, Turn, received};
use crate::postgres::Sql;

/// Those that can be compared: with a standby that replays.
pub(super) const CONTENDERS: [Contender; 2] = [Contender::NativeAsync, Contender::Bounded];

/// What the WAL is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Content {
    /// Changes of rows, and whole pages of tables and indexes: what most WAL is.
    Typical,
    /// Random bytes.
    Incompressible,
}

impl Content {
    pub(super) fn name(self) -> &'static str {
        match self {
            Content::Typical => "typical",
            Content::Incompressible => "incompressible",
        }
    }

    /// The next statement of those that write it, some ten MiB each.
    fn statement(self, number: u64) -> String {
        match (self, number % CHECKPOINT_EVERY) {
            // After a checkpoint each page goes into the WAL as a whole when it is first touched.
            (Content::Typical, 0) => "CHECKPOINT".to_owned(),
            (Content::Typical, turn) if turn % 2 == 0 => format!(
                "UPDATE pgbench_accounts SET abalance = abalance + (random() * 5000)::int \
                 WHERE aid % 499 = {}",
                number % 499
            ),
            (Content::Typical, _) => "INSERT INTO worklog (account, comment, started) \
                 SELECT (random() * 1e6)::int, \
                        'Call with customer ' || md5(random()::text) || ' about invoice ' || g, \
                        now() - g * interval '1 second' \
                 FROM generate_series(1, 50000) g"
                .to_owned(),
            (Content::Incompressible, _) => "INSERT INTO noise \
                 SELECT gen_random_bytes(1000) FROM generate_series(1, 10000)"
                .to_owned(),
        }
    }
}

/// Statements between two checkpoints.
const CHECKPOINT_EVERY: u64 = 24;

/// What one contender did in one round.
#[derive(Clone, Debug, Serialize)]
pub(super) struct CatchUp {
    pub(super) content: Content,
    pub(super) contender: Contender,
    pub(super) round: u32,
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    /// Processor seconds for each GB (1e9 bytes).
    pub(super) active_cpu_per_gb: f64,
    pub(super) passive_cpu_per_gb: f64,
    /// The most memory that Understudy's sides have had; 0 for others.
    pub(super) active_memory_bytes: u64,
    pub(super) passive_memory_bytes: u64,
}

/// Writes this much WAL while nobody listens.
///
/// # Errors
/// When the primary fails.
pub(super) fn write(sql: &mut Sql, content: Content, bytes: u64) -> Result<()> {
    sql.run(&[
        "CREATE EXTENSION IF NOT EXISTS pgcrypto",
        "DROP TABLE IF EXISTS noise, worklog",
        "CREATE TABLE noise (content bytea)",
        "ALTER TABLE noise ALTER content SET STORAGE PLAIN",
        "CREATE TABLE worklog (id bigserial PRIMARY KEY, account int, comment text, \
             started timestamptz)",
        "CREATE INDEX ON worklog (account)",
    ])?;
    let begun = sql.flushed()?;
    let mut number = 0;
    while sql.flushed()?.bytes_since(begun) < bytes {
        sql.run(&[&content.statement(number)])?;
        number += 1;
    }
    sql.run(&["DROP TABLE noise, worklog", "VACUUM pgbench_accounts", "CHECKPOINT"])
}

/// Plays one round of all contenders.
///
/// # Errors
/// When a contender fails.
pub(super) fn round(lab: &Lab, content: Content, link: Link, round: u32) -> Result<Vec<CatchUp>> {
    let mut measured = Vec::new();
    for index in 0..CONTENDERS.len() {
        let contender = CONTENDERS[(index + round as usize) % CONTENDERS.len()];
        let standby = lab.standby()?;
        let (mut sql, mut behind) = (lab.sql()?, standby.sql("postgres")?);
        let target = sql.flushed()?;
        let from = behind.lsn("SELECT pg_last_wal_replay_lsn()::text")?;
        let mut turn = Turn::begin(lab, contender, link)?;
        let begun = Instant::now();
        turn.connect(&standby)?;
        turn.durable(target, &mut behind)
            .with_context(|| format!("{} catches up", contender.name()))?;
        let seconds = begun.elapsed().as_secs_f64();
        // What is durable may still be on its way to the standby, and that costs as well.
        received(target, &mut behind)?;
        let (bytes, cost) = (target.bytes_since(from), turn.cost(&mut sql, &mut behind)?);
        let per_gb = |time: std::time::Duration| time.as_secs_f64() / (bytes as f64 / 1e9);
        let caught_up = CatchUp {
            content,
            contender,
            round,
            bytes,
            seconds,
            active_cpu_per_gb: per_gb(cost.active),
            passive_cpu_per_gb: per_gb(cost.passive),
            active_memory_bytes: cost.active_bytes,
            passive_memory_bytes: cost.passive_bytes,
        };
        eprintln!(
            "    catching up, {}{}, round {round}, {}: {:.0} MB in {seconds:.2} s, processor {:.2} s \
             a GB at the active and {:.2} at the passive",
            content.name(),
            link.words(),
            contender.name(),
            bytes as f64 / 1e6,
            caught_up.active_cpu_per_gb,
            caught_up.passive_cpu_per_gb,
        );
        measured.push(caught_up);
        turn.end(&mut sql, &standby)?;
    }
    Ok(measured)
}
