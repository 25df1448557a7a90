//! Each example works: applied as it is, except for names that are different in the lab.

use std::{collections::BTreeSet, fs, path::Path};

use podtap_tests::cluster::{Cluster, Sandbox, in_network};

/// Examples that are not taps, and what covers them.
const OTHERS: [&str; 3] = ["policy.yaml", "allow-a-team.yaml", "opt-out.yaml"];

fn example(file: &str) -> String {
    let text = fs::read_to_string(Cluster::lab().top().join("examples").join(file)).expect("the example exists");
    text.replace("worker-3", "n2")
}

/// Name, readiness, reason and destination in a line of `kubectl get podtap`.
fn columns(line: &str) -> Vec<&str> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    [0, 1, 2, 5].map(|index| columns.get(index).copied().unwrap_or_default()).into()
}

#[test]
fn all_taps_together_are_as_their_comments_say() {
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
        sandbox.apply(&example(file));
    }
    for file in &files {
        let yaml = example(file);
        let name = yaml.lines().find_map(|line| line.strip_prefix("  name: ")).expect("a tap has a name");
        let status = sandbox.ready(name).status.expect("a ready tap has a status");
        assert!(status.tapped_pods >= 1, "{file}: {status:?}");
        // vault has app=web, but is excluded from tapping.
        assert!(!status.failures.iter().any(|f| f.pod == "vault"), "{file}: {status:?}");
        let expected =
            yaml.lines().find(|line| line.starts_with(&format!("#   {name} "))).expect("it shows what to expect");
        let shown = sandbox.kubectl(&["get", "podtap", name, "--no-headers"], "").expect("the tap exists");
        assert_eq!(columns(&shown), columns(expected.trim_start_matches('#')), "{file}");
    }
    for file in &files {
        sandbox.kubectl(&["delete", "-f", "-", "--wait=false"], &example(file)).expect("a tap can be deleted");
    }
    sandbox.kubectl(&["delete", "podtappolicy", "default"], "").expect("a policy can be deleted");
}

#[test]
fn the_list_of_other_examples_is_current() {
    for file in OTHERS {
        assert!(!example(file).contains("kind: PodTap\n"), "{file} is a tap: take it off the list");
    }
}
