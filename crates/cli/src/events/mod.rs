//! `understudy events`: what happened, from every node's journal, in one order.
//!
//! A journal is a node's own, so every node is asked for itself; one that does not answer is shown with
//! the reason, and the exit code says so.

mod ask;
mod merge;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use understudy_node::events::{Event, Kind, Severity};

use crate::context::Context;
use crate::nodes::{chosen, somebody};
use crate::operate::parse_duration;
use crate::output::{self, FAILED, Output};
use crate::status::paint;

pub(crate) use ask::{Place, Told, kept};
use merge::{Merged, add, merge};

/// How long an event that follows is held, so that others who saw it too can say so.
const HOLD: Duration = Duration::from_secs(1);
/// Events of all nodes that wait to be shown.
const EVENTS_QUEUED: usize = 256;

/// Show what happened.
///
/// Every node keeps about its 2000 newest events in memory; after a restart a node tells again what the
/// cluster has on record (promotions, operations), and what else was is in its log. Times are the nodes'
/// own wall clocks. What several nodes saw is shown once, with their names, if they saw it within ten
/// seconds. Exits 1 when a node could not be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct EventsArgs {
    /// Go on with what happens, until interrupted.
    #[arg(long, short)]
    follow: bool,
    /// Only this kind; may be given several times.
    #[arg(long, value_name = "KIND", value_parser = kinds())]
    kind: Vec<Kind>,
    /// Only what is no older, as 90s, 10m, 2h, 1d.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    since: Option<Duration>,
    /// Only so many, the newest.
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    limit: usize,
    /// Ask this node only; may be given several times.
    #[arg(long, value_name = "NODE")]
    node: Vec<String>,
    /// How they are printed; JSON with --follow is one event a line.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// The closed set, so that help and completion know it.
fn kinds() -> impl clap::builder::TypedValueParser<Value = Kind> {
    use clap::builder::TypedValueParser as _;
    let words = Kind::ALL.iter().map(|kind| kind.as_str());
    clap::builder::PossibleValuesParser::new(words).try_map(|word| word.parse::<Kind>())
}

/// Runs the verb.
///
/// # Errors
/// When no node answers.
pub(crate) async fn run(context: &Context, args: &EventsArgs) -> anyhow::Result<ExitCode> {
    let nodes = chosen(context, &args.node)?;
    let asked = nodes.iter().map(|node| async {
        let told = kept(context, node, &args.kind).await;
        (node.name.to_string(), told)
    });
    let answers = futures::future::join_all(asked).await;
    if !args.follow {
        somebody(&answers)?;
    }
    let events = answers.iter().filter_map(|(_, told)| Some(told.as_ref().ok()?.events.clone()));
    let merged = selected(merge(events.flatten().collect()), args, Timestamp::now());
    match args.output {
        Output::Text => show(&merged, args.output)?,
        Output::Json | Output::Yaml if args.follow => show(&merged, args.output)?,
        Output::Json | Output::Yaml => {
            let nodes: Vec<Value> = answers.iter().map(node_json).collect();
            let value = json!({ "version": 1, "events": merged, "nodes": nodes });
            output::print(&args.output.data(&value))?;
        }
    }
    for (node, told) in &answers {
        match told {
            Err(reason) => eprintln!("{node} cannot be asked: {}", reason.words()),
            Ok(told) if told.missed_count > 0 => {
                eprintln!("{node} does not keep {} older events any more", told.missed_count);
            }
            Ok(_) => {}
        }
    }
    if args.follow {
        let places = nodes.iter().zip(&answers).map(|(node, (_, told))| {
            let place = told.as_ref().map_or_else(|_| Place::default(), |told| told.place);
            ((*node).clone(), place)
        });
        return follow(context, places.collect(), args).await;
    }
    let all = answers.iter().all(|(_, told)| told.is_ok());
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// What is young enough, and of that the newest.
fn selected(merged: Vec<Merged>, args: &EventsArgs, now: Timestamp) -> Vec<Merged> {
    let since = args.since.map(|since| {
        let micros = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
        now.as_microsecond().saturating_sub(micros)
    });
    let young = |merged: &Merged| since.is_none_or(|since| merged.event.at_unix_us >= since);
    let mut merged: Vec<Merged> = merged.into_iter().filter(young).collect();
    merged.drain(..merged.len().saturating_sub(args.limit));
    merged
}

fn node_json((node, told): &(String, Result<Told, crate::nodes::Reason>)) -> Value {
    match told {
        Ok(told) => json!({ "node": node, "missed": told.missed_count }),
        Err(reason) => json!({ "node": node, "unreachable": reason.words() }),
    }
}

/// Shows what happens from now on; ends when nobody reads it.
async fn follow(
    context: &Context,
    places: Vec<(crate::context::ContextNode, Place)>,
    args: &EventsArgs,
) -> anyhow::Result<ExitCode> {
    let (sender, mut events) = mpsc::channel::<Event>(EVENTS_QUEUED);
    let readers = places
        .into_iter()
        .map(|(node, place)| ask::follow(context, node, place, &args.kind, sender.clone()));
    let showing = async {
        let mut held: Vec<(Instant, Vec<Merged>)> = Vec::new();
        let mut ticks = tokio::time::interval(HOLD / 4);
        loop {
            tokio::select! {
                Some(event) = events.recv() => hold(&mut held, event),
                _ = ticks.tick() => {
                    let over = held.iter().take_while(|(since, _)| since.elapsed() >= HOLD).count();
                    for (_, merged) in held.drain(..over) {
                        show(&merged, args.output)?;
                    }
                }
            }
        }
    };
    let reading = futures::future::join_all(readers);
    tokio::select! {
        shown = showing => shown,
        _ = reading => Ok(ExitCode::SUCCESS),
    }
}

/// With the held one that it is, or for itself; each waits from its own first telling on.
fn hold(held: &mut Vec<(Instant, Vec<Merged>)>, event: Event) {
    for (_, merged) in held.iter_mut() {
        let before = merged.len();
        let mut joined = merged.clone();
        add(&mut joined, event.clone());
        if joined.len() == before {
            *merged = joined;
            return;
        }
    }
    held.push((Instant::now(), merge(vec![event])));
}

fn show(merged: &[Merged], output: Output) -> anyhow::Result<()> {
    let text: String = match output {
        Output::Json | Output::Yaml => merged.iter().map(|merged| output.data(merged)).collect(),
        Output::Text => merged.iter().map(|merged| line(merged, output::colours())).collect(),
    };
    output::print(&text)?;
    Ok(())
}

fn line(merged: &Merged, colours: bool) -> String {
    let Merged { event, seen_by } = merged;
    let at = Timestamp::from_microsecond(event.at_unix_us);
    let at = at.map_or_else(|_| "-".to_owned(), |at| format!("{at:.3}"));
    let (severity, colour) = match event.severity {
        Severity::Info => ("info", 0),
        Severity::Warning => ("warning", 33),
        Severity::Alert => ("ALERT", 31),
    };
    let (kind, words, seen_by) = (event.kind.as_str(), &event.words, seen_by.join(", "));
    let text = format!("{at}  {severity:<7}  {kind:<18}  {words} (seen by {seen_by})");
    paint(&text, colour, colours) + "\n"
}

#[cfg(test)]
mod tests {
    use super::merge::tests::event;
    use super::*;

    fn args(since: Option<u64>, limit: usize) -> EventsArgs {
        EventsArgs {
            follow: false,
            kind: Vec::new(),
            since: since.map(Duration::from_secs),
            limit,
            node: Vec::new(),
            output: Output::Text,
        }
    }

    #[test]
    fn the_newest_of_what_is_young_enough_are_shown() {
        let merged =
            merge((1..=9).map(|n| event("north", n, n as i64, Kind::PostgresUp)).collect());
        let now = Timestamp::from_second(10).unwrap();
        let numbers = |since, limit| {
            let chosen = selected(merged.clone(), &args(since, limit), now);
            chosen.iter().map(|merged| merged.event.sequence).collect::<Vec<_>>()
        };
        assert_eq!(numbers(Some(3), 100), [7, 8, 9]);
        assert_eq!(numbers(Some(3), 2), [8, 9]);
        assert_eq!(numbers(None, 1), [9]);
    }

    #[test]
    fn a_line_says_when_how_bad_what_and_who_saw_it() {
        let merged = merge(vec![
            event("north", 1, 1, Kind::ActiveChange),
            event("south", 1, 2, Kind::ActiveChange),
        ]);
        let expected = "1970-01-01T00:00:01.000Z  info     active-change       north says so \
                        (seen by north, south)\n";
        assert_eq!(line(&merged[0], false), expected);
    }

    #[test]
    fn what_two_nodes_tell_within_the_hold_becomes_one() {
        let mut held = Vec::new();
        hold(&mut held, event("north", 1, 1, Kind::ActiveChange));
        hold(&mut held, event("north", 2, 1, Kind::EpochChange));
        hold(&mut held, event("south", 1, 2, Kind::ActiveChange));
        assert_eq!(held.len(), 2);
        assert_eq!(held[0].1[0].seen_by, ["north", "south"]);
    }
}
