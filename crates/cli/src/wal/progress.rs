//! How far a verification is: bars on a terminal, otherwise a line now and then.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;

use super::report::PlaceReport;
use crate::output::{self, Output};
use crate::status::size;

/// Between two lines about the same place.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
const BAR: &str = "{prefix:<16} {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";

/// What was said of one place.
struct Said {
    node: usize,
    place: String,
    began: Instant,
    line: Instant,
    bar: Option<ProgressBar>,
}

/// Says how far it is.
pub(super) struct Progress {
    output: Output,
    bars: Option<MultiProgress>,
    said: Vec<Said>,
}

impl Progress {
    pub(super) fn new(output: Output) -> Progress {
        let terminal = output == Output::Text && io::stderr().is_terminal();
        Progress { output, bars: terminal.then(MultiProgress::new), said: Vec::new() }
    }

    /// Looks at what a place has come to.
    ///
    /// # Errors
    /// When nobody reads the lines any more.
    pub(super) fn show(&mut self, node: usize, name: &str, place: &PlaceReport) -> io::Result<()> {
        let known = |said: &&mut Said| said.node == node && said.place == place.place;
        let said = match self.said.iter_mut().find(known) {
            Some(said) => said,
            None => {
                let now = Instant::now();
                let bar = self.bars.as_ref().map(|bars| {
                    let style = ProgressStyle::with_template(BAR);
                    let bar = bars.add(ProgressBar::new(place.total_bytes));
                    // The template is a constant; a wrong one shows as indicatif's own.
                    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                    bar.with_prefix(format!("{name} {}", place.place))
                });
                let place = place.place.clone();
                self.said.push(Said { node, place, began: now, line: now, bar });
                return Ok(());
            }
        };
        if let Some(bar) = &said.bar {
            bar.set_length(place.total_bytes);
            bar.set_position(place.done_bytes);
            return Ok(());
        }
        if said.line.elapsed() < LINE_INTERVAL {
            return Ok(());
        }
        said.line = Instant::now();
        let seconds = said.began.elapsed().as_secs_f64();
        let rate = place.done_bytes as f64 / seconds;
        let left = place.total_bytes.saturating_sub(place.done_bytes) as f64 / rate;
        match self.output {
            Output::Text => {
                let (done, total) = (size(place.done_bytes), size(place.total_bytes));
                let (rate, place) = (size(rate as u64), &place.place);
                eprintln!("{name} {place}: {done} of {total}, {rate} a second, {left:.0} s left");
            }
            Output::Json | Output::Yaml => {
                let line = json!({
                    "event": "progress", "node": name, "place": place.place,
                    "done_bytes": place.done_bytes, "total_bytes": place.total_bytes,
                    "bytes_per_second": rate, "seconds_left": left,
                });
                output::print(&self.output.data(&line))?;
            }
        }
        Ok(())
    }

    /// Clears the bars away, so that the report stands alone.
    pub(super) fn end(&self) {
        if let Some(bars) = &self.bars {
            // A terminal that is gone has nothing left to clear.
            let _ = bars.clear();
        }
    }
}
