//! PostgreSQL's frontend/backend protocol as far as replication needs it: a pure codec for both sides.
//!
//! It decides what bytes mean and how messages are written; it opens no socket and keeps no state of
//! a conversation. Every length is bounded before anything is kept, and garbage is an error, never a
//! panic. Facts are from the PostgreSQL manual, chapter "Frontend/Backend Protocol": "Message
//! Formats", "Streaming Replication Protocol" and "Error and Notice Message Fields".

mod backend;
mod command;
mod frame;
mod frontend;
mod replication;
mod startup;

pub use backend::{
    Authentication, BackendMessage, Column, ErrorFields, OID_BYTEA, OID_INT4, OID_INT8, OID_TEXT,
    encode_data_row,
};
pub use command::{ParseCommandError, ReplicationCommand};
pub use frame::{Frame, MESSAGE_BYTES_MAX, take_frame};
pub use frontend::FrontendMessage;
pub use replication::{
    HotStandbyFeedback, PgTimestamp, StandbyMessage, StandbyStatus, WAL_DATA_HEADER_BYTES,
    WalSenderMessage, encode_standby_status, encode_wal_data, wal_data_room,
};
pub use startup::{
    STARTUP_BYTES_MAX, Startup, StartupRequest, encode_startup, startup_length, take_startup,
};

/// Bytes that are not the protocol, or exceed a bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The length word exceeds the bound or cannot contain itself.
    #[error("read message {tag:?}: length of {length} bytes is not between 4 and {max}")]
    Length {
        /// The message's type, 0 for a startup packet.
        tag: char,
        /// The length word.
        length: u32,
        /// The greatest that is accepted.
        max: u32,
    },
    /// A message of a type that is not expected from this side.
    #[error("read message: type {tag:?} is not known here")]
    Tag {
        /// The message's type.
        tag: char,
    },
    /// The body ends too early, is too long, or a field cannot be what it means.
    #[error("read message {tag:?}: {problem}")]
    Body {
        /// The message's type, 0 for a startup packet.
        tag: char,
        /// What is wrong.
        problem: &'static str,
    },
}

/// Takes fields off the front of a message's body.
#[derive(Debug)]
pub(crate) struct Fields {
    tag: u8,
    body: bytes::Bytes,
}

impl Fields {
    pub(crate) fn new(tag: u8, body: bytes::Bytes) -> Fields {
        Fields { tag, body }
    }

    pub(crate) fn bad(&self, problem: &'static str) -> ProtocolError {
        ProtocolError::Body { tag: char::from(self.tag), problem }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<bytes::Bytes, ProtocolError> {
        if self.body.len() < count {
            return Err(self.bad("the body ends too early"));
        }
        Ok(self.body.split_to(count))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let bytes = self.bytes(N)?;
        Ok(bytes.as_ref().try_into().expect("exactly N bytes were taken"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, ProtocolError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, ProtocolError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, ProtocolError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(crate) fn i32(&mut self) -> Result<i32, ProtocolError> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, ProtocolError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub(crate) fn i64(&mut self) -> Result<i64, ProtocolError> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    pub(crate) fn text(&mut self) -> Result<String, ProtocolError> {
        let Some(end) = self.body.iter().position(|byte| *byte == 0) else {
            return Err(self.bad("a text has no terminating zero byte"));
        };
        let text = self.body.split_to(end);
        let _zero = self.body.split_to(1);
        String::from_utf8(text.to_vec()).map_err(|_| self.bad("a text is not UTF-8"))
    }

    /// As `text`, with what is not UTF-8 replaced: for messages to people, in any server encoding.
    pub(crate) fn lossy_text(&mut self) -> Result<String, ProtocolError> {
        let Some(end) = self.body.iter().position(|byte| *byte == 0) else {
            return Err(self.bad("a text has no terminating zero byte"));
        };
        let text = self.body.split_to(end);
        let _zero = self.body.split_to(1);
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    pub(crate) fn remaining(&self) -> usize {
        self.body.len()
    }

    pub(crate) fn rest(self) -> bytes::Bytes {
        self.body
    }

    pub(crate) fn end(&self) -> Result<(), ProtocolError> {
        if self.body.is_empty() { Ok(()) } else { Err(self.bad("the body is too long")) }
    }
}

#[cfg(test)]
mod tests;
