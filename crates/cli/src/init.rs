//! `understudy init`: makes a cluster's authority, a directory for each node, and contexts for people.
//!
//! Everything is validated before the first byte is written, and nothing that exists is touched. It
//! contacts nobody and starts nothing: the cluster is founded when its nodes first meet.

mod layout;
mod topology;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

pub(crate) use layout::{Founded, found};
pub(crate) use topology::{NodeSpec, Topology};

/// Make the certificates and configuration files of a new cluster.
#[derive(Debug, clap::Args)]
pub(crate) struct InitArgs {
    /// The directory to make; must not exist, or be empty.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// A member, repeated: name=north,site=north,kind=data,address=10.0.1.5:7400; also data-dir=,
    /// pgdata=, http=, listen=, postgres-port=, postgres-listen=.
    #[arg(long = "node", value_name = "KEY=VALUE,…", conflicts_with = "topology")]
    pub(crate) nodes: Vec<NodeSpec>,
    /// A TOML file with `[[nodes]]` of the same keys, and `[durability]`, `[timing]`, `[log]`, `[parameters]`.
    #[arg(long, value_name = "FILE", required_unless_present = "nodes")]
    pub(crate) topology: Option<PathBuf>,
    /// The data node to found the cluster on; the first one unless given.
    #[arg(long, value_name = "NAME")]
    pub(crate) initial_active: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// When the topology is wrong (all that is wrong is listed), or something cannot be written.
pub(crate) fn run(args: &InitArgs) -> anyhow::Result<ExitCode> {
    let mut topology = match &args.topology {
        Some(path) => Topology::load(path)?,
        None => Topology { nodes: args.nodes.clone(), ..Topology::default() },
    };
    if args.initial_active.is_some() {
        topology.initial_active.clone_from(&args.initial_active);
    }
    let founded = found(&args.dir, &topology)?;
    report(&founded)?;
    Ok(ExitCode::SUCCESS)
}

fn report(founded: &Founded) -> anyhow::Result<()> {
    let dir = &founded.dir;
    for warning in &founded.warnings {
        eprintln!("warning: {warning}");
    }
    println!("cluster {} is prepared in {}\n", founded.cluster, dir.display());
    println!("1. Start every node. On other machines, copy its directory there first:");
    for node in &founded.nodes {
        println!("     understudy run --config {}", node.config_file.display());
    }
    println!("   The cluster is founded when all of them have met, on {}.", founded.initial_active);
    println!("2. Look at it:");
    let context = dir.join("contexts/operator.toml");
    println!("     export UNDERSTUDY_CONTEXT={}", context.display());
    println!("     understudy status");
    println!("3. Take {} offline: who has it can make any certificate.", dir.join("ca").display());
    println!("   Node and person certificates are valid for one year, the authority for ten.");
    if let Some(closed) = closed_ancestor(dir).context("look at the directories above")? {
        eprintln!(
            "warning: {} lets others than its owner not through, but PostgreSQL's user must reach \
             its data: run `chmod o+x {}` or keep the nodes' directories elsewhere",
            closed.display(),
            closed.display()
        );
    }
    Ok(())
}

/// The first directory on the way that PostgreSQL's own user could not pass.
fn closed_ancestor(dir: &Path) -> std::io::Result<Option<PathBuf>> {
    use std::os::unix::fs::PermissionsExt;
    for ancestor in dir.ancestors() {
        if std::fs::metadata(ancestor)?.permissions().mode() & 0o001 == 0 {
            return Ok(Some(ancestor.to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
