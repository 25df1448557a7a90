//! Counters of the kernel: frames of an interface, and the time of cores.

use std::{fs, path::Path};

use serde_json::Value;

use crate::programs::bounded;

/// Of an interface, since it was created.
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
        let number =
            |side: &str, what: &str| statistics[side][what].as_u64().ok_or(format!("no {side} {what}: {text}"));
        Ok(Self {
            rx_bytes: number("rx", "bytes")?,
            rx_packets: number("rx", "packets")?,
            tx_bytes: number("tx", "bytes")?,
            tx_packets: number("tx", "packets")?,
        })
    }

    /// The increase since.
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

/// Seconds that cores have spent in the kernel since the machine started, summed.
pub fn kernel_time(cores: &[usize]) -> Result<f64, String> {
    let text = fs::read_to_string("/proc/stat").map_err(|error| error.to_string())?;
    in_kernel(&text, cores).ok_or_else(|| "/proc/stat lacks a core".to_owned())
}

/// Seconds that a process has spent outside of the kernel.
pub fn user_time(process: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Field 14 (proc_pid_stat(5)); the name before it, in parentheses, may contain anything.
    text.rsplit(')').next()?.split_whitespace().nth(11)?.parse().ok().map(seconds)
}

/// Columns of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, ..
fn in_kernel(text: &str, cores: &[usize]) -> Option<f64> {
    let mut sum = 0;
    for core in cores {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("cpu{core} ")))?;
        let times: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        sum += times.get(2)? + times.get(5)? + times.get(6)?;
    }
    Some(seconds(sum))
}

/// From ticks of 10 ms (`USER_HZ` is 100 on every kernel).
#[expect(clippy::cast_precision_loss, reason = "years are far below the limit")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / 100.0
}

#[cfg(test)]
mod tests {
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
    fn kernel_time_is_of_the_cores_asked_for() {
        let text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 400 1000 500 80 16 7000 0 0\ncpu1 100 0 4 5 0 0 0 0 0 0\ncpu10 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(in_kernel(text, &[0]), Some(4.96));
        assert_eq!(in_kernel(text, &[0, 1]), Some(5.0));
        assert_eq!(in_kernel(text, &[2]), None);
        assert!(user_time(std::process::id()).is_some_and(|seconds| seconds >= 0.0));
    }
}
