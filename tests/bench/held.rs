//! TCP at half of the untapped maximum rate, at which no frame may be lost.

use crate::{
    columns::{Column, Receiver, Running},
    counters::Counters,
    iperf::Load,
    rounds::Bench,
    statistics::median,
    table::Table,
};

const RATE: &str = "TCP at half of the untapped maximum; receiver decapsulates";
const RETRANSMISSIONS: &str = "the same: retransmitted segments";
const LOST: &str = "the same: mirrored frames missing at the receiver";

/// Ethernet, IPv4 and TCP with timestamps.
const HEADERS: i64 = 14 + 20 + 32;
/// A receiver's interface counts frames without their Ethernet header.
const HEADERS_AT_RECEIVER: i64 = HEADERS - 14;
/// TCP payload of a full frame at MTU 1500.
const FULL: i64 = 1448;

/// Half of the untapped maximum in bits per second, or why it is unknown.
pub fn half(bench: &Bench<'_>) -> Result<u64, String> {
    let load = Load { flows: 1, receive: false, rate: None, seconds: bench.seconds };
    let samples: Vec<f64> = (0..3).filter_map(|_| load.run(bench.stage).ok()).map(|o| o.gigabits).collect();
    let maximum = median(&samples).ok_or("iperf3 does not run")?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is positive and below 2^53")]
    Ok((maximum / 2.0 * 1e9) as u64)
}

pub fn measure(bench: &Bench<'_>) -> Table {
    let mut table = Table::new("half_rate")
        .row(RATE, "Gbit/s", "1.00 of untapped")
        .row(RETRANSMISSIONS, "segments", "none more than untapped")
        .row(LOST, "frames", "0");
    let rate = match half(bench) {
        Ok(rate) => rate,
        Err(why) => {
            table.record(RATE, crate::table::UNTAPPED, 0, Err(why));
            return table;
        }
    };
    let load = Load { flows: 1, receive: false, rate: Some(rate), seconds: bench.seconds * 2 };
    let mut columns = Column::all();
    columns.push(Column::raw());
    bench.compare(
        &columns,
        Receiver::Decapsulates,
        &mut table,
        |table, round, column, running| {
            let before = Sides::now(bench, running);
            let outcome = load.run(bench.stage);
            table.record(RATE, column.name(), round, outcome.clone().map(|o| o.gigabits));
            table.record(RETRANSMISSIONS, column.name(), round, outcome.map(|o| o.retransmissions));
            if let Some(lost) = lost(bench, running, before).transpose() {
                table.record(LOST, column.name(), round, lost);
            }
        },
        |table, round, column, why| table.record(RATE, column.name(), round, Err(why)),
    );
    table
}

/// Counters of the pod's interface, and of the receiver's where there is one.
type Both = (Counters, Option<Counters>);

struct Sides;

impl Sides {
    fn now(bench: &Bench<'_>, running: &Running<'_>) -> Result<Both, String> {
        Ok((Counters::of(&bench.stage.web, "eth0")?, running.at_receiver().transpose()?))
    }
}

fn lost(bench: &Bench<'_>, running: &mut Running<'_>, before: Result<Both, String>) -> Result<Option<f64>, String> {
    if let Some(frames) = running.capture_losses() {
        #[expect(clippy::cast_precision_loss, reason = "a count of a few seconds")]
        return frames.map(|frames| Some(frames as f64));
    }
    let (pod_before, receiver_before) = before?;
    // Waits for frames in the receiver's queues.
    std::thread::sleep(std::time::Duration::from_millis(100));
    let (pod, receiver) = Sides::now(bench, running)?;
    Ok(receiver.zip(receiver_before).map(|(now, then)| missing(pod.since(pod_before), now.since(then))))
}

/// The number of full-size frames whose TCP payload did not arrive at the receiver. Computed from the payload, because GSO packets of the
/// pod are segmented on the path, so both frames and bytes differ. Frames without payload are ignored.
fn missing(pod: Counters, receiver: Counters) -> f64 {
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let at_pod = count(pod.bytes()) - HEADERS * count(pod.packets());
    let arrived = count(receiver.rx_bytes) - HEADERS_AT_RECEIVER * count(receiver.rx_packets);
    // The probes of a tap arrive only at the receiver, and are smaller than a frame.
    let frames = ((at_pod - arrived) + FULL / 2).div_euclid(FULL).max(0);
    #[expect(clippy::cast_precision_loss, reason = "a count of a few seconds")]
    {
        frames as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segmented_gso_packet_is_not_missing() {
        // A GSO packet of ten segments and an acknowledgement at the pod; eleven frames at the receiver.
        let pod = Counters { tx_bytes: 14_480 + 66, tx_packets: 1, rx_bytes: 66, rx_packets: 1 };
        let receiver = Counters { rx_bytes: 10 * (1448 + 52) + 52, rx_packets: 11, ..Counters::default() };
        assert_eq!(missing(pod, receiver).to_bits(), 0_f64.to_bits());
        let one_less = Counters { rx_bytes: receiver.rx_bytes - 1500, rx_packets: 10, ..receiver };
        assert_eq!(missing(pod, one_less).to_bits(), 1_f64.to_bits());
    }

    #[test]
    fn probes_are_not_frames_of_the_pod() {
        let probe = Counters { rx_bytes: 100, rx_packets: 1, ..Counters::default() };
        assert_eq!(missing(Counters::default(), probe).to_bits(), 0_f64.to_bits());
    }
}
