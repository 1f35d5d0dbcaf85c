//! `understudy restart`, `reload`, `reclone`: what one node does with its PostgreSQL, as operations.
//!
//! Several nodes are taken one after the other, in the order that PostgreSQL demands, each waited for until
//! it is healthy again; the program that is told to does this, so nothing is ordered any more once it ends.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tonic::transport::Channel;
use understudy_node::status::{ClusterStatus, NodeStatus, OperationView, SiteRole};
use understudy_proto::v1;
use understudy_proto::v1::admin_client::AdminClient;
use understudy_types::{Epoch, NodeKind};

use crate::context::Context;
use crate::operate::{self, CallError, OrderTerms};
use crate::output::{self, Output};
use crate::status;

/// Between two looks at what is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// How long after its operation a node may take to be healthy again.
const HEALTHY_PATIENCE: Duration = Duration::from_secs(120);

/// What the three verbs have in common.
#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    terms: OrderTerms,
    /// Return only when it has ended: 0 done, 1 failed, 5 still running after --timeout. Of several nodes
    /// each is waited for in any case.
    #[arg(long)]
    wait: bool,
    /// How long is waited for one node.
    #[arg(long, value_name = "DURATION", default_value = "15m",
          value_parser = operate::parse_duration)]
    timeout: Duration,
    /// How the operations or the plans are printed.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Which nodes, by what they are now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum RoleChoice {
    /// The active one.
    #[value(aliases = ["leader", "primary", "master"])]
    Active,
    /// The passives.
    #[value(aliases = ["replica", "standby"])]
    Passive,
    /// All of them.
    Any,
}

/// Restart PostgreSQL, at the active too without losing its lease: commits wait meanwhile.
///
/// Without NODE all data nodes are restarted one after the other: the passives first, or the active first
/// where one of max_connections, max_worker_processes, max_wal_senders, max_prepared_transactions and
/// max_locks_per_transaction becomes smaller, because a standby must not have less of them than its primary.
#[derive(Debug, clap::Args)]
pub(crate) struct RestartArgs {
    /// Only these.
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
    /// Only those that are this now.
    #[arg(long, short, value_enum, default_value_t = RoleChoice::Any)]
    role: RoleChoice,
    /// Only those with a setting that waits for a restart.
    #[arg(long)]
    pending: bool,
    #[command(flatten)]
    common: Common,
}

/// Have the nodes read [postgres.parameters] of their files again, and PostgreSQL with them.
///
/// What is wrong in a file changes nothing, and the outcome names it.
#[derive(Debug, clap::Args)]
pub(crate) struct ReloadArgs {
    /// Only these; without any, every data node.
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
    /// Only those that are this now.
    #[arg(long, short, value_enum, default_value_t = RoleChoice::Any)]
    role: RoleChoice,
    #[command(flatten)]
    common: Common,
}

/// Make a passive's data afresh, by a base backup from the active; patronictl's reinit.
#[derive(Debug, clap::Args)]
pub(crate) struct RecloneArgs {
    /// The passive.
    #[arg(value_name = "NODE")]
    node: String,
    /// Do not ask, and accept that commits wait meanwhile where the dial says so.
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    common: Common,
}

/// Restarts, one node after the other.
///
/// # Errors
/// When an order was not taken, or its end cannot be told.
pub(crate) async fn restart(context: &Context, args: &RestartArgs) -> anyhow::Result<ExitCode> {
    let status = status::fetch(context).await?;
    let mut chosen = choose(&status, &args.nodes, args.role)?;
    chosen.retain(|node| !args.pending || !node.pending_restart.is_empty());
    let names = in_order(chosen).map_err(|words| CallError::Refused { words })?;
    if names.is_empty() {
        eprintln!("no node is to be restarted");
    }
    carry_out(context, &status, "restart", &names, &args.common, true).await
}

/// Has the settings read anew.
///
/// # Errors
/// As `restart`.
pub(crate) async fn reload(context: &Context, args: &ReloadArgs) -> anyhow::Result<ExitCode> {
    let status = status::fetch(context).await?;
    let chosen = choose(&status, &args.nodes, args.role)?;
    let names: Vec<String> = chosen.iter().map(|node| node.name.clone()).collect();
    carry_out(context, &status, "reload", &names, &args.common, false).await
}

/// Has a passive's data made afresh.
///
/// # Errors
/// As `restart`, and when it is not confirmed.
pub(crate) async fn reclone(context: &Context, args: &RecloneArgs) -> anyhow::Result<ExitCode> {
    let status = status::fetch(context).await?;
    let names = [args.node.clone()];
    if !args.common.terms.dry_run && !args.yes {
        let mut request = request(&status, "reclone", &args.node, &args.common);
        request.accepts_waiting = true;
        confirm(&plan(context, &request).await?)?;
    }
    carry_out(context, &status, "reclone", &names, &args.common, true).await
}

fn choose<'a>(
    status: &'a ClusterStatus,
    names: &[String],
    role: RoleChoice,
) -> Result<Vec<&'a NodeStatus>, CallError> {
    let data: Vec<&NodeStatus> =
        status.nodes.iter().filter(|node| node.kind == NodeKind::Data).collect();
    if let Some(unknown) = names.iter().find(|name| data.iter().all(|node| node.name != **name)) {
        let known: Vec<&str> = data.iter().map(|node| node.name.as_str()).collect();
        let known = known.join(", ");
        let words = format!("NODE = {unknown}: not a data node of this cluster, which are {known}");
        return Err(CallError::Usage { words });
    }
    let is = |node: &NodeStatus| match role {
        RoleChoice::Any => true,
        RoleChoice::Active => node.role == SiteRole::Active,
        RoleChoice::Passive => node.role == SiteRole::Passive,
    };
    let named = |node: &NodeStatus| names.is_empty() || names.contains(&node.name);
    Ok(data.into_iter().filter(|node| named(node) && is(node)).collect())
}

/// The passives first, unless what a standby must not have less of becomes smaller.
fn in_order(mut chosen: Vec<&NodeStatus>) -> Result<Vec<String>, String> {
    let (mut rising, mut falling) = (Vec::new(), Vec::new());
    for node in &chosen {
        let (up, down) = node.rising_and_falling();
        rising.extend(up);
        falling.extend(down);
    }
    let several = chosen.len() > 1;
    if let (true, Some(up), Some(down)) = (several, rising.first(), falling.first()) {
        return Err(format!(
            "{up} becomes larger, which the passives need first, and {down} smaller, which the active \
             needs first: change them one after the other, with a reload and a restart each"
        ));
    }
    let active_last = falling.is_empty();
    chosen.sort_by_key(|node| (node.role == SiteRole::Active) == active_last);
    Ok(chosen.into_iter().map(|node| node.name.clone()).collect())
}

fn request(
    status: &ClusterStatus,
    verb: &str,
    node: &str,
    common: &Common,
) -> v1::NodeOrderRequest {
    v1::NodeOrderRequest {
        node: node.to_owned(),
        verb: verb.to_owned(),
        expect_epoch: Some(common.terms.epoch.unwrap_or(status.epoch).into()),
        reason: common.terms.words(),
        // Confirmed, or said with --yes: what it costs was shown.
        accepts_waiting: verb == "reclone" && !common.terms.dry_run,
    }
}

/// `stops`: a node that is not healthy again ends the sequence.
async fn carry_out(
    context: &Context,
    status: &ClusterStatus,
    verb: &str,
    names: &[String],
    common: &Common,
    stops: bool,
) -> anyhow::Result<ExitCode> {
    if common.terms.dry_run {
        return dry_run(context, status, verb, names, common).await;
    }
    let waits = common.wait || names.len() > 1;
    let mut operations = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let request = request(status, verb, name, common);
        let order =
            async |mut client: AdminClient<Channel>| client.order_node(request.clone()).await;
        let taken = operate::call(context, order).await;
        let taken = taken.inspect_err(|_| say_what_is_left(&names[index..], verb))?;
        if !waits {
            eprintln!("under way; `understudy operation {}` says how it ends", taken.id);
            operations.push(taken);
            continue;
        }
        eprintln!("{verb} {name}: operation {}", taken.id);
        let ended = operate::wait_for_end(context, taken, common.timeout).await?;
        let failed = ended.outcome != "done";
        operations.push(ended);
        if failed && stops {
            say_what_is_left(&names[index + 1..], verb);
            break;
        }
        if stops && !failed {
            wait_until_healthy(context, status, name).await?;
        }
    }
    show(&operations, common.output)?;
    let failed = waits && operations.iter().any(|operation| operation.outcome != "done");
    Ok(if failed { ExitCode::from(output::FAILED) } else { ExitCode::SUCCESS })
}

fn say_what_is_left(names: &[String], verb: &str) {
    if !names.is_empty() {
        eprintln!("no {verb} of {}", names.join(", "));
    }
}

/// Its PostgreSQL is another one than before, what is in force there is known, and it serves, or follows and
/// is waited for, as before. What was heard of it last may still be of the time before its restart.
async fn wait_until_healthy(
    context: &Context,
    before: &ClusterStatus,
    name: &str,
) -> Result<(), CallError> {
    let owned = name.to_owned();
    let was_waited_for = before.waited_for.contains(&owned);
    let started = before.node(name).and_then(|node| node.postmaster_start_unix_us);
    let is_of_now = |node: &NodeStatus| {
        let restarted = node.postmaster_start_unix_us.is_some_and(|at| Some(at) != started);
        let (rising, falling) = node.rising_and_falling();
        let known = node.in_force("max_connections").is_some();
        restarted && known && rising.is_empty() && falling.is_empty()
    };
    let begun = Instant::now();
    loop {
        if let Ok(status) = status::fetch(context).await
            && let Some(node) = status.node(name)
        {
            let healthy = match node.role {
                SiteRole::Active => node.writable,
                SiteRole::Passive | SiteRole::Witness | SiteRole::Journal => {
                    let waited_for = !was_waited_for || status.waited_for.contains(&owned);
                    node.postgres_running && node.attached && waited_for
                }
            };
            if healthy && is_of_now(node) {
                return Ok(());
            }
        }
        if begun.elapsed() >= HEALTHY_PATIENCE {
            let words = format!("{name} was not healthy again within {HEALTHY_PATIENCE:?}");
            return Err(CallError::Unknown { words });
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn plan(
    context: &Context,
    request: &v1::NodeOrderRequest,
) -> Result<v1::NodeOrderPlan, CallError> {
    let ask =
        async |mut client: AdminClient<Channel>| client.plan_node_order(request.clone()).await;
    operate::call_any(context, ask).await.map_err(|error| match error {
        // Asking has no effect that could be unknown.
        CallError::Unknown { words } => CallError::Unreachable { reasons: vec![words] },
        other => other,
    })
}

async fn dry_run(
    context: &Context,
    status: &ClusterStatus,
    verb: &str,
    names: &[String],
    common: &Common,
) -> anyhow::Result<ExitCode> {
    let mut plans = Vec::new();
    for name in names {
        let mut plan = plan(context, &request(status, verb, name, common)).await?;
        if !plans.is_empty() && verb == "restart" {
            // It is judged when its turn comes: by then the ones before it have changed.
            plan.reasons.clear();
            plan.possible = true;
        }
        plans.push(plan);
    }
    let possible = plans.iter().all(|plan| plan.possible);
    let text = match common.output {
        Output::Json | Output::Yaml => {
            let plans: Vec<Value> = plans.iter().map(json_of).collect();
            common.output.data(&json!({ "version": 1, "plans": plans }))
        }
        Output::Text => plans.iter().map(render).collect(),
    };
    output::print(&text)?;
    Ok(if possible { ExitCode::SUCCESS } else { ExitCode::from(output::REFUSED) })
}

fn json_of(plan: &v1::NodeOrderPlan) -> Value {
    let epoch: Epoch = plan.epoch.unwrap_or_default().into();
    json!({
        "possible": plan.possible,
        "reasons": plan.reasons,
        "node": plan.node,
        "verb": plan.verb,
        "epoch": epoch,
        "steps": plan.steps,
        "costs": plan.costs,
    })
}

fn render(plan: &v1::NodeOrderPlan) -> String {
    let verdict = if plan.possible { "possible now" } else { "NOT possible now" };
    let mut text = format!("{} of {}: {verdict}\n", plan.verb, plan.node);
    for reason in &plan.reasons {
        text += &format!("  because {reason}\n");
    }
    for (number, step) in (1..).zip(&plan.steps) {
        text += &format!("  {number}. {step}\n");
    }
    for cost in &plan.costs {
        text += &format!("  meanwhile: {cost}\n");
    }
    text
}

fn confirm(plan: &v1::NodeOrderPlan) -> Result<(), CallError> {
    let usage = |words: &str| CallError::Usage { words: words.to_owned() };
    if !plan.possible {
        return Err(CallError::Refused { words: plan.reasons.join("; ") });
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        let words = format!(
            "a reclone replaces the data of {}: add --yes where nobody can be asked",
            plan.node
        );
        return Err(usage(&words));
    }
    eprint!("{}Type yes to go on: ", render(plan));
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    if read.is_ok() && line.trim() == "yes" {
        return Ok(());
    }
    Err(usage("not confirmed, nothing was done"))
}

fn show(operations: &[OperationView], output: Output) -> anyhow::Result<()> {
    let text = match output {
        Output::Json | Output::Yaml => {
            output.data(&json!({ "version": 1, "operations": operations }))
        }
        Output::Text => operations.iter().map(operate::render).collect(),
    };
    output::print(&text)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use understudy_node::status::ParameterView;

    use super::*;
    use crate::status::tests::sample;

    fn with(status: &mut ClusterStatus, node: &str, running: &str, after: &str) {
        let node = status.nodes.iter_mut().find(|found| found.name == node).unwrap();
        node.parameters = vec![ParameterView {
            name: "max_connections".to_owned(),
            running: running.to_owned(),
            after_restart: (running != after).then(|| after.to_owned()),
        }];
    }

    fn order(status: &ClusterStatus) -> Result<Vec<String>, String> {
        in_order(choose(status, &[], RoleChoice::Any).unwrap())
    }

    #[test]
    fn what_grows_grows_at_the_passives_first_and_what_shrinks_at_the_active() {
        let mut status = sample();
        assert_eq!(order(&status).unwrap(), ["south", "north"]);
        with(&mut status, "north", "60", "80");
        with(&mut status, "south", "60", "80");
        assert_eq!(order(&status).unwrap(), ["south", "north"]);
        with(&mut status, "north", "80", "60");
        with(&mut status, "south", "80", "60");
        assert_eq!(order(&status).unwrap(), ["north", "south"]);
        with(&mut status, "south", "60", "80");
        let words = order(&status).unwrap_err();
        assert!(words.contains("max_connections"), "{words}");
    }

    #[test]
    fn nodes_are_chosen_by_name_and_by_what_they_are() {
        let status = sample();
        let named = |names: &[&str], role| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            choose(&status, &names, role)
                .map(|nodes| nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>())
        };
        assert_eq!(named(&[], RoleChoice::Passive).unwrap(), ["south"]);
        assert_eq!(named(&["north", "south"], RoleChoice::Active).unwrap(), ["north"]);
        assert!(named(&["witness"], RoleChoice::Any).is_err());
    }
}
