//! The service: operators may have everything collected, one at a time; it ends when the caller hangs up.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use understudy_proto::v1;
use understudy_proto::v1::debug_server::Debug;
use understudy_transport::peer;

use super::Collector;

/// More than any decision recorder holds by default.
const TRACE_BYTES_MAX: u64 = 1 << 30;
/// Messages that wait for a slow caller.
const MESSAGES_QUEUED: usize = 8;

/// The service.
#[derive(Clone)]
pub(crate) struct DebugService {
    collector: Collector,
    collecting: Arc<Semaphore>,
}

impl DebugService {
    /// A service over this node.
    pub(crate) fn new(collector: Collector) -> DebugService {
        DebugService { collector, collecting: Arc::new(Semaphore::new(1)) }
    }
}

#[tonic::async_trait]
impl Debug for DebugService {
    type CollectStream = Pin<Box<dyn Stream<Item = Result<v1::CollectResponse, Status>> + Send>>;

    async fn collect(
        &self,
        request: Request<v1::CollectRequest>,
    ) -> Result<Response<Self::CollectStream>, Status> {
        let caller = peer(&request)?.identity.to_string();
        let trace_bytes_max = request.into_inner().trace_bytes_max.min(TRACE_BYTES_MAX);
        let permit = self.collecting.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(
                "this node is collecting for another caller; wait for its end",
            )
        })?;
        tracing::info!(caller, trace_bytes_max, "collecting for a bug report");
        let collector = self.collector.clone();
        let (sender, messages) = mpsc::channel(MESSAGES_QUEUED);
        tokio::task::spawn_blocking(move || {
            // Broken off where the caller has hung up.
            let _ = collector.collect(trace_bytes_max, &mut |step| match sender
                .blocking_send(Ok(v1::CollectResponse { step: Some(step) }))
            {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            });
            drop(permit);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}
