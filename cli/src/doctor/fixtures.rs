//! An installation without faults, for tests.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    rights::of_verbs,
    snapshot::{Cni, Snapshot},
};
use crate::{access::Answer, tap::Tap};

/// The UIDs of the tap and of the pod that it taps.
const TAP: &str = "5f0c6f1e-0000-4000-8000-000000000001";
const POD: &str = "5f0c6f1e-0000-4000-8000-000000000002";

/// An object of the API.
pub fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object of this kind")
}

/// A policy with the defaults.
pub fn policy() -> podtap_api::PodTapPolicy {
    object(json!({"metadata": {"name": "default"}, "spec": {}}))
}

fn pod(name: &str, component: &str, node: &str, image: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "podtap-system", "labels": {"app.kubernetes.io/component": component}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": image}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn node(name: &str, address: &str) -> Value {
    let info = json!({
        "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "6.1.0-13-amd64",
        "kubeProxyVersion": "", "kubeletVersion": "v1.35.4", "machineID": "", "operatingSystem": "linux", "osImage": "",
        "systemUUID": "",
    });
    json!({
        "metadata": {"name": name},
        "status": {
            "nodeInfo": info, "conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": address}],
        },
    })
}

/// The tap `shop/web`, with the condition Ready and another one of the same status.
pub fn tap(status: &str, other: &str, reason: &str, message: &str) -> Tap {
    let condition = |kind: &str| {
        json!({"type": kind, "status": status, "reason": reason, "message": message, "observedGeneration": 1,
               "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    Tap::Namespaced(object(json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": TAP, "generation": 1},
        "spec": {"targets": {"podSelector": {}}, "destinations": [{"node": {"name": "n2"}}]},
        "status": {"conditions": [condition("Ready"), condition(other)]},
    })))
}

/// Two nodes: n1 sends what a pod of the tap `shop/web` has, and n2 receives it.
pub fn healthy() -> Snapshot {
    let image = "podtap.dev/podtap:0.1.0";
    let controller = json!({
        "metadata": {"name": "podtap-controller", "labels": {"app.kubernetes.io/version": env!("CARGO_PKG_VERSION")}},
        "spec": {"replicas": 1, "selector": {}, "template": {"spec": {"containers": [{"name": "main", "image": image}]}}},
        "status": {"readyReplicas": 1},
    });
    let status = json!({"tapUid": TAP, "state": "Active", "reason": "AsExpected"});
    let with = |more: Value| {
        let mut entry = status.clone();
        entry.as_object_mut().expect("it is one").extend(more.as_object().expect("it is one").clone());
        entry
    };
    let node_tap = |name: &str, status: Value| {
        object(json!({"metadata": {"name": name, "generation": 1}, "spec": {}, "status": status}))
    };
    let sender = with(json!({"podUid": POD}));
    let receiver = with(json!({"vni": 5001, "podsWithProbes": [POD]}));
    let lease = json!({"metadata": {"name": "podtap-controller"}, "spec": {"holderIdentity": "podtap-controller-a"}});
    let labels = json!({"pod-security.kubernetes.io/enforce": "privileged"});
    let nodes = [("n1", "10.0.0.1"), ("n2", "10.0.0.2")].map(|(name, address)| object(node(name, address))).to_vec();
    Snapshot {
        home: "podtap-system".to_owned(),
        namespace: Ok(Some(object(json!({"metadata": {"name": "podtap-system", "labels": labels}})))),
        kubernetes: "1.35".to_owned(),
        served: ["v1alpha1".to_owned()].into(),
        missing_kinds: Vec::new(),
        definitions: Ok(Vec::new()),
        rights: of_verbs("shop", "podtap-system").into_iter().map(|right| Answer { right, allowed: true }).collect(),
        controller: Ok(Some(object(controller))),
        pods: Ok(vec![
            object(pod("podtap-controller-a", "controller", "n1", image)),
            object(pod("podtap-helper-n1-a", "helper", "n1", image)),
            object(pod("podtap-helper-n2-a", "helper", "n2", image)),
        ]),
        lease: Ok(Some(object(lease))),
        policy: Ok(None),
        nodes: Ok(nodes.clone()),
        all_nodes: nodes,
        node_taps: Ok(vec![
            node_tap("n1", json!({"observedGeneration": 1, "senders": [sender], "features": {"ebpf": true}})),
            node_tap("n2", json!({"observedGeneration": 1, "receivers": [receiver], "features": {"ebpf": true}})),
        ]),
        taps: Ok(vec![tap("True", "Delivering", "AsExpected", "")]),
        receiving: Some(["n2".to_owned()].into()),
        undecodable: Vec::new(),
        cni: Cni::default(),
    }
}
