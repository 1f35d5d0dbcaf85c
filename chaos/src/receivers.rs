//! Receivers: for so many minutes the passive's side is killed, frozen, cut off and reset, one thing
//! after the other as a seed draws them, under mixed load and with the dial turned now and then.
//!
//! Judged is that the journal has the primary's bytes without a gap, that nothing confirmed was missing
//! there, that exposure stayed below its ceiling, and that nobody took over. What every row is judged by
//! comes on top.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::Cli;
use crate::assurance::{self, Assurance, Assured};
use crate::catalogue::{Row, Status};
use crate::command::output;
use crate::copies::{Copies, Segment};
use crate::faults::Fault;
use crate::faults::flows::Flows;
use crate::faults::links::Links;
use crate::faults::processes::{FrozenSite, Killed, Stopped};
use crate::gauges::{self, Gauged, Gauges};
use crate::lab::{Lab, Mode, Shape, WalRoom};
use crate::mix::{Done, Mix};
use crate::play::{Pace, Played};
use crate::report::Output;
use crate::rig::{Clusters, append};
use crate::scenarios::{last, seconds};
use crate::seed::Sequence;
use crate::series::{commit, machine};
use crate::stage::{RETURN_TIMEOUT, Stage};

/// What `bounded` is bounded by: the least that the default timings allow, so that a receiver that is
/// away for six seconds comes near it.
const CEILING: Duration = seconds(6);
/// So that nothing is removed before it was compared, and a disk holds all of it.
const ROOM: WalRoom = WalRoom { keep_mib: 2048, max_mib: 8192 };
/// After so many faults the dial is turned.
const FAULTS_PER_TURN: u64 = 8;
/// A daemon that holds more than this has not given back what a receiver that was away asked of it.
const MEMORY_MAX_BYTES: u64 = 256 << 20;
/// Tries to find the connection that carries WAL, which has to be the busiest by far.
const WAL_CUT_TRIES: u32 = 3;
/// For the last segment to be finished in the journal.
const FINISHED_TIMEOUT: Duration = seconds(60);

const RECEIVERS: Row = Row::new(
    "receivers",
    "the passive's side is killed, frozen, cut off and reset at random, under mixed load",
    "the journal is the primary's WAL, byte for byte; what was confirmed is there; no failover",
    Status::Built(receivers),
);

/// What is done to the passive's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    NodeKilled,
    NodeFrozen,
    SiteFrozen,
    /// Only the connection that carries WAL; heartbeats go on.
    WalCut,
    LinkCut,
    /// WAL does not arrive.
    ThereCut,
    /// Acknowledgements do not arrive.
    BackCut,
    LinkReset,
    StandbyKilled,
}

const KINDS: [Kind; 9] = [
    Kind::NodeKilled,
    Kind::NodeFrozen,
    Kind::SiteFrozen,
    Kind::WalCut,
    Kind::LinkCut,
    Kind::ThereCut,
    Kind::BackCut,
    Kind::LinkReset,
    Kind::StandbyKilled,
];

/// One fault and the quiet after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    kind: Kind,
    lasts: Duration,
    pause: Duration,
}

/// What a seed draws: the same steps each time.
#[derive(Clone, Debug)]
struct Plan(Sequence);

impl Plan {
    fn of(seed: u64) -> Plan {
        Plan(Sequence::of(seed))
    }

    fn step(&mut self) -> Step {
        let kind = self.0.one_of(&KINDS);
        let lasts = match kind {
            // A connection that is reset as soon as it speaks is not there; two seconds are many tries.
            Kind::LinkReset => self.0.milliseconds(200, 2000),
            _ => self.0.milliseconds(200, 6000),
        };
        Step { kind, lasts, pause: self.0.milliseconds(200, 3000) }
    }
}

fn receivers(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    let played = play(stage);
    // The account reads every table as an application, and these are not an application's.
    let cleared = Mix::clear(stage.lab, active).and(Assurance::clear(stage.lab, active));
    played.and(cleared)
}

fn play(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let (lab, seed) = (stage.lab, stage.pace.seed);
    let gauges = Gauges::start(lab, active, passive);
    let copies = Copies::of(lab.journal(passive), lab.pg_wal(active));
    let assurance = Assurance::start(lab, active, copies, CEILING)?;
    let mix = Mix::start(lab, active, seed)?;
    let mut round = Round { plan: Plan::of(seed), ..Round::new(lab.shape.mode) };
    let begun = Instant::now();
    while begun.elapsed() < stage.pace.duration {
        round.fault(stage, active, passive)?;
        if round.count().is_multiple_of(FAULTS_PER_TURN) {
            round.turn(stage, &assurance)?;
        }
        eprintln!("chaos: {:.0} s, {}", begun.elapsed().as_secs_f64(), round.words());
    }
    let done = mix.end();
    let assured = assurance.end();
    let last = finish(lab, active, passive)?;
    let mut gauged = gauges.end()?;
    // What was finished since the last look counts as well.
    gauged.copies.look()?;
    let again = gauged.copies.all(last)?;
    let verified = verify(lab);
    measure(stage, &round, &done, &assured, &gauged);
    stage.measured("segments_compared_again", again);
    stage.measured("wal_verify", verified.unwrap_or_else(|error| json!(format!("{error:#}"))));
    stage.nobody_has_taken_over()?;
    judge(&round, &done, &assured, &gauged, last, &stage.figures["wal_verify"])
}

/// What has been done so far.
struct Round {
    plan: Plan,
    mode: Mode,
    faults: BTreeMap<Kind, u64>,
    /// Faults that could not be begun, and why.
    left_out: Vec<String>,
    turns: u64,
    modes: Vec<Mode>,
    /// The longest until the passive could take over again after a fault's end.
    back_max: BTreeMap<Kind, Duration>,
    /// The newest fault, in words.
    newest: String,
}

impl Round {
    fn new(mode: Mode) -> Round {
        Round {
            plan: Plan::of(0),
            mode,
            faults: BTreeMap::new(),
            left_out: Vec::new(),
            turns: 0,
            modes: vec![mode],
            back_max: BTreeMap::new(),
            newest: String::new(),
        }
    }

    fn count(&self) -> u64 {
        self.faults.values().sum::<u64>() + self.left_out.len() as u64
    }

    fn words(&self) -> String {
        let (count, left) = (self.count(), self.left_out.len());
        let (turns, newest) = (self.turns, &self.newest);
        format!("{count} faults drawn, {left} left out, {turns} turns of the dial; {newest}")
    }

    /// One step, and the way back.
    fn fault<'a>(
        &mut self,
        stage: &mut Stage<'a>,
        active: &'static str,
        passive: &'static str,
    ) -> Result<()> {
        let step = self.plan.step();
        let what = || format!("{:?} for {:?}, fault {}", step.kind, step.lasts, self.count() + 1);
        let played = inflict(stage, step, active, passive).with_context(what)?;
        let lab = stage.lab;
        let back = lab
            .until("the passive to be back", RETURN_TIMEOUT, || lab.protected_under(active))
            .with_context(what)?;
        stage.nobody_has_taken_over().with_context(what)?;
        let longest = self.back_max.entry(step.kind).or_default();
        *longest = back.max(*longest);
        self.newest = format!("{:?} for {:.1?}, back after {back:.1?}", step.kind, step.lasts);
        match played {
            Ok(()) => *self.faults.entry(step.kind).or_default() += 1,
            Err(why) => self.left_out.push(why),
        }
        last(step.pause);
        Ok(())
    }

    /// The dial goes to its other position.
    fn turn(&mut self, stage: &mut Stage, assurance: &Assurance) -> Result<()> {
        let to = match self.mode {
            Mode::Zero => Mode::Bounded,
            Mode::Bounded => Mode::Zero,
        };
        assurance.dial_is(None);
        let order = ["rpo", "set", to.as_str(), "--reason", "receivers", "--wait"];
        output(&mut stage.lab.operator(&order)).context("turn the dial")?;
        assurance.dial_is(Some(to));
        self.mode = to;
        self.turns += 1;
        if !self.modes.contains(&to) {
            self.modes.push(to);
        }
        Ok(())
    }
}

/// Plays one fault; the inner error says why it could not be begun.
fn inflict<'a>(
    stage: &mut Stage<'a>,
    step: Step,
    active: &'static str,
    passive: &'static str,
) -> Result<Result<(), String>> {
    let lasts = step.lasts;
    match step.kind {
        Kind::NodeKilled => {
            stage.inflict(|lab| Killed::daemon(lab, passive))?;
            last(lasts);
            stage.lab.start(passive)?;
        }
        // The node starts it again by itself.
        Kind::StandbyKilled => {
            stage.inflict(|lab| Killed::postmaster(lab, passive))?;
            stage.lab.until("the standby to be started", RETURN_TIMEOUT, || {
                stage.lab.postmaster(passive).is_some()
            })?;
        }
        Kind::NodeFrozen => lasting(stage, lasts, |lab| Stopped::daemon(lab, passive))?,
        Kind::SiteFrozen => lasting(stage, lasts, |lab| FrozenSite::begin(lab, passive))?,
        Kind::LinkCut => lasting(stage, lasts, |lab| Links::cut(&lab.arena, active, passive))?,
        Kind::ThereCut => {
            lasting(stage, lasts, |lab| Links::cut_one_way(&lab.arena, active, passive))?;
        }
        Kind::BackCut => {
            lasting(stage, lasts, |lab| Links::cut_one_way(&lab.arena, passive, active))?;
        }
        Kind::LinkReset => lasting(stage, lasts, |lab| Links::reset(&lab.arena, active, passive))?,
        Kind::WalCut => {
            let mut why = None;
            for _ in 0..WAL_CUT_TRIES {
                // Whether it is clear which connection is WAL's depends on what is written just now.
                let cut = |lab: &'a Lab| {
                    let cut = Flows::without_wal(&lab.arena, active, passive);
                    cut.inspect_err(|error| why = Some(format!("{error:#}")))
                };
                match lasting(stage, lasts, cut) {
                    Ok(()) => return Ok(Ok(())),
                    Err(error) if why.is_none() => return Err(error),
                    Err(_) => {}
                }
            }
            return Ok(Err(why.unwrap_or_default()));
        }
    }
    Ok(Ok(()))
}

/// A fault that is ended after a time.
fn lasting<'a, F: Fault + 'a>(
    stage: &mut Stage<'a>,
    lasts: Duration,
    begin: impl FnOnce(&'a Lab) -> Result<F>,
) -> Result<()> {
    let begun = stage.inflict(begin)?;
    last(lasts);
    stage.heal(begun)
}

/// Ends the segment that is written, and waits until the journal has finished it; which one.
fn finish(lab: &Lab, active: &str, passive: &str) -> Result<Segment> {
    let name = lab.sql(active, "postgres", "SELECT pg_walfile_name(pg_switch_wal())")?;
    let segment = Segment::named(&name).with_context(|| format!("read the segment {name:?}"))?;
    let file = lab.journal(passive).join(&name[..8]).join(&name);
    lab.until("the last segment to be finished", FINISHED_TIMEOUT, || file.exists())?;
    Ok(segment)
}

/// What `understudy wal verify` says: another opinion, by other means.
fn verify(lab: &Lab) -> Result<Value> {
    let mut verify = lab.operator(&["wal", "verify", "--rate", "256MiB", "--output", "json"]);
    // A finding is told in the report, and by the exit code.
    let said = verify.output().context("run wal verify")?;
    let text = String::from_utf8_lossy(&said.stdout);
    let report = text.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
    let report = report.with_context(|| {
        format!("read wal verify's report: {}", String::from_utf8_lossy(&said.stderr))
    })?;
    Ok(json!({
        "sound": report["sound"] == true && said.status.success(),
        "same_segments": report["compared"]["same_segments"],
        "same_bytes": report["compared"]["same_bytes"],
        "differences": report["compared"]["differences"],
    }))
}

fn measure(stage: &mut Stage, round: &Round, done: &Done, assured: &Assured, gauged: &Gauged) {
    let seconds = |duration: Duration| (duration.as_secs_f64() * 1000.0).round() / 1000.0;
    let counted = |faults: &BTreeMap<Kind, u64>| serde_json::to_value(faults);
    stage.measured("seed", stage.pace.seed);
    stage.measured("faults", round.faults.values().sum::<u64>());
    stage.measured("faults_by_kind", counted(&round.faults).unwrap_or_default());
    stage.measured("faults_left_out", json!(round.left_out));
    stage.measured("turns_of_the_dial", round.turns);
    let back: BTreeMap<Kind, f64> =
        round.back_max.iter().map(|(kind, back)| (*kind, seconds(*back))).collect();
    stage.measured("passive_back_seconds_max", serde_json::to_value(back).unwrap_or_default());
    stage.measured("work_by_kind", serde_json::to_value(&done.works).unwrap_or_default());
    stage.measured("wal_bytes", done.wal_bytes);
    let span = gauged.copies.span().map(|(first, last)| [first.name(), last.name()]);
    stage.measured("segments_span", json!(span));
    stage.measured("segments_same", gauged.copies.segments);
    stage.measured("segments_same_bytes", gauged.copies.bytes);
    stage.measured("confirmed_under_zero", assured.under_zero);
    stage.measured("confirmed_under_zero_unheld", assured.unheld);
    stage.measured("confirmed_under_bounded", assured.under_bounded);
    stage.measured("commit_seconds_max", seconds(assured.commit_max));
    stage.measured("exposure_ceiling_seconds", seconds(CEILING));
    stage.measured("exposure_seconds_max", seconds(assured.exposure_max));
    stage.measured("exposure_stated_seconds_max", gauged.exposure_seconds_max);
    stage.measured("exposure_stated_samples", gauged.exposure_samples);
    stage.measured("memory_peak_mib", gauged.peaks.in_mib());
    stage.measured("journal_bytes_max", gauged.journal_bytes_max);
    stage.measured("room_mib", json!({ "keep": ROOM.keep_mib, "max": ROOM.max_mib }));
    stage.measured("wal_gauges", gauges::of_wal());
}

/// Everything that was to hold; the first things that did not.
fn judge(
    round: &Round,
    done: &Done,
    assured: &Assured,
    gauged: &Gauged,
    end: Segment,
    verified: &Value,
) -> Result<()> {
    let mut wrong = gauged.copies.wrong.clone();
    wrong.extend(gauged.wrong.iter().chain(&assured.wrong).cloned());
    let checks = [
        done.ensure_mixed(),
        assurance::ensure_looked(assured, &round.modes),
        ensure_begun(round),
        ensure_whole(&gauged.copies, end),
        ensure_small(gauged),
    ];
    wrong.extend(checks.into_iter().filter_map(|check| Some(format!("{:#}", check.err()?))));
    if verified["sound"] != true {
        wrong.push(format!("wal verify is not content: {verified}"));
    }
    if round.modes.contains(&Mode::Bounded) && gauged.exposure_samples == 0 {
        wrong.push("the active never stated its exposure under bounded".to_owned());
    }
    let count = wrong.len();
    wrong.truncate(8);
    ensure!(wrong.is_empty(), "{count} things are wrong: {}", wrong.join("; "));
    Ok(())
}

/// Nearly all that was drawn was played.
fn ensure_begun(round: &Round) -> Result<()> {
    let (begun, left) = (round.faults.values().sum::<u64>(), round.left_out.len() as u64);
    ensure!(begun > 0, "no fault was played");
    ensure!(left * 10 <= begun, "{left} faults could not be begun: {}", round.left_out[0]);
    Ok(())
}

/// Every segment from the first that was compared to the last one, each once.
fn ensure_whole(copies: &Copies, end: Segment) -> Result<()> {
    let (first, last) = copies.span().context("no segment was compared")?;
    ensure!(last == end, "compared up to {}, written up to {}", last.name(), end.name());
    let wanted = first.count_to(end).context("the segments are of several timelines")?;
    let same = copies.segments;
    ensure!(same == wanted, "{same} segments are the same, of {wanted}");
    Ok(())
}

fn ensure_small(gauged: &Gauged) -> Result<()> {
    for site in crate::arena::SITES {
        let bytes = gauged.peaks.bytes(site);
        let bytes = bytes.with_context(|| format!("{site}'s memory was never seen"))?;
        ensure!(bytes <= MEMORY_MAX_BYTES, "{site}'s daemon had {bytes} bytes in use");
    }
    let max = u64::from(ROOM.max_mib) << 20;
    let journal = gauged.journal_bytes_max;
    ensure!(journal <= max, "the journal had {journal} bytes, at most {max} are allowed");
    Ok(())
}

/// How many turns of a row's length it may take: the last fault and the comparison come after the time.
pub(crate) fn turns(minutes: u32) -> u32 {
    minutes.div_ceil(7) + 2
}

/// Runs it once; whether it passed.
pub(crate) fn run(
    cli: &Cli,
    minutes: u32,
    clusters: &mut Clusters,
    runtime: &Runtime,
) -> Result<bool> {
    let mode = cli.mode.unwrap_or(Mode::Zero);
    let ceiling_s = u32::try_from(CEILING.as_secs()).ok();
    let shape = Shape { ceiling_s, room: Some(ROOM), ..Shape::from(mode) };
    let seed = cli.seed.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("chaos: --receivers {minutes} --seed {seed}");
    let duration = Duration::from_secs(u64::from(minutes) * 60);
    // A write that waits for a receiver to come back is one to be confirmed, not one to be given up.
    let pace = Pace { duration, seed, statement_timeout: seconds(20), ..Pace::ROWS };
    let played = clusters.play(&RECEIVERS, shape, pace, runtime);
    tell(cli, &played, json!({ "receivers_minutes": minutes }))?;
    Ok(played.passed && played.late_releases == 0)
}

/// Records a long run's line and prints it: a table for people, and the line last.
pub(crate) fn tell(cli: &Cli, played: &Played, mut line: Value) -> Result<()> {
    line["mode"] = json!(played.mode);
    line["rows"] = json!(1);
    line["failed"] = json!(u32::from(!played.passed));
    line["failovers"] = json!(played.actives.len().saturating_sub(1));
    line["late_releases"] = json!(played.late_releases);
    line["acknowledged"] = json!(played.acknowledged);
    line["unknown"] = json!(played.unknown);
    line["lost"] = json!(played.lost);
    line["write_outage_ms"] = json!(played.write_outage_ms);
    for (name, value) in &played.figures {
        line[name] = value.clone();
    }
    line["notes"] = json!(played.notes);
    line["wrong"] = json!(played.wrong);
    line["seconds"] = json!(played.seconds.round());
    line["commit"] = json!(commit());
    line["machine"] = json!(machine());
    if let Some(file) = &cli.record {
        append(file, &line)?;
    }
    if cli.output == Output::Text {
        for (name, value) in line.as_object().into_iter().flatten() {
            println!("| {name} | {value} |");
        }
    }
    println!("{line}");
    Ok(())
}

#[cfg(test)]
#[path = "receivers_tests.rs"]
mod tests;
