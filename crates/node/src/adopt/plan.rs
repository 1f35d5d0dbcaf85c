//! What an adoption would change, what it leaves, and what is in the way: from facts alone. Pure; it
//! names the evidence, and is unsure rather than wrong.

use std::path::{Path, PathBuf};

use serde::Serialize;
use understudy_postgres::{DataDirectory, Ownership, ROLE_MANAGEMENT};

use super::facts::{Answered, DebianCluster, Facts, Said};
use super::findings::{self, Finding, Severity};
use super::settings::{self, Change};
use crate::config::NodeConfig;

/// What the server is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The primary that the cluster is founded on.
    Primary,
    /// The primary's stock standby, which goes on as a passive on the data that it has.
    Standby,
    /// There is nothing to adopt: the node copies the active by itself.
    Copy,
}

/// Where configuration that has to lie in PGDATA comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// The file that is made or replaced.
    pub path: PathBuf,
    /// What is done with it.
    pub what: String,
    /// Why.
    pub why: String,
}

/// Something that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// What.
    pub what: String,
    /// As it is.
    pub value: String,
}

/// What is known of the server, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// PostgreSQL's version, as the server says.
    pub version: String,
    /// Its system identifier.
    pub system_identifier: String,
    /// The timeline that it writes or receives.
    pub timeline: u32,
    /// Its postmaster.
    pub pid: u32,
    /// Its port.
    pub port: u16,
    /// The main configuration file.
    pub config_file: PathBuf,
    /// The unit that started it, by its control group.
    pub unit: Option<String>,
    /// Debian's tools know it under this name.
    pub debian: Option<DebianCluster>,
    /// Sessions of clients at this moment.
    pub sessions: u64,
}

/// The whole plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The node.
    pub node: String,
    /// PGDATA.
    pub data_directory: PathBuf,
    /// What the server is to become.
    pub part: Part,
    /// What is known of it; `None` when it cannot be asked.
    pub server: Option<Identity>,
    /// Files.
    pub files: Vec<FileChange>,
    /// Settings that are in force under the daemon, where they differ.
    pub settings: Vec<Change>,
    /// Other changes, in words.
    pub others: Vec<String>,
    /// What stays.
    pub kept: Vec<Kept>,
    /// What is in the way, or should be known.
    pub findings: Vec<Finding>,
    /// For how long clients are shut out.
    pub outage: String,
}

impl Plan {
    /// Nothing forbids it.
    pub fn is_possible(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity != Severity::Blocker)
    }
}

/// Makes the plan. `command_line`: what the node puts on the postmaster's.
pub(super) fn make(config: &NodeConfig, command_line: &[(String, String)], facts: &Facts) -> Plan {
    let data_directory = config.postgres.as_ref().map(|p| p.data_directory.clone());
    let data_directory = data_directory.unwrap_or_default();
    let mut plan = Plan {
        node: config.name.to_string(),
        part: part(config, facts),
        server: None,
        files: Vec::new(),
        settings: Vec::new(),
        others: Vec::new(),
        kept: Vec::new(),
        findings: Vec::new(),
        outage: "none".to_owned(),
        data_directory,
    };
    plan.findings = findings::machine(config, facts, plan.part);
    let (Some(said), Some(running)) = (facts.said(), &facts.running) else { return plan };
    plan.server = Some(Identity {
        version: said.version.clone(),
        system_identifier: said.system_id.clone(),
        timeline: said.timeline,
        pid: running.pid,
        port: running.port,
        config_file: said.file("config_file").unwrap_or_default(),
        unit: facts.unit.clone(),
        debian: facts.debian.clone(),
        sessions: said.sessions,
    });
    plan.findings.extend(findings::server(config, facts, said, plan.part, command_line));
    plan.files = files(&plan.data_directory, facts, said);
    plan.settings = settings::changes(said, command_line, plan.part);
    plan.others = others(said, plan.part);
    plan.kept = kept(said);
    plan.outage = outage(plan.part).to_owned();
    plan.findings.sort_by_key(|finding| finding.severity);
    plan
}

fn part(config: &NodeConfig, facts: &Facts) -> Part {
    match (&facts.directory, facts.said()) {
        (DataDirectory::Missing | DataDirectory::Empty, _)
            if config.initial_active != config.name =>
        {
            Part::Copy
        }
        (_, Some(said)) if said.in_recovery => Part::Standby,
        (_, Some(_)) => Part::Primary,
        (DataDirectory::Cluster(control), None)
            if control.standby_signal || control.state.is_in_recovery() =>
        {
            Part::Standby
        }
        (_, None) => Part::Primary,
    }
}

/// PostgreSQL's files that have to lie in PGDATA, with the setting that says where they are.
pub(super) const IN_PGDATA: [(&str, &str); 3] = [
    ("postgresql.conf", "config_file"),
    ("pg_hba.conf", "hba_file"),
    ("pg_ident.conf", "ident_file"),
];

fn files(data_dir: &Path, facts: &Facts, said: &Said) -> Vec<FileChange> {
    let mut changes = Vec::new();
    for (name, setting) in IN_PGDATA {
        let path = data_dir.join(name);
        let present = said.file(setting).unwrap_or_default();
        if !same_file(&present, &path) {
            let what = if name == "postgresql.conf" {
                format!("made from the settings in {} and what it includes", present.display())
            } else {
                format!("made as a copy of {}", present.display())
            };
            let why =
                "the node and every copy of it find their configuration in PGDATA; from then on \
                       this file counts, and the old one is left as it is"
                    .to_owned();
            changes.push(FileChange { path: path.clone(), what, why });
        }
        if name != "postgresql.conf" {
            let what = "a marked block is put on top when the node starts the server".to_owned();
            let why =
                "it lets the node's own roles in over the Unix socket and refuses replication by \
                       others; your lines stay byte for byte"
                    .to_owned();
            changes.push(FileChange { path, what, why });
        }
    }
    if let Some(debian) = &facts.debian {
        let what = "disabled".to_owned();
        let why = "pg_ctlcluster and systemd must not start the server beside the node".to_owned();
        changes.push(FileChange { path: debian.start_conf(), what, why });
    }
    changes
}

/// The same file, whatever links lead to it.
pub(super) fn same_file(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    a == b || real(a).is_some_and(|real_a| real(b) == Some(real_a))
}

fn others(said: &Said, part: Part) -> Vec<String> {
    if part != Part::Primary {
        return vec![
            "the node stops the standby and starts it again on the same data, fed from its own \
             journal, once the primary is taken over"
                .to_owned(),
        ];
    }
    let mut others = Vec::new();
    if said.roles.is_empty() {
        others.push(format!(
            "roles {ROLE_MANAGEMENT} (superuser), understudy_replication and understudy_rewind are \
             made, without passwords; only this machine's daemon gets in as them"
        ));
    }
    others.push("a replication slot understudy_NODE is made for each other data node".to_owned());
    others
}

fn kept(said: &Said) -> Vec<Kept> {
    let mut kept = Vec::new();
    let mut keep = |what: &str, value: String| {
        kept.push(Kept { what: what.to_owned(), value });
    };
    let databases = said.databases.iter();
    let databases = databases.map(|d| format!("{} ({}, {})", d.name, d.encoding, d.collate));
    keep("databases, their encoding and locale", databases.collect::<Vec<_>>().join(", "));
    keep("data checksums", said.setting("data_checksums").to_owned());
    for name in ["archive_mode", "archive_command", "archive_library"] {
        let value = said.setting(name);
        if !value.is_empty() && value != "(disabled)" {
            keep(name, value.to_owned());
        }
    }
    if !said.setting("synchronous_standby_names").is_empty() {
        keep(
            "synchronous_standby_names in its file",
            format!(
                "{}, without effect as long as the node runs the server",
                said.setting("synchronous_standby_names")
            ),
        );
    }
    for tablespace in &said.tablespaces {
        keep("tablespace", format!("{} in {}", tablespace.name, tablespace.location.display()));
    }
    for slot in &said.slots {
        keep("replication slot", format!("{} ({})", slot.name, slot.kind));
    }
    if said.prepared > 0 {
        keep("prepared transactions", said.prepared.to_string());
    }
    keep("your lines in pg_hba.conf, pg_ident.conf and postgresql.conf", "unchanged".to_owned());
    kept
}

fn outage(part: Part) -> &'static str {
    match part {
        Part::Primary => {
            "one restart of PostgreSQL: every session ends and nobody can write from the fast stop (a \
             checkpoint was just made) until the node has started the server again, a few seconds; \
             nobody is shut out before that"
        }
        Part::Standby => {
            "none for writers; the standby's readers are cut off once, when the node starts it again"
        }
        Part::Copy => "none",
    }
}

/// Why the server could not be asked.
pub(super) fn silence(facts: &Facts) -> Option<&str> {
    match &facts.answered {
        Answered::Silent(why) => Some(why),
        Answered::Said(_) | Answered::NotRunning => None,
    }
}

/// It has been taken over already.
pub(super) fn is_taken(facts: &Facts) -> bool {
    facts.ownership == Ownership::Own
}
