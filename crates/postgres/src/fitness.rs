//! What a failover onto this server, or away from it, would rest on, beside what the gate and the journal
//! know: settings, libraries, extensions, collations, slots, who is let in. Only looks, on its own
//! sessions, with deadlines; whether something is wrong is judged by who can compare the servers.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use crate::access;
use crate::admin::get;
use crate::connection;
use crate::error::Result;
use crate::os;
use crate::server::Server;

/// For one statement; PostgreSQL ends it after this too.
const PATIENCE: Duration = Duration::from_secs(3);
/// Each database has to be visited for its libraries; no more than this many are in one look.
const DATABASES_MAX: usize = 32;
/// From here on a database has a collation version of its own (PostgreSQL 15).
const DATABASE_COLLATIONS: u32 = 150_000;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerFitness {
    /// `server_version_num`, such as 150018.
    pub server_version_num: u32,
    /// It replays.
    pub in_recovery: bool,
    /// What is in force for the server, with units; a digest of what could hold a secret.
    pub settings: BTreeMap<String, String>,
    /// Parameters whose new value waits for a restart.
    pub pending_restart: Vec<String>,
    /// What the node's file sets and ALTER SYSTEM sets too, so that the file does not count; as
    /// `name (value)`.
    pub overridden: Vec<String>,
    /// Libraries that functions in the databases need and that are not installed.
    pub missing_libraries: Vec<String>,
    /// Extensions in the databases whose files are not installed, as `name version`.
    pub missing_extensions: Vec<String>,
    /// Databases and collations that were made with another version of the system's collations, a sentence
    /// each.
    pub changed_collations: Vec<String>,
    /// Databases that cannot be connected to, with the reason.
    pub refused_databases: Vec<String>,
    /// Databases that were not visited because there are too many.
    pub unseen_databases_count: u64,
    /// Logical slots, as `name of database`.
    pub logical_slots: Vec<String>,
    /// The operator's own lines of `pg_hba.conf` up to the method, each with a digest of what follows.
    pub hba_lines: Vec<(String, String)>,
    /// Lines that PostgreSQL cannot read, with the reason.
    pub hba_errors: Vec<String>,
    /// The last segment that `archive_command` failed at, if none was archived since.
    pub archive_failing: Option<String>,
}

/// Commands and connection strings can hold passwords, so only a digest of them leaves the server. What the
/// node gives on the command line counts whatever the files say, but PostgreSQL calls every difference to
/// them a pending restart; that is none.
const SETTINGS: &str = "\
SELECT name,
  CASE WHEN (name LIKE '%\\_command' OR name LIKE '%conninfo') AND setting <> '' THEN 'digest ' || md5(setting)
       ELSE setting || coalesce(' ' || unit, '') END AS value,
  pending_restart AND source <> 'command line' AS pending_restart
FROM pg_settings
WHERE source NOT IN ('client', 'session') AND name NOT LIKE '%.%' ORDER BY name";

const OVERRIDDEN: &str = "\
SELECT DISTINCT s.name || ' (' || current_setting(s.name) || ')' AS words
FROM pg_file_settings f JOIN pg_settings s USING (name)
WHERE f.sourcefile LIKE '%/understudy.conf' AND s.sourcefile LIKE '%/postgresql.auto.conf'
ORDER BY words";

const ONCE: &str = "\
SELECT pg_is_in_recovery() AS in_recovery, current_setting('server_version_num')::int AS version,
  ARRAY(SELECT datname::text FROM pg_database WHERE datallowconn ORDER BY oid) AS names,
  (SELECT count(*) FROM pg_database WHERE datallowconn) AS databases,
  ARRAY(SELECT slot_name || ' of ' || coalesce(database, '?') FROM pg_replication_slots
        WHERE slot_type = 'logical' ORDER BY slot_name LIMIT 100) AS slots,
  (SELECT last_failed_wal FROM pg_stat_archiver
    WHERE last_failed_time > coalesce(last_archived_time, '-infinity')) AS archive_failing";

/// Its column for files that are included came with PostgreSQL 16.
const HBA: &str = "\
SELECT line_number, to_jsonb(r)->>'file_name' AS file, error,
  concat_ws(' ', type, array_to_string(database, ','), array_to_string(user_name, ','), address, netmask,
    auth_method) AS words,
  md5(coalesce(options::text, '')) AS digest
FROM pg_hba_file_rules r ORDER BY 2 NULLS FIRST, 1 LIMIT 1000";

const DATABASE_COLLATION: &str = "\
SELECT datname::text AS database, datcollversion AS recorded, pg_database_collation_actual_version(oid) AS actual
FROM pg_database
WHERE datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid) AND datcollversion IS NOT NULL
ORDER BY 1 LIMIT 20";

/// Of the collations only those that some column has; every operating system brings hundreds.
const IN_DATABASE: &str = "\
SELECT
  ARRAY(SELECT DISTINCT probin::text FROM pg_proc WHERE probin IS NOT NULL AND probin <> '') AS libraries,
  (SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR') AS directory,
  ARRAY(SELECT e.extname || ' ' || e.extversion FROM pg_extension e WHERE NOT EXISTS (
    SELECT FROM pg_available_extension_versions() v WHERE v.name = e.extname AND v.version = e.extversion)
    ORDER BY 1) AS extensions,
  ARRAY(SELECT quote_ident(c.collname) || ' (' || c.collversion || ', here '
      || coalesce(pg_collation_actual_version(c.oid), 'none') || ')'
    FROM pg_collation c WHERE c.collversion IS NOT NULL
      AND c.collversion IS DISTINCT FROM pg_collation_actual_version(c.oid)
      AND EXISTS (SELECT FROM pg_attribute a WHERE a.attcollation = c.oid) ORDER BY 1 LIMIT 20) AS collations";

impl Server {
    /// Looks at all of it. Opens a session to each of the first databases, one after the other.
    ///
    /// # Errors
    /// When the server does not answer in time; a single database that does not is told of.
    pub async fn fitness(&self) -> Result<ServerFitness> {
        let mut session = self.limited_session("postgres").await?;
        let mut fitness = self.of_server(&mut session).await?;
        let row = connection::within(
            "what is in it",
            PATIENCE,
            sqlx::query(ONCE).fetch_one(&mut session),
        );
        let row = row.await?;
        fitness.in_recovery = get(&row, "in_recovery")?;
        let version: i32 = get(&row, "version")?;
        fitness.server_version_num = u32::try_from(version).unwrap_or(0);
        fitness.logical_slots = get(&row, "slots")?;
        fitness.archive_failing = get(&row, "archive_failing")?;
        let (names, databases): (Vec<String>, i64) = (get(&row, "names")?, get(&row, "databases")?);
        if fitness.server_version_num >= DATABASE_COLLATIONS {
            fitness.changed_collations = changed_databases(&mut session).await?;
        }
        connection::close(session).await;
        let visited = names.len().min(DATABASES_MAX);
        for name in &names[..visited] {
            if let Err(error) = self.of_database(name, &mut fitness).await {
                fitness.refused_databases.push(format!("{name}: {}", connection::words(&error)));
            }
        }
        fitness.unseen_databases_count =
            u64::try_from(databases).unwrap_or(0).saturating_sub(visited as u64);
        for list in [&mut fitness.missing_libraries, &mut fitness.missing_extensions] {
            list.sort();
            list.dedup();
        }
        Ok(fitness)
    }

    async fn of_server(&self, session: &mut PgConnection) -> Result<ServerFitness> {
        let mut fitness = ServerFitness::default();
        let question = sqlx::query(SETTINGS).fetch_all(&mut *session);
        for row in connection::within("its settings", PATIENCE, question).await? {
            let name: String = get(&row, "name")?;
            if get(&row, "pending_restart")? {
                fitness.pending_restart.push(name.clone());
            }
            fitness.settings.insert(name, get(&row, "value")?);
        }
        let question = sqlx::query(OVERRIDDEN).fetch_all(&mut *session);
        for row in connection::within("what ALTER SYSTEM has set", PATIENCE, question).await? {
            fitness.overridden.push(get(&row, "words")?);
        }
        let ours = self.hba_block_lines()?;
        let question = sqlx::query(HBA).fetch_all(&mut *session);
        for row in connection::within("who is let in", PATIENCE, question).await? {
            let (line, file): (i32, Option<String>) =
                (get(&row, "line_number")?, get(&row, "file")?);
            let main = file.is_none_or(|file| file.ends_with("/pg_hba.conf"));
            if main && usize::try_from(line).is_ok_and(|line| line <= ours) {
                continue;
            }
            match get::<Option<String>>(&row, "error")? {
                Some(error) => fitness.hba_errors.push(format!("line {line}: {error}")),
                None => fitness.hba_lines.push((get(&row, "words")?, get(&row, "digest")?)),
            }
        }
        Ok(fitness)
    }

    /// How many lines at the top of `pg_hba.conf` are the node's own.
    fn hba_block_lines(&self) -> Result<usize> {
        let path = self.data_dir().join("pg_hba.conf");
        Ok(os::read_if_present(&path)?.map_or(0, |text| access::block_lines(&text)))
    }

    async fn of_database(&self, name: &str, fitness: &mut ServerFitness) -> Result<()> {
        let mut session = self.limited_session(name).await?;
        let question = sqlx::query(IN_DATABASE).fetch_one(&mut session);
        let row = connection::within("what is in a database", PATIENCE, question).await?;
        connection::close(session).await;
        let directory: String = row.try_get("directory").unwrap_or_default();
        let libraries: Vec<String> = get(&row, "libraries")?;
        let missing = libraries.into_iter().filter(|library| !is_installed(library, &directory));
        fitness.missing_libraries.extend(missing);
        let extensions: Vec<String> = get(&row, "extensions")?;
        fitness.missing_extensions.extend(extensions);
        let collations: Vec<String> = get(&row, "collations")?;
        let told = collations.into_iter().map(|words| format!("collation {words} in {name}"));
        fitness.changed_collations.extend(told);
        Ok(())
    }
}

async fn changed_databases(session: &mut PgConnection) -> Result<Vec<String>> {
    let question = sqlx::query(DATABASE_COLLATION).fetch_all(session);
    let rows = connection::within("versions of collations", PATIENCE, question).await?;
    let told = rows.iter().map(|row| {
        let (database, recorded): (String, String) = (get(row, "database")?, get(row, "recorded")?);
        let actual: Option<String> = get(row, "actual")?;
        let actual = actual.unwrap_or_else(|| "none".to_owned());
        Ok(format!("database {database} (collation version {recorded}, here {actual})"))
    });
    told.collect()
}

/// As dynamic loading finds it: `$libdir` stands for the server's own directory, which is also where a plain
/// name is looked for unless `dynamic_library_path` says otherwise, and the suffix may be left out.
fn is_installed(library: &str, directory: &str) -> bool {
    let path = match library.strip_prefix("$libdir/") {
        Some(rest) => format!("{directory}/{rest}"),
        None if library.contains('/') => library.to_owned(),
        None => format!("{directory}/{library}"),
    };
    // The directory is only readable when nothing is wrong with the installation; then it proves nothing.
    directory.is_empty()
        || [path.clone(), path + ".so"].iter().any(|path| std::fs::metadata(path).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_found_as_the_server_finds_it() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().to_str().unwrap();
        std::fs::write(dir.path().join("good.so"), "").unwrap();
        for there in ["$libdir/good", "$libdir/good.so", "good", &format!("{place}/good")] {
            assert!(is_installed(there, place), "{there}");
        }
        for missing in ["$libdir/bad", "bad", "/nowhere/good"] {
            assert!(!is_installed(missing, place), "{missing}");
        }
    }
}
