//! The effective configuration as commented TOML; also what `understudy init` writes.
//!
//! Every field stands there with its value, so that nobody has to know a default by heart. Loading it
//! gives the same configuration.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use understudy_core::{OnPassiveLoss, OnSoleSurvivor};
use understudy_types::NodeKind;

use super::{AUTO, LogFormat, NodeConfig, PostgresConfig, WalConfig, duration, hooks, size};

/// A TOML string; debug form differs from it for exotic characters, so TOML itself writes it.
pub(super) fn text(value: &str) -> String {
    toml::Value::from(value).to_string()
}

fn path(value: &Path) -> String {
    text(&value.to_string_lossy())
}

pub(super) fn time(value: Duration) -> String {
    text(&duration::format(value))
}

fn kind(value: NodeKind) -> String {
    text(value.as_str())
}

/// Writes the whole file.
pub(super) fn show(config: &NodeConfig) -> String {
    let mut out = String::new();
    write_all(config, &mut out).expect("writing to a String cannot fail");
    out
}

fn write_all(config: &NodeConfig, out: &mut String) -> std::fmt::Result {
    identity(config, out)?;
    connections(config, out)?;
    members(config, out)?;
    if let Some(config) = &config.postgres {
        postgres(config, out)?;
    }
    durability(config, out)?;
    timing(config, out)?;
    log(config, out)?;
    wal(config, out)?;
    trace(config, out)?;
    hooks::show(config, out)
}

fn identity(config: &NodeConfig, out: &mut String) -> std::fmt::Result {
    writeln!(out, "# Understudy: configuration of node {}.", config.name)?;
    writeln!(
        out,
        "# Durations are \"750ms\", \"15s\", \"1h30m\"; relative paths count from here.\n"
    )?;
    writeln!(out, "# The cluster's identity; the same on every node and in every certificate.")?;
    writeln!(out, "cluster = {}", text(&config.cluster.to_string()))?;
    writeln!(out, "# This node; name, site and kind must agree with its entry in [[members]].")?;
    writeln!(out, "name = {}", text(config.name.as_str()))?;
    writeln!(out, "# The place that can be lost as a whole.")?;
    writeln!(out, "site = {}", text(config.site.as_str()))?;
    writeln!(
        out,
        "# \"data\" has a PostgreSQL, \"journal\" keeps WAL alone, \"witness\" only votes."
    )?;
    writeln!(out, "kind = {}", kind(config.kind))?;
    writeln!(
        out,
        "# The node's own directory (raft/, wal/, divergent/, run/). Its disk's fsync must"
    )?;
    writeln!(out, "# be honest; a disk apart from PostgreSQL's makes commits faster.")?;
    writeln!(out, "data_dir = {}", path(&config.data_dir))?;
    writeln!(out, "# The data node that the cluster is founded on; has no meaning afterwards.")?;
    writeln!(out, "initial_active = {}", text(config.initial_active.as_str()))?;
    writeln!(out, "# Data goes only to members whose region is named here; none named: anywhere.")?;
    let allowed: Vec<String> =
        config.allowed_regions.iter().map(|region| text(region.as_str())).collect();
    writeln!(out, "allowed_regions = [{}]", allowed.join(", "))
}

fn http(config: &NodeConfig, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n[http]")?;
    writeln!(out, "# Where others reach the door, for links on the status page and in /cluster.")?;
    writeln!(out, "advertise = {}", text(&config.http.advertise))?;
    writeln!(out, "# Also Patroni's metrics, under its names, for dashboards that know them.")?;
    writeln!(out, "patroni_metrics = {}", config.http.patroni_metrics)?;
    writeln!(
        out,
        "# A certificate that load balancers and browsers trust makes it HTTPS; both files"
    )?;
    writeln!(out, "# are read again when they change. Without them: plain HTTP.")?;
    match &config.http.tls {
        Some(tls) => {
            writeln!(out, "certificate = {}", path(&tls.certificate))?;
            writeln!(out, "key = {}", path(&tls.key))
        }
        None => writeln!(out, "# certificate = \"http.pem\"\n# key = \"http.key\""),
    }
}

fn connections(config: &NodeConfig, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n[listen]")?;
    writeln!(out, "# Peers and operators, mutual TLS. Default 0.0.0.0:7400.")?;
    writeln!(out, "grpc = {}", text(&config.listen_grpc.to_string()))?;
    writeln!(
        out,
        "# Load balancers, Prometheus and the status page (/ui): HTTP, read only; keep it"
    )?;
    writeln!(out, "# off public networks. Default: the address of grpc, port 7480.")?;
    writeln!(out, "http = {}", text(&config.listen_http.to_string()))?;
    http(config, out)?;
    writeln!(out, "\n[tls]")?;
    writeln!(
        out,
        "# The cluster's authority, and this node's certificate; the key must be readable"
    )?;
    writeln!(out, "# by its owner only (chmod 600).")?;
    writeln!(out, "ca = {}", path(&config.tls.ca))?;
    writeln!(out, "certificate = {}", path(&config.tls.certificate))?;
    writeln!(out, "key = {}", path(&config.tls.key))
}

fn members(config: &NodeConfig, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n# The founding members: the same list on every node.")?;
    writeln!(out, "# address is where the others reach the node's [listen] grpc.")?;
    for member in &config.members {
        writeln!(out, "[[members]]")?;
        writeln!(out, "name = {}", text(member.name.as_str()))?;
        writeln!(out, "id = {}", member.id)?;
        writeln!(out, "site = {}", text(member.site.as_str()))?;
        if let Some(region) = &member.region {
            writeln!(out, "region = {}", text(region.as_str()))?;
        }
        writeln!(out, "kind = {}", kind(member.kind))?;
        writeln!(out, "address = {}\n", text(&member.address))?;
    }
    Ok(())
}

fn postgres(config: &PostgresConfig, out: &mut String) -> std::fmt::Result {
    writeln!(out, "[postgres]")?;
    writeln!(out, "# Where PostgreSQL's programs are; found by itself unless set.")?;
    match &config.bin_dir {
        Some(dir) => writeln!(out, "bin_dir = {}", path(dir))?,
        None => writeln!(out, "# bin_dir = \"/usr/lib/postgresql/15/bin\"")?,
    }
    writeln!(out, "# PGDATA. The node makes, rewinds and replaces what is in it.")?;
    writeln!(out, "data_directory = {}", path(&config.data_directory))?;
    writeln!(out, "port = {}", config.port)?;
    writeln!(out, "# As in postgresql.conf. Default \"localhost\".")?;
    writeln!(out, "listen_addresses = {}", text(&config.listen_addresses))?;
    writeln!(out, "# Who PostgreSQL runs as; the node must be root, or this user itself.")?;
    writeln!(out, "os_user = {}", text(&config.os_user))?;
    writeln!(
        out,
        "# Where clients reach this PostgreSQL; shown by status. Default: this node's host."
    )?;
    writeln!(out, "advertise = {}", text(&config.advertise))?;
    writeln!(out, "# Its Unix socket. Default <data_dir>/run.")?;
    writeln!(out, "socket_directory = {}", path(&config.socket_directory))?;
    writeln!(out, "# End PostgreSQL when the lease runs out and the daemon is dead or frozen.")?;
    writeln!(out, "guardian = {}", config.guardian)?;
    writeln!(
        out,
        "\n# Your own settings. Those that replication rests on are refused, with the reason."
    )?;
    writeln!(out, "[postgres.parameters]")?;
    for (name, value) in &config.parameters {
        // Quoted, because an extension's settings have a dot in their names.
        writeln!(out, "{} = {}", text(name), text(value))?;
    }
    Ok(())
}

fn durability(config: &NodeConfig, out: &mut String) -> std::fmt::Result {
    let durability = &config.durability;
    writeln!(
        out,
        "\n# What the cluster is founded with. Afterwards the cluster itself has it, and"
    )?;
    writeln!(out, "# changes here have no effect: `understudy rpo set` changes it.")?;
    writeln!(out, "[durability]")?;
    writeln!(
        out,
        "# \"zero\": a commit waits until the passive has it. \"bounded\": it does not wait, but"
    )?;
    writeln!(out, "# never more than rpo can be lost. \"best-effort\": without that ceiling.")?;
    writeln!(out, "mode = {}", text(&durability.mode.to_string()))?;
    writeln!(out, "rpo = {}", time(durability.rpo))?;
    writeln!(
        out,
        "# Passive lost and the limit reached: \"stall\" holds commits back, \"degrade\" goes on"
    )?;
    writeln!(out, "# unprotected, recorded, after degrade_after.")?;
    let loss = match durability.on_passive_loss {
        OnPassiveLoss::Stall => "stall",
        OnPassiveLoss::Degrade => "degrade",
    };
    writeln!(out, "on_passive_loss = {}", text(loss))?;
    writeln!(out, "degrade_after = {}", time(durability.degrade_after))?;
    writeln!(
        out,
        "# A promoted node that is alone: \"open\" or \"stall\" until a passive is back."
    )?;
    let survivor = match durability.on_sole_survivor {
        OnSoleSurvivor::Open => "open",
        OnSoleSurvivor::Stall => "stall",
    };
    writeln!(out, "on_sole_survivor = {}", text(survivor))?;
    writeln!(
        out,
        "# In \"zero\": a passive takes over before the lease of a silent active is over. Readers"
    )?;
    writeln!(out, "# and sessions that opted out may go on at the old active until then.")?;
    writeln!(out, "promote_without_lease_wait = {}", durability.promote_without_lease_wait)?;
    writeln!(
        out,
        "# With several passives: at how many of them a commit has to be durable; 0 is at all of them."
    )?;
    writeln!(
        out,
        "# With fewer, a failover needs as many others to be heard as could have it alone."
    )?;
    writeln!(out, "durable_copies = {}", durability.durable_copies)
}

fn timing(config: &NodeConfig, out: &mut String) -> std::fmt::Result {
    let timing = &config.timing;
    writeln!(
        out,
        "\n# Shorter is a quicker failover and more false alarms. The inequalities between these"
    )?;
    writeln!(
        out,
        "# are checked. profile = \"default\" or \"fast\" sets all that are not set here."
    )?;
    writeln!(out, "[timing]")?;
    writeln!(
        out,
        "# Raft. The round trip between its leader and the nearer of the others stays below {}.",
        duration::format(timing.round_trip_max())
    )?;
    writeln!(out, "heartbeat = {}", time(timing.heartbeat))?;
    writeln!(out, "election_min = {}", time(timing.election_min))?;
    writeln!(out, "election_max = {}", time(timing.election_max))?;
    writeln!(
        out,
        "# How long the active may go on without hearing from a majority; a failover waits"
    )?;
    writeln!(out, "# this long.")?;
    writeln!(out, "lease_ttl = {}", time(timing.ttl))?;
    writeln!(out, "renew_interval = {}", time(timing.renew))?;
    writeln!(
        out,
        "# What the active gives away of its lease for pauses and for killing PostgreSQL."
    )?;
    writeln!(out, "margin = {}", time(timing.margin))?;
    writeln!(out, "# How far two machines' clocks may run apart, as a ratio.")?;
    writeln!(out, "drift_bound = {:?}", f64::from(timing.drift_ppm) / 1e6)?;
    writeln!(
        out,
        "# From the third automatic failover within the window on, each waits so much longer than"
    )?;
    writeln!(
        out,
        "# the lease, doubled each time up to the bound; ordered ones never wait. \"0s\" is off."
    )?;
    writeln!(out, "flap_window = {}", time(config.damping.window))?;
    writeln!(out, "flap_hold = {}", time(config.damping.hold))?;
    writeln!(out, "flap_hold_max = {}", time(config.damping.hold_max))
}

fn log(config: &NodeConfig, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n[log]")?;
    writeln!(out, "# \"text\" or \"json\".")?;
    let format = match config.log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    writeln!(out, "format = {}", text(format))?;
    writeln!(
        out,
        "# error, warn, info, debug, trace, or directives as \"info,understudy_shipping=debug\"."
    )?;
    writeln!(out, "level = {}", text(&config.log.level))
}

fn trace(config: &NodeConfig, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n[trace]")?;
    writeln!(
        out,
        "# What the decision recorder may occupy in <data_dir>/trace; the oldest file is"
    )?;
    writeln!(out, "# removed first, \"0\" records nothing. `understudy replay` explains a trace.")?;
    writeln!(out, "size = {}", text(&size::format(config.trace_bytes_max)))
}

fn wal(config: &NodeConfig, out: &mut String) -> std::fmt::Result {
    let WalConfig { keep_bytes, bytes_max, reserve_bytes } = config.wal;
    let or_auto = |bytes: Option<u64>| text(&bytes.map_or(AUTO.to_owned(), size::format));
    writeln!(out, "\n[wal]")?;
    writeln!(
        out,
        "# Kept in journal and pg_wal behind all that is needed: a node that was away no longer"
    )?;
    writeln!(out, "# than that catches up without a fresh copy.")?;
    writeln!(out, "keep = {}", text(&size::format(keep_bytes)))?;
    writeln!(
        out,
        "# The most that the journal holds, and that the active keeps for a node that is away, which"
    )?;
    writeln!(
        out,
        "# is copied afresh beyond it. \"auto\": a quarter of the file system, 1GiB at least."
    )?;
    writeln!(out, "max = {}", or_auto(bytes_max))?;
    writeln!(
        out,
        "# What WAL leaves free of a file system. \"auto\": a twentieth of it, 4GiB at most."
    )?;
    writeln!(out, "reserve = {}", or_auto(reserve_bytes))
}
