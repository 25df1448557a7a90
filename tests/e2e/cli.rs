//! `kubectl podtap`, called by the real kubectl, as a user would.

use std::{
    env,
    process::{Command, Output, Stdio},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use podtap_tests::{
    capture::Capture,
    cluster::{Cluster, Sandbox, namespace_of_node, traces},
    wait::{PATIENCE, until},
};

use crate::scene::{address, capture, same_traffic};

/// `kubectl WORDS`, with the programs of the lab in PATH.
fn kubectl(words: &[&str]) -> Output {
    let lab = Cluster::lab();
    let bin = lab.top().join("target/lab/bin");
    let path = format!("{}:{}", bin.display(), env::var("PATH").unwrap_or_default());
    let mut command = Command::new(bin.join("kubectl"));
    command.env("PATH", path).env("KUBECONFIG", lab.top().join("target/lab/kubeconfig"));
    command.args(words).stdin(Stdio::null()).output().expect("kubectl runs")
}

/// `kubectl podtap WORDS` in the namespace: exit code, standard output and standard error.
pub fn podtap(sandbox: &Sandbox, words: &[&str]) -> (i32, String, String) {
    let output = kubectl(&[&["podtap", "-n", sandbox.namespace()], words].concat());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("it exits"), text(&output.stdout), text(&output.stderr))
}

/// What it prints.
#[track_caller]
pub fn done(sandbox: &Sandbox, words: &[&str]) -> String {
    let (code, output, errors) = podtap(sandbox, words);
    assert_eq!(code, 0, "{words:?}: {output}{errors}");
    output
}

/// A Deployment of pods on n1, and its first pod.
pub fn deployment(sandbox: &Sandbox) -> Pod {
    sandbox.apply(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  selector: {matchLabels: {app: web}}\n  template:\n    \
         metadata: {labels: {app: web}}\n    spec:\n      nodeName: n1\n      terminationGracePeriodSeconds: 0\n      \
         automountServiceAccountToken: false\n      containers:\n      - {name: main, image: podtap.dev/busybox:1, \
         imagePullPolicy: Never, command: [sleep, '3600']}\n",
    );
    let pod = until("the Deployment has a pod", PATIENCE, || {
        let pods: Vec<Pod> = sandbox.lab().list(sandbox.namespace());
        pods.into_iter().find(|pod| pod.labels().get("app").is_some_and(|app| app == "web")).ok_or("none")
    });
    sandbox.running(&pod.name_any())
}

#[test]
fn a_deployment_is_tapped_for_five_minutes() {
    let sandbox = Sandbox::new("cli");
    let (web, client) = (deployment(&sandbox), sandbox.pod("client", "n2", "client"));
    let (name, network) = (web.name_any(), sandbox.network(&web));
    let n2 = namespace_of_node(sandbox.lab(), "n2");

    let created = done(&sandbox, &["create", "deploy/web", "--to", "node/n2:cli-tap", "--for", "5m", "-y"]);
    assert_eq!(created, format!("podtap.podtap.dev/web created\nn1: {name} -> node/n2:cli-tap\n"));
    let receiver = capture(&n2, "cli-tap");
    let pod = Capture::start(&network, "eth0");
    let script = format!("ping -q -c 20 -i 0.05 {}", address(&client));
    sandbox.in_pod(&name, &script).expect("the client answers");
    assert!(same_traffic(pod, receiver, |_| true).len() >= 40);

    // The same rows as kubectl's; the age may differ by a second.
    let rows = |text: &str| {
        text.lines().map(|line| line.rsplit_once(' ').expect("columns").0.trim().to_owned()).collect::<Vec<_>>()
    };
    let listed = done(&sandbox, &["list"]);
    assert_eq!(rows(&listed), rows(&sandbox.kubectl(&["get", "podtap"], "").expect("a table")));
    let explained = done(&sandbox, &["explain", &format!("pod/{name}")]);
    let tap = format!("PodTap {}/web (by ", sandbox.namespace());
    assert!(explained.contains(&tap) && explained.contains("with kubectl-podtap)  tapped\n"), "{explained}");
    let explained = done(&sandbox, &["explain", &format!("pod/{}", client.name_any())]);
    assert!(explained.contains("not selected: podSelector is app=web, and there is app=client"), "{explained}");
    let explained = done(&sandbox, &["explain", "web"]);
    for part in
        ["Ready=True AsExpected", "node n1", &format!("pod {name}  tapped"), "to main: node n2, interface cli-tap"]
    {
        assert!(explained.contains(part), "{part}: {explained}");
    }
    assert!(done(&sandbox, &["explain", "node/n2"]).contains("to interface cli-tap"));

    sandbox.kubectl(&["scale", "deployment", "web", "--replicas=2"], "").expect("it can be scaled");
    until("the tap follows the Deployment", PATIENCE, || {
        match sandbox.tap("web").status.map(|status| status.tapped_pods) {
            Some(2) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });

    assert_eq!(done(&sandbox, &["suspend", "web"]), "podtap.podtap.dev/web suspended\n");
    until("the mirror of the pod is gone", Duration::from_secs(10), || {
        let found = traces(&network);
        if found.is_empty() { Ok(()) } else { Err(found.join(", ")) }
    });
    let resumed = done(&sandbox, &["resume", "web"]);
    assert!(resumed.starts_with("podtap.podtap.dev/web resumed\nn1: ") && resumed.contains(&name), "{resumed}");
    assert!(!traces(&network).is_empty());
    assert_eq!(done(&sandbox, &["delete", "web"]), "podtap.podtap.dev/web deleted, removed on 2 nodes\n");
    assert_eq!(traces(&network), [""; 0]);
    let (code, output, errors) = podtap(&sandbox, &["explain", "web"]);
    assert!((code, output.as_str()) == (4, "") && errors.contains("not found"), "{errors}");
}

#[test]
fn a_user_without_a_right_is_told_which() {
    let sandbox = Sandbox::new("cli-rights");
    let create = ["create", "web", "--to", "node/n2", "-y", "--wait", "0", "--as", "alice", "--as-group", "shop-team"];
    let refused = |words: &[&str]| {
        let (code, output, errors) = podtap(&sandbox, words);
        assert_eq!((code, output.as_str()), (5, ""), "{errors}");
        errors
    };
    let errors = refused(&["list", "--as", "alice"]);
    assert!(errors.contains("cannot list resource \"podtaps\""), "{errors}");
    let rights = ["create", "role", "taps", "--verb=*", "--resource=podtaps.podtap.dev"];
    let bound = ["create", "rolebinding", "taps", "--role=taps", "--group=shop-team"];
    for words in [&rights, &bound[..]] {
        sandbox.kubectl(words, "").expect("an administrator can grant permissions");
    }
    until("the verb tap is asked for", PATIENCE, || {
        let errors = refused(&create);
        if errors.contains("the verb tap on pods is missing") { Ok(()) } else { Err(errors) }
    });
    // Who may do that, but not list pods or read NodeTaps, sees as much as the tap's own status tells.
    sandbox.pod("web", "n1", "web");
    sandbox
        .kubectl(&["create", "rolebinding", "edit", "--clusterrole=podtap-edit", "--group=shop-team"], "")
        .expect("an administrator can grant permissions");
    let create = ["create", "web", "--to", "node/n2", "-y", "--as", "alice", "--as-group", "shop-team"];
    let created = until("alice may tap", PATIENCE, || match podtap(&sandbox, &create) {
        (0, output, _) => Ok(output),
        (_, _, errors) => Err(errors),
    });
    assert!(created.contains("1 pod -> node/n2:ptap") && created.contains("you may not list pods"), "{created}");
    let author = sandbox.tap("web").annotations().get("podtap.dev/requested-by").cloned();
    assert_eq!(author.as_deref(), Some("alice"));
    let deleted = done(&sandbox, &["delete", "web", "--as", "alice", "--as-group", "shop-team"]);
    assert!(deleted.contains("deleted, removed on every node"), "{deleted}");
}

#[test]
fn the_examples_of_kokotap_work() {
    let sandbox = Sandbox::new("cli-kokotap");
    sandbox.pod("centos", "n1", "centos");
    let kokotap = |to: &str| {
        let flags = ["kokotap", "--pod=centos", "--mirrortype=both", to, "--vxlan-id=100", "--ifname=cli-koko"];
        done(&sandbox, &flags)
    };
    let printed = kokotap("--dest-node=n2");
    sandbox.kubectl(&["create", "-f", "-"], &printed).expect("its output can be created");
    sandbox.ready("kokotap-centos");
    // The interface exists.
    let _ = capture(&namespace_of_node(sandbox.lab(), "n2"), "cli-koko").stop();
    sandbox.kubectl(&["delete", "-f", "-"], &printed).expect("its output can be deleted");
    // Whether an external endpoint is allowed depends on the policy.
    sandbox.kubectl(&["create", "--dry-run=server", "-f", "-"], &kokotap("--dest-ip=10.1.1.1")).expect("it is valid");
}

#[test]
fn kubectl_completes_names() {
    let sandbox = Sandbox::new("cli-names");
    sandbox.pod("web-a", "n1", "web");
    sandbox.pod("web-b", "n1", "web");
    let complete = |words: &[&str]| {
        let output = kubectl(&[&["__complete", "podtap"], words].concat());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let found = complete(&["explain", "-n", sandbox.namespace(), "pod/w"]);
    assert_eq!(found.lines().map(str::trim).collect::<Vec<_>>(), ["pod/web-a", "pod/web-b", ":4"]);
    assert!(complete(&["susp"]).contains("suspend\t"));
    let version = done(&sandbox, &["version"]);
    assert!(version.contains("v1alpha1") && version.contains("podtap.dev/podtap:"), "{version}");
}
