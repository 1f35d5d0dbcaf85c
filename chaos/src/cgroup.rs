//! Control groups (version 1) of the rig's own: to freeze a whole site, and to starve one.
//!
//! They lie below a directory with the rig's number in each hierarchy, and hold only processes of the
//! rig's sites.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::process::Pid;

const ROOT: &str = "/sys/fs/cgroup";
const HIERARCHIES: [&str; 3] = ["freezer", "cpu", "memory"];

/// Whether this machine has a hierarchy that can be used.
pub(crate) fn has(hierarchy: &str) -> bool {
    Path::new(ROOT).join(hierarchy).join("cgroup.procs").exists()
}

/// One group.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
}

impl Group {
    /// Makes a group and moves processes into it.
    ///
    /// # Errors
    /// When the hierarchy is missing; a process that is gone by now is none.
    pub(crate) fn of(rig: u32, hierarchy: &str, name: &str, pids: &[Pid]) -> Result<Group> {
        let path = top(rig, hierarchy).join(name);
        fs::create_dir_all(&path).with_context(|| format!("make the group {}", path.display()))?;
        let group = Group { path };
        group.take(pids);
        Ok(group)
    }

    /// Moves processes into the group.
    pub(crate) fn take(&self, pids: &[Pid]) {
        for pid in pids {
            // It may have ended meanwhile.
            let _ = fs::write(self.path.join("cgroup.procs"), pid.to_string());
        }
    }

    /// Sets a control file.
    ///
    /// # Errors
    /// When the kernel refuses the value.
    pub(crate) fn set(&self, file: &str, value: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, value).with_context(|| format!("write {value:?} to {}", path.display()))
    }

    /// Reads a control file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn get(&self, file: &str) -> Result<String> {
        let path = self.path.join(file);
        let text = fs::read_to_string(&path);
        Ok(text.with_context(|| format!("read {}", path.display()))?.trim().to_owned())
    }

    /// A number of a file with lines `name number`.
    ///
    /// # Errors
    /// When the file or the line is missing.
    pub(crate) fn number(&self, file: &str, name: &str) -> Result<u64> {
        let text = self.get(file)?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let line = line.with_context(|| format!("find {name} in {file}"))?;
        line.parse().with_context(|| format!("read {name} in {file}"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes go back to the hierarchy's root; what cannot be moved is swept at the end.
        if self.path.starts_with(Path::new(ROOT).join("freezer")) {
            let _ = self.set("freezer.state", "THAWED");
        }
        let root = self.path.ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default();
        empty(&self.path, &root);
        let _ = fs::remove_dir(&self.path);
    }
}

fn top(rig: u32, hierarchy: &str) -> PathBuf {
    Path::new(ROOT).join(hierarchy).join(format!("uschaos{rig}"))
}

fn empty(group: &Path, into: &Path) {
    for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
        let _ = fs::write(into.join("cgroup.procs"), pid);
    }
}

fn groups(rig: u32) -> impl Iterator<Item = PathBuf> {
    HIERARCHIES.into_iter().flat_map(move |hierarchy| {
        let entries = fs::read_dir(top(rig, hierarchy)).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect::<Vec<_>>()
    })
}

/// Thaws every frozen group of a rig, so that what is in it can be ended.
pub(crate) fn thaw_all(rig: u32) {
    for group in groups(rig) {
        let _ = fs::write(group.join("freezer.state"), "THAWED");
    }
}

/// Removes every group of a rig; its processes have ended.
pub(crate) fn remove_all(rig: u32) {
    for group in groups(rig) {
        let _ = fs::remove_dir(&group);
    }
    for hierarchy in HIERARCHIES {
        let _ = fs::remove_dir(top(rig, hierarchy));
    }
}
