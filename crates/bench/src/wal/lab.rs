//! One primary and one standby, and the certificates with which they and Understudy know each other.
//!
//! The standby is the same for every contender: only where it streams from changes. Everything lies in
//! one directory, which goes when the lab does.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;
use understudy_transport::{Authority, Identity};

use super::link::Carrier;
use super::sides::{CLUSTER, Papers, RECEIVER, SENDER};
use crate::postgres::{Instance, Programs, Sql, output};

/// Rows of `pgbench_accounts`, in hundred thousands: about 300 MiB.
const SCALE: u32 = 20;
const DATABASE: &str = "bench";

/// The lab; servers stop and files go when it is dropped.
pub(super) struct Lab {
    pub(super) programs: Programs,
    pub(super) primary: Instance,
    pub(super) system_id: u64,
    pub(super) carrier: Carrier,
    dir: TempDir,
}

impl Lab {
    /// Makes everything but the standby: certificates, a primary with data, and a copy of it.
    ///
    /// # Errors
    /// When PostgreSQL is missing or something cannot be made.
    pub(super) fn create(parent: Option<&Path>) -> Result<Lab> {
        let programs = Programs::find()?;
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        let dir = tempfile::Builder::new().prefix("understudy-bench-").tempdir_in(&parent);
        let dir = dir.with_context(|| format!("make a directory in {}", parent.display()))?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711))?;
        for name in ["run", "data", "papers"] {
            fs::create_dir(dir.path().join(name))?;
        }
        programs.give(&dir.path().join("run"))?;
        programs.give(&dir.path().join("data"))?;
        let papers = Authority::create(CLUSTER)?;
        for (node, owned) in [(SENDER, false), (RECEIVER, false), (SENDER, true), (RECEIVER, true)]
        {
            save(&papers, dir.path(), node, owned.then_some(&programs))?;
        }
        let data = dir.path().join("data/primary");
        output(programs.command("initdb").arg("-D").arg(&data).args(["-U", "postgres", "-N"]))?;
        let client = "trust clientcert=verify-ca";
        let hba = format!(
            "local all all trust\nlocal replication all trust\n\
             hostssl all all 127.0.0.1/32 {client}\nhostssl replication all 127.0.0.1/32 {client}\n"
        );
        fs::write(data.join("pg_hba.conf"), hba)?;
        let run = dir.path().join("run");
        let settings = settings(dir.path());
        let primary = Instance::start(&programs, &data, &run, free_port()?, &settings)?;
        let mut sql = primary.sql("postgres")?;
        sql.run(&["CREATE DATABASE bench"])?;
        let mut pgbench = primary.client("pgbench");
        output(pgbench.args(["-i", "-q", "-s", &SCALE.to_string(), DATABASE]))?;
        let id = sql.value("SELECT system_identifier::text FROM pg_control_system()")?;
        let system_id = id.context("the server has no identifier")?.parse()?;
        let lab = Lab { programs, primary, system_id, carrier: Carrier::new()?, dir };
        lab.renew_copy()?;
        Ok(lab)
    }

    /// Copies the primary as it is now, for standbys to begin with.
    ///
    /// # Errors
    /// When `pg_basebackup` fails.
    pub(super) fn renew_copy(&self) -> Result<()> {
        let copy = self.path("data/copy");
        if copy.exists() {
            fs::remove_dir_all(&copy)?;
        }
        let mut backup = self.primary.client("pg_basebackup");
        output(backup.arg("-D").arg(&copy).args(["-c", "fast", "-X", "stream"]))?;
        fs::write(copy.join("standby.signal"), "")?;
        self.programs.give(&copy.join("standby.signal"))
    }

    /// A path inside the lab.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A connection to the primary's data.
    pub(super) fn sql(&self) -> Result<Sql> {
        self.primary.sql(DATABASE)
    }

    /// `pgbench` on the primary's data.
    pub(super) fn pgbench(&self, arguments: &[&str]) -> std::process::Command {
        let mut pgbench = self.primary.client("pgbench");
        pgbench.arg("-n").args(arguments).arg(DATABASE);
        pgbench
    }

    /// A node's certificates, as Understudy or as PostgreSQL's user reads them.
    pub(super) fn papers(&self, node: &str, of_postgres: bool) -> Papers {
        papers(self.dir.path(), node, of_postgres)
    }

    /// How PostgreSQL's own programs reach the primary, or the line to it, over mutual TLS.
    pub(super) fn conninfo(&self, name: &str, port: u16) -> String {
        let Papers { ca, certificate, key } = self.papers(RECEIVER, true);
        format!(
            "host=127.0.0.1 port={port} user=postgres application_name={name} sslmode=verify-full \
             sslrootcert={} sslcert={} sslkey={}",
            ca.display(),
            certificate.display(),
            key.display()
        )
    }

    /// A standby made anew from the copy, which streams from nobody yet.
    pub(super) fn standby(&self) -> Result<Instance> {
        let data = self.path("data/standby");
        if data.exists() {
            fs::remove_dir_all(&data)?;
        }
        let mut copy = self.programs.as_user("cp");
        output(copy.arg("-a").arg(self.path("data/copy")).arg(&data))?;
        let settings = settings(self.dir.path());
        Instance::start(&self.programs, &data, &self.path("run"), free_port()?, &settings)
    }
}

fn papers(dir: &Path, node: &str, of_postgres: bool) -> Papers {
    let dir = dir.join("papers");
    let owner = if of_postgres { "postgres" } else { "understudy" };
    Papers {
        ca: dir.join(format!("{owner}-{node}-ca.pem")),
        certificate: dir.join(format!("{owner}-{node}.pem")),
        key: dir.join(format!("{owner}-{node}.key")),
    }
}

/// A certificate of a node at 127.0.0.1, and the authority's; each owner keeps a key of its own.
fn save(authority: &Authority, dir: &Path, node: &str, owner: Option<&Programs>) -> Result<()> {
    let Papers { ca, certificate, key } = papers(dir, node, owner.is_some());
    let issued = authority.issue_at(&Identity::Node(node.parse()?), &["127.0.0.1".to_owned()])?;
    issued.save(&certificate, &key)?;
    fs::write(&ca, authority.certificate_pem())?;
    if let Some(programs) = owner {
        [&ca, &certificate, &key].into_iter().try_for_each(|file| programs.give(file))?;
    }
    Ok(())
}

/// The same for both servers, but for what each ignores.
fn settings(dir: &Path) -> Vec<(&'static str, String)> {
    let Papers { ca, certificate, key } = papers(dir, SENDER, true);
    let path = |path: PathBuf| path.display().to_string();
    let fixed = [
        ("listen_addresses", "127.0.0.1"),
        ("ssl", "on"),
        ("shared_buffers", "512MB"),
        ("max_connections", "80"),
        ("max_wal_senders", "16"),
        // No checkpoint but those that are asked for, and no segment goes: every contender starts from
        // the same position, round after round.
        ("checkpoint_timeout", "1h"),
        ("max_wal_size", "64GB"),
        ("wal_keep_size", "64GB"),
        ("autovacuum", "off"),
        ("wal_retrieve_retry_interval", "50ms"),
        ("log_min_messages", "warning"),
    ];
    let fixed = fixed.into_iter().map(|(name, value)| (name, value.to_owned()));
    let files = [("ssl_ca_file", ca), ("ssl_cert_file", certificate), ("ssl_key_file", key)];
    fixed.chain(files.into_iter().map(|(name, file)| (name, path(file)))).collect()
}

/// A TCP port on loopback that nobody has at this moment.
pub(super) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    Ok(listener.local_addr()?.port())
}
