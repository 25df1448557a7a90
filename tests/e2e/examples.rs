//! Each example works: applied as it is, except for the names that [`example`] replaces. Then `kubectl` shows what its comment says.

use std::{collections::BTreeMap, fs, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use podtap_tests::{
    cluster::{Cluster, Sandbox},
    wait::until,
};

use crate::scene::enable_collector;

const TIMEOUT: Duration = Duration::from_secs(120);

/// The lab has no registry, and nodes of other names. Each of these stands for whatever the user's cluster has.
const REPLACED: [(&str, &str); 3] = [
    ("docker.io/library/busybox:1.37", "podtap.dev/busybox:1"),
    ("docker.io/nicolaka/netshoot:v0.13", "podtap.dev/busybox:1"),
    ("worker-3", "n2"),
];

fn text(file: &str) -> String {
    fs::read_to_string(Cluster::lab().top().join("examples").join(file)).expect("the example exists")
}

fn replaced(text: &str) -> String {
    REPLACED.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn example(file: &str) -> String {
    replaced(&text(file))
}

/// The first two lines of a table, by column. Both `kubectl` and the comments align columns.
fn table<'a>(mut lines: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
    let (heading, row) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let is_start = |at: &usize| !heading[*at..].starts_with(' ') && (*at == 0 || heading[..*at].ends_with(' '));
    let starts: Vec<usize> = (0..heading.len()).filter(is_start).collect();
    let cell = |line: &str, from: usize, to: Option<&usize>| {
        let to = to.copied().unwrap_or(line.len()).min(line.len());
        line.get(from..to).unwrap_or_default().trim().to_owned()
    };
    let column = |(index, from): (usize, &usize)| {
        let to = starts.get(index + 1);
        (cell(heading, *from, to), cell(row, *from, to))
    };
    starts.iter().enumerate().map(column).collect()
}

/// What the comment of an example says that `kubectl` shows, without what differs from cluster to cluster.
fn expected(file: &str) -> BTreeMap<String, String> {
    let text = text(file);
    let after = text.lines().skip_while(|line| !line.starts_with("# Expect")).skip(1);
    let mut columns = table(after.map_while(|line| line.strip_prefix("#   ")));
    columns.retain(|heading, _| !["AGE", "EXPIRES", "..."].contains(&heading.as_str()));
    // A tap of the cluster also has pods that are no part of the example.
    if text.contains("kind: ClusterPodTap\n") {
        columns.retain(|heading, _| !["MATCHED", "TAPPED"].contains(&heading.as_str()));
    }
    if !text.contains("\n    vni: ") && !text.contains("\n  vni: ") {
        columns.remove("VNI");
    }
    columns.into_iter().map(|(heading, cell)| (heading, replaced(&cell))).collect()
}

/// Waits until `kubectl get` shows what the comment of the example says.
#[track_caller]
fn shows(sandbox: &Sandbox, file: &str, kind: &str, name: &str) {
    let expected = expected(file);
    assert!(expected.len() > 2, "{file}: {expected:?}");
    until(&format!("{file}: {expected:?}"), TIMEOUT, || {
        let output = sandbox.kubectl(&["get", kind, name, "-o", "wide"], "")?;
        let shown = table(output.lines());
        // The pod of a collector has another name in each cluster.
        let is_as = |cell: &str, shown: &str| match cell.strip_prefix("collector/") {
            Some(_) => shown.starts_with("collector/podtap-collector-"),
            None => shown == cell,
        };
        let is_shown = |(heading, cell): (&String, &String)| shown.get(heading).is_some_and(|shown| is_as(cell, shown));
        if expected.iter().all(is_shown) { Ok(()) } else { Err(output) }
    });
}

/// The names of the files with taps of this kind.
fn taps(kind: &str) -> Vec<String> {
    let directory = fs::read_dir(Cluster::lab().top().join("examples")).expect("examples/ exists");
    let names = directory.map(|entry| entry.expect("examples/ is readable").file_name().to_string_lossy().into_owned());
    names.filter(|name| text(name).contains(&format!("kind: {kind}\n"))).collect()
}

/// The name of the tap.
fn name_in(yaml: &str) -> &str {
    yaml.lines().find_map(|line| line.strip_prefix("  name: ")).expect("a tap has a name")
}

#[test]
fn all_examples_together_are_as_their_comments_say() {
    // Alone, because all taps share the policy.
    let _alone = Cluster::alone();
    let sandbox = Sandbox::alone("examples");
    enable_collector(sandbox.lab());
    sandbox.apply(&example("pods.yaml"));
    until("pods.yaml: seven pods run", TIMEOUT, || {
        let pods: Vec<Pod> = sandbox.lab().list(sandbox.namespace());
        let phases: Vec<Option<String>> = pods.into_iter().map(|pod| pod.status.and_then(|s| s.phase)).collect();
        let run = phases.iter().all(|phase| phase.as_deref() == Some("Running"));
        if phases.len() == 7 && run { Ok(()) } else { Err(format!("{phases:?}")) }
    });
    sandbox.apply(&example("policy.yaml"));
    shows(&sandbox, "policy.yaml", "podtappolicy", "default");
    sandbox.apply(&example("opt-out.yaml"));
    sandbox.running("vault");

    let files = taps("PodTap");
    assert!(files.len() >= 12, "{files:?}");
    for file in &files {
        sandbox.apply(&example(file));
    }
    for file in &files {
        let yaml = example(file);
        let name = name_in(&yaml);
        sandbox.ready(name);
        shows(&sandbox, file, "podtap", name);
        let tap = sandbox.tap(name);
        // The pod of opt-out.yaml has the label of most examples.
        let excluded = i32::from(tap.spec.targets.pod_selector.is_some());
        let status = tap.status.expect("a ready tap has a status");
        assert_eq!((status.excluded_pods, &status.failures[..]), (excluded, &[][..]), "{file}: {status:?}");
    }
    shows(&sandbox, "opt-out.yaml", "podtap", "web-to-ids");
    for file in &files {
        sandbox.kubectl(&["delete", "-f", "-", "--wait=false"], &example(file)).expect("a tap can be deleted");
    }

    // Those of the whole cluster.
    let namespace = sandbox.namespace();
    for (kind, name, label) in
        [("namespace", namespace, "env=production"), ("node", "n1", "topology.kubernetes.io/zone=a")]
    {
        sandbox.kubectl(&["label", "--overwrite", kind, name, label], "").expect("it can be labelled");
    }
    let files = taps("ClusterPodTap");
    assert!(files.len() >= 2, "{files:?}");
    for file in &files {
        let yaml = example(file).replace("namespace: default", &format!("namespace: {namespace}"));
        sandbox.apply(&yaml);
        shows(&sandbox, file, "clusterpodtap", name_in(&yaml));
    }
    for file in &files {
        sandbox.kubectl(&["delete", "-f", "-", "--timeout=60s"], &text(file)).expect("a tap can be deleted");
    }
    sandbox.kubectl(&["delete", "podtappolicy", "default"], "").expect("a policy can be deleted");
    sandbox.kubectl(&["label", "node", "n1", "topology.kubernetes.io/zone-"], "").expect("a label can be removed");
}

#[test]
fn a_team_is_allowed_what_the_comment_says() {
    let sandbox = Sandbox::new("allow-a-team");
    let question = ["auth", "can-i", "create", "podtaps", "--as=anyone", "--as-group=shop-team"];
    let text = text("allow-a-team.yaml");
    let said = text.lines().skip_while(|line| *line != format!("# Expect from `kubectl {}`:", question.join(" ")));
    assert_eq!(said.skip(1).map(str::to_owned).next(), Some("#   yes".to_owned()), "{text}");
    let may = || sandbox.kubectl(&question, "").is_ok_and(|answer| answer.trim() == "yes");
    assert!(!may(), "no binding grants it yet");
    sandbox.apply(&example("allow-a-team.yaml"));
    until("the binding grants it", Duration::from_secs(10), || if may() { Ok(()) } else { Err("not yet") });
}
