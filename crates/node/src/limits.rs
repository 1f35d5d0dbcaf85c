//! Known limits of the gate at this node's server: looked for now and then, counted in metrics, put in
//! words for status. It only looks, on its own sessions, and nothing waits for it.

use std::time::Duration;

use metrics::{Unit, describe_gauge, gauge};
use tokio::sync::watch;
use understudy_postgres::Limits;

use crate::hands::{Hands, chain};
use crate::observer::LocalSeen;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(30);
/// A prepared transaction that is older than this is worth a warning.
const PREPARED_AGE_MAX: Duration = Duration::from_secs(300);
/// How many names a warning lists.
const NAMES_MAX: usize = 5;

/// Runs until the daemon ends; `warnings` is replaced after each look.
pub(crate) async fn look(
    hands: Hands,
    seen: watch::Receiver<LocalSeen>,
    warnings: watch::Sender<Vec<String>>,
) {
    let mut before = Vec::new();
    let mut every = tokio::time::interval(INTERVAL);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let mut answers = seen.clone();
        // While no server answers there is nothing to look at, and the first look is made as soon as
        // one does.
        if answers.borrow().observation.is_none() {
            record(None);
        }
        if answers.wait_for(|seen| seen.observation.is_some()).await.is_err() {
            return;
        }
        every.tick().await;
        match hands.server().limits().await {
            Ok(limits) => {
                record(Some(&limits));
                let words = words(&limits);
                if words != before {
                    words.iter().for_each(|words| tracing::warn!(words, "limit of the gate"));
                    before.clone_from(&words);
                }
                warnings.send_replace(words);
            }
            Err(error) => {
                // Unknown is unknown: the gauges say so, the words of the last look stay.
                record(None);
                tracing::debug!(error = chain(&error), "cannot look for known limits");
            }
        }
    }
}

fn record(limits: Option<&Limits>) {
    let set = |name: &'static str, value: &dyn Fn(&Limits) -> f64| {
        gauge!(name).set(limits.map_or(f64::NAN, value));
    };
    let flag = |value: bool| f64::from(u8::from(value));
    set("understudy_limits_ungated_defaults_count", &|l| l.ungated_defaults.len() as f64);
    set("understudy_limits_unlogged_tables_count", &|l| l.unlogged_tables_count as f64);
    set("understudy_limits_databases_unseen_count", &|l| l.databases_unseen_count as f64);
    set("understudy_limits_prepared_transactions_count", &|l| l.prepared_count as f64);
    set("understudy_limits_prepared_age_seconds", &|l| {
        l.prepared_age_max.map_or(0.0, |age| age.as_secs_f64())
    });
    set("understudy_limits_fsync_off", &|l| flag(l.fsync_off));
    set("understudy_limits_full_page_writes_off", &|l| flag(l.full_page_writes_off));
}

fn words(limits: &Limits) -> Vec<String> {
    let mut words = Vec::new();
    let ungated = &limits.ungated_defaults;
    if !ungated.is_empty() {
        let mut names = ungated[..ungated.len().min(NAMES_MAX)].join(", ");
        if ungated.len() > NAMES_MAX {
            names.push_str(&format!(" and {} more", ungated.len() - NAMES_MAX));
        }
        words.push(format!(
            "commits of {names} are not gated: synchronous_commit is off or local there; ALTER ROLE \
             or ALTER DATABASE … RESET synchronous_commit puts that right"
        ));
    }
    if limits.fsync_off {
        words.push("fsync is off: a crash may lose what was confirmed; switch it on".to_owned());
    }
    if limits.full_page_writes_off {
        words.push("full_page_writes is off: a crash may tear pages; switch it on".to_owned());
    }
    if let Some(age) = limits.prepared_age_max.filter(|age| *age > PREPARED_AGE_MAX) {
        words.push(format!(
            "{} prepared transactions are pending, the oldest for {} s; commit or roll them back",
            limits.prepared_count,
            age.as_secs()
        ));
    }
    words
}

/// Help for the metrics of this module and of the guardian.
pub(crate) fn describe() {
    for (name, unit, help) in GAUGES {
        match unit {
            Some(unit) => describe_gauge!(*name, *unit, *help),
            None => describe_gauge!(*name, *help),
        }
    }
    metrics::describe_counter!(
        "understudy_guardian_fences_total",
        "PostgreSQL ended by the guardian because the daemon did nothing at the deadline."
    );
}

const GAUGES: &[(&str, Option<Unit>, &str)] = &[
    ("understudy_guardian_up", None, "1 while the guardian answers this daemon."),
    (
        "understudy_limits_ungated_defaults_count",
        None,
        "Roles and databases whose default synchronous_commit goes around the gate; NaN if unknown. \
         What single sessions set cannot be seen.",
    ),
    (
        "understudy_limits_unlogged_tables_count",
        None,
        "Unlogged tables: neither gated nor replicated; NaN if unknown.",
    ),
    (
        "understudy_limits_databases_unseen_count",
        None,
        "Databases in which unlogged tables were not counted; NaN if unknown.",
    ),
    (
        "understudy_limits_prepared_transactions_count",
        None,
        "Prepared transactions that are pending; NaN if unknown.",
    ),
    (
        "understudy_limits_prepared_age_seconds",
        Some(Unit::Seconds),
        "Age of the oldest of them, 0 without any; NaN if unknown.",
    ),
    ("understudy_limits_fsync_off", None, "1 while fsync is off; NaN if unknown."),
    ("understudy_limits_full_page_writes_off", None, "1 while it is off; NaN if unknown."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_order_is_not_talked_about_and_what_is_not_says_what_to_do() {
        assert_eq!(words(&Limits::default()), Vec::<String>::new());
        let limits = Limits {
            ungated_defaults: (0..7).map(|n| format!("role r{n}")).collect(),
            prepared_count: 2,
            prepared_age_max: Some(Duration::from_secs(301)),
            fsync_off: true,
            full_page_writes_off: true,
            ..Limits::default()
        };
        let words = words(&limits);
        assert_eq!(words.len(), 4, "{words:?}");
        assert!(words[0].contains("role r4 and 2 more are not gated"), "{words:?}");
        assert!(words[3].contains("2 prepared") && words[3].contains("301 s"), "{words:?}");
    }

    #[test]
    fn every_metric_of_a_look_has_help_and_unknown_is_nan() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let text = metrics::with_local_recorder(&recorder, || {
            describe();
            record(Some(&Limits { prepared_count: 3, fsync_off: true, ..Limits::default() }));
            recorder.handle().render()
        });
        assert!(text.contains("understudy_limits_prepared_transactions_count 3"), "{text}");
        assert!(text.contains("understudy_limits_fsync_off 1"), "{text}");
        for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
            let name = line.split(' ').nth(2).unwrap();
            assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
        }
        let text = metrics::with_local_recorder(&recorder, || {
            record(None);
            recorder.handle().render()
        });
        assert!(text.contains("understudy_limits_fsync_off NaN"), "{text}");
    }
}
