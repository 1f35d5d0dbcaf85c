//! What a service manager hears: systemd's protocol of datagrams, sd_notify(3), where one listens.
//!
//! The watchdog is fed only while the deciding loop turns: a daemon that decides nothing is of no use,
//! however alive the rest of it is. Its PostgreSQL is judged by others, the gate and the guardian, so
//! nothing is said of it here. Saying something never fails and never waits: a manager that has stopped
//! reading would block a send, so a thread of its own does that, and what it has no room for is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;
use understudy_types::{BootInstant, Clock};

use crate::status::ClusterStatus;

/// What waits to be said; beyond it something is dropped.
const QUEUED_MAX: usize = 16;

/// Something to say.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Message {
    Ready,
    Stopping,
    Status(String),
    Watchdog,
}

/// The daemon's mouth; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ServiceManager(SyncSender<Message>);

impl ServiceManager {
    /// Starts the thread that speaks; without a listener it has nothing to do.
    pub(crate) fn start() -> ServiceManager {
        let (manager, messages) = ServiceManager::pair();
        let speak = move || messages.iter().for_each(|message| say(&message));
        let thread = std::thread::Builder::new().name("understudy-notify".to_owned());
        if let Err(error) = thread.spawn(speak) {
            tracing::warn!(%error, "the service manager will hear nothing");
        }
        manager
    }

    fn pair() -> (ServiceManager, Receiver<Message>) {
        let (sender, messages) = sync_channel(QUEUED_MAX);
        (ServiceManager(sender), messages)
    }

    /// The daemon's doors are open.
    pub(crate) fn ready(&self) {
        self.tell(Message::Ready);
    }

    /// The daemon is about to end.
    pub(crate) fn stopping(&self) {
        self.tell(Message::Stopping);
    }

    fn tell(&self, message: Message) {
        // Nobody reads, or the thread could not be started: then nobody is told.
        let _ = self.0.try_send(message);
    }
}

/// What `systemctl status` shows; said again only when it changes.
#[derive(Debug, Default)]
pub(crate) struct StatusLine(String);

impl StatusLine {
    pub(crate) fn tell(&mut self, manager: &ServiceManager, status: &ClusterStatus) {
        let line = line(status);
        if line != self.0 {
            manager.tell(Message::Status(line.clone()));
            self.0 = line;
        }
    }
}

fn line(status: &ClusterStatus) -> String {
    let own = status.own();
    let role = own.map_or("not a member yet", |own| own.role.as_str());
    let state = own.map_or("", |own| own.state.as_str());
    let active = match &status.active {
        Some(active) => format!("{active} is active"),
        None => "nobody is active".to_owned(),
    };
    let epoch = status.epoch;
    format!("{role} ({state}); {active}, epoch {epoch}; failover: {}", status.failover.words)
}

/// Feeds the watchdog, if there is one, for as long as the loop's last turn is recent.
pub(crate) async fn feed_watchdog(
    manager: ServiceManager,
    last_turn_ns: Arc<AtomicU64>,
    clock: Arc<dyn Clock>,
) {
    let limit = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero());
    let Some(limit) = limit else { return };
    tracing::info!(?limit, "the service manager's watchdog is fed while the deciding loop turns");
    feed(&manager, &last_turn_ns, &*clock, limit).await;
}

async fn feed(
    manager: &ServiceManager,
    last_turn_ns: &AtomicU64,
    clock: &dyn Clock,
    limit: Duration,
) {
    // As sd_watchdog_enabled(3) advises.
    let interval = limit / 2;
    loop {
        let last_turn = BootInstant(last_turn_ns.load(Ordering::Relaxed));
        let age = clock.now().since(last_turn);
        if age < interval {
            manager.tell(Message::Watchdog);
        } else {
            tracing::error!(?age, "the deciding loop stands still; the watchdog is not fed");
        }
        tokio::time::sleep(interval).await;
    }
}

fn say(message: &Message) {
    let said = match message {
        Message::Ready => sd_notify::notify(&[NotifyState::Ready]),
        Message::Stopping => {
            let status = NotifyState::Status("stopping; PostgreSQL goes on");
            sd_notify::notify(&[NotifyState::Stopping, status])
        }
        Message::Status(line) => sd_notify::notify(&[NotifyState::Status(line)]),
        Message::Watchdog => sd_notify::notify(&[NotifyState::Watchdog]),
    };
    if let Err(error) = said {
        tracing::debug!(%error, "the service manager does not listen");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{NORTH, Scene};

    /// Goes with tokio's time, which the tests pause.
    struct Paused(tokio::time::Instant);

    impl Clock for Paused {
        fn now(&self) -> BootInstant {
            BootInstant::ZERO + self.0.elapsed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_while_the_loop_turns_and_not_while_it_stands_still() {
        let (manager, messages) = ServiceManager::pair();
        let clock = Arc::new(Paused(tokio::time::Instant::now()));
        let last_turn = Arc::new(AtomicU64::new(0));
        let (turns, seen) = (last_turn.clone(), clock.clone());
        tokio::spawn(async move {
            feed(&manager, &turns, &*seen, Duration::from_secs(20)).await;
        });
        let fed = || messages.try_iter().filter(|message| *message == Message::Watchdog).count();
        let turn = || last_turn.store(clock.now().0, Ordering::Relaxed);
        for _ in 0..30 {
            turn();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(fed(), 3, "at 0, 10 and 20 s");
        // The last turn was at 29 s, so at 30 s it is still fed.
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert_eq!(fed(), 1);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(fed(), 0, "the loop stands still");
        turn();
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert!(fed() <= 1);
        turn();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(fed(), 1, "it turns again");
    }

    #[test]
    fn a_manager_that_does_not_read_holds_nobody_up() {
        let (manager, messages) = ServiceManager::pair();
        for _ in 0..10 * QUEUED_MAX {
            manager.ready();
        }
        assert_eq!(messages.try_iter().count(), QUEUED_MAX);
    }

    #[test]
    fn the_line_says_who_is_active_and_what_would_happen() {
        let line = line(&Scene::seen_by(NORTH).build());
        let expected = "active (holder); north is active, epoch 1; failover: if the active is lost, south \
                        takes over by itself";
        assert_eq!(line, expected);
    }
}
