//! What a service manager hears: systemd's protocol of datagrams, sd_notify(3), where one listens.
//!
//! The watchdog is fed only while the deciding loop turns: a daemon that decides nothing is of no use,
//! however alive the rest of it is. Its PostgreSQL is judged by others, the gate and the guardian, so
//! nothing is said of it here. Saying something never fails and never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use understudy_types::{BootInstant, Clock};

use crate::status::ClusterStatus;

/// The daemon's doors are open.
pub(crate) fn ready() {
    say(&[NotifyState::Ready]);
}

/// The daemon is about to end.
pub(crate) fn stopping() {
    say(&[NotifyState::Stopping, NotifyState::Status("stopping; PostgreSQL goes on")]);
}

/// What `systemctl status` shows; said again only when it changes.
#[derive(Debug, Default)]
pub(crate) struct StatusLine(String);

impl StatusLine {
    pub(crate) fn tell(&mut self, status: &ClusterStatus) {
        let line = line(status);
        if line != self.0 {
            say(&[NotifyState::Status(&line)]);
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
pub(crate) async fn feed_watchdog(last_turn_ns: Arc<AtomicU64>, clock: Arc<dyn Clock>) {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else {
        return;
    };
    // As sd_watchdog_enabled(3) advises.
    let interval = limit / 2;
    tracing::info!(?limit, "the service manager's watchdog is fed while the deciding loop turns");
    loop {
        let last_turn = BootInstant(last_turn_ns.load(Ordering::Relaxed));
        let age = clock.now().since(last_turn);
        if turns(age, interval) {
            say(&[NotifyState::Watchdog]);
        } else {
            tracing::error!(?age, "the deciding loop stands still; the watchdog is not fed");
        }
        tokio::time::sleep(interval).await;
    }
}

/// A loop that turned this long ago is taken for alive.
fn turns(age: Duration, interval: Duration) -> bool {
    age < interval
}

fn say(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{NORTH, Scene};

    #[test]
    fn the_watchdog_is_fed_by_turns_of_the_loop_and_by_nothing_else() {
        let interval = Duration::from_secs(10);
        assert!(turns(Duration::from_millis(100), interval));
        assert!(!turns(interval, interval) && !turns(Duration::from_secs(60), interval));
    }

    #[test]
    fn the_line_says_who_is_active_and_what_would_happen() {
        let line = line(&Scene::seen_by(NORTH).build());
        let expected = "active (holder); north is active, epoch 1; failover: if the active is lost, south \
                        takes over by itself";
        assert_eq!(line, expected);
    }
}
