//! The steps of a candidate and of a passive, transcribed from `understudy_core::node` (`candidate.rs`,
//! `passive.rs`) around the real plan of a rejoin.

use understudy_core::Command;
use understudy_core::rejoin::{self, Plan, Rung, Survey};
use understudy_types::{Lineage, SeededBug, Timeline};

use super::book::{self, NODES};
use super::holder::Role;
use super::protocol::{Protocol, epoch, lsn};
use super::world::{Server, Step, World};

impl Protocol {
    fn is_candidate(&self, world: &World, node: usize) -> bool {
        let role = self.facts(world, node).role_of(node);
        world.voters[node].up && matches!(role, Role::Candidate { .. })
    }

    fn is_passive(&self, world: &World, node: usize) -> bool {
        world.voters[node].up && self.facts(world, node).role_of(node) == Role::Passive
    }

    /// Makes the epoch durable, refuses older frames from now on, and only then reads the end.
    pub(super) fn seal(&self, world: &mut World, node: usize) -> Option<()> {
        let facts = self.facts(world, node);
        let confirmed = Protocol::is_confirmed(world, node);
        if !self.is_candidate(world, node) {
            return None;
        }
        let data = &mut world.data[node];
        match data.step {
            // A linearizable read comes first.
            Step::Confirming if confirmed && facts.resumes => data.step = Step::Resuming,
            Step::Confirming if confirmed && self.already_promoted(data, &facts) => {
                data.step = Step::Reporting;
            }
            Step::Confirming if confirmed && !SeededBug::SealAfterReading.is_on() => {
                data.fork = data.wal.end();
                data.step = Step::Sealed;
            }
            Step::EndRead => data.step = Step::Sealed,
            Step::Assessing
            | Step::Joining
            | Step::Following
            | Step::Confirming
            | Step::Resuming
            | Step::Sealed
            | Step::Reporting
            | Step::Acquiring
            | Step::Serving
            | Step::HandingOver
            | Step::GivingUp
            | Step::Releasing => return None,
        }
        if data.step == Step::Sealed {
            data.sealed = facts.epoch;
            data.following = 0;
        }
        Some(())
    }

    fn already_promoted(&self, data: &super::world::Data, facts: &book::Facts) -> bool {
        data.server == Server::Primary && data.promotion == facts.promotion
    }

    /// The mistake: an older epoch's frame may still come in after this.
    pub(super) fn read_end(&self, world: &mut World, node: usize) -> Option<()> {
        let facts = self.facts(world, node);
        let possible = SeededBug::SealAfterReading.is_on()
            && self.is_candidate(world, node)
            && Protocol::is_confirmed(world, node)
            && world.data[node].step == Step::Confirming
            && !facts.resumes
            && !self.already_promoted(&world.data[node], &facts);
        if !possible {
            return None;
        }
        let data = &mut world.data[node];
        data.fork = data.wal.end();
        data.step = Step::EndRead;
        Some(())
    }

    /// After another linearizable read: the granted timeline leaves the old one at the sealed end.
    pub(super) fn promote_server(&self, world: &mut World, node: usize) -> Option<()> {
        let facts = self.facts(world, node);
        let possible = self.is_candidate(world, node)
            && Protocol::is_confirmed(world, node)
            && world.data[node].step == Step::Sealed
            && !world.data[node].dirty;
        if !possible {
            return None;
        }
        let mut recorded = self.book.history(facts.history);
        let data = &mut world.data[node];
        recorded.push(Lineage {
            epoch: epoch(facts.epoch),
            promotion: book::promotion_id(facts.promotion),
            timeline: timeline(facts.timeline),
            fork_lsn: Some(lsn(data.fork)),
        });
        data.wal.cut(data.fork);
        data.timeline = facts.timeline;
        data.promotion = facts.promotion;
        data.recorded = self.book.enter_history(recorded);
        data.drop_source();
        data.server = Server::Primary;
        data.held = facts.epoch;
        data.step = Step::Reporting;
        Some(())
    }

    pub(super) fn report(&self, world: &mut World, node: usize) -> Option<()> {
        let facts = self.facts(world, node);
        let data = &world.data[node];
        let possible = self.is_candidate(world, node) && !world.voters[node].away;
        if !possible || data.step != Step::Reporting {
            return None;
        }
        let fork_lsn = (!facts.resumes).then(|| lsn(data.fork));
        self.propose(
            world,
            Command::Promoted {
                epoch: epoch(facts.epoch),
                node: NODES[node],
                promotion: book::promotion_id(facts.promotion),
                timeline: timeline(facts.timeline),
                fork_lsn,
                at_unix_us: 0,
            },
        )
    }

    /// A majority confirms the own state before anything is judged by it.
    fn confirm(&self, world: &mut World, node: usize) -> bool {
        let confirmed = world.data[node].confirmed || Protocol::is_confirmed(world, node);
        world.data[node].confirmed = confirmed;
        confirmed
    }

    pub(super) fn fence_passive(&self, world: &mut World, node: usize) -> Option<()> {
        let runs = world.data[node].server == Server::Primary;
        if !self.is_passive(world, node) || !runs || !self.confirm(world, node) {
            return None;
        }
        let data = &mut world.data[node];
        data.fence();
        data.step = Step::Assessing;
        Some(())
    }

    pub(super) fn join(&self, world: &mut World, node: usize) -> Option<()> {
        let facts = self.facts(world, node);
        let data = world.data[node];
        let current = data.promotion == facts.last.1;
        let assesses = matches!(data.step, Step::Assessing | Step::Joining)
            || (data.step == Step::Following && !current);
        let idle = data.step != Step::Joining || data.server == Server::Down;
        if !self.is_passive(world, node) || !assesses || !idle || data.server == Server::Primary {
            return None;
        }
        if !facts.running || !self.confirm(world, node) {
            return None;
        }
        if data.step == Step::Assessing && data.server == Server::Standby && current && !data.dirty
        {
            world.data[node].step = Step::Following;
            return Some(());
        }
        let other = 1 - node;
        let source = &world.data[other];
        let there = world.voters[other].up
            && source.server == Server::Primary
            && self.facts(world, other).epoch == facts.epoch
            && source.step == Step::Serving;
        if !there {
            return None;
        }
        let rung = self.rung(world, node)?;
        let data = &mut world.data[node];
        data.following = 0;
        data.fork = 0;
        match rung {
            Rung::Follow => self.follow(world, node),
            Rung::Rewind | Rung::Clone => {
                if data.step == Step::Joining && data.dirty {
                    return None;
                }
                data.dirty = true;
                data.server = Server::Down;
                data.step = Step::Joining;
            }
        }
        Some(())
    }

    /// By the real plan.
    fn rung(&self, world: &World, node: usize) -> Option<Rung> {
        let facts = self.facts(world, node);
        let data = &world.data[node];
        let history = self.book.history(facts.history);
        let survey = if data.dirty {
            Survey::Dirty
        } else {
            let mut end = data.wal.end();
            if SeededBug::FollowByCheckpoint.is_on() {
                // The last checkpoint is judged, not the end: here, what founding made.
                end = 1;
            }
            Survey::Cluster {
                system_id: book::SYSTEM,
                timeline: timeline(data.timeline),
                end_lsn: lsn(end),
                recorded: self.book.history(data.recorded),
                foreign: false,
            }
        };
        match rejoin::plan(&survey, book::SYSTEM, &history, Rung::Follow) {
            Plan::Join { rung, .. } => Some(rung),
            Plan::Refuse(_) => None,
        }
    }

    fn follow(&self, world: &mut World, node: usize) {
        let facts = self.facts(world, node);
        let data = &mut world.data[node];
        data.server = Server::Standby;
        data.step = Step::Following;
        data.timeline = facts.timeline;
        data.promotion = facts.last.1;
        data.recorded = facts.history;
    }

    pub(super) fn finish_join(&self, world: &mut World, node: usize) -> Option<()> {
        let facts = self.facts(world, node);
        let other = 1 - node;
        let source = &world.data[other];
        let possible = self.is_passive(world, node)
            && world.data[node].step == Step::Joining
            && facts.running
            && world.voters[other].up
            && source.server == Server::Primary
            && source.promotion == facts.last.1
            && source.held == facts.epoch;
        if !possible {
            return None;
        }
        let wal = source.wal;
        let data = &mut world.data[node];
        data.wal = wal;
        data.dirty = false;
        self.follow(world, node);
        Some(())
    }

    /// The holder no longer has what this node needs next: its data directory is made anew.
    pub(super) fn wal_gone(&self, world: &mut World, node: usize) -> Option<()> {
        let data = &world.data[node];
        let possible = self.is_passive(world, node)
            && data.step == Step::Following
            && world.used.reclones < self.configuration.reclones;
        if !possible {
            return None;
        }
        world.used.reclones += 1;
        let data = &mut world.data[node];
        data.following = 0;
        data.dirty = true;
        data.server = Server::Down;
        data.step = Step::Joining;
        Some(())
    }
}

fn timeline(number: u8) -> Timeline {
    Timeline::new(u32::from(number)).expect("timelines begin at one")
}
