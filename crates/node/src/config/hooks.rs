//! `[[hooks]]`: the programs that a node runs on events. Only the text is judged here; whether a program
//! is there is looked at by `config check`, and found out by whoever runs it.

use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::raw::RawHook;
use super::show::{text, time};
use super::validate::{Findings, quoted};
use super::{ConfigError, NodeConfig, duration};
use crate::events::{Kind, Severity};

/// More programs than anybody needs; each has a thread of its own.
const HOOKS_MAX: usize = 16;
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
const TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// A program to be run on events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookConfig {
    /// On which; no default.
    pub on: Vec<Trigger>,
    /// The program with its arguments; never a shell's line. No default.
    pub command: Vec<String>,
    /// When it is killed with its process group. Default 10 s.
    pub timeout: Duration,
    /// Who it runs as; only root can choose. Default: as PostgreSQL; where there is none, `nobody`.
    pub user: Option<String>,
}

/// What an event must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Of this kind.
    Kind(Kind),
    /// Of this severity or a higher one.
    AtLeast(Severity),
}

impl Trigger {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Trigger::Kind(kind) => kind.as_str(),
            Trigger::AtLeast(severity) => severity.as_str(),
        }
    }
}

impl HookConfig {
    /// Whether it is to be run on such an event; never on one that tells of a hook.
    pub fn wants(&self, kind: Kind, severity: Severity) -> bool {
        let wanted = self.on.iter().any(|trigger| match trigger {
            Trigger::Kind(wanted) => *wanted == kind,
            Trigger::AtLeast(least) => severity >= *least,
        });
        wanted && !kind.is_of_a_hook()
    }

    /// The program's path.
    pub fn program(&self) -> &str {
        self.command.first().map_or("", String::as_str)
    }
}

pub(super) fn validate(found: &mut Findings, raw: Vec<RawHook>) -> Vec<HookConfig> {
    if raw.len() > HOOKS_MAX {
        let remedy = format!("expected {HOOKS_MAX} at most; one program may do several things");
        found.error("hooks", format!("{} entries", raw.len()), remedy);
    }
    let hooks = raw.into_iter().enumerate().map(|(index, hook)| {
        let field = |name: &str| format!("hooks[{index}].{name}");
        let on = triggers(found, &field("on"), &hook.on);
        let program = hook.command.first().map_or("", String::as_str);
        if !Path::new(program).is_absolute() || hook.command.iter().any(|word| word.contains('\0'))
        {
            let remedy = "expected an absolute path and its arguments, such as \
                          [\"/usr/local/bin/notify\", \"--verbose\"]; no shell reads it";
            found.error(field("command"), format!("{:?}", hook.command), remedy);
        }
        let mut timeout = TIMEOUT_DEFAULT;
        found.duration(&field("timeout"), hook.timeout.as_deref(), &mut timeout);
        if !(TIMEOUT_MIN..=TIMEOUT_MAX).contains(&timeout) {
            let remedy = "expected 100ms to 5m; let the program start what takes longer";
            found.error(field("timeout"), quoted(&duration::format(timeout)), remedy);
        }
        if hook.user.as_deref() == Some("") {
            let remedy = "expected a user's name; leave it out for PostgreSQL's own user";
            found.error(field("user"), quoted(""), remedy);
        }
        HookConfig { on, command: hook.command, timeout, user: hook.user }
    });
    hooks.collect()
}

fn triggers(found: &mut Findings, field: &str, words: &[String]) -> Vec<Trigger> {
    let of_hooks = |kind: &Kind| !kind.is_of_a_hook();
    let kinds = Kind::ALL.iter().copied().filter(of_hooks).map(Trigger::Kind);
    let known: Vec<Trigger> =
        Severity::ALL.map(Trigger::AtLeast).into_iter().chain(kinds).collect();
    if words.is_empty() {
        found.error(field, "[]", "expected at least one kind of event, or info, warning, alert");
    }
    let mut triggers = Vec::new();
    for word in words {
        match known.iter().find(|trigger| trigger.as_str() == word) {
            Some(trigger) => triggers.push(*trigger),
            None => {
                let names: Vec<&str> = known.iter().map(|trigger| trigger.as_str()).collect();
                found.error(field, quoted(word), format!("expected any of {}", names.join(", ")));
            }
        }
    }
    triggers
}

/// What of the hooks cannot work on this machine as it is now.
pub(super) fn check(config: &NodeConfig) -> Vec<ConfigError> {
    let hooks = config.hooks.iter().enumerate();
    let wrong = hooks.filter_map(|(index, hook)| {
        let (field, remedy) = if let Err(remedy) = check_program(Path::new(hook.program())) {
            ("command", remedy)
        } else if let Some(Err(remedy)) = hook.user.as_deref().map(check_user) {
            ("user", remedy)
        } else {
            return None;
        };
        let value = match (field, &hook.user) {
            ("user", Some(user)) => quoted(user),
            _ => quoted(hook.program()),
        };
        Some(ConfigError { field: format!("hooks[{index}].{field}"), value, remedy })
    });
    wrong.collect()
}

fn check_program(program: &Path) -> Result<(), String> {
    let metadata = std::fs::metadata(program)
        .map_err(|error| format!("expected a program that is there: {error}"))?;
    if !metadata.is_file() {
        return Err("expected a program, and this is no file".to_owned());
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err("expected a program that may be executed: chmod a+x".to_owned());
    }
    let mut above: Option<PathBuf> = Some(program.to_owned());
    while let Some(path) = above {
        let mode = std::fs::metadata(&path).map_or(0, |found| found.permissions().mode());
        let sticky = path.is_dir() && mode & 0o1000 != 0;
        if mode & 0o002 != 0 && !sticky {
            let place = path.display();
            return Err(format!("{place} can be written by everybody: chmod o-w {place}"));
        }
        above = path.parent().map(Path::to_owned);
    }
    Ok(())
}

fn check_user(user: &str) -> Result<(), String> {
    let found = understudy_postgres::OsUser::lookup(user);
    found.map(drop).map_err(|error| format!("expected a user of this machine: {error}"))
}

pub(super) fn show(config: &NodeConfig, out: &mut String) -> std::fmt::Result {
    writeln!(
        out,
        "\n# Programs that this node runs on events, with the event as JSON on standard input."
    )?;
    writeln!(
        out,
        "# on: kinds of events, or info, warning, alert for all of at least that severity."
    )?;
    writeln!(
        out,
        "# No shell; killed with its process group after timeout; as PostgreSQL's user, or as"
    )?;
    writeln!(
        out,
        "# user. `understudy events --help` says the kinds, `config check` looks for the program."
    )?;
    if config.hooks.is_empty() {
        writeln!(out, "# [[hooks]]\n# on = [\"role-change\", \"alert\"]")?;
        writeln!(out, "# command = [\"/usr/local/bin/understudy-notify\"]\n# timeout = \"10s\"")?;
    }
    for hook in &config.hooks {
        let list = |words: Vec<&str>| words.into_iter().map(text).collect::<Vec<_>>().join(", ");
        writeln!(out, "[[hooks]]")?;
        writeln!(out, "on = [{}]", list(hook.on.iter().map(|on| on.as_str()).collect()))?;
        writeln!(out, "command = [{}]", list(hook.command.iter().map(String::as_str).collect()))?;
        writeln!(out, "timeout = {}", time(hook.timeout))?;
        if let Some(user) = &hook.user {
            writeln!(out, "user = {}", text(user))?;
        }
    }
    Ok(())
}
