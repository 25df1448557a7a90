//! All columns in turn, round after round, so that other load on the machine affects all of them alike.

use std::time::{Duration, Instant};

use crate::{
    arguments::Arguments,
    columns::{Column, Receiver, Running},
    interrupt,
    stage::Stage,
};

/// A run of the bench: where, how often, how long, and until when.
pub struct Bench<'a> {
    pub stage: &'a Stage,
    pub rounds: usize,
    /// Length of a measurement.
    pub seconds: u32,
    /// The cores that do all of the work.
    pub cores: Vec<usize>,
    start: Instant,
    budget: Duration,
}

impl<'a> Bench<'a> {
    pub fn new(stage: &'a Stage, arguments: &Arguments, cores: Vec<usize>, start: Instant) -> Self {
        Self { stage, rounds: arguments.rounds, seconds: arguments.seconds, cores, start, budget: arguments.budget }
    }

    /// Calls `measure` in each column and round, with the round's number; a column that cannot be set up is passed to `failed`.
    /// Each round starts with another column, because the first one of a round may be at an advantage.
    pub fn compare<State>(
        &self,
        columns: &[Column],
        receiver: Receiver,
        state: &mut State,
        mut measure: impl FnMut(&mut State, usize, &Column, &mut Running<'_>),
        mut failed: impl FnMut(&mut State, usize, &Column, String),
    ) {
        for round in 0..self.rounds {
            for step in 0..columns.len() {
                if self.over() {
                    println!("  ended in round {}", round + 1);
                    return;
                }
                let column = &columns[(round + step) % columns.len()];
                match column.begin(self.stage, receiver) {
                    Ok(mut running) => measure(state, round, column, &mut running),
                    Err(why) => failed(state, round, column, why),
                }
            }
        }
    }

    /// Whether to begin no further measurement.
    pub fn over(&self) -> bool {
        interrupt::stopped() || self.start.elapsed() > self.budget
    }

    /// Prints the progress.
    pub fn announce(&self, family: &str) {
        println!("  {:>4} s  {family}", self.start.elapsed().as_secs());
    }
}
