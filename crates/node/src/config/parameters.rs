//! Which PostgreSQL settings an operator may not make, and why.
//!
//! These carry the acknowledgement gate, the fence or the rejoin ladder (docs/safety.md); a node that
//! silently overrode them would leave the operator with a file that does not say what is in force.

const GATE: &str = "the node sets it: the acknowledgement gate rests on it";
const STREAM: &str = "the node sets it: the standby follows the node's own journal";
const RECOVERY: &str = "the node decides how far and from where PostgreSQL recovers";
const DURABLE: &str = "WAL that was reported as durable would not be";
const SECTION: &str = "the node sets it from its own field in [postgres]";
const ACCESS: &str = "the node manages who is let in, and when";

const REFUSED: &[(&str, &str)] = &[
    ("synchronous_standby_names", GATE),
    ("primary_conninfo", STREAM),
    ("primary_slot_name", STREAM),
    ("restore_command", STREAM),
    ("promote_trigger_file", "promotion is the cluster's decision"),
    ("archive_cleanup_command", RECOVERY),
    ("hot_standby", "the node must be able to ask a standby how far it has replayed"),
    ("full_page_writes", DURABLE),
    ("fsync", DURABLE),
    ("zero_damaged_pages", "damage would be served as if it were data"),
    ("restart_after_crash", "a server that restarts by itself escapes the fence"),
    ("wal_log_hints", "the node sets it: pg_rewind needs it"),
    ("cluster_name", "the node sets it to its own name"),
    ("port", SECTION),
    ("listen_addresses", SECTION),
    ("unix_socket_directories", SECTION),
    ("data_directory", SECTION),
    ("config_file", SECTION),
    ("hba_file", ACCESS),
    ("ident_file", ACCESS),
];

/// Why this setting is refused; `None` if it is the operator's own business.
pub(super) fn refusal(name: &str, value: &str) -> Option<String> {
    // PostgreSQL's names are case-insensitive; so must this check be.
    let name = name.to_ascii_lowercase();
    let value = value.trim().to_ascii_lowercase();
    if let Some((_, reason)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
        return Some(format!("remove it; {reason}"));
    }
    if name.starts_with("recovery_") {
        return Some(format!("remove it; {RECOVERY}"));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
    if name.is_empty() || !name.bytes().all(plain) {
        return Some("this is not the name of a PostgreSQL setting".to_owned());
    }
    match name.as_str() {
        "synchronous_commit" if !matches!(value.as_str(), "on" | "remote_apply") => Some(
            "use on or remote_apply; commits with anything less are not held back by the gate"
                .to_owned(),
        ),
        "wal_level" if !matches!(value.as_str(), "replica" | "logical") => {
            Some("use replica or logical; WAL of minimal level cannot be replicated".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_the_protocol_rests_on_are_refused_in_any_case() {
        for name in ["FSYNC", "synchronous_standby_names", "recovery_target_time", "Hot_Standby"] {
            assert!(refusal(name, "on").is_some(), "{name} was accepted");
        }
        assert!(refusal("synchronous_commit", "local").is_some());
        assert!(refusal("synchronous_commit", "remote_apply").is_none());
        assert!(refusal("wal_level", "minimal").is_some());
        assert!(refusal("wal_level", "logical").is_none());
        assert!(refusal("x=1 -c fsync", "off").is_some());
    }

    #[test]
    fn other_settings_are_the_operators() {
        for name in
            ["shared_buffers", "archive_mode", "archive_command", "auto_explain.log_analyze"]
        {
            assert_eq!(refusal(name, "x"), None);
        }
    }
}
