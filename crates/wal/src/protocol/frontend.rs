//! What a client says after the startup packet, as far as a walsender listens.

use bytes::{BufMut, Bytes, BytesMut};

use super::frame::{put_frame, put_text};
use super::{Fields, Frame, ProtocolError};

/// A message from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrontendMessage {
    /// `Q`
    Query(String),
    /// `d`
    CopyData(Bytes),
    /// `c`
    CopyDone,
    /// `f`, with its reason.
    CopyFail(String),
    /// `X`
    Terminate,
    /// `S`
    Sync,
    /// `H`
    Flush,
    /// `p`: a password or a step of SASL or GSSAPI.
    Password(Bytes),
}

impl FrontendMessage {
    /// Reads a message.
    ///
    /// # Errors
    /// When the type is not one of these (the extended query protocol is not spoken on replication
    /// connections) or the body is malformed.
    pub fn decode(frame: Frame) -> Result<FrontendMessage, ProtocolError> {
        match frame.tag {
            b'd' => return Ok(FrontendMessage::CopyData(frame.body)),
            b'p' => return Ok(FrontendMessage::Password(frame.body)),
            _ => {}
        }
        let mut fields = Fields::new(frame.tag, frame.body);
        let message = match frame.tag {
            b'Q' => FrontendMessage::Query(fields.text()?),
            b'c' => FrontendMessage::CopyDone,
            b'f' => FrontendMessage::CopyFail(fields.lossy_text()?),
            b'X' => FrontendMessage::Terminate,
            b'S' => FrontendMessage::Sync,
            b'H' => FrontendMessage::Flush,
            tag => return Err(ProtocolError::Tag { tag: char::from(tag) }),
        };
        fields.end()?;
        Ok(message)
    }

    /// Writes a message.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            FrontendMessage::Query(text) => put_frame(out, b'Q', |out| put_text(out, text)),
            FrontendMessage::CopyData(data) => put_frame(out, b'd', |out| out.put_slice(data)),
            FrontendMessage::CopyDone => put_frame(out, b'c', |_| {}),
            FrontendMessage::CopyFail(reason) => put_frame(out, b'f', |out| put_text(out, reason)),
            FrontendMessage::Terminate => put_frame(out, b'X', |_| {}),
            FrontendMessage::Sync => put_frame(out, b'S', |_| {}),
            FrontendMessage::Flush => put_frame(out, b'H', |_| {}),
            FrontendMessage::Password(data) => put_frame(out, b'p', |out| out.put_slice(data)),
        }
    }
}
