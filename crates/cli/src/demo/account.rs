//! The demo's account: what was measured, whether it is good, and how it is printed.
//!
//! Pure: the figures come from the workload and the director.

use std::fmt::Write;

use serde::Serialize;
use understudy_types::DurabilityMode;
use understudy_workload::Verdict;

/// One loss of a site and what followed.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Round {
    /// From 1.
    pub(super) round: u32,
    /// The site that was killed, and the one that took over.
    pub(super) killed: String,
    pub(super) took_over: String,
    /// Processes that were killed.
    pub(super) killed_processes: usize,
    /// As the prober saw it (see `understudy_workload::Pulse`).
    pub(super) write_outage_ms: u64,
    /// From the kill until the cluster's status named another site active and writable.
    pub(super) takeover_seen_ms: u64,
    /// From the start of the killed node's daemon until its site could have taken over in turn.
    pub(super) rejoin_seconds: f64,
}

/// Everything, as one JSON object. New keys may be added; a key's meaning does not change.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Account {
    pub(super) schema_version: u32,
    pub(super) ok: bool,
    pub(super) mode: String,
    pub(super) tenants: u32,
    pub(super) rounds: Vec<Round>,
    /// The worst of `write_outages_ms`; absent without a fault.
    pub(super) write_outage_ms: Option<u64>,
    pub(super) write_outages_ms: Vec<u64>,
    /// Distinct rows whose insert was acknowledged.
    pub(super) acknowledged_rows: u64,
    /// Acknowledged inserts and changes.
    pub(super) acknowledged_writes: u64,
    pub(super) unknown: u64,
    pub(super) failed: u64,
    /// Acknowledged and missing at the survivor.
    pub(super) lost_rows: u64,
    pub(super) lost_seconds: f64,
    /// Unknown outcomes that turned out to be there count here too.
    pub(super) surviving_rows: u64,
    /// Invariants that do not hold, in words.
    pub(super) violations: Vec<String>,
    /// Every site that was killed came back and could be promoted again.
    pub(super) rejoined: bool,
    /// Every table of every database, at both sites.
    pub(super) sites_equal: bool,
    pub(super) differences: Vec<String>,
    pub(super) active: String,
    pub(super) passive: String,
    pub(super) epoch: String,
    pub(super) duration_seconds: f64,
}

impl Account {
    /// Takes over what the invariants say, and judges the whole.
    pub(super) fn judge(&mut self, verdict: &Verdict, mode: DurabilityMode, ceiling_seconds: f64) {
        self.acknowledged_rows = verdict.counts.acknowledged_rows;
        self.acknowledged_writes = verdict.counts.acknowledged;
        self.unknown = verdict.counts.unknown;
        self.failed = verdict.counts.failed;
        self.lost_rows = verdict.lost_rows;
        self.lost_seconds = verdict.lost_seconds;
        self.surviving_rows = verdict.surviving_rows;
        self.violations = verdict.violations.clone();
        self.write_outages_ms = self.rounds.iter().map(|round| round.write_outage_ms).collect();
        self.write_outage_ms = self.write_outages_ms.iter().copied().max();
        let within_policy = match mode {
            DurabilityMode::Zero => self.lost_rows == 0,
            DurabilityMode::Bounded => self.lost_seconds <= ceiling_seconds,
            DurabilityMode::BestEffort => true,
        };
        self.ok = within_policy
            && self.violations.is_empty()
            && self.rejoined
            && self.sites_equal
            && self.acknowledged_rows > 0;
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: String| {
            writeln!(text, "  {name:<22} {value}").expect("a string takes everything");
        };
        let yes = |yes: bool| if yes { "yes" } else { "NO" }.to_owned();
        for round in &self.rounds {
            row(
                &format!("round {}", round.round),
                format!(
                    "{} lost ({} processes killed), {} took over; write outage {} ms; \
                     back as passive after {:.1} s",
                    round.killed,
                    round.killed_processes,
                    round.took_over,
                    round.write_outage_ms,
                    round.rejoin_seconds
                ),
            );
        }
        if let Some(worst) = self.write_outage_ms {
            row("write outage, worst", format!("{worst} ms"));
        }
        row("acknowledged rows", self.acknowledged_rows.to_string());
        row("unknown outcomes", self.unknown.to_string());
        let spanning = format!("{} (over {:.3} s)", self.lost_rows, self.lost_seconds);
        row("lost rows", if self.lost_rows == 0 { "0".to_owned() } else { spanning });
        row("rejoined", yes(self.rejoined));
        row("sites equal", yes(self.sites_equal));
        for violation in &self.violations {
            row("VIOLATION", violation.clone());
        }
        for difference in self.differences.iter().take(5) {
            row("difference", difference.clone());
        }
        format!(
            "{} · mode {} · {} tenants · {:.0} s\n{text}",
            if self.ok { "all is well" } else { "NOT as promised" },
            self.mode,
            self.tenants,
            self.duration_seconds
        )
    }
}

#[cfg(test)]
mod tests {
    use understudy_workload::Verdict;

    use super::*;

    fn account() -> Account {
        let round = |round, write_outage_ms| Round {
            round,
            killed: "north".to_owned(),
            took_over: "south".to_owned(),
            killed_processes: 20,
            write_outage_ms,
            takeover_seen_ms: 2600,
            rejoin_seconds: 4.0,
        };
        Account {
            schema_version: 1,
            ok: false,
            mode: "zero".to_owned(),
            tenants: 50,
            rounds: vec![round(1, 2400), round(2, 1900)],
            write_outage_ms: None,
            write_outages_ms: vec![],
            acknowledged_rows: 0,
            acknowledged_writes: 0,
            unknown: 0,
            failed: 0,
            lost_rows: 0,
            lost_seconds: 0.0,
            surviving_rows: 0,
            violations: vec![],
            rejoined: true,
            sites_equal: true,
            differences: vec![],
            active: "south".to_owned(),
            passive: "north".to_owned(),
            epoch: "3".to_owned(),
            duration_seconds: 60.0,
        }
    }

    fn verdict(lost_rows: u64, lost_seconds: f64) -> Verdict {
        let mut counts = understudy_workload::Verdict::empty().counts;
        counts.acknowledged_rows = 100;
        Verdict { counts, lost_rows, lost_seconds, ..Verdict::empty() }
    }

    #[test]
    fn zero_forgives_no_row_and_bounded_forgives_up_to_its_ceiling() {
        let judge = |mode, verdict: &Verdict| {
            let mut account = account();
            account.judge(verdict, mode, 3600.0);
            account.ok
        };
        assert!(judge(DurabilityMode::Zero, &verdict(0, 0.0)));
        assert!(!judge(DurabilityMode::Zero, &verdict(1, 0.0)));
        assert!(judge(DurabilityMode::Bounded, &verdict(9, 12.0)));
        assert!(!judge(DurabilityMode::Bounded, &verdict(9, 3601.0)));
        assert!(!judge(DurabilityMode::Zero, &Verdict::empty()), "nothing written proves nothing");
        let hole = Verdict { violations: vec!["a hole".to_owned()], ..verdict(0, 0.0) };
        assert!(!judge(DurabilityMode::Bounded, &hole));
    }

    #[test]
    fn the_worst_outage_and_the_list_are_both_told() {
        let mut account = account();
        account.judge(&verdict(0, 0.0), DurabilityMode::Zero, 3600.0);
        let json = serde_json::to_value(&account).unwrap();
        assert_eq!(json["write_outage_ms"], 2400);
        assert_eq!(json["write_outages_ms"], serde_json::json!([2400, 1900]));
        assert_eq!(json["lost_rows"], 0);
        assert!(account.text().contains("write outage, worst    2400 ms"), "{}", account.text());
    }
}
