//! A cluster in order has no findings, and each thing that goes wrong has the one that is meant for it.

use std::collections::BTreeMap;

use understudy_core::Timing;
use understudy_proto::v1;

use super::judge::{Answer, Evidence, judge};
use super::*;
use crate::status::ClusterStatus;
use crate::status::tests::{SOUTH, Scene};

const NOW_US: i64 = 1_700_000_000_000_000;
const DAY_US: i64 = 86_400_000_000;

/// What was seen of a cluster; in order until it is changed.
struct World {
    status: ClusterStatus,
    answers: BTreeMap<String, Answer>,
}

impl World {
    fn in_order() -> World {
        let mut status = Scene::seen_by(SOUTH).build();
        for node in &mut status.nodes {
            node.replay_lag_seconds = node.replay_lag_seconds.map(|_| 0.0);
            node.warnings.clear();
        }
        status.exposure_seconds = Some(1.0);
        let names: Vec<String> = status.nodes.iter().map(|node| node.name.clone()).collect();
        let answer = |name: &String| {
            let others = names.iter().filter(|other| *other != name);
            let heard =
                |other: &String| v1::HeardMember { node: other.clone(), seconds_ago: Some(0.2) };
            let data = others.clone().filter(|other| *other != "witness");
            let reached = |other: &String| v1::ReachedAddress {
                node: other.clone(),
                address: format!("{other}.example:5432"),
                trouble: String::new(),
            };
            let fitness = v1::Fitness {
                node: name.clone(),
                program_version: "1.2.3".to_owned(),
                heard: others.clone().map(heard).collect(),
                reached: data.map(reached).collect(),
                certificate_not_after_unix_us: Some(NOW_US + 300 * DAY_US),
                authority_not_after_unix_us: Some(NOW_US + 3000 * DAY_US),
                health_checkers: vec!["10.0.0.9".to_owned()],
                health_checkers_complete: true,
                disks: vec![v1::FitnessDisk {
                    what: "node-directory".to_owned(),
                    free_bytes: 50 << 30,
                    total_bytes: 100 << 30,
                }],
                postgres: (name != "witness").then(|| server(name == "south")),
                ..v1::Fitness::default()
            };
            (name.clone(), Answer { fitness: Ok(fitness), clock_ahead_us: Some((300_000, 1_000)) })
        };
        let answers = names.iter().map(answer).collect();
        World { status, answers }
    }

    fn fitness(&mut self, node: &str) -> &mut v1::Fitness {
        self.answers.get_mut(node).unwrap().fitness.as_mut().unwrap()
    }

    fn server(&mut self, node: &str) -> &mut v1::PostgresFitness {
        self.fitness(node).postgres.as_mut().unwrap()
    }

    fn set(&mut self, node: &str, name: &str, value: &str) {
        self.server(node).settings.insert(name.to_owned(), value.to_owned());
    }

    fn node(&mut self, name: &str) -> &mut crate::status::NodeStatus {
        self.status.nodes.iter_mut().find(|node| node.name == name).unwrap()
    }

    fn judged(&self) -> ValidationReport {
        judge(&Evidence {
            status: &self.status,
            answers: &self.answers,
            timing: Timing::DEFAULT,
            now_unix_us: NOW_US,
        })
    }
}

fn server(in_recovery: bool) -> v1::PostgresFitness {
    let settings = [("max_connections", "100"), ("work_mem", "4096 kB"), ("port", "5432")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let line = |words: &str| v1::HbaLine { words: words.to_owned(), digest: "d".to_owned() };
    v1::PostgresFitness {
        server_version_num: 150_018,
        in_recovery,
        settings: settings.into(),
        hba_lines: vec![
            line("host all all 10.0.0.0 255.0.0.0 scram-sha-256"),
            line("local all all peer"),
        ],
        ..v1::PostgresFitness::default()
    }
}

#[test]
fn a_cluster_in_order_is_ready_and_says_what_a_failover_would_cost() {
    let report = World::in_order().judged();
    assert_eq!(report.findings, []);
    assert_eq!(report.verdict, ValidationVerdict::Ready);
    // The lease of three seconds with the clocks' drift, and a second for the promotion.
    let outage = report.expected_outage_seconds.unwrap();
    assert!((4.0..4.1).contains(&outage), "{outage}");
    assert_eq!(report.expected_loss_seconds, Some(1.0));
    assert_eq!(report.expected_loss_bytes, Some(700));
}

#[test]
fn what_differs_on_purpose_is_no_finding() {
    let mut world = World::in_order();
    world.set("south", "port", "5433");
    world.set("south", "primary_conninfo", "digest 1");
    world.set("south", "max_connections", "200");
    world.set("south", "only_in_another_release", "on");
    world.answers.get_mut("north").unwrap().clock_ahead_us = Some((-2_000_000, 1_500_000));
    world.server("north").hba_lines.reverse();
    world.server("south").hba_lines.reverse();
    assert_eq!(world.judged().findings, []);
}

type Cause = fn(&mut World);

/// What is done, and the finding that must come of it, alone.
const CAUSES: &[(Severity, &str, Option<&str>, Cause)] = &[
    (Severity::Block, "no-failover", None, |w| w.status.failover.would_fail_over = false),
    (Severity::Risk, "damped", None, |w| w.status.failover.reason = "damped".to_owned()),
    (Severity::Risk, "unprotected", None, |w| w.status.durability_lifted = true),
    (Severity::Risk, "exposed", None, |w| w.status.exposure_seconds = Some(1900.0)),
    (Severity::Note, "no-health-checks", None, |w| {
        for node in ["north", "south"] {
            w.fitness(node).health_checkers.clear();
        }
    }),
    (Severity::Risk, "health-check-missing", Some("south"), |w| {
        w.fitness("south").health_checkers.clear()
    }),
    (Severity::Risk, "not-answering", Some("witness"), |w| {
        w.answers.get_mut("witness").unwrap().fitness = Err("connection refused".to_owned());
    }),
    (Severity::Risk, "not-looked-at", Some("north"), |w| {
        w.fitness("north").troubles.push("x".to_owned())
    }),
    (Severity::Risk, "warning", Some("north"), |w| {
        w.node("north").warnings.push("fsync is off".to_owned())
    }),
    (Severity::Block, "wal-gap", Some("south"), |w| {
        w.fitness("south").wal_gaps.push("gap".to_owned())
    }),
    (Severity::Risk, "not-heard", Some("south"), |w| {
        w.fitness("south").heard[1].seconds_ago = Some(9.0)
    }),
    (Severity::Risk, "not-heard", Some("north"), |w| {
        w.fitness("north").heard[0].seconds_ago = None
    }),
    (Severity::Risk, "postgres-not-reached", Some("south"), |w| {
        w.fitness("witness").reached[1].trouble = "refused".to_owned();
    }),
    (Severity::Block, "postgres-not-reached", Some("south"), |w| {
        for node in ["witness", "north"] {
            w.fitness(node).reached.last_mut().unwrap().trouble = "refused".to_owned();
        }
    }),
    (Severity::Risk, "certificate-expires", Some("north"), |w| {
        w.fitness("north").certificate_not_after_unix_us = Some(NOW_US + 20 * DAY_US);
    }),
    (Severity::Block, "certificate-expires", Some("south"), |w| {
        w.fitness("south").authority_not_after_unix_us = Some(NOW_US + DAY_US);
    }),
    (Severity::Risk, "disk-full", Some("south"), |w| {
        w.fitness("south").disks[0].free_bytes = 9 << 30
    }),
    (Severity::Block, "disk-full", Some("south"), |w| {
        w.fitness("south").disks[0].free_bytes = 2 << 30
    }),
    (Severity::Risk, "clocks-apart", Some("north"), |w| {
        w.answers.get_mut("north").unwrap().clock_ahead_us = Some((-2_000_000, 1_000));
    }),
    (Severity::Block, "library-missing", Some("south"), |w| {
        w.server("south").missing_libraries.push("$libdir/postgis-3".to_owned());
    }),
    (Severity::Block, "database-refused", Some("south"), |w| {
        w.server("south").refused_databases.push("acme: no locale".to_owned());
    }),
    (Severity::Risk, "hba-broken", Some("north"), |w| {
        w.server("north").hba_errors.push("line 9".to_owned())
    }),
    (Severity::Risk, "extension-missing", Some("south"), |w| {
        w.server("south").missing_extensions.push("hstore 1.8".to_owned());
    }),
    (Severity::Risk, "collation-changed", Some("south"), |w| {
        w.server("south").changed_collations.push("database acme".to_owned());
    }),
    (Severity::Risk, "logical-slots", Some("north"), |w| {
        w.server("north").logical_slots.push("debezium of acme".to_owned());
    }),
    (Severity::Risk, "restart-pending", Some("north"), |w| {
        w.server("north").pending_restart.push("max_connections".to_owned());
    }),
    (Severity::Risk, "setting-overridden", Some("north"), |w| {
        w.server("north").overridden.push("max_slot_wal_keep_size (-1)".to_owned());
    }),
    (Severity::Risk, "archive-fails", Some("north"), |w| {
        w.server("north").archive_failing = Some("000000010000000000000003".to_owned());
    }),
    (Severity::Note, "databases-unseen", Some("north"), |w| {
        w.server("north").unseen_databases_count = 7
    }),
    (Severity::Risk, "replay-paused", Some("south"), |w| w.node("south").replay_paused = true),
    (Severity::Risk, "replay-behind", Some("south"), |w| {
        w.node("south").replay_lag_seconds = Some(11.0)
    }),
    (Severity::Risk, "postgres-version", Some("south"), |w| {
        w.server("south").server_version_num = 150_017
    }),
    (Severity::Block, "postgres-version", Some("south"), |w| {
        w.server("south").server_version_num = 160_001
    }),
    (Severity::Block, "parameter-too-small", Some("south"), |w| {
        w.set("south", "max_connections", "99")
    }),
    (Severity::Risk, "preload-differs", Some("south"), |w| {
        w.set("north", "shared_preload_libraries", "pg_stat_statements");
    }),
    (Severity::Risk, "archive-differs", Some("south"), |w| {
        w.set("north", "archive_command", "digest 1")
    }),
    (Severity::Risk, "settings-differ", Some("south"), |w| w.set("south", "work_mem", "8192 kB")),
    (Severity::Risk, "hba-differs", Some("south"), |w| {
        w.server("south").hba_lines[0].digest.push('x')
    }),
    (Severity::Risk, "hba-differs", Some("south"), |w| w.server("south").hba_lines.reverse()),
    (Severity::Risk, "apply-delayed", Some("south"), |w| {
        for node in ["north", "south"] {
            w.set(node, "recovery_min_apply_delay", "3600000 ms");
        }
    }),
    (Severity::Risk, "program-version", None, |w| {
        w.fitness("witness").program_version = "1.3.0".to_owned()
    }),
];

#[test]
fn each_cause_has_its_finding_and_nothing_else() {
    for (severity, code, node, cause) in CAUSES {
        let mut world = World::in_order();
        cause(&mut world);
        let report = world.judged();
        let found: Vec<_> = report
            .findings
            .iter()
            .map(|f| (f.severity, f.code.as_str(), f.node.as_deref()))
            .collect();
        assert_eq!(found, [(*severity, *code, *node)], "{report:#?}");
        let Finding { words, remedy, .. } = &report.findings[0];
        assert!(!words.is_empty() && !remedy.is_empty(), "{code}");
        let verdict = match severity {
            Severity::Block => ValidationVerdict::NotReady,
            Severity::Risk => ValidationVerdict::AtRisk,
            Severity::Note => ValidationVerdict::Ready,
        };
        assert_eq!(report.verdict, verdict, "{code}");
    }
}

#[test]
fn nothing_is_promised_where_nobody_would_take_over() {
    let mut world = World::in_order();
    world.status.failover.would_fail_over = false;
    world.status.failover.reason = "paused".to_owned();
    let report = world.judged();
    assert_eq!((report.expected_outage_seconds, report.expected_loss_seconds), (None, None));
    assert_eq!(report.findings[0].remedy, "`understudy resume`");
    let mut world = World::in_order();
    world.node("south").replay_lag_seconds = Some(30.0);
    world.status.eligible = vec!["south".to_owned()];
    assert!(world.judged().expected_outage_seconds.unwrap() > 34.0, "it replays before it opens");
}

#[test]
fn a_report_is_bounded_and_keeps_the_gravest() {
    let mut world = World::in_order();
    for n in 0..200 {
        world.fitness("north").troubles.push(format!("trouble {n}"));
    }
    world.server("south").missing_libraries.push("lib".to_owned());
    let report = world.judged();
    assert_eq!(report.findings.len(), FINDINGS_MAX + 1);
    assert_eq!(report.findings[0].code, "library-missing");
    assert!(report.findings.last().unwrap().words.starts_with("141 more findings"), "{report:?}");
}

#[test]
fn no_form_of_the_report_loses_anything() {
    let mut world = World::in_order();
    world.server("south").missing_libraries.push("lib".to_owned());
    world.status.durability_lifted = true;
    let report = world.judged();
    let message = v1::ValidationReport::from(&report);
    assert_eq!(ValidationReport::try_from(message.clone()).unwrap(), report);
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<ValidationReport>(&text).unwrap(), report);
    let unknown = v1::ValidationReport { verdict: "splendid".to_owned(), ..message };
    assert!(ValidationReport::try_from(unknown).unwrap_err().to_string().contains("splendid"));
}

#[test]
fn every_metric_has_help_and_is_unknown_before_the_first_look() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let render = |work: &dyn Fn()| {
        ::metrics::with_local_recorder(&recorder, || {
            work();
            recorder.handle().render()
        })
    };
    let text = render(&describe_metrics);
    assert!(text.contains("understudy_validation_would_work NaN"), "{text}");
    assert!(
        text.contains("understudy_validation_findings_count{severity=\"block\"} NaN"),
        "{text}"
    );
    for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
    let mut world = World::in_order();
    world.status.durability_lifted = true;
    let text = render(&|| metrics::record(&world.judged()));
    assert!(text.contains("understudy_validation_would_work 1"), "{text}");
    assert!(text.contains("understudy_validation_findings_count{severity=\"risk\"} 1"), "{text}");
}
