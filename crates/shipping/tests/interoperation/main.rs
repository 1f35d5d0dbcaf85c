//! The whole way of WAL, from a primary through gate, stream and journal to the relay, with stock PostgreSQL
//! at both of its ends: what it is made with, what it writes, and what its tools say of our files.
#![allow(clippy::unwrap_used)] // a test says what it expects by panicking

mod chain;
mod databases;
mod files;
mod levels;
#[allow(dead_code)] // shared with other test programs, which use all of it
#[path = "../replication/postgres.rs"]
mod postgres;
#[allow(dead_code)] // as above
#[path = "../replication/relayed.rs"]
mod relayed;
#[allow(dead_code)] // as above
#[path = "../shipping/rig.rs"]
mod rig;
mod shapes;
mod timelines;
