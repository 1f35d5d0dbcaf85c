//! What is found at PGDATA, on the machine and in the server that runs there. Only looks; nothing here
//! says whether it is good.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use understudy_postgres::{DataDirectory, Ownership, Running, Server, StockServer, Version};

use super::{AdoptError, failed};

/// One question for everything, so that all of it is of one moment.
const QUESTION: &str = r"
SELECT json_build_object(
 'version', current_setting('server_version'),
 'superuser', (SELECT rolsuper FROM pg_roles WHERE rolname = session_user),
 'in_recovery', pg_is_in_recovery(),
 'system_id', (SELECT system_identifier::text FROM pg_control_system()),
 'timeline', CASE WHEN pg_is_in_recovery()
   THEN coalesce((SELECT received_tli FROM pg_stat_wal_receiver),
                 (SELECT timeline_id FROM pg_control_checkpoint()))
   ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END,
 'settings', (SELECT json_object_agg(name, json_build_object('value', current_setting(name),
   'source', source, 'file', sourcefile, 'pending', pending_restart)) FROM pg_settings),
 'file_settings', (SELECT coalesce(json_agg(json_build_object('file', sourcefile,
   'line', sourceline, 'name', name, 'value', setting, 'error', error) ORDER BY seqno), '[]')
   FROM pg_file_settings),
 'hba_errors', (SELECT coalesce(json_agg(line_number || ': ' || error), '[]')
   FROM pg_hba_file_rules WHERE error IS NOT NULL),
 'databases', (SELECT json_agg(json_build_object('name', datname,
   'encoding', pg_encoding_to_char(encoding), 'collate', datcollate, 'connect', datallowconn)
   ORDER BY datname) FROM pg_database),
 'tablespaces', (SELECT coalesce(json_agg(json_build_object('name', spcname,
   'location', pg_tablespace_location(oid)) ORDER BY spcname), '[]') FROM pg_tablespace
   WHERE pg_tablespace_location(oid) <> ''),
 'slots', (SELECT coalesce(json_agg(json_build_object('name', slot_name, 'type', slot_type,
   'active', active) ORDER BY slot_name), '[]') FROM pg_replication_slots),
 'standbys', (SELECT coalesce(json_agg(json_build_object('name', application_name,
   'address', coalesce(host(client_addr), 'the Unix socket'), 'state', state,
   'sync', sync_state)), '[]') FROM pg_stat_replication WHERE state IN ('streaming', 'catchup')),
 'receiver', (SELECT json_build_object('status', status, 'host', sender_host, 'port', sender_port)
   FROM pg_stat_wal_receiver),
 'prepared', (SELECT count(*) FROM pg_prepared_xacts),
 'sessions', (SELECT count(*) FROM pg_stat_activity
   WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()),
 'archive_failing', (SELECT last_failed_wal FROM pg_stat_archiver
   WHERE last_failed_time > coalesce(last_archived_time, '-infinity')),
 'roles', (SELECT coalesce(json_agg(json_build_object('name', rolname, 'superuser', rolsuper,
   'login', rolcanlogin, 'password', rolpassword IS NOT NULL)), '[]') FROM pg_authid
   WHERE rolname IN ('understudy', 'understudy_replication', 'understudy_rewind')));
";

/// A setting of the running server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Setting {
    pub(super) value: String,
    pub(super) source: String,
    pub(super) file: Option<String>,
    pub(super) pending: bool,
}

/// One line of its configuration files, as the server itself reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct FileSetting {
    pub(super) file: Option<String>,
    pub(super) line: Option<u32>,
    pub(super) name: Option<String>,
    pub(super) value: Option<String>,
    pub(super) error: Option<String>,
}

/// A database.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Database {
    pub(super) name: String,
    pub(super) encoding: String,
    pub(super) collate: String,
    pub(super) connect: bool,
}

/// A tablespace outside of PGDATA.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Tablespace {
    pub(super) name: String,
    pub(super) location: PathBuf,
}

/// A replication slot.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct SlotFact {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) active: bool,
}

/// Somebody who streams from here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct StandbyFact {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) state: String,
    pub(super) sync: String,
}

/// From whom a standby streams.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct ReceiverFact {
    pub(super) status: String,
    pub(super) host: Option<String>,
    pub(super) port: Option<i64>,
}

/// A role that bears one of our names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct RoleFact {
    pub(super) name: String,
    pub(super) superuser: bool,
    pub(super) login: bool,
    pub(super) password: bool,
}

/// What the server says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Said {
    pub(super) version: String,
    pub(super) superuser: Option<bool>,
    pub(super) in_recovery: bool,
    pub(super) system_id: String,
    pub(super) timeline: u32,
    pub(super) settings: BTreeMap<String, Setting>,
    pub(super) file_settings: Vec<FileSetting>,
    pub(super) hba_errors: Vec<String>,
    pub(super) databases: Vec<Database>,
    pub(super) tablespaces: Vec<Tablespace>,
    pub(super) slots: Vec<SlotFact>,
    pub(super) standbys: Vec<StandbyFact>,
    pub(super) receiver: Option<ReceiverFact>,
    pub(super) prepared: u64,
    pub(super) sessions: u64,
    pub(super) archive_failing: Option<String>,
    pub(super) roles: Vec<RoleFact>,
}

impl Said {
    /// A setting's value; empty where the server does not know it.
    pub(super) fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", |setting| setting.value.as_str())
    }

    /// A file that a setting names.
    pub(super) fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.setting(name)).filter(|path| !path.is_empty()).map(PathBuf::from)
    }
}

/// The server, if it could be asked.
#[derive(Clone, Debug)]
pub(super) enum Answered {
    Said(Box<Said>),
    Silent(String),
    NotRunning,
}

/// Where a distribution's tools keep what they know of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebianCluster {
    /// The major version in the path.
    pub version: String,
    /// The cluster's name.
    pub name: String,
    /// Its directory in /etc.
    pub dir: PathBuf,
}

impl DebianCluster {
    /// The one whose configuration file this is: `/etc/postgresql/15/main/postgresql.conf`.
    pub(super) fn of(config_file: &Path) -> Option<DebianCluster> {
        let dir = config_file.parent()?;
        let name = dir.file_name()?.to_str()?.to_owned();
        let version = dir.parent()?.file_name()?.to_str()?.to_owned();
        let tools = dir.join("start.conf").is_file() || dir.join("environment").is_file();
        tools.then(|| DebianCluster { version, name, dir: dir.to_owned() })
    }

    /// Whether and by whom it is started: `auto`, `manual` or `disabled`.
    pub(super) fn start_conf(&self) -> PathBuf {
        self.dir.join("start.conf")
    }
}

/// Everything that was found.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) directory: DataDirectory,
    pub(super) ownership: Ownership,
    pub(super) owner_uid: Option<u32>,
    pub(super) running: Option<Running>,
    pub(super) answered: Answered,
    /// How it was asked.
    pub(super) asked_at: Option<StockServer>,
    pub(super) programs: Version,
    /// The unit whose control group the postmaster is in.
    pub(super) unit: Option<String>,
    pub(super) debian: Option<DebianCluster>,
    /// History file of the server's timeline, where it must have one.
    pub(super) history_missing: bool,
    /// Files that lines of a pg_hba.conf or pg_ident.conf outside of PGDATA refer to by relative paths.
    pub(super) referred: Vec<String>,
    /// Who asks, and whose the node's directory is; `None` where there is none yet.
    pub(super) euid: u32,
    pub(super) node_dir_uid: Option<u32>,
}

impl Facts {
    pub(super) fn said(&self) -> Option<&Said> {
        match &self.answered {
            Answered::Said(said) => Some(said),
            Answered::Silent(_) | Answered::NotRunning => None,
        }
    }
}

/// Looks at everything. `roles`: who to ask the server as, the first that is let in.
pub(super) async fn look(
    server: &Server,
    node_dir: &Path,
    roles: &[String],
) -> Result<Facts, AdoptError> {
    let data_dir = server.settings().data_dir.clone();
    let directory = server.inspect().await.map_err(failed("look at the data directory"))?;
    let running = server.running().map_err(failed("look for the server"))?;
    let (answered, asked_at) = match &running {
        Some(running) => ask(server, running, roles).await,
        None => (Answered::NotRunning, None),
    };
    let mut facts = Facts {
        ownership: server.ownership().map_err(failed("look whose the data directory is"))?,
        owner_uid: Server::data_owner(&data_dir).ok(),
        unit: running.as_ref().and_then(|running| unit_of(running.pid)),
        programs: server.binaries().version(),
        euid: rustix::process::geteuid().as_raw(),
        node_dir_uid: Server::data_owner(node_dir).ok(),
        directory,
        running,
        answered,
        asked_at,
        debian: None,
        history_missing: false,
        referred: Vec::new(),
    };
    if let Some(said) = facts.said() {
        let debian = said.file("config_file").and_then(|file| DebianCluster::of(&file));
        let history = format!("pg_wal/{:08X}.history", said.timeline);
        let missing = said.timeline > 1 && !data_dir.join(history).exists();
        let files = ["hba_file", "ident_file"].map(|setting| said.file(setting));
        let outside = files.into_iter().flatten().filter(|file| !file.starts_with(&data_dir));
        let referred = outside.flat_map(|file| {
            let text = std::fs::read(&file).unwrap_or_default();
            referred_to(&String::from_utf8_lossy(&text))
        });
        let referred = referred.collect();
        (facts.debian, facts.history_missing, facts.referred) = (debian, missing, referred);
    }
    Ok(facts)
}

async fn ask(
    server: &Server,
    running: &Running,
    roles: &[String],
) -> (Answered, Option<StockServer>) {
    let mut silent = "it has no Unix socket (unix_socket_directories)".to_owned();
    for role in roles {
        let Some(stock) = StockServer::of(running, role) else { break };
        match server.ask_stock(&stock, QUESTION).await {
            Ok(text) => match serde_json::from_str(text.trim()) {
                Ok(said) => return (Answered::Said(Box::new(said)), Some(stock)),
                Err(error) => silent = format!("its answer cannot be read: {error}"),
            },
            Err(error) => silent = crate::hands::chain(&error),
        }
    }
    (Answered::Silent(silent), None)
}

/// What lines of a pg_hba.conf or pg_ident.conf take from other files by a relative path: `@users`, and
/// from PostgreSQL 16 on `include file`.
fn referred_to(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let words: Vec<&str> =
            line.split([' ', '\t', ',', '"']).filter(|w| !w.is_empty()).collect();
        let included = words.first().is_some_and(|first| first.starts_with("include"));
        let included = included.then(|| words.get(1).copied()).flatten();
        let listed = words.iter().filter_map(|word| word.strip_prefix('@'));
        found.extend(listed.chain(included).filter(|f| !f.starts_with('/')).map(str::to_owned));
    }
    found
}

/// The systemd unit that a process runs in, by its control group.
fn unit_of(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let unit = text.lines().filter_map(|line| line.rsplit('/').next());
    let mut named = unit.filter(|name| name.ends_with(".service") && name.contains("postgres"));
    named.next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_a_copy_elsewhere_would_not_find_are_named() {
        let text = "# local all @nobody peer\nlocal all @admins,@/etc/all peer\n\
                    include more.conf\ninclude_if_exists /etc/x.conf\nhost all all all md5\n";
        assert_eq!(referred_to(text), ["admins", "more.conf"]);
    }

    #[test]
    fn debians_layout_is_known_by_its_start_conf() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("15/main");
        std::fs::create_dir_all(&dir).unwrap();
        let config = dir.join("postgresql.conf");
        assert_eq!(DebianCluster::of(&config), None);
        std::fs::write(dir.join("start.conf"), "auto\n").unwrap();
        let found = DebianCluster::of(&config).unwrap();
        assert_eq!((found.version.as_str(), found.name.as_str()), ("15", "main"));
    }
}
