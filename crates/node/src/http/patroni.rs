//! The answers that tools for Patroni read: `/patroni`, `/cluster`, `/history`, `/config`, and its names
//! of metrics. Pure: facts in, JSON or text out.
//!
//! Keys and their meaning follow Patroni's REST API documentation
//! (<https://patroni.readthedocs.io/en/latest/rest_api.html>, version 4.1); LSNs are numbers there, and a
//! lag that is not known is the word `unknown`. What has no counterpart here is left out.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use understudy_types::{Lsn, NodeKind};

use super::answer::Facts;
use crate::status::{ClusterStatus, NodeStatus, SiteRole, Waited};

/// What `version` in the `patroni` object says: tools look at the key, and people at the value.
const VERSION: &str = concat!("understudy ", env!("CARGO_PKG_VERSION"));

/// `/patroni`: the answering node.
pub(super) fn node(facts: &Facts<'_>) -> Value {
    let status = facts.present();
    let mut node = Map::new();
    let mut put = |key: &str, value: Value| node.insert(key.to_owned(), value);
    if let Some(own) = status.own() {
        put("state", state(own).into());
        put("role", role(own).into());
        if let Some(started) = own.postmaster_start_unix_us {
            put("postmaster_start_time", time(started).into());
        }
        if let Some(version) = own.server_version_num {
            put("server_version", version.into());
        }
        put("xlog", positions(own));
        if let Some(timeline) = own.timeline {
            put("timeline", timeline.get().into());
        }
        if own.role == SiteRole::Active {
            put("replication", replication(&status));
        }
        if streams(own) {
            put("replication_state", "streaming".into());
        }
        match status.waited(&own.name) {
            Waited::Each => drop(put("sync_standby", true.into())),
            Waited::Some => drop(put("quorum_standby", true.into())),
            Waited::No => {}
        }
    }
    if status.own().is_some_and(|own| !own.pending_restart.is_empty()) {
        put("pending_restart", true.into());
    }
    if status.paused_until_unix_us.is_some() {
        put("pause", true.into());
    }
    if status.active.is_none() {
        put("cluster_unlocked", true.into());
    }
    if status.majority {
        put("dcs_last_seen", (status.at_unix_us / 1_000_000).into());
    }
    if let Some(id) = status.system_id {
        put("database_system_identifier", id.to_string().into());
    }
    let scope = status.cluster.to_string();
    put("patroni", json!({ "version": VERSION, "scope": scope, "name": status.answered_by }));
    Value::Object(node)
}

/// `/cluster`: every node that has a PostgreSQL.
pub(super) fn cluster(facts: &Facts<'_>) -> Value {
    let status = facts.present();
    let data = status.nodes.iter().filter(|node| node.kind == NodeKind::Data);
    let members: Vec<Value> = data.map(|node| member(&status, node, facts.scheme)).collect();
    let mut cluster = json!({ "members": members, "scope": status.cluster.to_string() });
    if status.paused_until_unix_us.is_some() {
        cluster["pause"] = true.into();
    }
    if let Some(scheduled) = &status.scheduled_switchover {
        cluster["scheduled_switchover"] = json!({
            "at": iso_time(scheduled.at_unix_us), "from": status.active, "to": scheduled.to,
        });
    }
    cluster
}

/// `/history`: each promotion but the first, as `[timeline left, LSN, reason, time, new leader]`.
pub(super) fn history(status: &ClusterStatus) -> Value {
    let rows = status.promotions().map(|p| {
        let at = p.grant.at_unix_us.map(time);
        json!([p.left.get(), p.fork_lsn.0, p.reason, at, p.grant.node])
    });
    rows.collect()
}

fn member(status: &ClusterStatus, node: &NodeStatus, scheme: &str) -> Value {
    let mut member = json!({
        "name": node.name,
        "role": match (node.role, status.waited(&node.name)) {
            (SiteRole::Active, _) => "leader",
            (_, Waited::Each) => "sync_standby",
            (_, Waited::Some) => "quorum_standby",
            (_, Waited::No) => "replica",
        },
        "state": if streams(node) { "streaming" } else { state(node) },
        "site": node.site,
    });
    if !node.pending_restart.is_empty() {
        member["pending_restart"] = true.into();
    }
    if let Some(address) = &node.http_address {
        member["api_url"] = format!("{scheme}://{address}/patroni").into();
    }
    if let Some((host, port)) = node.postgres_address.as_deref().and_then(|a| a.rsplit_once(':')) {
        member["host"] = host.trim_matches(['[', ']']).into();
        member["port"] = port.parse::<u16>().map_or(Value::Null, Into::into);
    }
    if let Some(timeline) = node.timeline {
        member["timeline"] = timeline.get().into();
    }
    if node.role == SiteRole::Active {
        member["lsn"] = lsn(node.flush_lsn);
        return member;
    }
    let unknown = |lag: Option<u64>| lag.map_or_else(|| Value::from("unknown"), Value::from);
    member["lag"] = unknown(node.replay_lag_bytes);
    member["lsn"] = lsn(node.replay_lsn);
    member["receive_lag"] = unknown(node.durable_lag_bytes);
    member["receive_lsn"] = lsn(node.durable_lsn);
    member["replay_lag"] = unknown(node.replay_lag_bytes);
    member["replay_lsn"] = lsn(node.replay_lsn);
    member
}

/// Its journal receives the stream, and its server is there to replay it.
fn streams(node: &NodeStatus) -> bool {
    node.role == SiteRole::Passive && node.attached && node.postgres_running
}

/// Patroni's word for the state of a node's PostgreSQL.
fn state(node: &NodeStatus) -> &'static str {
    if node.postgres_running {
        "running"
    } else if node.state == "unreachable" {
        "unknown"
    } else {
        "stopped"
    }
}

fn role(node: &NodeStatus) -> &'static str {
    match node.role {
        SiteRole::Active => "primary",
        SiteRole::Passive => "replica",
        SiteRole::Witness => "witness",
        SiteRole::Journal => "journal",
    }
}

fn positions(node: &NodeStatus) -> Value {
    if node.role == SiteRole::Active {
        return json!({ "location": lsn_number(node.flush_lsn) });
    }
    json!({
        "received_location": lsn_number(node.durable_lsn),
        "replayed_location": lsn_number(node.replay_lsn),
        "replayed_timestamp": node.replayed_commit_unix_us.map(time),
        "paused": node.replay_paused,
    })
}

/// Who follows, as PostgreSQL's own view would list them.
fn replication(status: &ClusterStatus) -> Value {
    let attached =
        status.nodes.iter().filter(|node| node.attached && node.role == SiteRole::Passive);
    let rows = attached.map(|node| {
        json!({
            "application_name": node.name,
            "client_addr": node.grpc_address.rsplit_once(':').map(|(host, _)| host),
            "state": "streaming",
            "sync_state": match status.waited(&node.name) {
                Waited::Each => "sync",
                Waited::Some => "quorum",
                Waited::No => "async",
            },
        })
    });
    rows.collect()
}

fn lsn(lsn: Option<Lsn>) -> Value {
    lsn.map_or_else(|| Value::from("unknown"), |lsn| lsn.to_string().into())
}

fn lsn_number(lsn: Option<Lsn>) -> Value {
    lsn.map_or(Value::Null, |lsn| lsn.0.into())
}

/// As Python's `isoformat` writes it, with its separator, in `/cluster`.
fn iso_time(unix_us: i64) -> String {
    time(unix_us).replacen(' ', "T", 1)
}

/// As Python's `isoformat` writes it.
fn time(unix_us: i64) -> String {
    Timestamp::from_microsecond(unix_us).map_or_else(
        |_| String::new(),
        |time| time.strftime("%Y-%m-%d %H:%M:%S.%6f+00:00").to_string(),
    )
}

/// The metrics of Patroni that have a counterpart here, under its names, in the text format.
pub(super) fn metrics(facts: &Facts<'_>) -> String {
    let status = facts.present();
    let Some(own) = status.own() else { return String::new() };
    let labels = format!("{{scope=\"{}\",name=\"{}\"}}", status.cluster, own.name);
    let mut text = String::new();
    let mut put = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        // What is not known is not there at all: their dashboards do not expect NaN.
        if let Some(value) = value {
            let name = format!("patroni_{name}");
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{labels} {value}"
            );
        }
    };
    let flag = |yes: bool| Some(f64::from(u8::from(yes)));
    let replica = own.role == SiteRole::Passive;
    let waited = status.waited(&own.name);
    let at = |lsn: Option<Lsn>| lsn.map(|lsn| lsn.0 as f64);
    let seconds = |unix_us: Option<i64>| unix_us.map(|us| us as f64 / 1e6);
    put("postgres_running", "gauge", "1 if PostgreSQL answers.", flag(own.postgres_running));
    put(
        "postmaster_start_time",
        "gauge",
        "When the postmaster started, Unix time.",
        seconds(own.postmaster_start_unix_us),
    );
    put("primary", "gauge", "1 if this node may be written to.", flag(own.writable));
    put("standby_leader", "gauge", "Always 0: there are no standby clusters.", Some(0.0));
    put("replica", "gauge", "1 if this node is a passive.", flag(replica));
    put("sync_standby", "gauge", "1 if every commit waits for it.", flag(waited == Waited::Each));
    put(
        "quorum_standby",
        "gauge",
        "1 if commits wait for some, it among them.",
        flag(waited == Waited::Some),
    );
    let active = own.role == SiteRole::Active;
    put(
        "xlog_location",
        "counter",
        "WAL flushed by the primary.",
        at(own.flush_lsn.filter(|_| active)),
    );
    put(
        "xlog_received_location",
        "counter",
        "WAL durable at the passive.",
        at(own.durable_lsn.filter(|_| replica)),
    );
    put(
        "xlog_replayed_location",
        "counter",
        "WAL replayed by the standby.",
        at(own.replay_lsn.filter(|_| replica)),
    );
    put(
        "xlog_replayed_timestamp",
        "gauge",
        "When the newest replayed commit was made, Unix time.",
        seconds(own.replayed_commit_unix_us),
    );
    put("xlog_paused", "gauge", "1 if replay is paused.", flag(own.replay_paused));
    put("postgres_streaming", "gauge", "1 if WAL streams in.", flag(streams(own)));
    put(
        "postgres_in_archive_recovery",
        "gauge",
        "1 if the standby replays without a stream.",
        flag(replica && own.postgres_running && !own.attached),
    );
    put(
        "postgres_server_version",
        "gauge",
        "PostgreSQL's server_version_num.",
        own.server_version_num.map(f64::from),
    );
    put(
        "pending_restart",
        "gauge",
        "1 if a setting waits for a restart of PostgreSQL.",
        flag(!own.pending_restart.is_empty()),
    );
    put("cluster_unlocked", "gauge", "1 if nobody holds the lease.", flag(status.active.is_none()));
    put(
        "postgres_timeline",
        "gauge",
        "PostgreSQL's timeline.",
        own.timeline.map(|timeline| f64::from(timeline.get())),
    );
    put(
        "dcs_last_seen",
        "gauge",
        "When a majority was last heard, Unix time; absent while none is.",
        status.majority.then_some((status.at_unix_us / 1_000_000) as f64),
    );
    put(
        "is_paused",
        "gauge",
        "1 if automatic failover is paused.",
        flag(status.paused_until_unix_us.is_some()),
    );
    text
}
