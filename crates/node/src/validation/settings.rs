//! Which differences between two servers' settings matter. Pure.

/// What a standby must not have less of than its primary wrote WAL under, or replay stops
/// (manual, "Administrator's Overview" of hot standby).
pub(super) const NOT_SMALLER: &[&str] = &[
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// Judged by findings of their own.
pub(super) const SPECIAL: &[&str] =
    &["shared_preload_libraries", "archive_mode", "archive_command", "archive_library"];

/// Different because the nodes, their places or their roles are; what a role change turns by itself; and
/// what the room for WAL at each node decides.
const OWN: &[&str] = &[
    "archive_cleanup_command",
    "cluster_name",
    "config_file",
    "data_checksums",
    "data_directory",
    "data_directory_mode",
    "external_pid_file",
    "hba_file",
    "ident_file",
    "in_hot_standby",
    "listen_addresses",
    "log_directory",
    "log_filename",
    "max_slot_wal_keep_size",
    "max_wal_size",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "restore_command",
    "shared_memory_size",
    "shared_memory_size_in_huge_pages",
    "synchronous_standby_names",
    "transaction_read_only",
    "unix_socket_directories",
    "wal_keep_size",
];

/// Whether clients or operators would notice after a role change that this one differs.
pub(super) fn matters(name: &str) -> bool {
    let judged = NOT_SMALLER.contains(&name) || SPECIAL.contains(&name);
    let versions = name.starts_with("server_version") || name.starts_with("debug_");
    let place = name.starts_with("ssl_") && (name.ends_with("_file") || name.ends_with("_dir"));
    !judged && !versions && !place && !OWN.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_roles_do_not_matter_and_what_clients_feel_does() {
        for own in ["port", "primary_conninfo", "max_wal_size", "ssl_cert_file", "max_connections"]
        {
            assert!(!matters(own), "{own}");
        }
        for felt in ["work_mem", "TimeZone", "statement_timeout", "ssl", "wal_level"] {
            assert!(matters(felt), "{felt}");
        }
        assert!(OWN.is_sorted());
    }
}
