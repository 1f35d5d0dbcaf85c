//! What a shell and `man` want to know of the command line, made from its own definition.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Command;
use clap_complete::Shell;

use crate::output;

/// Print what a shell needs to complete verbs and flags.
#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// Which shell; for bash: `understudy completions bash > /etc/bash_completion.d/understudy`.
    #[arg(value_enum)]
    shell: Shell,
}

/// Write the manual's pages.
#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// Where: a page for the program and one for each verb, understudy-VERB.1.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

/// Prints the completions.
///
/// # Errors
/// When nobody reads them.
pub(crate) fn completions(
    mut command: Command,
    args: &CompletionsArgs,
) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "understudy", &mut text);
    std::io::stdout().write_all(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the pages.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn man(command: Command, args: &ManArgs) -> anyhow::Result<ExitCode> {
    let dir = &args.dir;
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    clap_mangen::generate_to(command, dir)
        .with_context(|| format!("write the pages to {}", dir.display()))?;
    let count = std::fs::read_dir(dir)?.count();
    output::print(&format!("{count} pages in {}\n", dir.display()))?;
    Ok(ExitCode::SUCCESS)
}
