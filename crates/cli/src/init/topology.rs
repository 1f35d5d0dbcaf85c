//! Which nodes a cluster is to have, from flags or a small file, and each node's configuration text.
//!
//! Only collects; what is right is decided by the node's own validation, so that there is one.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use serde::Deserialize;
use toml::{Table, Value};
use understudy_node::config::split_host_port;
use understudy_types::ClusterId;

/// The port of the gRPC door unless an address says otherwise.
const GRPC_PORT: u16 = 7400;

/// A cluster to be.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Topology {
    /// The founding members, numbered in this order.
    pub(crate) nodes: Vec<NodeSpec>,
    /// The data node to found the cluster on.
    pub(crate) initial_active: Option<String>,
    /// Where data may be, by the nodes' `region`.
    #[serde(default)]
    pub(crate) allowed_regions: Vec<String>,
    /// PostgreSQL settings for every data node.
    #[serde(default)]
    pub(crate) parameters: Table,
    /// As in a node's file.
    pub(crate) durability: Option<Table>,
    /// As in a node's file.
    pub(crate) timing: Option<Table>,
    /// As in a node's file.
    pub(crate) log: Option<Table>,
}

/// One member, as in `--node name=north,site=north,kind=data,address=10.0.1.5`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct NodeSpec {
    /// Its name.
    pub(crate) name: String,
    /// Its site; its own name unless given.
    pub(crate) site: Option<String>,
    /// The legal region of that place, for `allowed_regions`.
    pub(crate) region: Option<String>,
    /// `data` (unless given), `witness`, or `journal`: one that keeps the WAL without a PostgreSQL.
    pub(crate) kind: Option<String>,
    /// Where the others reach it, host with or without `:port`.
    pub(crate) address: String,
    /// The gRPC address to bind; unless given, `address` if that is an IP address, else all.
    pub(crate) listen: Option<String>,
    /// The HTTP address to bind.
    pub(crate) http: Option<String>,
    /// Where its data is; unless given, beside its configuration file.
    pub(crate) data_dir: Option<PathBuf>,
    /// PGDATA; unless given, `pgdata` in its data directory.
    pub(crate) pgdata: Option<PathBuf>,
    /// Where PostgreSQL's programs are; found unless given.
    pub(crate) postgres_bin_dir: Option<PathBuf>,
    /// PostgreSQL's port.
    pub(crate) postgres_port: Option<u16>,
    /// PostgreSQL's `listen_addresses`; unless given, the host of `listen`.
    pub(crate) postgres_listen: Option<String>,
    /// Who PostgreSQL runs as.
    pub(crate) os_user: Option<String>,
}

impl FromStr for NodeSpec {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut table = Table::new();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| format!("{pair:?} is not key=value"))?;
            let value = match (key, value.parse::<i64>()) {
                ("postgres-port", Ok(port)) => Value::Integer(port),
                _ => Value::String(value.to_owned()),
            };
            if table.insert(key.to_owned(), value).is_some() {
                return Err(format!("{key} is given twice"));
            }
        }
        table.try_into().map_err(|error: toml::de::Error| error.message().to_owned())
    }
}

impl NodeSpec {
    /// `host:port`.
    pub(super) fn full_address(&self) -> String {
        match split_host_port(&self.address) {
            Some(_) => self.address.clone(),
            None => format!("{}:{GRPC_PORT}", self.address),
        }
    }

    fn is_data(&self) -> bool {
        self.kind.as_deref().is_none_or(|kind| kind == "data")
    }

    fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("data")
    }

    fn site(&self) -> &str {
        self.site.as_deref().unwrap_or(&self.name)
    }

    /// The address to bind.
    fn listen(&self) -> String {
        if let Some(listen) = &self.listen {
            return listen.clone();
        }
        let address = self.full_address();
        let port = split_host_port(&address).map_or(GRPC_PORT, |(_, port)| port);
        match address.parse::<SocketAddr>() {
            Ok(bound) => bound.to_string(),
            Err(_) => format!("0.0.0.0:{port}"),
        }
    }

    fn postgres_listen(&self) -> String {
        let bound: Option<IpAddr> = self.listen().parse().ok().map(|a: SocketAddr| a.ip());
        match (&self.postgres_listen, bound) {
            (Some(listen), _) => listen.clone(),
            (None, Some(ip)) if !ip.is_unspecified() => ip.to_string(),
            (None, _) => "*".to_owned(),
        }
    }
}

fn string(value: impl Into<String>) -> Value {
    Value::String(value.into())
}

fn path(value: &Path) -> Value {
    string(value.to_string_lossy())
}

impl Topology {
    /// Reads a topology file.
    ///
    /// # Errors
    /// When it cannot be read or has another shape.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Topology> {
        let what = || format!("read topology {}", path.display());
        let text = std::fs::read_to_string(path).with_context(what)?;
        toml::from_str(&text).with_context(what)
    }

    /// The configuration of one node, not validated yet; `own` is its directory (absolute).
    pub(super) fn node_table(&self, spec: &NodeSpec, cluster: ClusterId, own: &Path) -> Table {
        let mut table = Table::new();
        let mut set = |name: &str, value: Value| table.insert(name.to_owned(), value);
        let data_dir = spec.data_dir.clone().unwrap_or_else(|| own.join("data"));
        set("cluster", string(cluster.to_string()));
        set("name", string(&spec.name));
        set("site", string(spec.site()));
        set("kind", string(spec.kind()));
        set("data_dir", path(&data_dir));
        if let Some(name) = &self.initial_active {
            set("initial_active", string(name));
        }
        if !self.allowed_regions.is_empty() {
            let allowed = self.allowed_regions.iter().map(string).collect();
            set("allowed_regions", Value::Array(allowed));
        }
        let mut listen = Table::from_iter([("grpc".to_owned(), string(spec.listen()))]);
        if let Some(http) = &spec.http {
            listen.insert("http".to_owned(), string(http));
        }
        set("listen", Value::Table(listen));
        let tls = [("ca", "tls/ca.pem"), ("certificate", "tls/node.pem"), ("key", "tls/node.key")];
        let tls = tls.map(|(name, file)| (name.to_owned(), string(file)));
        set("tls", Value::Table(Table::from_iter(tls)));
        set("members", Value::Array(self.members()));
        if spec.is_data() {
            set("postgres", Value::Table(self.postgres_table(spec, &data_dir)));
        }
        let shared =
            [("durability", &self.durability), ("timing", &self.timing), ("log", &self.log)];
        for (name, section) in shared {
            if let Some(section) = section {
                set(name, Value::Table(section.clone()));
            }
        }
        table
    }

    fn members(&self) -> Vec<Value> {
        let member = |(spec, id): (&NodeSpec, i64)| {
            let entries = [
                ("name", string(&spec.name)),
                ("id", Value::Integer(id)),
                ("site", string(spec.site())),
                ("kind", string(spec.kind())),
                ("address", string(spec.full_address())),
            ];
            let region = spec.region.as_ref().map(|region| ("region", string(region)));
            let entries = entries.into_iter().chain(region);
            Value::Table(entries.map(|(name, value)| (name.to_owned(), value)).collect())
        };
        self.nodes.iter().zip(1..).map(member).collect()
    }

    fn postgres_table(&self, spec: &NodeSpec, data_dir: &Path) -> Table {
        let mut table = Table::new();
        let pgdata = spec.pgdata.clone().unwrap_or_else(|| data_dir.join("pgdata"));
        table.insert("data_directory".to_owned(), path(&pgdata));
        table.insert("listen_addresses".to_owned(), string(spec.postgres_listen()));
        if let Some(port) = spec.postgres_port {
            table.insert("port".to_owned(), Value::Integer(port.into()));
        }
        if let Some(user) = &spec.os_user {
            table.insert("os_user".to_owned(), string(user));
        }
        if let Some(dir) = &spec.postgres_bin_dir {
            table.insert("bin_dir".to_owned(), path(dir));
        }
        table.insert("parameters".to_owned(), Value::Table(self.parameters.clone()));
        table
    }

    /// What two nodes must not share, beyond what their own validation sees.
    pub(super) fn clashes(&self, configs: &[understudy_node::config::NodeConfig]) -> Vec<String> {
        let mut seen: BTreeMap<(String, String), &str> = BTreeMap::new();
        let mut clashes = Vec::new();
        for config in configs {
            let host = split_host_port(&config.me().address).map_or("", |(host, _)| host);
            let mut taken = vec![
                ("listen.grpc", config.listen_grpc.to_string()),
                ("listen.http", config.listen_http.to_string()),
                ("data_dir", config.data_dir.display().to_string()),
            ];
            if let Some(postgres) = &config.postgres {
                taken.push(("PostgreSQL's port", postgres.port.to_string()));
                taken.push(("pgdata", postgres.data_directory.display().to_string()));
            }
            for (what, value) in taken {
                // The same bind address or directory on another host is nobody's concern.
                if let Some(other) =
                    seen.insert((host.to_owned(), format!("{what} {value}")), config.name.as_str())
                {
                    clashes.push(format!(
                        "nodes {other} and {} are both on {host} with {what} {value}",
                        config.name
                    ));
                }
            }
        }
        clashes
    }
}
