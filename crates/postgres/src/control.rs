//! What a data directory holds, as `pg_controldata` tells it.

use std::collections::BTreeMap;

use understudy_types::{Lsn, SegmentSize, SystemId, Timeline};

use crate::error::{Error, Result};

/// What lies at PGDATA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataDirectory {
    /// Nothing, not even a directory.
    Missing,
    /// An empty directory.
    Empty,
    /// Something else; it is never touched.
    NotACluster {
        /// What was found or is missing.
        what: String,
    },
    /// A cluster of another major version than the binaries.
    WrongVersion {
        /// Of the data directory.
        found: String,
        /// Of the binaries.
        wanted: u32,
    },
    /// Marked: a copy or rewind was begun and never completed. It must not be started, promoted or
    /// copied (invariant I14).
    Dirty {
        /// What was going on.
        what: String,
    },
    /// A whole cluster.
    Cluster(Box<ControlData>),
}

/// The state that the control file was left in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlState {
    /// Stopped cleanly as a primary.
    ShutDown,
    /// Stopped cleanly as a standby.
    ShutDownInRecovery,
    /// Runs as a standby, or crashed as one.
    InArchiveRecovery,
    /// Runs as a primary, or crashed as one.
    InProduction,
    /// Anything else, in PostgreSQL's words: starting up, in crash recovery, shutting down.
    Other(String),
}

impl ControlState {
    /// It was a standby's, or still recovering from a backup: not a primary's.
    pub fn is_in_recovery(&self) -> bool {
        matches!(self, ControlState::ShutDownInRecovery | ControlState::InArchiveRecovery)
    }
}

/// The control file of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlData {
    /// Which initdb it descends from.
    pub system_id: SystemId,
    /// How it was left.
    pub state: ControlState,
    /// Timeline of the latest checkpoint. Directly after a promotion still the old one.
    pub timeline: Timeline,
    /// The latest checkpoint's record.
    pub checkpoint_lsn: Lsn,
    /// Where recovery from it begins.
    pub redo_lsn: Lsn,
    /// What must be replayed before the data is consistent; `None` when nothing must.
    pub min_recovery_lsn: Option<Lsn>,
    /// The timeline of `min_recovery_lsn`.
    pub min_recovery_timeline: Option<Timeline>,
    /// An unfinished base backup began here.
    pub backup_start_lsn: Option<Lsn>,
    /// The WAL segments' size.
    pub segment_size: SegmentSize,
    /// Data pages carry checksums.
    pub checksums: bool,
    /// Hint bits are logged, so that the cluster can be rewound without checksums.
    pub wal_log_hints: bool,
    /// What a standby needs at least, as the last primary wrote WAL with it; in the order of
    /// [`STANDBY_PARAMETERS`](crate::STANDBY_PARAMETERS).
    pub standby_parameters: [u64; 5],
    /// `standby.signal` lies in the data directory.
    pub standby_signal: bool,
}

/// Reads the output of `pg_controldata` under `LC_ALL=C`.
pub(crate) fn parse(output: &str, standby_signal: bool) -> Result<ControlData> {
    let fields: BTreeMap<&str, &str> = output
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim(), value.trim()))
        .collect();
    let bad = |name: &str, value: Option<&str>| Error::Output {
        program: "pg_controldata".to_owned(),
        reason: format!("{name:?} is {value:?}"),
    };
    let text = |name: &str| fields.get(name).copied().ok_or_else(|| bad(name, None));
    let lsn = |name: &str| text(name)?.parse::<Lsn>().map_err(|_| bad(name, text(name).ok()));
    let number = |name: &str| text(name)?.parse::<u64>().map_err(|_| bad(name, text(name).ok()));
    let known = |lsn: Lsn| (lsn != Lsn::ZERO).then_some(lsn);

    let segment = "Bytes per WAL segment";
    let segment_size = u32::try_from(number(segment)?).ok().and_then(SegmentSize::new);
    let timeline = "Latest checkpoint's TimeLineID";
    let recovery_timeline = number("Min recovery ending loc's timeline")?;
    Ok(ControlData {
        system_id: SystemId(number("Database system identifier")?),
        state: match text("Database cluster state")? {
            "shut down" => ControlState::ShutDown,
            "shut down in recovery" => ControlState::ShutDownInRecovery,
            "in archive recovery" => ControlState::InArchiveRecovery,
            "in production" => ControlState::InProduction,
            other => ControlState::Other(other.to_owned()),
        },
        timeline: text(timeline)?.parse().map_err(|_| bad(timeline, text(timeline).ok()))?,
        checkpoint_lsn: lsn("Latest checkpoint location")?,
        redo_lsn: lsn("Latest checkpoint's REDO location")?,
        min_recovery_lsn: known(lsn("Minimum recovery ending location")?),
        min_recovery_timeline: u32::try_from(recovery_timeline).ok().and_then(Timeline::new),
        backup_start_lsn: known(lsn("Backup start location")?),
        segment_size: segment_size.ok_or_else(|| bad(segment, text(segment).ok()))?,
        checksums: number("Data page checksum version")? != 0,
        wal_log_hints: text("wal_log_hints setting")? == "on",
        standby_parameters: [
            number("max_connections setting")?,
            number("max_worker_processes setting")?,
            number("max_wal_senders setting")?,
            number("max_prepared_xacts setting")?,
            number("max_locks_per_xact setting")?,
        ],
        standby_signal,
    })
}
