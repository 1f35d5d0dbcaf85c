//! The inner process: keeps a cluster, plays rows on it, and founds another one after a row that failed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::Cli;
use crate::arena::Arena;
use crate::catalogue::{ROWS, Row, find};
use crate::lab::{Lab, Mode, Shape};
use crate::play::{self, Pace, Played};
use crate::{bulk, outages, receivers, report, series, soak};

/// A cluster may be used for so many rows; then its history is long enough.
const ROWS_PER_CLUSTER: u32 = 12;

/// How many rows or rounds will be played at most.
pub(crate) fn turns(cli: &Cli) -> u32 {
    let rows = u32::try_from(rows(cli).len()).unwrap_or(u32::MAX);
    if let Some(runs) = cli.outages {
        return outages::turns(cli, runs);
    }
    if let Some(minutes) = cli.soak {
        return soak::turns(minutes);
    }
    if let Some(minutes) = cli.receivers {
        return receivers::turns(minutes);
    }
    if let Some(gib) = cli.bulk {
        return bulk::turns(gib);
    }
    cli.isolations.or(cli.freezes).unwrap_or_else(|| rows.saturating_mul(cli.times)).max(1)
}

fn rows(cli: &Cli) -> Vec<&'static Row> {
    if cli.rows.is_empty() {
        return ROWS.iter().filter(|row| row.play().is_some()).collect();
    }
    cli.rows.iter().filter_map(|id| find(id)).collect()
}

/// Plays everything that was asked for.
///
/// # Errors
/// When the rig itself fails; rows that fail are results.
pub(crate) fn run(cli: &Cli, arena: &Arena) -> Result<ExitCode> {
    // Without the outer process nobody would sweep.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("tie the rig to its outer process")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let mut clusters = Clusters::new(arena, binary(cli)?, cli);
    let good = if let Some(rounds) = cli.isolations {
        series::run(cli, series::Kind::Isolation, rounds, &mut clusters, &runtime)?
    } else if let Some(rounds) = cli.freezes {
        series::run(cli, series::Kind::Freeze, rounds, &mut clusters, &runtime)?
    } else if let Some(runs) = cli.outages {
        outages::run(cli, runs, &mut clusters, &runtime)?
    } else if let Some(minutes) = cli.soak {
        soak::run(cli, minutes, &mut clusters, &runtime)?
    } else if let Some(minutes) = cli.receivers {
        receivers::run(cli, minutes, &mut clusters, &runtime)?
    } else if let Some(gib) = cli.bulk {
        bulk::run(cli, gib, &mut clusters, &runtime)?
    } else {
        play_rows(cli, &mut clusters, &runtime)?
    };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn play_rows(cli: &Cli, clusters: &mut Clusters, runtime: &Runtime) -> Result<bool> {
    let mode = cli.mode.unwrap_or(Mode::Zero);
    let pace = Pace { timed: !cli.untimed, ..Pace::ROWS };
    let mut results = Vec::new();
    for _ in 0..cli.times {
        for row in rows(cli) {
            let played = clusters.play(row, mode.into(), pace, runtime);
            report::result(cli.output, &played)?;
            if let Some(file) = &cli.record {
                append(file, &played)?;
            }
            results.push(played);
        }
    }
    report::summary(cli.output, &results)?;
    Ok(results.iter().all(|played| played.passed))
}

/// Appends one JSON line, on the disk when this returns.
pub(crate) fn append(file: &Path, line: &impl Serialize) -> Result<()> {
    let what = || format!("append to {}", file.display());
    let mut open =
        std::fs::File::options().create(true).append(true).open(file).with_context(what)?;
    writeln!(open, "{}", serde_json::to_string(line)?).with_context(what)?;
    open.sync_all().with_context(what)
}

fn binary(cli: &Cli) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program's own file")?;
    let binary = cli.binary.clone().unwrap_or_else(|| own.with_file_name("understudy"));
    binary.canonicalize().with_context(|| {
        format!(
            "find {}: build it with `cargo build --workspace`, or use `cargo xtask chaos`",
            binary.display()
        )
    })
}

/// The cluster that is in use, and how to get another one.
pub(crate) struct Clusters {
    arena: Arena,
    binary: PathBuf,
    logs: PathBuf,
    /// The third node of every one keeps the journal.
    journal: bool,
    lab: Option<Lab>,
    used: u32,
    founded: u32,
}

impl Clusters {
    fn new(arena: &Arena, binary: PathBuf, cli: &Cli) -> Clusters {
        let (arena, logs, journal) = (arena.clone(), cli.logs.clone(), cli.journal);
        Clusters { arena, binary, logs, journal, lab: None, used: 0, founded: 0 }
    }

    /// A cluster of this shape; the present one while it is good for it.
    fn with_shape(&mut self, shape: Shape) -> Result<&Lab> {
        let shape = Shape { journal: self.journal, ..shape };
        let spent = self.used >= ROWS_PER_CLUSTER;
        if spent || self.lab.as_ref().is_some_and(|lab| lab.shape != shape) {
            self.lab = None;
        }
        self.used += 1;
        if self.lab.is_none() {
            self.founded += 1;
            self.used = 1;
            self.lab = Some(Lab::found(&self.arena, &self.binary, shape, self.founded)?);
        }
        Ok(self.lab.as_ref().expect("it was founded above"))
    }

    /// Plays a row; a cluster on which one failed is not used again.
    pub(crate) fn play(
        &mut self,
        row: &Row,
        shape: Shape,
        pace: Pace,
        runtime: &Runtime,
    ) -> Played {
        let lab = match self.with_shape(shape) {
            Ok(lab) => lab,
            Err(error) => {
                return play::never_played(row, shape.mode, &error.context("found a cluster"));
            }
        };
        let mut played = play::play(row, lab, runtime, pace);
        if !played.passed {
            let logs = play::logs_of(&played, &self.logs);
            let lab = self.lab.as_ref().expect("the row was played on it");
            match lab.keep_logs(&logs) {
                Ok(()) => played.notes.push(format!("logs: {}", logs.display())),
                Err(error) => played.notes.push(format!("logs were not kept: {error:#}")),
            }
        }
        if played.spent {
            self.lab = None;
        }
        played
    }
}
