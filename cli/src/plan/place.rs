//! Where the frames of a destination would arrive, and why not.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Resource as _, ResourceExt as _, api::ListParams, core::Selector};
use podtap_api::{Destination, PodDestination, PodTapPolicy, is_excluded};
use podtap_model::Reason;
use serde::Serialize;

use crate::{
    collector,
    connection::Cluster,
    exit::Outcome,
    forward::is_ready,
    installation::component,
    pods::{Cause, Surroundings, if_permitted},
    selector,
};

/// A destination, as far as it is known before the tap exists.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// Name of the destination.
    pub name: String,
    /// What receives the frames, for people.
    pub to: String,
    /// The node that does.
    pub node: Option<String>,
    /// UID of the pod that gets the interface.
    #[serde(skip)]
    pub pod: Option<String>,
    /// Name of the interface, if the spec has one.
    pub interface: Option<String>,
    /// Whether it is outside of the cluster.
    pub is_external: bool,
    /// Addresses to which frames can be sent, the preferred one first.
    pub addresses: Vec<IpAddr>,
    /// Why it cannot receive anything.
    pub refusal: Option<Cause>,
    /// What the user may not read of it.
    #[serde(skip)]
    pub unread: Option<&'static str>,
}

impl Place {
    fn refused(mut self, reason: Reason, message: impl Into<String>) -> Self {
        self.refusal.get_or_insert_with(|| Cause::new(reason, message));
        self
    }

    /// On a node; none if there is no such node.
    fn on_node(mut self, name: &str, node: Option<&Node>) -> Self {
        self.node = Some(name.to_owned());
        let Some(node) = node else {
            return self.refused(Reason::NodeNotFound, format!("there is no node {name}"));
        };
        let status = node.status.as_ref();
        let addresses = status.and_then(|status| status.addresses.as_ref()).into_iter().flatten();
        let internal = addresses.filter(|address| address.type_ == "InternalIP");
        self.addresses = internal.filter_map(|address| address.address.parse().ok()).collect();
        let mut conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        if is_excluded(&node.metadata) {
            self.refused(Reason::Excluded, format!("the node {name} has opted out with {}", podtap_api::EXCLUDE))
        } else if self.addresses.is_empty() {
            self.refused(Reason::NodeWithoutAddress, format!("the node {name} has no address of the type InternalIP"))
        } else if !conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True") {
            self.refused(Reason::NodeNotReady, format!("the node {name} is not ready"))
        } else {
            self
        }
    }

    /// In a pod, whose node has the pod's host addresses.
    fn in_pod(mut self, pod: &Pod) -> Self {
        let name = pod.name_any();
        self.to = format!("pod {}/{name}", pod.namespace().unwrap_or_default());
        self.pod = pod.uid();
        let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
        self.node = spec.and_then(|spec| spec.node_name.clone());
        let hosts = status.and_then(|status| status.host_ips.as_ref()).into_iter().flatten();
        self.addresses = hosts.filter_map(|host| host.ip.parse().ok()).collect();
        if spec.is_some_and(|spec| spec.host_network == Some(true)) {
            self.refused(
                Reason::HostNetwork,
                format!("the pod {name} uses the network of its node: use a node destination"),
            )
        } else if is_excluded(pod.meta()) {
            self.refused(Reason::Excluded, format!("the pod {name} has opted out with {}", podtap_api::EXCLUDE))
        } else if has_ended(pod) {
            self.refused(Reason::PodNotFound, format!("the pod {name} has ended"))
        } else if self.node.is_none() {
            self.refused(Reason::PodNotReady, format!("the pod {name} is on no node yet"))
        } else {
            self
        }
    }

    /// At an address outside of the cluster. `holders` are the pods with this address, which include those on the network of a node.
    fn external(mut self, address: IpAddr, holders: Option<&[Pod]>, around: &Surroundings) -> Self {
        (self.is_external, self.addresses) = (true, vec![address]);
        if address.is_loopback() || holders.is_some_and(|pods| !pods.is_empty()) {
            return self.refused(
                Reason::ClusterAddress,
                format!("{address} is an address of a node or a pod of the cluster: use a node or pod destination"),
            );
        }
        match &around.policy {
            _ if !around.is_policy_known => self.unread = Some("the PodTapPolicy, which must allow external addresses"),
            None => {
                return self.refused(
                    Reason::PolicyNotFound,
                    "external destinations need a PodTapPolicy, and there is none: ask the cluster's administrator",
                );
            }
            Some(policy) if !is_allowed(policy, address) => {
                return self.refused(
                    Reason::NotAllowedByPolicy,
                    format!("{address} is in none of allowedExternalCIDRs of the PodTapPolicy"),
                );
            }
            Some(_) if holders.is_none() => {
                self.unread = Some("the pods of all namespaces, whose addresses are refused");
            }
            Some(_) => {}
        }
        self
    }
}

fn is_allowed(policy: &PodTapPolicy, address: IpAddr) -> bool {
    policy.spec.allowed_external_cidrs.iter().any(|network| network.contains(&address))
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Of pods that match a selector, the one that would get the interface: the oldest ready one.
fn oldest_ready(pods: &[Pod]) -> Option<&Pod> {
    let is_usable = |pod: &&Pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none() && !is_excluded(pod.meta());
    pods.iter().filter(is_usable).min_by_key(|pod| (pod.creation_timestamp(), pod.name_any()))
}

/// Reads what a destination of a tap of this namespace is.
pub async fn find(
    cluster: &Cluster,
    namespace: Option<&str>,
    destination: &Destination,
    around: &Surroundings,
) -> Outcome<Place> {
    let place = Place { name: destination.name.clone(), ..Place::default() };
    if let Some(node) = &destination.node {
        let interface = node.interface_name.as_ref().map(ToString::to_string);
        let place = Place { to: format!("node {}", node.name), interface, ..place };
        let read = if_permitted(Api::<Node>::all(cluster.client.clone()).get_opt(&node.name).await)?;
        return Ok(match read {
            Some(read) => place.on_node(&node.name, read.as_ref()),
            None => Place { node: Some(node.name.clone()), unread: Some("nodes, which tell their addresses"), ..place },
        });
    }
    if let Some(pod) = &destination.pod {
        let interface = pod.interface_name.as_ref().map(ToString::to_string);
        let namespace = pod.namespace.as_deref().or(namespace).unwrap_or_default();
        return in_namespace(cluster, namespace, pod, Place { interface, ..place }).await;
    }
    if let Some(external) = &destination.external {
        let address = external.address;
        let to = std::net::SocketAddr::new(address, external.port).to_string();
        let all = Api::<Pod>::all(cluster.client.clone());
        let with_address = ListParams::default().fields(&format!("status.podIP={address}")).limit(1);
        let holders = if_permitted(all.list(&with_address).await)?.map(|list| list.items);
        return Ok(Place { to, ..place }.external(address, holders.as_deref(), around));
    }
    // Which one of several the controller chooses depends on the UID of the tap.
    let all = Api::<Pod>::all(cluster.client.clone());
    let collectors = if_permitted(all.list(&component(collector::COMPONENT)).await)?;
    Ok(of_collectors(place, collectors.map(|list| list.items).as_deref()))
}

async fn in_namespace(
    cluster: &Cluster,
    namespace: &str,
    destination: &PodDestination,
    place: Place,
) -> Outcome<Place> {
    const UNREAD: &str = "the pods that are destinations";
    let api = Api::<Pod>::namespaced(cluster.client.clone(), namespace);
    if let Some(name) = &destination.name {
        let place = Place { to: format!("pod {namespace}/{name}"), ..place };
        return Ok(match if_permitted(api.get_opt(name).await)? {
            Some(Some(pod)) => place.in_pod(&pod),
            Some(None) => place.refused(Reason::PodNotFound, format!("the namespace {namespace} has no pod {name}")),
            None => Place { unread: Some(UNREAD), ..place },
        });
    }
    let labels = destination.pod_selector.clone().unwrap_or_default().selector;
    let shown = selector::text(&labels);
    let place = Place { to: format!("a pod of {namespace} ({shown})"), ..place };
    let mut parameters = ListParams::default();
    if let Ok(selector) = Selector::try_from(labels) {
        parameters = parameters.labels_from(&selector);
    }
    Ok(match if_permitted(api.list(&parameters).await)? {
        None => Place { unread: Some(UNREAD), ..place },
        Some(pods) => match oldest_ready(&pods.items) {
            Some(pod) => place.in_pod(pod),
            None => place.refused(Reason::PodNotReady, format!("no pod of {namespace} ({shown}) is ready")),
        },
    })
}

fn of_collectors(place: Place, pods: Option<&[Pod]>) -> Place {
    let place = Place { to: "the collector".to_owned(), ..place };
    let Some(pods) = pods else { return Place { unread: Some("the pods of the collector"), ..place } };
    let ready: Vec<&Pod> = pods.iter().filter(|pod| is_ready(pod)).collect();
    match &ready[..] {
        [] => place.refused(Reason::PodNotReady, "no pod of the collector is ready"),
        [pod] => Place { to: "the collector".to_owned(), ..place.in_pod(pod) },
        [pod, ..] => Place { node: None, pod: None, to: "a collector".to_owned(), ..place.in_pod(pod) },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn reason(place: &Place) -> &str {
        place.refusal.as_ref().map_or("", |cause| cause.reason.as_str())
    }

    fn pod(name: &str, created: &str, changes: &Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name, "creationTimestamp": created},
            "spec": {"nodeName": "n3", "containers": []},
            "status": {"phase": "Running", "hostIPs": [{"ip": "192.0.2.3"}, {"ip": "2001:db8::3"}],
                "conditions": [{"type": "Ready", "status": "True"}]},
        });
        for (pointer, value) in changes.as_object().into_iter().flatten() {
            let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
            pod.pointer_mut(parent).expect("a parent")[name] = value.clone();
        }
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn nodes_that_can_receive() {
        let node = |addresses: Value, ready: &str, annotations: Value| -> Node {
            let status = json!({"addresses": addresses, "conditions": [{"type": "Ready", "status": ready}]});
            serde_json::from_value(json!({"metadata": {"name": "n2", "annotations": annotations}, "status": status}))
                .expect("a node")
        };
        let both = json!([{"type": "Hostname", "address": "n2"}, {"type": "InternalIP", "address": "192.0.2.2"}]);
        let place = |node: Option<Node>| Place::default().on_node("n2", node.as_ref());
        let good = place(Some(node(both.clone(), "True", json!({}))));
        assert_eq!((reason(&good), good.addresses.len()), ("", 1));
        assert_eq!(reason(&place(None)), "NodeNotFound");
        assert_eq!(reason(&place(Some(node(both.clone(), "Unknown", json!({}))))), "NodeNotReady");
        assert_eq!(reason(&place(Some(node(json!([]), "True", json!({}))))), "NodeWithoutAddress");
        assert_eq!(reason(&place(Some(node(both, "True", json!({"podtap.dev/exclude": ""}))))), "Excluded");
    }

    #[test]
    fn pods_that_can_receive() {
        let place = |changes: Value| Place::default().in_pod(&pod("ids-0", "2026-01-01T00:00:00Z", &changes));
        let good = place(json!({}));
        assert_eq!((reason(&good), good.to.as_str(), good.node.as_deref()), ("", "pod shop/ids-0", Some("n3")));
        assert_eq!(good.addresses.len(), 2);
        for (changes, expected) in [
            (json!({"/spec/hostNetwork": true}), "HostNetwork"),
            (json!({"/metadata/labels": {"podtap.dev/exclude": "true"}}), "Excluded"),
            (json!({"/status/phase": "Failed"}), "PodNotFound"),
            (json!({"/spec/nodeName": null}), "PodNotReady"),
        ] {
            assert_eq!(reason(&place(changes)), expected);
        }
        let unready = json!({"/status/conditions": []});
        let all = [
            pod("unready", "2025-01-01T00:00:00Z", &unready),
            pod("young", "2026-02-01T00:00:00Z", &json!({})),
            pod("old", "2026-01-01T00:00:00Z", &json!({})),
        ];
        assert_eq!(oldest_ready(&all).map(kube::ResourceExt::name_any).as_deref(), Some("old"));
        assert_eq!(reason(&of_collectors(Place::default(), Some(&all[..1]))), "PodNotReady");
        let several = of_collectors(Place::default(), Some(&all));
        assert_eq!((several.node, several.to.as_str(), several.addresses.len()), (None, "a collector", 2));
    }

    #[test]
    fn external_addresses_that_are_allowed() {
        let address: IpAddr = "192.0.2.10".parse().expect("an address");
        let around = |cidr: Option<&str>, is_policy_known| {
            let policy =
                cidr.map(|cidr| json!({"metadata": {"name": "default"}, "spec": {"allowedExternalCIDRs": [cidr]}}));
            let policy = policy.map(|policy| serde_json::from_value(policy).expect("a policy"));
            Surroundings { policy, is_policy_known, ..Surroundings::default() }
        };
        let place =
            |around: &Surroundings, holders: Option<&[Pod]>| Place::default().external(address, holders, around);
        let allowed = around(Some("192.0.2.0/24"), true);
        assert_eq!((reason(&place(&allowed, Some(&[]))), place(&allowed, Some(&[])).unread), ("", None));
        assert!(place(&allowed, None).unread.is_some());
        assert_eq!(reason(&place(&around(Some("198.51.100.0/24"), true), Some(&[]))), "NotAllowedByPolicy");
        assert_eq!(reason(&place(&around(None, true), Some(&[]))), "PolicyNotFound");
        assert!(place(&around(None, false), Some(&[])).unread.is_some());
        let holder = [pod("web-0", "2026-01-01T00:00:00Z", &json!({}))];
        assert_eq!(reason(&place(&allowed, Some(&holder))), "ClusterAddress");
    }
}
