//! Commits: pgbench against the primary, contender after contender, round after round.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::lab::Lab;
use super::link::Link;
use super::turn::{CONTENDERS, Contender, Cost, Turn};
use crate::postgres::{Instance, output_within};
use crate::statistics::{quantile, sorted};

/// How much load there is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Load {
    pub(super) clients: u32,
    /// Transactions a second, spread evenly over time; as many as go when there is no limit.
    pub(super) rate: Option<u32>,
    pub(super) link: Link,
}

impl Load {
    pub(super) fn words(self) -> String {
        let clients = match self.clients {
            1 => "1 client".to_owned(),
            clients => format!("{clients} clients"),
        };
        let rate = self.rate.map(|rate| format!(", {rate}/s")).unwrap_or_default();
        clients + &rate + &self.link.words()
    }
}

/// What one contender did in one round.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Commits {
    pub(super) load: Load,
    pub(super) contender: Contender,
    pub(super) round: u32,
    pub(super) transactions_per_second: f64,
    /// Of single transactions, milliseconds; with a rate, from when it was due.
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// From when the walsender saw the primary's flush until the passive's is known, as the primary says;
    /// p50 and p99, milliseconds. `None` where nobody is waited for.
    pub(super) flush_lag_ms: Option<[f64; 2]>,
    /// The same for replay.
    pub(super) replay_lag_ms: Option<[f64; 2]>,
    /// Processor time that replication took for each transaction, microseconds, at active and passive.
    pub(super) active_cpu_us: f64,
    pub(super) passive_cpu_us: f64,
}

/// Plays one round of all contenders.
///
/// # Errors
/// When a contender or pgbench fails.
pub(super) fn round(
    lab: &Lab,
    standby: &Instance,
    load: Load,
    seconds: u32,
    round: u32,
) -> Result<Vec<Commits>> {
    let mut measured = Vec::new();
    for index in 0..CONTENDERS.len() {
        // Nobody is always the first, nor always behind the same one.
        let place = if round.is_multiple_of(2) { CONTENDERS.len() - 1 - index } else { index };
        let contender = CONTENDERS[(place + round as usize) % CONTENDERS.len()];
        let (mut sql, mut behind) = (lab.sql()?, standby.sql("postgres")?);
        let mut turn = Turn::begin(lab, contender, load.link)?;
        turn.connect(standby)?;
        turn.in_step(&mut sql, &mut behind)?;
        let mut costs = || turn.cost(&mut sql, &mut behind);
        let commits = play(lab, contender, &mut costs, load, seconds, round)
            .with_context(|| format!("{} with {}", contender.name(), load.words()))?;
        eprintln!(
            "    {}, round {round}, {}: {:.0} transactions a second, p50 {:.2} ms, p99 {:.2} ms",
            load.words(),
            contender.name(),
            commits.transactions_per_second,
            commits.p50_ms,
            commits.p99_ms
        );
        measured.push(commits);
        turn.end(&mut sql, standby)?;
    }
    Ok(measured)
}

/// How often lag is asked for.
const LAG_SAMPLE: Duration = Duration::from_millis(20);
/// From when on.
const LAG_FROM: Duration = Duration::from_secs(1);
/// For pgbench to end after its time; clients whose commits are never confirmed do not end by themselves.
const PATIENCE: Duration = Duration::from_secs(60);

fn play(
    lab: &Lab,
    contender: Contender,
    costs: &mut dyn FnMut() -> Result<Cost>,
    load: Load,
    seconds: u32,
    round: u32,
) -> Result<Commits> {
    let logs = lab.path("data/pgbench");
    if logs.exists() {
        fs::remove_dir_all(&logs)?;
    }
    fs::create_dir(&logs)?;
    lab.programs.give(&logs)?;
    let (clients, threads) = (load.clients.to_string(), load.clients.min(2).to_string());
    let (time, prefix) = (seconds.to_string(), logs.join("log").display().to_string());
    // Not the TPC-B of old, whose few branches would be what is waited for.
    let mut pgbench = lab.pgbench(&["-b", "simple-update", "-M", "prepared", "-l"]);
    pgbench.args(["-c", &clients, "-j", &threads, "-T", &time, "--log-prefix", &prefix]);
    if let Some(rate) = load.rate {
        pgbench.args(["-R", &rate.to_string()]);
    }
    let over = AtomicBool::new(false);
    let before = costs()?;
    let limit = Duration::from_secs(seconds.into()) + PATIENCE;
    let (said, lags) = std::thread::scope(|scope| {
        let sampling = scope.spawn(|| {
            let mut sql = lab.sql()?;
            let (mut flush, mut replay) = (Vec::new(), Vec::new());
            // Until the load has begun the primary repeats what it knew before.
            std::thread::sleep(LAG_FROM);
            while !over.load(Ordering::Relaxed) {
                let (flushed, replayed) = contender.lags(&mut sql)?;
                flush.extend(flushed.map(|seconds| seconds * 1e3));
                replay.extend(replayed.map(|seconds| seconds * 1e3));
                std::thread::sleep(LAG_SAMPLE);
            }
            anyhow::Ok((flush, replay))
        });
        let said = output_within(&mut pgbench, limit);
        over.store(true, Ordering::Relaxed);
        (said, sampling.join().expect("sampling does not panic"))
    });
    let (said, (flush, replay)) = (said?, lags?);
    let after = costs()?;
    let transactions_per_second = transactions_per_second(&said)
        .with_context(|| format!("find the rate in what pgbench said: {said}"))?;
    let transactions = transactions_per_second * f64::from(seconds);
    let each = |time: Duration| time.as_secs_f64() * 1e6 / transactions;
    let latencies = latencies(&logs)?;
    let at = |part| quantile(&latencies, part).context("pgbench logged no transaction");
    Ok(Commits {
        load,
        contender,
        round,
        transactions_per_second,
        p50_ms: at(0.5)?,
        p99_ms: at(0.99)?,
        flush_lag_ms: middle_and_tail(&flush),
        replay_lag_ms: middle_and_tail(&replay),
        active_cpu_us: each(after.active.saturating_sub(before.active)),
        passive_cpu_us: each(after.passive.saturating_sub(before.passive)),
    })
}

fn middle_and_tail(values: &[f64]) -> Option<[f64; 2]> {
    let sorted = sorted(values);
    Some([quantile(&sorted, 0.5)?, quantile(&sorted, 0.99)?])
}

/// `tps = 1234.5 (without initial connection time)`.
fn transactions_per_second(said: &str) -> Option<f64> {
    let line = said.lines().find_map(|line| line.strip_prefix("tps = "))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Every transaction's latency in milliseconds, sorted: the third column of pgbench's logs, in
/// microseconds.
fn latencies(logs: &std::path::Path) -> Result<Vec<f64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(logs)? {
        let text = fs::read_to_string(entry?.path())?;
        let columns = text.lines().filter_map(|line| line.split_whitespace().nth(2));
        found.extend(columns.filter_map(|us| us.parse::<f64>().ok()).map(|us| us / 1e3));
    }
    Ok(sorted(&found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read_without_the_time_to_connect() {
        let said = "number of clients: 8\ntps = 2160.123 (without initial connection time)\n";
        assert_eq!(transactions_per_second(said), Some(2160.123));
        assert_eq!(transactions_per_second("pgbench: error"), None);
    }
}
