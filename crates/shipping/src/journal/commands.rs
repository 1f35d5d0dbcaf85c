//! What the journal is asked to do beside storing frames: epochs, seal, begin, switch, clear.
//!
//! Each runs on the writer's thread after everything queued before it is durable, and has made its
//! own effect durable when it returns.

use std::fs;
use std::path::Path;

use understudy_types::{
    Admission, Epoch, Lineage, Lsn, SealedEnd, SegmentSize, SystemId, Timeline, WalSegment,
};

use super::error::JournalError;
use super::files;
use super::held::Chain;
use super::meta::{Content, Meta, Seal};
use super::tip::Tip;
use super::writer::Writer;

impl Writer {
    fn refuse_older(&self, epoch: Epoch) -> Result<(), JournalError> {
        let max_epoch = self.meta.max_epoch;
        if epoch < max_epoch {
            return Err(JournalError::StaleEpoch { epoch, max_epoch });
        }
        Ok(())
    }

    pub(super) fn raise_epoch(&mut self, epoch: Epoch) -> Result<(), JournalError> {
        let max_epoch = self.meta.max_epoch.max(epoch);
        self.store_meta(Meta { max_epoch, ..self.meta.clone() })?;
        let mut state = self.shared.lock();
        state.meta = self.meta.clone();
        if state.admitted.is_some_and(|admitted| admitted < max_epoch) {
            state.admitted = None;
        }
        Ok(())
    }

    pub(super) fn seal(&mut self, epoch: Epoch) -> Result<Option<SealedEnd>, JournalError> {
        self.refuse_older(epoch)?;
        let end = self.tip.as_ref().map(|tip| SealedEnd {
            epoch,
            timeline: tip.timeline,
            durable_lsn: tip.durable_lsn,
            record_end_lsn: tip.durable_lsn,
        });
        let sealed = Some(Seal { epoch, end });
        self.store_meta(Meta { max_epoch: epoch, sealed, ..self.meta.clone() })?;
        let mut state = self.shared.lock();
        state.meta = self.meta.clone();
        state.admitted = None;
        Ok(end)
    }

    pub(super) fn admit(&mut self, admission: Admission) -> Result<(), JournalError> {
        let epoch = admission.epoch;
        self.refuse_older(epoch)?;
        // The seal was for those before this epoch, which stay refused by `max_epoch`.
        let sealed = None;
        self.store_meta(Meta { max_epoch: epoch, sealed, ..self.meta.clone() })?;
        let mut state = self.shared.lock();
        state.meta = self.meta.clone();
        state.admitted = Some(epoch);
        Ok(())
    }

    pub(super) fn begin(
        &mut self,
        system_id: SystemId,
        size: SegmentSize,
        timeline: Timeline,
        lineage: Vec<Lineage>,
        start_lsn: Lsn,
    ) -> Result<(), JournalError> {
        if self.tip.is_some() {
            return Err(JournalError::NotEmpty);
        }
        if !start_lsn.0.is_multiple_of(size.bytes()) {
            return Err(JournalError::NotSegmentStart(start_lsn));
        }
        let content = Content {
            system_id,
            size,
            begin_timeline: timeline,
            begin_lsn: start_lsn,
            first_durable_lsn: None,
        };
        self.store_meta(Meta { content: Some(content), lineage, ..self.meta.clone() })?;
        self.tip = Some(Tip::create(&self.dir, content)?);
        self.expect_from_end();
        self.publish(None);
        Ok(())
    }

    pub(super) fn set_lineage(&mut self, lineage: Vec<Lineage>) -> Result<(), JournalError> {
        self.store_meta(Meta { lineage, ..self.meta.clone() })?;
        self.shared.lock().meta = self.meta.clone();
        Ok(())
    }

    pub(super) fn switch_timeline(
        &mut self,
        timeline: Timeline,
        raw_history: &[u8],
        fork_lsn: Lsn,
    ) -> Result<(), JournalError> {
        let history = files::parse_history(timeline, raw_history)?.parsed;
        let tip = self.tip.as_mut().ok_or(JournalError::Empty)?;
        if tip.timeline == timeline {
            return self.store_history(timeline, raw_history);
        }
        let current = tip.timeline;
        // Ancestors in between would have WAL of their own, unless they were left where they began.
        let leaves_here = history.end_of(current) == Some(fork_lsn)
            && history.ancestors.last().is_some_and(|entry| entry.switch_lsn == fork_lsn);
        if !leaves_here || fork_lsn < tip.durable_lsn {
            return Err(JournalError::Diverged { timeline, lsn: fork_lsn });
        }
        if fork_lsn > tip.durable_lsn {
            return Err(JournalError::Gap { expected_lsn: tip.durable_lsn, lsn: fork_lsn });
        }
        let known = self.histories.get(&current).map(|known| &known.parsed.ancestors);
        let own = history.ancestors.iter().take_while(|entry| entry.timeline < current);
        let own: Vec<_> = own.map(|entry| (entry.timeline, entry.switch_lsn)).collect();
        let differs = known.is_some_and(|known| {
            known.iter().map(|entry| (entry.timeline, entry.switch_lsn)).ne(own.iter().copied())
        });
        if differs {
            return Err(JournalError::Diverged { timeline, lsn: fork_lsn });
        }
        tip.rewind()?;
        tip.sync()?;
        self.store_history(timeline, raw_history)?;
        let tip = self.tip.as_ref().expect("it was there above, and nothing removed it");
        let chain = Chain::new(&self.dir, tip.content.size, timeline, &self.histories);
        self.tip = Some(tip.fork(timeline, chain)?);
        self.expect_from_end();
        self.publish(None);
        Ok(())
    }

    pub(super) fn set_aside(&mut self, into: &Path) -> Result<(), JournalError> {
        files::make_target(into)?;
        self.tip = None;
        self.expect_from_end();
        self.publish(None);
        files::move_wal(&self.dir, into, self.histories.keys().copied())?;
        self.histories.clear();
        self.shared.lock().histories.clear();
        self.store_meta(self.meta.without_wal())?;
        self.publish(None);
        Ok(())
    }

    pub(super) fn remove_before(&mut self, lsn: Lsn) -> Result<u64, JournalError> {
        let tip = self.tip.as_mut().ok_or(JournalError::Empty)?;
        let size = tip.content.size;
        // The last record stays: it is what is compared when the stream goes on, and after a crash.
        let Some(last_record_lsn) = tip.last_record_lsn else { return Ok(0) };
        let limit = lsn.min(last_record_lsn.align_down(size.bytes()));
        let mut removed_bytes = 0;
        for timeline in files::timelines(&self.dir)? {
            let dir = files::timeline_dir(&self.dir, timeline);
            let segments = files::segments(&self.dir, timeline, size)?;
            let mut left = segments.len();
            for (number, finished) in segments {
                let segment = WalSegment { timeline, number };
                let kept = segment.end(size) > limit || (timeline == tip.timeline && !finished);
                if kept {
                    break;
                }
                let path = match finished {
                    true => files::finished(&self.dir, segment, size),
                    false => files::partial(&self.dir, segment, size),
                };
                fs::remove_file(&path).map_err(JournalError::io("remove", &path))?;
                removed_bytes += size.bytes();
                left -= 1;
            }
            files::sync_dir(&dir)?;
            if left == 0 && timeline != tip.timeline && files::names(&dir)?.is_empty() {
                fs::remove_dir(&dir).map_err(JournalError::io("remove", &dir))?;
            }
        }
        let held = tip.chain.segments()?;
        let mut first = last_record_lsn.0 / size.bytes();
        while first > 0 && held.contains_key(&(first - 1)) {
            first -= 1;
        }
        tip.begin_lsn = Lsn(first * size.bytes());
        self.publish(None);
        Ok(removed_bytes)
    }
}
