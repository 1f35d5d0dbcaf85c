//! `understudy rpo`: shows and turns the RPO dial.
//!
//! A change names the epoch and the configuration that the operator was shown, so that of two
//! operators one is refused. Whether and how it comes in force is the cluster's.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use tonic::transport::Channel;
use understudy_node::status::ClusterStatus;
use understudy_proto::v1;
use understudy_proto::v1::admin_client::AdminClient;
use understudy_types::DurabilityMode;

use crate::context::Context;
use crate::operate::{self, CallError, parse_duration};
use crate::output::{self, Output};
use crate::status;

/// Show or turn the RPO dial: how much a loss of the active may cost.
#[derive(Debug, clap::Args)]
pub(crate) struct RpoArgs {
    #[command(subcommand)]
    verb: RpoVerb,
}

#[derive(Debug, clap::Subcommand)]
enum RpoVerb {
    /// Show what is wanted and what is in force.
    Show(ShowArgs),
    /// Turn it. What is not given stays as it is.
    Set(SetArgs),
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// How it is printed.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct SetArgs {
    /// zero: a commit waits until the passive has it. bounded: it does not wait, but never more than
    /// the ceiling can be lost. best-effort: without that ceiling.
    mode: Option<DurabilityMode>,
    /// The ceiling of bounded; in best-effort the limit for a failover without a person.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    ceiling: Option<Duration>,
    /// What happens to commits when the passive is lost: stall, or degrade (recorded) and go on.
    #[arg(long, value_name = "POLICY", value_parser = ["stall", "degrade"])]
    on_passive_loss: Option<String>,
    /// In zero: promote on a seal, before the lease of a silent active is over. Readers and sessions
    /// that opted out may go on at the old active until then.
    #[arg(long, value_name = "BOOL")]
    promote_without_lease_wait: Option<bool>,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Say what would be done; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Return only when it is in force: 0 in force, 1 failed, 5 still on its way after --timeout.
    #[arg(long)]
    wait: bool,
    /// How long --wait waits.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,
    /// How the operation is printed.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Runs the verb.
///
/// # Errors
/// When no node answers, or the change was not taken.
pub(crate) async fn run(context: &Context, args: &RpoArgs) -> anyhow::Result<ExitCode> {
    match &args.verb {
        RpoVerb::Show(args) => show(&status::fetch(context).await?, args.output),
        RpoVerb::Set(args) => set(context, args).await,
    }
}

fn show(status: &ClusterStatus, output: Output) -> anyhow::Result<ExitCode> {
    let text = match output {
        Output::Json | Output::Yaml => output.data(&json!({
            "version": 1,
            "wanted": status.dial,
            "in_force": status.durability,
            "lifted": status.durability_lifted,
            "exposure_seconds": status.exposure_seconds,
            "exposure_bytes": status.exposure_bytes,
        })),
        Output::Text => render(status),
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn render(status: &ClusterStatus) -> String {
    let mut text = format!("in force   {}", status.durability);
    if status.durability_lifted {
        text += ", LIFTED: nobody is waited for";
    }
    text.push('\n');
    let Some(dial) = &status.dial else { return text };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "wanted     {}", dial.mode);
    let _ = writeln!(text, "ceiling    {} s", dial.ceiling_seconds);
    let _ = writeln!(text, "on passive loss             {}", dial.on_passive_loss);
    let _ = writeln!(text, "promote without lease wait  {}", dial.promote_without_lease_wait);
    let _ = writeln!(text, "configuration               {}", dial.config_version);
    text
}

async fn set(context: &Context, args: &SetArgs) -> anyhow::Result<ExitCode> {
    let nothing = args.mode.is_none()
        && args.ceiling.is_none()
        && args.on_passive_loss.is_none()
        && args.promote_without_lease_wait.is_none();
    if nothing {
        let words = "say what to set: a mode, --ceiling, --on-passive-loss or \
                     --promote-without-lease-wait";
        return Err(CallError::Usage { words: words.to_owned() }.into());
    }
    let status = status::fetch(context).await?;
    let request = v1::SetRpoRequest {
        mode: args.mode.map(|mode| mode.to_string()).unwrap_or_default(),
        ceiling_ms: args.ceiling.map(|c| u64::try_from(c.as_millis()).unwrap_or(u64::MAX)),
        on_passive_loss: args.on_passive_loss.clone().unwrap_or_default(),
        promote_without_lease_wait: args.promote_without_lease_wait,
        expect_epoch: Some(status.epoch.into()),
        expect_config_version: status.dial.as_ref().map(|dial| dial.config_version),
        reason: args.reason.clone(),
        dry_run: args.dry_run,
    };
    let order = async |mut client: AdminClient<Channel>| client.set_rpo(request.clone()).await;
    let taken = operate::call(context, order).await?;
    if !args.wait || args.dry_run {
        operate::show(&taken, args.output)?;
        if taken.outcome == "running" {
            eprintln!("on its way; `understudy operation {}` says when it is in force", taken.id);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let ended = operate::wait_for_end(context, taken, args.timeout).await?;
    operate::show(&ended, args.output)?;
    let done = ended.outcome == "done";
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::from(output::FAILED) })
}
