//! The CPU time that a mirror costs on the sender's side.
//!
//! Measured is the kernel time of the two cores that do all of the work (`/proc/stat`: system, irq and softirq), and the user time of
//! tcpdump, while the pod sends at a rate that it also reaches untapped: half of its maximum, for TCP and for datagrams. The time of
//! the same work untapped in the same round is subtracted, and the rest divided by what was mirrored. The receiver drops on arrival,
//! but its end of the veth pair and that rule run on the same cores, as does the TCP stack that receives tcpdump's capture. The user
//! time of other programs on the machine is not counted; their kernel time is noise.

use std::time::Duration;

use crate::{
    columns::{Column, Receiver, Running},
    counters::{Counters, kernel_time},
    flood::{self, Flood},
    held,
    iperf::Load,
    rounds::Bench,
    statistics::median,
    table::{Table, UNTAPPED},
};

const PER_GIGABYTE: &str = "CPU seconds per mirrored GB (TCP at half of its maximum)";
const PER_MILLION: &str = "CPU seconds per million mirrored frames (UDP 64 B at half of its maximum)";
/// Bytes of a captured datagram: pcap record header, Ethernet, IPv4 and UDP headers, and payload.
const CAPTURED: u64 = 16 + 14 + 20 + 8 + flood::SIZE as u64;

/// What happened while the pod worked.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Work {
    /// Core seconds.
    busy: f64,
    /// Bytes or frames of the pod.
    moved: f64,
    /// Those that were mirrored.
    mirrored: f64,
}

/// By row: column, round, work.
type Works = Vec<(&'static str, &'static str, usize, Result<Work, String>)>;

pub fn measure(bench: &Bench<'_>) -> Table {
    let mut table = Table::new("cpu").row(PER_GIGABYTE, "s/GB", "lowest of the row").row(
        PER_MILLION,
        "s/million",
        "lowest of the row",
    );
    let seconds = bench.seconds * 2;
    let length = Duration::from_secs(seconds.into());
    let (bits, datagrams) = match (held::half(bench), half_of_the_datagrams(bench)) {
        (Ok(bits), Ok(datagrams)) => (bits, datagrams),
        (Err(why), _) | (_, Err(why)) => {
            table.record(PER_GIGABYTE, UNTAPPED, 0, Err(why));
            return table;
        }
    };
    let load = Load { flows: 1, receive: false, rate: Some(bits), seconds };
    let flood = Flood { flows: 1, receive: false, rate: Some(datagrams), length };
    let mut works: Works = Vec::new();
    bench.compare(
        &Column::all(),
        Receiver::Drops,
        &mut works,
        |works, round, column, running| {
            let bytes = during(bench, running, || load.run(bench.stage).map(drop));
            let bytes = bytes.map(|(busy, pod, capture)| {
                let moved = float(pod.bytes()) / 1e9;
                Work { busy, moved, mirrored: capture.map_or(moved, |bytes| bytes / 1e9) }
            });
            works.push((PER_GIGABYTE, column.name(), round, bytes));
            let frames = during(bench, running, || flood.run(bench.stage).map(drop));
            let frames = frames.map(|(busy, pod, capture)| {
                let moved = float(pod.packets()) / 1e6;
                Work { busy, moved, mirrored: capture.map_or(moved, |bytes| bytes / float(CAPTURED) / 1e6) }
            });
            works.push((PER_MILLION, column.name(), round, frames));
        },
        |works, round, column, why| works.push((PER_GIGABYTE, column.name(), round, Err(why))),
    );
    for (row, column, round, work) in works.iter().filter(|(_, column, _, _)| *column != UNTAPPED) {
        let untapped = works.iter().find(|(r, c, n, _)| (r, *c, n) == (row, UNTAPPED, round));
        let cost = match (work, untapped) {
            (Ok(work), Some((_, _, _, Ok(untapped)))) => cost(*work, *untapped),
            (Err(why), _) | (_, Some((_, _, _, Err(why)))) => Err(why.clone()),
            (_, None) => Err("not measured untapped".to_owned()),
        };
        table.record(row, column, *round, cost);
    }
    table
}

fn half_of_the_datagrams(bench: &Bench<'_>) -> Result<f64, String> {
    let length = Duration::from_secs(bench.seconds.into());
    let flood = Flood { flows: 1, receive: false, rate: None, length };
    let samples: Vec<f64> = (0..3).filter_map(|_| flood.run(bench.stage).ok()).collect();
    median(&samples).map(|maximum| maximum / 2.0).ok_or_else(|| "no datagrams arrive".to_owned())
}

/// Core seconds, counters of the pod's interface, and bytes of a capture, during some work.
fn during(
    bench: &Bench<'_>,
    running: &Running<'_>,
    work: impl FnOnce() -> Result<(), String>,
) -> Result<(f64, Counters, Option<f64>), String> {
    let pod = || Counters::of(&bench.stage.web, "eth0");
    let (counted, captured) = (pod()?, running.capture_bytes());
    let time = || kernel_time(&bench.cores).map(|kernel| kernel + running.user_time());
    let start = time()?;
    work()?;
    let busy = time()? - start;
    let captured = running.capture_bytes().zip(captured).map(|(after, before)| float(after.saturating_sub(before)));
    Ok((busy, pod()?.since(counted), captured))
}

/// The cost beyond the same work untapped, per mirrored unit.
fn cost(work: Work, untapped: Work) -> Result<f64, String> {
    if untapped.moved <= 0.0 || work.mirrored <= 0.0 {
        return Err("nothing was mirrored".to_owned());
    }
    Ok((work.busy - untapped.busy * work.moved / untapped.moved) / work.mirrored)
}

#[expect(clippy::cast_precision_loss, reason = "a count of a few seconds")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_is_what_the_same_work_needs_more() {
        let untapped = Work { busy: 1.0, moved: 2.0, mirrored: 2.0 };
        assert_eq!(cost(Work { busy: 1.5, moved: 2.0, mirrored: 2.0 }, untapped), Ok(0.25));
        // Half of the work, and half of that was mirrored.
        assert_eq!(cost(Work { busy: 1.0, moved: 1.0, mirrored: 0.5 }, untapped), Ok(1.0));
        assert!(cost(Work::default(), untapped).is_err());
    }
}
