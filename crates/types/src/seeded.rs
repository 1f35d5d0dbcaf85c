//! Bugs that can be put back on purpose, to show that the tests would find them.
//!
//! Each is a mistake of docs/safety.md, section 11, or one that another failover tool has shipped.
//! The place in the code that avoids the mistake asks [`SeededBug::is_on`]; without the feature
//! `seeded-bugs` the answer is the constant `false` and the question is compiled away.
//! The feature belongs to the simulator's and the model's own test runs and to nothing else; the
//! daemon is never built with it.

/// A mistake that can be put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SeededBug {
    /// The holder uses its lease up to the end: no margin.
    NoMargin,
    /// Drift lengthens the holder's deadline and shortens the challenger's wait.
    DriftSignTurned,
    /// An entry that was committed but rejected counts as a renewal (mistake 1).
    CommittedTakenForAccepted,
    /// A grant does not compare the last accepted renewal (mistake 1).
    PromoteIgnoresSeq,
    /// A passive is recorded before the gate waits for it (mistake 2).
    JoinBeforeWait,
    /// A passive is no longer waited for before its removal is accepted (rule 1).
    RemoveBeforeRecorded,
    /// Changes of the sync set do not compare the generation (mistake 3).
    NoGeneration,
    /// A mode is recorded as in force for a configuration that has changed since.
    ModeOfOldConfiguration,
    /// A renewal takes back positions that were published before (mistake 31).
    PositionsGoBack,
    /// The challenger counts with its own ttl instead of the renewal's (mistake 4).
    TtlFromConfiguration,
    /// The challenger does not wait after its own start.
    NoWaitAfterStart,
    /// A candidate reads the journals' ends before they are sealed (mistake 10).
    SealAfterReading,
    /// A promotion is superseded without naming the one that is under way (mistake 9).
    SupersedeWithoutPhase,
    /// The lease is given back while processes of PostgreSQL may still run.
    ReleaseBeforeTreeGone,
    /// The lease is given back while a renewal is under way (mistake 17).
    ReleaseWhileRenewing,
    /// A returning node follows although its own WAL ends beyond the fork (mistake 12).
    FollowByCheckpoint,
    /// Commands of a holder do not compare the process start (mistake 15).
    NoProcessStart,
    /// A passive is recorded before everything ever acknowledged is durable there (mistake 16).
    StrengthenWithoutFloor,
    /// The gate releases beyond the credit of the last accepted renewal.
    CreditIgnored,
    /// The gate does not look at the deadline at the moment of the write.
    DeadlineIgnored,
    /// The gate releases what the passive received, not what it made durable (invariant I11).
    AckBeforeDurable,
    /// A promotion waits for the seal, also where that lies inside a record (mistake 11).
    WaitForSealInsideRecord,
    /// Data is judged by a state that may be older than a restart (mistake 18).
    JudgeByOldState,
    /// Frames of an older epoch are stored after the seal.
    OldEpochAccepted,
    /// A rewind leaves no dirty marker behind it while it runs (invariant I14).
    NoDirtyMarker,
    /// The clock stands still while the machine is suspended.
    ClockStopsInSuspend,
    /// With k of n waited for, a candidate is promoted on its own seal alone (mistake 10).
    PromoteOnOwnSeal,
    /// With k of n waited for, a change of the n is recorded while the gate waits for the old ones only.
    QuorumChangedAlone,
    /// A journal without a PostgreSQL does not say where it begins (mistake 35).
    JournalHasAllBefore,
}

impl SeededBug {
    /// Every one of them.
    pub const ALL: [SeededBug; 29] = [
        SeededBug::NoMargin,
        SeededBug::DriftSignTurned,
        SeededBug::CommittedTakenForAccepted,
        SeededBug::PromoteIgnoresSeq,
        SeededBug::JoinBeforeWait,
        SeededBug::RemoveBeforeRecorded,
        SeededBug::NoGeneration,
        SeededBug::ModeOfOldConfiguration,
        SeededBug::PositionsGoBack,
        SeededBug::TtlFromConfiguration,
        SeededBug::NoWaitAfterStart,
        SeededBug::SealAfterReading,
        SeededBug::SupersedeWithoutPhase,
        SeededBug::ReleaseBeforeTreeGone,
        SeededBug::ReleaseWhileRenewing,
        SeededBug::FollowByCheckpoint,
        SeededBug::NoProcessStart,
        SeededBug::StrengthenWithoutFloor,
        SeededBug::CreditIgnored,
        SeededBug::DeadlineIgnored,
        SeededBug::AckBeforeDurable,
        SeededBug::WaitForSealInsideRecord,
        SeededBug::JudgeByOldState,
        SeededBug::OldEpochAccepted,
        SeededBug::NoDirtyMarker,
        SeededBug::ClockStopsInSuspend,
        SeededBug::PromoteOnOwnSeal,
        SeededBug::QuorumChangedAlone,
        SeededBug::JournalHasAllBefore,
    ];

    /// Whether this mistake is to be made now, on this thread.
    #[cfg(not(feature = "seeded-bugs"))]
    pub const fn is_on(self) -> bool {
        false
    }

    /// Whether this mistake is to be made now, on this thread.
    #[cfg(feature = "seeded-bugs")]
    pub fn is_on(self) -> bool {
        switch::ON.get() == Some(self)
    }
}

/// From now on, on this thread, `bug` is made; `None` makes none.
#[cfg(feature = "seeded-bugs")]
pub fn seed_bug(bug: Option<SeededBug>) {
    switch::ON.set(bug);
}

#[cfg(feature = "seeded-bugs")]
mod switch {
    use std::cell::Cell;

    use super::SeededBug;

    thread_local! {
        pub(super) static ON: Cell<Option<SeededBug>> = const { Cell::new(None) };
    }
}
