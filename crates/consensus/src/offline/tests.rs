//! The switch of incarnations, on real files: what it leaves when it is cut off, and that a daemon and
//! it exclude each other.

use understudy_core::state::Member;
use understudy_types::{ClusterId, NodeKind};

use super::*;
use crate::{LogStore, StoreOptions};

const NODE: NodeId = NodeId(2);

fn options(node: NodeId, incarnation: ClusterIncarnation) -> StoreOptions {
    StoreOptions { cluster: Uuid::from_u128(1), node_id: node.0, name: "south".into(), incarnation }
}

fn recovered() -> ClusterIncarnation {
    ClusterIncarnation::FOUNDED.next(Uuid::from_u128(9))
}

/// The store closes in a thread of its own.
fn eventually<T>(mut attempt: impl FnMut() -> Result<T, OfflineError>) -> T {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(OfflineError::InUse { .. }) if std::time::Instant::now() < deadline => {
                std::thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// A store that a daemon has had open.
fn old_store() -> (tempfile::TempDir, StoredIdentity) {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open(dir.path(), &options(NODE, ClusterIncarnation::FOUNDED)).unwrap();
    let identity = store.identity().clone();
    drop(store);
    (dir, identity)
}

fn offline(dir: &Path) -> Offline {
    eventually(|| Offline::open(dir)).expect("there is a store")
}

fn begin(dir: &Path) -> ClusterState {
    let node = recovered().number_of(NODE).unwrap();
    let member = Member {
        name: "south".parse().unwrap(),
        site: "south".parse().unwrap(),
        kind: NodeKind::Data,
        address: "south:7400".to_owned(),
        incarnation: Incarnation(Uuid::from_u128(5)),
    };
    let state = ClusterState {
        members: BTreeMap::from([(node, member)]),
        config_version: 7,
        ..ClusterState::default()
    };
    let storage = Incarnation(Uuid::from_u128(5));
    offline(dir).begin_incarnation(recovered(), node, storage, "south:7400", &state).unwrap();
    state
}

#[test]
fn a_new_incarnation_has_one_voter_and_the_state_it_was_given() {
    let (dir, before) = old_store();
    let state = begin(dir.path());
    let after = offline(dir.path());
    let node = recovered().number_of(NODE).unwrap();
    assert_eq!(after.state, state);
    assert_eq!(after.voters, BTreeSet::from([node]));
    assert_eq!(after.identity.cluster_incarnation, recovered());
    assert_eq!(after.identity.node_id, node.0);
    assert_ne!(after.identity.incarnation, before.incarnation);
    assert!(after.identity.process_start >= before.process_start, "RULE 3 counts on it");
    assert!(!after.empty, "a store that may found a cluster");
    assert_eq!(after.last_index, 1);
}

#[test]
fn a_daemon_of_the_old_incarnation_does_not_take_the_new_storage_nor_the_other_way_round() {
    let (dir, _) = old_store();
    let refused = |node, incarnation| {
        let opened = LogStore::open(dir.path(), &options(node, incarnation));
        matches!(opened, Err(StoreError::Identity { .. }))
    };
    drop(offline(dir.path()));
    assert!(refused(NODE, recovered()));
    begin(dir.path());
    assert!(refused(NODE, ClusterIncarnation::FOUNDED));
    assert!(LogStore::open(dir.path(), &options(NodeId(1002), recovered())).is_ok());
}

#[test]
fn the_old_storage_is_kept_whole() {
    let (dir, before) = old_store();
    begin(dir.path());
    let kept = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let kept: Vec<_> = kept.filter(|n| n.to_string_lossy().starts_with("raft-of-")).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join(&kept[0]), elsewhere.path().join(FILE)).unwrap();
    assert_eq!(offline(elsewhere.path()).identity, before);
}

#[test]
fn cut_off_before_the_switch_it_is_the_old_incarnation_and_can_be_done_again() {
    let (dir, before) = old_store();
    // What a run that was killed may leave: half of a new file, a link, a new state.
    std::fs::write(dir.path().join(FRESH), b"half of a file").unwrap();
    let aside = offline(dir.path()).aside();
    std::fs::hard_link(dir.path().join(FILE), aside).unwrap();
    let other = ClusterIncarnation::FOUNDED.next(Uuid::from_u128(3));
    std::fs::create_dir(snapshot_dir(dir.path(), other)).unwrap();
    assert_eq!(eventually(|| stored_identity(dir.path())).unwrap(), before);
    begin(dir.path());
    assert_eq!(offline(dir.path()).identity.cluster_incarnation, recovered());
}

#[test]
fn while_a_daemon_runs_nothing_is_touched() {
    let (dir, _) = old_store();
    drop(offline(dir.path()));
    let running = LogStore::open(dir.path(), &options(NODE, ClusterIncarnation::FOUNDED)).unwrap();
    assert!(matches!(Offline::open(dir.path()), Err(OfflineError::InUse { .. })));
    drop(running);
}

#[test]
fn a_node_that_comes_back_has_an_empty_storage_of_the_new_incarnation() {
    let (dir, before) = old_store();
    offline(dir.path()).begin_empty(recovered(), NodeId(1002)).unwrap();
    let after = offline(dir.path());
    assert!(after.empty && after.voters.is_empty());
    assert_ne!(after.identity.incarnation, before.incarnation);

    let fresh = tempfile::tempdir().unwrap();
    let name = "south".parse().unwrap();
    let cluster = ClusterId(Uuid::from_u128(1));
    create_empty(fresh.path(), cluster, recovered(), NodeId(1002), &name).unwrap();
    assert_eq!(offline(fresh.path()).identity.cluster_incarnation, recovered());
    assert!(create_empty(fresh.path(), cluster, recovered(), NodeId(1002), &name).is_err());
}
