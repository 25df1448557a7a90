//! Measures all columns in each round, so that other load on the machine affects them equally.

use std::time::{Duration, Instant};

use crate::{
    arguments::Arguments,
    columns::{Column, Receiver, Running},
    flood::Flood,
    interrupt,
    iperf::Load,
    stage::Stage,
};

/// A run of the bench: where, how often, how long, and until when.
pub struct Bench<'a> {
    pub stage: &'a Stage,
    pub rounds: usize,
    /// Length of a measurement.
    pub seconds: u32,
    /// The cores that do all the work.
    pub cores: Vec<usize>,
    start: Instant,
    budget: Duration,
}

impl<'a> Bench<'a> {
    pub fn new(stage: &'a Stage, arguments: &Arguments, cores: Vec<usize>, start: Instant) -> Self {
        Self { stage, rounds: arguments.rounds, seconds: arguments.seconds, cores, start, budget: arguments.budget }
    }

    /// Calls `measure` for each column in each round, or `failed` if the column cannot be set up. Each round starts with another column,
    /// since the order affects the results.
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

    /// TCP in so many flows at its maximum rate, in Gbit/s; `receive`: the tapped pod receives.
    pub fn gigabits(&self, flows: u32, receive: bool) -> Result<f64, String> {
        let load = Load { flows, receive, rate: None, seconds: self.seconds };
        load.run(self.stage).map(|outcome| outcome.gigabits)
    }

    /// Small datagrams of so many flows at their maximum rate, in packets/s.
    pub fn datagrams(&self, flows: usize, receive: bool) -> Result<f64, String> {
        let length = Duration::from_secs(self.seconds.into());
        Flood { flows, receive, rate: None, length }.run(self.stage)
    }

    /// Whether no further measurement should start.
    pub fn over(&self) -> bool {
        interrupt::stopped() || self.start.elapsed() > self.budget
    }

    /// Prints what is measured next.
    pub fn announce(&self, family: &str) {
        println!("  {:>4} s  {family}", self.start.elapsed().as_secs());
    }
}
