//! The observation loop: looks at the machine, tells the core first what was seen and then what ended.

use tokio::sync::{mpsc, watch};
use understudy_core::node::{Event, LocalView};
use understudy_postgres::{Observation, ServerParameter};
use understudy_types::PromotionId;

use crate::clock::wall_unix_us;
use crate::hands::{Observer, TaskDone};
use crate::journal_node::JournalNode;

/// What was seen last, for status.
#[derive(Clone, Debug, Default)]
pub(crate) struct LocalSeen {
    /// As the core has it.
    pub(crate) view: LocalView,
    /// The server's full answer, if it answered.
    pub(crate) observation: Option<Observation>,
    /// Its settings that a restart would change, and those that a standby must not have less of.
    pub(crate) parameters: Vec<ServerParameter>,
}

/// What there is to look at.
pub(crate) enum Sight {
    /// A server, its data directory and its journal.
    Data(Box<Observer>),
    /// A journal alone.
    Journal(JournalNode),
    /// Nothing; but its core needs fresh identities and the wall clock too.
    Nothing,
}

/// Runs until the daemon ends.
pub(crate) async fn observe(
    mut sight: Sight,
    mut ended: mpsc::Receiver<TaskDone>,
    seen: watch::Sender<LocalSeen>,
    events: mpsc::UnboundedSender<Event>,
) {
    loop {
        let done = tokio::select! {
            done = ended.recv() => match done {
                Some(done) => Some(done),
                None => return,
            },
            () = wait(&sight) => None,
        };
        let view = match &mut sight {
            Sight::Data(observer) => observer.look().await,
            Sight::Journal(node) => node.look(),
            Sight::Nothing => LocalView::default(),
        };
        let (observation, parameters) = match &sight {
            Sight::Data(observer) => (observer.seen.clone(), observer.parameters()),
            Sight::Journal(_) | Sight::Nothing => (None, Vec::new()),
        };
        seen.send_replace(LocalSeen { view: view.clone(), observation, parameters });
        let fresh = PromotionId(uuid::Uuid::new_v4());
        let local = Event::Local { view, fresh, wall_unix_us: wall_unix_us() };
        if events.send(local).is_err() {
            return;
        }
        if let Some((id, result)) = done
            && events.send(Event::TaskDone(id, result)).is_err()
        {
            return;
        }
    }
}

async fn wait(sight: &Sight) {
    match sight {
        Sight::Data(observer) => observer.wait().await,
        Sight::Journal(_) | Sight::Nothing => {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }
}
