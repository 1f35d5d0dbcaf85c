//! The hand on what is logged: set, with an end if that is wanted, and set back.
//!
//! The configured filter is what it falls back to; a daemon that starts anew begins with it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::clock::wall_unix_us;

/// Longer ones are nobody's intention.
const FILTER_BYTES_MAX: usize = 1024;

/// What a filter may be.
pub(crate) const FILTER_REMEDY: &str = "expected error, warn, info, debug, trace or off, or directives as \
                                        \"info,understudy_shipping=debug\"";

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct LogControl {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    configured: String,
    handle: reload::Handle<EnvFilter, Registry>,
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    filter: String,
    until_unix_us: Option<i64>,
    /// Changes so far: an end that belongs to an earlier one is void.
    turn: u64,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) filter: String,
    pub(crate) configured: String,
    /// When it falls back.
    pub(crate) until_unix_us: Option<i64>,
}

impl LogControl {
    pub(super) fn new(configured: &str, handle: reload::Handle<EnvFilter, Registry>) -> LogControl {
        let configured = configured.to_owned();
        let now = Mutex::new(Now { filter: configured.clone(), until_unix_us: None, turn: 0 });
        LogControl { inner: Arc::new(Inner { configured, handle, now }) }
    }

    /// In force now.
    pub(crate) fn level(&self) -> Level {
        self.level_of(&self.now())
    }

    /// Sets the filter, for so long or until the next change. Must be called in a runtime.
    ///
    /// # Errors
    /// What is wrong with the filter, in words; then nothing has changed.
    pub(crate) fn set(&self, text: &str, lasting: Option<Duration>) -> Result<Level, String> {
        let text = text.trim();
        let filter = checked(text)?;
        let mut now = self.now();
        self.inner.handle.reload(filter).map_err(|error| format!("change the log: {error}"))?;
        now.turn += 1;
        text.clone_into(&mut now.filter);
        now.until_unix_us = lasting.map(|lasting| {
            wall_unix_us().saturating_add(i64::try_from(lasting.as_micros()).unwrap_or(i64::MAX))
        });
        if let Some(lasting) = lasting {
            let (control, turn) = (self.clone(), now.turn);
            tokio::spawn(async move {
                tokio::time::sleep(lasting).await;
                control.fall_back(turn);
            });
        }
        Ok(self.level_of(&now))
    }

    /// Back to the configured filter.
    ///
    /// # Errors
    /// When the log cannot be changed.
    pub(crate) fn reset(&self) -> Result<Level, String> {
        let configured = self.inner.configured.clone();
        let mut now = self.now();
        let filter = super::filter(&configured).map_err(|error| error.to_string())?;
        self.inner.handle.reload(filter).map_err(|error| format!("change the log: {error}"))?;
        *now = Now { filter: configured, until_unix_us: None, turn: now.turn + 1 };
        Ok(self.level_of(&now))
    }

    /// The end of a change, unless there was another one since.
    fn fall_back(&self, turn: u64) {
        if self.now().turn != turn {
            return;
        }
        match self.reset() {
            Ok(level) => tracing::info!(filter = level.filter, "log level falls back"),
            Err(error) => tracing::warn!(error, "log level does not fall back"),
        }
    }

    fn level_of(&self, now: &Now) -> Level {
        let (filter, configured) = (now.filter.clone(), self.inner.configured.clone());
        Level { filter, configured, until_unix_us: now.until_unix_us }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.inner.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it is a filter.
///
/// # Errors
/// What is wrong with it, and what would be right.
pub fn check_filter(text: &str) -> Result<(), String> {
    checked(text.trim()).map(drop)
}

/// A filter that says what its writer means: the library would take a misspelt level for the name of a
/// module, and log nothing else.
fn checked(text: &str) -> Result<EnvFilter, String> {
    let remedy = FILTER_REMEDY;
    if text.is_empty() || text.len() > FILTER_BYTES_MAX {
        return Err(format!(
            "filter of {} bytes: {remedy}, in 1 to {FILTER_BYTES_MAX}",
            text.len()
        ));
    }
    if !text.contains('[') {
        for directive in text.split(',').map(str::trim) {
            if !directive.contains('=') && directive.parse::<LevelFilter>().is_err() {
                return Err(format!("filter = {text:?}: {directive:?} is no level; {remedy}"));
            }
        }
    }
    super::filter(text).map_err(|error| format!("filter = {text:?}: {error}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::Layer as _;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::super::LogLines;
    use super::*;

    /// A log of its own for this thread, and what is written to it.
    fn control() -> (LogControl, LogLines, tracing::subscriber::DefaultGuard) {
        let (filter, handle) = reload::Layer::new(super::super::filter("info").unwrap());
        let lines = LogLines::default();
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer({
            let lines = lines.clone();
            move || lines.clone()
        });
        let subscriber = tracing_subscriber::registry().with(layer.with_filter(filter));
        (LogControl::new("info", handle), lines, tracing::subscriber::set_default(subscriber))
    }

    /// Whether an information and whether a detail comes through.
    fn is_logged(lines: &LogLines) -> [bool; 2] {
        let before = lines.text().len();
        tracing::info!("an information");
        tracing::debug!("a detail");
        let text = lines.text().split_off(before);
        [text.contains("an information"), text.contains("a detail")]
    }

    #[tokio::test(start_paused = true)]
    async fn a_level_falls_back_at_its_end_unless_it_was_changed_again() {
        let (control, lines, _guard) = control();
        assert_eq!(is_logged(&lines), [true, false]);
        let level = control.set("debug", Some(Duration::from_secs(60))).unwrap();
        assert!(level.until_unix_us.is_some());
        assert_eq!(is_logged(&lines), [true, true]);
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(is_logged(&lines), [true, false]);
        assert_eq!(
            (control.level().filter.as_str(), control.level().until_unix_us),
            ("info", None)
        );

        control.set("debug", Some(Duration::from_secs(60))).unwrap();
        control.set("error", None).unwrap();
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(is_logged(&lines), [false, false]);
        assert_eq!(control.level().filter, "error");
        assert_eq!(control.reset().unwrap().filter, "info");
        assert_eq!(is_logged(&lines), [true, false]);
    }

    #[tokio::test]
    async fn a_misspelt_level_is_refused_and_changes_nothing() {
        let (control, _lines, _guard) = control();
        for wrong in ["", "debgu", "info,shipping", "understudy_core=loud", &"x".repeat(2000)] {
            let error = control.set(wrong, None).unwrap_err();
            assert!(error.contains("expected error, warn"), "{wrong}: {error}");
        }
        assert_eq!(control.level().filter, "info");
        for good in ["TRACE", "off", "info,understudy_shipping=debug", " warn,hyper=off "] {
            control.set(good, None).unwrap();
        }
    }
}
