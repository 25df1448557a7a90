//! The borders between the crates: dependencies that the privileged half must not have, and those that the other half must not.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        // The cache that a build has filled may lack packages for other platforms.
        .args(["--filter-platform", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)])
        .current_dir(super::top())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

/// Names of all packages that `package` is built with alone: normal and build dependencies. Not from `cargo metadata`, which unifies the
/// features of the whole workspace: there, the kinds enable the schemas of podtap-model, and with them kube.
fn tree_of(package: &str) -> BTreeSet<String> {
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--package", package, "--edges", "normal,build", "--target", &host])
        .args(["--prefix", "none", "--format", "{p}", "--offline", "--locked"])
        .current_dir(super::top())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo tree prints text");
    let tree: BTreeSet<_> = text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    assert!(tree.len() > 1, "{package} depends on something");
    tree
}

/// Packages of `tree` whose names begin with one of `prefixes`.
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
    assert!(tree.len() <= 75, "{} packages run with privileges: {tree:?}", tree.len());
}

#[test]
fn the_model_is_data() {
    let tree = tree_of("podtap-model");
    let data =
        ["base64", "ipnet", "itoa", "memchr", "podtap-model", "proc-macro2", "quote", "serde", "syn", "thiserror"];
    let foreign: Vec<_> =
        tree.iter().filter(|name| !data.iter().any(|prefix| name.starts_with(prefix))).cloned().collect();
    // Parts of serde_json and of the derive macros.
    assert!(foreign.iter().all(|name| ["unicode-ident", "zmij"].contains(&name.as_str())), "{foreign:?}");
}

#[test]
fn the_flows_are_pure() {
    let tree = tree_of("podtap-flow");
    // podtap-model is data, and has the format of the frames in which taps tell names and translations.
    assert_eq!(
        found(
            &tree,
            &["podtap-api", "tap-helper", "libc", "nix", "rustix", "mio", "tokio", "time", "chrono", "tracing"]
        ),
        [""; 0]
    );
}

#[test]
fn the_collector_knows_no_taps_and_no_netlink() {
    let tree = tree_of("podtap-collector");
    assert_eq!(found(&tree, &["podtap-api", "podtap-controller", "podtap-agent"]), [""; 0]);
    assert_eq!(found(&tree, &["netlink", "rtnetlink", "aya", "tap-helper"]), [""; 0]);
}

/// It reads lines of flows, and connects to what others run.
#[test]
fn the_exporter_knows_no_taps_and_no_frames() {
    let tree = tree_of("podtap-exporter");
    assert_eq!(found(&tree, &["podtap-api", "podtap-controller", "podtap-agent", "tap-helper", "netlink"]), [""; 0]);
    assert_eq!(found(&tree, &["podtap-collector", "podtap-flow", "podtap-model"]), [""; 0]);
}

/// It runs on the machines of users.
#[test]
fn the_plugin_knows_no_controller_and_no_netlink() {
    let tree = tree_of("kubectl-podtap");
    let foreign = [
        "podtap-controller",
        "podtap-agent",
        "podtap-runtime",
        "podtap-flow",
        "tap-helper",
        "netlink",
        "rtnetlink",
        "aya",
    ];
    assert_eq!(found(&tree, &foreign), [""; 0]);
}

#[test]
fn no_operator_package_opens_a_netlink_socket() {
    for package in ["podtap-controller", "podtap-agent", "podtap-runtime", "podtap-api"] {
        assert_eq!(
            found(&tree_of(package), &["netlink", "rtnetlink", "neli", "aya", "libbpf", "tap-helper"]),
            [""; 0],
            "{package}"
        );
    }
}

/// libpcap is a parser in C: what holds a token on every node must not link it. The controller's build script is the only one that
/// names it, so that not depending on the controller is enough.
#[test]
fn the_agent_links_no_libpcap() {
    let tree = tree_of("podtap-agent");
    assert_eq!(found(&tree, &["podtap-controller", "pcap", "libpcap"]), [""; 0]);
    let own: BTreeSet<_> = found(&tree, &["podtap", "tap-"]).into_iter().map(str::to_owned).collect();
    for package in own {
        let directory = directory_of(&package);
        assert!(!names_libpcap(&directory), "{} names libpcap", directory.display());
    }
    assert!(names_libpcap(&directory_of("podtap-controller")), "this guard sees what it guards against");
}

fn directory_of(package: &str) -> PathBuf {
    let packages = metadata()["packages"].clone();
    let manifest = packages
        .as_array()
        .into_iter()
        .flatten()
        .find(|p| p["name"] == package)
        .and_then(|p| p["manifest_path"].as_str().map(PathBuf::from));
    manifest.and_then(|path| path.parent().map(PathBuf::from)).expect("the package has a folder")
}

/// Whether the package's build script or sources link libpcap.
fn names_libpcap(directory: &Path) -> bool {
    let links = |path: &Path| {
        fs::read_to_string(path).is_ok_and(|text| text.contains("libpcap.a") || text.contains("name = \"pcap\""))
    };
    links(&directory.join("build.rs")) || sources(&directory.join("src")).iter().any(|path| links(path))
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

#[test]
fn this_guard_sees_what_it_guards_against() {
    assert!(!found(&tree_of("podtap-controller"), &KUBERNETES_AND_TLS).is_empty());
    assert!(!found(&tree_of("tap-helper"), &["netlink"]).is_empty());
}
