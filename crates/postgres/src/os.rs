//! The operating system's side: whose files these are, and how they are made durable.
//!
//! Everything here blocks for as long as one small file takes.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Gid, Uid};

use crate::error::{Error, IoContext, Result};

/// The user that PostgreSQL runs as and that owns its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OsUser {
    /// Login name, as peer authentication sees it.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
}

impl OsUser {
    /// Looks a user up by name, through the system's name service (`id`).
    ///
    /// # Errors
    /// When there is no such user.
    pub fn lookup(name: &str) -> Result<OsUser> {
        let unknown = |reason: String| Error::UnknownOsUser { name: name.to_owned(), reason };
        let ask = |flag: &str| -> Result<u32> {
            let output = Command::new("id")
                .args([flag, "--", name])
                .output()
                .map_err(|error| unknown(error.to_string()))?;
            let text = String::from_utf8_lossy(&output.stdout);
            text.trim()
                .parse()
                .map_err(|_| unknown(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
        };
        Ok(OsUser { name: name.to_owned(), uid: ask("-u")?, gid: ask("-g")? })
    }

    /// Every group that the user is in, as a login has them: keys and archives are often readable by one
    /// of these alone (Debian's `ssl-cert`).
    pub(crate) fn groups(&self) -> Result<Vec<Gid>> {
        let unknown = |reason: String| Error::UnknownOsUser { name: self.name.clone(), reason };
        let output = Command::new("id")
            .args(["-G", "--", &self.name])
            .output()
            .map_err(|error| unknown(error.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let groups: Option<Vec<Gid>> =
            text.split_whitespace().map(|word| word.parse().ok().map(Gid::from_raw)).collect();
        groups
            .filter(|groups| output.status.success() && !groups.is_empty())
            .ok_or_else(|| unknown(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    /// The user that this process runs as.
    ///
    /// # Errors
    /// When the system does not know its name.
    pub fn current() -> Result<OsUser> {
        let uid = rustix::process::geteuid().as_raw();
        let unknown = |reason: String| Error::UnknownOsUser { name: uid.to_string(), reason };
        let output =
            Command::new("id").arg("-un").output().map_err(|error| unknown(error.to_string()))?;
        let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if name.is_empty() {
            return Err(unknown(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        Ok(OsUser { name, uid, gid: rustix::process::getegid().as_raw() })
    }
}

/// Gives an open file to the user. Does nothing where it already owns it, so that a daemon which is
/// that user needs no privilege.
fn give_to(file: &File, path: &Path, owner: &OsUser) -> Result<()> {
    if rustix::process::geteuid().as_raw() == owner.uid {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    rustix::fs::fchown(file, Some(uid), Some(gid)).during("change owner of", path)
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).during("open", dir)?.sync_all().during("sync", dir)
}

/// The directory that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Replaces a file as a whole: after a crash either the old or the new content is there.
pub(crate) fn write_durably(path: &Path, content: &[u8], owner: &OsUser) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".understudy-new");
    let temporary = PathBuf::from(name);
    remove_if_present(&temporary)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .during("create", &temporary)?;
    give_to(&file, &temporary, owner)?;
    file.write_all(content).during("write", &temporary)?;
    file.sync_all().during("sync", &temporary)?;
    fs::rename(&temporary, path).during("replace", path)?;
    sync_dir(parent(path))
}

/// Removes a file durably; true if it was there.
pub(crate) fn remove_durably(path: &Path) -> Result<bool> {
    let removed = remove_if_present(path)?;
    if removed {
        sync_dir(parent(path))?;
    }
    Ok(removed)
}

fn remove_if_present(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).during("remove", path),
    }
}

/// The content of a file, `None` if there is none.
pub(crate) fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).during("read", path),
    }
}

/// Makes a directory, with parents, that belongs to the user; one that exists is left as it is.
pub(crate) fn make_dir(dir: &Path, mode: u32, owner: &OsUser) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir).during("create", dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).during("set mode of", dir)?;
    let handle = File::open(dir).during("open", dir)?;
    give_to(&handle, dir, owner)?;
    sync_dir(parent(dir))
}

/// Opens a log for appending, owned by the user.
pub(crate) fn open_log(path: &Path, owner: &OsUser) -> Result<File> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
        .during("open log", path)?;
    give_to(&file, path, owner)?;
    Ok(file)
}
