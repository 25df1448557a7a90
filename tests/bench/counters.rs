//! What the kernel counts: frames of an interface, and the time that cores were busy.

use std::{fs, path::Path, time::Instant};

use serde_json::Value;

use crate::programs::bounded;

/// Of an interface, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
}

impl Counters {
    /// Reads them.
    pub fn of(network: &Path, interface: &str) -> Result<Self, String> {
        Self::parse(&bounded(network, 5, &["ip", "-j", "-s", "link", "show", "dev", interface])?)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let links: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let statistics = &links[0]["stats64"];
        let number = |way: &str, what: &str| statistics[way][what].as_u64().ok_or(format!("no {way} {what}: {text}"));
        Ok(Self {
            rx_bytes: number("rx", "bytes")?,
            rx_packets: number("rx", "packets")?,
            tx_bytes: number("tx", "bytes")?,
            tx_packets: number("tx", "packets")?,
        })
    }

    /// What was added since.
    pub fn since(self, before: Self) -> Self {
        Self {
            rx_bytes: self.rx_bytes.saturating_sub(before.rx_bytes),
            rx_packets: self.rx_packets.saturating_sub(before.rx_packets),
            tx_bytes: self.tx_bytes.saturating_sub(before.tx_bytes),
            tx_packets: self.tx_packets.saturating_sub(before.tx_packets),
        }
    }

    pub fn bytes(self) -> u64 {
        self.rx_bytes + self.tx_bytes
    }

    pub fn packets(self) -> u64 {
        self.rx_packets + self.tx_packets
    }
}

/// A moment, and how long some cores had been idle until then.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    at: Instant,
    idle: f64,
    count: f64,
}

impl Cores {
    pub fn now(cores: &[usize]) -> Result<Self, String> {
        let text = fs::read_to_string("/proc/stat").map_err(|error| error.to_string())?;
        let idle = idle(&text, cores).ok_or("/proc/stat lacks a core")?;
        let count = u32::try_from(cores.len()).map_err(|error| error.to_string())?.into();
        Ok(Self { at: Instant::now(), idle, count })
    }

    /// Seconds since then that the cores were busy, summed. What is left of the time, since the kernel measures idle time,
    /// and only estimates what it did in the rest by looking at each tick.
    pub fn busy_until(self, later: Self) -> f64 {
        (self.count * later.at.duration_since(self.at).as_secs_f64() - (later.idle - self.idle)).max(0.0)
    }
}

/// Seconds in which the cores did nothing for this machine: idle, iowait, steal. `/proc/stat` has hundredths of a second
/// (`USER_HZ`, the same on every kernel): user, nice, system, idle, iowait, irq, softirq, steal, ..
fn idle(text: &str, cores: &[usize]) -> Option<f64> {
    let mut sum = 0;
    for core in cores {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("cpu{core} ")))?;
        let times: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        sum += times.get(3)? + times.get(4)? + times.get(7)?;
    }
    #[expect(clippy::cast_precision_loss, reason = "years are far below the limit")]
    Some(sum as f64 / 100.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn counters_are_read_from_what_ip_prints() {
        let text = r#"[{"ifname":"eth0","stats64":{"rx":{"bytes":10,"packets":2},"tx":{"bytes":300,"packets":4}}}]"#;
        let counters = Counters::parse(text).expect("they are there");
        assert_eq!(counters, Counters { rx_bytes: 10, rx_packets: 2, tx_bytes: 300, tx_packets: 4 });
        let before = Counters { rx_bytes: 4, ..Counters::default() };
        assert_eq!((counters.since(before).bytes(), counters.packets()), (306, 6));
        assert!(Counters::parse("[]").is_err());
    }

    #[test]
    fn idle_time_is_of_the_cores_asked_for() {
        let text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 4 1000 500 8 16 7000 0 0\ncpu1 100 0 0 5 0 0 0 0 0 0\ncpu10 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(idle(text, &[0]), Some(85.0));
        assert_eq!(idle(text, &[0, 1]), Some(85.05));
        assert_eq!(idle(text, &[2]), None);
    }

    #[test]
    fn busy_is_what_is_left_of_the_time() {
        let then = Cores { at: Instant::now(), idle: 10.0, count: 2.0 };
        let later = Cores { at: then.at + Duration::from_secs(3), idle: 14.5, count: 2.0 };
        assert!((then.busy_until(later) - 1.5).abs() < 1e-9);
    }
}
