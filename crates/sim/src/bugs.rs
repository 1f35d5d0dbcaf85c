//! Puts each known mistake back, one at a time, and looks for the first seed that catches it.
//!
//! A mistake that no seed catches means that the net has a hole, and fails the run.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use understudy_sim::simulator::{self, Report};
use understudy_types::{SeededBug, seed_bug};

/// Those of the exhaustive model: their windows are one entry of the log wide, which the model searches
/// and a seed rarely meets.
const MODEL_S: [SeededBug; 10] = [
    SeededBug::CommittedTakenForAccepted,
    SeededBug::PromoteIgnoresSeq,
    SeededBug::JoinBeforeWait,
    SeededBug::RemoveBeforeRecorded,
    SeededBug::NoGeneration,
    SeededBug::ModeOfOldConfiguration,
    SeededBug::PositionsGoBack,
    SeededBug::TtlFromConfiguration,
    SeededBug::SupersedeWithoutPhase,
    SeededBug::NoProcessStart,
];

/// The seeds that caught a mistake last: `bug seed`, one a line.
const KEPT: &str = include_str!("../seeds/bugs.txt");

/// The mistake of that name.
pub(crate) fn named(name: &str) -> Option<SeededBug> {
    SeededBug::ALL.into_iter().find(|bug| format!("{bug:?}") == name)
}

/// For each mistake the kept seed if it still catches it, else the first of `seeds` from `first` on;
/// false if one is not caught.
pub(crate) fn find_all(first: u64, seeds: u64) -> bool {
    let mut caught_all = true;
    for bug in mine() {
        let begun = Instant::now();
        let name = format!("{bug:?}");
        let caught = kept(&name).and_then(|seed| catches(bug, seed));
        let caught = caught.or_else(|| search(bug, first, seeds));
        let seconds = begun.elapsed().as_secs_f64();
        match caught {
            Some(report) => {
                let violation = report.violation.unwrap_or_default();
                println!("{name} {} {seconds:.1} s {violation}", report.seed);
            }
            None => {
                caught_all = false;
                println!("{name} NOT CAUGHT by {seeds} seeds from {first}, {seconds:.1} s");
            }
        }
    }
    caught_all
}

fn kept(name: &str) -> Option<u64> {
    let line = KEPT.lines().find(|line| line.split(' ').next() == Some(name))?;
    line.split(' ').nth(1)?.parse().ok()
}

/// Those that this net has to catch.
fn mine() -> impl Iterator<Item = SeededBug> {
    SeededBug::ALL.into_iter().filter(|bug| !MODEL_S.contains(bug))
}

/// The invariant that a mistake breaks first of all, where something else may notice it before.
fn symptom(bug: SeededBug) -> &'static str {
    // Two leases that overlap, and not the bound on exposure, which is shorter than a lease.
    if bug == SeededBug::NoMargin { "I3 I4" } else { "" }
}

/// The mistake makes the seed fail, and without it the seed is good.
fn catches(bug: SeededBug, seed: u64) -> Option<Report> {
    seed_bug(Some(bug));
    let report = simulator::run(seed, None, false);
    seed_bug(None);
    let caught = report.violation.as_ref().is_some_and(|words| words.starts_with(symptom(bug)));
    (caught && simulator::run(seed, None, false).violation.is_none()).then_some(report)
}

fn search(bug: SeededBug, first: u64, seeds: u64) -> Option<Report> {
    let (next, found) = (AtomicU64::new(0), Mutex::new(None::<Report>));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let best =
                        found.lock().expect("no thread panics with it").as_ref().map(seed_of);
                    if index >= seeds || best.is_some_and(|best| best < first + index) {
                        return;
                    }
                    if let Some(report) = catches(bug, first + index) {
                        let mut found = found.lock().expect("no thread panics with it");
                        if found.as_ref().is_none_or(|other| other.seed > report.seed) {
                            *found = Some(report);
                        }
                    }
                }
            });
        }
    });
    found.into_inner().expect("no thread panics with it")
}

fn seed_of(report: &Report) -> u64 {
    report.seed
}
