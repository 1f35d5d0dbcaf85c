//! The table's stage, on the model.

use understudy_types::Timeline;

use super::super::super::content::Rec;
use super::super::{Postgres, Waiter};
use super::{Commit, Rewound, Runs, Site, Stage, Told};

const COMMIT_BYTES: u64 = 100;

struct Begun {
    at: Site,
    rec: Rec,
    told: Told,
}

impl Begun {
    fn is(&self, waiter: &Waiter) -> bool {
        (self.rec.start, self.rec.id) == (waiter.start, waiter.id)
    }
}

pub(super) struct Modelled {
    sites: [Postgres; 2],
    /// What the gate has confirmed, where one is connected.
    gates: [Option<u64>; 2],
    restartable: bool,
    /// The end of a fast stop's last record.
    stop_end: [Option<u64>; 2],
    commits: Vec<Begun>,
    ids: u64,
}

impl Modelled {
    pub(super) fn begin() -> Modelled {
        let mut stage = Modelled {
            sites: [Postgres::nothing(), Postgres::nothing()],
            gates: [None; 2],
            restartable: false,
            stop_end: [None; 2],
            commits: Vec::new(),
            ids: 0,
        };
        let id = stage.id();
        stage.sites[Site::North as usize].init_db(id);
        stage.start_primary(Site::North);
        stage.gate_connects(Site::North);
        stage
    }

    fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    fn site(&mut self, at: Site) -> &mut Postgres {
        &mut self.sites[at as usize]
    }

    fn confirm(&mut self, at: Site, upto: u64) {
        let Some(gate) = &mut self.gates[at as usize] else { panic!("no gate is connected") };
        *gate = (*gate).max(upto);
        let over = self.sites[at as usize].confirm(upto);
        for commit in self.commits.iter_mut().filter(|commit| commit.at == at) {
            if over.iter().any(|waiter| commit.is(waiter)) {
                commit.told = Told::Acknowledged;
            }
        }
        self.end_if_stopped(at);
    }

    fn end_if_stopped(&mut self, at: Site) {
        let confirmed = self.gates[at as usize];
        if let Some(end) = self.stop_end[at as usize]
            && self.site(at).end_if_confirmed(end, confirmed)
        {
            self.stop_end[at as usize] = None;
            self.gates[at as usize] = None;
        }
    }

    /// To PostgreSQL a cancelled statement and an ended session are one thing; the client is told another.
    fn end_wait(&mut self, commit: Commit, told: Told) {
        let begun = &mut self.commits[commit.0];
        let waited = self.sites[begun.at as usize].cancel(begun.rec.id);
        assert!(waited, "nobody waits for {commit:?}");
        begun.told = told;
    }

    /// Sessions of clients are gone; whoever waited knows nothing.
    fn forget_waiting(&mut self, at: Site) {
        let gone = |commit: &&mut Begun| commit.at == at && commit.told == Told::Waits;
        self.commits.iter_mut().filter(gone).for_each(|commit| commit.told = Told::Nothing);
    }
}

impl Stage for Modelled {
    fn commit(&mut self, at: Site) -> Commit {
        let id = self.id();
        let postgres = self.site(at);
        let rec = postgres.commit(COMMIT_BYTES, id);
        postgres.data.wal.flush(rec.end);
        self.commits.push(Begun { at, rec, told: Told::Waits });
        Commit(self.commits.len() - 1)
    }

    fn told(&mut self, of: Commit) -> Told {
        let commit = &self.commits[of.0];
        let waiting = self.sites[commit.at as usize].server.as_ref();
        let waits = waiting.is_some_and(|server| server.waiting.iter().any(|w| commit.is(w)));
        assert_eq!(waits, commit.told == Told::Waits, "the stage and the model differ");
        commit.told
    }

    fn shows(&mut self, at: Site, what: Commit) -> bool {
        let commit = &self.commits[what.0];
        self.sites[at as usize].shows(commit.rec.start, commit.rec.id)
    }

    fn confirm_through(&mut self, commit: Commit) {
        let Begun { at, rec, .. } = self.commits[commit.0];
        self.confirm(at, rec.end);
    }

    fn confirm_before(&mut self, commit: Commit) {
        let Begun { at, rec, .. } = self.commits[commit.0];
        // Not a byte of it, and all but the last one.
        self.confirm(at, rec.start);
        self.confirm(at, rec.end - 1);
    }

    fn confirm_all(&mut self, at: Site) {
        let end = self.site(at).data.wal.bytes();
        self.confirm(at, end);
    }

    fn gate_connects(&mut self, at: Site) {
        self.gates[at as usize] = Some(0);
    }

    fn gate_goes(&mut self, at: Site) {
        self.gates[at as usize] = None;
        self.end_if_stopped(at);
    }

    fn cancel(&mut self, commit: Commit) {
        self.end_wait(commit, Told::CommittedHereOnly);
    }

    fn end_session(&mut self, commit: Commit) {
        self.end_wait(commit, Told::Nothing);
    }

    fn crash(&mut self, at: Site) {
        self.site(at).die();
        self.gates[at as usize] = None;
        self.forget_waiting(at);
    }

    fn kill_backend_of(&mut self, commit: Commit) {
        let at = self.commits[commit.0].at;
        if self.restartable {
            self.site(at).restart_in_place();
        } else {
            self.site(at).die();
        }
        self.gates[at as usize] = None;
        self.forget_waiting(at);
    }

    fn start_restartable_primary(&mut self, at: Site) {
        self.restartable = true;
        self.start_primary(at);
    }

    fn start_primary(&mut self, at: Site) {
        self.site(at).start_primary();
    }

    fn start_standby(&mut self, at: Site) {
        self.site(at).start_standby();
    }

    fn runs(&mut self, at: Site) -> Runs {
        match &self.site(at).server {
            None => Runs::Not,
            Some(server) if server.stopping => Runs::Stopping,
            Some(server) if server.primary => Runs::Primary,
            Some(_) => Runs::Standby,
        }
    }

    fn stop_fast(&mut self, at: Site) {
        let id = self.id();
        self.site(at).tell_to_stop();
        self.forget_waiting(at);
        let rec = self.site(at).write_shutdown_checkpoint(id);
        self.stop_end[at as usize] = Some(rec.end);
        self.end_if_stopped(at);
    }

    fn checkpoint(&mut self, at: Site) {
        self.site(at).checkpoint();
    }

    fn copy(&mut self, from: Site, to: Site) {
        let source = self.site(from).data.clone();
        self.site(to).become_copy_of(source);
    }

    fn stream(&mut self, from: Site, to: Site) {
        let wal = self.site(from).data.wal.clone();
        let end = wal.bytes();
        self.site(to).replay(&wal, end);
    }

    fn promote(&mut self, at: Site, to: Timeline) {
        let id = self.id();
        self.site(at).promote(to, id);
    }

    fn timeline(&mut self, at: Site) -> Timeline {
        self.site(at).data.timeline
    }

    fn checkpoint_timeline(&mut self, at: Site) -> Timeline {
        self.site(at).data.control_timeline
    }

    fn rewind(&mut self, from: Site, target: Site) -> Rewound {
        let source = self.site(from).data.clone();
        if !self.site(target).needs_rewind_from(&source) {
            return Rewound::NotNeeded;
        }
        self.site(target).become_copy_of(source);
        Rewound::Done
    }
}
