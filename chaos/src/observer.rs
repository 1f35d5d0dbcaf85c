//! Watches both data sites from the clients' side while a row runs: who answers 200 at `/primary`, and
//! what each gate says about releases that came too late. It judges nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lab::{DATA, Lab};

const EVERY: Duration = Duration::from_millis(50);
/// A site that does not answer within this is asked again.
const PATIENCE: Duration = Duration::from_millis(400);
/// Metrics are read once in so many samples.
const METRICS_EVERY: u32 = 10;
const LATE_AT: &str = "understudy_gate_last_late_release_seconds";

/// A "yes" at `/primary`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Yes {
    pub(crate) side: usize,
    pub(crate) asked: Instant,
    pub(crate) answered: Instant,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) yes: Vec<Yes>,
    /// Answers of either kind.
    pub(crate) samples: u64,
    /// Late releases that a gate admitted: the side, and when, in seconds of the boot clock.
    pub(crate) late: Vec<(usize, f64)>,
}

/// A watch that runs until it is ended.
pub(crate) struct Observer {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Observer {
    pub(crate) fn start() -> Observer {
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let watch = |side| {
            let (seen, stop) = (seen.clone(), stop.clone());
            // One thread a side: a site that is silent must not keep the other from being asked.
            std::thread::spawn(move || watch(side, &seen, &stop))
        };
        let threads = (0..DATA.len()).map(watch).collect();
        Observer { seen, stop, threads }
    }

    /// Ends the watch.
    pub(crate) fn end(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
        lock(&self.seen).clone()
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn watch(side: usize, seen: &Mutex<Seen>, stop: &AtomicBool) {
    let site = DATA[side];
    for turn in 0u32.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let asked = Instant::now();
        let answer = Lab::get(site, "/primary", PATIENCE);
        let answered = Instant::now();
        if let Some((code, _)) = answer {
            let mut seen = lock(seen);
            seen.samples += 1;
            if code == 200 {
                seen.yes.push(Yes { side, asked, answered });
            }
        }
        if turn.is_multiple_of(METRICS_EVERY)
            && let Some(at) = Lab::metric(site, LATE_AT)
        {
            let mut seen = lock(seen);
            if !seen.late.contains(&(side, at)) {
                seen.late.push((side, at));
            }
        }
        std::thread::sleep(EVERY);
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().expect("no holder of this lock panics: it only pushes to vectors")
}
