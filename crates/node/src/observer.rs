//! The observation loop: looks at the machine, tells the core first what was seen and then what ended.

use tokio::sync::{mpsc, watch};
use understudy_core::node::{Event, LocalView};
use understudy_postgres::Observation;
use understudy_types::PromotionId;

use crate::clock::wall_unix_us;
use crate::hands::{Observer, TaskDone};

/// What was seen last, for status.
#[derive(Clone, Debug, Default)]
pub(crate) struct LocalSeen {
    /// As the core has it.
    pub(crate) view: LocalView,
    /// The server's full answer, if it answered.
    pub(crate) observation: Option<Observation>,
}

/// Runs until the daemon ends. A witness has nothing to look at, but its core needs fresh identities
/// and the wall clock too.
pub(crate) async fn observe(
    mut observer: Option<Observer>,
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
            () = wait(observer.as_ref()) => None,
        };
        let view = match &mut observer {
            Some(observer) => observer.look().await,
            None => LocalView::default(),
        };
        let observation = observer.as_ref().and_then(|observer| observer.seen.clone());
        seen.send_replace(LocalSeen { view: view.clone(), observation });
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

async fn wait(observer: Option<&Observer>) {
    match observer {
        Some(observer) => observer.wait().await,
        None => tokio::time::sleep(std::time::Duration::from_millis(200)).await,
    }
}
