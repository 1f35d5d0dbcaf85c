//! Do two sites hold the same? Compared per database and table, by row count and content digest.
//!
//! It compares what was read; that both were read at the same WAL position is the reader's duty.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// A table's content: how many rows, and a digest over all of them in a fixed order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct TableDigest {
    /// Rows in the table.
    pub rows_count: u64,
    /// A digest that is equal only if every row is, whatever the physical order.
    pub digest: String,
}

/// A site's content: database → table (with its schema) → digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct SiteContent {
    /// Ordered, so that two readings are compared in one pass and printed alike.
    pub databases: BTreeMap<String, BTreeMap<String, TableDigest>>,
}

/// One way in which two sites differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Difference {
    /// A database that only one site has.
    Database {
        /// Its name.
        database: String,
        /// The first site has it, and the second has not; otherwise the other way round.
        only_in_first: bool,
    },
    /// A table that only one site has.
    Table {
        /// In which database.
        database: String,
        /// The table, with its schema.
        table: String,
        /// The first site has it, and the second has not; otherwise the other way round.
        only_in_first: bool,
    },
    /// A table with different rows.
    Content {
        /// In which database.
        database: String,
        /// The table, with its schema.
        table: String,
        /// What the first site has.
        first: TableDigest,
        /// What the second site has.
        second: TableDigest,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let site = |first: &bool| if *first { "first" } else { "second" };
        match self {
            Difference::Database { database, only_in_first } => {
                write!(f, "database {database} is only at the {} site", site(only_in_first))
            }
            Difference::Table { database, table, only_in_first } => {
                write!(f, "table {database}.{table} is only at the {} site", site(only_in_first))
            }
            Difference::Content { database, table, first, second } => write!(
                f,
                "table {database}.{table} differs: {} rows ({}) and {} rows ({})",
                first.rows_count, first.digest, second.rows_count, second.digest
            ),
        }
    }
}

/// Every difference between two sites; empty when they are equal.
#[must_use]
pub fn compare_sites(first: &SiteContent, second: &SiteContent) -> Vec<Difference> {
    let mut differences = Vec::new();
    for (database, tables) in &first.databases {
        match second.databases.get(database) {
            Some(others) => compare_tables(database, tables, others, &mut differences),
            None => differences
                .push(Difference::Database { database: database.clone(), only_in_first: true }),
        }
    }
    for database in second.databases.keys().filter(|name| !first.databases.contains_key(*name)) {
        differences.push(Difference::Database { database: database.clone(), only_in_first: false });
    }
    differences
}

fn compare_tables(
    database: &str,
    first: &BTreeMap<String, TableDigest>,
    second: &BTreeMap<String, TableDigest>,
    differences: &mut Vec<Difference>,
) {
    let only = |table: &String, only_in_first| Difference::Table {
        database: database.to_owned(),
        table: table.clone(),
        only_in_first,
    };
    for (table, digest) in first {
        match second.get(table) {
            Some(other) if other == digest => {}
            Some(other) => differences.push(Difference::Content {
                database: database.to_owned(),
                table: table.clone(),
                first: digest.clone(),
                second: other.clone(),
            }),
            None => differences.push(only(table, true)),
        }
    }
    for table in second.keys().filter(|table| !first.contains_key(*table)) {
        differences.push(only(table, false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(tables: &[(&str, &str, u64, &str)]) -> SiteContent {
        let mut content = SiteContent::default();
        for (database, table, rows_count, digest) in tables {
            let digest = TableDigest { rows_count: *rows_count, digest: (*digest).to_owned() };
            content
                .databases
                .entry((*database).to_owned())
                .or_default()
                .insert((*table).to_owned(), digest);
        }
        content
    }

    #[test]
    fn equal_sites_have_no_difference() {
        let a = site(&[("t1", "public.worklog", 3, "x"), ("t2", "public.worklog", 0, "")]);
        assert_eq!(compare_sites(&a, &a.clone()), vec![]);
    }

    #[test]
    fn every_kind_of_difference_is_found_in_either_direction() {
        let a = site(&[("t1", "a", 3, "x"), ("t1", "b", 1, "y"), ("t2", "a", 0, "")]);
        let b = site(&[("t1", "a", 3, "z"), ("t1", "c", 1, "y"), ("t3", "a", 0, "")]);
        let forth: Vec<String> = compare_sites(&a, &b).iter().map(ToString::to_string).collect();
        assert_eq!(
            forth,
            [
                "table t1.a differs: 3 rows (x) and 3 rows (z)",
                "table t1.b is only at the first site",
                "table t1.c is only at the second site",
                "database t2 is only at the first site",
                "database t3 is only at the second site",
            ]
        );
        assert_eq!(compare_sites(&b, &a).len(), 5);
    }
}
