//! What a bug report needs of a node, collected a piece after the other, without its secrets.
//!
//! Every text is redacted before it leaves the node. The decision recorder's files cannot be changed,
//! because each of their lines has a checksum: one that holds what looks like a secret is left out.
//! PostgreSQL's log is never part of it: it can hold statements with data.

mod collect;
mod redact;
mod service;

pub(crate) use collect::Collector;
pub use redact::redact;
pub(crate) use service::DebugService;
