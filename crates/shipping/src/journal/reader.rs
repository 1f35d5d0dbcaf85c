//! Reads the journal for those that it is served to: never past the durable end, and on an older
//! timeline never past the point where it was left.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use understudy_types::{Lsn, SegmentSize, Timeline};

use super::Shared;
use super::error::JournalError;
use super::held::Chain;

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// At least one byte.
    Data {
        /// The position of the first one.
        lsn: Lsn,
        /// The bytes.
        bytes: Bytes,
    },
    /// Everything durable was read; wait until `Journal::positions` changes.
    AtDurableEnd,
    /// This timeline was left here; what follows is on another one.
    TimelineEnd {
        /// The first position that is not on it any more.
        switch_lsn: Lsn,
        /// The timeline that begins there.
        next: Timeline,
    },
}

/// What lies ahead of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// So many bytes from the reader's position on.
    Data {
        /// How many.
        bytes: usize,
    },
    /// Everything durable was read; wait until `Journal::positions` changes.
    AtDurableEnd,
    /// This timeline was left here; what follows is on another one.
    TimelineEnd {
        /// The first position that is not on it any more.
        switch_lsn: Lsn,
        /// The timeline that begins there.
        next: Timeline,
    },
}

/// Reads one timeline, from a position on, in order.
#[derive(Debug)]
pub struct JournalReader {
    shared: Arc<Shared>,
    timeline: Timeline,
    size: SegmentSize,
    chain: Chain,
    position: Lsn,
    current: Option<(u64, File, PathBuf)>,
}

impl JournalReader {
    pub(super) fn open(
        shared: Arc<Shared>,
        timeline: Timeline,
        from: Lsn,
    ) -> Result<JournalReader, JournalError> {
        let (size, chain) = {
            let state = shared.lock();
            let size = state.meta.content.filter(|_| state.timeline.is_some());
            let size = size.ok_or(JournalError::Empty)?.size;
            (size, Chain::new(&shared.dir, size, timeline, &state.histories))
        };
        let mut reader =
            JournalReader { shared, timeline, size, chain, position: from, current: None };
        let (end_lsn, _) = reader.limit()?;
        if from > end_lsn {
            return Err(JournalError::NotHeld { timeline, lsn: from });
        }
        // At the very end there may be no file yet.
        if from < end_lsn {
            reader.file(from.0 / size.bytes())?;
        }
        Ok(reader)
    }

    /// The timeline that it reads.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// The position of the next byte.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Reads up to `bytes_max` bytes, at most to the end of a segment; does not wait for more.
    ///
    /// # Errors
    /// When the bytes are not held (any more), or cannot be read.
    pub fn read(&mut self, bytes_max: usize) -> Result<ReadOutcome, JournalError> {
        Ok(match self.ahead(bytes_max)? {
            Ahead::AtDurableEnd => ReadOutcome::AtDurableEnd,
            Ahead::TimelineEnd { switch_lsn, next } => {
                ReadOutcome::TimelineEnd { switch_lsn, next }
            }
            Ahead::Data { bytes } => {
                let (lsn, mut data) = (self.position, BytesMut::zeroed(bytes));
                self.read_into(&mut data)?;
                ReadOutcome::Data { lsn, bytes: data.freeze() }
            }
        })
    }

    /// What `read_into` can read next: up to `bytes_max` bytes, at most to the end of a segment.
    ///
    /// # Errors
    /// When the timeline is not held (any more).
    pub(crate) fn ahead(&self, bytes_max: usize) -> Result<Ahead, JournalError> {
        let (end_lsn, next) = self.limit()?;
        if self.position >= end_lsn {
            return Ok(match next {
                None => Ahead::AtDurableEnd,
                Some(next) => Ahead::TimelineEnd { switch_lsn: end_lsn, next },
            });
        }
        let segment_end = Lsn((self.position.0 / self.size.bytes() + 1) * self.size.bytes());
        let left = end_lsn.min(segment_end).bytes_since(self.position);
        Ok(Ahead::Data { bytes: bytes_max.min(left as usize) })
    }

    /// Fills `buffer`, which is no longer than `ahead` has said.
    ///
    /// # Errors
    /// When the bytes are not held (any more), or cannot be read; the position is as before.
    pub(crate) fn read_into(&mut self, buffer: &mut [u8]) -> Result<(), JournalError> {
        let (lsn, number) = (self.position, self.position.0 / self.size.bytes());
        let offset = lsn.0 % self.size.bytes();
        let (file, path) = self.file(number)?;
        file.read_exact_at(buffer, offset).map_err(JournalError::io("read", path))?;
        self.position = lsn + buffer.len() as u64;
        Ok(())
    }

    /// How far this timeline may be read, and the timeline that follows if it was left there.
    fn limit(&self) -> Result<(Lsn, Option<Timeline>), JournalError> {
        let timeline = self.timeline;
        let not_held = JournalError::NotHeld { timeline, lsn: self.position };
        let state = self.shared.lock();
        let (Some(current), Some(durable_lsn)) = (state.timeline, state.durable_lsn) else {
            return Err(JournalError::Empty);
        };
        if timeline == current {
            return Ok((durable_lsn, None));
        }
        let history = &state.histories.get(&current).ok_or(not_held)?.parsed;
        let index = history.ancestors.iter().position(|entry| entry.timeline == timeline);
        let index = index.ok_or(JournalError::NotHeld { timeline, lsn: self.position })?;
        let next = history.ancestors.get(index + 1).map_or(current, |entry| entry.timeline);
        Ok((history.ancestors[index].switch_lsn, Some(next)))
    }

    fn file(&mut self, number: u64) -> Result<(&File, &PathBuf), JournalError> {
        if self.current.as_ref().is_none_or(|(held, _, _)| *held != number) {
            let lsn = self.position;
            let not_held = JournalError::NotHeld { timeline: self.timeline, lsn };
            let (file, path) = self.chain.open(number)?.ok_or(not_held)?;
            self.current = Some((number, file, path));
        }
        let (_, file, path) = self.current.as_ref().expect("it was set if it was missing");
        Ok((file, path))
    }
}
