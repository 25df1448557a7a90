//! The machine that the results are from, and what else it did meanwhile.

use std::{fs, time::Instant};

use crate::counters::stolen_time;

/// Watches the cores of a run.
pub struct Machine {
    cores: Vec<usize>,
    start: Instant,
    stolen: Option<f64>,
}

impl Machine {
    pub fn watch(cores: &[usize]) -> Self {
        Self { cores: cores.to_vec(), start: Instant::now(), stolen: stolen_time(cores).ok() }
    }

    /// What it is, and how busy it was at the start.
    pub fn description(&self) -> String {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
        let load = read("/proc/loadavg");
        format!(
            "{count} x {}, kernel {}; measured on the cores {:?}; load average before: {}",
            model.map_or("unknown CPU", |(_, name)| name.trim()),
            read("/proc/sys/kernel/osrelease").trim(),
            self.cores,
            load.split_whitespace().next().unwrap_or("unknown"),
        )
    }

    /// The share of the cores' time that the hypervisor gave to other machines since the start, in percent.
    pub fn stolen(&self) -> Option<f64> {
        let stolen = stolen_time(&self.cores).ok()? - self.stolen?;
        #[expect(clippy::cast_precision_loss, reason = "a few cores")]
        let all = self.start.elapsed().as_secs_f64() * self.cores.len() as f64;
        Some(100.0 * stolen / all)
    }
}
