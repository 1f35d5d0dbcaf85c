//! Would a failover work now? Every node looks, asks the others what they know of themselves, compares and
//! judges: what stands in the way, what would come back changed, what it would cost, and what to do.
//!
//! It only looks and tells: no decision of the cluster rests on it. What is judged is pure (`judge`,
//! `compare`); what is asked is bounded in time and may be missing, which is then a finding itself.

mod compare;
mod describe;
mod judge;
mod metrics;
mod service;
mod settings;
#[cfg(test)]
mod tests;
mod wire;

use serde::{Deserialize, Serialize};

pub(crate) use describe::{Describer, DescriberOptions};
pub(crate) use metrics::describe as describe_metrics;
pub(crate) use service::{ValidationService, Validator, keep_validating};

/// Findings that a report lists; beyond it the least grave ones are left out, and it says so.
const FINDINGS_MAX: usize = 60;

/// Everything that was found, and what follows from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationReport {
    /// When it was judged, microseconds since the Unix epoch by the judging node's clock.
    pub at_unix_us: i64,
    /// The node that asked the others and judged.
    pub judged_by: String,
    /// What follows from the findings.
    pub verdict: ValidationVerdict,
    /// The worst first.
    pub findings: Vec<Finding>,
    /// How long nobody could write if the active were lost now, at most; absent while that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_outage_seconds: Option<f64>,
    /// What would be lost of the acknowledged, as time; absent while that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_loss_seconds: Option<f64>,
    /// The same in bytes of WAL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_loss_bytes: Option<u64>,
}

/// The worst finding decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ValidationVerdict {
    /// Notes at most.
    Ready,
    /// It would work, with harm or a surprise.
    AtRisk,
    /// It would not happen, or the service would not be back after it.
    NotReady,
}

impl ValidationVerdict {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            ValidationVerdict::Ready => "ready",
            ValidationVerdict::AtRisk => "at-risk",
            ValidationVerdict::NotReady => "not-ready",
        }
    }
}

/// How grave a finding is; the gravest sorts first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// A failover would not happen, or the service would not be back after it.
    Block,
    /// It would work, with harm or a surprise.
    Risk,
    /// Worth knowing.
    Note,
}

impl Severity {
    /// Every severity.
    pub const ALL: [Severity; 3] = [Severity::Block, Severity::Risk, Severity::Note];

    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Block => "block",
            Severity::Risk => "risk",
            Severity::Note => "note",
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How grave it is.
    pub severity: Severity,
    /// One of a closed set of words.
    pub code: String,
    /// The node that it is about; absent when it is about the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What was found.
    pub words: String,
    /// What to do about it.
    pub remedy: String,
}

impl ValidationReport {
    /// How many findings of a severity there are.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }
}
