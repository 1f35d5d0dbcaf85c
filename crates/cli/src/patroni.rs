//! The verbs that users of `patronictl` know for looking at a cluster: `list`, `topology`, `history`,
//! `show-config`; its columns, its flags. What they print comes from the one status.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use understudy_node::status::{ClusterStatus, NodeStatus, SiteRole, Waited};
use understudy_types::{Lsn, NodeKind};

use crate::context::Context;
use crate::output::{self, Output};
use crate::status::{fetch, moment, size, watch};

/// How `patronictl` names its forms of output, beside ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A table for people.
    #[default]
    #[value(alias = "text")]
    Pretty,
    /// The same columns, separated by tabs, for `cut` and `awk`.
    Tsv,
    /// For programs.
    Json,
    /// For programs.
    Yaml,
}

/// List the nodes in patronictl's columns.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// How it is printed.
    #[arg(
        long,
        short,
        visible_alias = "output",
        short_alias = 'o',
        value_enum,
        default_value_t = Format::Pretty
    )]
    format: Format,
    /// Again and again, every two seconds unless --watch says otherwise, until interrupted.
    #[arg(short = 'W')]
    watch_default: bool,
    /// Again every so many seconds until interrupted.
    #[arg(long, short = 'w', value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
}

/// Columns of `list`, as patronictl heads them.
const LIST: [&str; 11] = [
    "Member",
    "Host",
    "Role",
    "State",
    "TL",
    "Receive LSN",
    "Receive Lag",
    "Replay LSN",
    "Replay Lag",
    "Site",
    "Pending restart",
];
const HISTORY: [&str; 5] = ["TL", "LSN", "Reason", "Timestamp", "New Leader"];

/// What a verb shows: a title, columns, and rows with the same values for programs.
struct Table<const N: usize> {
    title: String,
    head: [&'static str; N],
    rows: Vec<[String; N]>,
    data: Value,
}

/// `list` and, with the followers below whom they follow, `topology`.
///
/// # Errors
/// When no node answers.
pub(crate) async fn list(
    context: &Context,
    args: &ListArgs,
    tree: bool,
) -> anyhow::Result<ExitCode> {
    repeat(context, args, |status| members(status, tree)).await
}

/// `history`: every promotion but the first.
///
/// # Errors
/// When no node answers.
pub(crate) async fn history(context: &Context, args: &ListArgs) -> anyhow::Result<ExitCode> {
    repeat(context, args, promotions).await
}

/// `show-config`: what the cluster has agreed on.
///
/// # Errors
/// When no node answers.
pub(crate) async fn show_config(context: &Context, output: Output) -> anyhow::Result<ExitCode> {
    let status = fetch(context).await?;
    let agreed = status.agreed().context("the cluster is not founded yet")?;
    let form = if output == Output::Text { Output::Yaml } else { output };
    output::print(&form.data(&agreed))?;
    Ok(ExitCode::SUCCESS)
}

async fn repeat<const N: usize>(
    context: &Context,
    args: &ListArgs,
    table: impl Fn(&ClusterStatus) -> Table<N>,
) -> anyhow::Result<ExitCode> {
    let seconds = args.watch.or(args.watch_default.then_some(2));
    let Some(seconds) = seconds else {
        output::print(&render(&table(&fetch(context).await?), args.format))?;
        return Ok(ExitCode::SUCCESS);
    };
    watch(context, Duration::from_secs(seconds), |status, clear| {
        Ok(output::print(&format!("{clear}{}", render(&table(status), args.format)))?)
    })
    .await
}

fn render<const N: usize>(table: &Table<N>, format: Format) -> String {
    match format {
        Format::Json => Output::Json.data(&table.data),
        Format::Yaml => Output::Yaml.data(&table.data),
        Format::Tsv => {
            let rows = table.rows.iter().map(|row| row.join("\t"));
            let lines: Vec<String> = std::iter::once(table.head.join("\t")).chain(rows).collect();
            lines.join("\n") + "\n"
        }
        Format::Pretty => {
            let lines = output::aligned(table.head, &table.rows);
            let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
            let mut text = String::new();
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "+ {} {}",
                table.title,
                "-".repeat(width.saturating_sub(3 + table.title.len()))
            );
            for line in lines {
                let _ = writeln!(text, "{line}");
            }
            text
        }
    }
}

fn members(status: &ClusterStatus, tree: bool) -> Table<11> {
    let data = || status.nodes.iter().filter(|node| node.kind == NodeKind::Data);
    // Patroni has no members without a PostgreSQL; here they are shown last, because they vote.
    let others = status.nodes.iter().filter(|node| node.kind != NodeKind::Data);
    let mut nodes: Vec<&NodeStatus> = data().collect();
    if tree {
        nodes.sort_by_key(|node| node.role != SiteRole::Active);
    }
    nodes.extend(others);
    let rows = nodes.iter().map(|node| row(status, node, tree)).collect();
    let listed: Vec<Value> = nodes.iter().map(|node| member(status, node)).collect();
    let id = status.system_id.map_or_else(|| "not founded".to_owned(), |id| id.to_string());
    Table {
        title: format!("Cluster: {} ({id})", status.cluster),
        head: LIST,
        rows,
        data: listed.into(),
    }
}

fn row(status: &ClusterStatus, node: &NodeStatus, tree: bool) -> [String; 11] {
    let follows = node.role == SiteRole::Passive;
    let lag = |bytes: Option<u64>| match bytes {
        _ if !follows => String::new(),
        Some(bytes) => size(bytes),
        None => "unknown".to_owned(),
    };
    let text = |lsn: Option<Lsn>| lsn.map(|lsn| lsn.to_string()).unwrap_or_default();
    [
        if tree && follows { format!("+ {}", node.name) } else { node.name.clone() },
        node.postgres_address.clone().unwrap_or_default(),
        role(status, node).to_owned(),
        state(node).to_owned(),
        node.timeline.map(|timeline| timeline.to_string()).unwrap_or_default(),
        text(received(node)),
        lag(node.durable_lag_bytes),
        text(node.replay_lsn.filter(|_| follows)),
        lag(node.replay_lag_bytes),
        node.site.clone(),
        if node.pending_restart.is_empty() { String::new() } else { "*".to_owned() },
    ]
}

/// The same for programs; what is not known is not there.
fn member(status: &ClusterStatus, node: &NodeStatus) -> Value {
    let mut member = json!({
        "Cluster": status.cluster,
        "Member": node.name,
        "Role": role(status, node),
        "State": state(node),
        "Site": node.site,
    });
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            member[key] = value;
        }
    };
    let follows = node.role == SiteRole::Passive;
    let pending = !node.pending_restart.is_empty();
    put("Pending restart", pending.then(|| "*".into()));
    put("Host", node.postgres_address.clone().map(Into::into));
    put("TL", node.timeline.map(|timeline| timeline.get().into()));
    put("Receive LSN", received(node).map(|lsn| lsn.to_string().into()));
    put("Receive Lag", node.durable_lag_bytes.filter(|_| follows).map(Into::into));
    put("Replay LSN", node.replay_lsn.filter(|_| follows).map(|lsn| lsn.to_string().into()));
    put("Replay Lag", node.replay_lag_bytes.filter(|_| follows).map(Into::into));
    member
}

/// Patroni's words for what a member is.
fn role(status: &ClusterStatus, node: &NodeStatus) -> &'static str {
    match (node.role, status.waited(&node.name)) {
        (SiteRole::Active, _) => "Leader",
        (SiteRole::Witness, _) => "Witness",
        (SiteRole::Journal, _) => "Journal",
        (SiteRole::Passive, Waited::Each) => "Sync Standby",
        (SiteRole::Passive, Waited::Some) => "Quorum Standby",
        (SiteRole::Passive, Waited::No) => "Replica",
    }
}

/// How far a node's WAL reaches: written at the active, durable elsewhere.
fn received(node: &NodeStatus) -> Option<Lsn> {
    if node.role == SiteRole::Active { node.flush_lsn } else { node.durable_lsn }
}

fn state(node: &NodeStatus) -> &str {
    match node.role {
        SiteRole::Active | SiteRole::Passive if node.postgres_running && node.attached => {
            "streaming"
        }
        SiteRole::Active if node.postgres_running => "running",
        SiteRole::Active | SiteRole::Passive | SiteRole::Witness | SiteRole::Journal => &node.state,
    }
}

fn promotions(status: &ClusterStatus) -> Table<5> {
    let mut rows = Vec::new();
    let mut listed = Vec::new();
    for promotion in status.promotions() {
        let at = promotion.grant.at_unix_us.map(moment);
        listed.push(json!({
            "TL": promotion.left.get(), "LSN": promotion.fork_lsn.0, "Reason": promotion.reason,
            "Timestamp": at, "New Leader": promotion.grant.node,
        }));
        rows.push([
            promotion.left.to_string(),
            promotion.fork_lsn.to_string(),
            promotion.reason,
            at.unwrap_or_default(),
            promotion.grant.node.clone(),
        ]);
    }
    Table {
        title: format!("History of {}", status.cluster),
        head: HISTORY,
        rows,
        data: listed.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::sample;

    #[test]
    fn the_list_has_patronictls_columns_and_leaves_the_unknown_out() {
        let mut status = sample();
        status.nodes[0].pending_restart = vec!["max_connections".to_owned()];
        let table = members(&status, false);
        let text = render(&table, Format::Tsv);
        let line =
            |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert!(text.starts_with("Member\tHost\tRole\tState\tTL\t"), "{text}");
        assert_eq!(line("north"), "north\t\tLeader\trunning\t2\t0/5000000\t\t\t\tn\t*");
        assert_eq!(
            line("south"),
            "south\t\tReplica\tstreaming\t\t0/4FFF800\t2.0 KiB\t\tunknown\ts\t"
        );
        assert_eq!(line("witness"), "witness\t\tWitness\tunreachable\t\t\t\t\t\tw\t");
        assert!(table.data[1].get("Replay Lag").is_none() && table.data[1]["Receive Lag"] == 2048);
        let tree = render(&members(&status, true), Format::Pretty);
        assert!(tree.contains("\n+ south") && tree.starts_with("+ Cluster: 6f1a2b3c"), "{tree}");
        assert!(render(&table, Format::Yaml).contains("- Cluster: 6f1a2b3c"));
    }

    #[test]
    fn the_history_has_a_row_for_each_promotion_but_the_first() {
        let mut status = sample();
        let link = |number: u64, node: &str| {
            let text = format!(
                r#"{{"epoch": {{"incarnation": 0, "number": {number}}}, "node": "{node}",
                    "timeline": {number}, "fork_lsn": "0/{number}000000",
                    "promotion": "00000000-0000-0000-0000-000000000000",
                    "at_unix_us": 1700000000000000}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        status.lineage = vec![link(1, "north"), link(2, "south")];
        let text = render(&promotions(&status), Format::Tsv);
        let expected = "1\t0/2000000\tpromotion of south in epoch 2\t2023-11-14T22:13:20Z\tsouth";
        assert_eq!(text.lines().nth(1), Some(expected), "{text}");
        assert_eq!(text.lines().count(), 2);
    }
}
