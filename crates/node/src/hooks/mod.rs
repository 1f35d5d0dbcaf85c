//! Hooks: an operator's programs, run on events at this node.
//!
//! Nothing waits for them. Each hook has a bounded queue and a thread that runs its program for one
//! event after the other; what does not fit is left out, and that is an event. How a run ended is an
//! event and a metric, and no event of a hook starts a hook. A daemon that ends leaves a running program
//! to itself.

mod program;
#[cfg(test)]
mod tests;

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use understudy_postgres::OsUser;

use crate::config::{HookConfig, NodeConfig};
use crate::debug::redact;
use crate::events::{Event, EventJournal, Kind, Severity};
use program::{End, Program, Ran};

/// Events that wait for a hook's program.
const QUEUE_MAX: usize = 64;
/// Who a program runs as where there is no PostgreSQL, unless the configuration says otherwise.
const USER_WITHOUT_POSTGRES: &str = "nobody";

/// The queues; offered every event of the node.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    queues: Vec<Queue>,
}

#[derive(Debug)]
struct Queue {
    hook: HookConfig,
    sender: SyncSender<Event>,
    /// Events left out since the last one that fitted.
    left_out_count: u64,
}

impl Hooks {
    /// A thread for each hook of the configuration.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(crate) fn start(config: &NodeConfig, journal: &EventJournal) -> std::io::Result<Hooks> {
        for wrong in config.check_hooks() {
            tracing::warn!(%wrong, "this hook will fail");
        }
        let mut queues = Vec::new();
        for hook in &config.hooks {
            register(hook.program());
            let (sender, waiting) = sync_channel(QUEUE_MAX);
            let runner = Runner {
                program: Program {
                    command: hook.command.clone(),
                    timeout: hook.timeout,
                    user: user(config, hook),
                },
                cluster: config.cluster.to_string(),
                journal: journal.clone(),
            };
            std::thread::Builder::new()
                .name("understudy-hook".to_owned())
                .spawn(move || runner.run(&waiting))?;
            queues.push(Queue { hook: hook.clone(), sender, left_out_count: 0 });
        }
        Ok(Hooks { queues })
    }

    /// Queues the event for whoever wants it; never waits.
    pub(crate) fn offer(&mut self, event: &Event, journal: &EventJournal) {
        for queue in &mut self.queues {
            if !queue.hook.wants(event.kind, event.severity) {
                continue;
            }
            match queue.sender.try_send(event.clone()) {
                Ok(()) => queue.left_out_count = 0,
                Err(TrySendError::Full(_)) => queue.leave_out(event, journal),
                // Only a thread that has panicked is gone, and the daemon with it.
                Err(TrySendError::Disconnected(_)) => {}
            }
        }
    }
}

impl Queue {
    /// Said once for a row of events that do not fit; all of them are counted.
    fn leave_out(&mut self, event: &Event, journal: &EventJournal) {
        let program = self.hook.program();
        count(program, "dropped");
        self.left_out_count += 1;
        if self.left_out_count > 1 {
            return;
        }
        let (kind, sequence) = (event.kind.as_str(), event.sequence);
        let words = format!(
            "{program} is {QUEUE_MAX} events behind: it is not run for {kind}, event {sequence}, and \
             those that follow until it catches up"
        );
        let what = (Kind::HookOverflow, Severity::Warning);
        journal.add_now(what, program, (None, None), words);
    }
}

/// Who the program is to run as; `None`: as the daemon does.
fn user(config: &NodeConfig, hook: &HookConfig) -> Result<Option<OsUser>, String> {
    let root = rustix::process::geteuid().is_root();
    let by_default = config.postgres.as_ref().map_or(USER_WITHOUT_POSTGRES, |p| &p.os_user);
    let name = match &hook.user {
        Some(user) => user,
        None if root => by_default,
        None => return Ok(None),
    };
    let user = OsUser::lookup(name).map_err(|error| error.to_string())?;
    if user.uid == rustix::process::geteuid().as_raw() {
        return Ok(None);
    }
    if !root {
        return Err(format!("only a daemon that runs as root can run a program as {name}"));
    }
    Ok(Some(user))
}

/// The thread's side.
struct Runner {
    program: Program,
    cluster: String,
    journal: EventJournal,
}

impl Runner {
    /// Until the daemon ends.
    fn run(&self, waiting: &Receiver<Event>) {
        while let Ok(event) = waiting.recv() {
            let ran = self.call(&event);
            self.tell(&event, &ran);
        }
    }

    fn call(&self, event: &Event) -> Ran {
        // Plain data with text keys; nothing in it can fail to be written.
        let mut input = serde_json::to_vec(event).expect("plain data with text keys");
        input.push(b'\n');
        let environment = [
            ("UNDERSTUDY_CLUSTER", self.cluster.as_str()),
            ("UNDERSTUDY_NODE", &event.node),
            ("UNDERSTUDY_EVENT", event.kind.as_str()),
        ];
        self.program.run(&input, &environment)
    }

    fn tell(&self, event: &Event, ran: &Ran) {
        let program = self.program.command.first().map_or("", String::as_str);
        let (outcome, ended) = (ran.end.word(), ran.end.words());
        count(program, outcome);
        gauge!("understudy_hook_last_duration_seconds", "hook" => program.to_owned())
            .set(ran.took.as_secs_f64());
        let (kind, sequence, took) = (event.kind.as_str(), event.sequence, ran.took.as_secs_f64());
        let said = if ran.stderr.is_empty() {
            String::new()
        } else {
            format!(": {}", redact(&ran.stderr))
        };
        let words =
            format!("{program}, run for {kind}, event {sequence}, {ended} after {took:.1} s{said}");
        let what = match ran.end {
            End::Exited(0) => (Kind::HookDone, Severity::Info),
            _ => (Kind::HookFailed, Severity::Warning),
        };
        let change = (Some(kind.to_owned()), Some(outcome.to_owned()));
        self.journal.add_now(what, program, change, words);
    }
}

/// How a run can end, for the metric.
const OUTCOMES: [&str; 5] = ["done", "failed", "killed", "not-started", "dropped"];

fn count(program: &str, outcome: &'static str) {
    counter!("understudy_hook_ended_total", "hook" => program.to_owned(), "outcome" => outcome)
        .increment(1);
}

/// So that the first failure is an increase.
fn register(program: &str) {
    for outcome in OUTCOMES {
        counter!("understudy_hook_ended_total", "hook" => program.to_owned(), "outcome" => outcome)
            .increment(0);
    }
}

/// Says what the metrics mean.
pub(crate) fn describe() {
    describe_counter!(
        "understudy_hook_ended_total",
        "Runs of a hook's program by outcome, and events for which it was not run (dropped)."
    );
    describe_gauge!(
        "understudy_hook_last_duration_seconds",
        Unit::Seconds,
        "How long the last run of a hook's program took."
    );
}
