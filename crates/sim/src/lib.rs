//! Checks of the protocol without a machine: what decides is the real code, the world is modelled.
//!
//! Nothing here is part of the daemon.

pub mod model;
