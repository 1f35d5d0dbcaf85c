//! The file as serde reads it: only its shape is checked here, every value is still text.
//!
//! Values stay text so that `validate` can report all that is wrong with them at once.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) cluster: String,
    pub(super) name: String,
    pub(super) site: String,
    pub(super) kind: String,
    pub(super) data_dir: PathBuf,
    pub(super) initial_active: Option<String>,
    #[serde(default)]
    pub(super) allowed_regions: Vec<String>,
    #[serde(default)]
    pub(super) listen: RawListen,
    #[serde(default)]
    pub(super) http: RawHttp,
    pub(super) tls: RawTls,
    #[serde(default)]
    pub(super) members: Vec<RawMember>,
    pub(super) postgres: Option<RawPostgres>,
    #[serde(default)]
    pub(super) durability: RawDurability,
    #[serde(default)]
    pub(super) timing: RawTiming,
    #[serde(default)]
    pub(super) log: RawLog,
    #[serde(default)]
    pub(super) trace: RawTrace,
    #[serde(default)]
    pub(super) wal: RawWal,
    #[serde(default)]
    pub(super) hooks: Vec<RawHook>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHook {
    pub(super) on: Vec<String>,
    pub(super) command: Vec<String>,
    pub(super) timeout: Option<String>,
    pub(super) user: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawListen {
    pub(super) grpc: Option<String>,
    pub(super) http: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHttp {
    pub(super) advertise: Option<String>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) patroni_metrics: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTls {
    pub(super) ca: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMember {
    pub(super) name: String,
    pub(super) id: u64,
    pub(super) site: String,
    pub(super) region: Option<String>,
    pub(super) kind: String,
    pub(super) address: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPostgres {
    pub(super) bin_dir: Option<PathBuf>,
    pub(super) data_directory: PathBuf,
    pub(super) port: Option<i64>,
    pub(super) listen_addresses: Option<String>,
    pub(super) os_user: Option<String>,
    pub(super) advertise: Option<String>,
    pub(super) socket_directory: Option<PathBuf>,
    pub(super) guardian: Option<bool>,
    #[serde(default)]
    pub(super) parameters: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDurability {
    pub(super) mode: Option<String>,
    pub(super) rpo: Option<String>,
    pub(super) on_passive_loss: Option<String>,
    pub(super) degrade_after: Option<String>,
    pub(super) on_sole_survivor: Option<String>,
    pub(super) promote_without_lease_wait: Option<bool>,
    pub(super) durable_copies: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTiming {
    pub(super) profile: Option<String>,
    pub(super) heartbeat: Option<String>,
    pub(super) election_min: Option<String>,
    pub(super) election_max: Option<String>,
    pub(super) lease_ttl: Option<String>,
    pub(super) renew_interval: Option<String>,
    pub(super) margin: Option<String>,
    pub(super) drift_bound: Option<f64>,
    pub(super) flap_window: Option<String>,
    pub(super) flap_hold: Option<String>,
    pub(super) flap_hold_max: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLog {
    pub(super) format: Option<String>,
    pub(super) level: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTrace {
    pub(super) size: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWal {
    pub(super) keep: Option<String>,
    pub(super) max: Option<String>,
    pub(super) reserve: Option<String>,
}
