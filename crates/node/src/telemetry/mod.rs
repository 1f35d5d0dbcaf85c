//! Logging: to standard error, as text for people or JSON for machines; what is logged can be changed
//! while the daemon runs, and the newest warnings and errors are also kept in memory.

mod control;
mod lines;
mod service;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, reload};

use crate::config::{LogConfig, LogFormat};

pub use control::check_filter;
pub(crate) use control::{FILTER_REMEDY, LogControl};
pub(crate) use lines::LogLines;
pub(crate) use service::LogService;

/// What was started: the hand on the level, and what is kept.
#[derive(Clone, Debug)]
pub(crate) struct Telemetry {
    pub(crate) control: LogControl,
    pub(crate) lines: LogLines,
}

/// Starts logging. A second call in one process changes nothing.
pub(crate) fn start(config: &LogConfig) -> Telemetry {
    let filter = filter(&config.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(filter);
    let lines = LogLines::default();
    let stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let stderr = match config.format {
        LogFormat::Text => stderr.with_ansi(false).boxed(),
        LogFormat::Json => stderr.json().boxed(),
    };
    let kept = tracing_subscriber::fmt::layer().with_ansi(false).with_writer({
        let lines = lines.clone();
        move || lines.clone()
    });
    let warnings = EnvFilter::new("warn,openraft=error");
    let started = tracing_subscriber::registry()
        .with(stderr.with_filter(filter))
        .with(kept.with_filter(warnings))
        .try_init();
    if let Err(error) = started {
        tracing::debug!(%error, "logging was started before");
    }
    Telemetry { control: LogControl::new(&config.level, handle), lines }
}

/// A filter from its text.
fn filter(level: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    // The consensus library warns about every failed append to a node that is down; what matters of
    // that is said by our own crates.
    match level.contains("openraft") {
        true => EnvFilter::try_new(level),
        false => EnvFilter::try_new(format!("{level},openraft=error")),
    }
}
