//! Write-ahead log without IO: its format on disk, PostgreSQL's replication protocol, the gate.
//!
//! Nothing here opens a file or a socket or reads a clock; bytes, positions and moments come in as
//! arguments.

pub mod exposure;
pub mod format;
pub mod gate;
pub mod protocol;
