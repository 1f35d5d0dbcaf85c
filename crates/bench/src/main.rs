//! `understudy-bench`: how fast Understudy is, beside what PostgreSQL does by itself.
//!
//! Contenders take turns on the same server, round by round, and every figure that counts is a ratio
//! within one round: a machine that is busy for a while is busy for all of them. Nothing here is a test;
//! what must hold is tested elsewhere.

mod health;
mod postgres;
mod statistics;
mod usage;
mod wal;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// How fast Understudy is, beside what PostgreSQL does by itself.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Cli {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Debug, Subcommand)]
enum Subject {
    /// The WAL path beside PostgreSQL's own replication: commits under load, and catching up.
    Wal(wal::Options),
    /// The HTTP door of a running node, beside clients that are stuck.
    Health(health::Options),
    /// One side of the path as a process of its own, so that its cost can be told from the other's.
    #[command(hide = true)]
    Source {
        /// What it is to do, as JSON.
        task: String,
    },
    /// The other side.
    #[command(hide = true)]
    Receiver {
        /// What it is to do, as JSON.
        task: String,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().subject {
        Subject::Wal(options) => wal::run(&options),
        Subject::Health(options) => health::run(&options),
        Subject::Source { task } => wal::source(&task),
        Subject::Receiver { task } => wal::receiver(&task),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
