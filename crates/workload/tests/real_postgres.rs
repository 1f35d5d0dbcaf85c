//! The workload against real servers: a primary, its standby, and the loss of the primary.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use understudy_checks::compare_sites;
use understudy_workload::{
    Credentials, Endpoint, Outage, Workload, WorkloadOptions, connect, flushed_lsn,
    prepare_tenants, read_rows, read_site, read_site_when_replayed, verdict_of,
};

const TENANTS_COUNT: u32 = 4;

/// A server of this test alone; dropping it kills its whole process tree.
struct Server {
    bin: PathBuf,
    data: PathBuf,
    endpoint: Endpoint,
    child: Option<Child>,
    owner: Option<(u32, u32)>,
}

fn bin_dir() -> PathBuf {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is installed")
        .map(|entry| entry.unwrap().path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().expect("PostgreSQL's server programs are installed")
}

/// PostgreSQL refuses to run as root, so it runs as `postgres` then.
fn owner() -> Option<(u32, u32)> {
    if !std::process::Command::new("id").arg("-u").output().unwrap().stdout.starts_with(b"0\n") {
        return None;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.starts_with("postgres:")).expect("user postgres");
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}

/// Below those that the kernel gives to clients: one of them could be taken again while the server is
/// down, by anybody's connection.
fn free_port() -> u16 {
    let first = 20_000 + u16::try_from(std::process::id() % 10_000).expect("it is below 10000");
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    static TAKEN: std::sync::Mutex<Vec<u16>> = std::sync::Mutex::new(Vec::new());
    let mut taken = TAKEN.lock().unwrap();
    let port = (first..32_000).find(|port| !taken.contains(port) && free(port)).unwrap();
    taken.push(port);
    port
}

impl Server {
    fn new(root: &Path, name: &str) -> Server {
        let port = free_port();
        let owner = owner();
        let data = root.join(name);
        std::fs::create_dir(&data).unwrap();
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700)).unwrap();
        if let Some((uid, gid)) = owner {
            chown(&data, Some(uid), Some(gid)).unwrap();
        }
        let endpoint = Endpoint { name: name.to_owned(), host: "127.0.0.1".to_owned(), port };
        Server { bin: bin_dir(), data, endpoint, child: None, owner }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn init(&self) {
        let mut initdb = self.command("initdb");
        initdb.args(["-A", "trust", "-U", "postgres", "-N", "-E", "UTF8", "--locale=C", "-D"]);
        assert!(initdb.arg(&self.data).status().unwrap().success(), "initdb");
    }

    fn copy_of(&self, primary: &Server) {
        let mut copy = self.command("pg_basebackup");
        copy.args(["-h", "127.0.0.1", "-U", "postgres", "-c", "fast", "-R", "-N", "-p"]);
        copy.arg(primary.endpoint.port.to_string()).arg("-D").arg(&self.data);
        assert!(copy.status().unwrap().success(), "pg_basebackup");
    }

    async fn start(&mut self, more: &[&str]) {
        let mut postgres = self.command("postgres");
        postgres.arg("-D").arg(&self.data).args(["-p", &self.endpoint.port.to_string()]);
        let settings = ["fsync=off", "unix_socket_directories=", "listen_addresses=127.0.0.1"];
        for setting in settings.iter().chain(more) {
            postgres.args(["-c", setting]);
        }
        self.child = Some(postgres.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = self.session("postgres").await {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "the server ended: {ended:?}");
            assert!(Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn session(
        &self,
        database: &str,
    ) -> Result<sqlx::PgConnection, understudy_workload::EndpointError> {
        connect(&self.endpoint, &superuser(), database, Duration::from_secs(5)).await
    }

    async fn run(&self, database: &str, sql: &'static str) {
        let mut session = self.session(database).await.unwrap();
        sqlx::raw_sql(sql).execute(&mut session).await.unwrap();
    }

    /// Ends every process of the server, those begun meanwhile too; none is left when it returns, because
    /// the next server would find its predecessor's shared memory in use.
    fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        loop {
            let pids = self.processes();
            if pids.is_empty() {
                break;
            }
            Command::new("kill").arg("-9").args(&pids).stderr(Stdio::null()).status().unwrap();
        }
        child.wait().unwrap();
    }

    /// Those whose working directory is the data directory. One that ends gives its memory back before
    /// its working directory.
    fn processes(&self) -> Vec<OsString> {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let own = processes.filter(|process| {
            std::fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == self.data)
        });
        own.map(|process| process.file_name()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn superuser() -> Credentials {
    Credentials { user: "postgres".to_owned(), password: None }
}

fn traversable_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

async fn wait_for<T: Clone>(
    what: &str,
    receiver: &mut tokio::sync::watch::Receiver<T>,
    condition: impl FnMut(&T) -> bool,
) -> T {
    let answer = tokio::time::timeout(Duration::from_secs(20), receiver.wait_for(condition)).await;
    answer.unwrap_or_else(|_| panic!("waited in vain for {what}")).unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_primary_costs_an_outage_and_no_acknowledged_row_and_a_missing_row_is_noticed() {
    let root = traversable_directory();
    let mut north = Server::new(root.path(), "north");
    north.init();
    let waits = "synchronous_standby_names=*";
    north.start(&["wal_level=replica"]).await;
    let mut south = Server::new(root.path(), "south");
    south.copy_of(&north);
    south.start(&[]).await;
    let mut made = 0;
    prepare_tenants(&north.endpoint, &superuser(), TENANTS_COUNT, |_| made += 1).await.unwrap();
    assert_eq!(made, TENANTS_COUNT + 1);
    north.kill();
    north.start(&["wal_level=replica", waits]).await;

    let endpoints = vec![south.endpoint.clone(), north.endpoint.clone()];
    let options = WorkloadOptions::new(endpoints, superuser(), TENANTS_COUNT);
    let workload = Workload::start(options);
    let mut stats = workload.stats();
    let before = wait_for("writes", &mut stats, |stats| stats.acknowledged_count > 200).await;
    assert_eq!(before.writable.map(|writable| writable.index), Some(1), "north is the primary");

    workload.fault();
    north.kill();
    south.run("postgres", "SELECT pg_promote(true, 30)").await;
    let enough = before.acknowledged_count + 400;
    let after =
        wait_for("writes again", &mut stats, |stats| stats.acknowledged_count > enough).await;
    assert_eq!(after.writable.map(|writable| writable.index), Some(0), "south took over");
    let outage = after.outages.first().and_then(Outage::write_outage).expect("it is over");
    assert!(outage > Duration::from_millis(15) && outage < Duration::from_secs(15), "{outage:?}");

    let recorded = workload.stop().await;
    let faults = recorded.pulse.faults();
    let rows = read_rows(&south.endpoint, &superuser(), TENANTS_COUNT).await.unwrap();
    let verdict = recorded.recorder().with_ledger(|ledger| verdict_of(ledger, &rows, faults));
    println!("outage {outage:?}, {verdict:?}");
    assert_eq!((verdict.lost_rows, &verdict.violations), (0, &vec![]));
    assert!(verdict.surviving_rows >= verdict.counts.acknowledged_rows);

    // Teeth: what is taken away, invented or set back is noticed.
    let tampering = "DELETE FROM worklog WHERE client_worklog_id IN
            (SELECT client_worklog_id FROM worklog ORDER BY 1 LIMIT 2);
        INSERT INTO worklog VALUES (-7, 1, 1, 'nobody', now(), now(), now(), 900)";
    south.run("tenant_0001", tampering).await;
    let rows = read_rows(&south.endpoint, &superuser(), TENANTS_COUNT).await.unwrap();
    let verdict = recorded.recorder().with_ledger(|ledger| verdict_of(ledger, &rows, faults));
    assert_eq!(verdict.lost_rows, 2);
    assert_eq!(verdict.violations.len(), 2, "unexpected and a hole: {:?}", verdict.violations);
}

#[tokio::test(flavor = "multi_thread")]
async fn sites_are_equal_once_the_standby_has_replayed_and_one_changed_row_makes_them_differ() {
    let root = traversable_directory();
    let mut north = Server::new(root.path(), "north");
    north.init();
    north.start(&[]).await;
    prepare_tenants(&north.endpoint, &superuser(), 2, |_| ()).await.unwrap();
    // A table without a key, and with a name that has to be quoted.
    let odd = "CREATE TABLE \"Odd name\" (understudy_row text, t text);
        INSERT INTO \"Odd name\" SELECT i % 3, repeat('x', i) FROM generate_series(1, 100) i";
    north.run("tenant_0002", odd).await;
    let mut south = Server::new(root.path(), "south");
    south.copy_of(&north);
    south.start(&[]).await;
    let entry = "INSERT INTO worklog VALUES (1, 1, 1, 'entry', now(), now(), now(), 900)";
    north.run("tenant_0001", entry).await;

    let lsn = flushed_lsn(&north.endpoint, &superuser()).await.unwrap();
    let timeout = Duration::from_secs(10);
    let passive =
        read_site_when_replayed(&south.endpoint, &superuser(), lsn, timeout).await.unwrap();
    let active = read_site(&north.endpoint, &superuser()).await.unwrap();
    assert_eq!(compare_sites(&active, &passive), vec![]);
    let odd = &active.databases["tenant_0002"]["public.\"Odd name\""];
    assert_eq!(odd.rows_count, 100);

    north.run("tenant_0001", "UPDATE worklog SET comment = 'changed'").await;
    let active = read_site(&north.endpoint, &superuser()).await.unwrap();
    assert_eq!(compare_sites(&active, &passive).len(), 1);
    let ahead = understudy_types::Lsn(lsn.0 + (1 << 40));
    let error = read_site_when_replayed(&south.endpoint, &superuser(), ahead, Duration::ZERO).await;
    assert!(error.unwrap_err().to_string().contains("wait for south"));
}
