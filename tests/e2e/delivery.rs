//! Ready means delivered: probes through the path of mirrored frames.

use std::time::{Duration, Instant};

use podtap_api::{CONDITION_DELIVERING, CONDITION_READY, NodeTap};
use podtap_tests::{
    capture::Frame,
    cluster::{Cluster, namespace_of_node},
    wait::until,
};

use crate::scene::{Scene, allow_external, capture, node_address, outside};

/// Drops what arrives on n2 for a VNI, until it is dropped: the taps of other tests go on.
struct Cut {
    name: String,
    vni: u32,
}

impl Cut {
    fn new(vni: u32) -> Self {
        let name = format!("cut{vni}");
        on_n2(&format!(
            "nft 'add table inet {name}; add chain inet {name} input {{ type filter hook input priority -300; }}'"
        ));
        Self { name, vni }
    }

    /// Drops the VXLAN packets that meet a condition.
    fn drop_mirrored(&self, condition: &str) {
        // The VNI follows the UDP header and 32 bits (RFC 7348).
        self.drop(&format!("udp dport 14789 @th,96,24 {} {condition}", self.vni));
    }

    /// Drops what meets a condition.
    fn drop(&self, condition: &str) {
        on_n2(&format!("nft 'add rule inet {} input {condition} drop'", self.name));
    }

    fn heal(&self) {
        on_n2(&format!("nft flush chain inet {} input", self.name));
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        let _ = Cluster::lab().on_node("n2", &format!("nft delete table inet {}", self.name));
    }
}

fn on_n2(script: &str) {
    Cluster::lab().on_node("n2", script).expect("the node runs it");
}

/// Whether a VXLAN packet with this VNI carries a probe.
fn is_probe(frame: &Frame, vni: u32) -> bool {
    // Ethernet, IPv4, UDP and VXLAN.
    let bytes = &frame.bytes;
    let has_vni =
        bytes.len() >= 64 && bytes[36..38] == 14789_u16.to_be_bytes() && bytes[46..49] == vni.to_be_bytes()[1..];
    has_vni && bytes[62..64] == [0x88, 0xb5]
}

/// Each cut makes the tap not Ready, with the reason and the nodes; and Ready again when it is healed.
#[test]
fn a_cut_is_noticed_and_named() {
    const VNI: u32 = 5301;
    let scene = Scene::new("delivery");
    let sandbox = &scene.sandbox;
    sandbox.apply(&format!(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: web}}\nspec:\n  \
         targets: {{podNames: [web]}}\n  destinations: [{{node: {{name: n2, interfaceName: delivery}}}}]\n  vxlan: {{vni: {VNI}}}\n"
    ));
    sandbox.ready("web");
    sandbox.condition("web", CONDITION_DELIVERING, "True", "AsExpected");
    let cut = Cut::new(VNI);
    let from_n1 = format!("ip saddr {}", node_address("n1"));
    for (condition, reason, words) in [
        ("", "PortBlocked", "node n2 receives no probes from node n1, but TCP"),
        // The other tests need the rest of what n1 sends.
        (&from_n1, "NoProbeFromNode", "node n2 receives no probes from node n1: "),
        ("meta length > 1000", "PathMTU", "node n2 receives small probes from node n1"),
    ] {
        let start = Instant::now();
        cut.drop_mirrored(condition);
        if reason == "NoProbeFromNode" {
            cut.drop(&format!("{from_n1} tcp dport 10250"));
        }
        let tap = sandbox.condition("web", CONDITION_DELIVERING, "False", reason);
        println!("{reason}: False after {:?}", start.elapsed());
        let conditions = tap.status.expect("it has a status").conditions;
        let message = |kind: &str| conditions.iter().find(|c| c.type_ == kind).map(|c| c.message.clone());
        let (own, ready) = (message(CONDITION_DELIVERING), message(CONDITION_READY));
        assert!(own.as_ref().is_some_and(|own| own.contains(words)), "{own:?}");
        assert_eq!(own, ready, "Ready says the same");
        cut.heal();
        sandbox.condition("web", CONDITION_DELIVERING, "True", "AsExpected");
        sandbox.ready("web");
    }
    until("an event tells of each", Duration::from_secs(20), || {
        let events = sandbox.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"], "")?;
        let all = ["PortBlocked", "NoProbeFromNode", "PathMTU"].iter().all(|reason| events.contains(reason));
        if all { Ok(()) } else { Err(events) }
    });
}

/// Probes that arrive change no object, and are no frames of the pod.
#[test]
fn probes_that_arrive_cost_no_writes() {
    const VNI: u32 = 5302;
    let _alone = Cluster::alone();
    let scene = Scene::alone("probes");
    let sandbox = &scene.sandbox;
    sandbox.apply(&format!(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: web}}\nspec:\n  \
         targets: {{podNames: [web]}}\n  destinations: [{{node: {{name: n2, interfaceName: probes}}}}]\n  vxlan: {{vni: {VNI}}}\n"
    ));
    sandbox.ready("web");
    let n2 = namespace_of_node(sandbox.lab(), "n2");
    let underlay = capture(&n2, "eth0");
    let count = || underlay.count(|frame| is_probe(frame, VNI));
    let versions = || {
        let nodes = sandbox.lab().list_all::<NodeTap>().into_iter();
        let nodes: Vec<_> = nodes.map(|node| (node.metadata.name, node.metadata.resource_version)).collect();
        (nodes, sandbox.tap("web").metadata.resource_version)
    };
    let probes =
        |count: &dyn Fn() -> usize, more: usize| {
            let end = count() + more;
            until("probes arrive", Duration::from_secs(30), || {
                if count() >= end { Ok(()) } else { Err(count().to_string()) }
            });
        };
    until("the taps of earlier tests have left the nodes", Duration::from_secs(60), || {
        let nodes = sandbox.lab().list_all::<NodeTap>().into_iter();
        let taps: Vec<_> = nodes.flat_map(|node| node.spec.0.taps).map(|tap| tap.namespace).collect();
        if taps.iter().all(|namespace| namespace == sandbox.namespace()) { Ok(()) } else { Err(format!("{taps:?}")) }
    });
    // What belongs to the establishment of the tap is written before.
    probes(&count, 3);
    let before = versions();
    probes(&count, 8);
    assert_eq!(versions(), before);
}

/// External destinations report nothing, and get probes only if they ask for them.
#[test]
fn an_external_destination_is_unknown() {
    let scene = Scene::new("unknown");
    let sandbox = &scene.sandbox;
    allow_external(&outside());
    let tap = |probe: bool| {
        format!(
            "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: web}}\nspec:\n  \
             targets: {{podNames: [web]}}\n  destinations:\n  - {{name: outside, external: {{address: {}, probe: {probe}}}}}\n  \
             - {{name: inside, node: {{name: n2, interfaceName: unknown}}}}\n",
            outside()
        )
    };
    sandbox.apply(&tap(false));
    sandbox.ready("web");
    sandbox.condition("web", CONDITION_DELIVERING, "Unknown", "ExternalDestination");
    let pods_with_probes = || {
        let uid = sandbox.tap("web").metadata.uid.expect("an object has a UID");
        let statuses = sandbox.lab().list_all::<NodeTap>().into_iter().filter_map(|node| node.status);
        let receivers = statuses.flat_map(|status| status.receivers).filter(|receiver| receiver.tap_uid == uid);
        receivers.map(|receiver| receiver.pods_with_probes.len()).sum::<usize>()
    };
    assert_eq!(pods_with_probes(), 0);
    sandbox.apply(&tap(true));
    until("the receiver in the cluster gets probes of the pod", Duration::from_secs(20), || match pods_with_probes() {
        1 => Ok(()),
        count => Err(count.to_string()),
    });
    sandbox.condition("web", CONDITION_DELIVERING, "Unknown", "ExternalDestination");
}
