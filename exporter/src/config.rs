//! The file that says which sinks there are.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::{
    figures::Figures,
    policy::Policy,
    sinks::{
        Sinks,
        files::{Files, FilesConfig},
        ipfix::{Exporter, IpfixConfig},
        stdout::{Lines, StdoutConfig},
    },
};

/// The whole file, as YAML.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    sinks: Vec<SinkConfig>,
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
}

/// With eight sinks, all of which are down, half of the chart's memory limit.
const fn default_queue() -> u16 {
    16
}

/// Longest name of a sink.
const LONGEST_NAME: usize = 63;
/// Largest queue, in MiB.
const LARGEST_QUEUE: u16 = 1024;

impl Config {
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not valid", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let config: Self = serde_saphyr::from_str(text)?;
        ensure!(!config.sinks.is_empty(), "it has no sinks");
        let mut names = BTreeSet::new();
        for sink in &config.sinks {
            let name = &sink.name;
            let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            ensure!(
                (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(is_valid),
                "{name:?} is no name of a sink: it must have 1 to {LONGEST_NAME} letters, digits, `-`, `_` and `.`"
            );
            ensure!(names.insert(name), "two sinks have the name {name}");
            ensure!(
                (1..=LARGEST_QUEUE).contains(&sink.queue_mib),
                "queueMiB of {name} must be from 1 to {LARGEST_QUEUE}"
            );
        }
        Ok(config)
    }

    /// Starts all sinks.
    pub fn start(self, figures: &Figures, policy: Policy) -> Result<Sinks> {
        let mut sinks = Sinks::new(policy);
        for sink in self.sinks {
            let name = sink.name.clone();
            sink.start(figures, &mut sinks).with_context(|| format!("the sink {name}"))?;
        }
        Ok(sinks)
    }
}

impl SinkConfig {
    fn start(self, figures: &Figures, sinks: &mut Sinks) -> Result<()> {
        let Self { name, queue_mib, stdout, files, ipfix } = self;
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
        match kinds {
            1 => Ok(()),
            0 => bail!("it has no kind: set one of stdout, files, ipfix"),
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
        assert_eq!(start("sinks: [{name: a, stdout: {}}]").expect("it starts").conditions().len(), 1);
    }
}
