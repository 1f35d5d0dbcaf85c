//! What the newest report says, for Prometheus. Before the first one nothing is known, which is NaN.

use metrics::{Unit, describe_gauge, gauge};

use super::{Severity, ValidationReport, ValidationVerdict};

pub(super) fn record(report: &ValidationReport) {
    let or_nan = |value: Option<f64>| value.unwrap_or(f64::NAN);
    gauge!("understudy_validation_last_timestamp_seconds").set(report.at_unix_us as f64 / 1e6);
    let works = report.verdict != ValidationVerdict::NotReady;
    gauge!("understudy_validation_would_work").set(f64::from(u8::from(works)));
    for severity in Severity::ALL {
        gauge!("understudy_validation_findings_count", "severity" => severity.as_str())
            .set(report.count(severity) as f64);
    }
    gauge!("understudy_validation_expected_outage_seconds")
        .set(or_nan(report.expected_outage_seconds));
    gauge!("understudy_validation_expected_loss_seconds").set(or_nan(report.expected_loss_seconds));
}

/// Help, and "unknown" until the first report.
pub(crate) fn describe() {
    let seconds = Some(Unit::Seconds);
    let gauges: &[(&str, Option<Unit>, &str)] = &[
        (
            "understudy_validation_last_timestamp_seconds",
            seconds,
            "When this node last looked whether a failover would work; NaN before the first time.",
        ),
        (
            "understudy_validation_would_work",
            None,
            "1 when nothing was found that would keep a failover from working; NaN while unknown.",
        ),
        (
            "understudy_validation_findings_count",
            None,
            "What was found, by severity: block, risk, note; NaN while unknown.",
        ),
        (
            "understudy_validation_expected_outage_seconds",
            seconds,
            "How long nobody could write if the active were lost now, at most; NaN while unknown.",
        ),
        (
            "understudy_validation_expected_loss_seconds",
            seconds,
            "What would be lost of the acknowledged if the active were lost now; NaN while unknown.",
        ),
    ];
    for (name, unit, help) in gauges {
        match unit {
            Some(unit) => describe_gauge!(*name, *unit, *help),
            None => describe_gauge!(*name, *help),
        }
        match *name {
            "understudy_validation_findings_count" => {
                for severity in Severity::ALL {
                    gauge!(*name, "severity" => severity.as_str()).set(f64::NAN);
                }
            }
            name => gauge!(name).set(f64::NAN),
        }
    }
}
