//! A wire of our own between a site and the bridge, for what the kernel here cannot do (it has no netem):
//! delay, jitter, reordering, duplicates and flipped bits.
//!
//! The site's link is taken off the bridge and put on a bridge of its own with a TAP device; a second TAP
//! stands on the main bridge; two threads carry frames from one to the other, each later than it came.
//! Addresses and connections stay. The proof is the wire's own count of what it did to frames.

use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::ioctl::{Setter, ioctl};

use super::Fault;
use crate::arena::Arena;
use crate::lab::GRPC_PORT;

/// Frames that may be under way in one direction; more are lost, as in any switch.
const FRAMES_MAX: usize = 20_000;
const FRAME_BYTES_MAX: usize = 65_536;
/// How soon a thread sees that it should end.
const LOOK: Duration = Duration::from_millis(20);

/// What the wire does to each frame.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Habits {
    /// Every frame comes this much later.
    pub(crate) delay: Duration,
    /// And up to this much more, by chance; frames overtake each other.
    pub(crate) jitter: Duration,
    /// One frame in so many comes `straggle` later still; 0 for none.
    pub(crate) straggler_every: u64,
    /// How much later.
    pub(crate) straggle: Duration,
    /// One frame in so many comes twice; 0 for none.
    pub(crate) twice_every: u64,
    /// One bit of one frame in so many is flipped; 0 for none.
    pub(crate) flip_every: u64,
    /// The same within what one frame in so many of the cluster's own carries, with a TCP checksum that
    /// fits: only who looks at the bytes themselves can tell. 0 for none.
    pub(crate) forge_every: u64,
}

#[derive(Default)]
struct Counts {
    late: AtomicU64,
    overtaken: AtomicU64,
    twice: AtomicU64,
    flipped: AtomicU64,
    forged: AtomicU64,
    lost: AtomicU64,
}

/// A site whose link is a wire of ours.
pub(crate) struct Wire {
    arena: Arena,
    site: &'static str,
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Proof needs this much of it.
    habits: Habits,
}

impl Wire {
    /// Puts a wire with these habits before a site.
    pub(crate) fn begin(arena: &Arena, site: &'static str, habits: Habits) -> Result<Wire> {
        let (inner, outer) = (format!("{site}-in"), format!("{site}-out"));
        let (near, far) = (open_tap(&inner)?, open_tap(&outer)?);
        let mut wire = Wire {
            arena: arena.clone(),
            site,
            counts: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
            habits,
        };
        let own = format!("{site}-br");
        arena.ip_at_hub(&["link", "add", &own, "type", "bridge"])?;
        arena.ip_at_hub(&["link", "set", &own, "up"])?;
        arena.ip_at_hub(&["link", "set", &inner, "master", &own, "up"])?;
        arena.ip_at_hub(&["link", "set", &outer, "master", "wire", "up"])?;
        for (seed, (from, to)) in [(&near, &far), (&far, &near)].into_iter().enumerate() {
            let direction = Direction {
                from: from.try_clone().context("share a TAP device")?,
                to: to.try_clone().context("share a TAP device")?,
                habits,
                counts: wire.counts.clone(),
                stop: wire.stop.clone(),
                chance: Chance(0x9E37_79B9_7F4A_7C15 ^ (seed as u64 + 1)),
            };
            wire.threads.extend(direction.start());
        }
        arena.ip_at_hub(&["link", "set", site, "master", &own])?;
        Ok(wire)
    }
}

impl Fault for Wire {
    fn proof(&mut self) -> Result<Option<String>> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counts { late, overtaken, twice, flipped, forged, lost } = &*self.counts;
        let wanted = [
            (true, count(late)),
            (self.habits.straggler_every > 0, count(overtaken)),
            (self.habits.twice_every > 0, count(twice)),
            (self.habits.flip_every > 0, count(flipped)),
            (self.habits.forge_every > 0, count(forged)),
        ];
        let seen = wanted.iter().all(|(asked, times)| !asked || *times > 0);
        let words = format!(
            "{}'s wire: {} frames late, {} overtaken, {} twice, {} with a flipped bit, {} with one \
             and a checksum that fits, {} lost",
            self.site,
            count(late),
            count(overtaken),
            count(twice),
            count(flipped),
            count(forged),
            count(lost)
        );
        Ok((seen && !self.threads.is_empty()).then_some(words))
    }

    fn heal(&mut self) -> Result<()> {
        if self.threads.is_empty() {
            return Ok(());
        }
        self.arena.ip_at_hub(&["link", "set", self.site, "master", "wire"])?;
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
        // The TAP devices go with their last descriptor.
        self.arena.ip_at_hub(&["link", "del", &format!("{}-br", self.site)]).map(drop)
    }
}

/// A frame under way.
struct Frame {
    due: Instant,
    number: u64,
    bytes: Vec<u8>,
}

impl PartialEq for Frame {
    fn eq(&self, other: &Frame) -> bool {
        (self.due, self.number) == (other.due, other.number)
    }
}
impl Eq for Frame {}
impl PartialOrd for Frame {
    fn partial_cmp(&self, other: &Frame) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Frame {
    /// The one that is due first is the greatest, for the heap.
    fn cmp(&self, other: &Frame) -> std::cmp::Ordering {
        (other.due, other.number).cmp(&(self.due, self.number))
    }
}

struct Direction {
    from: File,
    to: File,
    habits: Habits,
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    chance: Chance,
}

type Queue = Arc<(Mutex<BinaryHeap<Frame>>, Condvar)>;

impl Direction {
    fn start(self) -> [JoinHandle<()>; 2] {
        let queue: Queue = Arc::default();
        let (sending, counts, stop) = (queue.clone(), self.counts.clone(), self.stop.clone());
        let to = self.to.try_clone();
        let sender = std::thread::spawn(move || {
            if let Ok(to) = to {
                send(&sending, to, &counts, &stop);
            }
        });
        [std::thread::spawn(move || self.receive(&queue)), sender]
    }

    /// Takes frames as they come, and says when each is due.
    fn receive(mut self, queue: &Queue) {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        let (mut number, mut own) = (0u64, 0u64);
        while !self.stop.load(Ordering::Relaxed) {
            let length = match self.from.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    wait_for_input(&self.from);
                    continue;
                }
                // The device is being set up or taken away.
                Err(_) => {
                    std::thread::sleep(LOOK);
                    continue;
                }
            };
            number += 1;
            let mut bytes = buffer[..length].to_vec();
            let habits = self.habits;
            let every = |count: u64| count > 0 && number.is_multiple_of(count);
            let jitter = habits.jitter.mul_f64(self.chance.next());
            let straggle =
                if every(habits.straggler_every) { habits.straggle } else { Duration::ZERO };
            let due = Instant::now() + habits.delay + jitter + straggle;
            if every(habits.flip_every) && length > 60 {
                // Behind Ethernet's, IP's and TCP's headers: their checksums are for the kernel to judge.
                let at = 54 + (self.chance.next() * (length - 54) as f64) as usize;
                bytes[at.min(length - 1)] ^= 1 << (number % 8);
                self.counts.flipped.fetch_add(1, Ordering::Relaxed);
            }
            if habits.forge_every > 0
                && let Some(carried) = carried_for_the_cluster(&bytes)
            {
                own += 1;
                if own.is_multiple_of(habits.forge_every) {
                    forge(&mut bytes, carried, self.chance.next());
                    self.counts.forged.fetch_add(1, Ordering::Relaxed);
                }
            }
            let copies = if every(habits.twice_every) { 2 } else { 1 };
            self.counts.twice.fetch_add(copies - 1, Ordering::Relaxed);
            let (frames, news) = &**queue;
            let mut frames = frames.lock().expect("no holder of this lock panics");
            for _ in 0..copies {
                if frames.len() >= FRAMES_MAX {
                    self.counts.lost.fetch_add(1, Ordering::Relaxed);
                } else {
                    frames.push(Frame { due, number, bytes: bytes.clone() });
                }
            }
            news.notify_one();
        }
    }
}

/// Sends each frame when it is due.
fn send(queue: &Queue, mut to: File, counts: &Counts, stop: &AtomicBool) {
    let (frames, news) = &**queue;
    let mut newest = 0;
    let mut waiting = frames.lock().expect("no holder of this lock panics");
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let wait = waiting.peek().map_or(LOOK, |frame| frame.due.saturating_duration_since(now));
        if waiting.is_empty() || !wait.is_zero() {
            let woken = news.wait_timeout(waiting, wait.min(LOOK));
            waiting = woken.expect("no holder of this lock panics").0;
            continue;
        }
        let Some(frame) = waiting.pop() else { continue };
        drop(waiting);
        counts.late.fetch_add(1, Ordering::Relaxed);
        if frame.number < newest {
            counts.overtaken.fetch_add(1, Ordering::Relaxed);
        }
        newest = newest.max(frame.number);
        if to.write_all(&frame.bytes).is_err() {
            counts.lost.fetch_add(1, Ordering::Relaxed);
        }
        waiting = frames.lock().expect("no holder of this lock panics");
    }
}

fn wait_for_input(file: &File) {
    let patience = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    let _ = poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&patience));
}

/// Ethernet's header, without a VLAN.
const ETHERNET_BYTES: usize = 14;

/// Where a frame's TCP header begins and what it carries begins and ends, if it carries anything between
/// the cluster's own doors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Carried {
    tcp: usize,
    from: usize,
    to: usize,
}

fn carried_for_the_cluster(frame: &[u8]) -> Option<Carried> {
    let number = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    // IPv4 (0x0800), TCP (6).
    if number(12)? != 0x0800 || *frame.get(ETHERNET_BYTES + 9)? != 6 {
        return None;
    }
    let tcp = ETHERNET_BYTES + usize::from(frame[ETHERNET_BYTES] & 15) * 4;
    let to = ETHERNET_BYTES + usize::from(number(ETHERNET_BYTES + 2)?);
    let from = tcp + usize::from(*frame.get(tcp + 12)? >> 4) * 4;
    let ours = number(tcp)? == GRPC_PORT || number(tcp + 2)? == GRPC_PORT;
    (ours && from < to && to <= frame.len()).then_some(Carried { tcp, from, to })
}

/// Flips a bit of what a frame carries, at `chance` of its length, and makes its checksum fit.
fn forge(frame: &mut [u8], Carried { tcp, from, to }: Carried, chance: f64) {
    let at = from + (chance * (to - from) as f64) as usize;
    frame[at.min(to - 1)] ^= 0x10;
    let sum = tcp_checksum(frame, tcp, to);
    frame[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
}

/// Over the addresses, protocol and length of IPv4 and all of TCP (RFC 9293, 3.1); the field itself counts
/// as zero.
fn tcp_checksum(frame: &[u8], tcp: usize, to: usize) -> u16 {
    let pair = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let addresses = &frame[ETHERNET_BYTES + 12..ETHERNET_BYTES + 20];
    let mut sum: u32 = addresses.chunks(2).chain(frame[tcp..to].chunks(2)).map(pair).sum();
    sum -= pair(&frame[tcp + 16..tcp + 18]);
    sum += 6 + (to - tcp) as u32;
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    !(sum as u16)
}

/// A small generator (xorshift): the wire's whims need not be good, only cheap.
struct Chance(u64);

impl Chance {
    /// From 0 to below 1.
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// `struct ifreq` as TUNSETIFF reads it: a name of sixteen bytes, flags, and room for the rest.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
/// `_IOW('T', 202, int)` in linux/if_tun.h.
const TUNSETIFF: rustix::ioctl::Opcode = 0x4004_54ca;

/// Makes a TAP device in the namespace of the calling thread; it lives as long as the file.
#[allow(unsafe_code)]
fn open_tap(name: &str) -> Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun");
    let file = file.context("open /dev/net/tun")?;
    let mut request = Request { name: [0; 16], flags: IFF_TAP | IFF_NO_PI, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads one `struct ifreq` (40 bytes on Linux) from the pointer it is given, which
    // `Request` is in size and layout, and keeps no reference to it.
    unsafe { ioctl(&file, Setter::<TUNSETIFF, Request>::new(request)) }
        .with_context(|| format!("make the TAP device {name}"))?;
    let flags = fcntl_getfl(&file).context("read a device's flags")?;
    fcntl_setfl(&file, flags | OFlags::NONBLOCK).context("set a device's flags")?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment of Linux' between the doors, as it was on a wire: twelve bytes of options, three of data.
    fn frame() -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 55, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        frame.extend([10, 213, 0, 11, 10, 213, 0, 12]);
        frame
            .extend([0x1c, 0xe8, 0xa1, 0x02, 0, 0, 0, 1, 0, 0, 0, 2, 0x80, 0x18, 1, 0, 0, 0, 0, 0]);
        frame.extend([1, 1, 8, 10, 0, 0, 0, 5, 0, 0, 0, 6, b'a', b'b', b'c']);
        let sum = tcp_checksum(&frame, 34, 69);
        frame[50..52].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    #[test]
    fn a_forged_frame_carries_another_bit_and_its_checksum_fits() {
        let good = frame();
        let carried = carried_for_the_cluster(&good).unwrap();
        assert_eq!(carried, Carried { tcp: 34, from: 66, to: 69 });
        // With its own checksum in place a whole segment sums up to zero.
        let whole = |frame: &[u8]| {
            let field = u16::from_be_bytes([frame[50], frame[51]]);
            tcp_checksum(frame, 34, 69) == field
        };
        assert!(whole(&good));
        for chance in [0.0, 0.5, 0.999] {
            let mut forged = good.clone();
            forge(&mut forged, carried, chance);
            assert!(whole(&forged) && forged[66..] != good[66..] && forged[..50] == good[..50]);
            let mut flipped = forged.clone();
            flipped[67] ^= 1;
            assert!(!whole(&flipped), "the checksum does not look at what is carried");
        }
        let mut client_s = good.clone();
        client_s[34..36].copy_from_slice(&5432u16.to_be_bytes());
        assert_eq!(carried_for_the_cluster(&client_s), None);
        assert_eq!(carried_for_the_cluster(&good[..66]), None);
    }
}
