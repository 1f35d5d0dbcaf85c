//! Checks licences, sources and bans of everybody else's crates against deny.toml.
//!
//! It reads the subset of cargo-deny's file that we use, so that cargo-deny itself can be run on the
//! same file (docs/decisions/0004-licences-and-sources.md). Licences are what manifests declare; the
//! texts are not compared.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::metadata::{Metadata, Package};

/// deny.toml, as far as it is checked here.
#[derive(Debug, Deserialize)]
pub(crate) struct Deny {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Debug, Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    unknown_registry: String,
    unknown_git: String,
    /// Beside cargo's default one, which is always known.
    #[serde(default)]
    allow_registry: Vec<String>,
    #[serde(default)]
    allow_git: Vec<String>,
}

impl Deny {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, or lacks a key that is needed.
    pub(crate) fn load(root: &Path) -> Result<Deny> {
        let text =
            std::fs::read_to_string(root.join("deny.toml")).context("cannot read deny.toml")?;
        let deny: Deny = toml::from_str(&text).context("cannot use deny.toml")?;
        if deny.sources.unknown_registry != "deny" || deny.sources.unknown_git != "deny" {
            bail!("deny.toml: [sources] unknown-registry and unknown-git must be \"deny\"");
        }
        Ok(deny)
    }

    /// The platforms whose crates count.
    pub(crate) fn targets(&self) -> &[String] {
        &self.graph.targets
    }

    /// Everything that deny.toml does not allow, in words.
    #[must_use]
    pub(crate) fn findings(&self, metadata: &Metadata) -> Vec<String> {
        let default = metadata.default_registry();
        metadata.foreign().filter_map(|package| self.finding(package, default)).collect()
    }

    fn finding(&self, package: &Package, default_registry: Option<&str>) -> Option<String> {
        let shown = format!("{} {}", package.name, package.version);
        if let Some(ban) = self.bans.deny.iter().find(|ban| ban.name == package.name) {
            return Some(format!("{shown} is banned: {}", ban.reason));
        }
        let source = package.source.as_deref().unwrap_or("a path outside the workspace");
        if Some(source) != default_registry && !self.is_known(source) {
            return Some(format!("{shown} comes from {source}, which is not allowed"));
        }
        let Some(expression) = &package.license else {
            return Some(format!("{shown} declares no licence"));
        };
        match is_allowed(expression, &self.licenses.allow) {
            Ok(true) => None,
            Ok(false) => Some(format!("{shown} is under {expression}, which is not allowed")),
            Err(error) => Some(format!("{shown}: cannot read its licence {expression:?}: {error}")),
        }
    }

    fn is_known(&self, source: &str) -> bool {
        let registry = source.strip_prefix("registry+").or_else(|| source.strip_prefix("sparse+"));
        match (registry, source.strip_prefix("git+")) {
            (Some(url), _) => self.sources.allow_registry.iter().any(|known| known == url),
            (None, Some(url)) => {
                self.sources.allow_git.iter().any(|known| url.split('?').next() == Some(known))
            }
            (None, None) => false,
        }
    }
}

/// Whether an SPDX expression can be satisfied with the allowed licences: `OR` lets us choose, `AND`
/// demands both and binds tighter, `/` is an old way to write `OR`.
///
/// # Errors
/// When the expression is malformed.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { tokens: &tokens, at: 0, allowed };
    let value = parser.any()?;
    if parser.at != tokens.len() {
        bail!("unexpected {:?}", tokens[parser.at]);
    }
    Ok(value)
}

struct Parser<'a> {
    tokens: &'a [&'a str],
    at: usize,
    allowed: &'a BTreeSet<String>,
}

impl Parser<'_> {
    fn take(&mut self, word: &str) -> bool {
        let is_next = self.tokens.get(self.at) == Some(&word);
        self.at += usize::from(is_next);
        is_next
    }

    fn any(&mut self) -> Result<bool> {
        let mut value = self.all()?;
        while self.take("OR") {
            value |= self.all()?;
        }
        Ok(value)
    }

    fn all(&mut self) -> Result<bool> {
        let mut value = self.one()?;
        while self.take("AND") {
            value &= self.one()?;
        }
        Ok(value)
    }

    fn one(&mut self) -> Result<bool> {
        if self.take("(") {
            let value = self.any()?;
            if !self.take(")") {
                bail!("a parenthesis is not closed");
            }
            return Ok(value);
        }
        let name = match self.tokens.get(self.at) {
            Some(name) if !["OR", "AND", "WITH", ")"].contains(name) => *name,
            Some(other) => bail!("unexpected {other:?}"),
            None => bail!("unexpected end"),
        };
        self.at += 1;
        if !self.take("WITH") {
            return Ok(self.allowed.contains(name));
        }
        let exception = self.tokens.get(self.at).copied().context("an exception is missing")?;
        self.at += 1;
        Ok(self.allowed.contains(&format!("{name} WITH {exception}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(expression: &str) -> bool {
        let list = ["MIT", "Apache-2.0", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"];
        is_allowed(expression, &list.map(str::to_owned).into()).unwrap()
    }

    #[test]
    fn a_choice_needs_one_allowed_licence_and_a_conjunction_all_of_them() {
        assert!(allowed("MIT"));
        assert!(allowed("GPL-3.0-only OR MIT"));
        assert!(allowed("MIT/Apache-2.0"));
        assert!(allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(allowed("Apache-2.0 WITH LLVM-exception"));
        assert!(!allowed("MPL-2.0"));
        assert!(!allowed("MIT AND MPL-2.0"));
        assert!(!allowed("GPL-3.0-only OR MIT AND MPL-2.0"));
        assert!(!allowed("MIT WITH Classpath-exception-2.0"));
    }

    #[test]
    fn a_malformed_expression_is_an_error_and_not_allowed_by_chance() {
        for expression in ["", "MIT OR", "(MIT", "MIT MIT", "WITH MIT", "MIT)"] {
            assert!(is_allowed(expression, &["MIT".to_owned()].into()).is_err(), "{expression:?}");
        }
    }

    #[test]
    fn the_repository_s_own_file_can_be_used() {
        let deny = Deny::load(&crate::step::root()).unwrap();
        assert!(!deny.targets().is_empty());
        assert!(!deny.is_known("registry+https://example.org/index"));
        assert!(!deny.is_known("git+https://example.org/fork.git?branch=x#0123"));
    }
}
