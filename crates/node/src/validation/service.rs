//! Asks every node, judges, publishes: regularly, and whenever somebody wants to know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::{Mutex, watch};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use understudy_core::Timing;
use understudy_proto::v1;
use understudy_proto::v1::validation_client::ValidationClient;
use understudy_proto::v1::validation_server::Validation;
use understudy_types::NodeName;

use super::describe::Describer;
use super::judge::{Answer, Evidence, judge};
use super::{Severity, ValidationReport, metrics};
use crate::clock::wall_unix_us;
use crate::status::ClusterStatus;

/// Between two looks of a node by itself.
const INTERVAL: Duration = Duration::from_secs(60);
/// How old another node's own look may be for that; three nodes that ask cost it about one look a turn.
const AGE_MAX: Duration = Duration::from_secs(45);
/// After the active or the verdict changed: what came of it is looked at soon.
const SETTLING: Duration = Duration::from_secs(5);
/// How long a node may take to say how it stands.
const PATIENCE: Duration = Duration::from_secs(15);

/// Makes reports; cheap to clone.
#[derive(Clone)]
pub(crate) struct Validator {
    inner: Arc<Inner>,
}

struct Inner {
    describer: Describer,
    peers: BTreeMap<NodeName, Channel>,
    status: watch::Receiver<Arc<ClusterStatus>>,
    timing: Timing,
    newest: watch::Sender<Option<Arc<ValidationReport>>>,
    turn: Mutex<()>,
}

impl Validator {
    /// One over this node and channels to the others; every report goes to `newest` too.
    pub(crate) fn new(
        describer: Describer,
        peers: BTreeMap<NodeName, Channel>,
        status: watch::Receiver<Arc<ClusterStatus>>,
        timing: Timing,
        newest: watch::Sender<Option<Arc<ValidationReport>>>,
    ) -> Validator {
        let turn = Mutex::default();
        Validator { inner: Arc::new(Inner { describer, peers, status, timing, newest, turn }) }
    }

    /// Looks and judges. Whoever comes meanwhile waits for a turn of their own, so that what they are told
    /// was seen after they asked.
    async fn validate(&self, age_max: Duration) -> Arc<ValidationReport> {
        let inner = &self.inner;
        let _turn = inner.turn.lock().await;
        let others = inner.peers.iter().map(|(name, channel)| async move {
            (name.to_string(), ask(channel.clone(), age_max).await)
        });
        let (own, others) = tokio::join!(inner.describer.describe(age_max), join_all(others));
        let mut answers: BTreeMap<String, Answer> = others.into_iter().collect();
        let status = inner.status.borrow().clone();
        answers
            .insert(status.answered_by.clone(), Answer { fitness: Ok(own), clock_ahead_us: None });
        let report = judge(&Evidence {
            status: &status,
            answers: &answers,
            timing: inner.timing,
            now_unix_us: wall_unix_us(),
        });
        metrics::record(&report);
        let report = Arc::new(report);
        let before = inner.newest.send_replace(Some(report.clone()));
        tell(before.as_deref(), &report);
        report
    }
}

async fn ask(channel: Channel, age_max: Duration) -> Answer {
    let age_max_ms = u64::try_from(age_max.as_millis()).unwrap_or(u64::MAX);
    let mut client = ValidationClient::new(channel);
    let asking = async {
        let sent = (wall_unix_us(), std::time::Instant::now());
        let answer = client.describe_fitness(v1::DescribeFitnessRequest { age_max_ms }).await;
        (answer, sent)
    };
    let unheard = |why: String| Answer { fitness: Err(why), clock_ahead_us: None };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok((Ok(answer), (sent_us, sent))) => {
            // The answer's time was taken between the question and now; how long before now is not known.
            let took_us = i64::try_from(sent.elapsed().as_micros()).unwrap_or(i64::MAX / 4);
            let fitness = answer.into_inner();
            let ahead_us = fitness.wall_unix_us - (sent_us + took_us / 2);
            let clock_ahead_us = Some((ahead_us, took_us.unsigned_abs() / 2));
            Answer { fitness: Ok(fitness), clock_ahead_us }
        }
        Ok((Err(status), _)) => unheard(status.message().to_owned()),
        Err(_) => unheard(format!("no answer within {PATIENCE:?}")),
    }
}

/// A change is worth a line in the log.
fn tell(before: Option<&ValidationReport>, now: &ValidationReport) {
    if before.is_some_and(|before| before.verdict == now.verdict) {
        return;
    }
    let from = before.map_or("unknown", |before| before.verdict.as_str());
    let to = now.verdict.as_str();
    let worst = now.findings.first().map_or("", |finding| finding.words.as_str());
    let (blocks, risks) = (now.count(Severity::Block), now.count(Severity::Risk));
    tracing::info!(from, to, blocks, risks, worst, "validation of a failover");
}

/// Looks for as long as the daemon runs.
pub(crate) async fn keep_validating(validator: Validator) {
    let mut status = validator.inner.status.clone();
    let situation = |status: &ClusterStatus| {
        (status.epoch, status.active.clone(), status.failover.would_fail_over)
    };
    loop {
        let seen = situation(&status.borrow_and_update());
        let another = async { status.wait_for(|now| situation(now) != seen).await.map(drop) };
        let age_max = tokio::select! {
            () = tokio::time::sleep(INTERVAL) => AGE_MAX,
            changed = another => {
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(SETTLING).await;
                SETTLING
            }
        };
        validator.validate(age_max).await;
    }
}

/// The service.
#[derive(Clone)]
pub(crate) struct ValidationService {
    validator: Validator,
}

impl ValidationService {
    pub(crate) fn new(validator: Validator) -> ValidationService {
        ValidationService { validator }
    }
}

#[tonic::async_trait]
impl Validation for ValidationService {
    async fn validate(
        &self,
        _: Request<v1::ValidateRequest>,
    ) -> Result<Response<v1::ValidateResponse>, Status> {
        let report = self.validator.validate(Duration::ZERO).await;
        Ok(Response::new(v1::ValidateResponse { report: Some((&*report).into()) }))
    }

    async fn describe_fitness(
        &self,
        request: Request<v1::DescribeFitnessRequest>,
    ) -> Result<Response<v1::Fitness>, Status> {
        let age_max = Duration::from_millis(request.into_inner().age_max_ms);
        Ok(Response::new(self.validator.inner.describer.describe(age_max).await))
    }
}
