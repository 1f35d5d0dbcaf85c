//! What is searched: how much of everything there may be, and which clocks.
//!
//! Time, lateness, lost proposals, cut streams and the order of everything are not limited; what is
//! counted here is what would otherwise grow without end.

use understudy_types::DurabilityMode;

/// A clock at the slow extreme of drift: this much in one tick of true time.
pub(super) const SLOW: u8 = 3;
/// A clock at the fast extreme.
pub(super) const FAST: u8 = 5;

/// One configuration.
#[derive(Clone, Copy, Debug)]
pub struct Configuration {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    pub(super) mode: DurabilityMode,
    /// Drift stays below its bound, so leases may be relied on.
    pub(super) clocks_are_trusted: bool,
    /// The policy by which a promotion need not wait for the lease.
    pub(super) on_seal: bool,
    /// D of each node, as configured there.
    pub(super) ttls: [u8; 3],
    /// The clocks: each row is searched.
    pub(super) clocks: &'static [[u8; 3]],
    /// The last epoch that may be granted.
    pub(super) epochs: u8,
    /// Renewals of one process in one epoch.
    pub(super) renewals: u8,
    pub(super) writes: u8,
    pub(super) crashes: u8,
    pub(super) cuts: u8,
    pub(super) removals: u8,
    /// How often an operator turns the dial, from `zero` to `bounded` or back.
    pub(super) turns: u8,
    /// How often an operator orders a switchover.
    pub(super) switchovers: u8,
    /// How often a holder's server fails under a lease that runs.
    pub(super) restarts: u8,
    pub(super) releases: u8,
    pub(super) reclones: u8,
    /// How far each node may be behind before it is away.
    pub(super) lags: [u8; 3],
    /// Proposals under way at once.
    pub(super) flight: u8,
}

const EVERY_CLOCK: &[[u8; 3]] = &[
    [SLOW, SLOW, SLOW],
    [SLOW, SLOW, FAST],
    [SLOW, FAST, SLOW],
    [SLOW, FAST, FAST],
    [FAST, SLOW, SLOW],
    [FAST, SLOW, FAST],
    [FAST, FAST, SLOW],
    [FAST, FAST, FAST],
];
/// The first holder's clock as slow as may be and the challengers' as fast, and the reverse.
const OPPOSED: &[[u8; 3]] = &[[SLOW, FAST, FAST], [FAST, SLOW, SLOW]];
/// The worst for the first holder's lease.
const SLOW_HOLDER: &[[u8; 3]] = &[[SLOW, FAST, FAST]];

/// One promotion, one renewal of each process, nothing goes wrong but lateness, loss and cut streams.
const BASE: Configuration = Configuration {
    name: "lease",
    purpose: "every combination of clocks, no writes",
    mode: DurabilityMode::Zero,
    clocks_are_trusted: true,
    on_seal: false,
    ttls: [8, 8, 8],
    clocks: EVERY_CLOCK,
    epochs: 2,
    renewals: 1,
    writes: 0,
    crashes: 0,
    cuts: 0,
    removals: 0,
    turns: 0,
    switchovers: 0,
    restarts: 0,
    releases: 0,
    reclones: 0,
    lags: [1, 1, 0],
    flight: 1,
};

/// One write, a renewal more, because the first of a process publishes no credit, and only the first
/// holder may be late: small enough for a fault or two more.
const SMALL: Configuration =
    Configuration { clocks: SLOW_HOLDER, renewals: 2, writes: 1, lags: [1, 0, 0], ..BASE };

/// Every configuration, the quick ones first.
pub const ALL: &[Configuration] = &[
    BASE,
    Configuration {
        name: "ttl",
        purpose: "the first holder was configured with a longer ttl than the challengers",
        ttls: [12, 8, 8],
        clocks: OPPOSED,
        ..BASE
    },
    Configuration {
        name: "late",
        purpose: "two proposals under way at once",
        clocks: SLOW_HOLDER,
        renewals: 2,
        flight: 2,
        ..BASE
    },
    Configuration {
        name: "dial",
        purpose: "the passive is lost, the dial is weakened and strengthened again",
        clocks: SLOW_HOLDER,
        writes: 2,
        removals: 1,
        flight: 2,
        ..BASE
    },
    Configuration {
        name: "weaken",
        purpose: "the dial is turned from zero to bounded",
        turns: 1,
        ..SMALL
    },
    Configuration {
        name: "strengthen",
        purpose: "the dial is turned from bounded to zero",
        mode: DurabilityMode::Bounded,
        turns: 1,
        ..SMALL
    },
    Configuration {
        name: "switchover",
        purpose: "mode bounded: a switchover is ordered, handed over, undone or carried out",
        mode: DurabilityMode::Bounded,
        switchovers: 1,
        ..SMALL
    },
    Configuration {
        name: "switchover-crash",
        purpose: "a switchover, and one crash of any process or machine in the middle of it",
        crashes: 1,
        switchovers: 1,
        ..SMALL
    },
    Configuration {
        name: "switchover-late",
        purpose: "a switchover with two proposals under way, and a server that fails",
        switchovers: 1,
        restarts: 1,
        flight: 2,
        ..SMALL
    },
    Configuration {
        name: "restart",
        purpose: "bounded, turned to zero, and a server that fails and is started again",
        mode: DurabilityMode::Bounded,
        renewals: 3,
        turns: 1,
        restarts: 1,
        ..SMALL
    },
    Configuration {
        name: "on-seal",
        purpose: "zero with promotions that do not wait for the lease, and the dial turned meanwhile",
        on_seal: true,
        turns: 1,
        ..SMALL
    },
    Configuration {
        name: "on-seal-two",
        purpose: "the same twice, with a passive that is lost and joins again",
        on_seal: true,
        clocks: SLOW_HOLDER,
        epochs: 3,
        writes: 2,
        removals: 1,
        lags: [1, 0, 0],
        ..BASE
    },
    Configuration {
        name: "turns",
        purpose: "the dial is turned from bounded to zero, back and again, two proposals under way",
        mode: DurabilityMode::Bounded,
        turns: 3,
        flight: 2,
        ..SMALL
    },
    Configuration {
        name: "crash",
        purpose: "one crash of any process or machine, while writes are under way",
        clocks: SLOW_HOLDER,
        // A new process has to renew, too.
        renewals: 2,
        writes: 1,
        crashes: 1,
        ..BASE
    },
    Configuration {
        name: "crash-late",
        purpose: "one crash of any process or machine, with commands that outlive it",
        clocks: SLOW_HOLDER,
        renewals: 2,
        crashes: 1,
        flight: 2,
        ..BASE
    },
    Configuration {
        name: "cut",
        purpose: "any node is cut off from the consensus once and comes back by a snapshot",
        clocks: SLOW_HOLDER,
        writes: 1,
        cuts: 1,
        ..BASE
    },
    Configuration {
        name: "release",
        purpose: "the lease is given back, and taken up again or handed on",
        clocks: SLOW_HOLDER,
        epochs: 3,
        writes: 1,
        releases: 1,
        ..BASE
    },
    Configuration {
        name: "release-late",
        purpose: "the lease is given back with another proposal under way",
        epochs: 3,
        releases: 1,
        flight: 2,
        ..SMALL
    },
    Configuration {
        name: "two",
        purpose: "two promotions with writes before, between and after",
        clocks: SLOW_HOLDER,
        epochs: 3,
        writes: 3,
        ..BASE
    },
    Configuration {
        name: "reclone",
        purpose: "an eligible passive is cloned again",
        clocks: SLOW_HOLDER,
        writes: 2,
        reclones: 1,
        ..BASE
    },
    Configuration {
        name: "no-clocks",
        purpose: "zero rests on seals too: any clock may be wrong by any amount",
        clocks_are_trusted: false,
        clocks: SLOW_HOLDER,
        epochs: 3,
        writes: 2,
        ..BASE
    },
    Configuration {
        name: "bounded",
        purpose: "mode bounded: one promotion, losses within the published credit",
        mode: DurabilityMode::Bounded,
        clocks: SLOW_HOLDER,
        // The first renewal of a process is sent before it has a server, and publishes no credit.
        renewals: 2,
        writes: 2,
        ..BASE
    },
    Configuration {
        name: "bounded-small",
        purpose: "mode bounded: one promotion, one write, only the first holder may be late",
        mode: DurabilityMode::Bounded,
        ..SMALL
    },
    Configuration {
        name: "supersede",
        purpose: "a promotion is superseded, and so is what superseded it",
        clocks: SLOW_HOLDER,
        epochs: 4,
        flight: 2,
        ..BASE
    },
    Configuration {
        name: "crash-cut",
        purpose: "one crash and one cut together",
        crashes: 1,
        cuts: 1,
        ..SMALL
    },
    Configuration {
        name: "crash-two",
        purpose: "two promotions and one crash of any process or machine",
        epochs: 3,
        crashes: 1,
        ..SMALL
    },
    Configuration {
        name: "crash-turn",
        purpose: "one crash, and the dial turned from zero to bounded",
        crashes: 1,
        turns: 1,
        ..SMALL
    },
    Configuration {
        name: "cut-two",
        purpose: "two promotions and one cut",
        epochs: 3,
        cuts: 1,
        ..SMALL
    },
    Configuration {
        name: "cut-turn",
        purpose: "one cut, and the dial turned from zero to bounded",
        cuts: 1,
        turns: 1,
        ..SMALL
    },
    Configuration {
        name: "turn-two",
        purpose: "two promotions, and the dial turned from zero to bounded",
        epochs: 3,
        turns: 1,
        ..SMALL
    },
    Configuration {
        name: "mixed",
        purpose: "two promotions, one crash, one cut, one change of the dial together",
        clocks: OPPOSED,
        epochs: 3,
        renewals: 2,
        writes: 2,
        crashes: 1,
        cuts: 1,
        removals: 1,
        turns: 1,
        ..BASE
    },
    Configuration {
        name: "everything",
        purpose: "all of it at once: for a large machine and a night",
        clocks: EVERY_CLOCK,
        epochs: 3,
        renewals: 2,
        writes: 3,
        crashes: 1,
        cuts: 1,
        removals: 1,
        turns: 2,
        switchovers: 1,
        restarts: 1,
        releases: 1,
        reclones: 1,
        lags: [2, 2, 1],
        flight: 2,
        ..BASE
    },
];

/// Those that take more than a minute or two (docs/measured/model-2026-11.md, which also says which were
/// searched to their end); they run only when they are named.
pub const LONG: &[&str] = &[
    "switchover-crash",
    "switchover-late",
    "restart",
    "release-late",
    "turns",
    "crash",
    "crash-late",
    "crash-cut",
    "crash-two",
    "crash-turn",
    "cut-two",
    "cut-turn",
    "turn-two",
    "mixed",
    "everything",
];

/// The configuration of that name.
pub fn named(name: &str) -> Option<Configuration> {
    ALL.iter().find(|configuration| configuration.name == name).copied()
}
