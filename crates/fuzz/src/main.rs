//! `understudy-fuzz`: the long run of the targets, and one input alone. Exit status 1 when something does not
//! hold.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use understudy_fuzz::corpus;
use understudy_fuzz::engine::{self, Budget, Progress};
use understudy_fuzz::targets::{TARGETS, Target};

/// Made-up input for everything that reads bytes from outside.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask fuzz", version)]
struct Options {
    /// How long, all targets together.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only this target; may be given several times. All without it.
    #[arg(long = "target", value_name = "NAME")]
    targets: Vec<String>,
    /// Judge this one input, which needs a target.
    #[arg(long, value_name = "FILE", requires = "targets")]
    input: Option<PathBuf>,
    /// Begin with this number; one from the clock without it.
    #[arg(long)]
    seed: Option<u64>,
    /// How many targets at a time; as many as there are processors without it.
    #[arg(long)]
    threads: Option<usize>,
    /// Say which targets there are, and do nothing.
    #[arg(long)]
    list: bool,
}

/// How often a target says how far it has come.
const SAY_EVERY: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("understudy-fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<bool> {
    if options.list {
        for target in TARGETS {
            println!("{:<14}{}", target.name, target.about);
        }
        return Ok(true);
    }
    let targets = chosen(&options.targets)?;
    if let Some(path) = &options.input {
        let [target] = targets[..] else { bail!("one input needs one target") };
        return one(target, path);
    }
    let from_the_clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = match options.seed {
        Some(seed) => seed,
        None => from_the_clock().context("the clock stands before 1970")?.as_secs(),
    };
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = options.threads.unwrap_or_else(cores).clamp(1, targets.len());
    let each = Duration::from_secs(options.seconds) * threads as u32 / targets.len() as u32;
    eprintln!("    {} targets, {:.1} s each, seed {seed}", targets.len(), each.as_secs_f64());
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(target) = targets.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let outcome = long(target, each, seed);
                    outcomes
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().context("a run panicked")?;
    outcomes.into_iter().try_fold(true, |good, outcome| Ok(good && outcome?))
}

fn chosen(names: &[String]) -> Result<Vec<&'static Target>> {
    if names.is_empty() {
        return Ok(TARGETS.iter().collect());
    }
    let find = |name: &String| {
        let target = TARGETS.iter().find(|target| target.name == *name);
        target.with_context(|| format!("there is no target {name:?}; `--list` names them"))
    };
    names.iter().map(find).collect()
}

/// One target for a while; false if something does not hold.
fn long(target: &Target, limit: Duration, seed: u64) -> Result<bool> {
    let kept: Vec<_> = corpus::load(target.name)?.into_iter().map(|(_, input)| input).collect();
    let begun = Instant::now();
    let mut said = begun;
    let say = |done: Progress| {
        let rate = done.input_count as f64 / begun.elapsed().as_secs_f64();
        let (inputs, answers) = (done.input_count, done.answer_count);
        eprintln!(
            "    {:<14}{inputs:>10} inputs, {rate:>7.0}/s, {answers:>6} answers",
            target.name
        );
    };
    let mut progress = |done| {
        if said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            say(done);
        }
    };
    match engine::run(target, &kept, Budget::Time(limit), seed, &mut progress) {
        Ok(done) => {
            say(done);
            Ok(true)
        }
        Err(failure) => {
            let path = corpus::keep(target.name, &failure.input)?;
            report(target, &path, &failure.message);
            Ok(false)
        }
    }
}

/// One input, with everything that the target says of it.
fn one(target: &Target, path: &Path) -> Result<bool> {
    let input = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    match engine::judge(target, &input) {
        Ok(answer) => {
            println!("{}: good: {answer}", target.name);
            Ok(true)
        }
        Err(message) => {
            report(target, path, &message);
            Ok(false)
        }
    }
}

fn report(target: &Target, path: &Path, message: &str) {
    let here = std::env::current_dir().unwrap_or_default();
    let shown = path.strip_prefix(&here).unwrap_or(path).display();
    println!("{}: FAILED: {message}", target.name);
    println!("    the input: {shown}");
    println!("    again: cargo xtask fuzz --target {} --input {shown}", target.name);
}
