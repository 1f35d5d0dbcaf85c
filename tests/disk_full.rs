//! The passive's journal runs out of space under load, in `zero`: it acknowledges nothing that it does
//! not hold, says what is wrong, and goes on where its files end once there is space.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::compare::assert_same_and_sound;
use support::lab::{DATA, Lab, NODES, ZERO};
use support::processes::{Background, run};

/// A file system in memory: it has a size, which can be raised while it is in use.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, mebibytes: u32) -> SmallDisk {
        std::fs::create_dir_all(&at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m,mode=0755"), "tmpfs"]);
        run(mount.arg(&at)).good();
        SmallDisk(at)
    }

    fn grow(&self, mebibytes: u32) {
        let mut mount = Command::new("mount");
        run(mount.args(["-o", &format!("remount,size={mebibytes}m")]).arg(&self.0)).good();
    }

    fn free_bytes(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.0).unwrap();
        disk.f_bavail * disk.f_frsize
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, because after a failed test the daemon may still have files open in it.
        run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

const ROWS: u32 = 12;

#[test]
fn a_passive_without_space_acknowledges_nothing_that_it_lacks_and_goes_on_after_room_is_made() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    }
    let mut lab = Lab::prepared(ZERO);
    let [active, passive] = DATA;
    let disk = SmallDisk::mount(lab.journal_dir(passive), 80);
    for name in NODES {
        lab.start(name);
    }
    lab.wait("a cluster whose passive could take over", |lab| lab.protected_under(active));
    lab.sql(active, "postgres", "CREATE DATABASE bench");
    lab.sql(active, "bench", "CREATE TABLE heavy (n int, bytes text)");
    lab.sql(active, "bench", "ALTER TABLE heavy ALTER bytes SET STORAGE EXTERNAL");
    // Each row is a commit of ten mebibytes: together they are more than the disk holds.
    let one = |n: u32| {
        format!(
            "INSERT INTO heavy SELECT {n}, string_agg(md5(random()::text || i), '') \
             FROM generate_series(1, 327680) AS i"
        )
    };
    let mut psql = lab.tool_at(active, "psql");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "bench"]);
    for n in 0..ROWS {
        psql.arg("-c").arg(one(n)).arg("-c").arg(format!("\\echo acknowledged {n}"));
    }
    let mut load = Background::start(&mut psql);

    let status = lab.wait_for_end(passive);
    assert!(!status.success(), "a daemon that cannot go on ends as failed: {status}");
    let said = lab.log_text(passive);
    for words in ["no space left", "mend the cause and start the node again"] {
        assert!(said.contains(words), "{words:?} is missing in the passive's log");
    }
    assert!(disk.free_bytes() < 20 << 20, "the disk at {} was not full", disk.path().display());
    assert!(load.runs(), "a commit was acknowledged that the passive could not store");
    assert_eq!(lab.who_says_yes("/primary"), [active], "the active stays the active");

    // Still no room: a start does not help, and says so again.
    lab.start(passive);
    lab.wait_for_end(passive);
    assert!(load.runs(), "a commit was acknowledged that the passive could not store");

    disk.grow(400);
    lab.start(passive);
    let said = load.wait(Duration::from_secs(120)).good();
    let acknowledged = said.lines().filter(|line| line.starts_with("acknowledged")).count();
    assert_eq!(acknowledged, ROWS as usize, "{said}");
    lab.wait("the passive to be able to take over", |lab| lab.protected_under(active));
    assert_same_and_sound(&lab, active, passive, "bench");

    // What it acknowledged is good for a takeover.
    lab.kill_site(active);
    lab.wait("the other site to take over", |lab| lab.writable_at(passive));
    let rows = lab.sql(passive, "bench", "SELECT count(*), count(bytes) FROM heavy");
    assert_eq!(rows, format!("{ROWS}|{ROWS}"));
}
