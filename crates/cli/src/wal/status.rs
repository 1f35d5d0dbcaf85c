//! `understudy wal status`: the ranges that each data node holds, as a table or as JSON.

use std::process::ExitCode;

use futures::future::join_all;
use serde_json::{Value, json};
use tonic::transport::Channel;
use understudy_proto::v1;
use understudy_proto::v1::wal_files_client::WalFilesClient;
use understudy_types::Lsn;

use super::ask::{MESSAGE_BYTES_MAX, data_nodes};
use crate::context::Context;
use crate::nodes::{Reason, within};
use crate::output::{self, FAILED, Output};
use crate::status::{paint, size};

type Answer = (String, Result<v1::GetWalStatusResponse, Reason>);

/// Runs the verb.
///
/// # Errors
/// When no node can be asked which the data nodes are.
pub(super) async fn run(context: &Context, output: Output) -> anyhow::Result<ExitCode> {
    let nodes = data_nodes(context, &[]).await?;
    let ask = nodes.iter().map(|node| async { (node.name.clone(), node.status(context).await) });
    let answers: Vec<Answer> = join_all(ask).await;
    let text = match output {
        Output::Json | Output::Yaml => {
            let nodes: Vec<Value> = answers.iter().map(as_json).collect();
            output.data(&json!({ "version": 1, "nodes": nodes }))
        }
        Output::Text => render(&answers, output::colours()),
    };
    output::print(&text)?;
    let whole = |(_, answer): &Answer| answer.as_ref().is_ok_and(|told| told.troubles.is_empty());
    let all = answers.iter().all(whole);
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// What one node holds, as data.
///
/// # Errors
/// Why that cannot be had, in words.
pub(crate) async fn status_of(channel: Channel) -> Result<Value, String> {
    let mut client = WalFilesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let answer = within(client.get_wal_status(v1::GetWalStatusRequest {})).await;
    let told = answer.map_err(|reason| reason.words().to_owned())?.into_inner();
    Ok(as_json(&(told.node.clone(), Ok(told))))
}

fn render(answers: &[Answer], colours: bool) -> String {
    let head =
        ["NODE", "PLACE", "TL", "FROM", "TO", "BYTES", "SEGMENTS", "DURABLE TO", "DISK FREE"];
    let (mut rows, mut remarks) = (Vec::new(), Vec::new());
    for (name, answer) in answers {
        let told = match answer {
            Ok(told) => told,
            Err(reason) => {
                let place = "not asked".to_owned();
                let rest = [(); 7].map(|()| "-".to_owned());
                let [a, b, c, d, e, f, g] = rest;
                rows.push([name.clone(), place, a, b, c, d, e, f, g]);
                remarks.push(format!("{name} does not answer: {}", reason.words()));
                continue;
            }
        };
        for place in &told.places {
            rows.extend(place.ranges.iter().map(|range| row(name, place, range)));
            if place.ranges.is_empty() {
                let (kind, timeline) = (&place.kind, place.timeline);
                remarks.push(format!("{name}'s {kind} holds no WAL yet, on timeline {timeline}"));
            }
            for gap in &place.gaps {
                let bytes = size(gap.to_lsn - gap.from_lsn);
                let (from, to) = (Lsn(gap.from_lsn), Lsn(gap.to_lsn));
                let (kind, file) = (&place.kind, &gap.first_file);
                remarks.push(format!(
                    "GAP in {name}'s {kind}: {bytes} from {from} to {to} are missing, from file {file} \
                     on; `understudy wal verify` says what to do"
                ));
            }
        }
        if told.places.is_empty() && told.troubles.is_empty() {
            remarks.push(format!("{name} holds no WAL"));
        }
        remarks.extend(told.troubles.iter().map(|trouble| format!("{name}: {trouble}")));
    }
    let mut lines = output::aligned(head, &rows);
    lines[0] = paint(&lines[0], 1, colours);
    lines.extend(remarks.iter().map(|remark| paint(remark, 33, colours)));
    lines.join("\n") + "\n"
}

fn row(name: &str, place: &v1::WalPlace, range: &v1::WalRange) -> [String; 9] {
    let unknown = || "-".to_owned();
    // Only the newest timeline grows.
    let durable = place.durable_lsn.filter(|_| range.timeline == place.timeline);
    [
        name.to_owned(),
        place.kind.clone(),
        range.timeline.to_string(),
        Lsn(range.from_lsn).to_string(),
        Lsn(range.to_lsn).to_string(),
        size(range.to_lsn - range.from_lsn),
        range.segments.to_string(),
        durable.map_or_else(unknown, |lsn| Lsn(lsn).to_string()),
        place.free_bytes.map_or_else(unknown, size),
    ]
}

fn as_json((name, answer): &Answer) -> Value {
    match answer {
        Err(reason) => json!({ "node": name, "unreachable": reason.words() }),
        Ok(told) => {
            let places: Vec<Value> = told.places.iter().map(place_json).collect();
            json!({ "node": name, "places": places, "troubles": told.troubles })
        }
    }
}

fn place_json(place: &v1::WalPlace) -> Value {
    let span = |from: u64, to: u64| (Lsn(from), Lsn(to), to - from);
    let ranges = place.ranges.iter().map(|range| {
        let (from_lsn, to_lsn, bytes) = span(range.from_lsn, range.to_lsn);
        let (timeline, segments) = (range.timeline, range.segments);
        json!({ "timeline": timeline, "from_lsn": from_lsn, "to_lsn": to_lsn, "bytes": bytes,
                "segments": segments })
    });
    let gaps = place.gaps.iter().map(|gap| {
        let (from_lsn, to_lsn, bytes) = span(gap.from_lsn, gap.to_lsn);
        json!({ "timeline": gap.timeline, "from_lsn": from_lsn, "to_lsn": to_lsn, "bytes": bytes,
                "first_file": gap.first_file })
    });
    json!({
        "place": place.kind,
        "system_id": place.system_id.to_string(),
        "segment_bytes": place.segment_bytes,
        "timeline": place.timeline,
        "durable_lsn": place.durable_lsn.map(Lsn),
        "free_bytes": place.free_bytes,
        "disk_bytes": place.disk_bytes,
        "ranges": ranges.collect::<Vec<_>>(),
        "gaps": gaps.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_gaps_and_a_silent_node_are_all_shown() {
        let range =
            |from_lsn, to_lsn, segments| v1::WalRange { timeline: 1, from_lsn, to_lsn, segments };
        let place = v1::WalPlace {
            kind: "journal".to_owned(),
            timeline: 1,
            durable_lsn: Some(0x500_0028),
            ranges: vec![range(0x100_0000, 0x200_0000, 1), range(0x400_0000, 0x500_0028, 2)],
            gaps: vec![v1::WalGap {
                timeline: 1,
                from_lsn: 0x200_0000,
                to_lsn: 0x400_0000,
                first_file: "000000010000000000000002".to_owned(),
            }],
            free_bytes: Some(3 << 30),
            ..Default::default()
        };
        let told = v1::GetWalStatusResponse { places: vec![place], ..Default::default() };
        let silent = Err(Reason::Unreachable("connection refused".to_owned()));
        let answers = [("south".to_owned(), Ok(told)), ("north".to_owned(), silent)];
        let text = render(&answers, false);
        for words in [
            "south  journal    1   0/1000000  0/2000000  16.0 MiB  1         0/5000028   3.0 GiB",
            "GAP in south's journal: 32.0 MiB from 0/2000000 to 0/4000000 are missing, from file \
             000000010000000000000002 on",
            "north  not asked",
            "north does not answer: connection refused",
        ] {
            assert!(text.contains(words), "{words:?} is missing in\n{text}");
        }
        let json = as_json(&answers[0]);
        assert_eq!(json["places"][0]["gaps"][0]["bytes"], 32 << 20);
        assert_eq!(json["places"][0]["ranges"][1]["to_lsn"], "0/5000028");
        assert_eq!(as_json(&answers[1])["unreachable"], "connection refused");
    }
}
