//! The lab's requests to Kubernetes, through kubectl.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use crate::addresses::{number, pod_subnet};
use crate::{command, state::Lab};

/// Whether the API server is ready.
pub fn is_ready(lab: &Lab, kubeconfig: &Path) -> bool {
    command::run(kubectl(lab, kubeconfig).args(["get", "--raw", "/readyz"])).is_ok()
}

/// The nodes in Kubernetes, and whether pods can run on them.
pub fn nodes(lab: &Lab) -> Result<BTreeMap<String, bool>> {
    let answer = command::run(kubectl(lab, &lab.path("kubeconfig")).args(["get", "nodes", "--output=json"]))?;
    Ok(readiness(&serde_json::from_str(&answer)?))
}

/// Creates or changes what a file describes.
pub fn apply(lab: &Lab, manifest: &Path) -> Result<()> {
    let mut kubectl = kubectl(lab, &lab.path("kubeconfig"));
    command::run(kubectl.args(["apply", "--filename"]).arg(manifest)).map(drop)
}

/// Whether pods can be created: their default service account is created shortly after the API server is ready.
pub fn has_service_account(lab: &Lab) -> bool {
    command::run(kubectl(lab, &lab.path("kubeconfig")).args(["get", "serviceaccount", "default"])).is_ok()
}

/// Creates a node before it registers itself, so that it has the pod subnet that its bridge has. Returns true if it existed already; then
/// it gets the subnet if it had none.
pub fn declare(lab: &Lab, node: &str) -> Result<bool> {
    let object = declaration(node)?;
    let mut create = kubectl(lab, &lab.path("kubeconfig"));
    match command::run_with(create.args(["create", "--filename=-"]), &object.to_string()) {
        Err(error) if error.to_string().contains("AlreadyExists") => {}
        result => return result.map(|_| false),
    }
    patch(lab, node, &[], &json!({ "spec": object["spec"] })).map(|()| true)
}

/// Marks a node that is about to be started as not ready, whatever its last status is.
pub fn distrust(lab: &Lab, node: &str) -> Result<()> {
    let condition =
        json!({ "type": "Ready", "status": "Unknown", "reason": "PowerCut", "message": "The lab starts this node" });
    patch(lab, node, &["--subresource=status"], &json!({ "status": { "conditions": [condition] } }))
}

fn patch(lab: &Lab, node: &str, options: &[&str], patch: &Value) -> Result<()> {
    let mut kubectl = kubectl(lab, &lab.path("kubeconfig"));
    kubectl.args(["patch", "node", node, "--type=strategic"]).args(options).arg(format!("--patch={patch}"));
    command::run(&mut kubectl).map(drop)
}

fn declaration(node: &str) -> Result<Value> {
    let subnet = pod_subnet(number(node)?);
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": node, "labels": { "kubernetes.io/hostname": node, "kubernetes.io/os": "linux" } },
        "spec": { "podCIDR": subnet, "podCIDRs": [subnet] },
    }))
}

fn readiness(list: &Value) -> BTreeMap<String, bool> {
    let items = list["items"].as_array().into_iter().flatten();
    items.map(|node| (node["metadata"]["name"].as_str().unwrap_or_default().to_owned(), is_usable(node))).collect()
}

/// Ready, and without the taint from when it was not.
fn is_usable(node: &Value) -> bool {
    let list = |value: &'static str, of: &'static str| node[value][of].as_array().into_iter().flatten();
    let ready =
        list("status", "conditions").any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    let late = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
    let tainted = list("spec", "taints").any(|taint| late.iter().any(|key| taint["key"] == *key));
    ready && !tainted
}

fn kubectl(lab: &Lab, kubeconfig: &Path) -> Command {
    let mut kubectl = Command::new(lab.bin("kubectl"));
    // The shell's HTTP proxy is not for the loopback device.
    kubectl.env("KUBECONFIG", kubeconfig).env("NO_PROXY", "*").arg("--request-timeout=10s");
    kubectl
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_usable_when_it_is_ready_and_not_tainted_for_having_been_late() {
        let node = |kind: &str, status: &str, taint: &str| json!({ "status": { "conditions": [{ "type": kind, "status": status }] }, "spec": { "taints": [{ "key": taint }] } });
        assert!(is_usable(&node("Ready", "True", "node.kubernetes.io/unschedulable")));
        assert!(!is_usable(&node("Ready", "True", "node.kubernetes.io/unreachable")));
        assert!(!is_usable(&node("Ready", "Unknown", "x")));
        assert!(!is_usable(&node("DiskPressure", "True", "x")));
        assert!(!is_usable(&json!({ "metadata": { "name": "n1" } })));
    }

    #[test]
    fn a_node_is_declared_with_the_subnet_of_its_bridge() {
        let node = declaration("n2").expect("a node");
        assert_eq!(node["spec"]["podCIDR"], crate::node_config::cni(2)["plugins"][0]["ipam"]["ranges"][0][0]["subnet"]);
    }
}
