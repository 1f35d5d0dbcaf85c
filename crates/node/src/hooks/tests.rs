//! Real programs that do what programs do: end well and badly, hang, flood, ignore their input, leave
//! children behind that hold the pipe, cannot be started.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use tempfile::TempDir;

use super::program::{End, Program, Ran};
use super::*;
use crate::config::{HookConfig, Trigger};
use crate::events::Happening;
use understudy_types::Epoch;

/// No test here takes that long but where something hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a program that hangs is given.
const SHORT: Duration = Duration::from_millis(500);

/// Scripts and what they leave, where any user can write.
struct Desk(TempDir);

impl Desk {
    fn new() -> Desk {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        Desk(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn script(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    fn run(&self, text: &str, timeout: Duration, input: &[u8]) -> Ran {
        let dir = self.0.path().display().to_string();
        let command = vec![self.script("script", text), dir];
        let program = Program { command, timeout, user: Ok(None) };
        program.run(input, &[("UNDERSTUDY_EVENT", "role-change")])
    }
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn lives(pid_file: &Path) -> bool {
    let pid = fs::read_to_string(pid_file).unwrap();
    // A zombie whose parent has not looked yet is dead.
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
fn a_program_gets_the_event_and_little_else_and_its_code_and_words_come_back() {
    let desk = Desk::new();
    let script = "cat > \"$1/input\"; env > \"$1/env\"; pwd > \"$1/cwd\"\n\
                  echo 'first line' >&2; echo >&2; echo 'second' >&2; exit 7";
    let ran = desk.run(script, PATIENCE, b"{\"kind\":\"role-change\"}\n");
    assert_eq!((ran.end, ran.stderr.as_str()), (End::Exited(7), "first line; second"));
    assert_eq!(fs::read(desk.path("input")).unwrap(), b"{\"kind\":\"role-change\"}\n");
    assert_eq!(fs::read_to_string(desk.path("cwd")).unwrap(), "/\n");
    let environment = fs::read_to_string(desk.path("env")).unwrap();
    let names = environment.lines().filter_map(|line| line.split('=').next());
    let names: Vec<&str> =
        names.filter(|name| !matches!(*name, "PWD" | "_" | "SHLVL" | "TZ")).collect();
    let expected = ["LANG", "PATH", "UNDERSTUDY_EVENT"];
    assert!(names.iter().all(|name| expected.contains(name)) && names.len() == 3, "{names:?}");
}

#[test]
fn a_program_that_hangs_is_killed_with_its_children_at_its_time_limit() {
    let desk = Desk::new();
    let script = "echo working >&2; sleep 1000 & echo $! > \"$1/child\"; trap '' TERM; sleep 1000";
    let ran = desk.run(script, SHORT, b"x");
    assert_eq!((ran.end, ran.stderr.as_str()), (End::Killed, "working"));
    assert!(ran.took >= SHORT && ran.took < PATIENCE, "{:?}", ran.took);
    wait_for("the child to be gone", || !lives(&desk.path("child")));
}

#[test]
fn a_child_that_keeps_the_pipe_open_holds_nothing_up() {
    let desk = Desk::new();
    let ran = desk.run("echo done >&2; sleep 1000 & echo $! > \"$1/child\"", PATIENCE, b"x");
    assert_eq!((ran.end, ran.stderr.as_str()), (End::Exited(0), "done"));
    wait_for("what it left behind to be gone", || !lives(&desk.path("child")));
    // One that went into a session of its own lives on, and is not waited for either.
    let script = "setsid sh -c 'echo $$ > \"$0/away\"; exec sleep 1000' \"$1\" & \
                  until [ -s \"$1/away\" ]; do sleep 0.01; done; echo done >&2";
    let ran = desk.run(script, PATIENCE, b"x");
    assert_eq!(ran.end, End::Exited(0));
    let away = fs::read_to_string(desk.path("away")).unwrap();
    assert!(lives(&desk.path("away")));
    let away = Pid::from_raw(away.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(away, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_flood_is_read_and_forgotten_but_for_its_beginning() {
    let desk = Desk::new();
    let ran = desk.run("yes 'a line of a flood' >&2", SHORT, b"x");
    assert_eq!(ran.end, End::Killed);
    assert!(ran.stderr.starts_with("a line of a flood; a line") && ran.stderr.len() < 2100);
    let ends = "i=0; while [ $i -lt 20000 ]; do echo 'a line of twenty b' >&2; i=$((i+1)); done";
    let ran = desk.run(ends, PATIENCE, b"x");
    assert_eq!(ran.end, End::Exited(0));
}

#[test]
fn a_program_that_reads_nothing_or_shuts_its_input_ends_as_it_likes() {
    let desk = Desk::new();
    let large = vec![b'x'; 1 << 20];
    assert_eq!(desk.run("exit 0", PATIENCE, &large).end, End::Exited(0));
    assert_eq!(desk.run("exec <&-; exit 3", PATIENCE, &large).end, End::Exited(3));
    assert_eq!(desk.run("sleep 1000", SHORT, &large).end, End::Killed);
    let ran = desk.run("wc -c > \"$1/count\"", PATIENCE, &large);
    assert_eq!(ran.end, End::Exited(0));
    assert_eq!(fs::read_to_string(desk.path("count")).unwrap().trim(), "1048576");
}

#[test]
fn what_cannot_be_started_or_is_killed_by_others_is_said() {
    let desk = Desk::new();
    assert_eq!(desk.run("kill -9 $$", PATIENCE, b"x").end, End::Signalled(9));
    let start = |command: &str, user| {
        let program = Program { command: vec![command.to_owned()], timeout: PATIENCE, user };
        match program.run(b"x", &[]).end {
            End::NotStarted(why) => why,
            other => panic!("{command}: {other:?}"),
        }
    };
    assert!(start("/nonexistent/program", Ok(None)).contains("No such file"));
    assert!(start("/etc/passwd", Ok(None)).contains("denied"));
    assert_eq!(start("/bin/true", Err("no such user".to_owned())), "no such user");
}

#[test]
fn a_program_runs_as_the_user_that_was_asked_for_without_the_daemons_groups() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let desk = Desk::new();
    let nobody = OsUser::lookup("nobody").unwrap();
    let command = vec![desk.script("who", "id -u > \"$1/uid\"; id -G > \"$1/groups\""), {
        desk.0.path().display().to_string()
    }];
    let program = Program { command, timeout: PATIENCE, user: Ok(Some(nobody.clone())) };
    assert_eq!(program.run(b"x", &[]).end, End::Exited(0));
    let read = |name| fs::read_to_string(desk.path(name)).unwrap().trim().to_owned();
    assert_eq!(read("uid"), nobody.uid.to_string());
    assert_eq!(read("groups"), nobody.gid.to_string());
}

fn happening(kind: Kind, severity: Severity) -> Happening {
    Happening {
        kind,
        severity,
        subject: "north".to_owned(),
        words: "x".to_owned(),
        epoch: Epoch::NONE,
        from: None,
        to: None,
        at_unix_us: 1,
    }
}

#[test]
fn a_hook_wants_its_kinds_and_its_severities_and_never_an_event_of_a_hook() {
    let on = vec![Trigger::Kind(Kind::RoleChange), Trigger::AtLeast(Severity::Warning)];
    let hook = HookConfig { on, command: vec!["/x".to_owned()], timeout: SHORT, user: None };
    assert!(hook.wants(Kind::RoleChange, Severity::Info));
    assert!(hook.wants(Kind::ActiveChange, Severity::Alert));
    assert!(hook.wants(Kind::MarkSet, Severity::Warning));
    assert!(!hook.wants(Kind::ActiveChange, Severity::Info));
    assert!(!hook.wants(Kind::HookFailed, Severity::Warning));
}

/// A node's configuration with this hook.
fn configured(hook: HookConfig) -> NodeConfig {
    let text = r#"
        cluster = "6f1a2b3c-0000-4000-8000-0123456789ab"
        name = "third"
        site = "third"
        kind = "witness"
        data_dir = "/x"
        [tls]
        ca = "a"
        certificate = "b"
        key = "c"
        [[members]]
        name = "third"
        id = 1
        site = "third"
        kind = "witness"
        address = "127.0.0.1:7400"
        [[members]]
        name = "north"
        id = 2
        site = "north"
        kind = "data"
        address = "127.0.0.2:7400"
    "#;
    let mut config = NodeConfig::parse(text, Path::new("/x/node.toml")).unwrap();
    config.hooks.push(hook);
    config
}

#[test]
fn a_hook_that_hangs_keeps_its_queue_bounded_and_nobody_waiting() {
    let desk = Desk::new();
    let hangs = desk.script("hangs", "exec sleep 1000");
    let on = vec![Trigger::AtLeast(Severity::Info)];
    let user = rustix::process::geteuid().is_root().then(|| "root".to_owned());
    let hook = HookConfig { on, command: vec![hangs.clone()], timeout: SHORT, user };
    let journal = EventJournal::new("third");
    let mut hooks = Hooks::start(&configured(hook), &journal).unwrap();
    let begun = Instant::now();
    for _ in 0..3 * QUEUE_MAX {
        let event = journal.add(happening(Kind::RoleChange, Severity::Info));
        hooks.offer(&event, &journal);
    }
    // All of them together wait less than for one run.
    assert!(begun.elapsed() < SHORT, "{:?}", begun.elapsed());
    let of = |kind| journal.after(0, &[kind], 1000).events;
    let overflow = of(Kind::HookOverflow);
    // Once, and once more if the first run was taken from the full queue only then.
    assert!((1..=2).contains(&overflow.len()), "{overflow:?}");
    assert!(overflow[0].words.contains("64 events behind"), "{overflow:?}");
    wait_for("the first run's end to be told", || !of(Kind::HookFailed).is_empty());
    let failed = of(Kind::HookFailed).remove(0);
    assert_eq!(failed.subject, hangs);
    assert_eq!(failed.to.as_deref(), Some("killed"));
    assert!(failed.words.contains("killed at its time limit after 0.5 s"), "{failed:?}");
}

#[test]
fn what_a_hook_is_told_is_the_event_as_it_stands_in_the_journal() {
    let desk = Desk::new();
    let take = desk.script("take", "cat > \"$1/new\"; mv \"$1/new\" \"$1/told\"");
    let command = vec![take, desk.0.path().display().to_string()];
    let on = vec![Trigger::Kind(Kind::RoleChange)];
    let hook = HookConfig { on, command, timeout: PATIENCE, user: None };
    let journal = EventJournal::new("third");
    let mut hooks = Hooks::start(&configured(hook), &journal).unwrap();
    let event = journal.add(happening(Kind::RoleChange, Severity::Info));
    hooks.offer(&event, &journal);
    let done = || journal.after(0, &[Kind::HookDone], 9).events;
    wait_for("the program's good end", || !done().is_empty());
    let told = fs::read_to_string(desk.path("told")).unwrap();
    assert_eq!(serde_json::from_str::<Event>(&told).unwrap(), event);
    assert_eq!(done()[0].from.as_deref(), Some("role-change"));
}
