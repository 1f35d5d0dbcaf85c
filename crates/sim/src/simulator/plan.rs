//! What a seed stands for: the cluster, its machines, and the faults that will be tried.
//!
//! Each seed enables a random subset of the kinds of fault (swarm testing): a kind that always runs
//! beside every other hides what it would show alone. Only draws; the world carries out.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use understudy_core::{ClusterConfig, OnPassiveLoss, OnSoleSurvivor, Timing};
use understudy_types::{DurabilityMode, NodeKind};

use super::random::Random;

pub(crate) const US: u64 = 1_000;
pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SEC: u64 = 1_000_000_000;

/// How many faults a seed plans at most.
const FAULTS_MAX: u64 = 14;

/// What can be done to the modelled world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL of the daemon; PostgreSQL goes on.
    DaemonCrash,
    /// Power loss of a machine: everything that is not durable is gone.
    MachineCrash,
    /// SIGSTOP of the daemon alone.
    DaemonFreeze,
    /// SIGSTOP of every process of PostgreSQL.
    ServerFreeze,
    /// SIGSTOP of daemon and PostgreSQL.
    SiteFreeze,
    /// SIGKILL of the postmaster alone: its sessions go on.
    PostmasterKill,
    /// A session crashes and PostgreSQL restarts in place.
    ServerRestart,
    /// The machine is suspended: BOOTTIME goes on, MONOTONIC does not.
    Suspend,
    /// The core's loop is starved while the gate's thread goes on.
    CoreStall,
    /// Both directions between two nodes are cut.
    Cut,
    /// One direction between two nodes is cut.
    CutOneWay,
    /// A node is cut off from both others.
    Isolate,
    /// A link goes up and down.
    Flap,
    /// A link is slow.
    SlowLink,
    /// Every fsync of a machine is slow.
    SlowDisk,
    /// A write of the journal fails; the daemon stops and comes back.
    JournalError,
    /// Another voter becomes leader without need.
    LeaderChange,
    /// Entries take long to be committed.
    SlowCommits,
    /// Proposals get lost, or are committed long after their proposer gave up.
    LateCommits,
    /// Proposals are committed twice.
    DoubleCommits,
    /// The wall clock jumps.
    WallJump,
    /// An operator orders a failover.
    Order,
    /// An operator pauses automatic failover.
    Pause,
    /// Tasks of the executor fail.
    TasksFail,
    /// The standby replays slowly.
    SlowReplay,
    /// An operator orders a switchover.
    Switchover,
    /// An operator turns the dial.
    Dial,
    /// An operator accepts a loss.
    AcceptLoss,
    /// A node that has nothing but a journal loses it, while nothing acknowledged is there alone.
    JournalLost,
    /// An operator orders one node to do something with its PostgreSQL, or a switchover for later.
    NodeOrder,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Fault; 30] = [
        Fault::DaemonCrash,
        Fault::MachineCrash,
        Fault::DaemonFreeze,
        Fault::ServerFreeze,
        Fault::SiteFreeze,
        Fault::PostmasterKill,
        Fault::ServerRestart,
        Fault::Suspend,
        Fault::CoreStall,
        Fault::Cut,
        Fault::CutOneWay,
        Fault::Isolate,
        Fault::Flap,
        Fault::SlowLink,
        Fault::SlowDisk,
        Fault::JournalError,
        Fault::LeaderChange,
        Fault::SlowCommits,
        Fault::LateCommits,
        Fault::DoubleCommits,
        Fault::WallJump,
        Fault::Order,
        Fault::Pause,
        Fault::TasksFail,
        Fault::SlowReplay,
        Fault::Switchover,
        Fault::Dial,
        Fault::AcceptLoss,
        Fault::JournalLost,
        Fault::NodeOrder,
    ];

    /// Those that are drawn at random; `aims` adds the others.
    const DRAWN: usize = 25;
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// One fault that will be tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    pub(crate) at: u64,
    pub(crate) fault: Fault,
    /// Which node; for links the first end. Aimed at the active node if `at_active`.
    pub(crate) node: usize,
    /// The other end of a link.
    pub(crate) other: usize,
    pub(crate) at_active: bool,
    pub(crate) length: u64,
}

/// A seed, drawn out.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) config: ClusterConfig,
    pub(crate) timing: Timing,
    /// How fast each node's clock runs, in parts per million of the truth.
    pub(crate) drift_ppm: [i64; 3],
    /// One way, between two nodes.
    pub(crate) link_delay: [u64; 3],
    pub(crate) fsync: u64,
    /// How long check and write of the gate may take together; below the margin.
    pub(crate) write_delay_max: u64,
    /// Between two commits of the clients.
    pub(crate) commit_every: u64,
    pub(crate) record_bytes_max: u64,
    pub(crate) kinds: BTreeSet<Fault>,
    pub(crate) faults: Vec<Planned>,
    /// When every fault is removed.
    pub(crate) heal_at: u64,
    /// Two and a third node without data, or three.
    pub(crate) data_nodes: usize,
    /// The third node keeps the journal.
    pub(crate) journal_node: bool,
}

impl Plan {
    pub(crate) fn kind(&self, index: usize) -> NodeKind {
        match (index < self.data_nodes, self.journal_node) {
            (true, _) => NodeKind::Data,
            (false, true) => NodeKind::Journal,
            (false, false) => NodeKind::Witness,
        }
    }

    pub(crate) fn draw(seed: u64, keep: Option<&BTreeSet<usize>>) -> Plan {
        let mut random = Random::new(seed, 1);
        let timing = random.pick(&[Timing::DEFAULT, Timing::DEFAULT, Timing::FAST, coarse()]);
        let kinds: BTreeSet<Fault> = loop {
            let share = random.pick(&[80, 200, 400, 700]);
            let kinds: BTreeSet<Fault> = Fault::ALL[..Fault::DRAWN]
                .iter()
                .copied()
                .filter(|_| random.chance(share))
                .collect();
            if !kinds.is_empty() {
                break kinds;
            }
        };
        let begin = 12 * SEC;
        let safety = random.between(150, 400) * SEC;
        let mut faults = Vec::new();
        let list: Vec<Fault> = kinds.iter().copied().collect();
        for index in 0..random.between(list.len() as u64, FAULTS_MAX.max(list.len() as u64 + 4)) {
            // Every kind once, then as it comes; often close to the one before.
            let fault = match list.get(index as usize) {
                Some(fault) => *fault,
                None => random.pick(&list),
            };
            faults.push(planned(&mut random, fault, begin, safety));
        }
        cluster_in_time(&mut random, &mut faults);
        let margin = timing.margin.as_nanos() as u64;
        let write_delay_max = random.pick(&[0, 0, MS, margin / 10 * 9]);
        let mut plan = Plan {
            config: config(&mut random, &timing),
            timing,
            drift_ppm: std::array::from_fn(|_| drift(&mut random, &timing)),
            link_delay: std::array::from_fn(|_| random.spread(100 * US, 12 * MS)),
            fsync: random.spread(100 * US, 10 * MS),
            write_delay_max,
            commit_every: random.spread(20 * MS, 800 * MS),
            record_bytes_max: random.pick(&[300, 8_000, 8_000, 1 << 20, 96 << 20]),
            kinds,
            faults,
            heal_at: begin + safety + 5 * SEC,
            data_nodes: 2,
            journal_node: false,
        };
        add_third_site(&mut plan, seed, safety);
        super::aims::add(&mut plan, seed, begin, safety);
        super::aims::add_node_orders(&mut plan, seed, begin, safety);
        plan.faults.sort_by_key(|planned| planned.at);
        if let Some(keep) = keep {
            let all = std::mem::take(&mut plan.faults);
            let kept = all.into_iter().enumerate().filter(|(index, _)| keep.contains(index));
            plan.faults = kept.map(|(_, planned)| planned).collect();
        }
        plan
    }
}

/// In every fourth seed the third node has data too, in every eighth of the others it keeps the journal;
/// then one copy is enough in most of them. From streams of chance of their own, so that the other seeds
/// keep their meaning.
fn add_third_site(plan: &mut Plan, seed: u64, safety: u64) {
    let mut random = Random::new(seed, 5);
    if random.chance(250) {
        plan.data_nodes = 3;
        plan.config.durable_copies = u32::from(random.chance(650));
        return;
    }
    let mut random = Random::new(seed, 6);
    if random.chance(125) {
        plan.journal_node = true;
        plan.config.durable_copies = u32::from(random.chance(750));
        if random.chance(600) {
            super::aims::lose_the_journal(plan, &mut random, safety);
        }
    }
}

/// Clocks that are worse than most, so that drift is worth something.
fn coarse() -> Timing {
    Timing { drift_ppm: 40_000, margin: Duration::from_millis(60), ..Timing::DEFAULT }
}

fn drift(random: &mut Random, timing: &Timing) -> i64 {
    let bound = i64::from(timing.drift_ppm);
    let within = random.between(0, 2 * timing.drift_ppm as u64) as i64 - bound;
    random.pick(&[-bound, bound, 0, within])
}

fn config(random: &mut Random, timing: &Timing) -> ClusterConfig {
    let mode = random.pick(&[
        DurabilityMode::Zero,
        DurabilityMode::Zero,
        DurabilityMode::Bounded,
        DurabilityMode::Bounded,
        DurabilityMode::BestEffort,
    ]);
    let seconds = random.pick(&[2 * timing.ttl.as_secs() + 1, 10, 15, 30, 120]);
    ClusterConfig {
        mode,
        rpo: Duration::from_secs(seconds),
        on_passive_loss: random.pick(&[OnPassiveLoss::Stall, OnPassiveLoss::Degrade]),
        degrade_after: Duration::from_millis(random.between(300, 5000)),
        promote_without_lease_wait: false,
        on_sole_survivor: random.pick(&[OnSoleSurvivor::Open, OnSoleSurvivor::Stall]),
        durable_copies: 0,
    }
}

fn planned(random: &mut Random, fault: Fault, begin: u64, safety: u64) -> Planned {
    let node = random.between(0, 2) as usize;
    let other = (node + random.between(1, 2) as usize) % 3;
    Planned {
        at: begin + random.between(0, safety),
        fault,
        node,
        other,
        at_active: random.chance(500),
        length: random.spread(20 * MS, 40 * SEC),
    }
}

/// Half of the faults begin shortly after another one: what goes wrong alone is mended most easily.
fn cluster_in_time(random: &mut Random, faults: &mut [Planned]) {
    for index in 1..faults.len() {
        if random.chance(500) {
            let before = faults[random.between(0, index as u64 - 1) as usize].at;
            faults[index].at = before + random.spread(MS, 8 * SEC);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_keeps_the_protocol_s_inequalities_and_has_what_it_intends() {
        for seed in 0..500 {
            let plan = Plan::draw(seed, None);
            assert_eq!(plan.timing.check(), Ok(()), "seed {seed}");
            assert!(plan.config.rpo >= plan.timing.ttl * 2);
            let planned: BTreeSet<Fault> = plan.faults.iter().map(|p| p.fault).collect();
            assert_eq!(planned, plan.kinds, "seed {seed}");
            let bound = i64::from(plan.timing.drift_ppm);
            assert!(plan.drift_ppm.iter().all(|ppm| ppm.abs() <= bound));
        }
    }
}
