//! `understudy log level`: what the daemons log, shown and changed while they run.
//!
//! It is each daemon's own, so every node is asked for itself; one that does not answer is shown with
//! the reason, and the exit code says so.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use understudy_node::telemetry::check_filter;
use understudy_proto::v1;
use understudy_proto::v1::log_client::LogClient;

use crate::context::{Context, ContextNode};
use crate::nodes::{Reason, chosen, somebody, within};
use crate::operate::parse_duration;
use crate::output::{self, FAILED, Output};
use crate::status::moment;

/// The daemons' logs.
#[derive(Debug, clap::Args)]
pub(crate) struct LogArgs {
    #[command(subcommand)]
    verb: LogVerb,
}

#[derive(Debug, clap::Subcommand)]
enum LogVerb {
    /// Show what is logged, or change it until a stated end or until the daemon ends.
    ///
    /// Without a filter it shows the present one. Changing it needs the role administrator. A misspelt
    /// filter is refused and changes nothing. Exits 1 when a node could not be asked.
    Level(LevelArgs),
}

/// Show or change what is logged.
#[derive(Debug, clap::Args)]
struct LevelArgs {
    /// error, warn, info, debug, trace or off, or directives as info,understudy_shipping=debug.
    #[arg(value_parser = parse_filter)]
    filter: Option<String>,
    /// After so long it is the configured one again, as 90s, 10m, 2h; at most 7d.
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration, requires = "filter")]
    lasting: Option<Duration>,
    /// Back to the configured one.
    #[arg(long, conflicts_with = "filter")]
    reset: bool,
    /// At this node only; may be given several times.
    #[arg(long, value_name = "NODE")]
    node: Vec<String>,
    /// How it is printed.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

fn parse_filter(text: &str) -> Result<String, String> {
    check_filter(text).map(|()| text.to_owned())
}

/// Runs the verb.
///
/// # Errors
/// When no node answers, or all of them refuse.
pub(crate) async fn run(context: &Context, args: &LogArgs) -> anyhow::Result<ExitCode> {
    let LogVerb::Level(args) = &args.verb;
    let nodes = chosen(context, &args.node)?;
    let asked = nodes.iter().map(|node| async {
        let answer = ask(context, node, args).await;
        (node.name.to_string(), answer)
    });
    let answers = futures::future::join_all(asked).await;
    somebody(&answers)?;
    let text = match args.output {
        Output::Json | Output::Yaml => {
            let nodes: Vec<Value> = answers.iter().map(as_json).collect();
            args.output.data(&json!({ "version": 1, "nodes": nodes }))
        }
        Output::Text => answers.iter().map(line).collect(),
    };
    output::print(&text)?;
    let all = answers.iter().all(|(_, answer)| answer.is_ok());
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

async fn ask(
    context: &Context,
    node: &ContextNode,
    args: &LevelArgs,
) -> Result<v1::LogLevelResponse, Reason> {
    let channel = context.connect(node).await;
    let channel = channel.map_err(|error| Reason::Unreachable(error.to_string()))?;
    let mut client = LogClient::new(channel);
    let answer = if args.filter.is_none() && !args.reset {
        within(client.get_level(v1::GetLogLevelRequest {})).await?
    } else {
        let request = v1::SetLogLevelRequest {
            filter: args.filter.clone().unwrap_or_default(),
            for_seconds: args.lasting.map_or(0, |lasting| lasting.as_secs()),
            reset: args.reset,
        };
        within(client.set_level(request)).await?
    };
    Ok(answer.into_inner())
}

fn line((node, answer): &(String, Result<v1::LogLevelResponse, Reason>)) -> String {
    match answer {
        Err(reason) => format!("{node}: {}\n", reason.words()),
        Ok(level) => {
            let v1::LogLevelResponse { filter, configured, until_unix_us, .. } = level;
            let until = until_unix_us.map(|until| format!(" until {}", moment(until)));
            let until = until.unwrap_or_default();
            let otherwise = match filter == configured {
                true => String::new(),
                false => format!(" (configured: {configured})"),
            };
            format!("{node}: {filter}{until}{otherwise}\n")
        }
    }
}

fn as_json((node, answer): &(String, Result<v1::LogLevelResponse, Reason>)) -> Value {
    match answer {
        Err(Reason::Unreachable(words)) => json!({ "node": node, "unreachable": words }),
        Err(Reason::Refused(words)) => json!({ "node": node, "refused": words }),
        Ok(level) => json!({
            "node": node,
            "filter": level.filter,
            "configured": level.configured,
            "until_unix_us": level.until_unix_us,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_differs_from_the_configuration_and_for_how_long() {
        let level = |filter: &str, until_unix_us| v1::LogLevelResponse {
            node: "north".to_owned(),
            filter: filter.to_owned(),
            configured: "info".to_owned(),
            until_unix_us,
        };
        let shown = |answer| line(&("north".to_owned(), answer));
        assert_eq!(shown(Ok(level("info", None))), "north: info\n");
        let changed = shown(Ok(level("debug", Some(1_700_000_000_000_000))));
        assert_eq!(changed, "north: debug until 2023-11-14T22:13:20Z (configured: info)\n");
        let refused = Reason::Refused("it takes more".to_owned());
        assert_eq!(shown(Err(refused)), "north: it takes more\n");
    }
}
