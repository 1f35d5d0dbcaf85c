//! Finds PostgreSQL's own programs, and says what to install when one is missing.
//!
//! It never mixes directories: all programs come from one installation of one version.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};

/// The programs that this crate runs.
const PROGRAMS: [&str; 7] = [
    "postgres",
    "initdb",
    "pg_controldata",
    "pg_basebackup",
    "pg_verifybackup",
    "pg_waldump",
    "pg_rewind",
];

/// Oldest and newest major version that this was written for.
pub const SUPPORTED_MAJORS: std::ops::RangeInclusive<u32> = 14..=18;

/// A released version of PostgreSQL, such as 15.18.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// What a data directory is bound to.
    pub major: u32,
    /// Bug-fix release; 0 for a beta.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// One installation of PostgreSQL with every program that is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    dir: PathBuf,
    version: Version,
}

impl Binaries {
    /// Looks in `explicit` alone if given, else in PATH and the usual places, newest version first.
    /// With `major`, only that version counts (a data directory is bound to its own).
    ///
    /// Runs `postgres --version`; blocks for some milliseconds.
    ///
    /// # Errors
    /// Names the program that is missing and what to install, or the version that is not supported.
    pub fn find(explicit: Option<&Path>, major: Option<u32>) -> Result<Binaries> {
        let places = match explicit {
            Some(dir) => vec![dir.to_owned()],
            None => usual_places(),
        };
        let wanted = |version: Version| major.is_none_or(|major| major == version.major);
        let mut other = None;
        let mut incomplete = None;
        for dir in &places {
            if !dir.join("postgres").is_file() {
                continue;
            }
            let version = version_of(&dir.join("postgres"))?;
            if wanted(version) {
                // A directory of PATH may hold links to a few programs only: look on.
                match (Binaries { dir: dir.clone(), version }.complete()) {
                    Ok(binaries) => return Ok(binaries),
                    Err(error) => incomplete = incomplete.or(Some(error)),
                }
                continue;
            }
            other = Some(version);
        }
        if let Some(error) = incomplete {
            return Err(error);
        }
        let package = match major {
            Some(major) => format!("postgresql-{major}"),
            None => "postgresql-15 (or 14 to 18)".to_owned(),
        };
        let mut remedy = format!("install the package {package}, or set the directory of binaries");
        if let Some(version) = other {
            remedy = format!("only version {version} was found; {remedy}");
        }
        let looked = places.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>();
        Err(Error::BinaryMissing {
            program: "postgres".to_owned(),
            looked: looked.join(", "),
            remedy,
        })
    }

    /// Checks the version and that no program is missing.
    fn complete(self) -> Result<Binaries> {
        let missing = |program: &str, remedy: String| Error::BinaryMissing {
            program: program.to_owned(),
            looked: self.dir.display().to_string(),
            remedy,
        };
        if !SUPPORTED_MAJORS.contains(&self.version.major) {
            let remedy = format!(
                "version {} is there, versions {} to {} are supported",
                self.version,
                SUPPORTED_MAJORS.start(),
                SUPPORTED_MAJORS.end()
            );
            return Err(missing("a supported postgres", remedy));
        }
        for program in PROGRAMS {
            if !self.dir.join(program).is_file() {
                let remedy = format!("install the whole package postgresql-{}", self.version.major);
                return Err(missing(program, remedy));
            }
        }
        Ok(self)
    }

    /// The directory that they are in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Their version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The path of one program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

fn usual_places() -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect())
        .unwrap_or_default();
    let mut installed = Vec::new();
    let numbered = [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")];
    for (parent, prefix) in numbered {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let major = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse().ok());
            if let Some(major) = major {
                let major: u32 = major;
                installed.push((major, entry.path().join("bin")));
            }
        }
    }
    installed.sort_by_key(|(major, _)| std::cmp::Reverse(*major));
    places.extend(installed.into_iter().map(|(_, dir)| dir));
    places
}

fn version_of(postgres: &Path) -> Result<Version> {
    let failed = |reason: String| Error::Output { program: postgres.display().to_string(), reason };
    let output = Command::new(postgres)
        .arg("--version")
        .output()
        .map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).ok_or_else(|| failed(format!("no version in {:?}", text.trim())))
}

/// Reads `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, or `18beta1`.
fn parse_version(text: &str) -> Option<Version> {
    let number = text.split_once("(PostgreSQL) ")?.1.split_whitespace().next()?;
    let digits = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse().ok()
    };
    let (major, minor) = number.split_once('.').unwrap_or((number, "0"));
    Some(Version { major: digits(major)?, minor: digits(minor)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_distributions_print_them() {
        let parse = |text| parse_version(text).map(|v| (v.major, v.minor));
        assert_eq!(parse("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some((15, 18)));
        assert_eq!(parse("postgres (PostgreSQL) 18beta1\n"), Some((18, 0)));
        assert_eq!(parse("something else"), None);
    }

    #[test]
    fn a_directory_without_postgresql_is_named_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let error = Binaries::find(Some(dir.path()), Some(15)).unwrap_err().to_string();
        assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
        assert!(error.contains("postgresql-15"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let whole = Binaries::find(None, None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for program in PROGRAMS.iter().filter(|program| **program != "pg_rewind") {
            std::os::unix::fs::symlink(whole.program(program), dir.path().join(program)).unwrap();
        }
        let error = Binaries::find(Some(dir.path()), None).unwrap_err().to_string();
        assert!(error.contains("find pg_rewind in"), "{error}");
    }

    #[test]
    fn a_version_that_is_not_installed_is_refused_with_the_one_that_is() {
        let whole = Binaries::find(None, None).unwrap();
        let error = Binaries::find(Some(whole.dir()), Some(9)).unwrap_err().to_string();
        assert!(error.contains(&format!("only version {}", whole.version())), "{error}");
    }
}
