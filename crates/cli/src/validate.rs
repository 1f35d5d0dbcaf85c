//! `understudy validate`: would a failover work now, what would it cost, and what stands in its way.
//!
//! The node that sees the cluster best asks all the others and judges; this only shows what it says.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use understudy_node::validation::{Finding, Severity, ValidationReport, ValidationVerdict};
use understudy_proto::v1::ValidateRequest;
use understudy_proto::v1::validation_client::ValidationClient;

use crate::context::{Context, ContextNode};
use crate::operate::CallError;
use crate::output::{self, Output};
use crate::status::{self, moment, paint, size, span};

/// Nodes that do not answer are waited for by whoever judges, for up to 15 s.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Would a failover work now?
#[derive(Debug, clap::Args)]
pub(crate) struct ValidateArgs {
    /// The node that asks the others and judges; by default one that hears a majority.
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Exit with 1 for a risk too.
    #[arg(long)]
    strict: bool,
    /// How it is printed.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Runs the verb.
///
/// # Errors
/// When no node answers, or the one that was named is unknown or does not.
pub(crate) async fn run(context: &Context, args: &ValidateArgs) -> anyhow::Result<ExitCode> {
    let judge = match &args.node {
        Some(name) => name.clone(),
        None => status::fetch(context).await?.answered_by,
    };
    let node = context.nodes.iter().find(|node| node.name.as_str() == judge);
    let report = ask(context, node.with_context(|| unknown(context, &judge))?).await?;
    let text = match args.output {
        Output::Json | Output::Yaml => {
            args.output.data(&json!({ "version": 1, "validation": report }))
        }
        Output::Text => render(&report, output::colours()),
    };
    output::print(&text)?;
    Ok(match report.verdict {
        ValidationVerdict::NotReady => ExitCode::from(output::FAILED),
        ValidationVerdict::AtRisk if args.strict => ExitCode::from(output::FAILED),
        ValidationVerdict::AtRisk | ValidationVerdict::Ready => ExitCode::SUCCESS,
    })
}

fn unknown(context: &Context, name: &str) -> String {
    let known: Vec<&str> = context.nodes.iter().map(|node| node.name.as_str()).collect();
    format!("--node {name}: the context knows {}", known.join(", "))
}

async fn ask(context: &Context, node: &ContextNode) -> Result<ValidationReport, CallError> {
    let unreachable = |reason: String| CallError::Unreachable { reasons: vec![reason] };
    let connected = context.connect(node).await;
    let mut client =
        ValidationClient::new(connected.map_err(|error| unreachable(error.to_string()))?);
    let answer = tokio::time::timeout(CALL_TIMEOUT, client.validate(ValidateRequest {})).await;
    let answer =
        answer.map_err(|_| unreachable(format!("{}: no answer in {CALL_TIMEOUT:?}", node.name)))?;
    let failed = |words: String| CallError::Failed { words: format!("{}: {words}", node.name) };
    let answer = answer.map_err(|status| failed(status.message().to_owned()))?;
    let report = answer.into_inner().report.unwrap_or_default();
    ValidationReport::try_from(report).map_err(|error| failed(error.to_string()))
}

fn render(report: &ValidationReport, colours: bool) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut text, report, colours);
    text
}

fn write(text: &mut String, report: &ValidationReport, colours: bool) -> std::fmt::Result {
    let (words, colour) = match report.verdict {
        ValidationVerdict::Ready => ("a failover would work now", 32),
        ValidationVerdict::AtRisk => ("a failover would work now, with what is listed as risk", 33),
        ValidationVerdict::NotReady => ("a failover would NOT work now", 31),
    };
    writeln!(text, "{}", paint(words, colour, colours))?;
    match report.expected_outage_seconds {
        Some(seconds) => writeln!(text, "expected outage  at most {}", span(seconds))?,
        None => writeln!(text, "expected outage  unknown")?,
    }
    match (report.expected_loss_seconds, report.expected_loss_bytes) {
        (Some(0.0), Some(0)) => writeln!(text, "expected loss    nothing that was acknowledged")?,
        (Some(seconds), Some(bytes)) => {
            writeln!(
                text,
                "expected loss    {} of commits, {} of WAL",
                span(seconds),
                size(bytes)
            )?;
        }
        _ => writeln!(text, "expected loss    unknown")?,
    }
    for finding in &report.findings {
        text.push('\n');
        write_finding(text, finding, colours)?;
    }
    writeln!(text, "\njudged by {} at {}", report.judged_by, moment(report.at_unix_us))
}

fn write_finding(text: &mut String, finding: &Finding, colours: bool) -> std::fmt::Result {
    let colour = match finding.severity {
        Severity::Block => 31,
        Severity::Risk => 33,
        Severity::Note => 0,
    };
    let about = finding.node.as_deref().unwrap_or("cluster");
    let head = format!("{:<5}  {about}: {}", finding.severity.as_str(), finding.code);
    writeln!(text, "{}", paint(&head, colour, colours))?;
    writeln!(text, "       {}", finding.words)?;
    writeln!(text, "       remedy: {}", finding.remedy)
}

/// One line of `status`; nothing when nobody has looked yet.
pub(crate) fn line(report: &ValidationReport) -> String {
    let counts = Severity::ALL.map(|severity| (report.count(severity), severity.as_str()));
    let found = counts.iter().filter(|(count, _)| *count > 0);
    let found: Vec<String> = found.map(|(count, word)| format!("{count} {word}")).collect();
    let found = if found.is_empty() { "no findings".to_owned() } else { found.join(", ") };
    let (verdict, at) = (report.verdict.as_str(), moment(report.at_unix_us));
    format!("validation: {verdict}, {found}, by {} at {at}", report.judged_by)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> ValidationReport {
        serde_json::from_str(
            r#"{"at_unix_us": 1700000000000000, "judged_by": "witness",
                "verdict": "at-risk", "expected_outage_seconds": 4.0, "expected_loss_seconds": 0.0,
                "expected_loss_bytes": 0, "findings": [
                  {"severity": "risk", "code": "settings-differ", "node": "south", "words": "w", "remedy": "r"},
                  {"severity": "note", "code": "no-health-checks", "words": "v", "remedy": "q"}]}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_report_says_what_it_would_cost_and_what_to_do() {
        let text = render(&report(), false);
        for line in [
            "a failover would work now, with what is listed as risk",
            "expected outage  at most 4.0 s",
            "expected loss    nothing that was acknowledged",
            "risk   south: settings-differ",
            "       remedy: r",
            "note   cluster: no-health-checks",
            "judged by witness at 2023-11-14T22:13:20Z",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        let summary = line(&report());
        assert_eq!(
            summary,
            "validation: at-risk, 1 risk, 1 note, by witness at 2023-11-14T22:13:20Z"
        );
    }

    #[test]
    fn what_is_not_known_is_called_unknown() {
        let unknown = ValidationReport {
            expected_outage_seconds: None,
            expected_loss_seconds: None,
            verdict: ValidationVerdict::NotReady,
            ..report()
        };
        let text = render(&unknown, true);
        assert!(text.contains("outage  unknown") && text.contains("loss    unknown"), "{text}");
        assert!(text.contains("\x1b[31ma failover would NOT work"), "{text}");
    }
}
