//! What a machine needs besides Rust, and how it is installed: PostgreSQL, from the distribution.
//!
//! It never touches a PostgreSQL that is there, and never lets the package create or start a server.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::step::run;

/// What tests and demo run of PostgreSQL's programs.
const PROGRAMS: &[&str] = &[
    "postgres",
    "initdb",
    "pg_ctl",
    "psql",
    "pg_basebackup",
    "pg_controldata",
    "pg_dump",
    "pg_receivewal",
    "pg_rewind",
    "pg_verifybackup",
    "pg_waldump",
    "pg_amcheck",
    "pgbench",
];

/// Finds PostgreSQL, or installs it.
///
/// # Errors
/// When it is missing and cannot be installed; the error says what to do by hand.
pub(crate) fn need_postgres() -> Result<()> {
    if let Some(directory) = find() {
        eprintln!("    PostgreSQL is in {}", directory.display());
        return Ok(());
    }
    install()?;
    let directory = find().with_context(|| {
        format!(
            "the packages were installed, but no directory holds all of: {}",
            PROGRAMS.join(", ")
        )
    })?;
    eprintln!("    PostgreSQL was installed in {}", directory.display());
    Ok(())
}

/// The first directory that holds every program: PATH, then where Debian and Red Hat put versions.
fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for (parent, prefix) in [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")] {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                candidates.push(entry.path().join("bin"));
            }
        }
    }
    candidates.into_iter().find(|directory| holds_all(directory))
}

fn holds_all(directory: &Path) -> bool {
    PROGRAMS.iter().all(|program| directory.join(program).is_file())
}

const BY_HAND: &str = "install PostgreSQL (14 to 18) with its contributed programs, on Debian: \
                       `apt-get install postgresql`";

fn install() -> Result<()> {
    if !exists("apt-get") {
        bail!("PostgreSQL is missing and there is no apt-get; {BY_HAND}");
    }
    if effective_uid()? != 0 {
        bail!("PostgreSQL is missing and only root can install it; {BY_HAND}");
    }
    eprintln!("    PostgreSQL is missing: installing the distribution's packages");
    run(apt().args(["update", "-qq"]))?;
    run(apt().args(["install", "-qq", "-y", "--no-install-recommends", "postgresql-common"]))?;
    keep_package_from_making_a_server()?;
    run(apt().args(["install", "-qq", "-y", "--no-install-recommends", "postgresql"]))
}

/// Programs that the tests run beside PostgreSQL's, with the package that has them.
const TOOLS: &[(&str, &str)] = &[
    ("haproxy", "haproxy"),
    ("pgbouncer", "pgbouncer"),
    ("ip", "iproute2"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("chromium", "chromium"),
    ("pg_createcluster", "postgresql-common"),
    ("python3", "python3"),
    ("dpkg-shlibdeps", "dpkg-dev"),
];

/// Finds what the tests put beside a cluster: a load balancer, a pool, a monitor, a browser; or installs it.
///
/// # Errors
/// When one is missing and cannot be installed; the error says what to do by hand.
pub(crate) fn need_tools() -> Result<()> {
    let missing: BTreeSet<&str> =
        TOOLS.iter().filter(|(program, _)| !exists(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.into_iter().collect();
    let names = packages.join(" ");
    if !exists("apt-get") || effective_uid()? != 0 {
        bail!("the tests need {names}; install them, on Debian as root: `apt-get install {names}`");
    }
    eprintln!("    installing what the tests put beside a cluster: {names}");
    run(apt().args(["update", "-qq"]))?;
    let command = &mut apt();
    // The packages' own services are nobody's wish here.
    command.env("RUNLEVEL", "1");
    run(command.args(["install", "-qq", "-y", "--no-install-recommends"]).args(&packages))
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    // A question would wait for ever where nobody sits.
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command
}

/// Debian's package makes and starts a server on port 5432 unless it is told not to; nobody who runs
/// tests has asked for one.
fn keep_package_from_making_a_server() -> Result<()> {
    let path = "/etc/postgresql-common/createcluster.conf";
    let text = std::fs::read_to_string(path).unwrap_or_default();
    if text.lines().any(|line| line.trim_start().starts_with("create_main_cluster")) {
        return Ok(());
    }
    std::fs::write(path, format!("{text}\ncreate_main_cluster = false\n"))
        .with_context(|| format!("cannot write {path}"))
}

fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn effective_uid() -> Result<u32> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc")?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let uid = line.and_then(|line| line.split_whitespace().nth(1));
    uid.and_then(|uid| uid.parse().ok()).context("cannot tell the own user from /proc/self/status")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_counts_only_with_every_program() {
        let directory = tempfile::tempdir().unwrap();
        for program in &PROGRAMS[1..] {
            std::fs::write(directory.path().join(program), "").unwrap();
        }
        assert!(!holds_all(directory.path()));
        std::fs::write(directory.path().join(PROGRAMS[0]), "").unwrap();
        assert!(holds_all(directory.path()));
    }
}
