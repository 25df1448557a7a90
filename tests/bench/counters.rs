//! What the kernel counts: frames of an interface, and the time that cores were busy.

use std::{fs, path::Path};

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

/// Seconds, summed over some cores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cores {
    /// Neither idle nor waiting for a disk; without what the machine's host has taken away.
    pub busy: f64,
}

impl Cores {
    /// Since the machine started.
    pub fn now(cores: &[usize]) -> Result<Self, String> {
        let text = fs::read_to_string("/proc/stat").map_err(|error| error.to_string())?;
        Self::parse(&text, cores).ok_or_else(|| "/proc/stat lacks a core".to_owned())
    }

    /// Hundredths of a second (`USER_HZ`, the same on every kernel): user, nice, system, idle, iowait, irq, softirq, ..
    fn parse(text: &str, cores: &[usize]) -> Option<Self> {
        let mut busy = 0;
        for core in cores {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("cpu{core} ")))?;
            let times: Vec<u32> = line.split_whitespace().map(|n| n.parse().unwrap_or(u32::MAX)).collect();
            let [user, nice, system, _idle, _iowait, irq, softirq, ..] = times[..] else { return None };
            busy += u64::from(user) + u64::from(nice) + u64::from(system) + u64::from(irq) + u64::from(softirq);
        }
        #[expect(clippy::cast_precision_loss, reason = "years are far below the limit")]
        Some(Self { busy: busy as f64 / 100.0 })
    }
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
    fn busy_is_neither_idle_nor_stolen() {
        let text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 4 1000 500 8 16 7000 0 0\ncpu1 100 0 0 5 0 0 0 0 0 0\ncpu10 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(Cores::parse(text, &[0]), Some(Cores { busy: 0.31 }));
        assert_eq!(Cores::parse(text, &[0, 1]), Some(Cores { busy: 1.31 }));
        assert_eq!(Cores::parse(text, &[2]), None);
    }
}
