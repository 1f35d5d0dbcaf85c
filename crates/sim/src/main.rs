//! `understudy-sim`: checks of the protocol, each a subcommand. Exit status 1 when a claim is broken.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use understudy_sim::model;

/// Checks of the protocol without a machine.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Search every state of the exhaustive model.
    Model(model::Args),
}

fn main() -> Result<ExitCode> {
    let is_good = match Cli::parse().verb {
        Verb::Model(args) => model::main(&args)?,
    };
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
