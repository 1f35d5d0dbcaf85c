//! The operator's gRPC service: reads from memory, orders through consensus.
//!
//! Every call has been judged by the caller's certificate (`access`, I21) before it comes here; a loss
//! is accepted by the role break-glass only. A refusal carries the words of what refused it. Nothing is
//! carried out here: an order is a command in the log, and its operation's outcome is in the replicated
//! state.

mod dial;
mod orders;
mod routes;
mod switchover;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Semaphore, watch};
use tokio_stream::Stream;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Request, Response, Status};
use understudy_core::state::{Command, Ineligible, Outcome};
use understudy_core::{ClusterState, Rejection};
use understudy_proto::v1;
use understudy_proto::v1::admin_server::Admin;
use understudy_transport::{Role, peer, require_role};
use understudy_types::NodeId;

use crate::status::{self, ClusterStatus, WritabilityFn};

pub use routes::{admin_routes, report_health};

/// The metadata key under which a definite refusal names its kind. A failure without it, other than
/// a refusal of rights or of the request's form, may have had its effect.
pub const REFUSAL_KEY: &str = "understudy-refusal";

/// Longest pause: a week.
const PAUSE_MAX: Duration = Duration::from_secs(604_800);
/// Watchers at the same time.
const WATCHERS_MAX: usize = 256;
/// Longest reason, in bytes.
const REASON_MAX_BYTES: usize = 1024;
/// How long an order may take to be applied before its outcome is called unknown.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long this node's own state may lag behind the leader's answer.
const CATCH_UP: Duration = Duration::from_secs(2);

/// What came of a proposal when it was not applied for sure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperationError {
    /// Nobody leads; nothing was proposed.
    #[error("no leader is known, so nothing can be ordered now")]
    NoLeader,
    /// It was refused before it was proposed.
    #[error("the order was not taken: {0}")]
    NotProposed(String),
    /// It may be applied, now or later.
    #[error("whether the order was taken is not known: {0}")]
    OutcomeUnknown(String),
}

/// Puts commands into the log, at whichever node leads.
#[tonic::async_trait]
pub trait Operations: Send + Sync + 'static {
    /// Returns once the command has been applied at the leader: its log index and what became of it.
    /// Bounded in time; not cancel-safe: a dropped call may still take effect.
    async fn propose(&self, command: Command) -> Result<(u64, Outcome), OperationError>;
}

/// What the service works with.
#[derive(Clone)]
pub struct AdminContext {
    /// The way into the log.
    pub operations: Arc<dyn Operations>,
    /// The newest snapshot.
    pub status: watch::Receiver<Arc<ClusterStatus>>,
    /// The replicated state as applied here.
    pub state: watch::Receiver<Arc<ClusterState>>,
    /// Whether writes are possible here at this moment.
    pub writability: WritabilityFn,
}

/// The service.
#[derive(Clone)]
pub struct AdminService {
    context: AdminContext,
    watchers: Arc<Semaphore>,
}

impl std::fmt::Debug for AdminService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminService").finish_non_exhaustive()
    }
}

/// Answers of `WatchStatus`.
pub type StatusStream = Pin<Box<dyn Stream<Item = Result<v1::GetStatusResponse, Status>> + Send>>;

impl AdminService {
    /// A service over `context`.
    pub fn new(context: AdminContext) -> AdminService {
        AdminService { context, watchers: Arc::new(Semaphore::new(WATCHERS_MAX)) }
    }

    fn state(&self) -> Arc<ClusterState> {
        self.context.state.borrow().clone()
    }

    /// The same, once it has this version of the configuration, or as it is after a while.
    async fn state_with(&self, config_version: Option<u64>) -> Arc<ClusterState> {
        if let Some(version) = config_version {
            let mut known = self.context.state.clone();
            let there = known.wait_for(|state| state.config_version >= version);
            // However that ended, the caller compares the version.
            let _ = tokio::time::timeout(CATCH_UP, there).await;
        }
        self.state()
    }

    /// The newest snapshot, as it may be told now.
    fn status(&self) -> ClusterStatus {
        let status = ClusterStatus::clone(&self.context.status.borrow());
        status.at_most_writable((self.context.writability)().writable)
    }

    /// Proposes an order and answers with its operation.
    async fn order(&self, command: Command) -> Result<Response<v1::OperationResponse>, Status> {
        let kind = command.kind();
        let proposed = self.context.operations.propose(command);
        let (index, outcome) = match tokio::time::timeout(ORDER_TIMEOUT, proposed).await {
            Ok(Ok(applied)) => applied,
            Ok(Err(error)) => return Err(not_applied(&error)),
            Err(_) => {
                let words = format!("no answer within {ORDER_TIMEOUT:?}");
                return Err(not_applied(&OperationError::OutcomeUnknown(words)));
            }
        };
        match outcome {
            Outcome::Accepted { operation } => {
                let id = operation.unwrap_or(index);
                tracing::info!(order = kind, operation = id, "order accepted");
                Ok(Response::new(v1::OperationResponse { operation: Some(self.taken(id).await) }))
            }
            Outcome::Rejected(rejection) => {
                let words = rejection_words(&self.state(), &rejection);
                tracing::info!(order = kind, reason = %words, "order refused");
                Err(refusal(Code::FailedPrecondition, rejection_kind(&rejection), words))
            }
        }
    }

    /// The operation as this node's state has it, once it does.
    async fn taken(&self, id: u64) -> v1::Operation {
        let mut known = self.context.state.clone();
        let there = known.wait_for(|state| state.operations.contains_key(&id));
        // However that ended, the state says whether it is there.
        let _ = tokio::time::timeout(CATCH_UP, there).await;
        let state = self.state();
        match state.operations.get(&id) {
            Some(operation) => v1::Operation::from(&status::operation(&state, id, operation)),
            // Accepted by the leader, and this node has not heard of it yet.
            None => v1::Operation { id, outcome: "running".to_owned(), ..Default::default() },
        }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(snapshot(&self.context)))
    }

    type WatchStatusStream = StatusStream;

    async fn watch_status(
        &self,
        request: Request<v1::WatchStatusRequest>,
    ) -> Result<Response<StatusStream>, Status> {
        let millis = match request.into_inner().interval_ms {
            0 => 1000,
            millis @ 100..=60_000 => u64::from(millis),
            other => {
                let words = format!("interval_ms = {other}: expected 100 to 60000, or 0 for 1000");
                return Err(Status::invalid_argument(words));
            }
        };
        let permit = self.watchers.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{WATCHERS_MAX} callers watch the status already"))
        })?;
        let mut ticks = tokio::time::interval(Duration::from_millis(millis));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let begin = (self.context.clone(), ticks, permit);
        let stream = futures::stream::unfold(begin, |(context, mut ticks, permit)| async move {
            ticks.tick().await;
            // The daemon ends: so does the stream.
            context.status.has_changed().ok()?;
            Some((Ok(snapshot(&context)), (context, ticks, permit)))
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn failover(
        &self,
        request: Request<v1::FailoverRequest>,
    ) -> Result<Response<v1::OperationResponse>, Status> {
        let caller = caller(&request)?;
        if request.get_ref().accept_loss.is_some() {
            require_role(&request, Role::BreakGlass)?;
        }
        let request = request.into_inner();
        let state = self.state();
        if let Some(accepted) = &request.accept_loss {
            let to = target(&state, &request.to)?;
            return self.order(dial::accept_loss(&request, accepted, to, caller)?).await;
        }
        self.order(Command::OrderFailover {
            to: target(&state, &request.to)?,
            epoch: request.expect_epoch.map_or(state.epoch, Into::into),
            caller,
            reason: checked_reason(request.reason)?,
            at_unix_us: wall_unix_us(),
        })
        .await
    }

    async fn switchover(
        &self,
        request: Request<v1::SwitchoverRequest>,
    ) -> Result<Response<v1::OperationResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let state = self.state();
        if let Some(due_unix_us) = request.scheduled_unix_us {
            return self
                .order(Command::ScheduleSwitchover {
                    to: target(&state, &request.to)?,
                    epoch: request.expect_epoch.map_or(state.epoch, Into::into),
                    budget: switchover::checked_budget(request.pause_budget_ms)?,
                    due_unix_us: orders::checked_due(due_unix_us)?,
                    caller,
                    reason: checked_reason(request.reason)?,
                    at_unix_us: wall_unix_us(),
                })
                .await;
        }
        self.order(Command::OrderSwitchover {
            to: target(&state, &request.to)?,
            epoch: request.expect_epoch.map_or(state.epoch, Into::into),
            budget: switchover::checked_budget(request.pause_budget_ms)?,
            caller,
            reason: checked_reason(request.reason)?,
            at_unix_us: wall_unix_us(),
        })
        .await
    }

    async fn plan_switchover(
        &self,
        request: Request<v1::SwitchoverRequest>,
    ) -> Result<Response<v1::SwitchoverPlan>, Status> {
        let request = request.into_inner();
        let state = self.state();
        let to = target(&state, &request.to)?;
        let epoch = request.expect_epoch.map_or(state.epoch, Into::into);
        let budget = switchover::checked_budget(request.pause_budget_ms)?;
        Ok(Response::new(switchover::plan(&state, &self.status(), to, epoch, budget)))
    }

    async fn cancel_switchover(
        &self,
        request: Request<v1::CancelSwitchoverRequest>,
    ) -> Result<Response<v1::OperationResponse>, Status> {
        let caller = caller(&request)?;
        let reason = checked_reason(request.into_inner().reason)?;
        self.order(Command::CancelScheduled { caller, reason, at_unix_us: wall_unix_us() }).await
    }

    async fn order_node(
        &self,
        request: Request<v1::NodeOrderRequest>,
    ) -> Result<Response<v1::OperationResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let state = self.state();
        let wanted = orders::wanted(&state, &request)?;
        let command = orders::command(&wanted, &state, &self.status(), caller, request.reason)?;
        self.order(command).await
    }

    async fn plan_node_order(
        &self,
        request: Request<v1::NodeOrderRequest>,
    ) -> Result<Response<v1::NodeOrderPlan>, Status> {
        let state = self.state();
        let wanted = orders::wanted(&state, &request.into_inner())?;
        Ok(Response::new(orders::plan(&wanted, &state, &self.status())))
    }

    async fn pause(
        &self,
        request: Request<v1::PauseRequest>,
    ) -> Result<Response<v1::OperationResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        if !(1..=PAUSE_MAX.as_secs()).contains(&request.for_seconds) {
            let (given, max) = (request.for_seconds, PAUSE_MAX.as_secs());
            let words = format!("for_seconds = {given}: a pause needs an end, 1 to {max} seconds");
            return Err(Status::invalid_argument(words));
        }
        let at_unix_us = wall_unix_us();
        let span = i64::try_from(request.for_seconds).expect("checked to be a week at most");
        self.order(Command::Pause {
            until_unix_us: at_unix_us + span * 1_000_000,
            caller,
            reason: checked_reason(request.reason)?,
            at_unix_us,
        })
        .await
    }

    async fn resume(
        &self,
        request: Request<v1::ResumeRequest>,
    ) -> Result<Response<v1::OperationResponse>, Status> {
        let caller = Some(caller(&request)?);
        let reason = checked_reason(request.into_inner().reason)?;
        self.order(Command::Resume { caller, reason, at_unix_us: wall_unix_us() }).await
    }

    async fn set_rpo(
        &self,
        request: Request<v1::SetRpoRequest>,
    ) -> Result<Response<v1::OperationResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let state = self.state_with(request.expect_config_version).await;
        let config_version = request.expect_config_version.unwrap_or(state.config_version);
        let epoch = request.expect_epoch.map_or(state.epoch, Into::into);
        // What the request leaves out is of the configuration that it names.
        if config_version != state.config_version {
            let current = state.config_version;
            let why = Rejection::ConfigVersion { expected: config_version, current };
            let words = rejection_words(&state, &why);
            return Err(refusal(Code::FailedPrecondition, rejection_kind(&why), words));
        }
        let dial = dial::wanted(&state, &request)?;
        if request.dry_run {
            return match state.check_dial_change(&dial, epoch, config_version) {
                Ok(()) => Ok(Response::new(dial::planned(&state, &dial))),
                Err(why) => {
                    let words = rejection_words(&state, &why);
                    Err(refusal(Code::FailedPrecondition, rejection_kind(&why), words))
                }
            };
        }
        self.order(Command::SetDial {
            dial,
            epoch,
            config_version,
            caller,
            reason: checked_reason(request.reason)?,
            at_unix_us: wall_unix_us(),
        })
        .await
    }

    async fn get_config(
        &self,
        request: Request<v1::GetConfigRequest>,
    ) -> Result<Response<v1::ConfigResponse>, Status> {
        let version = request.into_inner().version;
        let state = self.state_with(version).await;
        Ok(Response::new(dial::agreed(&state, version)?))
    }

    async fn get_operation(
        &self,
        request: Request<v1::GetOperationRequest>,
    ) -> Result<Response<v1::OperationResponse>, Status> {
        let id = request.into_inner().id;
        let state = self.state();
        let found = state.operations.get(&id).ok_or_else(|| {
            let kept = understudy_core::state::OPERATIONS_KEPT;
            Status::not_found(format!("no operation {id} among the {kept} that are remembered"))
        })?;
        let operation = Some(v1::Operation::from(&status::operation(&state, id, found)));
        Ok(Response::new(v1::OperationResponse { operation }))
    }
}

fn snapshot(context: &AdminContext) -> v1::GetStatusResponse {
    let status = ClusterStatus::clone(&context.status.borrow());
    let status = status.at_most_writable((context.writability)().writable);
    v1::GetStatusResponse { status: Some((&status).into()) }
}

/// Who orders, for the record.
// A Status is what tonic's handlers must return; boxing it here would only be undone there.
#[allow(clippy::result_large_err)]
fn caller<T>(request: &Request<T>) -> Result<String, Status> {
    Ok(peer(request)?.identity.to_string())
}

#[allow(clippy::result_large_err)]
fn checked_reason(reason: String) -> Result<String, Status> {
    let reason = reason.trim();
    if (1..=REASON_MAX_BYTES).contains(&reason.len()) {
        return Ok(reason.to_owned());
    }
    let words = format!("reason: say why, for the record, in 1 to {REASON_MAX_BYTES} bytes");
    Err(Status::invalid_argument(words))
}

/// The node to promote: the one that was named, or the only one that it can be.
#[allow(clippy::result_large_err)]
fn target(state: &ClusterState, name: &str) -> Result<NodeId, Status> {
    if !name.is_empty() {
        let mut data = state.data_nodes();
        let found = data.find(|id| state.name_of(*id) == name);
        let words = || format!("to = {name:?}: not a data node of this cluster");
        return found.ok_or_else(|| Status::invalid_argument(words()));
    }
    let holder = state.holder.as_ref().map(|holder| holder.node);
    let others: Vec<NodeId> = state.data_nodes().filter(|id| Some(*id) != holder).collect();
    match others.as_slice() {
        [only] => Ok(*only),
        [] => {
            let words = "there is no other data node to take over".to_owned();
            Err(refusal(Code::FailedPrecondition, "no-passive", words))
        }
        several => {
            let names: Vec<_> = several.iter().map(|id| state.name_of(*id)).collect();
            let words =
                format!("to: several nodes can take over, name one of {}", names.join(", "));
            Err(Status::invalid_argument(words))
        }
    }
}

fn not_applied(error: &OperationError) -> Status {
    let words = error.to_string();
    match error {
        OperationError::NoLeader => refusal(Code::Unavailable, "no-leader", words),
        OperationError::NotProposed(_) => refusal(Code::FailedPrecondition, "not-proposed", words),
        OperationError::OutcomeUnknown(_) => Status::deadline_exceeded(words),
    }
}

fn refusal(code: Code, kind: &'static str, words: String) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(REFUSAL_KEY, MetadataValue::from_static(kind));
    Status::with_metadata(code, words, metadata)
}

/// The rejection's own words, with names in place of numbers where a person reads them.
fn rejection_words(state: &ClusterState, rejection: &Rejection) -> String {
    match rejection {
        Rejection::NotEligible { node, why: Ineligible::IsHolder } => {
            format!("{} is the active node already", state.name_of(*node))
        }
        Rejection::IsActive(node) => format!(
            "{} is the active one, from whose data copies are made; make another node active first",
            state.name_of(*node)
        ),
        Rejection::WouldStall(node) => format!(
            "every commit would wait until {0} has everything again (dial zero, stall); accept that with \
             --yes, or set the dial to degrade or bounded first",
            state.name_of(*node)
        ),
        Rejection::NotEligible { node, why } => {
            format!("{} may not be promoted: {why}", state.name_of(*node))
        }
        other => other.to_string(),
    }
}

fn rejection_kind(rejection: &Rejection) -> &'static str {
    match rejection {
        Rejection::Epoch { .. } => "epoch",
        Rejection::Phase => "phase",
        Rejection::NotEligible { .. } => "not-eligible",
        Rejection::NotADataNode(_) => "not-a-data-node",
        Rejection::Busy(_) => "busy",
        Rejection::NoChange => "no-change",
        Rejection::BadDial(_) => "bad-dial",
        Rejection::ConfigVersion { .. } => "config-version",
        Rejection::NoOperation => "no-operation",
        Rejection::IsActive(_) => "is-active",
        Rejection::WouldStall(_) => "would-stall",
        Rejection::AlreadyFounded
        | Rejection::NotFounded
        | Rejection::BadFounding(_)
        | Rejection::BadMember(_)
        | Rejection::NotHolder(_)
        | Rejection::Process { .. }
        | Rejection::Released
        | Rejection::Seq { .. }
        | Rejection::Generation { .. }
        | Rejection::Mode(_)
        | Rejection::OtherPromotion
        | Rejection::BadTimeline(_) => "rejected",
    }
}

fn wall_unix_us() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
