//! Commands, outcomes and the replicated state as bytes (`proto/understudy/v1/state.proto`).
//!
//! Equal values have equal bytes. What decides a state (commands, states) is read strictly: bytes
//! that this program would not have written itself hold something it does not know, and skipping
//! that would leave it with another state than its peers. It must not interpret what it carries.

mod command;
mod dial;
mod orders;
mod outcome;
mod parts;
mod recovery;
mod state;
mod switchover;
#[cfg(test)]
mod tests;

use std::time::Duration;

use prost::Message;
use understudy_core::state::{ClusterState, Command, Outcome};
use understudy_proto::{FieldError, v1};
use uuid::Uuid;

/// Bytes that cannot be read as what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Not a message at all.
    #[error("decode {what}")]
    Malformed {
        /// Which message was expected.
        what: &'static str,
        /// What prost said.
        #[source]
        source: prost::DecodeError,
    },
    /// A field is missing or its value is unknown here; a newer program may know it.
    #[error("decode {what}")]
    Field {
        /// Which message was expected.
        what: &'static str,
        /// Which field, and why.
        #[source]
        source: FieldError,
    },
    /// Something in it has no meaning to this program, or stands out of order.
    #[error("decode {what}: it holds what this program does not know")]
    Unknown {
        /// Which message was expected.
        what: &'static str,
    },
}

/// A command as a log entry carries it.
pub fn encode_command(command: &Command) -> Vec<u8> {
    command::write(command).encode_to_vec()
}

/// Reads a log entry's command.
///
/// # Errors
/// When this program does not know everything that is in it.
pub fn decode_command(bytes: &[u8]) -> Result<Command, CodecError> {
    let command = read("command", bytes, command::read)?;
    known("command", bytes, &encode_command(&command))?;
    Ok(command)
}

/// An outcome as the leader answers a forwarded command with.
pub fn encode_outcome(outcome: &Outcome) -> Vec<u8> {
    outcome::write(outcome).encode_to_vec()
}

/// Reads an outcome. Fields that are unknown here are skipped: nothing is decided by them.
///
/// # Errors
/// When its kind is not known.
pub fn decode_outcome(bytes: &[u8]) -> Result<Outcome, CodecError> {
    read("outcome", bytes, outcome::read)
}

/// The state as the body of a snapshot.
pub fn encode_state(state: &ClusterState) -> Vec<u8> {
    state::write(state).encode_to_vec()
}

/// Reads the body of a snapshot.
///
/// # Errors
/// When this program does not know everything that is in it.
pub(crate) fn decode_state(bytes: &[u8]) -> Result<ClusterState, CodecError> {
    let state = read("cluster state", bytes, state::read)?;
    known("cluster state", bytes, &encode_state(&state))?;
    Ok(state)
}

fn read<M: Message + Default, T>(
    what: &'static str,
    bytes: &[u8],
    convert: impl FnOnce(M) -> Result<T, FieldError>,
) -> Result<T, CodecError> {
    let message = M::decode(bytes).map_err(|source| CodecError::Malformed { what, source })?;
    convert(message).map_err(|source| CodecError::Field { what, source })
}

/// prost skips unknown fields silently; they show in what is missing after writing again.
fn known(what: &'static str, bytes: &[u8], again: &[u8]) -> Result<(), CodecError> {
    if bytes == again { Ok(()) } else { Err(CodecError::Unknown { what }) }
}

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, FieldError> {
    value.ok_or_else(|| FieldError::new(field, "it is missing"))
}

/// The value of an enum's field; its UNSPECIFIED is refused where the value is matched.
fn word<E: TryFrom<i32>>(field: &'static str, value: i32) -> Result<E, FieldError> {
    E::try_from(value).map_err(|_| FieldError::new(field, format!("{value} is not known")))
}

fn unspecified(field: &'static str) -> FieldError {
    FieldError::new(field, "it is not specified")
}

fn uuid(field: &'static str, bytes: &[u8]) -> Result<Uuid, FieldError> {
    Uuid::from_slice(bytes).map_err(|_| FieldError::new(field, "a uuid has 16 bytes"))
}

/// Whole nanoseconds; five hundred years and more are the same to every user of a duration.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn epoch(
    field: &'static str,
    message: Option<v1::Epoch>,
) -> Result<understudy_types::Epoch, FieldError> {
    required(field, message).map(Into::into)
}
