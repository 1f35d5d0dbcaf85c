//! `understudy switchover`: the planned change of the active, its dry run, and its progress.
//!
//! Nothing is asked: it loses nothing, and what cannot be done in the pause budget is undone. It is bound
//! to the epoch that was shown, so that an order that comes late moves nobody twice.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;
use tonic::transport::Channel;
use understudy_node::status::{ClusterStatus, OperationView};
use understudy_proto::v1;
use understudy_proto::v1::admin_client::AdminClient;
use understudy_types::Epoch;

use crate::context::Context;
use crate::operate::{self, CallError};
use crate::output::{self, Output};
use crate::status;

/// Between two looks at an operation that is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
const BUDGET_MIN: Duration = Duration::from_secs(1);
const BUDGET_MAX: Duration = Duration::from_secs(300);

/// Make another node active with the active's help: nothing is lost, and the old active follows.
#[derive(Debug, clap::Args)]
pub(crate) struct SwitchoverArgs {
    /// The node to become active; may be left out where there is only one that it can be.
    #[arg(long, visible_alias = "candidate", value_name = "NODE")]
    to: Option<String>,
    /// How long clients may be shut out before it is undone, 1s to 300s.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_budget)]
    pause_budget: Duration,
    /// Refuse in any other epoch than this; without it, in any other than the present one.
    #[arg(long, value_name = "EPOCH")]
    epoch: Option<Epoch>,
    /// Only say what would happen and whether it is possible now: 0 yes, 3 no.
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run")]
    reason: Option<String>,
    /// Return only when it has ended: 0 done, 1 failed, 5 still running after --timeout.
    #[arg(long)]
    wait: bool,
    /// How long --wait waits.
    #[arg(long, value_name = "DURATION", default_value = "180s",
          value_parser = operate::parse_duration)]
    timeout: Duration,
    /// How the operation or the plan is printed.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

fn parse_budget(text: &str) -> Result<Duration, String> {
    let budget = operate::parse_duration(text)?;
    if (BUDGET_MIN..=BUDGET_MAX).contains(&budget) {
        return Ok(budget);
    }
    Err(format!("a pause budget lies between {BUDGET_MIN:?} and {BUDGET_MAX:?}"))
}

/// Orders a switchover, or shows what it would do.
///
/// # Errors
/// When it was not taken, or its end cannot be told.
pub(crate) async fn run(context: &Context, args: &SwitchoverArgs) -> anyhow::Result<ExitCode> {
    let epoch = match args.epoch {
        Some(epoch) => epoch,
        None => status::fetch(context).await?.epoch,
    };
    let request = v1::SwitchoverRequest {
        to: args.to.clone().unwrap_or_default(),
        expect_epoch: Some(epoch.into()),
        reason: args.reason.clone().unwrap_or_default(),
        pause_budget_ms: u64::try_from(args.pause_budget.as_millis()).unwrap_or(u64::MAX),
    };
    if args.dry_run {
        return dry_run(context, request, args.output).await;
    }
    let order = async |mut client: AdminClient<Channel>| client.switchover(request.clone()).await;
    let taken = operate::call(context, order).await?;
    if !args.wait {
        operate::show(&taken, args.output)?;
        if taken.outcome == "running" {
            eprintln!("under way; `understudy operation {}` says how it ends", taken.id);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let ended = watch_to_the_end(context, taken, args.timeout).await?;
    operate::show(&ended, args.output)?;
    Ok(match ended.outcome.as_str() {
        "done" => ExitCode::SUCCESS,
        "refused" => ExitCode::from(output::REFUSED),
        _ => ExitCode::from(output::FAILED),
    })
}

async fn dry_run(
    context: &Context,
    request: v1::SwitchoverRequest,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let ask =
        async |mut client: AdminClient<Channel>| client.plan_switchover(request.clone()).await;
    let plan = operate::call_any(context, ask).await.map_err(|error| match error {
        // Asking has no effect that could be unknown.
        CallError::Unknown { words } => CallError::Unreachable { reasons: vec![words] },
        other => other,
    })?;
    let text = match output {
        Output::Json | Output::Yaml => {
            output.data(&json!({ "version": 1, "plan": json_of(&plan) }))
        }
        Output::Text => render(&plan),
    };
    output::print(&text)?;
    Ok(if plan.possible { ExitCode::SUCCESS } else { ExitCode::from(output::REFUSED) })
}

fn json_of(plan: &v1::SwitchoverPlan) -> serde_json::Value {
    let epoch: Epoch = plan.epoch.unwrap_or_default().into();
    json!({
        "possible": plan.possible,
        "reasons": plan.reasons,
        "active": plan.active,
        "to": plan.to,
        "epoch": epoch,
        "pause_budget_seconds": Duration::from_millis(plan.pause_budget_ms).as_secs_f64(),
        "durable_lag_bytes": plan.durable_lag_bytes,
        "replay_lag_bytes": plan.replay_lag_bytes,
        "steps": plan.steps,
    })
}

fn render(plan: &v1::SwitchoverPlan) -> String {
    let epoch: Epoch = plan.epoch.unwrap_or_default().into();
    let verdict = if plan.possible { "possible now" } else { "NOT possible now" };
    let mut text = format!("switchover from {} to {}: {verdict}\n", plan.active, plan.to);
    for reason in &plan.reasons {
        text += &format!("  because {reason}\n");
    }
    let lag = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), |b| format!("{b} bytes"));
    text += &format!(
        "epoch {epoch}; not yet durable at {}: {}; not yet replayed: {}\n",
        plan.to,
        lag(plan.durable_lag_bytes),
        lag(plan.replay_lag_bytes)
    );
    for (number, step) in (1..).zip(&plan.steps) {
        text += &format!("  {number}. {step}\n");
    }
    text
}

/// Says on stderr, whenever it changes, how far it is.
async fn watch_to_the_end(
    context: &Context,
    mut operation: OperationView,
    timeout: Duration,
) -> Result<OperationView, CallError> {
    let begun = Instant::now();
    let mut said = String::new();
    while operation.outcome == "running" {
        if begun.elapsed() >= timeout {
            let words = format!("operation {} still runs after {timeout:?}", operation.id);
            return Err(CallError::Unknown { words });
        }
        if let Ok(status) = status::fetch(context).await {
            let now = progress(&status);
            if now != said {
                eprintln!("{:5.1}s  {now}", begun.elapsed().as_secs_f64());
                said = now;
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        // In the middle of it nodes may be away, or not have heard of it yet.
        match operate::look_up(context, operation.id).await {
            Ok(found) => operation = found,
            Err(error) => tracing::debug!(%error, "operation cannot be looked up now"),
        }
    }
    Ok(operation)
}

fn progress(status: &ClusterStatus) -> String {
    let data = status.nodes.iter().filter(|node| node.kind == understudy_types::NodeKind::Data);
    let nodes: Vec<String> = data.map(|node| format!("{} {}", node.name, node.state)).collect();
    format!("{}: {}", status.phase, nodes.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_budget_has_a_unit_and_bounds() {
        assert_eq!(parse_budget("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_budget("5m"), Ok(BUDGET_MAX));
        for wrong in ["10", "0s", "6m", ""] {
            assert!(parse_budget(wrong).is_err(), "{wrong} was accepted");
        }
    }

    #[test]
    fn a_plan_says_what_stands_against_it() {
        let plan = v1::SwitchoverPlan {
            reasons: vec!["south is not heard".to_owned()],
            active: "north".to_owned(),
            to: "south".to_owned(),
            steps: vec!["north stops".to_owned()],
            ..Default::default()
        };
        let text = render(&plan);
        for words in ["NOT possible", "because south is not heard", "unknown", "1. north stops"] {
            assert!(text.contains(words), "{words} is not in {text}");
        }
        assert_eq!(json_of(&plan)["possible"], false);
    }
}
