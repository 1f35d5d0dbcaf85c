//! The exhaustive model: every reachable state of three nodes within stated budgets, without a limit on
//! depth or time.
//!
//! **Real code**, called as it is: `ClusterState::apply` and `check_data`, both sides of the lease
//! (`HolderLease`, `ChallengerClock`) and `Timing`'s spans, `verdict::choose`, the gate's `release`, the
//! rejoin's `plan`.
//!
//! **Transcribed** from `understudy_core::node`: which step a role may take when (`holder.rs`,
//! `switchover.rs` and `others.rs` here; each function names its rule). A step is possible at any moment
//! after its conditions hold, so patience, retries and timeouts of the real core are a special case. The
//! transcription is wider than the core in this: every node may act as the leader by whatever it has
//! applied, renewals may be sent at any moment, and the passive may be given up at any moment.
//!
//! **Abstract**: time is ticks, in which each node's clock moves at one extreme of a drift of a quarter
//! (far above the real bound, so that it shows); the margin covers the one tick that a look at the gate
//! may take to become a write; WAL is a few writes; the consensus is a log whose entries are proposed,
//! then committed at any later moment or never, then applied by each node later still. A node that is cut
//! off may be late without bound and comes back by a snapshot. A cut of the consensus in either
//! direction is thus a special case; a cut of the WAL stream is a step of its own and costs nothing.
//!
//! **Not in it**: exposure as a time (only the credit, in bytes), the candidate's report being older
//! than its use other than by a late proposal, marks, ordered failovers, pauses and policies, data loss
//! below fsync, Raft's own elections (a log is assumed), a frame that is received and not yet durable.
//! Budgets bound renewals, writes, epochs, orders and faults; see `configurations.rs`.
//!
//! To add a command: let it be proposed in the role's file and be named in `Protocol::forget_hopeless`;
//! `apply` is the real one already.

mod book;
pub mod checker;
pub mod configurations;
mod holder;
mod leader;
pub mod mutants;
mod others;
mod properties;
mod protocol;
pub mod report;
mod switchover;
#[cfg(test)]
mod tests;
mod world;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

pub use protocol::{Action, Protocol};

use checker::{Limits, Run};
use configurations::Configuration;
use report::{ConfigurationReport, MutantReport, Report};

/// What `understudy-sim model` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Search these configurations only; `all` is every one that takes less than two minutes,
    /// and an unknown name lists them.
    #[arg(long = "configuration", value_name = "NAME", default_value = "all")]
    configurations: Vec<String>,
    /// Put each known mistake back instead, and show that it is found (feature `seeded-bugs`).
    #[arg(long)]
    mutants: bool,
    /// Print the steps to each mistake.
    #[arg(long)]
    steps: bool,
    /// Keep at most this many states of one configuration; each takes about 40 bytes.
    #[arg(long, default_value_t = 60_000_000)]
    states_max: usize,
    /// Spend at most this long on one configuration.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    seconds_max: u64,
    /// The form of the report.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// The form of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Runs what was asked for and prints it. Whether every claim stands and every mistake was found.
///
/// # Errors
/// When a configuration does not exist or the report cannot be written.
pub fn main(args: &Args) -> Result<bool> {
    let limits =
        Limits { states_max: args.states_max, time_max: Duration::from_secs(args.seconds_max) };
    let mut report =
        Report { format: report::FORMAT, good: true, configurations: vec![], mutants: vec![] };
    if args.mutants {
        for mutant in mutants::ALL {
            let found = run_mutant(mutant, limits)?;
            report.good &= found.breaks.is_some();
            say(args, &found.text(args.steps));
            report.mutants.push(found);
        }
    } else {
        for configuration in selected(&args.configurations)? {
            let Configuration { name, purpose, .. } = configuration;
            let found = ConfigurationReport::new(name, purpose, &run(configuration, limits));
            report.good &= found.is_good();
            say(args, &found.text());
            report.configurations.push(found);
        }
    }
    if args.output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&report).context("write the report")?);
    }
    Ok(report.good)
}

fn say(args: &Args, text: &str) {
    if args.output == Output::Text {
        println!("{text}");
    }
}

fn selected(names: &[String]) -> Result<Vec<Configuration>> {
    if names.iter().any(|name| name == "all") {
        let all = configurations::ALL.iter().copied();
        return Ok(all
            .filter(|configuration| !configurations::LONG.contains(&configuration.name))
            .collect());
    }
    let find = |name: &String| {
        let known: Vec<&str> = configurations::ALL.iter().map(|known| known.name).collect();
        configurations::named(name)
            .with_context(|| format!("no configuration {name:?}; there are {}", known.join(", ")))
    };
    names.iter().map(find).collect()
}

/// Searches one configuration.
pub fn run(configuration: Configuration, limits: Limits) -> Run {
    checker::check(&Protocol::new(configuration), limits)
}

/// Searches with one mistake, on a thread of its own: the mistake belongs to the thread.
///
/// # Errors
/// When mistakes were not built in.
#[cfg(feature = "seeded-bugs")]
pub fn run_mutant(mutant: &mutants::Mutant, limits: Limits) -> Result<MutantReport> {
    let configuration = configurations::named(mutant.configuration)
        .with_context(|| format!("{:?} names no configuration", mutant.bug))?;
    let bug = mutant.bug;
    let search = std::thread::spawn(move || {
        understudy_types::seed_bug(Some(bug));
        run(configuration, limits)
    });
    let Ok(found) = search.join() else { bail!("the search with {bug:?} panicked") };
    Ok(MutantReport::new(format!("{bug:?}"), configuration.name, &found))
}

/// Searches with one mistake.
///
/// # Errors
/// Always: mistakes were not built in.
#[cfg(not(feature = "seeded-bugs"))]
pub fn run_mutant(mutant: &mutants::Mutant, _: Limits) -> Result<MutantReport> {
    bail!("{:?} cannot be made: build with --features seeded-bugs", mutant.bug)
}
