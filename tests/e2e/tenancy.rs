//! Who may tap what.

use std::time::Duration;

use podtap_tests::{
    cluster::{PODTAP_NAMESPACE, Sandbox},
    wait::until,
};

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
    let elsewhere = as_user(&Sandbox::new("tenancy-two"), &["create", "-f", "-"], TAP).expect_err("another namespace");
    assert!(elsewhere.contains("forbidden"), "{elsewhere}");
}

#[test]
fn an_agent_writes_only_its_own_nodes_object() {
    let sandbox = Sandbox::new("own-node-tap");
    sandbox.pod("one", "n1", "web");
    sandbox.pod("two", "n2", "web");
    sandbox.apply(TAP);
    sandbox.ready("web");
    let lab = sandbox.lab();
    let helper = lab
        .kubectl(
            &[
                "-n",
                PODTAP_NAMESPACE,
                "get",
                "pods",
                "--field-selector",
                "spec.nodeName=n1",
                "-o",
                "jsonpath={.items[?(@.spec.hostNetwork==true)].metadata.name}",
            ],
            "",
        )
        .expect("pods can be listed");
    let token = lab
        .kubectl(
            &[
                "-n",
                PODTAP_NAMESPACE,
                "create",
                "token",
                "podtap-agent",
                "--bound-object-kind",
                "Pod",
                "--bound-object-name",
                helper.trim(),
            ],
            "",
        )
        .expect("a token like the agent's can be created");
    // A kubeconfig without the administrator's certificate, so that the token is what counts.
    let server = lab
        .kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"], "")
        .expect("a URL");
    let patch = |node: &str, spec: &str, subresource: &[&str]| {
        let mut arguments = vec![
            "--kubeconfig=/dev/null",
            "--server",
            server.trim(),
            "--insecure-skip-tls-verify",
            "--token",
            token.trim(),
            "patch",
            "nodetap",
            node,
            "--type=merge",
            "-p",
            spec,
        ];
        arguments.extend(subresource);
        lab.kubectl(&arguments, "")
    };
    let status = r#"{"status":{"activeSenders":7}}"#;
    patch("n1", status, &["--subresource=status"]).expect("its own node's status is the agent's to write");
    let other = patch("n2", status, &["--subresource=status"]).expect_err("another node's is not");
    assert!(other.contains("n2") || other.contains("own node"), "{other}");
    let spec = patch("n1", r#"{"spec":{"senders":[]}}"#, &[]).expect_err("what the node is to do is not");
    assert!(spec.contains("forbidden"), "{spec}");
}
