//! Runs the core on a trace and compares what it decides with what was recorded.
//!
//! It goes on only from what it knows: behind a gap, damage or a difference it waits for the next
//! snapshot. It judges nothing; what is worth showing is the caller's choice.

use serde_json::Value;
use understudy_core::node::{Action, Core, Event, Standing};
use understudy_types::BootInstant;

use crate::format::{Header, Line, PROGRAM, Record, follows};
use crate::words;

/// An action, for people.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Decision {
    /// What is to be done.
    pub what: String,
    /// Why, as far as the core's state and its verdict say.
    pub why: String,
    /// It belongs to the ordinary course of things: a renewal of the lease, the permit that follows it.
    pub routine: bool,
}

/// One event and all that came of it.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Counts the events of the process, from 1.
    pub number: u64,
    /// By the node's boot clock.
    pub at: BootInstant,
    /// By the wall clock of whoever recorded it, as it last said; microseconds since the Unix epoch.
    pub wall_unix_us: i64,
    /// What happened.
    pub event: String,
    /// What the core decided.
    pub decisions: Vec<Decision>,
    /// The node's state before and after, when it is another one.
    pub state: Option<(String, String)>,
    /// Whether a failover would happen, and why or why not, when the answer is another one.
    pub verdict: Option<String>,
}

/// What comes of a line.
#[derive(Clone, Debug)]
pub enum Finding {
    /// A file begins.
    Begins {
        /// Its header.
        header: Header,
        /// Events of the same process that are missing between the file before and this one.
        missing_count: u64,
        /// It was written by another version of the program: what differs may be the program's doing.
        other_program: bool,
    },
    /// An event was replayed, and the core decided what it had decided.
    Turn(Box<Turn>),
    /// The replayed core is not the recorded one any more.
    Diverged {
        /// The event at which it shows.
        turn: Option<Box<Turn>>,
        /// What was recorded.
        recorded: String,
        /// What this program's core makes of it.
        replayed: String,
    },
    /// Events were dropped here; replay goes on at the next snapshot.
    Gap(u64),
    /// A line in the middle is damaged; replay goes on at the next snapshot.
    Damaged(u64),
    /// The end was not written whole: the process ended.
    Torn(usize),
    /// Records that cannot be replayed because nothing before them can; so many.
    Skipped(u64),
}

/// How the node stands after the newest event.
#[derive(Clone, Debug)]
pub struct End {
    /// Its state, with its trouble.
    pub state: String,
    /// Whether a failover would happen, and why or why not.
    pub verdict: String,
    /// What it knows of the cluster, in a few lines.
    pub cluster: Vec<String>,
    /// The whole core.
    pub core: Value,
}

/// The core, and how far it has come.
#[derive(Debug, Default)]
pub struct Replay {
    header: Option<Header>,
    core: Option<Core>,
    /// The moment of the newest event.
    now: BootInstant,
    /// The wall clock as it was told last, and when.
    wall: (BootInstant, i64),
    /// The number of the newest event.
    number: u64,
    /// An event whose recorded actions have not come yet, and what the core decided on it.
    open: Option<(Box<Turn>, Vec<Action>)>,
    skipped_count: u64,
}

impl Replay {
    /// The core as it stands; `None` before the first snapshot, and behind a gap.
    pub fn core(&self) -> Option<&Core> {
        self.core.as_ref()
    }

    /// How many events its process has had, those that are missing included.
    pub fn events_count(&self) -> u64 {
        self.number
    }

    /// How the node stands now; `None` where [`Replay::core`] is.
    pub fn end(&self) -> Option<End> {
        let core = self.core.as_ref()?;
        Some(End {
            state: standing_words(&core.standing(self.now)),
            verdict: core.verdict(self.now).reason.to_string(),
            cluster: words::cluster(core.state()),
            core: written(core),
        })
    }

    /// The wall clock at a moment, as far as the recorded node knew it.
    pub fn wall_unix_us(&self, at: BootInstant) -> i64 {
        let (known, wall) = self.wall;
        let micros = |from: BootInstant, to: BootInstant| {
            i64::try_from(to.since(from).as_micros()).unwrap_or(i64::MAX)
        };
        wall.saturating_add(micros(known, at)).saturating_sub(micros(at, known))
    }

    /// Takes the next line, in order, of one file after the other.
    #[must_use]
    pub fn take(&mut self, line: Line) -> Vec<Finding> {
        let mut found = Vec::new();
        let record = match line {
            Line::Record(record) => *record,
            Line::Damaged(number) => {
                self.lose(&mut found);
                found.push(Finding::Damaged(number));
                return found;
            }
            Line::Torn(bytes) => {
                // What was decided on the last event may be what is missing.
                found.extend(self.open.take().map(|(turn, _)| Finding::Turn(turn)));
                found.push(Finding::Torn(bytes));
                return found;
            }
        };
        let decided = match record {
            Record::Actions(actions) => {
                self.compare(actions, &mut found);
                return found;
            }
            Record::Gap(missing_count) => {
                self.lose(&mut found);
                self.number += missing_count;
                found.push(Finding::Gap(missing_count));
                return found;
            }
            Record::Header(header) if !self.is_continued_by(&header) => {
                // What was decided on the last event of the other process may never have been written.
                self.lose(&mut found);
                Record::Header(header)
            }
            other => other,
        };
        self.compare(Vec::new(), &mut found);
        match decided {
            Record::Header(header) => self.begin(header, &mut found),
            Record::Snapshot(core) => self.adopt(*core, &mut found),
            Record::Event(at, event) => self.turn(at, event, &mut found),
            Record::Applied(at, command, outcome) => {
                let before = self.core.as_ref().map(|core| core.state().clone());
                let made = before.as_deref().map(|before| follows(before, &command, &outcome));
                match made {
                    Some(Some(state)) => {
                        let applied = Some((command, outcome));
                        self.turn(at, Event::State { state: state.into(), applied }, &mut found);
                    }
                    Some(None) => {
                        let replayed = "another outcome of `apply`".to_owned();
                        let recorded = format!("{} applied: {outcome:?}", command.kind());
                        self.number += 1;
                        self.core = None;
                        found.push(Finding::Diverged { turn: None, recorded, replayed });
                    }
                    None => {
                        self.number += 1;
                        self.skip();
                    }
                }
            }
            Record::Actions(_) | Record::Gap(_) => unreachable!("taken above"),
        }
        found
    }

    /// The last line was taken.
    #[must_use]
    pub fn finish(&mut self) -> Vec<Finding> {
        let mut found = Vec::new();
        match self.open.take() {
            // The process ended between the two, or the actions are in the next file.
            Some((turn, _)) => found.push(Finding::Turn(turn)),
            None => self.tell_skipped(&mut found),
        }
        found
    }

    fn is_same_process(&self, header: &Header) -> bool {
        self.header
            .as_ref()
            .is_some_and(|before| before.process == header.process && before.node == header.node)
    }

    fn is_continued_by(&self, header: &Header) -> bool {
        self.is_same_process(header) && header.events_before == self.number
    }

    fn begin(&mut self, header: Header, found: &mut Vec<Finding>) {
        let missing_count = match self.is_same_process(&header) {
            true => header.events_before.saturating_sub(self.number),
            false => 0,
        };
        self.number = header.events_before;
        self.now = header.at;
        self.wall = (header.at, header.wall_unix_us);
        let other_program = header.program != PROGRAM;
        self.header = Some(header.clone());
        self.tell_skipped(found);
        found.push(Finding::Begins { header, missing_count, other_program });
    }

    /// Goes on from the recorded core; the replayed one, if there is one, has to be the same.
    fn adopt(&mut self, core: Core, found: &mut Vec<Finding>) {
        self.tell_skipped(found);
        if let Some(replayed) = self.core.as_ref().map(written)
            && let Some((recorded, replayed)) = difference("core", &written(&core), &replayed)
        {
            found.push(Finding::Diverged { turn: None, recorded, replayed });
        }
        self.core = Some(core);
    }

    fn turn(&mut self, at: BootInstant, event: Event, found: &mut Vec<Finding>) {
        self.number += 1;
        let Some(core) = &mut self.core else {
            self.skip();
            return;
        };
        self.now = at;
        if let Event::Local { wall_unix_us, .. } = &event {
            self.wall = (at, *wall_unix_us);
        }
        let before = (core.standing(at), core.verdict(at));
        let said = words::event(core, &event);
        core.handle_event(at, event);
        let mut actions = Vec::new();
        while let Some(action) = core.poll_action() {
            actions.push(action);
        }
        let after = (core.standing(at), core.verdict(at));
        let decisions = actions.iter().map(|action| words::decision(core, at, &before.0, action));
        let turn = Turn {
            number: self.number,
            at,
            wall_unix_us: 0,
            event: said,
            decisions: decisions.collect(),
            state: changed(&before.0, &after.0),
            verdict: (before.1 != after.1).then(|| after.1.reason.to_string()),
        };
        let turn = Turn { wall_unix_us: self.wall_unix_us(at), ..turn };
        self.tell_skipped(found);
        self.open = Some((Box::new(turn), actions));
    }

    /// Closes the open event with what was recorded for it.
    fn compare(&mut self, recorded: Vec<Action>, found: &mut Vec<Finding>) {
        let Some((turn, replayed)) = self.open.take() else {
            if !recorded.is_empty() {
                self.skip();
            }
            return;
        };
        if recorded == replayed {
            found.push(Finding::Turn(turn));
            return;
        }
        self.core = None;
        let (recorded, replayed) = (format!("{recorded:?}"), format!("{replayed:?}"));
        found.push(Finding::Diverged { turn: Some(turn), recorded, replayed });
    }

    /// What follows cannot be replayed until the next snapshot.
    fn lose(&mut self, found: &mut Vec<Finding>) {
        found.extend(self.open.take().map(|(turn, _)| Finding::Turn(turn)));
        self.core = None;
    }

    fn skip(&mut self) {
        self.skipped_count += 1;
    }

    fn tell_skipped(&mut self, found: &mut Vec<Finding>) {
        let count = std::mem::take(&mut self.skipped_count);
        if count > 0 {
            found.push(Finding::Skipped(count));
        }
    }
}

fn changed(before: &Standing, after: &Standing) -> Option<(String, String)> {
    let (before, after) = (standing_words(before), standing_words(after));
    (before != after).then_some((before, after))
}

fn standing_words(standing: &Standing) -> String {
    match &standing.trouble {
        Some(trouble) => format!("{} ({trouble})", standing.word),
        None => standing.word.to_owned(),
    }
}

fn written(core: &Core) -> Value {
    serde_json::to_value(core).expect("a core that was read can be written")
}

/// The first place in which two values differ, as each has it.
fn difference(at: &str, recorded: &Value, replayed: &Value) -> Option<(String, String)> {
    match (recorded, replayed) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            a.iter().find_map(|(key, value)| difference(&format!("{at}.{key}"), value, &b[key]))
        }
        (a, b) if a == b => None,
        (a, b) => Some((format!("{at} = {a}"), format!("{at} = {b}"))),
    }
}
