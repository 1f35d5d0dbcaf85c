//! `cargo xtask fuzz`: made-up input for everything that reads bytes from outside, for as long as one likes.
//!
//! In the tests' profile: an overflow is a finding there, and what the tests have built is used again.

use std::process::Command;

use anyhow::{Context, Result};

use crate::runs::build_binaries;
use crate::step::{root, run, step};

/// Runs `understudy-fuzz` with these arguments.
pub(crate) fn fuzz(args: &[String]) -> Result<()> {
    let binaries =
        step("build", "correct the errors above", || build_binaries(&["understudy-fuzz"]))?;
    let binary = binaries.first().context("nothing was built")?;
    step("fuzz", "the lines above say which input it was, and how to judge it again", || {
        run(Command::new(binary).args(args).current_dir(root()))
    })
}
