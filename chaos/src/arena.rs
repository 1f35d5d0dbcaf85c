//! The arena: three sites in network namespaces of their own, joined by a bridge in a fourth, and the
//! way to take all of it away again.
//!
//! Everything bears the rig's process number, so that two rigs do not meet and a later one finds what a
//! dead one left behind. Nothing outside these namespaces, cgroups and directories is touched.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::cgroup;
use crate::command::{output, said};

/// The sites, in the order in which the cluster is founded; the last one is the witness.
pub(crate) const SITES: [&str; 3] = ["north", "south", "witness"];
const PREFIX: &str = "uschaos";
const NETWORK: &str = "10.213.0";
const HUB: &str = "hub";
/// What the rig's directory is called, before the number.
const DIRECTORY: &str = "understudy-chaos";
/// How long every process of an arena has to be gone.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(30);

/// One rig's namespaces, by the number of the process that made them.
#[derive(Clone, Debug)]
pub(crate) struct Arena {
    pub(crate) number: u32,
}

impl Arena {
    /// Makes namespaces, bridge and links; whatever dead rigs left behind is swept away first.
    ///
    /// # Errors
    /// When the machine does not let us; what was made by then is swept by the caller.
    pub(crate) fn create() -> Result<Arena> {
        sweep_the_dead()?;
        let arena = Arena { number: std::process::id() };
        arena.make_network().context("make the network namespaces (needs root)")?;
        let root = arena.root();
        std::fs::create_dir(&root).with_context(|| format!("create {}", root.display()))?;
        // PostgreSQL's user has to get to its data below.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(&root, open)?;
        Ok(arena)
    }

    fn make_network(&self) -> Result<()> {
        for site in [HUB].iter().chain(&SITES) {
            ip(&["netns", "add", &self.namespace(site)])?;
            ip(&["-n", &self.namespace(site), "link", "set", "lo", "up"])?;
        }
        let hub = self.namespace(HUB);
        ip(&["-n", &hub, "link", "add", "wire", "type", "bridge"])?;
        ip(&["-n", &hub, "addr", "add", &format!("{NETWORK}.1/24"), "dev", "wire"])?;
        ip(&["-n", &hub, "link", "set", "wire", "up"])?;
        for site in SITES {
            let own = self.namespace(site);
            let link = ["-n", &hub, "link", "add", site, "type", "veth", "peer", "name", "eth0"];
            ip(&[&link[..], &["netns", &own]].concat())?;
            ip(&["-n", &hub, "link", "set", site, "master", "wire", "up"])?;
            ip(&["-n", &own, "addr", "add", &format!("{}/24", address(site)), "dev", "eth0"])?;
            ip(&["-n", &own, "link", "set", "eth0", "up"])?;
        }
        Ok(())
    }

    /// A namespace's name.
    pub(crate) fn namespace(&self, site: &str) -> String {
        format!("{PREFIX}{}-{site}", self.number)
    }

    /// Where the cluster's files are.
    pub(crate) fn root(&self) -> PathBuf {
        std::env::temp_dir().join(format!("{DIRECTORY}-{}", self.number))
    }

    /// A program that will run in a site's namespace. It is started without a shell in between, so its
    /// process number is the child's.
    pub(crate) fn at(&self, site: &str, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace(site)));
        command.arg("--").arg(program.as_ref());
        command
    }

    /// A program that will run where the clients are.
    pub(crate) fn at_hub(&self, program: impl AsRef<Path>) -> Command {
        self.at(HUB, program)
    }

    /// `ip` where the clients are.
    pub(crate) fn ip_at_hub(&self, arguments: &[&str]) -> Result<String> {
        ip(&[&["-n", &self.namespace(HUB)], arguments].concat())
    }

    /// Ends every process of the arena and removes it; `keep` leaves the files.
    ///
    /// # Errors
    /// When something cannot be ended or removed.
    pub(crate) fn sweep(&self, keep: bool) -> Result<()> {
        cgroup::thaw_all(self.number);
        thaw_below(&self.root());
        let deadline = Instant::now() + SWEEP_TIMEOUT;
        loop {
            let left = self.processes()?;
            if left.is_empty() {
                break;
            }
            for pid in &left {
                // It may be gone by now; whether any is left is looked up again.
                let _ = kill_process(*pid, Signal::KILL);
            }
            if Instant::now() > deadline {
                bail!("end every process of arena {}: {left:?} are still there", self.number);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        cgroup::remove_all(self.number);
        for name in self.namespaces() {
            ip(&["netns", "del", &name])?;
        }
        let root = self.root();
        if root.exists() && !keep {
            unmount_below(&root)?;
            std::fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
        }
        Ok(())
    }

    /// The arena's namespaces that exist, whatever made them.
    fn namespaces(&self) -> Vec<String> {
        let own = self.namespace("");
        let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.starts_with(&own)).collect()
    }

    /// Every process in one of the arena's namespaces.
    fn processes(&self) -> Result<Vec<Pid>> {
        let mut found = Vec::new();
        for name in self.namespaces() {
            let numbers = ip(&["netns", "pids", &name])?;
            let pids = numbers.split_whitespace().filter_map(|text| text.parse().ok());
            found.extend(pids.filter_map(Pid::from_raw));
        }
        Ok(found)
    }
}

/// A site's address.
pub(crate) fn address(site: &str) -> String {
    let host = SITES.iter().position(|name| *name == site).expect("one of the three sites");
    format!("{NETWORK}.{}", 11 + host)
}

/// The arena's network, as pg_hba.conf spells it.
pub(crate) fn network() -> String {
    format!("{NETWORK}.0/24")
}

/// Where the clients are seen to come from.
pub(crate) fn clients_address() -> String {
    format!("{NETWORK}.1")
}

/// Ends and removes the arenas of rigs that are dead.
fn sweep_the_dead() -> Result<()> {
    let mut numbers = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        numbers.extend(rest.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok()));
    }
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(DIRECTORY));
        numbers.extend(rest.and_then(|rest| rest.strip_prefix('-')?.parse::<u32>().ok()));
    }
    for number in numbers.into_iter().filter(|number| !is_a_rig(*number)) {
        eprintln!("chaos: sweeping what the dead rig {number} left behind");
        Arena { number }.sweep(false)?;
    }
    Ok(())
}

fn is_a_rig(number: u32) -> bool {
    // The kernel keeps fifteen bytes of a name.
    let name = std::fs::read_to_string(format!("/proc/{number}/comm")).unwrap_or_default();
    // The rig's own tests are called with an underscore.
    name.trim_end().replace('_', "-") == DIRECTORY[..15]
}

/// Takes away every file system that is mounted below a directory, from those that use it too.
///
/// # Errors
/// When one cannot be taken away.
pub(crate) fn unmount_below(root: &Path) -> Result<()> {
    for mount in mounts_below(root)? {
        said(Command::new("umount").arg("--lazy").arg(mount))?;
    }
    Ok(())
}

fn mounts_below(root: &Path) -> Result<Vec<PathBuf>> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    Ok(below.filter(|path| path.starts_with(root)).collect())
}

/// Who waits for a frozen file system cannot be ended. One that is not frozen refuses to be thawed.
fn thaw_below(root: &Path) {
    for mount in mounts_below(root).into_iter().flatten() {
        Command::new("fsfreeze").arg("--unfreeze").arg(mount).output().ok();
    }
}

fn ip(arguments: &[&str]) -> Result<String> {
    output(Command::new("ip").args(arguments))
}
