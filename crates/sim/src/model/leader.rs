//! The leader's step: a grant, to whom the real verdict names or back to who held the last epoch.
//!
//! Every node may take it by whatever it has applied.

use std::collections::BTreeMap;

use understudy_core::Command;
use understudy_core::node::{HeardReport, PeerReport, Settled};
use understudy_core::state::{Dial, Phase, PromoteCause};
use understudy_core::verdict::{self, Candidacy, Evidence};
use understudy_types::{DurabilityMode, Lsn, NodeId, ProcessStart, Timeline};

use super::book::{self, NODES};
use super::protocol::{NOW, Protocol, epoch, lsn};
use super::world::{Server, Step, World};

impl Protocol {
    /// What the node would tell its peers.
    fn report_of(&self, world: &World, node: usize) -> PeerReport {
        let facts = self.facts(world, node);
        let data = &world.data[node];
        let is_passive = facts.holder != node;
        let timeline = Timeline::new(u32::from(data.timeline)).expect("timelines begin at one");
        PeerReport {
            node: NODES[node],
            process: ProcessStart(u64::from(data.process)),
            epoch: epoch(facts.epoch),
            data: (!data.dirty).then_some((book::SYSTEM, timeline)),
            durable_lsn: Some(lsn(data.wal.end())),
            promotion: Some(book::promotion_id(data.promotion)),
            begin_lsn: understudy_types::Lsn::ZERO,
            promotable: is_passive
                && data.step == Step::Following
                && data.server == Server::Standby,
            resumable: facts.last.0 == node && !data.dirty,
        }
    }

    /// Whom the real verdict names, by what this node knows and hears.
    fn choice(&self, world: &World, node: usize) -> Option<Candidacy> {
        let state = self.book.state(world.voters[node].applied);
        let heard = |peer: usize| {
            let report = self.report_of(world, peer);
            (NODES[peer], HeardReport { at: NOW, report })
        };
        let peers: BTreeMap<NodeId, HeardReport> =
            (0..2).filter(|peer| world.voters[*peer].up).map(heard).collect();
        // The witness has no data; what it would say of itself is not looked at.
        let own = self.report_of(world, node.min(1));
        let settled = Settled::default();
        let evidence = Evidence {
            state: &state,
            peers: &peers,
            now: NOW,
            me: NODES[node],
            majority: true,
            lease_over: world.voters[node].over == 0,
            own,
            settled: &settled,
        };
        verdict::choose(&evidence).ok()
    }

    /// The lease is over as far as this node can tell, or was given back, or nothing was opened yet.
    fn cause(&self, world: &World, node: usize) -> Option<PromoteCause> {
        let voter = &world.voters[node];
        let facts = self.facts(world, node);
        if !voter.up || voter.away || facts.epoch >= self.configuration.epochs {
            return None;
        }
        if !facts.running {
            return Some(PromoteCause::Supersede);
        }
        if facts.released {
            return Some(PromoteCause::Released);
        }
        let over = voter.over == 0 || !self.configuration.clocks_are_trusted;
        over.then_some(PromoteCause::LeaseOver)
    }

    pub(super) fn grant(&self, world: &mut World, node: usize) -> Option<()> {
        let cause = self.cause(world, node)?;
        let found = self.choice(world, node)?;
        self.grant_next(world, node, found, cause)
    }

    /// Whoever was found, on a timeline of its own.
    fn grant_next(
        &self,
        world: &mut World,
        node: usize,
        found: Candidacy,
        cause: PromoteCause,
    ) -> Option<()> {
        let timeline = self.book.state(world.voters[node].applied).timeline_high?.next();
        self.propose_grant(world, node, found.node, timeline, cause, Some(found.durable_lsn))
    }

    /// The policy that does not wait for the lease: the holder is silent for all that this node hears,
    /// which says nothing about the holder.
    pub(super) fn grant_on_seal(&self, world: &mut World, node: usize) -> Option<()> {
        let voter = &world.voters[node];
        let facts = self.facts(world, node);
        let may = voter.up && !voter.away && facts.running && facts.holder != node;
        if !may || facts.epoch >= self.configuration.epochs {
            return None;
        }
        let found = self.choice(world, node)?;
        if !self.book.state(world.voters[node].applied).promotes_on_seal(found.node) {
            return None;
        }
        self.grant_next(world, node, found, PromoteCause::Sealed)
    }

    pub(super) fn grant_back(&self, world: &mut World, node: usize) -> Option<()> {
        let cause = self.cause(world, node)?;
        let facts = self.facts(world, node);
        let back = facts.last.0;
        let wanted = match cause {
            PromoteCause::Supersede => back != facts.holder,
            PromoteCause::Released => back == facts.holder,
            PromoteCause::LeaseOver | PromoteCause::Sealed | PromoteCause::Bootstrap => false,
        };
        let resumable = world.voters[back].up && self.report_of(world, back).resumable;
        if !wanted || !resumable {
            return None;
        }
        let state = self.book.state(world.voters[node].applied);
        let timeline = state.last_granted()?.1.timeline;
        self.propose_grant(world, node, NODES[back], timeline, cause, None)
    }

    /// An operator turns the dial to the other mode, wherever the cluster stands.
    pub(super) fn turn_dial(&self, world: &mut World) -> Option<()> {
        if world.used.turns >= self.configuration.turns {
            return None;
        }
        world.used.turns += 1;
        let state = self.book.state(world.head);
        let mode = match state.config.mode {
            DurabilityMode::Zero => DurabilityMode::Bounded,
            DurabilityMode::Bounded | DurabilityMode::BestEffort => DurabilityMode::Zero,
        };
        let command = Command::SetDial {
            dial: Dial { mode, ..Dial::of(&state.config) },
            epoch: state.epoch,
            config_version: state.config_version,
            caller: String::new(),
            reason: String::new(),
            at_unix_us: 0,
        };
        self.propose(world, command)
    }

    fn propose_grant(
        &self,
        world: &mut World,
        node: usize,
        to: NodeId,
        timeline: Timeline,
        cause: PromoteCause,
        durable_lsn: Option<Lsn>,
    ) -> Option<()> {
        let state = self.book.state(world.voters[node].applied);
        debug_assert!(!matches!(state.phase, Phase::Bootstrap), "the model begins after founding");
        let next = state.epoch.next();
        let back = u64::from(durable_lsn.is_none());
        let identity = next.number * 8 + to.0 * 2 + back;
        let promotion = book::promotion_id(u8::try_from(identity).expect("few epochs"));
        let expect = state.expect();
        self.propose(
            world,
            Command::Promote {
                to,
                epoch: next,
                promotion,
                timeline,
                cause,
                expect,
                durable_lsn,
                system_id: None,
            },
        )
    }
}
