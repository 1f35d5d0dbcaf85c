//! The slice of the rig that every run of the tests plays: two rows, end to end.
//!
//! Where the machine cannot run the rig (no root, no network namespaces) it says so loudly, and nothing
//! is claimed.

use std::path::Path;
use std::process::Command;

const RIG: &str = env!("CARGO_BIN_EXE_understudy-chaos");

#[test]
fn an_isolated_active_and_a_killed_witness_are_survived() {
    let check = Command::new(RIG).arg("--check").output().expect("the rig starts");
    if !check.status.success() {
        let why = String::from_utf8_lossy(&check.stderr);
        eprintln!("skipped: needs a machine that can run the rig: {why}");
        return;
    }
    let understudy = Path::new(RIG).with_file_name("understudy");
    assert!(
        understudy.is_file(),
        "{} is not built: run the tests with --workspace",
        understudy.display()
    );
    let logs = std::env::temp_dir().join(format!("understudy-slice-{}", std::process::id()));
    let mut rig = Command::new(RIG);
    rig.args(["--row=F-14", "--row=F-19", "--mode=zero", "--output=json"]);
    rig.arg("--binary").arg(&understudy).arg("--logs").arg(&logs);
    let ended = rig.output().expect("the rig starts");
    let (said, errors) =
        (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success(), "{said}\n{errors}\nlogs are in {}", logs.display());
    let summary = said.lines().last().unwrap_or_default();
    assert!(summary.contains("\"failed\":0"), "{said}");
    assert!(summary.contains("\"late_releases\":0"), "{said}");
    assert!(summary.contains("\"rows\":2"), "{said}");
}
