//! The Debian package: built from the program under test, with everything that an installation needs.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Command;

use support::processes::{Background, run};
use support::{BINARY, PATIENCE};

fn dpkg_deb(arguments: &[&str], package: &Path) -> String {
    run(Command::new("dpkg-deb").args(arguments).arg(package)).good()
}

#[test]
fn the_package_has_the_program_its_unit_its_manual_and_examples_and_starts_nothing() {
    let out = tempfile::tempdir().unwrap();
    let build = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/debian/build");
    let mut command = Command::new(build);
    command.args(["--binary", BINARY, "--version", "1.2.3", "--out"]).arg(out.path());
    command.env("SOURCE_DATE_EPOCH", "1700000000");
    Background::start(&mut command).wait(3 * PATIENCE).good();
    let package = std::fs::read_dir(out.path()).unwrap().flatten().next().unwrap().path();

    let field = |name: &str| {
        dpkg_deb(&["--field"], &package)
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned))
    };
    assert_eq!(field("Version").as_deref(), Some("1.2.3"));
    assert!(field("Depends").unwrap().contains("libc6"), "{:?}", field("Depends"));
    let root = out.path().join("root");
    run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&root)).good();
    for path in [
        "usr/bin/understudy",
        "lib/systemd/system/understudy.service",
        "usr/share/man/man1/understudy-switchover.1.gz",
        "usr/share/bash-completion/completions/understudy",
        "usr/share/doc/understudy/runbook.md",
        "usr/share/doc/understudy/examples/haproxy/haproxy.cfg",
        "usr/share/doc/understudy/examples/prometheus/rules/understudy.rules.yml",
    ] {
        assert!(root.join(path).is_file(), "{path} is missing");
    }
    let unit = std::fs::read_to_string(root.join("lib/systemd/system/understudy.service")).unwrap();
    for line in ["Type=notify", "KillMode=process", "Restart=always", "NoNewPrivileges=yes"] {
        assert!(unit.lines().any(|found| found == line), "the unit has no {line}");
    }
    let said = run(Command::new(root.join("usr/bin/understudy")).arg("version")).good();
    assert!(said.starts_with("understudy "), "{said}");
    let after = dpkg_deb(&["--info"], &package);
    assert!(after.contains("postinst") && after.contains("prerm"), "{after}");
}
