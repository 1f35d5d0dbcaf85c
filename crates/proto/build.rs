//! Compiles `proto/understudy/v1/*.proto` with protox, so that no protoc has to be installed.

use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let files = [
        "peer",
        "wal",
        "admin",
        "state",
        "receipt",
        "recovery",
        "wal_files",
        "validation",
        "events",
        "log",
        "debug",
    ]
    .map(|n| format!("understudy/v1/{n}.proto"));
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(&files, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".understudy.v1.Frame.data")
        .bytes(".understudy.v1.TunnelChunk.data")
        .compile_fds(descriptors)?;
    Ok(())
}
