//! Who the command line acts as, and where the cluster is: a small file that `understudy init` wrote.
//!
//! Any node will do for any verb; which ones are tried is the verb's business.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;
use understudy_transport::{ChannelOptions, ConnectError, TlsIdentity, connect_now};
use understudy_types::{ClusterId, NodeName};

/// Which context to use.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ContextArgs {
    /// Context file: which cluster, and as whom (`understudy init` writes one for each role).
    #[arg(long, global = true, env = "UNDERSTUDY_CONTEXT", value_name = "FILE")]
    pub(crate) context: Option<PathBuf>,
}

/// The file's content. Relative paths count from its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContextFile {
    /// The cluster, as in the certificates.
    pub(crate) cluster: ClusterId,
    /// The cluster's authority.
    pub(crate) ca: PathBuf,
    /// This person's certificate.
    pub(crate) certificate: PathBuf,
    /// This person's key.
    pub(crate) key: PathBuf,
    /// Where the nodes are.
    pub(crate) nodes: Vec<ContextNode>,
}

/// A node to talk to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContextNode {
    /// Its name, which its certificate must bear.
    pub(crate) name: NodeName,
    /// Its gRPC address, `host:port`.
    pub(crate) address: String,
}

/// A loaded context.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// As whom.
    pub(crate) identity: TlsIdentity,
    /// The nodes, in the order in which they are tried.
    pub(crate) nodes: Vec<ContextNode>,
}

impl ContextArgs {
    /// Loads the context that was named.
    ///
    /// # Errors
    /// When none was, or it cannot be loaded.
    pub(crate) fn load(&self) -> anyhow::Result<Context> {
        let path = self.context.as_deref().context(
            "no context: give --context FILE or set UNDERSTUDY_CONTEXT \
             (`understudy init` wrote contexts/operator.toml)",
        )?;
        Context::load(path)
    }
}

impl Context {
    /// Reads a context file and the identity it names.
    ///
    /// # Errors
    /// When a file is missing or wrong, the key is readable by others, or the certificate is another
    /// cluster's.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Context> {
        let what = || format!("load context {}", path.display());
        let text = std::fs::read_to_string(path).with_context(what)?;
        let file: ContextFile = toml::from_str(&text).with_context(what)?;
        let base = path.parent().unwrap_or(Path::new(""));
        let identity = TlsIdentity::load(
            &base.join(&file.ca),
            &base.join(&file.certificate),
            &base.join(&file.key),
        )
        .with_context(what)?;
        if identity.cluster() != file.cluster {
            bail!(
                "load context {}: its certificate is of cluster {}, not of {}",
                path.display(),
                identity.cluster(),
                file.cluster
            );
        }
        if file.nodes.is_empty() {
            bail!("load context {}: it names no [[nodes]]", path.display());
        }
        Ok(Context { identity, nodes: file.nodes })
    }

    /// A connection to one of the nodes. That the node refuses *us* shows at the first call.
    ///
    /// # Errors
    /// When it cannot be reached or is another one; says which and why.
    pub(crate) async fn connect(&self, node: &ContextNode) -> Result<Channel, ConnectError> {
        connect_now(&node.address, &node.name, &self.identity, &ChannelOptions::admin()).await
    }
}
