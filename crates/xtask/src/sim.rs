//! The simulator, built alone: with `--seeded-bugs` its feature must reach no other package.

use anyhow::Result;

use crate::step::{cargo, run, step};

/// Runs `understudy-sim` with these arguments, in the release profile.
pub(crate) fn sim(args: &[String]) -> Result<()> {
    step("simulator", "the lines above say how to run a failing seed again", || {
        let mut command = cargo(&["run", "--quiet", "--release", "--package", "understudy-sim"]);
        let wants_bug = |arg: &String| arg == "--seeded-bugs" || arg.starts_with("--bug");
        if args.iter().any(wants_bug) {
            command.args(["--features", "seeded-bugs"]);
        }
        run(command.args(["--", "sim"]).args(args))
    })
}
