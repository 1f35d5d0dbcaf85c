//! Brings another node's data here: a fresh base backup, or a rewind of a diverged cluster.
//!
//! From the first destructive byte to the proof of completeness the dirty marker lies (invariant I14).
//! Whether a rewind is safe and which WAL was saved before is for the caller to know.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

use understudy_types::Timeline;

use crate::admin::get;
use crate::connection;
use crate::control::DataDirectory;
use crate::error::{Error, IoContext, Result};
use crate::os;
use crate::parameters::quoted;
use crate::server::{Server, TAIL_LINES, tail};
use crate::settings::{ROLE_REPLICATION, ROLE_REWIND};

/// Inside PGDATA, so that it is on the same file system even where PGDATA is a mount point.
const INCOMING: &str = "understudy.incoming";
const REWIND_CONFIG: &str = "understudy.rewind.conf";
/// How much of a tool's output is remembered.
/// How long the source may take for each step of a question.
const SOURCE_PATIENCE: Duration = Duration::from_secs(5);
const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// Where the source's Unix socket is: on this machine, or the end of a tunnel.
#[derive(Clone, Debug)]
pub struct CopySource {
    /// Directory of the socket; the server's OS user must be able to reach it.
    pub socket_dir: PathBuf,
    /// The port in the socket's name.
    pub port: u16,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Copied so far.
    pub done_bytes: u64,
    /// Estimated by PostgreSQL at the beginning.
    pub total_bytes: u64,
}

/// How a rewind ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Rewound {
    /// The data is that of the source, to be brought up to date by replay.
    Done,
    /// The cluster had not diverged; nothing was changed.
    NotNeeded,
    /// It is not possible from here (WAL is gone, the source cannot be reached); nothing was changed.
    Refused {
        /// The last lines of `pg_rewind`.
        output: String,
    },
}

/// The timeline of the source's latest checkpoint, asked as `pg_rewind` will ask.
///
/// Directly after a promotion it still is the old one, and a rewind would see no divergence.
///
/// # Errors
/// When the source cannot be reached or does not answer.
pub async fn source_checkpoint_timeline(source: &CopySource) -> Result<Timeline> {
    let mut session =
        connection::open_as(&source.socket_dir, source.port, ROLE_REWIND, SOURCE_PATIENCE).await?;
    let question = sqlx::query("SELECT timeline_id FROM pg_control_checkpoint()");
    let row =
        connection::within("its checkpoint", SOURCE_PATIENCE, question.fetch_one(&mut session))
            .await?;
    connection::close(session).await;
    let number: i32 = get(&row, "timeline_id")?;
    u32::try_from(number).ok().and_then(Timeline::new).ok_or_else(|| Error::Output {
        program: "postgres".to_owned(),
        reason: format!("timeline_id is {number}"),
    })
}

impl Server {
    /// Copies the source into PGDATA, checks the copy against its manifest and makes it durable.
    ///
    /// Data that lies there is kept until the copy is complete if the disk has room for both, and only
    /// if it is a cluster of ours; anything else at PGDATA is refused, never removed.
    ///
    /// # Errors
    /// When the server runs, something else lies at PGDATA, or the copy fails: then the marker stays.
    pub async fn base_backup(
        &self,
        source: &CopySource,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<()> {
        self.must_be_stopped("copy the source over PGDATA")?;
        let whole = match self.inspect().await? {
            DataDirectory::Cluster(_) => true,
            DataDirectory::Missing | DataDirectory::Empty | DataDirectory::Dirty { .. } => false,
            other => return Err(self.unusable(format!("not ours to replace: {other:?}"))),
        };
        let marker = "a base backup is being copied";
        let keeps_old = whole && {
            self.blocking(|data_dir| {
                remove_tree(&data_dir.join(INCOMING))?;
                room_for_another(data_dir)
            })
            .await?
        };
        let incoming = self.data_dir().join(INCOMING);
        // What lies there is good until the first byte of it goes (I14), which with room for both is
        // only after the copy is complete: a source that cannot be reached costs nothing.
        if !keeps_old {
            self.set_marker(marker)?;
            self.blocking(move |data_dir| {
                remove_tree(&data_dir.join(INCOMING))?;
                if whole {
                    tracing::warn!("no room for two copies, the old data directory goes first");
                }
                remove_old(data_dir)
            })
            .await?;
        }

        let mut command = self.command("pg_basebackup");
        command.arg("-D").arg(&incoming).arg("-h").arg(&source.socket_dir);
        command.args(["-p", &source.port.to_string(), "-U", ROLE_REPLICATION]);
        command.args(["--no-password", "--wal-method=stream", "--checkpoint=fast", "--progress"]);
        let (status, output) = self.run_with_progress(command, progress).await?;
        if !status.success() {
            let (program, status) = ("pg_basebackup".to_owned(), status.to_string());
            return Err(Error::Tool { program, status, output });
        }
        let verify = [OsString::from("--quiet"), incoming.into_os_string()];
        self.run_tool("pg_verifybackup", verify, "").await?;

        self.set_marker(marker)?;
        self.blocking(move |data_dir| {
            remove_old(data_dir)?;
            let incoming = data_dir.join(INCOMING);
            for name in entries(&incoming)? {
                let (from, to) = (incoming.join(&name), data_dir.join(&name));
                fs::rename(&from, &to).during("move into place", &from)?;
            }
            remove_tree(&incoming)?;
            os::sync_dir(data_dir)
        })
        .await?;
        self.put_standby_signal()?;
        self.set_own()?;
        self.clear_marker()
    }

    /// Turns a diverged cluster back into a follower of the source, which must have written a
    /// checkpoint on its new timeline. WAL that is missing here is fetched by `restore_command`.
    ///
    /// A cluster that crashed is recovered first, in single-user mode: that writes to it, so what is
    /// to be kept of its WAL must be safe before. A trial run comes first, so that an impossible
    /// rewind leaves no marker behind.
    ///
    /// # Errors
    /// When the server runs, PGDATA is no whole cluster, or the rewind fails half way: then the marker
    /// stays, and only a base backup helps.
    pub async fn rewind(
        &self,
        source: &CopySource,
        restore_command: Option<&str>,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Rewound> {
        self.must_be_stopped("rewind PGDATA")?;
        if !self.cleanly_stopped().await? {
            self.single_user("recover the cluster before its rewind", "").await?;
        }
        let config = self.data_dir().join(REWIND_CONFIG);
        // Before 15 the tool cannot be given a file of its own.
        let fetch = restore_command.filter(|_| self.binaries().version().major >= 15);
        if let Some(fetch) = fetch {
            let line = format!("restore_command = {}\n", quoted(fetch));
            os::write_durably(&config, line.as_bytes(), &self.settings().os_user)?;
        }
        let command = |trial: bool| {
            let mut command = self.command("pg_rewind");
            command.arg("--target-pgdata").arg(self.data_dir()).arg("--source-server").arg(
                format!(
                    "host={} port={} user={ROLE_REWIND} dbname=postgres",
                    quote_conninfo(&source.socket_dir.to_string_lossy()),
                    source.port
                ),
            );
            command.args(["--no-ensure-shutdown", "--progress"]);
            if fetch.is_some() {
                command.arg("--restore-target-wal").arg("--config-file").arg(&config);
            }
            if trial {
                command.arg("--dry-run");
            }
            command
        };
        let (status, output) = self.run_with_progress(command(true), &mut |_| {}).await?;
        if !status.success() || output.contains("no rewind required") {
            os::remove_durably(&config)?;
            let unneeded = status.success();
            return Ok(if unneeded { Rewound::NotNeeded } else { Rewound::Refused { output } });
        }
        let marker = "a rewind is going on";
        self.set_marker(marker)?;
        let (status, output) = self.run_with_progress(command(false), progress).await?;
        os::remove_durably(&config)?;
        if !status.success() {
            // It may have removed the copy in PGDATA.
            self.set_marker(marker)?;
            let (program, status) = ("pg_rewind".to_owned(), status.to_string());
            return Err(Error::Tool { program, status, output });
        }
        self.put_standby_signal()?;
        // The source's token came along.
        self.set_own()?;
        self.clear_marker()?;
        Ok(Rewound::Done)
    }

    /// Runs a tool that reports progress on stderr, and returns the last of what else it said.
    async fn run_with_progress(
        &self,
        mut command: Command,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(std::process::ExitStatus, String)> {
        let program = PathBuf::from(command.as_std().get_program());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().during("start", &program)?;
        let mut stderr = child.stderr.take().expect("it was asked for just above");
        let mut buffer = vec![0; 8192];
        let mut line = Vec::new();
        let mut said = String::new();
        loop {
            let read = stderr.read(&mut buffer).await.during("read from", &program)?;
            if read == 0 {
                break;
            }
            for byte in &buffer[..read] {
                if !matches!(byte, b'\n' | b'\r') {
                    line.push(*byte);
                    if line.len() < OUTPUT_BYTES_MAX {
                        continue;
                    }
                }
                let text = String::from_utf8_lossy(&line).into_owned();
                line.clear();
                match parse_progress(&text) {
                    Some(now) => progress(now),
                    None => said = tail(&format!("{said}\n{text}"), TAIL_LINES),
                }
            }
        }
        said.push('\n');
        said.push_str(&String::from_utf8_lossy(&line));
        let status = child.wait().await.during("wait for", &program)?;
        Ok((status, said.trim().to_owned()))
    }

    /// Runs slow file work off the runtime's threads.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let data_dir = self.data_dir().to_owned();
        let path = data_dir.clone();
        match tokio::task::spawn_blocking(move || work(&data_dir)).await {
            Ok(result) => result,
            Err(error) => Err(io::Error::other(error)).during("work on", &path),
        }
    }
}

/// Reads `  12345/23456 kB (52%), 0/1 tablespace` and `123/456 kB (26%) copied`.
fn parse_progress(line: &str) -> Option<Progress> {
    let (done, total) = line.trim().split_once(" kB")?.0.split_once('/')?;
    let bytes = |text: &str| text.trim().parse::<u64>().ok().map(|kib| kib * 1024);
    Some(Progress { done_bytes: bytes(done)?, total_bytes: bytes(total)? })
}

/// A value of a libpq connection string.
fn quote_conninfo(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn entries(dir: &Path) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).during("list", dir)? {
        names.push(entry.during("list", dir)?.file_name());
    }
    Ok(names)
}

/// Removes a file or directory that may be absent. Symbolic links are removed, not followed.
fn remove_tree(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
    };
    removed.during("remove", path)
}

/// Removes the old cluster, but not the marker and not what was copied.
fn remove_old(data_dir: &Path) -> Result<()> {
    for name in entries(data_dir)? {
        if name != "understudy.dirty" && name != INCOMING {
            remove_tree(&data_dir.join(name))?;
        }
    }
    os::sync_dir(data_dir)
}

/// The file system can take the old data once more. The source may be larger; then the copy fails with
/// a full disk and the next try, finding less, removes the old data first.
fn room_for_another(data_dir: &Path) -> Result<bool> {
    let size = tree_bytes(data_dir)?;
    let disk = rustix::fs::statvfs(data_dir).during("look at", data_dir)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize) > size + size / 4)
}

fn tree_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for name in entries(dir)? {
        let path = dir.join(name);
        let data = fs::symlink_metadata(&path).during("look at", &path)?;
        bytes += if data.is_dir() { tree_bytes(&path)? } else { data.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_of_both_tools_is_read() {
        let kib =
            |done: u64, total: u64| Progress { done_bytes: done * 1024, total_bytes: total * 1024 };
        let of = parse_progress;
        assert_eq!(of("  12345/23456 kB (52%), 0/1 tablespace"), Some(kib(12345, 23456)));
        assert_eq!(of("123/456 kB (26%) copied"), Some(kib(123, 456)));
        assert_eq!(of("pg_rewind: connected to server"), None);
    }

    #[test]
    fn quotes_and_backslashes_survive() {
        assert_eq!(quoted(r"cp 'a\b'"), r"'cp ''a\\b'''");
        assert_eq!(quote_conninfo(r"/it's"), r"'/it\'s'");
    }
}
