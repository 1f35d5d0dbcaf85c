//! A psql that stays: one statement after the other on one session, each with its answer.

use std::io::{BufRead as _, BufReader, PipeReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// Tells the end of an answer from its lines.
const MARK: &str = "--answered--";

/// A session; ended when dropped.
pub(crate) struct Conversation {
    child: Child,
    input: ChildStdin,
    output: BufReader<PipeReader>,
    asked: u64,
}

impl Conversation {
    /// Starts psql, which reads from here, as the user and group of these numbers.
    pub(crate) fn begin(psql: &Command, (uid, gid): (u32, u32)) -> Result<Conversation> {
        let (output, writer) = std::io::pipe().context("make a pipe for psql")?;
        // What psql prints into a pipe would otherwise wait for a full buffer.
        let mut lines = Command::new("stdbuf");
        lines.arg("--output=L").arg(psql.get_program()).args(psql.get_args()).current_dir("/");
        lines.envs(psql.get_envs().filter_map(|(name, value)| Some((name, value?))));
        lines.uid(uid).gid(gid).stdin(Stdio::piped());
        let errors = writer.try_clone().context("copy the pipe for psql")?;
        lines.stdout(writer).stderr(errors);
        let mut child = lines.spawn().context("start psql")?;
        // The command holds the writing ends, and the end of the answers would never be seen.
        drop(lines);
        let input = child.stdin.take().context("take psql's input")?;
        Ok(Conversation { child, input, output: BufReader::new(output), asked: 0 })
    }

    /// What ends the session from another thread, also in the middle of a statement.
    pub(crate) fn end(&self) -> End {
        End(Pid::from_child(&self.child))
    }

    /// Runs SQL; the lines of its answer. Waits as long as the server does.
    ///
    /// # Errors
    /// When a statement fails, or the session has ended.
    pub(crate) fn ask(&mut self, sql: &str) -> Result<Vec<String>> {
        self.asked += 1;
        let mark = format!("{MARK}{}", self.asked);
        let text = format!("{sql};\n\\echo {mark}\n");
        self.input.write_all(text.as_bytes()).context("ask psql")?;
        self.input.flush().context("ask psql")?;
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).context("read psql's answer")?;
            ensure!(read > 0, "the session ended at {sql:?}: {}", lines.join(" "));
            let line = line.trim_end();
            if line == mark {
                break;
            }
            lines.push(line.to_owned());
        }
        if let Some(error) = lines.iter().find(|line| line.contains("ERROR:  ")) {
            bail!("{sql:?}: {error}");
        }
        Ok(lines)
    }

    /// How much WAL the server has written in its life, bytes.
    ///
    /// # Errors
    /// As [`Conversation::ask`].
    pub(crate) fn wal_bytes(&mut self) -> Result<u64> {
        let sql = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint";
        let lines = self.ask(sql)?;
        let number = lines.first().and_then(|line| line.parse().ok());
        number.with_context(|| format!("read how much WAL was written: {lines:?}"))
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Ends a conversation; to be used only while that is not yet dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End(Pid);

impl End {
    pub(crate) fn now(self) {
        // It may have ended by itself.
        let _ = kill_process(self.0, Signal::KILL);
    }
}
