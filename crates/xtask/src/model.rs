//! `cargo xtask model`: builds the exhaustive model alone, optimised, and runs it.
//!
//! Mistakes are built in only for `--mutants`, and only into this one binary: the workspace's other
//! crates are not built with them.

use anyhow::{Context, Result, bail};

use crate::step::{cargo, step};

/// Builds and runs; every argument is passed on to `understudy-sim model`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    step("model", "see what it printed", || {
        let mut command = cargo(&["run", "--release", "--quiet", "-p", "understudy-sim"]);
        if args.iter().any(|arg| arg == "--mutants") {
            command.args(["--features", "seeded-bugs"]);
        }
        command.args(["--bin", "understudy-sim", "--", "model"]).args(args);
        let status = command.status().context("cannot run cargo")?;
        match status.code() {
            Some(0) => Ok(()),
            Some(1) => bail!("a claim is broken, a mistake was not found, or not all was searched"),
            Some(_) | None => bail!("the model ended with {status}"),
        }
    })
}
