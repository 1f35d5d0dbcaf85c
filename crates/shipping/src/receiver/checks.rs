//! What a receiver can tell about the holder's messages by looking at them alone.
//!
//! Pure: compares a message with what was admitted and asked for. Whether the bytes of a frame are WAL is
//! the journal's to verify; a message that fails here never reaches it. The answers are words for people,
//! since every fault leads to the same: this stream ends, and another is tried.

use bytes::Bytes;
use understudy_proto::v1;
use understudy_types::{Admission, Epoch, Lsn, SegmentSize, SystemId, Timeline};

pub use crate::compression::{FRAME_RAW_BYTES_MAX, Unpacking};

/// The epoch of a message, which has to be the admitted one.
///
/// # Errors
/// When it is another, or missing.
pub fn epoch(said: Option<v1::Epoch>, admitted: Epoch) -> Result<(), String> {
    let said = said.map(Epoch::from).unwrap_or_default();
    if said == admitted {
        return Ok(());
    }
    Err(format!("the holder speaks of epoch {said}, {admitted} is admitted"))
}

/// The answer to an attach at `asked_lsn`, or at the tip, which is the beginning of a segment; `known` is
/// the system whose WAL is held or expected.
///
/// # Errors
/// When something else was attached than was asked for.
pub fn attached(
    attached: &v1::Attached,
    admission: &Admission,
    known: Option<SystemId>,
    asked_lsn: Option<Lsn>,
) -> Result<(SegmentSize, Timeline, Lsn), String> {
    let same = attached.epoch.map(Epoch::from) == Some(admission.epoch)
        && attached.promotion == admission.promotion.to_string()
        && asked_lsn.is_none_or(|asked| Lsn(attached.start_lsn) == asked);
    let same_system = known.is_none_or(|known| known.0 == attached.system_id);
    let size = SegmentSize::new(attached.segment_size_bytes);
    let (Some(size), true, true) = (size, same, same_system) else {
        return Err("the holder attached something else than was asked for".to_owned());
    };
    let timeline = Timeline::new(attached.timeline)
        .ok_or_else(|| "the holder attached timeline 0".to_owned())?;
    let start_lsn = Lsn(attached.start_lsn);
    if asked_lsn.is_none() && start_lsn.align_down(size.bytes()) != start_lsn {
        return Err(format!("the holder attached at {start_lsn}, where no segment begins"));
    }
    Ok((size, timeline, start_lsn))
}

/// A run of WAL: its timeline, its position, its bytes, of which the last lies before `Lsn::MAX`.
///
/// # Errors
/// When it is of another epoch, was damaged, or cannot lie where it says.
pub fn frame(
    frame: v1::Frame,
    admitted: Epoch,
    unpacking: &mut Unpacking,
) -> Result<(Timeline, Lsn, Bytes), String> {
    epoch(frame.epoch, admitted)?;
    let timeline = Timeline::new(frame.timeline)
        .ok_or_else(|| "the holder sent WAL of timeline 0".to_owned())?;
    let lsn = Lsn(frame.lsn);
    let data = match frame.raw_bytes {
        0 => frame.data,
        raw_bytes => unpacking
            .unpack(&frame.data, raw_bytes)
            .map_err(|error| format!("unpack the frame at {lsn}: {error}"))?
            .into(),
    };
    if crc32c::crc32c(&data) != frame.crc32c {
        return Err(format!("the frame at {lsn} was damaged on its way"));
    }
    if lsn.0.checked_add(data.len() as u64).is_none() {
        return Err(format!("the frame at {lsn} reaches beyond all WAL"));
    }
    Ok((timeline, lsn, data))
}

/// Where the stream leaves its timeline, and for which.
///
/// # Errors
/// When it is of another epoch, or names no timeline.
pub fn switch(switch: &v1::TimelineSwitch, admitted: Epoch) -> Result<(Timeline, Lsn), String> {
    epoch(switch.epoch, admitted)?;
    let timeline = Timeline::new(switch.timeline)
        .ok_or_else(|| "the holder switched to timeline 0".to_owned())?;
    Ok((timeline, Lsn(switch.fork_lsn)))
}
