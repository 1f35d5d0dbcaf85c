//! What is told of each change, that nothing is told twice, and that the journal is bounded.

use understudy_core::state::{
    Granted, LossBound, Mark, Operation, OperationKind, OperationStatus, Pause,
};
use understudy_types::{DurabilityMode, Epoch, Lsn, PromotionId, Timeline};
use uuid::Uuid;

use super::journal::EVENTS_KEPT;
use super::*;
use crate::status::ClusterStatus;
use crate::status::tests::{NORTH, SOUTH, Scene, WITNESS};
use crate::validation::{self, Finding, ValidationReport, ValidationVerdict};

/// Kind, severity, subject, from, to.
type Told = (Kind, Severity, String, Option<String>, Option<String>);

fn told(happenings: &[Happening]) -> Vec<Told> {
    let each = happenings.iter().cloned();
    each.map(|h| (h.kind, h.severity, h.subject, h.from, h.to)).collect()
}

fn line(
    kind: Kind,
    severity: Severity,
    subject: &str,
    (from, to): (Option<&str>, Option<&str>),
) -> Told {
    (kind, severity, subject.to_owned(), from.map(str::to_owned), to.map(str::to_owned))
}

/// What is told of a change at `me`, and of its way back.
fn of_change(
    me: understudy_types::NodeId,
    change: impl Fn(&mut Scene),
) -> (Vec<Happening>, Vec<Happening>) {
    let mut scene = Scene::seen_by(me);
    let before = scene.build();
    change(&mut scene);
    let after = scene.build();
    assert_eq!(events_between(&after, &after), []);
    (events_between(&before, &after), events_between(&after, &before))
}

#[test]
fn every_kind_has_a_word_of_its_own_that_reads_back() {
    for kind in Kind::ALL {
        assert_eq!(kind.as_str().parse::<Kind>(), Ok(*kind));
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        assert!(kind.as_str().chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{kind:?}");
    }
    let wrong = "role".parse::<Kind>().unwrap_err();
    assert!(wrong.contains("\"role\"") && wrong.contains("role-change"), "{wrong}");
}

#[test]
fn a_lost_lease_is_an_alert_and_at_the_old_active_also_a_change_of_role() {
    let (lost, back) = of_change(NORTH, |scene| {
        scene.lease_over = true;
        scene.writable = false;
    });
    let expected = [
        line(Kind::ActiveChange, Severity::Alert, "cluster", (Some("north"), None)),
        line(Kind::RoleChange, Severity::Info, "north", (Some("active"), Some("passive"))),
        line(
            Kind::WritableChange,
            Severity::Info,
            "north",
            (Some("writable"), Some("not-writable")),
        ),
    ];
    assert_eq!(told(&lost), expected);
    let kinds: Vec<Kind> = back.iter().map(|happening| happening.kind).collect();
    assert_eq!(kinds, [Kind::ActiveChange, Kind::RoleChange, Kind::WritableChange]);
    assert_eq!(back[0].severity, Severity::Info);
    assert_eq!(lost[0].epoch, Epoch { incarnation: 0, number: 1 });
}

fn operation(status: OperationStatus, ended_unix_us: Option<i64>) -> Operation {
    Operation {
        kind: OperationKind::Switchover,
        caller: "person ada (operator)".to_owned(),
        reason: "kernel update".to_owned(),
        what: Some("to south".to_owned()),
        status,
        started_unix_us: 1_600_000_000_000_000,
        ended_unix_us,
        report: None,
    }
}

#[test]
fn on_an_ordered_way_a_moment_without_an_active_is_no_alert() {
    let mut scene = Scene::seen_by(SOUTH);
    scene.state.operations.insert(4, operation(OperationStatus::Running, None));
    let before = scene.build();
    scene.lease_over = true;
    let found = events_between(&before, &scene.build());
    assert_eq!(found[0].kind, Kind::ActiveChange);
    assert_eq!(found[0].severity, Severity::Info);
}

#[test]
fn an_operation_is_told_at_its_beginning_and_its_end_with_the_times_of_the_record() {
    let mut scene = Scene::seen_by(SOUTH);
    let none = scene.build();
    scene.state.operations.insert(4, operation(OperationStatus::Running, None));
    let running = scene.build();
    let failed = OperationStatus::Failed("south is behind".to_owned());
    scene.state.operations.insert(4, operation(failed, Some(1_600_000_009_000_000)));
    let ended = scene.build();
    let begin = events_between(&none, &running);
    let change = (None, Some("switchover"));
    assert_eq!(told(&begin), [line(Kind::OperationStarted, Severity::Info, "operation 4", change)]);
    assert!(begin[0].words.contains("person ada") && begin[0].words.contains("kernel update"));
    let end = events_between(&running, &ended);
    let change = (Some("switchover"), Some("failed"));
    assert_eq!(told(&end), [line(Kind::OperationEnded, Severity::Warning, "operation 4", change)]);
    assert!(end[0].words.contains("south is behind"), "{}", end[0].words);
    assert_eq!(end[0].at_unix_us, 1_600_000_009_000_000);
    let at_once: Vec<Kind> = events_between(&none, &ended).iter().map(|h| h.kind).collect();
    assert_eq!(at_once, [Kind::OperationStarted, Kind::OperationEnded]);
}

fn promoted(scene: &mut Scene, time_max: Option<std::time::Duration>) {
    let epoch = scene.state.epoch.next();
    scene.state.epoch = epoch;
    let granted = Granted {
        node: SOUTH,
        promotion: PromotionId(Uuid::from_u128(12)),
        timeline: Timeline::new(2).unwrap(),
        fork_lsn: Some(Lsn(0x500_0000)),
        parent: None,
        loss: LossBound { time_max, wal_bytes_min: 4096 },
        at_unix_us: Some(1_600_000_000_000_000),
    };
    scene.state.lineage.insert(epoch, granted);
}

#[test]
fn a_promotion_says_what_it_may_have_lost_and_an_unknown_loss_is_an_alert() {
    let seconds = Some(std::time::Duration::from_secs(2));
    let (found, _) = of_change(WITNESS, |scene| promoted(scene, seconds));
    let expected = [
        line(Kind::EpochChange, Severity::Info, "cluster", (Some("1"), Some("2"))),
        line(Kind::Promotion, Severity::Warning, "south", (None, Some("2"))),
    ];
    assert_eq!(told(&found), expected);
    assert!(found[1].words.contains("2.0 s") && found[1].words.contains("4096"));
    let (unknown, _) = of_change(WITNESS, |scene| promoted(scene, None));
    assert_eq!(unknown[1].severity, Severity::Alert);
}

#[test]
fn dial_pause_marks_and_who_is_heard_are_told_both_ways() {
    let (there, back) = of_change(NORTH, |scene| {
        scene.state.durability.mode = DurabilityMode::Zero;
        scene.state.durability.lifted = true;
        scene.state.pause = Some(Pause { until_unix_us: 1_700_000_000_000_000, operation: 3 });
        scene.state.marks.insert(SOUTH, Mark::Dirty);
        scene.silence(WITNESS);
    });
    let until = "2023-11-14T22:13:20Z";
    let expected = [
        line(Kind::ModeChange, Severity::Info, "cluster", (Some("bounded"), Some("zero"))),
        line(Kind::LiftedChange, Severity::Alert, "cluster", (Some("protected"), Some("lifted"))),
        line(Kind::PauseBegan, Severity::Warning, "cluster", (None, Some(until))),
        line(Kind::MarkSet, Severity::Warning, "south", (None, Some("dirty"))),
        line(
            Kind::NodeUnreachable,
            Severity::Warning,
            "witness",
            (Some("witness"), Some("unreachable")),
        ),
    ];
    assert_eq!(told(&there), expected);
    let kinds: Vec<Kind> = back.iter().map(|happening| happening.kind).collect();
    let expected = [
        Kind::ModeChange,
        Kind::LiftedChange,
        Kind::PauseEnded,
        Kind::MarkCleared,
        Kind::NodeHeard,
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn a_verdict_and_a_majority_that_go_are_told_with_their_words() {
    let before = Scene::seen_by(SOUTH).build();
    let mut after = before.clone();
    after.failover.would_fail_over = false;
    after.failover.reason = "too-far-behind".to_owned();
    after.failover.words = "south lacks 9 bytes".to_owned();
    after.majority = false;
    let found = events_between(&before, &after);
    let expected = [
        line(
            Kind::FailoverVerdict,
            Severity::Warning,
            "cluster",
            (Some("ready"), Some("too-far-behind")),
        ),
        line(Kind::MajorityChange, Severity::Alert, "south", (Some("majority"), Some("minority"))),
    ];
    assert_eq!(told(&found), expected);
    assert!(found[0].words.contains("south lacks 9 bytes"), "{}", found[0].words);
}

#[test]
fn what_a_look_ahead_finds_is_told_once_and_again_when_it_is_gone() {
    let report = |findings: &[(validation::Severity, &str)], verdict| ValidationReport {
        at_unix_us: 1,
        judged_by: "south".to_owned(),
        verdict,
        findings: findings
            .iter()
            .map(|(severity, code)| Finding {
                severity: *severity,
                code: (*code).to_owned(),
                node: Some("south".to_owned()),
                words: "words".to_owned(),
                remedy: "remedy".to_owned(),
            })
            .collect(),
        expected_outage_seconds: None,
        expected_loss_seconds: None,
        expected_loss_bytes: None,
    };
    let before = Scene::seen_by(SOUTH).build();
    let with =
        |report: ValidationReport| ClusterStatus { validation: Some(report), ..before.clone() };
    let (block, note) = (validation::Severity::Block, validation::Severity::Note);
    let quiet = with(report(&[(note, "no-health-checks")], ValidationVerdict::Ready));
    assert_eq!(events_between(&before, &quiet), []);
    let blocked = with(report(&[(block, "library-missing")], ValidationVerdict::NotReady));
    let found = events_between(&quiet, &blocked);
    let change = (Some("ready"), Some("not-ready"));
    assert_eq!(told(&found), [line(Kind::ValidationChange, Severity::Alert, "cluster", change)]);
    assert!(found[0].words.contains("has found library-missing at south"), "{}", found[0].words);
    let back = events_between(&blocked, &quiet);
    assert_eq!(back[0].severity, Severity::Info);
    assert!(back[0].words.contains("finds no more library-missing at south"), "{}", back[0].words);
}

#[test]
fn what_stands_at_this_node_is_told_and_words_whose_figures_change_are_no_news() {
    let own = |status: &ClusterStatus, postgres: bool, trouble: Option<&str>, warnings: &[&str]| {
        let mut status = status.clone();
        let node = status.nodes.iter_mut().find(|node| node.name == "south").unwrap();
        node.postgres_running = postgres;
        node.trouble = trouble.map(str::to_owned);
        node.warnings = warnings.iter().map(|words| (*words).to_owned()).collect();
        status
    };
    let scene = Scene::seen_by(SOUTH).build();
    let well = own(&scene, true, None, &[]);
    let ill = own(&scene, false, Some("lag 3 s"), &["12 tables are unlogged", "9 GiB are left"]);
    let worse =
        own(&scene, false, Some("lag 4 s"), &["13 tables are unlogged", "8.5 GiB are left"]);
    let kinds = |found: Vec<Happening>| found.iter().map(|h| h.kind).collect::<Vec<Kind>>();
    let expected = [Kind::PostgresDown, Kind::TroubleBegan, Kind::WarningBegan, Kind::WarningBegan];
    assert_eq!(kinds(events_between(&well, &ill)), expected);
    assert_eq!(kinds(events_between(&ill, &worse)), []);
    let expected = [Kind::PostgresUp, Kind::TroubleEnded, Kind::WarningEnded, Kind::WarningEnded];
    assert_eq!(kinds(events_between(&worse, &well)), expected);
    // Another node's server and words are that node's to tell.
    let mut other = well.clone();
    other.nodes[0].postgres_running = false;
    other.nodes[0].trouble = Some("x".to_owned());
    assert_eq!(kinds(events_between(&well, &other)), []);
}

#[test]
fn after_a_restart_the_record_is_told_with_its_own_times_and_then_the_own_role() {
    let mut scene = Scene::seen_by(SOUTH);
    scene.state.operations.insert(4, operation(OperationStatus::Done, Some(1_600_000_001_000_000)));
    let found = events_of_record(&scene.build());
    let kinds: Vec<Kind> = found.iter().map(|happening| happening.kind).collect();
    let expected =
        [Kind::OperationStarted, Kind::OperationEnded, Kind::Promotion, Kind::RoleChange];
    assert_eq!(kinds, expected);
    assert!(found.is_sorted_by_key(|happening| happening.at_unix_us));
    let epochs: Vec<u64> = found.iter().map(|happening| happening.epoch.number).collect();
    assert_eq!(epochs, [0, 0, 1, 1], "of that time, as far as the record says");
    assert_eq!((&found[3].from, found[3].to.as_deref()), (&None, Some("passive")));
}

fn nth(n: u64) -> Happening {
    Happening {
        kind: if n.is_multiple_of(2) { Kind::PostgresUp } else { Kind::PostgresDown },
        severity: Severity::Info,
        subject: "south".to_owned(),
        words: format!("number {n}"),
        epoch: Epoch::NONE,
        from: None,
        to: None,
        at_unix_us: 7,
    }
}

#[test]
fn the_journal_keeps_the_newest_and_says_how_many_a_slow_reader_missed() {
    let journal = EventJournal::new("south");
    let kept = EVENTS_KEPT as u64;
    assert_eq!(journal.after(0, &[], 10).upto, 0);
    for n in 1..=kept + 50 {
        assert_eq!(journal.add(nth(n)).sequence, n);
    }
    let first = journal.after(0, &[], 10);
    assert_eq!((first.missed_count, first.upto), (50, 60));
    assert_eq!(first.events[0].sequence, 51);
    let next = journal.after(first.upto, &[], 10);
    assert_eq!((next.missed_count, next.events[0].sequence, next.upto), (0, 61, 70));
    let up = journal.after(60, &[Kind::PostgresUp], 2);
    let numbers: Vec<u64> = up.events.iter().map(|event| event.sequence).collect();
    assert_eq!((numbers.as_slice(), up.upto), ([62, 64].as_slice(), 64));
    let none = journal.after(60, &[Kind::PauseBegan], 2);
    assert_eq!((none.events.len(), none.upto), (0, kept + 50));
    assert_eq!(journal.after(kept + 50, &[], 10).events, []);
}

#[test]
fn endless_words_are_cut_and_an_event_survives_the_wire() {
    let journal = EventJournal::new("south");
    let long = Happening { words: "ä".repeat(100_000), to: Some("x".to_owned()), ..nth(2) };
    let event = journal.add(long);
    assert!(event.words.len() < 5000 && event.words.ends_with('…'));
    let wire = understudy_proto::v1::Event::from(&event);
    assert_eq!(Event::try_from(wire).unwrap(), event);
    let text = serde_json::to_string(&event).unwrap();
    assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
}
