//! PgBouncer as its users run it: the distribution's program and the example of `deploy/` in front of
//! HAProxy's, with nothing but addresses and paths put in.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::process::CommandExt;
use std::process::Command;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{ConnectOptions as _, Executor as _, Row as _};
use support::balancer::{Balancer, READ_PORT, WRITE_PORT, longest_span_without};
use support::lab::{DATA, Lab, ZERO};
use support::postgres::{give, owner, tool};
use support::processes::{Background, run};
use support::wait_for;

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");
const POOL_PORT: u16 = 6432;
const WRITE: &str = "INSERT INTO seen VALUES (now()) RETURNING host(inet_server_addr())";
const SERVER: &str = "SELECT host(inet_server_addr())";

/// PgBouncer at HAProxy's address, as PostgreSQL's user: it refuses to run as root.
fn start(lab: &Lab, host: &str) -> Background {
    let mut text = std::fs::read_to_string(format!("{DEPLOY}/pgbouncer/pgbouncer.ini")).unwrap();
    let users = lab.root().join("userlist.txt");
    for (from, to) in [
        ("listen_addr = 127.0.0.1", format!("listen_addr = {host}")),
        ("host=127.0.0.1 port=5000", format!("host={host} port={WRITE_PORT}")),
        ("host=127.0.0.1 port=5001", format!("host={host} port={READ_PORT}")),
        ("/etc/pgbouncer/userlist.txt", users.display().to_string()),
    ] {
        assert!(text.contains(from), "the configuration has no {from}");
        text = text.replace(from, &to);
    }
    assert!(text.contains(&format!("listen_port = {POOL_PORT}")));
    // As the example says: the secret that the server has.
    let secret = "SELECT rolpassword FROM pg_authid WHERE rolname = 'app'";
    let secret = lab.sql(DATA[0], "postgres", secret);
    std::fs::write(&users, format!("\"app\" \"{secret}\"\n")).unwrap();
    let file = lab.root().join("pgbouncer.ini");
    // Its Unix socket would meet another pool's in /tmp.
    std::fs::write(&file, text + "unix_socket_dir =\n").unwrap();
    give(&users);
    give(&file);
    let mut command = Command::new("pgbouncer");
    command.arg(&file).current_dir("/");
    if let Some((uid, gid)) = owner() {
        command.uid(uid).gid(gid);
    }
    Background::start(&mut command)
}

fn ask(host: &str, database: &str, sql: &str) -> Option<String> {
    let conninfo = format!(
        "host={host} port={POOL_PORT} user=app password=app dbname={database} connect_timeout=5"
    );
    let mut psql = tool("psql");
    psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql, &conninfo]);
    let ended = run(&mut psql);
    ended.status.success().then(|| ended.stdout.trim_end().to_owned())
}

/// A client that stays connected to the pool, whatever happens behind it.
struct Resident {
    runtime: tokio::runtime::Runtime,
    session: PgConnection,
}

impl Resident {
    fn connect(host: &str) -> Resident {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let options = PgConnectOptions::new().host(host).port(POOL_PORT).username("app");
        let options = options.password("app").database("shop").ssl_mode(PgSslMode::Disable);
        let session = runtime.block_on(options.connect()).unwrap();
        Resident { runtime, session }
    }

    /// In the simple protocol: PgBouncer 1.18 knows no prepared statements in this mode.
    fn server(&mut self) -> String {
        let row = self.session.fetch_one(sqlx::raw_sql(SERVER));
        self.runtime.block_on(row).expect("its session is served").get(0)
    }
}

#[test]
fn clients_of_pgbouncer_follow_a_switchover_and_a_lost_site() {
    let mut lab = Lab::founded(ZERO);
    let [first, second] = DATA;
    lab.sql(first, "postgres", "CREATE ROLE app LOGIN PASSWORD 'app'");
    lab.sql(first, "postgres", "CREATE DATABASE shop");
    lab.sql(first, "shop", "CREATE TABLE seen (at timestamptz); GRANT ALL ON seen TO app");
    let haproxy = std::fs::read_to_string(format!("{DEPLOY}/haproxy/haproxy.cfg")).unwrap();
    let mut balancer = Balancer::start(&lab, &haproxy);
    let host = balancer.host.clone();
    let mut pool = start(&lab, &host);
    let writes_at = |address: &str| {
        wait_for(&format!("writes at {address} through the pool"), || {
            (ask(&host, "shop", WRITE)? == address).then_some(())
        });
    };
    let reads_at = |address: &str| {
        wait_for(&format!("reads at {address} through the pool"), || {
            (ask(&host, "shop_read", SERVER)? == address).then_some(())
        });
    };
    let [here, there] = [first, second].map(|name| lab.address(name).to_owned());
    writes_at(&here);
    reads_at(&there);
    let mut resident = Resident::connect(&host);
    assert_eq!(resident.server(), here);

    let write = || ask(&host, "shop", WRITE).is_some();
    let outage = longest_span_without(write, || {
        lab.operator(&["switchover", "--reason", "test", "--wait"]).good();
        writes_at(&there);
    });
    eprintln!("switchover: nobody could write through PgBouncer for {outage:?}");
    assert_eq!(resident.server(), there, "the session that was idle meanwhile");
    lab.wait("the old active to follow", |lab| lab.protected_under(second));
    reads_at(&here);

    let outage = longest_span_without(write, || {
        lab.kill_site(second);
        writes_at(&here);
    });
    eprintln!("site lost: nobody could write through PgBouncer for {outage:?}");
    assert_eq!(resident.server(), here, "the session that was idle meanwhile");
    assert!(pool.runs(), "PgBouncer ended");
    assert!(balancer.haproxy.runs(), "HAProxy ended");
}
