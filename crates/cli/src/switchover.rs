//! `understudy switchover`: the planned change of the active, its dry run, and its progress.
//!
//! Nothing is asked: it loses nothing, and what cannot be done in the pause budget is undone. It is bound
//! to the epoch that was shown, so that an order that comes late moves nobody twice.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use jiff::civil::Time;
use jiff::{Timestamp, Zoned};
use serde_json::json;
use tonic::transport::Channel;
use understudy_node::status::{ClusterStatus, OperationView};
use understudy_proto::v1;
use understudy_proto::v1::admin_client::AdminClient;
use understudy_types::Epoch;

use crate::context::Context;
use crate::operate::{self, CallError, OrderTerms};
use crate::output::{self, Output};
use crate::status;

/// Between two looks at an operation that is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// How long a node may take to hear that a scheduled one is over.
const CANCEL_PATIENCE: Duration = Duration::from_secs(10);
const BUDGET_MIN: Duration = Duration::from_secs(1);
const BUDGET_MAX: Duration = Duration::from_secs(300);

/// Make another node active with the active's help: nothing is lost, and the old active follows.
#[derive(Debug, clap::Args)]
pub(crate) struct SwitchoverArgs {
    /// The node to become active; may be left out where there is only one that it can be.
    #[arg(long, visible_alias = "candidate", value_name = "NODE")]
    to: Option<String>,
    /// Refuse unless this is the active node now.
    #[arg(long, visible_aliases = ["leader", "primary"], value_name = "NODE")]
    from: Option<String>,
    /// Begin it at this time: 2026-12-01T03:00:00Z, the next 23:30 by this machine's clock, or +10m. It is
    /// recorded in the cluster, begins if it is possible then, and not at all if nobody could for a minute.
    #[arg(long, value_name = "TIME", value_parser = parse_when, conflicts_with = "dry_run")]
    scheduled: Option<i64>,
    /// Take back the one that is scheduled.
    #[arg(long, requires = "reason", conflicts_with_all = ["to", "from", "scheduled", "dry_run"])]
    cancel: bool,
    /// How long clients may be shut out before it is undone, 1s to 300s.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_budget)]
    pause_budget: Duration,
    #[command(flatten)]
    terms: OrderTerms,
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
    if args.cancel {
        return cancel(context, args).await;
    }
    let epoch = match (args.terms.epoch, &args.from) {
        (Some(epoch), None) => epoch,
        (epoch, from) => {
            let status = status::fetch(context).await?;
            check_from(&status, from.as_deref())?;
            epoch.unwrap_or(status.epoch)
        }
    };
    let request = v1::SwitchoverRequest {
        to: args.to.clone().unwrap_or_default(),
        expect_epoch: Some(epoch.into()),
        reason: args.terms.words(),
        pause_budget_ms: u64::try_from(args.pause_budget.as_millis()).unwrap_or(u64::MAX),
        scheduled_unix_us: args.scheduled,
    };
    if args.terms.dry_run {
        return dry_run(context, request, args.output).await;
    }
    let order = async |mut client: AdminClient<Channel>| client.switchover(request.clone()).await;
    let taken = operate::call(context, order).await?;
    if !args.wait {
        operate::show(&taken, args.output)?;
        if taken.outcome == "scheduled" {
            let id = taken.id;
            eprintln!(
                "`understudy operation {id}` says how it ends, `understudy switchover --cancel` takes \
                 it back"
            );
        } else if !taken.is_over() {
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

fn check_from(status: &ClusterStatus, from: Option<&str>) -> Result<(), CallError> {
    let Some(from) = from.filter(|from| status.active.as_deref() != Some(*from)) else {
        return Ok(());
    };
    let active = status.active.as_deref().unwrap_or("nobody");
    Err(CallError::Refused { words: format!("{active} is active, not {from}") })
}

async fn cancel(context: &Context, args: &SwitchoverArgs) -> anyhow::Result<ExitCode> {
    let reason = args.terms.words();
    let request = v1::CancelSwitchoverRequest { reason };
    let order =
        async |mut client: AdminClient<Channel>| client.cancel_switchover(request.clone()).await;
    let taken = operate::call(context, order).await?;
    // The node that answered may not have heard yet that it is over.
    let ended = operate::wait_for_end(context, taken, CANCEL_PATIENCE).await?;
    operate::show(&ended, args.output)?;
    Ok(ExitCode::SUCCESS)
}

/// A moment as Unix microseconds: a timestamp with its zone, a time of day here, or a span from now.
fn parse_when(text: &str) -> Result<i64, String> {
    let wrong = || "expected 2026-12-01T03:00:00Z, 23:30, or +10m".to_owned();
    if let Some(span) = text.strip_prefix('+') {
        let span = operate::parse_duration(span)?;
        let at = Timestamp::now().checked_add(span).map_err(|_| wrong())?;
        return Ok(at.as_microsecond());
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at.as_microsecond());
    }
    let time: Time = text.parse().map_err(|_| wrong())?;
    let now = Zoned::now();
    let today = now.with().time(time).build().map_err(|_| wrong())?;
    let next = if today > now { Ok(today) } else { today.tomorrow() };
    Ok(next.map_err(|_| wrong())?.timestamp().as_microsecond())
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
    while !operation.is_over() {
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
    fn a_moment_is_a_timestamp_a_time_of_day_or_a_span() {
        assert_eq!(parse_when("1970-01-01T00:00:01Z"), Ok(1_000_000));
        assert_eq!(parse_when("1970-01-01T01:00:00+01:00"), Ok(0));
        let now = Timestamp::now().as_microsecond();
        let day = 25 * 3_600_000_000;
        for text in ["00:00", "23:59", "12:30:15", "+10m"] {
            let at = parse_when(text).unwrap();
            assert!(at > now && at <= now + day, "{text}");
        }
        for wrong in ["noon", "+10", "25:00", "", "-5m"] {
            assert!(parse_when(wrong).is_err(), "{wrong} was accepted");
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
