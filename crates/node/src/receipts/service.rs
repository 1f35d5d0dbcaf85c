//! The receipts over gRPC: a list in short, one receipt, its transactions in pieces of bounded size.
//!
//! It reads files of this node and changes nothing; viewers, operators and nodes may ask.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use understudy_proto::v1;
use understudy_proto::v1::get_receipt_response::Part;
use understudy_proto::v1::receipts_server::Receipts;
use understudy_proto::{FieldError, v1::GetReceiptResponse};
use understudy_types::Lsn;

use super::{ReceiptSummary, StoreError, Tail, list, load, transactions};

/// Callers that are told something at the same time.
const READERS_MAX: usize = 8;
/// Transactions in one message.
const LINES_A_MESSAGE: usize = 500;
/// Messages that wait for a slow caller.
const MESSAGES_QUEUED: usize = 2;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct ReceiptsService {
    divergent: PathBuf,
    readers: Arc<Semaphore>,
}

impl ReceiptsService {
    /// A service over the receipts below `divergent`, which need not be there.
    pub(crate) fn new(divergent: PathBuf) -> ReceiptsService {
        ReceiptsService { divergent, readers: Arc::new(Semaphore::new(READERS_MAX)) }
    }

    // A Status is what tonic's handlers must return; boxing it here would only be undone there.
    #[allow(clippy::result_large_err)]
    fn admit(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Status> {
        self.readers.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{READERS_MAX} callers read receipts already"))
        })
    }
}

#[tonic::async_trait]
impl Receipts for ReceiptsService {
    async fn list_receipts(
        &self,
        _: Request<v1::ListReceiptsRequest>,
    ) -> Result<Response<v1::ListReceiptsResponse>, Status> {
        let permit = self.admit()?;
        let divergent = self.divergent.clone();
        let listed = tokio::task::spawn_blocking(move || {
            let listed = list(&divergent);
            drop(permit);
            listed
        });
        let listed = listed.await.map_err(|error| Status::internal(error.to_string()))?;
        let listed = listed.map_err(|error| refusal(&error))?;
        let receipts = listed.iter().map(|receipt| (&receipt.summary()).into()).collect();
        Ok(Response::new(v1::ListReceiptsResponse { receipts }))
    }

    type GetReceiptStream = Pin<Box<dyn Stream<Item = Result<GetReceiptResponse, Status>> + Send>>;

    async fn get_receipt(
        &self,
        request: Request<v1::GetReceiptRequest>,
    ) -> Result<Response<Self::GetReceiptStream>, Status> {
        let request = request.into_inner();
        let permit = self.admit()?;
        let divergent = self.divergent.clone();
        let (sender, messages) = mpsc::channel(MESSAGES_QUEUED);
        // It ends with the file, or when the caller has hung up.
        tokio::task::spawn_blocking(move || {
            let told = tell(&divergent, &request, &sender);
            if let Err(error) = told {
                let _ = sender.blocking_send(Err(refusal(&error)));
            }
            drop(permit);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

type Sender = mpsc::Sender<Result<GetReceiptResponse, Status>>;

fn tell(
    divergent: &std::path::Path,
    request: &v1::GetReceiptRequest,
    sender: &Sender,
) -> Result<(), StoreError> {
    let receipt = load(divergent, &request.id)?;
    let json = serde_json::to_string(&receipt)
        .map_err(|error| StoreError::io("write", divergent)(error.into()))?;
    let send =
        |part: Part| sender.blocking_send(Ok(GetReceiptResponse { part: Some(part) })).is_ok();
    if !send(Part::ReceiptJson(json)) || !request.all_transactions {
        return Ok(());
    }
    let mut lines = Vec::new();
    for line in transactions(divergent, &receipt)? {
        lines.push(line?);
        if lines.len() == LINES_A_MESSAGE
            && !send(Part::Lines(v1::TransactionLines { json: std::mem::take(&mut lines) }))
        {
            return Ok(());
        }
    }
    if !lines.is_empty() {
        send(Part::Lines(v1::TransactionLines { json: lines }));
    }
    Ok(())
}

fn refusal(error: &StoreError) -> Status {
    let words = crate::hands::chain(error);
    match error {
        StoreError::Unknown { .. } => Status::not_found(words),
        StoreError::Io { .. } | StoreError::Malformed { .. } | StoreError::Stopped => {
            Status::internal(words)
        }
    }
}

fn tail_word(tail: Tail) -> &'static str {
    match tail {
        Tail::Whole => "whole",
        Tail::Torn => "torn",
        Tail::Unreadable => "unreadable",
    }
}

impl From<&ReceiptSummary> for v1::ReceiptSummary {
    fn from(summary: &ReceiptSummary) -> v1::ReceiptSummary {
        v1::ReceiptSummary {
            id: summary.id.clone(),
            node: summary.node.clone(),
            made_unix_us: summary.made_unix_us,
            lost_epoch: summary.lost_epoch.map(Into::into),
            fork_lsn: summary.fork_lsn.map(|lsn| lsn.0),
            end_lsn: summary.end_lsn.0,
            lost_wal_bytes: summary.lost_wal_bytes,
            commits: summary.commits,
            lost_seconds: summary.lost_seconds,
            tail: tail_word(summary.tail).to_owned(),
        }
    }
}

impl TryFrom<v1::ReceiptSummary> for ReceiptSummary {
    type Error = FieldError;

    fn try_from(summary: v1::ReceiptSummary) -> Result<ReceiptSummary, FieldError> {
        let tails = [Tail::Whole, Tail::Torn, Tail::Unreadable];
        let tail = tails.into_iter().find(|tail| tail_word(*tail) == summary.tail);
        Ok(ReceiptSummary {
            id: summary.id,
            node: summary.node,
            made_unix_us: summary.made_unix_us,
            lost_epoch: summary.lost_epoch.map(Into::into),
            fork_lsn: summary.fork_lsn.map(Lsn),
            end_lsn: Lsn(summary.end_lsn),
            lost_wal_bytes: summary.lost_wal_bytes,
            commits: summary.commits,
            lost_seconds: summary.lost_seconds,
            tail: tail.ok_or_else(|| FieldError::new("tail", format!("{:?}", summary.tail)))?,
        })
    }
}
