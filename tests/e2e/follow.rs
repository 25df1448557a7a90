//! The tap follows its pods.

use std::{env, path::Path, time::Duration};

use podtap_tests::{
    cluster::{Cluster, Sandbox, in_network, namespace_of_node},
    wait::until,
};

use crate::{
    processes::tap_helper,
    scene::{address, capture},
};

const TIMEOUT: Duration = Duration::from_secs(20);

fn tap(sandbox: &Sandbox, interface: &str) {
    sandbox.apply(&format!(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: web}}\nspec:\n  \
         targets: {{podSelector: {{matchLabels: {{app: web}}}}}}\n  \
         destinations: [{{node: {{name: n2, interfaceName: {interface}}}}}]\n"
    ));
}

#[track_caller]
fn tapped(sandbox: &Sandbox, matched: i32, tapped: i32) {
    until(&format!("{tapped} of {matched} tapped"), TIMEOUT, || {
        let status = sandbox.tap("web").status.unwrap_or_default();
        let now = (status.matched_pods, status.tapped_pods);
        if now == (matched, tapped) { Ok(()) } else { Err(format!("{now:?} {:?}", status.failures)) }
    });
}

#[test]
fn pods_that_come_go_and_change_their_labels() {
    let sandbox = Sandbox::new("labels");
    sandbox.pod("a", "n1", "web");
    tap(&sandbox, "fol-labels");
    sandbox.ready("web");
    tapped(&sandbox, 1, 1);
    sandbox.pod("b", "n2", "web");
    tapped(&sandbox, 2, 2);
    sandbox.kubectl(&["label", "pod", "a", "app=other", "--overwrite"], "").expect("a label can be changed");
    tapped(&sandbox, 1, 1);
    sandbox.kubectl(&["label", "pod", "a", "app=web", "--overwrite"], "").expect("a label can be changed");
    tapped(&sandbox, 2, 2);
    sandbox.kubectl(&["label", "pod", "a", "podtap.dev/exclude=true"], "").expect("a label can be set");
    tapped(&sandbox, 1, 1);
    sandbox.kubectl(&["delete", "pod", "b"], "").expect("a pod can be deleted");
    tapped(&sandbox, 0, 0);
    // The tap is established, and pods that end do not change that.
    let status = sandbox.condition("web", "TargetsResolved", "True", "AllPodsSkipped").status.expect("a status");
    assert_eq!(status.excluded_pods, 1);
    sandbox.condition("web", "Ready", "True", "AllPodsSkipped");
}

/// The first frames that the new pod sends, a DNS request, are already mirrored: on either node, 20 times of 20, or
/// `PODTAP_RECREATIONS` times. The nodes keep nothing of those that have ended.
#[test]
fn a_recreated_pod_is_mirrored_from_its_first_frame() {
    // Alone, because other tests end helper pods.
    let _alone = Cluster::alone();
    let sandbox = Sandbox::alone("recreate");
    let peer = sandbox.pod("peer", "n2", "peer");
    tap(&sandbox, "fol-first");
    // A pod on each node first, so that both nodes have a helper pod.
    sandbox.pod("one", "n1", "web");
    sandbox.pod("two", "n2", "web");
    sandbox.ready("web");
    let receiver = capture(&namespace_of_node(sandbox.lab(), "n2"), "fol-first");
    // Descriptors of namespaces, programs and maps.
    let descriptors = || -> Vec<usize> {
        let count = |node| {
            let listed = sandbox.lab().on_node(node, &format!("ls /proc/{}/fd", tap_helper(node)));
            listed.expect("the node runs").lines().count()
        };
        vec![count("n1"), count("n2")]
    };
    let before = descriptors();
    let recreations = env::var("PODTAP_RECREATIONS").ok().map_or(20, |text| text.parse().expect("a number"));
    for round in 0..recreations {
        let (node, name) = [("n1", "one"), ("n2", "two")][round % 2];
        sandbox.kubectl(&["delete", "pod", name], "").expect("a pod can be deleted");
        sandbox.start(name, node, "web", &format!("nslookup first-{round} {}; sleep 3600", address(&peer)));
        let pod = sandbox.running(name);
        let (network, source) = (sandbox.network(&pod), octets(&address(&pod)));
        until(&format!("round {round}: each datagram that the pod sent is mirrored"), TIMEOUT, || {
            let sent = datagrams_sent(&network);
            let mirrored = receiver.count(|f| is_request(&f.bytes, source));
            if sent > 0 && mirrored == sent { Ok(()) } else { Err(format!("{sent} sent, {mirrored} mirrored")) }
        });
    } // Those of namespaces, programs and maps among them.
    until("the helper pods have no more descriptors than before", TIMEOUT, || {
        let now = descriptors();
        if now.iter().zip(&before).all(|(now, before)| now <= before) {
            Ok(())
        } else {
            Err(format!("{before:?} {now:?}"))
        }
    });
}

/// Twenty pods that start at once on one node, under taps whose programs the kernel takes a tenth of a second to verify. Each sends its
/// first frame, a DNS request, as soon as its container runs.
#[test]
fn a_burst_of_pods_is_mirrored_from_the_first_frame() {
    // Alone, because other tests end helper pods.
    let _alone = Cluster::alone();
    let sandbox = Sandbox::alone("burst");
    let peer = sandbox.pod("peer", "n2", "peer");
    for (name, interface, options) in
        [("expression", "fol-expr", "filter: {expression: udp or tcp}"), ("once", "fol-once", "deduplicate: {}")]
    {
        sandbox.apply(&format!(
            "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: {name}}}\nspec:\n  \
             targets: {{podSelector: {{matchLabels: {{app: web}}}}}}\n  {options}\n  \
             destinations: [{{node: {{name: n2, interfaceName: {interface}}}}}]\n"
        ));
    }
    // A pod first, so that the node has a helper pod.
    sandbox.pod("first", "n1", "web");
    let receivers = [("expression", "fol-expr"), ("once", "fol-once")].map(|(name, interface)| {
        sandbox.ready(name);
        capture(&namespace_of_node(sandbox.lab(), "n2"), interface)
    });
    let names: Vec<String> = (0..20).map(|number| format!("burst-{number}")).collect();
    let pods = names.iter().map(|name| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}}}\nspec:\n  \
             nodeName: n1\n  terminationGracePeriodSeconds: 0\n  automountServiceAccountToken: false\n  \
             containers:\n  - name: main\n    image: podtap.dev/busybox:1\n    imagePullPolicy: Never\n    \
             command: [sh, -c, \"nslookup {name} {}; sleep 3600\"]\n",
            address(&peer)
        )
    });
    sandbox.apply(&pods.collect::<String>());
    for name in &names {
        let pod = sandbox.running(name);
        let (network, source) = (sandbox.network(&pod), octets(&address(&pod)));
        until(&format!("{name}: each datagram that the pod sent is mirrored"), TIMEOUT, || {
            let sent = datagrams_sent(&network);
            let mirrored = [0, 1].map(|tap: usize| receivers[tap].count(|f| is_request(&f.bytes, source)));
            if sent > 0 && mirrored == [sent, sent] {
                Ok(())
            } else {
                Err(format!("{sent} sent, {mirrored:?} mirrored"))
            }
        });
    }
}

/// The number of datagrams that a namespace has sent, by its own counter (`Udp: OutDatagrams`, RFC 4113).
fn datagrams_sent(network: &Path) -> usize {
    let counters = in_network(network, &["cat", "/proc/self/net/snmp"]);
    let mut lines = counters.lines().filter_map(|line| line.strip_prefix("Udp: ")).map(str::split_whitespace);
    let (names, mut values) = (lines.next().expect("names"), lines.next().expect("values"));
    let place = names.into_iter().position(|name| name == "OutDatagrams").expect("the counter exists");
    values.nth(place).and_then(|v| v.parse().ok()).expect("a number")
}

/// Whether a frame is a datagram from `source` to the DNS port.
fn is_request(bytes: &[u8], source: [u8; 4]) -> bool {
    bytes.len() > 42
        && bytes[12..14] == [8, 0]
        && bytes[23] == 17
        && bytes[26..30] == source
        && bytes[36..38] == [0, 53]
}

fn octets(address: &str) -> [u8; 4] {
    address.parse::<std::net::Ipv4Addr>().expect("the lab is IPv4").octets()
}
