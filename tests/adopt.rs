//! A PostgreSQL that people ran by hand, or with Debian's tools, is taken over where it is, under load,
//! and given back: no acknowledged row is missing at any time, and no file of its owners' is another one.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection};
use support::compare::wait_for_replay;
use support::lab::{DATA, Lab, POSTGRES_PORT, WITNESS, ZERO};
use support::postgres::{give, owner, tool};
use support::processes::{Ended, run};
use support::{BINARY, wait_for};

/// What its owners know it by.
const OLD_STANDBY: &str = "old_standby";

fn adopt(lab: &Lab, node: &str, verb: &str, arguments: &[&str]) -> Ended {
    let mut command = Command::new(BINARY);
    command.args(["adopt", verb, "--config"]).arg(lab.config(node)).args(arguments);
    run(&mut command)
}

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:#?}"))
}

fn owned_dir(path: PathBuf) -> PathBuf {
    fs::create_dir_all(&path).unwrap();
    give(&path);
    // As PGDATA has to be; nobody else needs to look into the others either.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    path
}

/// A server that nobody but its owners runs.
struct Stock {
    pgdata: PathBuf,
    sockets: PathBuf,
}

impl Stock {
    fn pg_ctl(&self, arguments: &[&str]) -> Ended {
        let mut command = tool("pg_ctl");
        command.arg("-D").arg(&self.pgdata).arg("-w").args(arguments);
        run(command.arg("-l").arg(self.sockets.join("log")))
    }

    fn start(&self) {
        let ended = self.pg_ctl(&["start"]);
        let log = fs::read_to_string(self.sockets.join("log")).unwrap_or_default();
        assert!(ended.status.success(), "{ended:#?}\n{log}");
    }

    fn sql(&self, sql: &str) -> String {
        self.sql_with("on", sql)
    }

    fn sql_with(&self, synchronous_commit: &str, sql: &str) -> String {
        let mut psql = tool("psql");
        psql.env("PGOPTIONS", format!("-c synchronous_commit={synchronous_commit}"));
        psql.arg("-h").arg(&self.sockets).args([
            "-p",
            &POSTGRES_PORT.to_string(),
            "-U",
            "postgres",
        ]);
        psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-c", sql]);
        run(&mut psql).good().trim_end().to_owned()
    }

    fn append(&self, file: &str, text: &str) {
        let path = self.pgdata.join(file);
        let old = fs::read_to_string(&path).unwrap();
        fs::write(&path, old + text).unwrap();
    }

    fn files(&self) -> Vec<(&'static str, Vec<u8>)> {
        let names = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf", "postgresql.auto.conf"];
        names.map(|name| (name, fs::read(self.pgdata.join(name)).unwrap())).into()
    }
}

/// A primary as somebody may have it: no UTF-8, no checksums, an archive, a tablespace, a standby of its
/// own that commits wait for.
fn stock_primary(lab: &Lab, archive: &Path) -> Stock {
    let stock = Stock {
        pgdata: owned_dir(lab.pgdata(DATA[0])),
        sockets: owned_dir(lab.root().join("stock-north")),
    };
    let mut initdb = tool("initdb");
    initdb.args(["--encoding=SQL_ASCII", "--locale=C", "--auth=trust", "-U", "postgres", "-D"]);
    run(initdb.arg(&stock.pgdata)).good();
    stock.append(
        "postgresql.conf",
        &format!(
            "port = {POSTGRES_PORT}\nlisten_addresses = '{}'\nunix_socket_directories = '{}'\n\
             max_wal_senders = 12\nsynchronous_standby_names = '{OLD_STANDBY}'\nshared_buffers = 32MB\n\
             archive_mode = on\narchive_command = 'test ! -f {a}/%f && cp %p {a}/%f'\n",
            lab.address(DATA[0]),
            stock.sockets.display(),
            a = archive.display(),
        ),
    );
    let anybody = "host all all 127.0.0.0/8 trust\nhost replication all 127.0.0.0/8 trust\n";
    stock.append("pg_hba.conf", anybody);
    stock.start();
    stock
}

fn stock_standby(lab: &Lab, tablespaces: [&Path; 2]) -> Stock {
    let stock = Stock {
        pgdata: owned_dir(lab.pgdata(DATA[1])),
        sockets: owned_dir(lab.root().join("stock-south")),
    };
    let mut copy = tool("pg_basebackup");
    let conninfo = format!(
        "host={} port={POSTGRES_PORT} user=postgres application_name={OLD_STANDBY}",
        lab.address(DATA[0])
    );
    copy.arg("-D").arg(&stock.pgdata).args(["-R", "-c", "fast", "-d", &conninfo]);
    copy.arg("-T").arg(format!("{}={}", tablespaces[0].display(), tablespaces[1].display()));
    run(&mut copy).good();
    stock.append(
        "postgresql.conf",
        &format!(
            "listen_addresses = '{}'\nunix_socket_directories = '{}'\n",
            lab.address(DATA[1]),
            stock.sockets.display()
        ),
    );
    stock.start();
    stock
}

/// A client that writes one row after the other and remembers those that were acknowledged.
struct Writer {
    over: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: JoinHandle<(BTreeSet<i64>, Duration)>,
}

impl Writer {
    fn start(address: &str, first: i64) -> Writer {
        let options = PgConnectOptions::new_without_pgpass()
            .host(address)
            .port(POSTGRES_PORT)
            .username("postgres")
            .database("postgres")
            .ssl_mode(PgSslMode::Disable)
            .disable_statement_logging();
        let (over, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, counted) = (over.clone(), count.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(write(options, first, &until, &counted))
        });
        Writer { over, count, thread }
    }

    fn more(&self, rows: u64) {
        let before = self.count.load(Ordering::Relaxed);
        wait_for("rows", || (self.count.load(Ordering::Relaxed) > before + rows).then_some(()));
    }

    /// The rows that it was told of, and the longest time in which it was told of none.
    fn end(self) -> (BTreeSet<i64>, Duration) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

async fn write(
    options: PgConnectOptions,
    first: i64,
    over: &AtomicBool,
    count: &AtomicU64,
) -> (BTreeSet<i64>, Duration) {
    let (mut told, mut row) = (BTreeSet::new(), first);
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    let mut session = None;
    while !over.load(Ordering::Relaxed) {
        let open = match session.take() {
            Some(open) => Ok(open),
            None => options.connect().await,
        };
        let Ok(mut open) = open else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        // Never the same twice: what came of one that failed is not known.
        row += 1;
        let insert = sqlx::query("INSERT INTO ledger VALUES ($1)").bind(row).execute(&mut open);
        match tokio::time::timeout(Duration::from_secs(10), insert).await {
            Ok(Ok(_)) => {
                told.insert(row);
                longest = longest.max(last.elapsed());
                last = Instant::now();
                count.fetch_add(1, Ordering::Relaxed);
                session = Some(open);
            }
            Ok(Err(_)) | Err(_) => drop(open.close_hard().await),
        }
    }
    (told, longest)
}

fn missing(rows: &str, told: &BTreeSet<i64>) -> Vec<i64> {
    let there: BTreeSet<i64> = rows.lines().map(|line| line.parse().unwrap()).collect();
    told.difference(&there).copied().collect()
}

const ROWS: &str = "SELECT n FROM ledger";

#[test]
fn a_primary_with_its_standby_is_taken_over_in_place_under_load_and_given_back() {
    let mut lab = Lab::prepared(ZERO);
    let [north, south] = DATA;
    let archive = owned_dir(lab.root().join("archive"));
    let spaces = ["space-north", "space-south"].map(|name| owned_dir(lab.root().join(name)));
    let primary = stock_primary(&lab, &archive);
    // Nobody is attached yet, and a commit would wait for it.
    let space = format!("CREATE TABLESPACE elsewhere LOCATION '{}'", spaces[0].display());
    primary.sql_with("local", &space);
    primary.sql_with("local", "CREATE TABLE ledger (n int8) TABLESPACE elsewhere");
    let standby = stock_standby(&lab, [&spaces[0], &spaces[1]]);
    wait_for("the standby to be waited for", || {
        let sync = primary.sql("SELECT sync_state FROM pg_stat_replication");
        (sync == "sync").then_some(())
    });
    // A copy over the standby's data would remove it.
    fs::write(standby.pgdata.join("of-its-owners"), "").unwrap();
    let files = [primary.files(), standby.files()];

    // What is in the way is said with its remedy, and nothing is changed.
    let plan = adopt(&lab, north, "plan", &["--output=json"]);
    assert_eq!(plan.status.code(), Some(3), "{plan:#?}");
    let found = json(&plan)["plan"]["findings"].to_string();
    assert!(found.contains("max_connections would go from 100 to 60"), "{found}");
    assert!(found.contains("max_wal_senders would go from 12 to 10"), "{found}");
    let blocked = adopt(&lab, north, "apply", &["--yes"]);
    assert_eq!(blocked.status.code(), Some(3), "{blocked:#?}");
    assert!(!lab.node_dir(north).join("data/adoption").exists(), "it was refused");
    for node in DATA {
        lab.edit_config(node, |table| {
            let parameters = &mut table["postgres"]["parameters"].as_table_mut().unwrap();
            parameters.insert("max_connections".to_owned(), 100.into());
            parameters.insert("max_wal_senders".to_owned(), 12.into());
        });
    }
    // Daemons that run first touch neither server.
    for node in lab.names() {
        lab.start(node);
    }
    lab.wait("the node to wait for an adoption", |lab| {
        lab.trouble(north).is_some_and(|said| said.contains("understudy adopt"))
    });

    let writer = Writer::start(lab.address(north), 0);
    writer.more(100);
    let planned = adopt(&lab, north, "plan", &["--output=json"]);
    let plan = json(&planned);
    assert_eq!((planned.status.code(), &plan["possible"]), (Some(0), &true.into()), "{planned:#?}");
    let text = adopt(&lab, north, "apply", &["--dry-run"]).good();
    for word in
        ["synchronous_standby_names", OLD_STANDBY, "SQL_ASCII", "archive_command", "elsewhere"]
    {
        assert!(text.contains(word), "{word} is missing:\n{text}");
    }
    let prepared = adopt(&lab, south, "apply", &["--yes", "--output=json"]);
    assert_eq!(json(&prepared)["state"], "prepared", "{prepared:#?}");
    assert_eq!(standby.sql("SELECT status FROM pg_stat_wal_receiver"), "streaming");
    writer.more(100);
    let adopted = adopt(&lab, north, "apply", &["--yes", "--output=json"]);
    assert_eq!(json(&adopted)["state"], "taken-over", "{adopted:#?}");
    lab.wait("a cluster whose passive could take over", |lab| lab.protected_under(north));
    writer.more(500);
    let (told, longest) = writer.end();
    eprintln!(
        "adopted: {} rows acknowledged, no commit for {longest:?} at most, shut out {}",
        told.len(),
        json(&adopted)["clients_shut_out_seconds"]
    );
    wait_for_replay(&lab, north, south);
    for node in DATA {
        assert_eq!(missing(&lab.sql(node, "postgres", ROWS), &told), Vec::<i64>::new(), "{node}");
    }
    assert!(standby.pgdata.join("of-its-owners").exists(), "the standby's data was copied over");
    assert_eq!(lab.sql(north, "postgres", "SHOW server_encoding"), "SQL_ASCII");
    let gate = lab.sql(north, "postgres", "SHOW synchronous_standby_names");
    assert!(gate.contains("gate_"), "the old standby's name would weaken the gate: {gate}");
    archives(&lab, north, &archive);

    // It is a cluster like any other.
    for to in [south, north] {
        lab.operator(&["switchover", "--to", to, "--wait", "--reason", "a test"]).good();
        lab.wait("both sites to be well", |lab| lab.protected_under(to));
        lab.sql(to, "postgres", "INSERT INTO ledger VALUES (-1)");
    }
    archives(&lab, north, &archive);
    let told = under_load(&lab, north, told);
    give_back(&mut lab, &primary, &standby, &files, &told);
}

fn under_load(lab: &Lab, node: &str, mut told: BTreeSet<i64>) -> BTreeSet<i64> {
    let writer = Writer::start(lab.address(node), 1_000_000);
    writer.more(200);
    told.extend(writer.end().0);
    told
}

/// A finished segment comes into the archive by its owners' command.
fn archives(lab: &Lab, node: &str, archive: &Path) {
    let segment = lab.sql(node, "postgres", "SELECT pg_walfile_name(pg_switch_wal())");
    wait_for("the segment in the archive", || archive.join(&segment).exists().then_some(()));
}

fn give_back(
    lab: &mut Lab,
    primary: &Stock,
    standby: &Stock,
    files: &[Vec<(&'static str, Vec<u8>)>; 2],
    told: &BTreeSet<i64>,
) {
    let [north, south] = DATA;
    let running = adopt(lab, north, "undo", &["--yes", "--others-stopped"]);
    assert_eq!(running.status.code(), Some(3), "{running:#?}");
    running.refused_with(&["stop it first"]);
    lab.stop_node(south);
    let undone = adopt(lab, south, "undo", &["--yes", "--output=json"]);
    assert_eq!(json(&undone)["role"], "standby", "{undone:#?}");

    lab.stop_node(north);
    // The witness runs: together with the passive it could make that one active.
    let planned = json(&adopt(lab, north, "undo", &["--dry-run", "--output=json"]));
    let epoch = planned["newest_epoch"].as_str().unwrap().to_owned();
    let said = ["--yes", "--others-stopped", "--last-epoch", &epoch];
    let early = adopt(lab, north, "undo", &said);
    assert_eq!(early.status.code(), Some(3), "{early:#?}");
    early.refused_with(&[WITNESS, "stop the daemons of all nodes"]);
    lab.stop_node(WITNESS);
    let unsaid = adopt(lab, north, "undo", &["--yes", "--last-epoch", &epoch]);
    assert_eq!(unsaid.status.code(), Some(3), "{unsaid:#?}");
    // Whoever was away while another node was promoted does not know it by itself.
    let untold = adopt(lab, north, "undo", &["--yes", "--others-stopped"]);
    assert_eq!(untold.status.code(), Some(3), "{untold:#?}");
    untold.refused_with(&["--last-epoch", &epoch]);
    let newer = adopt(lab, north, "undo", &["--yes", "--others-stopped", "--last-epoch", "99"]);
    assert_eq!(newer.status.code(), Some(3), "{newer:#?}");
    newer.refused_with(&["its data is newer"]);
    let undone = adopt(lab, north, "undo", &[&said[..], &["--output=json"]].concat());
    assert_eq!(json(&undone)["role"], "primary", "{undone:#?}");

    assert_eq!([primary.files(), standby.files()], *files, "a file of its owners' is another one");
    primary.start();
    standby.start();
    assert_eq!(primary.sql("SHOW synchronous_standby_names"), OLD_STANDBY);
    assert_eq!(missing(&primary.sql(ROWS), told), Vec::<i64>::new());
    let left = "SELECT (SELECT count(*) FROM pg_roles WHERE rolname LIKE 'understudy%') \
                + (SELECT count(*) FROM pg_replication_slots)";
    assert_eq!(primary.sql(left), "0");
    // Acknowledged only once the old standby has it.
    primary.sql("INSERT INTO ledger VALUES (-2)");
    wait_for("the old standby to replay", || {
        (standby.sql("SELECT count(*) FROM ledger WHERE n = -2") == "1").then_some(())
    });
    assert_eq!(missing(&standby.sql(ROWS), told), Vec::<i64>::new());
    for stock in [primary, standby] {
        stock.pg_ctl(&["stop", "-m", "fast"]).good();
    }
}

/// A cluster of Debian's tools, removed in the end.
struct Debian {
    name: String,
    version: String,
}

impl Debian {
    fn make(lab: &Lab, sockets: &Path) -> Debian {
        let version = support::postgres::bin_dir().ancestors().nth(1).unwrap();
        let version = version.file_name().unwrap().to_str().unwrap().to_owned();
        let name = format!("understudy{}", std::process::id());
        let debian = Debian { name, version };
        let mut create = Command::new("pg_createcluster");
        create.args([&debian.version, &debian.name, "--start-conf=auto"]);
        create
            .arg("--port")
            .arg(POSTGRES_PORT.to_string())
            .arg("--datadir")
            .arg(lab.pgdata(DATA[0]));
        create.arg("--socketdir").arg(sockets).args(["--encoding=UTF8", "--locale=C.UTF-8"]);
        run(&mut create).good();
        debian
    }

    fn dir(&self) -> PathBuf {
        Path::new("/etc/postgresql").join(&self.version).join(&self.name)
    }

    fn ctl(&self, action: &str) -> Ended {
        run(Command::new("pg_ctlcluster").args([
            "--skip-systemctl-redirect",
            &self.version,
            &self.name,
            action,
        ]))
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        let mut remove = Command::new("pg_dropcluster");
        let ended = run(remove.args(["--stop", &self.version, &self.name]));
        if !ended.status.success() {
            eprintln!("{ended:#?}");
        }
        // It leaves what others have put there.
        fs::remove_dir_all(self.dir()).ok();
    }
}

#[test]
fn a_cluster_of_debians_tools_is_taken_over_with_its_settings_in_etc_and_given_back_to_them() {
    if owner().is_none() {
        eprintln!("only root can make a cluster with pg_createcluster");
        return;
    }
    let mut lab = Lab::prepared(ZERO);
    let [north, south] = DATA;
    let sockets = owned_dir(lab.root().join("stock-north"));
    let debian = Debian::make(&lab, &sockets);
    let stock = Stock { pgdata: lab.pgdata(north), sockets };
    let ours = format!(
        "listen_addresses = '{}'\nmax_connections = 60\nshared_buffers = 32MB\nwork_mem = '5MB'\n",
        lab.address(north)
    );
    fs::write(debian.dir().join("conf.d/ours.conf"), ours).unwrap();
    let hba = debian.dir().join("pg_hba.conf");
    let lines = "host all all 127.0.0.0/8 trust\n".to_owned() + &fs::read_to_string(&hba).unwrap();
    fs::write(&hba, lines).unwrap();
    debian.ctl("start").good();
    stock.sql("CREATE TABLE ledger (n int8)");
    let etc = |name: &str| fs::read(debian.dir().join(name)).unwrap();
    let before = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf", "start.conf"].map(etc);

    let prepared = adopt(&lab, north, "apply", &["--yes", "--output=json"]);
    assert_eq!(json(&prepared)["state"], "prepared", "{prepared:#?}");
    assert_eq!(json(&prepared)["plan"]["plan"]["server"]["debian"]["name"], debian.name.as_str());
    let nothing = adopt(&lab, south, "plan", &["--output=json"]);
    assert_eq!(json(&nothing)["plan"]["part"], "copy", "{nothing:#?}");
    for node in lab.names() {
        lab.start(node);
    }
    let writer = Writer::start(lab.address(north), 0);
    writer.more(100);
    let adopted = wait_for("a cluster that waits for its primary", || {
        let applied = adopt(&lab, north, "apply", &["--yes", "--output=json"]);
        (json(&applied)["state"] != "prepared").then_some(applied)
    });
    assert_eq!(json(&adopted)["state"], "taken-over", "{adopted:#?}");
    lab.wait("a cluster whose passive could take over", |lab| lab.protected_under(north));
    writer.more(200);
    let (told, longest) = writer.end();
    eprintln!("adopted: {} rows acknowledged, no commit for {longest:?} at most", told.len());
    for node in DATA {
        assert_eq!(lab.sql(node, "postgres", "SHOW work_mem"), "5MB", "{node}");
    }
    assert!(
        !debian.ctl("start").status.success(),
        "Debian's tools could start it beside the daemon"
    );
    let told = under_load(&lab, north, told);

    // The site's machine goes down, and its owners want the server back.
    for node in [south, WITNESS, north] {
        lab.kill_site(node);
    }
    let planned = json(&adopt(&lab, north, "undo", &["--dry-run", "--output=json"]));
    let epoch = planned["newest_epoch"].as_str().unwrap();
    adopt(&lab, north, "undo", &["--yes", "--others-stopped", "--last-epoch", epoch]).good();
    assert_eq!(before, ["postgresql.conf", "pg_hba.conf", "pg_ident.conf", "start.conf"].map(etc));
    debian.ctl("start").good();
    assert_eq!(stock.sql("SELECT pg_is_in_recovery()"), "f");
    assert_eq!(missing(&stock.sql(ROWS), &told), Vec::<i64>::new());
    assert!(!stock.pgdata.join("postgresql.conf").exists(), "only /etc counts again");
}
