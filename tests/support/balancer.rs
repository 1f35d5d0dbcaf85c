//! HAProxy as its users run it: the distribution's program, with a configuration in which nothing but
//! addresses is changed, and a client that writes through it.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::lab::{DATA, Lab, WITNESS};
use super::postgres::tool;
use super::processes::{Background, run};

pub(crate) const WRITE_PORT: u16 = 5000;
pub(crate) const READ_PORT: u16 = 5001;

/// HAProxy at the witness's address; dropping it ends it.
pub(crate) struct Balancer {
    pub(crate) haproxy: Background,
    pub(crate) host: String,
}

impl Balancer {
    pub(crate) fn start(lab: &Lab, config: &str) -> Balancer {
        let host = lab.address(WITNESS).to_owned();
        let mut text = config.to_owned();
        for (from, to) in [
            ("192.0.2.11", lab.address(DATA[0]).to_owned()),
            ("198.51.100.11", lab.address(DATA[1]).to_owned()),
            ("bind *:", format!("bind {host}:")),
        ] {
            assert!(text.contains(from), "the configuration has no {from}");
            text = text.replace(from, &to);
        }
        let text = text.replace("bind 127.0.0.1:", &format!("bind {host}:"));
        let file: PathBuf = lab.root().join("haproxy.cfg");
        std::fs::write(&file, text).unwrap();
        let mut check = Command::new("haproxy");
        run(check.arg("-c").arg("-f").arg(&file)).good();
        let haproxy = Background::start(Command::new("haproxy").arg("-db").arg("-f").arg(&file));
        Balancer { haproxy, host }
    }

    pub(crate) fn psql(&self, port: u16, sql: &str) -> Command {
        let conninfo = format!(
            "host={} port={port} user=app password=app dbname=postgres connect_timeout=2",
            self.host
        );
        let mut psql = tool("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql, &conninfo]);
        psql
    }

    pub(crate) fn ask(&self, port: u16, sql: &str) -> Option<String> {
        let ended = run(&mut self.psql(port, sql));
        ended.status.success().then(|| ended.stdout.trim_end().to_owned())
    }

    /// Which server takes writes.
    pub(crate) fn writes_at(&self) -> Option<String> {
        self.ask(WRITE_PORT, "INSERT INTO seen VALUES (now()); SELECT host(inet_server_addr())")
    }
}

/// Ends the writer, also when the test fails meanwhile.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The longest span between two writes through the load balancer that were confirmed, a session a write.
pub(crate) fn longest_outage(balancer: &Balancer, during: impl FnOnce()) -> Duration {
    longest_span_without(|| balancer.writes_at().is_some(), during)
}

/// The longest span between two times that `write` said it was confirmed; it is called again and again
/// while `during` runs, and until it is confirmed once more.
pub(crate) fn longest_span_without(
    mut write: impl FnMut() -> bool + Send,
    during: impl FnOnce(),
) -> Duration {
    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            // One more is waited for at the end: the longest span may be the last one.
            loop {
                let ending = stopped.load(Ordering::Relaxed);
                let confirmed = write();
                if confirmed {
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
                if ending && (confirmed || last.elapsed() > PATIENCE) {
                    break longest;
                }
            }
        });
        let stop = Stop(&stopped);
        during();
        drop(stop);
        writer.join().unwrap()
    })
}

/// Writes go to this node.
pub(crate) fn at(balancer: &Balancer, name: &str, lab: &Lab) -> Option<()> {
    (balancer.writes_at()? == lab.address(name)).then_some(())
}
