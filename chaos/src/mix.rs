//! Load beside the work logs: bulk, large transactions that are given up, changes of tables, prepared
//! transactions, segments that end early, checkpoints. It keeps to a rate of WAL, so that a run of an
//! hour fits a disk.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::conversation::{Conversation, End};
use crate::lab::Lab;
use crate::seed::Sequence;

const DATABASE: &str = "mix";
/// WAL in a second, everybody's; what is above it waits.
const BYTES_PER_SECOND: u64 = 3 << 20;
const PAUSE_MIN_MS: u64 = 50;
const PAUSE_MAX_MS: u64 = 600;
/// After so many pieces of bulk the table is emptied.
const PIECES_MAX: u64 = 12;

/// What the load does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Work {
    Bulk,
    Abort,
    Update,
    Message,
    Ddl,
    Prepared,
    Truncate,
    Switch,
    Checkpoint,
}

/// Those that make WAL come more often than those that end something.
const WORKS: [Work; 14] = [
    Work::Bulk,
    Work::Bulk,
    Work::Bulk,
    Work::Abort,
    Work::Abort,
    Work::Update,
    Work::Update,
    Work::Message,
    Work::Ddl,
    Work::Ddl,
    Work::Prepared,
    Work::Truncate,
    Work::Switch,
    Work::Checkpoint,
];

impl Work {
    /// The statements of the `turn`th piece of work. `kib` is how much of it there is.
    fn sql(self, turn: u64, kib: u64) -> String {
        let rows = format!(
            "INSERT INTO bulk SELECT n, repeat(md5(n::text || {turn}), 30) \
             FROM generate_series(1, {kib}) AS n"
        );
        match self {
            Work::Bulk => rows,
            Work::Abort => format!("BEGIN; {rows}; ROLLBACK"),
            Work::Update => format!("UPDATE bulk SET n = n + 1 WHERE n % 50 = {}", turn % 50),
            Work::Message => {
                format!("SELECT pg_logical_emit_message(false, 'mix', repeat('mix ', {kib} * 256))")
            }
            Work::Ddl => format!(
                "CREATE TABLE ddl_{turn} AS SELECT n, md5(n::text) AS text \
                 FROM generate_series(1, {kib}) AS n; CREATE INDEX ON ddl_{turn} (text); \
                 ALTER TABLE ddl_{turn} ADD COLUMN more int DEFAULT 7; DROP TABLE ddl_{turn}"
            ),
            Work::Prepared => format!(
                "BEGIN; {rows}; PREPARE TRANSACTION 'mix_{turn}'; COMMIT PREPARED 'mix_{turn}'"
            ),
            Work::Truncate => "TRUNCATE bulk".to_owned(),
            Work::Switch => "SELECT pg_switch_wal()".to_owned(),
            Work::Checkpoint => "CHECKPOINT".to_owned(),
        }
    }
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Done {
    pub(crate) works: BTreeMap<Work, u64>,
    /// WAL that the server wrote from the load's first look on, everybody's, bytes.
    pub(crate) wal_bytes: u64,
    /// Why it ended before it was told to.
    pub(crate) failed: Option<String>,
}

impl Done {
    /// For tests: all of it once.
    #[cfg(test)]
    pub(crate) fn do_every_work(&mut self) {
        self.works = WORKS.map(|work| (work, 1)).into();
    }

    /// That every kind of work was done.
    ///
    /// # Errors
    /// When one never was, or the load ended early.
    pub(crate) fn ensure_mixed(&self) -> Result<()> {
        if let Some(failed) = &self.failed {
            anyhow::bail!("the mixed load failed: {failed}");
        }
        for work in WORKS {
            ensure!(self.works.contains_key(&work), "the mixed load never came to {work:?}");
        }
        Ok(())
    }
}

/// The load, until it is ended.
pub(crate) struct Mix {
    done: Arc<Mutex<Done>>,
    stop: Arc<AtomicBool>,
    end: End,
    thread: Option<JoinHandle<()>>,
}

impl Mix {
    /// Starts it at the active; the seed says what comes after what.
    ///
    /// # Errors
    /// When its database cannot be made.
    pub(crate) fn start(lab: &Lab, active: &str, seed: u64) -> Result<Mix> {
        Mix::clear(lab, active)?;
        lab.sql(active, "postgres", &format!("CREATE DATABASE {DATABASE}"))?;
        let mut session = lab.conversation(active, DATABASE)?;
        session.ask("CREATE TABLE bulk (n bigint, text text)").context("prepare the mixed load")?;
        let end = session.end();
        let (done, stop) = (Arc::<Mutex<Done>>::default(), Arc::<AtomicBool>::default());
        let (shared, stopped) = (done.clone(), stop.clone());
        let thread = Some(std::thread::spawn(move || {
            let outcome = work(&mut session, Sequence::of(seed), &shared, &stopped);
            if let Err(error) = outcome
                && !stopped.load(Ordering::Relaxed)
            {
                lock(&shared).failed = Some(format!("{error:#}"));
            }
        }));
        Ok(Mix { done, stop, end, thread })
    }

    /// Removes what it left behind.
    ///
    /// # Errors
    /// When the server does not.
    pub(crate) fn clear(lab: &Lab, active: &str) -> Result<()> {
        let drop = format!("DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)");
        lab.sql(active, "postgres", &drop).map(std::mem::drop)
    }

    /// Lets it finish what it is at.
    pub(crate) fn end(mut self) -> Done {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            lock(&self.done).failed = Some("it panicked".to_owned());
        }
        lock(&self.done).clone()
    }
}

impl Drop for Mix {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.thread.is_some() {
            self.end.now();
        }
    }
}

fn work(
    session: &mut Conversation,
    mut sequence: Sequence,
    done: &Mutex<Done>,
    stop: &AtomicBool,
) -> Result<()> {
    let (begun, first) = (Instant::now(), session.wal_bytes()?);
    let mut pieces = 0;
    for turn in 0.. {
        let work = sequence.one_of(&WORKS);
        let kib = sequence.between(64, 12 << 10);
        let pause = sequence.milliseconds(PAUSE_MIN_MS, PAUSE_MAX_MS);
        if work == Work::Truncate || pieces >= PIECES_MAX {
            session.ask(&Work::Truncate.sql(turn, 0))?;
            pieces = 0;
        }
        pieces += 1;
        session.ask(&work.sql(turn, kib))?;
        let bytes = session.wal_bytes()?.saturating_sub(first);
        {
            let mut done = lock(done);
            *done.works.entry(work).or_default() += 1;
            done.wal_bytes = bytes;
        }
        let due = Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND as f64);
        let until = begun + due.max(begun.elapsed() + pause);
        while Instant::now() < until {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(PAUSE_MIN_MS));
        }
    }
    Ok(())
}

fn lock(done: &Mutex<Done>) -> MutexGuard<'_, Done> {
    done.lock().expect("no holder of this lock panics: it only counts")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_left_something_out_or_ended_early_is_no_mixed_one() {
        let mut done = Done::default();
        done.do_every_work();
        assert!(done.ensure_mixed().is_ok());
        done.failed = Some("the session ended".to_owned());
        assert!(done.ensure_mixed().is_err());
        done.failed = None;
        done.works.remove(&Work::Switch);
        assert!(done.ensure_mixed().is_err());
    }
}
