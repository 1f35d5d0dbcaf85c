//! A node's journal over the wire: what it keeps, and what follows.

use std::time::Duration;

use tokio::sync::mpsc;
use understudy_node::events::{Event, Kind};
use understudy_proto::v1;
use understudy_proto::v1::events_client::EventsClient;

use crate::context::{Context, ContextNode};
use crate::nodes::{Reason, within};

/// Before a node that is gone is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How far a journal was read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    journal_started_unix_us: i64,
    upto: u64,
}

/// What a node keeps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) events: Vec<Event>,
    /// So many older ones it keeps no more.
    pub(crate) missed_count: u64,
    pub(super) place: Place,
}

impl Told {
    /// Takes a message in.
    fn take(&mut self, message: v1::WatchEventsResponse) {
        self.missed_count += message.missed_count;
        self.place = Place {
            journal_started_unix_us: message.journal_started_unix_us,
            upto: message.upto_sequence,
        };
        // Of a newer program, and of a kind that this one does not know, is left out.
        self.events.extend(message.events.into_iter().filter_map(|event| event.try_into().ok()));
    }
}

fn request(place: Place, kinds: &[Kind], follow: bool) -> v1::WatchEventsRequest {
    v1::WatchEventsRequest {
        after_sequence: place.upto,
        journal_started_unix_us: place.journal_started_unix_us,
        follow,
        kinds: kinds.iter().map(|kind| kind.as_str().to_owned()).collect(),
    }
}

/// Everything that a node keeps of these kinds, or of all.
///
/// # Errors
/// Why it cannot be had.
pub(crate) async fn kept(
    context: &Context,
    node: &ContextNode,
    kinds: &[Kind],
) -> Result<Told, Reason> {
    let unreachable =
        |error: understudy_transport::ConnectError| Reason::Unreachable(error.to_string());
    let mut client = EventsClient::new(context.connect(node).await.map_err(unreachable)?);
    let answer = within(client.watch(request(Place::default(), kinds, false))).await?;
    let mut messages = answer.into_inner();
    let mut told = Told::default();
    while let Some(message) = within(messages.message()).await? {
        told.take(message);
    }
    Ok(told)
}

/// What follows at a node, again and again while it is away; ends when nobody listens.
pub(super) async fn follow(
    context: &Context,
    node: ContextNode,
    mut place: Place,
    kinds: &[Kind],
    events: mpsc::Sender<Event>,
) {
    let mut said_of = None;
    loop {
        let Err(reason) = follow_once(context, &node, &mut place, kinds, &events).await else {
            return;
        };
        // Once for each time that it is gone.
        let now = Some((place.journal_started_unix_us, place.upto));
        if said_of != now {
            eprintln!("{} cannot be asked, and is asked again: {}", node.name, reason.words());
            said_of = now;
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn follow_once(
    context: &Context,
    node: &ContextNode,
    place: &mut Place,
    kinds: &[Kind],
    events: &mpsc::Sender<Event>,
) -> Result<(), Reason> {
    let channel = context.connect(node).await;
    let channel = channel.map_err(|error| Reason::Unreachable(error.to_string()))?;
    let mut client = EventsClient::new(channel);
    let mut messages = within(client.watch(request(*place, kinds, true))).await?.into_inner();
    loop {
        let gone = |words: &str| Reason::Unreachable(words.to_owned());
        let message = messages.message().await.map_err(|status| gone(status.message()))?;
        let mut told = Told::default();
        told.take(message.ok_or_else(|| gone("it has ended"))?);
        if told.missed_count > 0 {
            eprintln!("{} does not keep {} events any more", node.name, told.missed_count);
        }
        *place = told.place;
        for event in told.events {
            if events.send(event).await.is_err() {
                return Ok(());
            }
        }
    }
}
