//! The ways that WAL travels: from the primary, over one gRPC stream, into a journal, to a standby.
//!
//! `source` reads the primary and holds the gate; `receiver` brings its stream into the `journal`;
//! `relay` serves the journal to a stock standby; `tail` brings a sealed journal up to another one's end;
//! `tunnel` carries PostgreSQL's own bulk tools.
//! Nothing here decides who is active: it acts under a permit or an admission that says so.

mod compression;
pub mod journal;
pub mod memory;
pub mod permit_cell;
pub mod receiver;
pub mod relay;
pub mod replication;
pub mod source;
pub mod tail;
mod thread;
pub mod tunnel;
