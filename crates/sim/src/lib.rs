//! Checks of the protocol without a machine: what decides is the real code, the world is modelled.
//!
//! `simulator` draws a world from a seed, runs the real `core` and the real gate of `wal` in it, and
//! judges every step with the functions of `checks`. `model` searches every state that is reachable
//! within stated budgets. Nothing here is part of the daemon.

pub mod model;
pub mod simulator;
