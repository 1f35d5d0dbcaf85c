//! The verbs: which steps each of them takes, in which order.
//!
//! Cheap steps come first, so that a mistake shows in seconds. `verify` changes nothing but build
//! output.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::licences::Deny;
use crate::metadata::Metadata;
use crate::step::{cargo, refuse, root, run, step};
use crate::{deps, house, lints, machine};

/// How many seeds are each commit's own: somewhat more than a minute of two processors.
const NEW_SEEDS: u64 = 3000;

/// Everything that can be judged without running the code.
pub(crate) fn verify() -> Result<()> {
    step("format", "run `cargo xtask fix`", || run(&mut cargo(&["fmt", "--all", "--check"])))?;
    step("house rules", "correct the lines above", || {
        let report = house::check(&root())?;
        for hint in &report.hints {
            eprintln!("    hint: {hint}");
        }
        refuse(&report.findings)
    })?;
    check_deps()?;
    step("licences, sources, bans", "see deny.toml", || {
        let deny = Deny::load(&root())?;
        refuse(&deny.findings(&Metadata::load(deny.targets())?))
    })?;
    step("lints", "run `cargo xtask fix`, then correct what is left", || {
        run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    })?;
    step("documentation", "run `cargo doc --no-deps --workspace`", || {
        let mut command = cargo(&["doc", "--no-deps", "--workspace", "--quiet"]);
        run(command.env("RUSTDOCFLAGS", "-D warnings"))
    })
}

/// The crate graph and the pure crates' bans.
pub(crate) fn check_deps() -> Result<()> {
    step("crate graph", "see crates/xtask/src/deps.rs and docs/ARCHITECTURE.md", || {
        let deny = Deny::load(&root())?;
        refuse(&deps::findings(&Metadata::load(deny.targets())?))
    })?;
    step("pure crates' bans", "see clippy.toml and each crates/*/clippy.toml", || {
        refuse(&lints::findings(&root())?)
    })
}

/// Edits what can be corrected without thinking.
pub(crate) fn fix() -> Result<()> {
    step("lints' corrections", "correct what clippy cannot", || {
        let args = ["clippy", "--workspace", "--all-targets", "--fix", "--allow-dirty"];
        run(cargo(&args).arg("--allow-staged"))
    })?;
    step("format", "run `cargo fmt --all`", || run(&mut cargo(&["fmt", "--all"])))
}

/// Verifies, installs, runs every test. The runner's own summary is the last thing before our line.
pub(crate) fn test(no_verify: bool, runner_args: &[String]) -> Result<()> {
    if !no_verify {
        verify()?;
    }
    step("PostgreSQL", "install it by hand", machine::need_postgres)?;
    step("tools of the tests", "install them by hand", machine::need_tools)?;
    if has_nextest() {
        if has_doc_tests()? {
            step("examples in documentation", "run `cargo test --workspace --doc`", || {
                run(&mut cargo(&["test", "--workspace", "--doc"]))
            })?;
        }
        step("tests", "run `cargo nextest run --workspace <name of the test>`", || {
            run(cargo(&["nextest", "run", "--workspace", "--no-fail-fast"]).args(runner_args))
        })?;
    } else {
        eprintln!("    cargo-nextest is not installed: using cargo test");
        step("tests", "run `cargo test --workspace <name of the test>`", || {
            run(cargo(&["test", "--workspace", "--no-fail-fast"]).args(runner_args))
        })?;
    }
    // Somebody who names a test wants that test.
    if runner_args.is_empty() {
        new_seeds()?;
    }
    eprintln!("xtask test: everything passed");
    Ok(())
}

/// Seeds that no other commit has had, besides the kept ones among the tests: each commit looks a little
/// further, and says the same each time that it is tested. In the tests' profile, since a release build
/// would take as long as the seeds.
fn new_seeds() -> Result<()> {
    step("simulator, this commit's seeds", "run the seed again with the line above", || {
        let binaries = build_binaries(&["understudy-sim"])?;
        let binary = binaries.first().context("nothing was built")?;
        let mut command = Command::new(binary);
        command.args(["sim", "--seeds", &NEW_SEEDS.to_string()]);
        match seed_of_the_commit() {
            Some(first) => command.args(["--first", &first.to_string()]),
            None => command.arg("--fresh"),
        };
        run(&mut command)
    })
}

/// The first twelve digits of the commit's name; `None` where there is no repository.
fn seed_of_the_commit() -> Option<u64> {
    let said = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(root()).output().ok()?;
    let name = String::from_utf8(said.stdout).ok().filter(|_| said.status.success())?;
    u64::from_str_radix(name.get(..12)?, 16).ok()
}

/// Builds the binary and becomes it, so that its exit status is ours.
pub(crate) fn demo(args: &[String]) -> Result<()> {
    step("PostgreSQL", "install it by hand", machine::need_postgres)?;
    let binaries = step("build", "correct the errors above", || build_binaries(&["understudy"]))?;
    let binary = binaries.first().context("nothing was built")?;
    let error = Command::new(binary).arg("demo").args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", binary.display()))
}

/// One line of cargo's machine-readable output, as far as it names a binary.
#[derive(Debug, Deserialize)]
struct Message {
    executable: Option<PathBuf>,
}

/// Builds with the whole workspace's features, so that the tests' build output is used again; where the
/// binaries are, in the order of their names.
pub(crate) fn build_binaries(names: &[&str]) -> Result<Vec<PathBuf>> {
    let mut command = cargo(&["build", "--workspace"]);
    command.args(names.iter().flat_map(|name| ["--bin", name]));
    command.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let output = command.output().context("cannot run cargo build")?;
    if !output.status.success() {
        bail!("cargo build ended with {}", output.status);
    }
    let lines = String::from_utf8_lossy(&output.stdout);
    let messages = lines.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    let built: Vec<PathBuf> = messages.filter_map(|message| message.executable).collect();
    let find = |name: &&str| {
        let found = built.iter().find(|path| path.file_name().is_some_and(|file| file == *name));
        found.cloned().with_context(|| format!("cargo build did not say where it put {name}"))
    };
    names.iter().map(find).collect()
}

fn has_nextest() -> bool {
    let mut command = cargo(&["nextest", "--version"]);
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Whether any documentation comment holds an example that would be run; without one the compiler
/// need not be started for every crate. An opening fence without a language is Rust.
fn has_doc_tests() -> Result<bool> {
    let mut files = Vec::new();
    house::collect(&root().join("crates"), &mut files)?;
    for path in files.iter().filter(|path| path.extension().is_some_and(|kind| kind == "rs")) {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if holds_doc_test(&text) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn holds_doc_test(text: &str) -> bool {
    let mut is_open = false;
    for line in text.lines().map(str::trim_start) {
        let prose = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
        let Some(language) = prose.and_then(|prose| prose.trim().strip_prefix("```")) else {
            continue;
        };
        is_open = !is_open;
        let runs = ["", "rust", "no_run", "should_panic", "compile_fail"].contains(&language);
        if is_open && runs {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_example_in_rust_counts_as_one_that_runs() {
        assert!(holds_doc_test("/// ```\n/// one();\n/// ```\n"));
        assert!(holds_doc_test("//! ```text\n//! a\n//! ```\n//! ```rust\n//! b\n//! ```\n"));
        assert!(!holds_doc_test("//! ```text\n//! drawing\n//! ```\n"));
        assert!(!holds_doc_test("// ```\n"));
    }
}
