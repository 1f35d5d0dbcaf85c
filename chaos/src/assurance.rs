//! What a confirmed commit is worth, seen without asking the program: a session at the primary commits
//! again and again, and the passive's journal is read for it.
//!
//! In `zero` the journal has to hold a commit's WAL when it is confirmed. In `bounded` the time from the
//! oldest confirmed commit that the journal lacks to the newest one has to stay below the ceiling. What
//! is read is what the kernel shows of the journal's files, so a commit that is only in its cache counts
//! as there: whether it survives a loss of power is another row's question.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::conversation::{Conversation, End};
use crate::copies::Copies;
use crate::lab::{Lab, Mode};

const EVERY: Duration = Duration::from_millis(100);
/// So many violations are told in words.
const WORDS_MAX: usize = 5;

/// What was seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Assured {
    /// Commits that were confirmed under `zero`, each looked up in the journal.
    pub(crate) under_zero: u64,
    /// The same under `bounded`.
    pub(crate) under_bounded: u64,
    /// Confirmed under `zero`, and the journal did not have it.
    pub(crate) unheld: u64,
    /// The most that was exposed at any look under `bounded`.
    pub(crate) exposure_max: Duration,
    /// The longest that a commit waited.
    pub(crate) commit_max: Duration,
    /// Everything that was not as it should be.
    pub(crate) wrong: Vec<String>,
}

impl Assured {
    fn wrong(&mut self, words: impl Into<String>) {
        if self.wrong.len() < WORDS_MAX {
            self.wrong.push(words.into());
        }
    }
}

/// A confirmed commit: its WAL ends behind this position of the timeline.
#[derive(Clone, Copy, Debug)]
struct Confirmed {
    lsn: u64,
    at: Instant,
}

/// Those that the journal does not hold yet, oldest first, and the newest of all.
#[derive(Debug, Default)]
struct Exposed {
    lacking: VecDeque<Confirmed>,
    newest: Option<Instant>,
}

impl Exposed {
    /// Takes in a commit, and what is held by now; how much is exposed.
    fn take(
        &mut self,
        confirmed: Confirmed,
        mut held: impl FnMut(u64) -> Result<bool>,
    ) -> Result<Duration> {
        self.lacking.push_back(confirmed);
        self.newest = Some(confirmed.at);
        while let Some(oldest) = self.lacking.front() {
            if !held(oldest.lsn)? {
                break;
            }
            self.lacking.pop_front();
        }
        let oldest = self.lacking.front().map_or(confirmed.at, |oldest| oldest.at);
        Ok(confirmed.at.saturating_duration_since(oldest))
    }
}

/// A watch that runs until it is ended.
pub(crate) struct Assurance {
    assured: Arc<Mutex<Assured>>,
    /// The dial as it is in force, and how often it was turned; `None` while it is being turned.
    dial: Arc<Mutex<(Option<Mode>, u64)>>,
    stop: Arc<AtomicBool>,
    end: End,
    thread: Option<JoinHandle<()>>,
}

impl Assurance {
    /// Starts it at the active.
    ///
    /// # Errors
    /// When no session can be had.
    pub(crate) fn start(
        lab: &Lab,
        active: &str,
        copies: Copies,
        ceiling: Duration,
    ) -> Result<Assurance> {
        lab.sql(active, "postgres", "CREATE TABLE IF NOT EXISTS assurance (n bigint)")?;
        lab.sql(active, "postgres", "TRUNCATE assurance")?;
        let timeline = lab.sql(
            active,
            "postgres",
            "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int",
        )?;
        let timeline = timeline.parse().with_context(|| format!("read timeline {timeline:?}"))?;
        let session = lab.conversation(active, "postgres")?;
        let end = session.end();
        let dial = Arc::new(Mutex::new((Some(lab.shape.mode), 0)));
        let (assured, stop) = (Arc::<Mutex<Assured>>::default(), Arc::<AtomicBool>::default());
        let mut watch = Watch {
            session,
            copies,
            timeline,
            ceiling,
            assured: assured.clone(),
            dial: dial.clone(),
            stop: stop.clone(),
        };
        let thread = Some(std::thread::spawn(move || watch.run()));
        Ok(Assurance { assured, dial, stop, end, thread })
    }

    /// Removes what it left in the database.
    ///
    /// # Errors
    /// When the server does not.
    pub(crate) fn clear(lab: &Lab, active: &str) -> Result<()> {
        lab.sql(active, "postgres", "DROP TABLE IF EXISTS assurance").map(drop)
    }

    /// Says that the dial is being turned (`None`) or where it stands.
    pub(crate) fn dial_is(&self, mode: Option<Mode>) {
        let mut dial = lock(&self.dial);
        *dial = (mode, dial.1 + 1);
    }

    /// Ends the watch, at which no commit waits any more.
    pub(crate) fn end(mut self) -> Assured {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            lock(&self.assured).wrong("the watch over confirmed commits panicked");
        }
        lock(&self.assured).clone()
    }
}

impl Drop for Assurance {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.thread.is_some() {
            self.end.now();
        }
    }
}

struct Watch {
    session: Conversation,
    copies: Copies,
    timeline: u32,
    ceiling: Duration,
    assured: Arc<Mutex<Assured>>,
    dial: Arc<Mutex<(Option<Mode>, u64)>>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    fn run(&mut self) {
        let mut exposed = Exposed::default();
        while !self.stop.load(Ordering::Relaxed) {
            if let Err(error) = self.once(&mut exposed) {
                // Whoever ends the watch in the middle of a commit is not told.
                if !self.stop.load(Ordering::Relaxed) {
                    lock(&self.assured).wrong(format!("watch confirmed commits: {error:#}"));
                }
                return;
            }
            std::thread::sleep(EVERY);
        }
    }

    fn once(&mut self, exposed: &mut Exposed) -> Result<()> {
        let before = *lock(&self.dial);
        let begun = Instant::now();
        let lines = self.session.ask(
            "BEGIN; INSERT INTO assurance VALUES (1); SELECT pg_current_wal_insert_lsn(); COMMIT",
        )?;
        let at = Instant::now();
        let lsn = match &lines[..] {
            [line] => position(line).with_context(|| format!("read a position in {line:?}"))?,
            _ => None.with_context(|| format!("expected one position, got {lines:?}"))?,
        };
        let copies = &self.copies;
        let held = |lsn| copies.journal_reaches(self.timeline, lsn);
        let holds_it = held(lsn)?;
        let exposure = exposed.take(Confirmed { lsn, at }, held)?;
        let mut assured = lock(&self.assured);
        assured.commit_max = assured.commit_max.max(at - begun);
        // A commit during which the dial was turned belongs to neither side.
        if *lock(&self.dial) == before {
            judge(&mut assured, before.0, (lsn, holds_it), exposure, self.ceiling);
        }
        Ok(())
    }
}

fn judge(
    assured: &mut Assured,
    mode: Option<Mode>,
    (lsn, holds_it): (u64, bool),
    exposure: Duration,
    ceiling: Duration,
) {
    match mode {
        None => {}
        Some(Mode::Zero) => {
            assured.under_zero += 1;
            if !holds_it {
                assured.unheld += 1;
                assured.wrong(format!("confirmed in zero, and not in the journal: {lsn:X}"));
            }
        }
        Some(Mode::Bounded) => {
            assured.under_bounded += 1;
            assured.exposure_max = assured.exposure_max.max(exposure);
            if exposure > ceiling {
                assured.wrong(format!("{exposure:?} exposed, {ceiling:?} at most allowed"));
            }
        }
    }
}

/// A position as PostgreSQL prints it.
pub(crate) fn position(text: &str) -> Option<u64> {
    let (high, low) = text.trim().split_once('/')?;
    let part = |text| u32::from_str_radix(text, 16).ok();
    Some(u64::from(part(high)?) << 32 | u64::from(part(low)?))
}

/// That nothing was judged is no proof either.
///
/// # Errors
/// When no commit was looked up under one of the modes that were in force.
pub(crate) fn ensure_looked(assured: &Assured, modes: &[Mode]) -> Result<()> {
    for mode in modes {
        let count = match mode {
            Mode::Zero => assured.under_zero,
            Mode::Bounded => assured.under_bounded,
        };
        ensure!(count > 0, "no confirmed commit was looked up under {}", mode.as_str());
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics: it only assigns and pushes")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CEILING: Duration = Duration::from_secs(6);

    #[test]
    fn in_zero_a_confirmed_commit_that_the_journal_lacks_is_found() {
        let mut assured = Assured::default();
        judge(&mut assured, Some(Mode::Zero), (1, true), CEILING * 2, CEILING);
        assert_eq!((assured.unheld, assured.wrong.len()), (0, 0));
        judge(&mut assured, Some(Mode::Zero), (2, false), Duration::ZERO, CEILING);
        assert_eq!((assured.under_zero, assured.unheld, assured.wrong.len()), (2, 1, 1));
    }

    #[test]
    fn in_bounded_more_than_the_ceiling_is_found_and_a_lacking_commit_is_not() {
        let mut assured = Assured::default();
        judge(&mut assured, Some(Mode::Bounded), (1, false), CEILING, CEILING);
        assert_eq!(assured.wrong.len(), 0);
        judge(&mut assured, Some(Mode::Bounded), (1, false), CEILING + EVERY, CEILING);
        assert_eq!((assured.under_bounded, assured.wrong.len()), (2, 1));
        assert_eq!(assured.exposure_max, CEILING + EVERY);
    }

    #[test]
    fn nothing_is_judged_while_the_dial_is_turned_and_that_alone_is_no_proof() {
        let mut assured = Assured::default();
        judge(&mut assured, None, (1, false), CEILING * 2, CEILING);
        assert_eq!(assured.wrong.len(), 0);
        assert!(ensure_looked(&assured, &[Mode::Zero]).is_err());
        assured.under_zero = 1;
        assert!(ensure_looked(&assured, &[Mode::Zero]).is_ok());
        assert!(ensure_looked(&assured, &[Mode::Zero, Mode::Bounded]).is_err());
    }

    #[test]
    fn exposure_goes_from_the_oldest_that_is_lacking_to_the_newest() {
        let begun = Instant::now();
        let commit = |n: u64| Confirmed { lsn: n, at: begun + Duration::from_secs(n) };
        let mut exposed = Exposed::default();
        let held_to = |end: u64| move |lsn: u64| Ok(lsn <= end);
        assert_eq!(exposed.take(commit(1), held_to(1)).unwrap(), Duration::ZERO);
        assert_eq!(exposed.take(commit(2), held_to(1)).unwrap(), Duration::ZERO);
        assert_eq!(exposed.take(commit(5), held_to(1)).unwrap(), Duration::from_secs(3));
        assert_eq!(exposed.take(commit(9), held_to(2)).unwrap(), Duration::from_secs(4));
        assert_eq!(exposed.take(commit(10), held_to(10)).unwrap(), Duration::ZERO);
    }

    #[test]
    fn a_position_is_read_as_postgresql_prints_it() {
        assert_eq!(position("1/2A000148"), Some(0x1_2A00_0148));
        assert_eq!(position("COMMIT"), None);
    }
}
