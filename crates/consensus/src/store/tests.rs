//! Properties of the durable log that openraft and safety rest on.

use openraft::EntryPayload;
use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::entry::RaftEntry;

use super::*;
use crate::LogCommand;

fn options(node_id: u64) -> StoreOptions {
    let incarnation = ClusterIncarnation::FOUNDED;
    StoreOptions { cluster: Uuid::nil(), node_id, name: format!("n{node_id}"), incarnation }
}

fn id(index: u64) -> LogIdOf<RaftTypes> {
    serde_json::from_value(serde_json::json!({
        "leader_id": { "term": 1, "node_id": 1 }, "index": index
    }))
    .unwrap()
}

fn entry(index: u64) -> EntryOf<RaftTypes> {
    EntryOf::<RaftTypes>::new(id(index), EntryPayload::Normal(LogCommand(vec![0, 255, 7])))
}

async fn fill(store: &mut LogStore, last: u64) {
    store.save_vote(&VoteOf::<RaftTypes>::new(1, 1)).await.unwrap();
    store.append((0..=last).map(entry), IOFlushed::noop()).await.unwrap();
}

#[tokio::test]
async fn a_copy_of_the_file_taken_while_open_holds_all_that_was_reported_durable() {
    let (live, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut store = LogStore::open(live.path(), &options(1)).unwrap();
    assert!(store.was_empty());
    fill(&mut store, 9).await;
    store.truncate_after(Some(id(7))).await.unwrap();
    store.purge(id(2)).await.unwrap();
    std::fs::copy(live.path().join("raft.redb"), copy.path().join("raft.redb")).unwrap();

    let mut after = LogStore::open(copy.path(), &options(1)).unwrap();
    assert!(!after.was_empty());
    assert_eq!(after.read_vote().await.unwrap(), Some(VoteOf::<RaftTypes>::new(1, 1)));
    let state = after.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(2)), Some(id(7))));
    assert_eq!(
        after.try_get_log_entries(..).await.unwrap(),
        (3..=7).map(entry).collect::<Vec<_>>()
    );
    assert_eq!(after.identity().incarnation, store.identity().incarnation);
    assert_eq!(after.identity().process_start, 2);
}

#[tokio::test]
async fn a_log_without_a_vote_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = LogStore::open(dir.path(), &options(1)).unwrap();
    fill(&mut store, 1).await;
    let tx = store.db.begin_write().unwrap();
    tx.open_table(META).unwrap().remove(VOTE).unwrap();
    tx.commit().unwrap();
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join("raft.redb"), copy.path().join("raft.redb")).unwrap();
    assert!(matches!(LogStore::open(copy.path(), &options(1)), Err(StoreError::Inconsistent(_))));
}

#[tokio::test]
async fn a_second_daemon_and_another_node_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _store = LogStore::open(dir.path(), &options(1)).unwrap();
    assert!(matches!(LogStore::open(dir.path(), &options(1)), Err(StoreError::Open { .. })));
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join("raft.redb"), copy.path().join("raft.redb")).unwrap();
    assert!(matches!(LogStore::open(copy.path(), &options(2)), Err(StoreError::Identity { .. })));
}

#[tokio::test]
async fn a_gap_in_the_log_halts_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = LogStore::open(dir.path(), &options(1)).unwrap();
    fill(&mut store, 1).await;
    assert!(store.append([entry(5)], IOFlushed::noop()).await.is_err());
    assert!(
        store.save_vote(&VoteOf::<RaftTypes>::new(2, 1)).await.is_err(),
        "a halted store takes nothing"
    );
    assert_eq!(store.try_get_log_entries(..).await.unwrap().len(), 2);
}

// What openraft does after a snapshot was installed: purge up to it, then append (a purge waits at
// the head of its command queue until the snapshot is durable, and appends wait behind it).
#[tokio::test]
async fn a_lagging_log_goes_on_behind_the_snapshot_that_was_installed() {
    let (live, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut store = LogStore::open(live.path(), &options(1)).unwrap();
    fill(&mut store, 3).await;
    store.purge(id(100)).await.unwrap();
    let state = store.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(100)), Some(id(100))));
    store.append([entry(101), entry(102)], IOFlushed::noop()).await.unwrap();
    std::fs::copy(live.path().join("raft.redb"), copy.path().join("raft.redb")).unwrap();
    let mut after = LogStore::open(copy.path(), &options(1)).unwrap();
    let entries = after.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries, [entry(101), entry(102)]);
}

#[tokio::test]
async fn a_gap_behind_an_installed_snapshot_halts_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = LogStore::open(dir.path(), &options(1)).unwrap();
    fill(&mut store, 3).await;
    store.purge(id(100)).await.unwrap();
    assert!(store.append([entry(102)], IOFlushed::noop()).await.is_err());
}

#[test]
fn a_write_that_is_under_way_is_owed_until_it_is_done() {
    let under_way = UnderWay::default();
    assert_eq!(under_way.owed_for(), Duration::ZERO);
    let began = std::time::Instant::now().checked_sub(Duration::from_secs(9));
    under_way.note(Some(began.expect("the machine runs longer")));
    assert!(under_way.owed_for() >= Duration::from_secs(9));
    under_way.note(None);
    assert_eq!(under_way.owed_for(), Duration::ZERO);
}

#[tokio::test]
async fn a_bit_that_flips_after_an_orderly_end_is_found_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = LogStore::open(dir.path(), &options(1)).unwrap();
    fill(&mut store, 3).await;
    drop(store);
    let file = dir.path().join("raft.redb");
    // The store's thread closes it, and after it whoever opened it here.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while Database::create(&file).map(drop).is_err() {
        assert!(std::time::Instant::now() < deadline, "the store is never closed");
        tokio::task::yield_now().await;
    }
    let mut bytes = std::fs::read(&file).unwrap();
    let words = b"{\"term\":1,";
    let at = bytes.windows(words.len()).enumerate().filter(|(_, window)| *window == words);
    let at: Vec<usize> = at.map(|(at, _)| at).collect();
    assert!(!at.is_empty(), "no vote is stored as this test knows it");
    for at in at {
        // Another term, which could be read.
        bytes[at + 8] = b'2';
    }
    std::fs::write(&file, bytes).unwrap();
    let opened = LogStore::open(dir.path(), &options(1)).map(drop);
    assert!(matches!(opened, Err(StoreError::Open { .. })), "{opened:?}");
}
