//! The cluster under test: `understudy init`, a daemon in each site's namespace, and what an operator
//! and a client can see of it. It knows nothing of the program's inside.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Pid;
use serde_json::Value;
use understudy_workload::{Credentials, Endpoint};

use crate::arena::{Arena, SITES, address, network, unmount_below};
use crate::command::{output, said};
use crate::conversation::Conversation;
use crate::faults::clocks;
use crate::process::{self, Process};

/// The sites with data.
pub(crate) const DATA: [&str; 2] = ["north", "south"];
pub(crate) const WITNESS: &str = "witness";
pub(crate) const GRPC_PORT: u16 = 7400;
const HTTP_PORT: u16 = 7480;
pub(crate) const POSTGRES_PORT: u16 = 5432;
const FOUNDING_TIMEOUT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(20);
const ROLE: &str = "chaos";
/// Of the rig's own, in namespaces that nobody else reaches.
const PASSWORD: &str = "chaos";

/// What keeps commits apart from acknowledgements: the dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    Zero,
    Bounded,
}

impl Mode {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Mode::Zero => "zero",
            Mode::Bounded => "bounded",
        }
    }
}

/// The durations that an operator chooses in `[timing]`, with what goes with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Profile {
    /// What `understudy init` writes.
    #[default]
    Default,
    /// `profile = "fast"`, and a passive that need not wait for a silent holder's lease in `zero`.
    Fast,
}

impl Profile {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Profile::Default => "default",
            Profile::Fast => "fast",
        }
    }
}

/// How a cluster is configured. Everything in it is what an operator can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) mode: Mode,
    pub(crate) profile: Profile,
    /// Without its passive the active goes on alone after this many milliseconds, instead of stalling.
    pub(crate) degrade_after_ms: Option<u32>,
    /// The ceiling on exposure in `bounded`, in seconds; what `understudy init` gives unless set.
    pub(crate) ceiling_s: Option<u32>,
    /// The data nodes' `[wal]`; the defaults go by the file system.
    pub(crate) room: Option<WalRoom>,
    /// The third node keeps the journal, and a commit is acknowledged when it or the passive has it.
    pub(crate) journal: bool,
}

/// How much WAL a data node keeps, in journal and `pg_wal` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WalRoom {
    /// Behind what is needed.
    pub(crate) keep_mib: u32,
    /// At most.
    pub(crate) max_mib: u32,
}

impl WalRoom {
    /// A node's file with these limits instead of its own.
    fn set_in(self, text: &str) -> Result<String> {
        let (before, section) = text.split_once("\n[wal]\n").context("find the section [wal]")?;
        let mut set = 0;
        let own = |line: &str| {
            let (name, mebibytes) = match line.split_once(" = ") {
                Some((name @ "keep", _)) => (name, self.keep_mib),
                Some((name @ "max", _)) => (name, self.max_mib),
                _ => return line.to_owned(),
            };
            set += 1;
            format!("{name} = \"{mebibytes}MiB\"")
        };
        let section: Vec<String> = section.lines().map(own).collect();
        ensure!(set == 2, "{set} lines of [wal] are keep or max, instead of two");
        Ok(format!("{before}\n[wal]\n{}\n", section.join("\n")))
    }
}

impl From<Mode> for Shape {
    fn from(mode: Mode) -> Shape {
        let profile = Profile::Default;
        let (degrade_after_ms, ceiling_s, room, journal) = (None, None, None, false);
        Shape { mode, profile, degrade_after_ms, ceiling_s, room, journal }
    }
}

impl Shape {
    /// The sections of a topology that it means.
    pub(crate) fn sections(self) -> String {
        let mode = self.mode.as_str();
        // A site is lost on purpose, so the survivor is to go on alone.
        let mut text = format!("[durability]\nmode = \"{mode}\"\non_sole_survivor = \"open\"\n");
        if let Some(ceiling) = self.ceiling_s {
            text += &format!("rpo = \"{ceiling}s\"\n");
        }
        if let Some(after) = self.degrade_after_ms {
            text += &format!("on_passive_loss = \"degrade\"\ndegrade_after = \"{after}ms\"\n");
        }
        if self.journal {
            text += "durable_copies = 1\n";
        }
        let timing = match self.profile {
            Profile::Default => "default",
            Profile::Fast => {
                text += "promote_without_lease_wait = true\n";
                "fast"
            }
        };
        // A site is lost more than once in a series, and always on purpose.
        text + &format!("[timing]\nprofile = \"{timing}\"\nflap_hold = \"0s\"\n")
    }
}

/// The cluster. Its processes are ended by the arena, also when the rig dies.
pub(crate) struct Lab {
    pub(crate) arena: Arena,
    pub(crate) shape: Shape,
    root: PathBuf,
    binary: PathBuf,
    owner: (u32, u32),
    bin_dir: PathBuf,
    daemons: RefCell<Vec<Option<Child>>>,
}

impl Lab {
    /// A cluster whose passive could take over. `number` tells it from the arena's earlier ones.
    ///
    /// # Errors
    /// When it is not that within 90 s.
    pub(crate) fn found(arena: &Arena, binary: &Path, shape: Shape, number: u32) -> Result<Lab> {
        let root = arena.root().join(number.to_string());
        fs::create_dir(&root).with_context(|| format!("create {}", root.display()))?;
        fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
        let lab = Lab {
            arena: arena.clone(),
            shape,
            root,
            binary: binary.to_owned(),
            owner: postgres_user()?,
            bin_dir: postgres_programs()?,
            daemons: RefCell::new(SITES.iter().map(|_| None).collect()),
        };
        let topology = lab.root.join("topology.toml");
        fs::write(&topology, lab.topology())?;
        let mut init = Command::new(binary);
        init.arg("init").arg("--dir").arg(lab.root.join("cluster"));
        said(init.arg("--topology").arg(&topology))?;
        lab.give_room()?;
        for site in SITES {
            lab.start(site)?;
        }
        lab.until("a founded cluster whose passive could take over", FOUNDING_TIMEOUT, || {
            lab.protected_under(DATA[0])
        })?;
        let sql = format!("CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{PASSWORD}'");
        lab.sql(DATA[0], "postgres", &sql)?;
        lab.let_clients_in()?;
        Ok(lab)
    }

    /// What an operator would change in both data nodes' files; a topology has nothing for WAL.
    fn give_room(&self) -> Result<()> {
        let Some(room) = self.shape.room else { return Ok(()) };
        for site in DATA {
            let file = self.site_dir(site).join("node.toml");
            let what = || format!("give room for WAL in {}", file.display());
            let text = fs::read_to_string(&file).with_context(what)?;
            fs::write(&file, room.set_in(&text).with_context(what)?).with_context(what)?;
        }
        Ok(())
    }

    /// The operator's own line at both servers: clients come from the arena's network.
    fn let_clients_in(&self) -> Result<()> {
        for site in DATA {
            let file = self.pgdata(site).join("pg_hba.conf");
            let open = File::options().append(true).open(&file);
            let line = format!("\nhost all all {} scram-sha-256\n", network());
            open.and_then(|mut file| file.write_all(line.as_bytes()))
                .with_context(|| format!("let clients in by {}", file.display()))?;
            self.sql(site, "postgres", "SELECT pg_reload_conf()")?;
        }
        let let_in = || self.application_sql(DATA[0], "postgres", "SELECT 1").is_ok();
        self.until("clients to be let in", FOUNDING_TIMEOUT, let_in).map(drop)
    }

    fn topology(&self) -> String {
        let mut text = self.shape.sections();
        text += "[parameters]\nshared_buffers = \"32MB\"\nmax_connections = 300\n\
                 max_prepared_transactions = 10\n";
        for site in SITES {
            let address = address(site);
            let kind = match (site == WITNESS, self.shape.journal) {
                (true, true) => "journal",
                (true, false) => "witness",
                (false, _) => "data",
            };
            text += &format!(
                "[[nodes]]\nname = \"{site}\"\nkind = \"{kind}\"\naddress = \"{address}:{GRPC_PORT}\"\n\
                 http = \"{address}:{HTTP_PORT}\"\n"
            );
            if kind == "data" {
                text += &format!("postgres-port = {POSTGRES_PORT}\nos-user = \"postgres\"\n");
            }
        }
        text
    }

    // --- places

    /// Everything of a site lies below it, its PostgreSQL's data directory too.
    pub(crate) fn site_dir(&self, site: &str) -> PathBuf {
        self.root.join("cluster/nodes").join(site)
    }

    pub(crate) fn pgdata(&self, site: &str) -> PathBuf {
        self.site_dir(site).join("data/pgdata")
    }

    pub(crate) fn divergent(&self, site: &str) -> PathBuf {
        self.site_dir(site).join("data/divergent")
    }

    /// Where a data node stores what it receives.
    pub(crate) fn journal(&self, site: &str) -> PathBuf {
        self.site_dir(site).join("data/wal")
    }

    /// Where a server writes its own WAL.
    pub(crate) fn pg_wal(&self, site: &str) -> PathBuf {
        self.pgdata(site).join("pg_wal")
    }

    fn socket_dir(&self, site: &str) -> PathBuf {
        self.site_dir(site).join("data/run")
    }

    fn log(&self, site: &str) -> PathBuf {
        self.root.join(format!("{site}.log"))
    }

    /// Copies daemons' and servers' logs and the status away, for whoever looks into a failure.
    pub(crate) fn keep_logs(&self, into: &Path) -> Result<()> {
        fs::create_dir_all(into).with_context(|| format!("create {}", into.display()))?;
        for site in SITES {
            fs::copy(self.log(site), into.join(format!("{site}.log")))?;
            let status = self.status_of(site).unwrap_or(Value::Null);
            fs::write(into.join(format!("{site}.status.json")), format!("{status:#}\n"))?;
            let server = self.site_dir(site).join("data/postgres-log/postgres.log");
            if server.exists() {
                fs::copy(server, into.join(format!("{site}.postgres.log")))?;
            }
        }
        Ok(())
    }

    // --- daemons and servers

    fn index(site: &str) -> usize {
        SITES.iter().position(|name| *name == site).expect("one of the three sites")
    }

    /// Starts a site's daemon, as systemd would.
    pub(crate) fn start(&self, site: &str) -> Result<()> {
        self.start_in(site, &[], &[])
    }

    /// The same, run by another program, such as a tracer, that ends as the daemon.
    pub(crate) fn start_under(&self, site: &str, by: &[OsString]) -> Result<()> {
        self.start_in(site, &[], by)
    }

    /// The same, with a wall clock of its own, which stands right to begin with.
    ///
    /// # Errors
    /// Also when libfaketime is not installed.
    pub(crate) fn start_with_own_wall_clock(&self, site: &str) -> Result<()> {
        let (library, file) = (clocks::library()?, self.wall_clock(site));
        clocks::set(&file, 0)?;
        self.start_in(site, &clocks::environment(library, &file), &[])
    }

    /// The file that says where that clock stands.
    pub(crate) fn wall_clock(&self, site: &str) -> PathBuf {
        self.root.join(format!("{site}.clock"))
    }

    fn start_in(&self, site: &str, environment: &[(&str, PathBuf)], by: &[OsString]) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log(site))?;
        let mut words = by.iter().map(OsString::as_os_str).chain([self.binary.as_os_str()]);
        let mut daemon = self.arena.at(site, words.next().expect("the binary is one of them"));
        daemon.args(words);
        daemon.arg("run").arg("--config").arg(self.site_dir(site).join("node.toml"));
        daemon.current_dir(self.site_dir(site)).process_group(0);
        daemon.envs(environment.iter().map(|(name, value)| (name, value)));
        daemon.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = daemon.spawn().with_context(|| format!("start the daemon of {site}"))?;
        let before = self.daemons.borrow_mut()[Self::index(site)].replace(child);
        if let Some(mut before) = before {
            before.wait().with_context(|| format!("wait for the earlier daemon of {site}"))?;
        }
        Ok(())
    }

    /// The daemon's process, while there is one; one that has ended is collected.
    pub(crate) fn daemon(&self, site: &str) -> Option<Pid> {
        let mut daemons = self.daemons.borrow_mut();
        let child = daemons[Self::index(site)].as_mut()?;
        match child.try_wait() {
            Ok(None) => Some(Pid::from_child(child)),
            Ok(Some(_)) | Err(_) => None,
        }
    }

    /// Starts every daemon that is not there, as systemd would after a while; says which.
    pub(crate) fn start_the_dead(&self) -> Result<Vec<&'static str>> {
        let dead: Vec<_> = SITES.into_iter().filter(|site| self.daemon(site).is_none()).collect();
        for site in &dead {
            self.start(site)?;
        }
        Ok(dead)
    }

    /// Daemon and PostgreSQL's processes of a site.
    pub(crate) fn processes(&self, site: &str) -> Vec<Process> {
        process::below(&self.site_dir(site))
    }

    /// The postmaster, as its own file says.
    pub(crate) fn postmaster(&self, site: &str) -> Option<Pid> {
        let text = fs::read_to_string(self.pgdata(site).join("postmaster.pid")).ok()?;
        let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok()?)?;
        self.processes(site).iter().any(|process| process.pid == pid).then_some(pid)
    }

    /// The process of a site's server whose title contains `words`.
    pub(crate) fn server_process(&self, site: &str, words: &str) -> Option<Pid> {
        let processes = self.processes(site);
        let found = processes.iter().find(|p| p.is_postgres() && p.title.contains(words));
        found.map(|process| process.pid)
    }

    // --- what is seen from outside

    /// A GET at a node's HTTP door; `None` when it is not answered within `patience`.
    pub(crate) fn get(site: &str, path: &str, patience: Duration) -> Option<(u16, String)> {
        let address = SocketAddr::new(address(site).parse().ok()?, HTTP_PORT);
        let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: chaos\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let code = answer.split(' ').nth(1)?.parse().ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        Some((code, body.to_owned()))
    }

    fn says_yes(site: &str, path: &str) -> bool {
        Self::get(site, path, Duration::from_secs(1)).is_some_and(|(code, _)| code == 200)
    }

    /// The cluster as one node sees it.
    pub(crate) fn status_of(&self, site: &str) -> Option<Value> {
        Self::status_seen_by(site)
    }

    /// The same for whoever has no cluster at hand: addresses are the arena's.
    pub(crate) fn status_seen_by(site: &str) -> Option<Value> {
        let (code, body) = Self::get(site, "/status", Duration::from_secs(1))?;
        if code == 200 { serde_json::from_str(&body).ok() } else { None }
    }

    /// Whether somebody listens at a site's gRPC door.
    pub(crate) fn listens(&self, site: &str) -> Result<bool> {
        let mut ss = self.arena.at(site, "ss");
        let door = format!(":{GRPC_PORT} ");
        Ok(output(ss.args(["-tlnH"]))?.lines().any(|line| line.contains(&door)))
    }

    /// What a site's daemons have written.
    pub(crate) fn said(&self, site: &str) -> Result<String> {
        let bytes = fs::read(self.log(site)).with_context(|| format!("read {site}'s log"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A node of another cluster, with the same names and addresses and an authority of its own, at a
    /// site whose own processes are gone.
    pub(crate) fn stranger(&self, site: &str) -> Result<Stranger> {
        let directory = self.root.join("stranger");
        if directory.exists() {
            fs::remove_dir_all(&directory).context("remove an earlier stranger")?;
        }
        let mut init = Command::new(&self.binary);
        init.arg("init").arg("--dir").arg(&directory);
        said(init.arg("--topology").arg(self.root.join("topology.toml")))?;
        let own = directory.join("nodes").join(site);
        let log = File::create(self.root.join("stranger.log"))?;
        let mut daemon = self.arena.at(site, &self.binary);
        daemon.arg("run").arg("--config").arg(own.join("node.toml"));
        daemon.current_dir(&own).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = daemon.spawn().with_context(|| format!("start a stranger at {site}"))?;
        Ok(Stranger { directory, child })
    }

    /// The cluster as the first node sees it that hears a majority.
    pub(crate) fn status(&self) -> Option<Value> {
        let seen = SITES.into_iter().filter_map(|site| self.status_of(site));
        seen.into_iter().find(|status| status["majority"] == true)
    }

    /// The epoch's number.
    pub(crate) fn epoch(&self) -> Option<u64> {
        self.status()?["epoch"]["number"].as_u64()
    }

    /// The data site that is active and writable, by its own and a majority's account.
    pub(crate) fn active(&self) -> Option<&'static str> {
        DATA.into_iter().find(|site| self.writable_at(site))
    }

    /// `site` is active and writable.
    pub(crate) fn writable_at(&self, site: &str) -> bool {
        let says = |status: &Value| {
            status["active"] == site
                && status["majority"] == true
                && status["phase"] == "running"
                && node_in(status, site).is_some_and(|node| node["writable"] == true)
        };
        self.status_of(site).is_some_and(|status| says(&status)) && Self::says_yes(site, "/primary")
    }

    /// `active` is active and writable, and the other data site could take over.
    pub(crate) fn protected_under(&self, active: &str) -> bool {
        let passive = other(active);
        let journal = |status: &Value| {
            let names = status["waited_for"].as_array();
            names.is_some_and(|names| names.iter().any(|name| name == WITNESS))
        };
        let covered = |status: Value| {
            status["failover"]["reason"] == "ready"
                && (!self.shape.journal || journal(&status))
                && node_in(&status, passive)
                    .is_some_and(|node| node["attached"] == true && node["mark"].is_null())
        };
        self.writable_at(active)
            && self.status_of(active).is_some_and(covered)
            && self.status_of(passive).is_some_and(covered)
            && Self::says_yes(passive, "/replica")
            && Self::says_yes(WITNESS, "/readyz")
    }

    /// The active of a cluster whose passive could take over.
    pub(crate) fn protected(&self) -> Option<&'static str> {
        self.active().filter(|active| self.protected_under(active))
    }

    /// A metric without labels at a node; `None` when it is not answered or is unknown there.
    pub(crate) fn metric(site: &str, name: &str) -> Option<f64> {
        let (_, text) = Self::get(site, "/metrics", Duration::from_secs(1))?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.parse().ok().filter(|value: &f64| !value.is_nan())
    }

    /// Waits for a condition.
    ///
    /// # Errors
    /// When it is not so within `patience`, with what the cluster says then.
    pub(crate) fn until(
        &self,
        what: &str,
        patience: Duration,
        condition: impl Fn() -> bool,
    ) -> Result<Duration> {
        let begun = Instant::now();
        while !condition() {
            if begun.elapsed() > patience {
                bail!("waited {} s in vain for {what}; {}", patience.as_secs(), self.in_words());
            }
            std::thread::sleep(POLL);
        }
        Ok(begun.elapsed())
    }

    /// One line about the cluster, for errors.
    pub(crate) fn in_words(&self) -> String {
        let line = |site: &str| match self.status_of(site) {
            None => format!("{site}: silent"),
            Some(status) => {
                let own = node_in(&status, site);
                let trouble = own.and_then(|node| node["trouble"].as_str()).unwrap_or("-");
                format!(
                    "{site}: epoch {} active {} phase {} verdict {} writable {} state {} trouble {trouble}",
                    status["epoch"]["number"],
                    status["active"],
                    status["phase"],
                    status["failover"]["reason"],
                    own.map_or(&Value::Null, |node| &node["writable"]),
                    own.map_or(&Value::Null, |node| &node["state"]),
                )
            }
        };
        SITES.map(line).join("; ")
    }

    // --- operator and SQL

    /// A verb of the program, as an administrator, with what it said.
    pub(crate) fn operator(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--context").arg(self.root.join("cluster/contexts/administrator.toml"));
        command.args(arguments);
        command
    }

    /// One of PostgreSQL's programs, as its user, at a site's server over its Unix socket.
    pub(crate) fn tool(&self, site: &str, program: &str) -> Command {
        let mut command = Command::new(self.bin_dir.join(program));
        // Not in a site's directory: who kills a site must not kill its clients.
        command.current_dir("/").env("PGCONNECT_TIMEOUT", "5").env("LC_ALL", "C");
        command.uid(self.owner.0).gid(self.owner.1);
        command.arg("-h").arg(self.socket_dir(site)).arg("-U").arg("postgres");
        command.arg("-p").arg(POSTGRES_PORT.to_string());
        command
    }

    /// One of PostgreSQL's programs by hand, as its user, in a site's namespace.
    pub(crate) fn by_hand(&self, site: &str, program: &str) -> Command {
        let mut command = self.arena.at(site, "setpriv");
        let (uid, gid) = self.owner;
        command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}"));
        command.arg("--clear-groups").arg("--").arg(self.bin_dir.join(program));
        command.current_dir("/").env("LC_ALL", "C");
        command
    }

    /// `psql` at a site, ready for `-c`.
    pub(crate) fn psql(&self, site: &str, database: &str, sql: &str) -> Command {
        let mut psql = self.tool(site, "psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]);
        psql
    }

    /// Runs SQL at a site's server; its answer. Gives up after twenty seconds.
    pub(crate) fn sql(&self, site: &str, database: &str, sql: &str) -> Result<String> {
        let psql = self.psql(site, database, sql);
        // A server that is frozen answers nobody, and would hold the rig.
        let mut bounded = Command::new("timeout");
        bounded.args(["--kill-after=1", "20"]).arg(psql.get_program()).args(psql.get_args());
        bounded.current_dir("/").envs(psql.get_envs().filter_map(|(k, v)| Some((k, v?))));
        bounded.uid(self.owner.0).gid(self.owner.1);
        output(&mut bounded)
    }

    /// Runs SQL as an application would, over the network; its answer.
    pub(crate) fn application_sql(&self, site: &str, database: &str, sql: &str) -> Result<String> {
        let mut psql = Command::new("timeout");
        psql.args(["--kill-after=1", "5"]).arg(self.bin_dir.join("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", ROLE, "-d", database]);
        psql.args(["-h", &address(site), "-p", &POSTGRES_PORT.to_string(), "-c", sql]);
        psql.current_dir("/").env("PGPASSWORD", PASSWORD).env("PGCONNECT_TIMEOUT", "3");
        output(&mut psql)
    }

    /// Starts a long piece of SQL at a site. It is ended with the handle.
    pub(crate) fn session(&self, site: &str, database: &str, sql: &str) -> Result<Session> {
        let mut psql = self.psql(site, database, sql);
        psql.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Session(Some(psql.spawn().context("start psql")?)))
    }

    /// A session of the superuser's at a site, for one statement after the other.
    pub(crate) fn conversation(&self, site: &str, database: &str) -> Result<Conversation> {
        let mut psql = self.tool(site, "psql");
        psql.args(["-X", "-q", "-A", "-t", "-d", database]);
        Conversation::begin(&psql, self.owner)
    }

    /// Both sites' servers, as the applications reach them.
    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        let endpoint = |site: &str| Endpoint {
            name: site.to_owned(),
            host: address(site),
            port: POSTGRES_PORT,
        };
        DATA.map(endpoint).to_vec()
    }

    /// The applications' role.
    pub(crate) fn credentials(&self) -> Credentials {
        Credentials { user: ROLE.to_owned(), password: Some(PASSWORD.to_owned()) }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for site in SITES {
            for process in self.processes(site) {
                let _ = rustix::process::kill_process(process.pid, rustix::process::Signal::KILL);
            }
        }
        for child in self.daemons.borrow_mut().iter_mut().flatten() {
            child.kill().ok();
            child.wait().ok();
        }
        // A postmaster's last children may have come meanwhile.
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            let left: Vec<_> = SITES.iter().flat_map(|site| self.processes(site)).collect();
            if left.is_empty() {
                break;
            }
            for process in left {
                let _ = rustix::process::kill_process(process.pid, rustix::process::Signal::KILL);
            }
            std::thread::sleep(POLL);
        }
        unmount_below(&self.root).ok();
        fs::remove_dir_all(&self.root).ok();
    }
}

/// A node of another cluster; ended when dropped.
pub(crate) struct Stranger {
    directory: PathBuf,
    child: Child,
}

impl Stranger {
    /// Whether its daemon runs.
    pub(crate) fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends everything of it; a second time does nothing.
    ///
    /// # Errors
    /// When something is still there after five seconds.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.child.kill().ok();
        self.child.wait().ok();
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let left = process::below(&self.directory);
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("end the stranger: {left:?} are still there");
            }
            for process in left {
                let _ = rustix::process::kill_process(process.pid, rustix::process::Signal::KILL);
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.end().ok();
    }
}

/// A psql that runs; ended when dropped.
pub(crate) struct Session(Option<Child>);

impl Session {
    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.0.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Waits for its end; whether it succeeded, and all that it said.
    ///
    /// # Errors
    /// When it does not end within `patience`.
    pub(crate) fn ended(mut self, patience: Duration) -> Result<(bool, String)> {
        let deadline = Instant::now() + patience;
        while self.runs() {
            if Instant::now() > deadline {
                bail!("the session did not end within {} s", patience.as_secs());
            }
            std::thread::sleep(POLL);
        }
        let child = self.0.take().expect("only this function and drop take it");
        let ended = child.wait_with_output().context("read what a session said")?;
        let said = [ended.stdout, ended.stderr].concat();
        Ok((ended.status.success(), String::from_utf8_lossy(&said).trim().to_owned()))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// The other data site.
pub(crate) fn other(site: &str) -> &'static str {
    if site == DATA[0] { DATA[1] } else { DATA[0] }
}

/// A node's line in a status.
pub(crate) fn node_in<'a>(status: &'a Value, site: &str) -> Option<&'a Value> {
    status["nodes"].as_array()?.iter().find(|node| node["name"] == site)
}

/// PostgreSQL refuses to run as root: the uid and gid of its user.
fn postgres_user() -> Result<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    let line = passwd.lines().find(|line| line.starts_with("postgres:"));
    let line = line.context("find the user postgres: install the package postgresql")?;
    let fields: Vec<&str> = line.split(':').collect();
    let number = |index: usize| fields.get(index).and_then(|text| text.parse().ok());
    number(2).zip(number(3)).context("read the numbers of the user postgres in /etc/passwd")
}

/// Where PostgreSQL's programs are: PATH, or the newest version where Debian puts them.
pub(crate) fn postgres_programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut places: Vec<PathBuf> = versions.map(|entry| entry.path().join("bin")).collect();
    places.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    places.splice(0..0, std::env::split_paths(&path));
    let found = places.into_iter().rev().find(|place| place.join("pg_rewind").is_file());
    found.context("find PostgreSQL's programs: install the package postgresql")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_wal_replaces_a_node_s_own_and_nothing_else() {
        let room = WalRoom { keep_mib: 64, max_mib: 512 };
        let text =
            "[a]\nkeep = 1\n\n[wal]\n# Why.\nkeep = \"1GiB\"\nmax = \"auto\"\nreserve = \"auto\"\n";
        let wanted = "[a]\nkeep = 1\n\n[wal]\n# Why.\nkeep = \"64MiB\"\nmax = \"512MiB\"\nreserve = \"auto\"\n";
        assert_eq!(room.set_in(text).unwrap(), wanted);
        assert!(room.set_in("[wal]\nkeep = \"1GiB\"\n").is_err());
        assert!(room.set_in("\n[wal]\nkeep = \"1GiB\"\n").is_err());
    }
}
