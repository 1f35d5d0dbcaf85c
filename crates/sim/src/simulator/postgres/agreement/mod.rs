//! One table of behaviours, played on the model and on a real PostgreSQL: both have to do as it says.
//!
//! A row acts on a [`Stage`] of two sites and says what must be seen. What the simulator shows is only
//! worth as much as this table is long: whoever lets the model do something new adds a row.

mod modelled;
mod real;

use understudy_types::Timeline;

use self::modelled::Modelled;
use self::real::Real;

/// Where a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Site {
    North = 0,
    South = 1,
}

/// A commit that somebody began, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Commit(usize);

/// What the client knows of its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Nothing yet; its session waits for the gate.
    Waits,
    /// It is committed, and confirmed by the gate.
    Acknowledged,
    /// It is committed here, and maybe nowhere else.
    CommittedHereOnly,
    /// Nothing, and the session is gone.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runs {
    Not,
    /// In recovery.
    Standby,
    Primary,
    /// Nobody is let in; it ends when the gate has its last record.
    Stopping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rewound {
    Done,
    NotNeeded,
}

/// Two sites with a server each, and a gate that confirms nothing by itself.
trait Stage {
    /// A client inserts a row of its own and commits; returns once that waits for the gate.
    fn commit(&mut self, at: Site) -> Commit;
    fn told(&mut self, of: Commit) -> Told;
    /// A new session sees the row.
    fn shows(&mut self, at: Site, what: Commit) -> bool;
    /// The gate confirms everything up to, and with, this commit's record.
    fn confirm_through(&mut self, commit: Commit);
    /// The gate confirms everything that was written before this commit was begun.
    fn confirm_before(&mut self, commit: Commit);
    /// The gate confirms everything that there is.
    fn confirm_all(&mut self, at: Site);
    fn gate_connects(&mut self, at: Site);
    fn gate_goes(&mut self, at: Site);
    /// Somebody cancels the statement that waits.
    fn cancel(&mut self, commit: Commit);
    /// Somebody ends the session that waits.
    fn end_session(&mut self, commit: Commit);
    /// Every process is killed at once.
    fn crash(&mut self, at: Site);
    /// The session's process is killed.
    fn kill_backend_of(&mut self, commit: Commit);
    /// A primary whose death of a backend restarts it in place, with `standby.signal` beside it.
    fn start_restartable_primary(&mut self, at: Site);
    fn start_primary(&mut self, at: Site);
    fn start_standby(&mut self, at: Site);
    fn runs(&mut self, at: Site) -> Runs;
    /// A fast stop is ordered; returns when the last record is written.
    fn stop_fast(&mut self, at: Site);
    fn checkpoint(&mut self, at: Site);
    /// `to`, which does not run, becomes a copy of `from`.
    fn copy(&mut self, from: Site, to: Site);
    /// The standby `to` gets all WAL that `from` has, and replays it.
    fn stream(&mut self, from: Site, to: Site);
    fn promote(&mut self, at: Site, to: Timeline);
    fn timeline(&mut self, at: Site) -> Timeline;
    /// What the control file says of the last checkpoint.
    fn checkpoint_timeline(&mut self, at: Site) -> Timeline;
    fn rewind(&mut self, from: Site, target: Site) -> Rewound;
}

use Site::{North, South};

type Play = fn(&mut dyn Stage);

fn second() -> Timeline {
    Timeline::new(2).expect("two is a timeline")
}

/// North has committed `both`, which south has too; then south is away and north commits `alone`, which
/// nobody confirms, and crashes.
fn parted(stage: &mut dyn Stage) -> (Commit, Commit) {
    let both = stage.commit(North);
    stage.confirm_all(North);
    stage.copy(North, South);
    stage.start_standby(South);
    stage.stream(North, South);
    stage.crash(South);
    let alone = stage.commit(North);
    stage.crash(North);
    assert_eq!(stage.told(alone), Told::Nothing);
    (both, alone)
}

/// Each begins with a primary in the north that lets clients in, with its gate connected.
const TABLE: &[(&str, Play)] = &[
    ("a commit waits until the gate has the whole of its record", |stage| {
        let commit = stage.commit(North);
        assert_eq!(stage.told(commit), Told::Waits);
        assert!(!stage.shows(North, commit), "nobody sees what may yet be lost");
        stage.confirm_before(commit);
        assert_eq!(stage.told(commit), Told::Waits);
        stage.confirm_through(commit);
        assert_eq!(stage.told(commit), Told::Acknowledged);
        assert!(stage.shows(North, commit));
    }),
    ("one message of the gate ends the waits before it, and no other", |stage| {
        let [first, second, third] = [(); 3].map(|()| stage.commit(North));
        stage.confirm_through(second);
        let told = [first, second, third].map(|commit| stage.told(commit));
        assert_eq!(told, [Told::Acknowledged, Told::Acknowledged, Told::Waits]);
    }),
    ("without the gate's connection whoever waits goes on waiting", |stage| {
        let commit = stage.commit(North);
        stage.gate_goes(North);
        assert_eq!(stage.told(commit), Told::Waits);
        let later = stage.commit(North);
        stage.gate_connects(North);
        assert_eq!((stage.told(commit), stage.told(later)), (Told::Waits, Told::Waits));
        stage.confirm_all(North);
        assert_eq!(stage.told(commit), Told::Acknowledged);
        assert_eq!(stage.told(later), Told::Acknowledged);
    }),
    ("a cancelled wait leaves the commit as it is, and says so", |stage| {
        let (commit, other) = (stage.commit(North), stage.commit(North));
        stage.cancel(commit);
        assert_eq!(stage.told(commit), Told::CommittedHereOnly);
        assert!(stage.shows(North, commit));
        assert_eq!(stage.told(other), Told::Waits);
        stage.confirm_all(North);
        assert_eq!(stage.told(commit), Told::CommittedHereOnly);
        assert_eq!(stage.told(other), Told::Acknowledged);
    }),
    ("a session that is ended while it waits has committed, and is not told", |stage| {
        let commit = stage.commit(North);
        stage.end_session(commit);
        assert_eq!(stage.told(commit), Told::Nothing);
        assert!(stage.shows(North, commit));
    }),
    ("a crash keeps what was flushed, acknowledged or not", |stage| {
        let acknowledged = stage.commit(North);
        stage.confirm_through(acknowledged);
        let waiting = stage.commit(North);
        stage.crash(North);
        assert_eq!(stage.told(waiting), Told::Nothing);
        assert_eq!(stage.runs(North), Runs::Not);
        stage.start_primary(North);
        assert!(stage.shows(North, acknowledged) && stage.shows(North, waiting));
        assert_eq!(stage.timeline(North), Timeline::FIRST);
        let next = stage.commit(North);
        assert_eq!(stage.told(next), Told::Waits);
    }),
    ("a killed backend ends the whole server", |stage| {
        let (killed, other) = (stage.commit(North), stage.commit(North));
        stage.kill_backend_of(killed);
        assert_eq!((stage.told(killed), stage.told(other)), (Told::Nothing, Told::Nothing));
        assert_eq!(stage.runs(North), Runs::Not);
    }),
    ("a restart in place comes up in recovery, with everything that was flushed", |stage| {
        stage.crash(North);
        stage.start_restartable_primary(North);
        stage.gate_connects(North);
        let (killed, other) = (stage.commit(North), stage.commit(North));
        stage.kill_backend_of(killed);
        assert_eq!((stage.told(killed), stage.told(other)), (Told::Nothing, Told::Nothing));
        assert_eq!(stage.runs(North), Runs::Standby);
        assert!(stage.shows(North, killed) && stage.shows(North, other));
    }),
    ("a standby replays what it is sent, and takes no writes", |stage| {
        let commit = stage.commit(North);
        stage.confirm_all(North);
        stage.copy(North, South);
        stage.start_standby(South);
        let later = stage.commit(North);
        stage.stream(North, South);
        assert_eq!(stage.runs(South), Runs::Standby);
        assert!(stage.shows(South, commit));
        assert!(stage.shows(South, later), "a standby shows what still waits at its primary");
        assert!(!stage.shows(North, later));
    }),
    ("a promotion begins a timeline with everything that was replayed", |stage| {
        let commit = stage.commit(North);
        stage.copy(North, South);
        stage.start_standby(South);
        stage.stream(North, South);
        stage.promote(South, second());
        assert_eq!((stage.runs(South), stage.timeline(South)), (Runs::Primary, second()));
        assert!(stage.shows(South, commit));
        let next = stage.commit(South);
        assert_eq!(stage.told(next), Told::Waits, "the gate's name counts from the first write on");
        stage.gate_connects(South);
        stage.confirm_all(South);
        assert_eq!(stage.told(next), Told::Acknowledged);
        stage.checkpoint(South);
        assert_eq!(stage.checkpoint_timeline(South), second());
        assert_eq!(stage.timeline(North), Timeline::FIRST);
    }),
    (
        "a rewind from the same timeline changes nothing, though both have gone different ways",
        |stage| {
            let (both, alone) = parted(stage);
            stage.start_primary(South);
            let there = stage.commit(South);
            assert_eq!(stage.timeline(South), Timeline::FIRST);
            assert_eq!(stage.rewind(South, North), Rewound::NotNeeded);
            stage.start_primary(North);
            assert!(stage.shows(North, both) && stage.shows(North, alone));
            assert!(!stage.shows(North, there));
        },
    ),
    ("a rewind from another timeline takes away what only the old side had", |stage| {
        let (both, alone) = parted(stage);
        stage.start_standby(South);
        stage.promote(South, second());
        let there = stage.commit(South);
        stage.checkpoint(South);
        assert_eq!(stage.rewind(South, North), Rewound::Done);
        stage.start_standby(North);
        stage.stream(South, North);
        assert!(stage.shows(North, both) && stage.shows(North, there));
        assert!(!stage.shows(North, alone));
        assert_eq!(stage.timeline(North), second());
    }),
    ("a fast stop waits for the gate, and keeps what nobody was told of", |stage| {
        let commit = stage.commit(North);
        stage.stop_fast(North);
        assert_eq!(stage.told(commit), Told::Nothing);
        assert_eq!(stage.runs(North), Runs::Stopping);
        stage.confirm_all(North);
        assert_eq!(stage.runs(North), Runs::Not);
        stage.start_standby(North);
        assert!(stage.shows(North, commit));
    }),
    ("a fast stop without the gate's connection waits for nobody", |stage| {
        let commit = stage.commit(North);
        stage.gate_goes(North);
        stage.stop_fast(North);
        assert_eq!(stage.runs(North), Runs::Not);
        stage.start_primary(North);
        assert!(stage.shows(North, commit));
    }),
];

#[test]
fn the_model_does_as_the_table_says() {
    for (name, play) in TABLE {
        eprintln!("{name}");
        play(&mut Modelled::begin());
    }
}

#[test]
fn postgresql_does_as_the_table_says() {
    for (name, play) in TABLE {
        eprintln!("{name}");
        play(&mut Real::begin());
    }
}
