//! What was asked, answered and applied, and what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};

use understudy_consensus::{Applied, ProposeError, encode_state};
use understudy_core::state::{Command, Mark};
use understudy_types::{NodeId, ProcessStart};

#[derive(Debug, Default)]
pub(crate) struct Book {
    /// Who was seen leading each term.
    leaders: BTreeMap<u64, NodeId>,
    /// What each index holds: the text of the command, and the state after it by hash.
    log: BTreeMap<u64, (String, u64)>,
    /// How far each node's present life has applied.
    applied: BTreeMap<NodeId, u64>,
    /// Proposals that were accepted, with their index.
    acknowledged: BTreeMap<String, u64>,
    newest_acknowledged: u64,
    /// Proposals that certainly were not appended, as it was said.
    refused: BTreeSet<String>,
    lives: BTreeMap<NodeId, u64>,
    pub(crate) unknown: u64,
    pub(crate) reads: u64,
    /// Entries that a node got by way of a snapshot.
    pub(crate) snapshots: u64,
    wrong: Vec<String>,
}

/// The book that all nodes write into.
#[derive(Clone, Debug, Default)]
pub(crate) struct History(Arc<Mutex<Book>>);

impl History {
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap()
    }
}

fn text(command: Option<&Command>) -> String {
    match command {
        Some(Command::SetMark { mark: Mark::Suspect(text), .. }) => text.clone(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

impl Book {
    pub(crate) fn started(&mut self, node: NodeId, start: ProcessStart) {
        self.applied.remove(&node);
        let before = self.lives.insert(node, start.0).unwrap_or(0);
        if start.0 <= before {
            self.wrong.push(format!("node {node} counts start {} after {before}", start.0));
        }
    }

    pub(crate) fn leads(&mut self, node: NodeId, term: u64) {
        let leader = *self.leaders.entry(term).or_insert(node);
        if leader != node {
            self.wrong.push(format!("nodes {leader} and {node} both led term {term}"));
        }
    }

    pub(crate) fn terms(&self) -> usize {
        self.leaders.len()
    }

    pub(crate) fn applied(&mut self, node: NodeId, step: &Applied) {
        let before = self.applied.insert(node, step.index);
        let mut hasher = DefaultHasher::new();
        encode_state(&step.state).hash(&mut hasher);
        let here = (text(step.command.as_ref()), hasher.finish());
        let follows = before.is_none_or(|before| before + 1 == step.index);
        if !follows && step.command.is_some() {
            self.wrong.push(format!("node {node} applied {} after {before:?}", step.index));
        }
        if step.command.is_none() {
            // An entry of consensus itself, or a state as a whole, whose last entry is not told.
            self.snapshots += u64::from(before.is_some() && !follows);
            if self.log.get(&step.index).is_some_and(|(_, state)| *state != here.1) {
                self.wrong.push(format!("node {node}: another state at {}", step.index));
            }
            return;
        }
        if self.refused.contains(&here.0) {
            self.wrong.push(format!("{:?} was applied, but was said not to be", here.0));
        }
        if let Some(index) = self.acknowledged.get(&here.0)
            && *index != step.index
        {
            let index = *index;
            self.wrong.push(format!("{:?}: {index} and {}", here.0, step.index));
        }
        let there = self.log.entry(step.index).or_insert_with(|| here.clone());
        if *there != here {
            let wrong = format!("index {}: {there:?} and at node {node} {here:?}", step.index);
            self.wrong.push(wrong);
        }
    }

    /// What had been acknowledged to anybody before a call begins.
    pub(crate) fn floor(&self) -> u64 {
        self.newest_acknowledged
    }

    pub(crate) fn answered(&mut self, text: String, floor: u64, answer: Result<u64, ProposeError>) {
        match answer {
            Ok(index) => {
                if index <= floor {
                    self.wrong.push(format!("{text:?} got {index}, but {floor} was before it"));
                }
                if self.log.get(&index).is_some_and(|(there, _)| *there != text) {
                    self.wrong.push(format!("{text:?} was acknowledged at another's {index}"));
                }
                self.newest_acknowledged = self.newest_acknowledged.max(index);
                self.acknowledged.insert(text, index);
            }
            Err(ProposeError::Unknown(_)) => self.unknown += 1,
            Err(ProposeError::NoLeader | ProposeError::NotSent(_)) => {
                if self.log.values().any(|(there, _)| *there == text) {
                    self.wrong.push(format!("{text:?} is in the log, but was said not to be"));
                }
                self.refused.insert(text);
            }
        }
    }

    pub(crate) fn read(&mut self, node: NodeId, floor: u64, index: u64) {
        self.reads += 1;
        if index < floor {
            self.wrong.push(format!("node {node} read at {index}, but {floor} was before it"));
        }
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// Whether so many nodes have applied everything that was acknowledged.
    pub(crate) fn all_have_all(&self, nodes: usize) -> bool {
        self.applied.len() == nodes
            && self.applied.values().all(|index| *index >= self.newest_acknowledged)
    }

    /// Every acknowledged proposal is where it was said to be.
    pub(crate) fn close(&mut self) {
        for (text, index) in &self.acknowledged {
            match self.log.get(index) {
                Some((there, _)) if there == text => {}
                other => {
                    self.wrong.push(format!("{text:?} was acknowledged at {index}: {other:?}"))
                }
            }
        }
    }

    pub(crate) fn wrong(&self) -> &[String] {
        &self.wrong
    }
}
