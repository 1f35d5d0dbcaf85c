//! The holder's part of a planned switchover, step by step (docs/safety.md, "Switchover").
//!
//! A checkpoint while clients are served; the handover, accepted; clients shut out; a fast stop with the
//! gate open and the lease renewed, so that the candidate can acknowledge the last byte; the process tree
//! gone and the end of the WAL durable at the candidate; only then the release. Whatever goes wrong before
//! the release leads back: the same holder serves again under the same epoch, and the operation ends with
//! the reason. After the release nothing here may act any more.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::{BootInstant, Lsn, NodeId};

use super::holder::AfterFence;
use super::{Action, Core, Slot, Task, receiver_of};
use crate::state::{Command, ReleaseCause, Switchover};

/// How long a holder may take until it can write the checkpoint and has written it.
const PREPARE_PATIENCE: Duration = Duration::from_secs(120);
/// How long the candidate may then take to be close enough.
const READY_PATIENCE: Duration = Duration::from_secs(15);
/// A candidate that is further behind than this would make the pause long.
const READY_LAG_BYTES: u64 = 16 * 1024 * 1024;
/// A candidate that lacks WAL and is not attached for this long is lost.
const CANDIDATE_GONE: Duration = Duration::from_secs(1);
/// Open transactions are given a quarter of the budget to end by themselves, and never more than this.
const GRACE_MAX: Duration = Duration::from_secs(5);
/// The leader ends an operation that has not come to its end in all that its steps may take, and this.
const STALE_AFTER: Duration = Duration::from_secs(60);

/// A passive hurries with what it sees for so long after the last renewal.
const AWAITED_MAX: Duration = Duration::from_secs(10);

/// What the holder is doing for a switchover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Part {
    /// Serving; a checkpoint is to be written, or is being written.
    Preparing,
    /// Serving; waits until the candidate is close enough.
    Readying,
    /// Serving, and already strict: waits for the handover to be accepted.
    Proposing,
    /// Ending the clients' sessions.
    ShuttingOut,
    /// Stopping the server.
    Stopping,
}

/// A holder's memory of the switchover it carries out; gone with its process, which undoes it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Switching {
    operation: u64,
    to: NodeId,
    part: Part,
    /// When the present part has taken too long; from shutting out on, the end of the pause budget.
    until: BootInstant,
    gone_since: Option<BootInstant>,
}

impl Switching {
    fn begin(order: &Switchover, now: BootInstant) -> Switching {
        Switching {
            operation: order.operation,
            to: order.to,
            part: Part::Preparing,
            until: now + PREPARE_PATIENCE,
            gone_since: None,
        }
    }

    /// The gate waits for everybody from here on, whatever the dial says.
    pub(super) fn is_strict(&self) -> bool {
        match self.part {
            Part::Preparing | Part::Readying => false,
            Part::Proposing | Part::ShuttingOut | Part::Stopping => true,
        }
    }

    pub(super) fn word(&self) -> &'static str {
        match self.part {
            Part::Preparing | Part::Readying | Part::Proposing => "holder",
            Part::ShuttingOut => "shutting-out",
            Part::Stopping => "stopping",
        }
    }

    fn doing(&self) -> &'static str {
        match self.part {
            Part::Preparing => "a checkpoint was being written",
            Part::Readying => "the candidate was catching up",
            Part::Proposing => "the handover was being recorded",
            Part::ShuttingOut => "client sessions were being ended",
            Part::Stopping => "PostgreSQL was being stopped",
        }
    }
}

impl Core {
    /// Decides, as the holder, what comes next for a switchover.
    pub(super) fn advance_switchover(&mut self, now: BootInstant) {
        // The gate is shut for good: from here on there is only the release. An undo beside it could be
        // accepted first, and the operation would end as failed while the cluster moves.
        if self.stage().gives_up() {
            return;
        }
        let handing_over = self.stage().hands_over();
        if handing_over && !self.lease_runs(now) {
            let words = "the lease ran out in the middle of it: no majority confirms it".to_owned();
            self.trouble = Some(words.clone());
            self.give_up(words);
            self.fence(AfterFence::Restart);
            return;
        }
        let Some(order) = self.state.switchover.clone() else {
            // Undone, or ended by the leader.
            if handing_over {
                self.go_back();
            }
            let stage = self.stage();
            (stage.switching, stage.undo) = (None, None);
            return;
        };
        if !self.lease_runs(now) {
            return;
        }
        if self.state.handover().is_none() {
            self.prepare_switchover(now, &order);
        } else if handing_over {
            self.watch_handover(now, &order);
        } else {
            self.begin_or_undo(now, &order);
        }
    }

    /// Before the handover: clients are served all along.
    fn prepare_switchover(&mut self, now: BootInstant, order: &Switchover) {
        if self.given_up(order) {
            self.propose_undo(now, order);
            return;
        }
        let known = self.stage().switching.filter(|known| known.operation == order.operation);
        let mut switching = known.unwrap_or_else(|| Switching::begin(order, now));
        let open = self.stage().is_open();
        let idle = self.running.is_none() && now >= self.retry_at;
        let lack = self.candidate_lacks(now, order.to);
        match switching.part {
            Part::Preparing if open && idle => self.run(Task::PrepareSwitchover),
            Part::Readying | Part::Proposing if open && lack.is_none() => {
                switching.part = Part::Proposing;
                let command =
                    Command::Handover { by: self.proof(), operation: switching.operation };
                self.propose(now, Slot::Switchover, command);
            }
            Part::Readying | Part::Proposing => switching.part = Part::Readying,
            Part::Preparing | Part::ShuttingOut | Part::Stopping => {}
        }
        self.stage().switching = Some(switching);
        if now >= switching.until {
            let lack = lack.unwrap_or_else(|| switching.doing().to_owned());
            self.give_up(format!("not begun, clients were served all along: {lack}"));
        }
    }

    /// What keeps the candidate from taking over quickly, in words.
    fn candidate_lacks(&self, now: BootInstant, to: NodeId) -> Option<String> {
        let name = self.state.name_of(to);
        if let Err(why) = self.state.check_successor(to) {
            return Some(format!("{name} may not be promoted: {why}"));
        }
        let Some(source) = &self.source else {
            return Some("the active's own WAL path is not up".to_owned());
        };
        let attached = |node: &NodeId| receiver_of(source, *node).is_some_and(|r| r.attached);
        let durability = &self.state.durability;
        // Of a quorum one may be away, as long as enough are there for the stop to be confirmed.
        let present_count = durability.waited.iter().filter(|node| attached(node)).count();
        let away = durability.waited.iter().find(|node| !attached(node));
        if let Some(away) = away.filter(|_| present_count < durability.copies_count()) {
            return Some(format!("{} does not receive WAL", self.state.name_of(*away)));
        }
        let receiver = receiver_of(source, to)?;
        let lag = source.flush_lsn.bytes_since(receiver.durable_lsn);
        if lag > READY_LAG_BYTES {
            return Some(format!("{name} is {lag} bytes of WAL behind"));
        }
        let replayed = receiver.replay_lsn.unwrap_or(Lsn::ZERO);
        let lag = source.flush_lsn.bytes_since(replayed);
        if lag > READY_LAG_BYTES {
            return Some(format!("the standby at {name} has {lag} bytes of WAL to replay"));
        }
        // What the leader will want to have heard of it.
        let promotion = self.state.last_granted().map(|(_, granted)| granted.promotion);
        match self.report_of(now, to) {
            None => Some(format!("{name} is not heard")),
            Some(report) if !report.promotable || report.promotion != promotion => {
                Some(format!("{name} does not run a standby of this history"))
            }
            Some(_) => None,
        }
    }

    /// The handover is accepted: clients are shut out, if it is still this process that asked for it.
    fn begin_or_undo(&mut self, now: BootInstant, order: &Switchover) {
        let asked = self.stage().switching.filter(|known| known.operation == order.operation);
        let open = self.stage().is_open() && !self.given_up(order);
        let Some(asked) = asked.filter(|_| open) else {
            // A pause that was broken off is not begun a second time: its budget would not be kept.
            if !self.given_up(order) {
                let why = "the active was interrupted in the middle of it and goes on";
                self.stage().undo = Some((order.operation, why.to_owned()));
            }
            self.propose_undo(now, order);
            return;
        };
        let until = now + order.budget;
        let switching = Switching { part: Part::ShuttingOut, until, gone_since: None, ..asked };
        self.stage().hand_over(switching);
        let grace = (order.budget / 4).min(GRACE_MAX);
        self.run(Task::ShutClientsOut { grace });
    }

    /// In the middle of it: ends it when it takes too long or can come to nothing.
    fn watch_handover(&mut self, now: BootInstant, order: &Switchover) {
        let Some(mut switching) = self.stage().switching else { return };
        let name = self.state.name_of(switching.to);
        if now >= switching.until {
            let doing = switching.doing();
            self.abandon(format!("the pause budget of {:?} was over while {doing}", order.budget));
            return;
        }
        if let Err(why) = self.state.check_successor(switching.to) {
            self.abandon(format!("{name} may not be promoted any more: {why}"));
            return;
        }
        // At the end of the stop every stream ends: whoever has everything is not missed.
        let here = self.source.as_ref().is_some_and(|source| {
            receiver_of(source, switching.to)
                .is_some_and(|r| r.attached || r.durable_lsn >= source.flush_lsn)
        });
        let gone_since = *switching.gone_since.get_or_insert(now);
        if here {
            switching.gone_since = None;
        } else if now.since(gone_since) >= CANDIDATE_GONE {
            self.abandon(format!("{name} went away while {}", switching.doing()));
            return;
        }
        self.stage().switching = Some(switching);
    }

    /// Goes on as the holder, and says why the switchover comes to nothing.
    fn abandon(&mut self, why: String) {
        self.give_up(why);
        self.go_back();
    }

    /// What is under way is not carried out; `Undo` is proposed until it has ended.
    fn give_up(&mut self, why: String) {
        let stage = self.stage();
        if let Some(switching) = stage.switching {
            stage.undo = Some((switching.operation, why));
        }
    }

    fn given_up(&mut self, order: &Switchover) -> bool {
        self.stage().undo.as_ref().is_some_and(|(operation, _)| *operation == order.operation)
    }

    /// The way back depends on how far it went: a server that was told to stop can only be started again.
    fn go_back(&mut self) {
        // Taken: whoever serves again is not strict any more.
        let stopping = matches!(self.stage().switching.take(), Some(s) if s.part == Part::Stopping);
        if stopping {
            self.fence(AfterFence::Restart);
        } else {
            self.stage().let_in_again();
            let epoch = self.state.epoch;
            self.run(Task::LetClientsIn { epoch });
        }
    }

    fn propose_undo(&mut self, now: BootInstant, order: &Switchover) {
        let Some((_, why)) = self.stage().undo.clone() else { return };
        let (by, at_unix_us) = (self.proof(), self.wall_unix_us);
        let command = Command::Undo { by, operation: order.operation, why, at_unix_us };
        self.propose(now, Slot::Switchover, command);
    }

    /// The active is being moved and this node may be the next one: the leader waits for what is seen
    /// here, the journal's end above all, so the usual few looks a second would be felt.
    pub fn is_awaited(&self) -> bool {
        let released = self.state.holder.as_ref().is_some_and(|holder| holder.released.is_some());
        let moving = released || self.state.handover().is_some() || self.state.order.is_some();
        // A lease that was given back may find no successor for long; that is no reason to hurry.
        let lately = self.challenger.quiet_for(self.now).is_some_and(|span| span < AWAITED_MAX);
        moving && lately && matches!(self.role, super::Role::Passive(_))
    }

    pub(super) fn switchover_prepared(&mut self, now: BootInstant) {
        if let Some(switching) = &mut self.stage().switching
            && switching.part == Part::Preparing
        {
            switching.part = Part::Readying;
            switching.until = now + READY_PATIENCE;
        }
    }

    pub(super) fn clients_shut_out(&mut self, now: BootInstant) {
        if !self.stage().hands_over() {
            return;
        }
        let Some(switching) = &mut self.stage().switching else { return };
        switching.part = Part::Stopping;
        let (to, within) = (switching.to, switching.until.since(now));
        self.run(Task::StopCleanly { to, within });
    }

    /// No process is left, and the candidate has everything: the lease goes back, for good.
    pub(super) fn stopped_cleanly(&mut self, now: BootInstant, end_lsn: Lsn) {
        if !self.stage().hands_over() {
            return;
        }
        let operation = self.stage().switching.map(|switching| switching.operation);
        let current = self.state.handover().map(|handover| handover.operation);
        if operation != current {
            // Ended meanwhile: this node goes on, from a clean start.
            self.fence(AfterFence::Restart);
            return;
        }
        self.permit = None;
        self.source = None;
        self.actions.push_back(Action::CloseGate(self.state.epoch));
        let stage = self.stage();
        stage.stopped_clean();
        stage.release(ReleaseCause::CleanEnd(end_lsn));
        self.propose_release(now);
    }

    /// A step of the handover could not be done. A checkpoint is simply tried again.
    pub(super) fn switchover_failed(&mut self, task: &Task) {
        if !self.stage().hands_over() {
            return;
        }
        let words = self.trouble.clone().unwrap_or_default();
        match task {
            Task::ShutClientsOut { .. } | Task::StopCleanly { .. } => self.abandon(words),
            Task::ReadIndex
            | Task::PrepareData
            | Task::Fence
            | Task::Hold(_)
            | Task::LetClientsIn { .. }
            | Task::Drain
            | Task::PrepareSwitchover
            | Task::Seal(_)
            | Task::CollectSeals { .. }
            | Task::PromoteLocally { .. }
            | Task::Survey
            | Task::Join { .. }
            | Task::BeginJournalAnew(_)
            | Task::StopForRestart { .. }
            | Task::RestartStandby { .. }
            | Task::Reload => {}
        }
    }

    /// The leader's part: an operation always ends, also when its holder never speaks again.
    pub(super) fn end_stale_switchover(&mut self, now: BootInstant) {
        let Some(order) = self.state.switchover.clone() else { return };
        if self.state.check_may_end(order.operation).is_err() {
            return;
        }
        let longest = PREPARE_PATIENCE + READY_PATIENCE + order.budget + STALE_AFTER;
        if self.leader.switchover_since().is_none_or(|since| now.since(since) < longest) {
            return;
        }
        let why = match self.state.active() {
            Some(active) => format!(
                "it did not come to an end within {longest:?}; {} is the active",
                self.state.name_of(active)
            ),
            None => format!("it did not come to an end within {longest:?}; nobody is active"),
        };
        let (operation, at_unix_us) = (order.operation, self.wall_unix_us);
        let command = Command::EndOrder { operation, why, at_unix_us };
        self.propose(now, Slot::Housekeeping, command);
    }
}
