//! What decides: the replicated state's transitions, and the machine that drives one node.
//!
//! Sans-IO: time, observations and results come in as arguments and events, decisions go out as
//! actions. No clock, file, socket, thread, randomness or environment is reachable from here.

pub mod config;
pub mod node;
pub mod rejoin;
pub mod retention;
mod serde_parts;
pub mod state;
pub mod timing;
pub mod verdict;

pub use config::{ClusterConfig, OnPassiveLoss, OnSoleSurvivor};
pub use state::{ClusterState, Command, Outcome, Rejection};
pub use timing::Timing;
