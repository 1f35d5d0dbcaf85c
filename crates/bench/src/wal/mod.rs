//! The WAL path beside PostgreSQL's own: what is measured, in which order, and what is said of it.

mod backlog;
mod commits;
mod lab;
mod link;
mod report;
mod sides;
mod turn;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

pub(crate) use sides::{receiver, source};

use backlog::Content;
use commits::Load;
use lab::Lab;
use link::Link;

/// Something that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Transactions a second and their latency, with 1, 8 and 32 clients.
    Commits,
    /// How far durability and replay lag behind, at 2,000 transactions a second.
    Lag,
    /// How fast a backlog is caught up with, and at which cost.
    CatchUp,
    /// The same over a thin link.
    ThinLink,
}

/// What is measured, and how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these parts; all of them unless given.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Rounds in which every contender has a turn; fewer than three give no verdict.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of load in each turn.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// How many clients write at once, one case each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
    clients: Vec<u32>,
    /// Delay of the link each way, milliseconds; the commits are measured with each.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 5, 40], value_name = "MS")]
    delays: Vec<u32>,
    /// Rate of the thin link, million bits a second.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    thin_mbit: u32,
    /// Size of the backlog for the thin link, MiB.
    #[arg(long, default_value_t = 96, value_parser = clap::value_parser!(u64).range(16..))]
    thin_backlog_mib: u64,
    /// Size of the backlog, MiB.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(16..))]
    backlog_mib: u64,
    /// Where servers and journals lie while it runs; the system's temporary directory unless given.
    /// No WAL is removed while it runs: it needs six times the backlog, and with commits about 0.3 GB for
    /// each turn of a contender (40 GB with the defaults).
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Append the result as a JSON line to this file.
    #[arg(long)]
    record: Option<PathBuf>,
    /// The commit that is measured, for the record.
    #[arg(long, env = "UNDERSTUDY_BENCH_COMMIT", hide = true)]
    commit: Option<String>,
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// Transactions a second at which lag is measured.
const LAG_RATE: u32 = 2_000;

/// Measures, and says what came of it; the last line of standard output is one JSON object.
pub(crate) fn run(options: &Options) -> Result<()> {
    eprintln!("    making a primary, a copy of it and certificates");
    let lab = Lab::create(options.dir.as_deref())?;
    let mut loads = Vec::new();
    for &delay_ms in options.delays.iter().filter(|_| options.wants(Part::Commits)) {
        let link = Link { delay_ms, mbit: None };
        loads.extend(options.clients.iter().map(|&clients| Load { clients, rate: None, link }));
    }
    if options.wants(Part::Lag) {
        loads.push(Load { clients: 8, rate: Some(LAG_RATE), link: Link::default() });
    }
    let mut lines = Vec::new();
    let mut measured = Vec::new();
    if !loads.is_empty() {
        let standby = lab.standby()?;
        for round in 1..=options.rounds {
            for &load in &loads {
                measured.extend(commits::round(&lab, &standby, load, options.seconds, round)?);
            }
        }
    }
    for &load in &loads {
        lines.extend(report::commits(load, &measured));
    }
    if options.wants(Part::CatchUp) {
        for content in [Content::Typical, Content::Incompressible] {
            let (size, link) = (options.backlog_mib, Link::default());
            lines.extend(catch_up(&lab, content, size, link, options.rounds)?);
        }
    }
    if options.wants(Part::ThinLink) {
        let link = Link { delay_ms: 0, mbit: Some(options.thin_mbit) };
        let size = options.thin_backlog_mib;
        lines.extend(catch_up(&lab, Content::Typical, size, link, options.rounds)?);
    }
    for line in &lines {
        println!("{}", line.words());
    }
    let result = json!({
        "bench": "wal",
        "commit": options.commit,
        "machine": crate::usage::machine(),
        "postgres": lab.programs.version(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "backlog_mib": options.backlog_mib,
        "lines": lines,
    });
    println!("{result}");
    options.record.as_deref().map_or(Ok(()), |file| append(file, &result.to_string()))
}

fn catch_up(
    lab: &Lab,
    content: Content,
    mebibytes: u64,
    link: Link,
    rounds: u32,
) -> Result<Vec<report::Line>> {
    eprintln!("    writing {mebibytes} MiB of {} WAL", content.name());
    lab.renew_copy()?;
    backlog::write(&mut lab.sql()?, content, mebibytes << 20)?;
    let mut measured = Vec::new();
    for round in 1..=rounds {
        measured.extend(backlog::round(lab, content, link, round)?);
    }
    Ok(report::catch_up(content, link, &measured))
}

fn append(file: &Path, line: &str) -> Result<()> {
    let opened = OpenOptions::new().create(true).append(true).open(file);
    let mut opened = opened.with_context(|| format!("open {}", file.display()))?;
    writeln!(opened, "{line}").with_context(|| format!("append to {}", file.display()))
}
