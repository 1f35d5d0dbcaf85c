//! Series: the same kind of fault again and again on a cluster that lives on and heals in between, with a
//! line of figures for each round and a summary over all of them.
//!
//! A series that was interrupted goes on where its file ends.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::Cli;
use crate::catalogue::{Row, Status};
use crate::lab::Mode;
use crate::play::Pace;
use crate::report::Output;
use crate::rig::{Clusters, append};
use crate::scenarios::{links, processes};

/// Which fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// The active is cut off from the other sites.
    Isolation,
    /// The daemon, the postmaster, the whole site stand still, in turn.
    Freeze,
}

/// Rounds in one mode before the other has its turn: each change founds a cluster.
const ROUNDS_PER_MODE: u32 = 5;

const ISOLATION: [Row; 1] = [Row::new(
    "isolation",
    "the active site is isolated",
    "as F-19",
    Status::Built(links::active_is_isolated),
)];

const FREEZES: [Row; 3] = [
    Row::new(
        "freeze-daemon",
        "SIGSTOP the active's daemon for half a lease, one and five",
        "as F-4",
        Status::Built(processes::active_s_daemon_stands_still),
    ),
    Row::new(
        "freeze-postmaster",
        "SIGSTOP the active's postmaster for two leases",
        "commits go on or move; none is lost",
        Status::Built(processes::active_s_postmaster_stands_still_a_while),
    ),
    Row::new(
        "freeze-site",
        "freeze the whole active site",
        "as F-8",
        Status::Built(processes::active_site_stands_still),
    ),
];

/// What a series came to.
#[derive(Debug, Default)]
struct Total {
    rounds: u64,
    failed: u64,
    late_releases: u64,
    acknowledged: u64,
    lost: u64,
    outages_ms: Vec<u64>,
}

impl Total {
    fn add(&mut self, line: &Value) {
        let number = |name: &str| line[name].as_u64().unwrap_or_default();
        self.rounds += 1;
        self.failed += u64::from(line["passed"] != true);
        self.late_releases += number("late_releases");
        self.acknowledged += number("acknowledged");
        self.lost += number("lost");
        self.outages_ms.extend(line["write_outage_ms"].as_u64());
    }

    fn summary(mut self, kind: Kind) -> Value {
        self.outages_ms.sort_unstable();
        let outages = &self.outages_ms;
        json!({
            "series": kind,
            "rows": self.rounds,
            "failed": self.failed,
            "late_releases": self.late_releases,
            "acknowledged": self.acknowledged,
            "lost": self.lost,
            "write_outage_ms_min": outages.first(),
            "write_outage_ms_median": outages.get(outages.len() / 2),
            "write_outage_ms_max": outages.last(),
        })
    }
}

/// Plays `rounds` rounds, those that the file already has included; whether all of them passed.
pub(crate) fn run(
    cli: &Cli,
    kind: Kind,
    rounds: u32,
    clusters: &mut Clusters,
    runtime: &Runtime,
) -> Result<bool> {
    let rows: &[Row] = match kind {
        Kind::Isolation => &ISOLATION,
        Kind::Freeze => &FREEZES,
    };
    let mut total = Total::default();
    let wanted = serde_json::to_value(kind)?;
    let mine = |line: &Value| line["series"] == wanted;
    let earlier = cli.record.as_deref().map(|file| read(file, mine)).transpose()?;
    for line in earlier.iter().flatten() {
        total.add(line);
    }
    let done = u32::try_from(total.rounds).unwrap_or(u32::MAX);
    for round in done..rounds {
        let mode = cli.mode.unwrap_or(mode_of(round));
        let index = usize::try_from(round).unwrap_or_default() % rows.len();
        let played = clusters.play(&rows[index], mode.into(), Pace::ROWS, runtime);
        crate::report::result(cli.output, &played)?;
        let mut line = serde_json::to_value(&played)?;
        line["series"] = serde_json::to_value(kind)?;
        line["round"] = json!(round + 1);
        line["commit"] = json!(commit());
        line["machine"] = json!(machine());
        if let Some(file) = &cli.record {
            append(file, &line)?;
        }
        total.add(&line);
    }
    let good = total.failed == 0 && total.late_releases == 0;
    let summary = total.summary(kind);
    match cli.output {
        Output::Json => println!("{summary}"),
        Output::Text => println!("{summary:#}"),
    }
    Ok(good)
}

fn mode_of(round: u32) -> Mode {
    if (round / ROUNDS_PER_MODE).is_multiple_of(2) { Mode::Zero } else { Mode::Bounded }
}

/// The lines of a file that are `mine`.
pub(crate) fn read(file: &Path, mine: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
    };
    let mut lines = Vec::new();
    for line in text.lines() {
        // A line that an interrupted run left half is no round.
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        if mine(&line) {
            lines.push(line);
        }
    }
    Ok(lines)
}

/// The commit that was built, as git names it.
pub(crate) fn commit() -> Option<String> {
    let mut git = std::process::Command::new("git");
    crate::command::output(git.args(["describe", "--always", "--dirty"])).ok()
}

/// The machine's class: processors and memory, not its name.
pub(crate) fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().next().and_then(|line| line.split_whitespace().nth(1));
    let gib = kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() / 1_048_576;
    format!("{processors} processors, {gib} GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_counts_every_round_and_orders_the_outages() {
        let mut total = Total::default();
        for (outage, passed) in [(3000, true), (2500, true), (9000, false)] {
            total.add(&json!({
                "passed": passed, "late_releases": 1, "acknowledged": 10, "lost": 0,
                "write_outage_ms": outage,
            }));
        }
        let summary = total.summary(Kind::Isolation);
        assert_eq!(summary["rows"], 3);
        assert_eq!(summary["failed"], 1);
        assert_eq!(summary["late_releases"], 3);
        let outages =
            ["min", "median", "max"].map(|name| summary[format!("write_outage_ms_{name}")].clone());
        assert_eq!(outages, [json!(2500), json!(3000), json!(9000)]);
    }

    #[test]
    fn modes_take_turns_in_blocks() {
        assert_eq!(mode_of(0), Mode::Zero);
        assert_eq!(mode_of(ROUNDS_PER_MODE), Mode::Bounded);
        assert_eq!(mode_of(2 * ROUNDS_PER_MODE), Mode::Zero);
    }
}
