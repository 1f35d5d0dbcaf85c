//! A core is deterministic: what a seed's node decided is decided again from its decision trace alone.

#![allow(clippy::unwrap_used)] // a trace that cannot be read should panic here

use understudy_sim::simulator;
use understudy_trace::{Finding, Lines, Replay};

fn replay(bytes: &[u8]) -> Vec<Finding> {
    let (mut replay, mut found) = (Replay::default(), Vec::new());
    let mut lines = Lines::new(bytes).unwrap();
    while let Some(line) = lines.next_line().unwrap() {
        found.extend(replay.take(line));
    }
    found.extend(replay.finish());
    found
}

#[test]
fn what_a_seed_decided_is_decided_again_from_its_trace() {
    let (mut decisions, mut promotions) = (0, 0);
    for seed in 1..=8 {
        for node in 0..3 {
            let (report, bytes) = simulator::run_recorded(seed, None, node);
            // Recording changes nothing of the run.
            assert_eq!(report.hash, simulator::run(seed, None, true).hash);
            for finding in replay(&bytes) {
                match finding {
                    Finding::Turn(turn) => {
                        decisions += turn.decisions.len();
                        let granted = turn.decisions.iter().filter(|d| {
                            d.what.starts_with("propose: promote ") && d.why.contains("verdict: ")
                        });
                        promotions += granted.count();
                    }
                    Finding::Begins { missing_count: 0, other_program: false, .. } => {}
                    other => panic!("seed {seed}, node {node}: {other:?}"),
                }
            }
        }
    }
    assert!(decisions > 5_000, "{decisions}");
    assert!(promotions > 8, "{promotions}");
}
