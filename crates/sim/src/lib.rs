//! Simulation: the real deciding code in a modelled world, before any real process is started.
//!
//! `simulator` draws a world from a seed, runs the real `core` and the real gate of `wal` in it, and
//! judges every step with the functions of `checks`. Nothing here is part of the daemon.

pub mod simulator;
