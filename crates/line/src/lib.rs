//! A line between two TCP ends that can be made slow, thin or dead: for tests and benchmarks on one
//! machine, whose kernel cannot do it.
//!
//! It carries bytes, not packets: what it gives to both ends is delay, rate and silence, in order. Loss,
//! and how TCP goes about it, is not its business.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

/// Read at once. With a rate, a piece is what is late as a whole.
const PIECE_BYTES: usize = 16 << 10;
/// Under way in one direction at most, beside what the delay takes: a router's buffer.
const BUFFER_BYTES: usize = 256 << 10;
/// Under way where no rate says how much fits into the delay.
const UNDER_WAY_MAX: usize = 64 << 20;

/// How a line behaves, in each direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Habit {
    /// Every byte comes this much later.
    pub delay: Duration,
    /// Added to the delay, up to this, differently for each piece; the order stays.
    pub jitter: Duration,
    /// No more than this; all connections together are not bounded, each is.
    pub bytes_per_second: Option<u64>,
    /// Nothing gets through; what was sent meanwhile does once it is healed, as TCP has it.
    pub dead: bool,
    /// The same for the connections that were begun before so many others.
    pub dead_before: usize,
}

impl Habit {
    /// Bytes that may be under way in one direction.
    fn under_way_max(&self) -> usize {
        let Some(rate) = self.bytes_per_second else { return UNDER_WAY_MAX };
        let in_delay = (rate as f64 * self.delay.as_secs_f64()) as usize;
        BUFFER_BYTES + in_delay.min(UNDER_WAY_MAX)
    }
}

/// Listens on a port of loopback and carries each connection to another one. Dropped, it takes no new
/// ones; those that are there go on as they last did.
#[derive(Debug)]
pub struct Line {
    /// Where it listens.
    pub address: SocketAddr,
    habit: watch::Sender<Habit>,
    begun: Arc<AtomicUsize>,
    listening: AbortHandle,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Line {
    /// A line to `target`, without any habit yet.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn to(target: SocketAddr) -> io::Result<Line> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (habit, seen) = watch::channel(Habit::default());
        let begun = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&begun);
        let listening = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::Relaxed);
                let Ok(far) = TcpStream::connect(target).await else { continue };
                if near.set_nodelay(true).and(far.set_nodelay(true)).is_err() {
                    continue;
                }
                let ((near_in, near_out), (far_in, far_out)) =
                    (near.into_split(), far.into_split());
                carry(number, near_in, far_out, seen.clone());
                carry(number, far_in, near_out, seen.clone());
            }
        });
        Ok(Line { address, habit, begun, listening: listening.abort_handle() })
    }

    /// How it behaves from now on.
    pub fn set(&self, habit: Habit) {
        self.habit.send_replace(habit);
    }

    /// How many connections there have been.
    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }
}

/// Bytes of one direction that came and did not leave.
#[derive(Default)]
struct UnderWay {
    bytes: AtomicUsize,
    left: Notify,
}

fn carry(
    number: usize,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut habit: watch::Receiver<Habit>,
) {
    let (sender, mut pieces) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let under_way = Arc::new(UnderWay::default());
    let (came, left, limit) = (Arc::clone(&under_way), under_way, habit.clone());
    tokio::spawn(async move {
        let mut piece = vec![0; PIECE_BYTES];
        while let Ok(length @ 1..) = from.read(&mut piece).await {
            came.bytes.fetch_add(length, Ordering::AcqRel);
            if sender.send((Instant::now(), piece[..length].to_vec())).is_err() {
                return;
            }
            while came.bytes.load(Ordering::Acquire) > limit.borrow().under_way_max() {
                came.left.notified().await;
            }
        }
    });
    tokio::spawn(async move {
        let mut turn = 0_u32;
        let mut free = Instant::now();
        while let Some((came, piece)) = pieces.recv().await {
            let alive = |habit: &Habit| !habit.dead && number >= habit.dead_before;
            let Ok(now) = habit.wait_for(alive).await.map(|habit| *habit) else { return };
            turn = turn.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let jitter = now.jitter.mul_f64(f64::from(turn) / f64::from(u32::MAX));
            if let Some(rate) = now.bytes_per_second {
                // The last bit leaves when all before it have.
                let takes = Duration::from_secs_f64(piece.len() as f64 / rate.max(1) as f64);
                free = free.max(came) + takes;
            } else {
                free = came;
            }
            sleep_until(free + now.delay + jitter).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
            left.bytes.fetch_sub(piece.len(), Ordering::AcqRel);
            left.left.notify_one();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends so many bytes over a line with this habit, and says how long they took.
    async fn takes(habit: Habit, bytes: usize) -> Duration {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let line = Line::to(listener.local_addr().unwrap()).await.unwrap();
        line.set(habit);
        let sending = async {
            let mut near = TcpStream::connect(line.address).await.unwrap();
            near.write_all(&vec![7; bytes]).await.unwrap();
            near
        };
        let receiving = async {
            let (mut far, _) = listener.accept().await.unwrap();
            let mut all = vec![0; bytes];
            far.read_exact(&mut all).await.unwrap();
            assert!(all.iter().all(|byte| *byte == 7));
        };
        let begun = Instant::now();
        let (_near, ()) = tokio::join!(sending, receiving);
        begun.elapsed()
    }

    #[tokio::test]
    async fn bytes_come_late_and_no_faster_than_the_rate() {
        let delay = Duration::from_millis(50);
        let late = takes(Habit { delay, ..Habit::default() }, 1000).await;
        assert!(late >= delay, "{late:?}");
        let bytes_per_second = Some(4 << 20);
        let thin = takes(Habit { bytes_per_second, ..Habit::default() }, 1 << 20).await;
        assert!(thin >= Duration::from_millis(250), "{thin:?}");
    }

    #[tokio::test]
    async fn a_dead_line_holds_back_and_gives_all_of_it_once_it_is_healed() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let line = Line::to(listener.local_addr().unwrap()).await.unwrap();
        line.set(Habit { dead: true, ..Habit::default() });
        let mut near = TcpStream::connect(line.address).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        near.write_all(b"held").await.unwrap();
        let mut got = [0; 4];
        let early =
            tokio::time::timeout(Duration::from_millis(100), far.read_exact(&mut got)).await;
        assert!(early.is_err(), "it came over a dead line");
        line.set(Habit::default());
        // What was read before the timeout is lost with its future: nothing was.
        far.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"held");
        assert_eq!(line.begun(), 1);
    }
}
