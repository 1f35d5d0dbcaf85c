//! The package as an administrator uses it: installed by dpkg on three machines of the test's own, run as
//! its unit says, and replaced by another version under load, node after node.
//!
//! A machine's root is this host's below an overlay, so the maintainer scripts run in a whole Debian and
//! can change nothing of the host; `dpkg --root` would need a Debian to be unpacked first.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::machines::{Machine, only_child, wired};
use support::postgres::bin_dir;
use support::processes::{Background, Ended, run};
use support::{BINARY, PATIENCE, wait_for};

const ACTIVE: &str = "north";
const PASSIVE: &str = "south";
const WITNESS: &str = "witness";
const UNIT: &str = "/lib/systemd/system/understudy.service";
const CONFIG: &str = "/etc/understudy/node.toml";
const CONFFILE: &str = "/etc/logrotate.d/understudy";
const OWN_LINE: &str = "# ours: the administrator was here";
const CONTEXT: &str = "root/cluster/contexts/operator.toml";

/// Two packages that differ in the version of their program and in a configuration file.
struct Packages {
    old: PathBuf,
    old_version: String,
    new: PathBuf,
    new_version: String,
}

fn build_package(deploy: &Path, binary: &Path, version: &str, out: &Path) -> PathBuf {
    let mut command = Command::new(deploy.join("debian/build"));
    command.arg("--binary").arg(binary).args(["--version", version, "--compression", "none"]);
    command.arg("--out").arg(out).env("SOURCE_DATE_EPOCH", "1700000000");
    let said = Background::start(&mut command).wait(PATIENCE).good();
    PathBuf::from(said.lines().last().unwrap())
}

/// The program says its version from constants of its text: in the second one they are others of the same
/// length, and nothing else is.
fn build_packages(below: &Path) -> Packages {
    let said = run(Command::new(BINARY).arg("version")).good();
    let old_version = said.trim().rsplit(' ').next().unwrap().to_owned();
    let (head, last) = old_version.split_at(old_version.len() - 1);
    let new_version = format!("{head}{}", if last == "9" { "8" } else { "9" });
    let mut program = std::fs::read(BINARY).unwrap();
    let (from, to) = (old_version.as_bytes(), new_version.as_bytes());
    let found: Vec<usize> = places_of(&program, from);
    for at in found {
        program[at..at + to.len()].copy_from_slice(to);
    }
    let other = below.join("understudy");
    std::fs::write(&other, program).unwrap();
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o755)).unwrap();

    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let copy = below.join("sources");
    std::fs::create_dir(&copy).unwrap();
    let parts = ["deploy", "docs", "README.md"].map(|part| top.join(part));
    run(Command::new("cp").arg("-a").args(parts).arg(&copy)).good();
    let conffile = copy.join("deploy/debian/logrotate");
    let text = std::fs::read_to_string(&conffile).unwrap() + "# theirs: of the next version\n";
    std::fs::write(&conffile, text).unwrap();
    Packages {
        old: build_package(&top.join("deploy"), Path::new(BINARY), &old_version, below),
        new: build_package(&copy.join("deploy"), &other, &new_version, below),
        old_version,
        new_version,
    }
}

fn places_of(text: &[u8], pattern: &[u8]) -> Vec<usize> {
    let first = pattern[0];
    let starts = text.iter().enumerate().filter(|(_, byte)| **byte == first).map(|(at, _)| at);
    starts.filter(|at| text[*at..].starts_with(pattern)).collect()
}

/// What the unit says, by name; of a name that occurs again the first.
fn unit_says(machine: &Machine, name: &str) -> String {
    let unit = run(machine.command("cat").arg(UNIT)).good();
    let found = unit.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
    found.unwrap_or_else(|| panic!("the installed unit has no {name}:\n{unit}")).to_owned()
}

/// A program in a machine as the unit runs it: its user, no capabilities, no new privileges.
fn as_the_service(machine: &Machine, line: &str) -> Command {
    let user = unit_says(machine, "User");
    assert_eq!(unit_says(machine, "CapabilityBoundingSet"), "");
    assert_eq!(unit_says(machine, "NoNewPrivileges"), "yes");
    let mut command = machine.command("setpriv");
    command.arg(format!("--reuid={user}")).arg(format!("--regid={user}")).arg("--init-groups");
    command.args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"]);
    command.args(line.split_whitespace());
    command
}

/// A node: a machine with the package on it, and its daemon.
struct Node {
    machine: Machine,
    notify: UnixDatagram,
    daemon: Option<Child>,
    log: PathBuf,
}

impl Node {
    fn prepare(machine: Machine, log: PathBuf) -> Node {
        let socket = machine.outside("/run/notify");
        let notify = UnixDatagram::bind(&socket).unwrap();
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
        notify.set_nonblocking(true).unwrap();
        Node { machine, notify, daemon: None, log }
    }

    /// What dpkg says when it puts a package on; nobody is there to be asked, and what the administrator
    /// changed stays.
    fn install(&self, package: &Path) -> Ended {
        std::fs::copy(package, self.machine.outside("/tmp/understudy.deb")).unwrap();
        let mut dpkg = self.machine.command("dpkg");
        // Triggers are other packages' (the index of manual pages), and a power cut is not tested here.
        dpkg.args(["--no-triggers", "--force-unsafe-io", "--force-confold", "--force-downgrade"]);
        run(dpkg.args(["--install", "/tmp/understudy.deb"]))
    }

    /// As systemd starts it: the check, the daemon, and READY=1.
    fn start(&mut self) {
        let check = unit_says(&self.machine, "ExecStartPre");
        run(&mut as_the_service(&self.machine, &check)).good();
        let line = unit_says(&self.machine, "ExecStart");
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = as_the_service(&self.machine, &line);
        command.env("NOTIFY_SOCKET", "/run/notify").stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.daemon = Some(command.spawn().unwrap());
        let name = self.machine.name;
        let mut buffer = [0; 4096];
        wait_for(&format!("READY=1 of {name}"), || {
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "{name} ended: {}", self.log_text());
            while let Ok(length) = self.notify.recv(&mut buffer) {
                let told = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if told.lines().any(|line| line == "READY=1") {
                    return Some(());
                }
            }
            None
        });
    }

    /// As systemd stops it with KillMode=process: SIGTERM to the daemon alone.
    fn stop(&mut self) {
        assert_eq!(unit_says(&self.machine, "KillMode"), "process");
        let mut child = self.daemon.take().expect("it runs");
        let daemon = only_child(child.id()).expect("nsenter has started it");
        let pid = Pid::from_raw(i32::try_from(daemon).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{}: {status}\n{}", self.machine.name, self.log_text());
    }

    fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn sql(&self, sql: &str) -> String {
        let psql = bin_dir().join("psql");
        let line = format!("{} -X -q -A -t -v ON_ERROR_STOP=1 -U postgres", psql.display());
        let mut command = as_the_service(&self.machine, &line);
        run(command.args(["-h", "/var/lib/understudy/run", "-d", "postgres", "-c", sql]))
            .good()
            .trim_end()
            .to_owned()
    }

    fn postmaster(&self) -> String {
        let file = self.machine.outside("/var/lib/understudy/pgdata/postmaster.pid");
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().next().unwrap().to_owned()
    }
}

/// Three nodes, and the machine at which operators and clients are.
struct Cluster {
    hub: Machine,
    nodes: Vec<Node>,
    directory: tempfile::TempDir,
}

impl Cluster {
    fn installed(directory: tempfile::TempDir, package: &Path) -> Cluster {
        let mut machines = wired(directory.path(), &[ACTIVE, PASSIVE, WITNESS]).into_iter();
        let hub = machines.next().unwrap();
        let log = |name: &str| directory.path().join(format!("{name}.log"));
        let nodes: Vec<Node> = machines
            .map(|m| {
                let at = log(m.name);
                Node::prepare(m, at)
            })
            .collect();
        for node in &nodes {
            let said = node.install(package).good();
            assert!(
                said.contains("put this node's directory"),
                "nothing says what is next: {said}"
            );
        }
        let mut init = nodes[0].machine.command("understudy");
        init.args(["init", "--dir", "/root/cluster"]);
        for node in &nodes {
            let (name, address) = (node.machine.name, &node.machine.address);
            let kind = if name == WITNESS { "witness" } else { "data" };
            init.arg("--node").arg(format!(
                "name={name},site={name},kind={kind},address={address}:7400,\
                 http={address}:7480,data-dir=/var/lib/understudy"
            ));
        }
        run(&mut init).good();
        let made = nodes[0].machine.outside("/root/cluster");
        for node in &nodes {
            let carried = node.machine.outside("/root/carried");
            let own = made.join("nodes").join(node.machine.name);
            run(Command::new("cp").arg("-a").arg(&own).arg(&carried)).good();
            let set = |program: &str, line: &str| {
                run(node.machine.command(program).args(line.split(' '))).good();
            };
            set("cp", "-a /root/carried/. /etc/understudy");
            set("sed", &format!("-i s/^mode.=.*/mode=\"zero\"/ {CONFIG}"));
            set("chown", "-R postgres:postgres /etc/understudy/tls");
            let change = format!("echo '{OWN_LINE}' >> {CONFFILE}");
            run(node.machine.command("sh").args(["-c", &change])).good();
        }
        let mut cluster = Cluster { hub, nodes, directory };
        for node in &mut cluster.nodes {
            node.start();
        }
        cluster.wait_protected();
        let line = format!("host all app {}/24 scram-sha-256\n", cluster.hub.address);
        for name in [ACTIVE, PASSIVE] {
            let node = cluster.node(name);
            let file = node.machine.outside("/var/lib/understudy/pgdata/pg_hba.conf");
            let mut file = std::fs::File::options().append(true).open(file).unwrap();
            file.write_all(line.as_bytes()).unwrap();
            node.sql("SELECT pg_reload_conf()");
        }
        cluster
    }

    fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.machine.name == name).unwrap()
    }

    fn operator(&self, arguments: &[&str]) -> Ended {
        let context = self.nodes[0].machine.outside("/").join(CONTEXT);
        let mut command = self.hub.on_its_network(BINARY);
        run(command.args(arguments).env("UNDERSTUDY_CONTEXT", context))
    }

    fn status(&self) -> Option<Value> {
        let ended = self.operator(&["status", "--output", "json"]);
        ended.status.success().then(|| serde_json::from_str(&ended.stdout).unwrap())
    }

    /// Everybody is there, and the passive could take over.
    fn wait_protected(&self) -> Value {
        wait_for("a cluster whose passive could take over", || {
            let status = self.status()?;
            let nodes = status["nodes"].as_array()?;
            let heard = |node: &Value| node["heard_seconds_ago"].as_f64().is_some_and(|s| s < 1.5);
            let ready = status["failover"]["reason"] == "ready" && nodes.iter().all(heard);
            (ready && nodes.iter().any(|node| node["attached"] == true)).then_some(status)
        })
    }

    /// Replaces a node's package and restarts its daemon; nothing but that may change.
    fn replace(&mut self, name: &str, package: &Path, version: &str, load: &Load) {
        let before = self.wait_protected();
        let began = Instant::now();
        let said = self.node(name).install(package).good();
        // Without systemd the restart is the administrator's.
        assert!(said.contains("still the old program until you restart it"), "{said}");
        let node = self.node(name);
        let postmaster = (name != WITNESS).then(|| node.postmaster());
        node.stop();
        node.start();
        wait_for("the node's new version in the status", || {
            let status = self.status()?;
            let nodes = status["nodes"].as_array()?;
            let own = nodes.iter().find(|node| node["name"] == name)?;
            (own["program_version"] == version).then_some(())
        });
        let after = self.wait_protected();
        load.wait_for_more();
        assert_eq!(after["epoch"], before["epoch"], "the epoch changed by a daemon's restart");
        assert_eq!(after["active"], before["active"]);
        let node = self.node(name);
        if let Some(postmaster) = postmaster {
            assert_eq!(node.postmaster(), postmaster, "PostgreSQL was restarted at {name}");
        }
        let gap = load.longest_gap_since(began);
        eprintln!("{name} to {version}: longest span without an acknowledged commit {gap:?}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.nodes {
                let text = node.log_text();
                let lines: Vec<&str> = text.lines().collect();
                let tail = lines[lines.len().saturating_sub(40)..].join("\n");
                eprintln!("--- {}\n{tail}", node.machine.name);
            }
        }
        eprintln!("ending the machines below {}", self.directory.path().display());
    }
}

/// A client with libpq that knows both data nodes: one row after the other, each acknowledged one kept.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<(u64, Instant)>>>,
    thread: std::thread::JoinHandle<()>,
}

impl Load {
    fn start(cluster: &Cluster) -> Load {
        let data = [&cluster.nodes[0].machine.address, &cluster.nodes[1].machine.address];
        let conninfo = format!(
            "host={},{} port=5432,5432 user=app dbname=postgres target_session_attrs=read-write \
             connect_timeout=2",
            data[0], data[1]
        );
        let mut psql = cluster.hub.on_its_network(bin_dir().join("psql"));
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1"]).arg(conninfo);
        psql.env("PGPASSWORD", "app").current_dir("/");
        psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let (told, kept) = (stop.clone(), acknowledged.clone());
        let thread = std::thread::spawn(move || write(&mut psql, &told, &kept));
        let load = Load { stop, acknowledged, thread };
        load.wait_for_more();
        load
    }

    fn wait_for_more(&self) {
        let count = || self.acknowledged.lock().unwrap().len();
        let before = count();
        wait_for("more acknowledged rows", || (count() >= before + 50).then_some(()));
    }

    fn longest_gap_since(&self, from: Instant) -> Duration {
        let acknowledged = self.acknowledged.lock().unwrap();
        let moments = acknowledged.iter().map(|(_, at)| *at).filter(|at| *at >= from);
        let moments: Vec<Instant> = moments.collect();
        moments.windows(2).map(|pair| pair[1] - pair[0]).max().expect("rows were acknowledged")
    }

    /// Ends it; every acknowledged row is at both data nodes.
    fn finish(self, cluster: &mut Cluster, active: &str) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        let acknowledged = self.acknowledged.lock().unwrap();
        let end = cluster.node(active).sql("SELECT pg_current_wal_flush_lsn()");
        for name in [ACTIVE, PASSIVE] {
            let node = cluster.node(name);
            if name != active {
                let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
                wait_for("the passive to replay", || (node.sql(&replayed) == "t").then_some(()));
            }
            let rows = node.sql("SELECT n FROM acked");
            let held: BTreeSet<u64> = rows.lines().map(|row| row.parse().unwrap()).collect();
            let lost: Vec<u64> =
                acknowledged.iter().map(|(n, _)| *n).filter(|n| !held.contains(n)).collect();
            let all = acknowledged.len();
            assert_eq!(lost, Vec::<u64>::new(), "of {all} acknowledged rows at {name}");
        }
        eprintln!("{} acknowledged rows, all of them at both data nodes", acknowledged.len());
    }
}

fn write(psql: &mut Command, stop: &AtomicBool, acknowledged: &Mutex<Vec<(u64, Instant)>>) {
    let mut n: u64 = 0;
    while !stop.load(Ordering::SeqCst) {
        let mut session = psql.spawn().unwrap();
        let mut orders = session.stdin.take().expect("it is piped");
        let mut answers = BufReader::new(session.stdout.take().expect("it is piped")).lines();
        while !stop.load(Ordering::SeqCst) {
            n += 1;
            // A warning at COMMIT would be no acknowledgement; nobody cancels here.
            let order = format!("INSERT INTO acked VALUES ({n});\n\\echo {n}\n");
            if orders.write_all(order.as_bytes()).is_err() {
                break;
            }
            match answers.next() {
                Some(Ok(answer)) if answer == n.to_string() => {
                    acknowledged.lock().unwrap().push((n, Instant::now()));
                }
                _ => break,
            }
            // A steady load, and not a race for two cores.
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(orders);
        session.kill().ok();
        session.wait().ok();
    }
}

#[test]
fn an_installed_cluster_is_upgraded_node_by_node_under_load_and_taken_back_after_a_switchover() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: machines with a root and a network of their own need root");
        return;
    }
    let directory = tempfile::Builder::new().prefix("understudy-").tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let packages = build_packages(directory.path());
    let (old, new) = (packages.old_version.as_str(), packages.new_version.as_str());
    let mut cluster = Cluster::installed(directory, &packages.old);
    cluster.nodes[0].sql("CREATE ROLE app LOGIN PASSWORD 'app'");
    cluster.nodes[0].sql("CREATE TABLE acked (n bigint PRIMARY KEY); GRANT ALL ON acked TO app");
    let load = Load::start(&cluster);
    let text = cluster.operator(&["status"]).good();
    assert!(text.contains(&format!("\nprogram   {old}\n")), "{text}");

    cluster.replace(WITNESS, &packages.new, new, &load);
    let text = cluster.operator(&["status"]).good();
    let mixed = format!("MIXED: {old} at {ACTIVE}, {PASSIVE}; {new} at {WITNESS}");
    assert!(text.contains(&mixed), "{text}");
    let text = cluster.operator(&["validate"]).good();
    assert!(text.contains("nodes run different versions of this program"), "{text}");
    cluster.replace(PASSIVE, &packages.new, new, &load);
    cluster.replace(ACTIVE, &packages.new, new, &load);
    let text = cluster.operator(&["status"]).good();
    assert!(text.contains(&format!("\nprogram   {new}\n")), "{text}");
    for node in &cluster.nodes {
        let kept = run(node.machine.command("cat").arg(CONFFILE)).good();
        assert!(kept.contains(OWN_LINE) && !kept.contains("# theirs"), "{kept}");
        let brought = format!("{CONFFILE}.dpkg-dist");
        let brought = run(node.machine.command("cat").arg(&brought)).good();
        assert!(brought.contains("# theirs"), "{brought}");
    }

    // Taken back at the node that was active, which is made a passive first.
    let began = Instant::now();
    cluster.operator(&["switchover", "--reason", "upgrade", "--wait"]).good();
    let status = cluster.wait_protected();
    assert_eq!(status["active"], PASSIVE);
    load.wait_for_more();
    let gap = load.longest_gap_since(began);
    eprintln!("switchover: longest span without an acknowledged commit {gap:?}");
    cluster.replace(ACTIVE, &packages.old, old, &load);
    load.finish(&mut cluster, PASSIVE);
}
