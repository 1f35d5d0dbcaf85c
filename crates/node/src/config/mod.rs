//! A node's configuration: one TOML file, validated once into types that cannot be wrong.
//!
//! Reading has no effect: no port is bound and no directory made. Everything that is wrong is reported
//! at once, each with its field, its value and what would be right. What the cluster agrees on
//! (durability) stands here only as the founding values; afterwards consensus has it.

mod duration;
mod hooks;
mod parameters;
mod raw;
mod show;
pub(crate) mod size;
mod validate;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use hooks::{HookConfig, Trigger};
pub use understudy_core::node::Damping;
pub use understudy_core::{ClusterConfig, OnPassiveLoss, OnSoleSurvivor, Timing};
use understudy_types::{ClusterId, NodeId, NodeKind, NodeName, Region, SiteName};

/// Everything one node is told. May differ from node to node, except `cluster` and `members`.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeConfig {
    /// The cluster's identity, made by `understudy init`. No default; every certificate carries it.
    pub cluster: ClusterId,
    /// This node's name. No default; must be the one in its certificate.
    pub name: NodeName,
    /// Its number in consensus, from its own entry in `members`.
    pub id: NodeId,
    /// The place that can be lost as a whole. No default; decides which failures are survived.
    pub site: SiteName,
    /// Data nodes have a PostgreSQL, witnesses only vote. No default.
    pub kind: NodeKind,
    /// The node's own directory: `raft/`, `wal/`, `divergent/`, `run/`. No default. Put it on a disk
    /// whose fsync is honest and, if possible, not the one that PostgreSQL writes to.
    pub data_dir: PathBuf,
    /// Where peers and operators reach this node (mutual TLS). Default `0.0.0.0:7400`.
    pub listen_grpc: SocketAddr,
    /// Where load balancers and Prometheus ask (plain HTTP, read only). Default: the address of
    /// `grpc`, port 7480; keep it off public networks.
    pub listen_http: SocketAddr,
    /// How the HTTP door speaks.
    pub http: HttpConfig,
    /// The three files of this node's identity. No default.
    pub tls: TlsFiles,
    /// The founding members, the same list on every node.
    pub members: Vec<Member>,
    /// The data node to found the cluster on. Default: the first data node in `members`.
    pub initial_active: NodeName,
    /// Where data may be: this node sends WAL and copies to members in these regions only. Default: none
    /// named, so anywhere. A data node elsewhere is refused, here and by the other nodes' own files.
    pub allowed_regions: BTreeSet<Region>,
    /// The local server; `Some` exactly for data nodes.
    pub postgres: Option<PostgresConfig>,
    /// What the cluster is founded with. Later changes go through `understudy`, not through this file.
    pub durability: ClusterConfig,
    /// The protocol's durations, checked against every inequality. Default: profile `default`.
    pub timing: Timing,
    /// How flapping is damped.
    pub damping: Damping,
    /// What is logged, and how.
    pub log: LogConfig,
    /// What the decision recorder may occupy in `<data_dir>/trace`, in bytes; 0: nothing is recorded.
    /// Default 64 MiB, which is several hours of a quiet node; the oldest file is removed first.
    pub trace_bytes_max: u64,
    /// How much WAL is kept.
    pub wal: WalConfig,
    /// Programs that are run on events at this node. Default: none.
    pub hooks: Vec<HookConfig>,
    /// What is allowed but surely not meant; to be logged at start and printed by `config check`.
    pub warnings: Vec<String>,
}

/// The PEM files of an identity. Relative paths count from the configuration file's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// This node's certificate.
    pub certificate: PathBuf,
    /// Its key; refused if others than its owner can read it.
    pub key: PathBuf,
}

/// The HTTP door, besides where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// Where others reach it, `host:port`, for the links on the status page and in `/cluster`. Default:
    /// `listen.http`, with the host of this node's own entry in `members` in place of an address that
    /// stands for all.
    pub advertise: String,
    /// Its certificate; without one it speaks plain HTTP, as load balancers' checks mostly do.
    pub tls: Option<HttpTls>,
    /// Whether `/metrics` also has what Patroni's users know, under Patroni's names. Default false.
    pub patroni_metrics: bool,
}

/// An ordinary server certificate, from an authority that load balancers and browsers trust. Both files
/// are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpTls {
    /// The certificate with its chain, PEM.
    pub certificate: PathBuf,
    /// Its key; refused if others than its owner can read it.
    pub key: PathBuf,
}

/// A founding member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: NodeName,
    /// Its number in consensus, from 1.
    pub id: NodeId,
    /// Where it is.
    pub site: SiteName,
    /// The legal region of that place, for `allowed_regions`.
    pub region: Option<Region>,
    /// What it can be.
    pub kind: NodeKind,
    /// Its gRPC address as the others reach it, `host:port`.
    pub address: String,
}

impl Member {
    /// Whether WAL, which is all of the data, may be sent there.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn check_may_have_data(&self, allowed: &BTreeSet<Region>) -> Result<(), String> {
        if !self.kind.keeps_wal() {
            return Err(format!("{} is a witness: it is sent no data", self.name));
        }
        if allowed.is_empty() || self.region.as_ref().is_some_and(|own| allowed.contains(own)) {
            return Ok(());
        }
        let names: Vec<&str> = allowed.iter().map(Region::as_str).collect();
        let place = self.region.as_ref().map_or("no known region", Region::as_str);
        Err(format!(
            "{} is in {place}, and data may be in {} only (allowed_regions)",
            self.name,
            names.join(", ")
        ))
    }
}

/// The local PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresConfig {
    /// Where `postgres` and `pg_ctl` are. Default: found by the node.
    pub bin_dir: Option<PathBuf>,
    /// PGDATA. No default; the node makes, rewinds and replaces what is in it.
    pub data_directory: PathBuf,
    /// Default 5432.
    pub port: u16,
    /// PostgreSQL's `listen_addresses`. Default `localhost`.
    pub listen_addresses: String,
    /// Who PostgreSQL runs as. Default `postgres`; only root can choose.
    pub os_user: String,
    /// Where clients reach it, `host:port`. Default: the host of this node's own address in
    /// `members`, and `port`.
    pub advertise: String,
    /// Where its Unix socket is. Default `<data_dir>/run`.
    pub socket_directory: PathBuf,
    /// A small process beside the daemon ends PostgreSQL when the lease runs out and the daemon, dead or
    /// frozen, does nothing. Default `true`. With `false` nothing is confirmed then either, but sessions
    /// go on reading data that may be old until the daemon is back.
    pub guardian: bool,
    /// The operator's own settings. Those that the protocol rests on are refused. `understudy reload` has
    /// them read again; ALTER SYSTEM comes before them.
    pub parameters: BTreeMap<String, String>,
}

/// How much WAL a node keeps: in its journal, and in PostgreSQL's `pg_wal` for a node that is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalConfig {
    /// Kept behind all that is needed, so that a node that was away is not copied afresh, in bytes.
    /// Default 1 GiB. Also PostgreSQL's `wal_keep_size`, unless `parameters` says otherwise.
    pub keep_bytes: u64,
    /// The most that the journal holds, and that a slot keeps at the active (its
    /// `max_slot_wal_keep_size`, unless `parameters` says otherwise). PostgreSQL's `max_wal_size` is a
    /// quarter of it, 1 GiB at most; set by hand it has to stay below a third. Default: a quarter of the file
    /// system, 1 GiB at least.
    pub bytes_max: Option<u64>,
    /// What WAL leaves free of a file system. Default: a twentieth of it, 4 GiB at most.
    pub reserve_bytes: Option<u64>,
}

/// How the daemon logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Default `text`.
    pub format: LogFormat,
    /// Default `info`: a level, or directives as `info,understudy_shipping=debug`.
    pub level: String,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines, one object a line.
    Json,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} = {value}: {remedy}")]
pub struct ConfigError {
    /// Path of the field, such as `members[1].address`.
    pub field: String,
    /// What it says, as TOML.
    pub value: String,
    /// What is wrong with it and what would be right.
    pub remedy: String,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigErrors {
    /// There is no such file, or it cannot be read.
    #[error("read configuration {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, a field is missing or unknown; the message has line and column.
    #[error("parse configuration {}", path.display())]
    Shape {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// Everything that is wrong with the values.
    #[error("validate configuration {}{}", path.display(), list(errors))]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// All of them.
        errors: Vec<ConfigError>,
    },
}

/// In the file: by the file system.
const AUTO: &str = "auto";

fn list(errors: &[ConfigError]) -> String {
    errors.iter().map(|error| format!("\n  {error}")).collect()
}

impl NodeConfig {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn load(path: &Path) -> Result<NodeConfig, ConfigErrors> {
        let read = |source| ConfigErrors::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(read)?;
        let absolute = std::path::absolute(path).map_err(read)?;
        NodeConfig::parse(&text, &absolute)
    }

    /// Validates a file's text; `path` (absolute) is what relative paths count from and errors name.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(text: &str, path: &Path) -> Result<NodeConfig, ConfigErrors> {
        let raw: raw::Raw = toml::from_str(text).map_err(|source| ConfigErrors::Shape {
            path: path.to_owned(),
            source: source.into(),
        })?;
        let base = path.parent().unwrap_or(Path::new("/"));
        validate::validate(raw, base)
            .map_err(|errors| ConfigErrors::Invalid { path: path.to_owned(), errors })
    }

    /// The effective configuration, defaults filled in, as commented TOML that loads to the same.
    pub fn show(&self) -> String {
        show::show(self)
    }

    /// What of the hooks cannot work on this machine as it is now: looks at files and users.
    pub fn check_hooks(&self) -> Vec<ConfigError> {
        hooks::check(self)
    }

    /// This node's own entry in `members`.
    pub fn me(&self) -> &Member {
        let mine = self.members.iter().find(|member| member.name == self.name);
        mine.expect("validation requires the node's own entry")
    }

    /// The members other than this node.
    pub fn peers(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.name != self.name)
    }
}

impl PostgresConfig {
    /// What `postgres` runs with when the file says no more than where its data is.
    pub fn with_defaults(data_dir: &Path, data_directory: PathBuf, host: &str) -> PostgresConfig {
        PostgresConfig {
            bin_dir: None,
            data_directory,
            port: 5432,
            listen_addresses: "localhost".to_owned(),
            os_user: "postgres".to_owned(),
            advertise: format!("{host}:5432"),
            socket_directory: data_dir.join("run"),
            guardian: true,
            parameters: BTreeMap::new(),
        }
    }
}

/// Reads a size such as `64MiB`.
///
/// # Errors
/// What a size looks like.
pub fn parse_size(text: &str) -> Result<u64, String> {
    size::parse(text).ok_or_else(|| size::EXPECTED.to_owned())
}

/// Splits `host:port`, where an IPv6 host stands in brackets.
pub fn split_host_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if host.is_empty() || !(bracketed || host.bytes().all(good)) {
        return None;
    }
    let port: u16 = port.parse().ok()?;
    (port != 0).then_some((host, port))
}
