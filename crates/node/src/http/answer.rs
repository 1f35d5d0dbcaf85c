//! Which path is answered how. Pure: facts in, a code and a body out.
//!
//! The paths are a superset of Patroni's health checks, so that a load balancer's configuration for
//! it works unchanged; an unknown path is 404 here, not 503. A snapshot whose loop has stopped says
//! nothing favourable any more.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::json;

use super::lag::LagLimit;
use super::page;
use super::patroni;
use super::query::Query;
use crate::status::{ClusterStatus, SiteRole, Waited, Writability, readiness, replaying};

/// A loop that has not ticked, or a snapshot that was not renewed, for so long is taken for stuck.
const AGE_MAX: Duration = Duration::from_secs(5);
/// Patroni's `maximum_lag_on_failover` as it comes, which is what `/readiness` allows without `lag`.
const READY_LAG: LagLimit = LagLimit::Bytes(1 << 20);

/// What is known at the moment of a request.
pub(super) struct Facts<'a> {
    pub(super) status: &'a ClusterStatus,
    pub(super) writability: Writability,
    /// Since the node's loop last ticked, or the snapshot was made, whichever is longer ago.
    pub(super) age: Duration,
    /// `http` or `https`, for addresses in answers.
    pub(super) scheme: &'static str,
}

impl Facts<'_> {
    /// The snapshot, without what has ended since it was taken, and with nothing favourable in it when it
    /// is too old to speak for the present.
    pub(super) fn present(&self) -> ClusterStatus {
        let status = self.status.clone().at_most_writable(self.writability.writable);
        if self.is_stale() { status.of_the_past() } else { status }
    }

    /// What the snapshot says is of the past.
    pub(super) fn is_stale(&self) -> bool {
        self.age >= AGE_MAX
    }
}

/// What is sent.
pub(super) struct Answer {
    pub(super) code: StatusCode,
    pub(super) content: Content,
}

/// The body.
pub(super) enum Content {
    Json(String),
    /// What the metrics' recorder renders.
    Metrics,
    /// A file of the status page.
    File(&'static page::File),
}

/// What a health path asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Live,
    /// Whether this node does its part, whatever that is.
    Ready,
    /// Patroni's: an active, or a passive within a limit.
    Readiness,
    Primary,
    Replica,
    Synchronous,
    Quorum,
    Asynchronous,
    ReadOnly,
    ReadOnlySync,
    ReadOnlyQuorum,
    StandbyLeader,
    Health,
}

/// Every health path; `/master` and its like are Patroni's spellings.
const PATHS: &[(&str, Question)] = &[
    ("/livez", Question::Live),
    ("/liveness", Question::Live),
    ("/readyz", Question::Ready),
    ("/readiness", Question::Readiness),
    ("/", Question::Primary),
    ("/primary", Question::Primary),
    ("/master", Question::Primary),
    ("/leader", Question::Primary),
    ("/read-write", Question::Primary),
    ("/replica", Question::Replica),
    ("/synchronous", Question::Synchronous),
    ("/sync", Question::Synchronous),
    ("/quorum", Question::Quorum),
    ("/asynchronous", Question::Asynchronous),
    ("/async", Question::Asynchronous),
    ("/read-only", Question::ReadOnly),
    ("/read-only-sync", Question::ReadOnlySync),
    ("/read-only-synchronous", Question::ReadOnlySync),
    ("/read-only-quorum", Question::ReadOnlyQuorum),
    ("/standby-leader", Question::StandbyLeader),
    ("/standby_leader", Question::StandbyLeader),
    ("/health", Question::Health),
];

/// Patroni's paths that change something: orders are taken over gRPC only, and the answer says how.
const ORDERS: &[(&str, &str)] = &[
    ("/switchover", "understudy switchover"),
    ("/failover", "understudy failover"),
    ("/restart", "understudy restart"),
    ("/reload", "understudy reload"),
    ("/reinitialize", "understudy reinit"),
    ("/config", "understudy rpo set"),
];

/// Whether load balancers find their servers by this path; what only looks after the node does not count.
pub(super) fn finds_servers(path: &str) -> bool {
    let found = PATHS.iter().find(|(known, _)| *known == path);
    found.is_some_and(|(_, question)| match question {
        Question::Live | Question::Ready | Question::Health => false,
        Question::Readiness
        | Question::Primary
        | Question::Replica
        | Question::Synchronous
        | Question::Quorum
        | Question::Asynchronous
        | Question::ReadOnly
        | Question::ReadOnlySync
        | Question::ReadOnlyQuorum
        | Question::StandbyLeader => true,
    })
}

/// The answer to a GET of this path and query.
pub(super) fn answer(path: &str, query: Option<&str>, facts: &Facts<'_>) -> Answer {
    let good = |content| Answer { code: StatusCode::OK, content };
    match path {
        "/metrics" => return good(Content::Metrics),
        "/status" => {
            let json = serde_json::to_string(&facts.present());
            return good(Content::Json(json.expect("plain data with text keys")));
        }
        "/patroni" => return good(Content::Json(patroni::node(facts).to_string())),
        "/cluster" => return good(Content::Json(patroni::cluster(facts).to_string())),
        "/history" => return good(Content::Json(patroni::history(facts.status).to_string())),
        "/config" => {
            let agreed = facts.status.agreed().unwrap_or_else(|| json!({}));
            return good(Content::Json(agreed.to_string()));
        }
        _ => {}
    }
    if let Some(file) = page::file(path) {
        return good(Content::File(file));
    }
    let Some((_, question)) = PATHS.iter().find(|(known, _)| *known == path) else {
        return say(StatusCode::NOT_FOUND, facts, "no such path");
    };
    let query = match Query::parse(query) {
        Ok(query) => query,
        Err(reason) => return say(StatusCode::BAD_REQUEST, facts, &reason),
    };
    let (good, reason) = judge(*question, &query, facts);
    say(if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, facts, &reason)
}

/// The answer to a method that would change something.
pub(super) fn refuse(path: &str, facts: &Facts<'_>) -> Answer {
    let order = ORDERS.iter().find(|(known, _)| *known == path);
    let words = match order {
        Some((_, verb)) => format!("nothing is ordered over HTTP; use `{verb}`"),
        None => "this door is read only: GET, HEAD and OPTIONS".to_owned(),
    };
    say(StatusCode::METHOD_NOT_ALLOWED, facts, &words)
}

fn say(code: StatusCode, facts: &Facts<'_>, reason: &str) -> Answer {
    let own = facts.status.own();
    let body = json!({
        "node": facts.status.answered_by,
        "role": own.map_or("unknown", |own| own.role.as_str()),
        "state": own.map_or("unknown", |own| &own.state),
        "ok": code == StatusCode::OK,
        "reason": reason,
    });
    Answer { code, content: Content::Json(body.to_string() + "\n") }
}

fn judge(question: Question, query: &Query, facts: &Facts<'_>) -> (bool, String) {
    // Judged at this moment, whatever the snapshot says.
    let Writability { writable, reason: why } = facts.writability.clone();
    if facts.is_stale() && question != Question::Primary {
        let seconds = facts.age.as_secs();
        return (false, format!("the node's loop has not ticked for {seconds} s"));
    }
    let ready = || {
        let answer = readiness(facts.status, writable);
        (answer.ready, answer.reason)
    };
    let replica = || replica(facts.status, query);
    let waited = |wanted: Waited| match facts.status.waited(&facts.status.answered_by) {
        found if found == wanted => Ok(()),
        found => Err(words(found).to_owned()),
    };
    let told = |result: Result<(), String>, good: &str| match result {
        Ok(()) => (true, good.to_owned()),
        Err(reason) => (false, reason),
    };
    let paused = facts.status.own().is_some_and(|own| own.replay_paused);
    let follows =
        if paused { "attached; somebody has paused replay" } else { "attached and replaying" };
    let as_sync = || replica().and_then(|()| waited(Waited::Each));
    let as_quorum = || replica().and_then(|()| waited(Waited::Some));
    match question {
        Question::Live => (true, "the node's loop ticks".to_owned()),
        Question::Ready => ready(),
        Question::ReadOnly
        | Question::ReadOnlySync
        | Question::ReadOnlyQuorum
        | Question::Readiness
            if writable =>
        {
            (true, why)
        }
        Question::Readiness => match facts.status.own().map(|own| own.role) {
            Some(SiteRole::Witness | SiteRole::Journal) => ready(),
            _ => {
                let lag = query.lag.or(Some(READY_LAG));
                told(self::replica(facts.status, &Query { lag, ..query.clone() }), follows)
            }
        },
        Question::Primary => (writable, why),
        Question::Replica | Question::ReadOnly => told(replica(), follows),
        Question::Synchronous | Question::ReadOnlySync => told(as_sync(), words(Waited::Each)),
        Question::Quorum | Question::ReadOnlyQuorum => told(as_quorum(), words(Waited::Some)),
        Question::Asynchronous => told(
            replica().and_then(|()| waited(Waited::No)),
            "attached and replaying, commits do not wait for it",
        ),
        Question::StandbyLeader => (false, "there is no standby cluster here".to_owned()),
        Question::Health => {
            let running = facts.status.own().is_some_and(|own| own.postgres_running);
            let word = if running { "PostgreSQL answers" } else { "PostgreSQL does not answer" };
            (running, word.to_owned())
        }
    }
}

/// A passive that follows, replays, and is not further behind than the request allows.
fn replica(status: &ClusterStatus, query: &Query) -> Result<(), String> {
    replaying(status)?;
    let own = status.own().expect("just judged");
    if let Some(tag) = &query.tag {
        return Err(format!("{tag}: nodes have no tags here"));
    }
    // Whoever is attached streams; there is no other way for WAL to come.
    if let Some(state) = query.replication_state.as_ref().filter(|state| *state != "streaming") {
        return Err(format!("its replication state is streaming, not {state}"));
    }
    let (bytes, seconds) = match query.written {
        true => (own.durable_lag_bytes, own.durable_lag_seconds),
        false => (own.replay_lag_bytes, own.replay_lag_seconds),
    };
    query.lag.map_or(Ok(()), |limit: LagLimit| limit.check(bytes, seconds))
}

fn words(waited: Waited) -> &'static str {
    match waited {
        Waited::Each => "commits wait for it",
        Waited::Some => "commits wait for some of several nodes, it among them",
        Waited::No => "commits do not wait for it",
    }
}
