//! What the lab asks of Kubernetes and tells it, through kubectl.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use crate::addresses::{number, pod_subnet};
use crate::{command, state::Lab};

/// Whether the API server says that it is ready.
pub fn is_ready(lab: &Lab, kubeconfig: &Path) -> bool {
    command::run(kubectl(lab, kubeconfig).args(["get", "--raw", "/readyz"])).is_ok()
}

/// The nodes that Kubernetes knows, and whether it believes them ready.
pub fn nodes(lab: &Lab) -> Result<BTreeMap<String, bool>> {
    let answer = command::run(kubectl(lab, &lab.path("kubeconfig")).args(["get", "nodes", "--output=json"]))?;
    Ok(readiness(&serde_json::from_str(&answer)?))
}

/// Whether pods can be created: their default service account comes a moment after the API server.
pub fn has_service_account(lab: &Lab) -> bool {
    command::run(kubectl(lab, &lab.path("kubeconfig")).args(["get", "serviceaccount", "default"])).is_ok()
}

/// Makes a node known before it registers itself: so it has the pod subnet that its bridge has. One that is known from
/// before a power cut is not ready any more, whatever its object still says.
pub fn declare(lab: &Lab, node: &str) -> Result<()> {
    let kubeconfig = lab.path("kubeconfig");
    let object = declaration(node)?;
    let create = command::run_with(kubectl(lab, &kubeconfig).args(["create", "--filename=-"]), &object.to_string());
    match create {
        Err(error) if error.to_string().contains("AlreadyExists") => {}
        result => return result.map(drop),
    }
    let patch = |subresource: &[&str], patch: &Value| {
        let mut kubectl = kubectl(lab, &kubeconfig);
        kubectl.args(["patch", "node", node, "--type=strategic"]).args(subresource).arg(format!("--patch={patch}"));
        command::run(&mut kubectl).map(drop)
    };
    patch(&[], &json!({ "spec": object["spec"] }))?;
    patch(
        &["--subresource=status"],
        &json!({ "status": { "conditions": [{
        "type": "Ready", "status": "Unknown", "reason": "PowerCut", "message": "The lab starts this node",
    }] } }),
    )
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
    items
        .map(|node| {
            let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
            let ready = conditions
                .filter(|condition| condition["type"] == "Ready")
                .any(|condition| condition["status"] == "True");
            (node["metadata"]["name"].as_str().unwrap_or_default().to_owned(), ready)
        })
        .collect()
}

fn kubectl(lab: &Lab, kubeconfig: &Path) -> Command {
    let mut kubectl = Command::new(lab.bin("kubectl"));
    // A proxy that the shell uses for the world outside is not for the loopback device.
    kubectl.env("KUBECONFIG", kubeconfig).env("NO_PROXY", "*").arg("--request-timeout=10s");
    kubectl
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_when_that_condition_is_true() {
        let node = |name: &str, kind: &str, status: &str| json!({ "metadata": { "name": name }, "status": { "conditions": [{ "type": kind, "status": status }] } });
        let list = json!({ "items": [node("n1", "Ready", "True"), node("n2", "Ready", "Unknown"), node("n3", "DiskPressure", "True")] });
        let expected = [("n1", true), ("n2", false), ("n3", false)].map(|(name, ready)| (name.to_owned(), ready));
        assert_eq!(readiness(&list), expected.into());
    }

    #[test]
    fn a_node_is_declared_with_the_subnet_of_its_bridge() {
        let node = declaration("n2").expect("a node");
        assert_eq!(node["spec"]["podCIDR"], crate::node_config::cni(2)["plugins"][0]["ipam"]["ranges"][0][0]["subnet"]);
    }
}
