//! Several nodes' events in one list: in the order of their wall clocks, what all of them saw once.
//!
//! The rule: two events of different nodes are one when they are not of a kind that a node tells of
//! itself alone, agree in kind, subject, from and to, and are at most ten seconds apart by the
//! nodes' clocks. Who is active now is one thing, whoever was before: a node may have missed that nobody was. It keeps the words and the time of the first, and says who saw it. A node that heard
//! of it later than that has a line of its own.

use serde::Serialize;
use understudy_node::events::{Event, Kind};

/// How far apart the same thing may be seen.
const APART_MAX_US: u64 = 10_000_000;

/// An event, and who saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Merged {
    #[serde(flatten)]
    pub(super) event: Event,
    /// In the order in which they saw it.
    pub(super) seen_by: Vec<String>,
}

/// All of them in one order.
pub(super) fn merge(mut events: Vec<Event>) -> Vec<Merged> {
    events.sort_by(|a, b| {
        (a.at_unix_us, &a.node, a.sequence).cmp(&(b.at_unix_us, &b.node, b.sequence))
    });
    let mut merged: Vec<Merged> = Vec::new();
    for event in events {
        add(&mut merged, event);
    }
    merged
}

/// To the one that it is, or at the end.
pub(super) fn add(merged: &mut Vec<Merged>, event: Event) {
    let near =
        |known: &&mut Merged| known.event.at_unix_us.abs_diff(event.at_unix_us) <= APART_MAX_US;
    let same = merged.iter_mut().rev().filter(near).find(|known| is_same(known, &event));
    match same {
        Some(known) => known.seen_by.push(event.node),
        None => {
            let seen_by = vec![event.node.clone()];
            merged.push(Merged { event, seen_by });
        }
    }
}

fn is_same(known: &Merged, event: &Event) -> bool {
    fn key(event: &Event) -> (Kind, &str, Option<&str>, Option<&str>) {
        let from = event.from.as_deref().filter(|_| event.kind != Kind::ActiveChange);
        (event.kind, &event.subject, from, event.to.as_deref())
    }
    !is_of_one_node(event.kind)
        && key(&known.event) == key(event)
        && !known.seen_by.contains(&event.node)
}

/// Only the node itself tells of it.
fn is_of_one_node(kind: Kind) -> bool {
    match kind {
        Kind::DaemonStarted
        | Kind::RoleChange
        | Kind::WritableChange
        | Kind::PostgresUp
        | Kind::PostgresDown
        | Kind::MajorityChange
        | Kind::TroubleBegan
        | Kind::TroubleEnded
        | Kind::WarningBegan
        | Kind::WarningEnded
        | Kind::CertificateRenewed
        | Kind::CertificateRefused
        | Kind::HookDone
        | Kind::HookFailed
        | Kind::HookOverflow => true,
        Kind::ActiveChange
        | Kind::EpochChange
        | Kind::Promotion
        | Kind::FailoverVerdict
        | Kind::ValidationChange
        | Kind::ModeChange
        | Kind::LiftedChange
        | Kind::OperationStarted
        | Kind::OperationEnded
        | Kind::NodeUnreachable
        | Kind::NodeHeard
        | Kind::MarkSet
        | Kind::MarkCleared
        | Kind::PauseBegan
        | Kind::PauseEnded => false,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use understudy_node::events::Severity;
    use understudy_types::Epoch;

    use super::*;

    pub(crate) fn event(node: &str, sequence: u64, at_s: i64, kind: Kind) -> Event {
        Event {
            version: 1,
            sequence,
            at_unix_us: at_s * 1_000_000,
            node: node.to_owned(),
            kind,
            severity: Severity::Info,
            subject: "cluster".to_owned(),
            words: format!("{node} says so"),
            epoch: Epoch { incarnation: 0, number: 3 },
            from: None,
            to: Some("south".to_owned()),
        }
    }

    #[test]
    fn what_several_saw_stands_once_and_what_each_did_stands_for_itself() {
        let events = vec![
            event("south", 7, 102, Kind::ActiveChange),
            event("north", 4, 100, Kind::ActiveChange),
            event("north", 5, 101, Kind::HookDone),
            event("south", 8, 101, Kind::HookDone),
            event("witness", 3, 140, Kind::ActiveChange),
        ];
        let merged = merge(events);
        let shown: Vec<(i64, Vec<String>)> =
            merged.iter().map(|m| (m.event.at_unix_us / 1_000_000, m.seen_by.clone())).collect();
        let names =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let expected = [
            (100, names(&["north", "south"])),
            (101, names(&["north"])),
            (101, names(&["south"])),
            (140, names(&["witness"])),
        ];
        assert_eq!(shown, expected);
        assert_eq!(merged[0].event.words, "north says so");
    }

    #[test]
    fn what_one_node_saw_twice_happened_twice_and_another_outcome_is_another_thing() {
        let again = vec![
            event("north", 1, 100, Kind::PauseEnded),
            event("north", 2, 102, Kind::PauseEnded),
            event("south", 1, 102, Kind::PauseEnded),
        ];
        let merged = merge(again);
        assert_eq!(merged.len(), 2);
        assert_eq!(merged.iter().map(|merged| merged.seen_by.len()).sum::<usize>(), 3);
        let mut missed = event("witness", 1, 101, Kind::ActiveChange);
        missed.from = Some("north".to_owned());
        let one = merge(vec![event("north", 1, 100, Kind::ActiveChange), missed]);
        assert_eq!(one.len(), 1, "{one:?}");
        let mut other = event("south", 1, 100, Kind::ActiveChange);
        other.to = None;
        assert_eq!(merge(vec![event("north", 1, 100, Kind::ActiveChange), other]).len(), 2);
    }
}
