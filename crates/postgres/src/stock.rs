//! A server that somebody else started, or is to start again: asked with psql as its own operator asks,
//! and given back without what the node put into it. It takes nothing over by itself.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::access;
use crate::control::DataDirectory;
use crate::error::{Error, IoContext, Result};
use crate::os;
use crate::process::{self, PidFile, Running};
use crate::roles;
use crate::server::{POLL, Server};
use crate::settings::{GateName, StartMode, command_line, file_parameters};

/// How long the end of a killed postmaster may go unnoticed by its parent.
const BURIAL_PATIENCE: Duration = Duration::from_secs(10);

/// How a server that the node did not start is reached: as its operator reaches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StockServer {
    /// Directory of its Unix socket.
    pub socket_dir: PathBuf,
    /// The port in the socket's name.
    pub port: u16,
    /// A superuser that the server's OS user is let in as.
    pub role: String,
}

impl StockServer {
    /// The one that runs; `None` when it has no Unix socket.
    pub fn of(running: &Running, role: &str) -> Option<StockServer> {
        let socket_dir = running.socket_dir.clone()?;
        Some(StockServer { socket_dir, port: running.port, role: role.to_owned() })
    }
}

impl Server {
    /// Runs statements with psql as the server's OS user; what they answer, unaligned. The first error
    /// ends them.
    ///
    /// # Errors
    /// What psql said.
    pub async fn ask_stock(&self, stock: &StockServer, script: &str) -> Result<String> {
        let quoted = |value: &str| format!("'{}'", value.replace('\\', r"\\").replace('\'', r"\'"));
        let conninfo = format!(
            "host={} port={} user={} dbname=postgres connect_timeout=10 client_encoding=UTF8 \
             application_name=understudy-adopt \
             options='-c search_path=pg_catalog -c statement_timeout=600s'",
            quoted(&stock.socket_dir.to_string_lossy()),
            stock.port,
            quoted(&stock.role),
        );
        let fixed = ["-X", "-q", "-A", "-t", "--no-password", "-v", "ON_ERROR_STOP=1", "-d"];
        let mut arguments: Vec<OsString> = fixed.iter().map(OsString::from).collect();
        arguments.extend([OsString::from(conninfo), "-f".into(), "-".into()]);
        self.run_tool("psql", arguments, script).await
    }

    /// The same for statements that change something: they wait for nobody's standby.
    ///
    /// # Errors
    /// What psql said.
    pub async fn tell_stock(&self, stock: &StockServer, script: &str) -> Result<()> {
        let script = format!("SET synchronous_commit = local;\n{script}");
        self.ask_stock(stock, &script).await.map(drop)
    }

    /// What a primary that the node starts is told, by its file of parameters and its command line, which wins;
    /// the gate's name is made up.
    pub fn settings_as_primary(&self) -> Vec<(String, String)> {
        let gate: GateName = "gate".parse().expect("a gate's name");
        let (settings, parameters) = (self.settings(), &self.settings().parameters);
        let mut told: BTreeMap<String, String> =
            file_parameters(settings, parameters).into_iter().collect();
        told.extend(command_line(settings, parameters, &StartMode::Primary, &gate));
        told.into_iter().collect()
    }

    /// Ends the parts of a stopped primary that only the node uses: its slots and, if `roles`, its roles.
    /// After a crash it recovers first.
    ///
    /// # Errors
    /// When the server runs, or a statement fails.
    pub async fn remove_own_objects(&self, slots: &[String], roles: bool) -> Result<()> {
        let script = own_objects_removal(slots, roles);
        self.until_buried().await?;
        self.single_user("remove the node's slots and roles", &script).await
    }

    /// A postmaster that was just killed may not be buried yet, and PostgreSQL takes it for alive.
    async fn until_buried(&self) -> Result<()> {
        let begun = Instant::now();
        while let Some(file) = PidFile::read(self.data_dir())?
            && process::is_unburied(file.pid)
            && begun.elapsed() < BURIAL_PATIENCE
        {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Removes the node's file of parameters.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn remove_parameters(&self) -> Result<()> {
        for path in self.parameters_files() {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                outcome => outcome.during("remove", &path)?,
            }
        }
        Ok(())
    }

    /// Takes our blocks out of `pg_hba.conf` and `pg_ident.conf`; everybody else's lines stay byte for
    /// byte.
    ///
    /// # Errors
    /// When a file cannot be replaced.
    pub fn remove_hba_blocks(&self) -> Result<()> {
        for name in ["pg_hba.conf", "pg_ident.conf"] {
            let path = self.data_dir().join(name);
            let Some(old) = os::read_if_present(&path)? else { continue };
            let new = access::without_block(&old);
            if new != old {
                self.put_file(&path, &new)?;
            }
        }
        Ok(())
    }

    /// Removes history files that only steer the choice of a timeline's number.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn remove_burned(&self) -> Result<()> {
        self.remove_unused_burned()
    }

    /// Replaces or makes a file that belongs to the server's OS user, durably.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn put_file(&self, path: &Path, content: &[u8]) -> Result<()> {
        os::write_durably(path, content, &self.settings().os_user)
    }

    /// Gives a file the mode that it once had; does nothing where that or the file is not there.
    ///
    /// # Errors
    /// When it cannot be changed.
    pub fn restore_mode(&self, path: &Path, mode: Option<u32>) -> Result<()> {
        let Some(mode) = mode.filter(|_| path.is_file()) else { return Ok(()) };
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, permissions).during("set mode of", path)
    }

    /// True when a fast stop, a crash or nothing at all left the data as a primary's, and not as a
    /// standby's.
    ///
    /// # Errors
    /// When the data directory is not a whole cluster.
    pub async fn was_primary(&self) -> Result<bool> {
        match self.inspect().await? {
            DataDirectory::Cluster(control) => Ok(!control.state.is_in_recovery()),
            other => Err(Error::DataDirectory {
                path: self.data_dir().to_owned(),
                reason: format!("not a whole cluster: {other:?}"),
            }),
        }
    }

    /// Who owns PGDATA, by number.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn data_owner(data_dir: &Path) -> Result<u32> {
        Ok(std::fs::metadata(data_dir).during("look at", data_dir)?.uid())
    }
}

/// Statements, one a line, that remove what only the node uses.
pub fn own_objects_removal(slots: &[String], roles: bool) -> String {
    let drop = |slot: &String| {
        format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name = '{}';\n",
            slot.replace('\'', "''")
        )
    };
    let mut script: String = slots.iter().map(drop).collect();
    if roles {
        script.push_str(&roles::removal());
    }
    script
}
