//! The steps that are not one role's own: time, the log, faults, the leader.

use std::time::Duration;

use understudy_core::node::lease::{ChallengerClock, HolderLease};
use understudy_core::{Command, Outcome, Timing};
use understudy_types::{BootInstant, Epoch, Lsn, ProcessStart, SeededBug};

use super::book::{self, Book, CommandNo, Facts, NODES, StateNo};
use super::checker::{Model, Property};
use super::configurations::Configuration;
use super::holder::Role;
use super::properties;
use super::world::{
    Broken, Data, Entry, FLIGHT_MAX, GatePermit, Ghost, LOG_MAX, Look, NO_COMMAND, NO_GENERATION,
    Sent, Server, Step, Used, Voter, Wal, World,
};

/// The margin, on the holder's clock: one tick of the slowest clock, which is how long a look at the
/// gate may take to become a write.
pub(super) const MARGIN: u8 = super::configurations::SLOW;
/// ρ, far above any real one, so that it shows within a few ticks: a quarter.
const DRIFT_PPM: u32 = 250_000;
/// Any moment will do as the present: only differences count.
pub(super) const NOW: BootInstant = BootInstant(1_000_000_000);

/// One unit of a node's clock.
pub(super) fn units(count: u8) -> Duration {
    Duration::from_millis(u64::from(count))
}

/// How many units, a part of one counted as a whole.
pub(super) fn in_units(span: Duration) -> u8 {
    u8::try_from(span.as_nanos().div_ceil(1_000_000)).expect("the model's spans are short")
}

pub(super) fn lsn(position: u8) -> Lsn {
    Lsn(u64::from(position))
}

pub(super) fn epoch(number: u8) -> Epoch {
    Epoch { incarnation: 0, number: u64::from(number) }
}

/// A step. Numbers are indices: 0 and 1 are the data nodes, 2 is the witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// True time goes on by one; every clock by its own rate.
    Tick,
    /// The proposal in this place is committed.
    Commit(usize),
    /// The proposal in this place will never be.
    Lose(usize),
    /// The node applies the next entry.
    Apply(usize),
    /// The node is cut off from the consensus.
    CutOff(usize),
    /// It is brought up to date with a snapshot.
    Reconnect(usize),
    /// Its process ends; its PostgreSQL goes on.
    CrashOfProcess(usize),
    /// The machine ends.
    CrashOfMachine(usize),
    /// Its process begins.
    Start(usize),
    /// As the leader, it proposes the promotion of whoever the verdict names.
    Grant(usize),
    /// As the leader, it proposes the promotion of a node whose seal alone makes it safe.
    GrantOnSeal(usize),
    /// As the leader, it proposes that whoever ran last goes on.
    GrantBack(usize),
    /// An operator turns the dial.
    TurnDial,
    /// An operator orders a switchover.
    OrderSwitchover,
    /// The leader ends an order that does not come to its end.
    EndOrder,
    /// The holder proposes the handover.
    ProposeHandover(usize),
    /// Clients are shut out.
    ShutOut(usize),
    /// The server is gone, and the candidate has everything.
    StopCleanly(usize),
    /// It waits for the candidate again before the handover.
    ReadyAgain(usize),
    /// The switchover is not carried out: the server that was told to stop is started again.
    StartAgain(usize),
    /// The switchover is not carried out: clients are let in again.
    GoBack(usize),
    /// Its undoing is proposed.
    ProposeUndo(usize),
    /// The holder, or a candidate that resumes, proposes a renewal.
    Renew(usize),
    /// It has its server run as a primary behind the gate.
    TakeServer(usize),
    /// The lease is over: it ends every process of its server.
    StopServer(usize),
    /// It shuts its gate for good, to give the lease back.
    GiveUp(usize),
    /// Every process of its server is proven gone.
    FenceToRelease(usize),
    /// It proposes the release.
    Release(usize),
    /// A client commits: the write is durable locally and waits for the gate.
    Write(usize),
    /// The permit that the core wants is in force at the gate.
    PermitInForce(usize),
    /// The gate evaluates.
    GateLooks(usize),
    /// The gate writes what it evaluated.
    GateWrites(usize),
    /// The other node's stream is attached.
    Attach(usize),
    /// The stream is cut, and its sender notices.
    Detach(usize),
    /// One more write is durable at the other node, and the sender knows.
    Deliver(usize),
    /// The gate's set is to be widened by the other node.
    WaitFor(usize),
    /// It is not, after all.
    StopWaiting(usize),
    /// The other node's joining is proposed.
    ProposeAdd(usize),
    /// The other node's removal is proposed.
    ProposeRemove(usize),
    /// The mode that is wanted is proposed to be in force.
    ProposeMode(usize),
    /// The candidate seals its journal and reads its end.
    Seal(usize),
    /// With a seeded mistake: the end is read first.
    ReadEnd(usize),
    /// The candidate's server is promoted.
    PromoteServer(usize),
    /// The candidate reports its promotion.
    Report(usize),
    /// The passive ends a server that must not run as it does.
    FencePassive(usize),
    /// The passive climbs the rung that the plan names, or begins to.
    Join(usize),
    /// The rewind or clone is complete.
    FinishJoin(usize),
    /// The passive needs WAL that is gone: it is cloned again.
    WalGone(usize),
}

/// The model of one configuration.
pub struct Protocol {
    pub(super) configuration: Configuration,
    pub(super) book: Book,
    holder_timings: [Timing; 3],
    challenger_timings: [Timing; 3],
}

impl Protocol {
    /// The model. A mistake that is seeded on this thread is part of it.
    pub fn new(configuration: Configuration) -> Protocol {
        let timing = |ttl: u8| Timing {
            ttl: units(ttl),
            margin: units(MARGIN),
            drift_ppm: DRIFT_PPM,
            ..Timing::DEFAULT
        };
        let mut holder_timings = configuration.ttls.map(timing);
        let mut challenger_timings = holder_timings;
        for (holder, challenger) in holder_timings.iter_mut().zip(&mut challenger_timings) {
            if SeededBug::NoMargin.is_on() {
                holder.margin = Duration::ZERO;
            }
            if SeededBug::DriftSignTurned.is_on() {
                // The holder adds what it should subtract; `observe` does the reverse.
                holder.margin = holder.margin.saturating_sub(holder.ttl / 4);
                holder.drift_ppm = 0;
                challenger.drift_ppm = 0;
            }
        }
        Protocol { configuration, book: Book::default(), holder_timings, challenger_timings }
    }

    /// How many real replicated states and commands have occurred.
    pub fn distinct_states_and_commands(&self) -> (usize, usize) {
        (self.book.states_count(), self.book.commands_count())
    }

    pub(super) fn head(&self, world: &World) -> Facts {
        self.book.facts(world.head)
    }

    pub(super) fn facts(&self, world: &World, node: usize) -> Facts {
        self.book.facts(world.voters[node].applied)
    }

    pub(super) fn timing(&self, node: usize) -> &Timing {
        &self.holder_timings[node]
    }

    /// Reachable, and what it applied is the newest there is: a linearizable read comes back.
    pub(super) fn is_confirmed(world: &World, node: usize) -> bool {
        let voter = &world.voters[node];
        voter.up && !voter.away && voter.behind == 0
    }

    /// Puts a command under way, if there is room. A duplicate is of use only where a retry makes one.
    pub(super) fn propose(&self, world: &mut World, command: Command) -> Option<()> {
        let may_repeat = matches!(command, Command::SyncAdd { .. } | Command::SyncRemove { .. });
        let number = self.book.enter_command(command);
        let same = world.flight.iter().filter(|known| **known == number).count();
        let room = world.flight_count() < usize::from(self.configuration.flight);
        if !room || same > usize::from(may_repeat) {
            return None;
        }
        let place = world.flight.iter_mut().find(|place| **place == NO_COMMAND)?;
        *place = number;
        Some(())
    }

    fn first_world(&self, rates: [u8; 3], head: StateNo) -> World {
        let facts = self.book.facts(head);
        let voter = Voter { up: true, away: false, behind: 0, applied: head, over: 0 };
        let data = |node: usize| Data {
            process: 1,
            step: if node == facts.holder { Step::Acquiring } else { Step::Following },
            confirmed: true,
            wal: Wal::default(),
            timeline: facts.timeline,
            promotion: facts.promotion,
            recorded: facts.history,
            sealed: facts.epoch,
            dirty: false,
            fork: 0,
            server: if node == facts.holder { Server::Down } else { Server::Standby },
            let_in: false,
            held: 0,
            newest: 0,
            sent: [Sent::default(); 2],
            deadline: 0,
            floor: 0,
            pending: false,
            proposed: NO_GENERATION,
            removing: false,
            asked: false,
            strict: false,
            clean_end: 0,
            source: false,
            attached: false,
            known: 0,
            permit: GatePermit::default(),
            reported: 0,
            look: Look::default(),
            following: 0,
        };
        let mut world = World {
            rates,
            head,
            log: [Entry::NONE; LOG_MAX],
            log_len: 0,
            flight: [NO_COMMAND; FLIGHT_MAX],
            voters: [voter; 3],
            data: [data(0), data(1)],
            used: Used::default(),
            ghost: Ghost::default(),
        };
        for node in 0..3 {
            world.voters[node].over = self.observed(&world, node, None, head);
        }
        world
    }

    /// The challenger's wait after it saw `state`, by the real clock.
    fn observed(&self, world: &World, node: usize, seen: Option<StateNo>, state: StateNo) -> u8 {
        let key = |number: StateNo| {
            let facts = self.book.facts(number);
            (epoch(facts.epoch), u64::from(facts.seq), facts.running)
        };
        let left = world.voters[node].over;
        let over_at = NOW + units(left);
        let mut clock = ChallengerClock { seen: seen.map(key), seen_at: NOW, over_at };
        let state = self.book.state(state);
        clock.observe(NOW, &state, &self.challenger_timings[node]);
        let over = in_units(clock.over_at.since(NOW));
        if SeededBug::DriftSignTurned.is_on() && over > left {
            return over - over / 4;
        }
        over
    }

    /// The node is told of a newer state; `entry` led to it unless it came as a snapshot.
    fn take_state(&self, world: &mut World, node: usize, state: StateNo, entry: Option<Entry>) {
        let before = world.voters[node].applied;
        world.voters[node].over = self.observed(world, node, Some(before), state);
        world.voters[node].applied = state;
        if node < 2 {
            if let Some(entry) = entry {
                self.settle(world, node, entry);
            }
            self.choose_role(world, node, before);
        }
    }

    /// The holder's lease learns what became of its renewal.
    fn settle(&self, world: &mut World, node: usize, entry: Entry) {
        let Command::Renew { by, seq, .. } = self.book.command(entry.command) else { return };
        let data = &mut world.data[node];
        if by.node != NODES[node] || by.process != ProcessStart(u64::from(data.process)) {
            return;
        }
        // What apply refused, whatever the reason.
        let refused = Outcome::Rejected(understudy_core::Rejection::Phase);
        let outcome = if entry.accepted { Outcome::ACCEPTED } else { refused };
        let mut lease = self.lease_of(data, by.epoch, node);
        lease.settled(by.epoch, seq, &outcome, self.timing(node));
        Protocol::keep_lease(data, &lease);
    }

    pub(super) fn lease_of(&self, data: &Data, of: Epoch, node: usize) -> HolderLease {
        let ttl = self.timing(node).ttl;
        let sent = data.sent.iter().filter(|sent| sent.seq > 0);
        HolderLease {
            epoch: of,
            sent: sent.map(|s| (u64::from(s.seq), (NOW - units(s.age), ttl))).collect(),
            newest: u64::from(data.newest),
            deadline: data.lease_runs().then(|| NOW + units(data.deadline)),
            last_sent: None,
        }
    }

    pub(super) fn keep_lease(data: &mut Data, lease: &HolderLease) {
        data.newest = u8::try_from(lease.newest).expect("few renewals");
        data.deadline = lease.deadline.map_or(0, |deadline| in_units(deadline.since(NOW)));
        let mut sent = [Sent::default(); 2];
        for (place, (seq, (at, _))) in sent.iter_mut().zip(&lease.sent) {
            let seq = u8::try_from(*seq).expect("few renewals");
            *place = Sent { seq, age: in_units(NOW.since(*at)) };
        }
        data.sent = sent;
    }

    /// True time goes on by one tick.
    fn tick(&self, world: &mut World) {
        for node in 0..3 {
            let rate = world.rates[node];
            let voter = &mut world.voters[node];
            voter.over = voter.over.saturating_sub(rate);
            if node == 2 {
                continue;
            }
            let ttl = self.configuration.ttls[node];
            let data = &mut world.data[node];
            data.deadline = data.deadline.saturating_sub(rate);
            data.permit.left = data.permit.left.saturating_sub(rate);
            for sent in &mut data.sent {
                if sent.seq > 0 {
                    sent.age += rate;
                }
                // It can no longer prolong anything, as the real lease finds, too.
                if sent.age >= ttl {
                    *sent = Sent::default();
                }
            }
            data.sent.sort_unstable_by_key(|sent| (sent.seq == 0, sent.seq));
            if data.look.upto > 0 {
                data.look.age += 1;
                if data.look.age > 1 {
                    data.look = Look::default();
                }
            }
        }
    }

    fn commit(&self, world: &mut World, place: usize) -> Option<()> {
        let number = world.flight[place];
        if number == NO_COMMAND || (place > 0 && world.flight[place - 1] == number) {
            return None;
        }
        let (after, accepted) = self.book.apply(world.head, number);
        if SeededBug::CommittedTakenForAccepted.is_on() {
            self.take_for_accepted(world, number);
        }
        // A rejected entry changes nothing; but for the mistake above it is the same as a lost one.
        if !accepted {
            world.flight[place] = NO_COMMAND;
            return SeededBug::CommittedTakenForAccepted.is_on().then_some(());
        }
        let lags = self.configuration.lags;
        let late = |node: usize| lags[node] > 0 && world.voters[node].behind >= lags[node];
        if (0..3).any(|node| !world.voters[node].away && late(node)) {
            return None;
        }
        self.watch_promotion(world, number);
        self.watch_dial(world, number, after);
        world.flight[place] = NO_COMMAND;
        world.head = after;
        let entry = Entry { command: number, accepted, state: after };
        let length = usize::from(world.log_len);
        world.log[length] = entry;
        world.log_len += 1;
        for node in 0..3 {
            if !world.voters[node].away {
                world.voters[node].behind += 1;
            }
        }
        for node in (0..3).filter(|node| lags[*node] == 0) {
            if !world.voters[node].away {
                self.apply_next(world, node)?;
            }
        }
        self.forget_hopeless(world);
        Some(())
    }

    /// The mistake: the proposer is told that its renewal is committed, and does not wait to see in the
    /// log what became of it. (Seen in the log it would do no harm: what made `apply` reject it stands
    /// before it there.)
    fn take_for_accepted(&self, world: &mut World, number: CommandNo) {
        let Command::Renew { by, .. } = self.book.command(number) else { return };
        let node = usize::from(by.node == NODES[1]);
        let facts = self.facts(world, node);
        if by.epoch == epoch(facts.epoch) {
            let rejected = Entry { command: number, accepted: false, state: world.head };
            self.settle(world, node, rejected);
        }
    }

    /// In `zero` a promotion may lose nothing at all, in other modes what was published before. What it
    /// lost is over once it is reported: until then it may be superseded by whoever has everything.
    fn watch_promotion(&self, world: &mut World, number: CommandNo) {
        let head = self.head(world);
        let command = self.book.command(number);
        if let Command::Promoted { .. } = command
            && !head.resumes
        {
            world.ghost.released = 0;
            world.ghost.weak = 0;
        }
        let Command::Promote { to, .. } = command else { return };
        if to == NODES[head.last.0] {
            return;
        }
        // A switchover loses nothing in any mode.
        if head.zero || head.clean {
            world.ghost.acked |= world.ghost.weak;
        } else if world.ghost.released > head.credit {
            world.ghost.broken = Broken::LossBeyondCredit;
        }
    }

    /// What only a step shows, for the examples.
    fn watch_dial(&self, world: &mut World, number: CommandNo, after: StateNo) {
        let (before, after) = (self.head(world), self.book.facts(after));
        match self.book.command(number) {
            Command::SetEff { .. } if before.zero => world.ghost.weakened = true,
            Command::SetEff { .. } => world.ghost.strengthened |= world.ghost.weak != 0,
            Command::Undo { .. } if before.handing => world.ghost.undone = true,
            _ => {}
        }
        if after.promises() {
            world.ghost.acked |= world.ghost.weak;
            world.ghost.weak = 0;
        }
    }

    /// Proposals of an epoch that is past are rejected for ever.
    fn forget_hopeless(&self, world: &mut World) {
        if SeededBug::CommittedTakenForAccepted.is_on() {
            return;
        }
        let Facts { epoch: now, switchover, .. } = self.head(world);
        for place in &mut world.flight {
            if *place == NO_COMMAND {
                continue;
            }
            let meant_for = match self.book.command(*place) {
                Command::Renew { by, .. }
                | Command::Release { by, .. }
                | Command::SyncAdd { by, .. }
                | Command::SyncRemove { by, .. }
                | Command::SetEff { by, .. }
                | Command::Handover { by, .. }
                | Command::Undo { by, .. } => by.epoch,
                Command::SetDial { epoch, .. } | Command::OrderSwitchover { epoch, .. } => epoch,
                Command::EndOrder { operation, .. } => {
                    if operation != u64::from(switchover) {
                        *place = NO_COMMAND;
                    }
                    continue;
                }
                Command::Promote { expect, .. } => expect.epoch,
                Command::Promoted { epoch, .. } => epoch,
                other => unreachable!("the model does not propose {other:?}"),
            };
            if meant_for.number < u64::from(now) {
                *place = NO_COMMAND;
            }
        }
    }

    fn apply_next(&self, world: &mut World, node: usize) -> Option<()> {
        let voter = &world.voters[node];
        if !voter.up || voter.away || voter.behind == 0 {
            return None;
        }
        let entry = world.log[usize::from(world.log_len - voter.behind)];
        world.voters[node].behind -= 1;
        self.take_state(world, node, entry.state, Some(entry));
        Some(())
    }

    fn crash(&self, world: &mut World, node: usize, with_server: bool) -> Option<()> {
        let voter = &mut world.voters[node];
        if !voter.up || world.used.crashes >= self.configuration.crashes {
            return None;
        }
        world.used.crashes += 1;
        *voter = Voter { up: false, away: true, behind: 0, over: 0, ..*voter };
        if node == 2 {
            return with_server.then_some(());
        }
        let data = &mut world.data[node];
        let was_let_in = data.let_in;
        data.drop_source();
        data.step = Step::Assessing;
        data.confirmed = false;
        data.newest = 0;
        data.sent = Default::default();
        data.deadline = 0;
        data.following = 0;
        self.forget_stage(data);
        if with_server {
            data.server = Server::Down;
        } else {
            data.let_in = was_let_in;
        }
        Some(())
    }

    fn start(&self, world: &mut World, node: usize) -> Option<()> {
        if world.voters[node].up {
            return None;
        }
        world.voters[node].up = true;
        let state = world.voters[node].applied;
        world.voters[node].over = self.observed(world, node, None, state);
        if node < 2 {
            world.data[node].process += 1;
            self.begin_role(world, node);
        }
        Some(())
    }

    fn cut_off(&self, world: &mut World, node: usize) -> Option<()> {
        let voter = &mut world.voters[node];
        if !voter.up || voter.away || world.used.cuts >= self.configuration.cuts {
            return None;
        }
        world.used.cuts += 1;
        voter.away = true;
        voter.behind = 0;
        Some(())
    }

    fn reconnect(&self, world: &mut World, node: usize) -> Option<()> {
        let voter = &mut world.voters[node];
        if !voter.up || !voter.away {
            return None;
        }
        voter.away = false;
        voter.behind = 0;
        let head = world.head;
        if world.voters[node].applied != head {
            self.take_state(world, node, head, None);
        }
        Some(())
    }

    /// Takes the step in place; `None` when it is not possible.
    fn take(&self, world: &mut World, action: Action) -> Option<()> {
        match action {
            Action::Tick => {
                self.tick(world);
                Some(())
            }
            Action::Commit(place) => self.commit(world, place),
            Action::Lose(place) => {
                // Of use only to make room: whatever may be committed may also wait for ever.
                let full = world.flight_count() == usize::from(self.configuration.flight);
                if !full || world.flight[place] == NO_COMMAND {
                    return None;
                }
                world.flight[place] = NO_COMMAND;
                Some(())
            }
            Action::Apply(node) => self.apply_next(world, node),
            Action::CutOff(node) => self.cut_off(world, node),
            Action::Reconnect(node) => self.reconnect(world, node),
            Action::CrashOfProcess(node) => self.crash(world, node, false),
            Action::CrashOfMachine(node) => self.crash(world, node, true),
            Action::Start(node) => self.start(world, node),
            Action::Grant(node) => self.grant(world, node),
            Action::GrantOnSeal(node) => self.grant_on_seal(world, node),
            Action::GrantBack(node) => self.grant_back(world, node),
            Action::TurnDial => self.turn_dial(world),
            Action::OrderSwitchover => self.order_switchover(world),
            Action::EndOrder => self.end_order(world),
            other => self.take_as_data_node(world, other),
        }
    }

    fn take_as_data_node(&self, world: &mut World, action: Action) -> Option<()> {
        match action {
            Action::Renew(node) => self.renew(world, node),
            Action::TakeServer(node) => self.take_server(world, node),
            Action::StopServer(node) => self.stop_server(world, node),
            Action::GiveUp(node) => self.give_up(world, node),
            Action::FenceToRelease(node) => self.fence_to_release(world, node),
            Action::Release(node) => self.release(world, node),
            Action::Write(node) => self.write(world, node),
            Action::PermitInForce(node) => self.permit_in_force(world, node),
            Action::GateLooks(node) => self.gate_looks(world, node),
            Action::GateWrites(node) => self.gate_writes(world, node),
            Action::Attach(node) => self.attach(world, node),
            Action::Detach(node) => self.detach(world, node),
            Action::Deliver(node) => self.deliver(world, node),
            Action::WaitFor(node) => self.wait_for(world, node),
            Action::StopWaiting(node) => self.stop_waiting(world, node),
            Action::ProposeAdd(node) => self.propose_add(world, node),
            Action::ProposeRemove(node) => self.propose_remove(world, node),
            Action::ProposeMode(node) => self.propose_mode(world, node),
            Action::ProposeHandover(node) => self.propose_handover(world, node),
            Action::ShutOut(node) => self.shut_out(world, node),
            Action::StopCleanly(node) => self.stop_cleanly(world, node),
            Action::ReadyAgain(node) => self.ready_again(world, node),
            Action::StartAgain(node) => self.start_again(world, node),
            Action::GoBack(node) => self.go_back(world, node),
            Action::ProposeUndo(node) => self.propose_undo(world, node),
            Action::Seal(node) => self.seal(world, node),
            Action::ReadEnd(node) => self.read_end(world, node),
            Action::PromoteServer(node) => self.promote_server(world, node),
            Action::Report(node) => self.report(world, node),
            Action::FencePassive(node) => self.fence_passive(world, node),
            Action::Join(node) => self.join(world, node),
            Action::FinishJoin(node) => self.finish_join(world, node),
            Action::WalGone(node) => self.wal_gone(world, node),
            Action::Tick
            | Action::Commit(_)
            | Action::Lose(_)
            | Action::Apply(_)
            | Action::CutOff(_)
            | Action::Reconnect(_)
            | Action::CrashOfProcess(_)
            | Action::CrashOfMachine(_)
            | Action::Start(_)
            | Action::Grant(_)
            | Action::GrantOnSeal(_)
            | Action::GrantBack(_)
            | Action::TurnDial
            | Action::OrderSwitchover
            | Action::EndOrder => unreachable!("taken by `take`"),
        }
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn initial(&self) -> Vec<World> {
        let head = self.book.enter_state(book::founded(&self.configuration));
        self.configuration.clocks.iter().map(|rates| self.first_world(*rates, head)).collect()
    }

    /// Every step that may be possible; `next` is the judge.
    fn actions(&self, world: &World, into: &mut Vec<Action>) {
        into.push(Action::Tick);
        if world.used.turns < self.configuration.turns {
            into.push(Action::TurnDial);
        }
        if self.configuration.switchovers > 0 {
            into.extend([Action::OrderSwitchover, Action::EndOrder]);
        }
        for place in 0..FLIGHT_MAX {
            if world.flight[place] != NO_COMMAND {
                into.extend([Action::Commit(place), Action::Lose(place)]);
            }
        }
        for node in 0..3 {
            let voter = &world.voters[node];
            if !voter.up {
                into.push(Action::Start(node));
                continue;
            }
            if voter.away {
                into.push(Action::Reconnect(node));
            } else {
                into.extend([Action::Grant(node), Action::GrantBack(node)]);
                if self.configuration.on_seal {
                    into.push(Action::GrantOnSeal(node));
                }
                if voter.behind > 0 {
                    into.push(Action::Apply(node));
                }
                if world.used.cuts < self.configuration.cuts {
                    into.push(Action::CutOff(node));
                }
            }
            if world.used.crashes < self.configuration.crashes {
                into.extend([Action::CrashOfProcess(node), Action::CrashOfMachine(node)]);
            }
        }
        for node in 0..2 {
            if world.data[node].server == Server::Primary {
                into.push(Action::Write(node));
            }
            if !world.voters[node].up {
                continue;
            }
            into.extend([
                Action::PermitInForce(node),
                Action::GateLooks(node),
                Action::GateWrites(node),
                Action::Detach(node),
                Action::Deliver(node),
            ]);
            match self.facts(world, node).role_of(node) {
                Role::Holder { .. } => into.extend([
                    Action::Renew(node),
                    Action::TakeServer(node),
                    Action::StopServer(node),
                    Action::GiveUp(node),
                    Action::FenceToRelease(node),
                    Action::Release(node),
                    Action::Attach(node),
                    Action::WaitFor(node),
                    Action::StopWaiting(node),
                    Action::ProposeAdd(node),
                    Action::ProposeRemove(node),
                    Action::ProposeMode(node),
                    Action::ProposeHandover(node),
                    Action::ShutOut(node),
                    Action::StopCleanly(node),
                    Action::ReadyAgain(node),
                    Action::StartAgain(node),
                    Action::GoBack(node),
                    Action::ProposeUndo(node),
                ]),
                Role::Candidate { .. } => into.extend([
                    Action::Renew(node),
                    Action::TakeServer(node),
                    Action::Seal(node),
                    Action::ReadEnd(node),
                    Action::PromoteServer(node),
                    Action::Report(node),
                ]),
                Role::Passive => into.extend([
                    Action::FencePassive(node),
                    Action::Join(node),
                    Action::FinishJoin(node),
                    Action::WalGone(node),
                ]),
            }
        }
    }

    fn next(&self, world: &World, action: &Action) -> Option<World> {
        let mut next = world.clone();
        self.take(&mut next, *action)?;
        self.loosen_permits(&mut next);
        next.normalise();
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Protocol>> {
        properties::of(&self.configuration)
    }
}
