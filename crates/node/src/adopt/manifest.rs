//! What an adoption changed: a folder in the node's directory with a copy of every file as it was, and a
//! manifest. Written before the first change, so that the way back is known whenever it is cut off.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::facts::DebianCluster;
use super::plan::Part;

const FOLDER: &str = "adoption";
const FILE: &str = "manifest.json";
/// Of this form.
const VERSION: u32 = 1;

/// How far an adoption is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Stage {
    /// Everything is ready; PostgreSQL is still run by whoever ran it before.
    Prepared,
    /// It was, or is being, stopped for the daemon.
    HandedOver,
}

/// Mode and owner of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    mode: u32,
    uid: u32,
    gid: u32,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileRecord {
    /// Where it is.
    pub(super) path: PathBuf,
    /// The copy of it as it was, in the folder; `None` when there was no such file.
    pub(super) before: Option<String>,
    /// The copy of what was put there, in the folder; `None` when only the node's own block comes and goes.
    pub(super) written: Option<String>,
    owner: Option<Owner>,
}

/// Everything that has to be known for the way back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    version: u32,
    /// The node.
    pub(super) node: String,
    /// The cluster that it was adopted into.
    pub(super) cluster: String,
    /// PGDATA.
    pub(super) data_directory: PathBuf,
    /// PostgreSQL's.
    pub(super) system_identifier: String,
    /// Where it was.
    pub(super) timeline: u32,
    /// What it was then.
    pub(super) part: Part,
    /// How far it is.
    pub(super) stage: Stage,
    /// When it was prepared, in RFC 3339.
    pub(super) prepared_at: String,
    /// Debian's tools know it under this name.
    pub(super) debian: Option<DebianCluster>,
    /// The node's roles were made by this.
    pub(super) roles_made: bool,
    /// The settings that are others under the daemon, as they were.
    pub(super) settings_before: Vec<(String, String)>,
    /// The files.
    pub(super) files: Vec<FileRecord>,
    /// The way back was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) undoing: Option<Undoing>,
}

/// What the way back found before its first change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Undoing {
    /// What the server is to be.
    pub(super) part: Part,
    /// The daemon had taken it over.
    pub(super) taken: bool,
    /// The node's slots and roles are gone.
    pub(super) objects_removed: bool,
}

impl Manifest {
    /// One with no files yet.
    pub(super) fn new(plan: &super::Plan, cluster: String, roles_made: bool) -> Option<Manifest> {
        let server = plan.server.as_ref()?;
        let before = plan.settings.iter().map(|change| (change.name.clone(), change.from.clone()));
        Some(Manifest {
            version: VERSION,
            node: plan.node.clone(),
            cluster,
            data_directory: plan.data_directory.clone(),
            system_identifier: server.system_identifier.clone(),
            timeline: server.timeline,
            part: plan.part,
            stage: Stage::Prepared,
            prepared_at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            debian: server.debian.clone(),
            roles_made,
            settings_before: before.collect(),
            files: Vec::new(),
            undoing: None,
        })
    }
}

/// The folder of an adoption.
#[derive(Clone, Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn of(node_dir: &Path) -> Folder {
        Folder(node_dir.join(FOLDER))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// What is recorded; `None` when nothing was adopted here.
    pub(super) fn read(&self) -> io::Result<Option<Manifest>> {
        let path = self.0.join(FILE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        let manifest: Manifest = serde_json::from_slice(&text).map_err(io::Error::other)?;
        if manifest.version != VERSION {
            let words = format!("{} is of version {}", path.display(), manifest.version);
            return Err(io::Error::other(words));
        }
        Ok(Some(manifest))
    }

    pub(super) fn write(&self, manifest: &Manifest) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(manifest).map_err(io::Error::other)?;
        self.put(FILE, &text)
    }

    /// Copies a file that is to be changed, or notes that there is none.
    pub(super) fn keep(&self, path: &Path, written: Option<&[u8]>) -> io::Result<FileRecord> {
        let name = path.to_string_lossy().trim_start_matches('/').replace('/', "_");
        let mut record =
            FileRecord { path: path.to_owned(), before: None, written: None, owner: None };
        match fs::read(path) {
            Ok(content) => {
                let data = fs::metadata(path)?;
                let mode = data.permissions().mode() & 0o7777;
                record.owner = Some(Owner { mode, uid: data.uid(), gid: data.gid() });
                let copy = format!("{name}.before");
                self.put(&copy, &content)?;
                record.before = Some(copy);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if let Some(content) = written {
            let copy = format!("{name}.written");
            self.put(&copy, content)?;
            record.written = Some(copy);
        }
        Ok(record)
    }

    pub(super) fn content(&self, copy: &str) -> io::Result<Vec<u8>> {
        fs::read(self.0.join(copy))
    }

    /// Writes a file of the folder, durably and whole.
    pub(super) fn put(&self, name: &str, content: &[u8]) -> io::Result<()> {
        if !self.0.is_dir() {
            fs::create_dir(&self.0)?;
            fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700))?;
            sync_parent(&self.0)?;
        }
        let owner = Owner {
            mode: 0o600,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        };
        put_with(&self.0.join(name), content, owner)
    }

    /// Puts a changed file as it was, with its mode and owner; removes it where there was none.
    pub(super) fn restore(&self, record: &FileRecord) -> io::Result<()> {
        match (&record.before, record.owner) {
            (Some(copy), Some(owner)) => put_with(&record.path, &self.content(copy)?, owner),
            (Some(_), None) | (None, _) => match fs::remove_file(&record.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => sync_parent(&record.path),
            },
        }
    }

    /// Moves a directory that must not be used again into the folder; one that is not there is none.
    pub(super) fn take_in(&self, dir: &Path) -> io::Result<()> {
        let Some(name) = dir.file_name().filter(|_| dir.exists()) else { return Ok(()) };
        fs::rename(dir, self.0.join(name))?;
        sync_parent(dir)
    }

    /// Keeps the folder under a name that tells that it was undone.
    pub(super) fn retire(&self) -> io::Result<PathBuf> {
        let at = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S").to_string();
        let into = self.0.with_file_name(format!("{FOLDER}-undone-{at}"));
        fs::rename(&self.0, &into)?;
        sync_parent(&into)?;
        Ok(into)
    }
}

impl FileRecord {
    /// Its mode as it was.
    pub(super) fn mode(&self) -> Option<u32> {
        self.owner.map(|owner| owner.mode)
    }

    /// Replaces the file's content, and leaves its mode and owner.
    pub(super) fn replace(&self, content: &[u8]) -> io::Result<()> {
        let owner = self.owner.ok_or_else(|| io::Error::other("it was not there before"))?;
        put_with(&self.path, content, owner)
    }
}

fn put_with(path: &Path, content: &[u8], owner: Owner) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".understudy-new");
    let temporary = PathBuf::from(name);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&temporary)?;
    io::Write::write_all(&mut file, content)?;
    let now = file.metadata()?;
    if (now.uid(), now.gid()) != (owner.uid, owner.gid) {
        fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    file.set_permissions(fs::Permissions::from_mode(owner.mode))?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_back_with_its_mode_and_one_that_was_not_there_goes() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::of(temp.path());
        let (old, new) = (temp.path().join("old.conf"), temp.path().join("new.conf"));
        fs::write(&old, "as it was").unwrap();
        fs::set_permissions(&old, fs::Permissions::from_mode(0o640)).unwrap();
        let records = [
            folder.keep(&old, Some(b"changed")).unwrap(),
            folder.keep(&new, Some(b"made")).unwrap(),
        ];
        records[0].replace(b"changed").unwrap();
        fs::write(&new, "made").unwrap();
        for record in &records {
            assert_eq!(
                folder.content(record.written.as_ref().unwrap()).unwrap(),
                fs::read(&record.path).unwrap()
            );
            folder.restore(record).unwrap();
        }
        assert_eq!(fs::read(&old).unwrap(), b"as it was");
        assert_eq!(fs::metadata(&old).unwrap().permissions().mode() & 0o7777, 0o640);
        assert!(!new.exists());
        assert_eq!(folder.read().unwrap(), None);
    }
}
