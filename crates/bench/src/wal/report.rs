//! What was measured, as a table for people and as one object for programs.

use std::collections::BTreeMap;

use serde::Serialize;

use super::backlog::{CatchUp, Content};
use super::commits::{Commits, Load};
use super::link::Link;
use super::turn::{CONTENDERS, Contender};
use crate::statistics::{Spread, Verdict};

/// What else is said of a contender: its name with unit, and where it is found.
type Figure<T> = (&'static str, fn(&T) -> Option<f64>);

/// One line of the table: a contender in one case, over all rounds.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    case: String,
    contender: Contender,
    /// Transactions a second, or MB a second.
    value: Spread,
    unit: &'static str,
    /// To `beside`, round by round.
    ratio: Option<Spread>,
    beside: Option<Contender>,
    at_least: Option<f64>,
    verdict: Verdict,
    /// Further figures of the case, medians over the rounds.
    also: BTreeMap<&'static str, f64>,
}

/// Which ratio a contender should reach, and to whom. The aims are those of issue 4.
fn aim_of_commits(load: Load, contender: Contender) -> (Contender, Option<f64>) {
    match (contender, load) {
        (Contender::Zero, Load { clients: 8, rate: None, link }) => {
            let aim = match link.delay_ms {
                0 => Some(0.95),
                5 => Some(0.98),
                _ => None,
            };
            (Contender::NativeSync, aim)
        }
        (Contender::Bounded, Load { clients: 32, rate: None, link }) => {
            (Contender::NativeAsync, (link.delay_ms == 0).then_some(0.95))
        }
        (Contender::Bounded, _) => (Contender::NativeAsync, None),
        _ => (Contender::NativeSync, None),
    }
}

/// The lines of one load.
pub(super) fn commits(load: Load, measured: &[Commits]) -> Vec<Line> {
    let of = |contender: Contender, value: fn(&Commits) -> Option<f64>| -> Vec<f64> {
        let found = measured.iter().filter(|one| one.contender == contender && one.load == load);
        found.filter_map(value).collect()
    };
    let mut lines = Vec::new();
    for contender in CONTENDERS {
        let rates = of(contender, |one| Some(one.transactions_per_second));
        let Some(value) = Spread::of(&rates) else { continue };
        let (beside, at_least) = aim_of_commits(load, contender);
        let others = of(beside, |one| Some(one.transactions_per_second));
        let mut also = BTreeMap::new();
        let figures: [Figure<Commits>; 8] = [
            ("active_cpu_us", |one| Some(one.active_cpu_us)),
            ("passive_cpu_us", |one| Some(one.passive_cpu_us)),
            ("p50_ms", |one| Some(one.p50_ms)),
            ("p99_ms", |one| Some(one.p99_ms)),
            ("flush_lag_p50_ms", |one| one.flush_lag_ms.map(|[p50, _]| p50)),
            ("flush_lag_p99_ms", |one| one.flush_lag_ms.map(|[_, p99]| p99)),
            ("replay_lag_p50_ms", |one| one.replay_lag_ms.map(|[p50, _]| p50)),
            ("replay_lag_p99_ms", |one| one.replay_lag_ms.map(|[_, p99]| p99)),
        ];
        for (name, figure) in figures {
            also.extend(Spread::of(&of(contender, figure)).map(|spread| (name, spread.median)));
        }
        lines.push(Line::new(
            load.words(),
            contender,
            "tps",
            value,
            (contender != beside).then(|| (beside, ratios(&rates, &others), at_least)),
            also,
        ));
    }
    lines
}

/// The lines of catching up with one content.
pub(super) fn catch_up(content: Content, link: Link, measured: &[CatchUp]) -> Vec<Line> {
    let of = |contender: Contender, value: fn(&CatchUp) -> Option<f64>| -> Vec<f64> {
        let found = measured.iter().filter(|one| one.contender == contender);
        found.filter(|one| one.content == content).filter_map(value).collect()
    };
    let speed = |one: &CatchUp| Some(one.bytes as f64 / 1e6 / one.seconds);
    let processor = |one: &CatchUp| Some(one.active_cpu_per_gb + one.passive_cpu_per_gb);
    let native = Contender::NativeAsync;
    let at_least = if link.mbit.is_some() { 2.0 } else { 1.0 };
    let mut lines = Vec::new();
    for contender in super::backlog::CONTENDERS {
        let speeds = of(contender, speed);
        let Some(value) = Spread::of(&speeds) else { continue };
        let figures: [Figure<CatchUp>; 4] = [
            ("active_cpu_s_per_gb", |one| Some(one.active_cpu_per_gb)),
            ("passive_cpu_s_per_gb", |one| Some(one.passive_cpu_per_gb)),
            ("active_memory_mib", |one| in_mib(one.active_memory_bytes)),
            ("passive_memory_mib", |one| in_mib(one.passive_memory_bytes)),
        ];
        let medians = figures.iter().filter_map(|(name, figure)| {
            Spread::of(&of(contender, *figure)).map(|spread| (*name, spread.median))
        });
        let mut also: BTreeMap<_, _> = medians.collect();
        if contender != native {
            let dearer = ratios(&of(contender, processor), &of(native, processor));
            also.extend(Spread::of(&dearer).map(|spread| ("cpu_ratio", spread.median)));
        }
        lines.push(Line::new(
            format!("catching up, {}{}", content.name(), link.words()),
            contender,
            "MB/s",
            value,
            (contender != native)
                .then(|| (native, ratios(&speeds, &of(native, speed)), Some(at_least))),
            also,
        ));
    }
    lines
}

/// `None` for one that has no processes of ours.
fn in_mib(bytes: u64) -> Option<f64> {
    (bytes > 0).then_some(bytes as f64 / 1_048_576.0)
}

/// Round by round, as far as both were measured.
fn ratios(values: &[f64], others: &[f64]) -> Vec<f64> {
    values.iter().zip(others).map(|(value, other)| value / other).collect()
}

impl Line {
    fn new(
        case: String,
        contender: Contender,
        unit: &'static str,
        value: Spread,
        beside: Option<(Contender, Vec<f64>, Option<f64>)>,
        also: BTreeMap<&'static str, f64>,
    ) -> Line {
        let ratio = beside.as_ref().and_then(|(_, ratios, _)| Spread::of(ratios));
        let at_least = beside.as_ref().and_then(|(_, _, at_least)| *at_least);
        let verdict = ratio.map_or(Verdict::NoAim, |ratio| Verdict::of(&ratio, at_least));
        let beside = beside.map(|(beside, _, _)| beside);
        Line { case, contender, value, unit, ratio, beside, at_least, verdict, also }
    }

    /// For people.
    pub(super) fn words(&self) -> String {
        let value = format!("{:.0} {}", self.value.median, self.unit);
        let ratio = match (&self.ratio, self.beside) {
            (Some(ratio), Some(beside)) => format!(
                "{:.2} of {} ({:.2} to {:.2})",
                ratio.median,
                beside.name(),
                ratio.lowest,
                ratio.highest
            ),
            _ => String::new(),
        };
        let aim = match (self.at_least, self.verdict.words()) {
            (Some(at_least), verdict) => format!("aim {at_least:.2}: {verdict}"),
            (None, verdict) => verdict.to_owned(),
        };
        let also = self.also.iter().map(|(name, value)| format!("{name} {value:.2}"));
        let also = also.collect::<Vec<_>>().join(", ");
        format!(
            "{:<30} {:<22} {value:>11}  {ratio:<44} {aim:<24} {also}",
            self.case,
            self.contender.name()
        )
        .trim_end()
        .to_owned()
    }
}
