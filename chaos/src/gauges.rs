//! What a long run asks of the nodes again and again from outside: their memory as the kernel counts it,
//! what they say of room and exposure, and how large the journal is. It also compares segments as they
//! are finished, before retention removes them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::arena::SITES;
use crate::copies::Copies;
use crate::lab::{DATA, Lab};
use crate::process;

const EVERY: Duration = Duration::from_secs(1);
/// So many violations are told in words.
const WORDS_MAX: usize = 5;

/// The highest memory of each site's daemon, over all of its lives, bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peaks(BTreeMap<&'static str, u64>);

impl Peaks {
    /// Takes in what is there now.
    pub(crate) fn look(&mut self, site: &'static str, directory: &Path) {
        let own = process::below(directory);
        // Beside the daemon runs its guardian, the same program with another verb.
        let daemons = own.iter().filter(|found| {
            found.program == "understudy" && found.title.split(' ').any(|word| word == "run")
        });
        for bytes in daemons.filter_map(|daemon| process::memory_peak_bytes(daemon.pid)) {
            let peak = self.0.entry(site).or_default();
            *peak = bytes.max(*peak);
        }
    }

    pub(crate) fn of(lab: &Lab) -> Peaks {
        let mut peaks = Peaks::default();
        for site in SITES {
            peaks.look(site, &lab.site_dir(site));
        }
        peaks
    }

    pub(crate) fn bytes(&self, site: &str) -> Option<u64> {
        self.0.get(site).copied()
    }

    /// For tests: the same at every site.
    #[cfg(test)]
    pub(crate) fn set_all(&mut self, bytes: u64) {
        self.0 = SITES.map(|site| (site, bytes)).into();
    }

    /// In MiB, with the tenths that matter.
    pub(crate) fn in_mib(&self) -> Value {
        let mib = |bytes: &u64| (*bytes as f64 / 1_048_576.0 * 10.0).round() / 10.0;
        self.0.iter().map(|(site, bytes)| ((*site).to_owned(), json!(mib(bytes)))).collect()
    }
}

/// What was seen.
#[derive(Debug)]
pub(crate) struct Gauged {
    pub(crate) copies: Copies,
    pub(crate) peaks: Peaks,
    /// The largest that the journal's files were together.
    pub(crate) journal_bytes_max: u64,
    /// The highest exposure that the active stated while `bounded` was in force, seconds.
    pub(crate) exposure_seconds_max: f64,
    /// How often it stated one.
    pub(crate) exposure_samples: u64,
    pub(crate) wrong: Vec<String>,
}

impl Gauged {
    /// Nothing was seen yet.
    pub(crate) fn of(copies: Copies) -> Gauged {
        Gauged {
            copies,
            peaks: Peaks::default(),
            journal_bytes_max: 0,
            exposure_seconds_max: 0.0,
            exposure_samples: 0,
            wrong: Vec::new(),
        }
    }

    fn wrong(&mut self, words: impl Into<String>) {
        if self.wrong.len() < WORDS_MAX {
            self.wrong.push(words.into());
        }
    }

    /// Takes in what the active says of exposure.
    fn take(&mut self, status: &Value) {
        let stated = status["exposure_seconds"].as_f64();
        if status["durability"] != "bounded" || status["durability_lifted"] == true {
            return;
        }
        let Some(seconds) = stated else { return };
        self.exposure_samples += 1;
        self.exposure_seconds_max = self.exposure_seconds_max.max(seconds);
        let ceiling = status["rpo_ceiling_seconds"].as_f64();
        if ceiling.is_none_or(|ceiling| seconds > ceiling) {
            self.wrong(format!("the active states {seconds} s exposed, ceiling {ceiling:?}"));
        }
    }
}

/// The watch, until it is ended.
pub(crate) struct Gauges {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Gauged>>,
}

impl Gauges {
    pub(crate) fn start(lab: &Lab, active: &'static str, passive: &'static str) -> Gauges {
        let stop = Arc::<AtomicBool>::default();
        let sites = SITES.map(|site| (site, lab.site_dir(site)));
        let mut gauged = Gauged::of(Copies::of(lab.journal(passive), lab.pg_wal(active)));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                look(&mut gauged, active, &sites);
                std::thread::sleep(EVERY);
            }
            gauged
        });
        Gauges { stop, thread: Some(thread) }
    }

    /// Ends the watch.
    ///
    /// # Errors
    /// When it ended by itself.
    pub(crate) fn end(mut self) -> Result<Gauged> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("only this function takes the thread")?;
        thread.join().ok().context("the gauges' thread panicked")
    }
}

impl Drop for Gauges {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn look(gauged: &mut Gauged, active: &str, sites: &[(&'static str, PathBuf)]) {
    for (site, directory) in sites {
        gauged.peaks.look(site, directory);
    }
    if let Some(status) = Lab::status_seen_by(active) {
        gauged.take(&status);
    }
    if let Err(error) = gauged.copies.look() {
        gauged.wrong(format!("compare the journal: {error:#}"));
    }
    match gauged.copies.journal_bytes() {
        Ok(bytes) => gauged.journal_bytes_max = gauged.journal_bytes_max.max(bytes),
        Err(error) => gauged.wrong(format!("measure the journal: {error:#}")),
    }
}

/// The nodes' own gauges of WAL, as they stand now.
pub(crate) fn of_wal() -> Value {
    const NAMES: [&str; 4] = ["held_bytes", "room_bytes", "free_bytes", "full_in_seconds"];
    let mut nodes = Map::new();
    for site in DATA {
        let mut own = Map::new();
        for place in ["journal", "pg_wal"] {
            for name in NAMES {
                let full = format!("understudy_wal_{name}{{place=\"{place}\"}}");
                if let Some(value) = Lab::metric(site, &full) {
                    // JSON has no infinity: never.
                    let value = if value.is_finite() { json!(value) } else { json!("never") };
                    own.insert(format!("{place}_{name}"), value);
                }
            }
        }
        for name in ["refused", "removed_bytes_total", "slots_given_up_total"] {
            let value = Lab::metric(site, &format!("understudy_wal_{name}"));
            own.insert(name.to_owned(), json!(value));
        }
        nodes.insert(site.to_owned(), Value::Object(own));
    }
    Value::Object(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stated_exposure_above_its_ceiling_is_found_and_one_without_a_ceiling_too() {
        let says = |mode: &str, seconds: Option<f64>, ceiling: Option<f64>| {
            let mut gauged = Gauged::of(Copies::of(PathBuf::new(), PathBuf::new()));
            gauged.take(&json!({
                "durability": mode, "durability_lifted": false,
                "exposure_seconds": seconds, "rpo_ceiling_seconds": ceiling,
            }));
            (gauged.exposure_samples, gauged.wrong.len())
        };
        assert_eq!(says("bounded", Some(5.9), Some(6.0)), (1, 0));
        assert_eq!(says("bounded", Some(6.1), Some(6.0)), (1, 1));
        assert_eq!(says("bounded", Some(0.1), None), (1, 1));
        assert_eq!(says("bounded", None, Some(6.0)), (0, 0));
        assert_eq!(says("zero", Some(6.1), Some(6.0)), (0, 0));
    }

    #[test]
    fn peaks_are_told_in_mib() {
        let peaks = Peaks([("north", 33 << 20), ("south", (33 << 20) + (1 << 19))].into());
        assert_eq!(peaks.in_mib(), json!({ "north": 33.0, "south": 33.5 }));
        assert_eq!(peaks.bytes("north"), Some(33 << 20));
        assert_eq!(peaks.bytes("witness"), None);
    }
}
