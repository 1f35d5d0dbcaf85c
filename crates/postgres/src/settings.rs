//! What a server is started with: its place, its user, and the settings that must not be changed.
//!
//! Settings that the gate rests on go on the postmaster's command line, where neither
//! `postgresql.conf` nor ALTER SYSTEM can touch them, and which a rewind or base backup cannot copy
//! from another node. The operator's own go into a file (`parameters`), which a reload can change.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::os::OsUser;

/// The node's own superuser role: probes, promotion, checkpoints.
pub const ROLE_MANAGEMENT: &str = "understudy";
/// The role that reads WAL and takes base backups; nobody else may replicate.
pub const ROLE_REPLICATION: &str = "understudy_replication";
/// The role that `pg_rewind` reads the source with.
pub const ROLE_REWIND: &str = "understudy_rewind";

/// The longest path of a Unix socket that Linux accepts.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The random `application_name` under which the node is PostgreSQL's synchronous standby.
///
/// 1 to 63 characters of `a-z`, `0-9` and `_`, so that it needs no quoting and no folding of case can
/// make two of them equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateName(String);

impl GateName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for GateName {
    type Err = Error;
    fn from_str(text: &str) -> Result<GateName> {
        let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if plain && (1..=63).contains(&text.len()) {
            return Ok(GateName(text.to_owned()));
        }
        let reason = format!("{text:?} is not 1 to 63 characters of a-z, 0-9 and _");
        Err(Error::Setting { name: "gate name", reason })
    }
}

/// Where the local server lives and what the operator wants of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// PGDATA.
    pub data_dir: PathBuf,
    /// Where this node keeps what must survive a rewind of PGDATA (the second copy of the dirty
    /// marker); belongs to this PGDATA alone.
    pub state_dir: PathBuf,
    /// TCP port, also part of the socket's name.
    pub port: u16,
    /// PostgreSQL's `listen_addresses`; empty for the Unix socket only.
    pub listen_addresses: String,
    /// Directory of the Unix socket; made if it is missing.
    pub socket_dir: PathBuf,
    /// Who PostgreSQL runs as.
    pub os_user: OsUser,
    /// Where the postmaster's output goes.
    pub log_file: PathBuf,
    /// The operator's own settings at the first start, validated elsewhere; those that the gate rests on
    /// lose. A reload gives the server others.
    pub parameters: BTreeMap<String, String>,
    /// Shown as `cluster_name`.
    pub node_name: String,
}

impl Settings {
    /// Refuses what PostgreSQL would only refuse later, and less clearly.
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |name, reason: String| Err(Error::Setting { name, reason });
        if !self.data_dir.is_absolute() || self.data_dir.parent().is_none() {
            return invalid("data_dir", format!("{:?} is not an absolute path", self.data_dir));
        }
        let socket = self.socket_dir.join(format!(".s.PGSQL.{}", self.port));
        let bytes = socket.as_os_str().len();
        if bytes > SOCKET_PATH_BYTES_MAX {
            let reason =
                format!("{socket:?} has {bytes} bytes, {SOCKET_PATH_BYTES_MAX} are possible");
            return invalid("socket_dir", reason);
        }
        for (name, path) in [("data_dir", &self.data_dir), ("socket_dir", &self.socket_dir)] {
            let text = path.to_str().unwrap_or("\n");
            if text.contains([',', '\n', '"', '\'']) {
                return invalid(
                    name,
                    format!("{path:?} has a comma, quote, line end or is not UTF-8"),
                );
            }
        }
        Ok(())
    }
}

/// In which role a server starts. The gate's name is set in both: a standby that is promoted must
/// already be gated in the moment in which it accepts the first write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartMode {
    /// Follows; `standby.signal` lies in the data directory.
    Standby {
        /// libpq connection string of the relay.
        primary_conninfo: String,
        /// Shell command that fetches WAL files from the journal.
        restore_command: Option<String>,
    },
    /// Comes up writable, behind the gate. Only between an accepted renewal and the start.
    Primary,
}

/// The settings of the file, the operator's first. Those of the command line are none of them, but for
/// what follows from the operator's: PostgreSQL says by the file that a restart is pending.
pub(crate) fn file_parameters(
    settings: &Settings,
    parameters: &BTreeMap<String, String>,
) -> Vec<(String, String)> {
    let mut file: Vec<(String, String)> = Vec::new();
    let user = |name: &str| value_of(parameters, name);
    let fixed = fixed(settings);
    for (name, value) in parameters {
        let name = name.to_ascii_lowercase();
        let ours = fixed.iter().any(|(ours, _)| *ours == name);
        if !ours && !OF_A_START.contains(&name.as_str()) {
            file.push((name, value.clone()));
        }
    }
    // A default only: what the operator says about it stands.
    if user("wal_keep_size").is_none() {
        file.push(("wal_keep_size".to_owned(), "1GB".to_owned()));
    }
    // Before crash recovery PostgreSQL makes every file of the data directory durable, one by one
    // unless told otherwise: with the databases of many tenants that alone takes longer than a
    // failover. One syncfs for each file system does the same (PostgreSQL 14; Linux reports write
    // errors through it since 5.8).
    if user("recovery_init_sync_method").is_none() {
        file.push(("recovery_init_sync_method".to_owned(), "syncfs".to_owned()));
    }
    for (name, value) in derived(parameters) {
        file.retain(|(key, _)| key != name);
        file.push((name.to_owned(), value));
    }
    file
}

fn value_of<'a>(parameters: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
    let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.as_str())
}

/// What is another with each start, and on the command line alone.
const OF_A_START: [&str; 3] = ["synchronous_standby_names", "primary_conninfo", "restore_command"];

/// What the operator may ask more of, and not less.
fn derived(parameters: &BTreeMap<String, String>) -> [(&'static str, String); 3] {
    let user = |name: &str| value_of(parameters, name);
    let logical = user("wal_level").is_some_and(|level| level.eq_ignore_ascii_case("logical"));
    let count = |name: &str| {
        let wanted = user(name).and_then(|value| value.parse().ok()).unwrap_or(10).max(10u32);
        wanted.to_string()
    };
    [
        ("wal_level", if logical { "logical" } else { "replica" }.to_owned()),
        ("max_wal_senders", count("max_wal_senders")),
        ("max_replication_slots", count("max_replication_slots")),
    ]
}

/// What nobody but the node sets, whatever its role; the rest is added for each start.
fn fixed(settings: &Settings) -> Vec<(&'static str, String)> {
    let mut line: Vec<(&'static str, String)> = Vec::new();
    let mut ours = |name: &'static str, value: &str| line.push((name, value.to_owned()));
    ours("synchronous_commit", "on");
    for name in ["fsync", "full_page_writes", "hot_standby", "wal_log_hints"] {
        ours(name, "on");
    }
    ours("restart_after_crash", "off");
    // Our blocks must be the files that count, whatever postgresql.conf says.
    ours("hba_file", &settings.data_dir.join("pg_hba.conf").to_string_lossy());
    ours("ident_file", &settings.data_dir.join("pg_ident.conf").to_string_lossy());
    ours("unix_socket_directories", &settings.socket_dir.to_string_lossy());
    ours("port", &settings.port.to_string());
    ours("listen_addresses", &settings.listen_addresses);
    ours("cluster_name", &settings.node_name);
    ours("wal_retrieve_retry_interval", "250ms");
    ours("recovery_target_timeline", "latest");
    // Left over from a restore to a point in time, any of them would end a standby's replay there.
    for target in [
        "recovery_target",
        "recovery_target_lsn",
        "recovery_target_name",
        "recovery_target_time",
        "recovery_target_xid",
    ] {
        ours(target, "");
    }
    // A rewind or base backup brings the source's postgresql.auto.conf along.
    ours("primary_slot_name", "");
    line
}

/// The settings of the postmaster's command line; nothing else can change them.
pub(crate) fn command_line(
    settings: &Settings,
    parameters: &BTreeMap<String, String>,
    mode: &StartMode,
    gate: &GateName,
) -> Vec<(String, String)> {
    let ours = fixed(settings).into_iter().chain(derived(parameters));
    let mut line: Vec<(String, String)> =
        ours.map(|(name, value)| (name.to_owned(), value)).collect();
    let mut ours = |name: &str, value: &str| line.push((name.to_owned(), value.to_owned()));
    ours("synchronous_standby_names", &format!("\"{gate}\""));
    match mode {
        StartMode::Standby { primary_conninfo, restore_command } => {
            ours("primary_conninfo", primary_conninfo);
            ours("restore_command", restore_command.as_deref().unwrap_or(""));
        }
        StartMode::Primary => {
            ours("primary_conninfo", "");
            ours("restore_command", "");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(parameters: &[(&str, &str)]) -> Settings {
        Settings {
            data_dir: "/data".into(),
            state_dir: "/state".into(),
            port: 5432,
            listen_addresses: "*".to_owned(),
            socket_dir: "/run/socket".into(),
            os_user: OsUser { name: "postgres".to_owned(), uid: 1, gid: 1 },
            log_file: "/log".into(),
            parameters: parameters.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            node_name: "a".to_owned(),
        }
    }

    #[test]
    fn settings_of_the_gate_win_over_the_operators() {
        let gate: GateName = "gate_1".parse().unwrap();
        let given = [
            ("Synchronous_Standby_Names", "*"),
            ("fsync", "off"),
            ("max_wal_senders", "3"),
            ("max_replication_slots", "40"),
            ("wal_keep_size", "64MB"),
            ("work_mem", "8MB"),
        ];
        let settings = settings(&given);
        let line = command_line(&settings, &settings.parameters, &StartMode::Primary, &gate);
        let file = file_parameters(&settings, &settings.parameters);
        let all = |name: &str| {
            let all = line.iter().chain(&file).filter(|(key, _)| key == name);
            all.map(|(_, v)| v.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(all("synchronous_standby_names"), ["\"gate_1\""]);
        assert_eq!(all("fsync"), ["on"]);
        // In both, so that PostgreSQL says by the file what a restart would change.
        assert_eq!(all("max_wal_senders"), ["10", "10"]);
        assert_eq!(all("max_replication_slots"), ["40", "40"]);
        assert_eq!(all("wal_keep_size"), ["64MB"]);
        assert_eq!(all("work_mem"), ["8MB"]);
    }

    #[test]
    fn recovery_syncs_whole_file_systems_unless_the_operator_says_otherwise() {
        for (given, method) in
            [(&[][..], "syncfs"), (&[("Recovery_Init_Sync_Method", "fsync")], "fsync")]
        {
            let settings = settings(given);
            let line = file_parameters(&settings, &settings.parameters);
            let found: Vec<_> =
                line.iter().filter(|(key, _)| key == "recovery_init_sync_method").collect();
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].1, method);
        }
    }

    #[test]
    fn a_gate_name_needs_no_quoting() {
        for text in ["", "Gate", "a b", "a\"b", "*", &"x".repeat(64)] {
            assert!(text.parse::<GateName>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn a_socket_path_that_linux_cannot_hold_is_refused() {
        let mut settings = settings(&[]);
        settings.socket_dir = format!("/{}", "x".repeat(100)).into();
        assert!(settings.check().unwrap_err().to_string().contains("107"));
    }
}
