//! How rows and results are printed: for people, or one JSON object a line.

use anyhow::Result;
use serde_json::json;

use crate::catalogue::{ROWS, Status};
use crate::play::Played;

/// The form of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// One object a line; the last one is the summary.
    Json,
}

/// Every row of the catalogue.
pub(crate) fn list(output: Output) -> Result<()> {
    for row in ROWS {
        match output {
            Output::Json => {
                let status = row.status_words();
                let line = json!({
                    "row": row.id, "title": row.title, "expected": row.expected, "status": status,
                });
                println!("{line}");
            }
            Output::Text => {
                let (id, title) = (row.id, row.title);
                println!("{id:<6} {title}\n       expected: {}", row.expected);
                if !matches!(row.status, Status::Built(_)) {
                    println!("       {}", row.status_words());
                }
            }
        }
    }
    let count = |wanted: fn(&Status) -> bool| ROWS.iter().filter(|row| wanted(&row.status)).count();
    let built = count(|status| matches!(status, Status::Built(_)));
    let simulated = count(|status| matches!(status, Status::Simulated));
    let not_yet = count(|status| matches!(status, Status::NotYet(_)));
    match output {
        Output::Json => println!(
            "{}",
            json!({ "rows": ROWS.len(), "built": built, "simulated": simulated, "not_yet": not_yet })
        ),
        Output::Text => {
            println!(
                "\n{} rows: {built} built, {simulated} of the simulator, {not_yet} not yet",
                ROWS.len()
            );
        }
    }
    Ok(())
}

/// One result, as soon as it is there.
pub(crate) fn result(output: Output, played: &Played) -> Result<()> {
    match output {
        Output::Json => println!("{}", serde_json::to_string(played)?),
        Output::Text => {
            let verdict = if played.passed { "passed" } else { "FAILED" };
            let outage = played.write_outage_ms.map_or("-".to_owned(), |ms| format!("{ms} ms"));
            println!(
                "{:<5} {:<8} {verdict}  outage {outage}, acknowledged {}, lost {}, late releases {}, {:.0} s  {}",
                played.row,
                played.mode.as_str(),
                played.acknowledged,
                played.lost,
                played.late_releases,
                played.seconds,
                played.title
            );
            for line in played.fault_seen.iter().chain(&played.notes) {
                println!("        {line}");
            }
            for line in &played.wrong {
                println!("        WRONG: {line}");
            }
        }
    }
    Ok(())
}

/// The last line.
pub(crate) fn summary(output: Output, results: &[Played]) -> Result<()> {
    let failed: Vec<&str> =
        results.iter().filter(|played| !played.passed).map(|played| played.row.as_str()).collect();
    let late: u64 = results.iter().map(|played| played.late_releases).sum();
    match output {
        Output::Json => {
            let line = json!({
                "rows": results.len(), "failed": failed.len(), "late_releases": late,
                "failed_rows": failed,
            });
            println!("{line}");
        }
        Output::Text => println!(
            "{} rows played, {} failed ({}), {late} late releases",
            results.len(),
            failed.len(),
            failed.join(", ")
        ),
    }
    Ok(())
}
