//! F-40 to F-49: what PostgreSQL's own semantics do to a failover.

use anyhow::{Context, Result, ensure};

use super::processes::{backend_with, gate_s_walsender};
use super::{LEASE, TAKEOVER, seconds};
use crate::command::output;
use crate::faults::acts::Act;
use crate::faults::links::Links;
use crate::faults::processes::{Killed, Stopped};
use crate::lab::Lab;
use crate::stage::Stage;

const TENANT: &str = "tenant_0001";

/// F-39. What a single session sets cannot be seen from outside; what roles and databases set is.
pub(crate) fn commits_go_around_the_gate(stage: &mut Stage) -> Result<()> {
    const COUNTED: &str = "understudy_limits_ungated_defaults_count";
    let (active, passive) = stage.sites();
    let lab = stage.lab;
    let count = |wanted: f64| {
        let what = format!("{COUNTED} to be {wanted}");
        // It is looked for every thirty seconds.
        lab.until(&what, seconds(75), || Lab::metric(active, COUNTED) == Some(wanted))
    };
    count(0.0)?;
    let set = std::time::Instant::now();
    lab.sql(active, TENANT, "DROP TABLE IF EXISTS local_f39; CREATE TABLE local_f39 (n int)")?;
    lab.sql(
        active,
        "postgres",
        "CREATE ROLE local_f39; ALTER ROLE local_f39 SET synchronous_commit = local",
    )?;
    let cut = stage.inflict(|lab| Links::cut(&lab.arena, active, passive))?;
    if stage.is_zero() {
        stage.commits_wait_for(LEASE)?;
    }
    // Nobody else has it, and it is confirmed all the same: the limit that this row is about.
    let sql =
        "BEGIN; SET LOCAL synchronous_commit = local; INSERT INTO local_f39 VALUES (39); COMMIT";
    stage.add(|lab| {
        lab.sql(active, TENANT, sql)?;
        Ok(Act::seen_by(move || {
            let rows = lab.sql(active, TENANT, "SELECT count(*) FROM local_f39")?;
            let behind = lab.sql(passive, TENANT, "SELECT count(*) FROM local_f39")? == "0";
            let words = "a commit with synchronous_commit = local was confirmed, and the passive has \
                         not got it";
            Ok((rows == "1" && behind).then(|| words.to_owned()))
        }))
    })?;
    stage.heal(cut)?;
    count(1.0)?;
    let after = set.elapsed().as_secs_f64();
    stage.note(format!("{after:.0} s after it was set, the role's setting is counted"));
    stage
        .note("the session's own setting is seen nowhere, and its commit is not promised anything");
    lab.sql(active, "postgres", "DROP ROLE local_f39")?;
    count(0.0)?;
    stage.acknowledged_again(TAKEOVER)?;
    stage.nobody_has_taken_over()?;
    lab.sql(active, TENANT, "DROP TABLE local_f39").map(drop)
}

/// F-40.
pub(crate) fn gate_s_name_is_edited(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let names = "SHOW synchronous_standby_names";
    let before = stage.lab.sql(active, "postgres", names)?;
    ensure!(!before.is_empty(), "the active waits for nobody to begin with");
    let edited = stage.inflict(|lab| {
        lab.sql(active, "postgres", "ALTER SYSTEM SET synchronous_standby_names = ''")?;
        lab.sql(active, "postgres", "SELECT pg_reload_conf()")?;
        let file = lab.pgdata(active).join("postgresql.auto.conf");
        let proof = move || {
            let text = std::fs::read_to_string(&file).context("read the server's own settings")?;
            let line = text.lines().find(|line| line.starts_with("synchronous_standby_names"));
            Ok(line.map(|line| format!("in the active's settings: {line}")))
        };
        let undo = move || {
            lab.sql(active, "postgres", "ALTER SYSTEM RESET synchronous_standby_names")?;
            lab.sql(active, "postgres", "SELECT pg_reload_conf()").map(drop)
        };
        Ok(Act::seen_by(proof).undone_by(undo))
    })?;
    stage.acknowledged_again(TAKEOVER)?;
    ensure!(stage.lab.sql(active, "postgres", names)? == before, "the edit took effect");
    if stage.is_zero() {
        // Gated still: without the passive nothing is confirmed.
        let cut = stage.add(|lab| Links::cut(&lab.arena, active, passive))?;
        stage.commits_wait_for(LEASE)?;
        stage.heal(cut)?;
        stage.acknowledged_again(TAKEOVER)?;
    }
    stage.heal(edited)
}

/// F-41. The gate's walsender stands still, so that a commit waits in either mode.
pub(crate) fn wait_is_cancelled(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    stage.lab.sql(active, TENANT, "CREATE TABLE IF NOT EXISTS cancelled_f41 (n int)")?;
    let walsender = gate_s_walsender(stage.lab, active)?;
    let stopped =
        stage.inflict(|_| Stopped::one(format!("gate's walsender at {active}"), walsender))?;
    let session = stage.lab.session(active, TENANT, "INSERT INTO cancelled_f41 VALUES (41)")?;
    let waits = "wait_event = 'SyncRep'";
    let backend = backend_with(stage.lab, active, "INTO cancelled_f41 VALUES", waits)?;
    stage.lab.sql(active, "postgres", &format!("SELECT pg_cancel_backend({backend})"))?;
    let (_, said) = session.ended(seconds(10))?;
    ensure!(
        said.contains("WARNING") && said.contains("synchronous replication"),
        "it said {said:?}"
    );
    stage.note("the client was warned; its row counts as unknown");
    stage.heal(stopped)?;
    stage.somebody_serves(TAKEOVER)?;
    let active = stage.lab.active().context("find the active site")?;
    stage.lab.sql(active, TENANT, "DROP TABLE cancelled_f41").map(drop)
}

/// F-42.
pub(crate) fn crash_with_unreplicated_wal(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    stage.lab.sql(active, TENANT, "CREATE TABLE IF NOT EXISTS unseen_f42 (n int)")?;
    let cut = stage.inflict(|lab| Links::cut(&lab.arena, active, passive))?;
    if stage.is_zero() {
        let session = stage.lab.session(active, TENANT, "INSERT INTO unseen_f42 VALUES (42)")?;
        backend_with(stage.lab, active, "INTO unseen_f42 VALUES", "wait_event = 'SyncRep'")?;
        stage.add(|lab| Killed::postmaster(lab, active))?;
        drop(session);
        let begun = std::time::Instant::now();
        let (mut answers, mut refusals) = (0, 0);
        while begun.elapsed() < LEASE * 3 {
            match stage.lab.application_sql(active, TENANT, "TABLE unseen_f42") {
                Ok(rows) => {
                    ensure!(rows.is_empty(), "a row that only the active has was shown: {rows}");
                    answers += 1;
                }
                Err(_) => refusals += 1,
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        stage
            .note(format!("readers at the restarted site: {refusals} refused, {answers} answered"));
    } else {
        stage.note("in bounded, WAL that only the active has may be shown");
        stage.add(|lab| Killed::postmaster(lab, active))?;
    }
    stage.heal(cut)?;
    stage.somebody_serves(TAKEOVER * 2)?;
    let active = stage.lab.active().context("find the active site")?;
    stage.lab.sql(active, TENANT, "DROP TABLE unseen_f42").map(drop)
}

/// F-43.
pub(crate) fn idle_transaction_at_an_ordered_failover(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    let sql = "BEGIN; CREATE TABLE idle_f43 (n int); SELECT pg_sleep(600)";
    let session = stage.lab.session(active, TENANT, sql)?;
    backend_with(stage.lab, active, "idle_f43", "backend_xid IS NOT NULL")?;
    let open = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%idle_f43%' \
                AND backend_xid IS NOT NULL AND pid <> pg_backend_pid()";
    stage.inflict(|lab| {
        Ok(Act::seen_by(move || {
            let count = lab.sql(active, "postgres", open)?;
            Ok((count != "0").then(|| format!("{count} transaction open at {active}")))
        }))
    })?;
    let order = ["failover", "--reason", "F-43", "--yes", "--wait", "--timeout=90s"];
    output(&mut stage.lab.operator(&order))?;
    stage.takes_over(passive, TAKEOVER)?;
    drop(session);
    let left = stage.lab.sql(passive, TENANT, "SELECT to_regclass('idle_f43') IS NULL")?;
    ensure!(left == "t", "an open transaction was committed");
    Ok(())
}

/// F-44.
pub(crate) fn query_holds_replay_back(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    stage.lab.sql(active, TENANT, "CREATE TABLE held_f44 AS SELECT generate_series(1, 9) AS n")?;
    let there = "SELECT to_regclass('held_f44') IS NOT NULL";
    stage.lab.until("the table at the passive", seconds(20), || {
        stage.lab.sql(passive, TENANT, there).is_ok_and(|answer| answer == "t")
    })?;
    let sql = "BEGIN; SELECT count(*) FROM held_f44; SELECT pg_sleep(600)";
    let session = stage.lab.session(passive, TENANT, sql)?;
    backend_with(stage.lab, passive, "held_f44", "state = 'active'")?;
    stage.lab.sql(active, TENANT, "DROP TABLE held_f44")?;
    let behind = "SELECT pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()";
    stage.inflict(|lab| {
        // Its replay waits for the query; meanwhile the workload goes on.
        Ok(Act::seen_by(move || {
            let held = lab.sql(passive, "postgres", behind)? == "t"
                && lab.server_process(passive, "startup").is_some();
            Ok(held.then(|| format!("replay at {passive} waits behind a query")))
        }))
    })?;
    stage.add(|lab| Killed::sites(lab, &[active]))?;
    stage.takes_over(passive, TAKEOVER * 3)?;
    drop(session);
    Ok(())
}

/// Loses the active site once `prepare` has been done there; the passive takes over.
fn lost_after(stage: &mut Stage, database: &str, prepare: &[&str]) -> Result<&'static str> {
    let (active, passive) = stage.sites();
    for sql in prepare {
        stage.lab.sql(active, database, sql)?;
    }
    stage.inflict(|lab| Killed::sites(lab, &[active]))?;
    stage.takes_over(passive, TAKEOVER)?;
    Ok(passive)
}

/// F-45.
pub(crate) fn prepared_transaction_survives(stage: &mut Stage) -> Result<()> {
    let prepare = [
        "CREATE TABLE prepared_f45 (n int)",
        "BEGIN; INSERT INTO prepared_f45 VALUES (45); PREPARE TRANSACTION 'chaos-f45'",
    ];
    let heir = lost_after(stage, TENANT, &prepare)?;
    stage.lab.sql(heir, TENANT, "COMMIT PREPARED 'chaos-f45'")?;
    let rows = stage.lab.sql(heir, TENANT, "TABLE prepared_f45")?;
    ensure!(rows == "45", "the prepared transaction left {rows:?}");
    stage.lab.sql(heir, TENANT, "DROP TABLE prepared_f45").map(drop)
}

/// F-46.
pub(crate) fn unlogged_tables_and_sequences(stage: &mut Stage) -> Result<()> {
    let prepare = [
        "CREATE UNLOGGED TABLE unlogged_f46 AS SELECT generate_series(1, 100) AS n",
        "CREATE SEQUENCE counted_f46",
        "SELECT max(nextval('counted_f46')) FROM generate_series(1, 40)",
    ];
    let heir = lost_after(stage, TENANT, &prepare)?;
    let rows = stage.lab.sql(heir, TENANT, "SELECT count(*) FROM unlogged_f46")?;
    let next: u64 = stage.lab.sql(heir, TENANT, "SELECT nextval('counted_f46')")?.parse()?;
    ensure!(rows == "0", "an unlogged table came over with {rows} rows");
    ensure!(next > 40, "the sequence went back to {next}");
    stage.note(format!("the sequence goes on at {next} after 40"));
    stage.lab.sql(heir, TENANT, "DROP TABLE unlogged_f46; DROP SEQUENCE counted_f46").map(drop)
}

/// WAL that a site has written since `lsn`, as evidence once it is more than `bytes`.
fn wal_written<'a>(lab: &'a Lab, site: &'static str, bytes: u64) -> Result<Act<'a>> {
    let lsn = lab.sql(site, "postgres", "SELECT pg_current_wal_lsn()")?;
    let sql = format!("SELECT (pg_current_wal_lsn() - '{lsn}'::pg_lsn)::bigint");
    Ok(Act::seen_by(move || {
        let written: u64 = lab.sql(site, "postgres", &sql)?.parse()?;
        Ok((written > bytes).then(|| format!("{} MB of WAL at {site}", written / 1_000_000)))
    }))
}

/// F-48.
pub(crate) fn bulk_load(stage: &mut Stage) -> Result<()> {
    let (active, _) = stage.sites();
    let sql = "CREATE TABLE bulk_f48 AS SELECT n, repeat(md5(n::text), 12) AS text \
               FROM generate_series(1, 600000) AS n";
    let load = stage.lab.session(active, "tenant_0002", sql)?;
    let loading = stage.inflict(|lab| wal_written(lab, active, 20_000_000))?;
    let (done, said) = load.ended(seconds(150))?;
    ensure!(done, "the load failed: {said}");
    stage.heal(loading)?;
    stage.nobody_has_taken_over()?;
    stage.acknowledged_again(TAKEOVER)?;
    stage.lab.sql(active, "tenant_0002", "DROP TABLE bulk_f48").map(drop)
}

/// F-49.
pub(crate) fn lost_amid_ddl(stage: &mut Stage) -> Result<()> {
    let (active, passive) = stage.sites();
    // The final account compares everything at both sites, as the applications' role.
    let schema = "DROP SCHEMA IF EXISTS ddl CASCADE; CREATE SCHEMA ddl; \
                  GRANT USAGE ON SCHEMA ddl TO PUBLIC; \
                  ALTER DEFAULT PRIVILEGES IN SCHEMA ddl GRANT SELECT ON TABLES TO PUBLIC";
    stage.lab.sql(active, "tenant_0002", schema)?;
    let mix = "DO $$ BEGIN FOR i IN 1..100000 LOOP \
        EXECUTE format('CREATE TABLE ddl.t%s AS SELECT generate_series(1, 3000) AS n', i); \
        IF i % 3 = 0 THEN ROLLBACK; ELSE COMMIT; END IF; \
        IF i > 20 THEN EXECUTE format('DROP TABLE IF EXISTS ddl.t%s', i - 20); COMMIT; END IF; \
        END LOOP; END $$";
    let session = stage.lab.session(active, "tenant_0002", mix)?;
    let count = "SELECT count(*) FROM pg_tables WHERE schemaname = 'ddl'";
    stage.inflict(|lab| {
        Ok(Act::seen_by(move || {
            let tables: u32 = lab.sql(active, "tenant_0002", count)?.parse()?;
            Ok((tables > 5).then(|| format!("{tables} tables in the midst of DDL")))
        }))
    })?;
    stage.add(|lab| Killed::sites(lab, &[active]))?;
    stage.takes_over(passive, TAKEOVER)?;
    drop(session);
    Ok(())
}
