//! The way back: a stock PostgreSQL that starts with its former tools and has everything that was written
//! meanwhile. With the daemon stopped; it makes a writer of nothing but the node that held the epoch last.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use understudy_consensus::offline::{Offline, OfflineError};
use understudy_postgres::{Ownership, Server, StockServer, own_objects_removal};
use understudy_types::{Epoch, NodeId};

use super::manifest::{FileRecord, Folder, Manifest, Undoing};
use super::plan::Part;
use super::{AdoptError, DebianCluster, failed, postgres_of, roles_to_ask, server_of};
use crate::config::NodeConfig;
use crate::daemon::load_identity;
use crate::guard;
use crate::hands::SLOT_PREFIX;
use crate::recovery::ask;

const STOP_PATIENCE: Duration = Duration::from_secs(120);
const GUARDIAN_PATIENCE: Duration = Duration::from_secs(20);
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);

/// What the operator says.
#[derive(Clone, Copy, Debug, Default)]
pub struct UndoOptions {
    /// Only say what would be done.
    pub dry_run: bool,
    /// The daemons of all other nodes are stopped, and will not be started with this cluster again.
    pub others_stopped: bool,
    /// The newest epoch that any data node knows of. A node that was away when another one was promoted
    /// cannot tell by itself that its data is not the newest.
    pub last_epoch: Option<Epoch>,
}

/// What was, or would be, done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undone {
    /// What the server is from then on.
    pub part: Part,
    /// The daemon had taken it over.
    pub was_taken_over: bool,
    /// The newest epoch that this node knows of; absent when its storage is gone.
    pub newest_epoch: Option<Epoch>,
    /// Each step, in words.
    pub steps: Vec<String>,
    /// Files that somebody changed since; what they had is in the folder.
    pub changed_since: Vec<PathBuf>,
    /// Where the copies and the manifest are.
    pub folder: PathBuf,
    /// How to start it.
    pub start: String,
}

/// How things stand with the daemon stopped.
struct Standing {
    server: Server,
    manifest: Manifest,
    folder: Folder,
    part: Part,
    taken: bool,
    newest_epoch: Option<Epoch>,
    // While it lives the daemon cannot start.
    _storage: Option<Offline>,
}

/// Takes an adoption back.
///
/// # Errors
/// When nothing was adopted here, the daemon runs, or another node could still make itself active.
pub async fn undo(
    config: &NodeConfig,
    options: UndoOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Undone, AdoptError> {
    let mut standing = examine(config).await?;
    let begun = standing.manifest.undoing.is_some();
    if standing.part == Part::Primary && standing.taken && !options.dry_run && !begun {
        refuse_if_newer(&standing, options)?;
        refuse_if_others_go_on(config, options, progress).await?;
    }
    let mut undone = Undone {
        part: standing.part,
        was_taken_over: standing.taken,
        newest_epoch: standing.newest_epoch,
        steps: steps(&standing),
        changed_since: Vec::new(),
        folder: standing.folder.path().to_owned(),
        start: start_words(&standing.manifest, &standing.server),
    };
    if options.dry_run {
        return Ok(undone);
    }
    if standing.taken {
        stop(config, &standing, progress).await?;
    }
    let mut undoing = note_undoing(&mut standing)?;
    if standing.taken {
        // A daemon that a service manager starts by habit must not take it again, whatever comes next.
        let raft = config.data_dir.join("raft");
        standing.folder.take_in(&raft).map_err(failed("set the node's storage aside"))?;
    }
    if standing.part == Part::Primary && !undoing.objects_removed {
        progress("removing the node's slots and roles");
        remove_own_objects(config, &standing).await?;
        undoing.objects_removed = true;
        standing.manifest.undoing = Some(undoing);
        standing.folder.write(&standing.manifest).map_err(failed("write the manifest"))?;
    }
    let changed = restore_files(&standing, progress)?;
    if standing.taken && standing.part == Part::Primary {
        standing.server.remove_burned().map_err(failed("remove history files of no timeline"))?;
        standing.server.remove_standby_signal().map_err(failed("remove standby.signal"))?;
    }
    standing.server.disown().map_err(failed("give the data directory back"))?;
    undone.folder = standing.folder.retire().map_err(failed("set the adoption's folder aside"))?;
    undone.changed_since = changed;
    Ok(undone)
}

async fn examine(config: &NodeConfig) -> Result<Standing, AdoptError> {
    let folder = Folder::of(&config.data_dir);
    let manifest = folder.read().map_err(failed("read the adoption's manifest"))?;
    let manifest = manifest.ok_or_else(|| {
        AdoptError::Refused(format!(
            "nothing was adopted here: there is no {}",
            folder.path().join("manifest.json").display()
        ))
    })?;
    let storage = match Offline::open(&config.data_dir.join("raft")) {
        Err(error @ OfflineError::InUse { .. }) => {
            return Err(AdoptError::Refused(format!(
                "{error}; it would start the server again and lose its files under it"
            )));
        }
        opened => opened.map_err(failed("read the node's storage"))?,
    };
    let server = server_of(config).await?;
    if postgres_of(config)?.data_directory != manifest.data_directory {
        return Err(AdoptError::Refused(format!(
            "node.toml names {} and {} was adopted; name that one",
            postgres_of(config)?.data_directory.display(),
            manifest.data_directory.display()
        )));
    }
    let own = server.ownership().map_err(failed("look whose the data directory is"))?;
    let gated = server.running().map_err(failed("look for the server"))?;
    let gated = gated.is_some_and(|running| running.gate_name.is_some());
    let held = storage.as_ref().is_some_and(|storage| held_last(config, storage));
    // A standby becomes the node's own only after a while; until then nothing but files is to be put back.
    let taken = own == Ownership::Own || gated;
    let newest_epoch = storage.as_ref().map(|storage| storage.state.epoch);
    if let Some(Undoing { part, taken, .. }) = manifest.undoing {
        // It was cut off: what the server is was decided then, and cannot be seen any more.
        let _storage = storage;
        return Ok(Standing { server, manifest, folder, part, taken, newest_epoch, _storage });
    }
    let was_primary = server.was_primary().await.map_err(failed("look at the data directory"))?;
    let part = match (taken, manifest.part) {
        (false, part) => part,
        (true, _) if held && was_primary => Part::Primary,
        // Founded on it, but the first epoch was never reported.
        (true, Part::Primary) if was_primary && storage.as_ref().is_none_or(is_unfounded) => {
            Part::Primary
        }
        (true, _) => Part::Standby,
    };
    Ok(Standing { server, manifest, folder, part, taken, newest_epoch, _storage: storage })
}

/// Before the first change: what is being done, for when it is cut off.
fn note_undoing(standing: &mut Standing) -> Result<Undoing, AdoptError> {
    if let Some(undoing) = standing.manifest.undoing {
        return Ok(undoing);
    }
    let (part, taken) = (standing.part, standing.taken);
    let undoing = Undoing { part, taken, objects_removed: false };
    standing.manifest.undoing = Some(undoing);
    standing.folder.write(&standing.manifest).map_err(failed("write the manifest"))?;
    Ok(undoing)
}

/// Another node may have been promoted while this one was away, and have the newer data.
fn refuse_if_newer(standing: &Standing, options: UndoOptions) -> Result<(), AdoptError> {
    let refused = |words: String| Err(AdoptError::Refused(words));
    match (standing.newest_epoch, options.last_epoch) {
        (Some(known), Some(said)) if said == known => Ok(()),
        (Some(known), Some(said)) => refused(format!(
            "--last-epoch {said}: the newest epoch that this node knows of is {known}; give back the node \
             that was active in epoch {said}, its data is newer"
        )),
        (Some(known), None) => refused(format!(
            "say --last-epoch with the newest epoch that any data node knows of, which `understudy adopt \
             undo --dry-run` says at each of them (here it is {known}): a node that was away does not know \
             whether another one was promoted"
        )),
        (None, _) => refused(
            "the node's consensus storage is gone: nothing tells whether its data is the newest; put the \
             storage back"
                .to_owned(),
        ),
    }
}

/// By what is stored here, this node is the one that was promoted last, and nobody else is to be.
fn held_last(config: &NodeConfig, storage: &Offline) -> bool {
    let mut me: NodeId = config.id;
    if let Some(number) = storage.identity.cluster_incarnation.number_of(config.id) {
        me = number;
    }
    let last = storage.state.last_granted().map(|(epoch, granted)| (epoch, granted.node));
    last == Some((storage.state.epoch, me))
}

fn is_unfounded(storage: &Offline) -> bool {
    storage.state.last_granted().is_none()
}

/// Whoever runs would promote another node as soon as this one's lease is over.
async fn refuse_if_others_go_on(
    config: &NodeConfig,
    options: UndoOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<(), AdoptError> {
    let identity = load_identity(config)?;
    let answers = ask(config, &identity, ANSWER_PATIENCE, progress).await;
    let up: Vec<&str> = answers
        .iter()
        .filter(|answer| answer.outcome.is_ok())
        .map(|answer| answer.name.as_str())
        .collect();
    if !up.is_empty() {
        return Err(AdoptError::Refused(format!(
            "the daemon of {} answers: it would have another node made active beside this one; stop the \
             daemons of all nodes first",
            up.join(" and of ")
        )));
    }
    if options.others_stopped {
        return Ok(());
    }
    Err(AdoptError::Refused(
        "nobody else answers, which a cut line looks like, too; say --others-stopped once the daemons \
         of all other nodes are stopped for good: one that runs would make another node active beside \
         this one"
            .to_owned(),
    ))
}

fn steps(standing: &Standing) -> Vec<String> {
    let mut steps = Vec::new();
    if standing.taken {
        steps.push("stop PostgreSQL and the guardian, if they run".to_owned());
    }
    if standing.part == Part::Primary {
        let roles = if standing.manifest.roles_made { " and roles" } else { "" };
        steps.push(format!("remove the node's replication slots{roles}"));
    }
    steps.push("take the node's blocks out of pg_hba.conf and pg_ident.conf".to_owned());
    for record in standing.manifest.files.iter().filter(|record| record.written.is_some()) {
        let what = if record.before.is_some() { "put back" } else { "remove" };
        steps.push(format!("{what} {}", record.path.display()));
    }
    if standing.taken {
        steps.push("set the node's consensus storage aside: its daemon cannot go on".to_owned());
    }
    match (standing.taken, standing.part) {
        (true, Part::Primary) => {
            steps.push("remove standby.signal: this node held the last epoch".to_owned());
        }
        (true, Part::Standby | Part::Copy) => steps.push(
            "leave standby.signal: it starts as a standby and follows what primary_conninfo says"
                .to_owned(),
        ),
        (false, _) => {}
    }
    steps
}

async fn stop(
    config: &NodeConfig,
    standing: &Standing,
    progress: &mut dyn FnMut(&str),
) -> Result<(), AdoptError> {
    let server = &standing.server;
    progress("stopping PostgreSQL");
    server.stop_fast(STOP_PATIENCE).await.map_err(failed("stop PostgreSQL"))?;
    let owner = server.settings().os_user.clone();
    let data_dir = &standing.manifest.data_directory;
    guard::end_left_behind(&config.data_dir, data_dir, owner, GUARDIAN_PATIENCE)
        .await
        .map_err(failed("end the guardian"))
}

/// A slot that nobody reads would keep WAL for ever.
async fn remove_own_objects(config: &NodeConfig, standing: &Standing) -> Result<(), AdoptError> {
    let (server, roles) = (&standing.server, standing.manifest.roles_made);
    let what = "remove the node's slots and roles";
    let slots = own_slots(&standing.manifest.data_directory).map_err(failed(what))?;
    let Some(running) = server.running().map_err(failed(what))? else {
        return server.remove_own_objects(&slots, roles).await.map_err(failed(what));
    };
    // It was never taken over, and its own operator runs it.
    let script = own_objects_removal(&slots, roles);
    let mut said = None;
    for role in roles_to_ask(postgres_of(config)?, None) {
        let Some(stock) = StockServer::of(&running, &role) else { break };
        match server.tell_stock(&stock, &script).await {
            Ok(()) => return Ok(()),
            Err(error) => said = Some(error),
        }
    }
    match said {
        Some(error) => Err(failed(what)(error)),
        None => Err(AdoptError::Refused("the server that runs has no Unix socket".to_owned())),
    }
}

/// Slots lie in directories of their names.
fn own_slots(data_dir: &Path) -> std::io::Result<Vec<String>> {
    let mut slots = Vec::new();
    for entry in fs::read_dir(data_dir.join("pg_replslot"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(SLOT_PREFIX) {
            slots.push(name);
        }
    }
    Ok(slots)
}

/// Puts every file back; those that somebody changed since are kept in the folder first.
fn restore_files(
    standing: &Standing,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<PathBuf>, AdoptError> {
    progress("putting the files back");
    let server = &standing.server;
    server.remove_parameters().map_err(failed("remove the node's file of parameters"))?;
    server.remove_hba_blocks().map_err(failed("take the node's blocks out of pg_hba.conf"))?;
    let mut changed = Vec::new();
    for record in &standing.manifest.files {
        let what = || format!("put back {}", record.path.display());
        if keep_if_changed(&standing.folder, record).map_err(failed(what()))? {
            changed.push(record.path.clone());
        }
        if record.written.is_some() {
            standing.folder.restore(record).map_err(failed(what()))?;
        } else {
            server.restore_mode(&record.path, record.mode()).map_err(failed(what()))?;
        }
    }
    Ok(changed)
}

fn keep_if_changed(folder: &Folder, record: &FileRecord) -> std::io::Result<bool> {
    let Some(copy) = &record.written else { return Ok(false) };
    let Ok(now) = fs::read(&record.path) else { return Ok(false) };
    let as_before = match &record.before {
        Some(before) => folder.content(before)? == now,
        None => false,
    };
    if as_before || folder.content(copy)? == now {
        return Ok(false);
    }
    folder.put(&format!("{}.changed-since", copy.trim_end_matches(".written")), &now)?;
    Ok(true)
}

fn start_words(manifest: &Manifest, server: &Server) -> String {
    match &manifest.debian {
        Some(DebianCluster { version, name, .. }) => {
            format!("pg_ctlcluster {version} {name} start")
        }
        None => format!(
            "{} -D {} start, or the unit that started it before",
            server.binaries().program("pg_ctl").display(),
            manifest.data_directory.display()
        ),
    }
}
