//! Collects the pieces, on a thread that may wait for files.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;
use understudy_proto::v1;
use understudy_proto::v1::collect_response::Step;

use super::redact;
use crate::config::NodeConfig;
use crate::recorder;
use crate::telemetry::LogLines;

/// Bytes in one message.
const PART_BYTES_MAX: usize = 256 * 1024;
/// Nothing that is read from the system is longer.
const SYSTEM_BYTES_MAX: usize = 64 * 1024;
/// What the system says of the machine and of this process.
const SYSTEM_FILES: [&str; 7] = [
    "/etc/os-release",
    "/proc/version",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/self/status",
    "/proc/self/limits",
];

/// What is collected from.
#[derive(Clone)]
pub(crate) struct Collector {
    pub(crate) config: Arc<NodeConfig>,
    pub(crate) lines: LogLines,
    pub(crate) metrics: PrometheusHandle,
}

impl Collector {
    /// Tells every piece until all are told, or nobody listens any more. Blocks.
    pub(super) fn collect(
        &self,
        trace_bytes_max: u64,
        tell: &mut impl FnMut(Step) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        text("config.toml", &self.config.show(), tell)?;
        text("log.txt", &self.lines.text(), tell)?;
        text("metrics.txt", &self.metrics.render(), tell)?;
        text("machine.txt", &machine(), tell)?;
        if self.config.postgres.is_some() {
            let reason = "PostgreSQL's log can hold statements with data: look through it, and add \
                          it by hand";
            missing("postgres.log", reason, tell)?;
        }
        self.trace(trace_bytes_max, tell)?;
        tell(Step::Done(v1::CollectDone {}))
    }

    /// The recorder's newest files that fit.
    fn trace(
        &self,
        bytes_max: u64,
        tell: &mut impl FnMut(Step) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let dir = self.config.data_dir.join("trace");
        let files = match recorder::files(&dir) {
            Ok(files) => files,
            Err(error) => return missing("trace", &error.to_string(), tell),
        };
        if files.is_empty() {
            return missing("trace", "the decision recorder has no file here", tell);
        }
        let mut left = bytes_max;
        for (path, bytes) in files.iter().rev() {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("unnamed");
            let name = format!("trace/{name}");
            if *bytes > left {
                let reason = format!(
                    "this file of {bytes} bytes and the older ones are more than the {bytes_max} bytes \
                     that were asked for"
                );
                return missing(&name, &reason, tell);
            }
            left -= bytes;
            match std::fs::read(path) {
                Ok(content) => trace_file(&name, &content, tell)?,
                Err(error) => missing(&name, &error.to_string(), tell)?,
            }
        }
        ControlFlow::Continue(())
    }
}

/// A file as it is, or not at all.
fn trace_file(
    name: &str,
    content: &[u8],
    tell: &mut impl FnMut(Step) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let as_text = String::from_utf8_lossy(content);
    if redact(&as_text) != as_text {
        return missing(name, "it holds something that looks like a secret", tell);
    }
    part(name, content, tell)
}

fn machine() -> String {
    let mut told = format!("understudy {}\n", env!("CARGO_PKG_VERSION"));
    for file in SYSTEM_FILES {
        let content = match std::fs::read(Path::new(file)) {
            Ok(content) => {
                let content = &content[..content.len().min(SYSTEM_BYTES_MAX)];
                String::from_utf8_lossy(content).into_owned()
            }
            Err(error) => format!("cannot be read: {error}\n"),
        };
        told.push_str(&format!("\n--- {file}\n{content}"));
    }
    told
}

fn text(
    name: &str,
    content: &str,
    tell: &mut impl FnMut(Step) -> ControlFlow<()>,
) -> ControlFlow<()> {
    part(name, redact(content).as_bytes(), tell)
}

/// An empty file is a piece too.
fn part(
    name: &str,
    content: &[u8],
    tell: &mut impl FnMut(Step) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut rest = content;
    loop {
        let (data, after) = rest.split_at(rest.len().min(PART_BYTES_MAX));
        tell(Step::Part(v1::CollectedPart { name: name.to_owned(), data: data.to_vec() }))?;
        rest = after;
        if rest.is_empty() {
            return ControlFlow::Continue(());
        }
    }
}

fn missing(
    name: &str,
    reason: &str,
    tell: &mut impl FnMut(Step) -> ControlFlow<()>,
) -> ControlFlow<()> {
    tell(Step::Missing(v1::CollectMissing { name: name.to_owned(), reason: reason.to_owned() }))
}
