//! Whether WAL is compressed on its way to one receiver: only while that makes the transfer faster.
//!
//! The input is what this stream itself sees: how long it waits for the line, how fast the line takes
//! bytes, how much smaller WAL becomes and how long that takes. One byte of WAL costs `1 / line` plain,
//! and `1 / speed + ratio / line` compressed, since one task does the one after the other. While the
//! line is not what is waited for, nothing is compressed: a commit's few bytes least of all.

use std::io;
use std::time::Duration;

/// zstd's fastest level with its usual tables; higher ones win little on WAL and cost much.
const LEVEL: i32 = 1;
/// Smaller frames are what commits wait for.
const FRAME_BYTES_MIN: usize = 8 * 1024;
/// A decision rests on at least this long and this much.
const WINDOW: Duration = Duration::from_millis(250);
const WINDOW_BYTES: u64 = 512 * 1024;
/// A stream that waits for its line for less than this part of the time is not held up by it.
const HELD_UP: f64 = 0.4;
/// To begin, compression must promise to take less than this part of the time; to go on, less than all.
const WORTH_BEGINNING: f64 = 0.8;
/// Between two tries without compression on a line that is faster than what is put on it.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(16);

/// What a decision rested on, and what it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CompressionSeen {
    /// WAL is compressed from now on.
    pub on: bool,
    /// The part of the time that the stream waited for its line, from 0 to 1.
    pub held_up: f64,
    /// What the line took, in bytes a second; at least, where it was not what was waited for.
    pub line_bytes_per_second: f64,
    /// What compression makes of a byte; `None` before it was tried.
    pub ratio: Option<f64>,
    /// How much WAL it takes in, in bytes a second; `None` before it was tried.
    pub speed_bytes_per_second: Option<f64>,
}

/// How well WAL can be compressed, as tried.
#[derive(Clone, Copy, Debug)]
struct Yield {
    ratio: f64,
    speed: f64,
}

/// What happened since the last decision.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    began: Option<Duration>,
    line_bytes: u64,
    held_up: Duration,
}

/// The rule for one stream. Time comes in from outside.
#[derive(Debug, Default)]
pub(crate) struct Compression {
    on: bool,
    window: Window,
    tried: Option<Yield>,
    /// When a window without compression is tried, and the span that it is put off by.
    next_try: Duration,
    put_off: Duration,
}

impl Compression {
    /// Whether a frame of this size is to be compressed.
    pub(crate) fn wants(&self, bytes: usize) -> bool {
        self.on && bytes >= FRAME_BYTES_MIN
    }

    /// Whether a frame of this size should be tried, to know what could be gained.
    pub(crate) fn wants_a_try(&self, bytes: usize) -> bool {
        !self.on && self.tried.is_none() && bytes >= FRAME_BYTES_MIN
    }

    /// A frame was compressed, or tried.
    pub(crate) fn packed(&mut self, raw: usize, packed: usize, took: Duration) {
        let seen = Yield {
            ratio: packed as f64 / raw as f64,
            speed: raw as f64 / took.as_secs_f64().max(1e-9),
        };
        self.tried = Some(match self.tried {
            // WAL changes with what is written; a few frames say more than one.
            Some(before) => Yield {
                ratio: before.ratio * 0.8 + seen.ratio * 0.2,
                speed: before.speed * 0.8 + seen.speed * 0.2,
            },
            None => seen,
        });
    }

    /// A frame was handed to the line, which took `waited` until it had room. A decision, if it is time
    /// for one.
    pub(crate) fn sent(
        &mut self,
        now: Duration,
        bytes: usize,
        waited: Duration,
    ) -> Option<CompressionSeen> {
        let began = *self.window.began.get_or_insert(now.saturating_sub(waited));
        self.window.line_bytes += bytes as u64;
        self.window.held_up += waited;
        let span = now.saturating_sub(began);
        if span < WINDOW || (self.window.line_bytes < WINDOW_BYTES && span < WINDOW * 8) {
            return None;
        }
        let window = std::mem::take(&mut self.window);
        let held_up = (window.held_up.as_secs_f64() / span.as_secs_f64()).min(1.0);
        let line = window.line_bytes as f64 / span.as_secs_f64();
        let on = self.decide(now, held_up, line);
        if !on && !self.on {
            // What was tried long ago says little about the next backlog.
            self.tried = None;
        }
        let seen = CompressionSeen {
            on,
            held_up,
            line_bytes_per_second: line,
            ratio: self.tried.map(|tried| tried.ratio),
            speed_bytes_per_second: self.tried.map(|tried| tried.speed),
        };
        self.on = on;
        Some(seen)
    }

    fn decide(&mut self, now: Duration, held_up: f64, line: f64) -> bool {
        let Some(Yield { ratio, speed }) = self.tried else { return false };
        let plain = 1.0 / line;
        let packed = 1.0 / speed + ratio / line;
        if !self.on {
            let worth = held_up >= HELD_UP && packed < plain * WORTH_BEGINNING;
            self.put_off = if worth { self.put_off.max(RETRY_MIN) } else { Duration::ZERO };
            self.next_try = now + self.put_off;
            return worth;
        }
        if held_up >= HELD_UP {
            self.next_try = now + self.put_off;
            return packed < plain;
        }
        // The line takes all that compression gives it: how fast it is without shows only without. A
        // window of it costs little, and the next one waits longer.
        if now < self.next_try {
            return true;
        }
        self.put_off = (self.put_off * 2).min(RETRY_MAX);
        false
    }
}

/// Compresses frames; what it works with is kept from one to the next.
pub(crate) struct Packer(zstd::bulk::Compressor<'static>);

impl Packer {
    pub(crate) fn new() -> io::Result<Packer> {
        zstd::bulk::Compressor::new(LEVEL).map(Packer)
    }

    pub(crate) fn pack(&mut self, data: &[u8]) -> io::Result<Vec<u8>> {
        self.0.compress(data)
    }
}

/// The most WAL that one compressed frame may hold; sources put a quarter of it into one.
pub const FRAME_RAW_BYTES_MAX: u32 = 1 << 20;

/// Gives frames their bytes back; what it works with is made with the first and kept.
#[derive(Default)]
pub struct Unpacking(Option<zstd::bulk::Decompressor<'static>>);

impl Unpacking {
    /// The frame's WAL, of which there are exactly `raw_bytes`.
    ///
    /// # Errors
    /// When it holds something else, more, or less, or announces more than a frame may hold.
    pub(crate) fn unpack(&mut self, data: &[u8], raw_bytes: u32) -> io::Result<Vec<u8>> {
        let bad = |words| Err(io::Error::new(io::ErrorKind::InvalidData, words));
        if raw_bytes > FRAME_RAW_BYTES_MAX {
            return bad(format!("{raw_bytes} bytes are announced, {FRAME_RAW_BYTES_MAX} the most"));
        }
        let with = match &mut self.0 {
            Some(with) => with,
            none => none.insert(zstd::bulk::Decompressor::new()?),
        };
        let raw_bytes = raw_bytes as usize;
        // The capacity bounds what a damaged or hostile frame can make of itself.
        let raw = with.decompress(data, raw_bytes)?;
        if raw.len() == raw_bytes {
            return Ok(raw);
        }
        bad(format!("it holds {} bytes where {raw_bytes} were announced", raw.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: usize = 256 * 1024;
    const WHOLE: u32 = 256 * 1024;
    const MIB: f64 = (1 << 20) as f64;

    /// A stream with a backlog over a line of so many bytes a second, for a while.
    struct Stream {
        rule: Compression,
        now: Duration,
        ratio: f64,
        /// How fast compression takes WAL in.
        speed: f64,
        /// How fast WAL can be read.
        reading: f64,
    }

    impl Stream {
        fn new(ratio: f64) -> Stream {
            let (rule, now) = (Compression::default(), Duration::ZERO);
            Stream { rule, now, ratio, speed: 400.0 * MIB, reading: 1500.0 * MIB }
        }

        /// Gives WAL in bytes a second, and the part of it that was compressed.
        fn runs(&mut self, line: f64, lasts: Duration) -> (f64, f64) {
            let (mut raw, mut compressed, begin) = (0.0, 0.0, self.now);
            // When the line has sent all that it was given.
            let mut free = self.now;
            while self.now < begin + lasts {
                let spent = |bytes: f64, rate: f64| Duration::from_secs_f64(bytes / rate);
                self.now += spent(FRAME as f64, self.reading);
                let mut bytes = FRAME;
                if self.rule.wants(FRAME) || self.rule.wants_a_try(FRAME) {
                    let took = spent(FRAME as f64, self.speed);
                    self.now += took;
                    let packed = (FRAME as f64 * self.ratio) as usize;
                    if self.rule.wants(FRAME) {
                        bytes = packed;
                        compressed += FRAME as f64;
                    }
                    self.rule.packed(FRAME, packed, took);
                }
                // One frame may wait in memory; who brings another waits until there is room.
                let waited = free.saturating_sub(self.now);
                self.now += waited;
                free = self.now + spent(bytes as f64, line);
                raw += FRAME as f64;
                let _ = self.rule.sent(self.now, bytes, waited);
            }
            let seconds = (self.now - begin).as_secs_f64();
            (raw / seconds, compressed / raw)
        }
    }

    const LONG: Duration = Duration::from_secs(60);
    const THIN: f64 = 2.5 * MIB;
    const LOOPBACK: f64 = 1200.0 * MIB;

    #[test]
    fn a_thin_line_is_used_up_and_a_fast_one_left_alone_both_ways_three_times() {
        let mut stream = Stream::new(0.25);
        for _ in 0..3 {
            let (rate, compressed) = stream.runs(LOOPBACK, LONG);
            assert!(compressed < 0.2, "{compressed} of it was compressed on loopback");
            assert!(rate > 500.0 * MIB, "{} MiB a second on loopback", rate / MIB);
            let (rate, compressed) = stream.runs(THIN, LONG);
            assert!(compressed > 0.9, "{compressed} of it was compressed on a thin line");
            assert!(rate > 3.5 * THIN, "{} of the line", rate / THIN);
        }
    }

    #[test]
    fn where_compression_is_the_bottleneck_and_still_faster_it_stays() {
        let (rate, compressed) = Stream::new(0.25).runs(120.0 * MIB, LONG);
        assert!(compressed > 0.9, "{compressed}");
        assert!(rate > 250.0 * MIB, "{} MiB a second", rate / MIB);
    }

    #[test]
    fn what_does_not_become_smaller_is_not_compressed() {
        for line in [THIN, 120.0 * MIB, LOOPBACK] {
            let (_, compressed) = Stream::new(1.0).runs(line, LONG);
            assert!(compressed < 0.01, "{compressed} at {line}");
        }
    }

    #[test]
    fn commits_that_nobody_holds_up_are_never_compressed() {
        let mut rule = Compression::default();
        for millis in 0..60_000 {
            assert!(!rule.wants(1000));
            let _ = rule.sent(Duration::from_millis(millis), 1000, Duration::ZERO);
        }
    }

    #[test]
    fn a_frame_comes_back_as_it_was_and_a_false_length_is_refused() {
        let raw: Vec<u8> = (0..FRAME).map(|at| (at / 100) as u8).collect();
        let packed = Packer::new().unwrap().pack(&raw).unwrap();
        let mut unpacker = Unpacking::default();
        assert!(packed.len() < FRAME / 10);
        assert_eq!(unpacker.unpack(&packed, WHOLE).unwrap(), raw);
        for wrong in [0, 1, WHOLE - 1, WHOLE + 1, FRAME_RAW_BYTES_MAX + 1, u32::MAX] {
            assert!(unpacker.unpack(&packed, wrong).is_err(), "{wrong}");
        }
        assert!(unpacker.unpack(&packed[..packed.len() / 2], WHOLE).is_err());
        assert!(unpacker.unpack(b"no frame", WHOLE).is_err());
    }
}
