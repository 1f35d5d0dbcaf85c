//! `understudy receipt`: the loss receipts, asked at the nodes that keep them or read from a node's
//! data directory, which works while its daemon is down.
//!
//! A receipt lies at one node only, so every node of the context is asked; which ones did not answer
//! is said, because what they keep is not in the list.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tonic::{Code, Status};
use understudy_node::receipts::{self, Receipt, ReceiptSummary, StoreError, divergent_dir};
use understudy_proto::v1;
use understudy_proto::v1::get_receipt_response::Part;
use understudy_proto::v1::receipts_client::ReceiptsClient;

use crate::context::{Context, ContextArgs, ContextNode};
use crate::operate::CallError;
use crate::output::{self, Output};

/// How long a node may take to answer, and for each further piece.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// A thousand transactions and a hundred thousand databases stand in a receipt at most.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Show loss receipts.
#[derive(Debug, clap::Args)]
pub(crate) struct ReceiptArgs {
    #[command(subcommand)]
    verb: ReceiptVerb,
}

#[derive(Debug, clap::Subcommand)]
enum ReceiptVerb {
    /// List the receipts, the newest first.
    List {
        #[command(flatten)]
        place: Place,
        /// How they are printed.
        #[arg(long, short, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Show a receipt with its first transactions.
    Show {
        /// Its name; the newest one if left out.
        id: Option<String>,
        #[command(flatten)]
        place: Place,
        /// How it is printed; JSON is what lies in receipt.json.
        #[arg(long, short, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Print every transaction of a receipt, one JSON object a line.
    Transactions {
        /// Its name; the newest one if left out.
        id: Option<String>,
        #[command(flatten)]
        place: Place,
    },
}

/// Where the receipts are.
#[derive(Debug, clap::Args)]
struct Place {
    /// Ask this node only.
    #[arg(long, value_name = "NODE", conflicts_with = "data_dir")]
    node: Option<String>,
    /// Read them below a node's data directory instead of asking a node.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Runs the verb.
///
/// # Errors
/// When there is no such receipt, or nobody can be asked.
pub(crate) fn run(context: &ContextArgs, args: &ReceiptArgs) -> anyhow::Result<ExitCode> {
    let place = match &args.verb {
        ReceiptVerb::List { place, .. }
        | ReceiptVerb::Show { place, .. }
        | ReceiptVerb::Transactions { place, .. } => place,
    };
    if let Some(data_dir) = &place.data_dir {
        return from_files(data_dir, &args.verb);
    }
    let context = context.load()?;
    crate::client(from_nodes(&context, place, &args.verb))
}

fn from_files(data_dir: &std::path::Path, verb: &ReceiptVerb) -> anyhow::Result<ExitCode> {
    let divergent = divergent_dir(data_dir);
    match verb {
        ReceiptVerb::List { output, .. } => {
            let listed = receipts::list(&divergent)?;
            show_list(&listed.iter().map(Receipt::summary).collect::<Vec<_>>(), *output)?;
        }
        ReceiptVerb::Show { id, output, .. } => {
            show_receipt(&find_file(&divergent, id)?, *output)?;
        }
        ReceiptVerb::Transactions { id, .. } => {
            let receipt = find_file(&divergent, id)?;
            for line in receipts::transactions(&divergent, &receipt)? {
                output::print(&(line? + "\n"))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn find_file(divergent: &std::path::Path, id: &Option<String>) -> anyhow::Result<Receipt> {
    let found = receipts::load(divergent, id.as_deref().unwrap_or_default());
    found.map_err(|error| match error {
        StoreError::Unknown { .. } => CallError::Failed { words: error.to_string() }.into(),
        other => other.into(),
    })
}

async fn from_nodes(
    context: &Context,
    place: &Place,
    verb: &ReceiptVerb,
) -> anyhow::Result<ExitCode> {
    let nodes = asked(context, place)?;
    match verb {
        ReceiptVerb::List { output, .. } => {
            let (found, _) = list(context, &nodes).await?;
            show_list(&found, *output)?;
        }
        ReceiptVerb::Show { id, output, .. } => {
            let (node, id) = find(context, &nodes, id).await?;
            let mut shown = Ok(());
            get(context, node, &id, false, |part| {
                if let Part::ReceiptJson(json) = part {
                    shown = serde_json::from_str(&json)
                        .map_err(anyhow::Error::from)
                        .and_then(|receipt| show_receipt(&receipt, *output));
                }
                Ok(())
            })
            .await?;
            shown?;
        }
        ReceiptVerb::Transactions { id, .. } => {
            let (node, id) = find(context, &nodes, id).await?;
            get(context, node, &id, true, |part| {
                if let Part::Lines(lines) = part {
                    let text: String = lines.json.into_iter().map(|line| line + "\n").collect();
                    output::print(&text)?;
                }
                Ok(())
            })
            .await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The nodes to ask.
fn asked<'a>(context: &'a Context, place: &Place) -> Result<Vec<&'a ContextNode>, CallError> {
    let wanted =
        |node: &&ContextNode| place.node.as_ref().is_none_or(|name| node.name.to_string() == *name);
    let nodes: Vec<_> = context.nodes.iter().filter(wanted).collect();
    if nodes.is_empty() {
        let name = place.node.as_deref().unwrap_or_default();
        return Err(CallError::Usage {
            words: format!("--node {name}: the context has no such node"),
        });
    }
    Ok(nodes)
}

/// All receipts of the nodes that answer, the newest first, and which node has which.
async fn list<'a>(
    context: &Context,
    nodes: &[&'a ContextNode],
) -> Result<(Vec<ReceiptSummary>, Vec<&'a ContextNode>), CallError> {
    let mut found = Vec::new();
    let mut reasons = Vec::new();
    for node in nodes {
        match list_one(context, node).await {
            Ok(listed) => found.extend(listed.into_iter().map(|summary| (summary, *node))),
            Err(reason) => reasons.push(reason),
        }
    }
    if reasons.len() == nodes.len() {
        return Err(CallError::Unreachable { reasons });
    }
    for reason in reasons {
        eprintln!("its receipts are not shown: {reason}");
    }
    found.sort_by_key(|(summary, _)| std::cmp::Reverse(summary.made_unix_us));
    Ok(found.into_iter().unzip())
}

/// The receipts that one node keeps.
///
/// # Errors
/// Why they cannot be had, in words.
pub(crate) async fn list_one(
    context: &Context,
    node: &ContextNode,
) -> Result<Vec<ReceiptSummary>, String> {
    let channel = context.connect(node).await.map_err(|error| error.to_string())?;
    let mut client = ReceiptsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let answer = client.list_receipts(v1::ListReceiptsRequest {});
    let answer = tokio::time::timeout(CALL_TIMEOUT, answer).await;
    let answer = answer.map_err(|_| format!("{}: no answer in {CALL_TIMEOUT:?}", node.name))?;
    let answer = answer.map_err(|status| format!("{}: {}", node.name, status.message()))?;
    let listed = answer.into_inner().receipts.into_iter().map(TryInto::try_into);
    listed.collect::<Result<_, _>>().map_err(|error| format!("{}: {error}", node.name))
}

/// Which node has the receipt, and its name.
async fn find<'a>(
    context: &Context,
    nodes: &[&'a ContextNode],
    id: &Option<String>,
) -> Result<(&'a ContextNode, String), CallError> {
    let (found, at) = list(context, nodes).await?;
    let wanted = |summary: &ReceiptSummary| id.as_ref().is_none_or(|id| summary.id == *id);
    let mut matching = found.iter().zip(at).filter(|(summary, _)| wanted(summary));
    let Some((summary, node)) = matching.next() else {
        let words = match id {
            Some(id) => format!("no node that answers keeps a receipt {id:?}"),
            None => "no node that answers keeps a receipt: nothing was lost there".to_owned(),
        };
        return Err(CallError::Failed { words });
    };
    // Rounds are counted by each node for itself.
    if id.is_some()
        && let Some((_, other)) = matching.next()
    {
        let words = format!(
            "{} and {} both keep a receipt of this name: say which with --node",
            node.name, other.name
        );
        return Err(CallError::Usage { words });
    }
    Ok((node, summary.id.clone()))
}

async fn get(
    context: &Context,
    node: &ContextNode,
    id: &str,
    all_transactions: bool,
    mut each: impl FnMut(Part) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let unreachable = |reason: String| CallError::Unreachable { reasons: vec![reason] };
    let channel = context.connect(node).await.map_err(|error| unreachable(error.to_string()))?;
    let mut client = ReceiptsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let late = |_| unreachable(format!("{}: no answer in {CALL_TIMEOUT:?}", node.name));
    let failed = |status: Status| match status.code() {
        Code::NotFound => CallError::Failed { words: status.message().to_owned() },
        _ => unreachable(format!("{}: {}", node.name, status.message())),
    };
    let request = v1::GetReceiptRequest { id: id.to_owned(), all_transactions };
    let answer = tokio::time::timeout(CALL_TIMEOUT, client.get_receipt(request)).await;
    let mut parts = answer.map_err(late)?.map_err(failed)?.into_inner();
    loop {
        let next = tokio::time::timeout(CALL_TIMEOUT, parts.message()).await.map_err(late)?;
        match next.map_err(failed)? {
            None => return Ok(()),
            Some(v1::GetReceiptResponse { part: Some(part) }) => each(part)?,
            // Of a newer program.
            Some(v1::GetReceiptResponse { part: None }) => {}
        }
    }
}

fn show_list(found: &[ReceiptSummary], output: Output) -> anyhow::Result<()> {
    let text = match output {
        Output::Json | Output::Yaml => output.data(&json!({ "version": 1, "receipts": found })),
        Output::Text if found.is_empty() => "no loss receipts\n".to_owned(),
        Output::Text => found.iter().map(line).collect(),
    };
    output::print(&text)?;
    Ok(())
}

fn line(summary: &ReceiptSummary) -> String {
    let made = Timestamp::from_microsecond(summary.made_unix_us);
    let made = made.map_or_else(|_| "-".to_owned(), |time| format!("{time:.0}"));
    let fork = summary.fork_lsn.map_or_else(|| "unknown".to_owned(), |lsn| lsn.to_string());
    let seconds = summary.lost_seconds.map(|s| format!(" over {s:.3} s")).unwrap_or_default();
    format!(
        "{:<14} {:<12} {made}  {} commits{seconds}, {} bytes of WAL from {fork} to {}\n",
        summary.id, summary.node, summary.commits, summary.lost_wal_bytes, summary.end_lsn
    )
}

fn show_receipt(receipt: &Receipt, output: Output) -> anyhow::Result<()> {
    let text = match output {
        Output::Json | Output::Yaml => output.data(receipt),
        Output::Text => receipts::render(receipt),
    };
    output::print(&text)?;
    Ok(())
}
