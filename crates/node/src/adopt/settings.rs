//! Settings: which are others under the daemon, and the file that carries the operator's own into PGDATA.
//! Pure.

use std::path::Path;

use serde::Serialize;

use super::facts::Said;
use super::plan::Part;

/// A setting that is another one under the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// As the running server has it.
    pub from: String,
    /// As the daemon starts it.
    pub to: String,
    /// Why.
    pub why: &'static str,
}

const WHY: &[(&str, &str)] = &[
    ("synchronous_standby_names", "the gate: commits are confirmed by the node, under its lease"),
    ("synchronous_commit", "commits wait for the gate"),
    ("wal_level", "WAL has to be fit for a standby"),
    ("wal_log_hints", "pg_rewind needs it, or checksums"),
    ("fsync", "what was reported as durable has to be"),
    ("full_page_writes", "a torn page has to be mended by WAL"),
    ("hot_standby", "a standby has to answer how far it is"),
    ("restart_after_crash", "a server that restarts by itself escapes the fence"),
    ("hba_file", "the node manages who is let in, and when; your lines are carried along"),
    ("ident_file", "the node manages who is let in, and when; your lines are carried along"),
    ("unix_socket_directories", "socket_directory in [postgres] of node.toml"),
    ("port", "port in [postgres] of node.toml"),
    ("listen_addresses", "listen_addresses in [postgres] of node.toml"),
    ("cluster_name", "the node's name"),
    ("primary_conninfo", "a standby follows the node's own journal"),
    ("primary_slot_name", "a standby follows the node's own journal"),
    ("restore_command", "a standby follows the node's own journal"),
    ("recovery_target_timeline", "a standby follows the cluster's promotions"),
    ("recovery_target", "a standby replays to the end of what there is"),
    ("recovery_target_lsn", "a standby replays to the end of what there is"),
    ("recovery_target_name", "a standby replays to the end of what there is"),
    ("recovery_target_time", "a standby replays to the end of what there is"),
    ("recovery_target_xid", "a standby replays to the end of what there is"),
    ("recovery_init_sync_method", "recovery of many databases takes a moment instead of minutes"),
    ("wal_retrieve_retry_interval", "a standby that waits looks again soon"),
    ("wal_keep_size", "a node that was away for a while is not copied afresh"),
    ("max_slot_wal_keep_size", "WAL that is kept for others must not fill the disk"),
    ("max_wal_size", "so many checkpoints have to fit into what may be kept"),
    ("max_wal_senders", "the gate, the receivers and base backups need some"),
    ("max_replication_slots", "each other data node has one"),
];

/// Settings that must not be lower at a standby than they were at its primary (the manual, 27.4.3).
pub(super) const NOT_LOWER: [&str; 6] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "max_replication_slots",
];

/// Names of files that a copy in PGDATA must not carry.
const LEFT_OUT: [&str; 5] =
    ["data_directory", "config_file", "hba_file", "ident_file", "external_pid_file"];

/// Every setting that differs.
pub(super) fn changes(said: &Said, command_line: &[(String, String)], part: Part) -> Vec<Change> {
    let mut changes = Vec::new();
    for (name, to) in command_line {
        let from = said.setting(name);
        if is_same(from, to) {
            continue;
        }
        let why = WHY.iter().find(|(known, _)| known == name).map(|(_, why)| *why);
        let why = why.unwrap_or("parameters in [postgres] of node.toml");
        let to = match name.as_str() {
            "synchronous_standby_names" => "a name that the node makes up at each start",
            "primary_conninfo" | "restore_command" if part == Part::Standby => "the node's journal",
            _ => to,
        };
        changes.push(Change {
            name: name.clone(),
            from: without_secrets(name, from),
            to: to.to_owned(),
            why,
        });
    }
    changes
}

/// A connection string may have a password in it.
fn without_secrets(name: &str, value: &str) -> String {
    if name == "primary_conninfo" && !value.is_empty() {
        return "(set)".to_owned();
    }
    value.to_owned()
}

/// The same value, written in another unit perhaps.
fn is_same(from: &str, to: &str) -> bool {
    let plain = |value: &str| value.trim().to_ascii_lowercase();
    plain(from) == plain(to) || bytes(from).is_some_and(|from| bytes(to) == Some(from))
}

fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let shift = match text[digits..].trim() {
        "B" => 0,
        "kB" => 10,
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// `postgresql.conf` for PGDATA: the settings of all files that the server read, the last of each name,
/// except those of `postgresql.auto.conf`, which lies there already, and those that the node sets.
pub(super) fn carried_along(
    said: &Said,
    data_dir: &Path,
    command_line: &[(String, String)],
) -> String {
    let auto = data_dir.join("postgresql.auto.conf");
    let mut text = "# Made by `understudy adopt` from the files named below; `understudy adopt undo` \
                    removes it.\n# It counts as long as Understudy runs the server: change it here.\n"
        .to_owned();
    let lines: Vec<_> = said.file_settings.iter().collect();
    for (index, line) in lines.iter().enumerate() {
        let (Some(name), Some(value), Some(file)) = (&line.name, &line.value, &line.file) else {
            continue;
        };
        let known = name.to_ascii_lowercase();
        let again = lines[index + 1..].iter().any(|later| {
            let same = later.name.as_ref().is_some_and(|n| n.eq_ignore_ascii_case(name));
            same && later.file.as_deref().is_some_and(|file| Path::new(file) != auto)
        });
        let ours = command_line.iter().any(|(name, _)| *name == known);
        if again || ours || Path::new(file) == auto || LEFT_OUT.contains(&known.as_str()) {
            continue;
        }
        let number = line.line.unwrap_or_default();
        text += &format!("{known} = {}  # {file}:{number}\n", quoted(value));
    }
    text
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', r"\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::super::facts::FileSetting;
    use super::*;

    #[test]
    fn a_value_in_another_unit_is_the_same() {
        assert!(is_same("1GB", "1024MB"));
        assert!(is_same("ON", "on"));
        assert!(!is_same("1GB", "1GBit"));
        assert!(!is_same("10", "32"));
        assert_eq!(bytes("99999999999999999999TB"), None);
    }

    #[test]
    fn what_is_carried_along_is_the_last_of_each_name_and_no_place_of_a_file() {
        let line = |file: &str, number, name: &str, value: &str| FileSetting {
            file: Some(file.to_owned()),
            line: Some(number),
            name: Some(name.to_owned()),
            value: Some(value.to_owned()),
            error: None,
        };
        let main = "/etc/postgresql/15/main/postgresql.conf";
        let said = said(vec![
            line(main, 1, "data_directory", "/var/lib/x"),
            line(main, 2, "work_mem", "4MB"),
            line(main, 2, "port", "5433"),
            line(main, 3, "archive_command", r"test ! -f '/a\b/%f'"),
            line("/etc/postgresql/15/main/conf.d/a.conf", 1, "Work_Mem", "8MB"),
            line("/data/postgresql.auto.conf", 1, "work_mem", "16MB"),
        ]);
        let text =
            carried_along(&said, Path::new("/data"), &[("port".to_owned(), "5432".to_owned())]);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with(r"archive_command = 'test ! -f ''/a\\b/%f'''  # "), "{text}");
        assert!(lines[1].starts_with("work_mem = '8MB'  # "), "{text}");
    }

    fn said(file_settings: Vec<FileSetting>) -> Said {
        Said {
            version: "15.1".to_owned(),
            superuser: Some(true),
            in_recovery: false,
            system_id: "7".to_owned(),
            timeline: 1,
            settings: std::collections::BTreeMap::new(),
            file_settings,
            hba_errors: vec![],
            databases: vec![],
            tablespaces: vec![],
            slots: vec![],
            standbys: vec![],
            receiver: None,
            prepared: 0,
            sessions: 0,
            archive_failing: None,
            roles: vec![],
        }
    }
}
