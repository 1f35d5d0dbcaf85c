//! Which path is answered how. Pure: facts in, a code and a body out.
//!
//! The paths are a superset of Patroni's health checks, so that a load balancer's configuration for
//! it works unchanged; an unknown path is 404 here, not 503. A snapshot whose loop has stopped says
//! nothing favourable any more.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::json;
use understudy_types::DurabilityMode;

use super::lag::LagLimit;
use crate::status::{ClusterStatus, Writability, readiness, replaying};

/// A loop that has not ticked for so long is taken for stuck.
const TICK_AGE_MAX: Duration = Duration::from_secs(5);

/// What is known at the moment of a request.
pub(super) struct Facts<'a> {
    pub(super) status: &'a ClusterStatus,
    pub(super) writability: Writability,
    /// Since the node's loop last ticked.
    pub(super) tick_age: Duration,
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
    Nothing,
}

/// What a health path asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Live,
    Ready,
    Primary,
    Replica,
    Synchronous,
    Asynchronous,
    ReadOnly,
    ReadOnlySync,
    StandbyLeader,
    Health,
}

/// Every health path; `/master` and its like are Patroni's spellings.
const PATHS: &[(&str, Question)] = &[
    ("/livez", Question::Live),
    ("/liveness", Question::Live),
    ("/readyz", Question::Ready),
    ("/readiness", Question::Ready),
    ("/", Question::Primary),
    ("/primary", Question::Primary),
    ("/master", Question::Primary),
    ("/leader", Question::Primary),
    ("/read-write", Question::Primary),
    ("/replica", Question::Replica),
    ("/synchronous", Question::Synchronous),
    ("/sync", Question::Synchronous),
    ("/asynchronous", Question::Asynchronous),
    ("/async", Question::Asynchronous),
    ("/read-only", Question::ReadOnly),
    ("/read-only-sync", Question::ReadOnlySync),
    ("/read-only-synchronous", Question::ReadOnlySync),
    ("/standby-leader", Question::StandbyLeader),
    ("/standby_leader", Question::StandbyLeader),
    ("/health", Question::Health),
];

/// The answer to a GET of this path and query.
pub(super) fn answer(path: &str, query: Option<&str>, facts: &Facts<'_>) -> Answer {
    match path {
        "/metrics" => return Answer { code: StatusCode::OK, content: Content::Metrics },
        "/status" => {
            let status = facts.status.clone().at_most_writable(facts.writability.writable);
            let json = serde_json::to_string(&status).expect("plain data with text keys");
            return Answer { code: StatusCode::OK, content: Content::Json(json) };
        }
        _ => {}
    }
    let Some((_, question)) = PATHS.iter().find(|(known, _)| *known == path) else {
        return say(StatusCode::NOT_FOUND, facts, "no such path");
    };
    let limit = match LagLimit::of_query(query) {
        Ok(limit) => limit,
        Err(reason) => return say(StatusCode::BAD_REQUEST, facts, &reason),
    };
    let (good, reason) = judge(*question, limit, facts);
    say(if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, facts, &reason)
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

fn judge(question: Question, limit: Option<LagLimit>, facts: &Facts<'_>) -> (bool, String) {
    // Judged at this moment, whatever the snapshot says.
    let Writability { writable, reason: why } = facts.writability.clone();
    if facts.tick_age >= TICK_AGE_MAX && question != Question::Primary {
        let seconds = facts.tick_age.as_secs();
        return (false, format!("the node's loop has not ticked for {seconds} s"));
    }
    let replica = || replica(facts.status, limit);
    let told = |result: Result<(), String>, good: &str| match result {
        Ok(()) => (true, good.to_owned()),
        Err(reason) => (false, reason),
    };
    match question {
        Question::Live => (true, "the node's loop ticks".to_owned()),
        Question::Ready => {
            let answer = readiness(facts.status, writable);
            (answer.ready, answer.reason)
        }
        Question::Primary => (writable, why),
        Question::Replica => told(replica(), "attached and replaying"),
        Question::Synchronous => {
            told(replica().and_then(|()| synchronous(facts.status)), "commits wait for it")
        }
        Question::Asynchronous => match (replica(), synchronous(facts.status)) {
            (Ok(()), Ok(())) => (false, "commits wait for it".to_owned()),
            (result, _) => told(result, "attached and replaying, commits do not wait for it"),
        },
        Question::ReadOnly | Question::ReadOnlySync if writable => (true, why),
        Question::ReadOnly => told(replica(), "attached and replaying"),
        Question::ReadOnlySync => {
            told(replica().and_then(|()| synchronous(facts.status)), "commits wait for it")
        }
        Question::StandbyLeader => (false, "there is no standby cluster here".to_owned()),
        Question::Health => {
            let running = facts.status.own().is_some_and(|own| own.postgres_running);
            let word = if running { "PostgreSQL answers" } else { "PostgreSQL does not answer" };
            (running, word.to_owned())
        }
    }
}

/// A passive that follows, replays, and is not further behind than `limit`.
fn replica(status: &ClusterStatus, limit: Option<LagLimit>) -> Result<(), String> {
    replaying(status)?;
    let own = status.own().expect("just judged");
    limit.map_or(Ok(()), |limit| limit.check(own.replay_lag_bytes, own.replay_lag_seconds))
}

/// Commits are not acknowledged before they are durable at this node.
fn synchronous(status: &ClusterStatus) -> Result<(), String> {
    let zero = status.durability == DurabilityMode::Zero && !status.durability_lifted;
    let waited = status.waited_for.contains(&status.answered_by);
    // Where some of several suffice, any one of them may lack a commit.
    let all = status.durable_copies as usize >= status.waited_for.len();
    if zero && waited && all { Ok(()) } else { Err("commits do not wait for it".to_owned()) }
}
