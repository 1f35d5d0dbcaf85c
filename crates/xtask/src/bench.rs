//! `cargo xtask bench`: becomes the benchmarks, built alone and in the release profile.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::machine;
use crate::step::{cargo, root, step};

/// Measures; the benchmarks' exit status is ours.
pub(crate) fn bench(args: &[String]) -> Result<()> {
    step("PostgreSQL", "install it by hand", machine::need_postgres)?;
    let git =
        Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(root()).output();
    let commit = git.ok().filter(|said| said.status.success());
    let commit = commit.and_then(|said| String::from_utf8(said.stdout).ok()).unwrap_or_default();
    let mut command =
        cargo(&["run", "--release", "--quiet", "--package", "understudy-bench", "--"]);
    command.env("UNDERSTUDY_BENCH_COMMIT", commit.trim());
    Err(command.args(args).exec()).context("cannot run cargo")
}
