//! The recorder's thread: turns what the loop handed over into lines of the ring's files.
//!
//! A file that cannot be written ends the recording for a while, never the daemon: what is missing is
//! counted and stands in the trace. Nothing is synced: what a crash of the process leaves is with the
//! kernel, and what a power loss tears is recognised.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use metrics::{Counter, counter, describe_counter};
use understudy_core::node::Core;
use understudy_trace::{Encoder, Header, PROGRAM};
use understudy_types::BootInstant;

use super::ring::Ring;
use super::{Message, RecorderOptions, Shared};
use crate::clock::wall_unix_us;

/// After a failure the next file is tried after this.
const RETRY: Duration = Duration::from_secs(10);
/// Lines are collected while messages wait, and written when there are none left or this much.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Says what the recorder's metrics mean.
pub(crate) fn describe() {
    describe_counter!(
        "understudy_trace_events_total",
        "Events at the core's door that the decision recorder has written."
    );
    describe_counter!(
        "understudy_trace_written_bytes_total",
        "Bytes that the decision recorder has written."
    );
    describe_counter!(
        "understudy_trace_dropped_events_total",
        "Events that are missing in the trace: the disk or the recorder's thread could not keep up."
    );
}

struct Writer<'a> {
    options: &'a RecorderOptions,
    shared: &'a Shared,
    ring: Ring,
    encoder: Encoder,
    file: Option<(File, PathBuf)>,
    file_bytes: u64,
    /// Lines that are not written yet, and how many events they hold.
    pending: Vec<u8>,
    pending_count: u64,
    /// Events of this process so far, those that are missing included.
    events_count: u64,
    /// Of those, how many are missing because they could not be written.
    unwritten_count: u64,
    broken_until: Option<Instant>,
    events: Counter,
    bytes: Counter,
    dropped: Counter,
}

/// Runs until the loop has ended.
pub(super) fn run(options: &RecorderOptions, receiver: &Receiver<Message>, shared: &Shared) {
    let mut writer = Writer {
        options,
        shared,
        ring: Ring::new(&options.dir, options.bytes_max),
        encoder: Encoder::default(),
        file: None,
        file_bytes: 0,
        pending: Vec::new(),
        pending_count: 0,
        events_count: 0,
        unwritten_count: 0,
        broken_until: None,
        events: counter!("understudy_trace_events_total"),
        bytes: counter!("understudy_trace_written_bytes_total"),
        dropped: counter!("understudy_trace_dropped_events_total"),
    };
    while let Ok(message) = receiver.recv() {
        let mut next = Some(message);
        while let Some(message) = next {
            writer.take(message);
            next = match writer.pending.len() < BATCH_BYTES_MAX {
                true => receiver.try_recv().ok(),
                false => None,
            };
        }
        writer.write();
        writer.count();
    }
}

impl Writer<'_> {
    fn take(&mut self, message: Message) {
        match message {
            Message::Snapshot { at, core, missed_count } => {
                self.snapshot(at, &core, missed_count);
            }
            Message::Event(at, event) => {
                self.events_count += 1;
                if self.file.is_some() {
                    self.encoder.event(at, *event, &mut self.pending);
                    self.pending_count += 1;
                } else {
                    self.unwritten_count += 1;
                    if self.broken_until.is_none_or(|until| Instant::now() >= until) {
                        self.shared.wants_snapshot.store(true, Ordering::Relaxed);
                    }
                }
            }
            Message::Actions(actions) if self.file.is_some() => {
                self.encoder.actions(actions, &mut self.pending);
            }
            Message::Actions(_) => {}
            Message::Flush(done) => {
                self.write();
                let _ = done.try_send(());
            }
        }
    }

    /// Where something is missing, and where a file is full, the replay begins anew from here.
    fn snapshot(&mut self, at: BootInstant, core: &Core, missed_count: u64) {
        self.events_count += missed_count;
        let full = self.file_bytes + self.pending.len() as u64 >= self.ring.file_bytes_max();
        if self.file.is_some() && !full {
            if missed_count > 0 {
                self.encoder.gap(missed_count, &mut self.pending);
            }
            self.encoder.snapshot(core, &mut self.pending);
            return;
        }
        self.write();
        if let Some(until) = self.broken_until {
            if Instant::now() < until {
                return;
            }
            self.broken_until = None;
        }
        match self.ring.open_next() {
            Ok(file) => {
                (self.file, self.file_bytes) = (Some(file), 0);
                let header = Header {
                    format: understudy_trace::FORMAT,
                    program: PROGRAM.to_owned(),
                    node: self.options.node,
                    name: self.options.name.clone(),
                    process: self.options.process,
                    events_before: self.events_count,
                    at,
                    wall_unix_us: wall_unix_us(),
                };
                self.encoder.begin(header, core, &mut self.pending);
            }
            Err(error) => self.fail(&error),
        }
    }

    fn write(&mut self) {
        let Some((file, path)) = &mut self.file else { return };
        if self.pending.is_empty() {
            return;
        }
        let outcome = file.write_all(&self.pending);
        let (written, events) = (self.pending.len() as u64, self.pending_count);
        self.pending.clear();
        self.pending_count = 0;
        match outcome {
            Ok(()) => {
                self.file_bytes += written;
                self.bytes.increment(written);
                self.events.increment(events);
                if self.file_bytes >= self.ring.file_bytes_max() {
                    self.shared.wants_snapshot.store(true, Ordering::Relaxed);
                }
            }
            Err(error) => {
                // On a full disk a file that holds nothing would only push out one that does.
                if self.file_bytes == 0 {
                    let _ = std::fs::remove_file(path);
                }
                // Decisions alone count as an event, so that the next file shows that something is missing.
                let lost_count = events.max(1);
                self.unwritten_count += lost_count;
                self.events_count += lost_count - events;
                self.fail(&error);
            }
        }
    }

    /// The recording pauses. The loop goes on handing over what is counted and thrown away here.
    fn fail(&mut self, error: &std::io::Error) {
        let dir = self.options.dir.display().to_string();
        tracing::warn!(dir, %error, "decision trace cannot be written; it pauses");
        self.file = None;
        self.broken_until = Some(Instant::now() + RETRY);
    }

    fn count(&self) {
        let missed = self.shared.missed_total.load(Ordering::Relaxed);
        self.dropped.absolute(missed + self.unwritten_count);
    }
}
