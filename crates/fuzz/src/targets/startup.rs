//! The first packet of a connection, and the commands that may follow.

use bytes::BytesMut;
use understudy_wal::protocol::{
    ParseCommandError, ProtocolError, ReplicationCommand, STARTUP_BYTES_MAX, StartupRequest,
    encode_startup, take_startup,
};

use super::{Target, about, as_it_is, pieces};
use crate::allocation::within;

pub(super) const TARGET: Target = Target {
    name: "startup",
    about: "startup packets, requests for encryption and cancellation",
    words: &[
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"\0\0\0\x08\x04\xd2\x16\x30",
        b"\0\x03\0\0",
        b"user\0",
        b"replication\0true\0",
        b"\0\0",
    ],
    polish: as_it_is,
    judge,
};

pub(super) const COMMANDS: Target = Target {
    name: "commands",
    about: "replication commands",
    words: &[
        b"START_REPLICATION ",
        b"SLOT ",
        b"PHYSICAL ",
        b"LOGICAL ",
        b"TIMELINE ",
        b"IDENTIFY_SYSTEM",
        b"TIMELINE_HISTORY ",
        b"SHOW ",
        b"READ_REPLICATION_SLOT ",
        b"0/0",
        b"FFFFFFFF/FFFFFFFF",
        b"\"",
        b"\"\"",
        b";",
        b" 4294967295",
    ],
    polish: as_it_is,
    judge: judge_command,
};

/// Memory for each byte: a parameter with an empty value is two texts in a list that doubles.
const MEMORY_TIMES: usize = 96;

fn judge(input: &[u8]) -> String {
    let (requests, end) = requests([input]);
    assert_eq!(
        (&requests, &end),
        (&self::requests(pieces(input)).0, &self::requests(pieces(input)).1)
    );
    let mut words = Vec::new();
    for request in &requests {
        let mut written = BytesMut::new();
        encode_startup(request, &mut written);
        assert!(written.len() <= STARTUP_BYTES_MAX as usize);
        let again = take_startup(&mut written);
        assert_eq!(again.as_ref(), Ok(&Some(request.clone())), "read, written and read again");
        words.push(match request {
            StartupRequest::Ssl => "ssl".to_owned(),
            StartupRequest::GssEncryption => "gss".to_owned(),
            StartupRequest::Cancel { secret, .. } => format!("cancel {}", about(secret.len())),
            StartupRequest::Startup(startup) => {
                let user = startup.parameters.iter().rfind(|(name, _)| name == "user");
                assert_eq!(startup.user(), user.map_or("", |(_, value)| value.as_str()));
                format!("startup {}", about(startup.parameters.len()))
            }
        });
    }
    words.truncate(3);
    let end = end.map(|error| match error {
        ProtocolError::Body { problem, .. } => problem,
        ProtocolError::Length { .. } => "length",
        ProtocolError::Tag { .. } => panic!("a startup packet has no type"),
    });
    format!("{} {end:?}", words.join(", "))
}

fn requests<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<StartupRequest>, Option<ProtocolError>) {
    let mut buffer = BytesMut::new();
    let mut requests = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            let given = buffer.len().min(STARTUP_BYTES_MAX as usize);
            match within(given, MEMORY_TIMES, || take_startup(&mut buffer)) {
                Ok(Some(request)) => requests.push(request),
                Ok(None) => break,
                Err(error) => return (requests, Some(error)),
            }
        }
    }
    (requests, None)
}

fn judge_command(input: &[u8]) -> String {
    let text = String::from_utf8_lossy(input);
    // A text takes four bytes for each of its words' letters at most, and a list of words doubles.
    let parsed = within(text.len(), MEMORY_TIMES, || ReplicationCommand::parse(&text));
    // A name may be anything, as long as it is quoted.
    let named = ReplicationCommand::Show(text.clone().into_owned());
    let spoken = written(&named).expect("this one is written");
    assert_eq!(ReplicationCommand::parse(&spoken), Ok(named), "{spoken:?}");
    match parsed {
        Ok(command) => {
            if let Some(written) = written(&command) {
                let again = ReplicationCommand::parse(&written);
                assert_eq!(again.as_ref(), Ok(&command), "{written:?}");
                let folded = ReplicationCommand::parse(&format!("  {written} ; "));
                assert_eq!(folded, Ok(command.clone()), "spaces and an end are nothing");
            }
            match command {
                ReplicationCommand::StartReplication { slot, timeline, .. } => {
                    format!("start {} {}", slot.is_some(), timeline.is_some())
                }
                ReplicationCommand::Unsupported(name) => name.to_owned(),
                ReplicationCommand::IdentifySystem => "identify".to_owned(),
                ReplicationCommand::TimelineHistory(_) => "history".to_owned(),
                ReplicationCommand::Show(name) => format!("show {}", about(name.len())),
                ReplicationCommand::ReadReplicationSlot(_) => "slot".to_owned(),
            }
        }
        Err(ParseCommandError::NotReplication) => "none".to_owned(),
        Err(error @ ParseCommandError::Syntax { .. }) => error.to_string(),
    }
}

/// As `libpqwalreceiver` writes it; `None` where only the kind of a command is kept.
fn written(command: &ReplicationCommand) -> Option<String> {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    Some(match command {
        ReplicationCommand::IdentifySystem => "IDENTIFY_SYSTEM".to_owned(),
        ReplicationCommand::TimelineHistory(timeline) => format!("TIMELINE_HISTORY {timeline}"),
        ReplicationCommand::Show(name) => format!("SHOW {}", quoted(name)),
        ReplicationCommand::ReadReplicationSlot(name) => {
            format!("READ_REPLICATION_SLOT {}", quoted(name))
        }
        ReplicationCommand::StartReplication { slot, start_lsn, timeline } => {
            let slot = slot.as_ref().map(|slot| format!("SLOT {} ", quoted(slot)));
            let timeline = timeline.map(|timeline| format!(" TIMELINE {timeline}"));
            let (slot, timeline) = (slot.unwrap_or_default(), timeline.unwrap_or_default());
            format!("START_REPLICATION {slot}PHYSICAL {start_lsn}{timeline}")
        }
        ReplicationCommand::Unsupported(_) => return None,
    })
}
