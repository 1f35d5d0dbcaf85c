//! `understudy-sim`: runs seeds over all cores and says how to run a failing one again.
//!
//! It only spreads seeds over threads and adds up; each world is single-threaded and reproducible.

#[cfg(feature = "seeded-bugs")]
mod bugs;
mod seeds;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The seeded simulator of Understudy.
#[derive(Debug, Parser)]
#[command(name = "understudy-sim", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run seeds of the simulator.
    Sim(seeds::Options),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
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
