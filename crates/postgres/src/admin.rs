//! Single statements that the node needs of its running server.

use std::time::{Duration, Instant};

use sqlx::Row;
use sqlx::postgres::PgConnection;
use understudy_types::Lsn;

use crate::access::HbaMode;
use crate::connection;
use crate::error::{Error, Result};
use crate::server::{POLL, Server};
use crate::settings::{ROLE_MANAGEMENT, ROLE_REPLICATION, ROLE_REWIND};

/// Between two looks whether a reload has come through; clients wait meanwhile.
const RELOAD_POLL: Duration = Duration::from_millis(5);
/// For statements that only look or set a flag.
const PATIENCE: Duration = Duration::from_secs(5);

/// A physical replication slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Somebody streams from it.
    pub active: bool,
    /// WAL from here on is kept; `None` while nothing is reserved.
    pub restart_lsn: Option<Lsn>,
    /// PostgreSQL's `wal_status`: reserved, extended, unreserved, lost.
    pub wal_status: String,
}

/// What keeps WAL at a primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalKept {
    /// Its flush position.
    pub flush_lsn: Lsn,
    /// The physical slots.
    pub slots: Vec<Slot>,
    /// The last segment that `archive_command` failed at, if none was archived since; PostgreSQL keeps
    /// everything from there on.
    pub archive_failing: Option<String>,
    /// A base backup is being taken.
    pub copying: bool,
}

impl Server {
    pub(crate) async fn session(&self) -> Result<PgConnection> {
        connection::open(self.settings(), PATIENCE).await
    }

    /// Writes a checkpoint (on a standby: a restartpoint) and waits for it. After a promotion it
    /// brings the new timeline into the control file, without which `pg_rewind` sees no divergence.
    ///
    /// # Errors
    /// When it does not complete within `patience`.
    pub async fn checkpoint(&self, patience: Duration) -> Result<()> {
        let mut session = self.session().await?;
        let statement = sqlx::query("CHECKPOINT").execute(&mut session);
        connection::within("a checkpoint", patience, statement).await?;
        connection::close(session).await;
        Ok(())
    }

    /// Ends every session that is not the node's own, logical subscribers included; tells how many.
    /// New ones are kept out by `write_hba(Closed)` before.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn terminate_clients(&self) -> Result<u64> {
        let mut session = self.session().await?;
        let statement = sqlx::query(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) AS ended \
             FROM pg_stat_activity \
             WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid() \
             AND coalesce(usename, '') <> ALL ($1)",
        )
        .bind(vec![ROLE_MANAGEMENT.to_owned(), ROLE_REPLICATION.to_owned(), ROLE_REWIND.to_owned()])
        .fetch_one(&mut session);
        let row = connection::within("the end of sessions", PATIENCE, statement).await?;
        let ended: i64 = get(&row, "ended")?;
        connection::close(session).await;
        Ok(u64::try_from(ended).unwrap_or(0))
    }

    /// Writes the hba block and waits until the running postmaster judges by it: every connection that
    /// is asked for after the return meets the new lines.
    ///
    /// # Errors
    /// When a line of the operator's in `pg_hba.conf` is wrong: PostgreSQL then keeps to the old file
    /// as a whole, ours included.
    pub async fn apply_hba(&self, mode: HbaMode, patience: Duration) -> Result<()> {
        let begun = Instant::now();
        let (before, _) = self.configuration_loaded_at().await?;
        self.write_hba(mode)?;
        let bad = loop {
            let (loaded, bad) = self.configuration_loaded_at().await?;
            if loaded != before {
                break bad;
            }
            if begun.elapsed() > patience {
                return Err(Error::Timeout { what: "the reload of pg_hba.conf", waited: patience });
            }
            tokio::time::sleep(RELOAD_POLL).await;
        };
        if bad.is_empty() {
            return Ok(());
        }
        Err(self.unusable(format!("pg_hba.conf is wrong, the former one stays in force: {bad}")))
    }

    /// When the postmaster last read its configuration, as text: a new session inherits it from there.
    /// And what is wrong with the lines of `pg_hba.conf` as they are now.
    pub(crate) async fn configuration_loaded_at(&self) -> Result<(String, String)> {
        let mut session = self.session().await?;
        let statement = sqlx::query(
            "SELECT pg_conf_load_time()::text AS loaded, (SELECT \
             coalesce(string_agg('line ' || line_number || ': ' || error, '; '), '') \
             FROM pg_hba_file_rules WHERE error IS NOT NULL) AS bad",
        )
        .fetch_one(&mut session);
        let row = connection::within("the time of its reload", PATIENCE, statement).await?;
        connection::close(session).await;
        Ok((get(&row, "loaded")?, get(&row, "bad")?))
    }

    /// Closes pg_hba and ends every client session until none is left; tells how many there were.
    ///
    /// # Errors
    /// As `apply_hba`, or when a session does not end in time.
    pub async fn shut_out_clients(&self, patience: Duration) -> Result<u64> {
        let begun = Instant::now();
        self.apply_hba(HbaMode::Closed, patience).await?;
        let mut ended = 0;
        loop {
            ended += self.terminate_clients().await?;
            if self.client_count().await? == 0 {
                return Ok(ended);
            }
            if begun.elapsed() > patience {
                return Err(Error::Timeout {
                    what: "the end of client sessions",
                    waited: patience,
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// How many client sessions there are beside the node's own.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn client_count(&self) -> Result<u64> {
        let mut session = self.session().await?;
        let statement = sqlx::query(
            "SELECT count(*) AS clients FROM pg_stat_activity \
             WHERE backend_type = 'client backend' AND coalesce(usename, '') <> ALL ($1)",
        )
        .bind(vec![ROLE_MANAGEMENT.to_owned(), ROLE_REWIND.to_owned()])
        .fetch_one(&mut session);
        let row = connection::within("sessions", PATIENCE, statement).await?;
        let clients: i64 = get(&row, "clients")?;
        connection::close(session).await;
        Ok(u64::try_from(clients).unwrap_or(0))
    }

    /// Lets a paused replay go on; true if it was paused. A server that is out of recovery is not.
    ///
    /// # Errors
    /// When the statement fails, also because recovery ended in the middle of it.
    pub async fn resume_replay(&self) -> Result<bool> {
        let mut session = self.session().await?;
        let statement = sqlx::query(
            "SELECT CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END \
             AS paused",
        )
        .fetch_one(&mut session);
        let row = connection::within("the state of replay", PATIENCE, statement).await?;
        let paused: bool = get(&row, "paused")?;
        if paused {
            let statement = sqlx::query("SELECT pg_wal_replay_resume()").execute(&mut session);
            connection::within("replay to go on", PATIENCE, statement).await?;
        }
        connection::close(session).await;
        Ok(paused)
    }

    /// Makes a physical slot that keeps WAL from now on. One that exists is left as it is.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn create_slot(&self, name: &str) -> Result<()> {
        let mut session = self.session().await?;
        let statement = sqlx::query(
            "SELECT pg_create_physical_replication_slot($1::text::name, true) \
             WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1::text)",
        )
        .bind(name)
        .execute(&mut session);
        connection::within("a replication slot", PATIENCE, statement).await?;
        connection::close(session).await;
        Ok(())
    }

    /// Removes a physical slot that nobody streams from; true if there was one.
    ///
    /// # Errors
    /// When the statement fails, or somebody streams from it.
    pub async fn drop_slot(&self, name: &str) -> Result<bool> {
        let mut session = self.session().await?;
        let statement = sqlx::query(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name = $1::text AND slot_type = 'physical'",
        )
        .bind(name)
        .fetch_all(&mut session);
        let rows = connection::within("the end of a slot", PATIENCE, statement).await?;
        connection::close(session).await;
        Ok(!rows.is_empty())
    }

    /// Moves an inactive physical slot forward to what its receiver has made durable. One that stands
    /// further already is left there.
    ///
    /// # Errors
    /// When there is no such slot, somebody streams from it, or the statement fails.
    pub async fn advance_slot(&self, name: &str, durable_lsn: Lsn) -> Result<()> {
        let mut session = self.session().await?;
        let statement = sqlx::query(
            "SELECT pg_replication_slot_advance(slot_name, $2::text::pg_lsn) \
             FROM pg_replication_slots \
             WHERE slot_name = $1::text AND slot_type = 'physical' \
             AND (restart_lsn IS NULL OR restart_lsn < $2::text::pg_lsn)",
        )
        .bind(name)
        .bind(durable_lsn.to_string())
        .execute(&mut session);
        connection::within("a slot to advance", PATIENCE, statement).await?;
        connection::close(session).await;
        Ok(())
    }

    /// The physical slots.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn slots(&self) -> Result<Vec<Slot>> {
        let mut session = self.session().await?;
        let slots = slots(&mut session).await?;
        connection::close(session).await;
        Ok(slots)
    }

    /// What keeps WAL here.
    ///
    /// # Errors
    /// When a statement fails, as on a server in recovery.
    pub async fn wal_kept(&self) -> Result<WalKept> {
        let mut session = self.session().await?;
        let statement = sqlx::query(
            "SELECT pg_current_wal_flush_lsn()::text AS flush, \
             (SELECT last_failed_wal FROM pg_stat_archiver \
              WHERE last_failed_time > coalesce(last_archived_time, '-infinity') \
              AND current_setting('archive_mode') <> 'off') AS failing, \
             EXISTS (SELECT FROM pg_stat_progress_basebackup) AS copying",
        )
        .fetch_one(&mut session);
        let row = connection::within("what keeps WAL", PATIENCE, statement).await?;
        let flush: String = get(&row, "flush")?;
        let slots = slots(&mut session).await?;
        connection::close(session).await;
        Ok(WalKept {
            flush_lsn: flush.parse().map_err(|_| self.unusable(format!("{flush:?} is no LSN")))?,
            slots,
            archive_failing: get(&row, "failing")?,
            copying: get(&row, "copying")?,
        })
    }
}

async fn slots(session: &mut PgConnection) -> Result<Vec<Slot>> {
    let statement = sqlx::query(
        "SELECT slot_name::text AS name, active, restart_lsn::text AS restart_lsn, \
             coalesce(wal_status, '') AS wal_status \
             FROM pg_replication_slots WHERE slot_type = 'physical' ORDER BY 1",
    )
    .fetch_all(session);
    let rows = connection::within("slots", PATIENCE, statement).await?;
    let slot = |row: &sqlx::postgres::PgRow| -> Result<Slot> {
        let restart_lsn: Option<String> = get(row, "restart_lsn")?;
        Ok(Slot {
            name: get(row, "name")?,
            active: get(row, "active")?,
            restart_lsn: restart_lsn.and_then(|lsn| lsn.parse().ok()),
            wal_status: get(row, "wal_status")?,
        })
    };
    rows.iter().map(slot).collect()
}

/// A column of a row of our own statements.
pub(crate) fn get<'r, T>(row: &'r sqlx::postgres::PgRow, column: &'static str) -> Result<T>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.try_get(column).map_err(|source| Error::Query { what: column, source: Box::new(source) })
}
