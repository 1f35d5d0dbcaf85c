//! Made-up input for everything that reads bytes from outside: WAL, PostgreSQL's protocol, history files,
//! the nodes' own messages.
//!
//! A *target* reads an input and asserts what must hold whatever the input is; a panic is a finding. The
//! *engine* makes inputs from those that are kept in `corpus/`, and keeps for its run what makes a target
//! say something new. It needs no compiler but the pinned one; docs/decisions/0028 says why.

mod allocation;
pub mod corpus;
pub mod engine;
mod mutate;
mod random;
pub mod targets;
