//! `understudy debug bundle`: one file with everything that a bug report needs, without the secrets.
//!
//! Every node is asked for itself. What could not be had stands in the manifest with the reason, and is
//! said; a bundle without a node that is down is still a bundle. Every text is redacted by the node
//! that tells it and once more here.

mod archive;
mod collect;

use std::path::PathBuf;
use std::process::ExitCode;

use jiff::Timestamp;
use serde_json::json;
use understudy_node::config::parse_size;

use crate::context::Context;
use crate::operate::CallError;
use crate::output::{self, Output};
use archive::Archive;

/// What a bug report needs.
#[derive(Debug, clap::Args)]
pub(crate) struct DebugArgs {
    #[command(subcommand)]
    verb: DebugVerb,
}

#[derive(Debug, clap::Subcommand)]
enum DebugVerb {
    /// Collect a redacted bundle for a bug report.
    ///
    /// Of every node: status as it sees it, events, operations, receipts, WAL ranges, metrics,
    /// configuration, its newest warnings and errors, what the system says of machine and process, and
    /// the newest files of the decision recorder. Passwords, tokens and private keys are taken out of
    /// every text; a recorder's file that holds one is left out, and so is PostgreSQL's log. manifest.json
    /// lists what is in it, and what could not be had and why. Look through it before you send it: names,
    /// addresses and the reasons that operators gave are in it. Needs the role operator.
    Bundle(BundleArgs),
}

/// Collect a bundle.
#[derive(Debug, clap::Args)]
struct BundleArgs {
    /// The file to make; one that is there is not overwritten. By default
    /// understudy-debug-TIME.tar.gz here.
    #[arg(long, value_name = "FILE.tar.gz")]
    out: Option<PathBuf>,
    /// How much of each node's decision recorder, the newest whole files; 0 for none.
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = parse_size)]
    trace_size: u64,
    /// How what was done is printed.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Runs the verb.
///
/// # Errors
/// When no node answers, or the file cannot be written.
pub(crate) async fn run(context: &Context, args: &DebugArgs) -> anyhow::Result<ExitCode> {
    let DebugVerb::Bundle(args) = &args.verb;
    let now = Timestamp::now();
    let name = format!("understudy-debug-{}", now.strftime("%Y%m%dT%H%M%SZ"));
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    if out.exists() {
        let words = format!("--out {}: it is there already; name another file", out.display());
        return Err(CallError::Usage { words }.into());
    }
    let asked = context.nodes.iter().map(|node| collect::of_node(context, node, args.trace_size));
    let collected = futures::future::join_all(asked).await;
    if collected.iter().all(|node| node.files.is_empty()) {
        let reasons = collected.iter().filter_map(|node| {
            node.missing.first().map(|(_, reason)| format!("{}: {reason}", node.name))
        });
        return Err(CallError::Unreachable { reasons: reasons.collect() }.into());
    }
    let mut archive = Archive::create(&out, &name, now)?;
    for node in &collected {
        for (file, content) in &node.files {
            archive.add(&format!("nodes/{}/{file}", node.name), content)?;
        }
        for (file, reason) in &node.missing {
            archive.lack(&format!("nodes/{}/{file}", node.name), reason);
        }
    }
    let made = archive.finish()?;
    let missing: Vec<_> =
        made.missing.iter().map(|lack| format!("{}: {}", lack.name, lack.reason)).collect();
    for words in &missing {
        eprintln!("not in it: {words}");
    }
    let text = match args.output {
        Output::Json | Output::Yaml => {
            let (files, bytes) = (made.files.len(), made.bytes);
            let value = json!({ "version": 1, "file": out, "bytes": bytes, "files_count": files,
                                "missing": made.missing });
            args.output.data(&value)
        }
        Output::Text => format!(
            "{}: {} files, {}; look through it before you send it\n",
            out.display(),
            made.files.len(),
            crate::status::size(made.bytes)
        ),
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
