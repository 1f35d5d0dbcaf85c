//! Real WAL for the journal's tests: a server that is killed under load, recovers onto a second
//! timeline, and is killed again.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use understudy_types::{Lsn, SegmentSize, SystemId, Timeline, WalSegment};

pub(crate) fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

/// What the server left behind; its files are there as long as this is.
pub(crate) struct RealWal {
    pub(crate) dir: PathBuf,
    pub(crate) bin: PathBuf,
    pub(crate) system_id: SystemId,
    pub(crate) begin_lsn: Lsn,
    /// Where the second timeline left the first.
    pub(crate) fork_lsn: Lsn,
    pub(crate) history: Vec<u8>,
    _keep: tempfile::TempDir,
}

impl RealWal {
    /// The bytes of a timeline's files from the beginning on, as far as there are files.
    pub(crate) fn bytes(&self, timeline: Timeline) -> Vec<u8> {
        let mut segment = WalSegment::containing(timeline, self.begin_lsn, size());
        let mut bytes = Vec::new();
        loop {
            let own = self.dir.join(segment.file_name(size()));
            let first = WalSegment { timeline: Timeline::FIRST, ..segment };
            let path = if own.exists() { own } else { self.dir.join(first.file_name(size())) };
            let before_fork = segment.start(size()) < self.fork_lsn;
            if !path.exists() || (path.ends_with(first.file_name(size())) && !before_fork) {
                return bytes;
            }
            bytes.extend(fs::read(path).unwrap());
            segment = segment.next();
        }
    }
}

struct User {
    uid: u32,
    gid: u32,
}

fn postgres_user() -> Option<User> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.starts_with("postgres:")).expect("a user postgres");
    let fields: Vec<&str> = line.split(':').collect();
    Some(User { uid: fields[2].parse().unwrap(), gid: fields[3].parse().unwrap() })
}

fn find_bin() -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    found.extend(std::env::split_paths(&path).filter(|bin| bin.join("initdb").exists()));
    found.into_iter().next().expect("PostgreSQL's server programs are installed")
}

struct Server {
    bin: PathBuf,
    root: PathBuf,
}

impl Server {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.current_dir(&self.root).stdin(Stdio::null()).env("LC_ALL", "C");
        if let Some(user) = postgres_user() {
            command.gid(user.gid).uid(user.uid);
        }
        command
    }

    fn start(&self) -> Child {
        let log = fs::File::create(self.root.join("log")).unwrap();
        let mut child = self
            .command("postgres")
            .args(["-D", "data", "-c", "listen_addresses=", "-c", "wal_keep_size=1GB"])
            .args(["-c", "max_wal_size=1GB", "-c", "checkpoint_timeout=1h"])
            .arg("-c")
            .arg(format!("unix_socket_directories={}", self.root.display()))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.try_sql("select 1 where not pg_is_in_recovery()").as_deref() != Some("1") {
            assert!(child.try_wait().unwrap().is_none(), "PostgreSQL ended, see its log");
            assert!(Instant::now() < deadline, "PostgreSQL did not start");
            std::thread::yield_now();
        }
        child
    }

    fn psql(&self) -> Command {
        let mut command = self.command("psql");
        command.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-U", "postgres"]);
        command.arg("-h").arg(&self.root);
        command
    }

    fn try_sql(&self, sql: &str) -> Option<String> {
        let output = self.psql().args(["-c", sql]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        output.status.success().then_some(text)
    }

    fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).unwrap_or_else(|| panic!("{sql} failed"))
    }

    /// SIGKILL for the postmaster and every child, in the middle of a load.
    fn kill_under_load(&self, mut postmaster: Child) {
        let load = "do $$ begin for i in 1..100000000 loop \
            insert into t select g, repeat(md5(g::text), 9) from generate_series(1, 20) g; \
            commit; end loop; end $$";
        let mut client = self.psql().args(["-c", load]).stderr(Stdio::null()).spawn().unwrap();
        let from: Lsn = self.sql("select pg_current_wal_flush_lsn()").parse().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let at: Lsn = self.sql("select pg_current_wal_flush_lsn()").parse().unwrap();
            if at.bytes_since(from) > 3 << 20 {
                break;
            }
            assert!(Instant::now() < deadline, "the load wrote no WAL");
        }
        let pid = postmaster.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        postmaster.kill().unwrap();
        for child in children.split_whitespace() {
            let child = rustix::process::Pid::from_raw(child.parse().unwrap()).unwrap();
            let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
        }
        postmaster.wait().unwrap();
        client.wait().unwrap();
        // The children, those begun since too, were not ours to wait for: gone when nothing is attached
        // any more to what the next postmaster finds as its predecessor's shared memory.
        while self.shared_memory_is_attached() {
            assert!(Instant::now() < deadline + Duration::from_secs(30), "children live on");
            std::thread::yield_now();
        }
    }

    /// By the identifier in `postmaster.pid` (its seventh line: key and identifier) and the kernel's own
    /// table (`shmid` is the second column, the number of attached processes the seventh).
    fn shared_memory_is_attached(&self) -> bool {
        let lock = fs::read_to_string(self.root.join("data/postmaster.pid")).unwrap();
        let id = lock.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)).unwrap();
        let table = fs::read_to_string("/proc/sysvipc/shm").unwrap();
        table.lines().any(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            columns.get(1) == Some(&id) && columns.get(6) != Some(&"0")
        })
    }
}

pub(crate) fn real_wal() -> RealWal {
    let keep = tempfile::tempdir().unwrap();
    let root = keep.path().join("server");
    fs::create_dir(&root).unwrap();
    fs::set_permissions(keep.path(), fs::Permissions::from_mode(0o755)).unwrap();
    if let Some(user) = postgres_user() {
        chown(&root, Some(user.uid), Some(user.gid)).unwrap();
    }
    let server = Server { bin: find_bin(), root: root.clone() };
    let initdb = server
        .command("initdb")
        .args(["-D", "data", "-A", "trust", "-U", "postgres", "-N", "--wal-segsize=1"])
        .output()
        .unwrap();
    assert!(initdb.status.success(), "{}", String::from_utf8_lossy(&initdb.stderr));
    let postmaster = server.start();
    let system_id = server.sql("select system_identifier from pg_control_system()");
    server.sql("create table t (a int, b text)");
    server.sql("insert into t select g, md5(g::text) from generate_series(1, 5000) g");
    server.sql("select pg_switch_wal()");
    server.sql("insert into t select g, repeat(md5(g::text), 50) from generate_series(1, 3000) g");
    server.sql("select pg_logical_emit_message(false, 'x', repeat('y', 2500000))");
    server.kill_under_load(postmaster);
    fs::write(root.join("data/recovery.signal"), "").unwrap();
    let settings = root.join("data/postgresql.auto.conf");
    fs::write(&settings, "restore_command = 'false'\n").unwrap();
    let postmaster = server.start();
    server.sql("insert into t select g, md5(g::text) from generate_series(1, 20000) g");
    server.kill_under_load(postmaster);
    let dir = root.join("data/pg_wal");
    let history = fs::read(dir.join("00000002.history")).unwrap();
    let text = String::from_utf8(history.clone()).unwrap();
    let fork_lsn = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    let begin_lsn = begin_of(&dir);
    let system_id = system_id.parse().unwrap();
    RealWal { dir, bin: server.bin, system_id, begin_lsn, fork_lsn, history, _keep: keep }
}

fn begin_of(dir: &Path) -> Lsn {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let segments = names.filter_map(|name| WalSegment::parse(name.to_str()?, size()).ok());
    segments.min().unwrap().start(size())
}
