//! `kubectl podtap plan`, `cleanup` and `support`, and the events that `explain` tells.

use std::{fs, path::PathBuf, process::Command};

use kube::ResourceExt as _;
use podtap_tests::{
    cluster::Sandbox,
    wait::{PATIENCE, until},
};
use serde_json::Value;

use crate::cli::{deployment, done, podtap};

/// What a user has asked the API server to write, by its audit log.
fn written(sandbox: &Sandbox, user: &str) -> Vec<Value> {
    let log = fs::read_to_string(sandbox.lab().top().join("target/lab/log/cp/audit.log")).expect("the lab has one");
    let events = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    events.filter(|event| event["impersonatedUser"]["username"] == user).collect()
}

#[test]
fn a_plan_tells_what_happens_and_writes_nothing() {
    let sandbox = Sandbox::new("cli-plan");
    let name = deployment(&sandbox).name_any();
    let host = "apiVersion: v1\nkind: Pod\nmetadata: {name: web-debug, labels: {app: web}}\nspec:\n  nodeName: n1\n  hostNetwork: true\n  \
        terminationGracePeriodSeconds: 0\n  containers:\n  - {name: main, image: podtap.dev/busybox:1, imagePullPolicy: Never, command: [sleep, '3600']}\n";
    sandbox.apply(host);
    sandbox.running("web-debug");
    let user = format!("planner-{}", sandbox.namespace());
    let plan = ["plan", "deploy/web", "--to", "node/n2:cli-plan", "--as", &user, "--as-group", "system:masters"];
    let (code, planned, errors) = podtap(&sandbox, &plan);
    assert_eq!((code, errors.as_str()), (3, ""), "{planned}");
    let rows: Vec<Vec<&str>> = planned.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(rows.contains(&vec!["n1", &name, "-", "-", "+50", "ok"]), "{planned}");
    assert!(rows.contains(&vec!["n1", "web-debug", "-", "-", "-", "refused:", "HostNetwork"]), "{planned}");
    assert!(planned.contains("Creates 1 sender device, 1 receiver device, 1 VNI from "), "{planned}");

    let events = written(&sandbox, &user);
    let of = |resource: &str| events.iter().filter(|event| event["objectRef"]["resource"] == resource).count();
    assert_eq!((of("selfsubjectaccessreviews"), of("podtaps"), events.len()), (3, 1, 4), "{events:?}");
    let tried = events.iter().find(|event| event["objectRef"]["resource"] == "podtaps").expect("it was tried");
    assert!(tried["requestURI"].as_str().is_some_and(|uri| uri.contains("dryRun=All")), "{tried}");
    assert_eq!(sandbox.kubectl(&["get", "podtaps", "-o", "name"], "").expect("a list"), "");

    // What was planned happens.
    let (code, created, errors) = podtap(&sandbox, &["create", "deploy/web", "--to", "node/n2:cli-plan", "-y"]);
    assert_eq!(code, 3, "{errors}");
    assert!(created.contains(&format!("n1: {name} -> node/n2:cli-plan\n")), "{created}");
    assert!(created.contains("not tapped: 1 pod (web-debug), HostNetwork"), "{created}");
    let (_, planned, _) = podtap(&sandbox, &["plan", "web"]);
    assert!(planned.contains(" mirrors 1 of 2 pods of "), "{planned}");
    let interface = planned.lines().find(|line| line.contains(&name)).and_then(|line| line.split_whitespace().nth(2));
    assert_eq!(interface, Some("eth0"), "the node has reported it: {planned}");
    until("the event is published", PATIENCE, || {
        let explained = done(&sandbox, &["explain", "web"]);
        if explained.contains("events\n") && explained.contains("TapEstablished") { Ok(()) } else { Err(explained) }
    });
}

#[test]
fn a_plan_names_the_rights_that_are_missing() {
    let sandbox = Sandbox::new("cli-plan-rights");
    sandbox.pod("web", "n1", "web");
    let (code, planned, errors) = podtap(&sandbox, &["plan", "web", "--to", "node/n2", "--as", "alice"]);
    assert_eq!((code, errors.as_str()), (5, ""), "{planned}");
    for right in ["create podtaps.podtap.dev", "patch podtaps.podtap.dev", "tap pods"] {
        let denied = format!("denied by RBAC: you may not {right} in the namespace {}\n", sandbox.namespace());
        assert!(planned.contains(&denied), "{denied}: {planned}");
    }
    assert!(planned.contains("warning: you may not read the pods that the tap selects"), "{planned}");
    // The schema of the cluster.
    let (code, planned, _) = podtap(&sandbox, &["plan", "web", "--to", "node/n2", "--max-pods", "501"]);
    assert!(code == 4 && planned.contains("targets.maxPods must be between 1 and 500"), "{planned}");
}

#[test]
fn expired_taps_are_cleaned_up() {
    let sandbox = Sandbox::new("cli-cleanup");
    sandbox.pod("web", "n1", "web");
    done(&sandbox, &["create", "stays", "web", "--to", "node/n2:cli-stays", "-y"]);
    done(&sandbox, &["create", "old", "web", "--to", "node/n2:cli-old", "--for", "1s", "--wait", "0", "-y"]);
    sandbox.condition("old", "Ready", "False", "Expired");
    let expected = format!("PodTap {}/old: it has expired\n", sandbox.namespace());
    assert_eq!(done(&sandbox, &["cleanup", "--dry-run"]), expected);
    assert!(done(&sandbox, &["cleanup", "-y"]).starts_with("podtap.podtap.dev/old deleted, removed on "));
    assert_eq!(done(&sandbox, &["cleanup", "--dry-run"]), "");
    sandbox.ready("stays");
}

#[test]
fn an_archive_has_what_the_nodes_tell() {
    let sandbox = Sandbox::new("cli-support");
    sandbox.pod("web-of-secret", "n1", "web");
    done(&sandbox, &["create", "web", "web-of-secret", "--to", "node/n2:cli-supp", "-y"]);
    let uid = sandbox.tap("web").uid().expect("a stored tap has a UID");
    let collect = |name: &str, more: &[&str]| {
        let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let (code, output, errors) =
            podtap(&sandbox, &[&["support", "-f", file.to_str().expect("a path"), "-q"], more].concat());
        let read = |part: &str| {
            let output = Command::new("tar").args(["-xOzf"]).arg(&file).args(["--wildcards", part]).output();
            String::from_utf8_lossy(&output.expect("tar runs").stdout).into_owned()
        };
        // Pods of other tests may end while their logs are read.
        assert!(matches!(code, 0 | 3), "{code}: {output}{errors}{}", read("*/index.txt"));
        (read("*/inspect/*"), read("*"))
    };
    let (inspected, all) = collect("support.tgz", &[]);
    assert!(inspected.contains(&uid) && inspected.contains("\"role\": \"sender\""), "{inspected}");
    for part in ["cli-supp", "podtap.dev/v1alpha1", "web-of-secret", "podtap-controller", sandbox.namespace()] {
        assert!(all.contains(part), "{part}");
    }
    let (inspected, all) = collect("redacted.tgz", &["--redact"]);
    assert!(inspected.contains(&uid), "{inspected}");
    for secret in ["web-of-secret", sandbox.namespace(), "10.66.0.", "10.244."] {
        let line = all.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
    let is_node = |line: &&str| line.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == "n1");
    assert_eq!(all.lines().find(is_node), None);
}
