//! Rules about the text of the repository that no compiler knows.
//!
//! Every Rust file opens by saying what it is; every relative link in a document leads somewhere; every
//! invariant that is cited is defined in docs/safety.md; long files are named, without being refused.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Beyond this many lines a file is named; it is a hint, not a law.
const FILE_LINES_MAX: usize = 800;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Refused.
    pub(crate) findings: Vec<String>,
    /// Only said.
    pub(crate) hints: Vec<String>,
}

/// Reads every Rust file and document below `root`.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn check(root: &Path) -> Result<Report> {
    let mut files = Vec::new();
    collect(root, &mut files)?;
    files.sort();
    let safety = root.join("docs/safety.md");
    let defined = defined_invariants(&read(&safety)?);
    let mut report = Report::default();
    if defined.is_empty() {
        report.findings.push("docs/safety.md defines no invariant (\"- **I1 …**\")".to_owned());
    }
    for path in &files {
        let shown = path.strip_prefix(root).unwrap_or(path).display().to_string();
        let text = read(path)?;
        let is_rust = path.extension().is_some_and(|extension| extension == "rs");
        if is_rust {
            check_rust(&shown, &text, &mut report);
        } else {
            check_links(path, &shown, &text, &mut report.findings);
        }
        for (number, line) in text.lines().enumerate() {
            // In code, `I9` may be a type parameter; only comments cite.
            let prose =
                if is_rust { line.split_once("//").map_or("", |(_, prose)| prose) } else { line };
            for id in cited(prose).filter(|id| !defined.contains(id)) {
                let line = number + 1;
                report.findings.push(format!("{shown}:{line}: I{id} is not in docs/safety.md"));
            }
        }
    }
    Ok(report)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Rust files and documents, without build output, hidden directories and ignored packages.
pub(crate) fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", directory.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if entry.file_type().context("cannot tell a file from a directory")?.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "md") {
            files.push(path);
        }
    }
    Ok(())
}

fn check_rust(shown: &str, text: &str, report: &mut Report) {
    if !text.starts_with("//! ") {
        report.findings.push(format!("{shown}: does not open with `//! ` and what it is"));
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        report.hints.push(format!("{shown}: {lines} lines (rather {FILE_LINES_MAX} at most)"));
    }
}

/// Checks that the target of every relative link exists.
fn check_links(path: &Path, shown: &str, text: &str, findings: &mut Vec<String>) {
    let directory = path.parent().unwrap_or(Path::new("."));
    for (number, line) in text.lines().enumerate() {
        for part in line.split("](").skip(1) {
            let Some((target, _)) = part.split_once(')') else { continue };
            let file = target.split('#').next().unwrap_or(target);
            let leads_away = target.contains("://") || target.starts_with("mailto:");
            if !leads_away && !file.is_empty() && !directory.join(file).exists() {
                findings.push(format!("{shown}:{}: link to {target} leads nowhere", number + 1));
            }
        }
    }
}

/// The numbers of the invariants that lines like `- **I1 Epoch**: …` define.
fn defined_invariants(text: &str) -> BTreeSet<u32> {
    text.lines()
        .filter_map(|line| line.strip_prefix("- **I"))
        .filter_map(|rest| rest.split(' ').next()?.parse().ok())
        .collect()
}

/// The numbers in words like `I12`, also in ranges and lists such as `I1–I4` and `(I7, I8)`.
fn cited(prose: &str) -> impl Iterator<Item = u32> {
    prose
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter_map(|word| word.strip_prefix('I'))
        .filter(|digits| digits.len() <= 2 && digits.bytes().all(|b| b.is_ascii_digit()))
        .filter_map(|digits| digits.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_files(files: &[(&str, &str)]) -> Report {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        check(root.path()).unwrap()
    }

    const SAFETY: (&str, &str) =
        ("docs/safety.md", "- **I1 Epoch**: …\n- **I12 No overwrite**: …\n");

    #[test]
    fn a_dead_link_an_unknown_invariant_and_a_silent_file_are_found() {
        let report = with_files(&[
            SAFETY,
            ("README.md", "[a](docs/safety.md#x) [b](docs/gone.md) [c](https://example.org/x)\n"),
            ("src/a.rs", "fn silent() {} // see I1–I13, Id7, I123\n"),
        ]);
        assert_eq!(
            report.findings,
            [
                "README.md:1: link to docs/gone.md leads nowhere",
                "src/a.rs: does not open with `//! ` and what it is",
                "src/a.rs:1: I13 is not in docs/safety.md",
            ]
        );
    }

    #[test]
    fn a_long_file_is_only_named() {
        let long = format!("//! Long.\n{}", "\n".repeat(FILE_LINES_MAX));
        let report = with_files(&[SAFETY, ("src/a.rs", &long)]);
        assert_eq!(report.findings, Vec::<String>::new());
        assert_eq!(report.hints.len(), 1);
    }

    #[test]
    fn build_output_and_type_parameters_are_left_alone() {
        let report = with_files(&[
            SAFETY,
            ("target/a.rs", "fn generated() {}"),
            ("src/b.rs", "//! B.\nfn f<I2>(_: I2) {}\n"),
        ]);
        assert_eq!(report.findings, Vec::<String>::new());
    }
}
