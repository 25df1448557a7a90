//! Who may tap what.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use podtap_tests::{
    cluster::{PODTAP_NAMESPACE, Sandbox},
    wait::until,
};
use serde_json::{Value, json};

use crate::helper_pods::helper_of;

const TAP: &str = "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {name: web}\nspec:\n  \
    targets: {podSelector: {}}\n  destinations: [{node: {name: n2, interfaceName: ten-tap}}]\n";

const USER: [&str; 4] = ["--as", "alice", "--as-group", "shop-team"];

fn as_user(sandbox: &Sandbox, arguments: &[&str], input: &str) -> Result<String, String> {
    let mut all = arguments.to_vec();
    all.extend(USER);
    sandbox.kubectl(&all, input)
}

#[test]
fn a_user_needs_the_verb_tap_on_pods() {
    let sandbox = Sandbox::new("tenancy");
    let refused = as_user(&sandbox, &["create", "-f", "-"], TAP).expect_err("alice has no permissions");
    assert!(refused.contains("forbidden"), "{refused}");

    // Permissions on the kind alone are not enough.
    sandbox
        .kubectl(&["create", "role", "taps", "--verb=*", "--resource=podtaps.podtap.dev"], "")
        .and_then(|_| sandbox.kubectl(&["create", "rolebinding", "taps", "--role=taps", "--group=shop-team"], ""))
        .expect("an administrator can grant permissions");
    until("the verb is required", Duration::from_secs(10), || {
        match as_user(&sandbox, &["create", "--dry-run=server", "-f", "-"], TAP) {
            Err(message) if message.contains("podtap-edit") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });

    let example = std::fs::read_to_string(sandbox.lab().top().join("examples/allow-a-team.yaml")).expect("an example");
    sandbox.apply(&example);
    until("the example's binding grants it", Duration::from_secs(10), || {
        as_user(&sandbox, &["create", "-f", "-"], TAP)
    });
    let elsewhere =
        as_user(&sandbox.another("tenancy-two"), &["create", "-f", "-"], TAP).expect_err("another namespace");
    assert!(elsewhere.contains("forbidden"), "{elsewhere}");
}

#[test]
fn an_agent_reads_and_writes_only_its_own_nodes_object() {
    let sandbox = Sandbox::new("own-node-tap");
    sandbox.pod("one", "n1", "web");
    sandbox.pod("two", "n2", "web");
    sandbox.apply(TAP);
    sandbox.ready("web");
    let lab = sandbox.lab();
    let helper = helper_of("n1").expect("the node has a target");
    let account = helper.spec.and_then(|spec| spec.service_account_name).expect("a pod has an account");
    let helper = helper.metadata.name.expect("a stored pod has a name");
    let token = lab
        .kubectl(
            &[
                "-n",
                PODTAP_NAMESPACE,
                "create",
                "token",
                &account,
                "--bound-object-kind",
                "Pod",
                "--bound-object-name",
                &helper,
            ],
            "",
        )
        .expect("a token like the agent's can be created");
    // A kubeconfig without the administrator's certificate, so that the token is what counts.
    let server = lab
        .kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"], "")
        .expect("a URL");
    let connection = ["--kubeconfig=/dev/null", "--server", server.trim(), "--insecure-skip-tls-verify"];
    let as_agent =
        |arguments: &[&str]| lab.kubectl(&[&connection, &["--token", token.trim()][..], arguments].concat(), "");
    as_agent(&["get", "nodetap", "n1"]).expect("its own node's object is the agent's to read");
    as_agent(&["get", "nodetaps", "--field-selector=metadata.name=n1"]).expect("so it watches it");
    for other in [
        &["get", "nodetap", "n2"][..],
        &["get", "nodetaps"],
        &["get", "nodetaps", "--field-selector=metadata.name=n2"],
        &["get", "podtaps", "--all-namespaces"],
        &["get", "pods", "--all-namespaces"],
    ] {
        let refused = as_agent(other).expect_err("it tells what is tapped elsewhere");
        assert!(refused.contains("forbidden"), "{other:?}: {refused}");
    }
    let patch = |node: &str, spec: &str, subresource: &[&str]| {
        as_agent(&[&["patch", "nodetap", node, "--type=merge", "-p", spec], subresource].concat())
    };
    let status = r#"{"status":{"activeSenders":7}}"#;
    patch("n1", status, &["--subresource=status"]).expect("its own node's status is the agent's to write");
    let other = patch("n2", status, &["--subresource=status"]).expect_err("another node's is not");
    assert!(other.contains("n2") || other.contains("own node"), "{other}");
    let spec = patch("n1", r#"{"spec":{"senders":[]}}"#, &[]).expect_err("what the node is to do is not");
    assert!(spec.contains("forbidden"), "{spec}");
}

/// A helper pod as the controller would create it, changed.
fn changed(helper: &Pod, change: impl FnOnce(&mut Value)) -> String {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "podtap-helper-", "namespace": PODTAP_NAMESPACE, "labels": helper.metadata.labels},
        "spec": helper.spec,
    });
    change(&mut pod["spec"]);
    pod.to_string()
}

/// A pod in the controller's namespace may have any privilege. The controller's token allows none but those of helper pods.
#[test]
fn the_controllers_token_creates_helper_pods_and_agents_accounts_only() {
    let sandbox = Sandbox::new("controller-token");
    sandbox.pod("web", "n1", "web");
    sandbox.apply(TAP);
    sandbox.ready("web");
    let helper = helper_of("n1").expect("the node has a target");
    let account = format!("system:serviceaccount:{PODTAP_NAMESPACE}:podtap-controller");
    let create =
        |object: &str| sandbox.lab().kubectl(&["--as", &account, "create", "--dry-run=server", "-f", "-"], object);
    create(&changed(&helper, |_| {})).expect("it may create a helper pod");
    let container = |name: &'static str, change: fn(&mut Value)| {
        changed(&helper, |spec| {
            let containers = spec["containers"].as_array_mut().expect("a list");
            change(containers.iter_mut().find(|container| container["name"] == name).expect("it exists"));
        })
    };
    let pods = [
        ("privileged", container("tap-helper", |c| c["securityContext"]["privileged"] = json!(true))),
        (
            "another capability",
            container("tap-helper", |c| c["securityContext"]["capabilities"]["add"] = json!(["SYS_MODULE"])),
        ),
        (
            "an agent with a capability",
            container("agent", |c| c["securityContext"]["capabilities"]["add"] = json!(["NET_ADMIN"])),
        ),
        ("an agent that is root", container("agent", |c| c["securityContext"]["runAsUser"] = json!(0))),
        ("another image", container("tap-helper", |c| c["image"] = json!("podtap.dev/busybox:1"))),
        ("another program", container("tap-helper", |c| c["command"] = json!(["/bin/sh"]))),
        ("other arguments", container("tap-helper", |c| c["command"] = json!(["/tap-helper", "purge"]))),
        (
            "a probe with another command",
            container("agent", |c| c["livenessProbe"]["exec"]["command"] = json!(["/bin/sh"])),
        ),
        (
            "a hook",
            container("agent", |c| c["lifecycle"] = json!({"postStart": {"exec": {"command": ["/podtap-agent"]}}})),
        ),
        ("an environment", container("tap-helper", |c| c["env"] = json!([{"name": "A", "value": "b"}]))),
        (
            "a token for the tap-helper",
            container("tap-helper", |c| {
                let mounts = c["volumeMounts"].as_array_mut().expect("a list");
                mounts.push(json!({"name": "token", "mountPath": "/token"}));
            }),
        ),
        (
            "a path of the node",
            changed(&helper, |spec| {
                let volumes = spec["volumes"].as_array_mut().expect("a list");
                volumes.push(json!({"name": "root", "hostPath": {"path": "/"}}));
            }),
        ),
        (
            "a secret",
            changed(&helper, |spec| {
                let volumes = spec["volumes"].as_array_mut().expect("a list");
                volumes.push(json!({"name": "secret", "secret": {"secretName": "any"}}));
            }),
        ),
        ("another account", changed(&helper, |spec| spec["serviceAccountName"] = json!("podtap-controller"))),
        (
            "a third container",
            changed(&helper, |spec| {
                let third = json!({"name": "third", "image": spec["containers"][0]["image"]});
                spec["containers"].as_array_mut().expect("a list").push(third);
            }),
        ),
        (
            "an init container",
            changed(&helper, |spec| {
                spec["initContainers"] = json!([{"name": "init", "image": spec["containers"][0]["image"]}]);
            }),
        ),
        ("no seccomp profile", changed(&helper, |spec| spec["securityContext"] = json!({}))),
        ("the node's IPC", changed(&helper, |spec| spec["hostIPC"] = json!(true))),
    ];
    for (what, pod) in pods {
        let refused = create(&pod).expect_err(what);
        assert!(refused.contains("podtap-helper-pods"), "{what}: {refused}");
    }

    let role = |rule: Value| {
        let metadata = json!({"name": "podtap-agent-n1-test"});
        let kind = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole"});
        json!({"apiVersion": kind["apiVersion"], "kind": kind["kind"], "metadata": metadata, "rules": [rule]})
            .to_string()
    };
    let one =
        json!({"apiGroups": ["podtap.dev"], "resources": ["nodetaps"], "resourceNames": ["n1"], "verbs": ["get"]});
    create(&role(one)).expect("it may create the role of an agent");
    let all = json!({"apiGroups": ["podtap.dev"], "resources": ["nodetaps"], "verbs": ["get"]});
    let refused = create(&role(all)).expect_err("an agent reads one NodeTap");
    assert!(refused.contains("podtap-agent-accounts"), "{refused}");
}
