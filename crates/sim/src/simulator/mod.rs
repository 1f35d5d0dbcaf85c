//! The seeded simulator: one seed, one world, one verdict (docs/decisions/0011-simulator.md).
//!
//! A run has a phase with faults, in which every step is judged; then all faults are removed, the
//! cluster has to become whole, and the active site is lost once more. The same seed gives the same
//! run, byte for byte.

mod aims;
mod chaos;
mod content;
mod daemon;
mod hands;
mod judges;
mod losses;
mod machine;
mod operator;
mod orders;
mod plan;
mod postgres;
mod raft;
mod random;
mod recording;
mod server;
mod shipping;
mod switchover;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use understudy_types::DurabilityMode;

pub use plan::Fault;
use world::{Stage, World};

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which.
    pub seed: u64,
    /// The sentence that did not hold, or the panic, if there was one.
    pub violation: Option<String>,
    /// None of the faults that were intended took effect: the run says nothing.
    pub rejected: bool,
    /// How many faults were planned.
    pub planned_count: usize,
    /// How often each kind took effect.
    pub fired: BTreeMap<Fault, u64>,
    /// Kinds that were planned and never took effect.
    pub idle: Vec<Fault>,
    /// Simulated time, nanoseconds.
    pub simulated_ns: u64,
    /// Events that happened.
    pub events: u64,
    /// Commits that clients were told of.
    pub ack_count: u64,
    /// Of those, how many survived to the end, by the mode they were released in.
    pub kept: BTreeMap<DurabilityMode, u64>,
    /// Acknowledged commits that a failover lost, as the dial allows in `bounded` and `best-effort`.
    pub lost_count: u64,
    /// Epochs that were granted.
    pub grant_count: usize,
    /// Failovers that were completed.
    pub failovers: u64,
    /// Releases that a frozen process delivered late.
    pub late_release_count: u64,
    /// Over every event's moment, in order.
    pub hash: u64,
    /// What happened, if it was to be kept.
    pub trace: String,
}

/// Runs a seed. `keep` names those of its planned faults that are tried; all without it.
pub fn run(seed: u64, keep: Option<&BTreeSet<usize>>, keeps_trace: bool) -> Report {
    run_world(seed, &mut World::new(seed, keep, keeps_trace))
}

/// The same with the decision trace of one node (0 to 2), as its recorder would have written it.
pub fn run_recorded(seed: u64, keep: Option<&BTreeSet<usize>>, node: usize) -> (Report, Vec<u8>) {
    let mut world = World::new(seed, keep, true);
    world.record(seed, node);
    let report = run_world(seed, &mut world);
    (report, world.recording.map(|recording| recording.bytes).unwrap_or_default())
}

fn run_world(seed: u64, world: &mut World) -> Report {
    let planned_count = world.plan.faults.len();
    // A broken invariant inside the core is an assertion there; here it is a violation like others.
    let panicked = catch_unwind(AssertUnwindSafe(|| world.run())).err().map(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        format!("panic: {}", text.unwrap_or_default())
    });
    let unfinished = (world.stage != Stage::Done).then(|| "the run ended early".to_owned());
    let violation = world.breach.as_ref().map(ToString::to_string).or(panicked).or(unfinished);
    let idle: Vec<Fault> =
        world.plan.kinds.iter().filter(|kind| !world.fired.contains_key(kind)).copied().collect();
    Report {
        seed,
        rejected: violation.is_none() && world.fired.is_empty() && planned_count > 0,
        violation,
        planned_count,
        idle,
        simulated_ns: world.now,
        events: world.events,
        ack_count: world.ack_count,
        kept: world.acked_by_mode(),
        lost_count: world.lost_count,
        grant_count: world.grants.len(),
        failovers: world.failovers,
        late_release_count: world.late_releases,
        hash: world.trace.hash(),
        fired: std::mem::take(&mut world.fired),
        trace: std::mem::take(&mut world.trace.lines),
    }
}

/// The fewest of a failing seed's faults with which it still fails, found by leaving out one after the
/// other.
pub fn shrink(seed: u64) -> BTreeSet<usize> {
    let mut keep: BTreeSet<usize> = (0..run(seed, None, false).planned_count).collect();
    loop {
        let before = keep.len();
        for index in keep.clone() {
            let fewer: BTreeSet<usize> = keep.iter().copied().filter(|k| *k != index).collect();
            if run(seed, Some(&fewer), false).violation.is_some() {
                keep = fewer;
            }
        }
        if keep.len() == before {
            return keep;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_trace_byte_for_byte() {
        for seed in 0..4 {
            let (one, other) = (run(seed, None, true), run(seed, None, true));
            assert!(one.trace.len() > 1000);
            assert_eq!(one.trace, other.trace, "seed {seed}");
            assert_eq!((one.hash, one.events), (other.hash, other.events));
            // Keeping the trace changes nothing.
            assert_eq!(run(seed, None, false).hash, one.hash);
        }
    }
}
