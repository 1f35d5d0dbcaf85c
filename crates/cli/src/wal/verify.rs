//! `understudy wal verify`: has every node read its WAL at the same time, and compares what they hold.
//!
//! Nodes do not end at the same position, so they are asked first how far each is; digests of the last
//! segment are then made up to what all of them have.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use futures::future::join_all;
use serde_json::json;
use understudy_node::wal_files::verify_journal;
use understudy_proto::v1;
use understudy_proto::v1::verify_wal_response::Step;
use understudy_types::Lsn;

use super::VerifyArgs;
use super::ask::{DataNode, data_nodes};
use super::progress::Progress;
use super::report::Report;
use crate::context::Context;
use crate::nodes::{Reason, within};
use crate::operate::CallError;
use crate::output::{self, FAILED, Output};

/// A node says twice a second how far it is; a disk may stand still for a while.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What is known, and what was said of it.
struct Screen {
    report: Report,
    progress: Progress,
    output: Output,
    /// Nobody reads what is printed any more.
    closed: Option<std::io::Error>,
}

impl Screen {
    fn new(report: Report, output: Output) -> Screen {
        Screen { report, progress: Progress::new(output), output, closed: None }
    }

    fn take(&mut self, node: usize, message: v1::VerifyWalResponse) -> ControlFlow<()> {
        let line = match (self.output, &message.step) {
            (Output::Json | Output::Yaml, Some(step)) => self.line(node, &message.place, step),
            _ => None,
        };
        self.report.take(node, message);
        let node_report = &self.report.nodes[node];
        let shown = match node_report.places.last() {
            Some(place) => self.progress.show(node, &node_report.name, place),
            None => Ok(()),
        };
        match shown.and_then(|()| line.map_or(Ok(()), |line| output::print(&line))) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.closed = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    /// What a program wants to know at once.
    fn line(&self, node: usize, place: &str, step: &Step) -> Option<String> {
        let name = &self.report.nodes[node].name;
        let line = match step {
            Step::Segment(segment) => json!({
                "event": "segment", "node": name, "place": place,
                "timeline": segment.timeline, "file": segment.file,
                "from_lsn": Lsn(segment.from_lsn), "to_lsn": Lsn(segment.to_lsn),
                "sha256": hex(&segment.sha256), "sound": segment.sound,
            }),
            Step::Finding(finding) => json!({
                "event": "finding", "node": name, "place": place,
                "kind": finding.kind, "timeline": finding.timeline, "file": finding.file,
                "lsn": Lsn(finding.lsn), "expected": finding.expected, "found": finding.found,
            }),
            _ => return None,
        };
        Some(self.output.data(&line))
    }

    fn end(self) -> anyhow::Result<ExitCode> {
        self.progress.end();
        if let Some(error) = self.closed {
            return Err(error.into());
        }
        let text = match self.output {
            Output::Json | Output::Yaml => self.output.data(&self.report.as_json()),
            Output::Text => self.report.render(),
        };
        output::print(&text)?;
        let code = if self.report.is_sound() { 0 } else { FAILED };
        Ok(ExitCode::from(code))
    }
}

fn request(args: &VerifyArgs) -> v1::VerifyWalRequest {
    v1::VerifyWalRequest {
        from_lsn: args.span.from.map(|lsn| lsn.0),
        to_lsn: args.span.to.map(|lsn| lsn.0),
        bytes_per_second: args.rate,
        cuts: Vec::new(),
    }
}

fn check(args: &VerifyArgs) -> Result<(), CallError> {
    match (args.span.from, args.span.to) {
        (Some(from), Some(to)) if from >= to => Err(CallError::Usage {
            words: format!("--to {to}: give a position after --from, which is {from}"),
        }),
        _ => Ok(()),
    }
}

/// Verifies a journal by its files; works while its daemon is down.
///
/// # Errors
/// When there is no journal.
pub(super) fn from_files(dir: &Path, args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    check(args)?;
    let name = dir.display().to_string();
    let report = Report::of([name.as_str()].into_iter());
    let mut screen = Screen::new(report, args.output);
    verify_journal(dir, &request(args), &mut |message| screen.take(0, message))
        .with_context(|| format!("verify {name}"))?;
    screen.end()
}

/// Verifies the nodes.
///
/// # Errors
/// When no node can be asked.
pub(super) async fn from_nodes(context: &Context, args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    check(args)?;
    let nodes = data_nodes(context, &args.node).await?;
    let held = join_all(nodes.iter().map(|node| node.status(context))).await;
    let answered = held.iter().flatten();
    let request = v1::VerifyWalRequest { cuts: common_ends(answered), ..request(args) };
    let report = Report::of(nodes.iter().map(|node| node.name.as_str()));
    let screen = RefCell::new(Screen::new(report, args.output));
    let walks = nodes.iter().zip(held).enumerate().map(|(index, (node, held))| {
        let (request, screen) = (&request, &screen);
        async move {
            let walked = match held {
                Ok(_) => walk(context, node, index, request, screen).await,
                Err(reason) => Err(reason),
            };
            screen.borrow_mut().report.nodes[index].failed = walked.err();
        }
    });
    join_all(walks).await;
    let screen = screen.into_inner();
    let reasons = screen.report.nodes.iter().map(|node| match &node.failed {
        Some(Reason::Unreachable(words)) => Some(format!("{}: {words}", node.name)),
        Some(Reason::Refused(_)) | None => None,
    });
    if let Some(reasons) = reasons.collect::<Option<Vec<_>>>() {
        screen.progress.end();
        return Err(CallError::Unreachable { reasons }.into());
    }
    screen.end()
}

/// For each timeline, how far everybody who holds some of it has it.
fn common_ends<'a>(held: impl Iterator<Item = &'a v1::GetWalStatusResponse>) -> Vec<v1::WalCut> {
    let mut ends: BTreeMap<u32, u64> = BTreeMap::new();
    for place in held.flat_map(|held| &held.places) {
        let mut own: BTreeMap<u32, u64> = BTreeMap::new();
        for range in &place.ranges {
            let end = own.entry(range.timeline).or_default();
            *end = range.to_lsn.max(*end);
        }
        for (timeline, lsn) in own {
            let end = ends.entry(timeline).or_insert(lsn);
            *end = lsn.min(*end);
        }
    }
    ends.into_iter().map(|(timeline, lsn)| v1::WalCut { timeline, lsn }).collect()
}

async fn walk(
    context: &Context,
    node: &DataNode<'_>,
    index: usize,
    request: &v1::VerifyWalRequest,
    screen: &RefCell<Screen>,
) -> Result<(), Reason> {
    let mut client = node.client(context).await?;
    let mut messages = within(client.verify_wal(request.clone())).await?.into_inner();
    loop {
        let next = tokio::time::timeout(SILENCE_MAX, messages.message()).await;
        let next =
            next.map_err(|_| Reason::Unreachable(format!("it said nothing for {SILENCE_MAX:?}")))?;
        let next = next.map_err(|status| Reason::Unreachable(status.message().to_owned()))?;
        let Some(message) = next else { return Ok(()) };
        if screen.borrow_mut().take(index, message).is_break() {
            return Ok(());
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_end_where_everybody_who_has_a_timeline_has_it() {
        let range = |timeline, to_lsn| v1::WalRange { timeline, to_lsn, ..Default::default() };
        let place = |ranges| v1::WalPlace { ranges, ..Default::default() };
        let north = v1::GetWalStatusResponse {
            places: vec![place(vec![range(1, 50)]), place(vec![range(1, 50), range(2, 90)])],
            ..Default::default()
        };
        let south = v1::GetWalStatusResponse {
            places: vec![place(vec![range(1, 20), range(1, 50), range(2, 80)])],
            ..Default::default()
        };
        let cut = |timeline, lsn| v1::WalCut { timeline, lsn };
        assert_eq!(common_ends([&north, &south].into_iter()), [cut(1, 50), cut(2, 80)]);
        assert_eq!(common_ends([&north].into_iter()), [cut(1, 50), cut(2, 90)]);
    }
}
