//! The part of `cargo metadata` that the checks read. It decides nothing.

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::step::cargo;

/// Everything that cargo resolved for the platforms asked for.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    /// Ours and theirs.
    pub(crate) packages: Vec<Package>,
    /// The ids of ours.
    pub(crate) workspace_members: Vec<String>,
}

/// One package.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// cargo's id of it.
    pub(crate) id: String,
    /// The SPDX expression of its manifest.
    pub(crate) license: Option<String>,
    /// Where it came from; `None` for a path.
    pub(crate) source: Option<String>,
    /// What its manifest asks for.
    pub(crate) dependencies: Vec<Dependency>,
}

/// One line of a manifest's dependencies.
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    /// The package's name, not what it is renamed to.
    pub(crate) name: String,
    /// `None` for a normal one, else `dev` or `build`.
    pub(crate) kind: Option<String>,
    /// Where it is to come from; `None` for a path.
    pub(crate) source: Option<String>,
    /// The registry that the manifest names; `None` for cargo's default one.
    pub(crate) registry: Option<String>,
}

impl Metadata {
    /// Asks cargo, for these target triples only, so that no other platform's crates are fetched.
    pub(crate) fn load(targets: &[String]) -> Result<Metadata> {
        let mut command = cargo(&["metadata", "--format-version", "1"]);
        for target in targets {
            command.args(["--filter-platform", target]);
        }
        let output = command.output().context("cannot run cargo metadata")?;
        if !output.status.success() {
            bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).context("cannot read the answer of cargo metadata")
    }

    /// Our own packages.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }

    /// What cargo calls its default registry: the source of dependencies of ours that name none.
    pub(crate) fn default_registry(&self) -> Option<&str> {
        self.members()
            .flat_map(|package| &package.dependencies)
            .filter(|dependency| dependency.registry.is_none())
            .filter_map(|dependency| dependency.source.as_deref())
            .find(|source| source.starts_with("registry+"))
    }

    /// Everybody else's packages.
    pub(crate) fn foreign(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| !self.workspace_members.contains(&package.id))
    }
}
