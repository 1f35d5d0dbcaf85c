//! The demo's cluster on one machine: a directory, three nodes, their processes.
//!
//! It sets up what an operator would, through `understudy init`, and starts `understudy run` as
//! systemd would. The nodes do not know that they are in a demo. Dropping it ends everything and
//! removes the directory, unless it was told to keep them.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use understudy_node::config::NodeConfig;
use understudy_types::DurabilityMode;
use understudy_workload::{Credentials, Endpoint};

use super::site::{Process, kill_all_below};

/// Marks a directory as one that the demo made, and may remove.
const MARKER: &str = "understudy-demo";
/// Name, loopback address, and whether it holds data.
const NODES: [(&str, &str, bool); 3] =
    [("north", "127.0.1.1", true), ("south", "127.0.2.1", true), ("witness", "127.0.3.1", false)];
const GRPC_PORT: u16 = 7400;
const HTTP_PORT: u16 = 7480;
const POSTGRES_PORT: u16 = 5432;
/// The applications' role.
pub(super) const APPLICATION_ROLE: &str = "demo";

/// One node: a site of its own.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) has_data: bool,
    /// Everything of this node lies below it, its PostgreSQL's data directory too.
    pub(super) directory: PathBuf,
    pub(super) config: PathBuf,
    pub(super) log: PathBuf,
    pub(super) socket_dir: PathBuf,
    pub(super) postgres: Endpoint,
    child: Option<Child>,
}

/// The cluster's directory and nodes.
pub(super) struct Lab {
    pub(super) root: PathBuf,
    pub(super) nodes: Vec<Node>,
    /// The applications' password, once there is one.
    pub(super) password: Option<String>,
    binary: PathBuf,
    postgres_user: OsUser,
    keep: bool,
}

/// Who PostgreSQL runs as.
struct OsUser {
    name: String,
    uid: u32,
    gid: u32,
}

impl OsUser {
    /// `postgres` if we are root, since PostgreSQL refuses to be root; else ourselves.
    fn find() -> Result<OsUser> {
        let uid = rustix::process::getuid();
        let passwd = std::fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
        let wanted = |fields: &[&str]| match uid.is_root() {
            true => fields[0] == "postgres",
            false => fields[2] == uid.as_raw().to_string(),
        };
        let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let Some(fields) = fields.into_iter().find(|fields| fields.len() > 3 && wanted(fields))
        else {
            bail!(
                "find the OS user that PostgreSQL runs as: there is no user \"postgres\"; \
                 install the package postgresql"
            );
        };
        let number = |text: &str| text.parse().context("read a number in /etc/passwd");
        Ok(OsUser { name: fields[0].to_owned(), uid: number(fields[2])?, gid: number(fields[3])? })
    }
}

impl Lab {
    /// Makes the directory and the nodes' configuration; starts nothing.
    pub(super) fn create(parent: &Path, mode: DurabilityMode, profile: &str) -> Result<Lab> {
        let postgres_user = OsUser::find()?;
        let binary = std::env::current_exe().context("find this program's own file")?;
        let parent =
            parent.canonicalize().with_context(|| format!("enter {}", parent.display()))?;
        let root = parent.join(format!("understudy-demo-{}", std::process::id()));
        std::fs::create_dir(&root).with_context(|| format!("create {}", root.display()))?;
        let mut lab =
            Lab { root, nodes: Vec::new(), password: None, binary, postgres_user, keep: false };
        // PostgreSQL's user has to get to its data directory below.
        enterable(&lab.root)?;
        std::fs::write(lab.root.join(MARKER), std::process::id().to_string())?;
        let offset = free_ports()?;
        lab.init(&topology(offset, mode, profile, &lab.postgres_user.name))?;
        for (name, address, has_data) in NODES {
            let directory = lab.cluster_dir().join("nodes").join(name);
            let config = directory.join("node.toml");
            let loaded = NodeConfig::load(&config)?;
            let socket_dir = loaded.postgres.map(|postgres| postgres.socket_directory);
            let (host, port) = (address.to_owned(), POSTGRES_PORT + offset);
            lab.nodes.push(Node {
                name: name.to_owned(),
                has_data,
                log: lab.root.join(format!("{name}.log")),
                postgres: Endpoint { name: name.to_owned(), host, port },
                directory,
                config,
                socket_dir: socket_dir.unwrap_or_default(),
                child: None,
            });
        }
        Ok(lab)
    }

    fn cluster_dir(&self) -> PathBuf {
        self.root.join("cluster")
    }

    /// `understudy init`, as an operator would call it.
    fn init(&self, topology: &toml::Table) -> Result<()> {
        let file = self.root.join("topology.toml");
        std::fs::write(&file, toml::to_string(topology)?)?;
        let mut init = Command::new(&self.binary);
        init.arg("init").arg("--dir").arg(self.cluster_dir()).arg("--topology").arg(&file);
        let output = init.stdin(Stdio::null()).output().context("run understudy init")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("understudy init failed ({}): {}", output.status, said.trim());
        }
        Ok(())
    }

    /// The node of this name; the demo knows no others.
    pub(super) fn node(&self, name: &str) -> Result<&Node> {
        let node = self.nodes.iter().find(|node| node.name == name);
        node.with_context(|| format!("the cluster speaks of a node {name:?} that is not there"))
    }

    /// The PostgreSQL of every node that has one.
    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        let data = self.nodes.iter().filter(|node| node.has_data);
        data.map(|node| node.postgres.clone()).collect()
    }

    /// Starts a node's daemon in a process group of its own, with its log in a file.
    pub(super) fn start(&mut self, name: &str) -> Result<()> {
        let binary = self.binary.clone();
        let node = self.nodes.iter_mut().find(|node| node.name == name);
        let node = node.with_context(|| format!("there is no node {name:?}"))?;
        let log = File::options().create(true).append(true).open(&node.log)?;
        let mut daemon = Command::new(binary);
        daemon
            .arg("run")
            .arg("--config")
            .arg(&node.config)
            .current_dir(&node.directory)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        node.child = Some(daemon.spawn().with_context(|| format!("start the node {name}"))?);
        Ok(())
    }

    /// A daemon that ended although nobody killed it.
    pub(super) fn ended(&mut self) -> Option<(String, ExitStatus)> {
        self.nodes.iter_mut().find_map(|node| {
            let status = node.child.as_mut()?.try_wait().ok()??;
            node.child = None;
            Some((node.name.clone(), status))
        })
    }

    /// The loss of a site: its node and every process of its PostgreSQL, at once.
    pub(super) fn kill_site(&mut self, name: &str) -> Result<Vec<Process>> {
        let node = self.nodes.iter_mut().find(|node| node.name == name);
        let node = node.with_context(|| format!("there is no node {name:?}"))?;
        let killed = kill_all_below(&node.directory)?;
        if let Some(mut child) = node.child.take() {
            // It was among them; a daemon that had moved elsewhere gets its own blow.
            child.kill().ok();
            child.wait().with_context(|| format!("wait for the end of the node {name}"))?;
        }
        Ok(killed)
    }

    /// Makes the applications' role at a writable server, as its operator would: with psql, over the
    /// Unix socket, as PostgreSQL's own user.
    pub(super) fn create_application_role(&mut self, name: &str) -> Result<Credentials> {
        let node = self.node(name)?;
        let password = random_text()?;
        let sql = format!("CREATE ROLE {APPLICATION_ROLE} LOGIN CREATEDB PASSWORD '{password}'");
        let mut psql = Command::new(find_psql()?);
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-p"])
            .arg(node.postgres.port.to_string())
            .arg("-h")
            .arg(&node.socket_dir)
            .current_dir("/")
            .env("PGCONNECT_TIMEOUT", "10")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if rustix::process::getuid().is_root() {
            psql.uid(self.postgres_user.uid).gid(self.postgres_user.gid);
        }
        let mut psql = psql.spawn().context("run psql")?;
        // Not as an argument: those can be read by everybody on the machine.
        let mut stdin = psql.stdin.take().context("write to psql")?;
        stdin.write_all(sql.as_bytes()).context("write to psql")?;
        drop(stdin);
        let output = psql.wait_with_output().context("wait for psql")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("create the applications' role at {name}: {}", said.trim());
        }
        self.password = Some(password.clone());
        Ok(Credentials { user: APPLICATION_ROLE.to_owned(), password: Some(password) })
    }

    /// An operator's context, as `init` made it.
    pub(super) fn context(&self) -> PathBuf {
        self.cluster_dir().join("contexts").join("operator.toml")
    }

    /// The last lines of every node's log.
    pub(super) fn log_tails(&self, lines_count: usize) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            let log = std::fs::read(&node.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log).into_owned();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(lines_count)..];
            text += &format!("--- {} (last lines of its log)\n{}\n", node.name, tail.join("\n"));
        }
        text
    }

    /// Leaves everything running and in place.
    pub(super) fn keep(&mut self) {
        self.keep = true;
    }

    /// Ends everything and removes the directory.
    fn remove(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            if let Some(child) = &mut node.child {
                child.kill().ok();
                child.wait().ok();
            }
        }
        remove_directory(&self.root)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = self.remove()
        {
            eprintln!("clean up after the demo: {error:#}");
        }
    }
}

/// Ends everything that lives below a demo's directory, and removes it.
///
/// # Errors
/// When the demo did not make it, or something cannot be ended or removed.
pub(super) fn remove_directory(root: &Path) -> Result<()> {
    if !root.join(MARKER).is_file() {
        bail!("{} was not made by a demo: it is left alone", root.display());
    }
    let root = root.canonicalize()?;
    kill_all_below(&root)?;
    std::fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))
}

/// Lets every user pass through a directory, and see nothing of what is closed below it.
fn enterable(directory: &Path) -> Result<()> {
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("open {} to PostgreSQL's user", directory.display()))
}

/// What `init` is told: three nodes, each a site of its own.
fn topology(offset: u16, mode: DurabilityMode, profile: &str, os_user: &str) -> toml::Table {
    let table = |entries: &[(&str, &str)]| {
        let entry = |(key, value): &(&str, &str)| ((*key).to_owned(), text(value));
        toml::Table::from_iter(entries.iter().map(entry))
    };
    let nodes = NODES.iter().map(|(name, address, has_data)| {
        let kind = if *has_data { "data" } else { "witness" };
        let mut node = table(&[("name", name), ("site", name), ("kind", kind)]);
        node.insert("address".to_owned(), text(&format!("{address}:{}", GRPC_PORT + offset)));
        node.insert("http".to_owned(), text(&format!("{address}:{}", HTTP_PORT + offset)));
        if *has_data {
            node.insert("postgres-port".to_owned(), i64::from(POSTGRES_PORT + offset).into());
            node.insert("os-user".to_owned(), text(os_user));
        }
        node.into()
    });
    // One site is lost on purpose, so the survivor is to go on alone.
    let durability = [("mode", mode.to_string()), ("on_sole_survivor", "open".to_owned())];
    let durability = durability.iter().map(|(key, value)| ((*key).to_owned(), text(value)));
    // Two servers share a small machine.
    let parameters = table(&[("shared_buffers", "64MB"), ("max_connections", "200")]);
    toml::Table::from_iter([
        ("nodes".to_owned(), toml::Value::Array(nodes.collect())),
        ("durability".to_owned(), toml::Table::from_iter(durability).into()),
        ("timing".to_owned(), table(&[("profile", profile), ("flap_hold", "0s")]).into()),
        ("parameters".to_owned(), parameters.into()),
    ])
}

fn text(text: &str) -> toml::Value {
    toml::Value::String(text.to_owned())
}

/// How far all ports have to be moved so that every door of every node is free.
fn free_ports() -> Result<u16> {
    let free = |offset: u16| {
        NODES.iter().all(|(_, address, _)| {
            [GRPC_PORT, HTTP_PORT, POSTGRES_PORT]
                .iter()
                .all(|port| TcpListener::bind((*address, port + offset)).is_ok())
        })
    };
    (0..200).step_by(10).find(|offset| free(*offset)).context(
        "find free ports: 7400, 7480 and 5432 (and the nineteen tens above them) are taken on \
         127.0.1.1, 127.0.2.1 or 127.0.3.1",
    )
}

fn find_psql() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        places.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    let found = places.into_iter().map(|place| place.join("psql")).find(|file| file.is_file());
    found.context("find psql: it is neither on PATH nor below /usr/lib/postgresql; install it")
}

fn random_text() -> Result<String> {
    use std::io::Read;
    let mut bytes = [0u8; 16];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
