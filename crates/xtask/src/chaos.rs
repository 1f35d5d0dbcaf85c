//! `cargo xtask chaos`: builds the program and the rig, says what the machine lacks, and plays.
//!
//! What a row is and whether it passed is the rig's matter; its exit status is ours.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::machine;
use crate::runs::build_binaries;
use crate::step::{root, step};

/// Builds what is needed and becomes the rig.
pub(crate) fn chaos(args: &[String]) -> Result<()> {
    // The list needs neither root nor PostgreSQL.
    let only_lists = args.iter().any(|arg| arg == "--list" || arg == "--help" || arg == "-h");
    if !only_lists {
        step("PostgreSQL", "install it by hand", machine::need_postgres)?;
    }
    let binaries = step("build", "correct the errors above", || {
        build_binaries(&["understudy", "understudy-chaos"])
    })?;
    let [understudy, rig]: [PathBuf; 2] =
        binaries.try_into().ok().context("cargo build did not name both binaries")?;
    if !only_lists {
        step("the machine", "do what is said above, as root", || {
            let status = Command::new(&rig).arg("--check").stdout(Stdio::null()).status();
            let status = status.with_context(|| format!("cannot run {}", rig.display()))?;
            anyhow::ensure!(status.success(), "this machine cannot run the rig");
            Ok(())
        })?;
    }
    let mut command = Command::new(&rig);
    command.arg("--binary").arg(&understudy).args(args).current_dir(root());
    Err(command.exec()).with_context(|| format!("cannot run {}", rig.display()))
}
