//! From the ring to the table of flows: the highest rate without drops, and what it costs.
//!
//! One core makes the frames and copies them into the ring, and another one runs the program that reads it. The flows are known before
//! the measurement begins.

use std::{path::Path, time::Duration};

use podtap_tests::{
    cores::{Confined, stay_on},
    net::Network,
};

use super::{
    generator::{Generator, Sent},
    readers::{Outcome, Reader},
};
use crate::{arguments::Arguments, interrupt, table::Table};

const HIGHEST: &str = "64 B frames of 100,000 flows: highest rate without drops";
const COST: &str = "CPU time per million of them, at that rate";
const MANY: &str = "0.25 million of them per second: share of a core";
const MIRROR: &str = "0.25 million frames/s of 1,000 flows: share of a core";
const DROPPED: &str = "the same: frames dropped";
const WAITED: &str = "the same: share of the time that it waited for its core";

/// As [`HIGHEST`] says.
const FLOWS: i32 = 100_000;
/// As [`MIRROR`] says.
const FLOWS_OF_MIRROR: i32 = 1_000;
/// What the mirror of the lab makes.
const RATE_OF_MIRROR: f64 = 250_000.0;
/// Halvings of the interval in which the highest rate is.
const STEPS: u32 = 6;

/// Until each flow had a frame.
const WARM_UP: (f64, Duration) = (RATE_OF_MIRROR, Duration::from_secs(3));
/// Frames in a block of a ring.
const LAST_BLOCK: u64 = 10_000;

/// What was sent, and what the program did with it.
type Run = (Sent, Outcome);

pub fn measure(arguments: &Arguments, collector: &Path) -> Table {
    let mut table = Table::new("ring")
        .row(HIGHEST, "frames/s", "1,000,000, or twice that of tcpdump")
        .row(COST, "s", "no more than tcpdump")
        .row(MANY, "%", "")
        .row(MIRROR, "%", "<= 10")
        .row(DROPPED, "frames", "0")
        .row(WAITED, "%", "near 0, or the machine is busy");
    let network = Network::new();
    let length = Duration::from_secs(arguments.seconds.into()) * 2;
    for round in 0..arguments.rounds {
        let mut readers = Reader::all(collector);
        if round % 2 == 1 {
            readers.reverse();
        }
        for reader in readers {
            if interrupt::stopped() {
                return table;
            }
            let run = |flows, rate| run(&network, &reader, flows, rate, length);
            match highest(|rate| run(FLOWS, rate)) {
                Ok((sent, outcome)) => {
                    table.record(HIGHEST, reader.column, round, Ok(sent.rate()));
                    table.record(
                        COST,
                        reader.column,
                        round,
                        Ok(outcome.ran / sent.rate() / sent.elapsed.as_secs_f64() * 1e6),
                    );
                }
                Err(why) => table.record(HIGHEST, reader.column, round, Err(why)),
            }
            let share = |(sent, _): &Run, time: f64| Ok(time / sent.elapsed.as_secs_f64() * 100.0);
            match run(FLOWS, Some(RATE_OF_MIRROR)) {
                Ok((_, Outcome { dropped: 1.., .. })) => {
                    table.record(MANY, reader.column, round, Err("frames were dropped".to_owned()));
                }
                Ok(run) => table.record(MANY, reader.column, round, share(&run, run.1.ran)),
                Err(why) => table.record(MANY, reader.column, round, Err(why)),
            }
            match run(FLOWS_OF_MIRROR, Some(RATE_OF_MIRROR)) {
                Ok(run) => {
                    table.record(MIRROR, reader.column, round, share(&run, run.1.ran));
                    table.record(WAITED, reader.column, round, share(&run, run.1.waited));
                    #[expect(clippy::cast_precision_loss, reason = "a count of a few seconds")]
                    table.record(DROPPED, reader.column, round, Ok(run.1.dropped as f64));
                }
                Err(why) => table.record(MIRROR, reader.column, round, Err(why)),
            }
        }
    }
    table
}

/// The run with the highest rate at which nothing was dropped.
fn highest(run: impl Fn(Option<f64>) -> Result<Run, String>) -> Result<Run, String> {
    let fastest = run(None)?;
    if fastest.1.dropped == 0 {
        return Ok(fastest);
    }
    let (mut low, mut high, mut best) = (0.0, fastest.0.rate(), None);
    for _ in 0..STEPS {
        let rate = f64::midpoint(low, high);
        let outcome = run(Some(rate))?;
        if outcome.1.dropped == 0 {
            low = rate;
            best = Some(outcome);
        } else {
            high = rate;
        }
    }
    best.ok_or_else(|| "frames are dropped at any rate".to_owned())
}

/// Sends while a program captures. Each has a core of its own.
fn run(network: &Network, reader: &Reader, flows: i32, rate: Option<f64>, length: Duration) -> Result<Run, String> {
    let message = |error: std::io::Error| error.to_string();
    let generator = Generator::new(flows).map_err(message)?;
    let two = Confined::to(2);
    let [reading, sending] = two.cores[..] else { return Err("this takes two cores".to_owned()) };
    stay_on(reading).map_err(message)?;
    let generate = |rate, length| {
        let sent = network.within(|| {
            stay_on(sending)?;
            generator.run(rate, length)
        });
        sent.map_err(message)
    };
    let warm_up = || generate(Some(WARM_UP.0), WARM_UP.1);
    let ([before, sent], outcome) = reader.during(network.path(), warm_up, || generate(rate, length))?;
    let frames = before.frames + sent.frames;
    // Without drops, it has captured all but those in the block of the ring that it was reading when it ended.
    if outcome.dropped == 0 && frames - outcome.captured.min(frames) > LAST_BLOCK {
        return Err(format!("of {frames} frames, {outcome:?}"));
    }
    Ok((sent, outcome))
}
