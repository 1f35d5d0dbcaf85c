//! The real consensus (openraft, log store, state machine, gRPC) in simulated time.
//!
//! Three nodes on a network, disks and clocks that turmoil and this program simulate: power goes in
//! the middle of a write, messages are cut, late and one-sided, disks are slow and fail. Then all
//! faults end, and everybody has to agree again. `UNDERSTUDY_SIMULATED_SEEDS=100..200` plays other
//! seeds than the kept ones.
//!
//! The seed decides network, disks and faults, and nearly always the course of a run, but not the
//! dice and hash maps inside of libraries: a failure that does not come back at once comes back when
//! its seed is played a few times.

// In a test a panic is the report.
#![allow(clippy::unwrap_used)]

mod disk;
mod faults;
mod history;
mod node;
#[path = "../common/service.rs"]
mod service;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use turmoil::Sim;

use crate::disk::Disk;
use crate::faults::{Fault, Fired};
use crate::history::History;
use crate::node::{Place, name};

const TICK: Duration = Duration::from_millis(2);
const LATENCY_MAX: Duration = Duration::from_millis(10);
const WRITE_TAKES: Duration = Duration::from_millis(2);
/// Faults come and go for so long, in simulated time.
const FAULTS_FOR: Duration = Duration::from_secs(40);
/// After the last fault everybody has everything again within this.
const CALM_WITHIN: Duration = Duration::from_secs(20);
const NOT_WHOLE: &str = "not whole";

/// What a seed came to.
struct Report {
    seed: u64,
    acknowledged: usize,
    unknown: u64,
    reads: u64,
    terms: usize,
    snapshots: u64,
    torn_sectors: u32,
    fired: Fired,
    simulated: Duration,
    wrong: Vec<String>,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "seed {}: {:.1} s, {} acknowledged, {} unknown, {} reads, {} terms led, {} snapshots \
             taken over, {} sectors lost with the power, {:?}",
            self.seed,
            self.simulated.as_secs_f64(),
            self.acknowledged,
            self.unknown,
            self.reads,
            self.terms,
            self.snapshots,
            self.torn_sectors,
            self.fired
        )?;
        self.wrong.iter().try_for_each(|wrong| write!(f, "\n  {wrong}"))
    }
}

struct World<'a> {
    sim: Sim<'a>,
    rng: SmallRng,
    disks: BTreeMap<u64, Disk>,
    ended: BTreeMap<u64, Arc<Mutex<Option<String>>>>,
    history: History,
    active: BTreeMap<Fault, Duration>,
    fired: Fired,
}

impl World<'_> {
    fn new(seed: u64) -> World<'static> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(LATENCY_MAX)
            .simulation_duration(Duration::from_secs(600))
            .tcp_capacity(4096)
            .build();
        let history = History::default();
        let (mut disks, mut ended) = (BTreeMap::new(), BTreeMap::new());
        for node in 1..=3_u64 {
            let disk = Disk::default();
            disk.set_write_takes(WRITE_TAKES);
            let place = Place {
                node,
                disk: disk.clone(),
                history: history.clone(),
                ended: Arc::default(),
                election: Duration::from_millis(300 + 90 * node + rng.random_range(0..60)),
                pace: Duration::from_millis(rng.random_range(20..120)),
            };
            disks.insert(node, disk);
            ended.insert(node, Arc::clone(&place.ended));
            sim.host(name(node), move || place.clone().run());
        }
        let (active, fired) = (BTreeMap::new(), Fired::new());
        World { sim, rng, disks, ended, history, active, fired }
    }

    /// One tick; a node that ended is started again a little later, as a service manager does.
    fn step(&mut self) {
        self.sim.step().unwrap();
        for node in 1..=3 {
            let Some(why) = self.ended[&node].lock().unwrap().take() else { continue };
            *self.fired.entry("node ended by itself").or_default() += 1;
            tracing::info!(node, why, "ended");
            let down = Fault::PowerLoss(node);
            if !self.active.keys().any(|active| active.collides(down)) {
                down.begin(&mut self.sim, &self.disks, &mut self.rng);
                self.active.insert(down, self.sim.elapsed() + Duration::from_millis(200));
            }
        }
        let over: Vec<_> = self
            .active
            .iter()
            .filter(|(_, until)| **until <= self.sim.elapsed())
            .map(|(fault, _)| *fault)
            .collect();
        for fault in over {
            fault.end(&mut self.sim, &self.disks, &mut self.rng);
            self.active.remove(&fault);
        }
    }

    fn maybe_begin(&mut self) {
        // About two faults a second, so that they overlap now and then.
        if !self.rng.random_bool(TICK.as_secs_f64() * 2.0) {
            return;
        }
        let (fault, lasts) = Fault::draw(&mut self.rng);
        if self.active.keys().any(|active| active.collides(fault)) {
            return;
        }
        fault.begin(&mut self.sim, &self.disks, &mut self.rng);
        *self.fired.entry(fault.kind()).or_default() += 1;
        self.active.insert(fault, self.sim.elapsed() + lasts);
    }

    fn sound(&self) -> bool {
        self.history.book().wrong().is_empty()
    }
}

fn play(seed: u64, prepare: impl FnOnce(&World<'_>)) -> Report {
    let mut world = World::new(seed);
    prepare(&world);
    while world.sim.elapsed() < FAULTS_FOR && world.sound() {
        world.step();
        world.maybe_begin();
    }
    // No fault lasts longer than the calm; a node that ends again and again does.
    while !world.active.is_empty()
        && world.sim.elapsed() < FAULTS_FOR + CALM_WITHIN
        && world.sound()
    {
        world.step();
    }
    let (calm, before) = (world.sim.elapsed(), world.history.book().acknowledged());
    let whole = |world: &World<'_>| {
        let book = world.history.book();
        book.acknowledged() > before + 10 && book.all_have_all(3)
    };
    while !whole(&world) && world.sim.elapsed() < calm + CALM_WITHIN && world.sound() {
        world.step();
    }
    let mut book = world.history.book();
    let mut wrong = book.wrong().to_vec();
    if wrong.is_empty() {
        drop(book);
        if !whole(&world) {
            wrong.push(format!("{NOT_WHOLE} {CALM_WITHIN:?} after the last fault"));
        }
        book = world.history.book();
        book.close();
        wrong.extend_from_slice(book.wrong());
    }
    Report {
        seed,
        acknowledged: book.acknowledged(),
        unknown: book.unknown,
        reads: book.reads,
        terms: book.terms(),
        snapshots: book.snapshots,
        torn_sectors: world.disks.values().map(Disk::torn).sum(),
        fired: world.fired.clone(),
        simulated: world.sim.elapsed(),
        wrong,
    }
}

/// The kept seeds, unless others are asked for.
fn seeds() -> std::ops::Range<u64> {
    let Ok(asked) = std::env::var("UNDERSTUDY_SIMULATED_SEEDS") else { return 1..9 };
    let bounds = asked.split_once("..").map(|(first, end)| (first.parse(), end.parse()));
    match bounds {
        Some((Ok(first), Ok(end))) => first..end,
        _ => panic!("UNDERSTUDY_SIMULATED_SEEDS is {asked:?}; say it as 100..200"),
    }
}

#[test]
fn what_was_acknowledged_stays_and_all_agree_after_any_faults() {
    let mut fired = Fired::new();
    let (mut snapshots, mut torn) = (0, 0);
    for seed in seeds() {
        let report = play(seed, |_| {});
        println!("{report}");
        let again = format!("UNDERSTUDY_SIMULATED_SEEDS={seed}..{}", seed + 1);
        assert!(report.wrong.is_empty(), "{:#?}\nagain with {again}", report.wrong);
        for (kind, count) in report.fired {
            *fired.entry(kind).or_default() += count;
        }
        snapshots += report.snapshots;
        torn += report.torn_sectors;
    }
    // Runs in which the faults did not hit anything prove nothing.
    assert!(fired.len() >= 7, "{fired:?}");
    assert!(snapshots > 0 && torn > 0, "{snapshots} snapshots, {torn} torn sectors");
}

/// The checks would notice: disks that lie about durability lose what was acknowledged.
#[test]
fn disks_that_lie_are_caught() {
    let caught = (1..30).find_map(|seed| {
        let report = play(seed, |world| world.disks.values().for_each(Disk::lie));
        let broken = report.wrong.iter().any(|wrong| !wrong.starts_with(NOT_WHOLE));
        broken.then_some(report)
    });
    let report = caught.expect("acknowledged entries are lost with the power");
    println!("{report}");
}
