//! Which crate may depend on which: the one table, and the check of cargo's graph against it.
//!
//! Direct normal dependencies only. An edge that is not in the table is refused, and so is a crate
//! without a row or a row without a crate, so that the table always tells the truth.

use std::collections::BTreeMap;

use crate::metadata::{Metadata, Package};

/// What one of our crates may depend on.
#[derive(Debug)]
struct Row {
    /// The package's name without the prefix.
    name: &'static str,
    /// Ours, without the prefix.
    ours: &'static [&'static str],
    /// Theirs: listed for the pure crates, free for the others.
    theirs: Option<&'static [&'static str]>,
}

const PREFIX: &str = "understudy-";

/// From the pure crates upwards; no edge points up. A change here is a change of the architecture:
/// docs/ARCHITECTURE.md says the same in words.
const TABLE: &[Row] = &[
    Row { name: "types", ours: &[], theirs: Some(&["serde", "thiserror", "uuid"]) },
    Row { name: "core", ours: &["types"], theirs: Some(&["serde", "thiserror"]) },
    // The decision recorder's form and its replay; JSON, because it names its fields.
    Row {
        name: "trace",
        ours: &["types", "core"],
        theirs: Some(&["crc32c", "serde", "serde_json", "thiserror"]),
    },
    Row { name: "wal", ours: &["types"], theirs: Some(&["bytes", "crc32c", "thiserror"]) },
    Row { name: "checks", ours: &["types"], theirs: Some(&["serde", "thiserror"]) },
    // A stand-in for a network, for tests and benchmarks; the daemon never has it.
    Row { name: "line", ours: &[], theirs: None },
    Row { name: "proto", ours: &["types"], theirs: None },
    Row { name: "transport", ours: &["types"], theirs: None },
    Row { name: "consensus", ours: &["types", "core", "proto", "transport"], theirs: None },
    Row { name: "shipping", ours: &["types", "wal", "proto", "transport"], theirs: None },
    Row { name: "postgres", ours: &["types"], theirs: None },
    Row {
        name: "node",
        ours: &[
            "types",
            "core",
            "trace",
            "wal",
            "proto",
            "transport",
            "consensus",
            "shipping",
            "postgres",
        ],
        theirs: None,
    },
    Row { name: "workload", ours: &["types", "checks"], theirs: None },
    // `trace` for `replay`: without a daemon, on files alone.
    Row {
        name: "cli",
        ours: &["types", "trace", "proto", "transport", "node", "workload"],
        theirs: None,
    },
    // Drives the built binary as an operator would; the client and the judgements are the demo's.
    Row { name: "chaos", ours: &["checks", "workload"], theirs: None },
    // Measures the parts as the daemon puts them together, each side as a process of its own.
    Row {
        name: "bench",
        ours: &["types", "line", "proto", "transport", "shipping", "postgres"],
        theirs: None,
    },
    // Checks of the protocol, for developers; nothing depends on it and the daemon never has it.
    Row { name: "sim", ours: &["types", "core", "trace", "wal", "checks"], theirs: None },
    // Made-up input for whatever reads bytes from outside; nothing depends on it.
    Row { name: "fuzz", ours: &["types", "wal", "proto", "consensus", "shipping"], theirs: None },
    Row { name: "xtask", ours: &[], theirs: None },
];

/// The crates without IO: their external dependencies are listed and their lints ban the world.
pub(crate) fn pure_crates() -> impl Iterator<Item = &'static str> {
    TABLE.iter().filter(|row| row.theirs.is_some()).map(|row| row.name)
}

/// Every difference between the graph and the table, in words.
#[must_use]
pub(crate) fn findings(metadata: &Metadata) -> Vec<String> {
    let mut found = Vec::new();
    let members: BTreeMap<&str, &Package> = metadata
        .members()
        .map(|package| (package.name.strip_prefix(PREFIX).unwrap_or(&package.name), package))
        .collect();
    for row in TABLE {
        match members.get(row.name) {
            Some(package) => check_row(row, package, &mut found),
            None => found.push(format!("the table has a row for {}, which is no crate", row.name)),
        }
    }
    for name in members.keys() {
        if !TABLE.iter().any(|row| row.name == *name) {
            found.push(format!("crate {name} has no row in the table of crates/xtask/src/deps.rs"));
        }
    }
    found
}

fn check_row(row: &Row, package: &Package, found: &mut Vec<String>) {
    for dependency in &package.dependencies {
        let kind = dependency.kind.as_deref();
        if kind == Some("dev") {
            continue;
        }
        match (dependency.name.strip_prefix(PREFIX), row.theirs) {
            (Some(ours), _) if !row.ours.contains(&ours) => {
                found.push(format!("{} may not depend on {ours}", row.name));
            }
            (None, Some(listed)) if !listed.contains(&dependency.name.as_str()) => {
                found.push(format!(
                    "{} is pure and may not depend on {} (listed: {})",
                    row.name,
                    dependency.name,
                    listed.join(", ")
                ));
            }
            (Some(_) | None, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(extra: &str) -> Metadata {
        let packages: Vec<serde_json::Value> = TABLE
            .iter()
            .map(|row| {
                let name = format!("{PREFIX}{}", row.name);
                let mut dependencies = Vec::new();
                if row.name == "core" && !extra.is_empty() {
                    dependencies.push(serde_json::json!({ "name": extra, "kind": null }));
                }
                serde_json::json!({
                    "name": name, "version": "0.1.0", "id": name, "license": "Apache-2.0",
                    "source": null, "dependencies": dependencies,
                })
            })
            .collect();
        let members: Vec<_> = packages.iter().map(|package| package["id"].clone()).collect();
        serde_json::from_value(
            serde_json::json!({ "packages": packages, "workspace_members": members }),
        )
        .unwrap()
    }

    #[test]
    fn no_row_points_at_a_crate_that_stands_above_it() {
        for (index, row) in TABLE.iter().enumerate() {
            for name in row.ours {
                assert!(TABLE[..index].iter().any(|below| below.name == *name), "{row:?}");
            }
        }
    }

    #[test]
    fn an_edge_upwards_and_a_foreign_crate_in_a_pure_one_are_refused() {
        assert_eq!(findings(&graph("")), Vec::<String>::new());
        assert_eq!(findings(&graph("understudy-types")), Vec::<String>::new());
        assert_eq!(findings(&graph("understudy-node")), ["core may not depend on node"]);
        assert!(findings(&graph("tokio"))[0].contains("core is pure"));
    }
}
