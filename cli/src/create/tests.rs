use std::collections::BTreeSet;

use clap::Parser as _;
use serde_json::{Value, json};

use super::*;
use crate::{Cli, Verb, target::Selection};

fn arguments(words: &[&str]) -> Arguments {
    let words = ["kubectl-podtap", "create"].iter().chain(words);
    match Cli::try_parse_from(words).expect("valid flags").verb {
        Verb::Create(arguments) => *arguments,
        _ => unreachable!("the verb is create"),
    }
}

/// Name and spec of the tap without its default values. A workload counts as a selector.
fn tap(words: &[&str]) -> Outcome<(String, Value)> {
    let arguments = arguments(words);
    let (name, target) = arguments.tap.target()?;
    let name = name.unwrap_or_else(|| target.tap_name());
    let selection = match target {
        Target::Selected(selection) => selection,
        Target::Of(..) => Selection::all(),
    };
    let mirror = arguments.tap.mirror.clone().spec()?;
    let spec = arguments.tap.spec(selection, mirror);
    Ok((name.clone(), manifest::document(&tap_of(&name, None, spec))["spec"].clone()))
}

fn leaves(path: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            fields.iter().for_each(|(name, field)| leaves(&format!("{path}.{name}"), field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| leaves(&format!("{path}[]"), item, found)),
        _ => {
            found.insert(path.to_owned());
        }
    }
}

/// The leaves of a schema; a map of labels is one.
fn schema_leaves(path: &str, schema: &Value, found: &mut BTreeSet<String>) {
    if let Some(fields) = schema["properties"].as_object() {
        fields.iter().for_each(|(name, field)| schema_leaves(&format!("{path}.{name}"), field, found));
    } else if schema["items"].is_object() {
        schema_leaves(&format!("{path}[]"), &schema["items"], found);
    } else {
        found.insert(path.to_owned());
    }
}

#[test]
fn every_field_has_a_flag() {
    let with_values = [
        &[
            "web",
            "-l",
            "app=web,tier notin (cache)",
            "--interface",
            "net1",
            "--max-pods",
            "64",
            "--direction",
            "ingress",
            "--protocol",
            "tcp,udp",
            "--port",
            "443,8000-8100",
            "--cidr",
            "10.0.0.0/8",
            "--exclude-protocol",
            "icmp",
            "--exclude-port",
            "22,1-9",
            "--exclude-cidr",
            "10.1.0.0/16",
            "--filter",
            "tcp",
            "--bytes",
            "128",
            "--exempt-bytes",
            "4Ki",
            "--one-in",
            "10",
            "--rate",
            "100M",
            "--pps",
            "10k",
            "--bytes-per-flow",
            "1Mi",
            "--dedup=both",
            "--oversize",
            "truncate",
            "--vni",
            "5000",
            "--for",
            "5m",
            "--suspend",
            "--to",
            "a=node/n2:mirror",
            "--to",
            "pods/app=ids,tier notin (test):tap0",
            "--to",
            "192.0.2.10:5000",
            "--to",
            "collector",
            "--probe",
            "--metadata",
            "--packet-socket",
            "--frame-format",
            "raw",
        ][..],
        &["pod/a,b", "--headers-only", "--to", "pod/ids:tap0"],
    ];
    let mut found = BTreeSet::new();
    for words in with_values {
        leaves("", &tap(words).expect("a tap").1, &mut found);
    }
    let found: BTreeSet<String> = found
        .into_iter()
        .map(|path| {
            path.split(".matchLabels").next().map_or(path.clone(), |start| {
                if path.contains(".matchLabels") { format!("{start}.matchLabels") } else { path.clone() }
            })
        })
        .collect();
    let mut expected = BTreeSet::new();
    schema_leaves("", &manifest::spec_schema(), &mut expected);
    // Not allowed in a PodTap.
    expected.remove(".destinations[].pod.namespace");
    assert!(expected.len() > 40, "fields are found: {expected:?}");
    let missing: Vec<_> = expected.difference(&found).collect();
    assert!(missing.is_empty(), "no flag sets {missing:?}");
    assert_eq!(found, expected, "and no other field");
}

#[test]
fn a_plain_tap_is_short() {
    let (name, spec) = tap(&["deploy/web", "--to", "node/n2", "--for", "5m"]).expect("a tap");
    assert_eq!(name, "web");
    assert_eq!(
        spec,
        json!({"targets": {"podSelector": {}}, "destinations": [{"node": {"name": "n2"}}], "duration": "300s"})
    );
}

#[test]
fn what_is_included_matches_all_and_what_is_excluded_any() {
    let words = [
        "web",
        "--to",
        "node/n2",
        "--protocol",
        "tcp,udp",
        "--port",
        "53",
        "--cidr",
        "192.0.2.1",
        "--exclude-port",
        "22",
        "--exclude-cidr",
        "10.0.0.0/8",
    ];
    let (_, spec) = tap(&words).expect("a tap");
    let included = |protocol: &str| json!({"protocol": protocol, "ports": [{"port": 53}], "cidrs": ["192.0.2.1/32"]});
    assert_eq!(
        spec["filter"],
        json!({"include": [included("TCP"), included("UDP")], "exclude": [{"ports": [{"port": 22}]}, {"cidrs": ["10.0.0.0/8"]}]})
    );
}

#[test]
fn contradictions_are_usage_errors() {
    for words in [
        &["--to", "node/n2"][..],
        &["deploy/web", "web", "--to", "node/n2"],
        &["web", "cronjob/web", "--to", "node/n2"],
        &["web", "deploy/web", "--all", "--to", "node/n2"],
        &["web", "--to", "node/n2", "--probe"],
        &["web", "--to", "collector", "--frame-format", "raw"],
        &["web", "--to", "node/n2", "--exempt-bytes", "10"],
        &["web", "--to", "node/n2", "--protocol", "icmp", "--port", "1"],
        &["web", "--to", "node/n2", "--rate", "200G"],
        &["web", "--to", "node/n2", "--one-in", "0"],
    ] {
        let failure = tap(words).err().unwrap_or_else(|| panic!("{words:?}"));
        assert_eq!(failure.exit, Exit::Usage, "{words:?}: {failure}");
    }
}
