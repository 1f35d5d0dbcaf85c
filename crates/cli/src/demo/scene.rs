//! Everything that the demo shows at one moment, and its rendering as one plain line.
//!
//! The director changes the scene; the views only read it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use understudy_proto::v1::{ClusterStatus, NodeStatus};
use understudy_workload::Stats;

use super::events::{epoch_text, events_between};

/// Lines of the event log that are kept.
const LOG_LINES_MAX: usize = 500;

/// How much a line of the log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// What the cluster reports.
    Cluster,
    /// What the demo does.
    Demo,
    /// What it does to harm.
    Fault,
    /// What went well in the end.
    Good,
}

/// One line of the event log.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) at: Duration,
    pub(super) tone: Tone,
    pub(super) text: String,
}

/// What is shown now.
pub(super) struct Scene {
    began: Instant,
    /// `zero · 50 tenants`, for the title.
    pub(super) title: String,
    /// What is going on, in one sentence.
    pub(super) headline: String,
    /// Which keys do what.
    pub(super) hint: String,
    /// The newest status, with when it was received.
    pub(super) status: Option<(ClusterStatus, Instant)>,
    /// The workload's figures; none before it began.
    pub(super) stats: Option<Stats>,
    /// The sites in the order that the workload counts them.
    pub(super) sites: Vec<String>,
    log: VecDeque<Line>,
    /// Lines that were ever logged, so that a printer knows which ones are new.
    logged_count: u64,
}

impl Scene {
    pub(super) fn new(title: String, sites: Vec<String>) -> Scene {
        Scene {
            began: Instant::now(),
            title,
            headline: String::new(),
            hint: String::new(),
            status: None,
            stats: None,
            sites,
            log: VecDeque::new(),
            logged_count: 0,
        }
    }

    /// Time since the demo began.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn log(&mut self, tone: Tone, text: impl Into<String>) {
        self.log.push_back(Line { at: self.elapsed(), tone, text: text.into() });
        self.logged_count += 1;
        if self.log.len() > LOG_LINES_MAX {
            self.log.pop_front();
        }
    }

    /// Says what is going on, and logs it.
    pub(super) fn say(&mut self, tone: Tone, text: impl Into<String>) {
        self.headline = text.into();
        self.log(tone, self.headline.clone());
    }

    /// Takes a new status and logs what it changes.
    pub(super) fn take_status(&mut self, status: ClusterStatus) {
        if let Some((before, _)) = &self.status {
            for event in events_between(before, &status) {
                self.log(Tone::Cluster, event);
            }
        }
        self.status = Some((status, Instant::now()));
    }

    /// The log, oldest line first.
    pub(super) fn lines(&self) -> impl DoubleEndedIterator<Item = &Line> {
        self.log.iter()
    }

    /// The lines that were logged after `seen`, which is advanced.
    pub(super) fn lines_since(&self, seen: &mut u64) -> Vec<Line> {
        let fresh = usize::try_from(self.logged_count - *seen).unwrap_or(usize::MAX);
        *seen = self.logged_count;
        self.log.iter().skip(self.log.len().saturating_sub(fresh)).cloned().collect()
    }

    /// The data nodes of the newest status, in the sites' order.
    pub(super) fn node(&self, name: &str) -> Option<&NodeStatus> {
        let (status, _) = self.status.as_ref()?;
        status.nodes.iter().find(|node| node.name == name)
    }

    /// Where writes go, by name.
    pub(super) fn writable(&self) -> Option<&str> {
        let writable = self.stats.as_ref()?.writable?;
        self.sites.get(writable.index).map(String::as_str)
    }

    /// One line about everything, for a log file or a screen without a cursor.
    pub(super) fn plain(&self) -> String {
        let mut parts = Vec::new();
        if let Some((status, _)) = &self.status {
            parts.push(format!("epoch {} {}", epoch_text(status.epoch.as_ref()), status.phase));
            for node in status.nodes.iter().filter(|node| node.kind == "data") {
                parts.push(plain_node(node));
            }
            let bytes = status.exposure_bytes.map_or_else(|| "unknown".to_owned(), bytes_text);
            parts.push(format!("exposure {bytes}"));
        }
        if let Some(stats) = &self.stats {
            let last = stats.last_acknowledged_ago.map_or_else(|| "never".to_owned(), ago_text);
            parts.push(format!(
                "{:.0} writes/s to {}, last {last}, {} acknowledged",
                stats.writes_per_second,
                self.writable().unwrap_or("nobody"),
                stats.acknowledged_count,
            ));
        }
        if parts.is_empty() {
            parts.push(self.headline.clone());
        }
        parts.join(" | ")
    }
}

fn plain_node(node: &NodeStatus) -> String {
    let mut text = format!("{} {}", node.name, node.state);
    if let Some(lease) = node.lease_left_seconds {
        text += &format!(" lease {lease:.1}s");
    }
    if let Some(lag) = node.durable_lag_bytes.filter(|_| node.role != "active") {
        text += &format!(" lag {}", bytes_text(lag));
    }
    if let Some(progress) = &node.progress {
        text += &format!(" {} {}", progress.what, bytes_text(progress.done_bytes));
    }
    text
}

/// `17 B`, `3.2 MiB`.
pub(super) fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `13 ms ago`, `2.4 s ago`.
pub(super) fn ago_text(ago: Duration) -> String {
    if ago < Duration::from_secs(1) {
        format!("{} ms ago", ago.as_millis())
    } else {
        format!("{:.1} s ago", ago.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printer_sees_each_line_once_and_none_twice() {
        let mut scene = Scene::new("demo".to_owned(), vec![]);
        let mut seen = 0;
        scene.log(Tone::Demo, "one");
        scene.log(Tone::Demo, "two");
        assert_eq!(scene.lines_since(&mut seen).len(), 2);
        assert_eq!(scene.lines_since(&mut seen).len(), 0);
        for index in 0..LOG_LINES_MAX + 10 {
            scene.log(Tone::Demo, index.to_string());
        }
        let lines = scene.lines_since(&mut seen);
        assert_eq!(lines.len(), LOG_LINES_MAX, "those that fell out of the log are not made up");
        assert_eq!(
            lines.last().map(|line| line.text.clone()),
            Some((LOG_LINES_MAX + 9).to_string())
        );
    }

    #[test]
    fn bytes_are_written_with_the_unit_that_fits() {
        let texts = [0, 1023, 1024, 16 << 20, 3 << 40, u64::MAX].map(bytes_text);
        assert_eq!(texts[..4], ["0 B", "1023 B", "1.0 KiB", "16.0 MiB"]);
        assert_eq!(texts[4], "3.0 TiB");
    }
}
