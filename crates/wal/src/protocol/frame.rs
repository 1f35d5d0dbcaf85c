//! Framing: one type byte, one length word, a body. Decides where a message ends, not what it says.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::ProtocolError;

/// The greatest length word accepted, in bytes.
///
/// A walsender puts at most 128 KiB of WAL into a message (`MAX_SEND_SIZE`); history files and error
/// reports are far smaller.
pub const MESSAGE_BYTES_MAX: u32 = 1 << 20;

/// One whole message: its type and its body, without the length word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The message's type byte.
    pub tag: u8,
    /// What follows the length word; shares the buffer it was taken from.
    pub body: Bytes,
}

/// Takes one whole message off the front of `buffer`; `None` while it is incomplete.
///
/// # Errors
/// When the length word is below 4 or above `length_max`; the connection is of no further use then.
pub fn take_frame(buffer: &mut BytesMut, length_max: u32) -> Result<Option<Frame>, ProtocolError> {
    let Some(header) = buffer.get(..5) else { return Ok(None) };
    let tag = header[0];
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
    if !(4..=length_max).contains(&length) {
        return Err(ProtocolError::Length { tag: char::from(tag), length, max: length_max });
    }
    let total = length as usize + 1;
    if buffer.len() < total {
        return Ok(None);
    }
    let mut message = buffer.split_to(total);
    message.advance(5);
    Ok(Some(Frame { tag, body: message.freeze() }))
}

/// Writes a message whose body `write` appends.
pub(crate) fn put_frame(out: &mut BytesMut, tag: u8, write: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let at = out.len();
    out.put_u32(0);
    write(out);
    let length = u32::try_from(out.len() - at).expect("messages are written from bounded parts");
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Writes a zero-terminated text; a zero byte inside would end it early, so it is left out.
pub(crate) fn put_text(out: &mut BytesMut, text: &str) {
    out.extend(text.bytes().filter(|byte| *byte != 0));
    out.put_u8(0);
}
