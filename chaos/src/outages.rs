//! The table of write outages: five events, each so often, for a client that writes every 10 ms, with the
//! default timings and with the fast ones.
//!
//! A run is appended to the file as soon as it ends, so an interrupted table goes on where its file ends.
//! It measures and judges as every row is judged; it leaves nothing out because it was slow.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::Cli;
use crate::catalogue::{Row, Status};
use crate::command::output;
use crate::faults::acts::Act;
use crate::faults::links::Links;
use crate::faults::processes::Killed;
use crate::lab::{Mode, Profile, Shape};
use crate::play::{Pace, Played};
use crate::report::Output;
use crate::rig::{Clusters, append};
use crate::scenarios::TAKEOVER;
use crate::series::{commit, machine, read};
use crate::stage::Stage;

/// What happens to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Event {
    /// The active's postmaster is killed; its daemon lives.
    PostgresKilled,
    /// Every process of the active site is killed at once.
    SiteKilled,
    /// The active site is cut off and runs on.
    SiteIsolated,
    /// An operator orders it.
    Switchover,
    /// In `zero` with `degrade`, every process of the passive site is killed.
    PassiveLost,
}

const EVENTS: [Event; 5] = [
    Event::PostgresKilled,
    Event::SiteKilled,
    Event::SiteIsolated,
    Event::Switchover,
    Event::PassiveLost,
];
const PROFILES: [Profile; 2] = [Profile::Default, Profile::Fast];

/// The client of the table. It gives a silent server up soon, as one that wants to find the other would.
const PACE: Pace = Pace {
    probe_interval: Duration::from_millis(10),
    statement_timeout: Duration::from_millis(400),
    ..Pace::ROWS
};

impl Event {
    fn row(self) -> Row {
        let (id, title, expected, play): (_, _, _, crate::catalogue::Play) = match self {
            Event::PostgresKilled => (
                "postgres-killed",
                "the active's postmaster is killed, its daemon lives",
                "it is started again on the spot, or the passive takes over",
                postgres_is_killed,
            ),
            Event::SiteKilled => (
                "site-killed",
                "every process of the active site is killed at once",
                "the passive takes over",
                site_is_killed,
            ),
            Event::SiteIsolated => (
                "site-isolated",
                "the active site is cut off and runs on",
                "the passive takes over",
                site_is_isolated,
            ),
            Event::Switchover => (
                "switchover",
                "a switchover is ordered",
                "the passive takes over; nothing is lost",
                switchover_is_ordered,
            ),
            Event::PassiveLost => (
                "passive-lost",
                "every process of the passive site is killed; the policy is degrade",
                "the active goes on alone",
                passive_is_lost,
            ),
        };
        Row::new(id, title, expected, Status::Built(play))
    }

    /// How the cluster is configured for it.
    fn shape(self, profile: Profile) -> Shape {
        let degrade_after_ms = match (self, profile) {
            (Event::PassiveLost, Profile::Default) => Some(1_000),
            (Event::PassiveLost, Profile::Fast) => Some(300),
            (
                Event::PostgresKilled | Event::SiteKilled | Event::SiteIsolated | Event::Switchover,
                _,
            ) => None,
        };
        Shape { profile, degrade_after_ms, ..Shape::from(Mode::Zero) }
    }
}

fn postgres_is_killed(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    stage.inflict(|lab| Killed::postmaster(lab, active))?;
    stage.somebody_serves(TAKEOVER)?;
    stage.protected_again()
}

fn site_is_killed(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    stage.inflict(|lab| Killed::sites(lab, &[active]))?;
    stage.takes_over(passive, TAKEOVER)
}

fn site_is_isolated(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let cut = stage.inflict(|lab| Links::isolate(&lab.arena, active))?;
    stage.takes_over(passive, TAKEOVER)?;
    stage.heal(cut)
}

fn switchover_is_ordered(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    stage.inflict(|lab| {
        let order = ["switchover", "--reason", "outage table", "--wait", "--timeout=60s"];
        output(&mut lab.operator(&order))?;
        Ok(Act::seen_by(move || {
            let moved = lab.writable_at(passive);
            Ok(moved.then(|| format!("switched over from {active} to {passive}")))
        }))
    })?;
    stage.takes_over(passive, TAKEOVER)
}

fn passive_is_lost(stage: &mut Stage) -> Result<()> {
    let (_, passive) = stage.sites();
    stage.inflict(|lab| Killed::sites(lab, &[passive]))?;
    stage.acknowledged_again(TAKEOVER)?;
    stage.nobody_has_taken_over()
}

fn events(cli: &Cli) -> Vec<Event> {
    if cli.events.is_empty() { EVENTS.to_vec() } else { cli.events.clone() }
}

fn profiles(cli: &Cli) -> Vec<Profile> {
    cli.profile.map_or(PROFILES.to_vec(), |profile| vec![profile])
}

/// How many runs there will be at most.
pub(crate) fn turns(cli: &Cli, runs: u32) -> u32 {
    let cells = u32::try_from(events(cli).len() * profiles(cli).len()).unwrap_or(u32::MAX);
    runs.saturating_mul(cells).max(1)
}

/// Measures until every event has `runs` lines with every profile; whether all of them passed.
pub(crate) fn run(
    cli: &Cli,
    runs: u32,
    clusters: &mut Clusters,
    runtime: &Runtime,
) -> Result<bool> {
    let mut cells = Vec::new();
    for profile in profiles(cli) {
        for event in events(cli) {
            let lines = measure(cli, (event, profile), runs, clusters, runtime)?;
            cells.push((event, profile, Cell::of(&lines)));
        }
    }
    for (event, profile, cell) in &cells {
        let line = cell.line(*event, *profile);
        match cli.output {
            Output::Json => println!("{line}"),
            Output::Text => println!("{}", cell.words(*event, *profile)),
        }
    }
    let sum = |count: fn(&Cell) -> u64| cells.iter().map(|(_, _, cell)| count(cell)).sum::<u64>();
    let (rows, failed, late) =
        (sum(|cell| cell.runs), sum(|cell| cell.failed), sum(|cell| cell.late_releases));
    match cli.output {
        Output::Json => {
            println!("{}", json!({ "rows": rows, "failed": failed, "late_releases": late }));
        }
        Output::Text => println!("{rows} runs, {failed} failed, {late} late releases"),
    }
    Ok(failed == 0 && late == 0)
}

fn measure(
    cli: &Cli,
    (event, profile): (Event, Profile),
    runs: u32,
    clusters: &mut Clusters,
    runtime: &Runtime,
) -> Result<Vec<Value>> {
    let (wanted, with) = (serde_json::to_value(event)?, serde_json::to_value(profile)?);
    let mine = |line: &Value| {
        // Lines from before there were journals have none.
        let journal = line["journal"].as_bool().unwrap_or(false);
        line["outage_of"] == wanted && line["profile"] == with && journal == cli.journal
    };
    let earlier = cli.record.as_deref().map(|file| read(file, mine)).transpose()?;
    let mut lines = earlier.unwrap_or_default();
    while lines.len() < usize::try_from(runs).unwrap_or(usize::MAX) {
        let played = clusters.play(&event.row(), event.shape(profile), PACE, runtime);
        crate::report::result(cli.output, &played)?;
        let mut line = recorded(&played, event, profile, lines.len() + 1)?;
        if cli.journal {
            line["journal"] = json!(true);
        }
        if let Some(file) = &cli.record {
            append(file, &line)?;
        }
        lines.push(line);
    }
    Ok(lines)
}

fn recorded(played: &Played, event: Event, profile: Profile, number: usize) -> Result<Value> {
    let load = fs::read_to_string("/proc/loadavg").context("read the machine's load")?;
    Ok(json!({
        "outage_of": event,
        "profile": profile,
        "run": number,
        "write_outage_ms": played.write_outage_ms,
        "passed": played.passed,
        "acknowledged": played.acknowledged,
        "lost": played.lost,
        "late_releases": played.late_releases,
        "actives": played.actives,
        "wrong": played.wrong,
        "commit": commit(),
        "machine": machine(),
        "load": load.split(' ').next(),
    }))
}

/// All runs of one event with one profile.
#[derive(Debug, Default)]
struct Cell {
    runs: u64,
    failed: u64,
    late_releases: u64,
    lost: u64,
    outages_ms: Vec<u64>,
}

impl Cell {
    fn of(lines: &[Value]) -> Cell {
        let mut cell = Cell::default();
        for line in lines {
            cell.runs += 1;
            cell.failed += u64::from(line["passed"] != true);
            cell.late_releases += line["late_releases"].as_u64().unwrap_or_default();
            cell.lost += line["lost"].as_u64().unwrap_or_default();
            // One that failed counts with the outage that it had, if it had one.
            cell.outages_ms.extend(line["write_outage_ms"].as_u64());
        }
        cell.outages_ms.sort_unstable();
        cell
    }

    fn median_ms(&self) -> Option<u64> {
        let (count, half) = (self.outages_ms.len(), self.outages_ms.len() / 2);
        let upper = *self.outages_ms.get(half)?;
        // Of an even number the mean of the two in the middle.
        let lower = if count.is_multiple_of(2) { self.outages_ms[half - 1] } else { upper };
        Some(u64::midpoint(lower, upper))
    }

    fn line(&self, event: Event, profile: Profile) -> Value {
        json!({
            "outages_of": event,
            "profile": profile,
            "runs": self.runs,
            "failed": self.failed,
            "late_releases": self.late_releases,
            "lost": self.lost,
            "write_outage_ms_min": self.outages_ms.first(),
            "write_outage_ms_median": self.median_ms(),
            "write_outage_ms_max": self.outages_ms.last(),
        })
    }

    fn words(&self, event: Event, profile: Profile) -> String {
        let seconds = |ms: Option<u64>| match ms {
            Some(ms) => format!("{:.2} s", ms as f64 / 1000.0),
            None => "-".to_owned(),
        };
        format!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            event.row().id,
            profile.as_str(),
            self.runs,
            seconds(self.outages_ms.first().copied()),
            seconds(self.median_ms()),
            seconds(self.outages_ms.last().copied()),
            self.failed,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_counts_every_run_and_the_outage_of_a_failed_one() {
        let lines = [
            json!({ "passed": true, "late_releases": 0, "lost": 0, "write_outage_ms": 900 }),
            json!({ "passed": false, "late_releases": 1, "lost": 2, "write_outage_ms": 5000 }),
            json!({ "passed": true, "late_releases": 0, "lost": 0, "write_outage_ms": 700 }),
            json!({ "passed": false, "late_releases": 0, "lost": 0, "write_outage_ms": null }),
        ];
        let line = Cell::of(&lines).line(Event::SiteKilled, Profile::Fast);
        assert_eq!((&line["runs"], &line["failed"]), (&json!(4), &json!(2)));
        assert_eq!((&line["late_releases"], &line["lost"]), (&json!(1), &json!(2)));
        let figures =
            ["min", "median", "max"].map(|n| line[format!("write_outage_ms_{n}")].clone());
        assert_eq!(figures, [json!(700), json!(900), json!(5000)]);
        assert_eq!(Cell::of(&lines[..2]).median_ms(), Some(2950));
        assert_eq!(Cell::of(&[]).median_ms(), None);
    }

    #[test]
    fn only_a_lost_passive_is_measured_with_degrade() {
        for profile in PROFILES {
            for event in EVENTS {
                let degrades = event.shape(profile).degrade_after_ms.is_some();
                assert_eq!(degrades, event == Event::PassiveLost);
            }
        }
    }
}
