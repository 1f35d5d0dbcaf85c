//! Properties of applying, of snapshots, and openraft's own suite for stores.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::stream;
use openraft::storage::RaftLogStorage;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{Membership, StorageError};
use tempfile::TempDir;
use understudy_core::ClusterConfig;
use understudy_core::state::{Member, Rejection};
use understudy_types::{ClusterId, ClusterIncarnation, Incarnation, NodeId, NodeKind};
use uuid::Uuid;

use super::*;
use crate::codec::{encode_command, encode_state};
use crate::{LogStore, StoreOptions};

struct Stores;

impl StoreBuilder<RaftTypes, LogStore, StateMachine, TempDir> for Stores {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<RaftTypes>> {
        let dir = tempfile::tempdir().unwrap();
        let incarnation = ClusterIncarnation::FOUNDED;
        let options =
            StoreOptions { cluster: Uuid::nil(), node_id: 0, name: "n0".into(), incarnation };
        let store = LogStore::open(dir.path(), &options).unwrap();
        let (machine, _) = StateMachine::open(dir.path()).unwrap();
        Ok((dir, store, machine))
    }
}

#[test]
fn store_and_state_machine_pass_the_suite_of_openraft() {
    // The suite brings a runtime of its own for each case.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(Stores)).unwrap();
}

fn id(index: u64) -> LogIdOf<RaftTypes> {
    serde_json::from_value(serde_json::json!({
        "leader_id": { "term": 1, "node_id": 1 }, "index": index
    }))
    .unwrap()
}

fn entry(index: u64, command: &Command) -> EntryOf<RaftTypes> {
    EntryOf::<RaftTypes>::new(id(index), EntryPayload::Normal(LogCommand(encode_command(command))))
}

fn membership(index: u64) -> EntryOf<RaftTypes> {
    let membership = Membership::new_with_defaults(vec![[1, 2, 3].into()], []);
    EntryOf::<RaftTypes>::new(id(index), EntryPayload::Membership(membership))
}

fn found() -> Command {
    let member = |n: u128, kind| Member {
        name: format!("n{n}").parse().unwrap(),
        site: format!("s{n}").parse().unwrap(),
        kind,
        address: format!("n{n}:7401"),
        incarnation: Incarnation(Uuid::from_u128(n)),
    };
    Command::Found {
        cluster: ClusterId(Uuid::from_u128(7)),
        members: vec![
            (NodeId(1), member(1, NodeKind::Data)),
            (NodeId(2), member(2, NodeKind::Data)),
            (NodeId(3), member(3, NodeKind::Witness)),
        ],
        config: ClusterConfig { rpo: Duration::from_secs(9), ..ClusterConfig::default() },
        initial_active: NodeId(1),
    }
}

async fn apply(
    machine: &mut StateMachine,
    entries: impl IntoIterator<Item = EntryOf<RaftTypes>>,
) -> io::Result<()> {
    let items: Vec<_> = entries.into_iter().map(|entry| Ok((entry, None))).collect();
    machine.apply(stream::iter(items)).await
}

async fn founded(dir: &Path) -> (StateMachine, mpsc::UnboundedReceiver<Applied>) {
    let (mut machine, steps) = StateMachine::open(dir).unwrap();
    apply(&mut machine, [membership(0), entry(1, &found()), entry(2, &found())]).await.unwrap();
    (machine, steps)
}

#[tokio::test]
async fn every_entry_is_published_in_order_with_what_became_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, mut steps) = founded(dir.path()).await;
    let (first, second, third) =
        (steps.try_recv().unwrap(), steps.try_recv().unwrap(), steps.try_recv().unwrap());
    assert_eq!((first.index, first.command, first.outcome), (0, None, None));
    assert_eq!((second.index, second.command), (1, Some(found())));
    assert_eq!(second.outcome, Some(Outcome::ACCEPTED));
    assert_eq!(second.state.members.len(), 3);
    assert_eq!(third.outcome, Some(Outcome::Rejected(Rejection::AlreadyFounded)));
    assert_eq!(*machine.state().borrow().as_ref(), *third.state);
    assert!(steps.try_recv().is_err());
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_is_not_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, _steps) = founded(dir.path()).await;
    // Field 15 of `Command` is what a newer program might add.
    let newer = EntryOf::<RaftTypes>::new(
        id(3),
        EntryPayload::Normal(LogCommand([encode_command(&found()), vec![0x78, 1]].concat())),
    );
    let error = apply(&mut machine, [newer, entry(4, &found())]).await.unwrap_err();
    assert!(error.to_string().contains("apply log entry 3"), "{error}");
    assert_eq!(machine.applied_state().await.unwrap().0, Some(id(2)));
}

#[tokio::test]
async fn a_snapshot_brings_state_and_membership_back_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, _steps) = founded(dir.path()).await;
    let built = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let before = (machine.applied_state().await.unwrap(), Arc::clone(&machine.state));
    drop(machine);

    let (mut machine, mut steps) = StateMachine::open(dir.path()).unwrap();
    assert_eq!((machine.applied_state().await.unwrap(), Arc::clone(&machine.state)), before);
    assert_eq!(machine.get_current_snapshot().await.unwrap().unwrap().meta, built.meta);
    let step = steps.try_recv().unwrap();
    assert_eq!((step.index, step.command, step.outcome), (2, None, None));
    assert_eq!(step.state, before.1);
}

#[tokio::test]
async fn an_installed_snapshot_replaces_the_state_and_is_durable() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut ahead, _steps) = founded(from.path()).await;
    let snapshot = ahead.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let (mut behind, mut steps) = StateMachine::open(to.path()).unwrap();
    behind.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    assert_eq!(behind.state, ahead.state);
    let step = steps.try_recv().unwrap();
    assert_eq!((step.index, step.command, step.outcome), (2, None, None));
    assert_eq!(step.state, ahead.state);
    drop(behind);
    assert_eq!(StateMachine::open(to.path()).unwrap().0.state, ahead.state);
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_read_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, _steps) = founded(dir.path()).await;
    let before = Arc::clone(&machine.state);
    let meta = SnapshotMetaOf::<RaftTypes> { last_log_id: Some(id(9)), ..Default::default() };
    let newer = [encode_state(&before), vec![0x98, 0x06, 1]].concat();
    assert!(machine.install_snapshot(&meta, Cursor::new(newer)).await.is_err());
    assert_eq!(machine.state, before);
    assert_eq!(machine.applied_state().await.unwrap().0, Some(id(2)));
    assert!(machine.get_current_snapshot().await.unwrap().is_none());
}

#[tokio::test]
async fn an_older_snapshot_does_not_replace_a_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, _steps) = founded(dir.path()).await;
    let mut old = machine.get_snapshot_builder().await;
    apply(&mut machine, [entry(3, &found())]).await.unwrap();
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    old.build_snapshot().await.unwrap();
    let current = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.meta.last_log_id, Some(id(3)));
    drop(machine);
    let (mut machine, _steps) = StateMachine::open(dir.path()).unwrap();
    assert_eq!(machine.applied_state().await.unwrap().0, Some(id(3)));
}

#[tokio::test]
async fn a_snapshot_with_one_flipped_bit_is_refused_wherever_the_bit_is() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, _steps) = founded(dir.path()).await;
    machine.builder().build_snapshot().await.unwrap();
    let path = dir.path().join("snapshot");
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(&path, damaged).unwrap();
        let opened = StateMachine::open(dir.path()).map(|_| ());
        assert!(
            matches!(opened, Err(StateMachineError::Damaged { .. })),
            "a flipped bit in byte {at} gave {opened:?}"
        );
    }
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(StateMachine::open(dir.path()).is_err());
}

#[tokio::test]
async fn a_snapshot_that_was_cut_off_while_being_written_leaves_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, _steps) = founded(dir.path()).await;
    machine.builder().build_snapshot().await.unwrap();
    std::fs::write(dir.path().join("snapshot.new"), b"USDY").unwrap();
    let (again, _steps) = StateMachine::open(dir.path()).unwrap();
    assert_eq!(again.state, machine.state);
}

#[tokio::test]
async fn a_lost_snapshot_is_noticed_when_the_log_below_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let incarnation = ClusterIncarnation::FOUNDED;
    let options = StoreOptions { cluster: Uuid::nil(), node_id: 1, name: "n1".into(), incarnation };
    let mut store = LogStore::open(dir.path(), &options).unwrap();
    store.purge(id(2)).await.unwrap();
    let purged = store.get_log_state().await.unwrap().last_purged_log_id;
    let (machine, _steps) = StateMachine::open(dir.path()).unwrap();
    assert!(matches!(
        machine.check_log(purged.as_ref()),
        Err(StateMachineError::Gap { purged: 2, snapshot: None })
    ));
    let (whole, _steps) = founded(dir.path()).await;
    whole.check_log(purged.as_ref()).unwrap();
}

#[tokio::test]
async fn the_same_log_gives_the_same_bytes_however_it_was_cut() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (straight, _steps) = founded(one.path()).await;
    let (mut machine, _steps) = StateMachine::open(two.path()).unwrap();
    for entry in [membership(0), entry(1, &found())] {
        apply(&mut machine, [entry]).await.unwrap();
    }
    machine.builder().build_snapshot().await.unwrap();
    let (mut restarted, _steps) = StateMachine::open(two.path()).unwrap();
    apply(&mut restarted, [entry(2, &found())]).await.unwrap();
    assert_eq!(encode_state(&restarted.state), encode_state(&straight.state));
    assert_ne!(straight.state.members, BTreeMap::new());
}
