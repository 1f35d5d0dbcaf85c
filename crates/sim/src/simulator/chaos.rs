//! Faults begin and end here, and after the last of them the world has to become whole.

use std::time::Duration;

use understudy_checks::protocol;
use understudy_core::OnSoleSurvivor;
use understudy_core::state::{OperationStatus, Phase};
use understudy_types::{DurabilityMode, NodeKind};

use super::machine::Machine;
use super::plan::{Fault, MS, Planned, SEC};
use super::world::{Happening, Stage, World, note};

/// Without faults the cluster is whole again within this.
const WHOLE_WITHIN: u64 = 150 * SEC;
/// A calm cluster that loses its active site goes on within this.
const TAKEOVER_WITHIN: u64 = 15 * SEC;
/// The cluster has been whole for this long when its active site is lost.
const SETTLED: u64 = 3 * SEC;
/// A fault that finds nothing to hurt is tried again.
const ATTEMPTS_MAX: u8 = 40;

impl World {
    pub(crate) fn fire(&mut self, fault: Fault) {
        *self.fired.entry(fault).or_default() += 1;
    }

    pub(crate) fn try_fault(&mut self, index: usize, attempts: u8) {
        if self.stage != Stage::Faults {
            return;
        }
        let mut planned = self.plan.faults[index];
        if planned.at_active
            && let Some(active) = self.raft.state().active()
        {
            let other = planned.node;
            planned.node = self.index_of(active);
            planned.other = if other == planned.node { (other + 1) % 3 } else { other };
        }
        let worked = self.begin_fault(planned);
        if worked {
            note!(
                self,
                "FAULT {} at n{} for {} ms",
                planned.fault,
                planned.node + 1,
                planned.length / MS
            );
            let by_itself = matches!(
                planned.fault,
                Fault::LateCommits | Fault::DoubleCommits | Fault::TasksFail
            );
            // Those count when they hit something.
            if !by_itself {
                self.fire(planned.fault);
            }
        } else if attempts < ATTEMPTS_MAX {
            self.after(500 * MS, Happening::Fault { index, attempts: attempts + 1 });
        }
    }

    /// A data node besides the active has to have all that it had, acknowledged or about to be: its loss,
    /// and then the active's, would be two losses, which nobody promises anything about.
    fn lose_journal(&mut self, node: usize, back_after: u64) -> bool {
        let active = self.raft.state().active();
        let acked = self.acks.last().map_or(0, |ack| ack.end);
        let had = self.machines[node].durable_lsn().0;
        let others = self.machines.iter().filter(|machine| machine.kind == NodeKind::Data);
        let mut others = others.filter(|machine| Some(machine.id) != active);
        let kept =
            active.is_some() && others.any(|machine| machine.durable_lsn().0 >= had.max(acked));
        let lost = self.plan.kind(node) == NodeKind::Journal && self.runs(node) && kept;
        if lost {
            self.kill_daemon(node, back_after);
            self.empty_journal(node);
            self.machines[node].journal.had = had;
            self.machines[node].journal.lost_at = self.now;
        }
        lost
    }

    fn begin_fault(&mut self, planned: Planned) -> bool {
        let Planned { node, other, length, .. } = planned;
        let until = self.now + length;
        let data_node = if node < self.plan.data_nodes { node } else { other.min(1) };
        match planned.fault {
            Fault::DaemonCrash => {
                self.runs(node) && {
                    self.kill_daemon(node, length);
                    true
                }
            }
            Fault::MachineCrash => {
                self.machines[node].powered && {
                    self.power_off(node);
                    self.power_returns(node, length);
                    true
                }
            }
            Fault::DaemonFreeze => self.freeze(node, until, true, false),
            Fault::ServerFreeze => self.freeze(data_node, until, false, true),
            Fault::SiteFreeze => self.freeze(data_node, until, true, true),
            Fault::PostmasterKill => self.kill_postmaster(data_node),
            Fault::ServerRestart => self.restart_in_place(data_node),
            Fault::Suspend => self.suspend(node, until),
            Fault::CoreStall => {
                let runs = self.runs(node) && self.machines[node].inbox.is_empty();
                if runs {
                    self.machines[node].stalled_until = until;
                }
                runs
            }
            Fault::Cut => self.cut(&[(node, other), (other, node)], until),
            Fault::CutOneWay => self.cut(&[(node, other)], until),
            Fault::Isolate => {
                let others: Vec<(usize, usize)> =
                    (0..3).filter(|o| *o != node).flat_map(|o| [(node, o), (o, node)]).collect();
                self.cut(&others, until)
            }
            Fault::Flap => {
                let once = self.random.spread(50 * MS, 3 * SEC);
                let worked = self.cut(&[(node, other), (other, node)], self.now + once);
                if worked && length > once {
                    // The rest of the flapping is the same fault again, a little later.
                    self.plan.faults.push(Planned { length: length - once, ..planned });
                    let index = self.plan.faults.len() - 1;
                    let pause = self.random.spread(50 * MS, 2 * SEC);
                    self.after(once + pause, Happening::Fault { index, attempts: ATTEMPTS_MAX });
                }
                worked
            }
            Fault::SlowLink => {
                self.slow_until[node][other] = until;
                true
            }
            Fault::SlowDisk => {
                self.machines[node].slow_disk_until = until;
                true
            }
            Fault::JournalError => {
                let writes = self.runs(data_node) && self.machines[data_node].journal.syncing;
                if writes {
                    self.kill_daemon(data_node, length.min(10 * SEC));
                }
                writes
            }
            Fault::JournalLost => self.lose_journal(2, length.min(SEC)),
            Fault::LeaderChange => self.raft.leader.is_some_and(|leader| self.elect(Some(leader))),
            Fault::SlowCommits => {
                self.raft.slow_until = until;
                true
            }
            Fault::LateCommits => {
                self.raft.late_until = until.max(self.now + 10 * SEC);
                true
            }
            Fault::DoubleCommits => {
                self.raft.double_until = until.max(self.now + 10 * SEC);
                true
            }
            Fault::WallJump => {
                let far = i64::try_from(self.random.between(0, 7_200_000_000)).unwrap_or(0);
                self.machines[node].wall_offset_us = far - 3_600_000_000;
                true
            }
            Fault::Switchover => self.order_switchover(length),
            Fault::NodeOrder => self.order_node(length),
            Fault::Dial => self.turn_dial(),
            Fault::AcceptLoss => self.accept_loss(),
            Fault::Order => self.order(),
            Fault::Pause => self.pause(length),
            Fault::TasksFail => {
                self.machines[data_node].tasks_fail_until = until.max(self.now + 5 * SEC);
                true
            }
            Fault::SlowReplay => {
                self.machines[data_node].slow_replay_until = until;
                true
            }
        }
    }

    fn freeze(&mut self, node: usize, until: u64, daemon: bool, server: bool) -> bool {
        let fits = (!daemon || self.runs(node))
            && (!server || self.machines[node].server_running(self.now).is_some());
        if fits {
            let machine = &mut self.machines[node];
            machine.frozen_until = if daemon { until } else { machine.frozen_until };
            machine.server_frozen_until = if server { until } else { machine.server_frozen_until };
        }
        fits
    }

    fn kill_postmaster(&mut self, node: usize) -> bool {
        let found = self.machines[node].postgres.server.as_mut().filter(|server| server.postmaster);
        found.is_some_and(|server| {
            server.postmaster = false;
            true
        })
    }

    fn restart_in_place(&mut self, node: usize) -> bool {
        let machine = &mut self.machines[node];
        let Some(server) = &machine.postgres.server else { return false };
        if !server.primary || !server.postmaster {
            return false;
        }
        machine.postgres.restart_in_place();
        true
    }

    fn suspend(&mut self, node: usize, until: u64) -> bool {
        let machine = &mut self.machines[node];
        if !machine.powered || self.now < machine.suspended_until {
            return false;
        }
        machine.suspended_until = until;
        // Nothing runs there until then, so nobody sees the clock in between.
        machine.slept += until - self.now;
        true
    }

    fn cut(&mut self, links: &[(usize, usize)], until: u64) -> bool {
        let mut worked = false;
        for (from, to) in links {
            worked |= self.link_up(*from, *to);
            self.cut_until[*from][*to] = self.cut_until[*from][*to].max(until);
        }
        worked
    }

    /// Every fault is removed (a freeze ends by itself, within seconds); from here on only the liveness of
    /// the protocol counts.
    pub(crate) fn heal(&mut self) {
        note!(self, "every fault is removed");
        self.stage = Stage::Healing { since: self.now };
        self.whole_since = self.now;
        self.acked_in_stage = false;
        self.cut_until = [[0; 3]; 3];
        self.slow_until = [[0; 3]; 3];
        self.raft.slow_until = 0;
        self.raft.late_until = 0;
        self.raft.double_until = 0;
        for node in 0..3 {
            let soon = self.random.between(MS, 2000 * MS);
            let machine = &mut self.machines[node];
            machine.slow_disk_until = 0;
            machine.slow_replay_until = 0;
            machine.tasks_fail_until = 0;
            machine.wall_offset_us = 0;
            let (powered, daemon, life) = (machine.powered, machine.daemon, machine.life);
            if !powered {
                self.power_returns(node, soon);
            } else if !daemon {
                self.after(soon, Happening::DaemonStart(node, life));
            }
        }
        self.after(SEC, Happening::Watch);
    }

    /// What is missing until the cluster is whole.
    fn missing(&self) -> Option<String> {
        if (0..3).any(|node| !self.runs(node)) {
            return Some("a daemon does not run yet".to_owned());
        }
        // These two end by themselves; a loss before that would not be one in calm.
        let held_up = |m: &Machine| self.now < m.stalled_until.max(m.server_frozen_until);
        if self.machines.iter().any(|m| held_up(m) || !m.inbox.is_empty()) {
            return Some("a stall or a freeze has not ended".to_owned());
        }
        let state = self.raft.state();
        let words = |node: usize| {
            let machine = &self.machines[node];
            let standing = machine.core.standing(machine.clock(self.now));
            format!("{} ({})", standing.word, standing.trouble.unwrap_or_default())
        };
        let all = || {
            let each =
                (0..self.plan.data_nodes).map(|node| format!("n{} is {}", node + 1, words(node)));
            each.collect::<Vec<_>>().join(", ")
        };
        let Some(active) = state.active() else {
            return Some(format!("nobody is active, the phase is {:?}; {}", state.phase, all()));
        };
        let machine = &self.machines[self.index_of(active)];
        if !machine.core.standing(machine.clock(self.now)).serving {
            return Some(format!("node {active} is active and does not serve; {}", all()));
        }
        let missing = state
            .data_nodes()
            .find(|node| *node != active && !state.durability.eligible.contains(node));
        if let Some(other) = missing {
            return Some(format!("node {other} is not a passive that may be promoted; {}", all()));
        }
        let journals = state.wal_nodes().filter(|node| state.is_journal(*node));
        let mut apart = journals.filter(|node| !state.durability.waited.contains(node));
        if let Some(journal) = apart.next() {
            return Some(format!("the journal of node {journal} is not waited for; {}", all()));
        }
        if !self.acked_in_stage {
            return Some(format!("no commit is acknowledged; {}", all()));
        }
        let running = |(_, o): (&u64, &understudy_core::state::Operation)| {
            o.status == OperationStatus::Running
        };
        if state.order.is_some() || state.operations.iter().any(running) {
            return Some("an operation has not ended".to_owned());
        }
        // What waited on a slow link may still be under way: until a renewal has published that it is
        // there, `best-effort` rightly leaves the decision to a person.
        let ready = (0..3).all(|node| {
            let machine = &self.machines[node];
            machine.core.verdict(machine.clock(self.now)).would_fail_over
        });
        if !ready {
            return Some(format!(
                "a loss of the active would not be answered: {}",
                self.verdicts()
            ));
        }
        None
    }

    pub(crate) fn watch(&mut self) {
        self.after(250 * MS, Happening::Watch);
        match self.stage {
            Stage::Faults | Stage::Done => {}
            Stage::Healing { since } => match self.missing() {
                // The next renewal publishes what the passive has; before it the passive may not be
                // promoted, as far as the replicated state can tell.
                None if self.now - self.whole_since >= SETTLED => self.lose_the_active(),
                None => {}
                Some(missing) => {
                    self.whole_since = self.now;
                    self.in_time(since, WHOLE_WITHIN, &missing);
                }
            },
            Stage::Lost { since, machine } => {
                let state = self.raft.state().clone();
                let taken = state.phase == Phase::Running
                    && state.active().is_some_and(|active| self.index_of(active) != machine);
                let stalls = state.config.on_sole_survivor == OnSoleSurvivor::Stall
                    && state.config.mode != DurabilityMode::BestEffort;
                if taken && (stalls || self.acked_in_stage) {
                    self.power_on(machine);
                    self.acked_in_stage = false;
                    self.stage = Stage::Returning { since: self.now };
                } else {
                    let missing = format!("the passive has not taken over: {}", self.verdicts());
                    self.in_time(since, TAKEOVER_WITHIN, &missing);
                }
            }
            Stage::Returning { since } => match self.missing() {
                None => {
                    self.check_end();
                    self.stage = Stage::Done;
                }
                Some(missing) => self.in_time(since, WHOLE_WITHIN, &missing),
            },
        }
    }

    /// What each living node says about a failover.
    fn verdicts(&self) -> String {
        let alive = (0..3).filter(|node| self.runs(*node));
        let words = alive.map(|node| {
            let machine = &self.machines[node];
            let verdict = machine.core.verdict(machine.clock(self.now));
            format!("n{} says {}", node + 1, verdict.reason)
        });
        words.collect::<Vec<_>>().join(", ")
    }

    fn in_time(&mut self, since: u64, within: u64, missing: &str) {
        if self.now - since > within {
            let within = Duration::from_nanos(within);
            self.judge(protocol::without_faults_it_comes_to_pass(Some(missing), within));
        }
    }

    /// The calm test at the end: the active site is lost at once, and nothing else is wrong.
    fn lose_the_active(&mut self) {
        let Some(active) = self.raft.state().active() else { return };
        let machine = self.index_of(active);
        note!(self, "whole again; now n{} is lost", machine + 1);
        self.power_off(machine);
        self.acked_in_stage = false;
        self.stage = Stage::Lost { since: self.now, machine };
    }
}
