//! A receipt for people: what was lost, since when, in which databases.

use std::fmt::Write as _;

use super::{Receipt, Tail, moment};

/// Databases and transactions that the text shows.
const SHOWN: usize = 20;

/// The receipt as a short text.
pub fn render(receipt: &Receipt) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_receipt(&mut text, receipt);
    text
}

fn write_receipt(text: &mut String, receipt: &Receipt) -> std::fmt::Result {
    let epoch = receipt.lost_epoch.map_or_else(|| "unknown".to_owned(), |e| e.to_string());
    writeln!(text, "loss receipt {} of {}, cluster {}", receipt.id, receipt.node, receipt.cluster)?;
    writeln!(text, "made       {}", moment(receipt.made_unix_us))?;
    writeln!(
        text,
        "lost       epoch {epoch}, timeline {}; now epoch {}",
        receipt.timeline, receipt.epoch
    )?;
    match receipt.fork_lsn {
        Some(fork) => writeln!(
            text,
            "WAL        {} bytes, from the fork at {fork} to {}",
            receipt.lost_wal_bytes, receipt.end_lsn
        )?,
        None => writeln!(
            text,
            "WAL        up to {}; where it left the cluster's history is not known, so all of its\n           \
             transactions are listed, and the cluster has most of them",
            receipt.end_lsn
        )?,
    }
    match receipt.tail {
        Tail::Whole => {}
        Tail::Torn => writeln!(
            text,
            "end        in a record that was never finished, after {}: no transaction ended in it",
            receipt.read_lsn
        )?,
        Tail::Unreadable => writeln!(
            text,
            "INCOMPLETE readable only up to {}: {}",
            receipt.read_lsn, receipt.tail_words
        )?,
    }
    if receipt.unreadable_records > 0 {
        let count = receipt.unreadable_records;
        writeln!(text, "INCOMPLETE {count} records of transactions were not understood")?;
    }
    write!(text, "commits    {}", receipt.commits)?;
    if let (Some(first), Some(last)) = (receipt.first_commit_unix_us, receipt.last_commit_unix_us) {
        write!(text, ", from {} to {}", moment(first), moment(last))?;
    }
    if let Some(seconds) = receipt.lost_seconds {
        write!(text, " ({seconds:.3} s)")?;
    }
    writeln!(text)?;
    if receipt.others > 0 {
        writeln!(text, "prepared   {} prepared or rolled back after PREPARE", receipt.others)?;
    }
    if let Some(promised) = receipt.promised {
        let ceiling = promised.ceiling_seconds.map(|s| format!(", at most {s} s"));
        writeln!(text, "promised   {}{}", promised.mode, ceiling.unwrap_or_default())?;
    }
    write_databases(text, receipt)?;
    write_transactions(text, receipt)?;
    writeln!(
        text,
        "\nA commit that nobody was told of is listed too: WAL does not say who was told."
    )
}

fn write_databases(text: &mut String, receipt: &Receipt) -> std::fmt::Result {
    for loss in receipt.databases.iter().take(SHOWN) {
        let name = match (&loss.name, loss.oid) {
            (Some(name), Some(oid)) => format!("{name} ({oid})"),
            (None, Some(oid)) => format!("oid {oid}"),
            (_, None) => "unknown".to_owned(),
        };
        writeln!(text, "database   {name}: {} commits", loss.commits)?;
    }
    let more = receipt.databases.len().saturating_sub(SHOWN);
    if more > 0 {
        writeln!(text, "           and {more} more databases")?;
    }
    Ok(())
}

fn write_transactions(text: &mut String, receipt: &Receipt) -> std::fmt::Result {
    if receipt.transactions.is_empty() {
        return Ok(());
    }
    writeln!(text, "\n{:<12} {:<18} {:<14} {:<28} DATABASE", "XID", "KIND", "LSN", "TIME")?;
    for one in receipt.transactions.iter().take(SHOWN) {
        let kind = if one.kind.is_commit() { "commit" } else { "prepared" };
        let kind = one.gid.as_ref().map_or(kind.to_owned(), |gid| format!("{kind} {gid:?}"));
        let oid = one.database.map_or_else(|| "unknown".to_owned(), |oid| oid.to_string());
        let database = one.database_name.clone().unwrap_or(oid);
        let lsn = one.lsn.to_string();
        writeln!(text, "{:<12} {kind:<18} {lsn:<14} {:<28} {database}", one.xid, one.time)?;
    }
    let total = receipt.commits + receipt.others;
    if total > SHOWN as u64 {
        writeln!(text, "… {total} in all, in {}", receipt.transactions_file)?;
    }
    Ok(())
}
