//! The daemon's side of the guardian: carries the core's wish to it, keeps it alive, and brings what it
//! did while nobody else could into the log and the metrics. It decides nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use understudy_core::node::GuardWish;
use understudy_postgres::{Guard, GuardianLink, GuardianOptions, GuardianRecord, OsUser};
use understudy_types::BootInstant;

use crate::hands::chain;

pub use understudy_postgres::{WatchError, WatchOptions, watch};

/// How things stand is said again this often, since a statement may be lost.
const REPEAT: Duration = Duration::from_millis(100);
/// Between two looks at whether the guardian lives and what it did.
const KEEP: Duration = Duration::from_secs(1);

/// Says to the guardian what the core wishes; owned by the core's loop, and never waits.
pub(crate) struct GuardTeller {
    link: Arc<GuardianLink>,
    said: Option<(Guard, BootInstant)>,
}

impl GuardTeller {
    pub(crate) fn new(link: Arc<GuardianLink>) -> GuardTeller {
        GuardTeller { link, said: None }
    }

    pub(crate) fn tell(&mut self, now: BootInstant, wish: GuardWish) {
        let before = self.said.map(|(guard, _)| guard);
        let guard = match wish {
            GuardWish::Unchanged => before,
            GuardWish::Nothing => Some(Guard::Nothing),
            GuardWish::Until(at) => Some(Guard::Until(at)),
            GuardWish::AsBefore(at) => Some(Guard::AsBefore(at)),
        };
        let Some(guard) = guard else { return };
        let recent = self.said.is_some_and(|(_, at)| now.since(at) < REPEAT);
        if recent && before == Some(guard) {
            return;
        }
        self.link.say(guard);
        self.said = Some((guard, now));
    }
}

/// Makes the link to a guardian that lives or is yet to be started.
pub(crate) fn link(
    data_dir: &Path,
    pgdata: &Path,
    owner: OsUser,
    process: u64,
) -> Result<Arc<GuardianLink>, understudy_postgres::GuardianError> {
    let dir = data_dir.join("guard");
    let options = GuardianOptions { dir, data_dir: pgdata.to_owned(), owner, process };
    GuardianLink::new(options).map(Arc::new)
}

/// Where a guardian is no longer wanted, one that an earlier configuration started ends.
pub(crate) fn retire(link: &GuardianLink) {
    link.say(Guard::Retire);
}

/// Ends a guardian that a daemon left behind, where there is none to say so any more.
pub(crate) async fn end_left_behind(
    data_dir: &Path,
    pgdata: &Path,
    owner: OsUser,
    patience: Duration,
) -> Result<(), understudy_postgres::GuardianError> {
    if !data_dir.join("guard").is_dir() {
        return Ok(());
    }
    // Later than any daemon's start, so that it is heeded.
    link(data_dir, pgdata, owner, u64::MAX)?.end_guardian(patience).await
}

/// Runs until the daemon ends.
pub(crate) async fn keep(link: Arc<GuardianLink>) {
    let mut every = tokio::time::interval(KEEP);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let kept = link.clone();
        // Files are read and a process may be started: not on the runtime's threads.
        let look = tokio::task::spawn_blocking(move || (kept.keep(), kept.take_records()));
        let Ok((kept, records)) = look.await else { return };
        if let Err(error) = kept {
            tracing::warn!(error = chain(&error), "cannot keep a guardian");
        }
        let up = link.silent_for().is_some_and(|silence| silence < 2 * KEEP);
        // There from the beginning, so that the first fence is an increase.
        counter!("understudy_guardian_fences_total").increment(0);
        gauge!("understudy_guardian_up").set(f64::from(u8::from(up)));
        match records {
            Ok(records) => records.iter().for_each(tell),
            Err(error) => tracing::warn!(error = chain(&error), "cannot read the guardian's log"),
        }
    }
}

fn tell(record: &GuardianRecord) {
    let GuardianRecord { at_unix_us, late_by, processes_found, kills, took, proven } = record;
    counter!("understudy_guardian_fences_total").increment(u64::from(*proven));
    if *proven {
        tracing::warn!(
            at_unix_us,
            ?late_by,
            processes_found,
            kills,
            ?took,
            "the guardian ended PostgreSQL: the lease's deadline had passed and the daemon did nothing"
        );
    } else {
        tracing::error!(
            at_unix_us,
            ?late_by,
            processes_found,
            kills,
            ?took,
            "the guardian could not end every process of PostgreSQL; it goes on trying"
        );
    }
}
