//! What is claimed, each claim one sentence.

use understudy_types::DurabilityMode;

use super::checker::{Claim, Property};
use super::configurations::Configuration;
use super::protocol::Protocol;
use super::world::{Broken, Server, Step, World};

type Holds = fn(&Protocol, &World) -> bool;

/// The claims that fit the configuration.
pub(super) fn of(configuration: &Configuration) -> Vec<Property<Protocol>> {
    let mut found = Vec::new();
    let mut claim = |claim: Claim, name: &'static str, holds: Holds| {
        found.push(Property { name, claim, holds });
    };
    let (zero, turns) = (configuration.mode == DurabilityMode::Zero, configuration.turns > 0);
    if configuration.clocks_are_trusted {
        // Promoted on a seal, the old gate may still say, late, what the new side has already.
        if !configuration.on_seal {
            claim(Claim::Always, "at most one gate is open at any moment (I4)", one_gate);
        }
        claim(
            Claim::Always,
            "no acknowledgement of an epoch is decided after a later one opened (I3)",
            |_, world| world.ghost.broken != Broken::LateAcknowledgement,
        );
    }
    if zero || turns || configuration.switchovers > 0 {
        claim(
            Claim::Always,
            "no acknowledged write is lost in zero or by a switchover (I3)",
            nothing_lost,
        );
    }
    if !zero || turns {
        claim(
            Claim::Always,
            "a promotion loses nothing beyond the credit that was published (I6)",
            |_, world| world.ghost.broken != Broken::LossBeyondCredit,
        );
    }
    claim(Claim::Always, "whoever is eligible is waited for at the gate (rule 1)", waited_for);
    claim(Claim::Always, "where zero is recorded the gate is in zero (I7)", gate_in_zero);
    claim(
        Claim::Always,
        "whoever is eligible in zero has everything that was promised (I7)",
        eligible_has_all,
    );
    claim(Claim::Always, "an epoch is held by one node at most (I1)", one_holder);
    claim(Claim::Always, "an incomplete data directory is never run as a primary (I14)", no_dirty);
    claim(Claim::Always, "whoever follows is on the holder's history (I12)", on_history);
    claim(
        Claim::Always,
        "after a release the later epoch opens only once the released server is gone (I16)",
        fenced_before_open,
    );
    for (name, holds) in REACHABLE {
        if can_happen(configuration, name) {
            claim(Claim::Sometimes, name, *holds);
        }
    }
    found
}

/// Shows that the model is not empty. The first word says what has to be in the configuration.
const REACHABLE: &[(&str, Holds)] = &[
    ("a promotion is completed and its gate opens", |_, w| w.ghost.open_epoch >= 2),
    ("a second promotion is completed and its gate opens", |_, w| w.ghost.open_epoch >= 3),
    ("writes are acknowledged before and after a promotion", |_, w| {
        w.ghost.acked_epochs & 0b110 == 0b110
    }),
    ("writes are acknowledged before, between and after two promotions", |_, w| {
        w.ghost.acked_epochs & 0b1110 == 0b1110
    }),
    ("the old holder rejoins and is eligible again", |p, w| {
        let head = p.head(w);
        head.running && head.last.0 == 1 && head.eligible[0]
    }),
    ("a passive is lost and the weakening is recorded", |p, w| {
        p.head(w).epoch == 1 && p.head(w).lifted && w.used.removals > 0
    }),
    ("a weakening is followed by a strengthening", |p, w| {
        let head = p.head(w);
        head.epoch == 1 && w.used.removals > 0 && head.generation >= 4 && head.eligible[1]
    }),
    ("a promotion is superseded", |p, w| {
        let head = p.head(w);
        head.epoch >= 3 && !head.running && head.last.1 == 1
    }),
    ("the old holder is still waiting for its gate when the next one opens", |_, w| {
        let old = &w.data[0];
        w.ghost.open_epoch >= 2 && old.server == Server::Primary && old.held == 1
    }),
    ("a look at the gate becomes a write one tick later", |_, w| {
        w.data.iter().any(|data| data.look.upto > 0 && data.look.age == 1)
    }),
    ("a weaker mode comes in force while a lease runs", |_, w| w.ghost.weakened),
    ("zero comes in force over what was acknowledged before", |_, w| w.ghost.strengthened),
    ("a switchover is carried out", |p, w| p.head(w).switched),
    ("a handover is undone, and the same gate is open", |p, w| {
        w.ghost.undone && p.head(w).epoch == 1 && w.data[0].gate_is_open()
    }),
    ("a gate opens while the old one's lease still runs", |_, w| {
        w.ghost.open_epoch >= 2 && w.data[0].held == 1 && w.data[0].gate_is_open()
    }),
    ("a lease is given back", |p, w| p.head(w).released),
    ("whoever gave its lease back takes it up again", |p, w| {
        let head = p.head(w);
        head.running && head.epoch >= 2 && head.last == (0, 1) && w.ghost.open_epoch >= 2
    }),
    ("a process that crashed holds the lease again", |_, w| {
        w.data[0].process >= 2 && w.data[0].gate_is_open()
    }),
    ("a node is cloned again and follows", |_, w| {
        w.used.reclones > 0 && w.data.iter().all(|data| data.step != Step::Joining && !data.dirty)
    }),
];

/// Whether the configuration's budgets allow it.
fn can_happen(c: &Configuration, name: &str) -> bool {
    match name {
        "a second promotion is completed and its gate opens" => c.epochs >= 3,
        "writes are acknowledged before and after a promotion" => c.writes >= 2,
        "writes are acknowledged before, between and after two promotions" => {
            c.epochs >= 3 && c.writes >= 3
        }
        "a passive is lost and the weakening is recorded" => c.removals > 0,
        "a weakening is followed by a strengthening" => c.removals > 0,
        "a promotion is superseded" => c.epochs >= 3,
        "a weaker mode comes in force while a lease runs" => {
            c.turns > u8::from(c.mode == DurabilityMode::Bounded)
        }
        "zero comes in force over what was acknowledged before" => {
            c.turns > u8::from(c.mode == DurabilityMode::Zero) && c.writes > 0
        }
        "a switchover is carried out" => c.switchovers > 0,
        "a handover is undone, and the same gate is open" => c.switchovers > 0,
        "a gate opens while the old one's lease still runs" => c.on_seal,
        "a lease is given back" => c.releases + c.switchovers > 0,
        "whoever gave its lease back takes it up again" => c.releases > 0,
        "a process that crashed holds the lease again" => c.crashes > 0,
        "a node is cloned again and follows" => c.reclones > 0,
        _ => true,
    }
}

fn one_gate(_: &Protocol, world: &World) -> bool {
    world.data.iter().filter(|data| data.gate_is_open()).count() <= 1
}

fn nothing_lost(protocol: &Protocol, world: &World) -> bool {
    let head = protocol.head(world);
    let data = &world.data[head.holder];
    if !head.running || data.promotion != head.promotion {
        return true;
    }
    let has = data.wal.bits(data.wal.end());
    world.ghost.acked & !has == 0
}

fn waited_for(protocol: &Protocol, world: &World) -> bool {
    let head = protocol.head(world);
    let data = &world.data[head.holder];
    let eligible = head.running && head.eligible[1 - head.holder];
    let open = data.gate_is_open() && data.permit.epoch == head.epoch;
    !eligible || !open || data.permit.waits
}

fn gate_in_zero(protocol: &Protocol, world: &World) -> bool {
    let head = protocol.head(world);
    let data = &world.data[head.holder];
    let open = head.running && data.gate_is_open() && data.permit.epoch == head.epoch;
    !head.zero || !open || data.permit.zero
}

fn eligible_has_all(protocol: &Protocol, world: &World) -> bool {
    let head = protocol.head(world);
    let other = &world.data[1 - head.holder];
    if !head.running || !head.promises() || !head.eligible[1 - head.holder] || other.dirty {
        return true;
    }
    world.ghost.acked & !other.wal.bits(other.wal.end()) == 0
}

fn one_holder(_: &Protocol, world: &World) -> bool {
    world.data[0].held != world.data[1].held || world.data[0].held == 0
}

fn no_dirty(_: &Protocol, world: &World) -> bool {
    world.data.iter().all(|data| !data.dirty || data.server != Server::Primary)
}

fn on_history(protocol: &Protocol, world: &World) -> bool {
    let head = protocol.head(world);
    if !head.running {
        return true;
    }
    let (holder, other) = (&world.data[head.holder], &world.data[1 - head.holder]);
    let follows = other.step == Step::Following && other.promotion == head.promotion;
    !follows || holder.promotion != head.promotion || other.wal.is_prefix_of(&holder.wal)
}

fn fenced_before_open(protocol: &Protocol, world: &World) -> bool {
    let head = protocol.head(world);
    // Between the release and the next grant, and while the next holder is being promoted.
    let old = head.holder;
    !head.released || world.data[old].server != Server::Primary
}
