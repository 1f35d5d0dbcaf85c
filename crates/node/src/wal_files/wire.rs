//! The messages of the service, to and from what `shipping` speaks.

use understudy_proto::v1;
use understudy_proto::v1::verify_wal_response::Step as Wire;
use understudy_shipping::journal::inspect::{
    Ended, Finding, Place, PlaceKind, Step, VerifyOptions, WalFile,
};
use understudy_shipping::journal::{JournalError, Room};
use understudy_types::{Lsn, Timeline};

use super::RATE_DEFAULT;

pub(super) fn place(place: &Place) -> Result<v1::WalPlace, JournalError> {
    let coverage = place.survey()?.coverage(place);
    let room = Room::of(&place.dir).ok();
    let range = |range: &understudy_shipping::journal::inspect::Range| v1::WalRange {
        timeline: range.timeline.get(),
        from_lsn: range.from_lsn.0,
        to_lsn: range.to_lsn.0,
        segments: range.segments,
    };
    let gap = |gap: &understudy_shipping::journal::inspect::Gap| v1::WalGap {
        timeline: gap.timeline.get(),
        from_lsn: gap.from_lsn.0,
        to_lsn: gap.to_lsn.0,
        first_file: gap.first_file.clone(),
    };
    Ok(v1::WalPlace {
        kind: place.kind.as_str().to_owned(),
        system_id: place.system_id.0,
        segment_bytes: u32::from(place.size),
        timeline: place.timeline.get(),
        durable_lsn: place.end_lsn().map(|lsn| lsn.0),
        ranges: coverage.ranges.iter().map(range).collect(),
        gaps: coverage.gaps.iter().map(gap).collect(),
        free_bytes: room.map(|room| room.free_bytes),
        disk_bytes: room.map(|room| room.total_bytes),
    })
}

pub(super) fn file(file: &WalFile) -> v1::WalFile {
    v1::WalFile {
        name: file.name.clone(),
        kind: file.kind.as_str().to_owned(),
        timeline: file.timeline.get(),
        from_lsn: file.from_lsn.map(|lsn| lsn.0),
        to_lsn: file.to_lsn.map(|lsn| lsn.0),
        bytes: file.bytes,
        modified_unix_us: file.modified_unix_us,
    }
}

/// Whether a file is among those that were asked for.
pub(super) fn is_wanted(file: &v1::WalFile, request: &v1::ListWalFilesRequest) -> bool {
    if request.timeline.is_some_and(|timeline| timeline != file.timeline) {
        return false;
    }
    if request.from_lsn.is_none() && request.to_lsn.is_none() {
        return true;
    }
    let Some(from_lsn) = file.from_lsn else { return false };
    // Of an unfinished segment without a known end at least its beginning is WAL.
    let to_lsn = file.to_lsn.unwrap_or(from_lsn + file.bytes);
    request.from_lsn.is_none_or(|wanted| to_lsn > wanted)
        && request.to_lsn.is_none_or(|wanted| from_lsn < wanted)
}

/// What is asked for; the rate as it will be kept.
pub(super) fn options(request: &v1::VerifyWalRequest) -> VerifyOptions {
    let cut = |cut: &v1::WalCut| Some((Timeline::new(cut.timeline)?, Lsn(cut.lsn)));
    let rate = match request.bytes_per_second {
        0 => RATE_DEFAULT,
        asked => asked,
    };
    VerifyOptions {
        from_lsn: request.from_lsn.map(Lsn),
        to_lsn: request.to_lsn.map(Lsn),
        bytes_per_second: rate,
        cuts: request.cuts.iter().filter_map(cut).collect(),
    }
}

pub(super) fn step(step: Step, at: PlaceKind) -> Wire {
    match step {
        Step::Begun { total_bytes } => Wire::Begun(v1::VerifyBegun { total_bytes }),
        Step::Progress { done_bytes, timeline, lsn } => {
            Wire::Progress(v1::VerifyProgress { done_bytes, timeline: timeline.get(), lsn: lsn.0 })
        }
        Step::History { timeline, ancestors } => Wire::History(v1::VerifiedHistory {
            timeline: timeline.get(),
            ancestors: ancestors
                .into_iter()
                .map(|(timeline, lsn)| v1::WalCut { timeline: timeline.get(), lsn: lsn.0 })
                .collect(),
        }),
        Step::Segment(digest) => Wire::Segment(v1::VerifiedSegment {
            timeline: digest.timeline.get(),
            file: digest.file,
            from_lsn: digest.from_lsn.0,
            to_lsn: digest.to_lsn.0,
            sha256: digest.sha256.to_vec(),
            page_crc32c: digest.page_crc32c,
            sound: digest.sound,
        }),
        Step::Finding(found) => Wire::Finding(finding(found, at)),
        Step::Removed { file } => Wire::RemovedFile(file),
    }
}

fn finding(finding: Finding, at: PlaceKind) -> v1::WalFinding {
    v1::WalFinding {
        kind: finding.kind.as_str().to_owned(),
        timeline: finding.timeline.get(),
        file: finding.file,
        lsn: finding.lsn.0,
        sound_lsn: finding.sound_lsn.0,
        expected: finding.expected,
        found: finding.found,
        remedy: finding.kind.remedy(at).to_owned(),
    }
}

pub(super) fn ended(ended: &Ended) -> v1::VerifyEnd {
    v1::VerifyEnd {
        read_bytes: ended.read_bytes,
        findings_count: ended.findings_count,
        foreign_count: ended.foreign_count,
        found_end_lsn: ended.found_end_lsn.map(|lsn| lsn.0),
    }
}
