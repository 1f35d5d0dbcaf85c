//! What a cluster can be made with and still be followed: segment sizes, compressed page images.

use understudy_types::{Lsn, Timeline, WalSegment};
use understudy_wal::format::{
    LONG_HEADER_BYTES, PageHeader, ScanOptions, TransactionReader, WalVersion,
};

use crate::chain::Chain;
use crate::postgres::{command, run, until};
use crate::relayed::receivewal;
use crate::rig::{Make, lsn};

/// Over several segments, with a switch in the middle of one: the standby, the journal and `pg_receivewal`
/// have what the primary wrote, byte for byte.
async fn follows_segments_of(mib: u32) {
    let chain = Chain::new(Make { segment_mib: Some(mib), settings: &[] }).await;
    let rig = &chain.rig;
    let size = rig.size();
    assert_eq!(rig.sql("SHOW wal_segment_size"), format!("{mib}MB"));
    let standby = chain.standby().await;
    let (received, receiving) = receivewal(rig.dir(), "received", &[]);
    let begin = chain.begin_lsn();
    rig.sql("INSERT INTO t SELECT generate_series(1, 60000)");
    for value in 0..3 {
        rig.sql(&format!("INSERT INTO t VALUES ({value})"));
        rig.sql("SELECT pg_switch_wal()");
    }
    rig.sql("INSERT INTO t VALUES (-1)");
    let flush_lsn = chain.replayed().await;
    assert!(flush_lsn.bytes_since(begin) > 3 * size.bytes(), "fewer than three boundaries");
    assert_eq!(standby.sql("SELECT count(*) FROM t"), rig.sql("SELECT count(*) FROM t"));
    assert_eq!(rig.compare_with_primary(), None);
    let mut compared = 0;
    let mut segment = WalSegment::containing(Timeline::FIRST, begin, size);
    while segment.end(size) <= flush_lsn {
        let name = segment.file_name(size);
        let theirs = std::fs::read(rig.dir().join("primary/pg_wal").join(&name)).unwrap();
        assert!(std::fs::read(chain.finished(segment)).unwrap() == theirs, "{name} in the journal");
        // pg_receivewal began with the segment that it was started in.
        until("pg_receivewal has finished its segments", || {
            received.join(&name).exists() || nothing_before(&received, &name)
        })
        .await;
        if received.join(&name).exists() {
            assert!(std::fs::read(received.join(&name)).unwrap() == theirs, "{name} by the relay");
            compared += 1;
        }
        segment = segment.next();
    }
    assert!(compared >= 2, "pg_receivewal wrote {compared} segments");
    drop((receiving, standby));
    chain.end().await;
}

/// Whether a directory has a finished segment behind `name`, so that `name` itself will not come.
fn nothing_before(received: &std::path::Path, name: &str) -> bool {
    let names = std::fs::read_dir(received).unwrap();
    let mut names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.any(|other| other.as_str() > name && other.len() == name.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_of_1_mib_are_followed() {
    follows_segments_of(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_of_16_mib_are_followed() {
    follows_segments_of(16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_of_64_mib_are_followed() {
    follows_segments_of(64).await;
}

/// Page images as the server compresses them: the standby replays them, and our reader of transactions finds
/// every commit that `pg_waldump` finds.
async fn follows_images_by(method: &str, make: Make) {
    let chain = Chain::new(make).await;
    let rig = &chain.rig;
    assert_eq!(rig.sql("SHOW wal_compression"), method);
    let standby = chain.standby().await;
    rig.sql("CREATE TABLE pages AS SELECT g AS n, repeat('x', 300) AS x FROM generate_series(1, 3000) g");
    for round in 0..3 {
        rig.sql("CHECKPOINT");
        rig.sql(&format!("UPDATE pages SET n = n + 1 WHERE n % 3 = {round}"));
    }
    let end_lsn = chain.replayed().await;
    assert_eq!(rig.compare_with_primary(), None);
    let sums = "SELECT count(*), sum(n), sum(length(x)) FROM pages";
    assert_eq!(standby.sql(sums), rig.sql(sums));

    let begin_lsn = chain.begin_lsn();
    let mut dump = command("pg_waldump");
    dump.arg("-p").arg(rig.dir().join("primary/pg_wal")).args(["-b", "-s"]);
    let dump = run(dump.arg(begin_lsn.to_string()).args(["-e", &end_lsn.to_string()]));
    let images = dump.lines().filter(|line| line.contains("compression saved: ")).count();
    let ours = dump.matches(&format!("method: {method}")).count();
    assert!(images > 50 && images == ours, "{ours} of {images} images are compressed by {method}");
    let theirs: Vec<Lsn> = dump
        .lines()
        .filter(|line| line.starts_with("rmgr: Transaction") && line.contains("desc: COMMIT"))
        .map(|line| lsn(line.split("lsn: ").nth(1).unwrap().split(',').next().unwrap()))
        .collect();
    assert_eq!(commits(&chain, begin_lsn, end_lsn), theirs);
    drop(standby);
    chain.end().await;
}

/// The commits in the journal, each of which names a database or touched one.
fn commits(chain: &Chain, begin_lsn: Lsn, end_lsn: Lsn) -> Vec<Lsn> {
    let bytes = chain.journal_bytes(begin_lsn, end_lsn);
    let head: &[u8; LONG_HEADER_BYTES] = bytes.first_chunk().unwrap();
    let head = PageHeader::identify(head).unwrap();
    let version = WalVersion::from_magic(head.magic).unwrap();
    let options = ScanOptions {
        timeline: Timeline::FIRST,
        timeline_since: Some(Lsn::ZERO),
        size: chain.rig.size(),
        system_id: head.segment.map(|(system_id, _)| system_id),
        page_magic: Some(head.magic),
    };
    let mut reader = TransactionReader::new(options, version, begin_lsn);
    let mut commits = Vec::new();
    reader
        .push(&bytes, &mut |one| {
            assert!(one.database.is_some(), "{one:?}");
            commits.push(one.lsn);
        })
        .unwrap();
    assert_eq!((reader.end_lsn(), reader.unreadable_count()), (end_lsn, 0));
    commits
}

/// With all of its WAL kept, to be compared.
const PGLZ: Make =
    Make { segment_mib: Some(1), settings: &["wal_compression=pglz", "wal_keep_size=1GB"] };
const LZ4: Make = Make { settings: &["wal_compression=lz4", "wal_keep_size=1GB"], ..PGLZ };
const ZSTD: Make = Make { settings: &["wal_compression=zstd", "wal_keep_size=1GB"], ..PGLZ };

/// Methods that a server may have been built without.
fn server_has(option: &str) -> bool {
    run(command("pg_config").arg("--configure")).contains(option)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_compressed_by_pglz_are_followed() {
    follows_images_by("pglz", PGLZ).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_compressed_by_lz4_are_followed() {
    if server_has("--with-lz4") {
        follows_images_by("lz4", LZ4).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_compressed_by_zstd_are_followed() {
    if server_has("--with-zstd") {
        follows_images_by("zstd", ZSTD).await;
    }
}
