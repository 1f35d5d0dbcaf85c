//! From two successive snapshots of one node to what happened between them. Pure.
//!
//! What the cluster agrees on and what this node sees by itself are kept apart: while a daemon that
//! starts still reads the log of the past, only the latter is news.

use std::collections::BTreeSet;

use understudy_types::{Epoch, NodeKind};

use super::{Happening, Kind, Severity};
use crate::status::{ClusterStatus, LineageStatus, OperationView};
use crate::validation::Severity::Note;
use crate::validation::{ValidationReport, ValidationVerdict};

/// What happened between two snapshots of the same node.
pub fn events_between(before: &ClusterStatus, after: &ClusterStatus) -> Vec<Happening> {
    let mut found = agreed_between(before, after);
    found.extend(local_between(before, after));
    found
}

/// Of what the cluster agrees on, and what this node concludes from it.
pub fn agreed_between(before: &ClusterStatus, after: &ClusterStatus) -> Vec<Happening> {
    let mut found = Found { after, list: Vec::new() };
    operations(&mut found, before);
    epoch_and_active(&mut found, before);
    own_role(&mut found, before.own().map(|own| own.role.as_str()));
    verdict(&mut found, before);
    durability(&mut found, before);
    pause(&mut found, before);
    marks(&mut found, before);
    found.list
}

/// Of what this node sees by itself.
pub fn local_between(before: &ClusterStatus, after: &ClusterStatus) -> Vec<Happening> {
    let mut found = Found { after, list: Vec::new() };
    reach(&mut found, before);
    own_server(&mut found, before);
    own_words(&mut found, before);
    look_ahead(&mut found, before);
    found.list
}

/// What the cluster has on record, with the times of the record, and what this node is: for a daemon
/// that has just learnt what is agreed.
pub fn events_of_record(status: &ClusterStatus) -> Vec<Happening> {
    let mut found = Found { after: status, list: Vec::new() };
    for link in &status.lineage {
        found.promotion(link);
    }
    for operation in &status.operations {
        found.started(operation);
        found.ended(operation);
    }
    for happening in &mut found.list {
        let reported =
            |link: &&LineageStatus| link.at_unix_us.is_some_and(|at| at <= happening.at_unix_us);
        let newest = status.lineage.iter().filter(reported).map(|link| link.epoch).max();
        happening.epoch = newest.unwrap_or(Epoch::NONE);
    }
    found.list.sort_by_key(|happening| happening.at_unix_us);
    own_role(&mut found, None);
    found.list
}

/// The happenings so far, and the snapshot that they are told from.
struct Found<'a> {
    after: &'a ClusterStatus,
    list: Vec<Happening>,
}

impl Found<'_> {
    fn push(
        &mut self,
        (kind, severity): (Kind, Severity),
        subject: &str,
        (from, to): (Option<&str>, Option<&str>),
        words: String,
    ) {
        self.list.push(Happening {
            kind,
            severity,
            subject: subject.to_owned(),
            words,
            epoch: self.after.epoch,
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
            at_unix_us: self.after.at_unix_us,
        });
    }

    fn started(&mut self, operation: &OperationView) {
        let OperationView { id, kind, caller, reason, .. } = operation;
        let what = operation.what.as_deref().map(|what| format!(" {what}")).unwrap_or_default();
        let by = if caller.is_empty() { "the cluster itself" } else { caller };
        let words = format!("{by} ordered {kind}{what}, operation {id}: {reason}");
        let subject = format!("operation {id}");
        self.push(
            (Kind::OperationStarted, Severity::Info),
            &subject,
            (None, Some(kind.as_str())),
            words,
        );
        self.dated(operation.started_unix_us);
    }

    fn ended(&mut self, operation: &OperationView) {
        let OperationView { id, kind, caller, outcome, .. } = operation;
        if !operation.is_over() {
            return;
        }
        let severity = if outcome == "done" { Severity::Info } else { Severity::Warning };
        let detail = operation.detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default();
        let by = if caller.is_empty() { String::new() } else { format!(" of {caller}") };
        let words = format!("{kind}{by}, operation {id}, is {outcome}{detail}");
        let subject = format!("operation {id}");
        self.push(
            (Kind::OperationEnded, severity),
            &subject,
            (Some(kind.as_str()), Some(outcome.as_str())),
            words,
        );
        if let Some(ended) = operation.ended_unix_us {
            self.dated(ended);
        }
    }

    fn promotion(&mut self, link: &LineageStatus) {
        let (epoch, node, timeline) = (link.epoch, &link.node, link.timeline);
        let began = format!("{node} was promoted for epoch {epoch}, on timeline {timeline}");
        let (severity, lost) = match (link.lost_seconds_max, link.lost_wal_bytes_min) {
            (Some(0.0), 0) => (Severity::Info, "nothing is lost".to_owned()),
            (Some(seconds), bytes) => (
                Severity::Warning,
                format!(
                    "up to {seconds:.1} s of commits may be lost, at least {bytes} bytes of WAL"
                ),
            ),
            (None, bytes) => (
                Severity::Alert,
                format!("how much was lost is not known, at least {bytes} bytes of WAL"),
            ),
        };
        let to = epoch.to_string();
        let what = (Kind::Promotion, severity);
        self.push(what, node, (None, Some(&to)), format!("{began}; {lost}"));
        if let Some(newest) = self.list.last_mut() {
            newest.epoch = epoch;
            newest.at_unix_us = link.at_unix_us.unwrap_or(newest.at_unix_us);
        }
    }

    /// The newest one has a time of its own.
    fn dated(&mut self, at_unix_us: i64) {
        if let Some(newest) = self.list.last_mut() {
            newest.at_unix_us = at_unix_us;
        }
    }
}

fn operations(found: &mut Found<'_>, before: &ClusterStatus) {
    for operation in &found.after.operations {
        let known = before.operations.iter().find(|known| known.id == operation.id);
        if known.is_none() {
            found.started(operation);
        }
        if known.is_none_or(|known| !known.is_over()) {
            found.ended(operation);
        }
    }
}

fn epoch_and_active(found: &mut Found<'_>, before: &ClusterStatus) {
    let after = found.after;
    if after.epoch != before.epoch {
        let (from, to) = (before.epoch.to_string(), after.epoch.to_string());
        let words = format!("epoch {to} was granted, after {from}");
        let what = (Kind::EpochChange, Severity::Info);
        found.push(what, "cluster", (Some(&from), Some(&to)), words);
    }
    for link in &after.lineage {
        if before.lineage.iter().all(|known| known.epoch != link.epoch) {
            found.promotion(link);
        }
    }
    let (from, to) = (before.active.as_deref(), after.active.as_deref());
    if from == to {
        return;
    }
    // On the way of an order nobody is active for a moment, as was asked for.
    let ordered = |status: &ClusterStatus| {
        let mut running = status.operations.iter().filter(|o| o.outcome == "running");
        running.any(|operation| matches!(operation.kind.as_str(), "switchover" | "failover"))
    };
    let severity = match to {
        None if ordered(after) || ordered(before) => Severity::Info,
        None => Severity::Alert,
        Some(_) => Severity::Info,
    };
    let words = match (from, to) {
        (Some(from), Some(to)) => format!("{to} is active, after {from}"),
        (None, Some(to)) => format!("{to} is active"),
        (Some(from), None) => format!("nobody is active: {from} does not hold the lease any more"),
        (None, None) => return,
    };
    found.push((Kind::ActiveChange, severity), "cluster", (from, to), words);
}

/// Without a role before, this says what the node is.
fn own_role(found: &mut Found<'_>, before: Option<&'static str>) {
    let after = found.after;
    let Some(own) = after.own() else { return };
    let role = own.role.as_str();
    if before == Some(role) {
        return;
    }
    let words = match before {
        Some(before) => format!("{} is {role}, after {before}", own.name),
        None => format!("{} is {role}, as its daemon has learnt after its start", own.name),
    };
    found.push((Kind::RoleChange, Severity::Info), &own.name, (before, Some(role)), words);
}

fn verdict(found: &mut Found<'_>, before: &ClusterStatus) {
    let (from, to) = (&before.failover, &found.after.failover);
    if from.reason == to.reason && from.would_fail_over == to.would_fail_over {
        return;
    }
    let severity = if to.would_fail_over { Severity::Info } else { Severity::Warning };
    let would = if to.would_fail_over { "would" } else { "would not" };
    let words = format!("a loss of the active {would} be answered by itself: {}", to.words);
    let change = (Some(from.reason.as_str()), Some(to.reason.as_str()));
    found.push((Kind::FailoverVerdict, severity), "cluster", change, words);
}

/// What blocks or is a risk, by severity, word and node; the figures in the words move all the time.
fn look_ahead(found: &mut Found<'_>, before: &ClusterStatus) {
    let after = found.after;
    let Some(now) = &after.validation else { return };
    let named = |report: &ValidationReport| -> BTreeSet<String> {
        let grave = report.findings.iter().filter(|finding| finding.severity != Note);
        let named =
            grave.map(|f| format!("{} at {}", f.code, f.node.as_deref().unwrap_or("the cluster")));
        named.collect()
    };
    let was = before.validation.as_ref().map(&named).unwrap_or_default();
    let is = named(now);
    let list = |new: &BTreeSet<String>, old: &BTreeSet<String>| {
        new.difference(old).cloned().collect::<Vec<_>>().join(", ")
    };
    let (came, went) = (list(&is, &was), list(&was, &is));
    let words = match (came.is_empty(), went.is_empty()) {
        (true, true) => return,
        (false, true) => format!("a look ahead has found {came}"),
        (true, false) => format!("a look ahead finds no more {went}"),
        (false, false) => format!("a look ahead has found {came}; gone: {went}"),
    };
    let severity = match now.verdict {
        ValidationVerdict::NotReady => Severity::Alert,
        ValidationVerdict::AtRisk => Severity::Warning,
        ValidationVerdict::Ready => Severity::Info,
    };
    let from = before.validation.as_ref().map(|report| report.verdict.as_str());
    let change = (from, Some(now.verdict.as_str()));
    let words = format!("{words}; `understudy validate` has the remedies");
    found.push((Kind::ValidationChange, severity), "cluster", change, words);
}

fn durability(found: &mut Found<'_>, before: &ClusterStatus) {
    let after = found.after;
    if after.durability != before.durability {
        let (from, to) = (before.durability.to_string(), after.durability.to_string());
        let words = format!("the mode in force is {to}, after {from}");
        let what = (Kind::ModeChange, Severity::Info);
        found.push(what, "cluster", (Some(&from), Some(&to)), words);
    }
    if after.durability_lifted != before.durability_lifted {
        let word = |lifted: bool| if lifted { "lifted" } else { "protected" };
        let change = (word(before.durability_lifted), word(after.durability_lifted));
        let (severity, words) = match after.durability_lifted {
            // Belongs to every change of the active, and is over in a moment as a rule; the change is told
            // with its own severity.
            true if after.epoch != before.epoch => {
                let words = "commits wait for nobody until a passive follows the new active";
                (Severity::Warning, words.to_owned())
            }
            true => (Severity::Alert, "commits go on unprotected: nobody is waited for".to_owned()),
            false => (
                Severity::Info,
                format!("commits are protected again, by {}", after.waited_for.join(", ")),
            ),
        };
        let change = (Some(change.0), Some(change.1));
        found.push((Kind::LiftedChange, severity), "cluster", change, words);
    }
}

fn pause(found: &mut Found<'_>, before: &ClusterStatus) {
    let (from, to) = (before.paused_until_unix_us, found.after.paused_until_unix_us);
    if from == to {
        return;
    }
    let moment = |unix_us: i64| {
        let at = jiff::Timestamp::from_microsecond(unix_us);
        at.map_or_else(|_| "an unknown time".to_owned(), |at| format!("{at:.0}"))
    };
    match to {
        Some(until) => {
            let until = moment(until);
            let words = format!("automatic failover is paused until {until}");
            let what = (Kind::PauseBegan, Severity::Warning);
            found.push(what, "cluster", (None, Some(&until)), words);
        }
        None => {
            let words = "the pause of automatic failover has ended".to_owned();
            found.push((Kind::PauseEnded, Severity::Info), "cluster", (None, None), words);
        }
    }
}

fn marks(found: &mut Found<'_>, before: &ClusterStatus) {
    for node in &found.after.nodes {
        let from = before.node(&node.name).and_then(|node| node.mark.as_deref());
        let to = node.mark.as_deref();
        if from == to {
            continue;
        }
        let (what, words) = match to {
            Some(mark) => (
                (Kind::MarkSet, Severity::Warning),
                format!("{} must not be promoted: {mark}", node.name),
            ),
            None => (
                (Kind::MarkCleared, Severity::Info),
                format!("{} has no mark any more that kept it from being promoted", node.name),
            ),
        };
        found.push(what, &node.name, (from, to), words);
    }
}

/// Whom this node hears, and whether they are a majority.
fn reach(found: &mut Found<'_>, before: &ClusterStatus) {
    let (after, me) = (found.after, &found.after.answered_by);
    let silent = |state: &str| state == "unreachable";
    for node in after.nodes.iter().filter(|node| node.name != *me) {
        let Some(known) = before.node(&node.name) else { continue };
        let (was_silent, is_silent) = (silent(&known.state), silent(&node.state));
        let change = (Some(known.state.as_str()), Some(node.state.as_str()));
        if is_silent && !was_silent {
            let words = format!("{me} does not hear {} any more", node.name);
            found.push((Kind::NodeUnreachable, Severity::Warning), &node.name, change, words);
        } else if was_silent && !is_silent {
            let words = format!("{me} hears {}: {}", node.name, node.state);
            found.push((Kind::NodeHeard, Severity::Info), &node.name, change, words);
        }
    }
    if after.majority != before.majority {
        let word = |majority: bool| if majority { "majority" } else { "minority" };
        let change = (Some(word(before.majority)), Some(word(after.majority)));
        let (severity, words) = match after.majority {
            true => (Severity::Info, format!("{me} hears a majority of the voters")),
            false => (Severity::Alert, format!("{me} hears no majority of the voters")),
        };
        found.push((Kind::MajorityChange, severity), me, change, words);
    }
}

fn own_server(found: &mut Found<'_>, before: &ClusterStatus) {
    let after = found.after;
    let (Some(was), Some(is)) = (before.own(), after.own()) else { return };
    if is.kind == NodeKind::Data && was.postgres_running != is.postgres_running {
        let (what, change, words) = match is.postgres_running {
            true => (
                (Kind::PostgresUp, Severity::Info),
                ("down", "up"),
                format!("PostgreSQL answers at {}", is.name),
            ),
            false => (
                (Kind::PostgresDown, Severity::Warning),
                ("up", "down"),
                format!("PostgreSQL does not answer at {}", is.name),
            ),
        };
        found.push(what, &is.name, (Some(change.0), Some(change.1)), words);
    }
    if was.writable != is.writable {
        let word = |writable: bool| if writable { "writable" } else { "not-writable" };
        let can = if is.writable { "can" } else { "cannot" };
        let change = (Some(word(was.writable)), Some(word(is.writable)));
        let words = format!("clients {can} write at {}", is.name);
        found.push((Kind::WritableChange, Severity::Info), &is.name, change, words);
    }
}

fn own_words(found: &mut Found<'_>, before: &ClusterStatus) {
    let after = found.after;
    let (Some(was), Some(is)) = (before.own(), after.own()) else { return };
    let name = is.name.as_str();
    // Words with a figure in them change all the time: only that there is trouble is news.
    match (&was.trouble, &is.trouble) {
        (None, Some(trouble)) => {
            let what = (Kind::TroubleBegan, Severity::Warning);
            found.push(what, name, (None, None), trouble.clone());
        }
        (Some(trouble), None) => {
            let words = format!("this is over: {trouble}");
            found.push((Kind::TroubleEnded, Severity::Info), name, (None, None), words);
        }
        (Some(_), Some(_)) | (None, None) => {}
    }
    let [before, now] = [was, is]
        .map(|node| node.warnings.iter().map(|words| shape(words)).collect::<BTreeSet<String>>());
    for words in is.warnings.iter().filter(|words| !before.contains(&shape(words))) {
        found.push((Kind::WarningBegan, Severity::Warning), name, (None, None), words.clone());
    }
    for words in was.warnings.iter().filter(|words| !now.contains(&shape(words))) {
        let words = format!("this is over: {words}");
        found.push((Kind::WarningEnded, Severity::Info), name, (None, None), words);
    }
}

/// What of a warning stays the same while its figures change.
fn shape(warning: &str) -> String {
    warning.chars().filter(|c| !c.is_ascii_digit() && *c != '.').collect()
}
