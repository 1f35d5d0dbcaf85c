//! One contender's turn: put in place, in step with the primary, measured, taken away.
//!
//! Only one contender is there at a time. What commits wait for is set on the running primary, and the
//! same standby streams from the primary or from Understudy's walsender.

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use understudy_line::Line;
use understudy_types::{DurabilityMode, Lsn};

use super::lab::{Lab, free_port};
use super::link::Link;
use super::sides::{RECEIVER, ReceiverTask, SENDER, Side, SourceTask};
use crate::postgres::{Instance, Sql};
use crate::usage::{memory_high_water, processor_time};

/// Who replicates, and what a commit waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Contender {
    /// Nobody.
    NoStandby,
    /// PostgreSQL's own standby, not waited for.
    NativeAsync,
    /// PostgreSQL's own standby, waited for until it has flushed.
    NativeSync,
    /// `pg_receivewal --synchronous`, waited for; nothing replays.
    Receivewal,
    /// Understudy in `bounded`, with a standby behind it.
    Bounded,
    /// Understudy in `zero`, with a standby behind it.
    Zero,
}

/// In the order of the table.
pub(super) const CONTENDERS: [Contender; 6] = [
    Contender::NoStandby,
    Contender::NativeAsync,
    Contender::NativeSync,
    Contender::Receivewal,
    Contender::Bounded,
    Contender::Zero,
];

impl Contender {
    pub(super) fn name(self) -> &'static str {
        match self {
            Contender::NoStandby => "no standby",
            Contender::NativeAsync => "native, asynchronous",
            Contender::NativeSync => "native, synchronous",
            Contender::Receivewal => "pg_receivewal",
            Contender::Bounded => "Understudy, bounded",
            Contender::Zero => "Understudy, zero",
        }
    }

    fn mode(self) -> Option<DurabilityMode> {
        match self {
            Contender::Bounded => Some(DurabilityMode::Bounded),
            Contender::Zero => Some(DurabilityMode::Zero),
            Contender::NoStandby
            | Contender::NativeAsync
            | Contender::NativeSync
            | Contender::Receivewal => None,
        }
    }

    /// What the primary's commits wait for, as `application_name`.
    fn waits_for(self) -> Option<&'static str> {
        match self {
            Contender::NoStandby | Contender::NativeAsync => None,
            Contender::NativeSync => Some(NATIVE),
            Contender::Receivewal => Some(RECEIVEWAL),
            Contender::Bounded | Contender::Zero => Some(GATE),
        }
    }

    /// What the primary says of a contender in place: how long after the walsender saw its flush it was
    /// flushed at the passive, and replayed; seconds, as far as it says so and it is so.
    pub(super) fn lags(self, sql: &mut Sql) -> Result<(Option<f64>, Option<f64>)> {
        let name = self.waits_for().unwrap_or(NATIVE);
        let row = sql.row(&format!(
            "SELECT extract(epoch FROM flush_lag)::text, extract(epoch FROM replay_lag)::text \
             FROM pg_stat_replication WHERE application_name = '{name}'"
        ))?;
        let Some([flush, replay]) = row.as_deref() else { return Ok((None, None)) };
        let seconds = |text: &Option<String>| text.as_deref().map(str::parse::<f64>).transpose();
        // The gate of `bounded` does not wait for the passive, and nothing replays behind pg_receivewal.
        let flush = seconds(flush)?.filter(|_| self != Contender::Bounded);
        let replay = seconds(replay)?.filter(|_| self != Contender::Receivewal);
        Ok((flush, replay))
    }
}

const NATIVE: &str = "native";
const RECEIVEWAL: &str = "pg_receivewal";
const GATE: &str = "understudy_gate";
const JOURNAL: &str = "journal";

/// What a contender has used since its turn began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cost {
    /// Walsenders, and Understudy's sending side.
    pub(super) active: Duration,
    /// Walreceiver, and Understudy's receiving side; not what replays.
    pub(super) passive: Duration,
    /// The most memory that Understudy's sides have had, in bytes; 0 for others.
    pub(super) active_bytes: u64,
    pub(super) passive_bytes: u64,
}

/// A contender in place.
pub(super) struct Turn<'a> {
    lab: &'a Lab,
    pub(super) contender: Contender,
    link: Link,
    /// Where the sending side listens, if it is ours.
    holder: SocketAddr,
    /// What the receiving side connects over.
    line: Option<Line>,
    source: Option<Side>,
    receiver: Option<Side>,
    receivewal: Option<Killed>,
}

/// A program that is ended when it is not needed any more.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::INT);
        let _ = self.0.wait();
    }
}

impl<'a> Turn<'a> {
    /// Makes a contender's sending side ready, if that is not PostgreSQL itself.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn begin(lab: &'a Lab, contender: Contender, link: Link) -> Result<Turn<'a>> {
        let holder = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let mut turn = Turn {
            lab,
            contender,
            link,
            holder,
            line: None,
            source: None,
            receiver: None,
            receivewal: None,
        };
        if let Some(mode) = contender.mode() {
            turn.source = Some(turn.source(mode)?);
        }
        Ok(turn)
    }

    /// Lets the receiving side begin; `standby` streams from it from now on, if it has a place for one.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn connect(&mut self, standby: &Instance) -> Result<()> {
        match self.contender {
            Contender::NativeAsync | Contender::NativeSync => {
                let port = self.way_to(self.lab.primary.port)?;
                stream_from(standby, &self.lab.conninfo(NATIVE, port))
            }
            Contender::Receivewal => self.receivewal(),
            Contender::Bounded | Contender::Zero => self.receiver(standby),
            Contender::NoStandby => Ok(()),
        }
    }

    /// The way to a port of the active, over the link.
    fn way_to(&mut self, port: u16) -> Result<u16> {
        let (port, line) = self.lab.carrier.way_to(port, self.link)?;
        self.line = line;
        Ok(port)
    }

    fn source(&self, mode: DurabilityMode) -> Result<Side> {
        let lab = self.lab;
        Side::source(&SourceTask {
            papers: lab.papers(SENDER, false),
            listen: self.holder,
            socket_dir: lab.path("run"),
            port: lab.primary.port,
            gate_name: GATE.to_owned(),
            system_id: lab.system_id,
            mode,
        })
    }

    fn receiver(&mut self, standby: &Instance) -> Result<()> {
        let (lab, relay_port) = (self.lab, free_port()?);
        let mut holder = self.holder;
        holder.set_port(self.way_to(holder.port())?);
        let receiver = ReceiverTask {
            papers: lab.papers(RECEIVER, false),
            holder,
            system_id: lab.system_id,
            journal: lab.path(JOURNAL),
            start: standby.sql("postgres")?.lsn("SELECT pg_last_wal_replay_lsn()::text")?,
            socket_dir: lab.path("run"),
            relay_port,
            server_version: lab.programs.version(),
            standby_uid: lab.programs.user.uid,
        };
        self.receiver = Some(Side::receiver(&receiver)?);
        let run = lab.path("run");
        stream_from(
            standby,
            &format!(
                "host={} port={relay_port} user=postgres application_name={RECEIVER}",
                run.display()
            ),
        )
    }

    fn receivewal(&mut self) -> Result<()> {
        let dir = self.lab.path("data/receivewal");
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir(&dir)?;
        self.lab.programs.give(&dir)?;
        let mut program = self.lab.programs.command("pg_receivewal");
        program.arg("-D").arg(&dir).args(["--synchronous", "--no-loop", "-d"]);
        let port = self.way_to(self.lab.primary.port)?;
        program.arg(self.lab.conninfo(RECEIVEWAL, port)).stdout(Stdio::null());
        // That the last segment is not complete is no news.
        program.stderr(Stdio::null());
        self.receivewal = Some(Killed(program.spawn().context("start pg_receivewal")?));
        Ok(())
    }

    /// Waits until everything written so far is where it is to be, and lets commits wait for it.
    ///
    /// # Errors
    /// When it does not get there.
    pub(super) fn in_step(&self, sql: &mut Sql, standby: &mut Sql) -> Result<()> {
        sql.run(&["CHECKPOINT"])?;
        let lsn = sql.flushed()?;
        match self.contender {
            Contender::NoStandby => {}
            Contender::Receivewal => sql.until(
                "pg_receivewal is in step",
                &format!(
                    "SELECT coalesce(bool_or(flush_lsn >= '{lsn}'), false)::text \
                     FROM pg_stat_replication WHERE application_name = '{RECEIVEWAL}'"
                ),
            )?,
            Contender::NativeAsync
            | Contender::NativeSync
            | Contender::Bounded
            | Contender::Zero => standby.until(
                "the standby is in step",
                &format!("SELECT (pg_last_wal_replay_lsn() >= '{lsn}')::text"),
            )?,
        }
        let Some(name) = self.contender.waits_for() else { return Ok(()) };
        wait_for(sql, name)?;
        sql.until(
            "the primary waits for the contender",
            &format!(
                "SELECT coalesce(bool_or(sync_state = 'sync'), false)::text \
                 FROM pg_stat_replication WHERE application_name = '{name}'"
            ),
        )
    }

    /// Waits until everything up to `lsn` is durable at the passive.
    ///
    /// # Errors
    /// When it does not get there.
    pub(super) fn durable(&self, lsn: Lsn, standby: &mut Sql) -> Result<()> {
        match &self.receiver {
            Some(receiver) => receiver.durable(lsn),
            None => received(lsn, standby),
        }
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// When a process of it has ended.
    pub(super) fn cost(&self, sql: &mut Sql, standby: &mut Sql) -> Result<Cost> {
        let mut cost = Cost::default();
        let senders = sql.value("SELECT string_agg(pid::text, ' ') FROM pg_stat_replication")?;
        for pid in senders.unwrap_or_default().split_whitespace() {
            cost.active += processor_time(pid.parse()?)?;
        }
        if let Some(pid) = standby.value("SELECT pid::text FROM pg_stat_wal_receiver")? {
            cost.passive += processor_time(pid.parse()?)?;
        }
        if let Some(program) = &self.receivewal {
            cost.passive += processor_time(program.0.id())?;
        }
        if let Some(side) = &self.source {
            cost.active += processor_time(side.pid())?;
            cost.active_bytes = memory_high_water(side.pid())?;
        }
        if let Some(side) = &self.receiver {
            cost.passive += processor_time(side.pid())?;
            cost.passive_bytes = memory_high_water(side.pid())?;
        }
        Ok(cost)
    }

    /// Takes it away: commits wait for nobody, and the standby streams from nobody.
    ///
    /// # Errors
    /// When it does not go.
    pub(super) fn end(self, sql: &mut Sql, standby: &Instance) -> Result<()> {
        wait_for(sql, "")?;
        stream_from(standby, "")?;
        let journal = self.lab.path(JOURNAL);
        drop(self);
        // The next turn begins with an empty one, and should not wait for this.
        if journal.exists() {
            fs::remove_dir_all(&journal)?;
        }
        sql.until("every walsender is gone", "SELECT (count(*) = 0)::text FROM pg_stat_replication")
    }
}

/// Waits until the standby has received everything up to `lsn`.
///
/// # Errors
/// When it does not get there.
pub(super) fn received(lsn: Lsn, standby: &mut Sql) -> Result<()> {
    let question = format!("SELECT (pg_last_wal_receive_lsn() >= '{lsn}')::text");
    standby.until("the standby has received it", &question)
}

/// Lets the standby stream from elsewhere; nowhere, when empty.
fn stream_from(standby: &Instance, conninfo: &str) -> Result<()> {
    let mut sql = standby.sql("postgres")?;
    let setting = format!("ALTER SYSTEM SET primary_conninfo = '{conninfo}'");
    sql.run(&[&setting, "SELECT pg_reload_conf()"])
}

/// Lets the primary's commits wait for one name; for nobody, when empty.
fn wait_for(sql: &mut Sql, name: &str) -> Result<()> {
    let setting = format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'");
    // Nobody may be there to confirm these two.
    sql.run(&["SET synchronous_commit = local", &setting, "SELECT pg_reload_conf()"])?;
    let until = Instant::now() + Duration::from_secs(10);
    while sql.value("SHOW synchronous_standby_names")?.as_deref() != Some(name) {
        if Instant::now() > until {
            bail!("the primary does not take synchronous_standby_names = {name:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
