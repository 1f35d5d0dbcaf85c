//! Ends client sessions with consideration: idle ones at once, busy ones when their transaction is over.
//!
//! It does not close the door; `apply_hba` does, before. It never touches the node's own sessions.

use std::time::{Duration, Instant};

use crate::admin::get;
use crate::connection;
use crate::error::{Error, Result};
use crate::server::Server;
use crate::settings::{ROLE_MANAGEMENT, ROLE_REPLICATION, ROLE_REWIND};

/// Between two looks; a transaction that ends is noticed after this at the latest.
const POLL: Duration = Duration::from_millis(5);
/// For one statement, and for sessions that were told to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who was found when clients were shut out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainedClients {
    /// Sessions that were idle, or became so in time.
    pub idle_count: u64,
    /// Sessions that were ended in the middle of a transaction, when the grace was over.
    pub interrupted_count: u64,
}

impl Server {
    /// Ends every session that is not the node's own: outside of a transaction at once, inside of one
    /// when it is over or `grace` has passed. Returns once none is left.
    ///
    /// Sessions that replicate (logical subscribers, `pg_receivewal` of others) count as idle.
    ///
    /// # Errors
    /// When a session does not end although it was told to, or a statement fails.
    pub async fn drain_clients(&self, grace: Duration) -> Result<DrainedClients> {
        let begun = Instant::now();
        let own =
            vec![ROLE_MANAGEMENT.to_owned(), ROLE_REPLICATION.to_owned(), ROLE_REWIND.to_owned()];
        let mut session = connection::open(self.settings(), PATIENCE).await?;
        let mut drained = DrainedClients::default();
        loop {
            let all = begun.elapsed() >= grace;
            let statement = sqlx::query(
                "SELECT count(*) AS found, \
                 count(*) FILTER (WHERE ($2 OR idle) AND pg_terminate_backend(pid)) AS ended \
                 FROM (SELECT pid, state = 'idle' OR backend_type = 'walsender' AS idle \
                 FROM pg_stat_activity \
                 WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid() \
                 AND coalesce(usename, '') <> ALL ($1)) AS clients",
            )
            .bind(&own)
            .bind(all)
            .fetch_one(&mut session);
            let row = connection::within("the end of sessions", PATIENCE, statement).await?;
            let (found, ended): (i64, i64) = (get(&row, "found")?, get(&row, "ended")?);
            let ended = u64::try_from(ended).unwrap_or(0);
            if found == 0 {
                connection::close(session).await;
                return Ok(drained);
            }
            // A session that is slow to end is counted again; the numbers are for the log.
            let count = if all { &mut drained.interrupted_count } else { &mut drained.idle_count };
            *count += ended;
            if begun.elapsed() >= grace + PATIENCE {
                let waited = begun.elapsed();
                return Err(Error::Timeout { what: "the end of client sessions", waited });
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
