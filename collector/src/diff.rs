//! What has changed between two maps that were saved as JSON (`--print map`, `GET /map`).

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

#[derive(clap::Args)]
pub struct Arguments {
    /// The earlier map
    old: PathBuf,
    /// The later map
    new: PathBuf,
}

/// What identifies an edge; its counters do not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Edge {
    client: Party,
    server: Party,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Party {
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    name: Option<String>,
    kind: String,
}

#[derive(Deserialize)]
struct Map {
    edges: BTreeSet<Edge>,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if let Some(name) = &self.name {
            write!(f, " {name}")?;
        }
        if let Some(namespace) = &self.namespace {
            write!(f, ".{namespace}")?;
        }
        Ok(())
    }
}

/// Prints calls that are new with `+`, and those that are gone with `-`. Fails if there are new ones: a call that is gone may only be
/// rare.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let (old, new) = (read(&arguments.old)?, read(&arguments.new)?);
    let has_new = write(&mut io::stdout().lock(), &old, &new)?;
    Ok(if has_new { ExitCode::from(NEW_CALLS) } else { ExitCode::SUCCESS })
}

/// The exit code if there are new calls. Errors have another one.
const NEW_CALLS: u8 = 2;

fn read(path: &Path) -> Result<Map> {
    let text = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is no map: save one with --print map, or GET /map", path.display()))
}

/// Returns whether there are new calls.
fn write(out: &mut impl Write, old: &Map, new: &Map) -> io::Result<bool> {
    for Edge { client, server } in old.edges.difference(&new.edges) {
        writeln!(out, "- {client} -> {server}")?;
    }
    let mut has_new = false;
    for Edge { client, server } in new.edges.difference(&old.edges) {
        has_new = true;
        writeln!(out, "+ {client} -> {server}")?;
    }
    Ok(has_new)
}

#[cfg(test)]
mod tests {
    use podtap_flow::{
        map::{self, Traffic},
        names::Workload,
    };

    use super::*;

    /// A map with a call of the shop's web servers to each of these, as it is saved.
    fn saved(servers: &[map::Party]) -> Map {
        let workload = Workload { kind: "Deployment".into(), name: "web".into(), api_version: "apps/v1".into() };
        let client = map::Party::Workload { namespace: "shop".into(), workload };
        let mut map = map::Map::default();
        for server in servers {
            let edge = map::Edge { client: client.clone(), server: server.clone() };
            map.restore(edge, Traffic { connections: 1, ..Traffic::default() });
        }
        let mut text = Vec::new();
        crate::output::map::write(&mut text, &map).expect("memory");
        serde_json::from_slice(&text).expect("it can be read")
    }

    #[test]
    fn new_calls_are_told_from_those_that_are_gone() {
        let node = || map::Party::Node { name: "n1".into() };
        let outside = || map::Party::External { name: Some("example.com".into()) };
        let service = || map::Party::Service { namespace: "data".into(), name: "db".into() };
        let (old, new) = (saved(&[node(), outside()]), saved(&[node(), service(), map::Party::Other]));
        let mut text = Vec::new();
        assert!(write(&mut text, &old, &new).expect("memory"));
        assert_eq!(
            String::from_utf8(text).expect("text"),
            "- Deployment web.shop -> External example.com\n+ Deployment web.shop -> Other\n+ Deployment web.shop -> Service db.data\n"
        );
        assert!(!write(&mut Vec::new(), &new, &new).expect("memory"));
        assert!(!write(&mut Vec::new(), &new, &saved(&[])).expect("memory"), "what is gone is no failure");
    }
}
