//! The HTTP door of a running node under health checks: how long an answer takes beside clients that are
//! stuck, and what the node's lease notices of it.
//!
//! Every check is a connection of its own, as load balancers make them. First a quiet stretch, then the
//! same with the load, so that what the load costs is told within one run.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::MissedTickBehavior;

use crate::statistics::{quantile, sorted};

/// A check that takes longer counts as failed; load balancers have about this patience.
const CHECK_PATIENCE: Duration = Duration::from_secs(2);
/// Checks under way at the same time; more are counted as failed.
const CHECKS_MAX: usize = 1_000;
/// Between two looks at the lease.
const LEASE_INTERVAL: Duration = Duration::from_millis(50);

/// Asks a running node's HTTP door for its health, again and again.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The HTTP door of the active, such as one that `understudy demo --keep` left running.
    #[arg(long, value_name = "ADDRESS:PORT")]
    http: SocketAddr,
    /// Checks a second.
    #[arg(long, default_value_t = 1_000)]
    rate: u32,
    /// How long, in seconds; the quiet stretch before it takes a quarter of that.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(4..=600))]
    seconds: u64,
    /// Clients that are stuck: half of them say nothing, half stop in the middle of a request.
    #[arg(long, default_value_t = 200)]
    stuck: usize,
    /// What is asked.
    #[arg(long, default_value = "/primary")]
    path: String,
}

/// What one stretch showed.
#[derive(Default)]
struct Seen {
    millis: Vec<f64>,
    failed: u64,
    lease_least_seconds: Option<f64>,
}

/// Runs it and prints one line of JSON.
///
/// # Errors
/// When the node does not answer at all.
pub(crate) fn run(options: &Options) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.context("start the runtime")?.block_on(measure(options))
}

async fn measure(options: &Options) -> Result<()> {
    let lease = lease_left(options.http).await.context("ask the node for its status")?;
    if lease.is_none() {
        bail!("{} does not hold the lease; ask the active", options.http);
    }
    let quiet = stretch(options, 10, Duration::from_secs(options.seconds) / 4).await;
    let reconnected = Arc::new(AtomicU64::new(0));
    let stuck: Vec<_> = (0..options.stuck)
        .map(|number| tokio::spawn(stay_stuck(options.http, number % 2 == 0, reconnected.clone())))
        .collect();
    let busy = stretch(options, options.rate, Duration::from_secs(options.seconds)).await;
    stuck.iter().for_each(tokio::task::JoinHandle::abort);
    let result = json!({
        "path": options.path, "rate_per_second": options.rate, "seconds": options.seconds,
        "stuck_count": options.stuck, "stuck_reconnected_count": reconnected.load(Ordering::Relaxed),
        "quiet": told(&quiet), "busy": told(&busy),
    });
    println!("{result}");
    Ok(())
}

fn told(seen: &Seen) -> Value {
    let millis = sorted(&seen.millis);
    json!({
        "checks": millis.len() as u64 + seen.failed, "failed": seen.failed,
        "p50_ms": quantile(&millis, 0.5), "p99_ms": quantile(&millis, 0.99),
        "p999_ms": quantile(&millis, 0.999), "longest_ms": millis.last(),
        "lease_left_least_seconds": seen.lease_least_seconds,
    })
}

/// Checks at this rate for this long.
async fn stretch(options: &Options, rate: u32, length: Duration) -> Seen {
    let (sender, mut ended) = mpsc::unbounded_channel();
    let places = Arc::new(Semaphore::new(CHECKS_MAX));
    let (address, path) = (options.http, options.path.clone());
    let lease = tokio::spawn(least_lease(address, length));
    let load = async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
        // What came late is made up for, so that a stall of the node is seen by all who would have come.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let begun = Instant::now();
        while begun.elapsed() < length {
            ticks.tick().await;
            let sender = sender.clone();
            let Ok(place) = places.clone().try_acquire_owned() else {
                let _ = sender.send(None);
                continue;
            };
            let path = path.clone();
            tokio::spawn(async move {
                let begun = Instant::now();
                let asked = tokio::time::timeout(CHECK_PATIENCE, check(address, &path)).await;
                let took = begun.elapsed().as_secs_f64() * 1_000.0;
                let _ = sender.send(matches!(asked, Ok(Ok(200))).then_some(took));
                drop(place);
            });
        }
    };
    let count = async {
        let mut seen = Seen::default();
        while let Some(one) = ended.recv().await {
            match one {
                Some(millis) => seen.millis.push(millis),
                None => seen.failed += 1,
            }
        }
        seen
    };
    let ((), mut seen) = tokio::join!(load, count);
    seen.lease_least_seconds = lease.await.ok().flatten();
    seen
}

async fn check(address: SocketAddr, path: &str) -> std::io::Result<u16> {
    let answer = get(address, path).await?;
    Ok(answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0))
}

async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// What is left of the answering node's lease; `None` when it holds none.
async fn lease_left(address: SocketAddr) -> Result<Option<f64>> {
    let answer = tokio::time::timeout(CHECK_PATIENCE, get(address, "/status")).await??;
    let (_, body) = answer.split_once("\r\n\r\n").context("read the answer")?;
    let status: Value = serde_json::from_str(body).context("read the status")?;
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    let own = nodes.into_iter().find(|node| node["name"] == status["answered_by"]);
    Ok(own.and_then(|own| own["lease_left_seconds"].as_f64()))
}

async fn least_lease(address: SocketAddr, length: Duration) -> Option<f64> {
    let begun = Instant::now();
    let mut least: Option<f64> = None;
    while begun.elapsed() < length {
        if let Ok(left) = lease_left(address).await {
            let left = left.unwrap_or(0.0);
            least = Some(least.map_or(left, |least| least.min(left)));
        }
        tokio::time::sleep(LEASE_INTERVAL).await;
    }
    least
}

/// A client that never finishes its request, and comes back whenever it is cut off.
async fn stay_stuck(address: SocketAddr, silent: bool, reconnected: Arc<AtomicU64>) {
    loop {
        if let Ok(mut stream) = TcpStream::connect(address).await {
            if !silent {
                let _ = stream.write_all(b"GET /primary HTTP/1.1\r\nhost: ").await;
            }
            // Until the node has had enough of it.
            let _ = stream.read(&mut [0; 64]).await;
        }
        reconnected.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
