//! The reader of transactions in `understudy-wal` against PostgreSQL's own `pg_waldump`, on the WAL of
//! a real server: every COMMIT, PREPARE and their two-phase forms, and nothing else.

#![allow(clippy::unwrap_used, reason = "helpers of tests are no tests to clippy")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use understudy_postgres::{Binaries, OsUser};
use understudy_types::{Lsn, SegmentSize, Timeline, WalSegment};
use understudy_wal::format::{
    EndedTransaction, LONG_HEADER_BYTES, PageHeader, ScanOptions, TransactionEnd,
    TransactionReader, WalVersion,
};

const SEGMENT_BYTES: u32 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(SEGMENT_BYTES).unwrap()
}

/// A server with a directory and small segments of its own.
struct Server {
    binaries: Binaries,
    user: OsUser,
    dir: tempfile::TempDir,
    running: Option<Child>,
}

impl Server {
    fn start(settings: &[&str]) -> Server {
        let dir = tempfile::Builder::new().prefix("understudy-wal-").tempdir().unwrap();
        let me = OsUser::current().unwrap();
        let user = if me.uid == 0 { OsUser::lookup("postgres").unwrap() } else { me };
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        std::os::unix::fs::chown(dir.path(), Some(user.uid), Some(user.gid)).unwrap();
        let binaries = Binaries::find(None, None).unwrap();
        let mut server = Server { binaries, user, dir, running: None };
        let mut initdb = server.command("initdb");
        initdb.args(["-D", "data", "-U", "postgres", "--no-sync", "--wal-segsize=1"]);
        assert!(initdb.output().unwrap().status.success());
        let log = fs::File::create(server.dir.path().join("log")).unwrap();
        let mut postgres = server.command("postgres");
        postgres.args(["-D", "data", "-c", "listen_addresses=", "-c", "wal_keep_size=1GB"]);
        postgres.args(["-c", "max_prepared_transactions=9", "-c", "fsync=off"]);
        postgres.arg("-c").arg(format!("unix_socket_directories={}", server.dir.path().display()));
        for setting in settings {
            postgres.arg("-c").arg(setting);
        }
        server.running =
            Some(postgres.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(30);
        while !server.psql("postgres").args(["-c", "select 1"]).output().unwrap().status.success() {
            assert!(Instant::now() < deadline, "PostgreSQL did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn command(&self, program: &str) -> Command {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new(self.binaries.program(program));
        command.current_dir(self.dir.path()).stdin(Stdio::null()).env("LC_ALL", "C");
        command.env("TZ", "UTC").uid(self.user.uid).gid(self.user.gid);
        command
    }

    fn psql(&self, database: &str) -> Command {
        let mut psql = self.command("psql");
        psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database]);
        psql.arg("-h").arg(self.dir.path());
        psql
    }

    /// Runs SQL in one session; what it answers, a line each.
    fn sql(&self, database: &str, sql: &str) -> Vec<String> {
        let mut psql = self.psql(database).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let psql = psql.as_mut().unwrap();
        psql.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut psql.stdout.take().unwrap(), &mut said).unwrap();
        assert!(psql.wait().unwrap().success(), "{sql}");
        said.lines().map(str::to_owned).collect()
    }

    fn one(&self, database: &str, sql: &str) -> String {
        self.sql(database, sql).pop().unwrap_or_default()
    }

    fn pg_wal(&self) -> PathBuf {
        self.dir.path().join("data/pg_wal")
    }

    /// What we read of its WAL between two positions, told from the first segment on.
    fn read(&self, from: Lsn, to: Lsn) -> Vec<EndedTransaction> {
        let timeline = Timeline::FIRST;
        let mut segment = WalSegment::containing(timeline, from, size());
        let file = |segment: WalSegment| self.pg_wal().join(segment.file_name(size()));
        let mut bytes = fs::read(file(segment)).unwrap();
        let head: [u8; LONG_HEADER_BYTES] = *bytes.first_chunk().unwrap();
        let version = WalVersion::from_magic(PageHeader::identify(&head).unwrap().magic).unwrap();
        let options = ScanOptions {
            timeline,
            timeline_since: Some(Lsn::ZERO),
            size: size(),
            system_id: None,
            page_magic: None,
        };
        let mut reader = TransactionReader::new(options, version, segment.start(size()));
        let mut ended = Vec::new();
        loop {
            let read = reader.push(&bytes, &mut |one| ended.push(one));
            if reader.end_lsn() >= to {
                break;
            }
            read.unwrap();
            segment = segment.next();
            bytes = fs::read(file(segment)).unwrap();
        }
        assert_eq!((reader.unreadable_count(), reader.forgotten_count()), (0, 0));
        ended.retain(|one| one.lsn >= from && one.lsn < to);
        ended
    }

    /// The same as `pg_waldump` tells it: position, kind, number, microseconds, subtransactions, gid.
    fn waldump(&self, from: Lsn, to: Lsn) -> Vec<Told> {
        let mut dump = self.command("pg_waldump");
        dump.args(["-r", "Transaction", "-p", "data/pg_wal"]);
        let dump = dump.args([format!("--start={from}"), format!("--end={to}")]).output().unwrap();
        assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        String::from_utf8(dump.stdout).unwrap().lines().filter_map(parse_dump).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut server) = self.running.take() {
            let _ = self.command("pg_ctl").args(["-D", "data", "-m", "immediate", "stop"]).output();
            server.wait().unwrap();
        }
    }
}

type Told = (Lsn, TransactionEnd, u32, i64, u32, Option<String>);

fn parse_dump(line: &str) -> Option<Told> {
    let after = |word: &str| line.split_once(word).map(|(_, rest)| rest);
    let first = |text: &str| text.split([',', ';', ' ']).next().unwrap().to_owned();
    let lsn = first(after("lsn: ")?).parse().unwrap();
    let header_xid = first(after("tx:")?.trim_start()).parse().unwrap();
    let (word, rest) = after("desc: ")?.split_once(' ')?;
    let (end, xid, gid, rest) = match word {
        "COMMIT" => (TransactionEnd::Commit, header_xid, None, rest),
        "PREPARE" => {
            let (gid, rest) = rest.strip_prefix("gid ")?.split_once(": ")?;
            (TransactionEnd::Prepare, header_xid, Some(gid.to_owned()), rest)
        }
        "COMMIT_PREPARED" | "ABORT_PREPARED" => {
            let commit = word == "COMMIT_PREPARED";
            let end = if commit {
                TransactionEnd::CommitPrepared
            } else {
                TransactionEnd::RollbackPrepared
            };
            let (xid, rest) = rest.split_once(": ")?;
            (end, xid.parse().unwrap(), None, rest)
        }
        _ => return None,
    };
    let time = unix_us(rest.split(" UTC").next().unwrap());
    let subtransactions = rest
        .split_once("subxacts: ")
        .map_or(0, |(_, xids)| xids.split(';').next().unwrap().split_whitespace().count());
    Some((lsn, end, xid, time, u32::try_from(subtransactions).unwrap(), gid))
}

/// Reads `2026-11-22 06:49:20.123456`.
fn unix_us(text: &str) -> i64 {
    let numbers: Vec<i64> = text.split(['-', ' ', ':', '.']).map(|n| n.parse().unwrap()).collect();
    let [year, month, day, hour, minute, second, us] = numbers[..] else { panic!("{text}") };
    assert_eq!(text.rsplit('.').next().unwrap().len(), 6, "{text}");
    // Days since the Unix epoch, in years that begin with March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    (((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + us
}

/// Ours in the shape of `pg_waldump`'s; it names a prepared transaction only at its PREPARE.
fn told(one: &EndedTransaction) -> Told {
    let gid = one.gid.clone().filter(|_| one.end == TransactionEnd::Prepare);
    (one.lsn, one.end, one.xid, one.unix_us, one.subtransaction_count, gid)
}

fn position(server: &Server) -> Lsn {
    server.one("postgres", "SELECT pg_current_wal_insert_lsn()").parse().unwrap()
}

/// Everything that a transaction can be; returns the number and the database of each that committed.
fn work(server: &Server) -> BTreeMap<u32, u32> {
    let mut known = BTreeMap::new();
    let mut of = |database: &str, sql: &str| {
        let oid = "SELECT oid FROM pg_database WHERE datname = current_database()";
        let oid: u32 = server.one(database, oid).parse().unwrap();
        for line in server.sql(database, sql) {
            if let Some(xid) = line.strip_prefix("xid ") {
                known.insert(xid.parse().unwrap(), oid);
            }
        }
    };
    let xid = "SELECT 'xid ' || pg_current_xact_id();";
    for database in ["one", "two"] {
        // Plain rows: their COMMIT names no database.
        for row in 0..20 {
            of(database, &format!("BEGIN; INSERT INTO t VALUES ({row}); {xid} COMMIT;"));
        }
        of(
            database,
            &format!("BEGIN; UPDATE t SET n = n + 1; DELETE FROM t WHERE n > 9; {xid} END;"),
        );
        // A sequence alone.
        of(database, &format!("BEGIN; SELECT nextval('s'); {xid} COMMIT;"));
        // Subtransactions, of which the top transaction itself touches nothing.
        of(
            database,
            &format!(
                "BEGIN; {xid} SAVEPOINT a; INSERT INTO t VALUES (1); SAVEPOINT b; \
                 INSERT INTO t VALUES (2); ROLLBACK TO b; SAVEPOINT c; INSERT INTO t VALUES (3); \
                 COMMIT;"
            ),
        );
        // Catalogue, truncation, dropped statistics; records longer than a page and a segment.
        of(
            database,
            &format!("BEGIN; CREATE TABLE gone (n int PRIMARY KEY, x text); {xid} COMMIT;"),
        );
        of(
            database,
            &format!(
                "BEGIN; INSERT INTO gone SELECT n, repeat('x', 1000) FROM generate_series(1, 3000) n; \
                 {xid} COMMIT;"
            ),
        );
        of(database, &format!("BEGIN; TRUNCATE gone; {xid} COMMIT;"));
        of(database, &format!("BEGIN; DROP TABLE gone; {xid} COMMIT;"));
        of(
            database,
            &format!(
                "BEGIN; SELECT pg_logical_emit_message(true, 'test', repeat('m', 1500000)); \
                 INSERT INTO t VALUES (4); {xid} COMMIT;"
            ),
        );
        // Rolled back: not to be told.
        server.sql(database, "BEGIN; INSERT INTO t VALUES (5); ROLLBACK;");
        for (name, end) in [("good", "COMMIT"), ("bad", "ROLLBACK")] {
            of(
                database,
                &format!(
                    "BEGIN; SAVEPOINT a; INSERT INTO t VALUES (6); {xid} \
                     PREPARE TRANSACTION '{database} {name}'; {end} PREPARED '{database} {name}';"
                ),
            );
        }
        of(
            database,
            &format!(
                "BEGIN; INSERT INTO t VALUES (7); {xid} PREPARE TRANSACTION '{database} left';"
            ),
        );
    }
    known
}

fn compare(settings: &[&str]) {
    let server = Server::start(settings);
    for database in ["one", "two"] {
        server.sql("postgres", &format!("CREATE DATABASE {database}"));
        server.sql(database, "CREATE TABLE t (n int); CREATE SEQUENCE s;");
    }
    server.sql("postgres", "CHECKPOINT");
    let from = position(&server);
    let known = work(&server);
    // Something behind it, so that the last record is flushed and complete.
    server.sql("postgres", "SELECT pg_switch_wal()");
    let to: Lsn = server.one("postgres", "SELECT pg_current_wal_lsn()").parse().unwrap();
    let read = server.read(from, to);
    let ours: Vec<Told> = read.iter().map(told).collect();
    let theirs = server.waldump(from, to);
    assert_eq!(ours, theirs);
    let kinds = [
        (TransactionEnd::Prepare, 6),
        (TransactionEnd::CommitPrepared, 2),
        (TransactionEnd::RollbackPrepared, 2),
        (TransactionEnd::Rollback, 0),
    ];
    for (end, count) in kinds {
        assert_eq!(read.iter().filter(|one| one.end == end).count(), count, "{end:?}");
    }
    // Each client's transaction once at its end, in its own database.
    for (xid, database) in &known {
        let of: Vec<_> = read.iter().filter(|one| one.xid == *xid).collect();
        assert!(!of.is_empty(), "{xid} is missing");
        for one in of {
            assert_eq!(one.database, Some(*database), "{one:?}");
        }
    }
    let named = read.iter().filter(|one| one.end == TransactionEnd::CommitPrepared);
    let mut names: Vec<_> = named.filter_map(|one| one.gid.clone()).collect();
    names.sort();
    assert_eq!(names, ["one good", "two good"]);
}

#[test]
fn transactions_are_told_as_pg_waldump_tells_them() {
    compare(&[]);
}

#[test]
fn transactions_are_told_as_pg_waldump_tells_them_with_logical_decoding() {
    compare(&["wal_level=logical", "wal_compression=on"]);
}
