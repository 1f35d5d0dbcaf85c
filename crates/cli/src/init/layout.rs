//! The directory that `understudy init` makes.
//!
//! ```text
//! ca/         ca.pem ca.key                            0700: take it offline
//! contexts/   ca.pem <role>.toml <role>.pem <role>.key 0700: one for each role
//! nodes/<name>/  node.toml  tls/ (0700)  data/         0711: PostgreSQL's user passes through
//! ```

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use understudy_node::config::{NodeConfig, split_host_port};
use understudy_transport::{Authority, Identity, Role, create_private_dir, write_new_file};
use understudy_types::{ClusterId, NodeName};
use uuid::Uuid;

use super::topology::Topology;
use crate::context::{ContextFile, ContextNode};

/// What was made.
#[derive(Debug)]
pub(crate) struct Founded {
    /// The new cluster.
    pub(crate) cluster: ClusterId,
    /// Its directory, absolute.
    pub(crate) dir: PathBuf,
    /// Its nodes.
    pub(crate) nodes: Vec<FoundedNode>,
    /// Where it will be founded.
    pub(crate) initial_active: NodeName,
    /// What is allowed but surely not meant.
    pub(crate) warnings: Vec<String>,
}

/// A node's part of it.
#[derive(Debug)]
pub(crate) struct FoundedNode {
    /// Its configuration file.
    pub(crate) config_file: PathBuf,
}

/// Makes the directory of a new cluster.
///
/// # Errors
/// When the topology is wrong, `dir` is not empty, or something cannot be written.
pub(crate) fn found(dir: &Path, topology: &Topology) -> anyhow::Result<Founded> {
    let dir = std::path::absolute(dir).context("find the directory")?;
    let cluster = ClusterId(random_uuid()?);
    let configs = validate(&dir, topology, cluster)?;
    let first = configs.first().context("a cluster needs nodes")?;
    let occupied = fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some());
    if occupied || dir.is_file() {
        bail!("make {}: it exists and is not empty; nothing is overwritten", dir.display());
    }
    let authority = Authority::create(cluster)?;
    passable_dir(&dir)?;
    let ca = dir.join("ca");
    create_private_dir(&ca)?;
    authority.save(&ca.join("ca.pem"), &ca.join("ca.key"))?;
    passable_dir(&dir.join("nodes"))?;
    let mut nodes = Vec::new();
    for config in &configs {
        nodes.push(write_node(&dir.join("nodes"), config, &authority)?);
    }
    write_contexts(&dir.join("contexts"), first, &authority)?;
    let (initial_active, warnings) = (first.initial_active.clone(), first.warnings.clone());
    Ok(Founded { cluster, dir, nodes, initial_active, warnings })
}

/// Every node's configuration; all that is wrong with any of them is in the error.
fn validate(
    dir: &Path,
    topology: &Topology,
    cluster: ClusterId,
) -> anyhow::Result<Vec<NodeConfig>> {
    let mut configs = Vec::new();
    let mut wrong: Vec<String> = Vec::new();
    for spec in &topology.nodes {
        // A name becomes a path below: it is checked before it does.
        spec.name.parse::<NodeName>().with_context(|| "check --node name".to_owned())?;
        let table = topology.node_table(spec, cluster, &dir.join("nodes").join(&spec.name));
        let text = toml::to_string(&table).context("write a node's configuration")?;
        // Without a directory, so that the paths in tls stay relative and the node can be moved.
        match NodeConfig::parse(&text, Path::new("node.toml")) {
            Ok(config) => configs.push(config),
            Err(error) => {
                let text = format!("{:#}", anyhow::Error::from(error));
                wrong.push(format!("node {}: {text}", spec.name));
            }
        }
    }
    if wrong.is_empty() {
        wrong = topology.clashes(&configs);
    }
    if wrong.is_empty() {
        return Ok(configs);
    }
    bail!("this cannot be a cluster:\n{}", wrong.join("\n"))
}

/// A directory through which PostgreSQL's user gets to its own, but sees nothing.
fn passable_dir(path: &Path) -> anyhow::Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(path);
    made.with_context(|| format!("make directory {}", path.display()))
}

fn write_node(
    nodes: &Path,
    config: &NodeConfig,
    authority: &Authority,
) -> anyhow::Result<FoundedNode> {
    let own = nodes.join(config.name.as_str());
    passable_dir(&own)?;
    let tls = own.join("tls");
    create_private_dir(&tls)?;
    write_new_file(&tls.join("ca.pem"), 0o644, authority.certificate_pem().as_bytes())?;
    let identity = Identity::Node(config.name.clone());
    let issued = authority.issue_at(&identity, &hosts_of(config))?;
    issued.save(&tls.join("node.pem"), &tls.join("node.key"))?;
    if config.data_dir.starts_with(&own) {
        passable_dir(&config.data_dir)?;
    }
    let config_file = own.join("node.toml");
    write_new_file(&config_file, 0o644, config.show().as_bytes())?;
    Ok(FoundedNode { config_file })
}

/// The hosts under which stock gRPC clients may look for this node: its own name and its address's.
fn hosts_of(config: &NodeConfig) -> Vec<String> {
    let host = split_host_port(&config.me().address).map(|(host, _)| host);
    let host = host.map(|host| host.trim_matches(['[', ']']).to_owned());
    std::iter::once(config.name.to_string()).chain(host).collect()
}

/// One person for each role, who bears the role's name.
fn write_contexts(dir: &Path, config: &NodeConfig, authority: &Authority) -> anyhow::Result<()> {
    create_private_dir(dir)?;
    write_new_file(&dir.join("ca.pem"), 0o644, authority.certificate_pem().as_bytes())?;
    let node = |member: &understudy_node::config::Member| ContextNode {
        name: member.name.clone(),
        address: member.address.clone(),
    };
    let nodes: Vec<ContextNode> = config.members.iter().map(node).collect();
    for role in Role::ALL {
        let identity = Identity::Person { name: role.as_str().to_owned(), role };
        let (certificate, key) = (format!("{role}.pem"), format!("{role}.key"));
        authority.issue(&identity)?.save(&dir.join(&certificate), &dir.join(&key))?;
        let file = ContextFile {
            cluster: config.cluster,
            ca: "ca.pem".into(),
            certificate: certificate.into(),
            key: key.into(),
            nodes: nodes.clone(),
        };
        let text = toml::to_string(&file).context("write a context")?;
        let head = format!("# Acts as {identity}. Use: understudy --context THIS_FILE status\n");
        write_new_file(&dir.join(format!("{role}.toml")), 0o600, (head + &text).as_bytes())?;
    }
    Ok(())
}

/// A version 4 UUID.
fn random_uuid() -> anyhow::Result<Uuid> {
    let mut bytes = [0u8; 16];
    let mut random = fs::File::open("/dev/urandom").context("open /dev/urandom")?;
    std::io::Read::read_exact(&mut random, &mut bytes).context("read /dev/urandom")?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
}
