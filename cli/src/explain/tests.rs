use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;
use crate::{
    pods::Surroundings,
    tap::{Kind, Tap},
};

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

fn tap(ready: (&str, &str), delivering: (&str, &str)) -> Tap {
    let condition = |kind: &str, (status, reason): (&str, &str)| {
        let message = if reason == "AsExpected" { "" } else { "n1: no probes arrive" };
        json!({"type": kind, "status": status, "reason": reason, "message": message, "observedGeneration": 1,
               "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    read::<podtap_api::PodTap>(json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "t", "generation": 1, "annotations": {"podtap.dev/requested-by": "alice"},
            "managedFields": [{"manager": "podtap-controller", "fieldsV1": {"f:status": {}}}, {"manager": "kubectl-podtap", "fieldsV1": {"f:spec": {}}}]},
        "spec": {"targets": {"podSelector": {"matchLabels": {"app": "web"}}}, "destinations": [{"node": {"name": "n2"}}]},
        "status": {"vni": 5001, "matchedPods": 1, "tappedPods": 1, "conditions": [condition("Ready", ready), condition("Delivering", delivering)],
            "destinations": [{"name": "main", "node": "n2", "interfaceName": "mirror", "ready": true}]},
    }))
    .into()
}

impl From<podtap_api::PodTap> for Tap {
    fn from(tap: podtap_api::PodTap) -> Self {
        Self::Namespaced(Box::new(tap))
    }
}

fn pod(name: &str, app: &str, host_network: bool) -> Pod {
    read(json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": app}},
        "spec": {"nodeName": "n1", "hostNetwork": host_network, "containers": []},
        "status": {"phase": "Running"},
    }))
}

fn plain(tree: &Tree) -> String {
    anstream::adapter::strip_str(&tree.text()).to_string()
}

const GOOD: (&str, &str) = ("True", "AsExpected");

#[test]
fn what_is_explained() {
    let parse = |text: &str| text.parse::<What>();
    assert_eq!(parse("pod/web-0"), Ok(What::Pod("web-0".to_owned())));
    assert_eq!(parse("node/n1"), Ok(What::Node("n1".to_owned())));
    assert_eq!(parse("web"), Ok(What::Tap(TapName { kind: Kind::PodTap, name: "web".to_owned() })));
    for wrong in ["pod/", "node/a/b", "deploy/web"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_tap_by_node_pod_and_destination() {
    let pods = [pod("web-0", "web", false), pod("web-1", "web", true)];
    let report = tap::Report::of(&tap(GOOD, GOOD), Some(&pods), &Surroundings::default());
    let hint = page_of("HostNetwork");
    assert_eq!(
        plain(&report.tree()),
        format!(
            "PodTap shop/web  VNI 5001  by alice, with kubectl-podtap  1 of 1 pods tapped\n\
             ├─ Ready=True AsExpected\n\
             └─ node n1\n   \
                ├─ pod web-0  tapped\n   \
                │  └─ to main: node n2, interface mirror  ready\n   \
                └─ pod web-1  not tapped HostNetwork: it uses the network of its node, which cannot be tapped\n      \
                   └─ {hint}\n"
        )
    );
}

#[test]
fn the_condition_that_fails_is_shown_once_with_its_page() {
    let failing = ("False", "NoProbeFromNode");
    let report = tap::Report::of(&tap(failing, failing), None, &Surroundings::default());
    let (text, hint) = (plain(&report.tree()), page_of("NoProbeFromNode"));
    assert!(
        text.contains(&format!("├─ Delivering=False NoProbeFromNode: n1: no probes arrive\n│  └─ {hint}\n")),
        "{text}"
    );
    assert!(!text.contains("Ready=") && text.contains("you may not list them"), "{text}");
}

#[test]
fn a_pod_by_tap() {
    let report = pod::Report::of(&pod("api-0", "api", false), &[tap(GOOD, GOOD)], false, &Surroundings::default());
    assert_eq!(
        plain(&report.tree()),
        "pod shop/api-0  on node n1\n\
         ├─ PodTap shop/web (by alice, with kubectl-podtap)  not selected: podSelector is app=web, and there is app=api\n\
         └─ ClusterPodTaps: you may not list them, and they may mirror this pod\n"
    );
    let document = serde_json::to_value(&report).expect("JSON");
    assert_eq!(document["taps"][0]["state"], "notMatched");
    let mirrored = pod::Report::of(&pod("web-0", "web", false), &[tap(GOOD, GOOD)], true, &Surroundings::default());
    assert!(plain(&mirrored.tree()).ends_with("└─ PodTap shop/web (by alice, with kubectl-podtap)  tapped\n"));
}

#[test]
fn a_node_by_tap() {
    let node = read(json!({
        "metadata": {"name": "n1", "generation": 2},
        "spec": {
            "taps": [{"namespace": "shop", "name": "web", "uid": "t", "direction": "Both", "destinations": []}],
            "senders": [{"tap": "t", "pod": {"namespace": "shop", "name": "web-0", "uid": "p"}}],
            "receivers": [{"tap": {"namespace": "", "name": "all", "uid": "c"}, "vni": 7, "port": 14789, "interfaceName": "mirror"}],
        },
        "status": {
            "observedGeneration": 1,
            "senders": [{"tapUid": "t", "podUid": "p", "interface": "eth0", "state": "Failed", "reason": "KernelError", "message": "no memory"}],
            "receivers": [{"tapUid": "c", "vni": 7, "state": "Active", "reason": "AsExpected", "podsWithProbes": ["p"]}],
        },
    }));
    let hint = page_of("KernelError");
    assert_eq!(
        plain(&node::Report::of("n1", &node).tree()),
        format!(
            "node n1\n\
             ├─ ClusterPodTap all\n\
             │  └─ to interface mirror, VNI 7, probes of 1 pod arrive  Active\n\
             ├─ PodTap shop/web\n\
             │  └─ from pod shop/web-0, interface eth0  Failed KernelError: no memory\n\
             │     └─ {hint}\n\
             └─ the node has not applied the latest changes yet\n"
        )
    );
}
