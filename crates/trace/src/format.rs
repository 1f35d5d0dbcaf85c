//! The form of a trace: one record a line, each behind its own checksum.
//!
//! `<crc32c of the rest, eight hex digits> <JSON>\n`. A file begins with a header and a snapshot of the
//! whole core, so that it can be replayed by itself. JSON, because it names its fields: a trace of a
//! program whose types were others is refused at the field that is missing, never misread, and it can be
//! looked at without this program. A state that follows from the one before and the applied command is
//! not written: `apply` makes it again, on both sides.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use understudy_core::node::{Action, Core, Event};
use understudy_core::{ClusterState, Command, Outcome};
use understudy_types::{BootInstant, NodeId, ProcessStart};

/// Grows whenever the records' form changes so that an older program would misunderstand them.
pub const FORMAT: u32 = 1;

/// This program's version, as it stands in every header.
pub const PROGRAM: &str = env!("CARGO_PKG_VERSION");

/// A line that is longer than this is damage, not a record.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What a file begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// `FORMAT` of whoever wrote it.
    pub format: u32,
    /// Its program's version.
    pub program: String,
    /// Whose core.
    pub node: NodeId,
    /// Its name, for people; in a simulated trace the seed.
    pub name: String,
    /// Which start of its process.
    pub process: ProcessStart,
    /// How many events of this process were before this file, those that were dropped included.
    pub events_before: u64,
    /// The moment of writing.
    pub at: BootInstant,
    /// The same moment by the wall clock, microseconds since the Unix epoch.
    pub wall_unix_us: i64,
}

/// One line of a trace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Record {
    /// Who wrote this.
    Header(Header),
    /// The whole core, between two events.
    Snapshot(Box<Core>),
    /// An event comes through the door.
    Event(BootInstant, Event),
    /// The same for a state that follows from the one before it by this command.
    Applied(BootInstant, Command, Outcome),
    /// What the core decided on the event before; absent when it was nothing.
    Actions(Vec<Action>),
    /// This many events are missing here, because the writer could not keep up.
    Gap(u64),
}

/// A file that is no trace of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It does not begin as a trace does.
    #[error("the file does not begin with the header of a trace: give a file of <data_dir>/trace")]
    NoTrace,
    /// Its form is another one.
    #[error(
        "the trace has format {found}, written by understudy {program}; this is understudy {PROGRAM}, \
         which reads format {FORMAT}: replay it with understudy {program}"
    )]
    OtherFormat {
        /// Its format.
        found: u64,
        /// Which program wrote it.
        program: String,
    },
    /// The checksum holds, and this program does not know the record.
    #[error(
        "line {line} is whole, but understudy {PROGRAM} does not know it ({why}): the core's types have \
         changed; replay it with the program that wrote it (its first line says which)"
    )]
    OtherTypes {
        /// Which line, from 1.
        line: u64,
        /// What was missing or unknown.
        why: String,
    },
}

/// Turns what happens at the door into lines. Keeps the state that the next one may follow from.
#[derive(Debug, Default)]
pub struct Encoder {
    state: Option<Arc<ClusterState>>,
}

impl Encoder {
    /// Appends the first two lines of a file.
    pub fn begin(&mut self, header: Header, core: &Core, out: &mut Vec<u8>) {
        line(&Record::Header(header), out);
        self.snapshot(core, out);
    }

    /// Appends the whole core; what comes next can be replayed from here.
    pub fn snapshot(&mut self, core: &Core, out: &mut Vec<u8>) {
        self.state = Some(core.state().clone());
        line(&Record::Snapshot(Box::new(core.clone())), out);
    }

    /// Appends an event.
    pub fn event(&mut self, at: BootInstant, event: Event, out: &mut Vec<u8>) {
        let Event::State { state, applied } = event else {
            line(&Record::Event(at, event), out);
            return;
        };
        let before = self.state.replace(state.clone());
        let record = match (before, applied) {
            (Some(before), Some((command, outcome)))
                if follows(&before, &command, &outcome).is_some_and(|made| made == *state) =>
            {
                Record::Applied(at, command, outcome)
            }
            (_, applied) => Record::Event(at, Event::State { state, applied }),
        };
        line(&record, out);
    }

    /// Appends what was decided on the last event; nothing when that was nothing.
    pub fn actions(&mut self, actions: Vec<Action>, out: &mut Vec<u8>) {
        if !actions.is_empty() {
            line(&Record::Actions(actions), out);
        }
    }

    /// Says that events are missing. A snapshot has to follow.
    pub fn gap(&mut self, missing_count: u64, out: &mut Vec<u8>) {
        line(&Record::Gap(missing_count), out);
    }
}

/// The state that `apply` makes of `before`, if the outcome is the recorded one. The index is only known
/// for commands that begin an operation, and only they need it.
pub(crate) fn follows(
    before: &ClusterState,
    command: &Command,
    outcome: &Outcome,
) -> Option<ClusterState> {
    let index = match outcome {
        Outcome::Accepted { operation } => operation.unwrap_or_default(),
        Outcome::Rejected(_) => 0,
    };
    let mut made = before.clone();
    let again = made.apply(index, command);
    (again == *outcome).then_some(made)
}

fn line(record: &Record, out: &mut Vec<u8>) {
    let json = serde_json::to_vec(record).expect("records have no keys that JSON cannot have");
    out.extend_from_slice(format!("{:08x} ", crc32c::crc32c(&json)).as_bytes());
    out.extend_from_slice(&json);
    out.push(b'\n');
}

/// What one line of a file holds.
#[derive(Debug)]
pub enum Line {
    /// A record.
    Record(Box<Record>),
    /// Bytes in the middle whose checksum does not hold; the line's number, from 1.
    Damaged(u64),
    /// The last record was not written whole: its writer ended. So many bytes.
    Torn(usize),
}

/// Reads the lines of one file.
#[derive(Debug)]
pub struct Lines<'a> {
    rest: &'a [u8],
    number: u64,
}

impl<'a> Lines<'a> {
    /// Checks that `bytes`, a whole file, begin as a trace of this format.
    ///
    /// # Errors
    /// When they do not.
    pub fn new(bytes: &'a [u8]) -> Result<Lines<'a>, FormatError> {
        let first = bytes.split(|byte| *byte == b'\n').next().and_then(checked);
        let first = first.ok_or(FormatError::NoTrace)?;
        let value: serde_json::Value =
            serde_json::from_slice(first).map_err(|_| FormatError::NoTrace)?;
        let header = value.get("Header").ok_or(FormatError::NoTrace)?;
        let format = header.get("format").and_then(serde_json::Value::as_u64);
        let found = format.ok_or(FormatError::NoTrace)?;
        if found != u64::from(FORMAT) {
            let program = header.get("program").and_then(serde_json::Value::as_str);
            let program = program.unwrap_or("of an unknown version").to_owned();
            return Err(FormatError::OtherFormat { found, program });
        }
        Ok(Lines { rest: bytes, number: 0 })
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// When a record is whole and not known.
    pub fn next_line(&mut self) -> Result<Option<Line>, FormatError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        let end = self.rest.iter().position(|byte| *byte == b'\n');
        let Some(end) = end else {
            let torn = self.rest.len();
            self.rest = &[];
            return Ok(Some(Line::Torn(torn)));
        };
        let (bytes, rest) = (&self.rest[..end], &self.rest[end + 1..]);
        self.rest = rest;
        let Some(json) = checked(bytes) else {
            let last = rest.is_empty();
            let line = if last { Line::Torn(bytes.len()) } else { Line::Damaged(self.number) };
            return Ok(Some(line));
        };
        let record = serde_json::from_slice(json)
            .map_err(|why| FormatError::OtherTypes { line: self.number, why: why.to_string() })?;
        Ok(Some(Line::Record(Box::new(record))))
    }
}

/// The JSON of a line whose checksum holds.
fn checked(line: &[u8]) -> Option<&[u8]> {
    if line.len() > LINE_BYTES_MAX || line.get(8) != Some(&b' ') {
        return None;
    }
    let json = &line[9..];
    // As written, not as a number: that would be read from other bytes as well.
    (format!("{:08x}", crc32c::crc32c(json)).as_bytes() == &line[..8]).then_some(json)
}
