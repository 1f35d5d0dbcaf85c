//! The modelled world: machines, network, consensus, and the queue of what happens next.
//!
//! Single-threaded and without any clock of its own: the same seed gives the same trace, byte for
//! byte. The world carries out; what is decided is decided by the real core and the real gate.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt::Write as _;

use understudy_checks::protocol::{Breach, Grant};
use understudy_core::node::{Event, PeerReport, Slot, TaskId};
use understudy_types::{Lsn, NodeId, PromotionId, SystemId};

use super::content::Rec;
use super::losses::Terms;
use super::machine::{Acked, Machine};
use super::plan::{Fault, MS, Plan, SEC};
use super::raft::Raft;
use super::random::Random;
use super::recording::Recording;

pub(crate) const SYSTEM: SystemId = SystemId(42);

/// Something that will happen in a daemon; dropped when that daemon is gone by then.
#[derive(Clone, Debug)]
pub(crate) enum InDaemon {
    Tick,
    Look,
    SendReports,
    Report(Box<PeerReport>),
    Apply,
    ProposalFailed { proposal: u64, slot: Slot },
    Step { id: TaskId, stage: u8 },
    Connect { following: u64 },
    GateWrite { source: u64 },
    GateLook { source: u64 },
    SourceBeat { source: u64 },
    Frame { session: u64, recs: Vec<Rec>, upto: u64 },
    Ack { session: u64, durable: u64, replay: Option<u64> },
    Synced { upto: u64 },
    Thaw,
}

/// Something that will happen in a server; dropped when that server is gone by then.
#[derive(Clone, Copy, Debug)]
pub(crate) enum InServer {
    Flush { upto: u64 },
    Replay,
    Checkpoint,
    ReadSocket,
    Kill,
}

/// Something that will happen.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    Daemon(usize, u64, InDaemon),
    Server(usize, u64, InServer),
    Commit { proposal: u64, attempts: u8 },
    RaftBeat,
    SessionBeat(u64),
    Client(usize),
    Fault { index: usize, attempts: u8 },
    DaemonStart(usize, u64),
    PowerOn(usize, u64),
    Heal,
    Watch,
}

#[derive(Debug)]
struct Scheduled {
    at: u64,
    serial: u64,
    what: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        (self.at, self.serial) == (other.at, other.serial)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

/// A stream of WAL between two nodes; what it carries arrives in order or not at all.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) from: usize,
    pub(crate) source: u64,
    pub(crate) to: usize,
    pub(crate) sent: u64,
    pub(crate) in_flight: u64,
    pub(crate) to_arrives: u64,
    pub(crate) back_arrives: u64,
    pub(crate) broken_since: Option<u64>,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Faults,
    Healing { since: u64 },
    Lost { since: u64, machine: usize },
    Returning { since: u64 },
    Done,
}

/// What happened, for people and for comparison.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// Keep the lines, not only their hash.
    pub(crate) keeps: bool,
    pub(crate) lines: String,
    hash: u64,
}

impl Trace {
    fn mix(&mut self, value: u64) {
        self.hash = (self.hash ^ value).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(17);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }
}

/// The whole of it.
pub(crate) struct World {
    pub(crate) now: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    serial: u64,
    pub(crate) random: Random,
    /// Clients' own, so that a seed's other draws stay what they were.
    pub(crate) cancels: Option<Random>,
    pub(crate) plan: Plan,
    pub(crate) machines: Vec<Machine>,
    pub(crate) raft: Raft,
    pub(crate) sessions: BTreeMap<u64, Session>,
    pub(crate) cut_until: [[u64; 3]; 3],
    pub(crate) slow_until: [[u64; 3]; 3],
    /// Identities: records, sessions, sources, promotions.
    pub(crate) counter: u64,
    pub(crate) acks: Vec<Acked>,
    pub(crate) ack_count: u64,
    pub(crate) lost_count: u64,
    pub(crate) grants: Vec<Grant>,
    pub(crate) failovers: u64,
    /// On which terms the newest epoch was granted.
    pub(crate) terms: Terms,
    pub(crate) late_releases: u64,
    pub(crate) whole_since: u64,
    /// When each daemon began: how long one was away is not known to it.
    pub(crate) starts: Vec<u64>,
    pub(crate) acked_in_stage: bool,
    pub(crate) fired: BTreeMap<Fault, u64>,
    pub(crate) stage: Stage,
    pub(crate) breach: Option<Breach>,
    pub(crate) trace: Trace,
    pub(crate) events: u64,
    pub(crate) recording: Option<Recording>,
}

/// A line of the trace, formatted only when somebody wants to read it.
macro_rules! note {
    ($world:expr, $($words:tt)*) => {
        if $world.trace.keeps {
            let line = format!($($words)*);
            $world.write_line(&line);
        }
    };
}
pub(crate) use note;

/// In every fourth run clients grow tired of waiting now and then.
fn clients_that_cancel(seed: u64) -> Option<Random> {
    let mut dice = Random::new(seed, 4);
    dice.chance(250).then_some(dice)
}

impl World {
    pub(crate) fn new(seed: u64, keep: Option<&BTreeSet<usize>>, keeps_trace: bool) -> World {
        let plan = Plan::draw(seed, keep);
        let machines = (0..3).map(|index| Machine::new(index, &plan)).collect();
        let mut world = World {
            now: 0,
            queue: BinaryHeap::new(),
            serial: 0,
            random: Random::new(seed, 2),
            cancels: clients_that_cancel(seed),
            raft: Raft::founded(&plan),
            plan,
            machines,
            sessions: BTreeMap::new(),
            cut_until: [[0; 3]; 3],
            slow_until: [[0; 3]; 3],
            counter: 0,
            acks: Vec::new(),
            ack_count: 0,
            lost_count: 0,
            grants: Vec::new(),
            failovers: 0,
            terms: Terms::default(),
            late_releases: 0,
            whole_since: 0,
            starts: Vec::new(),
            acked_in_stage: false,
            fired: BTreeMap::new(),
            stage: Stage::Faults,
            breach: None,
            trace: Trace { keeps: keeps_trace, ..Trace::default() },
            events: 0,
            recording: None,
        };
        for node in 0..3 {
            world.begin_daemon(node);
        }
        for node in 0..world.plan.data_nodes {
            world.after(SEC, Happening::Client(node));
        }
        world.after(MS, Happening::RaftBeat);
        for (index, planned) in world.plan.faults.clone().into_iter().enumerate() {
            world.at(planned.at, Happening::Fault { index, attempts: 0 });
        }
        world.at(world.plan.heal_at, Happening::Heal);
        world
    }

    /// Runs to the end, or to the first breach.
    pub(crate) fn run(&mut self) {
        while self.breach.is_none() && self.stage != Stage::Done {
            let Some(Reverse(next)) = self.queue.pop() else { return };
            assert!(next.at >= self.now, "time went back");
            self.now = next.at;
            self.events += 1;
            self.trace.mix(next.at);
            self.happen(next.serial, next.what);
        }
    }

    pub(crate) fn at(&mut self, at: u64, what: Happening) {
        self.serial += 1;
        self.queue.push(Reverse(Scheduled { at: at.max(self.now), serial: self.serial, what }));
    }

    /// Later, and in the old order among what is put off: a process that is stopped in two ways may put
    /// the same thing off twice.
    fn put_off(&mut self, at: u64, serial: u64, what: Happening) {
        self.queue.push(Reverse(Scheduled { at, serial, what }));
    }

    pub(crate) fn after(&mut self, delay: u64, what: Happening) {
        self.at(self.now.saturating_add(delay), what);
    }

    pub(crate) fn in_daemon(&mut self, node: usize, delay: u64, what: InDaemon) {
        let life = self.machines[node].life;
        self.after(delay, Happening::Daemon(node, life, what));
    }

    pub(crate) fn in_server(&mut self, node: usize, delay: u64, what: InServer) {
        if let Some(server) = &self.machines[node].postgres.server {
            let life = server.life;
            self.after(delay, Happening::Server(node, life, what));
        }
    }

    pub(crate) fn write_line(&mut self, words: &str) {
        let (seconds, micros) = (self.now / SEC, self.now % SEC / 1000);
        writeln!(self.trace.lines, "{seconds:>4}.{micros:06} {words}")
            .expect("writing to a string cannot fail");
    }

    /// Keeps the first breach.
    pub(crate) fn judge(&mut self, judgement: Result<(), Breach>) {
        if let Err(breach) = judgement
            && self.breach.is_none()
        {
            note!(self, "BREACH {breach}");
            self.breach = Some(breach);
        }
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    pub(crate) fn fresh(&mut self) -> PromotionId {
        PromotionId(uuid::Uuid::from_u128(u128::from(self.number()) << 16))
    }

    /// The daemon there runs at this moment.
    pub(crate) fn runs(&self, node: usize) -> bool {
        let machine = &self.machines[node];
        machine.powered && machine.daemon && self.now >= self.daemon_wakes(node)
    }

    fn daemon_wakes(&self, node: usize) -> u64 {
        let machine = &self.machines[node];
        machine.frozen_until.max(machine.suspended_until)
    }

    pub(crate) fn link_up(&self, from: usize, to: usize) -> bool {
        self.now >= self.cut_until[from][to]
    }

    /// A request would be answered.
    pub(crate) fn reach(&self, from: usize, to: usize) -> bool {
        let up = self.runs(from) && self.runs(to);
        up && (from == to || (self.link_up(from, to) && self.link_up(to, from)))
    }

    /// How long a message takes.
    pub(crate) fn travel(&mut self, from: usize, to: usize) -> u64 {
        if from == to {
            return 1000;
        }
        let base = self.plan.link_delay[3 - from - to];
        let slow = self.now < self.slow_until[from][to];
        let extra = if slow { self.random.spread(5 * MS, 3 * SEC) } else { 0 };
        base + self.random.between(0, base) + extra
    }

    pub(crate) fn fsync(&mut self, node: usize) -> u64 {
        let slow = self.now < self.machines[node].slow_disk_until;
        let base = self.plan.fsync;
        let extra = if slow { self.random.spread(20 * MS, 3 * SEC) } else { 0 };
        self.random.between(base / 2, base * 2) + extra
    }

    pub(crate) fn index_of(&self, node: NodeId) -> usize {
        usize::try_from(node.0).expect("a small number") - 1
    }

    fn happen(&mut self, serial: u64, what: Happening) {
        match what {
            Happening::Daemon(node, life, what) => self.happen_in_daemon(node, life, serial, what),
            Happening::Server(node, life, what) => self.happen_in_server(node, life, serial, what),
            Happening::Commit { proposal, attempts } => self.commit(proposal, attempts),
            Happening::RaftBeat => self.raft_beat(),
            Happening::SessionBeat(session) => self.session_beat(session),
            Happening::Client(node) => self.client(node),
            Happening::Fault { index, attempts } => self.try_fault(index, attempts),
            Happening::DaemonStart(node, life) => self.start_daemon(node, life),
            Happening::PowerOn(node, life) if self.machines[node].life == life => {
                self.power_on(node);
            }
            Happening::PowerOn(..) => {}
            Happening::Heal => self.heal(),
            Happening::Watch => self.watch(),
        }
    }

    fn happen_in_daemon(&mut self, node: usize, life: u64, serial: u64, what: InDaemon) {
        let machine = &self.machines[node];
        if machine.life != life || !machine.daemon || !machine.powered {
            return;
        }
        let wakes = self.daemon_wakes(node);
        if self.now < wakes {
            // Messages and timers wait for the process, in their order.
            self.put_off(wakes, serial, Happening::Daemon(node, life, what));
            return;
        }
        match what {
            InDaemon::Tick => {
                if self.machines[node].tick_at <= self.now {
                    self.machines[node].tick_at = u64::MAX;
                    self.feed(node, Event::Tick);
                }
            }
            InDaemon::Look => {
                self.look(node);
                let closely = self.looks_closely(node);
                self.in_daemon(node, if closely { 20 * MS } else { 200 * MS }, InDaemon::Look);
            }
            InDaemon::SendReports => self.send_reports(node),
            InDaemon::Report(report) => self.feed(node, Event::Peer(*report)),
            InDaemon::Apply => self.apply_next(node),
            InDaemon::ProposalFailed { proposal, slot } => {
                self.proposal_failed(node, proposal, slot);
            }
            InDaemon::Step { id, stage } => self.step(node, id, stage),
            InDaemon::Connect { following } => self.connect(node, following),
            InDaemon::GateWrite { source } => self.gate_write(node, source),
            InDaemon::GateLook { source } => {
                if let Some(held) = &mut self.machines[node].source
                    && held.id == source
                {
                    held.look_at = u64::MAX;
                    self.evaluate(node);
                }
            }
            InDaemon::SourceBeat { source } => self.source_beat(node, source),
            InDaemon::Frame { session, recs, upto } => self.frame(node, session, &recs, upto),
            InDaemon::Ack { session, durable, replay } => {
                self.acknowledged(node, session, Lsn(durable), replay.map(Lsn));
            }
            InDaemon::Synced { upto } => self.synced(node, upto),
            InDaemon::Thaw => self.drain_inbox(node),
        }
    }

    fn happen_in_server(&mut self, node: usize, life: u64, serial: u64, what: InServer) {
        let machine = &self.machines[node];
        if !machine.powered
            || machine.postgres.server.as_ref().is_none_or(|server| server.life != life)
        {
            return;
        }
        let kill = matches!(what, InServer::Kill);
        let wakes = if kill { 0 } else { machine.server_frozen_until }.max(machine.suspended_until);
        if self.now < wakes {
            self.put_off(wakes, serial, Happening::Server(node, life, what));
            return;
        }
        match what {
            InServer::Flush { upto } => self.flush(node, upto),
            InServer::Replay => self.replay(node),
            InServer::Checkpoint => self.machines[node].postgres.checkpoint(),
            InServer::ReadSocket => self.read_socket(node),
            InServer::Kill => self.machines[node].server_dies(),
        }
    }
}
