//! Contenders timed in turn, round by round, so that a noisy neighbour or a
//! falling clock hits all of them alike; what counts is their ratios.

use std::time::Instant;

use serde_json::{Value, json};

use crate::Fallible;

/// One way to do the same work.
pub struct Contender<'a> {
    name: String,
    /// Units of work per run: tokens, lines, keys.
    units: usize,
    run: Box<dyn FnMut() -> Fallible<()> + 'a>,
}

impl<'a> Contender<'a> {
    /// `run` does `units` units of work.
    pub fn new(name: impl Into<String>, units: usize, run: impl FnMut() -> Fallible<()> + 'a) -> Self {
        Self { name: name.into(), units, run: Box::new(run) }
    }
}

impl std::fmt::Debug for Contender<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contender").field("name", &self.name).field("units", &self.units).finish_non_exhaustive()
    }
}

/// What one contender took, round by round.
#[derive(Debug, Clone)]
pub struct Timing {
    /// The contender.
    pub name: String,
    /// Nanoseconds per unit in each round.
    pub rounds: Vec<f64>,
}

impl Timing {
    /// Median nanoseconds per unit.
    #[must_use]
    pub fn median(&self) -> f64 {
        median(&self.rounds)
    }

    /// Median over the rounds of this time divided by that of `base` in the same round.
    #[must_use]
    pub fn ratio_to(&self, base: &Self) -> f64 {
        median(&self.rounds.iter().zip(&base.rounds).map(|(own, base)| own / base).collect::<Vec<_>>())
    }
}

/// The middle value; 0 of nothing.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Runs everyone once untimed, then `rounds` timed rounds, each starting with another contender.
///
/// # Errors
/// The first error of a contender.
pub fn run(contenders: &mut [Contender<'_>], rounds: usize) -> Fallible<Vec<Timing>> {
    let mut timings: Vec<Timing> =
        contenders.iter().map(|one| Timing { name: one.name.clone(), rounds: Vec::with_capacity(rounds) }).collect();
    for one in contenders.iter_mut() {
        (one.run)()?;
    }
    for round in 0..rounds {
        for turn in 0..contenders.len() {
            let i = (round + turn) % contenders.len();
            let began = Instant::now();
            (contenders[i].run)()?;
            let nanoseconds = began.elapsed().as_secs_f64() * 1e9;
            timings[i].rounds.push(nanoseconds / contenders[i].units.max(1) as f64);
        }
    }
    Ok(timings)
}

/// The timings as JSON: medians, ratios to the first contender, raw rounds.
#[must_use]
pub fn as_json(timings: &[Timing]) -> Value {
    let Some(base) = timings.first() else { return json!([]) };
    timings
        .iter()
        .map(|one| json!({"name": one.name, "ns": one.median(), "ratio": one.ratio_to(base), "rounds": one.rounds}))
        .collect()
}

/// The first position at which two answers differ, as an error.
///
/// # Errors
/// Answers that differ, or of different lengths.
pub fn check_equal<T: PartialEq + std::fmt::Debug>(name: &str, expected: &[T], found: &[T]) -> Fallible<()> {
    if expected.len() != found.len() {
        return Err(format!("{name}: {} answers, expected {}: nothing is reported", found.len(), expected.len()).into());
    }
    match expected.iter().zip(found).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => Err(format!(
            "{name}: answer {:?} at position {at}, the reference says {:?}: nothing is reported",
            found[at], expected[at]
        )
        .into()),
    }
}
