//! Whose a data directory is: made by this node, taken over by `understudy adopt`, or somebody else's.
//!
//! A token lies in the data directory and in the node's own state; only where both are the same is the
//! directory the one that was meant. So another directory put in its place, a copy of another node's, or
//! a state directory that was lost make it foreign: then it may be followed, but never be rewound or
//! copied over. What follows from it is decided elsewhere.

use crate::error::Result;
use crate::os;
use crate::server::Server;

/// In the data directory, with the token alone.
const TOKEN: &str = "understudy.owner";
/// In the state directory, with the token and the word.
const RECORD: &str = "understudy.owner";
const OWN: &str = "own";
const ADOPTED: &str = "adopted";

/// Whose the data directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Nobody ever said here whose it is: from before this was recorded, or never this node's.
    Unrecorded,
    /// It is another one than the one that was recorded here.
    Foreign,
    /// A person gave it to this node. It may be followed or become the cluster's first primary, but is
    /// not rewound or copied over.
    Adopted,
    /// The node made it, or everything in it has come to be the cluster's.
    Own,
}

impl Server {
    /// Whose the data directory is.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn ownership(&self) -> Result<Ownership> {
        let Some(record) = os::read_if_present(&self.settings().state_dir.join(RECORD))? else {
            return Ok(Ownership::Unrecorded);
        };
        let record = String::from_utf8_lossy(&record).into_owned();
        let mut words = record.split_whitespace();
        let (token, word) = (words.next().unwrap_or_default(), words.next());
        let there = os::read_if_present(&self.data_dir().join(TOKEN))?;
        let same = there.is_some_and(|there| String::from_utf8_lossy(&there).trim() == token);
        Ok(match word {
            Some(OWN) if same => Ownership::Own,
            Some(ADOPTED) if same => Ownership::Adopted,
            Some(_) | None => Ownership::Foreign,
        })
    }

    /// The node made the data directory, or it has come to be its own. Idempotent; durable.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub fn set_own(&self) -> Result<()> {
        self.record_owner(OWN)
    }

    /// A person gave the data directory to this node. Durable.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub fn set_adopted(&self) -> Result<()> {
        self.record_owner(ADOPTED)
    }

    /// Nothing is recorded any more. Durable.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub fn disown(&self) -> Result<()> {
        os::remove_durably(&self.settings().state_dir.join(RECORD))?;
        os::remove_durably(&self.data_dir().join(TOKEN))?;
        Ok(())
    }

    fn record_owner(&self, word: &str) -> Result<()> {
        let now = self.ownership()?;
        if now == Ownership::Own && word == OWN {
            return Ok(());
        }
        let token = uuid::Uuid::new_v4().simple().to_string();
        self.make_state_dir()?;
        let user = &self.settings().os_user;
        // The data directory first: cut off in between it is foreign, which is the careful answer.
        os::write_durably(&self.data_dir().join(TOKEN), format!("{token}\n").as_bytes(), user)?;
        let record = format!("{token} {word}\n");
        os::write_durably(&self.settings().state_dir.join(RECORD), record.as_bytes(), user)
    }
}
