//! Those who write: the tenants' writers, and the prober that measures the write outage.
//!
//! A write is confirmed when PostgreSQL says that it is ready for the next one (the driver waits for
//! `ReadyForQuery`; the command's own completion comes before its commit in the extended protocol).
//! Whatever is not certain is noted as unknown, and is never sent again under the same identity.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};
use tokio::sync::watch;
use understudy_checks::{LedgerFull, Outcome, RowId, Tenant};

use crate::endpoint::{Locator, Writable};
use crate::pulse::Pulse;
use crate::recorder::Recorder;
use crate::{database_name, time_spent_seconds};

/// Connections that one writer keeps; the one that was used longest ago gives way.
const CONNECTIONS_MAX: usize = 10;
/// Rows of a tenant that a writer remembers for later changes.
const REMEMBERED_MAX: usize = 64;
/// One write in so many is a change of an earlier row.
const CHANGE_EVERY: u64 = 5;
/// Between two tries after a failure.
const PAUSE: Duration = Duration::from_millis(50);

const INSERT: &str = "\
    INSERT INTO worklog
        (client_worklog_id, account_id, client_issue_id, comment, started, time_spent_seconds)
    VALUES ($1, $2, $3, $4, now() - make_interval(secs => $5), $5)
    RETURNING pg_current_xact_id()::xid::text";
// Only forward: a change whose client has given up on it may still be carried out, after a later one.
const UPDATE: &str = "\
    UPDATE worklog SET time_spent_seconds = $2, updated = now()
    WHERE client_worklog_id = $1 AND time_spent_seconds < $2
    RETURNING pg_current_xact_id()::xid::text";

const COMMENTS: [&str; 8] = [
    "Reviewed the change and asked for a test",
    "Standup, then pairing on the import",
    "Call with the customer about invoices",
    "Reproduced the report from yesterday",
    "Wrote the migration and its way back",
    "Planning for the next two weeks",
    "Fixed rounding in the monthly export",
    "On call: looked into slow searches",
];

/// What all writers share.
pub(crate) struct Shared {
    pub(crate) recorder: Recorder,
    pub(crate) locator: Locator,
    pub(crate) pulse: Mutex<Pulse>,
    pub(crate) statement_timeout: Duration,
}

/// A connection, and how the ledger calls it.
struct Session {
    connection: PgConnection,
    identity: u64,
    writable: Writable,
    used: u64,
}

/// What a write came to.
struct Answer {
    outcome: Outcome,
    at: Duration,
    /// The connection cannot be used any more.
    broken: bool,
}

/// Writes a new entry (revision 0) or changes one.
async fn write(
    shared: &Shared,
    session: &mut Session,
    tenant: u32,
    row: RowId,
    revision: u32,
) -> Result<Answer, LedgerFull> {
    let id = i64::try_from(row.0).expect("rows are counted from one, far below 2^63");
    let spent = time_spent_seconds(revision);
    let noted = shared.recorder.begin(row, Tenant(tenant), revision, session.identity)?;
    let statement = if revision == 0 {
        let comment = COMMENTS[usize::try_from(row.0 % 8).expect("below eight")];
        let (account, issue) = (id % 97 + 1, id % 1009 + 10_000);
        sqlx::query(INSERT).bind(id).bind(account).bind(issue).bind(comment).bind(spent)
    } else {
        sqlx::query(UPDATE).bind(id).bind(spent)
    };
    // All rows, which ends with `ReadyForQuery`: the row comes before the commit.
    let statement = statement.fetch_all(&mut session.connection);
    let (outcome, transaction, broken) =
        match tokio::time::timeout(shared.statement_timeout, statement).await {
            Ok(answer) => judge(&answer),
            Err(_) => (Outcome::Unknown, None, true),
        };
    let at = shared.recorder.finish(noted, outcome, transaction);
    Ok(Answer { outcome, at, broken })
}

/// What the client may conclude, in which transaction it was done, and whether its connection is of no
/// more use.
fn judge(answer: &Result<Vec<PgRow>, sqlx::Error>) -> (Outcome, Option<u32>, bool) {
    match answer {
        Ok(rows) if rows.len() == 1 => {
            let number: Option<String> = rows[0].try_get(0).ok();
            (Outcome::Acknowledged, number.and_then(|number| number.parse().ok()), false)
        }
        Ok(_) => (Outcome::Failed, None, false),
        Err(sqlx::Error::Database(error)) => {
            let code = error.code().unwrap_or_default();
            (outcome_of(&code), None, true)
        }
        Err(_) => (Outcome::Unknown, None, true),
    }
}

/// Which SQLSTATE says for certain that a single statement was not committed. Everything that a
/// server may also say after its local commit (57: shutting down, 08, XX, 40003) is unknown.
fn outcome_of(sqlstate: &str) -> Outcome {
    let certain = ["22", "23", "25", "28", "3D", "3F", "40", "42", "53", "54", "55"];
    let class = sqlstate.get(..2).unwrap_or_default();
    if certain.contains(&class) && sqlstate != "40003" { Outcome::Failed } else { Outcome::Unknown }
}

/// A writer over some tenants, one write after the other.
pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) tenants: Vec<u32>,
    pub(crate) interval: Duration,
    pub(crate) stop: watch::Receiver<bool>,
    sessions: BTreeMap<u32, Session>,
    remembered: BTreeMap<u32, VecDeque<(RowId, u32)>>,
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        tenants: Vec<u32>,
        interval: Duration,
        stop: watch::Receiver<bool>,
    ) -> Writer {
        let (sessions, remembered) = (BTreeMap::new(), BTreeMap::new());
        Writer { shared, tenants, interval, stop, sessions, remembered }
    }

    /// Writes until told to stop, or until the ledger is full.
    pub(crate) async fn run(mut self) {
        let mut found = self.shared.locator.subscribe();
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for turn in 0u64.. {
            ticks.tick().await;
            let writable = tokio::select! {
                _ = self.stop.wait_for(|stop| *stop) => return,
                writable = found.wait_for(Option::is_some) => match writable {
                    Ok(writable) => writable.expect("it was waited for"),
                    Err(_) => return,
                },
            };
            let tenants_count = u64::try_from(self.tenants.len()).expect("few tenants");
            let index = usize::try_from(turn % tenants_count).expect("below the length");
            match self.turn(self.tenants[index], turn, writable).await {
                Ok(true) => {}
                Ok(false) => tokio::time::sleep(PAUSE).await,
                Err(full) => return tracing::warn!(error = %full, "writer stopped"),
            }
        }
    }

    /// One write for one tenant; false when it came to nothing.
    async fn turn(
        &mut self,
        tenant: u32,
        turn: u64,
        writable: Writable,
    ) -> Result<bool, LedgerFull> {
        if !self.open(tenant, turn, writable).await {
            return Ok(false);
        }
        let remembered = self.remembered.entry(tenant).or_default();
        let change =
            if turn % CHANGE_EVERY == CHANGE_EVERY - 1 { remembered.pop_front() } else { None };
        let (row, revision) = match change {
            Some((row, revision)) => (row, revision + 1),
            None => (self.shared.recorder.new_row(), 0),
        };
        let session = self.sessions.get_mut(&tenant).expect("it was opened above");
        let answer = write(&self.shared, session, tenant, row, revision).await?;
        if answer.broken {
            self.sessions.remove(&tenant);
        }
        if answer.outcome == Outcome::Acknowledged {
            remembered.push_back((row, revision));
            if remembered.len() > REMEMBERED_MAX {
                remembered.pop_front();
            }
        }
        Ok(answer.outcome == Outcome::Acknowledged)
    }

    /// Sees to it that there is a session with the tenant's database at the writable server.
    async fn open(&mut self, tenant: u32, turn: u64, writable: Writable) -> bool {
        // What leads to another server, or to an earlier life of this one, is of no more use.
        self.sessions.retain(|_, session| session.writable == writable);
        if let Some(session) = self.sessions.get_mut(&tenant) {
            session.used = turn;
            return true;
        }
        if self.sessions.len() >= CONNECTIONS_MAX {
            let oldest = self.sessions.iter().min_by_key(|(_, session)| session.used);
            let oldest = oldest.map(|(tenant, _)| *tenant).expect("there are several");
            self.sessions.remove(&oldest);
        }
        let opened = self.shared.locator.connect(writable.index, &database_name(tenant)).await;
        match opened {
            Ok(connection) => {
                let identity = self.shared.recorder.new_connection(writable.index);
                self.sessions
                    .insert(tenant, Session { connection, identity, writable, used: turn });
                true
            }
            Err(error) => {
                tracing::debug!(error = %error, "writer found no connection");
                false
            }
        }
    }
}

/// The prober: one commit after the other, wherever it is possible, and the search for where that is.
pub(crate) async fn probe(
    shared: Arc<Shared>,
    tenant: u32,
    interval: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let database = database_name(tenant);
    let mut session: Option<Session> = None;
    let mut tried_last = None;
    let mut serial = 0;
    while !*stop.borrow() {
        if session.is_none() {
            serial += 1;
            let found = shared.locator.search(&database, tried_last, serial).await;
            session = found.map(|(writable, connection)| {
                let identity = shared.recorder.new_connection(writable.index);
                Session { connection, identity, writable, used: 0 }
            });
        }
        if let Some(open) = &mut session {
            let row = shared.recorder.new_row();
            let answer = match write(&shared, open, tenant, row, 0).await {
                Ok(answer) => answer,
                Err(full) => return tracing::warn!(error = %full, "prober stopped"),
            };
            if answer.outcome == Outcome::Acknowledged {
                lock(&shared.pulse).acknowledged(answer.at);
            }
            if answer.broken {
                tried_last = Some(open.writable.index);
                session = None;
                shared.locator.lost();
            }
        }
        let _ = tokio::time::timeout(interval, stop.wait_for(|stop| *stop)).await;
    }
}

pub(crate) fn lock(pulse: &Mutex<Pulse>) -> std::sync::MutexGuard<'_, Pulse> {
    pulse.lock().expect("no holder of this lock panics: it only keeps moments")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_may_say_after_its_local_commit_is_unknown() {
        for code in
            ["57P01", "57P02", "57P03", "57014", "08006", "XX000", "40003", "58030", "", "5"]
        {
            assert_eq!(outcome_of(code), Outcome::Unknown, "{code}");
        }
        for code in ["25006", "23505", "42P01", "53300", "40001", "3D000", "28000"] {
            assert_eq!(outcome_of(code), Outcome::Failed, "{code}");
        }
    }

    #[test]
    fn a_revision_can_be_read_from_its_row() {
        for revision in [0, 1, 59, 10_000] {
            assert_eq!(crate::revision_of(time_spent_seconds(revision)), revision);
        }
        for odd in [0, 899, 901, -1, i32::MIN + 900] {
            assert_eq!(crate::revision_of(odd), u32::MAX, "{odd}");
        }
    }
}
