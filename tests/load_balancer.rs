//! HAProxy as its users run it: the distribution's program and the example of `deploy/`, which is what
//! is written for Patroni, with nothing but addresses put in.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use support::balancer::{Balancer, READ_PORT, WRITE_PORT, at, longest_outage};
use support::lab::{DATA, Lab, ZERO};
use support::processes::Background;
use support::{PATIENCE, wait_for};

/// A cluster with an application's role and table, behind HAProxy.
fn behind(config: &str) -> (Lab, Balancer) {
    let lab = Lab::founded(ZERO);
    lab.sql(DATA[0], "postgres", "CREATE ROLE app LOGIN PASSWORD 'app'");
    lab.sql(DATA[0], "postgres", "CREATE TABLE seen (at timestamptz); GRANT ALL ON seen TO app");
    let balancer = Balancer::start(&lab, config);
    (lab, balancer)
}

/// What Patroni's own template makes for two nodes, but for addresses and the check port; it asks
/// `OPTIONS /`.
const WRITTEN_FOR_PATRONI: &str = "\
global
    maxconn 100
defaults
    log global
    mode tcp
    retries 2
    timeout client 30m
    timeout connect 4s
    timeout server 30m
    timeout check 5s
listen stats
    mode http
    bind *:7000
    stats enable
    stats uri /
listen batman
    bind *:5000
    option httpchk
    http-check expect status 200
    default-server inter 3s fall 3 rise 2 on-marked-down shutdown-sessions
    server postgresql1 192.0.2.11:5432 maxconn 100 check port 7480
    server postgresql2 198.51.100.11:5432 maxconn 100 check port 7480
";

#[test]
fn a_configuration_written_for_patroni_follows_too() {
    let (mut lab, mut balancer) = behind(WRITTEN_FOR_PATRONI);
    let [first, second] = DATA;
    wait_for("writes at the first active", || at(&balancer, first, &lab));
    let outage = longest_outage(&balancer, || {
        lab.operator(&["switchover", "--reason", "test", "--wait"]).good();
        wait_for("writes at the second", || at(&balancer, second, &lab));
    });
    eprintln!("switchover: nobody could write through HAProxy, checks every 3 s, for {outage:?}");
    lab.wait("the old active to follow", |lab| lab.protected_under(second));
    let outage = longest_outage(&balancer, || {
        lab.kill_site(second);
        wait_for("writes at the first again", || at(&balancer, first, &lab));
    });
    eprintln!("site lost: nobody could write through HAProxy, checks every 3 s, for {outage:?}");
    assert!(balancer.haproxy.runs(), "HAProxy ended");
}

#[test]
fn sessions_behind_haproxy_follow_a_switchover_and_a_lost_site() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/haproxy/haproxy.cfg");
    let (mut lab, mut balancer) = behind(&std::fs::read_to_string(example).unwrap());
    let [first, second] = DATA;
    wait_for("writes at the first active", || at(&balancer, first, &lab));
    let recovery = || balancer.ask(READ_PORT, "SELECT pg_is_in_recovery()");
    wait_for("reads at the passive", || (recovery()? == "t").then_some(()));

    let order = ["switchover", "--reason", "test", "--wait"];
    let outage = longest_outage(&balancer, || {
        lab.operator(&order).good();
        wait_for("writes at the second", || at(&balancer, second, &lab));
    });
    eprintln!("switchover: nobody could write through HAProxy for {outage:?}");

    // A session that is open is ended when its node is not the active any more.
    lab.wait("the old active to follow", |lab| lab.protected_under(second));
    let held = Background::start(&mut balancer.psql(WRITE_PORT, "SELECT pg_sleep(600)"));
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'";
    wait_for("the session", || (lab.sql(second, "postgres", sleeping) == "1").then_some(()));
    lab.operator(&order).good();
    wait_for("writes at the first again", || at(&balancer, first, &lab));
    let ended = held.wait(PATIENCE);
    assert!(!ended.status.success(), "the session stayed at the old active: {ended:?}");

    lab.wait("the old active to follow again", |lab| lab.protected_under(first));
    let outage = longest_outage(&balancer, || {
        lab.kill_site(first);
        wait_for("writes at the second again", || at(&balancer, second, &lab));
    });
    eprintln!("site lost: nobody could write through HAProxy for {outage:?}");
    assert!(balancer.haproxy.runs(), "HAProxy ended");
}
