//! What the gate on this server cannot hold, as far as it can be seen from outside: settings by which
//! sessions go around it, data that is not in the WAL, settings that make fsync dishonest. Only looks.
//!
//! What one session sets for itself (`SET synchronous_commit = off`) no other can see.

use std::time::Duration;

use sqlx::postgres::PgConnection;

use crate::admin::get;
use crate::connection;
use crate::error::Result;
use crate::server::Server;
use crate::settings::ROLE_MANAGEMENT;

/// For one statement; PostgreSQL ends it after this too.
const PATIENCE: Duration = Duration::from_secs(3);
/// Each database has to be visited for its tables; no more than this many are.
const DATABASES_MAX: usize = 16;

/// The known limits, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Roles and databases with `synchronous_commit` of `off` or `local` as their default, as
    /// `role r`, `database d`, `role r in database d` or `every role` (ALTER ROLE ALL). Their commits
    /// are not gated.
    pub ungated_defaults: Vec<String>,
    /// Unlogged tables in the databases that were visited: neither gated nor replicated.
    pub unlogged_tables_count: u64,
    /// Databases that were not visited because there are too many, or nobody may connect.
    pub databases_unseen_count: u64,
    /// Prepared transactions that neither committed nor rolled back yet.
    pub prepared_count: u64,
    /// Age of the oldest of them.
    pub prepared_age_max: Option<Duration>,
    /// `fsync` is off: a crash may lose what was acknowledged.
    pub fsync_off: bool,
    /// `full_page_writes` is off: a crash may tear pages.
    pub full_page_writes_off: bool,
}

/// The words for "off" are those that PostgreSQL takes for a switch; it stores what was written.
const UNGATED: &str = "\
SELECT coalesce(string_agg(w, E'\\n' ORDER BY w), '') AS who FROM (
  SELECT coalesce(nullif(concat_ws(' in ', 'role ' || quote_ident(r.rolname),
      'database ' || quote_ident(d.datname)), ''), 'every role') AS w
  FROM pg_db_role_setting s
    LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase,
    unnest(s.setconfig) AS c
  WHERE lower(split_part(c, '=', 1)) = 'synchronous_commit'
    AND lower(split_part(c, '=', 2)) IN ('off', 'local', 'false', 'no', '0')
    AND coalesce(r.rolname, '') <> $1
  LIMIT 100) x";

const SERVER: &str = "\
SELECT (SELECT count(*) FROM pg_prepared_xacts) AS prepared,
  (SELECT extract(epoch FROM clock_timestamp() - min(prepared))::float8 FROM pg_prepared_xacts) AS age,
  current_setting('fsync') = 'off' AS fsync_off,
  current_setting('full_page_writes') = 'off' AS pages_off,
  ARRAY(SELECT datname::text FROM pg_database WHERE datallowconn ORDER BY datname) AS names,
  (SELECT count(*) FROM pg_database) AS databases";

impl Server {
    /// Looks for them. Opens a session to each of the first databases, one after the other.
    ///
    /// # Errors
    /// When the server does not answer in time; a single database that does not only counts as unseen.
    pub async fn limits(&self) -> Result<Limits> {
        let mut session = self.limited_session("postgres").await?;
        let statement = sqlx::query(UNGATED).bind(ROLE_MANAGEMENT).fetch_one(&mut session);
        let row = connection::within("defaults of roles", PATIENCE, statement).await?;
        let who: String = get(&row, "who")?;
        let statement = sqlx::query(SERVER).fetch_one(&mut session);
        let row = connection::within("known limits", PATIENCE, statement).await?;
        connection::close(session).await;
        let (prepared, databases): (i64, i64) = (get(&row, "prepared")?, get(&row, "databases")?);
        let age: Option<f64> = get(&row, "age")?;
        let names: Vec<String> = get(&row, "names")?;
        let mut limits = Limits {
            ungated_defaults: who.lines().map(str::to_owned).collect(),
            prepared_count: count(prepared),
            prepared_age_max: age.map(|age| Duration::from_secs_f64(age.max(0.0))),
            fsync_off: get(&row, "fsync_off")?,
            full_page_writes_off: get(&row, "pages_off")?,
            ..Limits::default()
        };
        let mut seen = 0;
        for name in names.iter().take(DATABASES_MAX) {
            match self.unlogged_tables(name).await {
                Ok(tables) => {
                    limits.unlogged_tables_count += tables;
                    seen += 1;
                }
                Err(error) => {
                    let error = connection::words(&error);
                    tracing::debug!(database = name, error, "unlogged tables not counted");
                }
            }
        }
        limits.databases_unseen_count = count(databases).saturating_sub(seen);
        Ok(limits)
    }

    async fn unlogged_tables(&self, database: &str) -> Result<u64> {
        let mut session = self.limited_session(database).await?;
        let statement = sqlx::query(
            "SELECT count(*) AS tables FROM pg_class \
             WHERE relpersistence = 'u' AND relkind IN ('r', 'm', 'p')",
        )
        .fetch_one(&mut session);
        let row = connection::within("unlogged tables", PATIENCE, statement).await?;
        connection::close(session).await;
        Ok(count(get(&row, "tables")?))
    }

    /// A session whose statements PostgreSQL itself ends in time.
    pub(crate) async fn limited_session(&self, database: &str) -> Result<PgConnection> {
        let settings = self.settings();
        let mut session = connection::open_in(settings, database, PATIENCE).await?;
        let statement = sqlx::query("SELECT set_config('statement_timeout', $1, false)")
            .bind(PATIENCE.as_millis().to_string())
            .execute(&mut session);
        connection::within("a statement timeout", PATIENCE, statement).await?;
        Ok(session)
    }
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
