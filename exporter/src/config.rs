//! The file that says which sinks there are.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::{
    figures::Figures,
    metrics::{Counted, MetricsConfig, scrape::Scraped},
    policy::Policy,
    sinks::{
        Sinks,
        files::{Files, FilesConfig},
        ipfix::{Exporter, IpfixConfig},
        kafka::{Kafka, KafkaConfig},
        otlp::{self, OtlpConfig},
        remote_write::{self, RemoteWriteConfig},
        stdout::{Lines, StdoutConfig},
    },
};

/// The whole file, as YAML.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    sinks: Vec<SinkConfig>,
    /// Metrics of flows that are served beside those of the exporter.
    metrics: Option<MetricsConfig>,
}

/// A sink: its name, and one of the fields after `queue_mib`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SinkConfig {
    /// For metrics and logs.
    name: String,
    /// Memory for records that wait, in MiB.
    #[serde(rename = "queueMiB", default = "default_queue")]
    queue_mib: u16,
    stdout: Option<StdoutConfig>,
    files: Option<FilesConfig>,
    ipfix: Option<IpfixConfig>,
    #[serde(rename = "remoteWrite")]
    remote_write: Option<RemoteWriteConfig>,
    otlp: Option<OtlpConfig>,
    kafka: Option<KafkaConfig>,
}

/// With eight sinks, all of which are down, half of the chart's memory limit.
const fn default_queue() -> u16 {
    16
}

/// Longest name of a sink.
const LONGEST_NAME: usize = 63;
/// What counts the metrics that are served has a queue, too.
const METRICS: &str = "metrics";
/// Largest queue, in MiB.
const LARGEST_QUEUE: u16 = 1024;

impl Config {
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not valid", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let config: Self = serde_saphyr::from_str(text)?;
        ensure!(!config.sinks.is_empty() || config.metrics.is_some(), "it has no sinks and no metrics");
        let mut names = BTreeSet::new();
        for sink in &config.sinks {
            let name = &sink.name;
            let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            ensure!(
                (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(is_valid),
                "{name:?} is no name of a sink: it must have 1 to {LONGEST_NAME} letters, digits, `-`, `_` and `.`"
            );
            ensure!(name != METRICS, "the name {METRICS} is that of the section metrics: choose another one");
            ensure!(names.insert(name), "two sinks have the name {name}");
            ensure!(
                (1..=LARGEST_QUEUE).contains(&sink.queue_mib),
                "queueMiB of {name} must be from 1 to {LARGEST_QUEUE}"
            );
        }
        Ok(config)
    }

    /// Starts all sinks. Returns also the metrics that are to be served.
    pub fn start(self, figures: &Figures, policy: Policy) -> Result<(Sinks, Option<Counted>)> {
        let mut sinks = Sinks::new(policy);
        let metrics = self.metrics.map(|config| Counted::new(&config, figures.of_table(METRICS))).transpose();
        let metrics = metrics.context(METRICS)?;
        if let Some(metrics) = &metrics {
            sinks.start(METRICS, usize::from(default_queue()) << 20, figures, Scraped(metrics.clone()));
        }
        for sink in self.sinks {
            let name = sink.name.clone();
            sink.start(figures, &mut sinks).with_context(|| format!("the sink {name}"))?;
        }
        Ok((sinks, metrics))
    }
}

impl SinkConfig {
    fn start(self, figures: &Figures, sinks: &mut Sinks) -> Result<()> {
        let Self { name, queue_mib, stdout, files, ipfix, remote_write, otlp, kafka } = self;
        let capacity = usize::from(queue_mib) << 20;
        let mut kinds = 0;
        if let Some(config) = stdout {
            kinds += 1;
            sinks.start(&name, capacity, figures, Lines::new(config));
        }
        if let Some(config) = files {
            kinds += 1;
            let lost = figures.of_sink(&name).lost;
            sinks.start(&name, capacity, figures, Files::new(config, &name, lost)?);
        }
        if let Some(config) = ipfix {
            kinds += 1;
            sinks.start(&name, capacity, figures, Exporter::new(config)?);
        }
        if let Some(config) = remote_write {
            kinds += 1;
            sinks.start(&name, capacity, figures, remote_write::sink(config, figures.of_table(&name))?);
        }
        if let Some(config) = otlp {
            kinds += 1;
            otlp::start(config, &name, capacity, figures, sinks)?;
        }
        if let Some(config) = kafka {
            kinds += 1;
            sinks.start(&name, capacity, figures, Kafka::new(config)?);
        }
        match kinds {
            1 => Ok(()),
            0 => bail!("it has no kind: set one of stdout, files, ipfix, remoteWrite, otlp, kafka"),
            _ => bail!("it has {kinds} kinds: make a sink of each"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sink_has_a_name_and_a_size() {
        Config::parse("sinks: [{name: a, stdout: {}}, {name: b.c-1, queueMiB: 1, stdout: {}}]").expect("it is valid");
        for (text, message) in [
            ("{}", "sinks"),
            ("sinks: []", "it has no sinks"),
            ("sinks: [{name: metrics, stdout: {}}]", "the name metrics is that of the section metrics"),
            ("metrics: {profile: other}", "convis"),
            ("metrics: {profile: convis, level: pod}", "level"),
            ("sinks: [{stdout: {}}]", "name"),
            ("sinks: [{name: a b, stdout: {}}]", "no name of a sink"),
            ("sinks: [{name: a, stdout: {}}, {name: a, stdout: {}}]", "two sinks have the name a"),
            ("sinks: [{name: a, queueMiB: 0, stdout: {}}]", "queueMiB of a must be from 1 to 1024"),
            ("sinks: [{name: a, stdout: {file: x}}]", "file"),
            ("sinks: [{name: a, stdin: {}}]", "stdin"),
        ] {
            let error = format!("{:#}", Config::parse(text).expect_err(text));
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[tokio::test]
    async fn a_sink_is_of_one_kind() {
        let start = |text| Config::parse(text).expect("it is valid").start(&Figures::default(), Policy::default());
        let error = start("sinks: [{name: a}]").expect_err("it has none");
        assert!(format!("{error:#}").contains("the sink a: it has no kind"), "{error:#}");
        assert_eq!(start("sinks: [{name: a, stdout: {}}]").expect("it starts").0.conditions().len(), 1);
    }
}
