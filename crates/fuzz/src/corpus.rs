//! The kept inputs: one file each, in a directory for each target. They are inputs and nothing more: what
//! must hold for them is what must hold for all.
//!
//! Most of them are what PostgreSQL 15 and its programs wrote: `real-…` is WAL of a server with segments of
//! 1 MiB, from a page boundary on, and damage is done to those; messages were taken from the sockets of
//! `psql`, `pg_basebackup`, `pg_receivewal` and a standby. `found-…` is what made a target fail, made small.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

/// Where the kept inputs lie.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// A target's inputs, by the names of their files.
///
/// # Errors
/// When the directory, or a file in it, cannot be read.
pub fn load(target: &str) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let directory = directory().join(target);
    let reading = || format!("cannot read {}", directory.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(&directory).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        files.push((path, bytes));
    }
    files.sort();
    Ok(files)
}

/// Keeps an input that was found; where it lies.
///
/// # Errors
/// When it cannot be written.
pub fn keep(target: &str, input: &[u8]) -> Result<PathBuf> {
    let directory = directory().join(target);
    let digest = Sha256::digest(input);
    let name: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let path = directory.join(format!("found-{name}"));
    fs::create_dir_all(&directory)
        .and_then(|()| fs::write(&path, input))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
