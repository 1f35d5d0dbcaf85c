//! The verb `sim`: which seeds, on how many threads, and what is said about them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use understudy_sim::simulator::{self, Fault, Report};

use crate::record;

/// Failing seeds that are shown in full.
const SHOWN_MAX: usize = 5;

/// Which seeds, and how.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Run this one alone, and print what happens in it.
    #[arg(long, conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
    /// With `--seed`: try only these of its faults, for instance `0,3`.
    #[arg(long, value_delimiter = ',', requires = "seed")]
    faults: Vec<usize>,
    /// With `--seed`: write the decision trace of this node (1 to 3), for `understudy replay`.
    #[arg(long, value_name = "N", requires_all = ["seed", "out"],
          value_parser = clap::value_parser!(u8).range(1..=3))]
    trace_node: Option<u8>,
    /// Where the trace is written.
    #[arg(long, value_name = "FILE", requires = "trace_node")]
    out: Option<PathBuf>,
    /// Begin at a number that no run has had, from the clock.
    #[arg(long, conflicts_with_all = ["seed", "first"])]
    fresh: bool,
    /// Stop after this many seconds, whatever is left.
    #[arg(long)]
    seconds_budget: Option<u64>,
    /// Append what came of the run to this file, one line of JSON.
    #[arg(long, conflicts_with = "seed")]
    record: Option<PathBuf>,
    /// With `--record`: go on behind what is recorded there from `--first` on without a gap.
    #[arg(long, requires = "record", conflicts_with = "fresh")]
    resume: bool,
    /// How many threads; all cores without it.
    #[arg(long)]
    threads: Option<usize>,
    /// For people or for programs.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Put each mistake of `SeededBug` back in turn and find the first seed that catches it.
    #[cfg(feature = "seeded-bugs")]
    #[arg(long, conflicts_with_all = ["seed", "fresh"])]
    pub(crate) seeded_bugs: bool,
    /// Put this mistake back.
    #[cfg(feature = "seeded-bugs")]
    #[arg(long)]
    pub(crate) bug: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// What all seeds together came to.
#[derive(Default)]
struct Sum {
    run_count: u64,
    rejected: Vec<u64>,
    failed: Vec<Report>,
    fired: BTreeMap<Fault, u64>,
    idle: BTreeMap<Fault, u64>,
    simulated_ns: u128,
    events: u64,
    acks: u64,
    lost: u64,
    failovers: u64,
    late: u64,
}

impl Sum {
    fn add(&mut self, report: Report) {
        self.run_count += 1;
        self.simulated_ns += u128::from(report.simulated_ns);
        self.events += report.events;
        self.acks += report.ack_count;
        self.lost += report.lost_count;
        self.failovers += report.failovers;
        self.late += report.late_release_count;
        for (fault, count) in &report.fired {
            *self.fired.entry(*fault).or_default() += count;
        }
        for fault in &report.idle {
            *self.idle.entry(*fault).or_default() += 1;
        }
        if report.rejected {
            self.rejected.push(report.seed);
        }
        if report.violation.is_some() {
            self.failed.push(report);
            self.failed.sort_by_key(|report| report.seed);
        }
    }
}

/// Runs them; false if one failed. A rejected one says nothing, so it is counted apart.
pub(crate) fn run(options: &Options) -> Result<bool> {
    silence_panics();
    #[cfg(feature = "seeded-bugs")]
    if options.seeded_bugs {
        return Ok(crate::bugs::find_all(options.first, options.seeds));
    }
    make_bug(options);
    if let Some(seed) = options.seed {
        if let (Some(node), Some(out)) = (options.trace_node, &options.out) {
            return write_trace(seed, &options.faults, node, out);
        }
        return Ok(show_one(seed, &options.faults));
    }
    let first = match &options.record {
        _ if options.fresh => from_the_clock(),
        Some(path) if options.resume => record::next_seed(path, options.first)?,
        Some(_) | None => options.first,
    };
    // Of a series that goes on only what is left of it.
    let seeds = options.seeds.saturating_sub(if options.fresh { 0 } else { first - options.first });
    let begun = Instant::now();
    let sum = run_all(first, seeds, options, begun);
    if let Some(path) = &options.record {
        record::append(path, json(first, &sum, begun.elapsed()), threads(options))?;
    }
    match options.output {
        Output::Text => print_text(first, &sum, begun.elapsed()),
        Output::Json => println!("{:#}", json(first, &sum, begun.elapsed())),
    }
    Ok(sum.failed.is_empty())
}

/// The switch is each thread's own.
#[cfg(feature = "seeded-bugs")]
fn make_bug(options: &Options) {
    understudy_types::seed_bug(options.bug.as_deref().and_then(crate::bugs::named));
}

#[cfg(not(feature = "seeded-bugs"))]
fn make_bug(_: &Options) {}

/// A panic inside a run is caught and reported with its seed.
pub(crate) fn silence_panics() {
    std::panic::set_hook(Box::new(|_| {}));
}

fn from_the_clock() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(1, |since| since.as_secs() * 1_000_000)
}

fn threads(options: &Options) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    options.threads.unwrap_or_else(cores)
}

fn run_all(first: u64, seeds: u64, options: &Options, begun: Instant) -> Sum {
    let threads = threads(options);
    let budget = options.seconds_budget.map(Duration::from_secs);
    let (next, sum) = (AtomicU64::new(0), Mutex::new(Sum::default()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                make_bug(options);
                while budget.is_none_or(|budget| begun.elapsed() < budget) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= seeds {
                        return;
                    }
                    let report = simulator::run(first + index, None, false);
                    sum.lock().expect("no thread panics while it adds").add(report);
                }
            });
        }
    });
    sum.into_inner().expect("no thread panics while it adds")
}

fn kept(faults: &[usize]) -> Option<BTreeSet<usize>> {
    (!faults.is_empty()).then(|| faults.iter().copied().collect())
}

/// Runs a seed for the decision trace of one of its nodes.
fn write_trace(seed: u64, faults: &[usize], node: u8, out: &Path) -> Result<bool> {
    let (report, bytes) =
        simulator::run_recorded(seed, kept(faults).as_ref(), usize::from(node) - 1);
    std::fs::write(out, &bytes).with_context(|| format!("write the trace {}", out.display()))?;
    let outcome = report.violation.as_deref().unwrap_or("good");
    println!("seed {seed}: {outcome}");
    println!("look at node {node} with: understudy replay {} --only changes", out.display());
    Ok(report.violation.is_none())
}

fn show_one(seed: u64, faults: &[usize]) -> bool {
    let report = simulator::run(seed, kept(faults).as_ref(), true);
    print!("{}", report.trace);
    println!("seed {seed}: {} events, hash {:016x}", report.events, report.hash);
    match &report.violation {
        Some(violation) => println!("seed {seed}: {violation}"),
        None if report.rejected => println!("seed {seed}: rejected, no fault took effect"),
        None => println!("seed {seed}: good"),
    }
    report.violation.is_none()
}

/// The line that runs it again, and the end of what happened.
pub(crate) fn explain(report: &Report) {
    let violation = report.violation.as_deref().unwrap_or_default();
    println!("seed {}: {violation}", report.seed);
    println!("  again: cargo xtask sim --seed {}", report.seed);
    let fewest = simulator::shrink(report.seed);
    let list: Vec<String> = fewest.iter().map(ToString::to_string).collect();
    let list = list.join(",");
    if !fewest.is_empty() {
        println!("  with fewer faults: cargo xtask sim --seed {} --faults {list}", report.seed);
    }
    let keep = (!fewest.is_empty()).then_some(&fewest);
    let again = simulator::run(report.seed, keep, true);
    let lines: Vec<&str> = again.trace.lines().collect();
    for line in &lines[lines.len().saturating_sub(25)..] {
        println!("    {line}");
    }
}

fn print_text(first: u64, sum: &Sum, took: Duration) {
    for report in sum.failed.iter().take(SHOWN_MAX) {
        explain(report);
    }
    for report in sum.failed.iter().skip(SHOWN_MAX) {
        println!("seed {}: {}", report.seed, report.violation.as_deref().unwrap_or_default());
    }
    let days = sum.simulated_ns as f64 / 86_400e9;
    println!(
        "{} seeds from {first}: {} failed, {} rejected; {days:.2} simulated days in {:.1} s, {} events",
        sum.run_count,
        sum.failed.len(),
        sum.rejected.len(),
        took.as_secs_f64(),
        sum.events,
    );
    println!(
        "{} commits acknowledged, {} lost within what the dial allows, {} failovers, {} late releases",
        sum.acks, sum.lost, sum.failovers, sum.late
    );
    if !sum.rejected.is_empty() {
        println!("rejected, no fault took effect: {:?}", sum.rejected);
    }
    let fired: Vec<String> = sum.fired.iter().map(|(f, n)| format!("{f} {n}")).collect();
    println!("faults that took effect: {}", fired.join(", "));
    let idle: Vec<String> = sum.idle.iter().map(|(f, n)| format!("{f} {n}")).collect();
    println!("planned and never in effect, by seeds: {}", idle.join(", "));
}

fn json(first: u64, sum: &Sum, took: Duration) -> serde_json::Value {
    let by_name = |map: &BTreeMap<Fault, u64>| -> serde_json::Map<String, serde_json::Value> {
        map.iter().map(|(fault, count)| (fault.to_string(), (*count).into())).collect()
    };
    let failed: Vec<_> = sum
        .failed
        .iter()
        .map(|report| {
            serde_json::json!({
                "seed": report.seed,
                "violation": report.violation,
                "again": format!("cargo xtask sim --seed {}", report.seed),
            })
        })
        .collect();
    serde_json::json!({
        "version": 1,
        "first_seed": first,
        "seed_count": sum.run_count,
        "failed": failed,
        "rejected_seeds": sum.rejected,
        "simulated_seconds": (sum.simulated_ns / 1_000_000_000) as u64,
        "run_seconds": took.as_secs_f64(),
        "event_count": sum.events,
        "acknowledged_count": sum.acks,
        "lost_count": sum.lost,
        "failover_count": sum.failovers,
        "late_release_count": sum.late,
        "fired": by_name(&sum.fired),
        "idle_seeds": by_name(&sum.idle),
    })
}
