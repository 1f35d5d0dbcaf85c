//! Since when this node's acknowledgements may be exposed: what a new start of the server, or of the
//! daemon, goes on counting from (I6).
//!
//! It may only ever err on the longer side. What exposure is while the gate works is `wal`'s to say.

use std::time::Duration;

use understudy_types::{BootInstant, Survival};

use super::{Core, SourceView};

impl Core {
    pub(super) fn take_positions(&mut self, view: SourceView) {
        // Counted from when they were read: this loop may have been starved since. What is released
        // later than that is exposed from a later moment on.
        if let Some(source) = &view
            && let Some(survives) = &source.survives
        {
            self.exposed_from = Some(source.read_at - survives.oldest_age);
            self.exposed_beyond = Some(survives.lsn);
        }
        self.source = view;
    }

    /// What was published as surviving, as it is now that nothing newer is known: as it stands it would
    /// say an age of a while ago (mistake 27).
    pub(super) fn older(&self, published: Survival) -> Survival {
        let Some(from) = self.exposed_from else { return published };
        let lsn = self.exposed_beyond.map_or(published.lsn, |beyond| beyond.max(published.lsn));
        Survival { lsn, oldest_age: published.oldest_age.max(self.now.since(from)) }
    }

    pub(super) fn exposed_since(&self) -> BootInstant {
        // The next acknowledgement ends a span that began with the oldest one that is not durable, and
        // has gone on since: the span that the newest one ended would leave out every pause between the
        // two, and the ceiling be exceeded (I6, mistake 27).
        if let Some(from) = self.exposed_from {
            return from;
        }
        let published = self.state.holder.as_ref().and_then(|holder| holder.published.as_ref());
        let exposed = published.map_or(Duration::ZERO, |published| {
            let oldest = published.survives.map_or(Duration::ZERO, |survives| survives.oldest_age);
            published.exposure.time.max(oldest)
        });
        let since = self.published_at.map_or(Duration::ZERO, |(_, at)| self.now.since(at));
        // A process that has just begun does not know how long it was away; its wall clock does, if it
        // was not set back meanwhile.
        let measured = published.and_then(|published| published.measured);
        let away = measured
            .filter(|measured| measured.by == self.me && self.wall_unix_us > 0)
            .map_or(0, |measured| self.wall_unix_us.saturating_sub(measured.at_unix_us));
        let since = since.max(Duration::from_micros(u64::try_from(away).unwrap_or(0)));
        // It was published up to one ttl before it was applied.
        self.now - (exposed + self.timing.ttl + since)
    }
}
