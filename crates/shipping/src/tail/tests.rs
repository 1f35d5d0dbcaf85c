//! A tail over a real connection: fetched, or refused for each reason.

use std::pin::Pin;

use futures::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Streaming};
use understudy_proto::v1::wal_server::{Wal, WalServer};

use super::*;
use crate::journal::tests::postgres::{RealWal, real_wal, size};
use crate::journal::{JournalOptions, JournalPositions};

const T1: Timeline = Timeline::FIRST;
const OLD: Epoch = Epoch { incarnation: 0, number: 1 };
const NEW: Epoch = Epoch { incarnation: 0, number: 2 };

/// The other node, as far as a candidate asks it.
struct Other(Journal);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Wal for Other {
    type StreamStream = Answers<v1::FromSource>;
    type TunnelStream = Answers<v1::TunnelChunk>;
    type FetchTailStream = Answers<v1::Frame>;

    async fn stream(
        &self,
        _: Request<Streaming<v1::ToSource>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        Err(Status::unimplemented("a passive has no source"))
    }

    async fn tunnel(
        &self,
        _: Request<Streaming<v1::TunnelChunk>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn seal(
        &self,
        request: Request<v1::SealRequest>,
    ) -> Result<Response<v1::SealResponse>, Status> {
        let epoch = request.into_inner().epoch.map(Epoch::from).unwrap();
        let journal = self.0.clone();
        let sealed = blocking(move || journal.seal(epoch)).await;
        let sealed = sealed.map_err(|error| Status::unavailable(error.to_string()))?;
        let system_id = self.0.identity().map(|(system_id, _)| system_id);
        let sealed = sealed.zip(system_id).map(|(sealed, system_id)| v1::SealedJournal {
            system_id: system_id.0,
            timeline: sealed.timeline.get(),
            durable_lsn: sealed.durable_lsn.0,
            begin_lsn: wal_begin(&self.0).0,
        });
        Ok(Response::new(v1::SealResponse { sealed }))
    }

    async fn fetch_tail(
        &self,
        request: Request<v1::FetchTailRequest>,
    ) -> Result<Response<Self::FetchTailStream>, Status> {
        Ok(Response::new(Box::pin(serve(self.0.clone(), request.into_inner()).await?)))
    }
}

/// A channel to a node with this journal.
async fn other(journal: &Journal) -> Channel {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = Server::builder()
        .add_service(WalServer::new(Other(journal.clone())))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(served);
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

/// A journal of the old epoch with the first `bytes` of this WAL.
async fn journal_with(dir: &std::path::Path, wal: &RealWal, bytes: &[u8]) -> Journal {
    let journal = Journal::open(dir, JournalOptions::default()).unwrap();
    let admission = Admission {
        serial: PermitSerial(1),
        epoch: OLD,
        promotion: PromotionId(uuid::Uuid::nil()),
        timeline: T1,
    };
    journal.begin(wal.system_id, size(), T1, Vec::new(), wal.begin_lsn).unwrap();
    journal.admit(admission).unwrap();
    append(&journal, wal.begin_lsn, bytes).await.unwrap();
    journal
}

async fn append(journal: &Journal, from: Lsn, bytes: &[u8]) -> Result<(), AppendError> {
    for (index, chunk) in bytes.chunks(100_000).enumerate() {
        let lsn = from + (index * 100_000) as u64;
        journal.append(OLD, T1, lsn, Bytes::copy_from_slice(chunk)).await?;
    }
    Ok(())
}

/// Everything of the first timeline, and a part of it.
fn whole_and_part(wal: &RealWal) -> (Vec<u8>, usize) {
    let mut whole = wal.bytes(T1);
    whole.truncate(usize::try_from(wal.fork_lsn.bytes_since(wal.begin_lsn)).unwrap());
    // Somewhere in the middle of a record.
    let part = whole.len() / 2 + 13;
    (whole, part)
}

fn end_of(journal: &Journal) -> Lsn {
    let positions: Option<JournalPositions> = journal.positions().borrow().clone();
    positions.unwrap().durable_lsn
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_gets_what_another_has_byte_for_byte_and_is_sealed_again() {
    let wal = &real_wal();
    let (whole, part) = whole_and_part(wal);
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let ahead = journal_with(dirs[0].path(), wal, &whole).await;
    let behind = journal_with(dirs[1].path(), wal, &whole[..part]).await;
    let channel = other(&ahead).await;

    let seal = seal_at(channel.clone(), NEW).await.unwrap().unwrap();
    assert_eq!(seal.durable_lsn, wal.fork_lsn);
    let late = append(&ahead, wal.fork_lsn, &[0; 8]).await;
    assert!(matches!(late, Err(AppendError::Refused { .. })), "{late:?}");

    let own = behind.clone();
    let before = blocking(move || own.seal(NEW)).await.unwrap().unwrap();
    assert!(before.durable_lsn < seal.durable_lsn);
    let sealed = fetch(channel, &behind, NEW, seal).await.unwrap().unwrap();
    assert_eq!((sealed.epoch, sealed.durable_lsn), (NEW, wal.fork_lsn));
    let own = behind.clone();
    let equal = move || {
        let of = |journal: &Journal| digest(journal, T1, wal_begin(journal), sealed.durable_lsn);
        of(&own).unwrap() == of(&ahead).unwrap()
    };
    assert!(blocking(equal).await);
    // The old epoch is still refused, after a restart too.
    drop(behind);
    let again = Journal::open(dirs[1].path(), JournalOptions::default()).unwrap();
    assert_eq!((again.max_epoch(), end_of(&again)), (NEW, wal.fork_lsn));
    assert_eq!(again.sealed().map(|sealed| sealed.durable_lsn), Some(wal.fork_lsn));
}

fn wal_begin(journal: &Journal) -> Lsn {
    let positions = journal.positions().borrow().clone();
    positions.unwrap().begin_lsn
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_fetched_from_who_is_not_sealed_or_has_other_wal() {
    let (mine, theirs) = (&real_wal(), &real_wal());
    let (whole, part) = whole_and_part(mine);
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let behind = journal_with(dirs[0].path(), mine, &whole[..part]).await;
    let ahead = journal_with(dirs[1].path(), mine, &whole).await;
    let stranger = journal_with(dirs[2].path(), theirs, &whole_and_part(theirs).0).await;
    let own = behind.clone();
    let before = blocking(move || own.seal(NEW)).await.unwrap().unwrap().durable_lsn;

    let (system_id, durable_lsn) = (mine.system_id, mine.fork_lsn);
    let open = PeerSeal { system_id, timeline: T1, durable_lsn, begin_lsn: Lsn::ZERO };
    let refused = fetch(other(&ahead).await, &behind, NEW, open).await.unwrap_err();
    assert!(
        matches!(&refused, TailError::Call(s) if s.message().contains("not sealed")),
        "{refused}"
    );

    let channel = other(&stranger).await;
    let seal = seal_at(channel.clone(), NEW).await.unwrap().unwrap();
    let refused = fetch(channel.clone(), &behind, NEW, seal).await.unwrap_err();
    assert!(matches!(refused, TailError::Wrong(_)), "{refused}");
    // The same system and timeline, and another last record.
    let tail = behind.tail().unwrap().unwrap();
    let request = v1::FetchTailRequest {
        epoch: Some(NEW.into()),
        timeline: T1.get(),
        tail_lsn: tail.tail_lsn.0,
        tail_sha256: vec![0; 32],
        from_lsn: tail.durable_lsn.0,
        to_lsn: seal.durable_lsn.0,
    };
    let refused = serve(stranger, request).await.map(|_| ()).unwrap_err();
    assert!(refused.message().contains("diverged"), "{refused}");
    assert_eq!(end_of(&behind), before);
    assert_eq!(behind.sealed().map(|sealed| sealed.durable_lsn), Some(before));
}
