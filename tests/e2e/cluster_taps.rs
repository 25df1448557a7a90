//! Taps of many namespaces: what they select, who may create them, and what remains of them.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use podtap_api::{ClusterPodTap, NodeTap, PodTapStatus};
use podtap_tests::{
    capture::{Capture, Frame},
    cluster::{Sandbox, namespace_of_node, traces},
    wait::{PATIENCE, until},
};

use crate::{
    map::{Forward, MAP, of_namespace},
    scene::{address, enable_collector, outside},
};

/// A tap of the cluster that is deleted when the test ends, with all that it left.
struct Tap<'a> {
    sandbox: &'a Sandbox,
    name: &'a str,
}

impl<'a> Tap<'a> {
    /// Named like the namespace of the test. `spec` is indented by two spaces.
    fn apply(sandbox: &'a Sandbox, spec: &str) -> Self {
        let name = sandbox.namespace();
        sandbox.apply(&format!(
            "apiVersion: podtap.dev/v1alpha1\nkind: ClusterPodTap\nmetadata: {{name: {name}}}\nspec:\n{spec}"
        ));
        Self { sandbox, name }
    }

    fn status(&self) -> PodTapStatus {
        let text = self.sandbox.kubectl(&["get", "clusterpodtap", self.name, "-o", "json"], "").expect("it exists");
        serde_json::from_str::<ClusterPodTap>(&text).expect("it is one").status.unwrap_or_default()
    }

    /// Waits until it is Ready and this many pods are tapped.
    #[track_caller]
    fn taps(&self, pods: i32) -> PodTapStatus {
        until(&format!("{} taps {pods} pods", self.name), PATIENCE, || {
            let status = self.status();
            let is_ready = status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
            if is_ready && status.tapped_pods == pods { Ok(status) } else { Err(format!("{status:?}")) }
        })
    }

    fn delete(&self) {
        self.sandbox.kubectl(&["delete", "clusterpodtap", self.name, "--timeout=60s"], "").expect("it can be deleted");
    }
}

impl Drop for Tap<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let shown = self.sandbox.kubectl(&["get", "clusterpodtap", self.name, "-o", "yaml"], "");
            eprintln!("{}", shown.unwrap_or_else(|message| message));
        }
        let arguments = ["delete", "clusterpodtap", self.name, "--ignore-not-found", "--timeout=60s"];
        if let Err(message) = self.sandbox.kubectl(&arguments, "") {
            eprintln!("{}: {message}", self.name);
        }
    }
}

fn label(sandbox: &Sandbox, label: &str) {
    let arguments = ["label", "--overwrite", "namespace", sandbox.namespace(), label];
    sandbox.kubectl(&arguments, "").expect("a namespace can be labelled");
}

/// Whether a frame is from the pod or to it, over IPv4.
fn is_of(frame: &Frame, pod: &Pod) -> bool {
    let address: std::net::Ipv4Addr = address(pod).parse().expect("the lab is IPv4");
    frame.bytes.len() >= 34 && [&frame.bytes[26..30], &frame.bytes[30..34]].contains(&&address.octets()[..])
}

/// How many frames of each pod arrive, when each pings an address outside of the cluster three times.
fn arrives(capture: &Capture, pods: &[(&Sandbox, &Pod)]) -> Vec<usize> {
    for (sandbox, pod) in pods {
        let name = pod.metadata.name.as_deref().expect("a stored pod has a name");
        sandbox.in_pod(name, &format!("ping -q -c 3 -i 0.1 {}", outside())).expect("it is answered");
    }
    pods.iter().map(|(_, pod)| capture.count(|frame| is_of(frame, pod))).collect()
}

#[test]
fn a_cluster_tap_follows_namespaces_and_pods_and_mirrors_nothing_else() {
    let one = Sandbox::new("cluster-one");
    let (two, other) = (one.another("cluster-two"), one.another("cluster-other"));
    let group = one.namespace();
    for sandbox in [&one, &two] {
        label(sandbox, &format!("group={group}"));
    }
    let (web, quiet) = (one.pod("web", "n1", "web"), one.pod("quiet", "n1", "web"));
    one.kubectl(&["label", "pod", "quiet", "podtap.dev/exclude=true"], "").expect("a pod can be labelled");
    let (api, foreign) = (two.pod("api", "n2", "api"), other.pod("foreign", "n1", "web"));
    let ids = two.pod("ids", "n1", "ids");
    let tap = Tap::apply(
        &one,
        &format!(
            "  targets:\n    namespaceSelector: {{matchLabels: {{group: {group}}}}}\n    \
             podSelector: {{matchExpressions: [{{key: app, operator: NotIn, values: [ids]}}]}}\n  destinations:\n  \
             - {{name: node, node: {{name: n2, interfaceName: cluster-tap}}}}\n  \
             - {{name: pod, pod: {{namespace: {}, podSelector: {{matchLabels: {{app: ids}}}}, interfaceName: cluster-tap}}}}\n",
            two.namespace()
        ),
    );
    let status = tap.taps(2);
    assert_eq!((status.matched_pods, status.excluded_pods), (2, 1));
    let on_node = Capture::start(&namespace_of_node(one.lab(), "n2"), "cluster-tap");
    let in_pod = Capture::start(&two.network(&ids), "cluster-tap");
    let all = [(&one, &web), (&two, &api), (&one, &quiet), (&other, &foreign)];
    assert_eq!(arrives(&on_node, &all), [6, 6, 0, 0], "a request and an answer of each ping of web and api");
    until("the consumer in another namespace has the same", PATIENCE, || {
        let counts: Vec<_> = all.iter().map(|(_, pod)| in_pod.count(|frame| is_of(frame, pod))).collect();
        if counts == [6, 6, 0, 0] { Ok(()) } else { Err(format!("{counts:?}")) }
    });

    label(&other, &format!("group={group}"));
    tap.taps(3);
    assert_eq!(arrives(&on_node, &all), [12, 12, 0, 6], "the namespace is selected now");

    label(&two, "podtap.dev/exclude=true");
    assert_eq!(tap.taps(2).excluded_pods, 2, "api of the namespace that opted out, and quiet");
    assert_eq!(traces(&two.network(&api)), [""; 0]);

    tap.delete();
    for (sandbox, pod) in all {
        assert_eq!(traces(&sandbox.network(pod)), [""; 0]);
    }
    let nodes: Vec<NodeTap> = one.lab().list_all();
    let left = nodes.iter().flat_map(|node| &node.spec.0.receivers).filter(|receiver| receiver.tap.name == group);
    assert_eq!(left.count(), 0);
}

#[test]
fn a_cluster_tap_needs_the_verb_tap_on_the_pods_of_all_namespaces() {
    let sandbox = Sandbox::new("cluster-tenancy");
    let name = sandbox.namespace();
    let tap = |spec: &str| {
        format!("apiVersion: podtap.dev/v1alpha1\nkind: ClusterPodTap\nmetadata: {{name: {name}}}\nspec:\n{spec}")
    };
    let to_n2 = |targets: &str| {
        tap(&format!("  targets: {targets}\n  destinations: [{{node: {{name: n2, interfaceName: unused}}}}]\n"))
    };
    let all = to_n2("{namespaceSelector: {}}");
    let create =
        |user: &[&str], yaml: &str| sandbox.kubectl(&[&["create", "--dry-run=server", "-f", "-"], user].concat(), yaml);
    let (alice, bob) = (["--as=alice"], ["--as=bob"]);
    let bind = |kind: &str, role: &str, user: &str| {
        let (binding, role, user) =
            (format!("{name}-{user}"), format!("--clusterrole={role}"), format!("--user={user}"));
        sandbox.kubectl(&["create", kind, &binding, &role, &user], "").expect("an administrator can grant permissions");
    };
    // Of all permissions on the kind and in one namespace, none is enough.
    let roles = ["create", "clusterrole", name, "--verb=*", "--resource=clusterpodtaps.podtap.dev"];
    sandbox.kubectl(&roles, "").expect("an administrator can create a role");
    bind("clusterrolebinding", name, "alice");
    bind("rolebinding", "podtap-edit", "alice");
    bind("clusterrolebinding", "podtap-cluster-edit", "bob");
    until("the verb is required in all namespaces", PATIENCE, || match create(&alice, &all) {
        Err(message) if message.contains("podtap-cluster-edit") && message.contains("alice") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    until("the role grants it", Duration::from_secs(10), || create(&bob, &all));

    for (yaml, words) in [
        (to_n2("{podSelector: {}}"), "namespaceSelector"),
        (to_n2("{namespaceSelector: {team: shop}}"), "put labels under matchLabels"),
        (to_n2("{namespaceSelector: {}, nodeSelector: {zone: a}}"), "put labels under matchLabels"),
        (tap("  targets: {namespaceSelector: {}}\n  destinations: [{pod: {name: ids}}]\n"), "set pod.namespace"),
    ] {
        let refused = create(&bob, &yaml).expect_err(words);
        assert!(refused.contains(words), "expected “{words}” in {refused}");
    }
    for kind in ["clusterrolebinding", "clusterrole"] {
        let names = [format!("{name}-alice"), format!("{name}-bob"), name.to_owned()];
        let arguments = ["delete", kind, "--ignore-not-found", &names[0], &names[1], &names[2]];
        sandbox.kubectl(&arguments, "").expect("what the test created can be deleted");
    }
}

#[test]
fn a_cluster_tap_maps_calls_between_namespaces() {
    let _alone = MAP.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let one = Sandbox::new("calling");
    let two = one.another("called");
    enable_collector(one.lab());
    for sandbox in [&one, &two] {
        label(sandbox, &format!("group={}", one.namespace()));
    }
    let group = one.namespace();
    let targets = format!("  targets: {{namespaceSelector: {{matchLabels: {{group: {group}}}}}}}\n");
    let tap = Tap::apply(&one, &format!("{targets}  destinations: [{{collector: {{}}}}]\n"));
    two.start("server", "n1", "server", "mkdir /w; hostname > /w/index.html; httpd -f -h /w -p 8080");
    let server = address(&two.running("server"));
    let script = format!("while :; do wget -q -O /dev/null http://{server}:8080/; sleep 1; done");
    one.start("client", "n2", "client", &script);
    tap.taps(2);
    let expected = format!("client in namespace {group} calls:\n  - server in namespace {}\n", two.namespace());
    until("the call between namespaces is listed", PATIENCE, || {
        let list = of_namespace(&Forward::try_start(one.lab())?.get("/map?format=list")?, group);
        if list == expected { Ok(()) } else { Err(list) }
    });
}
