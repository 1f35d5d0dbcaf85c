//! A wall clock that is stepped under a running daemon, by libfaketime: the kernel has only one, and
//! others use it. Monotonic and boot-time clocks are left alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::Fault;
use crate::lab::Lab;

/// Where Debian puts the library.
const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
];
/// A status is up to this old, and clocks are read one after the other.
const TOLERANCE_SECONDS: i64 = 60;

/// The library, where it is installed.
///
/// # Errors
/// When it is not.
pub(crate) fn library() -> Result<&'static Path> {
    let found = LIBRARIES.into_iter().map(Path::new).find(|path| path.exists());
    found.context("find libfaketime: `apt-get install libfaketime`")
}

/// The environment in which a program reads the wall clock that `file` says.
pub(crate) fn environment(library: &Path, file: &Path) -> [(&'static str, PathBuf); 5] {
    [
        ("LD_PRELOAD", library.to_owned()),
        ("FAKETIME_TIMESTAMP_FILE", file.to_owned()),
        ("FAKETIME_NO_CACHE", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ("DONT_FAKE_MONOTONIC", "1".into()),
    ]
}

/// A site's daemon whose wall clock stands elsewhere.
pub(crate) struct Stepped {
    site: &'static str,
    file: PathBuf,
    seconds: i64,
}

impl Stepped {
    /// Steps the wall clock of a daemon that was started with a clock of its own.
    pub(crate) fn begin(lab: &Lab, site: &'static str, seconds: i64) -> Result<Stepped> {
        let file = lab.wall_clock(site);
        set(&file, seconds)?;
        Ok(Stepped { site, file, seconds })
    }
}

/// Writes where a wall clock stands. Whoever reads it meanwhile sees the one or the other.
pub(crate) fn set(file: &Path, seconds: i64) -> Result<()> {
    let aside = file.with_extension("new");
    let text = format!("{seconds:+}\n");
    fs::write(&aside, text)
        .and_then(|()| fs::rename(&aside, file))
        .with_context(|| format!("write {}", file.display()))
}

impl Fault for Stepped {
    fn proof(&mut self) -> Result<Option<String>> {
        let Some(status) = Lab::status_seen_by(self.site) else { return Ok(None) };
        let Some(there) = status["at_unix_us"].as_i64() else { return Ok(None) };
        let here = SystemTime::now().duration_since(UNIX_EPOCH).context("read the wall clock")?;
        let here = i64::try_from(here.as_secs()).context("read the wall clock")?;
        let off = there / 1_000_000 - here;
        let seen = (off - self.seconds).abs() <= TOLERANCE_SECONDS;
        Ok(seen.then(|| format!("daemon of {}: its wall clock is {off:+} s off", self.site)))
    }

    fn heal(&mut self) -> Result<()> {
        set(&self.file, 0)
    }
}
