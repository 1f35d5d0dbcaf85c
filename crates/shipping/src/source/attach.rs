//! Whether a receiver that wants to attach belongs to this source, judged before a byte is read, and
//! whether what it acknowledges afterwards can be true.
//!
//! Pure: compares what the receiver says with what the source is. The bytes themselves are compared
//! afterwards, by the session (I12); nothing is sent before both have agreed.

use std::ops::RangeInclusive;

use tonic::Status;
use understudy_proto::v1::{self, refused::Reason};
use understudy_proto::{parse_promotion, parse_timeline};
use understudy_types::{
    ClusterId, Epoch, Lsn, NodeId, PromotionId, ReceiverPosition, SegmentSize, SystemId, Timeline,
    TimelineHistory,
};

/// The version of the stream's messages that this program speaks.
pub const PROTOCOL_VERSION: u32 = 2;

/// What a source is, as far as a receiver has to agree with it.
#[derive(Clone, Debug)]
pub struct SourceIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// PostgreSQL's system identifier.
    pub system_id: SystemId,
    /// The epoch under which this source speaks.
    pub epoch: Epoch,
    /// The promotion of that epoch.
    pub promotion: PromotionId,
    /// The history of the primary's timeline.
    pub history: TimelineHistory,
}

/// An attach that agrees in everything that can be told without reading WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidAttach {
    /// The timeline of the receiver's last byte.
    pub timeline: Timeline,
    /// Where it goes on.
    pub start_lsn: Lsn,
    /// From where its bytes are compared; equal to `start_lsn` when it holds nothing.
    pub tail_lsn: Lsn,
    /// SHA-256 of its bytes from `tail_lsn` to `start_lsn`; empty when it holds nothing.
    pub tail_sha256: Vec<u8>,
    /// It can read what is compressed.
    pub zstd: bool,
    /// It begins with the segment that is being written; its positions are filled in by `at_tip`.
    pub begin_at_tip: bool,
    /// The timeline of the byte at `tail_lsn`: where reading begins.
    pub read_timeline: Timeline,
}

impl ValidAttach {
    /// The same at the beginning of the segment that is being written, for one that wants to begin there.
    pub(crate) fn at_tip(
        &self,
        source: &SourceIdentity,
        flush_lsn: Lsn,
        segment_size: SegmentSize,
    ) -> ValidAttach {
        let start_lsn = flush_lsn.align_down(segment_size.bytes());
        let timeline = source.history.timeline_at(start_lsn);
        ValidAttach {
            timeline,
            start_lsn,
            tail_lsn: start_lsn,
            read_timeline: timeline,
            ..self.clone()
        }
    }
}

/// Why a receiver is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// On which to act.
    pub reason: Reason,
    /// For people.
    pub detail: String,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Refusal {
        Refusal { reason, detail: detail.into() }
    }

    pub(crate) fn message(self, epoch: Epoch) -> v1::FromSource {
        let refused = v1::Refused {
            reason: self.reason.into(),
            detail: self.detail,
            epoch: Some(epoch.into()),
        };
        v1::FromSource { message: Some(v1::from_source::Message::Refused(refused)) }
    }
}

/// Judges an attach of `peer`, which the channel's certificate has named.
///
/// # Errors
/// When the receiver does not belong to this source, or holds what is not in its history.
pub fn validate(
    attach: &v1::Attach,
    source: &SourceIdentity,
    peer: NodeId,
) -> Result<ValidAttach, Refusal> {
    check_hello(attach.hello.as_ref(), source, peer)?;
    let epoch: Epoch = attach.epoch.map(Epoch::from).unwrap_or_default();
    if epoch < source.epoch {
        let detail = format!("epoch {epoch} is older than {}", source.epoch);
        return Err(Refusal::new(Reason::StaleEpoch, detail));
    }
    if epoch > source.epoch {
        let detail = format!("epoch {epoch} is newer than {}", source.epoch);
        return Err(Refusal::new(Reason::NewerEpoch, detail));
    }
    let foreign =
        |error: understudy_proto::FieldError| Refusal::new(Reason::WrongCluster, error.to_string());
    let promotion = parse_promotion("promotion", &attach.promotion).map_err(foreign)?;
    if promotion != source.promotion {
        let detail = format!("promotion {promotion} is not {}", source.promotion);
        return Err(Refusal::new(Reason::WrongCluster, detail));
    }
    let timeline = parse_timeline("timeline", attach.timeline).map_err(foreign)?;
    check_position(attach, source, timeline)
}

fn check_hello(
    hello: Option<&v1::Hello>,
    source: &SourceIdentity,
    peer: NodeId,
) -> Result<(), Refusal> {
    let wrong = |detail: String| Err(Refusal::new(Reason::WrongCluster, detail));
    let Some(hello) = hello else { return wrong("no hello".to_owned()) };
    if hello.protocol_version != PROTOCOL_VERSION {
        let theirs = hello.protocol_version;
        return wrong(format!("protocol version {theirs} is not {PROTOCOL_VERSION}"));
    }
    if hello.cluster != source.cluster.to_string() {
        return wrong(format!("cluster {} is not {}", hello.cluster, source.cluster));
    }
    // 0 is "not known yet": a receiver that holds nothing may not know it.
    if hello.system_id != 0 && hello.system_id != source.system_id.0 {
        return wrong(format!("system identifier {} is not {}", hello.system_id, source.system_id));
    }
    if hello.node_id != peer.0 {
        return wrong(format!("node {} speaks on the channel of node {peer}", hello.node_id));
    }
    Ok(())
}

fn check_position(
    attach: &v1::Attach,
    source: &SourceIdentity,
    timeline: Timeline,
) -> Result<ValidAttach, Refusal> {
    let diverged = |detail: String| Err(Refusal::new(Reason::Diverged, detail));
    let (start_lsn, tail_lsn) = (Lsn(attach.start_lsn), Lsn(attach.tail_lsn));
    let Some(end_lsn) = source.history.end_of(timeline) else {
        let current = source.history.timeline;
        return diverged(format!("timeline {timeline} is not in the history of {current}"));
    };
    if start_lsn > end_lsn {
        return diverged(format!(
            "{start_lsn} lies after timeline {timeline} was left at {end_lsn}"
        ));
    }
    // A receiver on a timeline holds it from where it left its parent.
    let begin_lsn = source
        .history
        .ancestors
        .iter()
        .rfind(|entry| entry.timeline < timeline)
        .map_or(Lsn::ZERO, |entry| entry.switch_lsn);
    let nothing_held = tail_lsn == start_lsn;
    if start_lsn < begin_lsn && !nothing_held {
        return diverged(format!(
            "{start_lsn} lies before timeline {timeline} began at {begin_lsn}"
        ));
    }
    let hash_bytes = attach.tail_sha256.len();
    if tail_lsn > start_lsn || hash_bytes != if nothing_held { 0 } else { 32 } {
        let detail = format!("tail {tail_lsn} to {start_lsn} with a hash of {hash_bytes} bytes");
        return Err(Refusal::new(Reason::WrongCluster, detail));
    }
    if attach.begin_at_tip && start_lsn != Lsn::ZERO {
        let detail = format!("it wants to begin at the tip, and to go on at {start_lsn}");
        return Err(Refusal::new(Reason::WrongCluster, detail));
    }
    // Nothing held says nothing about a timeline: it begins with what the history says.
    let natural = source.history.timeline_at(tail_lsn);
    let timeline = if nothing_held && start_lsn < begin_lsn { natural } else { timeline };
    Ok(ValidAttach {
        timeline,
        start_lsn,
        tail_lsn,
        tail_sha256: attach.tail_sha256.clone(),
        zstd: attach.zstd,
        begin_at_tip: attach.begin_at_tip,
        read_timeline: natural.min(timeline),
    })
}

/// An acknowledgement that cannot be true.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AckFault {
    /// It speaks of another epoch or promotion.
    #[error("acknowledged for another epoch")]
    OtherEpoch,
    /// It takes back what was acknowledged, or claims what was not sent.
    #[error("acknowledged {durable_lsn}, after {before} and with {sent_lsn} sent")]
    OffRange {
        /// What it claims.
        durable_lsn: Lsn,
        /// What was acknowledged already.
        before: Lsn,
        /// The end of what may have been sent.
        sent_lsn: Lsn,
    },
}

impl From<AckFault> for Status {
    fn from(fault: AckFault) -> Status {
        match fault {
            AckFault::OtherEpoch => Status::failed_precondition(fault.to_string()),
            AckFault::OffRange { .. } => Status::invalid_argument(fault.to_string()),
        }
    }
}

/// Judges an acknowledgement of `peer`; `possible` goes from what it acknowledged before to the end of what
/// may have been sent.
///
/// # Errors
/// When it is of another epoch or outside of what is possible.
pub fn validate_ack(
    ack: &v1::Ack,
    source: &SourceIdentity,
    peer: NodeId,
    possible: RangeInclusive<Lsn>,
) -> Result<ReceiverPosition, AckFault> {
    let same_epoch = ack.epoch.map(Epoch::from) == Some(source.epoch);
    if !same_epoch || ack.promotion != source.promotion.to_string() {
        return Err(AckFault::OtherEpoch);
    }
    let durable_lsn = Lsn(ack.durable_lsn);
    if !possible.contains(&durable_lsn) {
        let (before, sent_lsn) = possible.into_inner();
        return Err(AckFault::OffRange { durable_lsn, before, sent_lsn });
    }
    let replay_lsn = Some(Lsn(ack.replay_lsn)).filter(|lsn| *lsn != Lsn::ZERO);
    let begin_lsn = Lsn(ack.begin_lsn);
    Ok(ReceiverPosition { node: peer, attached: true, durable_lsn, replay_lsn, begin_lsn })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch { incarnation: 0, number: 3 };

    fn source() -> SourceIdentity {
        let tli = |n| Timeline::new(n).unwrap();
        SourceIdentity {
            cluster: ClusterId(uuid::Uuid::from_u128(1)),
            system_id: SystemId(77),
            epoch: EPOCH,
            promotion: PromotionId(uuid::Uuid::from_u128(2)),
            history: TimelineHistory::root(tli(1)).promoted(tli(2), Lsn(500), "").promoted(
                tli(4),
                Lsn(900),
                "",
            ),
        }
    }

    fn attach(timeline: u32, tail: u64, start: u64) -> v1::Attach {
        let source = source();
        v1::Attach {
            hello: Some(v1::Hello {
                protocol_version: PROTOCOL_VERSION,
                cluster: source.cluster.to_string(),
                node_id: 2,
                system_id: 77,
                ..Default::default()
            }),
            epoch: Some(EPOCH.into()),
            promotion: source.promotion.to_string(),
            timeline,
            start_lsn: start,
            tail_lsn: tail,
            tail_sha256: if tail == start { Vec::new() } else { vec![0; 32] },
            zstd: true,
            begin_at_tip: false,
        }
    }

    fn reason(attach: &v1::Attach) -> Option<Reason> {
        validate(attach, &source(), NodeId(2)).err().map(|refusal| refusal.reason)
    }

    #[test]
    fn only_an_equal_epoch_attaches() {
        let mut other = attach(4, 950, 1000);
        assert_eq!(reason(&other), None);
        other.epoch = Some(v1::Epoch { incarnation: 0, number: 2 });
        assert_eq!(reason(&other), Some(Reason::StaleEpoch));
        other.epoch = Some(v1::Epoch { incarnation: 1, number: 0 });
        assert_eq!(reason(&other), Some(Reason::NewerEpoch));
    }

    #[test]
    fn a_stranger_is_refused() {
        let changes: [fn(&mut v1::Attach); 8] = [
            |a| a.hello = None,
            |a| a.hello.as_mut().unwrap().cluster = String::new(),
            |a| a.hello.as_mut().unwrap().system_id = 78,
            |a| a.hello.as_mut().unwrap().node_id = 3,
            |a| a.hello.as_mut().unwrap().protocol_version = 9,
            |a| a.promotion = uuid::Uuid::from_u128(9).to_string(),
            |a| a.tail_sha256 = Vec::new(),
            |a| a.timeline = 0,
        ];
        for change in changes {
            let mut stranger = attach(4, 950, 1000);
            change(&mut stranger);
            assert_eq!(reason(&stranger), Some(Reason::WrongCluster), "{stranger:?}");
        }
    }

    #[test]
    fn a_position_off_the_history_is_diverged() {
        assert_eq!(reason(&attach(3, 950, 1000)), Some(Reason::Diverged));
        assert_eq!(reason(&attach(1, 450, 501)), Some(Reason::Diverged));
        assert_eq!(reason(&attach(2, 450, 499)), Some(Reason::Diverged));
        assert_eq!(reason(&attach(1, 450, 500)), None);
    }

    #[test]
    fn one_that_begins_at_the_tip_is_given_the_segment_that_is_being_written() {
        let tip = |start| v1::Attach { begin_at_tip: true, ..attach(4, start, start) };
        assert_eq!(reason(&tip(950)), Some(Reason::WrongCluster));
        let valid = validate(&tip(0), &source(), NodeId(2)).unwrap();
        let size = SegmentSize::new(1 << 20).unwrap();
        // The segment begins before the last two forks: its first byte is of the first timeline.
        let begun = valid.at_tip(&source(), Lsn(0x5_0000), size);
        assert_eq!((begun.start_lsn, begun.read_timeline.get()), (Lsn::ZERO, 1));
        let later = valid.at_tip(&source(), Lsn(0x35_0000), size);
        assert_eq!((later.start_lsn, later.tail_lsn), (Lsn(0x30_0000), Lsn(0x30_0000)));
        assert_eq!((later.timeline.get(), later.read_timeline.get()), (4, 4));
    }

    #[test]
    fn reading_begins_on_the_timeline_of_the_tail() {
        let valid = |a| validate(&a, &source(), NodeId(2)).unwrap();
        assert_eq!(valid(attach(4, 880, 900)).read_timeline.get(), 2);
        assert_eq!(valid(attach(4, 910, 1000)).read_timeline.get(), 4);
        assert_eq!(valid(attach(1, 500, 500)).read_timeline.get(), 1);
        let empty = valid(attach(4, 100, 100));
        assert_eq!((empty.timeline.get(), empty.read_timeline.get()), (1, 1));
    }
}
