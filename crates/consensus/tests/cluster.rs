//! Three nodes found a cluster, lose a leader, a network and a disk, and still agree.

// In a test a panic is the report.
#![allow(clippy::unwrap_used)]

mod common;
mod steering;

use std::time::{Duration, Instant};

use common::*;
use futures::StreamExt;
use understudy_consensus::*;
use understudy_proto::v1;
use understudy_proto::v1::peer_client::PeerClient;
use understudy_types::{NodeId, SiteName};
use uuid::Uuid;

const TIMEOUT: Duration = Duration::from_secs(5);

async fn same_state(nodes: &[Node], index: u64) {
    let mut states = Vec::new();
    for node in nodes {
        let read = node.consensus.read_index(TIMEOUT).await.unwrap();
        assert!(read >= index, "node {} read at {read}, before {index}", node.id);
        states.push(node.consensus.state().borrow().clone());
    }
    assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "{states:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founded_cluster_goes_on_when_its_leader_is_lost() {
    let lab = Lab::new();
    let mut nodes = lab.cluster().await;
    let at = leader(&nodes).await;
    assert_eq!(nodes[0].consensus.state().borrow().members.len(), 3);
    let incarnations: Vec<_> = nodes.iter().map(|n| n.consensus.incarnation()).collect();
    for (member, incarnation) in
        nodes[at].consensus.state().borrow().members.values().zip(incarnations)
    {
        assert_eq!(member.incarnation, incarnation);
    }

    let mut latencies = Vec::new();
    for round in 0..200 {
        let began = Instant::now();
        let (_, outcome) = nodes[at].consensus.propose(mark(round), TIMEOUT).await.unwrap();
        latencies.push(began.elapsed());
        assert!(outcome.is_accepted(), "{outcome:?}");
    }
    latencies.sort();
    println!(
        "commit: p50 {:?}, p99 {:?}, max {:?}",
        latencies[100], latencies[198], latencies[199]
    );

    let follower = (at + 1) % 3;
    let (index, outcome) =
        nodes[follower].consensus.propose(mark("by a follower"), TIMEOUT).await.unwrap();
    assert!(outcome.is_accepted(), "{outcome:?}");
    same_state(&nodes, index).await;

    let lost = nodes.remove(at);
    let lost_id = lost.id.0;
    lost.stop().await;
    let began = Instant::now();
    // The survivors may still believe in the lost leader, so an attempt may end in the unknown.
    loop {
        match nodes[0].consensus.propose(mark("after the loss"), TIMEOUT).await {
            Ok((_, outcome)) => break assert!(outcome.is_accepted(), "{outcome:?}"),
            Err(ProposeError::Unknown(why)) => println!("unknown: {why}"),
            Err(error) => panic!("{error}"),
        }
    }
    println!("commit again {:?} after the leader was gone", began.elapsed());

    nodes.push(lab.start(lost_id).await);
    let (index, _) = nodes[0].consensus.propose(mark("together again"), TIMEOUT).await.unwrap();
    same_state(&nodes, index).await;
    assert_eq!(nodes[2].consensus.process_start().0, 2);
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applied_entries_come_in_log_order_and_a_restart_from_disk_forgets_nothing() {
    let lab = Lab::new();
    let mut nodes = lab.cluster().await;
    let mut last = 0;
    for round in 0..20 {
        last = nodes[1].consensus.propose(mark(round), TIMEOUT).await.unwrap().0;
    }
    same_state(&nodes, last).await;
    for node in &mut nodes {
        let mut previous = 0;
        let mut commands = 0;
        while previous < last {
            let applied = node.applied.recv().await.unwrap();
            assert!(applied.index > previous || applied.index == 0, "{applied:?}");
            previous = applied.index;
            commands += u64::from(applied.command.is_some());
        }
        assert!(commands >= 21, "Found and 20 marks, but only {commands} commands");
    }
    let before = nodes[0].consensus.state().borrow().clone();
    for node in nodes.drain(..) {
        node.stop().await;
    }
    for id in 1..=3 {
        nodes.push(lab.start(id).await);
    }
    for node in &nodes {
        node.founded().await;
    }
    same_state(&nodes, last).await;
    assert_eq!(before, *nodes[0].consensus.state().borrow());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_knows_it_and_another_one_takes_over() {
    let lab = Lab::new();
    let nodes = lab.cluster().await;
    let at = leader(&nodes).await;
    let old_term = nodes[at].consensus.leadership().borrow().term;
    lab.cut(nodes[at].id);
    let began = Instant::now();
    let mut leadership = nodes[at].consensus.leadership();
    wait("the old leader's doubt", &mut leadership, |l| !l.is_leader && !l.majority).await;
    let doubted = began.elapsed();
    assert!(doubted < Duration::from_secs(2), "it took {doubted:?}");
    let others = [&nodes[(at + 1) % 3], &nodes[(at + 2) % 3]];
    let (_, outcome) = others[0].consensus.propose(mark("without it"), PATIENCE).await.unwrap();
    assert!(outcome.is_accepted());
    println!("doubt after {doubted:?}, commit without it after {:?}", began.elapsed());
    let error = nodes[at].consensus.propose(mark("alone"), Duration::from_millis(500)).await;
    assert!(error.is_err(), "{error:?}");
    assert!(nodes[at].consensus.read_index(Duration::from_millis(500)).await.is_err());

    lab.heal(nodes[at].id);
    wait("its return", &mut leadership, |l| l.majority && l.term > old_term).await;
    let (index, _) = nodes[at].consensus.propose(mark("healed"), PATIENCE).await.unwrap();
    same_state(&nodes, index).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_storage_is_refused_and_does_not_count() {
    let lab = Lab::new();
    let mut nodes = lab.cluster().await;
    nodes.pop().unwrap().stop().await;
    std::fs::remove_dir_all(lab.data_dir(3)).unwrap();
    let wiped = lab.start(3).await;
    let status = wait("the refusal", &mut wiped.consensus.founding(), |status| {
        matches!(status, FoundingStatus::Refused { .. })
    })
    .await;
    println!("{status:?}");
    let (index, _) = nodes[0].consensus.propose(mark("without it"), TIMEOUT).await.unwrap();
    same_state(&nodes, index).await;
    assert_eq!(wiped.consensus.state().borrow().identity, None);

    // One honest node and a wiped one are no majority.
    nodes.pop().unwrap().stop().await;
    wait("the loss of the majority", &mut nodes[0].consensus.leadership(), |l| !l.majority).await;
    let answer = nodes[0].consensus.propose(mark("no majority"), Duration::from_secs(1)).await;
    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(wiped.consensus.state().borrow().identity, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_put_back_on_an_older_copy_is_refused_and_ends() {
    let lab = Lab::new();
    let mut nodes = lab.cluster().await;
    let file = lab.data_dir(3).join("raft.redb");
    let (older, newest) = (file.with_extension("older"), file.with_extension("newest"));
    nodes.pop().unwrap().stop().await;
    std::fs::copy(&file, &older).unwrap();

    nodes.push(lab.start(3).await);
    let (index, _) = nodes[0].consensus.propose(mark("not in the copy"), TIMEOUT).await.unwrap();
    same_state(&nodes, index).await;
    nodes.pop().unwrap().stop().await;
    std::fs::rename(&file, &newest).unwrap();
    std::fs::copy(&older, &file).unwrap();

    let put_back = lab.start(3).await;
    let ended = wait("its end", &mut put_back.consensus.fatal(), |fatal| fatal.is_some()).await;
    let why = ended.unwrap();
    assert!(why.contains("older copy"), "{why}");
    let (index, _) = nodes[0].consensus.propose(mark("without it"), TIMEOUT).await.unwrap();
    same_state(&nodes, index).await;
    assert!(!put_back.consensus.leadership().borrow().majority);
    put_back.stop().await;

    // It stays refused, also where nobody remembers: its storage does.
    let again = Consensus::start(lab.options(3)).await.err().unwrap();
    let ConsensusError::Store(StoreError::OlderCopy(_)) = again else { panic!("{again:?}") };
    // The others' memory survives their own restart.
    for node in nodes.drain(..) {
        node.stop().await;
    }
    std::fs::copy(&older, &file).unwrap();
    for id in 1..=2 {
        nodes.push(lab.start(id).await);
    }
    let put_back = lab.start(3).await;
    wait("its end", &mut put_back.consensus.fatal(), |fatal| fatal.is_some()).await;
    put_back.stop().await;

    std::fs::rename(&newest, &file).unwrap();
    nodes.push(lab.start(3).await);
    let (index, _) = nodes[2].consensus.propose(mark("together again"), PATIENCE).await.unwrap();
    same_state(&nodes, index).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lags_far_behind_catches_up_by_a_snapshot() {
    let lab = Lab::new();
    let mut nodes = lab.cluster().await;
    let seen = nodes[2].consensus.read_index(TIMEOUT).await.unwrap();
    nodes.pop().unwrap().stop().await;
    let at = leader(&nodes).await;
    let consensus = &nodes[at].consensus;
    let proposals = futures::stream::iter(0..5000).map(|n| consensus.propose(mark(n), TIMEOUT));
    let began = Instant::now();
    let last = proposals
        .buffer_unordered(64)
        .fold(0, async |last, proposed| proposed.unwrap().0.max(last))
        .await;
    println!("5000 commits, 64 at a time: {:?}", began.elapsed());
    // Purging waits until no append to the absent node is under way.
    until("purge of what it lacks", || consensus.log_range().purged > Some(seen)).await;
    let mut late = lab.start(3).await;
    assert!(late.consensus.read_index(PATIENCE).await.unwrap() >= last);
    let mut jumped = false;
    let mut previous = seen;
    while let Ok(applied) = late.applied.try_recv() {
        jumped |= applied.command.is_none() && applied.index > previous + 1000;
        previous = applied.index;
    }
    assert!(jumped, "it caught up without a snapshot");
    nodes.push(late);
    same_state(&nodes, last).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_for_another_node_or_in_another_name_is_refused() {
    let lab = Lab::new();
    let nodes = lab.cluster().await;
    let options = understudy_transport::ChannelOptions::consensus();
    let channel =
        understudy_transport::connect(&lab.address(1), &name(1), &lab.identity(2), &options)
            .unwrap();
    let mut client = PeerClient::new(channel);
    let honest = v1::RaftMessage {
        target: 1,
        from: 2,
        incarnation: nodes[1].consensus.incarnation().to_string(),
        payload: b"{}".to_vec(),
        past: Some(v1::StoragePast {
            starts: nodes[1]
                .consensus
                .identity()
                .starts
                .iter()
                .map(|start| v1::StorageStart {
                    process: start.process.as_bytes().to_vec(),
                    opened_at: start.opened_at,
                })
                .collect(),
            revision: 1,
        }),
        heard: None,
        others: Vec::new(),
    };
    let without_past = v1::RaftMessage { past: None, ..honest.clone() };
    let mut older_copy = honest.clone();
    older_copy.past.as_mut().unwrap().starts[0].process = Uuid::new_v4().as_bytes().to_vec();
    let wrong_target = v1::RaftMessage { target: 3, ..honest.clone() };
    let wrong_name = v1::RaftMessage { from: 3, ..honest.clone() };
    let wrong_storage =
        v1::RaftMessage { incarnation: Uuid::new_v4().to_string(), ..honest.clone() };
    for (message, code) in [
        (wrong_target, tonic::Code::FailedPrecondition),
        (wrong_name, tonic::Code::PermissionDenied),
        (wrong_storage, tonic::Code::AlreadyExists),
        (without_past, tonic::Code::InvalidArgument),
        (older_copy, tonic::Code::AlreadyExists),
        // Past the checks, the payload is looked at.
        (honest, tonic::Code::InvalidArgument),
    ] {
        for refused in [
            client.append_entries(message.clone()).await,
            client.vote(message.clone()).await,
            client.pre_vote(message.clone()).await,
            client.transfer_leader(message.clone()).await,
        ] {
            assert_eq!(refused.unwrap_err().code(), code);
        }
        let part = v1::SnapshotPart { header: Some(message), data: Vec::new() };
        let refused = client.install_snapshot(futures::stream::iter([part])).await;
        assert_eq!(refused.unwrap_err().code(), code);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_different_lists_or_without_everybody_found_nothing() {
    let lab = Lab::new();
    let first = lab.start(1).await;
    let mut other = lab.options(2);
    other.members[2].site = "elsewhere".parse::<SiteName>().unwrap();
    let second = lab.start_with(other).await;
    let status = wait("both reasons", &mut first.consensus.founding(), |status| match status {
        FoundingStatus::Waiting { r#for } => {
            r#for.iter().any(|(who, why)| *who == name(2) && why.contains("list differs"))
                && r#for.iter().any(|(who, _)| *who == name(3))
        }
        _ => false,
    })
    .await;
    println!("{status:?}");
    second.stop().await;
    let second = lab.start(2).await;
    wait(
        "one reason",
        &mut first.consensus.founding(),
        |status| matches!(status, FoundingStatus::Waiting { r#for } if r#for.len() == 1),
    )
    .await;
    assert_eq!(*first.consensus.leadership().borrow(), Leadership::default());
    let third = lab.start(3).await;
    for node in [&first, &second, &third] {
        node.founded().await;
        assert_eq!(node.consensus.state().borrow().identity.unwrap().initial_active, NodeId(1));
    }
}
