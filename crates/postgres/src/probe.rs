//! What the running server says of itself, asked over the Unix socket with deadlines.
//!
//! A server can be ill in two ways that look different: sessions that exist hang, or new ones are not
//! let in. So one session is held open for the regular question, and opening another is a question of
//! its own (`Probe::knock`).

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnection, PgRow};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use understudy_types::{Lsn, Timeline};

use crate::admin::get;
use crate::connection;
use crate::error::{Error, IoContext, Result};
use crate::process::{self, Running};
use crate::server::Server;
use crate::settings::{GateName, Settings};

/// One replication connection that bears the gate's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateRow {
    /// The walsender's process id.
    pub walsender_pid: u32,
    /// The name as that connection spells it; PostgreSQL ignores case.
    pub application_name: String,
    /// startup, catchup, streaming, backup, stopping.
    pub state: String,
    /// async, potential, sync, quorum.
    pub sync_state: String,
}

/// What the server says of itself at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// It replays; false means that it writes.
    pub in_recovery: bool,
    /// On a primary the timeline that it writes. On a standby the newest one that it has received,
    /// replayed to or checkpointed on; `None` while it knows of none.
    pub timeline: Option<Timeline>,
    /// Flushed locally; only on a primary.
    pub flush_lsn: Option<Lsn>,
    /// Received and flushed by streaming; only on a standby that has streamed since its start.
    pub receive_lsn: Option<Lsn>,
    /// Replayed; only on a standby.
    pub replay_lsn: Option<Lsn>,
    /// Replay was paused by somebody.
    pub replay_paused: bool,
    /// Time since the last replayed commit was made, by the server's wall clock.
    pub last_replay_age: Option<Duration>,
    /// `streaming`, …; `None` when there is no WAL receiver.
    pub wal_receiver_status: Option<String>,
    /// Connections with the gate's name: exactly one is right, with the pid of our own.
    pub gate_rows: Vec<GateRow>,
    /// The setting as it is in force.
    pub synchronous_standby_names: String,
    /// `server_version_num`, such as 150018.
    pub server_version: u32,
    /// When the postmaster started, in microseconds since 1970.
    pub postmaster_start_unix_us: i64,
    /// Committed and rolled-back transactions since the counters' reset.
    pub xact_commits: u64,
    /// See `xact_commits`.
    pub xact_rollbacks: u64,
    /// Queries cancelled because replay needed their locks or rows.
    pub conflicts: u64,
    /// Client sessions, the node's own included.
    pub session_count: u64,
    /// What `max_connections` allows.
    pub session_count_max: u64,
}

/// Functions that fail in the other role are each behind the test of the role; should a promotion end
/// between two of them, the statement fails and the next probe tells.
const QUESTION: &str = "\
SELECT r.in_recovery,
  CASE WHEN r.in_recovery
    THEN greatest((SELECT received_tli FROM pg_stat_wal_receiver),
                  (SELECT nullif(min_recovery_end_timeline, 0) FROM pg_control_recovery()),
                  (SELECT timeline_id FROM pg_control_checkpoint()))::text
    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int::text
  END AS timeline,
  CASE WHEN r.in_recovery THEN NULL ELSE pg_current_wal_flush_lsn()::text END AS flush_lsn,
  CASE WHEN r.in_recovery THEN pg_last_wal_receive_lsn()::text END AS receive_lsn,
  CASE WHEN r.in_recovery THEN pg_last_wal_replay_lsn()::text END AS replay_lsn,
  CASE WHEN r.in_recovery THEN pg_is_wal_replay_paused() ELSE false END AS replay_paused,
  extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 AS replay_age,
  (SELECT status FROM pg_stat_wal_receiver) AS wal_receiver_status,
  ARRAY(SELECT pid || ' ' || coalesce(state, '') || ' ' || coalesce(sync_state, '') || ' '
          || application_name
        FROM pg_stat_replication WHERE lower(application_name) = lower($1::text)) AS gate_rows,
  current_setting('synchronous_standby_names') AS names,
  current_setting('server_version_num')::int AS server_version,
  (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::int8 AS started_us,
  d.commits, d.rollbacks, d.conflicts, d.sessions,
  current_setting('max_connections')::int8 AS sessions_max
FROM (SELECT pg_is_in_recovery() AS in_recovery) r,
  (SELECT coalesce(sum(xact_commit), 0)::int8 AS commits,
          coalesce(sum(xact_rollback), 0)::int8 AS rollbacks,
          coalesce(sum(conflicts), 0)::int8 AS conflicts,
          coalesce(sum(numbackends), 0)::int8 AS sessions FROM pg_stat_database) d";

/// Asks over a given session.
pub(crate) async fn observe(
    session: &mut PgConnection,
    gate: &str,
    patience: Duration,
) -> Result<Observation> {
    let statement = sqlx::query(QUESTION).bind(gate).fetch_one(session);
    let row = connection::within("its state", patience, statement).await?;
    read(&row)
}

fn read(row: &PgRow) -> Result<Observation> {
    let lsn = |column| -> Result<Option<Lsn>> {
        let text: Option<String> = get(row, column)?;
        text.map(|text| text.parse()).transpose().map_err(|_| Error::Output {
            program: "postgres".to_owned(),
            reason: format!("{column} is no LSN"),
        })
    };
    let count = |column| -> Result<u64> {
        let value: i64 = get(row, column)?;
        Ok(u64::try_from(value).unwrap_or(0))
    };
    let timeline: Option<String> = get(row, "timeline")?;
    let replay_age: Option<f64> = get(row, "replay_age")?;
    let gate_rows: Vec<String> = get(row, "gate_rows")?;
    let server_version: i32 = get(row, "server_version")?;
    Ok(Observation {
        in_recovery: get(row, "in_recovery")?,
        timeline: timeline.and_then(|text| text.parse().ok()),
        flush_lsn: lsn("flush_lsn")?,
        receive_lsn: lsn("receive_lsn")?,
        replay_lsn: lsn("replay_lsn")?,
        replay_paused: get(row, "replay_paused")?,
        last_replay_age: replay_age.map(|age| Duration::from_secs_f64(age.max(0.0))),
        wal_receiver_status: get(row, "wal_receiver_status")?,
        gate_rows: gate_rows.iter().filter_map(|text| gate_row(text)).collect(),
        synchronous_standby_names: get(row, "names")?,
        server_version: u32::try_from(server_version).unwrap_or(0),
        postmaster_start_unix_us: get(row, "started_us")?,
        xact_commits: count("commits")?,
        xact_rollbacks: count("rollbacks")?,
        conflicts: count("conflicts")?,
        session_count: count("sessions")?,
        session_count_max: count("sessions_max")?,
    })
}

fn gate_row(text: &str) -> Option<GateRow> {
    let mut parts = text.splitn(4, ' ');
    Some(GateRow {
        walsender_pid: parts.next()?.parse().ok()?,
        state: parts.next()?.to_owned(),
        sync_state: parts.next()?.to_owned(),
        application_name: parts.next()?.to_owned(),
    })
}

/// Asks the running server, again and again, over a session that it holds open.
///
/// Not cancel-safe in one respect only: a question that is dropped half way costs the session, and the
/// next one opens another.
pub struct Probe {
    settings: Settings,
    gate: GateName,
    patience: Duration,
    session: Option<PgConnection>,
}

impl Probe {
    /// A probe that waits `patience` for each answer. Connects at the first question.
    pub fn new(server: &Server, gate: GateName, patience: Duration) -> Probe {
        Probe { settings: server.settings().clone(), gate, patience, session: None }
    }

    /// Asks over the session that is held, opening it if there is none. After a failure the session is
    /// given up.
    ///
    /// # Errors
    /// When no session can be had or the answer does not come in time.
    pub async fn probe(&mut self) -> Result<Observation> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => connection::open(&self.settings, self.patience).await?,
        };
        let seen = observe(&mut session, self.gate.as_str(), self.patience).await?;
        self.session = Some(session);
        Ok(seen)
    }

    /// Opens another session, as a client would, and closes it; tells how long it took.
    ///
    /// # Errors
    /// When it is not let in, or not in time.
    pub async fn knock(&self) -> Result<Duration> {
        let begun = Instant::now();
        let session = connection::open(&self.settings, self.patience).await?;
        let took = begun.elapsed();
        connection::close(session).await;
        Ok(took)
    }
}

impl Server {
    /// Asks whether the postmaster lets sessions in, by opening one. A refusal in the server's own
    /// words (too many clients, starting up) is an answer too; silence is none, nor is that the server
    /// cannot read its own files.
    ///
    /// # Errors
    /// When nothing is heard in time, nobody listens, or no session can come to anything.
    pub async fn knock(&self, patience: Duration) -> Result<()> {
        match connection::open(self.settings(), patience).await {
            Ok(session) => {
                connection::close(session).await;
                Ok(())
            }
            Err(Error::Connect { source, .. })
                if source.as_database_error().is_some_and(|said| {
                    !said.code().is_some_and(|code| nobody_can_be_served(&code))
                }) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until the postmaster ends, however it does. Returns at once when it has ended already.
    ///
    /// # Errors
    /// When the kernel gives no handle on it.
    pub async fn ended(&self, running: &Running) -> Result<()> {
        let proc = Path::new("/proc");
        let handle = process::end_of(running.pid, running.start_time_ticks)?;
        let Some(handle) = handle else { return Ok(()) };
        let handle = watched(handle).during("watch", proc)?;
        handle.readable().await.during("watch", proc)?.retain_ready();
        Ok(())
    }
}

/// SQLSTATEs with which a superuser's session over the local socket ends at once only if the server is
/// broken: system errors, internal ones and corruption, files that it may not open, a full disk
/// (`errcode_for_file_access` in PostgreSQL's elog.c).
fn nobody_can_be_served(sqlstate: &str) -> bool {
    let class = sqlstate.get(..2).unwrap_or_default();
    matches!(class, "58" | "XX" | "F0") || matches!(sqlstate, "42501" | "53100")
}

/// Has the runtime watch a descriptor for being readable.
#[allow(unsafe_code)]
fn watched(handle: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: what is asked for is that the descriptor stays the same and open for as long as the value
    // lives, and an OwnedFd is exactly that.
    let watched = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) };
    watched.map_err(|error| error.into_parts().1)
}

#[cfg(test)]
mod tests {
    use super::nobody_can_be_served;

    #[test]
    fn a_full_house_is_an_answer_and_unreadable_files_are_none() {
        // too_many_connections, cannot_connect_now, admin_shutdown, invalid_password, out_of_memory.
        for answer in ["53300", "57P03", "57P01", "28P01", "53200"] {
            assert!(!nobody_can_be_served(answer), "{answer}");
        }
        // insufficient_privilege for its own files, disk_full, io_error, undefined_file, data_corrupted.
        for broken in ["42501", "53100", "58030", "58P01", "XX001"] {
            assert!(nobody_can_be_served(broken), "{broken}");
        }
    }
}
