//! Each example works: applied as it is, except for names that are different in the lab.

use std::{collections::BTreeSet, fs, path::Path};

use podtap_tests::cluster::{Cluster, Sandbox, in_network};

/// Examples that are not taps, and what covers them.
const OTHERS: [&str; 3] = ["policy.yaml", "allow-a-team.yaml", "opt-out.yaml"];

fn example(file: &str) -> String {
    let text = fs::read_to_string(Cluster::lab().top().join("examples").join(file)).expect("the example exists");
    text.replace("worker-3", "n2").replace("interfaceName: mirror", &format!("interfaceName: x-{}", interface(file)))
}

/// An interface name on n2, unique to each example.
fn interface(file: &str) -> String {
    file.trim_end_matches(".yaml")
        .trim_start_matches("tap-")
        .chars()
        .take(12)
        .collect::<String>()
        .replace("app-to-n", "n")
}

#[test]
fn every_tap_becomes_ready() {
    // Alone, because all taps share the policy.
    let _alone = Cluster::alone();
    let sandbox = Sandbox::alone("examples");
    sandbox.apply(&example("policy.yaml"));
    sandbox.pod("web", "n1", "web");
    sandbox.pod("centos", "n1", "centos");
    sandbox.pod("ids-0", "n2", "ids");
    let router = sandbox.pod("router", "n1", "router");
    in_network(&sandbox.network(&router), &["ip", "link", "add", "net1", "type", "bridge"]);
    in_network(&sandbox.network(&router), &["ip", "link", "set", "net1", "up"]);
    sandbox.apply(&example("opt-out.yaml"));

    let files: BTreeSet<String> = fs::read_dir(sandbox.lab().top().join("examples"))
        .expect("examples/ exists")
        .map(|entry| entry.expect("examples/ is readable").file_name().to_string_lossy().into_owned())
        .filter(|name| {
            Path::new(name).extension().is_some_and(|extension| extension == "yaml") && !OTHERS.contains(&name.as_str())
        })
        .collect();
    assert!(files.len() >= 8, "{files:?}");
    for file in &files {
        let yaml = example(file);
        sandbox.apply(&yaml);
        let name = yaml.lines().find_map(|line| line.strip_prefix("  name: ")).expect("a tap has a name").to_owned();
        let tap = sandbox.ready(&name);
        let status = tap.status.expect("a ready tap has a status");
        assert!(status.tapped_pods >= 1, "{file}: {status:?}");
        // vault has app=web, but is excluded from tapping.
        assert!(!status.failures.iter().any(|f| f.pod == "vault"), "{file}: {status:?}");
        sandbox.kubectl(&["delete", "podtap", &name], "").expect("a tap can be deleted");
    }
    sandbox.kubectl(&["delete", "podtappolicy", "default"], "").expect("a policy can be deleted");
}

#[test]
fn the_list_of_other_examples_is_current() {
    for file in OTHERS {
        assert!(!example(file).contains("kind: PodTap\n"), "{file} is a tap: take it off the list");
    }
}
