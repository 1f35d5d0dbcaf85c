//! `understudy recover`: break the glass. On the node itself, with its daemon stopped.
//!
//! Everything is looked at and printed before anything is changed; the cluster's name has to be typed,
//! and the loss that is accepted to be stated. What is decided lies in `understudy_node::recovery`.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use understudy_node::config::NodeConfig;
use understudy_node::recovery::{self, LossLimit, Order, Statement};

use crate::operate::{AcceptedSpan, CallError, parse_loss};
use crate::output::{self, Output};

const LONG: &str = "\
When a majority of the voters will not come back, nobody can be elected, and the cluster stands still. \
This makes one surviving data node the only member of a new incarnation of the cluster, in which it \
serves alone and unprotected, until the others are brought back.

Refused while a majority answers. Members of the old incarnation can neither vote, renew, send nor \
receive WAL in the new one; one that starts again with its old state stops as soon as it reaches the \
new incarnation. One that does NOT reach it cannot know: never start the old members with their old \
state where this node cannot be reached by them.

  1. On the survivor:  stop its daemon
  2.                   understudy recover --sole-survivor --config node.toml --dry-run
  3.                   understudy recover --sole-survivor --config node.toml \\
                         --cluster-name NAME --accept-loss LOSS --reason TEXT
  4.                   start its daemon; it serves under a new epoch
  5. On each other:    stop its daemon
  6.                   understudy recover --rejoin --config node.toml --cluster-name NAME
  7.                   start its daemon; it follows, and votes once an odd number can";

/// Go on with one data node when a majority will not come back, and bring the others back to it.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, group = clap::ArgGroup::new("which").required(true))]
pub(crate) struct RecoverArgs {
    /// Make this node the only member of a new incarnation.
    #[arg(long, group = "which")]
    sole_survivor: bool,
    /// Bring this old member into the new incarnation: its consensus storage is set aside, its data
    /// stays and is followed, rewound or cloned as after any return.
    #[arg(long, group = "which")]
    rejoin: bool,
    /// The node's own TOML file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The cluster's name, typed exactly: the value of `cluster` in the configuration. Asked for on a
    /// terminal.
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<String>,
    /// How much may be lost: none, a span of commits as 90s, 10m or 1h, or any. Refused when more may
    /// be lost than that.
    #[arg(long, value_name = "none|DURATION|any", value_parser = parse_accepted,
          conflicts_with = "rejoin")]
    accept_loss: Option<AcceptedSpan>,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT", conflicts_with = "rejoin")]
    reason: Option<String>,
    /// Only say what would happen and whether it is possible now: 0 yes, 3 no.
    #[arg(long)]
    dry_run: bool,
    /// How the statement is printed.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

fn parse_accepted(text: &str) -> Result<AcceptedSpan, String> {
    if text == "none" {
        return Ok(AcceptedSpan::UpTo(Duration::ZERO));
    }
    parse_loss(text).map_err(|error| format!("{error}, or none"))
}

/// Recovers, or says what that would cost.
///
/// # Errors
/// When it is refused or fails; until the switch nothing has changed.
pub(crate) async fn run(args: &RecoverArgs) -> anyhow::Result<ExitCode> {
    let config = NodeConfig::load(&args.config)?;
    let mut progress = |words: &str| eprintln!("{words}");
    if args.rejoin {
        if !args.dry_run {
            confirm(args, &config)?;
        }
        let plan = recovery::rejoin(config, args.dry_run, &mut progress).await?;
        let from = plan.from.map(|from| from.to_string());
        let done = !args.dry_run;
        let text = match args.output {
            Output::Json | Output::Yaml => {
                let to = plan.to.to_string();
                let heard = &plan.heard_from;
                args.output.data(&json!({
                    "version": 1, "done": done, "from": from, "to": to, "heard_from": heard
                }))
            }
            Output::Text => {
                let would = if done { "is" } else { "would be" };
                let from = from.unwrap_or_else(|| "none".to_owned());
                format!(
                    "this node {would} of incarnation {} (it was of {from}), as {} is.\n\
                     Its old consensus storage stays beside the new one, its data where it is.\n\
                     Next: start its daemon.\n",
                    plan.to, plan.heard_from
                )
            }
        };
        output::print(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (cluster, name) = (config.cluster.to_string(), config.name.to_string());
    let examined = recovery::examine(config.clone(), &mut progress).await?;
    if args.output == Output::Text {
        output::print(&render(&cluster, &name, examined.statement()))?;
    }
    let statement = json_of(&cluster, &name, examined.statement());
    let mut made = None;
    if !args.dry_run {
        let order = order(args)?;
        confirm(args, &config)?;
        let incarnation = examined.carry_out(order, &mut progress).await?;
        made = Some(incarnation.to_string());
    }
    match (args.output, made) {
        (Output::Json | Output::Yaml, made) => {
            let all = json!({ "version": 1, "statement": statement, "incarnation": made });
            output::print(&args.output.data(&all))?;
        }
        (Output::Text, Some(made)) => output::print(&format!(
            "\n{name} is the only member of incarnation {made}.\n\
             Next: start its daemon; it serves under a new epoch. Then, on each other node, \
             `understudy recover --rejoin`.\n"
        ))?,
        (Output::Text, None) => output::print("\nNothing was changed.\n")?,
    }
    Ok(ExitCode::SUCCESS)
}

fn order(args: &RecoverArgs) -> Result<Order, CallError> {
    let usage = |words: &str| CallError::Usage { words: words.to_owned() };
    let reason = args.reason.clone().filter(|reason| !reason.trim().is_empty());
    let reason = reason.ok_or_else(|| usage("--reason TEXT is missing: why, for the record"))?;
    let accepted = args.accept_loss.ok_or_else(|| {
        usage("--accept-loss none|DURATION|any is missing: state how much may be lost")
    })?;
    let age_max = match accepted {
        AcceptedSpan::Any => None,
        AcceptedSpan::UpTo(span) => Some(span),
    };
    let uid = rustix::process::getuid().as_raw();
    let login = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER"));
    let caller = match login {
        Ok(login) => format!("uid {uid} ({login}) at the node"),
        Err(_) => format!("uid {uid} at the node"),
    };
    Ok(Order { accepts: LossLimit { age_max, bytes_max: None }, caller, reason })
}

/// The cluster's name, typed: nobody does this to the wrong one.
fn confirm(args: &RecoverArgs, config: &NodeConfig) -> anyhow::Result<()> {
    let name = config.cluster.to_string();
    let typed = match &args.cluster_name {
        Some(typed) => typed.clone(),
        None if io::stdin().is_terminal() && io::stderr().is_terminal() => {
            eprint!("Type the cluster's name to go on ({name}): ");
            let mut line = String::new();
            io::stdin().lock().read_line(&mut line)?;
            line.trim().to_owned()
        }
        None => {
            let words = format!("--cluster-name is missing: type the cluster's name, {name}");
            return Err(CallError::Usage { words }.into());
        }
    };
    if typed == name {
        return Ok(());
    }
    let words = format!("--cluster-name {typed}: this node is of cluster {name}; nothing was done");
    Err(CallError::Refused { words }.into())
}

fn json_of(cluster: &str, node: &str, statement: &Statement) -> Value {
    let members: Vec<Value> = statement
        .members
        .iter()
        .map(|member| {
            let kind = member.kind.as_str();
            json!({ "name": member.name, "site": member.site, "kind": kind, "heard": member.heard })
        })
        .collect();
    json!({
        "cluster": cluster,
        "node": node,
        "incarnation": statement.incarnation.to_string(),
        "members": members,
        "epoch": statement.epoch,
        "holder": statement.holder,
        "phase": statement.phase,
        "durability": statement.mode.to_string(),
        "durability_lifted": statement.lifted,
        "was_active": statement.was_active,
        "waited_for": statement.waited_for,
        "eligible": statement.eligible,
        "durable_lsn": statement.durable_lsn,
        "newest_commit_at": newest_commit(statement),
        "loss": {
            "seconds_max": statement.loss.time_max.map(|time| time.as_secs_f64()),
            "wal_bytes_min": statement.loss.wal_bytes_min,
            "words": statement.loss_words,
        },
        "lease_wait_seconds": statement.lease_wait.as_secs_f64(),
    })
}

/// The time of the newest commit in the journal, in RFC 3339, to the millisecond.
fn newest_commit(statement: &Statement) -> Option<String> {
    let time = Timestamp::from_microsecond(statement.newest_commit_unix_us?).ok()?;
    Some(format!("{time:.3}"))
}

fn render(cluster: &str, node: &str, statement: &Statement) -> String {
    let yes = |yes: bool| if yes { "yes" } else { "no" };
    let lifted = if statement.lifted { ", LIFTED: nobody was waited for" } else { "" };
    let mut text = format!("cluster      {cluster}, incarnation {}\n", statement.incarnation);
    for member in &statement.members {
        let kind = member.kind.as_str();
        text +=
            &format!("member       {} ({kind}, {}): {}\n", member.name, member.site, member.heard);
    }
    let holder = statement.holder.as_deref().unwrap_or("nobody");
    let durable = statement.durable_lsn.map_or_else(|| "-".to_owned(), |lsn| lsn.to_string());
    text += &format!(
        "last epoch   {}, {}, held by {holder}\n\
         dial         {}{lifted}\n\
         {node:<12} was active: {}; waited for: {}; eligible: {}\n\
         journal      ends at {durable}; the newest commit in it is of {}\n\
         \nMAY BE LOST  {}.\n\
         This is what {node} knows. If another node was made active after it last heard the others, \
         what that node confirmed is lost too.\n\
         \nFrom then on {node} is the only member of a new incarnation and serves unprotected. \
         The others must NEVER be started with their old state where they cannot reach {node}: \
         together they could confirm writes of their own.\n",
        statement.epoch,
        statement.phase,
        statement.mode,
        yes(statement.was_active),
        yes(statement.waited_for),
        yes(statement.eligible),
        newest_commit(statement).as_deref().unwrap_or("a time that is not known"),
        statement.loss_words,
    );
    text
}
