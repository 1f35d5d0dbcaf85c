//! When a majority will not come back: a sole survivor made a new incarnation of the cluster, and the
//! way back into it for the others (docs/decisions/0017-sole-survivor.md).
//!
//! Both are done with the daemon stopped, by a person at the node. `statement` judges and says what it
//! would cost, `ask` hears who else answers, `supersede` ends a daemon of an incarnation that is over.
//! Nothing here runs by itself, and nothing is changed before everything was looked at and accepted.

mod ask;
mod newest;
mod rejoin;
mod service;
mod statement;
mod supersede;

use std::time::Duration;

use understudy_consensus::offline::{Offline, OfflineError};
pub use understudy_core::state::LossLimit;
use understudy_core::state::{CannotRecover, Member, RecoveryOrder};
use understudy_postgres::DataDirectory;
use understudy_types::{ClusterIncarnation, Incarnation, NodeId, PromotionId};
use uuid::Uuid;

use crate::clock::wall_unix_us;
use crate::config::NodeConfig;
use crate::daemon::{Damaged, RunError, load_identity, prepare_postgres};

pub use ask::{Answer, Described};
pub use rejoin::{RejoinPlan, rejoin};
pub use statement::{Copy, Facts, MemberLine, Refusal, Statement};

pub(crate) use ask::{ask, describe};
pub(crate) use service::{OPEN_PATHS, RecoveryService};
pub(crate) use supersede::{Superseded, at_start};

/// How long each other member has for an answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// It would not be safe, or there is nothing to recover.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The storage of consensus.
    #[error("use the node's storage")]
    Storage(#[from] OfflineError),
    /// A number or a state that cannot go on.
    #[error(transparent)]
    State(#[from] CannotRecover),
    /// The node's own parts, as its daemon would use them.
    #[error("look at the node")]
    Node(#[from] RunError),
}

/// Everything that was looked at, and what it comes to. While it lives the daemon cannot start.
pub struct Examined {
    config: NodeConfig,
    offline: Offline,
    facts: Facts,
    statement: Statement,
}

/// What the operator says.
#[derive(Clone, Debug)]
pub struct Order {
    /// How much may be lost.
    pub accepts: LossLimit,
    /// Who, as this machine knows them.
    pub caller: String,
    /// Why.
    pub reason: String,
}

/// Renumbers the configuration's members for an incarnation.
pub(crate) fn number_members(
    config: &mut NodeConfig,
    incarnation: ClusterIncarnation,
) -> Result<(), CannotRecover> {
    for member in &mut config.members {
        let number = incarnation.number_of(member.id);
        member.id = number.ok_or(CannotRecover::Number(member.id))?;
    }
    config.id = config.me().id;
    Ok(())
}

/// Looks at everything and changes nothing. `progress` hears what is being waited for.
///
/// # Errors
/// When it must not be done, each with its remedy, or something cannot be read.
pub async fn examine(
    mut config: NodeConfig,
    progress: &mut dyn FnMut(&str),
) -> Result<Examined, RecoverError> {
    let identity = load_identity(&config)?;
    let offline = Offline::open(&config.data_dir.join("raft"))?.ok_or(Refusal::NoStorage)?;
    let from = offline.identity.cluster_incarnation;
    number_members(&mut config, from)?;
    let copy = look_at_copy(&config).await?;
    let identity = identity.of_incarnation(from);
    let answers = ask(&config, &identity, ANSWER_PATIENCE, progress).await;
    let facts = Facts {
        me: config.id,
        kind: config.kind,
        incarnation: from,
        state: offline.state.clone(),
        empty: offline.empty,
        older_copy: offline.older_copy.clone(),
        voters: offline.voters.clone(),
        copy,
        answers,
    };
    let statement = statement::judge(&config, &facts)?;
    Ok(Examined { config, offline, facts, statement })
}

async fn look_at_copy(config: &NodeConfig) -> Result<Copy, RecoverError> {
    let Some(postgres) = &config.postgres else { return Ok(Copy::default()) };
    let (server, journal) = prepare_postgres(config, postgres, Damaged::Refused).await?;
    let inspected = server.inspect().await.map_err(|source| RunError::Part {
        what: "look at the data directory",
        source: source.into(),
    })?;
    let (system_id, problem) = match inspected {
        DataDirectory::Cluster(control) => (Some(control.system_id), None),
        other @ (DataDirectory::Missing
        | DataDirectory::Empty
        | DataDirectory::Dirty { .. }
        | DataDirectory::NotACluster { .. }
        | DataDirectory::WrongVersion { .. }) => (None, Some(statement::words_of(&other))),
    };
    let positions = journal.positions().borrow().clone();
    let read = journal.clone();
    let newest = tokio::task::spawn_blocking(move || newest::newest_commit(&read)).await;
    Ok(Copy {
        system_id,
        problem,
        durable_lsn: positions.as_ref().map(|held| held.durable_lsn),
        // A task that panicked knows nothing.
        newest_commit_unix_us: newest.unwrap_or(None),
        promotion: positions.and(journal.lineage().last().map(|last| last.promotion)),
    })
}

impl Examined {
    /// What it would cost.
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// Waits the old lease out, asks the others once more, and makes this node the only member of a
    /// new incarnation. When it returns, that survives a crash; before, the node is of the old one.
    ///
    /// # Errors
    /// When more may be lost than is accepted, somebody answers after all, or the disk says no.
    pub async fn carry_out(
        mut self,
        order: Order,
        progress: &mut dyn FnMut(&str),
    ) -> Result<ClusterIncarnation, RecoverError> {
        let loss = self.statement.loss;
        if !order.accepts.covers(&loss) {
            let accepts = order.accepts;
            return Err(Refusal::LossNotAccepted { loss, accepts }.into());
        }
        let wait = self.statement.lease_wait;
        if !wait.is_zero() {
            progress(&format!(
                "waiting {:.1} s, until a lease that the old active may still hold is over",
                wait.as_secs_f64()
            ));
            tokio::time::sleep(wait).await;
            let identity = load_identity(&self.config)?.of_incarnation(self.facts.incarnation);
            self.facts.answers = ask(&self.config, &identity, ANSWER_PATIENCE, progress).await;
            statement::judge(&self.config, &self.facts)?;
        }
        self.switch(order)
    }

    fn switch(self, order: Order) -> Result<ClusterIncarnation, RecoverError> {
        let Examined { config, offline, facts, statement } = self;
        let incarnation = facts.incarnation.next(Uuid::new_v4());
        let configured = facts.incarnation.configured(facts.me);
        let node: NodeId =
            incarnation.number_of(configured).ok_or(CannotRecover::Number(configured))?;
        let own = config.me();
        let storage = Incarnation(Uuid::new_v4());
        let order = RecoveryOrder {
            from: facts.incarnation,
            incarnation,
            survivor: facts.me,
            member: Member {
                name: own.name.clone(),
                site: own.site.clone(),
                kind: own.kind,
                address: own.address.clone(),
                incarnation: storage,
            },
            promotion: PromotionId(Uuid::new_v4()),
            loss: statement.loss,
            accepted: order.accepts,
            caller: order.caller,
            reason: order.reason,
            at_unix_us: wall_unix_us(),
            index: offline.last_index + 1,
        };
        let state = facts.state.recovered(&order)?;
        offline.begin_incarnation(incarnation, node, storage, &own.address, &state)?;
        Ok(incarnation)
    }
}
