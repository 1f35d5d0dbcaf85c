//! What is in the way is found from the facts alone, each with its evidence.

use std::path::Path;

use understudy_postgres::{ControlData, ControlState, DataDirectory, Ownership, Running, Version};
use understudy_types::{Lsn, SegmentSize, SystemId, Timeline};

use super::facts::{Answered, Facts, FileSetting, ReceiverFact, RoleFact, Said, Setting};
use super::*;

const NORTH: &str = r#"
cluster = "6f1a2b3c-0000-4000-8000-0123456789ab"
name = "north"
site = "north"
kind = "data"
data_dir = "/var/lib/understudy"
[listen]
grpc = "127.0.1.1:7400"
[tls]
ca = "ca.pem"
certificate = "node.pem"
key = "node.key"
[[members]]
name = "north"
id = 1
site = "north"
kind = "data"
address = "127.0.1.1:7400"
[[members]]
name = "south"
id = 2
site = "south"
kind = "data"
address = "127.0.1.2:7400"
[postgres]
data_directory = "/no/such/pgdata"
"#;

fn config(initial_active: &str) -> NodeConfig {
    let text = format!("initial_active = \"{initial_active}\"\n{NORTH}");
    NodeConfig::parse(&text, Path::new("/etc/understudy/node.toml")).unwrap()
}

fn set(value: &str, source: &str, pending: bool) -> Setting {
    Setting { value: value.to_owned(), source: source.to_owned(), file: None, pending }
}

/// A primary that nothing is wrong with.
fn said() -> Said {
    let database = serde_json::json!({
        "name": "postgres", "encoding": "UTF8", "collate": "C", "connect": true
    });
    Said {
        version: "15.18 (Debian)".to_owned(),
        superuser: Some(true),
        in_recovery: false,
        system_id: "7".to_owned(),
        timeline: 1,
        settings: [("data_directory".to_owned(), set("/no/such/pgdata", "override", false))].into(),
        file_settings: vec![],
        hba_errors: vec![],
        databases: vec![serde_json::from_value(database).unwrap()],
        tablespaces: vec![],
        slots: vec![],
        standbys: vec![],
        receiver: None,
        prepared: 0,
        sessions: 3,
        archive_failing: None,
        roles: vec![],
    }
}

fn facts(said: Said) -> Facts {
    let control = ControlData {
        system_id: SystemId(7),
        state: ControlState::InProduction,
        timeline: Timeline::FIRST,
        checkpoint_lsn: Lsn(1),
        redo_lsn: Lsn(1),
        min_recovery_lsn: None,
        min_recovery_timeline: None,
        backup_start_lsn: None,
        segment_size: SegmentSize::new(16 << 20).unwrap(),
        checksums: false,
        wal_log_hints: false,
        standby_parameters: [100, 8, 10, 0, 64],
        standby_signal: false,
    };
    let running = Running {
        pid: 1,
        start_time_ticks: 1,
        port: 5432,
        socket_dir: None,
        gate_name: None,
        status: "ready".to_owned(),
    };
    Facts {
        directory: DataDirectory::Cluster(Box::new(control)),
        ownership: Ownership::Unrecorded,
        owner_uid: None,
        running: Some(running),
        answered: Answered::Said(Box::new(said)),
        asked_at: None,
        programs: Version { major: 15, minor: 18 },
        unit: None,
        debian: None,
        history_missing: false,
        referred: vec![],
        euid: 0,
        node_dir_uid: None,
    }
}

fn blockers(config: &NodeConfig, facts: &Facts) -> Vec<String> {
    let line = [("max_wal_senders", "10"), ("wal_level", "replica"), ("port", "5432")];
    let line: Vec<_> = line.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let plan = plan::make(config, &line, facts);
    let blockers = plan.findings.iter().filter(|f| f.severity == Severity::Blocker);
    let found: Vec<String> = blockers.map(|finding| finding.what.clone()).collect();
    assert_eq!(plan.is_possible(), found.is_empty());
    found
}

#[test]
fn a_primary_that_nothing_is_wrong_with_can_be_adopted_where_the_cluster_is_founded() {
    assert_eq!(blockers(&config("north"), &facts(said())), Vec::<String>::new());
    let elsewhere = blockers(&config("south"), &facts(said()));
    assert!(elsewhere[0].contains("to be founded on south"), "{elsewhere:?}");
}

#[test]
fn a_standby_is_adopted_only_where_it_is_seen_to_stream_and_never_founded_on() {
    let standby = |status: Option<&str>| {
        let receiver = status.map(|status| ReceiverFact {
            status: status.to_owned(),
            host: Some("north".to_owned()),
            port: Some(5432),
        });
        facts(Said { in_recovery: true, receiver, ..said() })
    };
    assert_eq!(blockers(&config("south"), &standby(Some("streaming"))), Vec::<String>::new());
    for status in [None, Some("waiting")] {
        let found = blockers(&config("south"), &standby(status));
        assert!(found[0].contains("does not stream"), "{found:?}");
    }
    let founded = blockers(&config("north"), &standby(Some("streaming")));
    assert!(founded[0].contains("is a standby"), "{founded:?}");
}

/// What one thing that is wrong is found as.
#[test]
fn each_thing_that_would_keep_the_server_from_starting_again_is_in_the_way() {
    let line = |error: &str| FileSetting {
        file: Some("/x/postgresql.conf".to_owned()),
        line: Some(7),
        name: Some("work_mem".to_owned()),
        value: Some("much".to_owned()),
        error: Some(error.to_owned()),
    };
    let with_setting = |name: &str, setting: Setting| {
        let mut said = said();
        said.settings.insert(name.to_owned(), setting);
        said
    };
    let role = |superuser| RoleFact {
        name: "understudy".to_owned(),
        superuser,
        login: true,
        password: false,
    };
    let cases = [
        (Said { file_settings: vec![line("invalid value")], ..said() }, "postgresql.conf line 7"),
        (Said { hba_errors: vec!["3: bad".to_owned()], ..said() }, "pg_hba.conf line 3"),
        (with_setting("work_mem", set("9MB", "command line", false)), "command line alone"),
        (with_setting("max_wal_senders", set("32", "configuration file", false)), "from 32 to 10"),
        (with_setting("wal_level", set("logical", "configuration file", false)), "is logical"),
        (Said { roles: vec![role(false)], ..said() }, "role understudy of somebody else's"),
        (Said { databases: vec![], ..said() }, "no database postgres"),
        (Said { superuser: Some(false), ..said() }, "no superuser"),
    ];
    for (said, expected) in cases {
        let found = blockers(&config("north"), &facts(said));
        assert_eq!(found.len(), 1, "{expected}: {found:?}");
        assert!(found[0].contains(expected), "{expected} is not in {found:?}");
    }
    let history = Facts { history_missing: true, ..facts(Said { timeline: 3, ..said() }) };
    let found = blockers(&config("north"), &history);
    assert!(found[0].contains("pg_wal/00000003.history"), "{found:?}");
    assert_eq!(
        blockers(&config("north"), &facts(Said { roles: vec![role(true)], ..said() })),
        Vec::<String>::new()
    );
    // A value that waits for the restart is no error.
    let mut waiting = Said { file_settings: vec![line("could not be applied")], ..said() };
    waiting.settings.insert("work_mem".to_owned(), set("4MB", "default", true));
    assert_eq!(blockers(&config("north"), &facts(waiting)), Vec::<String>::new());
}

#[test]
fn a_server_that_cannot_be_asked_or_does_not_run_is_left_alone() {
    let silent = Facts { answered: Answered::Silent("no".to_owned()), ..facts(said()) };
    assert!(blockers(&config("north"), &silent)[0].contains("cannot be asked: no"));
    let stopped = Facts { answered: Answered::NotRunning, running: None, ..facts(said()) };
    assert!(blockers(&config("north"), &stopped)[0].contains("does not run"));
    let taken = Facts { ownership: Ownership::Own, ..facts(said()) };
    assert!(blockers(&config("north"), &taken)[0].contains("own already"));
    let nobody = Facts { node_dir_uid: Some(1000), ..facts(said()) };
    assert!(blockers(&config("north"), &nobody)[0].contains("belongs to user 1000"));
}
