//! The ways that WAL travels, modelled: source, streams, journal, and the gate, which judges with the
//! real `wal::gate::release` and the real exposure tracker.

use std::time::Duration;

use understudy_checks::protocol;
use understudy_core::node::{Event, FollowEnd, Grant};
use understudy_types::{
    BootInstant, Exposure, Lsn, NodeId, NodeKind, ReceiverPosition, SeededBug, SourcePositions,
};
use understudy_wal::exposure::ExposureTracker;
use understudy_wal::gate::{GatePositions, known_surviving_lsn, release, surviving_lsn};

use super::content::{Rec, WAL_BEGINS, Wal};
use super::machine::{Machine, Source, Written};
use super::plan::{MS, SEC};
use super::world::{Happening, InDaemon, InServer, Session, World, note};

/// Frames that are under way in one stream at most.
const IN_FLIGHT_MAX: u64 = 4;
/// The largest frame; large, so that huge records do not make a run long.
const FRAME_BYTES_MAX: u64 = 32 << 20;
/// A stream that is stuck for this long is given up by both ends.
const STUCK_MAX: u64 = 3 * SEC;

impl World {
    pub(crate) fn start_source(&mut self, node: usize, grant: &Grant) {
        self.stop_source(node);
        let id = self.number();
        let machine = &mut self.machines[node];
        let Some(server) = &machine.postgres.server else { return };
        machine.source = Some(Source {
            id,
            server_life: server.life,
            epoch: grant.epoch,
            promotion: grant.promotion,
            flush: machine.postgres.data.wal.bytes(),
            tracker: ExposureTracker::new(grant.exposed_since),
            receivers: Default::default(),
            busy: None,
            look_at: u64::MAX,
        });
        self.in_daemon(node, MS, InDaemon::SourceBeat { source: id });
        self.tell_source(node);
    }

    /// Drops the gate's connection and every stream.
    pub(crate) fn stop_source(&mut self, node: usize) {
        let Some(mut source) = self.machines[node].source.take() else { return };
        if let Some(written) = source.busy.take() {
            // The gate ends after its write, which takes its time.
            self.machines[node].last_write = Some((source.id, source.server_life, written));
        }
        let streams: Vec<u64> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.from == node && session.source == source.id)
            .map(|(id, _)| *id)
            .collect();
        for stream in streams {
            self.close_session(stream);
        }
        self.feed(node, Event::Source(None));
    }

    pub(crate) fn tell_source(&mut self, node: usize) {
        let machine = &self.machines[node];
        let Some(source) = &machine.source else { return };
        let receivers: Vec<ReceiverPosition> = source.receivers.values().copied().collect();
        let permit = machine.cell.permit.as_ref();
        let surviving = surviving_lsn(permit, &receivers);
        let known = known_surviving_lsn(permit, &receivers);
        let exposure: Exposure = source.tracker.exposure(surviving);
        let now = machine.clock(self.now);
        let survives = known.map(|lsn| source.tracker.survival(lsn, now));
        let positions = SourcePositions {
            read_at: now,
            flush_lsn: Lsn(source.flush),
            released_lsn: Lsn(machine.cell.released),
            permit: machine.cell.permit.as_ref().map(|permit| permit.serial),
            exposure,
            survives,
            release_delay: Duration::ZERO,
            gate_connected: self.gate_connected(node),
            receivers,
        };
        self.feed(node, Event::Source(Some(positions)));
    }

    fn gate_connected(&self, node: usize) -> bool {
        let machine = &self.machines[node];
        match (&machine.source, &machine.postgres.server) {
            (Some(source), Some(server)) => source.server_life == server.life && server.primary,
            (Some(_) | None, _) => false,
        }
    }

    pub(crate) fn source_beat(&mut self, node: usize, id: u64) {
        if self.machines[node].source.as_ref().is_none_or(|source| source.id != id) {
            return;
        }
        self.in_daemon(node, 200 * MS, InDaemon::SourceBeat { source: id });
        self.source_moves(node);
        self.tell_source(node);
    }

    /// The primary has flushed more, or something may go on.
    pub(crate) fn source_moves(&mut self, node: usize) {
        let connected = self.gate_connected(node);
        let frozen = self.machines[node].server_running(self.now).is_none();
        let bytes = self.machines[node].postgres.data.wal.bytes();
        let Some(source) = &mut self.machines[node].source else { return };
        if connected && !frozen {
            source.flush = source.flush.max(bytes);
        }
        let id = source.id;
        self.evaluate(node);
        let streams: Vec<u64> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.from == node && session.source == id)
            .map(|(id, _)| *id)
            .collect();
        for stream in streams {
            self.pump(stream);
        }
    }

    /// The gate judges, under the permit, and begins its write.
    pub(crate) fn evaluate(&mut self, node: usize) {
        if !self.gate_connected(node) || !self.runs(node) {
            return;
        }
        let now = self.machines[node].clock(self.now);
        let machine = &mut self.machines[node];
        let Some(source) = &machine.source else { return };
        if source.busy.is_some() {
            return;
        }
        let Some(permit) = machine.cell.in_force(now, source).cloned() else { return };
        let receivers: Vec<ReceiverPosition> = source.receivers.values().copied().collect();
        let last = Lsn(machine.cell.released);
        let positions = GatePositions {
            flush_lsn: Lsn(source.flush),
            last_report: last,
            receivers: &receivers,
        };
        let judged = release(now, &permit, &positions, &source.tracker);
        if judged.upto <= last {
            if let Some(at) = judged.look_again.filter(|at| *at < permit.deadline) {
                self.look_at_gate(node, now, at);
            }
            return;
        }
        let durable = self.durable_everywhere();
        let Some(source) = &self.machines[node].source else { return };
        let written = Written {
            upto: judged.upto.0,
            decided_at: self.now,
            decided_local: now,
            written_at: self.now,
            durable,
            epoch: source.epoch,
            permit,
        };
        let id = source.id;
        if let Some(source) = &mut self.machines[node].source {
            source.busy = Some(written);
        }
        let most = self.plan.write_delay_max;
        let takes = match most {
            0 => 0,
            _ if self.random.chance(300) => self.random.between(most * 9 / 10, most),
            _ => self.random.between(0, most),
        };
        if takes == 0 {
            self.gate_write(node, id);
        } else {
            self.in_daemon(node, takes, InDaemon::GateWrite { source: id });
        }
    }

    fn look_at_gate(&mut self, node: usize, now: BootInstant, at: BootInstant) {
        let wait = self.machines[node].real(at.since(now).as_nanos() as u64);
        let due = self.now + wait;
        let Some(source) = &mut self.machines[node].source else { return };
        if due < source.look_at {
            source.look_at = due;
            let id = source.id;
            self.in_daemon(node, wait, InDaemon::GateLook { source: id });
        }
    }

    /// Whoever takes the permit's lock waits until the write under it is over.
    pub(crate) fn finish_write(&mut self, node: usize) {
        if let Some(source) = &self.machines[node].source
            && source.busy.is_some()
        {
            let id = source.id;
            self.end_write(node, id);
        }
    }

    pub(crate) fn gate_write(&mut self, node: usize, id: u64) {
        let machine = &mut self.machines[node];
        if let Some((_, life, mut written)) = machine.last_write.take_if(|(of, ..)| *of == id) {
            written.written_at = self.now;
            if machine.postgres.server.as_ref().is_some_and(|server| server.life == life) {
                self.check_write(node, &written);
                self.deliver(node, written);
            }
            return;
        }
        self.end_write(node, id);
        self.evaluate(node);
    }

    fn deliver(&mut self, node: usize, written: Written) {
        let machine = &mut self.machines[node];
        if let Some(server) = &mut machine.postgres.server {
            server.socket = Some(written);
        }
        if machine.server_running(self.now).is_some() {
            self.read_socket(node);
        } else {
            self.in_server(node, MS, InServer::ReadSocket);
        }
    }

    /// The one write of one status update is over.
    fn end_write(&mut self, node: usize, id: u64) {
        let machine = &mut self.machines[node];
        let Some(source) = machine.source.as_mut().filter(|source| source.id == id) else { return };
        let Some(mut written) = source.busy.take() else { return };
        written.written_at = self.now;
        machine.cell.released = machine.cell.released.max(written.upto);
        source.tracker.released(Lsn(written.upto), written.decided_local);
        self.check_write(node, &written);
        if self.gate_connected(node) {
            self.deliver(node, written);
        }
    }

    pub(crate) fn connect(&mut self, node: usize, id: u64) {
        let Some(following) = self.machines[node].following.clone().filter(|f| f.id == id) else {
            return;
        };
        if following.session.is_some() {
            return;
        }
        let again = self.random.between(50, 500) * MS;
        let holder = following.holder;
        let source = self.machines[holder].source.clone().filter(|_| self.reach(node, holder));
        let Some(source) = source.filter(|_| self.gate_connected(holder)) else {
            self.in_daemon(node, again, InDaemon::Connect { following: id });
            return;
        };
        if source.epoch != following.admission.epoch
            || source.promotion != following.admission.promotion
        {
            self.follow_ends(node, FollowEnd::Again("the epochs do not agree".to_owned()));
            return;
        }
        if let Some(why) = self.refusal(node, holder) {
            self.follow_ends(node, FollowEnd::Diverged(why));
            return;
        }
        self.attach(node, holder, source.id);
    }

    /// What the source finds when it compares the receiver's end with its own WAL.
    fn refusal(&self, node: usize, holder: usize) -> Option<String> {
        let journal = &self.machines[node].journal;
        let (wal, data) = (journal.wal.as_ref()?, &self.machines[holder].postgres.data);
        let durable = wal.record_end_before(journal.synced);
        let timeline = wal.timeline()?;
        let end_of = |(left, switch): &(_, u64)| (*left == timeline).then_some(*switch);
        let known = timeline == data.timeline;
        let switch = data.ancestors.iter().find_map(end_of);
        if !known && switch.is_none() {
            return Some(format!("timeline {timeline} is not in the history"));
        }
        if switch.is_some_and(|switch| durable > switch) {
            return Some(format!("{durable} lies after timeline {timeline} was left"));
        }
        if durable > data.wal.bytes() {
            return Some(format!("{durable} is ahead of the primary"));
        }
        let last = wal.last_complete()?;
        let same = data.wal.at(last.start).is_some_and(|rec| rec.id == last.id);
        (!same).then(|| format!("the record at {} is another one", last.start))
    }

    fn attach(&mut self, node: usize, holder: usize, source: u64) {
        let id = self.number();
        let kind = self.machines[node].kind;
        // One that has received nothing yet has no file: it asks anew where to begin (`receiver.rs`).
        let empty = |wal: &Wal| kind == NodeKind::Journal && wal.bytes() == wal.begin();
        if self.machines[node].journal.wal.as_ref().is_none_or(empty) {
            // An empty journal begins some way before what the standby has; one that has no standby, some
            // way before the end of what the primary has.
            let of = match kind {
                NodeKind::Data => node,
                NodeKind::Journal | NodeKind::Witness => holder,
            };
            let before = match kind {
                NodeKind::Data => 200_000,
                NodeKind::Journal | NodeKind::Witness => self.random.between(0, 200_000),
            };
            let wal = &self.machines[of].postgres.data.wal;
            let begin = wal.after(wal.record_end().saturating_sub(before)).first().copied();
            let none = wal.record_end().max(WAL_BEGINS);
            let machine = &mut self.machines[node];
            machine.journal.wal = Some(Wal::from(begin.map_or(none, |rec| rec.start)));
            machine.journal.synced = machine.journal.wal.as_ref().map_or(0, Wal::begin);
            let lineage = self.machines[holder].journal.lineage.clone();
            self.machines[node].journal.lineage = lineage;
        }
        let sent = self.machines[node].durable_lsn().0;
        if let Some(following) = &mut self.machines[node].following {
            following.session = Some(id);
        }
        let old: Vec<u64> = self
            .sessions
            .iter()
            .filter(|(_, s)| s.from == holder && s.to == node)
            .map(|(id, _)| *id)
            .collect();
        for old in old {
            self.close_session(old);
        }
        self.sessions.insert(
            id,
            Session {
                from: holder,
                source,
                to: node,
                sent,
                in_flight: 0,
                to_arrives: 0,
                back_arrives: 0,
                broken_since: None,
            },
        );
        note!(self, "n{} attached to n{} at {sent}", node + 1, holder + 1);
        self.acknowledge(node);
        self.after(500 * MS, Happening::SessionBeat(id));
        self.pump(id);
    }

    /// Ends a stream on both sides.
    pub(crate) fn close_session(&mut self, id: u64) {
        let Some(session) = self.sessions.remove(&id) else { return };
        let to = self.machines[session.to].id;
        if let Some(source) = &mut self.machines[session.from].source
            && source.id == session.source
            && let Some(position) = source.receivers.get_mut(&to)
        {
            position.attached = false;
            if self.runs(session.from) {
                self.tell_source(session.from);
            }
        }
        let machine = &mut self.machines[session.to];
        if let Some(following) = &mut machine.following
            && following.session == Some(id)
        {
            following.session = None;
            let following = following.id;
            let again = self.random.between(50, 500) * MS;
            self.in_daemon(session.to, again, InDaemon::Connect { following });
        }
    }

    pub(crate) fn session_beat(&mut self, id: u64) {
        let Some(session) = self.sessions.get(&id).cloned() else { return };
        let source_there = self.machines[session.from]
            .source
            .as_ref()
            .is_some_and(|source| source.id == session.source);
        let receiver_there = self.machines[session.to]
            .following
            .as_ref()
            .is_some_and(|following| following.session == Some(id));
        let links =
            self.link_up(session.from, session.to) && self.link_up(session.to, session.from);
        let gone = (!source_there || !receiver_there) && links;
        let stuck = session.broken_since.is_some_and(|since| self.now - since >= STUCK_MAX);
        // A stream that lost something goes on only as a new one.
        if gone || stuck || (links && session.broken_since.is_some()) {
            self.close_session(id);
            return;
        }
        if !links || !source_there || !receiver_there {
            let now = self.now;
            if let Some(session) = self.sessions.get_mut(&id) {
                session.broken_since.get_or_insert(now);
            }
        }
        self.after(500 * MS, Happening::SessionBeat(id));
        if self.runs(session.to) {
            self.acknowledge(session.to);
        }
    }

    fn follow_ends(&mut self, node: usize, end: FollowEnd) {
        note!(self, "n{} following ends: {end:?}", node + 1);
        self.unfollow(node);
        self.feed(node, Event::FollowEnded(end));
    }

    /// Sends what is flushed and not sent.
    fn pump(&mut self, id: u64) {
        loop {
            let Some(session) = self.sessions.get(&id).cloned() else { return };
            let Some(source) = &self.machines[session.from].source else { return };
            let flush = source.flush.min(self.machines[session.from].postgres.data.wal.bytes());
            let waits = session.in_flight >= IN_FLIGHT_MAX || session.broken_since.is_some();
            if waits || session.sent >= flush || !self.runs(session.from) {
                return;
            }
            let mut upto = flush.min(session.sent + FRAME_BYTES_MAX);
            if upto - session.sent > 1 && self.random.chance(150) {
                upto = self.random.between(session.sent + 1, upto); // frames know no records
            }
            let recs: Vec<Rec> = self.machines[session.from]
                .postgres
                .data
                .wal
                .after(session.sent)
                .iter()
                .take_while(|rec| rec.start < upto)
                .copied()
                .collect();
            let takes = self.travel(session.from, session.to) + (upto - session.sent) / 2;
            let arrives = (self.now + takes).max(session.to_arrives + 1);
            if let Some(session) = self.sessions.get_mut(&id) {
                session.sent = upto;
                session.in_flight += 1;
                session.to_arrives = arrives;
            }
            let frame = InDaemon::Frame { session: id, recs, upto };
            self.in_daemon(session.to, arrives - self.now, frame);
        }
    }

    pub(crate) fn frame(&mut self, node: usize, id: u64, recs: &[Rec], upto: u64) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&id) else {
            if SeededBug::OldEpochAccepted.is_on() {
                self.store_late(node, recs, upto);
            }
            return;
        };
        session.in_flight -= 1;
        let (from, to) = (session.from, session.to);
        if !self.link_up(from, to) {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.broken_since.get_or_insert(now);
            }
            return;
        }
        let whole = self.sessions.get(&id).is_some_and(|session| session.broken_since.is_none());
        let following = self.machines[node].following.as_ref();
        let admitted = following.filter(|f| f.session == Some(id)).map(|f| f.admission.epoch);
        if !whole || admitted.is_none() || self.machines[node].journal.admitted != admitted {
            return;
        }
        let held = self.machines[node].journal.wal.as_ref().map_or(upto, Wal::bytes);
        let mut upto = upto;
        if !self.machines[from].powered && upto > held + 1 {
            // The sender died in the middle of it: a part arrives, and nothing after it.
            upto = self.random.between(held + 1, upto);
            if let Some(session) = self.sessions.get_mut(&id) {
                session.broken_since.get_or_insert(now);
            }
        }
        self.store(node, recs, upto);
        if SeededBug::AckBeforeDurable.is_on() {
            self.send_ack(node, true);
        }
        self.pump(id);
    }

    fn store(&mut self, node: usize, recs: &[Rec], upto: u64) {
        let machine = &mut self.machines[node];
        let Some(wal) = &mut machine.journal.wal else { return };
        let differs = wal.take(recs, upto).err().map(|differs| Lsn(differs.at));
        let id = machine.id;
        self.judge(protocol::no_durable_byte_is_overwritten(id, differs));
        self.wish_sync(node);
    }

    /// The mistake: a frame that was under way when the journal was sealed is stored all the same.
    fn store_late(&mut self, node: usize, recs: &[Rec], upto: u64) {
        let machine = &self.machines[node];
        let newest = machine.journal.max_epoch;
        let frame_epoch = self.grants.iter().rev().map(|grant| grant.epoch).find(|e| *e < newest);
        let Some((wal, epoch)) = machine.journal.wal.as_ref().zip(frame_epoch) else { return };
        if machine.journal.admitted.is_some() || upto <= wal.bytes() {
            return;
        }
        self.judge(protocol::a_journal_stores_no_older_epoch(epoch, newest));
        self.store(node, recs, upto);
    }

    fn wish_sync(&mut self, node: usize) {
        let takes = self.fsync(node);
        let journal = &mut self.machines[node].journal;
        let Some(wal) = &journal.wal else { return };
        if !journal.syncing && wal.bytes() > journal.synced {
            journal.syncing = true;
            let upto = wal.bytes();
            self.in_daemon(node, takes, InDaemon::Synced { upto });
        }
    }

    pub(crate) fn synced(&mut self, node: usize, upto: u64) {
        let journal = &mut self.machines[node].journal;
        journal.syncing = false;
        let Some(wal) = &journal.wal else { return };
        journal.synced = journal.synced.max(upto.min(wal.bytes()));
        self.wish_sync(node);
        self.acknowledge(node);
        self.wish_replay(node);
    }

    /// Tells the holder what is durable here.
    pub(crate) fn acknowledge(&mut self, node: usize) {
        self.send_ack(node, false);
    }

    fn send_ack(&mut self, node: usize, too_early: bool) {
        let machine = &self.machines[node];
        let Some(id) = machine.following.as_ref().and_then(|f| f.session) else { return };
        let Some(session) = self.sessions.get(&id).cloned() else { return };
        let durable = match &machine.journal.wal {
            Some(wal) if too_early => wal.record_end(),
            Some(_) | None => machine.durable_lsn().0,
        };
        let standby = machine.postgres.server.as_ref().filter(|server| !server.primary);
        let replay = standby.map(|server| server.replay);
        if session.broken_since.is_some() {
            return;
        }
        let takes = self.travel(node, session.from);
        let arrives = (self.now + takes).max(session.back_arrives + 1);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.back_arrives = arrives;
        }
        let ack = InDaemon::Ack { session: id, durable, replay };
        self.in_daemon(session.from, arrives - self.now, ack);
    }

    pub(crate) fn acknowledged(&mut self, node: usize, id: u64, durable: Lsn, replay: Option<Lsn>) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let (from, to) = (session.from, session.to);
        if self.now < self.cut_until[to][from] {
            session.broken_since.get_or_insert(now);
            return;
        }
        let stream_of = session.source;
        let name = self.machines[to].id;
        let begin_lsn = self.begins_at(to);
        let Some(source) = &mut self.machines[node].source else { return };
        if source.id != stream_of {
            return;
        }
        let before = source.receivers.get(&name).copied();
        let position = ReceiverPosition {
            node: name,
            attached: true,
            durable_lsn: durable,
            replay_lsn: replay,
            begin_lsn,
        };
        source.receivers.insert(name, position);
        let edge = before.is_none_or(|b| !b.attached || b.replay_lsn.is_none() != replay.is_none());
        if edge {
            self.tell_source(node);
        }
        self.evaluate(node);
        self.pump(id);
    }

    /// What every node holds durably, by the truth, or held until its disk was lost.
    pub(crate) fn durable_everywhere(&self) -> std::collections::BTreeMap<NodeId, Lsn> {
        let keeps_wal = self.machines.iter().filter(|machine| machine.kind.keeps_wal());
        let has = |machine: &Machine| machine.durable_lsn().max(Lsn(machine.journal.had));
        keeps_wal.map(|machine| (machine.id, has(machine))).collect()
    }

    /// Where what a node has begins: with its journal, if it has nothing else.
    pub(crate) fn begins_at(&self, node: usize) -> Lsn {
        let machine = &self.machines[node];
        let told = !SeededBug::JournalHasAllBefore.is_on();
        let alone = machine.kind == NodeKind::Journal && told;
        machine.journal.wal.as_ref().filter(|_| alone).map_or(Lsn::ZERO, |wal| Lsn(wal.begin()))
    }
}
