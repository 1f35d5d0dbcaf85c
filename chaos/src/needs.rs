//! What a machine needs to run the rig, and the remedy for each thing that is missing.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::command::said;
use crate::{cgroup, lab};

/// Programs, and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 9] = [
    ("ip", "iproute2"),
    ("ss", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("setsid", "util-linux"),
    ("prlimit", "util-linux"),
    ("timeout", "coreutils"),
];

/// Whether this machine can run the rig.
///
/// # Errors
/// With everything that is missing, and what to do about it.
pub(crate) fn check() -> Result<()> {
    let mut missing = Vec::new();
    if !rustix::process::geteuid().is_root() {
        missing.push("root: namespaces and faults need it; run it as root".to_owned());
    }
    for (program, package) in PROGRAMS {
        if !exists(program) {
            missing.push(format!("{program}: `apt-get install {package}`"));
        }
    }
    if let Err(error) = lab::postgres_programs() {
        missing.push(format!("PostgreSQL: {error:#}"));
    }
    for hierarchy in ["freezer", "cpu", "memory"] {
        if !cgroup::has(hierarchy) {
            missing.push(format!(
                "the cgroup hierarchy {hierarchy} (version 1): `mkdir -p /sys/fs/cgroup/{hierarchy} && \
                 mount -t cgroup -o {hierarchy} none /sys/fs/cgroup/{hierarchy}`"
            ));
        }
    }
    if missing.is_empty()
        && let Err(error) = try_a_namespace()
    {
        missing.push(format!("network namespaces: {error:#}; a container may need --privileged"));
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("this machine cannot run the rig; missing:\n  - {}", missing.join("\n  - "))
}

fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
        || Path::new("/usr/sbin").join(program).is_file()
}

fn try_a_namespace() -> Result<()> {
    let name = format!("uschaos{}-try", std::process::id());
    said(Command::new("ip").args(["netns", "add", &name]))?;
    let table = "add table inet try; add chain inet try in { type filter hook input priority 0; }; \
                 add rule inet try in ip saddr 10.0.0.1 counter drop";
    let tried = said(Command::new("ip").args(["netns", "exec", &name, "nft", table]));
    said(Command::new("ip").args(["netns", "del", &name]))?;
    tried
}
