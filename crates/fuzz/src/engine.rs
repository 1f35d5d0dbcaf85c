//! Makes inputs, has a target judge each, keeps what is new, and makes a failing input small.
//!
//! What is new is judged by what the target says of an input, not by which instructions ran: what a parser
//! answers (which error, which message, how much of it) is what its callers go by.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Once, PoisonError, mpsc};
use std::time::{Duration, Instant};

use crate::allocation::on_absurd_request;
use crate::corpus;
use crate::mutate::{INPUT_BYTES_MAX, mutate};
use crate::random::Random;
use crate::targets::Target;

/// Nothing that is at most `INPUT_BYTES_MAX` long may take so long, on a machine however busy.
const INPUT_TIME_MAX: Duration = Duration::from_secs(30);
/// Answers that are told apart, and inputs that are kept for them.
const NEW_MAX: usize = 20_000;
/// Of all inputs that are kept in memory.
const MEMORY_BYTES_MAX: usize = 64 << 20;
/// Tries to make a failing input smaller.
const SHRINK_TRIES: usize = 4000;

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub enum Budget {
    /// After so many inputs; the same inputs each time for the same seed and corpus.
    Inputs(u64),
    /// After this time.
    Time(Duration),
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Inputs judged, the kept ones among them.
    pub input_count: u64,
    /// Different answers.
    pub answer_count: usize,
}

/// An input for which something does not hold.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Made as small as was easily possible.
    pub input: Vec<u8>,
    /// What the target panicked with.
    pub message: String,
}

/// Judges the kept inputs, then new ones made from them.
///
/// # Errors
/// The first failure.
pub fn run(
    target: &Target,
    kept: &[Vec<u8>],
    budget: Budget,
    seed: u64,
    progress: &mut dyn FnMut(Progress),
) -> Result<Progress, Failure> {
    let watch = Watch::start(target.name);
    let begun = Instant::now();
    let mut random = Random::new(seed);
    let mut pool: Vec<Vec<u8>> = Vec::new();
    let mut pool_bytes = 0;
    let mut answers = HashSet::new();
    let mut done = Progress::default();
    loop {
        let is_over = match budget {
            Budget::Inputs(count) => done.input_count >= count + kept.len() as u64,
            Budget::Time(limit) => begun.elapsed() >= limit,
        };
        let index = usize::try_from(done.input_count).unwrap_or(usize::MAX);
        if is_over && index >= kept.len() {
            return Ok(done);
        }
        let input = match kept.get(index) {
            Some(input) => input.clone(),
            None => make(target, &pool, &mut random),
        };
        let answer = watch.judge(target, &input).map_err(|message| {
            let input = shrink(target, &watch, input.clone());
            Failure { input, message }
        })?;
        done.input_count += 1;
        let room = answers.len() < NEW_MAX && pool_bytes + input.len() <= MEMORY_BYTES_MAX;
        if answers.insert(answer) && room || index < kept.len() {
            pool_bytes += input.len();
            pool.push(input);
        }
        done.answer_count = answers.len();
        if done.input_count.is_multiple_of(64) {
            progress(done);
        }
    }
}

/// Judges one input.
///
/// # Errors
/// What the target panicked with.
pub fn judge(target: &Target, input: &[u8]) -> Result<String, String> {
    Watch::start(target.name).judge(target, input)
}

/// From one of the inputs, newer ones preferred, with pieces of another.
fn make(target: &Target, pool: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let nothing = Vec::new();
    let pick = |random: &mut Random| {
        if pool.is_empty() {
            return nothing.clone();
        }
        let at = random.below(pool.len());
        let at = if random.once_in(2) { at.max(random.below(pool.len())) } else { at };
        pool[at].clone()
    };
    let (mut input, other) = (pick(random), pick(random));
    mutate(&mut input, &other, target.words, random);
    (target.polish)(&mut input, random);
    input.truncate(INPUT_BYTES_MAX);
    input
}

/// Takes away what the failure does not need.
fn shrink(target: &Target, watch: &Watch, mut input: Vec<u8>) -> Vec<u8> {
    let mut piece = input.len() / 2;
    let mut tries = 0;
    while piece > 0 {
        let mut at = 0;
        while at < input.len() && tries < SHRINK_TRIES {
            let mut less = input.clone();
            less.drain(at..(at + piece).min(less.len()));
            tries += 1;
            if watch.judge(target, &less).is_err() {
                input = less;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    input
}

thread_local! {
    static JUDGING: Cell<bool> = const { Cell::new(false) };
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
    static CURRENT: RefCell<Option<(&'static str, Vec<u8>)>> = const { RefCell::new(None) };
}

/// Ends the process where no panic can: the input is kept, as large as it is.
fn give_up(target: &str, input: &[u8], why: &str) -> ! {
    let kept = corpus::keep(target, input);
    eprintln!("{target}: FAILED: {why}\n    the input: {kept:?}");
    std::process::exit(1);
}

/// While a target judges, its panic is an answer and not for the terminal.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        on_absurd_request(|bytes| {
            if let Some((target, input)) = CURRENT.take() {
                give_up(target, &input, &format!("it asked for {bytes} bytes of memory"));
            }
        });
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if JUDGING.get() {
                SAID.replace(info.to_string());
            } else {
                usual(info);
            }
        }));
    });
}

/// An input on its way through a target, since when.
type Underway = Option<(Instant, Vec<u8>)>;

/// Ends the process, with the input kept, when a target does not come back: no panic would ever say so.
struct Watch {
    underway: Arc<Mutex<Underway>>,
    /// Closed when the run is over, which ends the thread.
    _over: mpsc::Sender<()>,
}

impl Watch {
    fn start(target: &'static str) -> Watch {
        catch_panics();
        let underway = Arc::new(Mutex::new(None));
        let (over, until_over) = mpsc::channel::<()>();
        let watched = Arc::clone(&underway);
        std::thread::spawn(move || {
            while let Err(mpsc::RecvTimeoutError::Timeout) =
                until_over.recv_timeout(Duration::from_secs(1))
            {
                let underway: &Underway = &watched.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((since, input)) = underway
                    && since.elapsed() > INPUT_TIME_MAX
                {
                    give_up(target, input, &format!("no end after {INPUT_TIME_MAX:?}"));
                }
            }
        });
        Watch { underway, _over: over }
    }

    fn judge(&self, target: &Target, input: &[u8]) -> Result<String, String> {
        let set = |underway| {
            *self.underway.lock().unwrap_or_else(PoisonError::into_inner) = underway;
        };
        set(Some((Instant::now(), input.to_vec())));
        CURRENT.set(Some((target.name, input.to_vec())));
        JUDGING.set(true);
        let answer = catch_unwind(AssertUnwindSafe(|| (target.judge)(input)));
        JUDGING.set(false);
        CURRENT.set(None);
        set(None);
        answer.map_err(|_| SAID.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn falls_over(input: &[u8]) -> String {
        assert!(!input.windows(2).any(|pair| pair == b"no"), "it said no");
        format!("{:?}", input.iter().find(|byte| **byte == b'n'))
    }

    #[test]
    fn a_mistake_is_found_made_small_and_the_same_seed_finds_it_again() {
        let target =
            Target { name: "test", about: "", words: &[], polish: |_, _| {}, judge: falls_over };
        let find = |seed| {
            let kept = [b"some text that is not it, n, o".to_vec()];
            run(&target, &kept, Budget::Inputs(200_000), seed, &mut |_| {}).unwrap_err()
        };
        let found = find(1);
        assert_eq!(found.input, b"no");
        assert!(found.message.contains("it said no"), "{}", found.message);
        assert_eq!(find(1).input, found.input);
    }
}
