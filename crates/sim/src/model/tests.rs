//! The slice of the model that every test run affords, and the mistakes that it finds.

use std::time::Duration;

use super::checker::{Limits, Run};
use super::{configurations, run};

const SLICE: Limits = Limits { states_max: 12_000_000, time_max: Duration::from_secs(240) };

fn searched(name: &str) -> Run {
    let configuration = configurations::named(name).expect("a configuration of that name");
    let run = run(configuration, SLICE);
    let broken: Vec<_> = run.findings.iter().filter(|finding| !finding.stands()).collect();
    assert!(broken.is_empty(), "{name}: {broken:#?}");
    assert!(run.exhausted, "{name}: only {} states were seen", run.states);
    run
}

#[test]
fn leases_are_safe_with_every_combination_of_clocks() {
    let run = searched("lease");
    assert!(run.states > 50_000, "the model has become empty: {} states", run.states);
}

#[test]
fn a_longer_ttl_at_the_holder_is_waited_for_by_challengers_with_a_shorter_one() {
    searched("ttl");
}

#[test]
fn a_promotion_may_be_superseded_twice() {
    let run = searched("supersede");
    assert!(run.depth > 60, "the model has become shallow: {}", run.depth);
}

#[test]
fn in_bounded_a_promotion_loses_no_more_than_was_published() {
    searched("bounded-small");
}

#[test]
fn the_dial_is_weakened_without_losing_what_was_promised_before() {
    searched("weaken");
}

#[test]
fn without_waiting_for_the_lease_nothing_is_lost_either() {
    searched("on-seal-two");
}

#[test]
fn a_switchover_loses_nothing_however_it_is_broken_off() {
    searched("switchover");
}

#[cfg(feature = "seeded-bugs")]
#[test]
fn every_mistake_that_the_model_can_make_is_found() {
    let mut missed = Vec::new();
    // The dial's takes the most: three turns and 23 million states.
    let limits = Limits { states_max: 60_000_000, time_max: Duration::from_secs(900) };
    for mutant in super::mutants::ALL {
        let found = super::run_mutant(mutant, limits).expect("mistakes are built in");
        if found.breaks.is_none() {
            missed.push(found.text(false));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
