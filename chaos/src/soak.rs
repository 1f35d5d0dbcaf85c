//! The soak: every processor saturated, a link that flaps within what the timings tolerate, and a
//! workload that goes on. It counts failovers; there must be none.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::Cli;
use crate::catalogue::{Row, Status};
use crate::faults::Fault;
use crate::faults::acts::Act;
use crate::faults::links::Unplugged;
use crate::lab::{Mode, Profile, Shape};
use crate::play::Pace;
use crate::report::Output;
use crate::rig::{Clusters, append};
use crate::scenarios::last;
use crate::series::{commit, machine};
use crate::stage::Stage;

/// How long the active's link is away each time.
///
/// A holder's lease survives one lost renewal and one change of the Raft leader after the link is back:
/// what is left for the cut is D·(1 − ρ) − M − r − (2·election_max + heartbeat + 50 ms), 735 ms with the
/// default timings. With the fast ones it is 75 ms.
const CUT_DEFAULT: Duration = Duration::from_millis(500);
const CUT_FAST: Duration = Duration::from_millis(50);
/// From the end of a cut to the next one: longer than a lease, so that each cut meets a fresh one.
const BETWEEN: Duration = Duration::from_secs(5);

const SOAK: Row = Row::new(
    "soak",
    "saturated processors and a link that flaps within what is tolerated",
    "no failover",
    Status::Built(soak),
);

/// Busy loops, one for each processor; ended with this.
struct Hogs(Vec<Child>);

impl Hogs {
    fn start(bound: Duration) -> Result<Hogs> {
        let mut hogs = Hogs(Vec::new());
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            // Should the rig die they end with it, and after the bound by themselves. Each has a session of
            // its own: the kernel shares processors out between sessions first, and somebody else's load
            // is what is meant.
            let mut hog = Command::new("setpriv");
            hog.args(["--pdeathsig", "KILL", "setsid", "timeout", &bound.as_secs().to_string()]);
            hog.args(["sh", "-c", "while :; do :; done"]).stdin(Stdio::null());
            hogs.0.push(hog.spawn().context("start a busy loop")?);
        }
        Ok(hogs)
    }

    fn all_run(&mut self) -> bool {
        self.0.iter_mut().all(|hog| matches!(hog.try_wait(), Ok(None)))
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for hog in &mut self.0 {
            // `timeout` passes SIGTERM on to its command, which SIGKILL would leave behind.
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_child(hog),
                rustix::process::Signal::TERM,
            );
            hog.wait().ok();
        }
    }
}

fn cut_of(profile: Profile) -> Duration {
    match profile {
        Profile::Default => CUT_DEFAULT,
        Profile::Fast => CUT_FAST,
    }
}

fn soak(stage: &mut Stage) -> Result<()> {
    let cut = cut_of(stage.lab.shape.profile);
    let mut hogs = Hogs::start(stage.pace.duration + Duration::from_secs(120))?;
    let saturated = hogs.all_run();
    stage.inflict(|_| {
        let words = "every processor has a busy loop".to_owned();
        Ok(Act::seen_by(move || Ok(saturated.then(|| words.clone()))))
    })?;
    let (first, begun) = (epoch(stage)?, Instant::now());
    let mut flaps = Flaps::default();
    while begun.elapsed() < stage.pace.duration {
        // The one that is active now: should there be a failover, the rest of the time counts too.
        if let Some(active) = stage.lab.active() {
            flaps.flap(stage, active, cut)?;
        }
        last(BETWEEN);
    }
    let epochs = epoch(stage)? - first;
    stage.note(flaps.words(cut));
    stage.note(format!("{epochs} new epochs"));
    ensure!(flaps.hit * 10 >= flaps.cuts * 9, "only {} of {} cuts hit", flaps.hit, flaps.cuts);
    ensure!(hogs.all_run(), "a busy loop ended early");
    drop(hogs);
    stage.acknowledged_again(Duration::from_secs(10))?;
    ensure!(epochs == 0, "{epochs} new epochs, and none was called for");
    Ok(())
}

fn epoch(stage: &Stage) -> Result<u64> {
    let patience = Duration::from_secs(30);
    stage.lab.until("a majority that knows its epoch", patience, || stage.lab.epoch().is_some())?;
    stage.lab.epoch().context("read the epoch")
}

/// What was done to the link.
#[derive(Default)]
struct Flaps {
    cuts: u64,
    hit: u64,
    packets: u64,
    longest: Duration,
}

impl Flaps {
    fn flap(&mut self, stage: &Stage, active: &'static str, cut: Duration) -> Result<()> {
        let begun = Instant::now();
        let mut link = Unplugged::begin(&stage.lab.arena, active)?;
        last(cut);
        link.heal()?;
        self.longest = self.longest.max(begun.elapsed());
        self.cuts += 1;
        self.hit += u64::from(link.packets > 0);
        self.packets += link.packets;
        Ok(())
    }

    fn words(&self, cut: Duration) -> String {
        let Flaps { cuts, hit, packets, longest } = self;
        format!(
            "{cuts} cuts of {cut:?} ({longest:?} at most), {hit} of them hit packets, {packets} lost"
        )
    }
}

/// How many turns of a row's length it may take.
pub(crate) fn turns(minutes: u32) -> u32 {
    minutes.div_ceil(7) + 1
}

/// Runs it once; whether it passed.
pub(crate) fn run(
    cli: &Cli,
    minutes: u32,
    clusters: &mut Clusters,
    runtime: &Runtime,
) -> Result<bool> {
    let profile = cli.profile.unwrap_or_default();
    let mode = cli.mode.unwrap_or(Mode::Zero);
    let shape = Shape { profile, ..Shape::from(mode) };
    let pace = Pace { duration: Duration::from_secs(u64::from(minutes) * 60), ..Pace::ROWS };
    let played = clusters.play(&SOAK, shape, pace, runtime);
    let line = json!({
        "soak_minutes": minutes,
        "profile": profile,
        "mode": mode,
        "rows": 1,
        "failed": u32::from(!played.passed),
        "failovers": played.actives.len().saturating_sub(1),
        "late_releases": played.late_releases,
        "lost": played.lost,
        "acknowledged": played.acknowledged,
        "write_outage_ms": played.write_outage_ms,
        "cut_ms": u64::try_from(cut_of(profile).as_millis()).unwrap_or(u64::MAX),
        "notes": played.notes,
        "wrong": played.wrong,
        "commit": commit(),
        "machine": machine(),
    });
    if let Some(file) = &cli.record {
        append(file, &line)?;
    }
    match cli.output {
        Output::Json => println!("{line}"),
        Output::Text => println!("{line:#}"),
    }
    Ok(played.passed && played.late_releases == 0)
}
