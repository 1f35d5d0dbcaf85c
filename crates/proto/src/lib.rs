//! Generated gRPC messages and services of `proto/understudy/v1`.
//!
//! Messages stop at the file that implements or calls a service: everything further in speaks
//! `understudy-types`.

mod convert;

/// The package `understudy.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all)] // generated; documented in the .proto files
pub mod v1 {
    tonic::include_proto!("understudy.v1");
}

pub use convert::{FieldError, parse_promotion, parse_timeline};

/// Every message and service as a `FileDescriptorSet`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
