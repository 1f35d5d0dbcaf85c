//! The record of long runs: one line of JSON a run, appended, so that a series can be stopped and
//! resumed. Only appends; a line that cannot be read stops the run instead of being overwritten.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

/// The first seed from `first` on that no recorded run has covered without a gap.
///
/// # Errors
/// When the file exists and a line of it is not one of these records.
pub(crate) fn next_seed(path: &Path, first: u64) -> Result<u64> {
    if !path.exists() {
        return Ok(first);
    }
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("read the record {}", path.display()))?;
    let mut spans = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let span = read_span(line).with_context(|| {
            format!("{} line {}: not a run's record", path.display(), index + 1)
        })?;
        spans.push(span);
    }
    spans.sort_unstable();
    Ok(spans.into_iter().fold(first, |next, (from, count)| {
        if (from..from + count).contains(&next) { from + count } else { next }
    }))
}

fn read_span(line: &str) -> Result<(u64, u64)> {
    let record: Value = serde_json::from_str(line)?;
    let number = |name: &str| record[name].as_u64().with_context(|| format!("{name} is missing"));
    Ok((number("first_seed")?, number("seed_count")?))
}

/// Appends one run, with the commit and the machine that it ran on.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn append(path: &Path, mut run: Value, threads: usize) -> Result<()> {
    run["commit"] = said(Command::new("git").args(["describe", "--always", "--dirty"])).into();
    run["machine"] = said(Command::new("uname").args(["-srm"])).into();
    run["cores"] = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).into();
    run["threads"] = threads.into();
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("open the record {}", path.display()))?;
    // In one write, so that two runs at once cannot mix their lines.
    file.write_all(format!("{run}\n").as_bytes())
        .with_context(|| format!("append to the record {}", path.display()))
}

/// What a command prints; empty when there is no such command, or no repository.
fn said(command: &mut Command) -> String {
    let output = command.output().ok().filter(|output| output.status.success());
    output.map_or(String::new(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed step should panic here

    use super::*;

    #[test]
    fn a_series_goes_on_behind_what_is_covered_without_a_gap() {
        let path = std::env::temp_dir().join(format!("understudy-sim-{}", std::process::id()));
        assert_eq!(next_seed(&path, 100).unwrap(), 100);
        for (first, count) in [(150, 50), (100, 50), (300, 5), (1, 20)] {
            let run = serde_json::json!({ "first_seed": first, "seed_count": count });
            append(&path, run, 2).unwrap();
        }
        let next = [100, 1, 300, 20].map(|first| next_seed(&path, first).unwrap());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(next, [200, 21, 305, 21]);
    }
}
