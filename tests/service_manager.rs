//! The conversation with a service manager, over a socket of the test's own.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::lab::{DATA, Lab, ZERO};
use support::{BINARY, wait_for};

const WATCHDOG: Duration = Duration::from_secs(2);

/// A daemon that was started as systemd starts one of `Type=notify`; ended when it is dropped.
struct Service(Child);

impl Service {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// What has come since the last look.
fn heard(socket: &UnixDatagram) -> Vec<String> {
    let mut lines = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length) = socket.recv(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]);
        lines.extend(text.lines().map(str::to_owned));
    }
    lines
}

#[test]
fn a_daemon_is_ready_with_its_doors_and_feeds_the_watchdog_while_it_decides() {
    let lab = Lab::prepared(ZERO);
    let [north, _] = DATA;
    let path = lab.root().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let log = std::fs::File::create(lab.root().join("service.log")).unwrap();
    let mut daemon = Command::new(BINARY);
    daemon.arg("run").arg("--config").arg(lab.config(north)).current_dir(lab.node_dir(north));
    daemon.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
    daemon.stdin(std::process::Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let mut service = Service(daemon.spawn().unwrap());

    let mut told = Vec::new();
    wait_for("READY=1", || {
        told.extend(heard(&socket));
        told.contains(&"READY=1".to_owned()).then_some(())
    });
    assert!(lab.get(north, "/livez").is_some(), "it is ready before its doors are open");
    wait_for("the watchdog to be fed again and again, and a status", || {
        told.extend(heard(&socket));
        let fed = told.iter().filter(|line| *line == "WATCHDOG=1").count();
        let status = told.iter().any(|line| line.starts_with("STATUS=") && line.contains("nobody"));
        (fed >= 3 && status).then_some(())
    });

    service.signal(Signal::STOP);
    wait_for("what was said before the stop to be read", || {
        heard(&socket).is_empty().then_some(())
    });
    // As long as systemd would wait before it acts; nothing else can tell that something does not come.
    std::thread::sleep(WATCHDOG);
    assert_eq!(heard(&socket), Vec::<String>::new(), "a frozen daemon feeds the watchdog");
    service.signal(Signal::CONT);
    wait_for("the watchdog to be fed after the thaw", || {
        heard(&socket).contains(&"WATCHDOG=1".to_owned()).then_some(())
    });

    service.signal(Signal::TERM);
    let mut told = Vec::new();
    wait_for("STOPPING=1", || {
        told.extend(heard(&socket));
        told.contains(&"STOPPING=1".to_owned()).then_some(())
    });
    wait_for("its end", || service.0.try_wait().unwrap());
}
