//! What operators order one node to do with its PostgreSQL, and the leader's part of it.
//!
//! The node says in the log that it begins, and only what was accepted there is carried out, once: another
//! process of the same node ends the order instead. At the active a restart is a checkpoint while clients
//! are served, a fast stop with the gate open and the lease renewed, and then the way that any start of a
//! holder takes; the epoch stays. At a passive its journal goes on receiving and acknowledging. A copy made
//! afresh is the ladder's highest rung, and takes the ladder's own way. Whatever comes between ends the
//! order with its reason. No clock but the one that is handed in.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::{BootInstant, NodeId};

use super::{Completion, Core, Role, Slot, Task, TaskFailure, TaskId};
use crate::state::{Command, NodeOrder, NodeVerb, Rejection, SCHEDULE_TOLERANCE};

/// How long the fast stop for a restart may take; after that the server is ended the hard way.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// A node that is not heard for this long does not carry anything out that could be waited for.
const NODE_SILENT: Duration = Duration::from_secs(15);
/// A node that can be heard and does not begin is not in a state to.
const BEGIN_PATIENCE: Duration = Duration::from_secs(30);
/// Longer than any restart whose server comes up takes. A copy is waited for as long as its node lives.
const WORK_PATIENCE: Duration = Duration::from_secs(900);

/// How far this node is with what it was ordered.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Part {
    /// The settings are being read.
    Reloading(TaskId),
    /// As the holder, serving: a checkpoint is being written, so that the stop is short.
    Checkpointing(TaskId),
    /// It is written.
    Checkpointed,
    /// As the holder: the server is being stopped.
    Stopping(TaskId),
    /// As the holder: it takes the way of every start.
    Starting,
    /// As a passive: the standby is being stopped and started.
    RestartingStandby(TaskId),
    /// The ladder is being climbed at its highest rung.
    Recloning,
    /// It is over; that is being recorded.
    Ended {
        /// It was not done.
        failed: bool,
        /// Why not, or what came of it.
        words: String,
    },
}

/// A node's memory of the order that it carries out; gone with its process, which ends the order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Doing {
    operation: u64,
    part: Part,
}

impl Part {
    fn done(words: &str) -> Part {
        Part::Ended { failed: false, words: words.to_owned() }
    }

    fn failed(words: impl Into<String>) -> Part {
        Part::Ended { failed: true, words: words.into() }
    }

    /// The task whose result it waits for.
    fn task(&self) -> Option<TaskId> {
        match self {
            Part::Reloading(id)
            | Part::Checkpointing(id)
            | Part::Stopping(id)
            | Part::RestartingStandby(id) => Some(*id),
            Part::Checkpointed | Part::Starting | Part::Recloning | Part::Ended { .. } => None,
        }
    }
}

impl Core {
    /// Decides what comes next for an order to this node.
    pub(super) fn advance_orders(&mut self, now: BootInstant) {
        let Some(order) = self.state.node_orders.get(&self.me).copied() else {
            self.doing = None;
            return;
        };
        match order.begun {
            None => self.begin_order(now, &order),
            Some(process) if process != self.process => {
                let words = "the daemon was started anew in the middle of it, and does not repeat it; \
                             `understudy status` shows what came of it";
                self.propose_end(now, order.operation, true, words.to_owned());
            }
            Some(_) => {
                let doing = self.doing.take().filter(|doing| doing.operation == order.operation);
                let part = match doing {
                    None => self.first_part(order.verb),
                    Some(doing) => self.next_part(doing.part),
                };
                if let Part::Ended { failed, words } = &part {
                    self.propose_end(now, order.operation, *failed, words.clone());
                }
                self.doing = Some(Doing { operation: order.operation, part });
            }
        }
    }

    fn begin_order(&mut self, now: BootInstant, order: &NodeOrder) {
        match self.state.check_begin(self.me, order) {
            Ok(()) => {}
            // That passes; the leader ends the order if it lasts.
            Err(Rejection::Busy(_) | Rejection::Phase) => return,
            Err(why) => {
                let words = match why {
                    Rejection::Epoch { .. } => {
                        "the active changed before it began; order it again if it is still wanted"
                            .to_owned()
                    }
                    why => format!("not begun: {why}"),
                };
                self.propose_end(now, order.operation, true, words);
                return;
            }
        }
        let can = match &self.role {
            Role::Holder(_) => self.lease_runs(now) && self.is_at_rest(),
            Role::Passive(_) => {
                let ready = order.verb == NodeVerb::Reclone || self.is_at_rest();
                self.confirmed && self.active_is_there(now) && ready
            }
            Role::Idle | Role::Candidate(_) | Role::Journal(_) => false,
        };
        if can {
            let (operation, node, process) = (order.operation, self.me, self.process);
            let command = Command::BeginNodeOrder { operation, node, process };
            self.propose(now, Slot::NodeOrder, command);
        }
    }

    /// Nothing says that this node may be needed in the active's place at any moment.
    fn active_is_there(&self, now: BootInstant) -> bool {
        let released = self.state.holder.as_ref().is_none_or(|holder| holder.released.is_some());
        !released && !self.challenger.is_over(now)
    }

    /// Its server runs as it should, and nothing is being done.
    fn is_at_rest(&self) -> bool {
        let settled = match &self.role {
            Role::Holder(stage) => stage.is_open() && stage.switching.is_none(),
            Role::Passive(stage) => stage.is_following(),
            Role::Idle | Role::Candidate(_) | Role::Journal(_) => false,
        };
        settled && self.running.is_none() && self.postgres_facts().is_some()
    }

    fn first_part(&mut self, verb: NodeVerb) -> Part {
        if verb == NodeVerb::Reclone {
            return match &self.role {
                Role::Passive(_) => {
                    self.reclone();
                    Part::Recloning
                }
                Role::Idle | Role::Holder(_) | Role::Candidate(_) | Role::Journal(_) => {
                    Part::failed("the node is no passive any more")
                }
            };
        }
        if !self.is_at_rest() {
            return Part::failed("something came between; nothing was done");
        }
        match (verb, &self.role) {
            (NodeVerb::Reload, _) => {
                self.run(Task::Reload);
                Part::Reloading(self.task_counter)
            }
            (_, Role::Holder(_)) => {
                self.run(Task::PrepareSwitchover);
                Part::Checkpointing(self.task_counter)
            }
            (_, _) => {
                self.run(Task::RestartStandby { within: STOP_PATIENCE });
                Part::RestartingStandby(self.task_counter)
            }
        }
    }

    fn next_part(&mut self, part: Part) -> Part {
        let running = self.running.as_ref().map(|running| running.id);
        let dropped = part.task().is_some_and(|id| running != Some(id));
        match part {
            // The server is stopped all the same, by whatever came between.
            Part::Stopping(_) if dropped => Part::Starting,
            _ if dropped => {
                let trouble = self.trouble.clone().unwrap_or_else(|| "its role changed".to_owned());
                Part::failed(format!("broken off: {trouble}"))
            }
            Part::Checkpointed if self.is_at_rest() => {
                self.stage().stop_for_restart();
                self.run(Task::StopForRestart { within: STOP_PATIENCE });
                Part::Stopping(self.task_counter)
            }
            Part::Checkpointed => Part::failed("something came between; nothing was stopped"),
            Part::Starting => match &self.role {
                Role::Holder(stage) if stage.is_open() => {
                    Part::done("PostgreSQL was restarted under the same lease")
                }
                Role::Holder(stage) if stage.gives_up() => {
                    let trouble = self.trouble.clone().unwrap_or_default();
                    Part::failed(format!("the node gave its role up instead: {trouble}"))
                }
                Role::Holder(_) => Part::Starting,
                Role::Idle | Role::Candidate(_) | Role::Passive(_) | Role::Journal(_) => {
                    Part::failed("the node lost the active's role in the middle of it")
                }
            },
            Part::Recloning => match &self.role {
                Role::Passive(stage) if stage.has_refused() => {
                    Part::failed(self.trouble.clone().unwrap_or_default())
                }
                Role::Passive(_) => Part::Recloning,
                Role::Idle | Role::Holder(_) | Role::Candidate(_) | Role::Journal(_) => {
                    Part::failed("the node's role changed in the middle of it")
                }
            },
            Part::Reloading(_)
            | Part::Checkpointing(_)
            | Part::Stopping(_)
            | Part::RestartingStandby(_)
            | Part::Ended { .. } => part,
        }
    }

    /// A task has ended: what that means for the order that it may belong to.
    pub(super) fn note_order_task(&mut self, id: TaskId, result: &Result<Completion, TaskFailure>) {
        let Some(doing) = &mut self.doing else { return };
        let mine = doing.part.task() == Some(id);
        let failed = |what: &str, failure: &TaskFailure| {
            Some(Part::failed(format!("{what}{}", failure.words)))
        };
        let next = match (&doing.part, result) {
            (Part::Recloning, Ok(Completion::Joined)) => {
                Some(Part::done("its data was made afresh from the active"))
            }
            _ if !mine => None,
            (Part::Reloading(_), Ok(Completion::Reloaded { words })) => Some(Part::done(words)),
            (Part::Reloading(_), Err(failure)) => failed("", failure),
            (Part::Checkpointing(_), Ok(_)) => Some(Part::Checkpointed),
            (Part::Checkpointing(_), Err(failure)) => {
                failed("nothing was stopped, because no checkpoint could be written: ", failure)
            }
            (Part::Stopping(_), _) => Some(Part::Starting),
            (Part::RestartingStandby(_), Ok(_)) => {
                Some(Part::done("the standby was restarted; its journal received all along"))
            }
            (Part::RestartingStandby(_), Err(failure)) => failed("", failure),
            (_, _) => None,
        };
        if let Some(part) = next {
            doing.part = part;
        }
    }

    fn propose_end(&mut self, now: BootInstant, operation: u64, failed: bool, words: String) {
        let at_unix_us = self.wall_unix_us;
        let command = Command::EndNodeOrder { operation, failed, words, at_unix_us };
        self.propose(now, Slot::NodeOrder, command);
    }

    /// The leader's part: an order ends also when its node never speaks again.
    pub(super) fn end_stale_orders(&mut self, now: BootInstant) {
        for (node, order) in &self.state.node_orders {
            let Some(why) = self.stale_order(now, *node, order) else { continue };
            let (operation, at_unix_us) = (order.operation, self.wall_unix_us);
            let command = Command::EndNodeOrder { operation, failed: true, words: why, at_unix_us };
            self.propose(now, Slot::Housekeeping, command);
            return;
        }
    }

    fn stale_order(&self, now: BootInstant, node: NodeId, order: &NodeOrder) -> Option<String> {
        let known = self.leader.order_known_for(now, order)?;
        let name = self.state.name_of(node);
        let heard = self.peers.get(&node).map(|heard| now.since(heard.at));
        if node != self.me && heard.unwrap_or(known) >= NODE_SILENT && known >= NODE_SILENT {
            let done = match order.begun {
                Some(_) => "it had begun, and how far it came is not known",
                None => "it had not begun, and will not",
            };
            return Some(format!("{name} is not heard: {done}"));
        }
        match (order.begun, order.verb) {
            (None, _) if known >= BEGIN_PATIENCE => Some(format!(
                "{name} did not begin it within {BEGIN_PATIENCE:?}: its PostgreSQL does not run, or it \
                 is busy; `understudy status` says what it does"
            )),
            (Some(_), NodeVerb::Restart | NodeVerb::Reload) if known >= WORK_PATIENCE => {
                Some(format!("it did not come to an end within {WORK_PATIENCE:?}"))
            }
            (None | Some(_), _) => None,
        }
    }

    /// The leader's part: what is scheduled begins at its time by the leader's clock on the wall, or is
    /// recorded as missed.
    pub(super) fn begin_what_is_due(&mut self, now: BootInstant) {
        let Some(scheduled) = self.state.scheduled else { return };
        let at_unix_us = self.wall_unix_us;
        if at_unix_us < scheduled.due_unix_us {
            return;
        }
        let late_us = at_unix_us.saturating_sub(scheduled.due_unix_us).unsigned_abs();
        let late = Duration::from_micros(late_us);
        let operation = scheduled.operation;
        let command = if late <= SCHEDULE_TOLERANCE {
            Command::BeginScheduled { operation, at_unix_us }
        } else {
            let why = format!(
                "missed: nobody could begin it at its time, and {} s later it is not begun any more",
                late.as_secs()
            );
            Command::EndOrder { operation, why, at_unix_us }
        };
        self.propose(now, Slot::Housekeeping, command);
    }
}
