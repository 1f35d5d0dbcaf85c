//! A file system of a site's own that loses power, stands still or turns read-only: ext4 on a loop
//! device, in a file beside the directory that it takes the place of.
//!
//! The proofs are what is there afterwards (a word that was synced, and none that was not) and what the
//! kernel says of the mount.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::ioctl::{Setter, ioctl};

use super::Fault;
use crate::command::{output, said};

/// Sparse: only what is written takes room.
const BYTES: u64 = 2 << 30;
/// Nothing becomes durable by the kernel's own doing while a row runs: ext4 writes its journal, and what
/// belongs to it, when it is told to.
const OPTIONS: &str = "loop,commit=300,errors=remount-ro";
/// The last process lets go of its files soon after its end.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(20);
/// What the kernel knows of each ext4 that is mounted anywhere, by its device.
const FILE_SYSTEMS: &str = "/sys/fs/ext4";
const POLL: Duration = Duration::from_millis(20);
/// Synced before a power cut, and written just before it without a sync.
const WORDS: [&str; 2] = ["synced.word", "unsynced.word"];

/// A directory on a file system of its own. It stays mounted: the cluster that uses it is judged after the
/// row, and unmounts what lies below it when it ends.
pub(crate) struct Volume {
    at: PathBuf,
    image: PathBuf,
    /// Power cuts so far.
    cuts: u32,
}

impl Volume {
    /// Moves a directory that nobody uses onto a file system of its own, with everything in it.
    ///
    /// # Errors
    /// When the machine has no loop devices or no `mkfs.ext4`.
    pub(crate) fn in_place_of(directory: &Path) -> Result<Volume> {
        let owner = fs::metadata(directory).with_context(|| format!("{}", directory.display()))?;
        let aside = directory.with_extension("aside");
        fs::rename(directory, &aside).context("move the directory aside")?;
        fs::create_dir(directory).context("make a place for the file system")?;
        let image = directory.with_extension("img");
        let file = File::create(&image).context("create the file system's file")?;
        file.set_len(BYTES).context("create the file system's file")?;
        said(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        let volume = Volume { at: directory.to_owned(), image, cuts: 0 };
        volume.mount()?;
        fs::remove_dir(directory.join("lost+found")).context("empty the file system")?;
        chown(directory, Some(owner.uid()), Some(owner.gid()))?;
        fs::set_permissions(directory, fs::Permissions::from_mode(owner.mode() & 0o7777))?;
        said(Command::new("cp").arg("-a").arg(aside.join(".")).arg(directory))?;
        said(Command::new("sync").arg("-f").arg(directory))?;
        fs::remove_dir_all(&aside).context("remove what was copied")?;
        Ok(volume)
    }

    fn mount(&self) -> Result<()> {
        said(Command::new("mount").args(["-o", OPTIONS]).arg(&self.image).arg(&self.at))
    }

    /// Takes the file system away from everybody, without a last word of it to the disk.
    ///
    /// # Errors
    /// When the kernel does not do it.
    pub(crate) fn cut_power(&mut self) -> Result<()> {
        self.cuts += 1;
        let word = self.cuts.to_string();
        let synced = self.at.join(WORDS[0]);
        let write = || {
            fs::write(&synced, &word)?;
            File::open(&synced)?.sync_all()?;
            File::open(&self.at)?.sync_all()?;
            fs::write(self.at.join(WORDS[1]), &word)
        };
        write().context("write what is looked for after the power cut")?;
        shut_down(&self.at)
    }

    /// Power is back: what the disk has is what there is.
    ///
    /// # Errors
    /// When somebody still uses the file system, or it kept what was not synced, or lost what was.
    pub(crate) fn power_on(&self) -> Result<()> {
        self.unmount()?;
        self.mount()?;
        let read = |word: &str| fs::read_to_string(self.at.join(word)).unwrap_or_default();
        let word = self.cuts.to_string();
        ensure!(read(WORDS[0]) == word, "what was synced before the power cut is gone");
        ensure!(read(WORDS[1]) != word, "what was not synced survived the power cut");
        Ok(())
    }

    /// The name of its device, such as `loop3`.
    fn device(&self) -> Result<String> {
        let source = output(Command::new("findmnt").args(["-no", "SOURCE"]).arg(&self.at))?;
        let device = Path::new(&source).file_name().and_then(|name| name.to_str());
        Ok(device.context("find the file system's device")?.to_owned())
    }

    /// Until the kernel has forgotten it: a process that was started elsewhere in a mount namespace of its
    /// own may hold it for a moment longer, and who mounted it then would get it as it was.
    fn unmount(&self) -> Result<()> {
        let known = Path::new(FILE_SYSTEMS).join(self.device()?);
        let deadline = Instant::now() + UNMOUNT_TIMEOUT;
        while let Err(error) = said(Command::new("umount").arg(&self.at)) {
            if Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(POLL);
        }
        while known.exists() {
            if Instant::now() > deadline {
                bail!("the file system at {} is still in use somewhere", self.at.display());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Checks and mends it, as a machine does when it starts, and mounts it again.
    ///
    /// # Errors
    /// When somebody still uses it, or it cannot be mended.
    pub(crate) fn mend(&self) -> Result<()> {
        self.unmount()?;
        let checked = Command::new("e2fsck").args(["-f", "-p"]).arg(&self.image).output();
        // 1: errors were corrected.
        let code = checked.context("run e2fsck")?.status.code();
        ensure!(matches!(code, Some(0 | 1)), "e2fsck ended with {code:?}");
        self.mount()
    }

    /// Every write to it waits from now on, and whoever writes stands in the kernel (state D).
    ///
    /// # Errors
    /// When the kernel does not do it.
    pub(crate) fn freeze(&self) -> Result<Frozen> {
        said(Command::new("fsfreeze").arg("--freeze").arg(&self.at))?;
        Ok(Frozen { at: Some(self.at.clone()) })
    }

    /// Has the kernel find an error in it, upon which it lets nobody write any more.
    ///
    /// # Errors
    /// When the kernel does not do it.
    pub(crate) fn turn_read_only(&self) -> Result<ReadOnly> {
        let trigger = Path::new(FILE_SYSTEMS).join(self.device()?).join("trigger_fs_error");
        fs::write(&trigger, "1").with_context(|| format!("write {}", trigger.display()))?;
        Ok(ReadOnly { at: self.at.clone() })
    }
}

/// A file system that lets writes wait.
pub(crate) struct Frozen {
    at: Option<PathBuf>,
}

impl Fault for Frozen {
    fn proof(&mut self) -> Result<Option<String>> {
        let Some(at) = &self.at else { return Ok(None) };
        // Asked of the kernel by who would be the second to freeze it.
        let again = Command::new("fsfreeze").arg("--freeze").arg(at).output()?;
        let busy = String::from_utf8_lossy(&again.stderr).contains("busy");
        if again.status.success() {
            bail!("the file system was not frozen");
        }
        Ok(busy.then(|| "the file system is frozen: writes wait in the kernel".to_owned()))
    }

    fn heal(&mut self) -> Result<()> {
        match self.at.take() {
            Some(at) => said(Command::new("fsfreeze").arg("--unfreeze").arg(at)),
            None => Ok(()),
        }
    }
}

/// A file system that takes no writes any more.
pub(crate) struct ReadOnly {
    at: PathBuf,
}

impl Fault for ReadOnly {
    fn proof(&mut self) -> Result<Option<String>> {
        let refused = File::create(self.at.join("probe")).err().map(|error| error.kind());
        let so = refused == Some(std::io::ErrorKind::ReadOnlyFilesystem);
        Ok(so.then(|| "the file system is read-only".to_owned()))
    }

    fn heal(&mut self) -> Result<()> {
        // It is mended once nobody uses it; that is the scenario's matter.
        Ok(())
    }
}

/// `_IOR('X', 125, __u32)` in linux/ext4.h.
const EXT4_IOC_SHUTDOWN: rustix::ioctl::Opcode = 0x8004_587d;
/// Its journal is not written out (EXT4_GOING_FLAGS_NOLOGFLUSH).
const NO_LOG_FLUSH: u32 = 2;

#[allow(unsafe_code)]
fn shut_down(at: &Path) -> Result<()> {
    let file = File::open(at).with_context(|| format!("open {}", at.display()))?;
    // SAFETY: EXT4_IOC_SHUTDOWN reads one u32 from the pointer it is given and keeps no reference to it.
    unsafe { ioctl(&file, Setter::<EXT4_IOC_SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }
        .with_context(|| format!("shut the file system at {} down", at.display()))
}
