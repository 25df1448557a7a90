//! Changes of a tap that nothing else notices: other TCP traffic is excluded.

use std::time::Duration;

use kube::ResourceExt as _;
use podtap_api::NodeTap;
use podtap_tests::{cluster::Cluster, wait::until};
use serde_json::{Value, json};

use crate::scene::Scene;

const TIMEOUT: Duration = Duration::from_secs(60);

/// A patch of a tap. It changes nothing for the numbered datagrams.
pub fn exclude(port: u16) -> Value {
    json!({"spec": {"filter": {"exclude": [{"protocol": "TCP", "ports": [{"port": port}]}]}}})
}

/// Changes the excluded port, and waits until n1 has applied it.
#[track_caller]
pub fn apply_change(scene: &Scene, port: u16) {
    until("a change is accepted", TIMEOUT, || {
        scene.sandbox.kubectl(&["patch", "podtap", "web", "--type=merge", "-p", &exclude(port).to_string()], "")
    });
    until("the change is applied", TIMEOUT, || match excluded_on("n1", scene.sandbox.namespace()) {
        Some((now, true)) if now == port => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// The port that a node was told to exclude, and whether it has applied that.
fn excluded_on(node: &str, namespace: &str) -> Option<(u16, bool)> {
    let nodes: Vec<NodeTap> = Cluster::lab().list_all();
    let node = nodes.into_iter().find(|object| object.name_any() == node)?;
    let tap = node.spec.0.taps.iter().find(|tap| tap.namespace == namespace)?;
    let port = tap.options.filter.as_ref()?.exclude.first()?.ports.first()?.port;
    let observed = node.status.as_ref().and_then(|status| status.observed_generation);
    Some((port, observed == node.metadata.generation))
}
