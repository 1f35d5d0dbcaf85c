//! What a verification has found, as it grows and in the end: for people, and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};
use understudy_proto::v1;
use understudy_proto::v1::verify_wal_response::Step;
use understudy_types::Lsn;

use super::compare::{Comparison, Judgement, Whose};
use crate::nodes::Reason;
use crate::status::size;

/// What one node found in one place.
#[derive(Debug, Default)]
pub(super) struct PlaceReport {
    pub(super) place: String,
    pub(super) total_bytes: u64,
    pub(super) done_bytes: u64,
    segments: u64,
    findings: Vec<v1::WalFinding>,
    removed: Vec<String>,
    end: Option<v1::VerifyEnd>,
}

/// What came of one node.
#[derive(Debug, Default)]
pub(super) struct NodeReport {
    pub(super) name: String,
    pub(super) places: Vec<PlaceReport>,
    /// What could not be looked at.
    troubles: Vec<String>,
    /// Why it was not verified, or not to the end.
    pub(super) failed: Option<Reason>,
    /// It has told everything.
    done: bool,
}

/// What came of all.
#[derive(Default)]
pub(super) struct Report {
    pub(super) nodes: Vec<NodeReport>,
    comparison: Comparison,
}

impl Report {
    /// A report of these nodes, of which nothing is known yet.
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a str>) -> Report {
        let node = |name: &str| NodeReport { name: name.to_owned(), ..NodeReport::default() };
        Report { nodes: names.map(node).collect(), ..Report::default() }
    }

    /// Takes what a node has told.
    pub(super) fn take(&mut self, node: usize, message: v1::VerifyWalResponse) {
        let report = &mut self.nodes[node];
        let whose = (report.name.clone(), message.place.clone());
        let Some(step) = message.step else { return };
        match step {
            Step::Trouble(trouble) => return report.troubles.push(trouble),
            Step::Done(_) => return report.done = true,
            _ => {}
        }
        if report.places.last().is_none_or(|last| last.place != message.place) {
            let place = message.place;
            report.places.push(PlaceReport { place, ..PlaceReport::default() });
        }
        let Some(place) = report.places.last_mut() else { return };
        match step {
            Step::Begun(begun) => place.total_bytes = begun.total_bytes,
            Step::Progress(progress) => place.done_bytes = progress.done_bytes,
            Step::History(history) => self.comparison.take_history(&whose, &history),
            Step::Segment(segment) => {
                place.segments += 1;
                self.comparison.take_segment(&whose, segment);
            }
            Step::Finding(finding) => place.findings.push(finding),
            Step::RemovedFile(file) => place.removed.push(file),
            Step::End(end) => {
                place.done_bytes = end.read_bytes;
                place.end = Some(end);
            }
            // Of the node, not of a place.
            Step::Trouble(_) | Step::Done(_) => {}
        }
    }

    /// Nothing is wrong, and everything was looked at.
    pub(super) fn is_sound(&self) -> bool {
        let judgement = self.comparison.judge();
        judgement.differences.is_empty()
            && judgement.histories.is_empty()
            && self.nodes.iter().all(NodeReport::is_sound)
    }

    /// For people.
    pub(super) fn render(&self) -> String {
        let mut text = String::new();
        let judgement = self.comparison.judge();
        for node in &self.nodes {
            // Writing to a String cannot fail.
            let _ = self.write_node(&mut text, node);
        }
        let _ = write_judgement(&mut text, &judgement, self.verified_nodes());
        text
    }

    fn verified_nodes(&self) -> usize {
        self.nodes.iter().filter(|node| node.failed.is_none()).count()
    }

    fn write_node(&self, text: &mut String, node: &NodeReport) -> std::fmt::Result {
        let name = &node.name;
        for place in &node.places {
            let kind = &place.place;
            let (bytes, segments) = (size(place.done_bytes), place.segments);
            let judged = match (&place.end, place.findings.len()) {
                (None, _) => "NOT READ TO THE END".to_owned(),
                (Some(_), 0) => "sound".to_owned(),
                (Some(_), 1) => "1 FINDING".to_owned(),
                (Some(_), many) => format!("{many} FINDINGS"),
            };
            writeln!(text, "{name} {kind}: {bytes} in {segments} segments: {judged}")?;
            for finding in &place.findings {
                self.write_finding(text, node, finding)?;
            }
            for file in &place.removed {
                writeln!(text, "  {file} was removed by retention meanwhile")?;
            }
            let Some(end) = &place.end else { continue };
            if let Some(lsn) = end.found_end_lsn {
                writeln!(text, "  by its files the WAL ends at {}", Lsn(lsn))?;
            }
            if end.foreign_count > 0 {
                let count = end.foreign_count;
                writeln!(text, "  {count} segments of other histories were not looked into")?;
            }
        }
        for trouble in &node.troubles {
            writeln!(text, "{name}: NOT VERIFIED: {trouble}")?;
        }
        match &node.failed {
            Some(reason) => writeln!(text, "{name}: NOT VERIFIED: {}", reason.words()),
            None if !node.done => writeln!(text, "{name}: NOT VERIFIED to the end"),
            None if node.places.is_empty() => writeln!(text, "{name}: holds no WAL"),
            None => Ok(()),
        }
    }

    fn write_finding(
        &self,
        text: &mut String,
        node: &NodeReport,
        finding: &v1::WalFinding,
    ) -> std::fmt::Result {
        let v1::WalFinding { kind, timeline, file, lsn, sound_lsn, expected, found, remedy } =
            finding;
        writeln!(text, "  {kind}: {file} at {}", Lsn(*lsn))?;
        writeln!(text, "    expected  {expected}")?;
        writeln!(text, "    found     {found}")?;
        if *sound_lsn > 0 && sound_lsn != lsn {
            writeln!(text, "    sound     before {}", Lsn(*sound_lsn))?;
        }
        let copies = self.comparison.sound_copies(&node.name, *timeline, file);
        if !copies.is_empty() {
            writeln!(text, "    sound at  {}", words(&copies))?;
        }
        writeln!(text, "    remedy    {remedy}")
    }

    /// For programs.
    pub(super) fn as_json(&self) -> Value {
        let judgement = self.comparison.judge();
        let differences = judgement.differences.iter().map(|difference| {
            let sides = difference.sides.iter().map(|side| whose_json(side));
            json!({ "timeline": difference.timeline, "file": difference.file,
                    "page_lsn": difference.page_lsn, "sides": sides.collect::<Vec<_>>() })
        });
        let histories = judgement
            .histories
            .iter()
            .map(|(timeline, whose)| json!({ "timeline": timeline, "at": whose_json(whose) }));
        json!({
            "event": "report",
            "version": 1,
            "sound": self.is_sound(),
            "nodes": self.nodes.iter().map(|node| self.node_json(node)).collect::<Vec<_>>(),
            "compared": {
                "same_segments": judgement.same_segments,
                "same_bytes": judgement.same_bytes,
                "differences": differences.collect::<Vec<_>>(),
                "histories_differ": histories.collect::<Vec<_>>(),
            },
        })
    }

    fn node_json(&self, node: &NodeReport) -> Value {
        let places = node.places.iter().map(|place| {
            let findings = place.findings.iter().map(|finding| {
                let copies =
                    self.comparison.sound_copies(&node.name, finding.timeline, &finding.file);
                json!({ "kind": finding.kind, "timeline": finding.timeline, "file": finding.file,
                        "lsn": Lsn(finding.lsn), "sound_lsn": Lsn(finding.sound_lsn),
                        "expected": finding.expected, "found": finding.found,
                        "remedy": finding.remedy, "sound_at": whose_json(&copies) })
            });
            let end = place.end.as_ref();
            json!({
                "place": place.place,
                "complete": end.is_some(),
                "read_bytes": place.done_bytes,
                "segments": place.segments,
                "findings": findings.collect::<Vec<_>>(),
                "removed": place.removed,
                "foreign_segments": end.map(|end| end.foreign_count),
                "found_end_lsn": end.and_then(|end| end.found_end_lsn).map(Lsn),
            })
        });
        json!({
            "node": node.name,
            "places": places.collect::<Vec<_>>(),
            "troubles": node.troubles,
            "complete": node.done,
            "not_verified": node.failed.as_ref().map(Reason::words),
        })
    }
}

impl NodeReport {
    fn is_sound(&self) -> bool {
        let whole = |place: &PlaceReport| place.end.is_some() && place.findings.is_empty();
        self.done
            && self.failed.is_none()
            && self.troubles.is_empty()
            && self.places.iter().all(whole)
    }
}

fn write_judgement(text: &mut String, judged: &Judgement, nodes: usize) -> std::fmt::Result {
    for difference in &judged.differences {
        let sides = difference.sides.iter().map(|side| words(side)).collect::<Vec<_>>().join(" | ");
        let (file, lsn) = (&difference.file, difference.page_lsn);
        writeln!(text, "DIFFERENT: {file}, first in the page at {lsn}: {sides}")?;
    }
    for (timeline, whose) in &judged.histories {
        writeln!(text, "DIFFERENT: the history of timeline {timeline}, at {}", words(whose))?;
    }
    match (nodes, judged.same_segments) {
        (0 | 1, _) => Ok(()),
        (_, 0) => writeln!(text, "compared: no segment is held by two nodes to the same end"),
        (_, count) => {
            let bytes = size(judged.same_bytes);
            writeln!(text, "compared: {count} segments, {bytes}, are the same at two nodes")
        }
    }
}

fn words(whose: &[Whose]) -> String {
    let of = |(node, place): &Whose| format!("{node} ({place})");
    whose.iter().map(of).collect::<Vec<_>>().join(", ")
}

fn whose_json(whose: &[Whose]) -> Value {
    whose.iter().map(|(node, place)| json!({ "node": node, "place": place })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(place: &str, step: Step) -> v1::VerifyWalResponse {
        v1::VerifyWalResponse { place: place.to_owned(), step: Some(step) }
    }

    fn segment(sha: u8, sound: bool) -> Step {
        Step::Segment(v1::VerifiedSegment {
            timeline: 1,
            file: "000000010000000000000003".to_owned(),
            from_lsn: 0x300_0000,
            to_lsn: 0x400_0000,
            sha256: vec![sha; 32],
            page_crc32c: vec![1, u32::from(sha)],
            sound,
        })
    }

    fn both(sha_at_south: u8, sound: bool) -> Report {
        let mut report = Report::of(["north", "south"].into_iter());
        for (node, place, sha, sound) in
            [(0, "pg_wal", 1, true), (1, "journal", sha_at_south, sound)]
        {
            report.take(node, told(place, Step::Begun(v1::VerifyBegun { total_bytes: 1 << 24 })));
            report.take(node, told(place, segment(sha, sound)));
            let end = v1::VerifyEnd { read_bytes: 1 << 24, ..Default::default() };
            report.take(node, told(place, Step::End(end)));
            report.take(node, told("", Step::Done(v1::VerifyDone {})));
        }
        report
    }

    #[test]
    fn two_sites_that_are_the_same_are_sound() {
        let report = both(1, true);
        assert!(report.is_sound());
        let text = report.render();
        assert!(text.contains("south journal: 16.0 MiB in 1 segments: sound"), "{text}");
        assert!(text.contains("compared: 1 segments, 16.0 MiB, are the same"), "{text}");
    }

    #[test]
    fn a_difference_without_a_finding_is_not_sound() {
        let report = both(2, true);
        assert!(!report.is_sound());
        let text = report.render();
        let words = "DIFFERENT: 000000010000000000000003, first in the page at 0/3002000: north \
                     (pg_wal) | south (journal)";
        assert!(text.contains(words), "{text}");
        assert_eq!(report.as_json()["compared"]["differences"][0]["page_lsn"], "0/3002000");
    }

    #[test]
    fn a_finding_says_everything_and_where_a_sound_copy_is() {
        let mut report = both(2, false);
        let finding = v1::WalFinding {
            kind: "damaged".to_owned(),
            timeline: 1,
            file: "000000010000000000000003".to_owned(),
            lsn: 0x300_2340,
            sound_lsn: 0x300_2300,
            expected: "this".to_owned(),
            found: "that".to_owned(),
            remedy: "do so".to_owned(),
        };
        report.take(1, told("journal", Step::Finding(finding)));
        assert!(!report.is_sound());
        let text = report.render();
        for words in [
            "1 FINDING",
            "damaged: 000000010000000000000003 at 0/3002340",
            "expected  this",
            "found     that",
            "sound     before 0/3002300",
            "sound at  north (pg_wal)",
            "remedy    do so",
        ] {
            assert!(text.contains(words), "{words:?} is missing in\n{text}");
        }
        let json = report.as_json();
        let told = &json["nodes"][1]["places"][0]["findings"][0];
        assert_eq!(
            (told["lsn"].as_str(), json["sound"].as_bool()),
            (Some("0/3002340"), Some(false))
        );
        assert_eq!(told["sound_at"][0]["node"], "north");
    }

    #[test]
    fn what_was_not_read_to_its_end_is_not_sound() {
        let mut report = Report::of(["south"].into_iter());
        report.take(0, told("journal", Step::Begun(v1::VerifyBegun { total_bytes: 1 })));
        assert!(!report.is_sound());
        assert!(report.render().contains("NOT READ TO THE END"));
        // One place was read, and the node ended before it came to the next.
        report.take(0, told("journal", Step::End(v1::VerifyEnd::default())));
        assert!(!report.is_sound());
        report.take(0, told("", Step::Done(v1::VerifyDone {})));
        assert!(report.is_sound());
        let mut silent = Report::of(["south"].into_iter());
        silent.nodes[0].failed = Some(Reason::Refused("another runs".to_owned()));
        assert!(!silent.is_sound());
        assert!(silent.render().contains("south: NOT VERIFIED: another runs"));
    }
}
