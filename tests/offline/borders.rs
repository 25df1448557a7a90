//! The borders between the crates: what the privileged half must not bring in, and what the other half must not.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

/// Names of all packages that `package` is built with (build and normal dependencies, no test ones).
fn tree_of(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        // Others may be missing from the cache that a build has filled.
        .args(["--filter-platform", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)])
        .current_dir(super::top())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");

    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let names: BTreeMap<_, _> =
        list(&metadata["packages"]).iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
    let edges: BTreeMap<_, Vec<_>> = list(&metadata["resolve"]["nodes"])
        .iter()
        .map(|node| {
            let built_with = |d: &Value| list(&d["dep_kinds"]).iter().any(|k| k["kind"] != "dev");
            let deps = list(&node["deps"]).iter().filter(|d| built_with(d)).map(|d| text(&d["pkg"])).collect();
            (text(&node["id"]), deps)
        })
        .collect();

    let mut waiting: Vec<_> = names.iter().filter(|(_, name)| *name == package).map(|(id, _)| id.clone()).collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if seen.insert(id.clone()) {
            waiting.extend(edges.get(&id).cloned().unwrap_or_default());
        }
    }
    assert!(seen.len() > 1, "{package} is in the workspace and depends on something");
    seen.iter().map(|id| names[id].clone()).collect()
}

/// Packages of `tree` that begin with one of `prefixes`.
fn found<'a>(tree: &'a BTreeSet<String>, prefixes: &[&str]) -> Vec<&'a str> {
    tree.iter().map(String::as_str).filter(|name| prefixes.iter().any(|p| name.starts_with(p))).collect()
}

const KUBERNETES_AND_TLS: [&str; 9] =
    ["kube", "k8s-openapi", "hyper", "h2", "http", "rustls", "openssl", "native-tls", "ring"];

#[test]
fn the_tap_helper_knows_no_kubernetes_and_no_tls() {
    assert_eq!(found(&tree_of("tap-helper"), &KUBERNETES_AND_TLS), [""; 0]);
}

#[test]
fn the_tap_helper_stays_small() {
    let tree = tree_of("tap-helper");
    // A runtime, netlink and logs are 28 of them. With the features of all members: alone, the tap-helper has fewer.
    assert!(tree.len() <= 75, "{} packages run with privileges: {tree:?}", tree.len());
    assert_eq!(found(&tree, &["regex", "openssl", "async-global-executor"]), [""; 0]);
}

#[test]
fn the_contract_needs_serde_only() {
    let tree = tree_of("tap-wire");
    let foreign: Vec<_> = tree
        .iter()
        .filter(|n| !["tap-wire", "proc-macro2", "quote", "syn", "unicode-ident"].contains(&n.as_str()))
        .collect();
    assert!(foreign.iter().all(|name| name.starts_with("serde")), "{foreign:?}");
}

#[test]
fn the_operator_opens_no_netlink_socket() {
    assert_eq!(
        found(&tree_of("podtap-operator"), &["netlink", "rtnetlink", "neli", "aya", "libbpf", "tap-helper"]),
        [""; 0]
    );
}

#[test]
fn this_guard_sees_what_it_guards_against() {
    assert!(!found(&tree_of("podtap-operator"), &KUBERNETES_AND_TLS).is_empty());
    assert!(!found(&tree_of("tap-helper"), &["netlink"]).is_empty());
}
