//! The connection strings of `deploy/libpq/README.md`, read from its own blocks and used by psql as they
//! stand there, with nothing but hosts put in.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use rustix::net::sockopt;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use support::balancer::longest_span_without;
use support::lab::{DATA, Lab, POSTGRES_PORT, ZERO};
use support::postgres::tool;
use support::processes::{Background, run};
use support::wait_for;

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/libpq/README.md");
const SERVER: &str = "SELECT host(inet_server_addr())";
const WRITE: &str = "INSERT INTO seen VALUES (now()) RETURNING 1";

/// The strings of the blocks for libpq that ask for these servers, with the lab's addresses; as in the
/// file, a block is one string.
fn strings(lab: &Lab, wanted: &str) -> Vec<String> {
    let readme = std::fs::read_to_string(README).unwrap();
    let blocks = readme.split("```").skip(1).step_by(2);
    let blocks = blocks.filter_map(|block| block.strip_prefix("text\n"));
    let wanted = format!("target_session_attrs={wanted}");
    let of_libpq = |block: &&str| block.split([' ', '&', '?', '\n']).any(|part| part == wanted);
    let put_in = |block: &str| {
        assert!(block.contains("5432"), "{block} has another port than the lab");
        let [north, south] = DATA.map(|name| lab.address(name));
        let text = block.replace("north.example.org", north).replace("south.example.org", south);
        text.trim().replace('\n', " ")
    };
    let found: Vec<String> = blocks.filter(of_libpq).map(put_in).collect();
    assert!(!found.is_empty(), "{README} has no string with {wanted}");
    found
}

fn psql(conninfo: &str, sql: &str) -> Command {
    let mut psql = tool("psql");
    // What is not in the string is libpq's own default.
    psql.env_remove("PGCONNECT_TIMEOUT").env("PGPASSWORD", "app");
    psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql, conninfo]);
    psql
}

fn ask(conninfo: &str, sql: &str) -> Option<String> {
    let ended = run(&mut psql(conninfo, sql));
    ended.status.success().then(|| ended.stdout.trim_end().to_owned())
}

fn assert_all_lead_to(lab: &Lab, strings: &[String], name: &str) {
    for string in strings {
        wait_for(&format!("{string} to lead to {name}"), || {
            (ask(string, SERVER)? == lab.address(name)).then_some(())
        });
    }
}

/// What the kernel was told about a session's connection is what the string says.
fn assert_timeouts(lab: &Lab, string: &str) {
    let [active, _] = DATA;
    let session = Background::start(&mut psql(string, "SELECT pg_sleep(600)"));
    let sleeping =
        "FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND pid <> pg_backend_pid()";
    wait_for("the session", || {
        (lab.sql(active, "postgres", &format!("SELECT count(*) {sleeping}")) == "1").then_some(())
    });
    let process = pidfd_open(session.pid(), PidfdFlags::empty()).unwrap();
    let descriptors = format!("/proc/{}/fd", session.pid().as_raw_nonzero());
    let mut descriptors = std::fs::read_dir(descriptors).unwrap().flatten();
    let socket = descriptors.find(|entry| {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        target.to_string_lossy().starts_with("socket:")
    });
    let number = socket.expect("it is connected").file_name().to_str().unwrap().parse().unwrap();
    let socket = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).unwrap();
    assert_eq!(sockopt::tcp_keepidle(&socket).unwrap(), Duration::from_secs(5), "{string}");
    assert_eq!(sockopt::tcp_keepintvl(&socket).unwrap(), Duration::from_secs(2), "{string}");
    assert_eq!(sockopt::tcp_keepcnt(&socket).unwrap(), 3, "{string}");
    assert_eq!(sockopt::tcp_user_timeout(&socket).unwrap(), 10_000, "{string}");
    let ended =
        lab.sql(active, "postgres", &format!("SELECT pg_terminate_backend(pid) {sleeping}"));
    assert_eq!(ended, "t");
    wait_for("its end at the server", || {
        (lab.sql(active, "postgres", &format!("SELECT count(*) {sleeping}")) == "0").then_some(())
    });
}

#[test]
fn libpqs_strings_from_the_readme_follow_a_lost_site_and_a_switchover() {
    let mut lab = Lab::founded(ZERO);
    let [first, second] = DATA;
    for role in ["app", "report"] {
        lab.sql(first, "postgres", &format!("CREATE ROLE {role} LOGIN PASSWORD 'app'"));
    }
    lab.sql(first, "postgres", "CREATE DATABASE shop");
    lab.sql(first, "shop", "CREATE TABLE seen (at timestamptz); GRANT ALL ON seen TO app");
    let writers = strings(&lab, "read-write");
    assert_eq!(writers.len(), 2, "as a URI and as keywords: {writers:?}");
    let readers = strings(&lab, "prefer-standby");
    let only_standby = strings(&lab, "standby");
    assert_all_lead_to(&lab, &writers, first);
    assert_all_lead_to(&lab, &readers, second);
    assert_all_lead_to(&lab, &only_standby, second);
    for string in &writers {
        assert_timeouts(&lab, string);
    }

    // The site that every string for writers names first is lost, and its address goes on taking
    // connections without a word: only connect_timeout gets past it.
    let address = lab.address(first).to_owned();
    let outage = longest_span_without(
        || ask(&writers[0], WRITE).is_some(),
        || {
            lab.kill_site(first);
            let _silent = TcpListener::bind((address.as_str(), POSTGRES_PORT)).unwrap();
            assert_all_lead_to(&lab, &writers, second);
            assert_all_lead_to(&lab, &readers, second);
            for string in &only_standby {
                let ended = run(&mut psql(string, SERVER));
                assert!(!ended.status.success(), "there is no standby: {ended:?}");
            }
        },
    );
    eprintln!("site lost, silent from then on: nobody could write for {outage:?}");

    lab.start(first);
    lab.wait("the lost site to be back as the passive", |lab| lab.protected_under(second));
    assert_all_lead_to(&lab, &writers, second);
    assert_all_lead_to(&lab, &only_standby, first);
    let outage = longest_span_without(
        || ask(&writers[1], WRITE).is_some(),
        || {
            lab.operator(&["switchover", "--reason", "test", "--wait"]).good();
            assert_all_lead_to(&lab, &writers, first);
        },
    );
    eprintln!("switchover: nobody could write for {outage:?}");
    lab.wait("the old active to follow", |lab| lab.protected_under(first));
    assert_all_lead_to(&lab, &readers, second);
    assert_all_lead_to(&lab, &only_standby, second);
}
