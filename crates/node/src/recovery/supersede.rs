//! The end of an incarnation, at a member that knows only the old one: it stops for good as soon as it
//! hears of a newer one, and does not start again until a person has brought it back.
//!
//! What it heard is made durable before it acts on it, so that a restart that reaches nobody does not
//! forget. It believes a node of its own cluster, by its certificate, and nobody else.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use understudy_consensus::offline;
use understudy_transport::TlsIdentity;
use understudy_types::ClusterIncarnation;

use super::{ask, number_members};
use crate::config::NodeConfig;
use crate::daemon::RunError;

/// In the node's `raft/`: the newer incarnation, and who told of it.
const NOTE: &str = "superseded";
/// How long a start waits for the others to say which incarnation they are of. Whoever is down refuses
/// at once; only who is cut off costs this.
const START_PATIENCE: Duration = Duration::from_millis(700);

/// Ends this daemon when a newer incarnation is heard of.
pub(crate) struct Superseded {
    raft_dir: PathBuf,
    pub(crate) own: ClusterIncarnation,
    fatal: watch::Sender<Option<String>>,
    heard: AtomicBool,
}

impl Superseded {
    pub(crate) fn new(
        config: &NodeConfig,
        own: ClusterIncarnation,
        fatal: watch::Sender<Option<String>>,
    ) -> Arc<Superseded> {
        let raft_dir = config.data_dir.join("raft");
        Arc::new(Superseded { raft_dir, own, fatal, heard: AtomicBool::new(false) })
    }

    /// `from`, a node of this cluster, is of `newer`. Returns at once; the daemon stops.
    pub(crate) fn heard(self: &Arc<Self>, from: &str, newer: ClusterIncarnation) {
        if newer.number <= self.own.number || self.heard.swap(true, Ordering::AcqRel) {
            return;
        }
        let (this, from) = (self.clone(), from.to_owned());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = write_note(&this.raft_dir, newer, &from) {
                // It stops all the same; the next start asks the others again.
                tracing::error!(%error, "what was heard of a newer incarnation is not stored");
            }
            this.fatal.send_replace(Some(words(this.own, newer, &from)));
        });
    }
}

fn words(own: ClusterIncarnation, newer: ClusterIncarnation, from: &str) -> String {
    format!(
        "this node is of incarnation {own} of the cluster, but {from} is of incarnation {newer}: the \
         cluster was recovered from a sole survivor, and an old member must not take part any more; \
         bring this node back with `understudy recover --rejoin --config FILE`, which keeps its data \
         for a loss receipt"
    )
}

fn write_note(dir: &Path, newer: ClusterIncarnation, from: &str) -> io::Result<()> {
    let fresh = dir.join("superseded.new");
    let mut file = File::create(&fresh)?;
    writeln!(file, "{newer} {from}")?;
    file.sync_all()?;
    std::fs::rename(&fresh, dir.join(NOTE))?;
    File::open(dir)?.sync_all()
}

fn read_note(dir: &Path) -> io::Result<Option<(ClusterIncarnation, String)>> {
    let text = match std::fs::read_to_string(dir.join(NOTE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let (incarnation, from) = text.trim().split_once(' ').unwrap_or((text.trim(), "a node"));
    let incarnation = incarnation.parse().map_err(io::Error::other)?;
    Ok(Some((incarnation, from.to_owned())))
}

/// Before anything of the node begins: numbers its members for its incarnation, and refuses to start
/// when that is known, or heard now, to be over.
///
/// # Errors
/// When the storage cannot be read, or the incarnation is over.
pub(crate) async fn at_start(
    config: &mut NodeConfig,
    identity: &TlsIdentity,
) -> Result<TlsIdentity, RunError> {
    let part = |what: &'static str| {
        move |source: Box<dyn std::error::Error + Send + Sync>| RunError::Part { what, source }
    };
    let dir = config.data_dir.join("raft");
    let stored =
        offline::stored_identity(&dir).map_err(|e| part("read the node's storage")(e.into()))?;
    let own = stored.map(|stored| stored.cluster_incarnation).unwrap_or_default();
    number_members(config, own).map_err(|e| part("number the members")(e.into()))?;
    let identity = identity.of_incarnation(own);
    let note =
        read_note(&dir).map_err(|e| part("read the note of a newer incarnation")(e.into()))?;
    if let Some((newer, from)) = note.filter(|(newer, _)| newer.number > own.number) {
        return Err(RunError::Fatal(words(own, newer, &from)));
    }
    let answers = ask(config, &identity, START_PATIENCE, &mut |_| ()).await;
    for answer in answers {
        let Ok(described) = answer.outcome else { continue };
        if described.incarnation.number > own.number {
            let from = answer.name.to_string();
            write_note(&dir, described.incarnation, &from)
                .map_err(|e| part("store that a newer incarnation was heard of")(e.into()))?;
            return Err(RunError::Fatal(words(own, described.incarnation, &from)));
        }
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn what_was_heard_is_remembered_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_note(dir.path()).unwrap(), None);
        let newer = ClusterIncarnation::FOUNDED.next(Uuid::from_u128(1));
        write_note(dir.path(), newer, "south").unwrap();
        assert_eq!(read_note(dir.path()).unwrap(), Some((newer, "south".to_owned())));
    }
}
