//! The replication commands, read as PostgreSQL's `repl_gram.y` reads them; executes nothing.

use understudy_types::{Lsn, Timeline};

/// A replication command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicationCommand {
    /// `IDENTIFY_SYSTEM`
    IdentifySystem,
    /// `TIMELINE_HISTORY n`
    TimelineHistory(Timeline),
    /// `SHOW name`
    Show(String),
    /// `START_REPLICATION [SLOT name] [PHYSICAL] X/X [TIMELINE n]`
    StartReplication {
        /// The slot it wants to use.
        slot: Option<String>,
        /// Where it wants to begin.
        start_lsn: Lsn,
        /// On which timeline; the server's latest if none.
        timeline: Option<Timeline>,
    },
    /// `READ_REPLICATION_SLOT name`
    ReadReplicationSlot(String),
    /// Commands that are recognised by their first word (or `… LOGICAL …`) and never served here.
    Unsupported(&'static str),
}

/// The text is not a replication command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseCommandError {
    /// It begins with no word of the replication grammar: plain SQL, or nothing.
    #[error("parse command: not a replication command")]
    NotReplication,
    /// It begins like one, and then does not go on like one.
    #[error("parse {command}: expected {expected}")]
    Syntax {
        /// Which command.
        command: &'static str,
        /// What should stand there.
        expected: &'static str,
    },
}

const UNSUPPORTED: [&str; 5] = [
    "CREATE_REPLICATION_SLOT",
    "DROP_REPLICATION_SLOT",
    "ALTER_REPLICATION_SLOT",
    "BASE_BACKUP",
    "UPLOAD_MANIFEST",
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// A bare word, kept as written.
    Word(String),
    /// A double-quoted identifier.
    Quoted(String),
}

impl Token {
    fn is(&self, keyword: &str) -> bool {
        matches!(self, Token::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    /// An identifier: a bare word is folded to lower case, a quoted one is kept.
    fn identifier(self) -> String {
        match self {
            Token::Word(word) => word.to_ascii_lowercase(),
            Token::Quoted(text) => text,
        }
    }
}

/// Splits at white space; `None` if a quoted identifier does not end.
fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut chars = text.trim().trim_end_matches(';').chars().peekable();
    while let Some(&next) = chars.peek() {
        if next.is_ascii_whitespace() {
            chars.next();
        } else if next == '"' {
            chars.next();
            let mut quoted = String::new();
            loop {
                match chars.next()? {
                    '"' if chars.peek() == Some(&'"') => {
                        chars.next();
                        quoted.push('"');
                    }
                    '"' => break,
                    other => quoted.push(other),
                }
            }
            tokens.push(Token::Quoted(quoted));
        } else {
            let mut word = String::new();
            while let Some(&next) = chars.peek() {
                if next.is_ascii_whitespace() || next == '"' {
                    break;
                }
                word.push(next);
                chars.next();
            }
            tokens.push(Token::Word(word));
        }
    }
    Some(tokens)
}

impl ReplicationCommand {
    /// Reads a command; keywords in any case, a trailing semicolon allowed.
    ///
    /// # Errors
    /// When it is not one.
    pub fn parse(text: &str) -> Result<ReplicationCommand, ParseCommandError> {
        let tokens = tokens(text).ok_or(ParseCommandError::NotReplication)?;
        let mut rest = tokens.into_iter().peekable();
        let first = rest.next().ok_or(ParseCommandError::NotReplication)?;
        if let Some(name) = UNSUPPORTED.into_iter().find(|name| first.is(name)) {
            return Ok(ReplicationCommand::Unsupported(name));
        }
        let syntax = |command, expected| ParseCommandError::Syntax { command, expected };
        let command = if first.is("IDENTIFY_SYSTEM") {
            ReplicationCommand::IdentifySystem
        } else if first.is("TIMELINE_HISTORY") {
            let timeline = rest.next().and_then(timeline);
            let error = || syntax("TIMELINE_HISTORY", "a timeline number from 1");
            ReplicationCommand::TimelineHistory(timeline.ok_or_else(error)?)
        } else if first.is("SHOW") {
            let name = rest.next().ok_or_else(|| syntax("SHOW", "the name of a setting"))?;
            ReplicationCommand::Show(name.identifier())
        } else if first.is("READ_REPLICATION_SLOT") {
            let error = || syntax("READ_REPLICATION_SLOT", "the name of a slot");
            ReplicationCommand::ReadReplicationSlot(rest.next().ok_or_else(error)?.identifier())
        } else if first.is("START_REPLICATION") {
            let start = || syntax("START_REPLICATION", "[SLOT name] [PHYSICAL] X/X [TIMELINE n]");
            let mut slot = None;
            if rest.next_if(|token| token.is("SLOT")).is_some() {
                slot = Some(rest.next().ok_or_else(start)?.identifier());
            }
            if rest.peek().is_some_and(|token| token.is("LOGICAL")) {
                return Ok(ReplicationCommand::Unsupported("START_REPLICATION LOGICAL"));
            }
            let _physical = rest.next_if(|token| token.is("PHYSICAL"));
            let start_lsn = match rest.next() {
                Some(Token::Word(word)) => word.parse().map_err(|_| start())?,
                _ => return Err(start()),
            };
            let mut on = None;
            if rest.next_if(|token| token.is("TIMELINE")).is_some() {
                on = Some(rest.next().and_then(timeline).ok_or_else(start)?);
            }
            ReplicationCommand::StartReplication { slot, start_lsn, timeline: on }
        } else {
            return Err(ParseCommandError::NotReplication);
        };
        match rest.next() {
            None => Ok(command),
            Some(_) => Err(syntax("replication command", "its end")),
        }
    }
}

fn timeline(token: Token) -> Option<Timeline> {
    match token {
        Token::Word(word) => word.parse().ok(),
        Token::Quoted(_) => None,
    }
}
