//! What is wrong is refused with the thing and the remedy in the message, and nothing is lost by it.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::lab::{
    DATA, GRPC_PORT, HTTP_PORT, Lab, NODES, POSTGRES_PORT, RELAY_PORT, WITNESS, ZERO,
};
use support::postgres::{give, tool};
use support::processes::{Ended, processes_below, run};
use support::{BINARY, wait_for};

const NORTH: &str = DATA[0];
const SOUTH: &str = DATA[1];

/// Runs a node whose file has something wrong; nothing of it may be left.
fn refused(lab: &Lab, name: &str) -> Ended {
    let ended = lab.run_refused(&lab.config(name));
    assert!(processes_below(lab.root()).is_empty(), "something still runs: {ended:#?}");
    assert!(!lab.pgdata(name).exists(), "a data directory was made: {ended:#?}");
    ended
}

fn init(dir: &Path, nodes: &[&str]) -> Ended {
    let mut init = Command::new(BINARY);
    init.arg("init").arg("--dir").arg(dir);
    for node in nodes {
        init.arg("--node").arg(node);
    }
    run(&mut init)
}

fn empty_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("understudy-").tempdir().unwrap()
}

#[test]
fn another_nodes_certificate_is_refused_with_both_names() {
    let lab = Lab::prepared(ZERO);
    for file in ["node.pem", "node.key"] {
        let [from, to] = [SOUTH, NORTH].map(|name| lab.node_dir(name).join("tls").join(file));
        fs::copy(from, to).unwrap();
    }
    refused(&lab, NORTH).refused_with(&["tls/node.pem", SOUTH, NORTH, "issue one"]);
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_command_that_mends_it() {
    let lab = Lab::prepared(ZERO);
    let key = lab.node_dir(NORTH).join("tls/node.key");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    refused(&lab, NORTH).refused_with(&["0644", "chmod 600", key.to_str().unwrap()]);
}

#[test]
fn another_clusters_authority_is_refused() {
    let (lab, foreign) = (Lab::prepared(ZERO), Lab::prepared(ZERO));
    let [from, to] = [&foreign, &lab].map(|lab| lab.node_dir(NORTH).join("tls/ca.pem"));
    fs::copy(from, to).unwrap();
    refused(&lab, NORTH).refused_with(&["node.pem", "ca.pem"]);
}

#[test]
fn a_door_whose_port_is_in_use_is_named_with_its_address_and_a_remedy() {
    let lab = Lab::prepared(ZERO);
    for (port, setting) in [(GRPC_PORT, "[listen]"), (HTTP_PORT, "listen.http")] {
        let address = format!("{}:{port}", lab.address(NORTH));
        let _taken = TcpListener::bind(&address).unwrap();
        refused(&lab, NORTH).refused_with(&[&address, "in use", "ss -ltnp", setting]);
    }
}

#[test]
fn missing_programs_of_postgresql_are_named_with_the_place_and_the_package() {
    let lab = Lab::prepared(ZERO);
    lab.edit_config(NORTH, |config| {
        let postgres = config["postgres"].as_table_mut().unwrap();
        postgres.insert("bin_dir".to_owned(), "/nowhere/bin".into());
    });
    refused(&lab, NORTH).refused_with(&["/nowhere/bin", "install the package postgresql"]);
}

#[test]
fn a_socket_path_that_linux_cannot_hold_is_refused_by_init_and_by_run() {
    let temp = empty_dir();
    let deep = temp.path().join("a-directory-with-a-long-name".repeat(4));
    let nodes = ["name=a,address=127.0.1.1", "name=b,address=127.0.1.2"];
    init(&deep, &nodes).refused_with(&["data_dir", "107", "shorter"]);
    assert!(!deep.exists());

    let lab = Lab::prepared(ZERO);
    lab.edit_config(NORTH, |config| {
        config.insert("data_dir".to_owned(), deep.to_str().unwrap().into());
    });
    refused(&lab, NORTH).refused_with(&["data_dir", "107", "shorter"]);
    assert!(!deep.exists());
}

#[test]
fn two_nodes_of_one_name_are_refused_before_anything_is_made() {
    let temp = empty_dir();
    let topology = temp.path().join("topology.toml");
    let node = |address: &str| format!("[[nodes]]\nname = \"a\"\naddress = \"{address}\"\n");
    fs::write(&topology, node("127.0.1.1") + &node("127.0.1.2")).unwrap();
    let dir = temp.path().join("cluster");
    let mut init = Command::new(BINARY);
    init.arg("init").arg("--dir").arg(&dir).arg("--topology").arg(&topology);
    run(&mut init).refused_with(&["name", "\"a\"", "each needs its own"]);
    assert!(!dir.exists());
}

#[test]
fn init_overwrites_nothing() {
    let temp = empty_dir();
    let dir = temp.path().join("cluster");
    let nodes = ["name=a,address=127.0.1.1", "name=b,address=127.0.1.2"];
    init(&dir, &nodes).good();
    let authority = fs::read(dir.join("ca/ca.key")).unwrap();
    init(&dir, &nodes).refused_with(&[dir.to_str().unwrap(), "nothing is overwritten"]);
    assert_eq!(fs::read(dir.join("ca/ca.key")).unwrap(), authority);
}

#[test]
fn postgresqls_port_in_use_is_told_and_the_cluster_comes_up_when_it_is_free() {
    let mut lab = Lab::prepared(ZERO);
    let taken = TcpListener::bind((lab.address(NORTH), POSTGRES_PORT)).unwrap();
    for name in NODES {
        lab.start(name);
    }
    lab.wait("the trouble to be told", |lab| {
        lab.trouble(NORTH).is_some_and(|words| words.contains("Address already in use"))
    });
    drop(taken);
    lab.wait("the cluster to come up", |lab| lab.protected_under(NORTH));
}

#[test]
fn a_data_directory_of_another_version_is_refused_kept_and_used_again_once_it_is_right() {
    let mut lab = Lab::founded(ZERO);
    lab.sql(NORTH, "postgres", "CREATE TABLE kept AS SELECT 1 AS n");
    lab.kill_site(SOUTH);
    let version = lab.pgdata(SOUTH).join("PG_VERSION");
    let control = lab.pgdata(SOUTH).join("global/pg_control");
    let (right, before) = (fs::read(&version).unwrap(), fs::read(&control).unwrap());
    fs::write(&version, "9.6\n").unwrap();
    lab.start(SOUTH);
    lab.wait("the refusal", |lab| {
        lab.trouble(SOUTH).is_some_and(|words| words.contains("9.6") && words.contains("bin_dir"))
    });
    assert_eq!(fs::read(&control).unwrap(), before, "the refused data was changed");

    lab.kill_site(SOUTH);
    fs::write(&version, right).unwrap();
    lab.start(SOUTH);
    lab.wait("the passive to be able to take over", |lab| lab.protected_under(NORTH));
}

#[test]
fn a_foreign_data_directory_at_the_passive_is_refused_and_kept_until_it_is_moved_away() {
    let mut lab = Lab::prepared(ZERO);
    let pgdata = lab.pgdata(SOUTH);
    fs::create_dir_all(&pgdata).unwrap();
    fs::set_permissions(pgdata.parent().unwrap(), Permissions::from_mode(0o711)).unwrap();
    give(&pgdata);
    run(tool("initdb").args(["--no-sync", "--username=postgres", "-D"]).arg(&pgdata)).good();
    let control = fs::read(pgdata.join("global/pg_control")).unwrap();

    for name in NODES {
        lab.start(name);
    }
    lab.wait("the refusal, and the active to serve", |lab| {
        let told = lab.trouble(SOUTH).is_some_and(|words| {
            words.contains("another cluster")
                && words.contains("system identifier")
                && words.contains("move it away")
        });
        told && lab.writable_at(NORTH)
    });
    lab.sql(NORTH, "postgres", "CREATE TABLE written AS SELECT 1 AS n");
    assert_eq!(fs::read(pgdata.join("global/pg_control")).unwrap(), control);

    let kept = pgdata.with_file_name("kept");
    fs::rename(&pgdata, &kept).unwrap();
    lab.wait("a clone in its place", |lab| lab.protected_under(NORTH));
    assert_eq!(fs::read(kept.join("global/pg_control")).unwrap(), control);
}

#[test]
fn a_second_daemon_on_the_same_directory_is_refused_and_the_first_goes_on() {
    let mut lab = Lab::founded(ZERO);
    let epoch = lab.epoch();
    for name in [SOUTH, WITNESS] {
        // Other doors, so that it is the directory that it meets.
        let second = lab.node_dir(name).join("second.toml");
        let text = fs::read_to_string(lab.config(name)).unwrap();
        let mut config: toml::Table = text.parse().unwrap();
        let listen = config["listen"].as_table_mut().unwrap();
        for (door, port) in [("grpc", 17400), ("http", 17480)] {
            let address = format!("{}:{port}", lab.address(name));
            listen.insert(door.to_owned(), address.into());
        }
        fs::write(&second, toml::to_string(&config).unwrap()).unwrap();
        let data_dir = lab.node_dir(name).join("data");
        lab.run_refused(&second).refused_with(&[data_dir.to_str().unwrap()]);
    }
    lab.sql(NORTH, "postgres", "CREATE TABLE written AS SELECT 1 AS n");
    lab.wait("everything to be as it was", |lab| lab.protected_under(NORTH));
    assert_eq!(lab.epoch(), epoch);
}

/// Bytes that repeat only after a long while, and are nobody's protocol.
fn garbage(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..length).map(|_| next()).collect()
}

/// Things that are sent to every door: noise, beginnings of protocols, absurd lengths, nothing.
fn insults() -> Vec<Vec<u8>> {
    let mut insults = vec![
        Vec::new(),
        vec![0; 64],
        vec![0xff; 64],
        b"GET / HTTP/1.1\r\n".repeat(2000),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff".to_vec(),
        // A TLS handshake record that promises more than it holds.
        b"\x16\x03\x01\xff\xff\x01\x00\xff\xff\x03\x03".to_vec(),
        // Startup packets of PostgreSQL: an absurd length, and one without its end.
        b"\x7f\xff\xff\xff\x00\x03\x00\x00".to_vec(),
        b"\x00\x00\x00\x20\x00\x03\x00\x00user\x00understudy_replication".to_vec(),
    ];
    insults.extend((1..12).map(|seed| garbage(seed * 7919, 3000 * seed as usize)));
    insults
}

/// Sends and hangs up; whether and what the door answers is its own business.
fn insult(mut stream: impl Read + Write, bytes: &[u8], hang_up: impl FnOnce()) {
    let _ = stream.write_all(bytes);
    hang_up();
    let mut answer = [0u8; 1024];
    while matches!(stream.read(&mut answer), Ok(1..)) {}
}

#[test]
fn garbage_at_every_door_disturbs_nobody() {
    let mut lab = Lab::founded(ZERO);
    let epoch = lab.epoch();
    let patience = Some(Duration::from_millis(500));
    for bytes in insults() {
        for name in NODES {
            for port in [GRPC_PORT, HTTP_PORT] {
                let stream = TcpStream::connect((lab.address(name), port)).unwrap();
                stream.set_read_timeout(patience).unwrap();
                stream.set_write_timeout(patience).unwrap();
                let closer = stream.try_clone().unwrap();
                insult(stream, &bytes, || drop(closer.shutdown(Shutdown::Write)));
            }
        }
        for name in DATA {
            let socket = lab.socket_dir(name).join(format!(".s.PGSQL.{RELAY_PORT}"));
            let stream = UnixStream::connect(socket).unwrap();
            stream.set_read_timeout(patience).unwrap();
            stream.set_write_timeout(patience).unwrap();
            let closer = stream.try_clone().unwrap();
            insult(stream, &bytes, || drop(closer.shutdown(Shutdown::Write)));
        }
    }
    lab.check_daemons();
    lab.sql(NORTH, "postgres", "CREATE TABLE written AS SELECT 1 AS n");
    wait_for("the passive to have it", || {
        let seen = lab.try_sql(SOUTH, "postgres", "SELECT n FROM written");
        (seen.as_deref() == Ok("1")).then_some(())
    });
    lab.wait("everything to be as it was", |lab| lab.protected_under(NORTH));
    assert_eq!(lab.epoch(), epoch);
}
