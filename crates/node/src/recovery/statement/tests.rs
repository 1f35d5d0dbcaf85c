//! Each refusal, and what the dial lets the statement promise.

use std::path::Path;

use understudy_core::state::Mark;
use uuid::Uuid;

use super::super::ask::Described;
use super::*;
use crate::status::tests::{NORTH, SOUTH, WITNESS, running_state};

const CONFIG: &str = r#"
cluster = "6f1a2b3c-0000-4000-8000-0123456789ab"
name = "south"
site = "south"
kind = "data"
data_dir = "/d"
[tls]
ca = "ca.pem"
certificate = "c.pem"
key = "k.pem"
[postgres]
data_directory = "/d/pgdata"
[[members]]
name = "north"
id = 1
site = "north"
kind = "data"
address = "north.example:7400"
[[members]]
name = "south"
id = 2
site = "south"
kind = "data"
address = "south.example:7400"
[[members]]
name = "witness"
id = 3
site = "witness"
kind = "witness"
address = "witness.example:7400"
"#;

fn config() -> NodeConfig {
    NodeConfig::parse(CONFIG, Path::new("/etc/understudy/node.toml")).unwrap()
}

fn answer(node: NodeId, outcome: Result<Described, String>) -> Answer {
    let name = if node == NORTH { "north" } else { "witness" };
    Answer { node, name: name.parse().unwrap(), outcome }
}

fn silent(node: NodeId) -> Answer {
    answer(node, Err("connection refused".to_owned()))
}

fn described() -> Described {
    Described {
        incarnation: ClusterIncarnation::FOUNDED,
        can_vote: true,
        majority: false,
        epoch: Epoch::NONE,
        holds_lease: false,
    }
}

/// South, whose two fellows are silent, in zero that stalls: everything was waited for.
fn facts() -> Facts {
    let mut state = running_state();
    state.durability.mode = DurabilityMode::Zero;
    state.config.mode = DurabilityMode::Zero;
    state.config.on_passive_loss = OnPassiveLoss::Stall;
    let identity = state.identity.unwrap();
    let last = state.last_granted().unwrap().1.promotion;
    Facts {
        me: SOUTH,
        kind: NodeKind::Data,
        incarnation: ClusterIncarnation::FOUNDED,
        empty: false,
        older_copy: None,
        voters: [NORTH, SOUTH, WITNESS].into(),
        copy: Copy {
            system_id: identity.system_id,
            problem: None,
            durable_lsn: Some(Lsn(4_300)),
            newest_commit_unix_us: Some(1_700_000_000_000_000),
            promotion: Some(last),
        },
        state,
        answers: vec![silent(NORTH), silent(WITNESS)],
    }
}

fn refused(change: impl FnOnce(&mut Facts)) -> Refusal {
    let mut facts = facts();
    change(&mut facts);
    judge(&config(), &facts).unwrap_err()
}

fn stated(change: impl FnOnce(&mut Facts)) -> Statement {
    let mut facts = facts();
    change(&mut facts);
    judge(&config(), &facts).unwrap()
}

#[test]
fn a_witness_a_node_without_state_and_a_marked_one_are_refused() {
    assert_eq!(refused(|f| f.kind = NodeKind::Witness), Refusal::Witness);
    assert_eq!(refused(|f| f.empty = true), Refusal::NotFounded);
    assert_eq!(refused(|f| f.state.identity = None), Refusal::NotFounded);
    let marked = refused(|f| drop(f.state.marks.insert(SOUTH, Mark::Dirty)));
    assert!(matches!(marked, Refusal::Marked(_)));
}

#[test]
fn a_node_without_a_whole_copy_is_refused() {
    let dirty = refused(|f| {
        f.copy = Copy { problem: Some("a rewind did not finish".to_owned()), ..Copy::default() };
    });
    assert!(matches!(dirty, Refusal::Data(_)));
    let other = refused(|f| f.copy.system_id = Some(SystemId(1)));
    assert!(matches!(other, Refusal::OtherSystem { found: SystemId(1), .. }));
    assert!(matches!(refused(|f| f.copy.durable_lsn = None), Refusal::NotACopy(_)));
    let elsewhere = refused(|f| f.copy.promotion = Some(PromotionId(Uuid::from_u128(5))));
    assert!(matches!(elsewhere, Refusal::NotACopy(_)));
}

#[test]
fn while_a_majority_answers_it_is_refused_and_says_who() {
    let found = refused(|f| f.answers[1] = answer(WITNESS, Ok(described())));
    assert_eq!(found, Refusal::MajorityAnswers { who: "witness".to_owned() });
    // A node that has neither vote nor log cannot make one up.
    stated(|f| {
        f.answers[1] = answer(WITNESS, Ok(Described { can_vote: false, ..described() }));
    });
}

#[test]
fn an_active_that_answers_is_never_gone_over() {
    let holder = Described { holds_lease: true, ..described() };
    let found = refused(|f| f.answers[0] = answer(NORTH, Ok(holder)));
    assert_eq!(found, Refusal::HolderAnswers { name: "north".to_owned() });
}

#[test]
fn after_a_recovery_elsewhere_only_a_rejoin_is_right() {
    let incarnation = ClusterIncarnation::FOUNDED.next(Uuid::from_u128(1));
    let newer = Described { incarnation, ..described() };
    let found = refused(|f| f.answers[0] = answer(NORTH, Ok(newer)));
    assert!(matches!(&found, Refusal::RecoveredElsewhere { name, .. } if name == "north"));
    assert!(found.to_string().contains("--rejoin"));
}

#[test]
fn whoever_has_the_only_vote_has_nothing_to_recover() {
    assert_eq!(refused(|f| f.voters = [SOUTH].into()), Refusal::AloneAlready);
}

#[test]
fn a_node_that_only_follows_may_go_on_when_the_only_voter_is_gone() {
    stated(|f| f.voters = [NORTH].into());
    let found = refused(|f| {
        f.voters = [NORTH].into();
        f.answers[0] = answer(NORTH, Ok(described()));
    });
    assert!(matches!(found, Refusal::MajorityAnswers { .. }));
}

#[test]
fn in_zero_that_stalls_nothing_is_lost_and_the_old_lease_is_waited_out() {
    let statement = stated(|_| ());
    assert!(statement.loss.is_none(), "{statement:?}");
    assert!(statement.waited_for && statement.eligible && !statement.was_active);
    assert!(statement.lease_wait > Duration::from_secs(3), "{:?}", statement.lease_wait);
}

#[test]
fn in_bounded_that_stalls_the_ceiling_bounds_the_loss() {
    let statement = stated(|f| {
        f.state.durability.mode = DurabilityMode::Bounded;
        f.state.config.mode = DurabilityMode::Bounded;
    });
    assert_eq!(statement.loss.time_max, Some(facts().state.config.rpo));
}

#[test]
fn where_the_others_may_have_gone_on_alone_the_loss_is_unknown() {
    let unknown = |change: fn(&mut Facts)| assert_eq!(stated(change).loss.time_max, None);
    unknown(|f| f.state.config.on_passive_loss = OnPassiveLoss::Degrade);
    unknown(|f| f.state.durability.lifted = true);
    unknown(|f| f.state.durability.eligible.clear());
    unknown(|f| {
        f.state.durability.waited.insert(WITNESS);
        f.state.durability.copies = 1;
    });
    unknown(|f| f.state.durability.mode = DurabilityMode::BestEffort);
    unknown(|f| f.state.config.mode = DurabilityMode::BestEffort);
    unknown(|f| f.older_copy = Some("start 4 is missing".to_owned()));
}

#[test]
fn the_last_active_has_everything_and_no_lease_to_wait_for() {
    let statement = stated(|f| {
        f.state.holder.as_mut().unwrap().node = SOUTH;
        for granted in f.state.lineage.values_mut() {
            granted.node = SOUTH;
        }
        f.copy.durable_lsn = None;
        f.copy.promotion = None;
    });
    assert!(statement.was_active && statement.loss.is_none());
    assert_eq!(statement.lease_wait, Duration::ZERO);
}
