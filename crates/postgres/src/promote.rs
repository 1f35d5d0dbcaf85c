//! Promotion, and the timeline number that it picks.
//!
//! PostgreSQL takes the number after the newest history file that it finds without a gap
//! (`findNewestTimeLine`). The cluster grants the number, so the ones between are burned: history files
//! are put in their place. A burned file names no ancestor, hence PostgreSQL never follows it ("is not
//! a child"), and any real history is longer. It stays after the promotion, because a stock WAL receiver
//! that jumps from timeline 1 to 4 asks for the files of 2, 3 and 4.

use std::fs;
use std::time::{Duration, Instant};

use understudy_types::{Lsn, Timeline, TimelineHistory};

use crate::connection;
use crate::error::{Error, IoContext, Result};
use crate::os;
use crate::probe;
use crate::server::Server;

/// The whole content of a burned history file: a comment, which PostgreSQL skips.
pub const BURNED_HISTORY: &str = TimelineHistory::PASSED_OVER;

const POLL: Duration = Duration::from_millis(5);
const STATEMENT_PATIENCE: Duration = Duration::from_secs(5);

/// A promotion that PostgreSQL has completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// The timeline it is on now.
    pub timeline: Timeline,
    /// Where it left its parent.
    pub fork_lsn: Lsn,
    /// The end of its WAL as seen just after; at or after the end of recovery.
    pub end_lsn: Lsn,
    /// Its history, as PostgreSQL wrote it.
    pub history: TimelineHistory,
}

impl Server {
    /// The history of a timeline as it lies in pg_wal; `None` when there is no such file. The first
    /// timeline has none, and a burned one has no ancestors.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn history_file(&self, timeline: Timeline) -> Result<Option<TimelineHistory>> {
        let path = self.pg_wal_dir().join(timeline.history_file_name());
        let Some(content) = os::read_if_present(&path)? else { return Ok(None) };
        TimelineHistory::parse(timeline, &String::from_utf8_lossy(&content))
            .map(Some)
            .map_err(|source| Error::History { timeline, source })
    }

    /// History files in pg_wal, ascending; true for those that are burned.
    fn history_files(&self) -> Result<Vec<(Timeline, bool)>> {
        let dir = self.pg_wal_dir();
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).during("list", &dir)? {
            let name = entry.during("list", &dir)?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".history"));
            let number = number.filter(|number| number.len() == 8);
            let number = number.and_then(|number| u32::from_str_radix(number, 16).ok());
            if let Some(timeline) = number.and_then(Timeline::new) {
                let content = os::read_if_present(&dir.join(&name))?.unwrap_or_default();
                found.push((timeline, content == BURNED_HISTORY.as_bytes()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Burns every number after the newest one known here and before `granted`, so that a promotion
    /// picks `granted`. `current` is the timeline that is replayed. Idempotent, durable.
    ///
    /// # Errors
    /// `TimelineTaken` when a real history of `granted` or later lies here.
    pub fn burn_history_files(&self, current: Timeline, granted: Timeline) -> Result<()> {
        let known = self.history_files()?;
        let real = known.iter().filter(|(_, burned)| !burned).map(|(timeline, _)| *timeline);
        let newest = real.max().unwrap_or(current).max(current);
        if newest >= granted {
            return Err(Error::TimelineTaken { granted, taken: newest });
        }
        // Left over from a promotion that was granted a higher number and never happened.
        for (timeline, burned) in &known {
            if *burned && *timeline >= granted {
                os::remove_durably(&self.pg_wal_dir().join(timeline.history_file_name()))?;
            }
        }
        let mut burn = newest.next();
        while burn < granted {
            let path = self.pg_wal_dir().join(burn.history_file_name());
            os::write_durably(&path, BURNED_HISTORY.as_bytes(), &self.settings().os_user)?;
            burn = burn.next();
        }
        Ok(())
    }

    /// Removes burned files that no promotion has used. A standby that starts with "latest" would
    /// take the newest of them for its target and refuse, because it is not an ancestor's child.
    pub(crate) fn remove_unused_burned(&self) -> Result<()> {
        if !self.pg_wal_dir().is_dir() {
            return Ok(());
        }
        let known = self.history_files()?;
        let trailing = known.iter().rev().take_while(|(_, burned)| *burned);
        for (timeline, _) in trailing {
            os::remove_durably(&self.pg_wal_dir().join(timeline.history_file_name()))?;
        }
        Ok(())
    }

    /// Promotes the running standby to the granted timeline and waits until it is out of recovery,
    /// then puts `standby.signal` back. If it is out of recovery already, only tells where it stands.
    ///
    /// That the timeline is the granted one and the fork the expected one is for the caller to judge.
    ///
    /// # Errors
    /// When it does not get there within `patience`; it may still get there later.
    pub async fn promote(&self, granted: Timeline, patience: Duration) -> Result<Promoted> {
        let begun = Instant::now();
        let mut session = connection::open(self.settings(), STATEMENT_PATIENCE).await?;
        let seen = probe::observe(&mut session, "", STATEMENT_PATIENCE).await?;
        if seen.in_recovery {
            self.refuse_dirty()?;
            let current = seen.timeline.unwrap_or(Timeline::FIRST);
            self.burn_history_files(current, granted)?;
            let ask = sqlx::query("SELECT pg_promote(false)").execute(&mut session);
            connection::within("promotion", STATEMENT_PATIENCE, ask).await?;
        }
        let seen = loop {
            let seen = match probe::observe(&mut session, "", STATEMENT_PATIENCE).await {
                // Recovery ended in the middle of the question, most likely: it has another answer now.
                Err(_) => probe::observe(&mut session, "", STATEMENT_PATIENCE).await?,
                Ok(seen) => seen,
            };
            if !seen.in_recovery {
                break seen;
            }
            if begun.elapsed() > patience {
                return Err(Error::Timeout { what: "the end of recovery", waited: patience });
            }
            tokio::time::sleep(POLL).await;
        };
        // The end of recovery has removed it.
        self.put_standby_signal()?;
        connection::close(session).await;
        let odd = |reason: &str| self.unusable(format!("{reason} after the promotion"));
        let timeline = seen.timeline.ok_or_else(|| odd("timeline unknown"))?;
        let history = self.history_file(timeline)?.ok_or_else(|| odd("no history file"))?;
        let fork =
            history.ancestors.last().ok_or_else(|| odd("no ancestor in the history file"))?;
        let fork_lsn = fork.switch_lsn;
        let end_lsn = seen.flush_lsn.ok_or_else(|| odd("end of WAL unknown"))?;
        tracing::info!(%timeline, %fork_lsn, took = ?begun.elapsed(), "promoted");
        Ok(Promoted { timeline, fork_lsn, end_lsn, history })
    }
}
