//! A breadth-first checker of finite models: every reachable state once, shortest counterexamples.
//!
//! It knows nothing about the protocol. A visited state is kept as a hash of 64 bits with its parent's
//! (16 bytes and the table's slack), so that tens of millions fit; a path is found again by walking the
//! parents and repeating the steps. Two states with one hash would hide one of them: with n states the
//! chance of any such pair is about n²/2⁶⁵, one in 10⁵ at twenty million.
//! Why not an existing checker: docs/decisions/0012-own-model-checker.md.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::{Duration, Instant};

/// A finite model.
pub trait Model {
    /// One state; equal states have equal futures.
    type State: Clone + Hash;
    /// One step.
    type Action: Clone + Debug;

    /// Where it begins.
    fn initial(&self) -> Vec<Self::State>;
    /// Pushes every step that may be taken.
    fn actions(&self, state: &Self::State, into: &mut Vec<Self::Action>);
    /// The state after a step; `None` when it cannot be taken after all.
    fn next(&self, state: &Self::State, action: &Self::Action) -> Option<Self::State>;
    /// What is claimed.
    fn properties(&self) -> Vec<Property<Self>>;
}

/// A claim, named as a sentence.
pub struct Property<M: Model + ?Sized> {
    /// The sentence.
    pub name: &'static str,
    /// What is claimed.
    pub claim: Claim,
    /// Whether it holds in a state.
    pub holds: fn(&M, &M::State) -> bool,
}

/// What a property claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It holds in every reachable state.
    Always,
    /// There is a reachable state in which it holds.
    Sometimes,
}

/// When to stop early.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// No more states than this are kept; beyond it the run ends unexhausted.
    pub states_max: usize,
    /// No longer than this.
    pub time_max: Duration,
}

/// What became of one property.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The sentence.
    pub name: &'static str,
    /// What is claimed.
    pub claim: Claim,
    /// The steps to the first state that shows it: a counterexample, or an example.
    pub shown_by: Option<Vec<String>>,
}

impl Finding {
    /// Whether the claim stands, if everything was searched.
    pub fn stands(&self) -> bool {
        match self.claim {
            Claim::Always => self.shown_by.is_none(),
            Claim::Sometimes => self.shown_by.is_some(),
        }
    }
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Run {
    /// Distinct states.
    pub states: usize,
    /// Steps that were taken.
    pub transitions: u64,
    /// The greatest distance of a state from the beginning.
    pub depth: usize,
    /// Every reachable state was seen.
    pub exhausted: bool,
    /// How long it took.
    pub elapsed: Duration,
    /// Each property.
    pub findings: Vec<Finding>,
}

/// The key is a hash already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only 64-bit keys are hashed")
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

type Visited = HashMap<u64, u64, BuildHasherDefault<Identity>>;

fn hash_of<S: Hash>(state: &S) -> u64 {
    let mut hasher = Folding { word: 0, bits: 0, hash: FOLD };
    state.hash(&mut hasher);
    hasher.finish()
}

/// Multiplies eight bytes at a time into 128 bits and folds them; states are many small fields, for
/// which the standard hasher takes longer than everything else together.
struct Folding {
    word: u64,
    bits: u32,
    hash: u64,
}

const FOLD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Folding {
    fn take(&mut self, value: u64, bits: u32) {
        if self.bits + bits > 64 {
            self.hash = fold(self.hash ^ self.word);
            (self.word, self.bits) = (0, 0);
        }
        self.word |= value << self.bits;
        self.bits += bits;
    }
}

fn fold(word: u64) -> u64 {
    let wide = u128::from(word.rotate_left(29) ^ FOLD) * 0xa076_1d64_78bd_642f;
    (wide as u64) ^ ((wide >> 64) as u64)
}

impl Hasher for Folding {
    fn finish(&self) -> u64 {
        fold(fold(self.hash ^ self.word).wrapping_add(u64::from(self.bits)))
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.take(u64::from(*byte), 8);
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.take(u64::from(value), 8);
    }
    fn write_u16(&mut self, value: u16) {
        self.take(u64::from(value), 16);
    }
    fn write_u32(&mut self, value: u32) {
        self.take(u64::from(value), 32);
    }
    fn write_usize(&mut self, value: usize) {
        self.take(value as u64 & 0xff, 8);
        self.take(value as u64 >> 8, 56);
    }
}

/// Searches until everything was seen, an *always* is broken, or a limit is reached.
pub fn check<M: Model>(model: &M, limits: Limits) -> Run {
    let began = Instant::now();
    let properties = model.properties();
    let mut shown: Vec<Option<u64>> = vec![None; properties.len()];
    let mut visited = Visited::default();
    let mut level: Vec<(u64, M::State)> = Vec::new();
    for state in model.initial() {
        let hash = hash_of(&state);
        // Its own parent: the beginning of a path.
        if visited.insert(hash, hash).is_none() {
            level.push((hash, state));
        }
    }
    let (mut depth, mut transitions) = (0, 0);
    let mut actions = Vec::new();
    let mut exhausted = true;
    let mut broken = false;
    'search: loop {
        let mut following = Vec::new();
        for (count, (parent, state)) in level.iter().enumerate() {
            let parent = *parent;
            for (property, shown) in properties.iter().zip(&mut shown) {
                if shown.is_none() {
                    let holds = (property.holds)(model, state);
                    let is_always = property.claim == Claim::Always;
                    if holds != is_always {
                        *shown = Some(parent);
                        broken |= is_always;
                    }
                }
            }
            if broken {
                exhausted = false;
                break 'search;
            }
            actions.clear();
            model.actions(state, &mut actions);
            for action in &actions {
                let Some(next) = model.next(state, action) else { continue };
                transitions += 1;
                let hash = hash_of(&next);
                if let std::collections::hash_map::Entry::Vacant(entry) = visited.entry(hash) {
                    entry.insert(parent);
                    following.push((hash, next));
                }
            }
            let over_time = count % 1024 == 0 && began.elapsed() > limits.time_max;
            if visited.len() > limits.states_max || over_time {
                exhausted = false;
                break 'search;
            }
        }
        if following.is_empty() {
            break;
        }
        depth += 1;
        level = following;
    }
    let findings = properties
        .iter()
        .zip(&shown)
        .map(|(property, shown)| Finding {
            name: property.name,
            claim: property.claim,
            shown_by: shown.map(|hash| path_to(model, &visited, hash)),
        })
        .collect();
    let states = visited.len();
    Run { states, transitions, depth, exhausted, elapsed: began.elapsed(), findings }
}

/// The steps that lead to the state with this hash.
fn path_to<M: Model>(model: &M, visited: &Visited, target: u64) -> Vec<String> {
    let mut chain = vec![target];
    let mut at = target;
    while let Some(parent) = visited.get(&at).copied().filter(|parent| *parent != at) {
        chain.push(parent);
        at = parent;
    }
    chain.reverse();
    let mut state = model
        .initial()
        .into_iter()
        .find(|state| hash_of(state) == chain[0])
        .expect("every path begins at an initial state");
    let mut steps = Vec::new();
    let mut actions = Vec::new();
    for hash in &chain[1..] {
        actions.clear();
        model.actions(&state, &mut actions);
        let (action, next) = actions
            .iter()
            .filter_map(|action| model.next(&state, action).map(|next| (action, next)))
            .find(|(_, next)| hash_of(next) == *hash)
            .expect("a step that was taken can be taken again");
        steps.push(format!("{action:?}"));
        state = next;
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two jugs of 3 and 5 litres: a model whose answers are known.
    struct Jugs;

    #[derive(Clone, Debug)]
    enum Pour {
        Fill(usize),
        Empty(usize),
        Over(usize),
    }

    const SIZES: [u8; 2] = [3, 5];

    impl Model for Jugs {
        type State = [u8; 2];
        type Action = Pour;

        fn initial(&self) -> Vec<[u8; 2]> {
            vec![[0, 0]]
        }
        fn actions(&self, _: &[u8; 2], into: &mut Vec<Pour>) {
            into.extend(
                [0, 1]
                    .into_iter()
                    .flat_map(|jug| [Pour::Fill(jug), Pour::Empty(jug), Pour::Over(jug)]),
            );
        }
        fn next(&self, state: &[u8; 2], action: &Pour) -> Option<[u8; 2]> {
            let mut next = *state;
            match *action {
                Pour::Fill(jug) => next[jug] = SIZES[jug],
                Pour::Empty(jug) => next[jug] = 0,
                Pour::Over(jug) => {
                    let amount = state[jug].min(SIZES[1 - jug] - state[1 - jug]);
                    next[jug] -= amount;
                    next[1 - jug] += amount;
                }
            }
            Some(next)
        }
        fn properties(&self) -> Vec<Property<Jugs>> {
            vec![
                Property {
                    name: "four litres can be measured",
                    claim: Claim::Sometimes,
                    holds: |_, state| state[1] == 4,
                },
                Property {
                    name: "no jug overflows",
                    claim: Claim::Always,
                    holds: |_, state| state[0] <= 3 && state[1] <= 5,
                },
            ]
        }
    }

    const NONE: Limits = Limits { states_max: usize::MAX, time_max: Duration::MAX };

    #[test]
    fn every_state_is_seen_once_and_an_example_is_the_shortest_one() {
        let run = check(&Jugs, NONE);
        assert_eq!((run.states, run.exhausted), (16, true));
        assert!(run.findings.iter().all(Finding::stands));
        let example = run.findings[0].shown_by.clone().expect("four litres can be measured");
        assert_eq!(example.len(), 6);
        assert_eq!((example[0].as_str(), example[5].as_str()), ("Fill(1)", "Over(1)"));
    }

    #[test]
    fn a_limit_ends_a_run_that_then_does_not_claim_to_have_seen_everything() {
        let run = check(&Jugs, Limits { states_max: 5, ..NONE });
        assert!(!run.exhausted);
    }
}
