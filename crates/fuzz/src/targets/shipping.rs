//! The stream between source and receiver: the messages of both sides, and whether they are believed.

use bytes::Bytes;
use prost::Message as _;
use understudy_proto::v1::{self, from_source, to_source};
use understudy_shipping::receiver::checks;
use understudy_shipping::source::{PROTOCOL_VERSION, SourceIdentity, validate, validate_ack};
use understudy_types::{
    Admission, ClusterId, Epoch, Lsn, NodeId, PermitSerial, PromotionId, SystemId, Timeline,
    TimelineHistory,
};
use uuid::Uuid;

use super::{Target, about};
use crate::allocation::within;
use crate::random::Random;

pub(super) const TO_SOURCE: Target = Target {
    name: "to-source",
    about: "what a receiver says to its source",
    words: &[],
    polish: polish_to_source,
    judge: judge_to_source,
};

pub(super) const FROM_SOURCE: Target = Target {
    name: "from-source",
    about: "what a source says to its receiver",
    words: &[],
    polish: polish_from_source,
    judge: judge_from_source,
};

/// Memory for each byte: a member of a list that says nothing is two bytes, and 88 here, while the list
/// doubles.
pub(super) const MEMORY_TIMES: usize = 192;

const EPOCH: Epoch = Epoch { incarnation: 1, number: 3 };
const PROMOTION: PromotionId = PromotionId(Uuid::from_u128(2));
const SYSTEM: SystemId = SystemId(77);
const PEER: NodeId = NodeId(2);
/// What the receiver acknowledged before, and what may have been sent.
const ACKNOWLEDGED: Lsn = Lsn(500);
const SENT: Lsn = Lsn(5000);

fn timeline(number: u32) -> Timeline {
    Timeline::new(number).expect("only timelines are named here")
}

/// A source on its third timeline.
fn source() -> SourceIdentity {
    let history = TimelineHistory::root(timeline(1));
    let history = history.promoted(timeline(2), Lsn(500), "");
    SourceIdentity {
        cluster: ClusterId(Uuid::from_u128(1)),
        system_id: SYSTEM,
        epoch: EPOCH,
        promotion: PROMOTION,
        history: history.promoted(timeline(4), Lsn(900), ""),
    }
}

fn admission() -> Admission {
    let serial = PermitSerial(1);
    Admission { serial, epoch: EPOCH, promotion: PROMOTION, timeline: timeline(4) }
}

fn judge_to_source(input: &[u8]) -> String {
    let bytes = Bytes::copy_from_slice(input);
    let decoded = within(input.len(), MEMORY_TIMES, || v1::ToSource::decode(bytes));
    let Ok(message) = decoded else { return "no message".to_owned() };
    assert_eq!(v1::ToSource::decode(&*message.encode_to_vec()).as_ref(), Ok(&message));
    match message.message {
        None => "empty".to_owned(),
        Some(to_source::Message::Attach(attach)) => judge_attach(&attach),
        Some(to_source::Message::Ack(ack)) => {
            match validate_ack(&ack, &source(), PEER, ACKNOWLEDGED..=SENT) {
                Ok(position) => {
                    assert_eq!(position.durable_lsn, Lsn(ack.durable_lsn));
                    assert!((ACKNOWLEDGED..=SENT).contains(&position.durable_lsn));
                    assert_eq!(ack.epoch.map(Epoch::from), Some(EPOCH));
                    assert_eq!(ack.promotion, PROMOTION.to_string());
                    format!("ack {} {}", position.replay_lsn.is_some(), ack.feedback.is_some())
                }
                Err(fault) => format!("ack {}", fault.to_string().len() > 30),
            }
        }
    }
}

/// The first words of a fault that are the same whatever the values in it are.
pub(super) fn plain(fault: &str) -> String {
    let word = |word: &&str| word.bytes().all(|byte| byte.is_ascii_lowercase());
    fault.split(' ').take_while(word).collect::<Vec<_>>().join(" ")
}

/// Whoever is let in is of this cluster, this epoch and this history, and says what can be compared.
fn judge_attach(attach: &v1::Attach) -> String {
    let source = source();
    let valid = match within(attach.encoded_len(), 4, || validate(attach, &source, PEER)) {
        Ok(valid) => valid,
        Err(refusal) => {
            return format!("{:?} {}", refusal.reason, plain(&refusal.detail));
        }
    };
    let hello = attach.hello.as_ref().expect("nobody is let in without a word");
    assert_eq!((hello.cluster.as_str(), hello.node_id), (&*source.cluster.to_string(), PEER.0));
    assert!(hello.protocol_version == PROTOCOL_VERSION && [0, SYSTEM.0].contains(&hello.system_id));
    assert_eq!(attach.epoch.map(Epoch::from), Some(EPOCH));
    assert_eq!(attach.promotion.parse(), Ok(PROMOTION));
    assert_eq!((valid.start_lsn, valid.tail_lsn), (Lsn(attach.start_lsn), Lsn(attach.tail_lsn)));
    let end = source.history.end_of(valid.timeline).expect("its timeline is in the history");
    assert!(valid.tail_lsn <= valid.start_lsn && valid.start_lsn <= end);
    let holds = valid.tail_lsn < valid.start_lsn;
    assert_eq!(valid.tail_sha256.len(), if holds { 32 } else { 0 });
    assert!(source.history.end_of(valid.read_timeline).is_some());
    assert!(valid.read_timeline <= valid.timeline);
    assert!(valid.read_timeline <= source.history.timeline_at(valid.tail_lsn));
    assert_eq!(valid.begin_at_tip, attach.begin_at_tip);
    assert!(!valid.begin_at_tip || valid.start_lsn == Lsn::ZERO);
    format!("attach {} {} {holds}", valid.timeline, valid.read_timeline)
}

fn judge_from_source(input: &[u8]) -> String {
    let bytes = Bytes::copy_from_slice(input);
    let decoded = within(input.len(), MEMORY_TIMES, || v1::FromSource::decode(bytes));
    let Ok(message) = decoded else { return "no message".to_owned() };
    assert_eq!(v1::FromSource::decode(&*message.encode_to_vec()).as_ref(), Ok(&message));
    let fault = |error: String| plain(&error);
    match message.message {
        None => "empty".to_owned(),
        Some(from_source::Message::Frame(frame)) => {
            let packed = frame.raw_bytes > 0;
            // What a compressed frame may make of itself is bounded.
            let bound = if packed { checks::FRAME_RAW_BYTES_MAX as usize } else { 0 };
            let mut unpacking = checks::Unpacking::default();
            match within(bound, 1, || checks::frame(frame.clone(), EPOCH, &mut unpacking)) {
                Ok((on, lsn, data)) => {
                    assert_eq!(frame.epoch.map(Epoch::from), Some(EPOCH));
                    assert_eq!((on.get(), lsn.0), (frame.timeline, frame.lsn));
                    assert!(if packed {
                        data.len() == frame.raw_bytes as usize
                    } else {
                        data == frame.data
                    });
                    assert!(lsn.0.checked_add(data.len() as u64).is_some());
                    assert_eq!(crc32c::crc32c(&data), frame.crc32c);
                    format!("frame {}", about(data.len()))
                }
                Err(error) => fault(error),
            }
        }
        Some(from_source::Message::Attached(attached)) => {
            let (known, at) = (Some(SYSTEM), SENT);
            if let Ok((size, _, begins)) = checks::attached(&attached, &admission(), known, None) {
                assert_eq!(begins.0, attached.start_lsn);
                assert_eq!(begins.align_down(size.bytes()), begins);
            }
            match checks::attached(&attached, &admission(), known, Some(at)) {
                Ok((size, on, begins)) => {
                    assert_eq!((attached.start_lsn, begins), (at.0, at));
                    assert_eq!(attached.system_id, SYSTEM.0);
                    assert_eq!(u32::from(size), attached.segment_size_bytes);
                    assert_eq!(on.get(), attached.timeline);
                    format!("attached {size}")
                }
                Err(error) => fault(error),
            }
        }
        Some(from_source::Message::TimelineSwitch(switch)) => {
            match checks::switch(&switch, EPOCH) {
                Ok((to, at)) => {
                    assert_eq!((to.get(), at.0), (switch.timeline, switch.fork_lsn));
                    let text = String::from_utf8_lossy(&switch.history);
                    format!("switch {}", TimelineHistory::parse(to, &text).is_ok())
                }
                Err(error) => fault(error),
            }
        }
        Some(from_source::Message::Heartbeat(heartbeat)) => {
            format!("heartbeat {}", checks::epoch(heartbeat.epoch, EPOCH).is_ok())
        }
        Some(from_source::Message::Refused(refused)) => format!("refused {:?}", refused.reason()),
    }
}

/// Makes one thing after the other right that a stranger would not know.
fn polish_to_source(input: &mut Vec<u8>, random: &mut Random) {
    let Ok(mut message) = v1::ToSource::decode(&**input) else { return };
    let source = source();
    match &mut message.message {
        Some(to_source::Message::Attach(attach)) => {
            let hello = attach.hello.get_or_insert_default();
            right(random, || hello.protocol_version = PROTOCOL_VERSION);
            right(random, || hello.cluster = source.cluster.to_string());
            right(random, || hello.node_id = PEER.0);
            right(random, || hello.system_id = SYSTEM.0);
            right(random, || attach.epoch = Some(EPOCH.into()));
            right(random, || attach.promotion = PROMOTION.to_string());
            right(random, || attach.timeline %= 6);
            right(random, || attach.start_lsn %= 1200);
            right(random, || attach.tail_lsn %= 1200);
            right(random, || {
                let holds = attach.tail_lsn < attach.start_lsn;
                attach.tail_sha256.resize(if holds { 32 } else { 0 }, 7);
            });
            if random.once_in(8) {
                attach.tail_sha256.resize(random.below(64), 7);
            }
        }
        Some(to_source::Message::Ack(ack)) => {
            right(random, || ack.epoch = Some(EPOCH.into()));
            right(random, || ack.promotion = PROMOTION.to_string());
            right(random, || ack.durable_lsn %= 6000);
        }
        None => return,
    }
    *input = message.encode_to_vec();
}

fn polish_from_source(input: &mut Vec<u8>, random: &mut Random) {
    let Ok(mut message) = v1::FromSource::decode(&**input) else { return };
    match &mut message.message {
        Some(from_source::Message::Frame(frame)) => {
            right(random, || frame.epoch = Some(EPOCH.into()));
            right(random, || frame.raw_bytes = 0);
            right(random, || frame.crc32c = crc32c::crc32c(&frame.data));
        }
        Some(from_source::Message::Attached(attached)) => {
            right(random, || attached.epoch = Some(EPOCH.into()));
            right(random, || attached.promotion = PROMOTION.to_string());
            right(random, || attached.system_id = SYSTEM.0);
            right(random, || attached.start_lsn = SENT.0);
            let shift = random.below(12);
            right(random, || attached.segment_size_bytes = 1 << (20 + shift));
        }
        Some(from_source::Message::TimelineSwitch(switch)) => {
            right(random, || switch.epoch = Some(EPOCH.into()));
        }
        Some(from_source::Message::Heartbeat(_) | from_source::Message::Refused(_)) | None => {
            return;
        }
    }
    *input = message.encode_to_vec();
}

/// Mostly does it.
pub(super) fn right(random: &mut Random, make: impl FnOnce()) {
    if !random.once_in(6) {
        make();
    }
}
