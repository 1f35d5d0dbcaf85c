//! `cargo xtask`: checks, tests and the demo, each one command, on any fresh machine.
//!
//! It runs cargo and PostgreSQL's installation for whoever has just cloned the repository. It knows
//! nothing of Understudy's inside: no crate of ours is among its dependencies.

mod bench;
mod chaos;
mod deps;
mod fuzz;
mod house;
mod licences;
mod lints;
mod machine;
mod metadata;
mod model;
mod runs;
mod sim;
mod step;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Checks, tests and the demo of Understudy.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check format, house rules, dependencies, licences, lints and documentation; changes nothing.
    Verify,
    /// Format the code and apply the lints' own corrections.
    Fix,
    /// Check the crate graph and the pure crates' bans against the house rules.
    CheckDeps,
    /// Verify, install what is missing, run every test, then the commit's own simulator seeds.
    Test {
        /// Skip the verification that the tests normally begin with.
        #[arg(long)]
        no_verify: bool,
        /// Arguments for the test runner, for instance a filter.
        #[arg(last = true)]
        runner_args: Vec<String>,
    },
    /// Search every state of the exhaustive model, or with `--mutants` show that it finds mistakes.
    Model {
        /// Arguments of `understudy-sim model`, for instance `--mutants` or `--output json`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run the seeded simulator, for instance `--seeds 1000`, `--seed 7`, `--seeded-bugs`.
    Sim {
        /// Arguments of `understudy-sim sim`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Feed made-up input to everything that reads bytes from outside, for instance `--seconds 600`.
    Fuzz {
        /// Arguments of `understudy-fuzz`, for instance `--list`, or `--target scanner`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Install what is missing, build the binary and run `understudy demo`.
    Demo {
        /// Arguments of `understudy demo`, for instance `--rounds 3`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measure Understudy beside PostgreSQL itself, for instance `wal --only commits --rounds 3`.
    Bench {
        /// Arguments of the benchmarks; `--help` names them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build program and chaos rig, and play faults against a real cluster (needs root).
    Chaos {
        /// Arguments of the rig, for instance `--list`, or `--row F-19 --mode zero --output json`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Verify => runs::verify(),
        Verb::Fix => runs::fix(),
        Verb::CheckDeps => runs::check_deps(),
        Verb::Test { no_verify, runner_args } => runs::test(no_verify, &runner_args),
        Verb::Sim { args } => sim::sim(&args),
        Verb::Fuzz { args } => fuzz::fuzz(&args),
        Verb::Demo { args } => runs::demo(&args),
        Verb::Bench { args } => bench::bench(&args),
        Verb::Chaos { args } => chaos::chaos(&args),
        Verb::Model { args } => model::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_s_own_arguments_are_passed_on_with_and_without_dashes_before_them() {
        for line in [
            &["xtask", "demo", "--rounds", "3", "--output", "json"][..],
            &["xtask", "demo", "--", "--rounds", "3", "--output", "json"],
        ] {
            match Cli::try_parse_from(line).unwrap().verb {
                Verb::Demo { args } => assert_eq!(args, ["--rounds", "3", "--output", "json"]),
                other => panic!("parsed as {other:?}"),
            }
        }
    }
}
