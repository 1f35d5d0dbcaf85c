//! Events, actions and their reasons as sentences, from what the core itself says: its verdict, its
//! trouble, its state. It adds no judgement of its own.

use std::collections::BTreeSet;

use understudy_core::node::{
    Action, Completion, Core, DataView, Event, LocalView, PeerReport, PostgresView, Slot,
    SourceView, Standing, Task,
};
use understudy_core::state::{HolderProof, Phase, PromoteCause, ReleaseCause};
use understudy_core::{ClusterState, Command, Outcome};
use understudy_types::{BootInstant, Lsn, NodeId};

use crate::replay::Decision;

/// What happened.
pub(crate) fn event(core: &Core, event: &Event) -> String {
    match event {
        Event::Tick => "time passes".to_owned(),
        Event::State { state, applied: None } => format!("state of epoch {}", state.epoch),
        Event::State { applied: Some((command, outcome)), .. } => {
            let what = command_words(core, command);
            match outcome {
                Outcome::Accepted { operation: None } => format!("applied: {what}"),
                Outcome::Accepted { operation: Some(id) } => {
                    format!("applied: {what} (operation {id})")
                }
                Outcome::Rejected(why) => format!("rejected: {what}: {why}"),
            }
        }
        Event::Leadership { is_leader, majority } => {
            let leads = if *is_leader { "leads the consensus" } else { "does not lead" };
            let hears = if *majority { "hears a majority" } else { "hears no majority" };
            format!("this node {leads} and {hears}")
        }
        Event::ProposalFailed(slot) => {
            format!("proposal for {} did not come through", slot_words(core, *slot))
        }
        Event::Local { view, .. } => format!("seen here: {}", local_words(view)),
        Event::Source(view) => source_words(core, view),
        Event::Peer(report) => peer_words(core, report),
        Event::PermitInForce(serial) => format!("permit {} is in force", serial.0),
        Event::TaskDone(id, Ok(completion)) => {
            format!("task {} done: {}", id.0, completion_words(completion))
        }
        Event::TaskDone(id, Err(failure)) => format!("task {} failed: {}", id.0, failure.words),
        Event::FollowEnded(end) => format!("the stream from the holder ended: {end:?}"),
    }
}

/// An action and why, judged by the core as it is now; `before` is how it stood before the event.
pub(crate) fn decision(
    core: &Core,
    at: BootInstant,
    before: &Standing,
    action: &Action,
) -> Decision {
    let routine = match action {
        Action::Propose(Slot::Renew, _) | Action::SetPermit(_) => true,
        Action::Propose(..)
        | Action::CloseGate(_)
        | Action::Follow { .. }
        | Action::Unfollow
        | Action::Run(..) => false,
    };
    Decision { what: action_words(core, action), why: why(core, at, before, action), routine }
}

fn action_words(core: &Core, action: &Action) -> String {
    match action {
        Action::Propose(_, command) => format!("propose: {}", command_words(core, command)),
        Action::SetPermit(permit) => {
            let waited: Vec<String> =
                permit.waited_for.iter().map(|node| core.state().name_of(*node)).collect();
            let waited = match waited.is_empty() {
                true => "nobody".to_owned(),
                false => waited.join(", "),
            };
            format!(
                "permit {} in {}: waits for {waited}, until {}",
                permit.serial.0, permit.mode, permit.deadline
            )
        }
        Action::CloseGate(epoch) => format!("shut the gate of epoch {epoch} for good"),
        Action::Follow { holder, admission, .. } => format!(
            "follow {} on timeline {} under epoch {}",
            core.state().name_of(*holder),
            admission.timeline,
            admission.epoch
        ),
        Action::Unfollow => "stop following".to_owned(),
        Action::Run(id, task) => format!("begin task {}: {}", id.0, task_words(core, task)),
    }
}

fn why(core: &Core, at: BootInstant, before: &Standing, action: &Action) -> String {
    let now = core.standing(at);
    let step = match before.word == now.word {
        true => format!("as {}", now.word),
        false => format!("from {} to {}", before.word, now.word),
    };
    let trouble = now.trouble.or_else(|| before.trouble.clone());
    match action {
        Action::Propose(_, Command::Promote { to, cause, .. }) => {
            format!("{}; {}", cause_words(*cause), promotion_words(core, at, *to))
        }
        Action::Propose(Slot::Renew, _) => {
            format!("{step}; {}", deadline_words(at, now.deadline))
        }
        Action::SetPermit(_) => format!("{step}; {}", deadline_words(at, now.deadline)),
        Action::Run(_, Task::ReadIndex) => {
            format!("{step}; nothing rests on an old state: a majority is asked first")
        }
        Action::Run(_, Task::Fence) if trouble.is_none() && !core.is_own_epoch() => {
            let holder = core.state().holder.as_ref().map(|holder| holder.node);
            let holder = holder.map_or("nobody".to_owned(), |node| core.state().name_of(node));
            format!("{step}; epoch {} belongs to {holder}", core.state().epoch)
        }
        Action::Propose(..)
        | Action::CloseGate(_)
        | Action::Follow { .. }
        | Action::Unfollow
        | Action::Run(..) => match trouble {
            Some(trouble) => format!("{step}; {trouble}"),
            None => step,
        },
    }
}

fn deadline_words(at: BootInstant, deadline: Option<BootInstant>) -> String {
    match deadline {
        None => "no lease yet".to_owned(),
        Some(deadline) if deadline > at => {
            format!("the lease runs for another {:.3} s", deadline.since(at).as_secs_f64())
        }
        Some(deadline) => {
            format!("the lease ran out {:.3} s ago", at.since(deadline).as_secs_f64())
        }
    }
}

/// What the leader's choice rests on.
fn promotion_words(core: &Core, at: BootInstant, to: NodeId) -> String {
    let state = core.state();
    let holder = state.holder.as_ref().map(|holder| holder.node);
    let heard = holder.map(|node| {
        let name = state.name_of(node);
        match core.peers().get(&node) {
            Some(heard) => {
                let ago = at.since(heard.at).as_secs_f64();
                format!(", {name} was heard {ago:.3} s ago")
            }
            None => format!(", {name} was never heard"),
        }
    });
    let judged = format!("verdict: {}", core.verdict(at).reason);
    let eligible = match state.durability.eligible.contains(&to) {
        true => format!(", {} is among those who may be promoted", state.name_of(to)),
        false => String::new(),
    };
    format!("{judged}{}{eligible}", heard.unwrap_or_default())
}

fn cause_words(cause: PromoteCause) -> &'static str {
    match cause {
        PromoteCause::Bootstrap => "the first grant of a founded cluster",
        PromoteCause::LeaseOver => "by this node's own clock the lease is over",
        PromoteCause::Released => "the holder has given its lease back",
        PromoteCause::Supersede => "the promotion before did not get done",
        PromoteCause::Sealed => {
            "by policy: the holder is silent, and the candidate's seal ends what it can acknowledge"
        }
    }
}

fn command_words(core: &Core, command: &Command) -> String {
    let name = |node: &NodeId| core.state().name_of(*node);
    let of = |by: &HolderProof| format!("{} for epoch {}", name(&by.node), by.epoch);
    match command {
        Command::Found { members, initial_active, .. } => {
            format!("found with {} members, {} first", members.len(), name(initial_active))
        }
        Command::Renew { by, seq, .. } => format!("renewal {seq} of {}", of(by)),
        Command::Release { by, cause: ReleaseCause::Fenced, .. } => {
            format!("release by {}: fenced", of(by))
        }
        Command::Release { by, cause: ReleaseCause::CleanEnd(end), .. } => {
            format!("release by {}: stopped cleanly at {end}", of(by))
        }
        Command::SyncAdd { node, at, .. } => format!("wait for {} from {at} on", name(node)),
        Command::SyncRemove { node, .. } => format!("wait for {} no longer", name(node)),
        Command::SetEff { mode, .. } => format!("{mode} is in force"),
        Command::SetDial { dial, caller, reason, .. } => {
            format!("dial: {dial}, ordered by {caller}: {reason}")
        }
        Command::AcceptLoss { to, limit, caller, reason, .. } => {
            format!("failover to {} accepting {limit}, ordered by {caller}: {reason}", name(to))
        }
        Command::SetMark { node, mark } => format!("mark {} {mark}", name(node)),
        Command::ClearMark { node, .. } => format!("lift the mark of {}", name(node)),
        Command::Promote { to, epoch, timeline, durable_lsn, .. } => format!(
            "promote {} to epoch {epoch} on timeline {timeline}, durable up to {}",
            name(to),
            position(*durable_lsn)
        ),
        Command::Promoted { epoch, node, timeline, fork_lsn, .. } => format!(
            "{} is promoted: epoch {epoch}, timeline {timeline}, fork at {}",
            name(node),
            position(*fork_lsn)
        ),
        Command::OrderFailover { to, caller, reason, .. } => {
            format!("failover to {}, ordered by {caller}: {reason}", name(to))
        }
        Command::OrderSwitchover { to, budget, caller, reason, .. } => {
            format!("switchover to {} within {budget:?}, ordered by {caller}: {reason}", name(to))
        }
        Command::Handover { by, operation } => {
            format!("handover by {} (operation {operation})", of(by))
        }
        Command::Undo { operation, why, .. } => format!("undo operation {operation}: {why}"),
        Command::EndOrder { operation, why, .. } => format!("end operation {operation}: {why}"),
        Command::OrderNode { node, verb, caller, reason, .. } => {
            format!("{} {}, ordered by {caller}: {reason}", verb.kind().word(), name(node))
        }
        Command::BeginNodeOrder { operation, node, .. } => {
            format!("{} begins operation {operation}", name(node))
        }
        Command::EndNodeOrder { operation, failed, words, .. } => {
            let how = if *failed { "failed" } else { "done" };
            format!("operation {operation} is {how}: {words}")
        }
        Command::ScheduleSwitchover { to, due_unix_us, caller, reason, .. } => {
            format!("switchover to {} at {due_unix_us} us, ordered by {caller}: {reason}", name(to))
        }
        Command::BeginScheduled { operation, .. } => {
            format!("the time of operation {operation} has come")
        }
        Command::CancelScheduled { caller, reason, .. } => {
            format!("what is scheduled is cancelled by {caller}: {reason}")
        }
        Command::Pause { caller, reason, .. } => format!("pause, ordered by {caller}: {reason}"),
        Command::Resume { caller: Some(caller), reason, .. } => {
            format!("resume, ordered by {caller}: {reason}")
        }
        Command::Resume { caller: None, reason, .. } => format!("resume: {reason}"),
        Command::AdmitMember { node, member } => {
            format!("admit {} as node {node}, without a vote yet", member.name)
        }
        Command::SetVoters { voters } => {
            let names: Vec<_> = voters.iter().map(name).collect();
            format!("votes: {}", names.join(", "))
        }
    }
}

fn task_words(core: &Core, task: &Task) -> String {
    let name = |node: &NodeId| core.state().name_of(*node);
    match task {
        Task::ReadIndex => "ask a majority for the newest state".to_owned(),
        Task::PrepareData => "prepare the data directory".to_owned(),
        Task::Fence => "end every process of the server and prove it".to_owned(),
        Task::Hold(grant) => format!("run the server as the primary of epoch {}", grant.epoch),
        Task::LetClientsIn { epoch } => format!("let clients in under epoch {epoch}"),
        Task::Drain => "shut the gate and wait until what it released is durable".to_owned(),
        Task::PrepareSwitchover => "write a checkpoint before a switchover".to_owned(),
        Task::ShutClientsOut { grace } => format!("end client sessions, grace {grace:?}"),
        Task::StopCleanly { to, within } => {
            format!("stop the server cleanly for {} within {within:?}", name(to))
        }
        Task::Seal(epoch) => format!("seal the journal at epoch {epoch}"),
        Task::CollectSeals { epoch, members, needed } => {
            let names: Vec<String> = members.iter().map(|(node, _)| name(node)).collect();
            format!(
                "have {needed} of {} seal at epoch {epoch}, and fetch what is missing",
                names.join(", ")
            )
        }
        Task::PromoteLocally { grant, target_lsn, .. } => {
            format!("promote the local server to timeline {} at {target_lsn}", grant.timeline)
        }
        Task::Survey => "survey the data directory".to_owned(),
        Task::Join { rung, holder, .. } => format!("join {} by {}", name(holder), rung.word()),
        Task::BeginJournalAnew(epoch) => format!("set the journal aside for epoch {epoch}"),
        Task::StopForRestart { within } => {
            format!("stop the server for its restart within {within:?}, the gate open")
        }
        Task::RestartStandby { within } => {
            format!("restart the standby, its stop within {within:?}")
        }
        Task::Reload => "read the settings anew".to_owned(),
    }
}

fn completion_words(completion: &Completion) -> String {
    match completion {
        Completion::ReadDone => "the state here is as new as the majority's".to_owned(),
        Completion::DataReady => "the data directory is ready".to_owned(),
        Completion::Fenced => "no process of the server is left".to_owned(),
        Completion::Held { end_lsn } => format!("the primary runs, its WAL ends at {end_lsn}"),
        Completion::ClientsLetIn => "clients are let in".to_owned(),
        Completion::Sealed(None) => "sealed, the journal is empty".to_owned(),
        Completion::Sealed(Some(end)) => format!("sealed at {}", end.durable_lsn),
        Completion::PromotedLocally { timeline, fork_lsn } => {
            format!("the local server is promoted: timeline {timeline}, fork at {fork_lsn}")
        }
        Completion::Surveyed(survey) => format!("surveyed: {survey:?}"),
        Completion::Joined => "joined, the standby runs".to_owned(),
        Completion::Drained => "what was released is durable at the passive".to_owned(),
        Completion::SwitchoverPrepared => "a checkpoint is written".to_owned(),
        Completion::ClientsShutOut => "no client session is left".to_owned(),
        Completion::StoppedCleanly { end_lsn } => format!("stopped cleanly at {end_lsn}"),
        Completion::JournalEmptied => "the journal is set aside".to_owned(),
        Completion::StandbyRestarted => "the standby runs again".to_owned(),
        Completion::Reloaded { words } => format!("settings read anew: {words}"),
    }
}

fn slot_words(core: &Core, slot: Slot) -> String {
    match slot {
        Slot::Renew => "a renewal".to_owned(),
        Slot::Release => "the release".to_owned(),
        Slot::SyncAdd(node) => format!("waiting for {}", core.state().name_of(node)),
        Slot::SyncRemove(node) => format!("not waiting for {}", core.state().name_of(node)),
        Slot::SetEff => "the mode".to_owned(),
        Slot::Promote => "a grant".to_owned(),
        Slot::Promoted => "the report of a promotion".to_owned(),
        Slot::Switchover => "a handover".to_owned(),
        Slot::Housekeeping => "the end of an order".to_owned(),
        Slot::Mark => "a mark".to_owned(),
        Slot::NodeOrder => "an order to this node".to_owned(),
    }
}

fn local_words(view: &LocalView) -> String {
    let data = match &view.data {
        DataView::Unknown => "data not looked at".to_owned(),
        DataView::Empty => "no data".to_owned(),
        DataView::Cluster { timeline, .. } => format!("data of timeline {timeline}"),
        DataView::Unusable(why) => format!("unusable data ({why})"),
    };
    let server = match &view.postgres {
        PostgresView::Unknown => "server not looked at".to_owned(),
        PostgresView::Stopped => "server stopped".to_owned(),
        PostgresView::Running(facts) => {
            let role = match facts.in_recovery {
                Some(true) => "standby",
                Some(false) => "primary",
                None => "server of unknown role",
            };
            let at = position(facts.flush_lsn.or(facts.replay_lsn));
            let mut words = format!("{role} at {at}");
            for (span, what) in
                [(facts.silent_for, "silent"), (facts.door_silent_for, "letting nobody in")]
            {
                if !span.is_zero() {
                    words.push_str(&format!(", {what} for {:.1} s", span.as_secs_f64()));
                }
            }
            words
        }
    };
    let journal = view.journal.map_or("no journal".to_owned(), |journal| {
        format!("journal up to {} on timeline {}", journal.durable_lsn, journal.timeline)
    });
    format!("{data}, {server}, {journal}")
}

fn source_words(core: &Core, view: &SourceView) -> String {
    let Some(source) = view else { return "no WAL is sent from here".to_owned() };
    let receivers: Vec<String> = source
        .receivers
        .iter()
        .map(|receiver| {
            let attached = if receiver.attached { "" } else { " (not attached)" };
            let name = core.state().name_of(receiver.node);
            format!(", {name} has {}{attached}", receiver.durable_lsn)
        })
        .collect();
    let (flushed, released) = (source.flush_lsn, source.released_lsn);
    format!("WAL flushed to {flushed}, released to {released}{}", receivers.concat())
}

fn peer_words(core: &Core, report: &PeerReport) -> String {
    let name = core.state().name_of(report.node);
    let can = match (report.promotable, report.resumable) {
        (true, _) => "promotable",
        (false, true) => "could go on as holder",
        (false, false) => "not promotable",
    };
    format!(
        "{name} reports epoch {}, durable to {}, {can}",
        report.epoch,
        position(report.durable_lsn)
    )
}

/// What the replicated state says, in a few lines.
pub(crate) fn cluster(state: &ClusterState) -> Vec<String> {
    let phase = match &state.phase {
        Phase::Bootstrap => "not begun".to_owned(),
        Phase::Promoting(promoting) => {
            format!("{} is being promoted", state.name_of(promoting.to))
        }
        Phase::Running => "running".to_owned(),
        Phase::Handover(handover) => format!("handing over to {}", state.name_of(handover.to)),
    };
    let holder = state.holder.as_ref().map_or("nobody".to_owned(), |holder| {
        let released = if holder.released.is_some() { ", released" } else { "" };
        format!("{} (renewal {}{released})", state.name_of(holder.node), holder.seq)
    });
    let names = |nodes: &BTreeSet<NodeId>| {
        let names: Vec<String> = nodes.iter().map(|node| state.name_of(*node)).collect();
        if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
    };
    let durability = &state.durability;
    let mut lines = vec![
        format!("epoch    {}, {phase}, held by {holder}", state.epoch),
        format!(
            "dial     {} in force (generation {}), waits for {}; may be promoted: {}",
            durability.mode,
            durability.generation,
            names(&durability.waited),
            names(&durability.eligible)
        ),
    ];
    lines.extend(
        state.marks.iter().map(|(node, mark)| format!("mark     {} {mark}", state.name_of(*node))),
    );
    lines
}

fn position(lsn: Option<Lsn>) -> String {
    lsn.map_or("an unknown position".to_owned(), |lsn| lsn.to_string())
}
