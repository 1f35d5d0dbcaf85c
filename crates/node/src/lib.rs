//! The daemon: configuration, the loop that owns the core, its executor, services and telemetry.

pub mod access;
pub mod admin;
pub mod adopt;
pub mod config;
pub mod daemon;
pub mod debug;
pub mod events;
pub mod guard;
pub mod http;
pub mod metrics;
pub mod receipts;
pub mod recovery;
pub mod status;
pub mod telemetry;
pub mod validation;
pub mod wal_files;
pub mod wal_get;

mod certificates;
mod clock;
mod doors;
mod driver;
mod follower;
mod hands;
mod hooks;
mod journal_node;
mod limits;
mod observer;
mod own_report;
mod peer_service;
mod recorder;
mod reports;
mod retention;
mod service_manager;
mod wal_service;
