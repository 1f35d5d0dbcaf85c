//! Names of databases, asked at a source as the tools that copy from it ask.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::admin::get;
use crate::connection;
use crate::copy::CopySource;
use crate::error::Result;
use crate::settings::ROLE_REWIND;

/// How long the source may take for each step.
const PATIENCE: Duration = Duration::from_secs(5);

/// The names of the source's databases by oid, at most 100000.
///
/// # Errors
/// When the source cannot be reached or does not answer.
pub async fn source_databases(source: &CopySource) -> Result<BTreeMap<u32, String>> {
    let mut session =
        connection::open_as(&source.socket_dir, source.port, ROLE_REWIND, PATIENCE).await?;
    let question =
        sqlx::query("SELECT oid::int8 AS oid, datname::text AS name FROM pg_database LIMIT 100000");
    let rows =
        connection::within("its databases", PATIENCE, question.fetch_all(&mut session)).await?;
    connection::close(session).await;
    let mut names = BTreeMap::new();
    for row in rows {
        let oid: i64 = get(&row, "oid")?;
        if let Ok(oid) = u32::try_from(oid) {
            names.insert(oid, get(&row, "name")?);
        }
    }
    Ok(names)
}
