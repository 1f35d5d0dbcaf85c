//! The service: viewers may look at ranges and files, operators may have everything read.
//!
//! A verification has a thread of its own, one at a time, below a rate; its channel is bounded, and it
//! ends when the caller has hung up. It never touches the writer's lock.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use understudy_proto::v1;
use understudy_proto::v1::verify_wal_response::Step;
use understudy_proto::v1::wal_files_server::WalFiles;
use understudy_shipping::journal::Journal;
use understudy_shipping::journal::inspect::{Place, VerifyOptions};
use understudy_transport::peer;
use understudy_types::NodeName;

use super::places::places;
use super::{RATE_MAX, RATE_MIN, list, verify_places, wire};
use crate::clock::wall_unix_us;
use crate::hands::{Hands, chain};
use crate::metrics;
use crate::observer::LocalSeen;

/// Callers that are told of ranges or files at the same time.
const READERS_MAX: usize = 4;
/// Files in one message.
const FILES_A_MESSAGE: usize = 500;
/// Messages that wait for a slow caller.
const MESSAGES_QUEUED: usize = 8;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Clone)]
pub(crate) struct WalFilesService {
    node: NodeName,
    /// `None` at a witness.
    journal: Option<Journal>,
    /// `None` where there is no PostgreSQL.
    hands: Option<Hands>,
    seen: watch::Receiver<LocalSeen>,
    readers: Arc<Semaphore>,
    verifying: Arc<Semaphore>,
}

impl WalFilesService {
    /// A service over what this node holds.
    pub(crate) fn new(
        node: NodeName,
        journal: Option<Journal>,
        hands: Option<Hands>,
        seen: watch::Receiver<LocalSeen>,
    ) -> WalFilesService {
        let readers = Arc::new(Semaphore::new(READERS_MAX));
        let verifying = Arc::new(Semaphore::new(1));
        WalFilesService { node, journal, hands, seen, readers, verifying }
    }

    // A Status is what tonic's handlers must return; boxing it here would only be undone there.
    #[allow(clippy::result_large_err)]
    fn admit(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.readers.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{READERS_MAX} callers look at WAL files already"))
        })
    }

    async fn places(&self) -> (Vec<Place>, Vec<String>) {
        let seen = self.seen.borrow().clone();
        places(self.journal.as_ref(), self.hands.as_ref(), &seen).await
    }
}

#[tonic::async_trait]
impl WalFiles for WalFilesService {
    async fn get_wal_status(
        &self,
        _: Request<v1::GetWalStatusRequest>,
    ) -> Result<Response<v1::GetWalStatusResponse>, Status> {
        let permit = self.admit()?;
        let (places, mut troubles) = self.places().await;
        let looked = tokio::task::spawn_blocking(move || {
            let looked = places.iter().map(|place| (place.kind, wire::place(place))).collect();
            drop(permit);
            looked
        });
        let looked: Vec<_> = looked.await.map_err(|error| Status::internal(error.to_string()))?;
        let mut told = Vec::new();
        for (kind, place) in looked {
            match place {
                Ok(place) => told.push(place),
                Err(error) => troubles.push(format!("{}: {}", kind.as_str(), chain(&error))),
            }
        }
        let node = self.node.to_string();
        Ok(Response::new(v1::GetWalStatusResponse { node, places: told, troubles }))
    }

    type ListWalFilesStream = Answers<v1::ListWalFilesResponse>;

    async fn list_wal_files(
        &self,
        request: Request<v1::ListWalFilesRequest>,
    ) -> Result<Response<Self::ListWalFilesStream>, Status> {
        let request = request.into_inner();
        let permit = self.admit()?;
        let (places, troubles) = self.places().await;
        let (sender, messages) = mpsc::channel(MESSAGES_QUEUED);
        // It ends with the files, or when the caller has hung up.
        tokio::task::spawn_blocking(move || {
            tell_files(&places, troubles, &request, &sender);
            drop(permit);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    type VerifyWalStream = Answers<v1::VerifyWalResponse>;

    async fn verify_wal(
        &self,
        request: Request<v1::VerifyWalRequest>,
    ) -> Result<Response<Self::VerifyWalStream>, Status> {
        let caller = peer(&request)?.identity.to_string();
        let options = checked(&request.into_inner())?;
        if self.journal.is_none() {
            return Err(Status::failed_precondition("a witness holds no WAL"));
        }
        let permit = self.verifying.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(
                "another verification runs at this node; wait for its end, or have its caller hang up",
            )
        })?;
        let (places, troubles) = self.places().await;
        let (sender, messages) = mpsc::channel(MESSAGES_QUEUED);
        let work = move || {
            let rate = options.bytes_per_second;
            tracing::info!(caller, bytes_per_second = rate, "verification of WAL begins");
            verify_all(&places, troubles, &options, &sender);
            drop(permit);
        };
        std::thread::Builder::new()
            .name("wal-verify".to_owned())
            .spawn(work)
            .map_err(|error| Status::internal(format!("start a thread: {error}")))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

fn tell_files(
    places: &[Place],
    troubles: Vec<String>,
    request: &v1::ListWalFilesRequest,
    sender: &mpsc::Sender<Result<v1::ListWalFilesResponse, Status>>,
) {
    let send = |place: String, files: Vec<v1::WalFile>, troubles: Vec<String>| {
        sender.blocking_send(Ok(v1::ListWalFilesResponse { place, files, troubles })).is_ok()
    };
    if !troubles.is_empty() && !send(String::new(), Vec::new(), troubles) {
        return;
    }
    for place in places {
        let kind = place.kind.as_str();
        let sent = match list(place, request) {
            Ok(files) => {
                let mut messages = files.chunks(FILES_A_MESSAGE).map(<[_]>::to_vec);
                messages.all(|files| send(kind.to_owned(), files, Vec::new()))
            }
            Err(error) => {
                let trouble = format!("{kind}: {}", chain(&error));
                send(kind.to_owned(), Vec::new(), vec![trouble])
            }
        };
        if !sent {
            return;
        }
    }
}

fn verify_all(
    places: &[Place],
    troubles: Vec<String>,
    options: &VerifyOptions,
    sender: &mpsc::Sender<Result<v1::VerifyWalResponse, Status>>,
) {
    let mut first_file = None;
    let mut tell = |message: v1::VerifyWalResponse| {
        if let Some(Step::Finding(finding)) = &message.step {
            first_file.get_or_insert_with(|| finding.file.clone());
        }
        match sender.blocking_send(Ok(message)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    let untold = troubles.len() as u64;
    for trouble in troubles {
        let step = Some(Step::Trouble(trouble));
        if tell(v1::VerifyWalResponse { place: String::new(), step }).is_break() {
            return;
        }
    }
    let Some(mut verified) = verify_places(places, options, &mut tell) else {
        tracing::info!("verification of WAL was broken off by its caller");
        return;
    };
    verified.findings_count += untold;
    metrics::set_wal_verified(wall_unix_us(), &verified);
    let (bytes, findings, took) = (verified.read_bytes, verified.findings_count, verified.took);
    match first_file {
        None => tracing::info!(bytes, findings, ?took, "verification of WAL has ended"),
        Some(first_file) => tracing::error!(
            bytes,
            findings,
            first_file,
            ?took,
            "verification has found WAL that is not sound; `understudy wal verify` says what to do"
        ),
    }
}

#[allow(clippy::result_large_err)]
fn checked(request: &v1::VerifyWalRequest) -> Result<VerifyOptions, Status> {
    let rate = request.bytes_per_second;
    if rate != 0 && !(RATE_MIN..=RATE_MAX).contains(&rate) {
        let words = format!("bytes_per_second = {rate}: expected {RATE_MIN} to {RATE_MAX}, or 0");
        return Err(Status::invalid_argument(words));
    }
    if let (Some(from), Some(to)) = (request.from_lsn, request.to_lsn)
        && from >= to
    {
        let (from, to) = (understudy_types::Lsn(from), understudy_types::Lsn(to));
        let words = format!("to_lsn = {to}: expected a position after from_lsn, which is {from}");
        return Err(Status::invalid_argument(words));
    }
    Ok(wire::options(request))
}
