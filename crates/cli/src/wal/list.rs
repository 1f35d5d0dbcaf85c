//! `understudy wal list`: single files, of the nodes or of a journal in a directory.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::{Value, json};
use understudy_node::wal_files::list_journal;
use understudy_proto::v1;
use understudy_types::Lsn;

use super::ListArgs;
use super::ask::{DataNode, data_nodes};
use crate::context::Context;
use crate::nodes::{Reason, within};
use crate::operate::CallError;
use crate::output::{self, FAILED, Output};
use crate::status::moment;

/// A file, and where it is.
struct Listed {
    node: String,
    place: String,
    file: v1::WalFile,
}

fn request(args: &ListArgs) -> v1::ListWalFilesRequest {
    v1::ListWalFilesRequest {
        timeline: args.timeline.map(understudy_types::Timeline::get),
        from_lsn: args.span.from.map(|lsn| lsn.0),
        to_lsn: args.span.to.map(|lsn| lsn.0),
    }
}

/// Lists a journal's files; works while its daemon is down.
///
/// # Errors
/// When there is no journal.
pub(super) fn from_files(dir: &Path, args: &ListArgs) -> anyhow::Result<ExitCode> {
    let files = list_journal(dir, &request(args))
        .with_context(|| format!("list the files of {}", dir.display()))?;
    let of = |file| Listed { node: "-".to_owned(), place: "journal".to_owned(), file };
    show(&files.into_iter().map(of).collect::<Vec<_>>(), &[], args.output)?;
    Ok(ExitCode::SUCCESS)
}

/// Lists the files of the nodes.
///
/// # Errors
/// When no node answers.
pub(super) async fn from_nodes(context: &Context, args: &ListArgs) -> anyhow::Result<ExitCode> {
    let nodes = data_nodes(context, &args.node).await?;
    let (mut listed, mut troubles, mut silent) = (Vec::new(), Vec::new(), 0);
    for node in &nodes {
        let name = &node.name;
        match list(context, node, args).await {
            Ok((files, of_node)) => {
                listed.extend(files);
                troubles.extend(of_node.into_iter().map(|trouble| format!("{name}: {trouble}")));
            }
            Err(reason) => {
                silent += 1;
                troubles.push(format!("{name} does not answer: {}", reason.words()));
            }
        }
    }
    if silent == nodes.len() {
        return Err(CallError::Unreachable { reasons: troubles }.into());
    }
    show(&listed, &troubles, args.output)?;
    Ok(if troubles.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

async fn list(
    context: &Context,
    node: &DataNode<'_>,
    args: &ListArgs,
) -> Result<(Vec<Listed>, Vec<String>), Reason> {
    let mut client = node.client(context).await?;
    let mut messages = within(client.list_wal_files(request(args))).await?.into_inner();
    let (mut listed, mut troubles) = (Vec::new(), Vec::new());
    while let Some(message) = within(messages.message()).await? {
        let (name, place) = (&node.name, message.place);
        let of = |file| Listed { node: name.clone(), place: place.clone(), file };
        listed.extend(message.files.into_iter().map(of));
        troubles.extend(message.troubles);
    }
    Ok((listed, troubles))
}

fn show(listed: &[Listed], troubles: &[String], output: Output) -> anyhow::Result<()> {
    let text = match output {
        Output::Json | Output::Yaml => {
            let files: Vec<Value> = listed.iter().map(as_json).collect();
            output.data(&json!({ "version": 1, "files": files, "troubles": troubles }))
        }
        Output::Text => {
            let head = ["NODE", "PLACE", "NAME", "KIND", "FROM", "TO", "BYTES", "MODIFIED"];
            let rows: Vec<_> = listed.iter().map(row).collect();
            output::aligned(head, &rows).join("\n") + "\n"
        }
    };
    output::print(&text)?;
    if output == Output::Text {
        troubles.iter().for_each(|trouble| eprintln!("not shown: {trouble}"));
    }
    Ok(())
}

fn row(listed: &Listed) -> [String; 8] {
    let file = &listed.file;
    let lsn = |lsn: Option<u64>| lsn.map_or_else(|| "-".to_owned(), |lsn| Lsn(lsn).to_string());
    [
        listed.node.clone(),
        listed.place.clone(),
        file.name.clone(),
        file.kind.clone(),
        lsn(file.from_lsn),
        lsn(file.to_lsn),
        file.bytes.to_string(),
        moment(file.modified_unix_us),
    ]
}

fn as_json(listed: &Listed) -> Value {
    let file = &listed.file;
    json!({
        "node": if listed.node == "-" { Value::Null } else { json!(listed.node) },
        "place": listed.place,
        "name": file.name,
        "kind": file.kind,
        "timeline": file.timeline,
        "from_lsn": file.from_lsn.map(Lsn),
        "to_lsn": file.to_lsn.map(Lsn),
        "bytes": file.bytes,
        "modified_unix_us": file.modified_unix_us,
    })
}
