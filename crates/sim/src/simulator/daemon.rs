//! The loop that owns the core, modelled: events in, actions out; it starts, dies, freezes, is starved.

use std::time::Duration;

use understudy_checks::protocol::{self, GivingBack};
use understudy_core::Command;
use understudy_core::node::{
    Action, DataView, Event, JournalView, LocalView, PostgresFacts, PostgresView, Task,
};
use understudy_types::{Lsn, NodeKind};

use super::machine::{Doing, Following, core};
use super::plan::{MS, SEC};
use super::world::{Happening, InDaemon, SYSTEM, World, note};

/// One question to the server counts as unanswered after this.
const PROBE_PATIENCE: Duration = Duration::from_millis(1000);

impl World {
    /// A daemon begins: by the state of its last snapshot, and what follows comes from the log.
    pub(crate) fn begin_daemon(&mut self, node: usize) {
        let plan = self.plan.clone();
        let now = self.now;
        let machine = &mut self.machines[node];
        machine.daemon = true;
        machine.life += 1;
        machine.core = core(machine.id, machine.kind, machine.process, &plan);
        // What was applied is found again whole, or only as far as the last snapshot.
        if !machine.process.is_multiple_of(2) {
            machine.applied = machine.snapshot.min(machine.applied);
        }
        machine.answered_at = machine.clock(now);
        let state = self.raft.log[machine.applied.saturating_sub(1)].state.clone();
        note!(self, "n{} daemon begins", node + 1);
        self.recording_begins(node);
        self.starts.push(self.now);
        self.feed(node, Event::State { state, applied: None });
        let jitter = self.random.between(1, 20) * MS;
        self.in_daemon(node, jitter, InDaemon::Look);
        self.in_daemon(node, jitter, InDaemon::SendReports);
    }

    pub(crate) fn start_daemon(&mut self, node: usize, life: u64) {
        let machine = &mut self.machines[node];
        if machine.powered && !machine.daemon && machine.life == life {
            machine.process += 1;
            self.begin_daemon(node);
            self.serve_what_is_held(node);
        }
    }

    /// The relay of a daemon that begins serves what its journal holds already; nothing new has to come
    /// in first.
    fn serve_what_is_held(&mut self, node: usize) {
        let machine = &self.machines[node];
        let held = machine.postgres.data.wal.record_end();
        if machine.journal.durable().is_some_and(|durable| durable > held) {
            self.wish_replay(node);
        }
    }

    /// Gives the core an event, or keeps it while the core's loop is starved.
    pub(crate) fn feed(&mut self, node: usize, event: Event) {
        let machine = &mut self.machines[node];
        if self.now < machine.stalled_until || !machine.inbox.is_empty() {
            if machine.inbox.is_empty() {
                let wait = machine.stalled_until - self.now;
                self.in_daemon(node, wait, InDaemon::Thaw);
            }
            self.machines[node].inbox.push_back(event);
            return;
        }
        self.handle(node, event);
    }

    pub(crate) fn drain_inbox(&mut self, node: usize) {
        if self.now < self.machines[node].stalled_until {
            let wait = self.machines[node].stalled_until - self.now;
            self.in_daemon(node, wait, InDaemon::Thaw);
            return;
        }
        let life = self.machines[node].life;
        while let Some(event) = self.machines[node].inbox.pop_front() {
            self.handle(node, event);
            if self.machines[node].life != life {
                return;
            }
        }
    }

    fn handle(&mut self, node: usize, event: Event) {
        let now = self.machines[node].clock(self.now);
        self.through_the_door(node, event);
        while let Some(action) = self.machines[node].core.poll_action() {
            self.act(node, action);
            if self.breach.is_some() {
                return;
            }
        }
        let machine = &mut self.machines[node];
        let wait = machine.core.poll_timeout(now).since(now).max(Duration::from_millis(1));
        let at = self.now + machine.real(wait.as_nanos() as u64);
        if at < machine.tick_at {
            machine.tick_at = at;
            self.in_daemon(node, at - self.now, InDaemon::Tick);
        }
    }

    fn act(&mut self, node: usize, action: Action) {
        match action {
            Action::Propose(slot, command) => {
                self.check_proposal(node, &command);
                self.propose(node, slot, command);
            }
            Action::SetPermit(permit) => {
                self.finish_write(node);
                let serial = permit.serial;
                note!(self, "n{} permit {serial:?} waits for {:?}", node + 1, permit.waited_for);
                if self.machines[node].cell.set(permit) {
                    self.through_the_door(node, Event::PermitInForce(serial));
                    self.evaluate(node);
                }
            }
            Action::CloseGate(epoch) => {
                self.finish_write(node);
                self.machines[node].cell.close(epoch);
                note!(self, "n{} gate of epoch {epoch} shut for good", node + 1);
            }
            Action::Follow { holder, admission, history } => {
                // As the driver: a task that still runs was left behind with an earlier role.
                self.machines[node].doing = None;
                self.follow(node, holder, admission, history);
            }
            Action::Unfollow => self.unfollow(node),
            Action::Run(id, task) => {
                note!(self, "n{} begins {}", node + 1, task_word(&task));
                let begun = self.now;
                let doing = Doing { id, task, begun, read_index: None, found: 0, since: None };
                self.machines[node].doing = Some(doing);
                self.in_daemon(node, 0, InDaemon::Step { id, stage: 0 });
            }
        }
    }

    /// What may be proposed only when something has stopped before.
    fn check_proposal(&mut self, node: usize, command: &Command) {
        let machine = &self.machines[node];
        match command {
            Command::Release { by, .. } => {
                let still = GivingBack {
                    processes_left: machine.postgres.server.is_some(),
                    gate_open: machine.gate_is_open(self.now),
                    renews: false,
                };
                let epoch = by.epoch;
                self.judge(protocol::a_lease_is_given_back_only_when_everything_has_stopped(
                    machine.id, still,
                ));
                self.machines[node].release_proposed = Some(epoch);
            }
            Command::Renew { by, .. } => {
                let renews = machine.release_proposed == Some(by.epoch);
                let still = GivingBack { processes_left: false, gate_open: false, renews };
                self.judge(protocol::a_lease_is_given_back_only_when_everything_has_stopped(
                    machine.id, still,
                ));
            }
            _ => {}
        }
    }

    pub(crate) fn looks_closely(&self, node: usize) -> bool {
        let machine = &self.machines[node];
        let word = machine.core.standing(machine.clock(self.now)).word;
        matches!(word, "replaying" | "sealing" | "collecting" | "promoting")
    }

    /// The observer's look, told to the core.
    pub(crate) fn look(&mut self, node: usize) {
        let journal = self.machines[node].journal.wal.as_ref().map(|wal| JournalView {
            timeline: wal.timeline().unwrap_or(self.machines[node].postgres.data.timeline),
            durable_lsn: self.machines[node].durable_lsn(),
            promotion: self.machines[node].journal.lineage.last().map(|last| last.promotion),
            begin_lsn: self.begins_at(node),
        });
        if self.machines[node].kind != NodeKind::Data {
            self.tell_local(node, LocalView { journal, ..LocalView::default() });
            return;
        }
        let now = self.machines[node].clock(self.now);
        let machine = &mut self.machines[node];
        let postmaster = machine.postgres.server.as_ref().is_some_and(|server| server.postmaster);
        if machine.server_running(self.now).is_some() {
            machine.answered_at = now;
        }
        let silent_for = now.since(machine.answered_at);
        let silent_for = if silent_for < PROBE_PATIENCE { Duration::ZERO } else { silent_for };
        let postgres = match &machine.postgres.server {
            Some(server) if postmaster => PostgresView::Running(PostgresFacts {
                silent_for,
                in_recovery: Some(!server.primary),
                timeline: Some(machine.postgres.data.timeline),
                flush_lsn: server.primary.then(|| Lsn(machine.postgres.data.wal.bytes())),
                replay_lsn: (!server.primary).then_some(Lsn(server.replay)),
                foreign_gate: false,
                foreign_server: false,
                door_silent_for: silent_for,
                not_ours: false,
                short_of_parameters: false,
            }),
            Some(_) | None => PostgresView::Stopped,
        };
        let data = match &machine.postgres.data {
            data if data.dirty_marker => DataView::Unusable("incomplete".to_owned()),
            data if !data.present => DataView::Empty,
            data => DataView::Cluster { system_id: SYSTEM, timeline: data.control_timeline },
        };
        self.tell_local(node, LocalView { data, postgres, journal });
    }

    fn tell_local(&mut self, node: usize, view: LocalView) {
        let fresh = self.fresh();
        let wall_unix_us = self.wall(node);
        self.feed(node, Event::Local { view, fresh, wall_unix_us });
    }

    pub(crate) fn wall(&self, node: usize) -> i64 {
        let truth = i64::try_from(self.now / 1000).expect("a run is shorter than centuries");
        truth + self.machines[node].wall_offset_us
    }

    pub(crate) fn send_reports(&mut self, node: usize) {
        self.in_daemon(node, 250 * MS, InDaemon::SendReports);
        if self.now < self.machines[node].stalled_until {
            return;
        }
        let machine = &self.machines[node];
        let report = machine.core.own_report(machine.clock(self.now));
        for other in (0..3).filter(|other| *other != node) {
            if self.link_up(node, other) && self.link_up(other, node) {
                let delay = self.travel(node, other);
                self.in_daemon(other, delay, InDaemon::Report(Box::new(report.clone())));
            }
        }
    }

    /// Follows the holder; does nothing if that is what is being done.
    pub(crate) fn follow(
        &mut self,
        node: usize,
        holder: understudy_types::NodeId,
        admission: understudy_types::Admission,
        history: Vec<understudy_types::Lineage>,
    ) {
        let holder = self.index_of(holder);
        if let Some(following) = &self.machines[node].following {
            let same = following.holder == holder
                && following.admission.epoch == admission.epoch
                && following.admission.promotion == admission.promotion;
            if same {
                return;
            }
        }
        self.unfollow(node);
        let id = self.number();
        let machine = &mut self.machines[node];
        if admission.epoch < machine.journal.max_epoch {
            return;
        }
        machine.journal.raise_epoch(admission.epoch);
        machine.journal.lineage = history;
        machine.journal.admitted = Some(admission.epoch);
        // What lies behind the durable end was never acknowledged.
        let durable = machine.durable_lsn().0;
        if let Some(wal) = &mut machine.journal.wal {
            wal.cut(durable);
            machine.journal.synced = durable;
        }
        machine.following = Some(Following { id, holder, admission, session: None });
        note!(self, "n{} follows n{} under epoch {}", node + 1, holder + 1, admission.epoch);
        self.in_daemon(node, MS, InDaemon::Connect { following: id });
    }

    pub(crate) fn unfollow(&mut self, node: usize) {
        if let Some(session) = self.machines[node].following.take().and_then(|f| f.session) {
            self.close_session(session);
        }
    }

    /// A power loss, or a return of power.
    pub(crate) fn power_off(&mut self, node: usize) {
        note!(self, "n{} loses power", node + 1);
        let machine = &mut self.machines[node];
        machine.powered = false;
        machine.suspended_until = 0;
        machine.daemon_dies();
        machine.server_dies();
    }

    /// The power that was just lost comes back. Tied to this loss: power that is lost again meanwhile
    /// comes back in its own time.
    pub(crate) fn power_returns(&mut self, node: usize, after: u64) {
        let life = self.machines[node].life;
        self.after(after, Happening::PowerOn(node, life));
    }

    pub(crate) fn power_on(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        if machine.powered {
            return;
        }
        machine.powered = true;
        machine.booted_at = self.now;
        machine.slept = 0;
        let life = machine.life;
        note!(self, "n{} has power", node + 1);
        self.after(200 * MS, Happening::DaemonStart(node, life));
    }

    pub(crate) fn kill_daemon(&mut self, node: usize, back_after: u64) {
        note!(self, "n{} daemon dies", node + 1);
        self.machines[node].daemon_dies();
        let life = self.machines[node].life;
        self.after(back_after.min(60 * SEC), Happening::DaemonStart(node, life));
    }
}

pub(crate) fn task_word(task: &Task) -> &'static str {
    match task {
        Task::ReadIndex => "read-index",
        Task::PrepareData => "prepare-data",
        Task::Fence => "fence",
        Task::Hold(_) => "hold",
        Task::LetClientsIn { .. } => "let-clients-in",
        Task::Drain => "drain",
        Task::PrepareSwitchover => "prepare-switchover",
        Task::ShutClientsOut { .. } => "shut-clients-out",
        Task::StopCleanly { .. } => "stop-cleanly",
        Task::Seal(_) => "seal",
        Task::CollectSeals { .. } => "collect-seals",
        Task::PromoteLocally { .. } => "promote-locally",
        Task::Survey => "survey",
        Task::Join { .. } => "join",
        Task::BeginJournalAnew(_) => "begin-journal-anew",
        Task::StopForRestart { .. } => "stop-for-restart",
        Task::RestartStandby { .. } => "restart-standby",
        Task::Reload => "reload",
    }
}
