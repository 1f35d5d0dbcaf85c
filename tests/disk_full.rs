//! Room for WAL. The passive's journal runs out of it under load, in `zero`: it acknowledges nothing that
//! it does not hold, says what is wrong, and goes on where its files end once there is space. And what
//! nobody needs does not take any.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::compare::assert_same_and_sound;
use support::lab::{BOUNDED, DATA, Lab, NODES, ZERO, node_in};
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

fn set_wal(lab: &Lab, name: &str, sizes: &[(&str, &str)]) {
    lab.edit_config(name, |config| {
        let sizes = sizes.iter().map(|(key, size)| (key.to_string(), (*size).into()));
        config.insert("wal".to_owned(), toml::Value::Table(sizes.collect()));
    });
}

/// A commit of ten mebibytes.
fn heavy(n: u32) -> String {
    format!(
        "INSERT INTO heavy SELECT {n}, string_agg(md5(random()::text || i), '') \
         FROM generate_series(1, 327680) AS i"
    )
}

/// A cluster that is ready for heavy rows, in `zero`, whose passive has its journal on a disk of this
/// size with this reserve; `None`, said, where nobody can mount one.
fn with_a_small_disk(mebibytes: u32, reserve: &str) -> Option<(Lab, SmallDisk)> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting a small file system needs root");
        return None;
    }
    let mut lab = Lab::prepared(ZERO);
    let [active, passive] = DATA;
    let disk = SmallDisk::mount(lab.journal_dir(passive), mebibytes);
    set_wal(&lab, passive, &[("reserve", reserve)]);
    for name in NODES {
        lab.start(name);
    }
    lab.wait("a cluster whose passive could take over", |lab| lab.protected_under(active));
    lab.sql(active, "postgres", "CREATE DATABASE bench");
    lab.sql(active, "bench", "CREATE TABLE heavy (n int, bytes text)");
    lab.sql(active, "bench", "ALTER TABLE heavy ALTER bytes SET STORAGE EXTERNAL");
    Some((lab, disk))
}

/// Writes all rows, and says which were acknowledged; together they are more than a small disk holds.
fn write_heavy_rows(lab: &Lab, active: &str) -> Background {
    let mut psql = lab.tool_at(active, "psql");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "bench"]);
    for n in 0..ROWS {
        psql.arg("-c").arg(heavy(n)).arg("-c").arg(format!("\\echo acknowledged {n}"));
    }
    Background::start(&mut psql)
}

#[test]
fn a_passive_without_space_acknowledges_nothing_that_it_lacks_and_goes_on_after_room_is_made() {
    let [active, passive] = DATA;
    // With a reserve the journal would not come so far.
    let Some((mut lab, disk)) = with_a_small_disk(80, "0") else { return };
    let mut load = write_heavy_rows(&lab, active);

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

#[test]
fn a_reserve_keeps_the_passive_alive_and_it_goes_on_by_itself_once_there_is_room() {
    let [active, passive] = DATA;
    let Some((mut lab, disk)) = with_a_small_disk(100, "40MiB") else { return };
    let mut load = write_heavy_rows(&lab, active);

    lab.wait("the passive to say why it refuses WAL", |lab| {
        let warned = |status: serde_json::Value| {
            let node = node_in(&status, passive)?;
            let said = node["warnings"]
                .as_array()?
                .iter()
                .any(|words| words.as_str().is_some_and(|words| words.contains("refuses new WAL")));
            said.then_some(())
        };
        lab.status_of(passive).and_then(warned).is_some()
    });
    assert!(disk.free_bytes() >= 40 << 20, "the reserve of {} is used", disk.path().display());
    assert!(load.runs(), "a commit was acknowledged that the passive could not store");
    let (_, metrics) = lab.get(passive, "/metrics").expect("it answers");
    let room = "understudy_wal_room_bytes{place=\"journal\"}";
    let room =
        metrics.lines().find_map(|line| line.strip_prefix(room)).expect("the metric is there");
    assert!(room.trim().parse::<f64>().unwrap() < f64::from(1 << 24), "{room}");

    disk.grow(400);
    load.wait(Duration::from_secs(120)).good();
    lab.wait("the passive to be able to take over", |lab| lab.protected_under(active));
    assert_same_and_sound(&lab, active, passive, "bench");
}

/// The files of a directory and below, in bytes.
fn bytes_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_below(&entry.path()),
        Ok(found) => found.len(),
        // It was removed or renamed in between.
        Err(_) => 0,
    };
    entries.map(size).sum()
}

/// So many finished segments, of 16 MiB each.
fn write_segments(lab: &Lab, active: &str, count: u32) {
    for _ in 0..count {
        lab.sql(active, "bench", "INSERT INTO light VALUES (1)");
        lab.sql(active, "postgres", "SELECT pg_switch_wal()");
    }
}

#[test]
fn wal_that_nobody_needs_goes_and_a_node_that_was_away_too_long_is_copied_by_itself() {
    let mut lab = Lab::prepared(BOUNDED);
    let [active, passive] = DATA;
    for name in DATA {
        set_wal(&lab, name, &[("keep", "32MiB"), ("max", "256MiB")]);
    }
    for name in NODES {
        lab.start(name);
    }
    lab.wait("a cluster whose passive could take over", |lab| lab.protected_under(active));
    lab.sql(active, "postgres", "CREATE DATABASE bench");
    lab.sql(active, "bench", "CREATE TABLE light (n int)");
    let journal = lab.journal_dir(passive);
    write_segments(&lab, active, 8);
    lab.wait("WAL in the journal", |_| bytes_below(&journal) > 120 << 20);
    lab.sql(active, "postgres", "CHECKPOINT");
    lab.wait("a restart point at the passive", |lab| {
        lab.sql(passive, "postgres", "CHECKPOINT");
        // What is kept, what is being written, and what a look every ten seconds lets come in between.
        bytes_below(&journal) < 80 << 20
    });

    lab.kill_site(passive);
    write_segments(&lab, active, 24);
    lab.sql(active, "postgres", "CHECKPOINT");
    let lost = "SELECT count(*) FROM pg_replication_slots WHERE wal_status = 'lost'";
    lab.wait("the slot to be given up", |lab| lab.sql(active, "postgres", lost) == "1");
    // Files beyond the end are empty ones for later.
    let kept = "SELECT count(*) FROM pg_ls_waldir() \
                WHERE name < pg_walfile_name(pg_current_wal_flush_lsn())";
    let kept: u32 = lab.sql(active, "postgres", kept).parse().unwrap();
    assert!(kept < 20, "{kept} segments are kept for a node that is away");
    lab.wait("the active to say so", |lab| {
        lab.status_of(active).is_some_and(|status| {
            let node = node_in(&status, active);
            node.is_some_and(|node| node["warnings"].to_string().contains("is copied afresh"))
        })
    });

    lab.start(passive);
    lab.wait("the passive to be copied and back", |lab| lab.protected_under(active));
    assert!(lab.log_text(passive).contains("no longer has the WAL"), "it was not copied for this");
    assert_same_and_sound(&lab, active, passive, "bench");
}
