//! `understudy wal`: which WAL the nodes hold, whether it is sound and the same at both sites, and single
//! files for PostgreSQL's own tools.
//!
//! WAL files are each node's own, so every data node is asked for itself; one that does not answer is
//! shown with the reason, and the exit code says so.

mod ask;
mod compare;
mod get;
mod list;
mod progress;
mod report;
mod status;
mod verify;

pub(crate) use status::status_of;

use std::path::PathBuf;
use std::process::ExitCode;

use understudy_node::wal_files::parse_rate;
use understudy_types::{Lsn, Timeline};

use crate::context::ContextArgs;
use crate::output::Output;

/// WAL: what is held where, whether it is sound, and single files.
#[derive(Debug, clap::Args)]
pub(crate) struct WalArgs {
    #[command(subcommand)]
    verb: WalVerb,
}

#[derive(Debug, clap::Subcommand)]
enum WalVerb {
    /// Show which ranges of WAL each data node holds, with gaps and the room that is left.
    ///
    /// A passive holds it in its journal, the active in its PostgreSQL's pg_wal; an active that was
    /// passive before keeps that journal too. Exits 1 when a node could not be asked.
    Status(StatusArgs),
    /// List the single segment and history files.
    List(ListArgs),
    /// Have every node read all its WAL, and compare the sites.
    ///
    /// Checked are page headers, records with their checksums, the chain of records over segments and
    /// timelines, and history files; then segments that several sites hold must be equal (SHA-256). A
    /// finding names the file, the position, what was expected and what to do. Nothing is changed. Reading
    /// is paced (--rate), and ends when this command does. Exits 1 when something is wrong, or a node
    /// could not be verified. Needs the role operator.
    Verify(VerifyArgs),
    /// Copy a finished segment or history file out of a journal; for restore_command. Exits 1 without
    /// a word when the journal does not have it.
    Get(get::GetArgs),
}

/// Show what is held.
#[derive(Debug, clap::Args)]
struct StatusArgs {
    /// How it is printed.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// List files.
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Ask this node only; may be given several times.
    #[arg(long, value_name = "NODE", conflicts_with = "journal")]
    node: Vec<String>,
    /// Read this journal (the node's data directory and `wal`) instead of asking a node; works while its
    /// daemon is down.
    #[arg(long, value_name = "DIR")]
    journal: Option<PathBuf>,
    /// Only files of this timeline.
    #[arg(long, value_name = "NUMBER")]
    timeline: Option<Timeline>,
    #[command(flatten)]
    span: Span,
    /// How they are printed.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Verify.
#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// Ask this node only; may be given several times.
    #[arg(long, value_name = "NODE", conflicts_with = "journal")]
    node: Vec<String>,
    /// Read this journal (the node's data directory and `wal`) instead of asking nodes; works while its
    /// daemon is down, and finds the end by reading.
    #[arg(long, value_name = "DIR")]
    journal: Option<PathBuf>,
    #[command(flatten)]
    span: Span,
    /// How much each node reads in a second at most, 1MiB to 4GiB.
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = parse_rate)]
    rate: u64,
    /// How it is printed; JSON is one object a line, the last one the report.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// A part of the WAL.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Span {
    /// From the segment on that holds this position, as 0/3000148.
    #[arg(long, value_name = "LSN")]
    from: Option<Lsn>,
    /// Up to this position.
    #[arg(long, value_name = "LSN")]
    to: Option<Lsn>,
}

/// Runs the verb.
///
/// # Errors
/// When nobody can be asked, or the command line is wrong.
pub(crate) fn run(context: &ContextArgs, args: &WalArgs) -> anyhow::Result<ExitCode> {
    match &args.verb {
        WalVerb::Status(args) => crate::client(status::run(&context.load()?, args.output)),
        WalVerb::List(args) => match &args.journal {
            Some(dir) => list::from_files(dir, args),
            None => crate::client(list::from_nodes(&context.load()?, args)),
        },
        WalVerb::Verify(args) => match &args.journal {
            Some(dir) => verify::from_files(dir, args),
            None => crate::client(verify::from_nodes(&context.load()?, args)),
        },
        WalVerb::Get(args) => Ok(get::run(args)),
    }
}
