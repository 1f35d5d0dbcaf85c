//! Clients that write one row after the other to whichever data node takes it, and remember every answer.
//! It judges the end: every acknowledged row is at both sites.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _};

use super::compare::{assert_same_and_sound, wait_for_replay};
use super::lab::{DATA, Lab, POSTGRES_PORT, other};
use super::wait_for;

const WRITERS: u32 = 4;
/// A client that finds nobody to write to looks again after this.
const RETRY: Duration = Duration::from_millis(5);
/// Longer than a commit ever takes in a test, shorter than the test's patience.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// What was acknowledged, with the moment of it.
type Acknowledged = Arc<Mutex<Vec<(u32, i64, Instant)>>>;

/// The load.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Acknowledged,
    failed: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(lab: &Lab, active: &str) -> Load {
        lab.sql(active, "postgres", "CREATE ROLE app LOGIN PASSWORD 'app'");
        let table = "CREATE TABLE acked (writer int, n bigint, PRIMARY KEY (writer, n)); \
                     GRANT ALL ON acked TO app";
        lab.sql(active, "postgres", table);
        let servers: Vec<PgConnectOptions> = DATA
            .map(|name| {
                PgConnectOptions::new()
                    .host(lab.address(name))
                    .port(POSTGRES_PORT)
                    .username("app")
                    .password("app")
                    .database("postgres")
            })
            .into();
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Acknowledged::default();
        let failed = Arc::new(AtomicUsize::new(0));
        let thread = |writer| {
            let (servers, stop) = (servers.clone(), stop.clone());
            let (acknowledged, failed) = (acknowledged.clone(), failed.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(write(writer, &servers, &stop, (&acknowledged, &failed)));
            })
        };
        let threads = (0..WRITERS).map(thread).collect();
        let load = Load { stop, threads, acknowledged, failed };
        load.wait_for_more("the load to begin");
        load
    }

    /// Writes that were not acknowledged in time, or were answered with an error.
    pub(crate) fn failed_count(&self) -> usize {
        self.failed.load(Ordering::SeqCst)
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    pub(crate) fn wait_for_more(&self, what: &str) {
        let before = self.count();
        wait_for(what, || (self.count() >= before + 100).then_some(()));
    }

    /// The longest time without an acknowledged write since `from`.
    pub(crate) fn outage_since(&self, from: Instant) -> Duration {
        let acknowledged = self.acknowledged.lock().unwrap();
        let mut moments: Vec<Instant> = acknowledged.iter().map(|(_, _, at)| *at).collect();
        moments.retain(|at| *at >= from);
        moments.sort_unstable();
        let gaps = moments.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().expect("something was acknowledged")
    }

    /// Ends the load; every acknowledged row is there, at both sites.
    pub(crate) fn finish(self, lab: &Lab, active: &str) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        wait_for_replay(lab, active, other(active));
        let acknowledged = self.acknowledged.lock().unwrap();
        for site in [active, other(active)] {
            let text = lab.sql(site, "postgres", "SELECT writer || ' ' || n FROM acked");
            let held: BTreeSet<&str> = text.lines().collect();
            let lost: Vec<String> = acknowledged
                .iter()
                .map(|(writer, n, _)| format!("{writer} {n}"))
                .filter(|row| !held.contains(row.as_str()))
                .collect();
            let all = acknowledged.len();
            assert_eq!(lost, Vec::<String>::new(), "of {all} acknowledged rows at {site}");
        }
        assert!(acknowledged.len() > 100, "the load was none");
        drop(acknowledged);
        assert_same_and_sound(lab, active, other(active), "postgres");
    }
}

async fn write(
    writer: u32,
    servers: &[PgConnectOptions],
    stop: &AtomicBool,
    (acknowledged, failed): (&Acknowledged, &AtomicUsize),
) {
    let mut at = 0;
    let mut n = 0;
    'connecting: while !stop.load(Ordering::SeqCst) {
        let connecting = tokio::time::timeout(Duration::from_secs(2), servers[at].connect()).await;
        let Ok(Ok(mut session)) = connecting else {
            at = (at + 1) % servers.len();
            tokio::time::sleep(RETRY).await;
            continue;
        };
        while !stop.load(Ordering::SeqCst) {
            n += 1;
            let done = tokio::time::timeout(ANSWER_TIMEOUT, insert(&mut session, writer, n)).await;
            if !matches!(done, Ok(Ok(()))) {
                failed.fetch_add(1, Ordering::SeqCst);
                at = (at + 1) % servers.len();
                tokio::time::sleep(RETRY).await;
                continue 'connecting;
            }
            acknowledged.lock().unwrap().push((writer, n, Instant::now()));
            // Some hundred writes a second: a load, and not a race for two cores.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        session.close().await.ok();
    }
}

async fn insert(session: &mut PgConnection, writer: u32, n: i64) -> sqlx::Result<()> {
    let writer = i32::try_from(writer).expect("a few writers");
    sqlx::query("INSERT INTO acked VALUES ($1, $2)")
        .bind(writer)
        .bind(n)
        .execute(session)
        .await
        .map(drop)
}
