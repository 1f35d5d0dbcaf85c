//! Carries an adoption out: first everything that disturbs nobody, then, on the primary and only while
//! the daemon waits for it, the one stop.
//!
//! It can be run again whenever it was cut off. Until the stop whoever ran PostgreSQL goes on running it.

use std::time::{Duration, Instant};

use understudy_postgres::{Ownership, Server, StockServer, role_creation};
use understudy_types::Epoch;

use super::facts::{self, Facts};
use super::findings::Severity;
use super::manifest::{Folder, Manifest, Stage};
use super::plan::{self, IN_PGDATA, Part, Plan, same_file};
use super::{AdoptError, failed, postgres_of, roles_to_ask, server_of, settings};
use crate::config::NodeConfig;
use crate::daemon::{load_identity, prepare_directories};
use crate::hands::SLOT_PREFIX;
use crate::recovery::{ask, describe};

/// The server gets this long for its shutdown checkpoint and for sending it to its standbys.
const STOP_PATIENCE: Duration = Duration::from_secs(120);
/// The node's own daemon has this long for an answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks whether clients are let in.
const POLL: Duration = Duration::from_millis(50);

/// Why the server was not stopped yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// This node's daemon does not answer.
    NoDaemon(String),
    /// The cluster is not founded: not every member's daemon has been met.
    NotFounded,
    /// These members do not answer: commits could wait for them.
    Silent(Vec<String>),
    /// It is the daemon's to go on, once the primary was taken over.
    OnThePrimary,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Everything is ready; nobody was disturbed.
    Prepared(Waiting),
    /// The daemon runs the server, and clients are let in.
    TakenOver {
        /// From the order to stop until clients were let in.
        shut_out: Duration,
    },
    /// The server was stopped, and clients were not let in yet.
    Stopped {
        /// For how long that was waited for.
        waited: Duration,
        /// The end of the server's log.
        log: String,
    },
}

/// Prepares the adoption, and hands the primary over if the daemon waits for it. Clients are waited for
/// no longer than `patience`.
///
/// # Errors
/// When something is in the way (nothing was changed then), or fails; what is recorded is enough for
/// `undo`, and for another try.
pub async fn apply(
    config: &NodeConfig,
    role: Option<&str>,
    patience: Duration,
    progress: &mut dyn FnMut(&str),
) -> Result<Applied, AdoptError> {
    let server = server_of(config).await?;
    let roles = roles_to_ask(postgres_of(config)?, role);
    let facts = facts::look(&server, &config.data_dir, &roles).await?;
    let plan = plan::make(config, &server.settings_as_primary(), &facts);
    refuse_if_blocked(&plan)?;
    if plan.part == Part::Copy {
        return Err(AdoptError::Refused(
            "there is nothing to adopt: the data directory is empty, and the daemon copies the active \
             into it by itself"
                .to_owned(),
        ));
    }
    prepare_directories(config)?;
    let folder = Folder::of(&config.data_dir);
    let mut manifest = match folder.read().map_err(failed("read the adoption's manifest"))? {
        Some(manifest) => resumed(manifest, &plan)?,
        None => {
            progress("keeping copies of the files that change");
            prepare(config, &server, &folder, &facts, &plan)?
        }
    };
    if plan.part == Part::Standby {
        disable_other_starts(&manifest, &folder)?;
        give(&server)?;
        return Ok(Applied::Prepared(Waiting::OnThePrimary));
    }
    let (Some(stock), Some(said)) = (facts.asked_at.clone(), facts.said()) else {
        return Err(AdoptError::Refused("the server does not answer any more".to_owned()));
    };
    progress("making the node's roles");
    let make = role_creation();
    server.tell_stock(&stock, &make).await.map_err(failed("make the node's roles"))?;
    if let Some(waiting) = daemon_waits(config, progress).await? {
        return Ok(Applied::Prepared(waiting));
    }
    reserve_wal(config, &server, &stock, said.setting("wal_level")).await?;
    progress("writing a checkpoint, so that the stop is short");
    server.tell_stock(&stock, "CHECKPOINT;").await.map_err(failed("write a checkpoint"))?;
    disable_other_starts(&manifest, &folder)?;
    manifest.stage = Stage::HandedOver;
    folder.write(&manifest).map_err(failed("write the adoption's manifest"))?;
    give(&server)?;
    hand_over(config, &server, &stock.role, patience, progress).await
}

fn refuse_if_blocked(plan: &Plan) -> Result<(), AdoptError> {
    let blockers = plan.findings.iter().filter(|f| f.severity == Severity::Blocker);
    let words: Vec<String> =
        blockers.map(|finding| format!("  {}: {}", finding.what, finding.remedy)).collect();
    if words.is_empty() {
        return Ok(());
    }
    Err(AdoptError::Blocked { count: words.len(), words: words.join("\n") })
}

/// An earlier try's manifest, if it is about the same server.
fn resumed(manifest: Manifest, plan: &Plan) -> Result<Manifest, AdoptError> {
    let server = plan.server.as_ref();
    let same = manifest.data_directory == plan.data_directory
        && server.is_some_and(|server| server.system_identifier == manifest.system_identifier)
        && manifest.part == plan.part;
    if same {
        return Ok(manifest);
    }
    Err(AdoptError::Refused(format!(
        "an adoption of {} (system identifier {}) was begun here on {}; take it back with `understudy \
         adopt undo` first",
        manifest.data_directory.display(),
        manifest.system_identifier,
        manifest.prepared_at
    )))
}

/// Copies first, then the manifest, then the files that PGDATA lacks.
fn prepare(
    config: &NodeConfig,
    server: &Server,
    folder: &Folder,
    facts: &Facts,
    plan: &Plan,
) -> Result<Manifest, AdoptError> {
    let data_dir = &plan.data_directory;
    let Some(said) = facts.said() else {
        return Err(AdoptError::Refused("the server does not answer any more".to_owned()));
    };
    let roles_made = said.roles.is_empty() && plan.part == Part::Primary;
    let manifest = Manifest::new(plan, config.cluster.to_string(), roles_made);
    let Some(mut manifest) = manifest else {
        return Err(AdoptError::Refused("the server does not answer any more".to_owned()));
    };
    let mut made = Vec::new();
    for (name, setting) in IN_PGDATA {
        let path = data_dir.join(name);
        let present = said.file(setting).unwrap_or_default();
        let content = if same_file(&present, &path) {
            None
        } else if name == "postgresql.conf" {
            let line = server.settings_as_primary();
            Some(settings::carried_along(said, data_dir, &line).into_bytes())
        } else {
            let what = format!("read {}", present.display());
            Some(std::fs::read(&present).map_err(failed(what))?)
        };
        let kept = folder.keep(&path, content.as_deref());
        manifest.files.push(kept.map_err(failed(format!("keep {}", path.display())))?);
        made.extend(content.map(|content| (path, content)));
    }
    let mut only_kept = vec![data_dir.join("postgresql.auto.conf")];
    only_kept.extend(facts.debian.as_ref().map(super::DebianCluster::start_conf));
    for path in only_kept {
        let disabled = path.ends_with("start.conf");
        let kept = folder.keep(&path, disabled.then_some(DISABLED));
        manifest.files.push(kept.map_err(failed(format!("keep {}", path.display())))?);
    }
    folder.write(&manifest).map_err(failed("write the adoption's manifest"))?;
    for (path, content) in made {
        let what = format!("write {}", path.display());
        server.put_file(&path, &content).map_err(failed(what))?;
    }
    Ok(manifest)
}

const DISABLED: &[u8] =
    b"# Understudy's daemon starts this cluster (see `understudy adopt undo`)\n\
                          disabled\n";

fn disable_other_starts(manifest: &Manifest, folder: &Folder) -> Result<(), AdoptError> {
    for record in manifest.files.iter().filter(|record| record.path.ends_with("start.conf")) {
        let Some(copy) = &record.written else { continue };
        let what = || format!("write {}", record.path.display());
        let content = folder.content(copy).map_err(failed(what()))?;
        record.replace(&content).map_err(failed(what()))?;
    }
    Ok(())
}

/// From here on the daemon may take the data directory.
fn give(server: &Server) -> Result<(), AdoptError> {
    if server.ownership().map_err(failed("look whose the data directory is"))? == Ownership::Adopted
    {
        return Ok(());
    }
    server.set_adopted().map_err(failed("give the data directory to the node"))
}

/// `None` when this node's daemon runs, the cluster waits for its first primary, and everybody is there.
async fn daemon_waits(
    config: &NodeConfig,
    progress: &mut dyn FnMut(&str),
) -> Result<Option<Waiting>, AdoptError> {
    let identity = load_identity(config)?;
    let asking = describe(config.me(), &identity, config);
    let described = match tokio::time::timeout(ANSWER_PATIENCE, asking).await {
        Ok(Ok(described)) => described,
        Ok(Err(why)) => return Ok(Some(Waiting::NoDaemon(why))),
        Err(_) => {
            return Ok(Some(Waiting::NoDaemon(format!("silent for {ANSWER_PATIENCE:?}"))));
        }
    };
    if described.epoch != Epoch::NONE {
        return Err(AdoptError::Refused(format!(
            "the cluster has had an active already (epoch {}): a second primary cannot be adopted into \
             it; PostgreSQL goes on as before, and `understudy adopt undo` takes back what was prepared",
            described.epoch
        )));
    }
    if !described.majority {
        return Ok(Some(Waiting::NotFounded));
    }
    let answers = ask(config, &identity, ANSWER_PATIENCE, progress).await;
    let silent = answers.iter().filter(|answer| answer.outcome.is_err());
    let silent: Vec<String> = silent.map(|answer| answer.name.to_string()).collect();
    Ok((!silent.is_empty()).then_some(Waiting::Silent(silent)))
}

/// Slots of the names that the daemon uses: what a standby lacks is still there when it asks for it.
async fn reserve_wal(
    config: &NodeConfig,
    server: &Server,
    stock: &StockServer,
    wal_level: &str,
) -> Result<(), AdoptError> {
    if wal_level == "minimal" {
        return Ok(());
    }
    let peers = config.peers().filter(|member| member.kind == understudy_types::NodeKind::Data);
    for peer in peers {
        let slot = format!("{SLOT_PREFIX}{}", peer.name.as_str().replace('-', "_"));
        let script = format!(
            "SELECT pg_create_physical_replication_slot('{slot}', true) WHERE NOT EXISTS \
             (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}');"
        );
        server.tell_stock(stock, &script).await.map_err(failed(format!("make slot {slot}")))?;
    }
    Ok(())
}

async fn hand_over(
    config: &NodeConfig,
    server: &Server,
    role: &str,
    patience: Duration,
    progress: &mut dyn FnMut(&str),
) -> Result<Applied, AdoptError> {
    progress("stopping PostgreSQL; the daemon starts it again");
    let begun = Instant::now();
    let stopped = server.stop_fast(STOP_PATIENCE).await;
    // The daemon may have it by now: then it runs again, under its gate.
    let ours = || server.running().ok().flatten().is_some_and(|r| r.gate_name.is_some());
    if let Err(error) = stopped
        && !ours()
    {
        return Err(failed(
            "stop PostgreSQL: it goes on stopping, and the daemon takes it over when it has; \
             `understudy adopt undo` leads back",
        )(error));
    }
    let postgres = postgres_of(config)?;
    let stock = StockServer {
        socket_dir: postgres.socket_directory.clone(),
        port: postgres.port,
        role: role.to_owned(),
    };
    progress("waiting until clients are let in");
    while begun.elapsed() < patience {
        if ours() && server.ask_stock(&stock, "SELECT 1;").await.is_ok() {
            return Ok(Applied::TakenOver { shut_out: begun.elapsed() });
        }
        tokio::time::sleep(POLL).await;
    }
    let log = server.read_last_log_lines(10);
    Ok(Applied::Stopped { waited: begun.elapsed(), log })
}
