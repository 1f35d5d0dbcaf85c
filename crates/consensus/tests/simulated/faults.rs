//! Faults of a seed: what happens, to whom, and for how long.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use turmoil::Sim;

use crate::disk::Disk;
use crate::node::name;

/// One that is under way, and how it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// The node has no power; its disk keeps what it must.
    PowerLoss(u64),
    /// Nothing passes between two nodes.
    Cut(u64, u64),
    /// Nothing passes from the first to the second.
    OneWay(u64, u64),
    /// Everything between two nodes comes late, all at once.
    Held(u64, u64),
    /// Messages between two nodes take up to so long.
    SlowLink(u64, u64),
    /// Every write of a node's log takes long.
    SlowDisk(u64),
    /// A node's disk fails in the middle of something; its node ends and is started again.
    BrokenDisk(u64),
}

/// What a fault hit, by kind; a run in which a kind never fired says so.
pub(crate) type Fired = BTreeMap<&'static str, u32>;

impl Fault {
    pub(crate) fn draw(rng: &mut SmallRng) -> (Fault, Duration) {
        let node = rng.random_range(1..=3_u64);
        let other = (node + rng.random_range(0..2_u64)) % 3 + 1;
        let millis = |rng: &mut SmallRng, most| Duration::from_millis(rng.random_range(50..most));
        match rng.random_range(0..7) {
            0 => (Fault::PowerLoss(node), millis(rng, 5000)),
            1 => (Fault::Cut(node, other), millis(rng, 4000)),
            2 => (Fault::OneWay(node, other), millis(rng, 4000)),
            3 => (Fault::Held(node, other), millis(rng, 2000)),
            4 => (Fault::SlowLink(node, other), millis(rng, 4000)),
            5 => (Fault::SlowDisk(node), millis(rng, 4000)),
            _ => (Fault::BrokenDisk(node), millis(rng, 3000)),
        }
    }

    pub(crate) fn kind(self) -> &'static str {
        match self {
            Fault::PowerLoss(_) => "power loss",
            Fault::Cut(..) => "cut",
            Fault::OneWay(..) => "one way",
            Fault::Held(..) => "held",
            Fault::SlowLink(..) => "slow link",
            Fault::SlowDisk(_) => "slow disk",
            Fault::BrokenDisk(_) => "broken disk",
        }
    }

    /// Two faults at the same place would end each other.
    pub(crate) fn collides(self, other: Fault) -> bool {
        let links = |fault| match fault {
            Fault::Cut(a, b) | Fault::OneWay(a, b) | Fault::Held(a, b) | Fault::SlowLink(a, b) => {
                Some((a.min(b), a.max(b)))
            }
            Fault::PowerLoss(_) | Fault::SlowDisk(_) | Fault::BrokenDisk(_) => None,
        };
        let power = |fault| match fault {
            Fault::PowerLoss(node) | Fault::BrokenDisk(node) => Some(node),
            Fault::Cut(..)
            | Fault::OneWay(..)
            | Fault::Held(..)
            | Fault::SlowLink(..)
            | Fault::SlowDisk(_) => None,
        };
        links(self).is_some_and(|link| links(other) == Some(link))
            || power(self).is_some_and(|node| power(other) == Some(node))
            || self == other
    }

    pub(crate) fn begin(self, sim: &mut Sim<'_>, disks: &BTreeMap<u64, Disk>, rng: &mut SmallRng) {
        match self {
            Fault::PowerLoss(node) => {
                disks[&node].lose_power(rng);
                sim.crash(name(node));
            }
            Fault::Cut(a, b) => sim.partition(name(a), name(b)),
            Fault::OneWay(from, to) => sim.partition_oneway(name(from), name(to)),
            Fault::Held(a, b) => sim.hold(name(a), name(b)),
            Fault::SlowLink(a, b) => {
                let latest = Duration::from_millis(rng.random_range(40..120));
                sim.set_link_max_message_latency(name(a), name(b), latest);
            }
            Fault::SlowDisk(node) => {
                disks[&node].set_write_takes(Duration::from_millis(rng.random_range(20..400)));
            }
            Fault::BrokenDisk(node) => disks[&node].break_after(rng.random_range(0..12)),
        }
    }

    pub(crate) fn end(self, sim: &mut Sim<'_>, disks: &BTreeMap<u64, Disk>, rng: &mut SmallRng) {
        match self {
            Fault::PowerLoss(node) => sim.bounce(name(node)),
            Fault::Cut(a, b) => sim.repair(name(a), name(b)),
            Fault::OneWay(from, to) => sim.repair_oneway(name(from), name(to)),
            Fault::Held(a, b) => sim.release(name(a), name(b)),
            Fault::SlowLink(a, b) => {
                sim.set_link_max_message_latency(name(a), name(b), super::LATENCY_MAX);
            }
            Fault::SlowDisk(node) => disks[&node].set_write_takes(super::WRITE_TAKES),
            Fault::BrokenDisk(node) => {
                disks[&node].lose_power(rng);
                sim.bounce(name(node));
            }
        }
    }
}
