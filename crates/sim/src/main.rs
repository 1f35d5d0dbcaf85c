//! `understudy-sim`: checks of the protocol, each a subcommand. Exit status 1 when a claim is broken.
//!
//! It spreads seeds over threads and adds up, and says how to run a failing one again; each world is
//! single-threaded and reproducible.

#[cfg(feature = "seeded-bugs")]
mod bugs;
mod record;
mod seeds;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use understudy_sim::model;

/// Checks of the protocol without a machine.
#[derive(Debug, Parser)]
#[command(name = "understudy-sim", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Search every state of the exhaustive model.
    Model(model::Args),
    /// Run seeds of the simulator.
    Sim(seeds::Options),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Model(args) => model::main(&args),
        Verb::Sim(options) => seeds::run(&options),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("understudy-sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}
