//! The operator's settings: the file that PostgreSQL reads them from, their change while it runs, and what
//! it says of them.
//!
//! They are in a file beside `postgresql.conf`, which that file includes first, so that a reload can change
//! them; what the gate rests on stays on the postmaster's command line (`settings`). A file that PostgreSQL
//! would not start with never gets its name.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sqlx::postgres::{PgConnection, PgRow};

use crate::admin::get;
use crate::connection;
use crate::error::{Error, IoContext, Result};
use crate::os;
use crate::process;
use crate::server::{POLL, Server};
use crate::settings::file_parameters;

/// In PGDATA. A rewind or base backup may bring another node's; each start writes it anew.
const FILE: &str = "understudy.conf";
const CANDIDATE: &str = "understudy.conf.next";
/// How long PostgreSQL may take to read its files again, and to answer about them.
const PATIENCE: Duration = Duration::from_secs(10);

/// What may not be smaller on a standby than on its primary (the manual, 27.4.3): it pauses replay, or
/// does not start.
pub const STANDBY_PARAMETERS: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// A setting of the running server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerParameter {
    /// Its name.
    pub name: String,
    /// What is in force.
    pub running: String,
    /// What would be after a restart, where that differs.
    pub after_restart: Option<String>,
}

/// What a reload came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Settings in force that changed by it, with their new values.
    pub changed: Vec<(String, String)>,
    /// Settings that take effect with the next start only.
    pub pending_restart: Vec<String>,
    /// The operator's settings that are not in force, because ALTER SYSTEM has set them.
    pub overridden: Vec<String>,
}

/// Pending is also said of what a file sets otherwise than the command line does, and that no restart
/// changes; of those only what comes from the operator's settings counts.
const PARAMETERS: &str = "\
SELECT s.name, current_setting(s.name) AS running,
  CASE WHEN s.pending_restart THEN coalesce(
    (SELECT f.setting FROM pg_file_settings f WHERE lower(f.name) = s.name
     ORDER BY f.seqno DESC LIMIT 1), s.boot_val, '') END AS after_restart
FROM pg_settings s
WHERE s.name = ANY ($1)
   OR (s.pending_restart AND (s.source <> 'command line'
       OR s.name IN ('wal_level', 'max_wal_senders', 'max_replication_slots')))
ORDER BY s.name";

async fn ask(session: &mut PgConnection) -> Result<Vec<ServerParameter>> {
    let names: Vec<String> = STANDBY_PARAMETERS.iter().map(|name| (*name).to_owned()).collect();
    let statement = sqlx::query(PARAMETERS).bind(names).fetch_all(session);
    let rows = connection::within("its settings", PATIENCE, statement).await?;
    let read = |row: &PgRow| {
        let (name, running): (String, String) = (get(row, "name")?, get(row, "running")?);
        let after: Option<String> = get(row, "after_restart")?;
        let after_restart = after.filter(|after| *after != running);
        Ok(ServerParameter { name, running, after_restart })
    };
    rows.iter().map(read).collect()
}

impl Server {
    /// What a restart would change, and what a standby must not have less of.
    ///
    /// # Errors
    /// When the answer does not come in time.
    pub async fn server_parameters(&self) -> Result<Vec<ServerParameter>> {
        let mut session = self.session().await?;
        let asked = ask(&mut session).await?;
        connection::close(session).await;
        Ok(asked)
    }

    fn parameters_path(&self) -> PathBuf {
        self.data_dir().join(FILE)
    }

    /// What the node may have put into PGDATA for its parameters.
    pub(crate) fn parameters_files(&self) -> [PathBuf; 2] {
        [FILE, CANDIDATE].map(|name| self.data_dir().join(name))
    }

    /// The argument that has PostgreSQL read the file.
    pub(crate) fn config_file_argument(&self) -> OsString {
        let mut argument = OsString::from("config_file=");
        argument.push(self.parameters_path());
        argument
    }

    /// Writes the file for the next start.
    pub(crate) fn write_parameters(&self) -> Result<()> {
        let text = text(&file_parameters(self.settings(), &self.parameters()));
        os::write_durably(&self.parameters_path(), text.as_bytes(), &self.settings().os_user)
    }

    /// Gives the running server these settings in place of the operator's former ones. What is wrong with
    /// them changes nothing.
    ///
    /// # Errors
    /// When PostgreSQL would not start with them (the error has its words), does not run, or does not
    /// read them in time.
    pub async fn reload(&self, parameters: BTreeMap<String, String>) -> Result<Reloaded> {
        let running = self.running()?.ok_or(Error::NotRunning { action: "reload its settings" })?;
        let before = self.in_force().await?;
        let path = self.parameters_path();
        if before.get("config_file").map(PathBuf::from).as_ref() != Some(&path) {
            return Err(self.unusable(
                "PostgreSQL was started without the node's file of settings, by an older version; \
                 restart it once"
                    .to_owned(),
            ));
        }
        let written = file_parameters(self.settings(), &parameters);
        let candidate = self.data_dir().join(CANDIDATE);
        os::write_durably(&candidate, text(&written).as_bytes(), &self.settings().os_user)?;
        if let Err(error) = self.check_candidate(&candidate).await {
            os::remove_durably(&candidate)?;
            return Err(error);
        }
        fs::rename(&candidate, &path).during("replace", &path)?;
        os::sync_dir(self.data_dir())?;
        let operators: Vec<String> = parameters.keys().cloned().collect();
        self.set_parameters(parameters);
        let (loaded, _) = self.configuration_loaded_at().await?;
        process::signal_one(running.pid, running.start_time_ticks, Signal::HUP)?;
        let begun = Instant::now();
        while self.configuration_loaded_at().await?.0 == loaded {
            if begun.elapsed() > PATIENCE {
                return Err(Error::Timeout {
                    what: "the reload of its settings",
                    waited: PATIENCE,
                });
            }
            tokio::time::sleep(POLL).await;
        }
        let after = self.in_force().await?;
        let changed = after.into_iter().filter(|(name, value)| before.get(name) != Some(value));
        let asked = self.server_parameters().await?;
        let mut session = self.session().await?;
        let overridden = overridden(&mut session, &operators).await?;
        connection::close(session).await;
        let pending = asked.into_iter().filter(|parameter| parameter.after_restart.is_some());
        Ok(Reloaded {
            changed: changed.collect(),
            pending_restart: pending.map(|parameter| parameter.name).collect(),
            overridden,
        })
    }

    /// Has PostgreSQL read the file as for a start, which it does not do.
    async fn check_candidate(&self, candidate: &std::path::Path) -> Result<()> {
        let mut file = OsString::from("config_file=");
        file.push(candidate);
        let arguments = [
            OsString::from("-D"),
            self.data_dir().as_os_str().to_owned(),
            OsString::from("-c"),
            file,
            OsString::from("-C"),
            OsString::from("config_file"),
        ];
        match self.run_tool("postgres", arguments, "").await {
            Ok(_) => Ok(()),
            Err(Error::Tool { output, .. }) => Err(Error::Setting {
                name: "postgres.parameters",
                reason: format!(
                    "PostgreSQL does not take them, so nothing was changed; correct what it names: \
                     {}",
                    output.replace('\n', "; ")
                ),
            }),
            Err(error) => Err(error),
        }
    }

    /// Every setting as a new session sees it.
    async fn in_force(&self) -> Result<BTreeMap<String, String>> {
        let mut session = self.session().await?;
        let statement = sqlx::query(
            "SELECT name, coalesce(current_setting(name, true), '') AS value FROM pg_settings",
        )
        .fetch_all(&mut session);
        let rows = connection::within("its settings", PATIENCE, statement).await?;
        connection::close(session).await;
        rows.iter().map(|row| Ok((get(row, "name")?, get(row, "value")?))).collect()
    }
}

async fn overridden(session: &mut PgConnection, names: &[String]) -> Result<Vec<String>> {
    let statement = sqlx::query(
        "SELECT name FROM pg_settings WHERE name = ANY ($1) \
         AND sourcefile LIKE '%/postgresql.auto.conf' ORDER BY name",
    )
    .bind(names.to_vec())
    .fetch_all(session);
    let rows = connection::within("its settings", PATIENCE, statement).await?;
    rows.iter().map(|row| get(row, "name")).collect()
}

/// The file's content; the last of two lines for one setting counts.
fn text(parameters: &[(String, String)]) -> String {
    let mut text = String::from(
        "# Written by the node at each start and reload, from [postgres.parameters] of its own file:\n\
         # change that, and run `understudy reload`.\n\
         include_if_exists 'postgresql.conf'\n",
    );
    for (name, value) in parameters {
        text.push_str(&format!("{name} = {}\n", quoted(value)));
    }
    text
}

/// A value in a file of settings, as PostgreSQL's own scanner reads it (`GUC_scanstr` in guc-file.l): a quote is doubled, a backslash
/// escapes.
pub(crate) fn quoted(value: &str) -> String {
    let escaped = value.replace('\\', r"\\").replace('\'', "''");
    format!("'{}'", escaped.replace('\n', r"\n").replace('\r', r"\r"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_as_postgresqls_scanner_reads_them() {
        assert_eq!(quoted("8MB"), "'8MB'");
        assert_eq!(quoted(r"it's \o/"), r"'it''s \\o/'");
        assert_eq!(quoted("a\nfsync = off"), r"'a\nfsync = off'");
    }

    #[test]
    fn the_file_includes_the_operators_own_first() {
        let text = text(&[("work_mem".to_owned(), "8MB".to_owned())]);
        let include = text.find("include_if_exists").unwrap();
        assert!(include < text.find("work_mem = '8MB'").unwrap(), "{text}");
    }
}
