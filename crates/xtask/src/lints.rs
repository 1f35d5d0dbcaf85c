//! Compares each pure crate's clippy.toml with the root's and insists on the bans.
//!
//! clippy reads the nearest clippy.toml only, so a crate's own file silently drops the root's settings
//! unless they are repeated.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use toml::Table;

use crate::deps::pure_crates;

/// What no pure crate may reach, at the least; a crate's file may ban more.
const TYPES: &[&str] = &[
    "std::time::Instant",
    "std::time::SystemTime",
    "std::fs::File",
    "std::fs::OpenOptions",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::os::unix::net::UnixListener",
    "std::os::unix::net::UnixStream",
    "std::process::Command",
    "std::thread::Builder",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::sync::OnceLock",
    "std::sync::LazyLock",
    "std::hash::RandomState",
    "std::collections::HashMap",
    "std::collections::HashSet",
];
const METHODS: &[&str] = &[
    "std::fs::read",
    "std::fs::read_to_string",
    "std::fs::write",
    "std::fs::read_dir",
    "std::thread::spawn",
    "std::thread::sleep",
    "std::env::var",
    "std::env::args",
    "std::process::exit",
    "std::process::abort",
];
const MACROS: &[&str] = &["std::println", "std::eprintln", "std::thread_local"];

/// Every setting that is missing or different, in words.
///
/// # Errors
/// When a file cannot be read or is not TOML.
pub(crate) fn findings(root: &Path) -> Result<Vec<String>> {
    let house = read(&root.join("clippy.toml"))?;
    let mut found = Vec::new();
    for name in pure_crates() {
        let own = read(&root.join("crates").join(name).join("clippy.toml"))?;
        compare(name, &house, &own, &mut found);
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Table> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.parse().with_context(|| format!("cannot parse {}", path.display()))
}

fn compare(name: &str, house: &Table, own: &Table, found: &mut Vec<String>) {
    for (key, value) in house {
        if own.get(key) != Some(value) {
            found.push(format!("crates/{name}/clippy.toml: {key} is not what the root says"));
        }
    }
    let bans = [
        ("disallowed-types", TYPES),
        ("disallowed-methods", METHODS),
        ("disallowed-macros", MACROS),
    ];
    for (key, wanted) in bans {
        let banned = paths(own, key);
        for path in wanted.iter().filter(|path| !banned.contains(**path)) {
            found.push(format!("crates/{name}/clippy.toml: {key} does not ban {path}"));
        }
    }
}

/// The paths in a list of bans; an entry is a string or a table with `path`.
fn paths<'a>(table: &'a Table, key: &str) -> BTreeSet<&'a str> {
    let entries = table.get(key).and_then(|value| value.as_array()).into_iter().flatten();
    entries
        .filter_map(|entry| entry.as_str().or_else(|| entry.get("path").and_then(|p| p.as_str())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_is_not_repeated_and_a_missing_ban_are_found() {
        let house: Table = "allow-unwrap-in-tests = true".parse().unwrap();
        let own: Table = "disallowed-types = ['std::time::Instant', { path = 'std::fs::File' }]"
            .parse()
            .unwrap();
        let mut found = Vec::new();
        compare("core", &house, &own, &mut found);
        assert!(found.iter().any(|line| line.contains("allow-unwrap-in-tests")));
        assert!(found.iter().any(|line| line.ends_with("does not ban std::time::SystemTime")));
        assert!(!found.iter().any(|line| line.ends_with("does not ban std::time::Instant")));
        assert!(!found.iter().any(|line| line.ends_with("does not ban std::fs::File")));
    }
}
