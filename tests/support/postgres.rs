//! PostgreSQL's own programs, run as the user that PostgreSQL runs as.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Where PostgreSQL's programs are: the newest installed version, or PATH.
pub(crate) fn bin_dir() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut places: Vec<PathBuf> = versions.map(|entry| entry.path().join("bin")).collect();
        places.sort();
        let path = std::env::var_os("PATH").unwrap_or_default();
        places.splice(0..0, std::env::split_paths(&path));
        let found = places.into_iter().rev().find(|place| place.join("pg_amcheck").is_file());
        found.expect("PostgreSQL's programs are installed")
    })
}

/// PostgreSQL refuses to run as root, so it runs as `postgres` then: its uid and gid.
pub(crate) fn owner() -> Option<(u32, u32)> {
    if !rustix::process::getuid().is_root() {
        return None;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.starts_with("postgres:")).expect("user postgres");
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}

/// The name of that user.
pub(crate) fn owner_name() -> String {
    if owner().is_some() {
        return "postgres".to_owned();
    }
    let id = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(id.stdout).unwrap().trim().to_owned()
}

/// Gives a file or directory to that user.
pub(crate) fn give(path: &Path) {
    if let Some((uid, gid)) = owner() {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// One of PostgreSQL's programs, as that user.
pub(crate) fn tool(program: &str) -> Command {
    let mut command = Command::new(bin_dir().join(program));
    // Not in a node's directory: who kills a site must not kill its clients.
    command.current_dir("/").env("PGCONNECT_TIMEOUT", "10").env("LC_ALL", "C");
    if let Some((uid, gid)) = owner() {
        command.uid(uid).gid(gid);
    }
    command
}
