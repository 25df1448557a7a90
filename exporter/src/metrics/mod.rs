//! Metrics of flows, with the names that other programs gave them.

mod convis;
mod netobserv;
mod obi;
pub mod scrape;
pub mod table;
mod top;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, ensure};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use serde::Deserialize;

use self::{convis::Convis, table::Table};
use crate::record::Record;

/// Whose metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Profile {
    /// Of Kentik's convis: payload by pod and peer, and a map of the world.
    Convis,
    /// Of `NetObserv`: frames by node, namespace and workload.
    Netobserv,
    /// Of OpenTelemetry's eBPF instrumentation: frames by workload.
    Obi,
}

/// Which metrics, and how many.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MetricsConfig {
    pub profile: Profile,
    /// How many series there may be.
    #[serde(default = "default_series")]
    pub series: u32,
    /// Database of the places of addresses, in the format of `MaxMind`.
    pub cities: Option<PathBuf>,
}

impl MetricsConfig {
    /// All else by default.
    pub const fn of(profile: Profile) -> Self {
        Self { profile, series: default_series(), cities: None }
    }
}

const fn default_series() -> u32 {
    10_000
}

/// Fewest series that a table may have, and most.
const SERIES: std::ops::RangeInclusive<u32> = 1000..=200_000;

/// Metrics of all flows so far. Clones share them.
#[derive(Clone, Debug)]
pub struct Counted {
    shared: Arc<Mutex<Counting>>,
    figures: TableFigures,
}

#[derive(Debug)]
pub struct Counting {
    pub table: Table,
    counter: Count,
}

/// How records are counted.
#[derive(Debug)]
enum Count {
    Convis(Box<Convis>),
    Netobserv,
    Obi,
}

/// What is told of a table.
#[derive(Clone, Debug, Default)]
pub struct TableFigures {
    pub series: Gauge,
    /// How often labels were left out.
    pub folded: Counter,
}

impl Counted {
    pub fn new(config: &MetricsConfig, figures: TableFigures) -> Result<Self> {
        let MetricsConfig { profile, series, cities } = config;
        ensure!(SERIES.contains(series), "series must be from {} to {}", SERIES.start(), SERIES.end());
        ensure!(cities.is_none() || *profile == Profile::Convis, "cities is for the profile convis only");
        let (families, counter) = match profile {
            Profile::Convis => (convis::FAMILIES, Count::Convis(Box::new(Convis::new(cities.as_deref())?))),
            Profile::Netobserv => (netobserv::FAMILIES, Count::Netobserv),
            Profile::Obi => (obi::FAMILIES, Count::Obi),
        };
        let counting = Counting { table: Table::new(families, *series as usize), counter };
        Ok(Self { shared: Arc::new(Mutex::new(counting)), figures })
    }

    /// Without records, it forgets what has ended.
    pub fn count(&self, records: &[Arc<Record>]) {
        let now = now();
        let Counting { table, counter } = &mut *self.lock();
        table.forget_idle(now);
        for record in records {
            match counter {
                Count::Convis(convis) => convis.count(record, table, now),
                Count::Netobserv => netobserv::count(record, table, now),
                Count::Obi => obi::count(record, table, now),
            }
        }
        self.figures.series.set(i64::try_from(table.len()).unwrap_or(i64::MAX));
        let folded = &self.figures.folded;
        folded.inc_by(table.folded() - folded.get());
    }

    pub fn lock(&self) -> MutexGuard<'_, Counting> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What may be unknown.
fn text(value: Option<&String>) -> &str {
    value.map_or("", String::as_str)
}
