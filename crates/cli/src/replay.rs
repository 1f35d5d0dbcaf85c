//! `understudy replay`: what a node decided and why, from the files of its decision recorder, by running
//! the same core on them again. Offline: no node is asked, no configuration read.
//!
//! What was recorded is compared with what this program decides: the first difference is shown, and the
//! exit code is 1.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde_json::json;
use understudy_trace::{Finding, Lines, Replay, Turn};

use crate::output::{self, Output};

/// Explain a node's decisions from its trace.
#[derive(Debug, clap::Args)]
pub(crate) struct ReplayArgs {
    /// A file of <data_dir>/trace, or the directory, whose files are taken in order.
    #[arg(value_name = "FILE|DIR")]
    trace: PathBuf,
    /// Show from here on: a time as 2026-01-31T12:00:00Z, or an event's number.
    #[arg(long, value_name = "TIME|N")]
    from: Option<Moment>,
    /// Show up to here.
    #[arg(long, value_name = "TIME|N")]
    until: Option<Moment>,
    /// Which events to show; all without it.
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// How it is printed; JSON is one object a line.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Which events are worth showing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    /// Those on which something was decided.
    Decisions,
    /// Of those the ones beside the ordinary course, and every change of the node's state or verdict.
    Changes,
}

/// Where to begin or end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Number(u64),
    Time(Timestamp),
}

impl std::str::FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Moment, String> {
        if let Ok(number) = text.parse() {
            return Ok(Moment::Number(number));
        }
        text.parse().map(Moment::Time).map_err(|_| {
            "expected a time as 2026-01-31T12:00:00Z or the number of an event".to_owned()
        })
    }
}

/// What is counted for the end.
#[derive(Debug, Default)]
struct Sum {
    events_count: u64,
    diverged_count: u64,
    missing_count: u64,
}

/// Runs the verb.
///
/// # Errors
/// When the files cannot be read or are no trace of this format.
pub(crate) fn run(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let files = files(&args.trace)?;
    let (mut replay, mut sum) = (Replay::default(), Sum::default());
    for file in &files {
        let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
        let context = || format!("replay {}", file.display());
        let mut lines = Lines::new(&bytes).with_context(context)?;
        while let Some(line) = lines.next_line().with_context(context)? {
            // A broken invariant of the core is an assertion; its message has gone to stderr.
            let taken =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| replay.take(line)));
            let Ok(found) = taken else {
                let number = replay.events_count();
                bail!("the core stopped at event {number}, as the recorded one may have");
            };
            show(args, &mut sum, &found)?;
        }
    }
    show(args, &mut sum, &replay.finish())?;
    show_end(args, &replay, &sum)?;
    Ok(if sum.diverged_count > 0 { ExitCode::from(output::FAILED) } else { ExitCode::SUCCESS })
}

/// The files of a trace, oldest first.
fn files(trace: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !trace.is_dir() {
        return Ok(vec![trace.to_owned()]);
    }
    let mut files = Vec::new();
    let entries = std::fs::read_dir(trace).with_context(|| format!("list {}", trace.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", trace.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "trace") {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        bail!("{} holds no file that ends in .trace: give <data_dir>/trace", trace.display());
    }
    Ok(files)
}

fn show(args: &ReplayArgs, sum: &mut Sum, found: &[Finding]) -> anyhow::Result<()> {
    for finding in found {
        match finding {
            Finding::Turn(_) => sum.events_count += 1,
            Finding::Diverged { .. } => sum.diverged_count += 1,
            Finding::Gap(count) | Finding::Begins { missing_count: count, .. } => {
                sum.missing_count += count;
            }
            Finding::Damaged(_) | Finding::Torn(_) | Finding::Skipped(_) => {}
        }
        if let Finding::Turn(turn) = finding
            && !wanted(args, turn)
        {
            continue;
        }
        let text = match args.output {
            Output::Text => text(finding),
            Output::Json | Output::Yaml => args.output.data(&object(finding)),
        };
        output::print(&text)?;
    }
    Ok(())
}

fn wanted(args: &ReplayArgs, turn: &Turn) -> bool {
    let time = Timestamp::from_microsecond(turn.wall_unix_us).unwrap_or(Timestamp::UNIX_EPOCH);
    let from = match args.from {
        Some(Moment::Number(number)) => turn.number >= number,
        Some(Moment::Time(from)) => time >= from,
        None => true,
    };
    let until = match args.until {
        Some(Moment::Number(number)) => turn.number <= number,
        Some(Moment::Time(until)) => time <= until,
        None => true,
    };
    let shown = match args.only {
        None => true,
        Some(Only::Decisions) => !turn.decisions.is_empty(),
        Some(Only::Changes) => {
            let decided = turn.decisions.iter().any(|decision| !decision.routine);
            decided || turn.state.is_some() || turn.verdict.is_some()
        }
    };
    from && until && shown
}

fn time(unix_us: i64) -> String {
    match Timestamp::from_microsecond(unix_us) {
        Ok(time) => format!("{time:.6}"),
        Err(_) => format!("{unix_us} us"),
    }
}

fn text(finding: &Finding) -> String {
    match finding {
        Finding::Begins { header, missing_count, other_program } => {
            let mut text = format!(
                "== {} (node {}, process start {}), understudy {}, {}\n",
                header.name,
                header.node,
                header.process,
                header.program,
                time(header.wall_unix_us)
            );
            if *missing_count > 0 {
                text.push_str(&format!("== {missing_count} events are missing before it\n"));
            }
            if *other_program {
                text.push_str("== written by another version: differences may be the program's\n");
            }
            text
        }
        Finding::Turn(turn) => turn_text(turn),
        Finding::Diverged { turn, recorded, replayed } => {
            let event = turn.as_deref().map(turn_text).unwrap_or_default();
            format!(
                "{event}== DIFFERENCE here: this program's core does not do what was recorded\n   \
                 recorded: {recorded}\n   replayed: {replayed}\n"
            )
        }
        Finding::Gap(count) => format!("== {count} events were dropped here\n"),
        Finding::Damaged(line) => format!("== line {line} is damaged; on from the next snapshot\n"),
        Finding::Torn(bytes) => {
            format!("== the last record is torn ({bytes} bytes): its writer ended here\n")
        }
        Finding::Skipped(count) => {
            format!("== {count} records could not be replayed without a snapshot before them\n")
        }
    }
}

fn turn_text(turn: &Turn) -> String {
    let mut text = format!("{} #{} {}\n", time(turn.wall_unix_us), turn.number, turn.event);
    for decision in &turn.decisions {
        let _ = writeln!(text, "    decides  {}\n    because  {}", decision.what, decision.why);
    }
    if let Some((before, after)) = &turn.state {
        let _ = writeln!(text, "    state    {before} -> {after}");
    }
    if let Some(verdict) = &turn.verdict {
        let _ = writeln!(text, "    verdict  {verdict}");
    }
    text
}

fn object(finding: &Finding) -> serde_json::Value {
    match finding {
        Finding::Begins { header, missing_count, .. } => json!({
            "version": 1, "kind": "begins", "header": header, "missing_count": missing_count,
        }),
        Finding::Turn(turn) => turn_object("event", turn),
        Finding::Diverged { turn, recorded, replayed } => json!({
            "kind": "difference",
            "event": turn.as_deref().map(|turn| turn_object("event", turn)),
            "recorded": recorded,
            "replayed": replayed,
        }),
        Finding::Gap(count) => json!({ "kind": "gap", "missing_count": count }),
        Finding::Damaged(line) => json!({ "kind": "damaged", "line": line }),
        Finding::Torn(bytes) => json!({ "kind": "torn", "bytes": bytes }),
        Finding::Skipped(count) => json!({ "kind": "skipped", "record_count": count }),
    }
}

fn turn_object(kind: &str, turn: &Turn) -> serde_json::Value {
    let state = turn.state.as_ref().map(|(from, to)| json!({ "from": from, "to": to }));
    json!({
        "kind": kind,
        "number": turn.number,
        "time": time(turn.wall_unix_us),
        "boot_ns": turn.at.0,
        "event": turn.event,
        "decisions": turn.decisions,
        "state": state,
        "verdict": turn.verdict,
    })
}

/// The node as the trace leaves it.
fn show_end(args: &ReplayArgs, replay: &Replay, sum: &Sum) -> anyhow::Result<()> {
    let end = replay.end();
    let text = match (args.output, &end) {
        (Output::Json | Output::Yaml, _) => {
            let end = json!({
                "kind": "end",
                "event_count": sum.events_count,
                "difference_count": sum.diverged_count,
                "missing_count": sum.missing_count,
                "state": end.as_ref().map(|end| &end.state),
                "verdict": end.as_ref().map(|end| &end.verdict),
                "core": end.as_ref().map(|end| &end.core),
            });
            args.output.data(&end)
        }
        (Output::Text, None) => format!("== {} events replayed; ends in a gap\n", sum.events_count),
        (Output::Text, Some(end)) => {
            let agree = match sum.diverged_count {
                0 => "every decision as recorded".to_owned(),
                count => format!("{count} differences"),
            };
            format!(
                "== {} events replayed, {} missing; {agree}\n   state    {}\n   verdict  {}\n   {}\n",
                sum.events_count,
                sum.missing_count,
                end.state,
                end.verdict,
                end.cluster.join("\n   ")
            )
        }
    };
    output::print(&text)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_number_or_a_time_and_nothing_else() {
        assert_eq!("12".parse(), Ok(Moment::Number(12)));
        let time = "2026-01-31T12:00:00Z";
        assert_eq!(time.parse(), Ok(Moment::Time(time.parse().unwrap())));
        assert!("noon".parse::<Moment>().unwrap_err().contains("2026-01-31T12:00:00Z"));
    }
}
