//! The local PostgreSQL server's hands and eyes: find it, make it, start, stop, fence, promote, copy,
//! rewind and probe it.
//!
//! Nothing here decides: what may be done, and when, is the core's business (`understudy-core`), and
//! each call does one thing and reports what became of it. PostgreSQL's own programs do the work,
//! under the server's OS user. Small files are written and made durable on the calling thread.

mod access;
mod admin;
mod binaries;
mod catalogue;
mod connection;
mod control;
mod copy;
mod drain;
mod error;
mod fence;
mod fitness;
mod guardian;
mod limits;
mod os;
mod ownership;
mod parameters;
mod probe;
mod process;
mod promote;
mod roles;
mod server;
mod settings;
mod stock;

pub use access::HbaMode;
pub use admin::{Slot, WalKept};
pub use binaries::{Binaries, SUPPORTED_MAJORS, Version};
pub use catalogue::source_databases;
pub use control::{ControlData, ControlState, DataDirectory};
pub use copy::{CopySource, Progress, Rewound, source_checkpoint_timeline};
pub use drain::DrainedClients;
pub use error::{Error, Result};
pub use fence::FenceProof;
pub use fitness::ServerFitness;
pub use guardian::{
    Guard, GuardianError, GuardianLink, GuardianOptions, GuardianRecord, WatchError, WatchOptions,
    watch,
};
pub use limits::Limits;
pub use os::OsUser;
pub use ownership::Ownership;
pub use parameters::{Reloaded, STANDBY_PARAMETERS, ServerParameter};
pub use probe::{GateRow, Observation, Probe};
pub use process::Running;
pub use promote::{BURNED_HISTORY, Promoted};
pub use roles::{ROLES, creation as role_creation};
pub use server::Server;
pub use settings::{GateName, ROLE_MANAGEMENT, ROLE_REPLICATION, ROLE_REWIND, Settings, StartMode};
pub use stock::{StockServer, own_objects_removal};
