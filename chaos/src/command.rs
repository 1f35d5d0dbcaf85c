//! Runs a program to its end; what it said is the answer or the error.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// What a program wrote to standard output; its failure is an error with what it wrote to the other.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let ended = command.stdin(Stdio::null()).output().with_context(|| format!("run {shown}"))?;
    if !ended.status.success() {
        let said = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
        bail!("{shown} ended with {}: {said}", ended.status);
    }
    Ok(String::from_utf8_lossy(&ended.stdout).trim_end().to_owned())
}

/// The same, for a program whose output does not matter.
pub(crate) fn said(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    words.join(" ")
}
