//! Processes that end, stand still or starve. The proof is the process's state as the kernel has it.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::Fault;
use crate::cgroup::Group;
use crate::lab::Lab;
use crate::process;

/// A process, told from a later one with the same number.
#[derive(Clone)]
struct Known {
    pid: Pid,
    started: String,
}

impl Known {
    fn of(pid: Pid) -> Result<Known> {
        let started = process::started(pid).with_context(|| format!("find process {pid}"))?;
        Ok(Known { pid, started })
    }

    /// `None` when it is gone, or only not yet waited for.
    fn state(&self) -> Option<char> {
        let state = process::state(self.pid).filter(|state| !"ZX".contains(*state));
        state.filter(|_| process::started(self.pid).as_ref() == Some(&self.started))
    }
}

/// Processes that were ended with SIGKILL.
pub(crate) struct Killed {
    what: String,
    processes: Vec<Known>,
}

impl Killed {
    /// A site's daemon alone.
    pub(crate) fn daemon(lab: &Lab, site: &str) -> Result<Killed> {
        let pid = lab.daemon(site).with_context(|| format!("find the daemon of {site}"))?;
        Killed::one(format!("daemon of {site}"), pid)
    }

    /// A site's postmaster alone.
    pub(crate) fn postmaster(lab: &Lab, site: &str) -> Result<Killed> {
        let pid = lab.postmaster(site).with_context(|| format!("find the postmaster of {site}"))?;
        Killed::one(format!("postmaster of {site}"), pid)
    }

    /// Any process.
    pub(crate) fn one(what: String, pid: Pid) -> Result<Killed> {
        let known = Known::of(pid)?;
        kill_process(pid, Signal::KILL).with_context(|| format!("kill the {what}"))?;
        Ok(Killed { what, processes: vec![known] })
    }

    /// The loss of sites: every process of them at once.
    pub(crate) fn sites(lab: &Lab, sites: &[&str]) -> Result<Killed> {
        let mut killed = Killed { what: format!("site {}", sites.join(", ")), processes: vec![] };
        // What a dying postmaster has just started is met in a later round.
        for _ in 0..20 {
            let left: Vec<_> = sites.iter().flat_map(|site| lab.processes(site)).collect();
            if left.is_empty() {
                break;
            }
            killed.processes.extend(left.iter().filter_map(|found| Known::of(found.pid).ok()));
            for found in left {
                // It may be gone by now, with its parent.
                let _ = kill_process(found.pid, Signal::KILL);
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Ok(killed)
    }
}

impl Fault for Killed {
    fn proof(&mut self) -> Result<Option<String>> {
        let all_gone = self.processes.iter().all(|known| known.state().is_none());
        let words = format!("{}: {} processes killed", self.what, self.processes.len());
        Ok((all_gone && !self.processes.is_empty()).then_some(words))
    }

    fn heal(&mut self) -> Result<()> {
        // What is killed stays so; who starts it again is the scenario's matter.
        Ok(())
    }
}

/// A process that was stopped with SIGSTOP.
pub(crate) struct Stopped {
    what: String,
    process: Known,
}

impl Stopped {
    /// A site's daemon alone.
    pub(crate) fn daemon(lab: &Lab, site: &str) -> Result<Stopped> {
        let pid = lab.daemon(site).with_context(|| format!("find the daemon of {site}"))?;
        Stopped::one(format!("daemon of {site}"), pid)
    }

    /// A site's postmaster alone: its sessions go on.
    pub(crate) fn postmaster(lab: &Lab, site: &str) -> Result<Stopped> {
        let pid = lab.postmaster(site).with_context(|| format!("find the postmaster of {site}"))?;
        Stopped::one(format!("postmaster of {site}"), pid)
    }

    /// Any process.
    pub(crate) fn one(what: String, pid: Pid) -> Result<Stopped> {
        let process = Known::of(pid)?;
        kill_process(pid, Signal::STOP).with_context(|| format!("stop the {what}"))?;
        Ok(Stopped { what, process })
    }
}

impl Fault for Stopped {
    fn proof(&mut self) -> Result<Option<String>> {
        let words = format!("{}: state T", self.what);
        Ok((self.process.state() == Some('T')).then_some(words))
    }

    fn heal(&mut self) -> Result<()> {
        if self.process.state() == Some('T') {
            // Killed meanwhile is healed too.
            let _ = kill_process(self.process.pid, Signal::CONT);
        }
        Ok(())
    }
}

/// A whole site that stands still: its daemon and all of its PostgreSQL.
pub(crate) struct FrozenSite {
    site: String,
    group: Option<Group>,
}

impl FrozenSite {
    /// Freezes a site.
    pub(crate) fn begin(lab: &Lab, site: &str) -> Result<FrozenSite> {
        let group = Group::of(lab.arena.number, "freezer", site, &[])?;
        // Twice, for what is started between the look and the freeze.
        for _ in 0..2 {
            group.take(&pids(lab, site));
            group.set("freezer.state", "FROZEN")?;
        }
        Ok(FrozenSite { site: site.to_owned(), group: Some(group) })
    }
}

impl Fault for FrozenSite {
    fn proof(&mut self) -> Result<Option<String>> {
        let Some(group) = &self.group else { return Ok(None) };
        let frozen = group.get("freezer.state")? == "FROZEN";
        let count = group.get("cgroup.procs")?.lines().count();
        let words = format!("site {}: {count} processes frozen", self.site);
        Ok((frozen && count > 0).then_some(words))
    }

    fn heal(&mut self) -> Result<()> {
        // Its end thaws the group.
        self.group = None;
        Ok(())
    }
}

/// A site whose processes get next to no processor.
pub(crate) struct StarvedSite {
    site: String,
    group: Option<Group>,
}

impl StarvedSite {
    /// Leaves a site `percent` of one processor.
    pub(crate) fn begin(lab: &Lab, site: &str, percent: u32) -> Result<StarvedSite> {
        let group = Group::of(lab.arena.number, "cpu", site, &[])?;
        group.set("cpu.cfs_period_us", "100000")?;
        group.set("cpu.cfs_quota_us", &(percent * 1000).to_string())?;
        group.take(&pids(lab, site));
        Ok(StarvedSite { site: site.to_owned(), group: Some(group) })
    }
}

impl Fault for StarvedSite {
    fn proof(&mut self) -> Result<Option<String>> {
        let Some(group) = &self.group else { return Ok(None) };
        let held = group.number("cpu.stat", "nr_throttled")?;
        let words = format!("site {}: held back in {held} periods of 100 ms", self.site);
        Ok((held > 0).then_some(words))
    }

    fn heal(&mut self) -> Result<()> {
        self.group = None;
        Ok(())
    }
}

/// A daemon that gets no more memory: the kernel ends it.
pub(crate) struct OutOfMemory {
    what: String,
    process: Known,
    group: Option<Group>,
}

impl OutOfMemory {
    /// Lets a site's daemon allocate next to nothing more.
    pub(crate) fn daemon(lab: &Lab, site: &str) -> Result<OutOfMemory> {
        let pid = lab.daemon(site).with_context(|| format!("find the daemon of {site}"))?;
        let group = Group::of(lab.arena.number, "memory", site, &[])?;
        group.set("memory.limit_in_bytes", "65536")?;
        let process = Known::of(pid)?;
        group.take(&[pid]);
        Ok(OutOfMemory { what: format!("daemon of {site}"), process, group: Some(group) })
    }
}

impl Fault for OutOfMemory {
    fn proof(&mut self) -> Result<Option<String>> {
        let Some(group) = &self.group else { return Ok(None) };
        let kills = group.number("memory.oom_control", "oom_kill")?;
        let words = format!("{}: ended by the kernel, out of memory", self.what);
        Ok((kills > 0 && self.process.state().is_none()).then_some(words))
    }

    fn heal(&mut self) -> Result<()> {
        self.group = None;
        Ok(())
    }
}

fn pids(lab: &Lab, site: &str) -> Vec<Pid> {
    lab.processes(site).iter().map(|process| process.pid).collect()
}
