//! The service: viewers read the journal, and may go on reading.
//!
//! A reader has nothing but a place in the journal: however slow it is, it costs no more than one
//! message, and is told how many events it missed.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use understudy_proto::v1;
use understudy_proto::v1::events_server::Events;

use super::{EventJournal, Kind};

/// Readers at the same time.
const READERS_MAX: usize = 64;
/// Events in one message.
const EVENTS_A_MESSAGE: usize = 200;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct EventsService {
    journal: EventJournal,
    readers: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl EventsService {
    /// A service over this node's journal, whose streams end with `shutdown`.
    pub(crate) fn new(journal: EventJournal, shutdown: CancellationToken) -> EventsService {
        EventsService { journal, readers: Arc::new(Semaphore::new(READERS_MAX)), shutdown }
    }
}

/// One reader's place.
struct Reader {
    journal: EventJournal,
    newest: watch::Receiver<u64>,
    kinds: Vec<Kind>,
    seen: u64,
    follow: bool,
    told_once: bool,
    shutdown: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    /// The next message; `None` when there is nothing more for this reader.
    async fn next(&mut self) -> Option<v1::WatchEventsResponse> {
        loop {
            self.newest.borrow_and_update();
            let batch = self.journal.after(self.seen, &self.kinds, EVENTS_A_MESSAGE);
            let news = !batch.events.is_empty() || batch.missed_count > 0;
            self.seen = batch.upto;
            if news || !self.told_once {
                self.told_once = true;
                return Some(v1::WatchEventsResponse {
                    node: self.journal.node().to_owned(),
                    journal_started_unix_us: self.journal.started_unix_us(),
                    events: batch.events.iter().map(Into::into).collect(),
                    missed_count: batch.missed_count,
                    upto_sequence: batch.upto,
                });
            }
            if !self.follow {
                return None;
            }
            tokio::select! {
                changed = self.newest.changed() => changed.ok()?,
                () = self.shutdown.cancelled() => return None,
            }
        }
    }
}

#[tonic::async_trait]
impl Events for EventsService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchEventsResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let kinds = request.kinds.iter().map(|kind| kind.parse::<Kind>());
        let kinds = kinds
            .collect::<Result<Vec<Kind>, String>>()
            .map_err(|words| Status::invalid_argument(format!("kinds: {words}")))?;
        let permit = self.readers.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{READERS_MAX} callers read events already"))
        })?;
        // A number of another journal means nothing here.
        let ours = request.journal_started_unix_us == self.journal.started_unix_us();
        let reader = Reader {
            journal: self.journal.clone(),
            newest: self.journal.newest(),
            kinds,
            seen: if ours { request.after_sequence } else { 0 },
            follow: request.follow,
            told_once: false,
            shutdown: self.shutdown.clone(),
            _permit: permit,
        };
        let stream = futures::stream::unfold(reader, |mut reader| async move {
            let message = reader.next().await?;
            Some((Ok(message), reader))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
