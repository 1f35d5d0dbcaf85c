//! Keeps WAL that the cluster does not have, and has its loss receipt made, before anything of it is
//! overwritten.
//!
//! Keeping must succeed before a rejoin goes on. A receipt must not: one that cannot be made now is
//! tried again at the next rejoin, from the kept files. What is kept already is not kept again,
//! however often a rejoin is begun.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use understudy_core::node::TaskFailure;
use understudy_shipping::journal::JournalError;
use understudy_types::{Epoch, Lineage, Lsn, NodeId, SegmentSize, Timeline, WalSegment};

use super::{Hands, chain, transient, transient_words};
use crate::clock::wall_unix_us;
use crate::metrics;
use crate::receipts::{
    self, Facts, KEPT_FILE, KEPT_WAL, Kept, RECEIPT_FILE, Receipt, StoreError, divergent_dir,
};

/// Rounds of which the WAL is kept; the oldest goes first.
const ROUNDS_KEPT: usize = 5;
/// Rounds of which the receipt is kept.
const RECEIPTS_KEPT: usize = 50;
/// The port in the name of the socket over which the holder is asked for the names of databases.
const NAMES_PORT: u16 = 7434;
const COMPARED_BYTES: usize = 1 << 20;

/// Tells work that goes on in a thread that nobody waits for it any more.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Hands {
    /// Copies the own WAL from the segment of `from` on, with the history files, durably.
    pub(super) async fn keep_divergent(
        &self,
        from: Lsn,
        history: &[Lineage],
        epoch: Epoch,
    ) -> Result<(), TaskFailure> {
        let own = self.own_end().await?;
        let kept = Kept {
            version: 1,
            node: self.options().name.to_string(),
            timeline: own.timeline.get(),
            from_lsn: from,
            end_lsn: own.end_lsn,
            wal_bytes: own.end_lsn.bytes_since(from),
            recorded: self.lineage_recorded(),
            history: history.to_vec(),
        };
        let root = divergent_dir(&self.options().data_dir);
        let pg_wal = self.server().pg_wal_dir();
        self.report_progress("keeping diverged WAL", 0, kept.wal_bytes);
        let size = own.segment_size;
        self.alone_in_divergent(move |stopped| {
            if let Some(round) = already_kept(&root, &pg_wal, epoch, size, &kept) {
                tracing::info!(round = %round.display(), "this diverged WAL is kept already");
                return Ok(());
            }
            forget_oldest(&root).map_err(transient)?;
            let into = fresh_place(&root, epoch, KEPT_WAL).map_err(transient)?;
            tracing::warn!(
                %from, end = %kept.end_lsn, bytes = kept.wal_bytes, into = %into.display(),
                "keeping WAL that the cluster does not have"
            );
            keep_files(&pg_wal, &into, size, &kept, stopped).map_err(transient)
        })
        .await?
    }

    /// Makes every receipt that is missing. `live`: `pg_wal` is still what the newest round was kept
    /// from. Whatever goes wrong is logged; a rejoin does not wait for it.
    pub(super) async fn write_receipts(&self, live: bool, holder: NodeId, epoch: Epoch) {
        // A candidate that starts its own standby is in a hurry; its receipts come later.
        if holder == self.options().me {
            return;
        }
        let root = divergent_dir(&self.options().data_dir);
        let looked_in = root.clone();
        let missing = self.alone_in_divergent(move |_| without_receipt(&looked_in)).await;
        let missing = missing.unwrap_or_default();
        let Some(newest) = missing.last().cloned() else { return };
        self.report_progress("making the loss receipt", 0, 0);
        let facts = Facts {
            cluster: self.options().cluster,
            epoch,
            promised: Some((self.options().promised)()),
            databases: self.database_names(holder).await,
            now_unix_us: wall_unix_us(),
        };
        let pg_wal = self.server().pg_wal_dir();
        let made = self.alone_in_divergent(move |stopped| {
            for round in missing {
                let live = (live && round == newest).then_some(pg_wal.as_path());
                report(&round, receipts::make(&round, live, &facts, stopped));
            }
        });
        if let Err(failure) = made.await {
            tracing::error!(why = failure.words, "loss receipt cannot be made");
        }
        self.look_at_receipts().await;
    }

    /// Reads which receipts there are, for status and metrics.
    pub(crate) async fn look_at_receipts(&self) {
        let hands = self.clone();
        // All of it in its turn, so that an older look never comes after a newer one.
        let looked = self.alone_in_divergent(move |_| {
            match receipts::list(&divergent_dir(&hands.options().data_dir)) {
                Ok(listed) => {
                    let (commits, wal_bytes) = receipts::totals(&listed);
                    metrics::set_lost(commits, wal_bytes);
                    let newest = listed.first().map(Receipt::summary);
                    hands.inner.newest_receipt.send_replace(newest);
                }
                Err(error) => {
                    tracing::warn!(error = chain(&error), "loss receipts cannot be listed");
                }
            }
        });
        if let Err(failure) = looked.await {
            tracing::warn!(why = failure.words, "loss receipts cannot be listed");
        }
    }

    /// `divergent/epoch-<e>-<n>/<what>`, not yet there.
    pub(super) async fn divergent_place(
        &self,
        epoch: Epoch,
        what: &'static str,
    ) -> Result<PathBuf, TaskFailure> {
        let root = divergent_dir(&self.options().data_dir);
        self.alone_in_divergent(move |_| {
            forget_oldest(&root).map_err(transient)?;
            fresh_place(&root, epoch, what).map_err(transient)
        })
        .await?
    }

    /// The databases of the node that took over; none if it cannot be asked now.
    async fn database_names(&self, holder: NodeId) -> BTreeMap<u32, String> {
        let asked = async {
            let (source, shutdown) = self.tunnel_at(holder, NAMES_PORT)?;
            let _close = shutdown.drop_guard();
            understudy_postgres::source_databases(&source).await.map_err(transient)
        };
        asked.await.unwrap_or_else(|failure: TaskFailure| {
            tracing::warn!(why = failure.words, "the receipt will name databases by oid only");
            BTreeMap::new()
        })
    }

    /// Runs file work off the runtime's threads, alone, and tells it when it is not wanted any more.
    async fn alone_in_divergent<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Fn() -> bool) -> T + Send + 'static,
    ) -> Result<T, TaskFailure> {
        let stopped = StopOnDrop(Arc::default());
        let flag = stopped.0.clone();
        let turn = self.inner.divergent_turn.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            work(&|| flag.load(Ordering::Relaxed))
        });
        done.await.map_err(|error| transient_words(&format!("work on kept WAL: {error}")))
    }
}

fn report(round: &Path, made: Result<Receipt, StoreError>) {
    match made {
        Ok(receipt) => tracing::info!(
            receipt = receipt.id,
            commits = receipt.commits,
            bytes = receipt.lost_wal_bytes,
            fork = ?receipt.fork_lsn.map(|lsn| lsn.to_string()),
            end = %receipt.end_lsn,
            lost_seconds = receipt.lost_seconds,
            tail = ?receipt.tail,
            "loss receipt made"
        ),
        Err(StoreError::Stopped) => tracing::info!(round = %round.display(), "receipt put off"),
        Err(error) => tracing::error!(
            error = chain(&error),
            round = %round.display(),
            "loss receipt cannot be made; the WAL is kept"
        ),
    }
}

/// Rounds with kept WAL and no receipt, the oldest first.
fn without_receipt(root: &Path) -> Vec<PathBuf> {
    let mut rounds = receipts::rounds(root).unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), "kept WAL cannot be listed");
        Vec::new()
    });
    rounds.retain(|round| {
        round.join(KEPT_WAL).join(KEPT_FILE).exists() && !round.join(RECEIPT_FILE).exists()
    });
    rounds
}

/// A round of this epoch that has all that `kept` would hold: the same bytes up to its own end, and
/// behind that nothing but what recovery wrote before a rewind was tried.
fn already_kept(
    root: &Path,
    pg_wal: &Path,
    epoch: Epoch,
    size: SegmentSize,
    kept: &Kept,
) -> Option<PathBuf> {
    let prefix = format!("epoch-{epoch}-");
    let timeline = Timeline::new(kept.timeline)?;
    receipts::rounds(root).ok()?.into_iter().rev().find(|round| {
        let named = round.file_name().and_then(|name| name.to_str());
        let Ok(held) = receipts::load_kept(round) else { return false };
        let same = held.timeline == kept.timeline && held.from_lsn == kept.from_lsn;
        let nothing_new = || {
            held.end_lsn == kept.end_lsn
                || (held.end_lsn < kept.end_lsn
                    && receipts::ends_between(pg_wal, timeline, size, held.end_lsn, kept.end_lsn)
                        == Some(false))
        };
        named.is_some_and(|name| name.starts_with(&prefix))
            && same
            && nothing_new()
            && same_bytes(&round.join(KEPT_WAL), pg_wal, timeline, size, held.end_lsn)
                .unwrap_or(false)
    })
}

/// The kept segments are those of `pg_wal`, up to `end`, as far as that has them still.
fn same_bytes(
    kept: &Path,
    pg_wal: &Path,
    timeline: Timeline,
    size: SegmentSize,
    end: Lsn,
) -> io::Result<bool> {
    for entry in fs::read_dir(kept)? {
        let name = entry?.file_name();
        let segment = name.to_str().and_then(|name| WalSegment::parse(name, size).ok());
        let Some(segment) = segment.filter(|segment| segment.timeline == timeline) else {
            continue;
        };
        let wanted = end.bytes_since(segment.start(size)).min(size.bytes());
        let live = match File::open(pg_wal.join(&name)) {
            Ok(live) => live,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if !same_content(File::open(kept.join(&name))?.take(wanted), live.take(wanted))? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn same_content(mut one: impl Read, mut other: impl Read) -> io::Result<bool> {
    let (mut here, mut there) = (vec![0; COMPARED_BYTES], vec![0; COMPARED_BYTES]);
    loop {
        let got = fill(&mut one, &mut here)?;
        if got != fill(&mut other, &mut there)? || here[..got] != there[..got] {
            return Ok(false);
        }
        if got == 0 {
            return Ok(true);
        }
    }
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..])? {
            0 => break,
            got => filled += got,
        }
    }
    Ok(filled)
}

/// Where a journal that lost WAL is kept, not yet there; what was kept longest ago may go for it. Only
/// before the node's hands are at work: nobody else is there then.
pub(crate) fn journal_aside(data_dir: &Path, epoch: Epoch) -> Result<PathBuf, JournalError> {
    let root = divergent_dir(data_dir);
    forget_oldest(&root).and_then(|()| fresh_place(&root, epoch, "journal")).map_err(|source| {
        JournalError::Io { verb: "make a place below", path: root.clone(), source }
    })
}

/// `<root>/epoch-<e>-<n>/<what>`, not yet there; the directory above it is.
fn fresh_place(root: &Path, epoch: Epoch, what: &str) -> io::Result<PathBuf> {
    let named = |n: u32| root.join(format!("epoch-{epoch}-{n}"));
    let taken = |dir: &PathBuf| {
        // A round whose WAL was let go keeps its receipt, and its name.
        dir.join(what).exists() || (what == KEPT_WAL && dir.join(RECEIPT_FILE).exists())
    };
    let round = (1..).map(named).find(|dir| !taken(dir)).expect("numbers do not run out");
    fs::create_dir_all(&round)?;
    File::open(root)?.sync_all()?;
    Ok(round.join(what))
}

/// Copies what belongs to `kept` beside `into` and puts it there when all of it is durable.
fn keep_files(
    pg_wal: &Path,
    into: &Path,
    size: SegmentSize,
    kept: &Kept,
    stopped: &dyn Fn() -> bool,
) -> io::Result<()> {
    let incoming = into.with_extension("new");
    if incoming.exists() {
        fs::remove_dir_all(&incoming)?;
    }
    fs::create_dir_all(&incoming)?;
    let (first, last) = (kept.from_lsn.0 / size.bytes(), kept.end_lsn.0 / size.bytes());
    for entry in fs::read_dir(pg_wal)? {
        if stopped() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "nobody waits for it any more"));
        }
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let wanted = match WalSegment::parse(&name, size) {
            Ok(segment) => (first..=last).contains(&segment.number),
            Err(_) => name.ends_with(".history"),
        };
        if wanted {
            let to = incoming.join(&name);
            fs::copy(entry.path(), &to)?;
            File::open(&to)?.sync_all()?;
        }
    }
    let mut file = File::create(incoming.join(KEPT_FILE))?;
    file.write_all(&serde_json::to_vec_pretty(kept)?)?;
    file.sync_all()?;
    File::open(&incoming)?.sync_all()?;
    fs::rename(&incoming, into)?;
    into.parent().map_or(Ok(()), |round| File::open(round)?.sync_all())
}

/// Keeps the WAL of the newest rounds only, and the receipts of some more: diverged WAL must never be
/// what fills the disk.
fn forget_oldest(root: &Path) -> io::Result<()> {
    fs::create_dir_all(root)?;
    let rounds = receipts::rounds(root).map_err(io::Error::other)?;
    let bulk = |round: &Path| -> Vec<PathBuf> {
        let places = [KEPT_WAL, "pg_wal.new", "journal", receipts::TRANSACTIONS_FILE];
        places.iter().map(|place| round.join(place)).filter(|place| place.exists()).collect()
    };
    let heavy: Vec<&PathBuf> = rounds.iter().filter(|round| !bulk(round).is_empty()).collect();
    let spare = heavy.len().saturating_sub(ROUNDS_KEPT);
    for round in heavy.into_iter().take(spare) {
        tracing::warn!(dir = %round.display(), "removing the oldest kept WAL");
        if !round.join(RECEIPT_FILE).exists() {
            fs::remove_dir_all(round)?;
            continue;
        }
        for place in bulk(round) {
            if place.is_dir() { fs::remove_dir_all(place)? } else { fs::remove_file(place)? }
        }
    }
    let spare = rounds.len().saturating_sub(RECEIPTS_KEPT);
    for round in rounds.iter().take(spare).filter(|round| round.exists()) {
        tracing::warn!(dir = %round.display(), "removing the oldest loss receipt");
        fs::remove_dir_all(round)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
