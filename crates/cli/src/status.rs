//! `understudy status`: the cluster as a table, or as JSON.
//!
//! Of the nodes that answer, the first that hears a majority is believed; without one, the one that
//! has applied most. What is unknown is printed as `-`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use understudy_node::status::{ClusterStatus, LineageStatus, NodeStatus, OperationView, SiteRole};
use understudy_proto::v1::GetStatusRequest;
use understudy_proto::v1::admin_client::AdminClient;

use crate::context::{Context, ContextNode};
use crate::operate::CallError;
use crate::output::{self, Output};
use crate::validate;

const CALL_TIMEOUT: Duration = Duration::from_secs(3);
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Ended operations that the table shows.
const OPERATIONS_SHOWN: usize = 3;

/// Show the cluster.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Again every second until interrupted.
    #[arg(long, short)]
    watch: bool,
    /// How it is printed; JSON with --watch is one object a line.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Runs the verb.
///
/// # Errors
/// When no node answers.
pub(crate) async fn run(context: &Context, args: &StatusArgs) -> anyhow::Result<ExitCode> {
    if !args.watch {
        show(&fetch(context).await?, args.output, "")?;
        return Ok(ExitCode::SUCCESS);
    }
    watch(context, WATCH_INTERVAL, |status, clear| show(status, args.output, clear)).await
}

/// Shows the best answer again and again; `show` gets what clears the screen, if there is one.
///
/// # Errors
/// When it cannot be shown.
pub(crate) async fn watch(
    context: &Context,
    interval: Duration,
    show: impl Fn(&ClusterStatus, &str) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let clear = if io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match fetch(context).await {
            Ok(status) => show(&status, clear)?,
            // Whoever watches wants to see the cluster come back.
            Err(error) => eprintln!("{error}"),
        }
    }
}

/// The best answer that can be had.
///
/// # Errors
/// When no node answers; says for each why.
pub(crate) async fn fetch(context: &Context) -> Result<ClusterStatus, CallError> {
    let mut best: Option<ClusterStatus> = None;
    let mut reasons = Vec::new();
    for node in &context.nodes {
        match ask(context, node).await {
            Ok(status) if status.majority => return Ok(status),
            Ok(status) => {
                if best.as_ref().is_none_or(|best| status.applied_index > best.applied_index) {
                    best = Some(status);
                }
            }
            Err(reason) => reasons.push(reason),
        }
    }
    best.ok_or(CallError::Unreachable { reasons })
}

/// One node's answer.
///
/// # Errors
/// Why there is none, in words.
pub(crate) async fn ask(context: &Context, node: &ContextNode) -> Result<ClusterStatus, String> {
    let channel = context.connect(node).await.map_err(|error| error.to_string())?;
    let mut client = AdminClient::new(channel);
    let answer = tokio::time::timeout(CALL_TIMEOUT, client.get_status(GetStatusRequest {})).await;
    let answer = answer.map_err(|_| format!("{}: no answer in {CALL_TIMEOUT:?}", node.name))?;
    let answer = answer.map_err(|status| format!("{}: {}", node.name, status.message()))?;
    let status = answer.into_inner().status.unwrap_or_default();
    ClusterStatus::try_from(status).map_err(|error| format!("{}: {error}", node.name))
}

fn show(status: &ClusterStatus, output: Output, clear: &str) -> anyhow::Result<()> {
    let text = match output {
        Output::Json | Output::Yaml => output.data(status),
        Output::Text => format!("{clear}{}", render(status, output::colours())),
    };
    output::print(&text)?;
    Ok(())
}

/// The table and what belongs below it.
fn render(status: &ClusterStatus, colours: bool) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_head(&mut text, status);
    text.push('\n');
    write_table(&mut text, status, colours);
    for node in &status.nodes {
        write_remarks(&mut text, node, colours);
    }
    text.push('\n');
    let _ = write_verdict(&mut text, status, colours);
    text
}

fn write_head(text: &mut String, status: &ClusterStatus) -> std::fmt::Result {
    let mut dial = status.durability.to_string();
    if let Some(ceiling) = status.rpo_ceiling_seconds {
        write!(dial, " up to {}", span(ceiling))?;
    }
    // 0 is an older node's answer, which knows of no other number than all.
    let some = (1..status.waited_for.len()).contains(&(status.durable_copies as usize));
    if some {
        write!(dial, ", at {} of {}", status.durable_copies, status.waited_for.join(", "))?;
    }
    if status.durability_lifted {
        dial.push_str(", LIFTED: nobody is waited for");
    }
    writeln!(text, "cluster   {}", status.cluster)?;
    writeln!(text, "epoch     {}, {}", status.epoch, status.phase)?;
    writeln!(text, "active    {}", status.active.as_deref().unwrap_or("nobody"))?;
    writeln!(text, "dial      {dial}")?;
    if let Some(wanted) = status.dial.as_ref().filter(|wanted| wanted.mode != status.durability) {
        writeln!(text, "wanted    {}, not in force yet", wanted.mode)?;
    }
    let exposure = match (status.exposure_seconds, status.exposure_bytes) {
        (Some(seconds), Some(bytes)) => format!("{}, {}", span(seconds), size(bytes)),
        _ => "unknown".to_owned(),
    };
    writeln!(text, "exposure  {exposure}")?;
    match programs(status) {
        Some(programs) => writeln!(text, "program   {programs}"),
        None => Ok(()),
    }
}

/// Which version of the program runs where; that they differ is a state to pass through, so it is said
/// with the nodes' names. A node that was never heard has none.
fn programs(status: &ClusterStatus) -> Option<String> {
    let mut of: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in &status.nodes {
        if let Some(version) = &node.program_version {
            of.entry(version).or_default().push(&node.name);
        }
    }
    let at = |(version, nodes): (&&str, &Vec<&str>)| format!("{version} at {}", nodes.join(", "));
    match of.len() {
        0 => None,
        1 => of.keys().next().map(|version| (*version).to_owned()),
        _ => Some(format!("MIXED: {}", of.iter().map(at).collect::<Vec<_>>().join("; "))),
    }
}

fn write_verdict(text: &mut String, status: &ClusterStatus, colours: bool) -> std::fmt::Result {
    let (mark, colour) = if status.failover.would_fail_over { ("yes", 32) } else { ("no", 33) };
    let mark = paint(mark, colour, colours);
    writeln!(text, "automatic failover: {mark}, {}", status.failover.words)?;
    if let Some(command) = &status.failover.accept_command {
        writeln!(text, "the role break-glass may accept the loss: {command}")?;
    }
    if let Some(report) = &status.validation {
        writeln!(text, "{}", validate::line(report))?;
    }
    if let Some(line) = status.lineage.last().and_then(lost_with) {
        writeln!(text, "{line}")?;
    }
    if let Some(scheduled) = &status.scheduled_switchover {
        let (to, at, id) = (&scheduled.to, moment(scheduled.at_unix_us), scheduled.operation);
        writeln!(text, "switchover to {to} is scheduled for {at} (operation {id})")?;
    }
    if let Some(until) = status.paused_until_unix_us {
        writeln!(text, "paused until {}", moment(until))?;
    }
    let running = |operation: &&OperationView| !operation.is_over();
    let ended = status.operations.iter().filter(|operation| !running(operation));
    let skipped = ended.clone().count().saturating_sub(OPERATIONS_SHOWN);
    for operation in ended.skip(skipped).chain(status.operations.iter().filter(running)) {
        let began = moment(operation.started_unix_us);
        let detail = operation.detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default();
        let what = operation.what.as_deref().map(|what| format!(" {what}")).unwrap_or_default();
        let (id, kind, outcome) = (operation.id, &operation.kind, &operation.outcome);
        let reason = &operation.reason;
        writeln!(text, "operation {id} of {began}: {kind}{what} ({reason}) {outcome}{detail}")?;
    }
    let heard = if status.majority { "hears a majority" } else { "HEARS NO MAJORITY" };
    let leader = status.leader.as_deref().unwrap_or("unknown");
    let at = moment(status.at_unix_us);
    writeln!(text, "answered by {} at {at}, which {heard}; leader: {leader}", status.answered_by)?;
    if !status.majority {
        writeln!(
            text,
            "if the others will not come back: on the data node that survived, with its daemon stopped, \
             `understudy recover --sole-survivor --dry-run --config FILE` says what it would cost"
        )?;
    }
    Ok(())
}

/// What the last promotion may have lost; nothing is not worth a line.
fn lost_with(link: &LineageStatus) -> Option<String> {
    if link.lost_seconds_max == Some(0.0) && link.lost_wal_bytes_min == 0 {
        return None;
    }
    let time = link.lost_seconds_max.map_or_else(
        || "an unknown span of acknowledged commits".to_owned(),
        |seconds| format!("up to {} of acknowledged commits", span(seconds)),
    );
    let bytes = size(link.lost_wal_bytes_min);
    Some(format!(
        "epoch {} began with {} and may have lost {time}, at least {bytes} of WAL",
        link.epoch, link.node
    ))
}

const COLUMNS: [&str; 9] =
    ["NODE", "SITE", "ROLE", "STATE", "TL", "WAL", "NOT DURABLE", "NOT REPLAYED", "HEARD"];

fn write_table(text: &mut String, status: &ClusterStatus, colours: bool) {
    let rows: Vec<[String; 9]> = status.nodes.iter().map(cells).collect();
    let mut lines = output::aligned(COLUMNS, &rows).into_iter();
    text.push_str(&paint(&lines.next().unwrap_or_default(), 1, colours));
    text.push('\n');
    for (node, line) in status.nodes.iter().zip(lines) {
        let colour = match node.role {
            _ if node.state == "unreachable" => 31,
            SiteRole::Active if node.writable => 32,
            SiteRole::Passive | SiteRole::Journal if node.attached => 36,
            SiteRole::Witness => 0,
            SiteRole::Active | SiteRole::Passive | SiteRole::Journal => 33,
        };
        text.push_str(&paint(&line, colour, colours));
        text.push('\n');
    }
}

fn cells(node: &NodeStatus) -> [String; 9] {
    let unknown = || "-".to_owned();
    let wal = if node.role == SiteRole::Active { node.flush_lsn } else { node.durable_lsn };
    let lag = |bytes: Option<u64>, seconds: Option<f64>| match (bytes, seconds) {
        (None, _) => unknown(),
        (Some(0), _) => "0".to_owned(),
        (Some(bytes), None) => size(bytes),
        (Some(bytes), Some(seconds)) => format!("{}, {}", size(bytes), span(seconds)),
    };
    let state = match node.role {
        SiteRole::Active if node.writable => format!("{}, writable", node.state),
        SiteRole::Passive | SiteRole::Journal if node.attached => {
            format!("{}, attached", node.state)
        }
        SiteRole::Active | SiteRole::Passive | SiteRole::Journal | SiteRole::Witness => {
            node.state.clone()
        }
    };
    [
        if node.leader { format!("{}*", node.name) } else { node.name.clone() },
        node.site.clone(),
        node.role.as_str().to_owned(),
        state,
        node.timeline.map_or_else(unknown, |timeline| timeline.to_string()),
        wal.map_or_else(unknown, |lsn| lsn.to_string()),
        lag(node.durable_lag_bytes, node.durable_lag_seconds),
        lag(node.replay_lag_bytes, node.replay_lag_seconds),
        match node.heard_seconds_ago {
            None => "never".to_owned(),
            Some(seconds) if seconds < 1.5 => "now".to_owned(),
            Some(seconds) => format!("{} ago", span(seconds)),
        },
    ]
}

fn write_remarks(text: &mut String, node: &NodeStatus, colours: bool) {
    let mut remark = |words: String| {
        let line = format!("  {}: {words}", node.name);
        text.push_str(&paint(&line, 33, colours));
        text.push('\n');
    };
    if let Some(progress) = &node.progress {
        let done = size(progress.done_bytes);
        let of = progress.total_bytes.map(|total| format!(" of {}", size(total)));
        remark(format!("{}, {done}{}", progress.what, of.unwrap_or_default()));
    }
    if let Some(receipt) = &node.newest_receipt {
        let (id, commits, wal) = (&receipt.id, receipt.commits, size(receipt.lost_wal_bytes));
        let made = moment(receipt.made_unix_us);
        remark(match receipt.fork_lsn {
            Some(_) => format!("lost {commits} commits, {wal} of WAL: receipt {id} of {made}"),
            None => format!("its WAL differed from the cluster's: receipt {id} of {made}"),
        });
    }
    if !node.pending_restart.is_empty() {
        remark(format!("pending a restart of PostgreSQL: {}", node.pending_restart.join(", ")));
    }
    if let Some(mark) = &node.mark {
        remark(format!("must not be promoted: {mark}"));
    }
    if let Some(trouble) = &node.trouble {
        remark(trouble.clone());
    }
    node.warnings.iter().for_each(|warning| remark(warning.clone()));
}

/// In a colour, where colours are wanted.
pub(crate) fn paint(text: &str, code: u8, colours: bool) -> String {
    if colours && code != 0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A span of time, rounded for reading.
pub(crate) fn span(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => "0 s".to_owned(),
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// A number of bytes, rounded for reading.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A moment in UTC, to the second.
pub(crate) fn moment(unix_us: i64) -> String {
    let time = Timestamp::from_microsecond(unix_us);
    time.map_or_else(|_| "-".to_owned(), |time| format!("{time:.0}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> ClusterStatus {
        let text = r#"{
            "version": 1, "cluster": "6f1a2b3c-0000-4000-8000-0123456789ab",
            "answered_by": "south", "at_unix_us": 1700000000000000, "leader": "witness",
            "majority": true, "epoch": {"incarnation": 0, "number": 3}, "active": "north",
            "phase": "running", "durability": "bounded", "durability_lifted": false,
            "generation": 4, "waited_for": ["south"], "eligible": ["south"],
            "rpo_ceiling_seconds": 3600.0, "exposure_seconds": 0.25, "exposure_bytes": 2048,
            "failover": {"reason": "ready", "words": "south takes over by itself",
                         "would_fail_over": true},
            "nodes": [
                {"name": "north", "site": "n", "kind": "data", "role": "active", "state": "holder",
                 "heard_seconds_ago": 0.1, "postgres_running": true, "timeline": 2,
                 "flush_lsn": "0/5000000", "attached": false, "writable": true,
                 "grpc_address": "n:7400", "leader": false},
                {"name": "south", "site": "s", "kind": "data", "role": "passive",
                 "state": "passive", "heard_seconds_ago": 0.0, "postgres_running": true,
                 "durable_lsn": "0/4FFF800", "durable_lag_bytes": 2048, "durable_lag_seconds": 0.2,
                 "attached": true, "writable": false, "grpc_address": "s:7400", "leader": false,
                 "trouble": "disk is slow"},
                {"name": "witness", "site": "w", "kind": "witness", "role": "witness",
                 "state": "unreachable", "postgres_running": false, "attached": false,
                 "writable": false, "grpc_address": "w:7400", "leader": true}],
            "operations": [{"id": 9, "kind": "pause", "caller": "person ada (operator)",
                "reason": "upgrade", "outcome": "done", "started_unix_us": 1700000000000000}],
            "lineage": [], "applied_index": 70 }"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_table_says_who_is_what_and_leaves_the_unknown_blank() {
        let text = render(&sample(), false);
        let line = |name: &str| {
            let found = text.lines().find(|line| line.starts_with(name));
            found.unwrap_or_else(|| panic!("no line {name} in\n{text}"))
        };
        assert!(line("north").contains("holder, writable"), "{text}");
        assert!(line("north").contains("0/5000000"), "{text}");
        assert!(line("south").contains("2.0 KiB, 0.2 s"), "{text}");
        assert!(line("witness*").ends_with("never"), "{text}");
        assert!(line("exposure").contains("0.2 s, 2.0 KiB"), "{text}");
        assert!(line("automatic failover: yes, south takes over by itself").len() > 1);
        assert!(line("  south: disk is slow").len() > 1);
        assert!(line("operation 9 of 2023-11-14T22:13:20Z").contains("pause (upgrade) done"));
        assert!(line("answered by south").contains("hears a majority"));
        assert!(!text.contains('\x1b'), "coloured without being asked to");
    }

    #[test]
    fn versions_that_differ_are_named_with_their_nodes() {
        let mut status = sample();
        assert!(!render(&status, false).contains("program"), "nobody said a version");
        for node in &mut status.nodes {
            node.program_version = Some("0.1.0".to_owned());
        }
        assert!(render(&status, false).contains("\nprogram   0.1.0\n"));
        status.nodes[2].program_version = Some("0.2.0".to_owned());
        let mixed = "\nprogram   MIXED: 0.1.0 at north, south; 0.2.0 at witness\n";
        let text = render(&status, false);
        assert!(text.contains(mixed), "{text}");
    }

    #[test]
    fn what_is_not_known_is_called_unknown() {
        let mut status = sample();
        status.exposure_seconds = None;
        status.active = None;
        let text = render(&status, true);
        assert!(text.contains("exposure  unknown") && text.contains("active    nobody"), "{text}");
        assert!(text.contains("\x1b["));
    }
}
