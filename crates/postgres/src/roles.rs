//! The node's three roles, as SQL with one statement a line: for single-user mode, and for a server that
//! runs.

use crate::settings::{ROLE_MANAGEMENT, ROLE_REPLICATION, ROLE_REWIND};

/// All of them.
pub const ROLES: [&str; 3] = [ROLE_MANAGEMENT, ROLE_REPLICATION, ROLE_REWIND];

/// What pg_rewind calls on its source (manual, pg_rewind, "Notes").
const REWIND_FUNCTIONS: [&str; 4] = [
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
];

/// Makes them where they are missing, and what they may where they are not.
pub fn creation() -> String {
    let create = |role: &str| {
        format!(
            "DO $$BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN \
             CREATE ROLE {role}; END IF; END$$;\n"
        )
    };
    let mut script: String = ROLES.map(create).concat();
    // No passwords: they are reached over the Unix socket by the right OS users alone.
    script.push_str(&format!("ALTER ROLE {ROLE_MANAGEMENT} SUPERUSER LOGIN PASSWORD NULL;\n"));
    script.push_str(&format!("ALTER ROLE {ROLE_REPLICATION} REPLICATION LOGIN PASSWORD NULL;\n"));
    script.push_str(&format!("ALTER ROLE {ROLE_REWIND} LOGIN PASSWORD NULL;\n"));
    for function in REWIND_FUNCTIONS {
        script.push_str(&format!(
            "GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {ROLE_REWIND};\n"
        ));
    }
    script
}

/// Removes them, and what was granted to them in the database that this runs in. A role that somebody
/// gave things elsewhere stays: then the statement's error ends the script, and nothing is lost by it.
pub(crate) fn removal() -> String {
    let remove = |role: &str| {
        format!(
            "DO $$BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN \
             DROP OWNED BY {role}; DROP ROLE {role}; END IF; END$$;\n"
        )
    };
    ROLES.map(remove).concat()
}
