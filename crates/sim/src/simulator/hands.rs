//! The executor's tasks, modelled in stages with random lengths: a crash may come between any two.
//!
//! Each does what `node::hands` does, in the same order: what is durable first, what is killed first.

use understudy_checks::protocol;
use understudy_core::node::{Completion, Event, Grant, Task, TaskFailure, TaskId};
use understudy_core::rejoin::{Rung, Survey};
use understudy_core::state::Phase;
use understudy_types::{
    Admission, Epoch, Lineage, Lsn, NodeId, PermitSerial, SealedEnd, SeededBug,
};

use super::content::WAL_BEGINS;
use super::machine::Doing;
use super::plan::{Fault, MS, SEC};
use super::world::{InDaemon, InServer, SYSTEM, World, note};

/// As the driver's: a linearizable read is given up after this.
const READ_PATIENCE: u64 = 2 * SEC;
/// As the hands': a step-down waits this long for the passive.
const DRAIN_PATIENCE: u64 = SEC;
/// As the hands': a rewind waits this long for the holder's checkpoint.
const CHECKPOINT_PATIENCE: u64 = 60 * SEC;

type Done = Result<Completion, TaskFailure>;

/// What a stage came to.
pub(super) enum Went {
    On { stage: u8, after: u64 },
    Ended(Box<Done>),
}

pub(super) fn on(stage: u8, after: u64) -> Went {
    Went::On { stage, after }
}

pub(super) fn done(completion: Completion) -> Went {
    Went::Ended(Box::new(Ok(completion)))
}

pub(super) fn failed(words: &str, suspect: bool) -> Went {
    Went::Ended(Box::new(Err(TaskFailure { words: words.to_owned(), suspect })))
}

impl World {
    pub(crate) fn step(&mut self, node: usize, id: TaskId, stage: u8) {
        let Some(doing) = self.machines[node].doing.clone().filter(|doing| doing.id == id) else {
            return;
        };
        let fails = self.now < self.machines[node].tasks_fail_until && self.random.chance(250);
        let went = if fails && stage > 0 && !matches!(doing.task, Task::Fence) {
            self.fire(Fault::TasksFail);
            failed("an injected failure", self.random.chance(300))
        } else {
            match &doing.task {
                Task::ReadIndex => self.read(node, doing.begun, stage),
                Task::PrepareData => self.prepare(node, stage),
                Task::Fence => self.fence(node, stage),
                Task::Hold(grant) => self.hold(node, grant, stage),
                Task::LetClientsIn { .. } => self.let_clients_in(node, stage),
                Task::Drain => self.drain(node, doing.begun),
                Task::PrepareSwitchover => self.prepare_switchover(node, stage),
                Task::ShutClientsOut { grace } => {
                    self.shut_clients_out(node, *grace, doing.begun, stage)
                }
                Task::StopCleanly { to, within } => {
                    let within = doing.begun + within.as_nanos() as u64;
                    self.stop_cleanly(node, *to, within, stage, doing.found)
                }
                Task::Seal(epoch) => self.seal(node, *epoch, stage, doing.found),
                Task::CollectSeals { epoch, members, needed } => {
                    self.collect_seals(node, *epoch, members, *needed, stage, doing.found)
                }
                Task::PromoteLocally { grant, target_lsn, .. } => {
                    self.promote(node, grant, *target_lsn, stage)
                }
                Task::Survey => self.survey(node, stage),
                Task::Join { rung, holder, history, epoch, .. } => {
                    let holder = self.index_of(*holder);
                    self.join(node, *rung, holder, history, *epoch, stage, &doing)
                }
                Task::BeginJournalAnew(_) if stage == 0 => {
                    self.unfollow(node);
                    on(1, self.fsync(node))
                }
                Task::StopForRestart { within } => {
                    let until = doing.begun + within.as_nanos() as u64;
                    self.stop_for_restart(node, until, stage, doing.found)
                }
                Task::RestartStandby { .. } => self.restart_standby(node, stage),
                Task::Reload if stage == 0 => on(1, self.random.between(5, 300) * MS),
                Task::Reload => done(Completion::Reloaded { words: String::new() }),
                Task::BeginJournalAnew(_) => {
                    self.empty_journal(node);
                    done(Completion::JournalEmptied)
                }
            }
        };
        match went {
            Went::On { stage, after } => {
                self.in_daemon(node, after, InDaemon::Step { id, stage });
            }
            Went::Ended(result) => self.task_ended(node, id, *result),
        }
    }

    /// The observer looks first, so that no result is judged by an observation from before it.
    fn task_ended(&mut self, node: usize, id: TaskId, result: Done) {
        note!(
            self,
            "n{} task ended: {}",
            node + 1,
            match &result {
                Ok(completion) => format!("{completion:?}").chars().take(60).collect::<String>(),
                Err(failure) => format!("failed: {}", failure.words),
            }
        );
        self.machines[node].doing = None;
        self.look(node);
        self.feed(node, Event::TaskDone(id, result));
    }

    fn read(&mut self, node: usize, begun: u64, stage: u8) -> Went {
        match stage {
            0 => {
                let there = self.raft.leader.map_or(MS, |leader| self.travel(node, leader) * 2);
                on(1, there)
            }
            1 => match self.read_index(node) {
                Some(index) => {
                    if let Some(doing) = &mut self.machines[node].doing {
                        doing.read_index = Some(index);
                    }
                    if self.machines[node].applied >= index {
                        return done(Completion::ReadDone);
                    }
                    on(2, READ_PATIENCE)
                }
                None if self.now - begun < READ_PATIENCE => on(1, 200 * MS),
                None => failed("ask the majority: no answer", false),
            },
            _ => failed("the read index has not been applied here", false),
        }
    }

    pub(crate) fn read_index_done(&mut self, node: usize) {
        let machine = &self.machines[node];
        let Some(doing) = &machine.doing else { return };
        if doing.read_index.is_some_and(|index| machine.applied >= index) {
            let id = doing.id;
            self.task_ended(node, id, Ok(Completion::ReadDone));
        }
    }

    fn prepare(&mut self, node: usize, stage: u8) -> Went {
        if stage == 0 {
            return on(1, self.random.between(100, 2000) * MS);
        }
        let id = self.number();
        self.machines[node].postgres.init_db(id);
        done(Completion::DataReady)
    }

    fn fence(&mut self, node: usize, stage: u8) -> Went {
        match stage {
            0 => {
                self.stop_source(node);
                if let Some(server) = &mut self.machines[node].postgres.server {
                    server.open_to_clients = false;
                }
                if SeededBug::ReleaseBeforeTreeGone.is_on() {
                    // The signals are sent, and that is taken for their effect.
                    let lingers = self.random.spread(50 * MS, 3 * SEC);
                    self.in_server(node, lingers, InServer::Kill);
                    return done(Completion::Fenced);
                }
                on(1, self.random.between(20, 300) * MS)
            }
            1 if self.machines[node].last_write.is_some() => on(1, 10 * MS),
            1 => {
                self.machines[node].server_dies();
                on(2, self.random.between(1, 100) * MS)
            }
            _ => done(Completion::Fenced),
        }
    }

    fn hold(&mut self, node: usize, grant: &Grant, stage: u8) -> Went {
        match stage {
            0 => {
                self.unfollow(node);
                self.stop_source(node);
                let machine = &mut self.machines[node];
                machine.journal.raise_epoch(grant.epoch);
                if !grant.history.is_empty() {
                    machine.journal.lineage = grant.history.clone();
                }
                if !machine.cell.open_for(grant.epoch) {
                    return failed("the gate of this epoch is shut for good", false);
                }
                on(1, self.fsync(node))
            }
            1 => {
                let machine = &self.machines[node];
                let fits = machine.server_running(self.now).is_some_and(|server| {
                    server.primary
                        && server.postmaster
                        && machine.postgres.data.timeline == grant.timeline
                });
                if fits {
                    return on(3, self.random.between(5, 50) * MS);
                }
                self.machines[node].server_dies();
                if self.machines[node].postgres.data.dirty_marker
                    || !self.machines[node].postgres.data.present
                {
                    return failed("the data directory is incomplete", false);
                }
                if self.machines[node].postgres.data.timeline != grant.timeline {
                    return failed("the data directory is on another timeline", false);
                }
                on(2, self.random.spread(100 * MS, 4 * SEC))
            }
            2 => {
                self.start_server(node, true);
                on(3, self.random.between(5, 50) * MS)
            }
            _ => self.take_server(node, grant),
        }
    }

    fn take_server(&mut self, node: usize, grant: &Grant) -> Went {
        let machine = &self.machines[node];
        let right = machine
            .server_running(self.now)
            .is_some_and(|server| server.primary && server.postmaster);
        if !right || machine.postgres.data.timeline != grant.timeline {
            return failed("the server is not the primary that was expected", false);
        }
        let end_lsn = Lsn(machine.postgres.data.wal.bytes());
        self.start_source(node, grant);
        note!(self, "n{} holds epoch {} from {end_lsn}", node + 1, grant.epoch);
        done(Completion::Held { end_lsn })
    }

    pub(crate) fn start_server(&mut self, node: usize, primary: bool) {
        let id = self.machines[node].id;
        self.judge(protocol::what_is_incomplete_does_not_run(
            id,
            self.machines[node].postgres.data.incomplete,
        ));
        let machine = &mut self.machines[node];
        machine.server_dies();
        if primary {
            machine.postgres.start_primary();
        } else {
            machine.postgres.start_standby();
        }
        note!(self, "n{} server starts, primary {primary}", node + 1);
        if !primary {
            self.wish_replay(node);
        }
    }

    fn let_clients_in(&mut self, node: usize, stage: u8) -> Went {
        if stage == 0 {
            return on(1, self.random.between(5, 200) * MS);
        }
        if self.machines[node].server_running(self.now).is_none() {
            return failed("the server does not answer", false);
        }
        if let Some(server) = &mut self.machines[node].postgres.server {
            server.open_to_clients = true;
        }
        let takes = self.random.spread(100 * MS, 10 * SEC);
        self.in_server(node, takes, InServer::Checkpoint);
        done(Completion::ClientsLetIn)
    }

    fn drain(&mut self, node: usize, begun: u64) -> Went {
        let machine = &self.machines[node];
        let released = Lsn(machine.cell.released);
        let there = machine.source.as_ref().is_none_or(|source| {
            source.receivers.values().any(|r| r.attached && r.durable_lsn >= released)
        });
        if there || self.now - begun >= DRAIN_PATIENCE {
            return done(Completion::Drained);
        }
        on(1, 50 * MS)
    }

    fn seal(&mut self, node: usize, epoch: Epoch, stage: u8, found: u64) -> Went {
        if stage == 0 {
            let read_first = SeededBug::SealAfterReading.is_on();
            if read_first {
                let bytes = self.machines[node].journal.synced;
                if let Some(doing) = &mut self.machines[node].doing {
                    doing.found = bytes;
                }
            } else {
                self.unfollow(node);
            }
            if epoch < self.machines[node].journal.max_epoch {
                return failed("a newer epoch is known", false);
            }
            return on(1, self.fsync(node));
        }
        self.unfollow(node);
        let machine = &mut self.machines[node];
        if epoch < machine.journal.max_epoch {
            return failed("a newer epoch is known", false);
        }
        machine.journal.max_epoch = epoch;
        machine.journal.admitted = None;
        // What was queued is made durable before the end is taken.
        if let Some(wal) = &machine.journal.wal {
            machine.journal.synced = wal.bytes();
        }
        let Some(wal) = &machine.journal.wal else { return done(Completion::Sealed(None)) };
        let (bytes, timeline) =
            (wal.bytes(), wal.timeline().unwrap_or(machine.postgres.data.timeline));
        let end = if SeededBug::SealAfterReading.is_on() { found } else { bytes };
        let sealed = SealedEnd {
            epoch,
            timeline,
            durable_lsn: Lsn(end),
            record_end_lsn: Lsn(wal.record_end_before(end)),
        };
        self.judge(protocol::a_sealed_end_is_the_end(sealed.durable_lsn, Lsn(bytes)));
        done(Completion::Sealed(Some(sealed)))
    }

    /// Others seal theirs, and what the furthest of as many as are needed has is fetched.
    fn collect_seals(
        &mut self,
        node: usize,
        epoch: Epoch,
        members: &[(NodeId, Lsn)],
        needed: usize,
        stage: u8,
        found: u64,
    ) -> Went {
        match stage {
            0 => {
                let there = (0..3)
                    .filter(|other| *other != node)
                    .map(|other| self.travel(node, other) * 2 + self.fsync(other));
                let slowest = there.max().unwrap_or(0);
                on(1, slowest)
            }
            1 => {
                let mut sealed = Vec::new();
                for (id, known) in members {
                    let other = self.index_of(*id);
                    let answers = self.reach(node, other) && self.seal_for(other, node, epoch);
                    let has = self.machines[other].durable_lsn();
                    let begins = self.begins_at(other);
                    if answers && has >= *known && begins <= self.machines[node].durable_lsn() {
                        sealed.push(other);
                    } else {
                        note!(
                            self,
                            "n{} sealed {answers}, has {begins} to {has}, had {known}",
                            other + 1
                        );
                    }
                }
                if sealed.len() < needed {
                    return failed("too few of the others are sealed", false);
                }
                // Whoever answers first is not whoever has most.
                while sealed.len() > needed {
                    let one = self.random.between(0, sealed.len() as u64 - 1);
                    sealed.remove(usize::try_from(one).expect("a small number"));
                }
                let furthest =
                    sealed.into_iter().max_by_key(|other| self.machines[*other].durable_lsn());
                let more = furthest.filter(|other| {
                    self.machines[*other].durable_lsn() > self.machines[node].durable_lsn()
                });
                let Some(other) = more else { return self.sealed_again(node, epoch) };
                if let Some(doing) = &mut self.machines[node].doing {
                    doing.found = other as u64;
                }
                let takes = self.travel(other, node) * 2 + self.fsync(node);
                on(2, takes)
            }
            _ => {
                let other = usize::try_from(found).expect("an index");
                if !self.reach(node, other) {
                    return failed("the other node went away while its tail was fetched", false);
                }
                self.take_tail(node, other);
                self.sealed_again(node, epoch)
            }
        }
    }

    /// Another node's journal is sealed on behalf of the candidate, if it knows of the grant.
    fn seal_for(&mut self, node: usize, candidate: usize, epoch: Epoch) -> bool {
        let applied = self.machines[node].applied;
        let known = self.raft.log[..applied].last().is_some_and(|entry| {
            let promotes = matches!(&entry.state.phase,
                Phase::Promoting(under_way) if self.index_of(under_way.to) == candidate);
            promotes && entry.state.epoch == epoch
        });
        if !known || epoch < self.machines[node].journal.max_epoch {
            return false;
        }
        self.unfollow(node);
        let journal = &mut self.machines[node].journal;
        journal.max_epoch = epoch;
        journal.admitted = None;
        if let Some(wal) = &journal.wal {
            journal.synced = wal.bytes();
        }
        true
    }

    fn take_tail(&mut self, node: usize, other: usize) {
        let held = self.machines[node].journal.wal.as_ref().map_or(0, |wal| wal.bytes());
        let upto = self.machines[other].durable_lsn().0;
        let Some(theirs) = &self.machines[other].journal.wal else { return };
        let recs: Vec<_> =
            theirs.after(held).iter().take_while(|rec| rec.start < upto).copied().collect();
        note!(self, "n{} fetches {held} to {upto} from n{}", node + 1, other + 1);
        let machine = &mut self.machines[node];
        let Some(wal) = &mut machine.journal.wal else { return };
        let differs = wal.take(&recs, upto).err().map(|differs| Lsn(differs.at));
        machine.journal.synced = wal.bytes();
        let id = machine.id;
        self.judge(protocol::no_durable_byte_is_overwritten(id, differs));
        self.wish_replay(node);
    }

    fn sealed_again(&mut self, node: usize, epoch: Epoch) -> Went {
        let machine = &self.machines[node];
        let Some(wal) = &machine.journal.wal else { return done(Completion::Sealed(None)) };
        let end = wal.bytes();
        done(Completion::Sealed(Some(SealedEnd {
            epoch,
            timeline: wal.timeline().unwrap_or(machine.postgres.data.timeline),
            durable_lsn: Lsn(end),
            record_end_lsn: Lsn(wal.record_end_before(end)),
        })))
    }

    fn promote(&mut self, node: usize, grant: &Grant, target: Lsn, stage: u8) -> Went {
        match stage {
            0 => {
                if let Some(server) = &mut self.machines[node].postgres.server {
                    server.open_to_clients = false;
                }
                on(1, self.random.between(1, 30) * MS)
            }
            1 => {
                if self.machines[node].server_running(self.now).is_none() {
                    return failed("the server does not answer", false);
                }
                on(2, self.random.between(50, 800) * MS)
            }
            _ => self.promote_server(node, grant, target),
        }
    }

    fn promote_server(&mut self, node: usize, grant: &Grant, target: Lsn) -> Went {
        let running = self.machines[node].server_running(self.now).cloned();
        let Some(server) = running.filter(|server| server.postmaster) else {
            return failed("the server does not answer", false);
        };
        if !server.primary && self.machines[node].postgres.data.timeline >= grant.timeline {
            // PostgreSQL takes the next number, and the one that was granted is used up.
            return failed("PostgreSQL chose another timeline", true);
        }
        if !server.primary {
            // Recovery ends with everything that the journal can give.
            self.replay_all(node);
            let id = self.number();
            let fork = self.machines[node].postgres.promote(grant.timeline, id);
            // PostgreSQL asks for a checkpoint of its own, and takes its time over it.
            let takes = self.random.spread(SEC, 60 * SEC);
            self.in_server(node, takes, InServer::Checkpoint);
            note!(self, "n{} promoted to timeline {} at {fork}", node + 1, grant.timeline);
        }
        let data = &self.machines[node].postgres.data;
        if data.timeline != grant.timeline {
            return failed("PostgreSQL chose another timeline", true);
        }
        let fork_lsn = Lsn(data.fork().unwrap_or(WAL_BEGINS));
        if target != Lsn::ZERO && fork_lsn != target {
            return failed("the promotion forked elsewhere than at the sealed end", true);
        }
        done(Completion::PromotedLocally { timeline: grant.timeline, fork_lsn })
    }

    fn survey(&mut self, node: usize, stage: u8) -> Went {
        if stage == 0 {
            return on(1, self.random.between(5, 300) * MS);
        }
        let machine = &self.machines[node];
        let data = &machine.postgres.data;
        done(Completion::Surveyed(if data.dirty_marker {
            Survey::Dirty
        } else if !data.present {
            Survey::Empty
        } else {
            Survey::Cluster {
                system_id: SYSTEM,
                timeline: data.timeline,
                end_lsn: Lsn(data.wal.record_end()),
                recorded: machine.journal.lineage.clone(),
                foreign: false,
            }
        }))
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one task")]
    fn join(
        &mut self,
        node: usize,
        rung: Rung,
        holder: usize,
        history: &[Lineage],
        epoch: Epoch,
        stage: u8,
        doing: &Doing,
    ) -> Went {
        match (stage, rung) {
            (0, _) => {
                self.unfollow(node);
                if rung > Rung::Follow {
                    let newest = self.raft.state().clone();
                    let last = newest.last_granted().map(|(_, granted)| granted.node);
                    // While somebody else is being promoted the last one is still on record.
                    let stands = newest.phase == Phase::Running;
                    let id = self.machines[node].id;
                    self.judge(protocol::the_last_holder_s_data_is_not_replaced(
                        id,
                        last.filter(|_| stands),
                    ));
                }
                on(1, self.random.between(5, 200) * MS)
            }
            (1, Rung::Follow) => {
                let machine = &mut self.machines[node];
                let own = machine.postgres.data.wal.record_end();
                let goes_on = machine.journal.durable().is_some_and(|durable| durable >= own)
                    && machine
                        .journal
                        .wal
                        .as_ref()
                        .and_then(|wal| wal.timeline())
                        .is_some_and(|held| history.iter().any(|entry| entry.timeline == held));
                if !goes_on {
                    self.empty_journal(node);
                }
                on(3, MS)
            }
            (1, Rung::Rewind | Rung::Clone) => {
                self.begin_copy(node, rung, holder, history, doing.begun)
            }
            (2, _) => self.end_copy(node, holder, doing.found),
            (3, _) => {
                if self.machines[node].id != self.machines[holder].id {
                    let Some(last) = history.last() else {
                        return failed("the history is empty", false);
                    };
                    let admission = Admission {
                        serial: PermitSerial(0),
                        epoch,
                        promotion: last.promotion,
                        timeline: last.timeline,
                    };
                    let id = NodeId(holder as u64 + 1);
                    self.follow(node, id, admission, history.to_vec());
                }
                on(4, self.random.spread(50 * MS, 3 * SEC))
            }
            _ => {
                if self.machines[node].postgres.data.dirty_marker
                    || !self.machines[node].postgres.data.present
                {
                    return failed("the data directory is incomplete", false);
                }
                self.start_server(node, false);
                self.check_standby(node, history);
                if let Some(server) = &mut self.machines[node].postgres.server {
                    server.open_to_clients = true;
                }
                done(Completion::Joined)
            }
        }
    }

    fn begin_copy(
        &mut self,
        node: usize,
        rung: Rung,
        holder: usize,
        history: &[Lineage],
        begun: u64,
    ) -> Went {
        let Some(life) = self.copy_source(node, holder) else {
            return failed("the holder cannot be reached", false);
        };
        let wanted = history.last().map(|last| last.timeline);
        if rung == Rung::Rewind
            && Some(self.machines[holder].postgres.data.control_timeline) != wanted
        {
            if self.now - begun < CHECKPOINT_PATIENCE {
                return on(1, 200 * MS);
            }
            return failed("the holder has not written a checkpoint yet", false);
        }
        if rung == Rung::Rewind && self.random.chance(60) {
            return failed("pg_rewind refuses", true);
        }
        let source = &self.machines[holder].postgres.data;
        if rung == Rung::Rewind && !self.machines[node].postgres.needs_rewind_from(source) {
            self.empty_journal(node);
            return on(3, MS);
        }
        // Files come over in any order. WAL that parts from the holder's is often gone long before the
        // data files fit to what is left: by its WAL alone such a directory looks as if it could follow.
        let cuts_first = self.random.chance(500);
        let source = self.machines[holder].postgres.data.wal.clone();
        let data = &mut self.machines[node].postgres.data;
        data.dirty_marker = !SeededBug::NoDirtyMarker.is_on();
        data.incomplete = true;
        data.present = true;
        if cuts_first && let Some(differs) = data.wal.first_difference(&source) {
            data.wal.cut(differs);
        }
        if let Some(doing) = &mut self.machines[node].doing {
            doing.found = life;
        }
        on(2, self.random.spread(200 * MS, 8 * SEC))
    }

    /// Which start of the holder's server answers, if one does.
    fn copy_source(&self, node: usize, holder: usize) -> Option<u64> {
        let server = self.machines[holder].server_running(self.now)?;
        let answers = self.reach(node, holder) && server.primary && server.postmaster;
        answers.then_some(server.life)
    }

    /// The copy's connection ends with the server that it began from, although the same node may be
    /// primary again when it would have been done.
    fn end_copy(&mut self, node: usize, holder: usize, life: u64) -> Went {
        if self.copy_source(node, holder) != Some(life) {
            return failed("the holder went away during the copy", false);
        }
        let source = self.machines[holder].postgres.data.clone();
        self.machines[node].postgres.become_copy_of(source);
        self.empty_journal(node);
        on(3, MS)
    }

    pub(crate) fn empty_journal(&mut self, node: usize) {
        let journal = &mut self.machines[node].journal;
        journal.wal = None;
        journal.synced = 0;
        journal.lineage = Vec::new();
    }
}
