//! The decision recorder's form and its replay: what went through the core's door, written down, and
//! the same core run on it again (docs/decisions/0018-the-decision-recorder.md).
//!
//! Bytes in, bytes out: files, threads and bounds are the daemon's (`node`), printing is the
//! command line's. Nothing here decides anything for a cluster.

mod format;
mod replay;
#[cfg(test)]
mod tests;
mod words;

pub use format::{Encoder, FORMAT, FormatError, Header, Line, Lines, PROGRAM, Record};
pub use replay::{Decision, End, Finding, Replay, Turn};
