//! Mistakes that are put back one at a time, and where the model finds them.
//!
//! A mistake that no configuration finds is a hole in the model, so the run that seeds them fails then.

use understudy_types::SeededBug;

/// A mistake and the smallest configuration that is known to find it.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// The mistake.
    pub bug: SeededBug,
    /// The configuration's name.
    pub configuration: &'static str,
}

/// Every mistake that the model is able to make.
pub const ALL: &[Mutant] = &[
    Mutant { bug: SeededBug::NoMargin, configuration: "lease" },
    Mutant { bug: SeededBug::DriftSignTurned, configuration: "lease" },
    Mutant { bug: SeededBug::CommittedTakenForAccepted, configuration: "late" },
    Mutant { bug: SeededBug::PromoteIgnoresSeq, configuration: "late" },
    Mutant { bug: SeededBug::JoinBeforeWait, configuration: "lease" },
    Mutant { bug: SeededBug::RemoveBeforeRecorded, configuration: "dial" },
    Mutant { bug: SeededBug::NoGeneration, configuration: "dial" },
    Mutant { bug: SeededBug::ModeOfOldConfiguration, configuration: "turns" },
    Mutant { bug: SeededBug::PositionsGoBack, configuration: "restart" },
    Mutant { bug: SeededBug::TtlFromConfiguration, configuration: "ttl" },
    Mutant { bug: SeededBug::SealAfterReading, configuration: "no-clocks" },
    Mutant { bug: SeededBug::SupersedeWithoutPhase, configuration: "supersede" },
    Mutant { bug: SeededBug::ReleaseBeforeTreeGone, configuration: "release" },
    Mutant { bug: SeededBug::FollowByCheckpoint, configuration: "cut" },
    Mutant { bug: SeededBug::StrengthenWithoutFloor, configuration: "dial" },
    Mutant { bug: SeededBug::CreditIgnored, configuration: "bounded" },
    Mutant { bug: SeededBug::NoProcessStart, configuration: "crash-late" },
];
