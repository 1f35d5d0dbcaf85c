//! The kept seeds, and a slice of others, stay good.
//!
//! `cargo xtask sim --fresh` runs seeds that nobody has run yet; here the same ones run each time, so
//! that a failure means a change of the code.

#![allow(clippy::unwrap_used)] // a broken list should panic here

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use understudy_sim::simulator;

/// Each line: a seed, a space, why it is kept.
const KEPT: &str = include_str!("../seeds/kept.txt");

fn kept() -> Vec<u64> {
    let lines = KEPT.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect()
}

fn failures(seeds: &[u64]) -> Vec<String> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let report = simulator::run(*seed, None, false);
                    if let Some(words) = report.violation {
                        let line = format!("cargo xtask sim --seed {seed}: {words}");
                        failed.lock().unwrap().push(line);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap()
}

#[test]
fn every_kept_seed_is_good() {
    assert!(!kept().is_empty());
    assert_eq!(failures(&kept()), Vec::<String>::new());
}

#[test]
fn a_slice_of_seeds_is_good() {
    let seeds: Vec<u64> = (1..=60).collect();
    assert_eq!(failures(&seeds), Vec::<String>::new());
}
