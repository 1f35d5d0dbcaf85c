//! Everything of one node: what it collects itself, and what its other services tell. Texts are redacted.

use std::collections::BTreeMap;

use serde_json::Value;
use tonic::transport::Channel;
use understudy_node::debug::redact;
use understudy_proto::v1;
use understudy_proto::v1::collect_response::Step;
use understudy_proto::v1::debug_client::DebugClient;

use crate::context::{Context, ContextNode};
use crate::nodes::{Reason, within};
use crate::{events, receipt, status, wal};

/// What became of asking a node.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) name: String,
    /// By their relative path.
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// What could not be had, and why.
    pub(super) missing: Vec<(String, String)>,
}

impl Collected {
    fn text(&mut self, name: &str, text: &str) {
        self.files.insert(name.to_owned(), redact(text).into_bytes());
    }

    fn value(&mut self, name: &str, value: Result<Value, String>) {
        match value {
            // Plain data with text keys; nothing in it can fail to be written.
            Ok(value) => self.text(name, &format!("{value:#}\n")),
            Err(reason) => self.lack(name, &reason),
        }
    }

    fn lack(&mut self, name: &str, reason: &str) {
        self.missing.push((name.to_owned(), redact(reason)));
    }
}

/// Asks one node for everything.
pub(super) async fn of_node(
    context: &Context,
    node: &ContextNode,
    trace_bytes_max: u64,
) -> Collected {
    let mut told = Collected { name: node.name.to_string(), ..Collected::default() };
    let channel = match context.connect(node).await {
        Ok(channel) => channel,
        Err(error) => {
            told.lack("", &format!("the node cannot be reached: {error}"));
            return told;
        }
    };
    let status = status::ask(context, node).await;
    if let Ok(status) = &status {
        let operations = serde_json::to_value(&status.operations);
        told.value("operations.json", operations.map_err(|error| error.to_string()));
    }
    let value = status.and_then(|status| serde_json::to_value(&status).map_err(|e| e.to_string()));
    told.value("status.json", value);
    match events::kept(context, node, &[]).await {
        Ok(kept) => {
            let lines = kept.events.iter().filter_map(|event| serde_json::to_string(event).ok());
            told.text("events.jsonl", &lines.map(|line| line + "\n").collect::<String>());
        }
        Err(reason) => told.lack("events.jsonl", reason.words()),
    }
    let receipts = receipt::list_one(context, node).await;
    let receipts = receipts.and_then(|list| serde_json::to_value(list).map_err(|e| e.to_string()));
    told.value("receipts.json", receipts);
    told.value("wal.json", wal::status_of(channel.clone()).await);
    if let Err(reason) = own(&mut told, channel, trace_bytes_max).await {
        told.lack("", &format!("what the node collects itself is not whole: {}", reason.words()));
    }
    told
}

/// What the node collects itself.
async fn own(told: &mut Collected, channel: Channel, trace_bytes_max: u64) -> Result<(), Reason> {
    let mut client = DebugClient::new(channel);
    let answer = within(client.collect(v1::CollectRequest { trace_bytes_max })).await?;
    let mut steps = answer.into_inner();
    let mut parts: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut whole = false;
    while let Some(message) = within(steps.message()).await? {
        match message.step {
            Some(Step::Part(part)) if is_plain(&part.name) => {
                parts.entry(part.name).or_default().extend_from_slice(&part.data);
            }
            Some(Step::Part(part)) => told.lack(&format!("{:?}", part.name), "not a plain path"),
            Some(Step::Missing(missing)) => told.lack(&missing.name, &missing.reason),
            Some(Step::Done(_)) => whole = true,
            // Of a newer program.
            None => {}
        }
    }
    for (name, content) in parts {
        // A recorder's lines have checksums: those that hold a secret were left out by the node.
        match String::from_utf8(content) {
            Ok(text) if !name.ends_with(".trace") => told.text(&name, &text),
            Ok(text) => drop(told.files.insert(name, text.into_bytes())),
            Err(error) => drop(told.files.insert(name, error.into_bytes())),
        }
    }
    match whole {
        true => Ok(()),
        false => Err(Reason::Unreachable("it stopped telling".to_owned())),
    }
}

/// No node writes anywhere but below its own name.
fn is_plain(name: &str) -> bool {
    let good = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        !part.is_empty() && part.chars().all(plain) && part.chars().any(|c| c != '.')
    };
    name.len() < 80 && name.split('/').all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_are_taken() {
        for good in ["log.txt", "trace/0000000004.trace"] {
            assert!(is_plain(good), "{good}");
        }
        for bad in ["", "/etc/passwd", "../x", "a//b", "a/..", "a\\b", "a b", &"x".repeat(99)] {
            assert!(!is_plain(bad), "{bad}");
        }
    }

    #[test]
    fn whatever_is_kept_as_text_is_redacted() {
        let mut told = Collected::default();
        told.text("a", "postgres://u:hunter2@h/d");
        told.value("b", Ok(serde_json::json!({ "reason": "password=hunter2" })));
        told.lack("c", "connect with token=hunter2");
        let all = format!("{told:?}");
        let files: String =
            told.files.values().map(|file| String::from_utf8_lossy(file).into_owned()).collect();
        assert!(!files.contains("hunter2") && !all.contains("hunter2"), "{files} {all}");
    }
}
