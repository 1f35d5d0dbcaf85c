//! What is judged of the cluster and of each node by itself. Pure: what was seen in, findings out.

use std::collections::BTreeMap;
use std::time::Duration;

use understudy_core::Timing;
use understudy_proto::v1;

use super::{FINDINGS_MAX, Finding, Severity, ValidationReport, ValidationVerdict, compare};
use crate::status::{ClusterStatus, NodeStatus, SiteRole};

/// What a promotion takes beside the end of the lease and what is left to replay: to decide, to seal, to
/// collect and to open. Runs of the fault rig took 0.2 to 0.9 s for it (docs/measured/outages-2026-11.md).
const PROMOTION: Duration = Duration::from_secs(1);
/// Replay that is further behind adds to the outage what nobody planned for.
const REPLAY_BEHIND_MAX_SECONDS: f64 = 10.0;
/// Part of the ceiling beyond which the loss is worth a word.
const EXPOSURE_SHARE_MAX: f64 = 0.5;
/// A member that was not heard for so long is missing.
const SILENCE_MAX_SECONDS: f64 = 5.0;
/// Clocks further apart mislead whoever compares logs, receipts and certificates.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(1);
/// Certificates: to be renewed soon, and at once.
const EXPIRY_NEAR: Duration = Duration::from_secs(30 * 86_400);
const EXPIRY_AT_HAND: Duration = Duration::from_secs(3 * 86_400);
/// Part of a file system that should be free.
const FREE_SHARE_MIN: f64 = 0.1;
const FREE_SHARE_LEAST: f64 = 0.03;
/// Names that one finding lists.
const NAMES_MAX: usize = 5;

/// What one node said, and how its clock stood to the judge's.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// What it knows of itself, or why nothing was heard.
    pub(crate) fitness: Result<v1::Fitness, String>,
    /// Its wall clock minus the judge's, and by how much that may be wrong.
    pub(crate) clock_ahead_us: Option<(i64, u64)>,
}

/// Everything that is judged.
pub(crate) struct Evidence<'a> {
    pub(crate) status: &'a ClusterStatus,
    /// By name, the judging node's own included.
    pub(crate) answers: &'a BTreeMap<String, Answer>,
    pub(crate) timing: Timing,
    pub(crate) now_unix_us: i64,
}

impl<'a> Evidence<'a> {
    pub(super) fn fitness(&self, node: &str) -> Option<&'a v1::Fitness> {
        self.answers.get(node)?.fitness.as_ref().ok()
    }

    pub(super) fn postgres(&self, node: &str) -> Option<&'a v1::PostgresFitness> {
        self.fitness(node)?.postgres.as_ref()
    }

    /// The active, if there is one, and the passives.
    pub(super) fn data_nodes(&self) -> (Option<&'a NodeStatus>, Vec<&'a NodeStatus>) {
        let of = |role| self.status.nodes.iter().filter(move |node| node.role == role);
        (of(SiteRole::Active).next(), of(SiteRole::Passive).collect())
    }
}

/// A list that grows.
#[derive(Default)]
pub(super) struct Findings(pub(super) Vec<Finding>);

impl Findings {
    pub(super) fn add(
        &mut self,
        severity: Severity,
        code: &str,
        node: Option<&str>,
        words: String,
        remedy: &str,
    ) {
        let node = node.map(str::to_owned);
        let (code, remedy) = (code.to_owned(), remedy.to_owned());
        self.0.push(Finding { severity, code, node, words, remedy });
    }
}

/// Judges everything.
pub(crate) fn judge(evidence: &Evidence<'_>) -> ValidationReport {
    let mut found = Findings::default();
    cluster(evidence, &mut found);
    for node in &evidence.status.nodes {
        answer(evidence, node, &mut found);
    }
    let (_, passives) = evidence.data_nodes();
    for passive in passives {
        replay(passive, &mut found);
    }
    compare::compare(evidence, &mut found);
    let mut findings = found.0;
    findings.sort_by(|a, b| (a.severity, &a.node, &a.code).cmp(&(b.severity, &b.node, &b.code)));
    let verdict = match findings.first().map(|worst| worst.severity) {
        Some(Severity::Block) => ValidationVerdict::NotReady,
        Some(Severity::Risk) => ValidationVerdict::AtRisk,
        Some(Severity::Note) | None => ValidationVerdict::Ready,
    };
    if findings.len() > FINDINGS_MAX {
        let more = findings.len() - FINDINGS_MAX;
        findings.truncate(FINDINGS_MAX);
        let words = format!("{more} more findings are not listed");
        let remedy = "resolve those that are listed, then look again".to_owned();
        let code = "more-findings".to_owned();
        findings.push(Finding { severity: Severity::Note, code, node: None, words, remedy });
    }
    let status = evidence.status;
    let answered = status.failover.would_fail_over;
    ValidationReport {
        at_unix_us: evidence.now_unix_us,
        judged_by: status.answered_by.clone(),
        verdict,
        findings,
        expected_outage_seconds: expected_outage(evidence),
        expected_loss_seconds: status.exposure_seconds.filter(|_| answered),
        expected_loss_bytes: status.exposure_bytes.filter(|_| answered),
    }
}

/// From the loss of the active to the first commit elsewhere, at most. Not known when nobody would take
/// over, or when flapping is damped and the wait grows.
fn expected_outage(evidence: &Evidence<'_>) -> Option<f64> {
    let failover = &evidence.status.failover;
    if !failover.would_fail_over || failover.reason == "damped" {
        return None;
    }
    let (_, passives) = evidence.data_nodes();
    let eligible = |node: &&&NodeStatus| evidence.status.eligible.contains(&node.name);
    let behind = passives.iter().filter(eligible).filter_map(|node| node.replay_lag_seconds);
    let replay = behind.fold(0.0, f64::max);
    let timing = evidence.timing;
    Some((timing.challenger_span(timing.ttl) + PROMOTION).as_secs_f64() + replay)
}

fn cluster(evidence: &Evidence<'_>, found: &mut Findings) {
    let status = evidence.status;
    if !status.failover.would_fail_over {
        let remedy = match &status.failover.accept_command {
            Some(command) => format!("to accept the loss: `{command}`"),
            None => remedy_of(&status.failover.reason).to_owned(),
        };
        let words = format!("no automatic failover: {}", status.failover.words);
        found.add(Severity::Block, "no-failover", None, words, &remedy);
    } else if status.failover.reason == "damped" {
        let remedy =
            "find out why the active was lost so often; `understudy failover` does not wait";
        found.add(Severity::Risk, "damped", None, status.failover.words.clone(), remedy);
    }
    if status.durability_lifted {
        let words = "commits wait for nobody: what the active alone has is lost with it".to_owned();
        let remedy = "bring a passive back; `understudy status` says what each of them lacks";
        found.add(Severity::Risk, "unprotected", None, words, remedy);
    }
    if let (Some(exposure), Some(ceiling)) = (status.exposure_seconds, status.rpo_ceiling_seconds)
        && exposure > ceiling * EXPOSURE_SHARE_MAX
    {
        let words = format!("{exposure:.0} s of commits would be lost, of {ceiling:.0} s allowed");
        let remedy = "find what holds the passive up: its line, its disk, its machine";
        found.add(Severity::Risk, "exposed", None, words, remedy);
    }
    let data = status
        .nodes
        .iter()
        .filter(|node| matches!(node.role, SiteRole::Active | SiteRole::Passive));
    let checked = data.clone().any(|node| {
        evidence.fitness(&node.name).is_some_and(|fitness| !fitness.health_checkers.is_empty())
    });
    if !checked && data.count() > 0 {
        let words = "no load balancer has asked a node lately who is active".to_owned();
        let remedy = "nothing, if clients find it by themselves (`target_session_attrs`); else point the \
                      load balancer's check at /primary of every data node";
        found.add(Severity::Note, "no-health-checks", None, words, remedy);
    }
}

/// What would make a failover possible again, by the verdict's word.
fn remedy_of(reason: &str) -> &'static str {
    match reason {
        "paused" => "`understudy resume`",
        "no-majority" | "no-votes" | "too-few-voters" => {
            "start the missing nodes, or mend the line to them; a majority of all members decides"
        }
        "no-passive" | "sole-survivor" => "bring another data node in",
        "bootstrap" | "not-founded" => "start every member; a cluster is founded when all have met",
        "candidate-silent" => "start the passive's daemon, or mend the line to it",
        "candidate-not-ready" | "candidate-behind" | "not-eligible" | "unprotected" => {
            "wait until the passive has caught up; `understudy status` shows its progress or trouble"
        }
        "candidate-elsewhere" => "let the passive rejoin; `understudy status` shows what it does",
        "candidate-marked" => {
            "look at the mark in `understudy status`; the copy is not to be trusted"
        }
        "too-few-copies" => "start the passives that are missing",
        "over-ceiling" | "over-limit" | "loss-not-accepted" => {
            "find what holds the passive up, or accept the loss when the active is gone"
        }
        _ => "`understudy status` says how it stands",
    }
}

/// What one node said of itself, whatever the others are.
fn answer(evidence: &Evidence<'_>, node: &NodeStatus, found: &mut Findings) {
    let name = Some(node.name.as_str());
    let Some(answer) = evidence.answers.get(&node.name) else { return };
    let fitness = match &answer.fitness {
        Ok(fitness) => fitness,
        Err(why) => {
            let remedy = "start its daemon, or mend the line to it";
            let words = format!("it did not say how it stands: {why}");
            found.add(Severity::Risk, "not-answering", name, words, remedy);
            return;
        }
    };
    for trouble in &fitness.troubles {
        let remedy = "look into its daemon's log";
        found.add(Severity::Risk, "not-looked-at", name, trouble.clone(), remedy);
    }
    for warning in &node.warnings {
        let remedy = "the sentence says it; docs/runbook.md says more";
        found.add(Severity::Risk, "warning", name, warning.clone(), remedy);
    }
    for gap in &fitness.wal_gaps {
        let remedy = "`understudy wal verify` says where a sound copy is";
        found.add(Severity::Block, "wal-gap", name, gap.clone(), remedy);
    }
    heard(fitness, found);
    reached(evidence, fitness, found);
    certificates(evidence.now_unix_us, fitness, found);
    disks(fitness, found);
    clock(&node.name, answer.clock_ahead_us, found);
    if let Some(postgres) = &fitness.postgres {
        server(&node.name, postgres, found);
    }
}

fn heard(fitness: &v1::Fitness, found: &mut Findings) {
    for member in &fitness.heard {
        let words = match member.seconds_ago {
            Some(seconds) if seconds <= SILENCE_MAX_SECONDS => continue,
            Some(seconds) => format!("it has not heard {} for {seconds:.0} s", member.node),
            None => format!("it has never heard {}", member.node),
        };
        let remedy = "mend the line between the two; every node has to reach every other one on its \
                      gRPC port";
        found.add(Severity::Risk, "not-heard", Some(&fitness.node), words, remedy);
    }
}

/// Clients are somewhere else; but where no other node gets through, nobody is likely to.
fn reached(evidence: &Evidence<'_>, fitness: &v1::Fitness, found: &mut Findings) {
    let to_here = evidence.status.nodes.iter().filter(|node| node.name != fitness.node);
    let tried = to_here.filter_map(|other| {
        let reached = &evidence.fitness(&other.name)?.reached;
        Some((other, reached.iter().find(|reached| reached.node == fitness.node)?))
    });
    let tried: Vec<_> = tried.collect();
    let failed: Vec<_> = tried.iter().filter(|(_, reached)| !reached.trouble.is_empty()).collect();
    let Some((first, trouble)) = failed.first() else { return };
    let all = failed.len() == tried.len();
    let severity = if all { Severity::Block } else { Severity::Risk };
    let who = if all { "no other node".to_owned() } else { format!("{} cannot", first.name) };
    let verb = if all { "reaches" } else { "reach" };
    let words = format!("{who} {verb} its PostgreSQL at {}: {}", trouble.address, trouble.trouble);
    let remedy = "postgres.listen_addresses and postgres.advertise of its node.toml, and firewalls on the \
                  way: after a failover clients come from there";
    found.add(severity, "postgres-not-reached", Some(&fitness.node), words, remedy);
}

fn certificates(now_unix_us: i64, fitness: &v1::Fitness, found: &mut Findings) {
    let both = [
        ("its certificate", fitness.certificate_not_after_unix_us),
        ("the authority's certificate", fitness.authority_not_after_unix_us),
    ];
    for (which, not_after) in both {
        let Some(left) = not_after.map(|at| at - now_unix_us) else { continue };
        let near = |span: Duration| left < i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        let severity = match () {
            () if near(EXPIRY_AT_HAND) => Severity::Block,
            () if near(EXPIRY_NEAR) => Severity::Risk,
            () => continue,
        };
        let days = left / 86_400_000_000;
        let words = match left < 0 {
            true => format!("{which} has expired: nobody lets it in"),
            false => format!("{which} expires in {days} days; then nobody lets it in"),
        };
        let remedy =
            "issue a new one and put it in place (docs/runbook.md, UnderstudyCertificateExpires)";
        found.add(severity, "certificate-expires", Some(&fitness.node), words, remedy);
    }
}

fn disks(fitness: &v1::Fitness, found: &mut Findings) {
    for disk in fitness.disks.iter().filter(|disk| disk.total_bytes > 0) {
        let share = disk.free_bytes as f64 / disk.total_bytes as f64;
        let severity = match () {
            () if share < FREE_SHARE_LEAST => Severity::Block,
            () if share < FREE_SHARE_MIN => Severity::Risk,
            () => continue,
        };
        let words = format!(
            "{:.1} % of the disk of its {} are free ({} MiB)",
            share * 100.0,
            disk.what.replace('-', " "),
            disk.free_bytes >> 20
        );
        let remedy = "make room: a server that cannot write is no successor";
        found.add(severity, "disk-full", Some(&fitness.node), words, remedy);
    }
}

fn clock(node: &str, ahead: Option<(i64, u64)>, found: &mut Findings) {
    let Some((ahead_us, uncertain_us)) = ahead else { return };
    let apart = Duration::from_micros(ahead_us.unsigned_abs().saturating_sub(uncertain_us));
    if apart <= CLOCKS_APART_MAX {
        return;
    }
    let direction = if ahead_us > 0 { "ahead of" } else { "behind" };
    let words =
        format!("its wall clock is {:.1} s {direction} the judging node's", apart.as_secs_f64());
    let remedy = "have both clocks kept by NTP; no decision rests on them, but times in logs, receipts and \
                  certificates do";
    found.add(Severity::Risk, "clocks-apart", Some(node), words, remedy);
}

/// What a server lacks by itself.
fn server(node: &str, postgres: &v1::PostgresFitness, found: &mut Findings) {
    let node = Some(node);
    let mut list = |severity, code: &str, names: &[String], what: &str, remedy: &str| {
        if !names.is_empty() {
            found.add(severity, code, node, format!("{what}: {}", listed(names)), remedy);
        }
    };
    let (block, risk) = (Severity::Block, Severity::Risk);
    let remedy = "install the package that has them, in the same version as at the active";
    let what = "libraries that functions here need are not installed";
    list(block, "library-missing", &postgres.missing_libraries, what, remedy);
    let what = "databases here refuse connections";
    let remedy = "the reason is PostgreSQL's own; a locale that is not installed is the usual one";
    list(block, "database-refused", &postgres.refused_databases, what, remedy);
    let what = "lines of pg_hba.conf are not understood, so that changes to it have no effect";
    list(risk, "hba-broken", &postgres.hba_errors, what, "correct the line, and reload PostgreSQL");
    let what = "extensions whose files are not installed";
    let remedy = "install the package in the same version as at the active";
    list(risk, "extension-missing", &postgres.missing_extensions, what, remedy);
    let what = "made with another version of the system's collations, so that indexes over text may be out \
                of order here";
    let remedy = "the same C library or ICU on every node; after an upgrade REINDEX and ALTER … REFRESH \
                  COLLATION VERSION at the active";
    list(risk, "collation-changed", &postgres.changed_collations, what, remedy);
    let what = "not carried over by a failover: logical replication slots";
    let remedy = "have the subscriber make them anew after a role change, with its data checked";
    list(risk, "logical-slots", &postgres.logical_slots, what, remedy);
    let what = "changed, but only in force after a restart of PostgreSQL";
    let remedy =
        "restart PostgreSQL there when it suits; a failover restarts nothing at the new active";
    list(risk, "restart-pending", &postgres.pending_restart, what, remedy);
    let what = "set by ALTER SYSTEM, which counts instead of what node.toml and the node say";
    let remedy = "ALTER SYSTEM RESET there, and the wanted value below [postgres.parameters] of node.toml; \
                  without the node's own limits WAL that is kept for somebody can fill the disk";
    list(risk, "setting-overridden", &postgres.overridden, what, remedy);
    if let Some(segment) = &postgres.archive_failing {
        let words =
            format!("archive_command fails, at {segment}: PostgreSQL keeps all WAL since then");
        found.add(
            Severity::Risk,
            "archive-fails",
            node,
            words,
            "mend the archive; PostgreSQL's log has the reason",
        );
    }
    if postgres.unseen_databases_count > 0 {
        let count = postgres.unseen_databases_count;
        let words = format!("{count} databases were not looked into for libraries and collations");
        let remedy = "those that were looked into stand for them, as far as they are alike";
        found.add(Severity::Note, "databases-unseen", node, words, remedy);
    }
}

fn replay(passive: &NodeStatus, found: &mut Findings) {
    let name = Some(passive.name.as_str());
    if passive.replay_paused {
        let words =
            "somebody has paused replay there: what has gathered is replayed before it opens"
                .to_owned();
        found.add(
            Severity::Risk,
            "replay-paused",
            name,
            words,
            "SELECT pg_wal_replay_resume() there",
        );
    }
    if let Some(seconds) = passive.replay_lag_seconds.filter(|s| *s > REPLAY_BEHIND_MAX_SECONDS) {
        let words = format!("its replay is {seconds:.0} s behind, which a failover would wait for");
        let remedy = "long queries there, a lock that replay waits for, or a slow disk: see pg_stat_activity";
        found.add(Severity::Risk, "replay-behind", name, words, remedy);
    }
}

/// The first names, and how many more there are.
pub(super) fn listed(names: &[String]) -> String {
    let shown = names[..names.len().min(NAMES_MAX)].join(", ");
    match names.len().saturating_sub(NAMES_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
