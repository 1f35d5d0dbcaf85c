//! What is judged of a passive against the active: what clients would find changed after a role change. Pure.

use std::collections::{BTreeMap, BTreeSet};

use understudy_proto::v1;

use super::Severity;
use super::judge::{Evidence, Findings, listed};
use super::settings::{NOT_SMALLER, SPECIAL, matters};
use crate::status::NodeStatus;

/// Compares every passive with the active, and all programs with each other.
pub(super) fn compare(evidence: &Evidence<'_>, found: &mut Findings) {
    programs(evidence, found);
    let (active, passives) = evidence.data_nodes();
    health_checks(evidence, active.into_iter().chain(passives.iter().copied()), found);
    let Some(active) = active else { return };
    let Some(ours) = evidence.postgres(&active.name) else { return };
    for passive in passives {
        if let Some(theirs) = evidence.postgres(&passive.name) {
            let pair = Pair { active: &active.name, passive: &passive.name, ours, theirs };
            pair.versions(found);
            pair.sizes(found);
            pair.special(found);
            pair.settings(found);
            pair.hba(found);
            pair.delay(found);
        }
    }
}

/// The active's server (`ours`) and a passive's (`theirs`).
struct Pair<'a> {
    active: &'a str,
    passive: &'a str,
    ours: &'a v1::PostgresFitness,
    theirs: &'a v1::PostgresFitness,
}

impl Pair<'_> {
    fn versions(&self, found: &mut Findings) {
        let (ours, theirs) = (self.ours.server_version_num, self.theirs.server_version_num);
        if ours == theirs {
            return;
        }
        let words = format!(
            "its PostgreSQL is {}, {}'s is {}",
            version_words(theirs),
            self.active,
            version_words(ours)
        );
        let severity =
            if ours / 10_000 == theirs / 10_000 { Severity::Risk } else { Severity::Block };
        let remedy = "install the same release on every data node, the passive first";
        found.add(severity, "postgres-version", Some(self.passive), words, remedy);
    }

    /// Replay stops at the first WAL that says the primary has more than the standby can hold.
    fn sizes(&self, found: &mut Findings) {
        let number =
            |of: &v1::PostgresFitness, name: &str| of.settings.get(name)?.parse::<i64>().ok();
        for name in NOT_SMALLER {
            let both = number(self.ours, name).zip(number(self.theirs, name));
            let Some((ours, theirs)) = both.filter(|(ours, theirs)| theirs < ours) else {
                continue;
            };
            let words = format!(
                "{name} is {theirs} there and {ours} at {}: replay would stop",
                self.active
            );
            let remedy = "raise it at the passive first, restart PostgreSQL there, then the active";
            found.add(Severity::Block, "parameter-too-small", Some(self.passive), words, remedy);
        }
    }

    fn special(&self, found: &mut Findings) {
        let value = |of: &'_ v1::PostgresFitness, name: &str| {
            of.settings.get(name).cloned().unwrap_or_default()
        };
        for name in SPECIAL {
            let (ours, theirs) = (value(self.ours, name), value(self.theirs, name));
            if ours == theirs {
                continue;
            }
            let (code, harm, remedy) = match *name {
                "shared_preload_libraries" => (
                    "preload-differs",
                    "what they do is missing after a role change",
                    "the same value below [postgres.parameters] of both, the packages installed, and a restart",
                ),
                _ => (
                    "archive-differs",
                    "after a role change WAL would be archived otherwise or not at all",
                    "the same archive settings below [postgres.parameters] of both",
                ),
            };
            let told = |value: &str| match value {
                "" => "empty".to_owned(),
                other => other.to_owned(),
            };
            let (ours, theirs) = (told(&ours), told(&theirs));
            let words = format!("{name} is {theirs} there and {ours} at {}: {harm}", self.active);
            found.add(Severity::Risk, code, Some(self.passive), words, remedy);
        }
    }

    fn settings(&self, found: &mut Findings) {
        // What only one release knows is the releases' difference, not the operator's.
        let both = self.ours.settings.iter().filter_map(|(name, ours)| {
            let theirs = self.theirs.settings.get(name)?;
            (ours != theirs && matters(name)).then(|| format!("{name} ({theirs}, not {ours})"))
        });
        let mut differing: Vec<String> = both.collect();
        if differing.is_empty() {
            return;
        }
        differing.sort();
        let words = format!("settings differ from {}'s: {}", self.active, listed(&differing));
        let remedy = "the same values below [postgres.parameters] of both, unless the machines differ on purpose";
        found.add(Severity::Risk, "settings-differ", Some(self.passive), words, remedy);
    }

    fn hba(&self, found: &mut Findings) {
        let lines = |of: &v1::PostgresFitness| -> Vec<(String, String)> {
            of.hba_lines.iter().map(|line| (line.words.clone(), line.digest.clone())).collect()
        };
        let (ours, theirs) = (lines(self.ours), lines(self.theirs));
        if ours == theirs {
            return;
        }
        let only = |of: &[(String, String)], other: &[(String, String)]| -> Vec<String> {
            let missing = of.iter().filter(|line| !other.contains(line));
            missing.map(|(words, _)| format!("`{words}`")).collect()
        };
        let (only_ours, only_theirs) = (only(&ours, &theirs), only(&theirs, &ours));
        let what = match (only_ours.is_empty(), only_theirs.is_empty()) {
            (false, _) => format!("{} has {}, and it has not", self.active, listed(&only_ours)),
            (true, false) => {
                format!("it has {}, and {} has not", listed(&only_theirs), self.active)
            }
            (true, true) => format!("its lines stand in another order than {}'s", self.active),
        };
        let words = format!("pg_hba.conf lets in others after a role change: {what}");
        let remedy = "the same lines in both files (the first that matches counts), and a reload";
        found.add(Severity::Risk, "hba-differs", Some(self.passive), words, remedy);
    }

    fn delay(&self, found: &mut Findings) {
        let delay = self.theirs.settings.get("recovery_min_apply_delay");
        if let Some(delay) = delay.filter(|delay| !delay.starts_with("0 ") && *delay != "0") {
            let words = format!(
                "recovery_min_apply_delay is {delay}: a failover would wait for what it holds back"
            );
            let remedy = "take it out of its parameters; a delayed copy is no warm standby";
            found.add(Severity::Risk, "apply-delayed", Some(self.passive), words, remedy);
        }
    }
}

fn programs(evidence: &Evidence<'_>, found: &mut Findings) {
    let mut of: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for node in &evidence.status.nodes {
        if let Some(fitness) = evidence.fitness(&node.name) {
            of.entry(&fitness.program_version).or_default().push(node.name.clone());
        }
    }
    if of.len() > 1 {
        let each: Vec<String> = of
            .iter()
            .map(|(version, nodes)| format!("{version} at {}", nodes.join(", ")))
            .collect();
        let words = format!("nodes run different versions of this program: {}", each.join("; "));
        let remedy = "finish the upgrade: witness, passive, and the active after a switchover";
        found.add(Severity::Risk, "program-version", None, words, remedy);
    }
}

/// Whoever asks one data node who is active, and not the other, would not find the new one.
fn health_checks<'a>(
    evidence: &Evidence<'_>,
    data: impl Iterator<Item = &'a NodeStatus> + Clone,
    found: &mut Findings,
) {
    let checkers = |node: &NodeStatus| -> Option<BTreeSet<String>> {
        Some(evidence.fitness(&node.name)?.health_checkers.iter().cloned().collect())
    };
    let all: BTreeSet<String> = data.clone().filter_map(checkers).flatten().collect();
    for node in data {
        let listened = evidence.fitness(&node.name).is_some_and(|f| f.health_checkers_complete);
        let Some(here) = checkers(node).filter(|_| listened) else { continue };
        let missing: Vec<String> = all.difference(&here).cloned().collect();
        if !missing.is_empty() {
            let words = format!(
                "{} asks others who is active, and has not asked this node for two minutes: it would not \
                 find it after a role change",
                listed(&missing)
            );
            let remedy = "the load balancer's list of servers, and firewalls between it and this node's HTTP port";
            found.add(Severity::Risk, "health-check-missing", Some(&node.name), words, remedy);
        }
    }
}

/// 150018 is 15.18.
fn version_words(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}
