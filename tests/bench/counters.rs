//! Counters of the kernel: frames of an interface, and CPU time.

use std::{fs, path::Path};

use serde_json::Value;

use crate::programs::bounded;

/// Counters of an interface since it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
}

impl Counters {
    /// Reads the counters of an interface.
    pub fn of(network: &Path, interface: &str) -> Result<Self, String> {
        Self::parse(&bounded(network, 5, &["ip", "-j", "-s", "link", "show", "dev", interface])?)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let links: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let statistics = &links[0]["stats64"];
        let number = |direction: &str, name: &str| {
            statistics[direction][name].as_u64().ok_or(format!("no {direction} {name}: {text}"))
        };
        Ok(Self {
            rx_bytes: number("rx", "bytes")?,
            rx_packets: number("rx", "packets")?,
            tx_bytes: number("tx", "bytes")?,
            tx_packets: number("tx", "packets")?,
        })
    }

    /// The increase since earlier counters.
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

/// Total seconds that cores have spent in the kernel since boot.
pub fn kernel_time(cores: &[usize]) -> Result<f64, String> {
    // system, irq, softirq
    core_time(cores, &[2, 5, 6])
}

/// Total seconds since boot that the hypervisor gave to others while cores had work.
pub fn stolen_time(cores: &[usize]) -> Result<f64, String> {
    core_time(cores, &[7])
}

fn core_time(cores: &[usize], columns: &[usize]) -> Result<f64, String> {
    let text = fs::read_to_string("/proc/stat").map_err(|error| error.to_string())?;
    sum(&text, cores, columns).ok_or_else(|| "/proc/stat lacks a core".to_owned())
}

/// Seconds that a process has spent in user space.
pub fn user_time(process: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Field 14 (proc_pid_stat(5)); the name before it, in parentheses, may contain anything.
    text.rsplit(')').next()?.split_whitespace().nth(11)?.parse().ok().map(seconds)
}

/// Seconds that the first thread of a process ran, and that it waited for a core (`Documentation/scheduler/sched-stats.rst`).
pub fn run_and_wait(process: u32) -> Option<[f64; 2]> {
    let text = fs::read_to_string(format!("/proc/{process}/schedstat")).ok()?;
    let mut times = text.split_whitespace().map(|time| time.parse::<f64>().ok().map(|nanoseconds| nanoseconds / 1e9));
    Some([times.next()??, times.next()??])
}

/// Sums times of cores. Columns of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal, ..
fn sum(text: &str, cores: &[usize], columns: &[usize]) -> Option<f64> {
    let mut sum = 0;
    for core in cores {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("cpu{core} ")))?;
        let times: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        for column in columns {
            sum += times.get(*column)?;
        }
    }
    Some(seconds(sum))
}

/// Converts hundredths (`USER_HZ`, the same on every kernel) to seconds.
#[expect(clippy::cast_precision_loss, reason = "years are far below the limit")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_parsed_from_the_output_of_ip() {
        let text = r#"[{"ifname":"eth0","stats64":{"rx":{"bytes":10,"packets":2},"tx":{"bytes":300,"packets":4}}}]"#;
        let counters = Counters::parse(text).expect("the counters are present");
        assert_eq!(counters, Counters { rx_bytes: 10, rx_packets: 2, tx_bytes: 300, tx_packets: 4 });
        let before = Counters { rx_bytes: 4, ..Counters::default() };
        assert_eq!((counters.since(before).bytes(), counters.packets()), (306, 6));
        assert!(Counters::parse("[]").is_err());
    }

    #[test]
    fn times_are_those_of_the_given_cores() {
        let text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 400 1000 500 80 16 7000 0 0\ncpu1 100 0 4 5 0 0 0 0 0 0\ncpu10 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(sum(text, &[0], &[2, 5, 6]), Some(4.96));
        assert_eq!(sum(text, &[0, 1], &[2, 5, 6]), Some(5.0));
        assert_eq!(sum(text, &[0], &[7]), Some(70.0));
        assert_eq!(sum(text, &[2], &[7]), None);
        assert!(user_time(std::process::id()).is_some_and(|seconds| seconds >= 0.0));
        assert!(run_and_wait(std::process::id()).is_some_and(|[run, wait]| run > 0.0 && wait >= 0.0));
    }
}
