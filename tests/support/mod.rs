//! What the black-box tests share: a lab of three nodes that run the built binary, PostgreSQL's own
//! tools as its own user, and waiting for a condition with a deadline.
//!
//! It uses what an operator has, the program's verbs, its HTTP door and signals, and links nothing of
//! the program. It judges nothing but whether something happened in time.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`, and each test file uses its own
// part of them.
#![allow(clippy::unwrap_used, dead_code)]

pub(crate) mod balancer;
pub(crate) mod compare;
pub(crate) mod lab;
pub(crate) mod load;
pub(crate) mod machines;
pub(crate) mod postgres;
pub(crate) mod processes;

use std::time::{Duration, Instant};

/// No condition of these tests takes longer, even on a machine that is busy with others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks.
const POLL: Duration = Duration::from_millis(25);

/// Looks again and again until `look` finds something; panics when it does not in time.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {what}");
        std::thread::sleep(POLL);
    }
}

/// The program under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_understudy");
