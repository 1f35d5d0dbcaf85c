//! What a seed tries on purpose beside the faults that it draws at random: what operators order, and
//! plans that aim at one narrow window.
//!
//! Drawn from a stream of chance of its own, so that seeds without any of it keep their meaning. Only
//! draws; the world carries out.

use std::collections::BTreeSet;

use super::plan::{Fault, MS, Plan, Planned, SEC, US};
use super::random::Random;

/// A narrow window, and the faults that hit it together.
#[derive(Clone, Copy, Debug)]
enum Aim {
    /// The old active's core is starved while its WAL goes on flowing, and the candidate's disk is slow
    /// while it seals: reading the end before the seal misses what arrives in between.
    Seal,
    /// Whoever was promoted last is restarted by an old state, and hears nobody for a while.
    OldState,
    /// The active is cut off from the rest under load, with clocks at both extremes and writes of the
    /// gate that take all the time that the margin leaves them: its lease ends as late as it may.
    Margin,
    /// A returning node dies again and again while it is rewound or cloned.
    Copy,
}

/// Adds to a drawn plan what operators order, in two seeds of five, and an aim, in one of five.
pub(super) fn add(plan: &mut Plan, seed: u64, begin: u64, safety: u64) {
    let mut random = Random::new(seed, 3);
    if random.chance(400) {
        add_orders(plan, &mut random, begin, safety);
    }
    if random.chance(200) {
        let aim = random.pick(&[Aim::Seal, Aim::OldState, Aim::Margin, Aim::Copy]);
        add_aim(plan, &mut random, aim, begin, safety);
    }
}

/// In every fifth seed, from a stream of chance of its own: orders to one node, mostly with something going
/// wrong in the middle.
pub(super) fn add_node_orders(plan: &mut Plan, seed: u64, begin: u64, safety: u64) {
    let mut random = Random::new(seed, 7);
    if !random.chance(200) {
        return;
    }
    let fault = Fault::NodeOrder;
    plan.kinds.insert(fault);
    for _ in 0..random.between(1, 6) {
        let at = begin + random.between(0, safety);
        let length = random.spread(SEC, 60 * SEC);
        let others = plan.faults.len() as u64;
        plan.faults.push(Planned { at, fault, node: 0, other: 1, at_active: true, length });
        if others > 0 && random.chance(600) {
            let index = random.between(0, others - 1) as usize;
            plan.faults[index].at = at + random.spread(MS, 6 * SEC);
        }
    }
}

fn add_orders(plan: &mut Plan, random: &mut Random, begin: u64, safety: u64) {
    let kinds: BTreeSet<Fault> = [Fault::Switchover, Fault::Dial, Fault::AcceptLoss]
        .into_iter()
        .filter(|_| random.chance(600))
        .collect();
    for fault in kinds {
        plan.kinds.insert(fault);
        for _ in 0..random.between(1, 4) {
            let at = begin + random.between(0, safety);
            let length = random.spread(SEC, 20 * SEC);
            plan.faults.push(Planned { at, fault, node: 0, other: 1, at_active: true, length });
            // Something else goes wrong in the middle of it.
            let others = plan.faults.len() as u64 - 1;
            if random.chance(600) {
                let index = random.between(0, others) as usize;
                plan.faults[index].at = at + random.spread(MS, 6 * SEC);
            }
        }
    }
}

fn add_aim(plan: &mut Plan, random: &mut Random, aim: Aim, begin: u64, safety: u64) {
    let mut add = |fault, at, node: usize, at_active, length| {
        plan.kinds.insert(fault);
        plan.faults.push(Planned { at, fault, node, other: 1 - node.min(1), at_active, length });
    };
    let at = begin + 20 * SEC + random.between(0, safety.saturating_sub(80 * SEC));
    match aim {
        Aim::Seal => {
            add(Fault::CoreStall, at, 0, true, random.between(10, 20) * SEC);
            for node in 0..2 {
                add(Fault::SlowDisk, at + 2 * SEC, node, false, 15 * SEC);
            }
        }
        Aim::OldState => {
            // A second start of a process begins with the last snapshot.
            for node in 0..2 {
                add(Fault::DaemonCrash, at, node, false, 100 * MS);
            }
            let lost = at + 20 * SEC;
            add(Fault::MachineCrash, lost, 0, true, 50 * SEC);
            let again = lost + random.between(5_000, 12_000) * MS;
            add(Fault::DaemonCrash, again, 0, true, random.between(20, 300) * MS);
            add(Fault::Isolate, again + 10 * MS, 0, true, 5 * SEC);
        }
        Aim::Margin => {
            for round in 0..6 {
                let at = at + round * 25 * SEC;
                add(Fault::Isolate, at, 0, true, random.between(5_000, 9_000) * MS);
            }
            let bound = i64::from(plan.timing.drift_ppm);
            plan.drift_ppm = [-bound, -bound, bound];
            plan.link_delay = [200 * US; 3];
            plan.fsync = 100 * US;
            plan.write_delay_max = plan.timing.margin.as_nanos() as u64 / 10 * 9;
            plan.commit_every = 20 * MS;
        }
        Aim::Copy => {
            add(Fault::MachineCrash, at, 0, true, 12 * SEC);
            for round in 0..10 {
                let at = at + 13 * SEC + round * random.between(500, 3_000) * MS;
                let node = random.between(0, 1) as usize;
                add(Fault::DaemonCrash, at, node, false, 100 * MS);
            }
        }
    }
}

/// The journal of the third node is lost, begins anew while the passive is behind, and then the active is
/// lost: what lies between the passive's end and the journal's beginning is at neither.
pub(super) fn lose_the_journal(plan: &mut Plan, random: &mut Random, safety: u64) {
    let mut add = |fault, at, node: usize, at_active, length| {
        plan.kinds.insert(fault);
        plan.faults.push(Planned { at, fault, node, other: 1 - node.min(1), at_active, length });
    };
    for _ in 0..random.between(1, 3) {
        let at = 30 * SEC + random.between(0, safety.saturating_sub(60 * SEC));
        add(Fault::JournalLost, at, 2, false, random.between(50, 800) * MS);
        let slow = at + random.between(0, 300) * MS;
        add(Fault::SlowLink, slow, 0, true, random.between(3, 20) * SEC);
        let behind = at + random.between(200, 3_000) * MS;
        let node = random.between(0, 1) as usize;
        add(Fault::DaemonFreeze, behind, node, false, random.between(2, 15) * SEC);
        let lost = at + random.between(2_000, 12_000) * MS;
        add(Fault::MachineCrash, lost, 0, true, random.between(20, 60) * SEC);
    }
}
