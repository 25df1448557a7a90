//! Users' mistakes: each gets an error at `kubectl apply`, or a condition with a reason and a message that tells what to do. Other taps
//! keep working.

use std::{path::Path, time::Duration};

use podtap_tests::{
    cluster::{Cluster, PODTAP_NAMESPACE, Sandbox, in_network, namespace_of_node, udp_socket},
    wait::until,
};

use crate::{
    controller::Setting,
    scene::{allow_external, node_address, outside},
};

/// A tap with these targets and destinations.
fn tap(name: &str, targets: &str, destinations: &str) -> String {
    format!(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: {name}}}\nspec:\n  \
         targets: {targets}\n  destinations: {destinations}\n"
    )
}

const WEB: &str = "{podNames: [web]}";

/// Waits for the condition, and checks that its message has the words.
#[track_caller]
fn condition_reports(sandbox: &Sandbox, name: &str, condition: &str, reason: &str, words: &str) {
    let tap = sandbox.condition(name, condition, "False", reason);
    let status = tap.status.expect("a condition is part of a status");
    let text =
        |kind: &str| status.conditions.iter().find(|c| c.type_ == kind).map(|c| c.message.clone()).unwrap_or_default();
    assert!(text(condition).contains(words), "{condition}: expected “{words}” in “{}”", text(condition));
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready").expect("Ready is set from the first visit");
    assert_eq!(ready.status, "False");
}

/// Waits for a failure of one pod with the reason, and checks that its message has the words.
#[track_caller]
fn fails(sandbox: &Sandbox, name: &str, pod: &str, reason: &str, words: &str) {
    until(&format!("{name}: {pod} fails with {reason}"), Duration::from_secs(30), || {
        let status = sandbox.tap(name).status.unwrap_or_default();
        let found =
            status.failures.iter().any(|f| f.pod == pod && f.reason.as_str() == reason && f.message.contains(words));
        if found { Ok(()) } else { Err(format!("{:?} {:?}", status.failures, status.conditions)) }
    });
}

#[test]
fn at_apply() {
    let sandbox = Sandbox::new("apply");
    let node = "[{node: {name: n1}}]";
    for (targets, destinations, words) in [
        ("{}", node, "exactly one of targets.podNames and targets.podSelector"),
        ("{podNames: [a], podSelector: {}}", node, "exactly one of targets.podNames and targets.podSelector"),
        (WEB, "[{}]", "exactly one of node, pod, external and collector"),
        (WEB, "[]", "should have at least 1 items"),
        (WEB, "[{node: {name: n1, interfaceName: a-16-chars-name0}}]", "at most 15 characters"),
        (WEB, "[{node: {name: n1, interfaceName: a/b}}]", "without slash"),
        (WEB, "[{external: {address: 10.0.0.0/8}}]", "address of one host"),
        (WEB, "[{node: {name: n1}}]\n  vxlan: {vni: 0}", "between 1 and 16777215"),
        (WEB, "[{node: {name: n1}}]\n  vxlan: {vni: 16777216}", "between 1 and 16777215"),
        (WEB, "[{node: {name: n1}}]\n  filters: {}", "unknown field"),
        (WEB, "[{node: {name: n1}}, {node: {name: n2}}]", "Duplicate value"),
        (WEB, "[{name: a, node: {name: n1}}, {name: b, node: {name: n1}}]", "destinations must differ"),
        (WEB, "[{name: Main, node: {name: n1}}]", "must consist of lower-case letters"),
        (WEB, "[{external: {address: 192.0.2.1}, frameFormat: Raw}]", "leave it out of an external destination"),
        (WEB, "[{node: {name: n1}}]\n  duration: 1d", "between 1s and 8760h"),
        (WEB, "[{node: {name: n1}}]\n  duration: 8761h", "between 1s and 8760h"),
        (WEB, "[{node: {name: n1}}]\n  limit: {bitsPerSecond: 101G}", "limit.bitsPerSecond must be between 0"),
        (WEB, "[{node: {name: n1}}]\n  limit: {bitsPerSecond: -1}", "limit.bitsPerSecond must be between 0"),
        (WEB, "[{node: {name: n1}}]\n  limit: {packetsPerSecond: 1Q}", "limit.packetsPerSecond must be between 0"),
        (WEB, "[{node: {name: n1}}]\n  limit: {bitsPerSecond: '0'}", "more than 0"),
        ("{podSelector: {app: web}}", node, "put labels under matchLabels"),
        (WEB, "[{pod: {podSelector: {app: ids}}}]", "put labels under matchLabels"),
    ] {
        let message = sandbox.try_apply(&tap("bad", targets, destinations)).expect_err("a mistake is refused");
        assert!(message.contains(words), "expected “{words}”, got {message}");
        // One mistake, one message, and nothing about rules that were not checked.
        assert!(!message.contains("<nil>") && !message.contains("\n* "), "{message}");
    }
    let policy = "apiVersion: podtap.dev/v1alpha1\nkind: PodTapPolicy\nmetadata: {name: default}\n\
                  spec: {allowedExternalCIDRs: [10.0.0.0/33]}\n";
    let message = sandbox.kubectl(&["create", "-f", "-"], policy).expect_err("a bad CIDR is refused");
    assert!(message.contains("must be a network such as"), "{message}");
}

#[test]
fn an_explicit_null_is_unset() {
    let sandbox = Sandbox::new("null");
    sandbox.pod("web", "n1", "web");
    let destination = "[{node: {name: n2, interfaceName: mis-null}, pod: null, external: null}]\n  filter: null\n  \
                       limit: {bitsPerSecond: 100M, packetsPerSecond: null}";
    sandbox.apply(&tap("unset", "{podNames: [web], podSelector: null, interface: ''}", destination));
    sandbox.ready("unset");
}

#[test]
fn about_destinations() {
    let sandbox = Sandbox::new("destinations");
    allow_external(&outside());
    sandbox.pod("web", "n1", "web");
    let at_node = format!("{{external: {{address: {}}}}}", node_address("n2"));
    for (name, destination, reason, words) in [
        ("at-a-node", at_node.as_str(), "ClusterAddress", "set `node: {name: n2}` instead"),
        ("no-node", "{node: {name: n9}}", "NodeNotFound", "n9"),
        ("no-pod", "{pod: {name: ids}}", "PodNotFound", "ids"),
        ("no-ready-pod", "{pod: {podSelector: {matchLabels: {app: ids}}}}", "PodNotReady", "app=ids is ready"),
        ("not-allowed", "{external: {address: 203.0.113.7}}", "NotAllowedByPolicy", "allowedExternalCIDRs"),
    ] {
        sandbox.apply(&tap(name, WEB, &format!("[{destination}]")));
        condition_reports(&sandbox, name, "DestinationsReady", reason, words);
    }
    // The other destination of the same tap still gets its frames.
    sandbox.apply(&tap(
        "half",
        WEB,
        "[{name: absent, node: {name: n9}}, {name: there, node: {name: n2, interfaceName: mis-half}}]",
    ));
    condition_reports(&sandbox, "half", "DestinationsReady", "NodeNotFound", "n9");
    sandbox.condition("half", "Tapped", "True", "");
}

#[test]
fn about_targets() {
    let sandbox = Sandbox::new("targets");
    let node = "[{node: {name: n2, interfaceName: mis-target}}]";
    sandbox.apply(&tap("nobody", "{podSelector: {matchLabels: {app: nobody}}}", node));
    condition_reports(&sandbox, "nobody", "TargetsResolved", "NoPodsMatch", "app=nobody");
    sandbox.kubectl(&["delete", "podtap", "nobody"], "").expect("a tap can be deleted");

    for name in ["web", "web-2", "web-3"] {
        sandbox.pod(name, "n1", "web");
    }
    sandbox.apply(&tap("many", "{podSelector: {matchLabels: {app: web}}, maxPods: 2}", node));
    condition_reports(&sandbox, "many", "TargetsResolved", "TooManyPods", "maxPods");
    let status = sandbox.tap("many").status.expect("a status");
    assert_eq!(status.matched_pods, 3);
    until("the oldest two are tapped", Duration::from_secs(20), || {
        let tapped = sandbox.tap("many").status.unwrap_or_default().tapped_pods;
        if tapped == 2 { Ok(()) } else { Err(tapped) }
    });
    sandbox.kubectl(&["delete", "podtap", "many"], "").expect("a tap can be deleted");

    sandbox.apply(&tap("no-interface", "{podNames: [web], interface: net7}", node));
    fails(&sandbox, "no-interface", "web", "InterfaceNotFound", "net7");
    sandbox.kubectl(&["delete", "podtap", "no-interface"], "").expect("a tap can be deleted");

    sandbox.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: on-host, labels: {app: host}}\nspec:\n  hostNetwork: true\n  \
         nodeName: n1\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {name: main, image: 'podtap.dev/busybox:1', \
         imagePullPolicy: Never, command: [sleep, '3600']}\n",
    );
    sandbox.running("on-host");
    sandbox.apply(&tap("host", "{podNames: [on-host, web]}", node));
    fails(&sandbox, "host", "on-host", "HostNetwork", "network");
    until("the other pod is still tapped", Duration::from_secs(20), || {
        let tapped = sandbox.tap("host").status.unwrap_or_default().tapped_pods;
        if tapped == 1 { Ok(()) } else { Err(tapped) }
    });
    sandbox.kubectl(&["delete", "podtap", "host"], "").expect("a tap can be deleted");

    sandbox.apply(&tap("itself", WEB, "[{pod: {name: web}}]"));
    fails(&sandbox, "itself", "web", "DestinationIsTarget", "destination");
}

#[test]
fn about_cycles() {
    let sandbox = Sandbox::new("cycles");
    sandbox.pod("a", "n1", "a");
    sandbox.pod("b", "n2", "b");
    sandbox.apply(&tap("there", "{podNames: [a]}", "[{pod: {name: b}}]"));
    sandbox.ready("there");
    sandbox.apply(&tap("back", "{podNames: [b]}", "[{pod: {name: a}}]"));
    sandbox.condition("back", "Ready", "False", "MirroringLoop");
    sandbox.ready("there");
}

/// A device that is not PodTap's.
struct Foreign<'a>(&'a Path, &'a str);

impl<'a> Foreign<'a> {
    fn new(network: &'a Path, name: &'a str) -> Self {
        in_network(network, &["ip", "link", "add", name, "type", "bridge"]);
        Self(network, name)
    }
}

impl Drop for Foreign<'_> {
    fn drop(&mut self) {
        in_network(self.0, &["ip", "link", "del", self.1]);
    }
}

#[test]
fn about_names_and_vnis_in_use() {
    let sandbox = Sandbox::new("taken");
    sandbox.pod("web", "n1", "web");
    let n2 = namespace_of_node(sandbox.lab(), "n2");
    let device = Foreign::new(&n2, "mis-foreign");
    sandbox.apply(&tap("foreign", WEB, "[{node: {name: n2, interfaceName: mis-foreign}}]"));
    let words = "node n2: Another interface is already named mis-foreign";
    condition_reports(&sandbox, "foreign", "DestinationsReady", "InterfaceNameConflict", words);
    let foreign = in_network(&n2, &["ip", "-d", "link", "show", "mis-foreign"]);
    assert!(foreign.contains("bridge"), "it is unchanged: {foreign}");
    drop(device);
    sandbox.ready("foreign");

    sandbox.apply(&tap("older", WEB, "[{node: {name: n2, interfaceName: mis-older}}]\n  vxlan: {vni: 5301}"));
    sandbox.ready("older");
    sandbox.apply(&tap("younger", WEB, "[{node: {name: n2, interfaceName: mis-young}}]\n  vxlan: {vni: 5301}"));
    let waits = sandbox.condition("younger", "Ready", "False", "VNIInUse");
    let message =
        waits.status.expect("a status").conditions.iter().find(|c| c.type_ == "Ready").expect("Ready").message.clone();
    assert!(message.contains("5301") && !message.contains("older"), "the holder may be another tenant's: {message}");
    sandbox.kubectl(&["delete", "podtap", "older"], "").expect("a tap can be deleted");
    sandbox.ready("younger");

    sandbox.apply(&tap("same-name", WEB, "[{node: {name: n2, interfaceName: mis-young}}]"));
    let words = "the interface mis-young on node n2 belongs to the PodTap younger";
    condition_reports(&sandbox, "same-name", "DestinationsReady", "InterfaceNameConflict", words);
    // Another tenant learns what is taken, and where, but not by whom.
    let other = Sandbox::alone("taken-two");
    other.pod("web", "n1", "web");
    other.apply(&tap("same-name", WEB, "[{node: {name: n2, interfaceName: mis-young}}]"));
    let words = "the interface mis-young on node n2 belongs to an older tap that is not of this namespace";
    condition_reports(&other, "same-name", "DestinationsReady", "InterfaceNameConflict", words);
    let text = serde_json::to_string(&other.tap("same-name").status).expect("a status is JSON");
    assert!(!text.contains(sandbox.namespace()) && !text.contains("younger"), "{text}");
}

#[test]
fn a_udp_port_in_use() {
    let _alone = Cluster::alone();
    let sandbox = Sandbox::alone("port");
    sandbox.pod("web", "n1", "web");
    let lab = sandbox.lab();
    // No other test has a tap now, so that the port is free for another program.
    let other = udp_socket(&namespace_of_node(lab, "n2"), 14789).expect("the port is free");
    sandbox.apply(&tap("port", WEB, "[{node: {name: n2, interfaceName: mis-port}}]"));
    condition_reports(&sandbox, "port", "DestinationsReady", "PortInUse", "14789");
    drop(other);
    sandbox.ready("port");
}

#[test]
fn without_a_policy() {
    let _alone = Cluster::alone();
    let sandbox = Sandbox::alone("policy");
    sandbox.pod("web", "n1", "web");
    sandbox.kubectl(&["delete", "podtappolicy", "default", "--ignore-not-found"], "").expect("a policy can be deleted");
    sandbox.apply(&tap("outside", WEB, "[{external: {address: 203.0.113.7}}]"));
    sandbox.apply(&tap("inside", WEB, "[{node: {name: n2, interfaceName: mis-policy}}]"));
    condition_reports(&sandbox, "outside", "DestinationsReady", "PolicyNotFound", "PodTapPolicy");
    sandbox.ready("inside");
}

#[test]
fn an_object_that_no_longer_parses() {
    let _alone = Cluster::alone();
    let sandbox = Sandbox::alone("parse");
    let lab = sandbox.lab();
    sandbox.pod("web", "n1", "web");
    sandbox.apply(&tap("good", WEB, "[{node: {name: n2, interfaceName: mis-parse}}]"));
    sandbox.ready("good");
    // Stored while the schema had a direction that this version does not have, as after an upgrade or downgrade.
    let definition = lab.kubectl(&["get", "crd", "podtaps.podtap.dev", "-o", "json"], "").expect("it is installed");
    let wider = definition.replace("\"Ingress\",", "\"Ingress\",\"Sideways\",");
    assert_ne!(wider, definition, "the enumeration was found");
    lab.kubectl(&["replace", "-f", "-"], &wider).expect("a definition can be replaced");
    until("the wider schema is served", Duration::from_secs(20), || {
        sandbox.try_apply(&format!(
            "{}  direction: Sideways\n",
            tap("odd", WEB, "[{node: {name: n2, interfaceName: mis-odd}}]")
        ))
    });
    sandbox
        .kubectl(
            &[
                "wait",
                "--for=jsonpath={.status.conditions[?(@.type==\"Ready\")].reason}=InvalidSpec",
                "podtap/odd",
                "--timeout=30s",
            ],
            "",
        )
        .expect("the tap has a condition about it");
    // Other taps keep working, and this one can be deleted.
    sandbox.apply(&tap("next", WEB, "[{node: {name: n2, interfaceName: mis-next}}]"));
    sandbox.ready("next");
    sandbox.kubectl(&["delete", "podtap", "odd", "--timeout=40s"], "").expect("it can be deleted");
    let restored = std::fs::read_to_string(lab.top().join("crds/podtaps.yaml")).expect("crds/ exists");
    lab.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &restored)
        .expect("the definition can be restored");
}

#[test]
fn a_helper_pod_that_cannot_start() {
    let _alone = Cluster::alone();
    let sandbox = Sandbox::alone("helper");
    let lab = sandbox.lab();
    sandbox.pod("web", "n1", "web");
    let label = |value: &str| {
        lab.kubectl(
            &[
                "label",
                "namespace",
                PODTAP_NAMESPACE,
                "--overwrite",
                &format!("pod-security.kubernetes.io/enforce={value}"),
            ],
            "",
        )
        .expect("a namespace can be labelled")
    };
    // Helper pods of earlier tests are deleted after about a minute.
    until("no helper pod exists", Duration::from_secs(120), || {
        let pods = lab.kubectl(
            &["-n", PODTAP_NAMESPACE, "get", "pods", "-l", "app.kubernetes.io/component=helper", "-o", "name"],
            "",
        )?;
        if pods.trim().is_empty() { Ok(()) } else { Err(pods) }
    });
    label("baseline");
    sandbox.apply(&tap("rejected", WEB, "[{node: {name: n2, interfaceName: mis-psa}}]"));
    sandbox.condition("rejected", "Ready", "False", "HelperPodRejected");
    let status = sandbox.tap("rejected").status.expect("a status");
    assert!(status.conditions.iter().any(|c| c.message.contains("PodSecurity")), "{:?}", status.conditions);
    label("privileged");
    sandbox.ready("rejected");
    sandbox.kubectl(&["delete", "podtap", "rejected"], "").expect("a tap can be deleted");

    let setting = Setting::set("HELPER_IMAGE", "podtap.dev/podtap:no-such-image");
    sandbox.apply(&tap("no-image", WEB, "[{node: {name: n2, interfaceName: mis-image}}]"));
    sandbox.condition("no-image", "Ready", "False", "HelperPodFailed");
    let status = sandbox.tap("no-image").status.expect("a status");
    assert!(status.conditions.iter().any(|c| c.message.contains("no-such-image")), "{:?}", status.conditions);
    setting.restore();
    sandbox.ready("no-image");
}
