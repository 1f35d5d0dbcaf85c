//! Real replicated states and commands, each kept once and named by a number, and every application of
//! a command to a state computed once, by the real `ClusterState::apply`.
//!
//! The model's own states thus stay small and quick to compare, although the rules are the real ones.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use understudy_core::state::{Member, OperationKind, OperationStatus, Phase, PromoteCause};
use understudy_core::{
    ClusterConfig, ClusterState, Command, OnPassiveLoss, OnSoleSurvivor, Outcome,
};
use understudy_types::{
    ClusterId, DurabilityMode, Incarnation, Lineage, NodeId, NodeKind, PromotionId, SystemId,
    Timeline,
};

use super::configurations::Configuration;

/// The two data nodes and the witness, in this order.
pub(super) const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
/// PostgreSQL's, the same everywhere.
pub(super) const SYSTEM: SystemId = SystemId(42);

/// Names a replicated state.
pub(super) type StateNo = u32;
/// Names a command.
pub(super) type CommandNo = u32;
/// Names a history.
pub(super) type HistoryNo = u16;

/// What the model asks of a replicated state again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) epoch: u8,
    /// Somebody holds the lease: the cluster runs, or is being handed over.
    pub(super) running: bool,
    /// The switchover that is under way, by its operation; 0 when there is none.
    pub(super) switchover: u8,
    /// The holder is handing over.
    pub(super) handing: bool,
    /// A switchover's holder stopped cleanly and gave its lease back.
    pub(super) clean: bool,
    /// A switchover came to its end.
    pub(super) switched: bool,
    /// Index of the holder or candidate.
    pub(super) holder: usize,
    pub(super) resumes: bool,
    pub(super) process: u8,
    pub(super) seq: u8,
    pub(super) released: bool,
    /// By index of the data node.
    pub(super) waited: [bool; 2],
    pub(super) eligible: [bool; 2],
    pub(super) lifted: bool,
    pub(super) generation: u8,
    /// The mode in force is `zero`.
    pub(super) zero: bool,
    /// The mode that is wanted is.
    pub(super) wants_zero: bool,
    /// The promotion that is under way, or was reported last.
    pub(super) promotion: u8,
    pub(super) timeline: u8,
    /// Whose WAL the cluster's data is, and of which promotion.
    pub(super) last: (usize, u8),
    pub(super) history: HistoryNo,
    /// The credit that was published last; 0 when none was.
    pub(super) credit: u8,
}

#[derive(Default)]
struct Pages {
    states: Vec<Arc<ClusterState>>,
    facts: Vec<Facts>,
    state_numbers: HashMap<String, StateNo>,
    commands: Vec<Command>,
    command_numbers: HashMap<String, CommandNo>,
    histories: Vec<Vec<Lineage>>,
    applied: HashMap<(StateNo, CommandNo), (StateNo, bool)>,
}

/// Everything that was ever agreed on or proposed in a run of the model.
#[derive(Default)]
pub(super) struct Book(RefCell<Pages>);

impl Book {
    pub(super) fn state(&self, number: StateNo) -> Arc<ClusterState> {
        Arc::clone(&self.0.borrow().states[number as usize])
    }

    pub(super) fn facts(&self, number: StateNo) -> Facts {
        self.0.borrow().facts[number as usize]
    }

    pub(super) fn command(&self, number: CommandNo) -> Command {
        self.0.borrow().commands[number as usize].clone()
    }

    pub(super) fn history(&self, number: HistoryNo) -> Vec<Lineage> {
        self.0.borrow().histories[usize::from(number)].clone()
    }

    pub(super) fn states_count(&self) -> usize {
        self.0.borrow().states.len()
    }

    pub(super) fn commands_count(&self) -> usize {
        self.0.borrow().commands.len()
    }

    pub(super) fn enter_state(&self, state: ClusterState) -> StateNo {
        let key = format!("{state:?}");
        let mut pages = self.0.borrow_mut();
        if let Some(number) = pages.state_numbers.get(&key) {
            return *number;
        }
        let history = pages.enter_history(state.history());
        let number = StateNo::try_from(pages.states.len()).expect("fewer than 2^32 states");
        pages.facts.push(facts_of(&state, history));
        pages.states.push(Arc::new(state));
        pages.state_numbers.insert(key, number);
        number
    }

    pub(super) fn enter_command(&self, command: Command) -> CommandNo {
        let key = format!("{command:?}");
        let mut pages = self.0.borrow_mut();
        if let Some(number) = pages.command_numbers.get(&key) {
            return *number;
        }
        let number = CommandNo::try_from(pages.commands.len()).expect("fewer than 2^32 commands");
        pages.commands.push(command);
        pages.command_numbers.insert(key, number);
        number
    }

    pub(super) fn enter_history(&self, history: Vec<Lineage>) -> HistoryNo {
        self.0.borrow_mut().enter_history(history)
    }

    /// The state after the entry, and whether it was accepted.
    pub(super) fn apply(&self, state: StateNo, command: CommandNo) -> (StateNo, bool) {
        if let Some(known) = self.0.borrow().applied.get(&(state, command)) {
            return *known;
        }
        let mut after = (*self.state(state)).clone();
        // Its only use is to name operations.
        let index = 1 + after.operations.len() as u64;
        let outcome = after.apply(index, &self.command(command));
        let accepted = outcome.is_accepted();
        let after = if accepted { self.enter_state(after) } else { state };
        self.0.borrow_mut().applied.insert((state, command), (after, accepted));
        (after, accepted)
    }
}

impl Pages {
    fn enter_history(&mut self, history: Vec<Lineage>) -> HistoryNo {
        let found = self.histories.iter().position(|known| *known == history);
        let number = found.unwrap_or_else(|| {
            self.histories.push(history);
            self.histories.len() - 1
        });
        HistoryNo::try_from(number).expect("a few promotions make a few histories")
    }
}

/// Promotions are numbered; 0 is none.
pub(super) fn promotion_id(number: u8) -> PromotionId {
    PromotionId(uuid::Uuid::from_u128(u128::from(number)))
}

fn small(value: u64) -> u8 {
    u8::try_from(value).expect("the model's numbers are small")
}

fn promotion_number(promotion: PromotionId) -> u8 {
    u8::try_from(promotion.0.as_u128()).expect("the model numbers its promotions")
}

fn index_of(node: NodeId) -> usize {
    NODES.iter().position(|known| *known == node).expect("a node of the model")
}

fn facts_of(state: &ClusterState, history: HistoryNo) -> Facts {
    let holder = state.holder.as_ref();
    let member = |set: &std::collections::BTreeSet<NodeId>| {
        [set.contains(&NODES[0]), set.contains(&NODES[1])]
    };
    let last = state.last_granted().map(|(_, granted)| granted);
    let last_promotion = last.map_or(0, |granted| promotion_number(granted.promotion));
    let (resumes, promotion, timeline) = match &state.phase {
        Phase::Promoting(p) => {
            let resumes = p.resumes || p.cause == PromoteCause::Bootstrap;
            (resumes, promotion_number(p.promotion), p.timeline.get())
        }
        Phase::Bootstrap | Phase::Running | Phase::Handover(_) => {
            (false, last_promotion, last.map_or(0, |granted| granted.timeline.get()))
        }
    };
    Facts {
        epoch: small(state.epoch.number),
        running: state.is_held(),
        switchover: state.switchover.as_ref().map_or(0, |found| small(found.operation)),
        handing: state.handover().is_some(),
        clean: state.clean_end().is_some()
            || state.switchover.as_ref().is_some_and(|found| found.clean_end.is_some()),
        switched: state.operations.values().any(|found| {
            found.kind == OperationKind::Switchover && found.status == OperationStatus::Done
        }),
        holder: holder.map_or(0, |holder| index_of(holder.node)),
        resumes,
        process: holder.map_or(0, |holder| small(holder.process.0)),
        seq: holder.map_or(0, |holder| small(holder.seq)),
        released: holder.is_some_and(|holder| holder.released.is_some()),
        waited: member(&state.durability.waited),
        eligible: member(&state.durability.eligible),
        lifted: state.durability.lifted,
        generation: small(state.durability.generation),
        zero: state.durability.mode == DurabilityMode::Zero,
        wants_zero: state.config.mode == DurabilityMode::Zero,
        promotion,
        timeline: small(u64::from(timeline)),
        last: last.map_or((0, 0), |granted| (index_of(granted.node), last_promotion)),
        history,
        credit: holder
            .and_then(|holder| holder.published.as_ref())
            .map_or(0, |published| small(published.credit.0)),
    }
}

/// A founded cluster whose first epoch runs at the first node, made by the real commands.
pub(super) fn founded(configuration: &Configuration) -> ClusterState {
    let mut state = ClusterState::default();
    let member = |name: &str, kind, id: u128| Member {
        name: name.parse().expect("a name"),
        site: name.parse().expect("a name"),
        kind,
        address: format!("{name}:1"),
        incarnation: Incarnation(uuid::Uuid::from_u128(id)),
    };
    let config = ClusterConfig {
        mode: configuration.mode,
        promote_without_lease_wait: configuration.on_seal,
        on_passive_loss: OnPassiveLoss::Degrade,
        on_sole_survivor: OnSoleSurvivor::Open,
        ..ClusterConfig::default()
    };
    let found = Command::Found {
        cluster: ClusterId(uuid::Uuid::from_u128(9)),
        members: vec![
            (NODES[0], member("north", NodeKind::Data, 1)),
            (NODES[1], member("south", NodeKind::Data, 2)),
            (NODES[2], member("witness", NodeKind::Witness, 3)),
        ],
        config,
        initial_active: NODES[0],
    };
    accept(&mut state, &found);
    let grant = Command::Promote {
        to: NODES[0],
        epoch: state.epoch.next(),
        promotion: promotion_id(1),
        timeline: Timeline::FIRST,
        cause: PromoteCause::Bootstrap,
        expect: state.expect(),
        durable_lsn: None,
        system_id: Some(SYSTEM),
    };
    accept(&mut state, &grant);
    let report = Command::Promoted {
        epoch: state.epoch,
        node: NODES[0],
        promotion: promotion_id(1),
        timeline: Timeline::FIRST,
        fork_lsn: None,
        at_unix_us: 0,
    };
    accept(&mut state, &report);
    state
}

fn accept(state: &mut ClusterState, command: &Command) {
    let outcome = state.apply(1, command);
    assert!(matches!(outcome, Outcome::Accepted { .. }), "{command:?} came to {outcome:?}");
}
