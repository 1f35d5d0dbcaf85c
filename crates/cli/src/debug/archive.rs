//! The bundle's file: a tar in gzip, readable by its owner only, with a manifest as its last file.
//!
//! It is made under another name and renamed when it is whole, so that half a bundle is never taken for
//! one.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

/// Something that is not in the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Lack {
    pub(super) name: String,
    pub(super) reason: String,
}

/// Something that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Kept {
    pub(super) name: String,
    pub(super) bytes: u64,
}

/// What was made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) files: Vec<Kept>,
    pub(super) missing: Vec<Lack>,
    /// Of the file.
    pub(super) bytes: u64,
}

/// A bundle in the making.
pub(super) struct Archive {
    tar: tar::Builder<GzEncoder<File>>,
    partial: PathBuf,
    path: PathBuf,
    root: String,
    at: Timestamp,
    files: Vec<Kept>,
    missing: Vec<Lack>,
}

impl Archive {
    /// Begins a bundle at `path`, whose files lie below `root`.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub(super) fn create(path: &Path, root: &str, at: Timestamp) -> anyhow::Result<Archive> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        // One that an earlier attempt left behind; whatever else there is, is not written into.
        let _ = std::fs::remove_file(&partial);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial);
        let file = file.with_context(|| format!("create {}", partial.display()))?;
        let tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        let (path, root) = (path.to_owned(), root.to_owned());
        Ok(Archive { tar, partial, path, root, at, files: Vec::new(), missing: Vec::new() })
    }

    /// Adds a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn add(&mut self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(self.at.as_second()).unwrap_or_default());
        let path = format!("{}/{name}", self.root);
        self.tar
            .append_data(&mut header, path, content)
            .with_context(|| format!("write {}", self.partial.display()))?;
        self.files.push(Kept { name: name.to_owned(), bytes: content.len() as u64 });
        Ok(())
    }

    /// Notes what could not be had.
    pub(super) fn lack(&mut self, name: &str, reason: &str) {
        let name = name.trim_end_matches('/').to_owned();
        self.missing.push(Lack { name, reason: reason.to_owned() });
    }

    /// Writes the manifest, and gives the file its name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn finish(mut self) -> anyhow::Result<Made> {
        let manifest = json!({
            "version": 1,
            "program": env!("CARGO_PKG_VERSION"),
            "made_unix_us": self.at.as_microsecond(),
            "redacted": "passwords, tokens and private keys were taken out of every text; a file of \
                         the decision recorder that held one is not in the bundle",
            "files": self.files,
            "missing": self.missing,
        });
        self.add("manifest.json", format!("{manifest:#}\n").as_bytes())?;
        let what = || format!("write {}", self.partial.display());
        let mut file = self.tar.into_inner().and_then(GzEncoder::finish).with_context(what)?;
        file.flush().and_then(|()| file.sync_all()).with_context(what)?;
        let bytes = file.metadata().with_context(what)?.len();
        std::fs::rename(&self.partial, &self.path)
            .with_context(|| format!("rename {}", self.partial.display()))?;
        Ok(Made { files: self.files, missing: self.missing, bytes })
    }
}
