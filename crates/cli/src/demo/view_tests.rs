//! The view rendered into a buffer: what a person must be able to read there.

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use understudy_proto::v1::{Epoch, FailoverVerdict, Progress};
use understudy_workload::{Outage, Stats, Writable};

use super::*;

fn node(name: &str, kind: &str, role: &str, state: &str) -> NodeStatus {
    NodeStatus {
        name: name.to_owned(),
        kind: kind.to_owned(),
        role: role.to_owned(),
        state: state.to_owned(),
        postgres_running: kind == "data",
        postgres_address: "127.0.1.1:5432".to_owned(),
        timeline: Some(1),
        ..NodeStatus::default()
    }
}

fn scene() -> Scene {
    let mut scene =
        Scene::new("zero · 50 tenants".to_owned(), vec!["north".into(), "south".into()]);
    scene.hint = "f fail the active site   q quit".to_owned();
    scene.say(Tone::Demo, "writing; press f to lose a site");
    let mut north = node("north", "data", "active", "holder");
    north.writable = true;
    north.lease_left_seconds = Some(2.7);
    north.flush_lsn = Some("0/3000060".to_owned());
    let mut south = node("south", "data", "passive", "passive");
    south.attached = true;
    south.durable_lag_bytes = Some(2048);
    south.durable_lsn = Some("0/3000000".to_owned());
    let status = ClusterStatus {
        leader: "north".to_owned(),
        phase: "running".to_owned(),
        active: "north".to_owned(),
        durability: "zero".to_owned(),
        epoch: Some(Epoch { incarnation: 0, number: 3 }),
        failover: Some(FailoverVerdict {
            reason: "ready".to_owned(),
            words: "south would take over".to_owned(),
            would_fail_over: true,
            ..FailoverVerdict::default()
        }),
        nodes: vec![north, south, node("witness", "witness", "witness", "witness")],
        ..ClusterStatus::default()
    };
    scene.take_status(status);
    scene.stats = Some(Stats {
        acknowledged_count: 4711,
        writes_per_second: 321.0,
        last_acknowledged_ago: Some(Duration::from_millis(7)),
        writable: Some(Writable { index: 0, serial: 1 }),
        history: vec![70, 80, 90, 80],
        outages: vec![Outage {
            fault_at: Duration::from_secs(9),
            last_acknowledged_at: Duration::from_secs(9),
            acknowledged_again_at: Some(Duration::from_millis(11_400)),
        }],
        ..Stats::default()
    });
    scene
}

fn rendered(scene: &Scene, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, scene)).unwrap();
    terminal.backend().to_string()
}

#[test]
fn a_person_sees_who_is_active_what_is_behind_and_how_long_the_outage_was() {
    let text = rendered(&scene(), 120, 40);
    for expected in [
        "zero · 50 tenants",
        "epoch 3 · running",
        "north  ACTIVE",
        "south  PASSIVE",
        "lease 2.7 s",
        "2.0 KiB behind",
        "321 per second",
        "4711",
        "write outages: 2.40 s",
        "south would take over",
        "press f to lose a site",
    ] {
        assert!(text.contains(expected), "{expected:?} is missing in\n{text}");
    }
}

#[test]
fn a_lost_site_a_rebuild_and_a_missing_status_are_shown_for_what_they_are() {
    let mut scene = scene();
    let (mut status, _) = scene.status.take().unwrap();
    status.nodes[0].state = "unreachable".to_owned();
    status.nodes[1].progress = Some(Progress {
        what: "rewinding".to_owned(),
        done_bytes: 1 << 20,
        total_bytes: 4 << 20,
        bytes_per_second: 0.0,
    });
    scene.take_status(status);
    let text = rendered(&scene, 100, 40);
    assert!(text.contains("LOST") && text.contains("rewinding 1.0 MiB"), "{text}");
    scene.status = None;
    scene.stats = None;
    assert!(rendered(&scene, 100, 40).contains("no node answers yet"));
}

#[test]
fn a_tiny_window_does_not_break_it() {
    for (width, height) in [(1, 1), (20, 5), (40, 12), (80, 24)] {
        rendered(&scene(), width, height);
    }
}
