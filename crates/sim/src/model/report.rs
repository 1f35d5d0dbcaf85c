//! What a run prints, as text and as JSON (format version 1).

use serde::Serialize;

use super::checker::{Claim, Finding, Run};

/// The form of the JSON.
pub const FORMAT: u32 = 1;

/// Everything that was run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// Whether every claim stands and every mistake was found.
    pub good: bool,
    /// The protocol as it is.
    pub configurations: Vec<ConfigurationReport>,
    /// With one mistake each.
    pub mutants: Vec<MutantReport>,
}

/// One configuration.
#[derive(Debug, Serialize)]
pub struct ConfigurationReport {
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Distinct states.
    pub states: usize,
    /// Steps taken.
    pub transitions: u64,
    /// The greatest distance from the beginning.
    pub depth: usize,
    /// Every reachable state was seen.
    pub exhausted: bool,
    /// How long it took.
    pub seconds: f64,
    /// Each claim.
    pub properties: Vec<PropertyReport>,
}

/// One claim.
#[derive(Debug, Serialize)]
pub struct PropertyReport {
    /// The sentence.
    pub name: &'static str,
    /// "always" or "sometimes".
    pub claim: &'static str,
    /// Whether it stands as far as was searched.
    pub stands: bool,
    /// Steps to what shows it, or breaks it.
    pub steps_count: Option<usize>,
    /// The steps, of a claim that is broken.
    pub counterexample: Option<Vec<String>>,
}

/// One mistake.
#[derive(Debug, Serialize)]
pub struct MutantReport {
    /// Its name.
    pub bug: String,
    /// Where it was looked for.
    pub configuration: &'static str,
    /// The claim that it breaks; `None` when it was not found.
    pub breaks: Option<&'static str>,
    /// The steps to it.
    pub counterexample: Vec<String>,
    /// States seen until then.
    pub states: usize,
    /// How long it took.
    pub seconds: f64,
}

impl ConfigurationReport {
    /// From a run.
    pub fn new(name: &'static str, purpose: &'static str, run: &Run) -> ConfigurationReport {
        ConfigurationReport {
            name,
            purpose,
            states: run.states,
            transitions: run.transitions,
            depth: run.depth,
            exhausted: run.exhausted,
            seconds: run.elapsed.as_secs_f64(),
            properties: run.findings.iter().map(PropertyReport::new).collect(),
        }
    }

    /// Everything was searched and every claim stands.
    pub fn is_good(&self) -> bool {
        self.exhausted && self.properties.iter().all(|property| property.stands)
    }
}

impl PropertyReport {
    fn new(finding: &Finding) -> PropertyReport {
        let broken = finding.claim == Claim::Always && finding.shown_by.is_some();
        PropertyReport {
            name: finding.name,
            claim: match finding.claim {
                Claim::Always => "always",
                Claim::Sometimes => "sometimes",
            },
            stands: finding.stands(),
            steps_count: finding.shown_by.as_ref().map(Vec::len),
            counterexample: finding.shown_by.clone().filter(|_| broken),
        }
    }
}

impl MutantReport {
    /// From a run with that mistake.
    pub fn new(bug: String, configuration: &'static str, run: &Run) -> MutantReport {
        let broken = run
            .findings
            .iter()
            .find(|finding| finding.claim == Claim::Always && finding.shown_by.is_some());
        MutantReport {
            bug,
            configuration,
            breaks: broken.map(|finding| finding.name),
            counterexample: broken.and_then(|f| f.shown_by.clone()).unwrap_or_default(),
            states: run.states,
            seconds: run.elapsed.as_secs_f64(),
        }
    }

    /// For people; the steps only when asked for.
    pub fn text(&self, with_steps: bool) -> String {
        let Self { bug, configuration, states, seconds, .. } = self;
        let Some(breaks) = self.breaks else {
            return format!(
                "{bug}: NOT FOUND in {configuration} ({states} states, {seconds:.1} s)"
            );
        };
        let steps = self.counterexample.len();
        let head = format!(
            "{bug}: found in {configuration} after {steps} steps ({states} states, {seconds:.1} s)\n    \
             breaks: {breaks}"
        );
        if with_steps { format!("{head}\n    {}", self.counterexample.join(" → ")) } else { head }
    }
}

impl ConfigurationReport {
    /// For people.
    pub fn text(&self) -> String {
        let Self { name, purpose, states, transitions, depth, seconds, .. } = self;
        let all = if self.exhausted { "exhausted" } else { "NOT exhausted" };
        let mut lines = vec![format!(
            "{name}: {purpose}\n  {states} distinct states, {transitions} steps, depth {depth}, {all}, \
             {seconds:.1} s"
        )];
        for property in &self.properties {
            let mark = if property.stands { "  ok " } else { "  BROKEN " };
            let shown = property.steps_count.map_or(String::new(), |n| format!(" ({n} steps)"));
            lines.push(format!("{mark}{}: {}{shown}", property.claim, property.name));
            if let Some(steps) = &property.counterexample {
                lines.push(format!("    {}", steps.join(" → ")));
            }
        }
        lines.join("\n")
    }
}
