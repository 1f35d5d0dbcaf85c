//! The report to and from its message: nothing is added and nothing dropped.

use understudy_proto::{FieldError, v1};

use super::{Finding, Severity, ValidationReport, ValidationVerdict};

impl From<&ValidationReport> for v1::ValidationReport {
    fn from(report: &ValidationReport) -> v1::ValidationReport {
        let finding = |finding: &Finding| v1::Finding {
            code: finding.code.clone(),
            severity: finding.severity.as_str().to_owned(),
            node: finding.node.clone().unwrap_or_default(),
            words: finding.words.clone(),
            remedy: finding.remedy.clone(),
        };
        v1::ValidationReport {
            at_unix_us: report.at_unix_us,
            judged_by: report.judged_by.clone(),
            verdict: report.verdict.as_str().to_owned(),
            findings: report.findings.iter().map(finding).collect(),
            expected_outage_seconds: report.expected_outage_seconds,
            expected_loss_seconds: report.expected_loss_seconds,
            expected_loss_bytes: report.expected_loss_bytes,
        }
    }
}

impl TryFrom<v1::ValidationReport> for ValidationReport {
    type Error = FieldError;

    fn try_from(report: v1::ValidationReport) -> Result<ValidationReport, FieldError> {
        let verdict = match report.verdict.as_str() {
            "ready" => ValidationVerdict::Ready,
            "at-risk" => ValidationVerdict::AtRisk,
            "not-ready" => ValidationVerdict::NotReady,
            other => return Err(FieldError::new("verdict", format!("{other:?} is not known"))),
        };
        let findings = report.findings.into_iter().map(|finding| {
            let known = Severity::ALL.into_iter().find(|known| known.as_str() == finding.severity);
            Ok(Finding {
                severity: known.ok_or_else(|| {
                    FieldError::new("severity", format!("{:?} is not known", finding.severity))
                })?,
                code: finding.code,
                node: Some(finding.node).filter(|node| !node.is_empty()),
                words: finding.words,
                remedy: finding.remedy,
            })
        });
        Ok(ValidationReport {
            at_unix_us: report.at_unix_us,
            judged_by: report.judged_by,
            verdict,
            findings: findings.collect::<Result<_, FieldError>>()?,
            expected_outage_seconds: report.expected_outage_seconds,
            expected_loss_seconds: report.expected_loss_seconds,
            expected_loss_bytes: report.expected_loss_bytes,
        })
    }
}
