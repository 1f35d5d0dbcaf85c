//! What a machine needs to run the rig, and the remedy for each thing that is missing.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::command::said;
use crate::{cgroup, lab};

/// Programs, and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 13] = [
    ("ip", "iproute2"),
    ("ss", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("setsid", "util-linux"),
    ("prlimit", "util-linux"),
    ("timeout", "coreutils"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("fsfreeze", "util-linux"),
    ("findmnt", "util-linux"),
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

/// Whether this session gets as much of the processors as others do: everything that the rig starts
/// inherits its rank, and a cluster that only gets what others leave says nothing about its timings.
///
/// # Errors
/// When it is ranked below others, with the remedy.
pub(crate) fn check_rank() -> Result<()> {
    let own = rustix::process::getpriority_process(None)?;
    if own > 0 {
        bail!(
            "this process has the nice value {own}, and timings would be its effect: run it with 0"
        );
    }
    // The kernel shares processors out between sessions first, each with a nice value of its own
    // (sched(7), "The autogroup feature"); there is no such file where that is switched off.
    let session = std::fs::read_to_string("/proc/self/autogroup").unwrap_or_default();
    match session_nice(&session) {
        Some(nice) if nice > 0 => bail!(
            "this session has the nice value {nice} (/proc/self/autogroup: {}), and timings would be its \
             effect: `echo 0 > /proc/self/autogroup`, or run it under `setsid --wait`",
            session.trim()
        ),
        Some(_) | None => Ok(()),
    }
}

/// From a line such as `/autogroup-25 nice 10`.
fn session_nice(line: &str) -> Option<i32> {
    line.trim().rsplit_once(" nice ")?.1.parse().ok()
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

#[cfg(test)]
mod tests {
    use super::session_nice;

    #[test]
    fn the_rank_of_a_session_is_read_as_the_kernel_writes_it() {
        assert_eq!(session_nice("/autogroup-356236 nice 15\n"), Some(15));
        assert_eq!(session_nice("/autogroup-25 nice -3\n"), Some(-3));
        assert_eq!(session_nice(""), None);
    }
}
