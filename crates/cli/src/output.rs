//! How the command line speaks: forms of output, exit codes, the one place that prints an error.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use understudy_node::adopt::AdoptError;
use understudy_node::recovery::RecoverError;

use crate::operate::CallError;

/// The operation failed.
pub(crate) const FAILED: u8 = 1;
/// The command line is wrong, or a confirmation is missing.
pub(crate) const USAGE: u8 = 2;
/// Refused: it would not be safe, or is not possible now. Nothing was changed.
pub(crate) const REFUSED: u8 = 3;
/// No node could be asked. Nothing was changed.
pub(crate) const UNREACHABLE: u8 = 4;
/// It may or may not have had an effect.
pub(crate) const UNKNOWN: u8 = 5;

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs; has a `version`.
    Json,
    /// The same as YAML, a document each.
    Yaml,
}

impl Output {
    /// Data in the form for programs that was asked for: JSON in one line, or a document of YAML.
    pub(crate) fn data(self, value: &impl serde::Serialize) -> String {
        // Plain data with text keys; nothing in it can fail to be written.
        match self {
            Output::Yaml => {
                let text = serde_yaml_ng::to_string(value).expect("plain data with text keys");
                format!("---\n{text}")
            }
            Output::Text | Output::Json => {
                serde_json::to_string(value).expect("plain data with text keys") + "\n"
            }
        }
    }
}

/// Prints an error with everything that it comes from, and says how to exit.
pub(crate) fn fail(error: &anyhow::Error) -> ExitCode {
    // A reader that has seen enough (`| head`) is no error.
    let closed = error.downcast_ref::<io::Error>();
    if closed.is_none_or(|error| error.kind() != io::ErrorKind::BrokenPipe) {
        eprintln!("error: {error:#}");
    }
    ExitCode::from(code_of(error))
}

fn code_of(error: &anyhow::Error) -> u8 {
    if let Some(RecoverError::Refused(_)) = error.downcast_ref::<RecoverError>() {
        return REFUSED;
    }
    if let Some(AdoptError::Refused(_) | AdoptError::Blocked { .. }) = error.downcast_ref() {
        return REFUSED;
    }
    match error.downcast_ref::<CallError>() {
        Some(CallError::Unreachable { .. }) => UNREACHABLE,
        Some(CallError::Refused { .. }) => REFUSED,
        Some(CallError::Unknown { .. }) => UNKNOWN,
        Some(CallError::Usage { .. }) => USAGE,
        Some(CallError::Failed { .. }) | None => FAILED,
    }
}

/// Writes data to stdout at once.
///
/// # Errors
/// When nobody reads it any more.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// The lines of a table, the heading first; each column is as wide as its widest cell.
pub(crate) fn aligned<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> Vec<String> {
    let mut widths = head.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String; N]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}  "));
        padded.collect::<String>().trim_end().to_owned()
    };
    std::iter::once(&head.map(str::to_owned)).chain(rows).map(line).collect()
}

/// Whether stdout is a terminal, and one that may be coloured.
pub(crate) fn colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stdout().is_terminal() && !unwanted && !dumb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_fail_has_its_own_exit_code() {
        let words = || "x".to_owned();
        let of = |error: CallError| code_of(&anyhow::Error::new(error).context("order a failover"));
        assert_eq!(of(CallError::Unreachable { reasons: Vec::new() }), 4);
        assert_eq!(of(CallError::Refused { words: words() }), 3);
        assert_eq!(of(CallError::Unknown { words: words() }), 5);
        assert_eq!(of(CallError::Usage { words: words() }), 2);
        assert_eq!(of(CallError::Failed { words: words() }), 1);
        assert_eq!(code_of(&anyhow::anyhow!("x")), 1);
    }
}
