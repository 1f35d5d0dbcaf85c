//! A trace is read as far as it is whole, says where it is not, and a core that decides otherwise is
//! noticed at the very event.

use proptest::prelude::*;
use understudy_core::Timing;
use understudy_core::node::{
    Action, Completion, Core, CoreOptions, DataView, Event, FollowEnd, JournalView, LocalView,
    PeerReport, PostgresFacts, PostgresView, TaskFailure, TaskId,
};
use understudy_core::state::Member;
use understudy_core::{ClusterConfig, ClusterState, Command};
use understudy_types::{
    BootInstant, ClusterId, Epoch, Incarnation, Lsn, NodeId, NodeKind, PermitSerial, ProcessStart,
    PromotionId, SystemId, Timeline,
};

use crate::{Encoder, FORMAT, Finding, FormatError, Header, Lines, PROGRAM, Replay};

const ME: NodeId = NodeId(2);

fn uuid(number: u64) -> uuid::Uuid {
    uuid::Uuid::from_u128(u128::from(number) + 1)
}

/// One core, its trace, and a state that takes whatever the core proposes.
struct Bench {
    core: Core,
    state: ClusterState,
    encoder: Encoder,
    bytes: Vec<u8>,
    now: u64,
    index: u64,
    events_count: u64,
    task: Option<TaskId>,
    proposed: Vec<Command>,
}

fn header(events_before: u64, process: u64) -> Header {
    Header {
        format: FORMAT,
        program: PROGRAM.to_owned(),
        node: ME,
        name: "south".to_owned(),
        process: ProcessStart(process),
        events_before,
        at: BootInstant(1),
        wall_unix_us: 1_800_000_000_000_000,
    }
}

impl Bench {
    fn new() -> Bench {
        let options = CoreOptions {
            me: ME,
            kind: NodeKind::Data,
            process: ProcessStart(5),
            timing: Timing::DEFAULT,
        };
        let mut bench = Bench {
            core: Core::new(options),
            state: ClusterState::default(),
            encoder: Encoder::default(),
            bytes: Vec::new(),
            now: 1_000_000,
            index: 0,
            events_count: 0,
            task: None,
            proposed: Vec::new(),
        };
        bench.encoder.begin(header(0, 5), &bench.core, &mut bench.bytes);
        let member = |id: u64, name: &str, kind| {
            let (name, site) = (name.parse().unwrap(), name.parse().unwrap());
            let incarnation = Incarnation(uuid(id));
            (NodeId(id), Member { name, site, kind, address: "h:1".to_owned(), incarnation })
        };
        bench.apply(&Command::Found {
            cluster: ClusterId(uuid(9)),
            members: vec![
                member(1, "north", NodeKind::Data),
                member(2, "south", NodeKind::Data),
                member(3, "witness", NodeKind::Witness),
            ],
            config: ClusterConfig::default(),
            initial_active: ME,
        });
        bench
    }

    fn apply(&mut self, command: &Command) {
        self.index += 1;
        let outcome = self.state.apply(self.index, command);
        let applied = Some((command.clone(), outcome));
        self.give(Event::State { state: self.state.clone().into(), applied });
    }

    fn give(&mut self, event: Event) {
        let at = BootInstant(self.now);
        self.events_count += 1;
        self.encoder.event(at, event.clone(), &mut self.bytes);
        self.core.handle_event(at, event);
        let mut actions = Vec::new();
        while let Some(action) = self.core.poll_action() {
            match &action {
                Action::Propose(_, command) => self.proposed.push(command.clone()),
                Action::Run(id, _) => self.task = Some(*id),
                Action::SetPermit(_)
                | Action::CloseGate(_)
                | Action::Follow { .. }
                | Action::Unfollow => {}
            }
            actions.push(action);
        }
        self.encoder.actions(actions, &mut self.bytes);
    }

    /// One of many things that could happen; `a` and `b` say which and how.
    fn happen(&mut self, what: u8, a: u64, b: u64) {
        self.now += a % 400_000_000;
        let lsn = Lsn((b % 64) * 1024);
        match what % 12 {
            0 => self.give(Event::Tick),
            1 => {
                let (is_leader, majority) = (a.is_multiple_of(2), !b.is_multiple_of(4));
                self.give(Event::Leadership { is_leader, majority });
            }
            2..=4 => self.give(local(a, b, lsn)),
            5 => {
                let report = PeerReport {
                    node: NodeId(1 + 2 * (a % 2)),
                    process: ProcessStart(1),
                    epoch: Epoch { incarnation: 0, number: b % 4 },
                    data: Some((SystemId(7), Timeline::FIRST)),
                    durable_lsn: Some(lsn),
                    promotion: a.is_multiple_of(3).then(|| PromotionId(uuid(b % 64))),
                    begin_lsn: Lsn::ZERO,
                    promotable: a.is_multiple_of(2),
                    resumable: b.is_multiple_of(2),
                };
                self.give(Event::Peer(report));
            }
            6 => self.give(Event::PermitInForce(PermitSerial(a % 8))),
            7 | 8 => {
                let id = self.task.take().unwrap_or(TaskId(a % 5));
                self.give(Event::TaskDone(id, completion(a, lsn)));
            }
            9 => self.give(Event::FollowEnded(FollowEnd::Again("lost".to_owned()))),
            10 | 11 => match self.proposed.pop() {
                Some(command) => self.apply(&command),
                None => self.give(Event::Source(None)),
            },
            _ => unreachable!("a remainder of 12"),
        }
    }
}

fn local(a: u64, b: u64, lsn: Lsn) -> Event {
    let facts = PostgresFacts {
        in_recovery: Some(a.is_multiple_of(3)),
        timeline: Some(Timeline::FIRST),
        flush_lsn: Some(lsn),
        replay_lsn: Some(lsn),
        ..PostgresFacts::default()
    };
    let postgres = match b % 3 {
        0 => PostgresView::Stopped,
        _ => PostgresView::Running(facts),
    };
    let data = DataView::Cluster { system_id: SystemId(7), timeline: Timeline::FIRST };
    let journal = Some(JournalView {
        timeline: Timeline::FIRST,
        durable_lsn: lsn,
        promotion: None,
        begin_lsn: Lsn::ZERO,
    });
    let fresh = PromotionId(uuid(a));
    let wall_unix_us = 1_800_000_000_000_000;
    Event::Local { view: LocalView { data, postgres, journal }, fresh, wall_unix_us }
}

fn completion(a: u64, end_lsn: Lsn) -> Result<Completion, TaskFailure> {
    match a % 8 {
        0 => Err(TaskFailure { words: "did not work".to_owned(), suspect: a.is_multiple_of(16) }),
        1 => Ok(Completion::Fenced),
        2 => Ok(Completion::DataReady),
        3 | 4 => Ok(Completion::Held { end_lsn }),
        5 => Ok(Completion::ClientsLetIn),
        _ => Ok(Completion::ReadDone),
    }
}

fn replay(bytes: &[u8]) -> (Replay, Vec<Finding>) {
    let (mut replay, mut found) = (Replay::default(), Vec::new());
    let mut lines = Lines::new(bytes).unwrap();
    while let Some(line) = lines.next_line().unwrap() {
        found.extend(replay.take(line));
    }
    found.extend(replay.finish());
    (replay, found)
}

fn turns(found: &[Finding]) -> u64 {
    found.iter().filter(|finding| matches!(finding, Finding::Turn(_))).count() as u64
}

/// A node that is made active, with a hundred more events.
fn busy() -> Bench {
    let mut bench = Bench::new();
    for step in 0..100 {
        bench.happen((step % 12) as u8, step * 7, step * 5);
    }
    bench
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_core_decides_the_same_again_on_any_events(
        steps in proptest::collection::vec((any::<u8>(), any::<u64>(), any::<u64>()), 1..300)
    ) {
        let mut bench = Bench::new();
        for (what, a, b) in steps {
            bench.happen(what, a, b);
        }
        let (replay, found) = replay(&bench.bytes);
        prop_assert_eq!(turns(&found), bench.events_count);
        prop_assert_eq!(found.len() as u64, bench.events_count + 1, "{:?}", found);
        // The whole core is the same, byte for byte.
        let again = serde_json::to_string(replay.core().unwrap()).unwrap();
        prop_assert_eq!(again, serde_json::to_string(&bench.core).unwrap());
    }

    #[test]
    fn a_trace_that_ends_anywhere_is_replayed_up_to_there(cut in any::<prop::sample::Index>()) {
        let bench = busy();
        let (_, whole) = replay(&bench.bytes);
        let first = bench.bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        let cut = first + cut.index(bench.bytes.len() - first);
        let (_, found) = replay(&bench.bytes[..cut]);
        let torn = !bench.bytes[..cut].ends_with(b"\n");
        prop_assert_eq!(torn, found.iter().any(|f| matches!(f, Finding::Torn(_))));
        prop_assert!(turns(&found) <= turns(&whole));
        prop_assert!(!found.iter().any(|f| matches!(f, Finding::Diverged { .. })), "{:?}", found);
    }

    #[test]
    fn no_flipped_bit_is_read_as_something_else(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut bytes = busy().bytes;
        let first = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        let at = first + at.index(bytes.len() - first);
        bytes[at] ^= 1 << bit;
        let (_, found) = replay(&bytes);
        let noticed = |f: &Finding| matches!(f, Finding::Damaged(_) | Finding::Torn(_));
        prop_assert!(found.iter().any(noticed), "{:?}", found);
        prop_assert!(!found.iter().any(|f| matches!(f, Finding::Diverged { .. })), "{:?}", found);
    }
}

#[test]
fn a_core_that_decides_otherwise_is_noticed_at_the_event() {
    let mut bench = Bench::new();
    bench.give(local(3, 1, Lsn(1024)));
    bench.give(Event::Tick);
    // What another core might have decided on that tick.
    bench.encoder.actions(vec![Action::Unfollow], &mut bench.bytes);
    bench.give(Event::Tick);
    let (_, found) = replay(&bench.bytes);
    let diverged = found.iter().find_map(|finding| match finding {
        Finding::Diverged { turn: Some(turn), recorded, .. } => {
            Some((turn.number, recorded.clone()))
        }
        _ => None,
    });
    assert_eq!(diverged, Some((3, "[Unfollow]".to_owned())), "{found:?}");
    // Nothing is made up from there on.
    assert!(matches!(found.last(), Some(Finding::Skipped(1))), "{found:?}");
}

#[test]
fn a_snapshot_that_the_replayed_core_does_not_match_is_noticed() {
    let mut bench = Bench::new();
    let before = bench.core.clone();
    bench.give(local(3, 1, Lsn(1024)));
    bench.encoder.snapshot(&before, &mut bench.bytes);
    let (_, found) = replay(&bench.bytes);
    assert!(matches!(found.last(), Some(Finding::Diverged { turn: None, .. })), "{found:?}");
}

#[test]
fn behind_a_gap_it_goes_on_at_the_next_snapshot_and_counts_what_is_missing() {
    let mut bench = Bench::new();
    bench.give(Event::Tick);
    bench.encoder.gap(40, &mut bench.bytes);
    bench.give(Event::Tick);
    bench.encoder.snapshot(&bench.core.clone(), &mut bench.bytes);
    bench.give(Event::Tick);
    let (_, found) = replay(&bench.bytes);
    let words: Vec<String> = found
        .iter()
        .map(|finding| match finding {
            Finding::Begins { .. } => "begins".to_owned(),
            Finding::Turn(turn) => turn.number.to_string(),
            Finding::Gap(count) => format!("gap of {count}"),
            Finding::Skipped(count) => format!("skipped {count}"),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(words, ["begins", "1", "2", "gap of 40", "skipped 1", "44"]);
}

#[test]
fn what_is_missing_between_two_files_is_said_and_another_process_is_no_difference() {
    let mut bench = Bench::new();
    bench.give(Event::Tick);
    let mut bytes = bench.bytes.clone();
    let mut encoder = Encoder::default();
    encoder.begin(header(7, 5), &bench.core, &mut bytes);
    encoder.begin(header(0, 6), &Bench::new().core, &mut bytes);
    let (_, found) = replay(&bytes);
    let missing: Vec<u64> = found
        .iter()
        .filter_map(|finding| match finding {
            Finding::Begins { missing_count, .. } => Some(*missing_count),
            _ => None,
        })
        .collect();
    assert_eq!(missing, [0, 5, 0]);
    assert_eq!(found.len(), 5, "{found:?}");
}

#[test]
fn another_format_is_refused_with_the_program_that_reads_it() {
    let bench = Bench::new();
    let mut encoder = Encoder::default();
    let mut bytes = Vec::new();
    let newer = Header { format: FORMAT + 1, program: "9.9.9".to_owned(), ..header(0, 5) };
    encoder.begin(newer, &bench.core, &mut bytes);
    let error = Lines::new(&bytes).unwrap_err();
    assert!(matches!(error, FormatError::OtherFormat { found: 2, .. }), "{error}");
    assert!(error.to_string().contains("replay it with understudy 9.9.9"), "{error}");
    for bytes in [&b""[..], b"\n", b"hello world\n", b"00000000 {}\n"] {
        assert_eq!(Lines::new(bytes).unwrap_err(), FormatError::NoTrace);
    }
}

#[test]
fn a_record_that_this_program_does_not_know_is_refused_not_misread() {
    let mut bytes = Bench::new().bytes;
    let json = br#"{"Event":[1,{"Thunderstorm":null}]}"#;
    bytes.extend_from_slice(format!("{:08x} ", crc32c::crc32c(json)).as_bytes());
    bytes.extend_from_slice(json);
    bytes.push(b'\n');
    let mut lines = Lines::new(&bytes).unwrap();
    let error = std::iter::from_fn(|| match lines.next_line() {
        Ok(Some(_)) => Some(None),
        Ok(None) => None,
        Err(error) => Some(Some(error)),
    })
    .find_map(|error| error);
    assert!(matches!(error, Some(FormatError::OtherTypes { .. })), "{error:?}");
}

#[test]
fn a_state_that_follows_is_not_written_again() {
    let mut bench = Bench::new();
    bench.happen(2, 3, 1);
    let before = bench.bytes.len();
    let command = Command::SetMark { node: NodeId(1), mark: understudy_core::state::Mark::Dirty };
    bench.apply(&command);
    let line = &bench.bytes[before..];
    assert!(line.len() < 400, "{}", String::from_utf8_lossy(line));
    let (replay, _) = replay(&bench.bytes);
    assert_eq!(**replay.core().unwrap().state(), bench.state);
}
