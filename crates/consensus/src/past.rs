//! The past of a node's storage: told with every message, remembered by whoever hears it.
//!
//! A node that is put back on an older copy of its storage has forgotten votes that it gave and
//! entries that it acknowledged; if it counted, two leaders could win one term. Its storage is still
//! the one that it was founded with, so that alone does not show it. So every durable change is
//! numbered, every start of the daemon notes at which number it began, and each node keeps what it last
//! heard of each other one, and passes it on: who leads hears everybody, the others hardly hear each
//! other. A storage whose past does not contain what was heard of it is an older copy, or the
//! continuation of one. This file compares; what follows from it is others' business.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use understudy_proto::v1;
use understudy_types::NodeId;
use uuid::Uuid;

/// Starts that are kept and told. Somebody who heard of none of the last so many compares revisions
/// alone.
const STARTS_MAX: usize = 16;

/// One start of a daemon on its storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Random, made for this start.
    pub process: Uuid,
    /// Durable changes that the storage had seen before it.
    pub opened_at: u64,
}

/// What a storage says of its own past.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Past {
    /// Newest last; the oldest are forgotten.
    pub(crate) starts: Vec<Start>,
    /// Durable changes so far.
    pub(crate) revision: u64,
}

impl Past {
    /// Whether `heard` is of this past, and not of one that went on without it.
    pub(crate) fn contains(&self, heard: &Heard) -> bool {
        match self.starts.iter().position(|start| start.process == heard.process) {
            Some(at) => {
                let end = self.starts.get(at + 1).map_or(self.revision, |next| next.opened_at);
                heard.revision <= end
            }
            None => self.starts.first().is_some_and(|oldest| heard.revision <= oldest.opened_at),
        }
    }
}

/// What is known of another node's storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// The storage's own identity.
    pub(crate) storage: Uuid,
    /// As it was last told.
    pub(crate) past: Past,
}

impl Known {
    /// As others are told of it.
    pub(crate) fn of(&self, node: NodeId) -> v1::StorageKnown {
        let storage = self.storage.as_bytes().to_vec();
        v1::StorageKnown { node_id: node.0, storage, past: Some((&self.past).into()) }
    }

    /// The start that told it; `None` if it told of none.
    fn heard(&self) -> Option<Heard> {
        let process = self.past.starts.last()?.process;
        Some(Heard { storage: self.storage, process, revision: self.past.revision })
    }
}

/// What was last heard of a node's storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    /// The storage's own identity.
    pub(crate) storage: Uuid,
    /// The start that said it.
    pub(crate) process: Uuid,
    /// Durable changes at that time.
    pub(crate) revision: u64,
}

/// Somebody heard something of this storage that it does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unknown {
    /// This storage is the older one; else it, or the one that was heard of, is a copy.
    pub(crate) proven: bool,
    /// What was heard.
    pub(crate) words: String,
}

/// A new list of starts, with one more that begins at `revision`.
pub(crate) fn started(mut starts: Vec<Start>, revision: u64) -> Vec<Start> {
    starts.push(Start { process: Uuid::new_v4(), opened_at: revision });
    let forgotten = starts.len().saturating_sub(STARTS_MAX);
    starts.drain(..forgotten);
    starts
}

/// This storage's own past, and what was heard of the others: in memory, for the store's writer, which
/// makes both durable, and for whoever speaks with other nodes.
#[derive(Debug)]
pub(crate) struct Pasts {
    storage: Uuid,
    starts: Vec<Start>,
    revision: AtomicU64,
    known: Mutex<BTreeMap<u64, Known>>,
}

impl Pasts {
    pub(crate) fn new(
        storage: Uuid,
        starts: Vec<Start>,
        revision: u64,
        known: BTreeMap<u64, Known>,
    ) -> Pasts {
        Pasts { storage, starts, revision: AtomicU64::new(revision), known: Mutex::new(known) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Known>> {
        // Nothing panics while it changes the map.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many changes are durable now.
    pub(crate) fn durable(&self, revision: u64) {
        self.revision.store(revision, Ordering::Release);
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// The own past as of now.
    pub(crate) fn own(&self) -> Past {
        Past { starts: self.starts.clone(), revision: self.revision() }
    }

    /// What is known of every other node, by number.
    pub(crate) fn all_known(&self) -> BTreeMap<u64, Known> {
        self.lock().clone()
    }

    pub(crate) fn heard_of(&self, node: NodeId) -> Option<Heard> {
        self.lock().get(&node.0)?.heard()
    }

    /// Compares the past that `node` tells of its `storage` with what was heard before, and keeps it.
    ///
    /// # Errors
    /// In words, when it is an older one; then nothing is kept.
    pub(crate) fn hear(&self, node: NodeId, storage: Uuid, past: &Past) -> Result<(), String> {
        let process = past.starts.last().ok_or("it says nothing of its storage's past")?.process;
        let mut known = self.lock();
        let before = known.get(&node.0).filter(|known| known.storage == storage);
        if let Some(before) = before.and_then(Known::heard) {
            // Messages of one start may overtake each other.
            if before.process == process && past.revision <= before.revision {
                return Ok(());
            }
            if before.process != process && !past.contains(&before) {
                return Err(format!(
                    "its storage is an older copy: start {} had made {} changes when it was last heard, \
                     and the storage that start {process} opened does not have them all",
                    before.process, before.revision
                ));
            }
        }
        known.insert(node.0, Known { storage, past: past.clone() });
        Ok(())
    }

    /// Takes what somebody else knows of `node`, if that is newer than what is known here.
    pub(crate) fn learn(&self, node: NodeId, news: Known) {
        let mut known = self.lock();
        let newer = match known.get(&node.0) {
            // Which of two storages is the node's is not told by their pasts.
            Some(before) if before.storage != news.storage => false,
            Some(before) => before.heard().is_none_or(|before| news.past.contains(&before)),
            None => true,
        };
        if newer && news.heard().is_some() {
            known.insert(node.0, news);
        }
    }

    /// Compares what somebody heard of this node with its own past.
    ///
    /// # Errors
    /// When this storage does not have what was heard of.
    pub(crate) fn recognise(&self, heard: &Heard) -> Result<(), Unknown> {
        let own = self.own();
        if heard.storage != self.storage || own.contains(heard) {
            return Ok(());
        }
        // A start that is not among its own may as well be that of a copy, which somebody believed.
        let known = own.starts.iter().any(|start| start.process == heard.process);
        let proven = known || heard.revision > own.revision;
        let words = format!(
            "start {} had made {} changes when another node heard of it, and this storage, with {} \
             changes, does not have them all",
            heard.process, heard.revision, own.revision
        );
        Err(Unknown { proven, words })
    }
}

impl From<&Past> for v1::StoragePast {
    fn from(past: &Past) -> v1::StoragePast {
        let start = |start: &Start| v1::StorageStart {
            process: start.process.as_bytes().to_vec(),
            opened_at: start.opened_at,
        };
        v1::StoragePast { starts: past.starts.iter().map(start).collect(), revision: past.revision }
    }
}

impl TryFrom<&v1::StoragePast> for Past {
    type Error = uuid::Error;
    fn try_from(past: &v1::StoragePast) -> Result<Past, uuid::Error> {
        let start = |start: &v1::StorageStart| {
            Ok(Start { process: Uuid::from_slice(&start.process)?, opened_at: start.opened_at })
        };
        let starts: Result<_, uuid::Error> = past.starts.iter().map(start).collect();
        Ok(Past { starts: starts?, revision: past.revision })
    }
}

impl TryFrom<&v1::StorageKnown> for Known {
    type Error = uuid::Error;
    fn try_from(known: &v1::StorageKnown) -> Result<Known, uuid::Error> {
        let past = known.past.clone().unwrap_or_default();
        Ok(Known { storage: Uuid::from_slice(&known.storage)?, past: (&past).try_into()? })
    }
}

impl From<Heard> for v1::StorageHeard {
    fn from(heard: Heard) -> v1::StorageHeard {
        v1::StorageHeard {
            storage: heard.storage.as_bytes().to_vec(),
            process: heard.process.as_bytes().to_vec(),
            revision: heard.revision,
        }
    }
}

impl TryFrom<&v1::StorageHeard> for Heard {
    type Error = uuid::Error;
    fn try_from(heard: &v1::StorageHeard) -> Result<Heard, uuid::Error> {
        Ok(Heard {
            storage: Uuid::from_slice(&heard.storage)?,
            process: Uuid::from_slice(&heard.process)?,
            revision: heard.revision,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(3);
    const STORAGE: Uuid = Uuid::from_u128(7);

    fn start(process: u128, opened_at: u64) -> Start {
        Start { process: Uuid::from_u128(process), opened_at }
    }

    fn heard(process: u128, revision: u64) -> Heard {
        Heard { storage: STORAGE, process: Uuid::from_u128(process), revision }
    }

    #[test]
    fn a_past_contains_what_it_said_and_nothing_that_went_on_without_it() {
        let past = Past { starts: vec![start(1, 0), start(2, 10), start(3, 20)], revision: 25 };
        for of_it in [heard(1, 0), heard(1, 10), heard(2, 20), heard(3, 25)] {
            assert!(past.contains(&of_it), "{of_it:?}");
        }
        // Each start went on in another copy; the last process was itself put back.
        for beyond in [heard(1, 11), heard(2, 21), heard(3, 26), heard(4, 22), heard(9, 1)] {
            assert!(!past.contains(&beyond), "{beyond:?}");
        }
        let long = Past { starts: vec![start(8, 100), start(9, 120)], revision: 130 };
        assert!(long.contains(&heard(2, 100)), "forgotten starts are compared by number");
        assert!(!long.contains(&heard(2, 101)));
    }

    #[test]
    fn an_older_copy_is_refused_by_who_heard_of_the_newer_one_and_sees_it_itself() {
        let other = Pasts::new(Uuid::from_u128(1), vec![start(50, 0)], 1, BTreeMap::new());
        let alive = Past { starts: vec![start(1, 0), start(2, 10)], revision: 15 };
        other.hear(NODE, STORAGE, &alive).unwrap();
        // A message that was overtaken is no older copy.
        other.hear(NODE, STORAGE, &Past { revision: 12, ..alive.clone() }).unwrap();
        assert_eq!(other.heard_of(NODE), Some(heard(2, 15)));

        let copy = Past { starts: vec![start(1, 0), start(3, 10)], revision: 40 };
        assert!(other.hear(NODE, STORAGE, &copy).unwrap_err().contains("older copy"));
        assert_eq!(other.heard_of(NODE), Some(heard(2, 15)), "what was heard stays");
        let itself = Pasts::new(STORAGE, copy.starts, copy.revision, BTreeMap::new());
        // It has more changes by now: that alone does not say which of the two is the copy.
        assert!(!itself.recognise(&other.heard_of(NODE).unwrap()).unwrap_err().proven);
        assert!(itself.recognise(&heard(3, 41)).unwrap_err().proven);
        assert!(itself.recognise(&heard(2, 99)).unwrap_err().proven);
        assert_eq!(itself.recognise(&heard(3, 40)), Ok(()));

        let restarted = Past { starts: vec![start(2, 10), start(4, 15)], revision: 15 };
        other.hear(NODE, STORAGE, &restarted).unwrap();
        // The start before it may still have a message under way.
        other.hear(NODE, STORAGE, &alive).unwrap_err();
        // Another storage under the number is for others to refuse.
        other
            .hear(NODE, Uuid::from_u128(8), &Past { starts: vec![start(5, 0)], revision: 0 })
            .unwrap();
    }

    #[test]
    fn what_another_knows_is_taken_where_it_is_newer() {
        let here = Pasts::new(Uuid::from_u128(1), vec![start(50, 0)], 1, BTreeMap::new());
        let known = |starts: &[Start], revision| Known {
            storage: STORAGE,
            past: Past { starts: starts.to_vec(), revision },
        };
        here.learn(NODE, known(&[start(1, 0)], 7));
        assert_eq!(here.heard_of(NODE), Some(heard(1, 7)));
        here.learn(NODE, known(&[start(1, 0), start(2, 10)], 12));
        assert_eq!(here.heard_of(NODE), Some(heard(2, 12)));
        // Older, of a copy, and of another storage.
        here.learn(NODE, known(&[start(1, 0)], 9));
        here.learn(NODE, known(&[start(1, 0), start(3, 8)], 40));
        here.learn(NODE, Known { storage: Uuid::from_u128(8), ..known(&[start(4, 0)], 99) });
        here.learn(NODE, known(&[], 99));
        assert_eq!(here.heard_of(NODE), Some(heard(2, 12)));
    }

    #[test]
    fn the_list_of_starts_is_bounded() {
        let starts = (0..40).fold(Vec::new(), started);
        assert_eq!(starts.len(), STARTS_MAX);
        assert_eq!(starts.last().unwrap().opened_at, 39);
    }
}
