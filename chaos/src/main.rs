//! The chaos rig: real processes and real PostgreSQL in network namespaces, faults that prove
//! themselves, and a client that remembers every acknowledged commit.
//!
//! The program is two processes. The outer one makes the arena, starts the inner one within it, and
//! sweeps everything away however that ends; the inner one plays. It judges only by what clients and
//! operators can see, and never bends a row to pass.

mod arena;
mod assurance;
mod bulk;
mod catalogue;
mod cgroup;
mod clocks;
mod command;
mod conversation;
mod copies;
mod faults;
mod gauges;
mod lab;
mod mix;
mod needs;
mod observer;
mod outages;
mod play;
mod process;
mod receipts;
mod receivers;
mod report;
mod rig;
mod scenarios;
mod seed;
mod series;
mod soak;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::arena::Arena;
use crate::lab::{Mode, Profile};
use crate::outages::Event;
use crate::report::Output;

/// Faults against a real cluster, one row of the catalogue after the other.
#[derive(Debug, Parser)]
#[command(name = "understudy-chaos", bin_name = "cargo xtask chaos")]
struct Cli {
    /// Name every row with what is expected and whether it is played; run nothing.
    #[arg(long)]
    list: bool,
    /// Rows to play, such as F-19; all that have a scenario unless given.
    #[arg(long = "row", value_name = "ID")]
    rows: Vec<String>,
    /// The dial to play under; a series without it goes back and forth between both.
    #[arg(long)]
    mode: Option<Mode>,
    /// Tell how long writes were out, but fail no row by it: for machines that have other work too.
    #[arg(long, conflicts_with_all = ["isolations", "freezes", "outages", "soak"])]
    untimed: bool,
    /// Play every row so many times.
    #[arg(long, default_value_t = 1, value_name = "N")]
    times: u32,
    /// Isolate the active again and again, N times, on a cluster that lives on.
    #[arg(long, value_name = "N", conflicts_with_all = ["rows", "freezes"])]
    isolations: Option<u32>,
    /// Freeze daemon, postmaster or the whole active site in turn, N times.
    #[arg(long, value_name = "N", conflicts_with_all = ["rows"])]
    freezes: Option<u32>,
    /// Measure write outages: each event N times, with each profile, those in the file included.
    #[arg(long, value_name = "N", conflicts_with_all = ["rows", "isolations", "freezes"])]
    outages: Option<u32>,
    /// For --outages: only this event; all five unless given.
    #[arg(long = "event", value_name = "EVENT", requires = "outages")]
    events: Vec<Event>,
    /// For --outages and --soak: only this profile of timings.
    #[arg(long)]
    profile: Option<Profile>,
    /// Saturate the processors and let a link flap within what is tolerated, for so many minutes.
    #[arg(long, value_name = "MINUTES",
          conflicts_with_all = ["rows", "isolations", "freezes", "outages"])]
    soak: Option<u32>,
    /// Kill, freeze and cut off the passive's side at random under mixed load, for so many minutes, and
    /// compare its journal with the primary's WAL.
    #[arg(long, value_name = "MINUTES",
          conflicts_with_all = ["rows", "isolations", "freezes", "outages", "soak", "untimed"])]
    receivers: Option<u32>,
    /// For --receivers: what is drawn follows from it; another one each time unless given, and told.
    #[arg(long, value_name = "NUMBER", requires = "receivers")]
    seed: Option<u64>,
    /// Let so much WAL pass, and then a receiver stand still, and tell the daemons' memory.
    #[arg(long, value_name = "GIB", conflicts_with_all =
          ["rows", "mode", "isolations", "freezes", "outages", "soak", "receivers", "untimed"])]
    bulk: Option<u32>,
    /// Let the third node keep the journal, and a commit be acknowledged when it or the passive has it.
    #[arg(long)]
    journal: bool,
    /// Append each result as a JSON line to this file; a series goes on where the file ends.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// How results are printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// The program under test; unless given, `understudy` beside this program.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Where logs of rows that failed are kept.
    #[arg(long, default_value = "target/chaos", value_name = "DIR")]
    logs: PathBuf,
    /// Say whether this machine can run the rig, and run nothing.
    #[arg(long)]
    check: bool,
    /// The arena to play in; set by the outer process.
    #[arg(long, hide = true, value_name = "NUMBER")]
    inside: Option<u32>,
}

/// One row, its cluster included, takes no longer; beyond it the inner process is ended.
const ROW_TIMEOUT: Duration = Duration::from_secs(420);

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    if cli.list {
        report::list(cli.output)?;
        return Ok(ExitCode::SUCCESS);
    }
    for id in &cli.rows {
        let row = catalogue::find(id).with_context(|| format!("there is no row {id:?}"))?;
        if row.play().is_none() {
            bail!("row {} is not played: {}", row.id, row.status_words());
        }
    }
    if let Some(number) = cli.inside {
        return rig::run(&cli, &Arena { number });
    }
    needs::check()?;
    if cli.check {
        println!("this machine can run the rig");
        return Ok(ExitCode::SUCCESS);
    }
    // Rows and series are judged by what is lost; these two by what takes how long.
    if cli.soak.is_some() || cli.outages.is_some() {
        needs::check_rank()?;
    }
    outer(&cli)
}

/// Makes the arena, plays in it, and sweeps it away.
fn outer(cli: &Cli) -> Result<ExitCode> {
    let made = Arena::create();
    let ended = match &made {
        Ok(arena) => play_inside(cli, arena),
        Err(_) => Ok(ExitCode::FAILURE),
    };
    let own = Arena { number: std::process::id() };
    let swept = own.sweep(false).context("sweep the arena");
    made?;
    swept?;
    ended
}

fn play_inside(cli: &Cli, arena: &Arena) -> Result<ExitCode> {
    let own = std::env::current_exe().context("find this program's own file")?;
    let mut inner = arena.at_hub(&own);
    inner.args(std::env::args_os().skip(1)).arg(format!("--inside={}", arena.number));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut inner = tokio::process::Command::from(inner).spawn().context("start the rig")?;
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let status = tokio::select! {
            status = inner.wait() => status.context("wait for the rig")?,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("told to end"),
            () = tokio::time::sleep(ROW_TIMEOUT * rig::turns(cli)) => {
                bail!("the rig did not end in {:?} for each turn", ROW_TIMEOUT)
            }
        };
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Ok(ExitCode::from(code.unwrap_or(1)))
    })
}
