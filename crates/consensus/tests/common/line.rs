//! A line between two nodes that can be made slow or dead: real TCP through a small program between.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// How the line behaves, in each direction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Habit {
    pub(crate) delay: Duration,
    /// Added to the delay, up to this, differently for each piece; the order stays.
    pub(crate) jitter: Duration,
    /// Nothing gets through; what was sent meanwhile does once it is healed, as TCP has it.
    pub(crate) dead: bool,
    /// The same for the connections that were begun before so many others.
    pub(crate) dead_before: usize,
}

pub(crate) struct Line {
    pub(crate) address: SocketAddr,
    habit: watch::Sender<Habit>,
    begun: Arc<AtomicUsize>,
}

impl Line {
    pub(crate) async fn to(target: SocketAddr) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (habit, seen) = watch::channel(Habit::default());
        let begun = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&begun);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::Relaxed);
                let Ok(far) = TcpStream::connect(target).await else { continue };
                near.set_nodelay(true).unwrap();
                far.set_nodelay(true).unwrap();
                let ((near_in, near_out), (far_in, far_out)) =
                    (near.into_split(), far.into_split());
                carry(number, near_in, far_out, seen.clone());
                carry(number, far_in, near_out, seen.clone());
            }
        });
        Line { address, habit, begun }
    }

    pub(crate) fn set(&self, habit: Habit) {
        self.habit.send_replace(habit);
    }

    /// How many connections there have been.
    pub(crate) fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }
}

fn carry(
    number: usize,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut habit: watch::Receiver<Habit>,
) {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(4096);
    tokio::spawn(async move {
        let mut piece = vec![0; 16 << 10];
        while let Ok(length @ 1..) = from.read(&mut piece).await {
            if sender.send((Instant::now(), piece[..length].to_vec())).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        let mut turn = 0_u32;
        while let Some((came, piece)) = pieces.recv().await {
            let alive = |habit: &Habit| !habit.dead && number >= habit.dead_before;
            let Ok(now) = habit.wait_for(alive).await.map(|habit| *habit) else { return };
            turn = turn.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let jitter = now.jitter.mul_f64(f64::from(turn) / f64::from(u32::MAX));
            tokio::time::sleep_until(came + now.delay + jitter).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    });
}
