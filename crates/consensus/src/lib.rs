//! Consensus: the replicated log and state of a cluster, on openraft.
//!
//! The log is durable before anything is answered (`store`), entries are applied by
//! `understudy_core` alone (`state_machine`), nodes speak over the `Peer` service (`network`,
//! `server`), and a cluster is founded by all of its members or not at all (`founding`). The daemon
//! sees [`Consensus`]. This crate must not decide about the cluster: who may be active is
//! `understudy_core`'s, and nothing here is a lease.

mod admission;
mod codec;
mod consensus;
mod device;
mod founding;
mod hello;
mod leadership;
mod network;
pub mod offline;
mod past;
mod peers;
mod raft_types;
mod server;
mod state_machine;
mod steering;
mod store;

pub use codec::{
    CodecError, decode_command, decode_outcome, encode_command, encode_outcome, encode_state,
};
pub use consensus::{
    Consensus, ConsensusError, ConsensusOptions, LogRange, ProposeError, Surroundings,
};
pub use device::Device;
pub use founding::FoundingStatus;
pub use leadership::Leadership;
pub use past::Start;
pub use peers::{ChannelTo, FoundingMember, Lane, PROTOCOL_VERSION, check_hello, check_hello_of};
pub use raft_types::{LogCommand, LogReply, RaftTypes};
pub use server::PeerServer;
pub use state_machine::{Applied, StateMachine, StateMachineError};
pub use store::{LogStore, StoreError, StoreOptions, StoredIdentity};

/// openraft as this crate uses it.
pub(crate) type RaftHandle = openraft::Raft<RaftTypes, StateMachine>;
