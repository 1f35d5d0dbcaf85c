//! The configuration's history: what is kept, for how long, and what an earlier version was.

use super::*;
use crate::state::CONFIG_CHANGES_KEPT;

fn ceiling(bench: &Bench, seconds: u64) -> Command {
    Command::SetDial {
        dial: Dial { rpo: Duration::from_secs(seconds), ..Dial::of(&bench.state.config) },
        epoch: bench.state.epoch,
        config_version: bench.state.config_version,
        caller: "person ada (administrator)".to_owned(),
        reason: format!("{seconds} seconds"),
        at_unix_us: 5,
    }
}

#[test]
fn a_change_is_kept_with_who_why_and_what_was_before() {
    let mut bench = Bench::protected(DurabilityMode::Bounded);
    assert!(bench.state.config_history.is_empty());
    let founded = Dial::of(&bench.state.config);
    let order = ceiling(&bench, 60);
    bench.accept(order);
    let (version, change) = bench.state.config_history.first_key_value().unwrap();
    assert_eq!((*version, change.operation), (bench.state.config_version, bench.index));
    assert_eq!(change.caller, "person ada (administrator)");
    assert_eq!((change.reason.as_str(), change.at_unix_us), ("60 seconds", 5));
    assert_eq!(change.before, founded);
    assert_eq!(change.after, Dial { rpo: Duration::from_secs(60), ..founded });
}

#[test]
fn a_refused_change_leaves_no_trace_and_a_look_ahead_says_the_same() {
    let mut bench = Bench::protected(DurabilityMode::Bounded);
    let late = ceiling(&bench, 90);
    let first = ceiling(&bench, 60);
    bench.accept(first);
    let (same, too_low) = (ceiling(&bench, 60), ceiling(&bench, 1));
    for order in [late, same, too_low] {
        let Command::SetDial { dial, epoch, config_version, .. } = &order else { panic!() };
        let foreseen = bench.state.check_dial_change(dial, *epoch, *config_version);
        assert_eq!(Err(bench.reject(order)), foreseen);
    }
    assert_eq!(bench.state.config_history.len(), 1);
}

#[test]
fn the_last_changes_are_kept_and_every_version_that_they_know_can_be_told() {
    let mut bench = Bench::protected(DurabilityMode::Bounded);
    let first = bench.state.config_version;
    let changes = CONFIG_CHANGES_KEPT as u64 + 5;
    for change in 1..=changes {
        let order = ceiling(&bench, 100 + change);
        bench.accept(order);
    }
    assert_eq!(bench.state.config_history.len(), CONFIG_CHANGES_KEPT);
    let newest = first + changes;
    assert_eq!(bench.state.config_version, newest);
    assert_eq!(*bench.state.config_history.last_key_value().unwrap().0, newest);
    let ceiling_at = |version| bench.state.dial_at(version).map(|dial| dial.rpo.as_secs());
    // What the oldest change replaced is known by it.
    for change in 5..=changes {
        assert_eq!(ceiling_at(first + change), Some(100 + change));
    }
    assert_eq!(ceiling_at(first + 4), None);
    assert_eq!(ceiling_at(newest + 1), None);
}

#[test]
fn two_changes_of_the_same_version_are_one_and_going_back_is_a_change_too() {
    let mut bench = Bench::protected(DurabilityMode::Bounded);
    let before = bench.state.config_version;
    let (one, other) = (ceiling(&bench, 60), ceiling(&bench, 90));
    bench.accept(one);
    let current = bench.state.config_version;
    let late = Rejection::ConfigVersion { expected: before, current };
    assert_eq!(bench.reject(other), late);

    let earlier = bench.state.dial_at(before).unwrap();
    let back = ceiling(&bench, earlier.rpo.as_secs());
    bench.accept(back);
    assert_eq!(bench.state.config_version, current + 1);
    assert_eq!(Dial::of(&bench.state.config), earlier);
    assert_eq!(bench.state.config_history.len(), 2);
}
