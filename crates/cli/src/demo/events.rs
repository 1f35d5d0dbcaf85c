//! What happened between two statuses, in words: the demo's event log.
//!
//! Pure: it compares two snapshots and says what a person would want to know; it decides nothing.

use understudy_proto::v1::{ClusterStatus, Epoch, NodeStatus};

/// An epoch as people write it: `7`, or `1.7` in a later incarnation.
pub(super) fn epoch_text(epoch: Option<&Epoch>) -> String {
    match epoch {
        None => "–".to_owned(),
        Some(Epoch { incarnation: 0, number }) => number.to_string(),
        Some(Epoch { incarnation, number }) => format!("{incarnation}.{number}"),
    }
}

fn or_nobody(name: &str) -> &str {
    if name.is_empty() { "nobody" } else { name }
}

/// Every change that is worth a line, in the order in which a person would tell them.
pub(super) fn events_between(before: &ClusterStatus, after: &ClusterStatus) -> Vec<String> {
    let mut events = Vec::new();
    if before.leader != after.leader {
        events.push(format!("consensus: leader is {}", or_nobody(&after.leader)));
    }
    if before.phase != after.phase || before.epoch != after.epoch {
        let epoch = epoch_text(after.epoch.as_ref());
        events.push(format!("phase {} → {}, epoch {epoch}", before.phase, after.phase));
    }
    if before.active != after.active {
        let (from, to) = (or_nobody(&before.active), or_nobody(&after.active));
        events.push(format!("active: {from} → {to}"));
    }
    if before.durability != after.durability || before.durability_lifted != after.durability_lifted
    {
        let lifted = if after.durability_lifted { ", nobody waited for (recorded)" } else { "" };
        events.push(format!("durability: {}{lifted}", after.durability));
    }
    for name in after.eligible.iter().filter(|name| !before.eligible.contains(name)) {
        events.push(format!("{name} may be promoted: it holds every acknowledged commit"));
    }
    for name in before.eligible.iter().filter(|name| !after.eligible.contains(name)) {
        events.push(format!("{name} may not be promoted any more"));
    }
    for node in &after.nodes {
        let earlier = before.nodes.iter().find(|earlier| earlier.name == node.name);
        node_events(earlier, node, &mut events);
    }
    events
}

fn node_events(before: Option<&NodeStatus>, after: &NodeStatus, events: &mut Vec<String>) {
    let name = &after.name;
    let Some(before) = before else {
        events.push(format!("{name} joins: {}", after.state));
        return;
    };
    if before.state != after.state {
        events.push(format!("{name}: {} → {}", before.state, after.state));
    }
    if before.writable != after.writable {
        events.push(if after.writable {
            format!("{name} accepts writes")
        } else {
            format!("{name} accepts no writes any more")
        });
    }
    if before.attached != after.attached {
        events.push(if after.attached {
            format!("{name} receives the active's WAL")
        } else {
            format!("{name} receives no WAL")
        });
    }
    if before.timeline != after.timeline
        && let Some(timeline) = after.timeline
    {
        events.push(format!("{name} is on timeline {timeline}"));
    }
    if before.trouble != after.trouble && !after.trouble.is_empty() {
        events.push(format!("{name}: {}", after.trouble));
    }
    if before.mark != after.mark && !after.mark.is_empty() {
        events.push(format!("{name} is marked {}", after.mark));
    }
    let doing = |node: &NodeStatus| node.progress.as_ref().map(|progress| progress.what.clone());
    if doing(before) != doing(after)
        && let Some(what) = doing(after)
    {
        events.push(format!("{name}: {what}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failover_reads_as_a_story_and_an_unchanged_status_says_nothing() {
        let node = |name: &str, state: &str, writable| NodeStatus {
            name: name.to_owned(),
            state: state.to_owned(),
            writable,
            timeline: Some(1),
            ..NodeStatus::default()
        };
        let before = ClusterStatus {
            leader: "north".to_owned(),
            active: "north".to_owned(),
            phase: "running".to_owned(),
            epoch: Some(Epoch { incarnation: 0, number: 1 }),
            eligible: vec!["south".to_owned()],
            nodes: vec![node("north", "holder", true), node("south", "passive", false)],
            ..ClusterStatus::default()
        };
        assert_eq!(events_between(&before, &before), Vec::<String>::new());
        let mut after = before.clone();
        after.leader = "witness".to_owned();
        after.active = "south".to_owned();
        after.epoch = Some(Epoch { incarnation: 0, number: 2 });
        after.eligible.clear();
        after.nodes = vec![node("north", "unreachable", false), node("south", "holder", true)];
        after.nodes[1].timeline = Some(2);
        assert_eq!(
            events_between(&before, &after),
            [
                "consensus: leader is witness",
                "phase running → running, epoch 2",
                "active: north → south",
                "south may not be promoted any more",
                "north: holder → unreachable",
                "north accepts no writes any more",
                "south: passive → holder",
                "south accepts writes",
                "south is on timeline 2",
            ]
        );
    }
}
