//! A cluster of two sites and a witness on this machine, below a directory of its own.
//!
//! Each lab has loopback addresses of its own, so that labs do not meet. Dropping it ends everything
//! that lives in it; after a failed test the ends of all logs are printed first. With
//! UNDERSTUDY_TEST_KEEP set, its directory stays.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::postgres::{owner_name, tool};
use super::processes::{Background, Ended, kill_all_below, run};
use super::{BINARY, wait_for};

/// The data nodes, in the order of founding.
pub(crate) const DATA: [&str; 2] = ["north", "south"];
/// The witness.
pub(crate) const WITNESS: &str = "witness";
pub(crate) const NODES: [&str; 3] = ["north", "south", WITNESS];
/// The second passive, of a lab that has one.
pub(crate) const SECOND_PASSIVE: &str = "east";
pub(crate) const GRPC_PORT: u16 = 7400;
pub(crate) const HTTP_PORT: u16 = 7480;
pub(crate) const POSTGRES_PORT: u16 = 5432;
/// The port in the name of the walsender's socket.
pub(crate) const RELAY_PORT: u16 = 7432;
const LOG_LINES: usize = 60;

/// What a lab is to be like.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    /// The dial.
    pub(crate) mode: &'static str,
    /// How long a lease holds, where the profile's three seconds will not do.
    pub(crate) lease_ttl: Option<&'static str>,
    /// More of the section `durability`.
    pub(crate) durability: &'static str,
    /// One passive, or two.
    pub(crate) passives: usize,
    /// What the third node is: a witness, or a journal.
    pub(crate) third: &'static str,
}

/// Nothing acknowledged may be lost.
pub(crate) const ZERO: Plan =
    Plan { mode: "zero", lease_ttl: None, durability: "", passives: 1, third: "witness" };

/// What is lost is bounded, and nothing waits for the passive.
pub(crate) const BOUNDED: Plan = Plan { mode: "bounded", ..ZERO };

struct Node {
    name: &'static str,
    address: String,
    child: Option<Child>,
}

/// The cluster.
pub(crate) struct Lab {
    root: TempDir,
    nodes: Vec<Node>,
}

impl Lab {
    /// `understudy init`; starts nothing.
    pub(crate) fn prepared(plan: Plan) -> Lab {
        let mut root = tempfile::Builder::new().prefix("understudy-").tempdir().unwrap();
        if std::env::var_os("UNDERSTUDY_TEST_KEEP").is_some() {
            root.disable_cleanup(true);
            eprintln!("keeping {}", root.path().display());
        }
        // PostgreSQL's user has to get to its data below.
        fs::set_permissions(root.path(), Permissions::from_mode(0o711)).unwrap();
        let network = free_network();
        let node = |(name, host)| Node { name, address: format!("{network}.{host}"), child: None };
        let second = (plan.passives > 1).then_some(SECOND_PASSIVE);
        let names = NODES.into_iter().chain(second);
        let lab = Lab { root, nodes: names.zip(1..).map(node).collect() };
        let file = lab.root.path().join("topology.toml");
        fs::write(&file, lab.topology(plan)).unwrap();
        let mut init = Command::new(BINARY);
        init.arg("init").arg("--dir").arg(lab.cluster_dir()).arg("--topology").arg(&file);
        run(&mut init).good();
        lab
    }

    /// A cluster that runs, and whose passive could take over.
    pub(crate) fn founded(plan: Plan) -> Lab {
        let mut lab = Lab::prepared(plan);
        for name in lab.names() {
            lab.start(name);
        }
        lab.wait("a cluster whose passive could take over", |lab| lab.protected_under(DATA[0]));
        lab
    }

    /// Every node, in the order of founding.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.nodes.iter().map(|node| node.name).collect()
    }

    fn topology(&self, plan: Plan) -> String {
        let mut text = format!("[durability]\nmode = \"{}\"\n{}\n", plan.mode, plan.durability);
        // Failures are made on purpose here, one after the other.
        text += "[timing]\nflap_hold = \"0s\"\n";
        if let Some(ttl) = plan.lease_ttl {
            text += &format!("lease_ttl = \"{ttl}\"\n");
        }
        text += "[parameters]\nshared_buffers = \"32MB\"\nmax_connections = 60\n";
        for node in &self.nodes {
            let kind = if node.name == WITNESS { plan.third } else { "data" };
            text += &format!(
                "[[nodes]]\nname = \"{}\"\nkind = \"{kind}\"\naddress = \"{}:{GRPC_PORT}\"\n\
                 http = \"{}:{HTTP_PORT}\"\n",
                node.name, node.address, node.address
            );
            if kind == "data" {
                text +=
                    &format!("postgres-port = {POSTGRES_PORT}\nos-user = \"{}\"\n", owner_name());
            }
        }
        text
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn cluster_dir(&self) -> PathBuf {
        self.root.path().join("cluster")
    }

    /// Everything of a node lies below it, its PostgreSQL's data directory too.
    pub(crate) fn node_dir(&self, name: &str) -> PathBuf {
        self.cluster_dir().join("nodes").join(name)
    }

    pub(crate) fn config(&self, name: &str) -> PathBuf {
        self.node_dir(name).join("node.toml")
    }

    pub(crate) fn pgdata(&self, name: &str) -> PathBuf {
        self.node_dir(name).join("data/pgdata")
    }

    /// Where the Unix sockets of a node's PostgreSQL and walsender are.
    pub(crate) fn socket_dir(&self, name: &str) -> PathBuf {
        self.node_dir(name).join("data/run")
    }

    /// The finished segments of a node's journal are below it, a directory for each timeline.
    pub(crate) fn journal_dir(&self, name: &str) -> PathBuf {
        self.node_dir(name).join("data/wal")
    }

    pub(crate) fn address(&self, name: &str) -> &str {
        &self.nodes.iter().find(|node| node.name == name).expect("one of the lab's nodes").address
    }

    fn socket_address(&self, name: &str, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(name).parse().unwrap(), port)
    }

    fn node_mut(&mut self, name: &str) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.name == name).expect("one of the lab's nodes")
    }

    /// Changes a node's configuration file.
    pub(crate) fn edit_config(&self, name: &str, edit: impl FnOnce(&mut toml::Table)) {
        let file = self.config(name);
        let mut table: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
        edit(&mut table);
        fs::write(&file, toml::to_string(&table).unwrap()).unwrap();
    }

    fn log(&self, name: &str) -> PathBuf {
        self.root.path().join(format!("{name}.log"))
    }

    /// What a node's daemon has logged.
    pub(crate) fn log_text(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.log(name)).unwrap_or_default()).into_owned()
    }

    /// Starts a node's daemon, as systemd would.
    pub(crate) fn start(&mut self, name: &str) {
        let log = File::options().create(true).append(true).open(self.log(name)).unwrap();
        let mut daemon = Command::new(BINARY);
        daemon.arg("run").arg("--config").arg(self.config(name)).current_dir(self.node_dir(name));
        daemon.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let node = self.node_mut(name);
        assert!(node.child.is_none(), "{name} runs already");
        node.child = Some(daemon.spawn().unwrap());
    }

    /// Runs a node's daemon that is expected to refuse, to its end.
    pub(crate) fn run_refused(&self, config: &Path) -> Ended {
        let mut daemon = Command::new(BINARY);
        daemon.arg("run").arg("--config").arg(config).current_dir(config.parent().unwrap());
        Background::start(&mut daemon).wait(Duration::from_secs(30))
    }

    /// Waits until a node's daemon has ended by itself.
    pub(crate) fn wait_for_end(&mut self, name: &str) -> ExitStatus {
        let child = &mut self.node_mut(name).child;
        let status = wait_for("the daemon to end by itself", || {
            child.as_mut().expect("it was started").try_wait().unwrap()
        });
        *child = None;
        status
    }

    /// SIGKILL to a node's daemon alone.
    pub(crate) fn kill_node(&mut self, name: &str) {
        let mut child = self.node_mut(name).child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A signal to a node's daemon alone.
    pub(crate) fn signal_node(&mut self, name: &str, signal: Signal) {
        let child = self.node_mut(name).child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// SIGTERM to a node's daemon alone, and its end.
    pub(crate) fn stop_node(&mut self, name: &str) {
        self.signal_node(name, Signal::TERM);
        let mut child = self.node_mut(name).child.take().expect("it runs");
        assert!(child.wait().unwrap().success(), "{name} did not end well");
    }

    /// The loss of a site: SIGKILL to its daemon and every process of its PostgreSQL.
    pub(crate) fn kill_site(&mut self, name: &str) {
        kill_all_below(&self.node_dir(name));
        if let Some(mut child) = self.node_mut(name).child.take() {
            child.wait().unwrap();
        }
    }

    /// Waits for a condition; a daemon that ends by itself meanwhile ends the wait.
    pub(crate) fn wait(&mut self, what: &str, condition: impl Fn(&Lab) -> bool) {
        wait_for(what, || {
            self.check_daemons();
            condition(self).then_some(())
        });
    }

    /// Asserts that no daemon ended that nobody killed.
    pub(crate) fn check_daemons(&mut self) {
        for node in &mut self.nodes {
            let ended = node.child.as_mut().and_then(|child| child.try_wait().unwrap());
            if let Some(status) = ended {
                node.child = None;
                panic!("the daemon of {} ended by itself: {status}", node.name);
            }
        }
    }

    /// A GET at a node's HTTP door: the code and the body; `None` when it is not answered.
    pub(crate) fn get(&self, name: &str, path: &str) -> Option<(u16, String)> {
        let address = self.socket_address(name, HTTP_PORT);
        let patience = Duration::from_secs(3);
        let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
        stream.set_read_timeout(Some(patience)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let code = answer.split(' ').nth(1)?.parse().ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        Some((code, body.to_owned()))
    }

    /// The nodes that answer 200 to a GET.
    pub(crate) fn who_says_yes(&self, path: &str) -> Vec<&'static str> {
        let yes = |name: &&str| self.get(name, path).is_some_and(|(code, _)| code == 200);
        self.names().into_iter().filter(yes).collect()
    }

    /// The cluster as one node sees it.
    pub(crate) fn status_of(&self, name: &str) -> Option<Value> {
        let (code, body) = self.get(name, "/status")?;
        (code == 200).then(|| serde_json::from_str(&body).unwrap())
    }

    /// The cluster as the first node sees it that hears a majority.
    pub(crate) fn status(&self) -> Option<Value> {
        let seen = self.nodes.iter().filter_map(|node| self.status_of(node.name));
        seen.into_iter().find(|status| status["majority"] == true)
    }

    /// The epoch; only asked while the cluster answers.
    pub(crate) fn epoch(&self) -> Value {
        self.status().expect("a majority answers")["epoch"].clone()
    }

    /// What a node's daemon says of its own trouble.
    pub(crate) fn trouble(&self, name: &str) -> Option<String> {
        let status = self.status_of(name)?;
        node_in(&status, name)?["trouble"].as_str().map(str::to_owned)
    }

    /// `active` is active and writable, by its own and the majority's account.
    pub(crate) fn writable_at(&self, active: &str) -> bool {
        let says = |status: &Value| {
            status["active"] == active
                && status["phase"] == "running"
                && node_in(status, active).is_some_and(|node| node["writable"] == true)
        };
        self.status_of(active).is_some_and(|status| status["majority"] == true && says(&status))
            && self.get(active, "/primary").is_some_and(|(code, _)| code == 200)
    }

    /// `active` is active and writable, and the other data node could take over.
    pub(crate) fn protected_under(&self, active: &str) -> bool {
        let passive = other(active);
        let covered = |status: &Value| {
            status["failover"]["reason"] == "ready"
                && node_in(status, passive)
                    .is_some_and(|node| node["attached"] == true && node["mark"].is_null())
        };
        self.writable_at(active)
            && self.status_of(active).is_some_and(|status| covered(&status))
            && self.status_of(passive).is_some_and(|status| covered(&status))
            && self.get(passive, "/replica").is_some_and(|(code, _)| code == 200)
    }

    /// A verb of the program, as an operator.
    pub(crate) fn operator(&self, arguments: &[&str]) -> Ended {
        self.person("operator", arguments)
    }

    /// The same as a person with this role.
    pub(crate) fn person(&self, role: &str, arguments: &[&str]) -> Ended {
        let context = self.cluster_dir().join(format!("contexts/{role}.toml"));
        run(Command::new(BINARY).args(arguments).env("UNDERSTUDY_CONTEXT", context))
    }

    /// A program of PostgreSQL's at a node's server, over its Unix socket, as the superuser.
    pub(crate) fn tool_at(&self, name: &str, program: &str) -> Command {
        let mut command = tool(program);
        command.arg("-h").arg(self.socket_dir(name)).arg("-U").arg("postgres");
        command.arg("-p").arg(POSTGRES_PORT.to_string());
        command
    }

    /// Runs SQL at a node's server; what it answers, or what went wrong.
    pub(crate) fn try_sql(&self, name: &str, database: &str, sql: &str) -> Result<String, String> {
        let mut psql = self.tool_at(name, "psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]);
        let ended = run(&mut psql);
        if !ended.status.success() {
            return Err(ended.stderr);
        }
        Ok(ended.stdout.trim_end().to_owned())
    }

    /// Runs SQL that must succeed.
    #[track_caller]
    pub(crate) fn sql(&self, name: &str, database: &str, sql: &str) -> String {
        self.try_sql(name, database, sql).unwrap_or_else(|said| panic!("{sql} at {name}: {said}"))
    }

    fn print_logs(&self) {
        if let Some(status) = self.status() {
            eprintln!("--- status\n{status:#}");
        }
        for node in &self.nodes {
            print_tail(node.name, &self.log(node.name));
            let log = self.node_dir(node.name).join("data/postgres-log/postgres.log");
            if log.exists() {
                print_tail(&format!("{}'s PostgreSQL", node.name), &log);
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        kill_all_below(self.root.path());
        for node in &mut self.nodes {
            if let Some(child) = &mut node.child {
                child.kill().ok();
                child.wait().ok();
            }
        }
    }
}

/// The other data node.
pub(crate) fn other(name: &str) -> &'static str {
    if name == DATA[0] { DATA[1] } else { DATA[0] }
}

/// A node's line in a status.
pub(crate) fn node_in<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["nodes"].as_array()?.iter().find(|node| node["name"] == name)
}

fn print_tail(title: &str, file: &Path) {
    let log = fs::read(file).unwrap_or_default();
    let log = String::from_utf8_lossy(&log).into_owned();
    let lines: Vec<&str> = log.lines().collect();
    let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
    eprintln!("--- {title} (last lines of its log)\n{}", tail.join("\n"));
}

/// The first three numbers of loopback addresses that no other test uses: they are chosen by the
/// process's number, and must have every port free.
fn free_network() -> String {
    let seed = std::process::id();
    let free = |network: &String| {
        (1..=4).all(|host| {
            [GRPC_PORT, HTTP_PORT, POSTGRES_PORT]
                .into_iter()
                .all(|port| TcpListener::bind((format!("{network}.{host}"), port)).is_ok())
        })
    };
    // In one process several labs may be made at the same time.
    static TAKEN: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());
    let mut taken = TAKEN.lock().unwrap();
    let network = (0..200)
        .map(|attempt| seed.wrapping_add(attempt * 7919))
        .map(|number| format!("127.{}.{}", 10 + number % 200, number / 200 % 250))
        .find(|network| !taken.contains(network) && free(network))
        .expect("some loopback addresses are free");
    taken.push(network.clone());
    network
}
