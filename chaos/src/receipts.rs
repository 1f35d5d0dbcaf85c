//! The loss receipts that a row left, read as an operator reads them, against what clients know.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use understudy_checks::ReceiptedCommit;

use crate::command::output;
use crate::lab::{DATA, Lab};

/// A moment on the ledger's clock and on the wall's.
#[derive(Clone, Copy)]
pub(crate) struct WallClock {
    ledger: Duration,
    unix_us: i64,
}

impl WallClock {
    pub(crate) fn at(ledger: Duration) -> WallClock {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        WallClock { ledger, unix_us: now.tv_sec * 1_000_000 + now.tv_nsec / 1000 }
    }

    /// `None` before the ledger began.
    fn of(&self, unix_us: i64) -> Option<Duration> {
        let since = unix_us - self.unix_us + i64::try_from(self.ledger.as_micros()).ok()?;
        u64::try_from(since).ok().map(Duration::from_micros)
    }
}

/// A receipt.
pub(crate) struct Receipt {
    /// The commits that it names, as far as they were made since the ledger began.
    pub(crate) commits: Vec<ReceiptedCommit>,
    /// The loss that was stated when the epoch after the lost one was granted, in seconds; `None` where
    /// none was known.
    pub(crate) stated: Option<f64>,
}

/// Reads the receipts that were made since `clock`'s moment.
///
/// # Errors
/// When the command line does not answer, or answers with something else than is documented.
pub(crate) fn read(lab: &Lab, clock: WallClock) -> Result<Vec<Receipt>> {
    let listed = json(&output(&mut lab.operator(&["receipt", "list", "--output", "json"]))?)?;
    let listed = listed["receipts"].as_array().context("find receipts in the list")?;
    let made = |receipt: &&Value| receipt["made_unix_us"].as_i64() >= Some(clock.unix_us);
    listed.iter().filter(made).map(|receipt| read_one(lab, clock, receipt)).collect()
}

fn read_one(lab: &Lab, clock: WallClock, receipt: &Value) -> Result<Receipt> {
    let id = receipt["id"].as_str().context("find a receipt's name")?;
    let node = receipt["node"].as_str().context("find a receipt's node")?;
    let side = DATA.iter().position(|site| *site == node).context("know the receipt's node")?;
    let mut commits = Vec::new();
    let arguments = ["receipt", "transactions", id, "--node", node];
    for line in output(&mut lab.operator(&arguments))?.lines() {
        let one = json(line)?;
        let number = one["xid"].as_u64().and_then(|number| u32::try_from(number).ok());
        let transaction = number.with_context(|| format!("find the number in {line}"))?;
        let at = one["unix_us"].as_i64().with_context(|| format!("find the time in {line}"))?;
        if one["kind"] == "commit"
            && let Some(committed_at) = clock.of(at)
        {
            commits.push(ReceiptedCommit { side, transaction, committed_at });
        }
    }
    Ok(Receipt { commits, stated: stated(lab, receipt) })
}

/// What was stated when the epoch after the receipt's was granted.
fn stated(lab: &Lab, receipt: &Value) -> Option<f64> {
    let lost_epoch = receipt["lost_epoch"]["number"].as_u64()?;
    let status = lab.status()?;
    let number = |link: &Value| link["epoch"]["number"].as_u64();
    let later = status["lineage"].as_array()?.iter().filter(|link| number(link) > Some(lost_epoch));
    later.min_by_key(|link| number(link))?["lost_seconds_max"].as_f64()
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("read as JSON: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_s_moment_is_the_ledger_s() {
        let clock = WallClock { ledger: Duration::from_secs(10), unix_us: 1_000_000_000 };
        assert_eq!(clock.of(1_001_500_000), Some(Duration::from_millis(11_500)));
        assert_eq!(clock.of(991_000_000), Some(Duration::from_secs(1)));
        assert_eq!(clock.of(989_000_000), None, "before the ledger");
    }
}
