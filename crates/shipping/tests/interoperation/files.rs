//! PostgreSQL's own tools on what we wrote: `pg_waldump` on the journal's files, `pg_receivewal` with
//! compression at the relay.

use std::path::Path;

use understudy_types::{Lsn, Timeline, WalSegment};

use crate::chain::Chain;
use crate::postgres::{command, owner, run, until};
use crate::relayed::receivewal;
use crate::rig::Make;

const SMALL: Make = Make { segment_mib: Some(1), settings: &[] };

/// What `pg_waldump` prints of the records in a directory from a position on, a line each, as far as it can
/// read; and the positions of those records.
fn dump(dir: &Path, from: Lsn) -> (Vec<String>, Vec<Lsn>) {
    let mut dump = command("pg_waldump");
    dump.arg("-p").arg(dir).args(["-t", "1", "-s", &from.to_string()]);
    // It reads until something is no record, and that is an error to it.
    let output = dump.output().unwrap();
    let lines: Vec<String> =
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    let place = |line: &String| {
        let lsn = line.split("lsn: ").nth(1).unwrap().split(',').next().unwrap();
        lsn.parse().unwrap()
    };
    let places = lines.iter().map(place).collect();
    (lines, places)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pg_waldump_reads_the_journals_files_up_to_what_the_journal_calls_durable() {
    let chain = Chain::new(SMALL).await;
    let rig = &chain.rig;
    rig.sql("INSERT INTO t SELECT generate_series(1, 40000)");
    rig.sql("SELECT pg_switch_wal()");
    rig.sql("INSERT INTO t SELECT generate_series(1, 20000)");
    rig.caught_up().await;
    rig.kill_primary();
    let tail = rig.journal.tail().unwrap().unwrap();
    // As it stands after a crash: names that end in `.partial` are ours and pg_receivewal's alone.
    let copied = rig.dir().join("copied");
    std::fs::create_dir(&copied).unwrap();
    let mut finished = 0;
    for entry in std::fs::read_dir(chain.timeline_dir(Timeline::FIRST)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        finished += u32::from(!name.ends_with(".partial"));
        std::fs::copy(&path, copied.join(name.trim_end_matches(".partial"))).unwrap();
    }
    assert!(finished >= 3, "only {finished} segments were finished");
    let begin = chain.begin_lsn();
    let (ours, places) = dump(&copied, begin);
    let (theirs, _) = dump(&rig.dir().join("primary/pg_wal"), begin);
    assert!(ours.len() > 60_000, "{} records", ours.len());
    assert_eq!(places.last(), Some(&tail.tail_lsn), "the last record of the journal");
    assert!(theirs.starts_with(&ours), "the same records");
    // The files of finished segments are read where they lie.
    let (in_place, _) = dump(&chain.timeline_dir(Timeline::FIRST), begin);
    assert!(in_place.len() > 40_000 && ours.starts_with(&in_place), "{} records", in_place.len());
    chain.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pg_receivewal_compresses_what_the_relay_sends_and_goes_on_where_it_was_killed() {
    let chain = Chain::new(SMALL).await;
    let rig = &chain.rig;
    let size = rig.size();
    let last_segment = || {
        let at: Lsn = rig.sql("SELECT pg_current_wal_insert_lsn()").parse().unwrap();
        WalSegment::containing(Timeline::FIRST, at, size)
    };
    let first = last_segment();
    let fill = |to: u32| {
        rig.sql(&format!("INSERT INTO t SELECT generate_series(1, {to})"));
        rig.sql("SELECT pg_switch_wal()");
        rig.sql("INSERT INTO t VALUES (0)");
    };
    for _killed in 0..2 {
        let (received, receiving) = receivewal(rig.dir(), "received", &["--compress=gzip:1"]);
        fill(30_000);
        let last = last_segment().number - 1;
        let name = WalSegment { number: last, ..first }.file_name(size) + ".gz";
        until("pg_receivewal has finished the segment", || received.join(&name).exists()).await;
        drop(receiving);
    }
    let mut segment = first;
    while segment.number < last_segment().number {
        let name = segment.file_name(size);
        let packed = rig.dir().join("received").join(format!("{name}.gz"));
        let mut gzip = std::process::Command::new("gzip");
        let output = gzip.arg("-dc").arg(&packed).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let written = std::fs::read(rig.dir().join("primary/pg_wal").join(&name)).unwrap();
        assert!(output.stdout == written, "{name} differs from the primary's");
        segment = segment.next();
    }
    assert!(segment.number - first.number >= 4, "{} segments", segment.number - first.number);
    chain.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pg_verifybackup_finds_the_wal_that_a_backup_needs_in_the_journal() {
    let chain = Chain::new(SMALL).await;
    let rig = &chain.rig;
    let copy = rig.dir().join("copy");
    let mut backup = command("pg_basebackup");
    backup.arg("-D").arg(&copy).arg("-h").arg(rig.socket_dir());
    run(backup.args(["-U", "postgres", "-X", "none", "-c", "fast", "-N"]));
    rig.sql("SELECT pg_switch_wal()");
    rig.sql("INSERT INTO t VALUES (0)");
    rig.caught_up().await;
    // `pg_verifybackup` runs pg_waldump over the range in the manifest.
    let journal = chain.timeline_dir(Timeline::FIRST);
    let mut needed = command("pg_verifybackup");
    run(needed.arg("-w").arg(&journal).arg(&copy));
    // With the segments it needs away it says so, or this shows nothing.
    let empty = rig.dir().join("empty");
    std::fs::create_dir(&empty).unwrap();
    std::os::unix::fs::chown(&empty, Some(owner().0), Some(owner().1)).unwrap();
    let refused = command("pg_verifybackup").arg("-w").arg(&empty).arg(&copy).output().unwrap();
    assert!(!refused.status.success());
    chain.end().await;
}
