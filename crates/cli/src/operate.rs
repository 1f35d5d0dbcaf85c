//! The verbs that order something, and what became of it.
//!
//! An order is sent to one node at a time, and to the next one only when it surely had no effect. A
//! failover is bound to the epoch that the operator was shown.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Status};
use understudy_node::admin::REFUSAL_KEY;
use understudy_node::status::{ClusterStatus, OperationView};
use understudy_proto::v1;
use understudy_proto::v1::admin_client::AdminClient;
use understudy_types::Epoch;

use crate::context::Context;
use crate::output::{self, Output};
use crate::status;

/// How long a node may take to answer; longer than it takes itself to call an outcome unknown.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two looks at an operation that is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// A pause cannot be longer: a week.
const PAUSE_MAX: Duration = Duration::from_secs(7 * 86_400);

/// On what terms something is ordered that can be looked at before.
#[derive(Debug, clap::Args)]
pub(crate) struct OrderTerms {
    /// Refuse in any other epoch than this; without it, in any other than the present one.
    #[arg(long, value_name = "EPOCH")]
    pub(crate) epoch: Option<Epoch>,
    /// Only say what would happen and whether it is possible now: 0 yes, 3 no.
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run")]
    reason: Option<String>,
}

impl OrderTerms {
    /// The reason; empty for a dry run without one.
    pub(crate) fn words(&self) -> String {
        self.reason.clone().unwrap_or_default()
    }
}

/// Make another node active now.
#[derive(Debug, clap::Args)]
pub(crate) struct FailoverArgs {
    /// The node to promote; may be left out where there is only one that it can be.
    #[arg(long, visible_alias = "candidate", value_name = "NODE")]
    to: Option<String>,
    /// Go on although acknowledged commits of up to this span are lost, as 20s, 5m; `any` accepts what
    /// is not known. Refused, with the figures, when more is known to be missing.
    #[arg(long, value_name = "DURATION|any", value_parser = parse_loss, requires = "epoch")]
    accept_loss: Option<AcceptedSpan>,
    /// The same as WAL that is known to be missing, in bytes.
    #[arg(long, value_name = "BYTES", requires = "epoch")]
    accept_loss_bytes: Option<u64>,
    /// Refused in another epoch; by default the one that `status` shows now.
    #[arg(long, value_name = "EPOCH")]
    epoch: Option<Epoch>,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    /// Return only when it has ended: 0 done, 1 failed, 5 still running after --timeout.
    #[arg(long)]
    wait: bool,
    /// How long --wait waits.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,
    /// How the operation is printed.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// A span of commits whose loss is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AcceptedSpan {
    /// Whatever it may be.
    Any,
    /// At most this.
    UpTo(Duration),
}

/// Stop automatic failover until a stated end.
#[derive(Debug, clap::Args)]
pub(crate) struct PauseArgs {
    /// For how long, as 90s, 10m, 2h, 1d; at most 7d. It ends by itself.
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_pause)]
    duration: Duration,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// How the operation is printed.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// End a pause before its time.
#[derive(Debug, clap::Args)]
pub(crate) struct ResumeArgs {
    /// Why, for the record.
    #[arg(long, value_name = "TEXT", default_value = "resumed by hand")]
    reason: String,
    /// How the operation is printed.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Show what became of an order.
#[derive(Debug, clap::Args)]
pub(crate) struct OperationArgs {
    /// The number that the order was answered with.
    id: u64,
    /// How the operation is printed.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What came of a call that did not go well. Each has its own exit code.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// No node could be asked, or none knows a leader. Nothing was changed.
    #[error("reach the cluster: no node could take it{}", list(reasons))]
    Unreachable {
        /// For each node, why not.
        reasons: Vec<String>,
    },
    /// The cluster said no. Nothing was changed.
    #[error("refused: {words}")]
    Refused {
        /// In its words.
        words: String,
    },
    /// It may have had an effect.
    #[error("outcome unknown: {words}; look at `understudy status` before trying again")]
    Unknown {
        /// What is known.
        words: String,
    },
    /// The command has to be given differently.
    #[error("{words}")]
    Usage {
        /// How.
        words: String,
    },
    /// It failed. Nothing was changed.
    #[error("{words}")]
    Failed {
        /// Why.
        words: String,
    },
}

fn list(reasons: &[String]) -> String {
    reasons.iter().map(|reason| format!("\n  {reason}")).collect()
}

/// Orders a failover.
///
/// # Errors
/// When it was not taken, or its end cannot be told.
pub(crate) async fn failover(context: &Context, args: &FailoverArgs) -> anyhow::Result<ExitCode> {
    let status = status::fetch(context).await?;
    let to = args.to.as_deref();
    if !args.yes {
        confirm(&status, to)?;
    }
    let request = v1::FailoverRequest {
        to: to.unwrap_or_default().to_owned(),
        expect_epoch: Some(args.epoch.unwrap_or(status.epoch).into()),
        reason: args.reason.clone(),
        accept_loss: accepted_loss(args),
    };
    let order = async |mut client: AdminClient<Channel>| client.failover(request.clone()).await;
    let taken = call(context, order).await?;
    if !args.wait {
        show(&taken, args.output)?;
        if taken.outcome == "running" {
            eprintln!("under way; `understudy operation {}` says how it ends", taken.id);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let ended = wait_for_end(context, taken, args.timeout).await?;
    show(&ended, args.output)?;
    Ok(match ended.outcome.as_str() {
        "done" => ExitCode::SUCCESS,
        "refused" => ExitCode::from(output::REFUSED),
        _ => ExitCode::from(output::FAILED),
    })
}

/// The loss that is stated, if one is; with neither figure any is accepted.
fn accepted_loss(args: &FailoverArgs) -> Option<v1::AcceptedLoss> {
    if args.accept_loss.is_none() && args.accept_loss_bytes.is_none() {
        return None;
    }
    let age_max_ms = match args.accept_loss {
        Some(AcceptedSpan::UpTo(span)) => Some(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
        Some(AcceptedSpan::Any) | None => None,
    };
    Some(v1::AcceptedLoss { age_max_ms, bytes_max: args.accept_loss_bytes })
}

/// Pauses automatic failover.
///
/// # Errors
/// When it was not taken.
pub(crate) async fn pause(context: &Context, args: &PauseArgs) -> anyhow::Result<ExitCode> {
    let for_seconds = args.duration.as_secs();
    let request = v1::PauseRequest { for_seconds, reason: args.reason.clone() };
    let order = async |mut client: AdminClient<Channel>| client.pause(request.clone()).await;
    show(&call(context, order).await?, args.output)?;
    Ok(ExitCode::SUCCESS)
}

/// Ends a pause.
///
/// # Errors
/// When it was not taken, or there is none.
pub(crate) async fn resume(context: &Context, args: &ResumeArgs) -> anyhow::Result<ExitCode> {
    let request = v1::ResumeRequest { reason: args.reason.clone() };
    let order = async |mut client: AdminClient<Channel>| client.resume(request.clone()).await;
    show(&call(context, order).await?, args.output)?;
    Ok(ExitCode::SUCCESS)
}

/// Shows an operation.
///
/// # Errors
/// When no node knows it.
pub(crate) async fn operation(context: &Context, args: &OperationArgs) -> anyhow::Result<ExitCode> {
    show(&look_up(context, args.id).await?, args.output)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn look_up(context: &Context, id: u64) -> Result<OperationView, CallError> {
    let request = v1::GetOperationRequest { id };
    call(context, async |mut client: AdminClient<Channel>| client.get_operation(request).await)
        .await
        .map_err(|error| match error {
            // Reading has no effect that could be unknown.
            CallError::Unknown { words } => CallError::Unreachable { reasons: vec![words] },
            other => other,
        })
}

pub(crate) async fn wait_for_end(
    context: &Context,
    mut operation: OperationView,
    timeout: Duration,
) -> Result<OperationView, CallError> {
    let begun = Instant::now();
    while !operation.is_over() {
        if begun.elapsed() >= timeout {
            let words = format!("operation {} still runs after {timeout:?}", operation.id);
            return Err(CallError::Unknown { words });
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        // In the middle of a failover nodes may be away, or not have heard of it yet.
        match look_up(context, operation.id).await {
            Ok(found) => operation = found,
            Err(error) => tracing::debug!(%error, "operation cannot be looked up now"),
        }
    }
    Ok(operation)
}

/// Calls the nodes in turn, going on to the next only when nothing can have happened.
pub(crate) async fn call<F>(context: &Context, request: F) -> Result<OperationView, CallError>
where
    F: AsyncFn(AdminClient<Channel>) -> Result<tonic::Response<v1::OperationResponse>, Status>,
{
    Ok(call_any(context, request).await?.operation.unwrap_or_default().into())
}

/// The same for any answer.
pub(crate) async fn call_any<F, T>(context: &Context, request: F) -> Result<T, CallError>
where
    F: AsyncFn(AdminClient<Channel>) -> Result<tonic::Response<T>, Status>,
{
    let mut reasons = Vec::new();
    for node in &context.nodes {
        let channel = match context.connect(node).await {
            Ok(channel) => channel,
            Err(error) => {
                reasons.push(error.to_string());
                continue;
            }
        };
        let answer = tokio::time::timeout(CALL_TIMEOUT, request(AdminClient::new(channel))).await;
        let failed = match answer {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => status,
            Err(_) => {
                let words = format!("{} did not answer within {CALL_TIMEOUT:?}", node.name);
                return Err(CallError::Unknown { words });
            }
        };
        if failed.code() == Code::Unavailable && failed.metadata().contains_key(REFUSAL_KEY) {
            reasons.push(format!("{}: {}", node.name, failed.message()));
            continue;
        }
        return Err(judge(&failed));
    }
    Err(CallError::Unreachable { reasons })
}

/// What an error answer means for what the order did.
fn judge(status: &Status) -> CallError {
    let words = status.message().to_owned();
    match status.code() {
        Code::FailedPrecondition => CallError::Refused { words },
        Code::InvalidArgument => CallError::Usage { words },
        Code::PermissionDenied | Code::Unauthenticated | Code::NotFound | Code::Unimplemented => {
            CallError::Failed { words }
        }
        _ => CallError::Unknown { words },
    }
}

/// Shows what is about to happen and asks.
fn confirm(status: &ClusterStatus, to: Option<&str>) -> anyhow::Result<()> {
    let usage = |words: &str| CallError::Usage { words: words.to_owned() };
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(
            usage("a failover interrupts writes: add --yes where nobody can be asked").into()
        );
    }
    let active = status.active.as_deref().unwrap_or("nobody");
    let to = to.unwrap_or("the other data node");
    eprintln!("{active} is active now (epoch {}); {to} would become active.", status.epoch);
    match status.exposure_bytes {
        Some(0) => eprintln!("Nothing that was acknowledged would be lost at this moment."),
        Some(bytes) => eprintln!("At this moment {bytes} bytes of WAL would be at risk."),
        None => eprintln!("What would be lost is not known at this moment."),
    }
    eprint!("Type yes to go on: ");
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    if line.trim() == "yes" { Ok(()) } else { Err(usage("not confirmed, nothing was done").into()) }
}

pub(crate) fn show(operation: &OperationView, output: Output) -> anyhow::Result<()> {
    let text = match output {
        Output::Json | Output::Yaml => {
            output.data(&json!({ "version": 1, "operation": operation }))
        }
        Output::Text => render(operation),
    };
    output::print(&text)?;
    Ok(())
}

pub(crate) fn render(operation: &OperationView) -> String {
    let detail = operation.detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default();
    let by = if operation.caller.is_empty() {
        String::new()
    } else {
        format!(", by {} ({})", operation.caller, operation.reason)
    };
    let what = operation.what.as_deref().map(|what| format!(" ({what})")).unwrap_or_default();
    let (id, kind, outcome) = (operation.id, &operation.kind, &operation.outcome);
    format!("operation {id} {kind}{what} {outcome}{detail}{by}\n")
}

pub(crate) fn parse_loss(text: &str) -> Result<AcceptedSpan, String> {
    if text == "any" {
        return Ok(AcceptedSpan::Any);
    }
    let span = parse_duration(text).map_err(|error| format!("{error}, or any"))?;
    Ok(AcceptedSpan::UpTo(span))
}

fn parse_pause(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if duration < Duration::from_secs(1) || duration > PAUSE_MAX {
        return Err("a pause lasts between 1s and 7d".to_owned());
    }
    Ok(duration)
}

/// Reads one number with a unit.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a number and a unit, as 90s, 10m, 2h, 1d".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let scale = match unit {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number.checked_mul(scale).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_rules_an_effect_out_is_not_an_unknown_outcome() {
        let judged = |code| judge(&Status::new(code, "x"));
        assert!(matches!(judged(Code::FailedPrecondition), CallError::Refused { .. }));
        assert!(matches!(judged(Code::PermissionDenied), CallError::Failed { .. }));
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Unknown, Code::Internal] {
            assert!(matches!(judged(code), CallError::Unknown { .. }), "{code:?}");
        }
    }

    #[test]
    fn durations_read_with_their_unit_only() {
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_pause("7d"), Ok(PAUSE_MAX));
        for wrong in ["10", "m", "", "1.5h", "10 m", "-1s", "99999999999999999999d"] {
            assert!(parse_duration(wrong).is_err(), "{wrong} was accepted");
        }
        assert!(parse_pause("0s").is_err() && parse_pause("8d").is_err());
    }
}
