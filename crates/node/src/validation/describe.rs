//! What this node knows of itself that a failover would rest on. Looks on its own sessions and sockets, one
//! look at a time, and remembers the newest so that three nodes that ask cost one look.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::future::join_all;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, watch};
use understudy_postgres::ServerFitness;
use understudy_proto::v1;
use understudy_shipping::journal::{Journal, Room};
use understudy_transport::TlsIdentity;

use crate::clock::wall_unix_us;
use crate::config::NodeConfig;
use crate::hands::{Hands, chain};
use crate::http::HealthCheckers;
use crate::observer::LocalSeen;
use crate::own_report::program_version;
use crate::status::ClusterStatus;

/// How long another node's PostgreSQL may take to let a connection in.
const REACH_PATIENCE: Duration = Duration::from_secs(1);
/// How long PostgreSQL may take for all that it is asked.
const SERVER_PATIENCE: Duration = Duration::from_secs(10);

/// What a look is made of.
pub(crate) struct DescriberOptions {
    pub(crate) config: Arc<NodeConfig>,
    pub(crate) status: watch::Receiver<Arc<ClusterStatus>>,
    pub(crate) seen: watch::Receiver<LocalSeen>,
    /// `None` where there is no PostgreSQL.
    pub(crate) hands: Option<Hands>,
    /// `None` at a witness.
    pub(crate) journal: Option<Journal>,
    pub(crate) health_checkers: HealthCheckers,
    /// This node's certificate, as it is in use.
    pub(crate) identity: TlsIdentity,
}

/// Describes this node; cheap to clone.
#[derive(Clone)]
pub(crate) struct Describer {
    options: Arc<DescriberOptions>,
    newest: Arc<Mutex<Option<(Instant, v1::Fitness)>>>,
}

impl Describer {
    pub(crate) fn new(options: DescriberOptions) -> Describer {
        Describer { options: Arc::new(options), newest: Arc::default() }
    }

    /// How it stands, by a look that is at most `age_max` old.
    pub(crate) async fn describe(&self, age_max: Duration) -> v1::Fitness {
        // Whoever comes while somebody looks waits for that look, and shares it.
        let asked = Instant::now();
        let mut newest = self.newest.lock().await;
        let good = newest.as_ref().filter(|(at, _)| *at >= asked || at.elapsed() <= age_max);
        let mut fitness = match good {
            Some((_, fitness)) => fitness.clone(),
            None => {
                let began = Instant::now();
                let fitness = self.look().await;
                newest.insert((began, fitness)).1.clone()
            }
        };
        drop(newest);
        fitness.wall_unix_us = wall_unix_us();
        fitness
    }

    async fn look(&self) -> v1::Fitness {
        let options = &self.options;
        let status = options.status.borrow().clone();
        let mut troubles = Vec::new();
        let (reached, server, wal_gaps) =
            tokio::join!(reached(&status), self.server(), self.wal_gaps());
        let postgres = server.unwrap_or_else(|trouble| {
            troubles.push(trouble);
            None
        });
        let wal_gaps = wal_gaps.unwrap_or_else(|trouble| {
            troubles.push(trouble);
            Vec::new()
        });
        let (health_checkers, health_checkers_complete) =
            options.health_checkers.lately(Instant::now());
        let identity = &options.identity;
        let (node, authority) = (identity.not_after(), identity.authority_not_after());
        v1::Fitness {
            node: options.config.name.to_string(),
            // Of each answer, not of the look.
            wall_unix_us: 0,
            program_version: program_version().to_owned(),
            heard: heard(&status),
            reached,
            certificate_not_after_unix_us: unix_us(node),
            authority_not_after_unix_us: authority.and_then(unix_us),
            health_checkers,
            health_checkers_complete,
            disks: disks(&options.config),
            wal_gaps,
            postgres,
            troubles,
        }
    }

    /// What PostgreSQL says; `None` where none runs, which others see by themselves.
    async fn server(&self) -> Result<Option<v1::PostgresFitness>, String> {
        let answers = self.options.seen.borrow().observation.is_some();
        let Some(hands) = self.options.hands.as_ref().filter(|_| answers) else { return Ok(None) };
        match tokio::time::timeout(SERVER_PATIENCE, hands.server().fitness()).await {
            Ok(Ok(fitness)) => Ok(Some(wire(fitness))),
            Ok(Err(error)) => Err(format!("PostgreSQL was not looked into: {}", chain(&error))),
            Err(_) => Err(format!("PostgreSQL did not say all within {SERVER_PATIENCE:?}")),
        }
    }

    async fn wal_gaps(&self) -> Result<Vec<String>, String> {
        let Some(place) = self.options.journal.as_ref().and_then(Journal::place) else {
            return Ok(Vec::new());
        };
        let looked = tokio::task::spawn_blocking(move || {
            let coverage = place.survey()?.coverage(&place);
            let words = coverage.gaps.iter().map(|gap| {
                let (from, to) = (gap.from_lsn, gap.to_lsn);
                format!(
                    "the journal lacks WAL from {from} to {to}, from file {} on",
                    gap.first_file
                )
            });
            Ok::<_, understudy_shipping::journal::JournalError>(words.collect())
        });
        match looked.await {
            Ok(Ok(gaps)) => Ok(gaps),
            Ok(Err(error)) => Err(format!("the journal was not looked into: {}", chain(&error))),
            Err(error) => Err(format!("the journal was not looked into: {error}")),
        }
    }
}

fn wire(fitness: ServerFitness) -> v1::PostgresFitness {
    let line = |(words, digest)| v1::HbaLine { words, digest };
    v1::PostgresFitness {
        server_version_num: fitness.server_version_num,
        in_recovery: fitness.in_recovery,
        settings: fitness.settings.into_iter().collect(),
        pending_restart: fitness.pending_restart,
        overridden: fitness.overridden,
        missing_libraries: fitness.missing_libraries,
        missing_extensions: fitness.missing_extensions,
        changed_collations: fitness.changed_collations,
        refused_databases: fitness.refused_databases,
        unseen_databases_count: fitness.unseen_databases_count,
        logical_slots: fitness.logical_slots,
        hba_lines: fitness.hba_lines.into_iter().map(line).collect(),
        hba_errors: fitness.hba_errors,
        archive_failing: fitness.archive_failing,
    }
}

fn heard(status: &ClusterStatus) -> Vec<v1::HeardMember> {
    let others = status.nodes.iter().filter(|node| node.name != status.answered_by);
    let heard = others.map(|node| v1::HeardMember {
        node: node.name.clone(),
        seconds_ago: node.heard_seconds_ago,
    });
    heard.collect()
}

/// Opens a connection to where each other node says that clients find its PostgreSQL, and closes it.
async fn reached(status: &ClusterStatus) -> Vec<v1::ReachedAddress> {
    let others =
        status.nodes.iter().filter(|node| node.name != status.answered_by && node.postgres_running);
    let tried = others.filter_map(|node| {
        let address = node.postgres_address.clone()?;
        Some(async move {
            let trouble = match tokio::time::timeout(REACH_PATIENCE, connect(&address)).await {
                Ok(Ok(())) => String::new(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {REACH_PATIENCE:?}"),
            };
            v1::ReachedAddress { node: node.name.clone(), address, trouble }
        })
    });
    join_all(tried).await
}

async fn connect(address: &str) -> std::io::Result<()> {
    let found: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
    TcpStream::connect(&found[..]).await.map(drop)
}

fn disks(config: &NodeConfig) -> Vec<v1::FitnessDisk> {
    let data = config.postgres.as_ref().map(|postgres| postgres.data_directory.as_path());
    let both = [("data-directory", data), ("node-directory", Some(config.data_dir.as_path()))];
    let mut seen = BTreeSet::new();
    let looked = both.into_iter().filter_map(|(what, dir)| {
        let dir = dir?;
        let room = Room::of(dir).ok()?;
        // Of one file system once.
        let file_system = std::fs::metadata(dir).ok()?.dev();
        seen.insert(file_system).then(|| v1::FitnessDisk {
            what: what.to_owned(),
            free_bytes: room.free_bytes,
            total_bytes: room.total_bytes,
        })
    });
    looked.collect()
}

fn unix_us(at: SystemTime) -> Option<i64> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_micros()).ok()
}
