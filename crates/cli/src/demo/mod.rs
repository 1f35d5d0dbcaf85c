//! `understudy demo`: a whole cluster on one machine, a workload, and the loss of a site, to watch.
//!
//! One command and no configuration. It uses the program's own commands, status and PostgreSQL's
//! ordinary tools; nothing in the daemon knows that it is a demo, and nothing of it outlives the
//! command unless `--keep` says so.

mod account;
mod director;
mod events;
mod lab;
mod scene;
mod screen;
mod site;
mod status;
mod view;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use understudy_types::DurabilityMode;

use account::Account;
use director::{Director, Plan};
use lab::Lab;
use scene::Scene;
use screen::{Manner, Screen, lock};

use crate::output::Output;

/// Starts two sites and a witness on this machine, writes to them, and shows the loss of a site.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The RPO dial: `zero` loses no acknowledged commit; `bounded` acknowledges without waiting for
    /// the passive and limits what may be lost to an hour.
    #[arg(long, value_enum, default_value_t = Mode::Zero)]
    mode: Mode,
    /// Databases with work-log entries, one a tenant.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    tenants: u32,
    /// Writes per second that the workload aims at.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
    /// Loses the active site without being asked, once unless --rounds says otherwise; the default
    /// where there is no terminal.
    #[arg(long, value_enum)]
    fail: Option<Target>,
    /// Loses whichever site is active, so many times. 0 only writes, and compares the sites.
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=1000))]
    rounds: Option<u32>,
    /// How long to write before each loss, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    write_seconds: u64,
    /// Timings of the lease: `default` survives a leader change, `fast` halves the outage.
    #[arg(long, value_enum, default_value_t = Profile::Default)]
    profile: Profile,
    /// Lines instead of the live view.
    #[arg(long)]
    plain: bool,
    /// Where to make the demo's directory. PostgreSQL's user must be able to enter it.
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
    /// Leaves the cluster running, and tells how to reach it.
    #[arg(long)]
    keep: bool,
    /// Ends and removes a cluster that --keep left running; does nothing else.
    #[arg(long, value_name = "DIRECTORY")]
    stop: Option<PathBuf>,
    /// How the account is printed at the end; with `json` it is the last line of stdout.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Mode {
    Zero,
    Bounded,
}

impl From<Mode> for DurabilityMode {
    fn from(mode: Mode) -> DurabilityMode {
        match mode {
            Mode::Zero => DurabilityMode::Zero,
            Mode::Bounded => DurabilityMode::Bounded,
        }
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Target {
    Active,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Profile {
    Default,
    Fast,
}

/// Runs the demo to its end and prints the account. Success means that everything promised was kept.
///
/// # Errors
/// When the demo could not be carried through; the nodes' last log lines are printed then.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    if let Some(directory) = &args.stop {
        lab::remove_directory(directory)?;
        return Ok(ExitCode::SUCCESS);
    }
    let manner = Manner::choose(args.output != Output::Text, args.plain);
    let plan = Plan {
        mode: args.mode.into(),
        tenants_count: args.tenants,
        writes_per_second: args.rate,
        rounds: rounds_of(&args, manner),
        write_for: Duration::from_secs(args.write_seconds),
    };
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let profile = match args.profile {
        Profile::Default => "default",
        Profile::Fast => "fast",
    };
    let lab = Lab::create(&parent, plan.mode, profile)?;
    let clients = status::clients(&lab.context())?;
    let sites = lab.endpoints().into_iter().map(|endpoint| endpoint.name).collect();
    let title = format!("{} · {} tenants", plan.mode, plan.tenants_count);
    let mut scene = Scene::new(title, sites);
    scene.hint = match plan.rounds {
        None => "f loses the active site   q finishes with the account   Ctrl-C stops at once",
        Some(_) => "Ctrl-C stops at once",
    }
    .to_owned();
    let scene = Arc::new(Mutex::new(scene));

    let (orders, ordered) = mpsc::channel(16);
    let (abort, aborted) = watch::channel(false);
    let screen = Screen::open(manner, scene.clone(), orders, abort);
    let watcher = tokio::spawn(status::watch(clients, scene.clone()));
    let mut director = Director { plan, lab, scene: scene.clone(), orders: ordered };
    let result = tokio::select! {
        result = director.run() => result,
        stopped = stopped(aborted) => Err(stopped),
    };
    watcher.abort();
    if let Ok(account) = &result {
        let tone = if account.ok { scene::Tone::Good } else { scene::Tone::Fault };
        lock(&scene).say(tone, if account.ok { "all is well" } else { "NOT as promised" });
    }
    drop(screen);
    conclude(result, director, &args)
}

/// Where there is nobody to press a key, one loss is shown.
fn rounds_of(args: &Args, manner: Manner) -> Option<u32> {
    match (args.rounds, args.fail) {
        (Some(rounds), _) => Some(rounds),
        (None, Some(Target::Active)) => Some(1),
        (None, None) if manner != Manner::Live => Some(1),
        (None, None) => None,
    }
}

fn conclude(result: Result<Account>, mut director: Director, args: &Args) -> Result<ExitCode> {
    let account = match result {
        Ok(account) => account,
        Err(error) => {
            if error.is::<Stopped>() {
                eprintln!("{error}; cleaning up");
                return Ok(ExitCode::FAILURE);
            }
            eprintln!("{}", director.lab.log_tails(30));
            return Err(error);
        }
    };
    if args.keep {
        director.lab.keep();
        eprintln!("{}", how_to_connect(&director.lab));
    } else if !account.ok {
        eprintln!("{}", director.lab.log_tails(30));
    }
    match args.output {
        Output::Json | Output::Yaml => print!("{}", args.output.data(&account)),
        Output::Text => print!("{}", account.text()),
    }
    Ok(if account.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn how_to_connect(lab: &Lab) -> String {
    let endpoints = lab.endpoints();
    let hosts: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.host.as_str()).collect();
    let ports: Vec<String> = endpoints.iter().map(|endpoint| endpoint.port.to_string()).collect();
    let role = lab::APPLICATION_ROLE;
    let password = lab.password.as_deref().unwrap_or_default();
    format!(
        "The cluster goes on. To look at it, to use it, to end it:\n  \
         understudy status --context {}\n  \
         psql 'host={} port={} user={role} password={password} dbname=tenant_0001 \
         target_session_attrs=read-write'\n  \
         understudy demo --stop {}",
        lab.context().display(),
        hosts.join(","),
        ports.join(","),
        lab.root.display(),
    )
}

/// Somebody stopped the demo; everything is cleaned up.
#[derive(Debug, thiserror::Error)]
#[error("the demo was stopped")]
struct Stopped;

/// Ends when somebody wants the demo to end at once.
async fn stopped(mut aborted: watch::Receiver<bool>) -> anyhow::Error {
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (mut interrupt, mut terminate) = match signals {
        (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
        (Err(error), _) | (_, Err(error)) => return anyhow::Error::new(error),
    };
    let key = async {
        // Without a live view nobody sends, and the sender is gone at once.
        if aborted.wait_for(|abort| *abort).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = key => {}
    }
    anyhow::Error::new(Stopped)
}
