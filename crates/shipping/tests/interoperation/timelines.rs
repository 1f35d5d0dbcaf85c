//! A promotion while clients write: whoever follows the relay goes along to the next timeline.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use understudy_types::Timeline;

use crate::chain::Chain;
use crate::postgres::until;
use crate::relayed::{admission, epoch, fill, receivewal, relay_dir, standby};
use crate::rig::Make;

/// Clients that insert without end, and every value of which they were told that it is there.
struct Load {
    clients: Vec<Child>,
    acknowledged: Arc<Mutex<BTreeSet<u64>>>,
}

impl Load {
    /// `psql` connects; `first` is the first client's first value, and each has a million of its own.
    fn start(psql: impl Fn() -> Command, clients_count: u64, first: u64) -> Load {
        let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
        let mut clients = Vec::new();
        for client in 0..clients_count {
            let mut psql = psql();
            psql.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = psql.stderr(Stdio::null()).spawn().unwrap();
            let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            let begin = first + client * 1_000_000;
            std::thread::spawn(move || {
                let mut values = begin..;
                // It ends with its client.
                while let Some(value) = values.next()
                    && writeln!(input, "INSERT INTO t VALUES ({value}) RETURNING value;").is_ok()
                {
                }
            });
            let told = Arc::clone(&acknowledged);
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    told.lock().unwrap().extend(line.parse::<u64>());
                }
            });
            clients.push(child);
        }
        Load { clients, acknowledged }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Ends the clients, and says what they were told.
    fn end(mut self) -> BTreeSet<u64> {
        for client in &mut self.clients {
            let _ = client.kill();
            client.wait().unwrap();
        }
        std::mem::take(&mut *self.acknowledged.lock().unwrap())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for client in &mut self.clients {
            let _ = client.kill();
            let _ = client.wait();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_under_load_takes_every_follower_of_the_relay_along() {
    let chain = Chain::new(Make { segment_mib: Some(1), settings: &[] }).await;
    let rig = &chain.rig;
    let candidate = chain.standby().await;
    let other = standby(rig.dir(), "other", &rig.socket_dir()).await;
    let (received, receiving) = receivewal(rig.dir(), "received", &[]);
    let load = Load::start(|| rig.psql("SELECT 1"), 2, 0);
    until("clients write", || load.count() > 300).await;
    rig.kill_primary();
    let receiver = chain.receiver.status();
    until("the receiver has heard of it", || !receiver.borrow().attached).await;
    // Sealed as before a promotion: what had arrived is durable, and nothing comes after it.
    let end_lsn = rig.journal.seal(epoch(2)).unwrap().unwrap().durable_lsn;
    chain.replayed_to(end_lsn).await;
    let mut acknowledged = load.end();

    assert_eq!(candidate.sql("SELECT pg_promote()"), "t");
    // The new timeline is written to before anybody follows it.
    let load = Load::start(|| candidate.psql("SELECT 1"), 2, 10_000_000);
    until("clients write again", || load.count() > 100).await;
    let two = Timeline::FIRST.next();
    let raw = std::fs::read(candidate.data.join("pg_wal/00000002.history")).unwrap();
    rig.journal.admit(admission(2, two)).unwrap();
    rig.journal.switch_timeline(epoch(2), two, &raw, end_lsn).await.unwrap();
    let filling = fill(rig.journal.clone(), &candidate, 2, end_lsn, two).await;
    let on_two = "SELECT received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming'";
    until("the other standby is on the new timeline", || other.sql(on_two) == "2").await;
    let before = load.count();
    until("clients go on", || load.count() > before + 100).await;
    acknowledged.append(&mut load.end());

    let segment = candidate.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    candidate.sql("SELECT pg_switch_wal()");
    candidate.sql("INSERT INTO t VALUES (-1)");
    let flush_lsn = candidate.flush_lsn();
    let reached = format!("SELECT pg_last_wal_replay_lsn() >= '{flush_lsn}'");
    until("the other standby has replayed it all", || other.sql(&reached) == "t").await;
    let rows = other.sql("SELECT string_agg(value::text, ' ') FROM t WHERE value >= 0");
    let rows: BTreeSet<u64> = rows.split(' ').map(|value| value.parse().unwrap()).collect();
    let lost: Vec<_> = acknowledged.difference(&rows).collect();
    assert!(lost.is_empty(), "{} acknowledged rows are lost: {lost:?}", lost.len());
    let sums = "SELECT count(*), sum(value) FROM t";
    assert_eq!(other.sql(sums), candidate.sql(sums));
    // The other two that followed: the journal, and pg_receivewal through the relay.
    assert!(segment.starts_with("00000002"), "{segment}");
    until("pg_receivewal has finished the segment", || received.join(&segment).exists()).await;
    let written = std::fs::read(candidate.data.join("pg_wal").join(&segment)).unwrap();
    assert!(std::fs::read(received.join(&segment)).unwrap() == written, "{segment} by the relay");
    let ours = chain.timeline_dir(two).join(&segment);
    until("the journal has finished it", || ours.exists()).await;
    assert!(std::fs::read(ours).unwrap() == written, "{segment} in the journal");
    assert_eq!(std::fs::read(received.join("00000002.history")).unwrap(), raw);
    assert!(relay_dir(rig.dir()).exists());
    drop((receiving, other, candidate));
    filling.await.unwrap();
    chain.end().await;
}
