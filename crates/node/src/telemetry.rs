//! Logging: to standard error, as text for people or JSON for machines.

use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// Starts logging. A second call in one process changes nothing.
pub(crate) fn start(config: &LogConfig) {
    // The consensus library warns about every failed append to a node that is down; what matters of
    // that is said by our own crates.
    let level = match config.level.contains("openraft") {
        true => config.level.clone(),
        false => format!("{},openraft=error", config.level),
    };
    let filter = EnvFilter::try_new(&level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging was started before");
    }
}
