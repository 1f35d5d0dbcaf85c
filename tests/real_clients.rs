//! Clients that know nothing of us: libpq with several hosts, load balancers' health checks, and
//! `pg_receivewal` at the walsender socket.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use rustix::process::Signal;
use support::compare::{assert_segments_equal, finish_segment};
use support::lab::{DATA, Lab, POSTGRES_PORT, RELAY_PORT, ZERO};
use support::postgres::{give, tool};
use support::processes::{Background, run};
use support::wait_for;

/// What an application does: it names both sites and wants the one that accepts writes.
fn read_write_server(lab: &Lab) -> Option<String> {
    let [north, south] = DATA.map(|name| lab.address(name));
    let conninfo = format!(
        "host={north},{south} port={POSTGRES_PORT},{POSTGRES_PORT} user=app password=app \
         dbname=postgres target_session_attrs=read-write"
    );
    let mut psql = tool("psql");
    psql.args(["-X", "-q", "-A", "-t", "-c", "SELECT host(inet_server_addr())", &conninfo]);
    let ended = run(&mut psql);
    ended.status.success().then(|| ended.stdout.trim_end().to_owned())
}

#[test]
fn libpq_and_load_balancers_find_the_active_before_and_after_a_failover() {
    let mut lab = Lab::founded(ZERO);
    let [first, second] = DATA;
    lab.sql(first, "postgres", "CREATE ROLE app LOGIN PASSWORD 'app'");
    assert_eq!(read_write_server(&lab).as_deref(), Some(lab.address(first)));
    for path in ["/primary", "/", "/master", "/leader", "/read-write"] {
        assert_eq!(lab.who_says_yes(path), [first], "{path}");
    }
    for path in ["/replica", "/replica?lag=100MB", "/synchronous"] {
        assert_eq!(lab.who_says_yes(path), [second], "{path}");
    }
    assert_eq!(lab.who_says_yes("/no-such-path"), Vec::<&str>::new());

    lab.kill_site(first);
    lab.wait("the other site to take over", |lab| lab.writable_at(second));
    assert_eq!(lab.who_says_yes("/primary"), [second]);
    assert_eq!(lab.who_says_yes("/replica"), Vec::<&str>::new());
    assert_eq!(read_write_server(&lab).as_deref(), Some(lab.address(second)));

    lab.start(first);
    lab.wait("the lost site to be back as the passive", |lab| lab.protected_under(second));
    assert_eq!(lab.who_says_yes("/primary"), [second]);
    assert_eq!(lab.who_says_yes("/replica"), [first]);
    assert_eq!(read_write_server(&lab).as_deref(), Some(lab.address(second)));

    // What patronictl's users type.
    let list = lab.operator(&["list", "-f", "tsv"]).good();
    let role = |name: &str| {
        let line = list.lines().find(|line| line.starts_with(name)).unwrap();
        line.split('\t').nth(2).unwrap().to_owned()
    };
    assert_eq!((role(first), role(second)), ("Sync Standby".to_owned(), "Leader".to_owned()));
    let history = lab.operator(&["history", "-f", "tsv"]).good();
    assert_eq!(history.lines().count(), 2, "{history}");
    assert!(history.ends_with(&format!("\t{second}\n")), "{history}");
    assert!(lab.operator(&["topology"]).good().contains(&format!("\n+ {first}")));
    assert!(lab.operator(&["show-config"]).good().contains("mode: zero"));
}

#[test]
fn pg_receivewal_gets_the_primarys_wal_from_the_journals_socket() {
    let lab = Lab::founded(ZERO);
    let [active, passive] = DATA;
    let archive = lab.root().join("archive");
    std::fs::create_dir(&archive).unwrap();
    give(&archive);
    let mut receive = tool("pg_receivewal");
    receive.arg("--no-loop").arg("--no-password").arg("--directory").arg(&archive);
    receive.arg("--host").arg(lab.socket_dir(passive)).arg(format!("--port={RELAY_PORT}"));
    receive.arg("--username=understudy_replication").arg("--status-interval=1");
    let mut receive = Background::start(&mut receive);
    let streams = || std::fs::read_dir(&archive).unwrap().flatten().next().is_some();
    wait_for("the stream to begin", || {
        assert!(receive.runs(), "pg_receivewal ended");
        // It makes its first file when the first byte comes.
        lab.sql(active, "postgres", "SELECT pg_logical_emit_message(true, 'test', 'something')");
        streams().then_some(())
    });
    lab.sql(active, "postgres", "CREATE TABLE filler AS SELECT generate_series(1, 20000) AS n");
    let finished = [finish_segment(&lab, active), finish_segment(&lab, active)];
    wait_for("finished segments in the archive", || {
        finished.iter().all(|name| archive.join(name).exists()).then_some(())
    });
    let compared = assert_segments_equal(&lab, active, &archive);
    assert!(finished.iter().all(|name| compared.contains(name)), "{compared:?}");
    receive.signal(Signal::INT);
    receive.wait(support::PATIENCE).good();
}
