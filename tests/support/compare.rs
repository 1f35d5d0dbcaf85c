//! Whether two sites hold the same: PostgreSQL's own checks and dumps, and the WAL byte by byte.

use std::collections::BTreeSet;
use std::path::Path;

use super::lab::Lab;
use super::processes::run;
use super::wait_for;

/// Waits until `passive` has replayed all that `active` has written by now.
pub(crate) fn wait_for_replay(lab: &Lab, active: &str, passive: &str) {
    let end = lab.sql(active, "postgres", "SELECT pg_current_wal_flush_lsn()");
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    wait_for("the passive to replay", || {
        (lab.try_sql(passive, "postgres", &replayed).as_deref() == Ok("t")).then_some(())
    });
}

/// Every table and index is sound at both sites, and a dump of `database` is the same.
pub(crate) fn assert_same_and_sound(lab: &Lab, active: &str, passive: &str, database: &str) {
    let mut check = lab.tool_at(active, "pg_amcheck");
    run(check.args(["--all", "--install-missing", "--heapallindexed", "-j", "2"])).good();
    wait_for_replay(lab, active, passive);
    let mut check = lab.tool_at(passive, "pg_amcheck");
    run(check.args(["--all", "--heapallindexed", "-j", "2"])).good();
    let dump = |site: &str| -> Vec<String> {
        let text = run(lab.tool_at(site, "pg_dump").arg(database)).good();
        // Their argument is random.
        let varying = |line: &&str| !line.starts_with("\\restrict") && !line.starts_with("\\unr");
        text.lines().filter(varying).map(str::to_owned).collect()
    };
    let (here, there) = (dump(active), dump(passive));
    let differs = here.iter().zip(&there).find(|(a, b)| a != b);
    assert_eq!(differs, None, "dumps of {active} and {passive} differ");
    assert_eq!(here.len(), there.len(), "dumps of {active} and {passive} differ in length");
}

/// Has the active finish its segment, and returns the segment's name.
pub(crate) fn finish_segment(lab: &Lab, active: &str) -> String {
    // An empty segment would not be finished.
    lab.sql(active, "postgres", "SELECT pg_logical_emit_message(true, 'test', 'something')");
    lab.sql(active, "postgres", "SELECT pg_walfile_name(pg_switch_wal())")
}

/// The names of the finished segments in a directory.
pub(crate) fn finished_segments(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|n| n.len() == 24 && n.bytes().all(|b| b.is_ascii_hexdigit())).collect()
}

/// Every finished segment in `directory` that is also in the primary's pg_wal has the same bytes;
/// returns their names.
pub(crate) fn assert_segments_equal(lab: &Lab, primary: &str, directory: &Path) -> Vec<String> {
    let pg_wal = lab.pgdata(primary).join("pg_wal");
    let theirs = finished_segments(&pg_wal);
    let both: Vec<String> = finished_segments(directory).intersection(&theirs).cloned().collect();
    for name in &both {
        let here = std::fs::read(directory.join(name)).unwrap();
        let there = std::fs::read(pg_wal.join(name)).unwrap();
        let differs = here.iter().zip(&there).position(|(a, b)| a != b);
        assert_eq!(differs, None, "segment {name}: first differing byte");
        assert_eq!(here.len(), there.len(), "segment {name}: length");
    }
    both
}
