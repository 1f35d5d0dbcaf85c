//! Leadership stays, or goes, where it can work: slow lines, a line that is cut, a planned stop.

use std::time::Duration;

use understudy_types::NodeId;

use crate::common::*;

/// As long as the daemon gives a renewal of the lease.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Proposes until it is applied, whether or not it changes anything: an attempt that ended in the
/// unknown, while leadership moved, may have been applied already.
async fn goes_through(node: &Node, text: impl ToString) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match node.consensus.propose(mark(text.to_string()), TIMEOUT).await {
            Ok(_) => return,
            Err(error) => {
                println!("node {}: {error}", node.id);
                assert!(tokio::time::Instant::now() < deadline, "node {} gets nothing in", node.id);
            }
        }
    }
}

fn known_leader(node: &Node) -> Option<NodeId> {
    node.consensus.leadership().borrow().leader
}

fn slow(each_way: u64) -> Habit {
    let delay = Duration::from_millis(each_way);
    Habit { delay: delay * 4 / 5, jitter: delay * 2 / 5, ..Habit::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_on_a_line_of_100_ms_each_way_goes_on_leading() {
    let lab = Lab::with_lines();
    let nodes = lab.cluster().await;
    let at = leader(&nodes).await;
    let (id, mut led) = (nodes[at].id, nodes[at].consensus.leadership());
    let term = led.borrow().term;
    for other in nodes.iter().filter(|node| node.id != id) {
        lab.between(id, other.id, slow(100));
    }
    for round in 0..15 {
        let (_, outcome) = nodes[at].consensus.propose(mark(round), TIMEOUT).await.unwrap();
        assert!(outcome.is_accepted(), "{outcome:?}");
        let read = nodes[at].consensus.read_index(TIMEOUT).await;
        assert!(read.is_ok(), "{read:?}");
    }
    for other in nodes.iter().filter(|node| node.id != id) {
        goes_through(other, "by a follower on the far side").await;
    }
    let now = *led.borrow_and_update();
    assert!(now.is_leader && now.term == term, "it led term {term}, and now: {now:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_own_line_is_too_slow_hands_leadership_to_those_who_are_near() {
    let lab = Lab::with_lines();
    let nodes = lab.cluster().await;
    let at = leader(&nodes).await;
    let far = &nodes[at];
    for other in nodes.iter().filter(|node| node.id != far.id) {
        lab.between(far.id, other.id, slow(250));
    }
    until("another leader", || {
        nodes.iter().any(|n| n.id != far.id && n.consensus.leadership().borrow().is_leader)
    })
    .await;
    let near = leader(&nodes).await;
    let term = nodes[near].consensus.leadership().borrow().term;
    for round in 0..8 {
        goes_through(far, round).await;
    }
    // It stays there: a member that is only slow is no reason to move again.
    let now = *nodes[near].consensus.leadership().borrow();
    assert!(now.is_leader && now.term == term, "it led term {term}, and now: {now:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_goes_to_who_hears_everybody_when_one_line_is_cut() {
    let lab = Lab::with_lines();
    let nodes = lab.cluster().await;
    let at = leader(&nodes).await;
    let (old, cut_off, third) = (&nodes[at], &nodes[(at + 1) % 3], &nodes[(at + 2) % 3]);
    let dead = Habit { dead: true, ..Habit::default() };
    lab.between(old.id, cut_off.id, dead);
    until("the third node's leadership", || known_leader(cut_off) == Some(third.id)).await;
    for round in 0..5 {
        goes_through(cut_off, round).await;
        goes_through(old, round).await;
    }
    assert!(cut_off.consensus.read_index(TIMEOUT).await.is_ok());
    let now = *third.consensus.leadership().borrow();
    assert!(now.is_leader, "{now:?}");
    lab.between(old.id, cut_off.id, Habit::default());
    goes_through(cut_off, "healed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_stands_still_costs_no_leader() {
    let lab = Lab::with_lines();
    let nodes = lab.cluster().await;
    let at = leader(&nodes).await;
    let old = &nodes[at];
    let term = old.consensus.leadership().borrow().term;
    let mut stuck = 0;
    for other in nodes.iter().filter(|node| node.id != old.id) {
        stuck += lab.connections_stand_still(old.id, other.id);
    }
    assert!(stuck >= 2, "{stuck} connections led from the leader to the others");
    // Longer than any follower waits for a heartbeat, and than it takes to see that TCP gave up.
    let begun = tokio::time::Instant::now();
    let mut round = 0;
    while begun.elapsed() < Duration::from_secs(3) {
        let (_, outcome) = old.consensus.propose(mark(round), TIMEOUT).await.unwrap();
        assert!(outcome.is_accepted(), "{outcome:?}");
        round += 1;
    }
    let now = *old.consensus.leadership().borrow();
    assert!(now.is_leader && now.term == term, "it led term {term}, and now: {now:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_nobody_hears_moves_no_leader() {
    let lab = Lab::new();
    let nodes = lab.cluster().await;
    let at = leader(&nodes).await;
    let mut led = nodes[at].consensus.leadership();
    let term = led.borrow().term;
    lab.cut(nodes[(at + 1) % 3].id);
    // As many commits as take several times as long as the leader waits before it asks.
    let begun = tokio::time::Instant::now();
    let mut round = 0;
    while begun.elapsed() < Duration::from_secs(4) {
        goes_through(&nodes[at], round).await;
        goes_through(&nodes[(at + 2) % 3], round).await;
        round += 1;
    }
    let now = *led.borrow_and_update();
    assert!(now.is_leader && now.term == term, "it led term {term}, and now: {now:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_about_to_stop_hands_leadership_on_without_an_election_timeout() {
    let lab = Lab::new();
    let mut nodes = lab.cluster().await;
    let at = leader(&nodes).await;
    let follower = &nodes[(at + 1) % 3];
    assert_eq!(follower.consensus.step_aside(TIMEOUT).await, None, "it does not lead");
    // Every follower has to be heard once before one of them can be named.
    goes_through(&nodes[at], "before").await;
    let old = nodes.remove(at);
    let next = old.consensus.step_aside(TIMEOUT).await;
    assert!(next.is_some_and(|next| next != old.id), "{next:?}");
    old.stop().await;
    for node in &nodes {
        let text = format!("after, by {}", node.id);
        let (_, outcome) = node.consensus.propose(mark(text), TIMEOUT).await.unwrap();
        assert!(outcome.is_accepted(), "{outcome:?}");
    }
}
