//! Medians, ratios, and when not to conclude anything from them.

use serde::Serialize;

/// Quartiles of a ratio that are further apart than this, in parts of the median, say more about the
/// machine than about the contenders.
const NOISE_MAX: f64 = 0.25;
/// Fewer rounds say nothing about their own scatter.
const ROUNDS_MIN: usize = 3;

/// A few values of one quantity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) lowest: f64,
    pub(crate) highest: f64,
    /// A quarter of the values are below, a quarter above.
    pub(crate) quartiles: [f64; 2],
    pub(crate) count: usize,
}

impl Spread {
    /// `None` without a value.
    pub(crate) fn of(values: &[f64]) -> Option<Spread> {
        let sorted = sorted(values);
        let (lowest, highest) = (*sorted.first()?, *sorted.last()?);
        let median = quantile(&sorted, 0.5)?;
        let quartiles = [quantile(&sorted, 0.25)?, quantile(&sorted, 0.75)?];
        Some(Spread { median, lowest, highest, quartiles, count: sorted.len() })
    }

    /// Whether it is too scattered, or too little, to conclude anything.
    pub(crate) fn is_noise(&self) -> bool {
        let [lower, upper] = self.quartiles;
        let scatter = (upper - lower) / self.median;
        // A scatter that is no number is noise too.
        self.count < ROUNDS_MIN || scatter.is_nan() || scatter > NOISE_MAX
    }
}

/// Values from the smallest to the greatest.
pub(crate) fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The value below which this part of the sorted values lies, between its neighbours if need be.
pub(crate) fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = part.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    Some(sorted[below] + (sorted[above] - sorted[below]) * place.fract())
}

/// What may be said of a ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Met,
    Missed,
    /// The machine was too noisy, or the rounds too few.
    Undecided,
    /// Nobody has said how fast it should be.
    NoAim,
}

impl Verdict {
    /// Compares a ratio with what it should be at least.
    pub(crate) fn of(ratio: &Spread, at_least: Option<f64>) -> Verdict {
        match at_least {
            None => Verdict::NoAim,
            Some(_) if ratio.is_noise() => Verdict::Undecided,
            Some(at_least) if ratio.quartiles[0] >= at_least => Verdict::Met,
            Some(at_least) if ratio.quartiles[1] < at_least => Verdict::Missed,
            // The rounds disagree.
            Some(_) => Verdict::Undecided,
        }
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            Verdict::Met => "met",
            Verdict::Missed => "MISSED",
            Verdict::Undecided => "no verdict: noise",
            Verdict::NoAim => "",
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test says what it expects by panicking
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        let values = sorted(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!(quantile(&values, 0.5), Some(2.5));
        assert_eq!(quantile(&values, 0.0), Some(1.0));
        assert_eq!(quantile(&values, 1.0), Some(4.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn a_verdict_needs_rounds_that_agree() {
        let close = Spread::of(&[0.96, 0.97, 0.99, 0.98]).unwrap();
        assert_eq!(Verdict::of(&close, Some(0.95)), Verdict::Met);
        assert_eq!(Verdict::of(&close, Some(0.99)), Verdict::Missed);
        assert_eq!(Verdict::of(&close, Some(0.975)), Verdict::Undecided, "half of the rounds do");
        assert_eq!(Verdict::of(&close, None), Verdict::NoAim);
        let wide = Spread::of(&[0.4, 0.9, 1.6, 2.5]).unwrap();
        assert_eq!(Verdict::of(&wide, Some(0.5)), Verdict::Undecided);
        let few = Spread::of(&[1.0, 1.0]).unwrap();
        assert_eq!(Verdict::of(&few, Some(0.5)), Verdict::Undecided);
        let nothing = Spread::of(&[0.0, 0.0, 0.0]).unwrap();
        assert_eq!(Verdict::of(&nothing, Some(0.0)), Verdict::Undecided);
    }
}
