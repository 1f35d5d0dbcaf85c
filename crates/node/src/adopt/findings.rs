//! What is in the way of an adoption, or should be known before it: each with its evidence and a remedy.
//! Pure.

use serde::Serialize;
use understudy_postgres::{DataDirectory, Ownership, ROLE_MANAGEMENT};

use super::facts::{Facts, Said};
use super::plan::{Part, is_taken, silence};
use super::settings::NOT_LOWER;
use crate::config::NodeConfig;

/// How much it matters, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Nothing is done while it stands.
    Blocker,
    /// It goes on, and somebody may be surprised.
    Warning,
    /// To be known.
    Note,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// Collects findings.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, severity: Severity, what: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding { severity, what: what.into(), remedy: remedy.into() });
    }

    fn block(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Blocker, what, remedy);
    }

    fn warn(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Warning, what, remedy);
    }

    fn note(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Note, what, remedy);
    }
}

/// What the machine and the data directory say, without the server.
pub(super) fn machine(config: &NodeConfig, facts: &Facts, part: Part) -> Vec<Finding> {
    let mut found = Findings::default();
    let user = config.postgres.as_ref().map_or("postgres", |postgres| postgres.os_user.as_str());
    match &facts.directory {
        DataDirectory::Missing | DataDirectory::Empty if part == Part::Copy => {
            found.note("the data directory is empty", "start the daemon: it copies the active");
            return found.0;
        }
        DataDirectory::Missing | DataDirectory::Empty => found.block(
            "postgres.data_directory is empty, and the cluster is to be founded on this node",
            "name the PGDATA of the primary that is to be adopted, or start the daemon to have a new \
             cluster made",
        ),
        DataDirectory::NotACluster { what } => found.block(
            format!("postgres.data_directory is not a PostgreSQL cluster: {what}"),
            "name the primary's PGDATA (SHOW data_directory)",
        ),
        DataDirectory::WrongVersion { found: version, wanted } => found.block(
            format!("the data directory is of PostgreSQL {version}, the programs are of {wanted}"),
            format!(
                "set postgres.bin_dir to the directory of version {version}, for Debian \
                 /usr/lib/postgresql/{version}/bin"
            ),
        ),
        DataDirectory::Dirty { what } => {
            found.block(
                format!("the data directory is incomplete: {what}"),
                "move it away; the daemon copies the active afresh",
            );
        }
        DataDirectory::Cluster(_) => {}
    }
    if is_taken(facts) {
        found.block(
            "the data directory is this node's own already",
            "nothing is left to be adopted; `understudy status` shows the cluster",
        );
    } else if facts.ownership == Ownership::Foreign {
        found.note(
            "another data directory lay here before, by the node's own record",
            "make sure that this is the one that is meant",
        );
    }
    if let Some(why) = silence(facts) {
        found.block(
            format!("the server cannot be asked: {why}"),
            format!(
                "let OS user {user} in as a superuser over the Unix socket, as `local all {user} peer` \
                 in pg_hba.conf does, or name another superuser with --role"
            ),
        );
    } else if facts.running.is_none() && matches!(facts.directory, DataDirectory::Cluster(_)) {
        found.block(
            "PostgreSQL does not run on the data directory",
            "start it as usual: it is asked about its settings, its standbys and who uses it",
        );
    }
    if let Some(uid) = facts.node_dir_uid
        && uid != facts.euid
    {
        found.block(
            format!(
                "{} belongs to user {uid}, and this runs as {}",
                config.data_dir.display(),
                facts.euid
            ),
            "run it as the user that the daemon runs as, as in `runuser -u postgres -- understudy …`",
        );
    }
    found.0
}

/// What the server says.
pub(super) fn server(
    config: &NodeConfig,
    facts: &Facts,
    said: &Said,
    part: Part,
    command_line: &[(String, String)],
) -> Vec<Finding> {
    let mut found = Findings::default();
    place(&mut found, config, facts, said, part);
    configuration(&mut found, config, facts, said);
    values(&mut found, said, command_line);
    timeline_and_roles(&mut found, facts, said);
    others(&mut found, said, part);
    clients(&mut found, facts, said, command_line);
    found.0
}

fn place(found: &mut Findings, config: &NodeConfig, facts: &Facts, said: &Said, part: Part) {
    let initial = config.initial_active == config.name;
    if part == Part::Primary && !initial {
        found.block(
            format!(
                "this server accepts writes, and the cluster is to be founded on {}",
                config.initial_active
            ),
            "of two primaries one can be adopted: set initial_active to this node in every node.toml, \
             or move this data directory away",
        );
    }
    if part == Part::Standby && initial {
        found.block(
            "this server is a standby, and the cluster is to be founded on this node",
            "set initial_active to the node that has the primary, in every node.toml",
        );
    }
    if part == Part::Standby {
        let receiver = said.receiver.as_ref();
        match receiver.filter(|receiver| receiver.status == "streaming") {
            Some(receiver) => found.note(
                format!(
                    "it streams from {}:{}",
                    receiver.host.as_deref().unwrap_or("an unknown host"),
                    receiver.port.unwrap_or_default()
                ),
                "that has to be the primary that is adopted: its data is followed in place",
            ),
            None => found.block(
                "the standby does not stream from its primary, so that nothing says that it has the \
                 same WAL",
                "mend its replication, or move its data directory away to have the active copied",
            ),
        }
    }
    let postgres = config.postgres.as_ref();
    if let (Some(postgres), Some(uid)) = (postgres, facts.owner_uid)
        && understudy_postgres::OsUser::lookup(&postgres.os_user).is_ok_and(|u| u.uid != uid)
    {
        found.block(
            format!("PGDATA belongs to user {uid}, and postgres.os_user is {}", postgres.os_user),
            "set postgres.os_user to the user that PostgreSQL runs as",
        );
    }
    let programs = facts.programs.to_string();
    if !said.version.starts_with(&programs) {
        found.note(
            format!("the server runs {}, the programs are {programs}", said.version),
            "the restart brings the programs' version",
        );
    }
}

/// Whether it would start with what its files say.
fn configuration(found: &mut Findings, config: &NodeConfig, facts: &Facts, said: &Said) {
    for line in &said.file_settings {
        let (Some(error), Some(file)) = (&line.error, &line.file) else { continue };
        // What only takes effect at a restart is no error of the file.
        let pending = line.name.as_ref().and_then(|name| said.settings.get(name));
        if pending.is_some_and(|setting| setting.pending) {
            continue;
        }
        let (number, name) = (line.line.unwrap_or(0), line.name.as_deref().unwrap_or("?"));
        found.block(
            format!("{file} line {number}: {name}: {error}"),
            "mend the line: the server would not start again",
        );
    }
    for error in &said.hba_errors {
        found.block(
            format!("pg_hba.conf line {error}"),
            "mend the line: the server would not start again",
        );
    }
    for file in &facts.referred {
        found.block(
            format!(
                "{file}, that pg_hba.conf or pg_ident.conf refers to, is named by a relative path"
            ),
            "name it by an absolute one: the file is copied into PGDATA",
        );
    }
    if !said.databases.iter().any(|database| database.name == "postgres" && database.connect) {
        found.block(
            "there is no database postgres that can be connected to",
            "make it: CREATE DATABASE postgres",
        );
    }
    if let Some(postgres) = &config.postgres
        && said.setting("data_directory") != postgres.data_directory.to_string_lossy()
    {
        let same = std::fs::canonicalize(said.setting("data_directory")).ok()
            == std::fs::canonicalize(&postgres.data_directory).ok();
        if !same {
            found.block(
                format!("the server says that its data is in {}", said.setting("data_directory")),
                "set postgres.data_directory to it",
            );
        }
    }
}

/// Whether it would start with other values than it runs with.
fn values(found: &mut Findings, said: &Said, command_line: &[(String, String)]) {
    let pending = said.settings.iter().filter(|(_, setting)| setting.pending);
    for (name, _) in pending {
        found.warn(
            format!("{name} was changed in its file and waits for a restart"),
            "the restart of the adoption puts it in force",
        );
    }
    let ours = |name: &str| command_line.iter().find(|(known, _)| known == name);
    for (name, setting) in &said.settings {
        let given = setting.source == "command line";
        let place = matches!(
            name.as_str(),
            "config_file" | "data_directory" | "external_pid_file" | "data_directory_mode"
        );
        if given && !place && ours(name).is_none() {
            found.block(
                format!("{name} = {} stands on the postmaster's command line alone", setting.value),
                "put it into postgresql.conf, or below [postgres.parameters] of node.toml",
            );
        }
    }
    for name in NOT_LOWER {
        let from: Option<i64> = said.setting(name).parse().ok();
        let to = ours(name).and_then(|(_, value)| value.parse::<i64>().ok());
        if let (Some(from), Some(to)) = (from, to)
            && to < from
        {
            found.block(
                format!("{name} would go from {from} to {to}, and a standby that has seen {from} does not start"),
                format!("set {name} = {from} below [postgres.parameters] of every data node's node.toml"),
            );
        }
    }
    if said.setting("wal_level") == "logical"
        && ours("wal_level").is_some_and(|(_, level)| level != "logical")
    {
        found.block(
            "wal_level is logical, and would be replica",
            "set wal_level = \"logical\" below [postgres.parameters] of every node.toml, or drop what \
             decodes it",
        );
    }
}

fn timeline_and_roles(found: &mut Findings, facts: &Facts, said: &Said) {
    if facts.history_missing {
        let name = format!("{:08X}.history", said.timeline);
        found.block(
            format!("the server is on timeline {}, and pg_wal/{name} is missing", said.timeline),
            format!("fetch {name} from the archive into pg_wal"),
        );
    }
    if said.superuser != Some(true) {
        found.block("it was asked as a role that is no superuser", "name one with --role");
    }
    for role in &said.roles {
        let wanted =
            role.login && !role.password && role.superuser == (role.name == ROLE_MANAGEMENT);
        if wanted {
            found.note(format!("role {} is there already", role.name), "it is used as it is");
        } else {
            found.block(
                format!("a role {} of somebody else's is there", role.name),
                "rename it: the node makes a role of that name its own",
            );
        }
    }
}

/// Replication that others do.
fn others(found: &mut Findings, said: &Said, part: Part) {
    for standby in &said.standbys {
        let sync =
            if standby.sync == "async" { String::new() } else { format!(", {}", standby.sync) };
        found.note(
            format!("{} at {} streams from here ({}{sync})", standby.name, standby.address, standby.state),
            "replication by others is refused from then on: adopt it where it is a data node's, take it \
             down or let it follow a passive's walsender socket where not",
        );
    }
    for slot in &said.slots {
        if slot.name.starts_with(crate::hands::SLOT_PREFIX) {
            continue;
        }
        if slot.kind == "logical" {
            found.warn(
                format!("logical slot {}", slot.name),
                "it does not go along in a failover, and its subscriber is refused",
            );
        } else {
            found.warn(
                format!("slot {} keeps WAL that nobody will fetch", slot.name),
                "drop it once the way back is not wanted any more",
            );
        }
    }
    if !said.setting("synchronous_standby_names").is_empty() {
        found.note(
            format!(
                "synchronous_standby_names is {}",
                said.setting("synchronous_standby_names")
            ),
            "the gate takes its place: how many copies a commit waits for says [durability]; the line \
             stays in its file and is in force again after undo",
        );
    }
    if part == Part::Primary && !said.tablespaces.is_empty() {
        found.warn(
            format!("{} tablespaces lie outside of PGDATA", said.tablespaces.len()),
            "a copy of the active puts them at the same paths: there they have to be missing or empty",
        );
    }
    if said.setting("archive_mode") != "off" && said.archive_failing.is_some() {
        found.warn(
            format!("the archive fails at {}", said.archive_failing.as_deref().unwrap_or_default()),
            "mend archive_command first: the stop tries once more what is not archived",
        );
    }
    if said.prepared > 0 {
        found.note(
            format!("{} prepared transactions", said.prepared),
            "they survive the restart, and commit through the gate",
        );
    }
}

/// Who would not find the server any more.
fn clients(found: &mut Findings, facts: &Facts, said: &Said, command_line: &[(String, String)]) {
    let differs = |name: &str| {
        let to = command_line.iter().find(|(known, _)| known == name).map(|(_, to)| to.as_str());
        to.filter(|to| *to != said.setting(name)).map(str::to_owned)
    };
    let moved = [
        ("port", "port"),
        ("listen_addresses", "listen_addresses"),
        ("unix_socket_directories", "socket_directory"),
    ];
    for (name, field) in moved {
        if let Some(to) = differs(name) {
            found.warn(
                format!("{name} goes from {} to {to}", said.setting(name)),
                format!("set {field} in [postgres] of node.toml if clients are not to notice"),
            );
        }
    }
    match (&facts.debian, &facts.unit) {
        (Some(_), _) => {}
        (None, Some(unit)) => found.warn(
            format!("{unit} started the server"),
            format!("`systemctl disable {unit}` after the adoption: it would start it at boot, read-only"),
        ),
        (None, None) => {}
    }
}
