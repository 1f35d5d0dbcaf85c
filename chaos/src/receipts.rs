//! The loss receipts that a row left, read as an operator reads them, against what clients know.

use anyhow::{Context, Result};
use serde_json::Value;
use understudy_checks::ReceiptedCommit;

use crate::clocks::Clocks;
use crate::command::output;
use crate::lab::{DATA, Lab};

/// A receipt.
pub(crate) struct Receipt {
    /// The commits that it names, as far as they were made since the ledger began.
    pub(crate) commits: Vec<ReceiptedCommit>,
    /// The loss that was stated when the epoch after the lost one was granted, in seconds; `None` where
    /// none was known.
    pub(crate) stated: Option<f64>,
}

/// Reads the receipts that were made since the moment of `clocks`.
///
/// # Errors
/// When the command line does not answer, or answers with something else than is documented.
pub(crate) fn read(lab: &Lab, clocks: &Clocks) -> Result<Vec<Receipt>> {
    let listed = json(&output(&mut lab.operator(&["receipt", "list", "--output", "json"]))?)?;
    let listed = listed["receipts"].as_array().context("find receipts in the list")?;
    let made = |receipt: &&Value| receipt["made_unix_us"].as_i64() >= Some(clocks.unix_us());
    listed.iter().filter(made).map(|receipt| read_one(lab, clocks, receipt)).collect()
}

fn read_one(lab: &Lab, clocks: &Clocks, receipt: &Value) -> Result<Receipt> {
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
            && let Some(committed_at) = clocks.of_wall(at)
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
