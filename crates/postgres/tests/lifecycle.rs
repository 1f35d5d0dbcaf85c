//! Start, access, stop and fence, shown on real servers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::{Instance, PATIENCE, as_os_user, gate, until};
use understudy_postgres::{ControlState, DataDirectory, Error, HbaMode, Probe, StartMode};
use understudy_types::Timeline;

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap()).unwrap()
}

#[tokio::test]
async fn a_new_cluster_starts_gated_lets_nobody_in_and_cannot_be_ungated() {
    let a = Instance::new("a");
    assert_eq!(a.server.inspect().await.unwrap(), DataDirectory::Missing);
    a.server.init_db().await.unwrap();
    let user_lines = std::fs::read(a.data_dir().join("pg_hba.conf")).unwrap();
    let running =
        a.server.start(&StartMode::Primary, &gate(), HbaMode::Closed, PATIENCE).await.unwrap();
    assert_eq!(running.gate_name, Some(gate()));
    assert!(a.data_dir().join("standby.signal").exists());

    let mut probe = Probe::new(&a.server, gate(), Duration::from_secs(5));
    let seen = probe.probe().await.unwrap();
    assert!(!seen.in_recovery);
    assert_eq!(seen.timeline, Some(Timeline::FIRST));
    assert!(seen.flush_lsn.is_some() && seen.replay_lsn.is_none());
    assert!(seen.gate_rows.is_empty());
    probe.knock().await.unwrap();

    let refused = a.try_psql("postgres", "SELECT 1");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("rejects connection"));
    for role in ["understudy", "understudy_rewind"] {
        assert!(a.try_psql(role, "SELECT 1").status.success(), "{role} was refused");
    }
    a.server.write_hba(HbaMode::Open).unwrap();
    until("clients are let in", async || a.try_psql("postgres", "SELECT 1").status.success()).await;
    let hba = std::fs::read(a.data_dir().join("pg_hba.conf")).unwrap();
    assert!(hba.ends_with(&user_lines));

    a.psql("ALTER SYSTEM SET synchronous_standby_names = ''");
    a.psql("ALTER SYSTEM SET synchronous_commit = 'off'");
    a.psql("ALTER SYSTEM SET recovery_target = 'immediate'");
    a.psql("ALTER SYSTEM SET work_mem = '5MB'");
    a.psql("SELECT pg_reload_conf()");
    until("the configuration is read again", async || a.psql("SHOW work_mem") == "5MB").await;
    assert_eq!(a.psql("SHOW synchronous_standby_names"), "\"gate_7f3a\"");
    assert_eq!(probe.probe().await.unwrap().synchronous_standby_names, "\"gate_7f3a\"");

    // The file's own settings lose against ALTER SYSTEM, and that is told; the command line's do not.
    a.psql("ALTER SYSTEM SET wal_keep_size = '3GB'");
    a.psql("SELECT pg_reload_conf()");
    until("it is told", async || {
        a.server.fitness().await.unwrap().overridden == ["wal_keep_size (3GB)"]
    })
    .await;
    assert_eq!(a.psql("SHOW recovery_target"), "");

    let error = a.server.init_db().await.unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    a.server.stop_fast(PATIENCE).await.unwrap();
    assert_eq!(a.server.running().unwrap(), None);
    let DataDirectory::Cluster(data) = a.server.inspect().await.unwrap() else { panic!() };
    assert_eq!(data.state, ControlState::ShutDown);
    assert!(data.checksums && data.wal_log_hints && data.standby_signal);
}

#[tokio::test]
async fn only_our_role_may_replicate_and_only_the_gates_name_is_counted() {
    let a = Instance::primary("a").await;
    let receive = |user: &str, name: &str| {
        let mut command = Command::new(a.server.binaries().program("pg_receivewal"));
        command.arg("-h").arg(a.socket_dir()).args(["-p", "5432", "-U", user, "-n", "-D"]);
        let to = a.dir.path().join(format!("received-{user}"));
        command.arg(&to).env("PGAPPNAME", name).current_dir("/");
        std::fs::create_dir(&to).unwrap();
        let owner = support::os_user();
        std::os::unix::fs::chown(&to, Some(owner.uid), Some(owner.gid)).unwrap();
        as_os_user(&mut command);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let refused = receive("postgres", "gate_7f3a").wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("rejects replication connection"));
    let mut impostor = receive("understudy_replication", "GATE_7F3A");
    let mut probe = Probe::new(&a.server, gate(), Duration::from_secs(5));
    until("the name shows up", async || {
        let rows = probe.probe().await.unwrap().gate_rows;
        rows.len() == 1 && rows[0].application_name == "GATE_7F3A" && rows[0].walsender_pid > 0
    })
    .await;
    impostor.kill().unwrap();
    impostor.wait().unwrap();
}

#[test]
fn a_server_outlives_the_daemon_that_started_it_and_is_taken_up_again() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let daemon = runtime();
    let a = daemon.block_on(Instance::primary("a"));
    let before = a.server.running().unwrap().unwrap();
    drop(daemon);
    let settings = a.server.settings().clone();
    let again = understudy_postgres::Server::new(settings, a.server.binaries().clone()).unwrap();
    assert_eq!(again.running().unwrap().unwrap(), before);
    runtime().block_on(async {
        let mode = StartMode::Primary;
        let error = again.start(&mode, &gate(), HbaMode::Open, PATIENCE).await.unwrap_err();
        assert!(matches!(error, Error::Running { .. }), "{error}");
        again.stop_fast(PATIENCE).await.unwrap();
    });
}

#[tokio::test]
async fn a_fence_ends_an_instance_whose_postmaster_is_frozen() {
    let a = Instance::primary("a").await;
    a.psql("CREATE TABLE t (n int)");
    let _busy = a.busy_client();
    until("it commits", async || a.psql("SELECT count(*) > 10 FROM t") == "t").await;
    let running = a.server.running().unwrap().unwrap();
    kill_process(pid(running.pid), Signal::STOP).unwrap();
    let proof = a.server.fence().await.unwrap();
    assert!(proof.kills > 0 && proof.took < Duration::from_secs(3), "{proof:?}");
    assert_eq!(a.server.processes().unwrap(), 0);
    assert!(a.data_dir().join("standby.signal").exists());
    // And again, with nothing left to do.
    assert_eq!(a.server.fence().await.unwrap().kills, 0);
}

#[tokio::test]
async fn a_fence_ends_backends_that_go_on_after_their_postmaster_was_killed() {
    let a = Instance::primary("a").await;
    a.psql("CREATE TABLE t (n int)");
    let _busy = a.busy_client();
    until("it commits", async || a.psql("SELECT count(*) > 10 FROM t") == "t").await;
    let running = a.server.running().unwrap().unwrap();
    kill_process(pid(running.pid), Signal::KILL).unwrap();
    until("the postmaster is gone", async || a.server.running().unwrap().is_none()).await;
    assert!(a.server.processes().unwrap() > 0, "the busy backend ended by itself");
    let proof = a.server.fence().await.unwrap();
    assert!(proof.kills > 0, "{proof:?}");
    assert_eq!(a.server.processes().unwrap(), 0);
}

/// A process somewhere on this machine was started with this argument.
fn somebody_runs_with(argument: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.any(|line| line.split(|byte| *byte == 0).any(|part| part == argument.as_bytes()))
}

#[tokio::test]
async fn a_fence_ends_what_a_backend_had_started_too() {
    let a = Instance::primary("a").await;
    let seconds = format!("98{}", std::process::id());
    let command = format!("COPY (SELECT 1) TO PROGRAM 'exec sleep {seconds}'");
    let _client = a.client(&command);
    until("it runs", async || somebody_runs_with(&seconds)).await;
    let running = a.server.running().unwrap().unwrap();
    kill_process(pid(running.pid), Signal::KILL).unwrap();
    let _proof = a.server.fence().await.unwrap();
    assert!(!somebody_runs_with(&seconds), "the backend's command lives on");
}

/// Processes in a group of the kernel's (version 1) freezer: not even SIGKILL ends them before they
/// are thawed, as if they hung in a disk that does not answer.
struct Icebox(std::path::PathBuf);

impl Icebox {
    fn freeze(pid: u32) -> Option<Icebox> {
        let group = format!("understudy-test-{}", std::process::id());
        let group = std::path::Path::new("/sys/fs/cgroup/freezer").join(group);
        std::fs::create_dir(&group).ok()?;
        let icebox = Icebox(group);
        std::fs::write(icebox.0.join("cgroup.procs"), pid.to_string()).unwrap();
        std::fs::write(icebox.0.join("freezer.state"), "FROZEN").unwrap();
        Some(icebox)
    }
}

impl Drop for Icebox {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("freezer.state"), "THAWED");
        while std::fs::read_to_string(self.0.join("cgroup.procs"))
            .is_ok_and(|left| !left.is_empty())
        {
            std::thread::yield_now();
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[tokio::test]
async fn a_fence_is_not_proven_while_a_process_cannot_be_ended() {
    let a = Instance::primary("a").await;
    let running = a.server.running().unwrap().unwrap();
    let Some(icebox) = Icebox::freeze(running.pid) else {
        eprintln!("not shown: no version 1 freezer that this user may use");
        return;
    };
    let error = a.server.fence().await.unwrap_err();
    assert!(
        matches!(&error, Error::FenceUnproven { pids, .. } if pids.contains(&running.pid)),
        "{error}"
    );
    std::fs::write(icebox.0.join("freezer.state"), "THAWED").unwrap();
    let _proof = a.server.fence().await.unwrap();
    assert_eq!(a.server.processes().unwrap(), 0);
}

#[tokio::test]
async fn a_frozen_postmaster_lets_nobody_in_while_older_sessions_answer_and_its_end_is_noticed() {
    let a = Instance::primary("a").await;
    let patience = Duration::from_secs(2);
    let running = a.server.running().unwrap().unwrap();
    let mut probe = Probe::new(&a.server, gate(), patience);
    probe.probe().await.unwrap();
    a.server.knock(patience).await.unwrap();
    kill_process(pid(running.pid), Signal::STOP).unwrap();
    assert!(a.server.knock(patience).await.is_err(), "a frozen postmaster answered");
    probe.probe().await.unwrap();
    let (server, postmaster) = (a.server.clone(), running.clone());
    let end = tokio::spawn(async move { server.ended(&postmaster).await });
    assert!(!end.is_finished());
    kill_process(pid(running.pid), Signal::KILL).unwrap();
    tokio::time::timeout(PATIENCE, end).await.unwrap().unwrap().unwrap();
    assert_eq!(a.server.running().unwrap(), None);
    a.server.ended(&running).await.unwrap();
}

#[tokio::test]
async fn known_limits_are_found_and_counted() {
    let a = Instance::primary("a").await;
    assert_eq!(a.server.limits().await.unwrap().ungated_defaults, Vec::<String>::new());
    for sql in [
        "CREATE ROLE loose",
        "ALTER ROLE loose SET synchronous_commit = off",
        "CREATE ROLE strict",
        "ALTER ROLE strict SET synchronous_commit = remote_apply",
        "ALTER ROLE loose IN DATABASE postgres SET synchronous_commit = 'local'",
        "ALTER ROLE ALL SET synchronous_commit = local",
        "CREATE DATABASE other",
        "ALTER DATABASE other SET synchronous_commit = false",
        "CREATE UNLOGGED TABLE u (n int)",
        "CREATE TABLE l (n int)",
    ] {
        a.psql(sql);
    }
    let limits = a.server.limits().await.unwrap();
    assert_eq!(
        limits.ungated_defaults,
        ["database other", "every role", "role loose", "role loose in database postgres"]
    );
    assert_eq!(limits.unlogged_tables_count, 1);
    // template0 lets nobody in.
    assert_eq!((limits.databases_unseen_count, limits.prepared_count), (1, 0));
    assert!(!limits.fsync_off && !limits.full_page_writes_off);
}

#[tokio::test]
async fn a_bystander_whose_working_directory_is_the_data_directory_is_spared() {
    let a = Instance::primary("a").await;
    let mut shell = Command::new("sleep").arg("60").current_dir(a.data_dir()).spawn().unwrap();
    let _proof = a.server.fence().await.unwrap();
    assert!(shell.try_wait().unwrap().is_none(), "it was killed");
    shell.kill().unwrap();
    shell.wait().unwrap();
}

#[tokio::test]
async fn after_a_crash_nothing_comes_up_writable_by_itself_or_by_hand() {
    let a = Instance::primary("a").await;
    a.psql("CREATE TABLE t (n int)");
    let _busy = a.busy_client();
    let find = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'DO %'";
    until("it runs", async || !a.psql(find).is_empty()).await;
    kill_process(pid(a.psql(find).parse().unwrap()), Signal::KILL).unwrap();
    until("the instance has ended", async || a.server.processes().unwrap() == 0).await;

    let mut by_hand = Command::new(a.server.binaries().program("postgres"));
    by_hand
        .arg("-D")
        .arg(a.data_dir())
        .arg("-c")
        .arg(format!("unix_socket_directories={}", a.socket_dir().display()));
    by_hand.args(["-c", "listen_addresses="]).current_dir("/");
    as_os_user(by_hand.stdout(Stdio::null()).stderr(Stdio::null()));
    let mut by_hand = by_hand.spawn().unwrap();
    let ask = "SELECT pg_is_in_recovery()";
    until("it answers", async || a.try_psql("postgres", ask).status.success()).await;
    assert_eq!(a.psql(ask), "t");
    assert_eq!(a.server.running().unwrap().unwrap().gate_name, None);
    let _proof = a.server.fence().await.unwrap();
    by_hand.wait().unwrap();
}

#[tokio::test]
async fn sessions_of_clients_end_when_told_and_the_nodes_own_stay() {
    let a = Instance::primary("a").await;
    a.psql("CREATE TABLE t (n int)");
    let mut probe = Probe::new(&a.server, gate(), Duration::from_secs(5));
    let before = probe.probe().await.unwrap();
    let _busy = a.busy_client();
    until("it is there", async || a.server.client_count().await.unwrap() == 1).await;
    assert!(a.server.shut_out_clients(PATIENCE).await.unwrap() >= 1);
    assert_eq!(a.server.client_count().await.unwrap(), 0);
    assert!(!a.try_psql("postgres", "SELECT 1").status.success());
    a.server.apply_hba(HbaMode::Open, PATIENCE).await.unwrap();
    assert!(a.try_psql("postgres", "SELECT 1").status.success());
    let hba = a.data_dir().join("pg_hba.conf");
    let wrong = std::fs::read_to_string(&hba).unwrap() + "nonsense\n";
    std::fs::write(&hba, wrong).unwrap();
    let error = a.server.shut_out_clients(PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains("pg_hba.conf is wrong"), "{error}");
    let after = probe.probe().await.unwrap();
    assert_eq!(after.postmaster_start_unix_us, before.postmaster_start_unix_us);
}

#[tokio::test]
async fn a_start_that_fails_shows_the_last_lines_of_the_log() {
    let a = Instance::new("a");
    a.server.init_db().await.unwrap();
    let mut settings = a.server.settings().clone();
    settings.parameters.insert("shared_preload_libraries".to_owned(), "no_such".to_owned());
    let server = understudy_postgres::Server::new(settings, a.server.binaries().clone()).unwrap();
    let mode = StartMode::Primary;
    let error = server.start(&mode, &gate(), HbaMode::Open, PATIENCE).await.unwrap_err();
    assert!(matches!(error, Error::StartFailed { .. }), "{error}");
    assert!(error.to_string().contains("no_such"), "{error}");
    assert!(a.data_dir().join("standby.signal").exists());
}

#[tokio::test]
async fn what_is_not_our_cluster_is_named_and_left_alone() {
    let a = Instance::new("a");
    std::fs::create_dir(a.data_dir()).unwrap();
    assert_eq!(a.server.inspect().await.unwrap(), DataDirectory::Empty);
    std::fs::write(a.data_dir().join("holiday.jpg"), "x").unwrap();
    let DataDirectory::NotACluster { what } = a.server.inspect().await.unwrap() else { panic!() };
    assert!(what.contains("holiday.jpg"), "{what}");
    let error = a.server.base_backup(&a.source(), &mut |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("holiday.jpg"), "{error}");
    std::fs::write(a.data_dir().join("PG_VERSION"), "9\n").unwrap();
    let wanted = a.server.binaries().version().major;
    let found = "9".to_owned();
    assert_eq!(a.server.inspect().await.unwrap(), DataDirectory::WrongVersion { found, wanted });
    let error = a.server.init_db().await.unwrap_err().to_string();
    assert!(error.contains("WrongVersion"), "{error}");
    assert!(a.data_dir().join("holiday.jpg").exists());
}
