//! Which of the rights that a tap takes the user lacks.

use std::collections::BTreeSet;

use futures_util::future::try_join_all;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, api::PostParams};

use super::report::{By, Denial};
use crate::{connection::Cluster, exit::Outcome, pods::Cause, tap::Tap};

/// A right.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Right {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: Option<&'static str>,
    /// None: in all of them.
    namespace: Option<String>,
}

/// The rights that creating or changing a tap takes: server-side apply is a patch, also of what does not exist yet, and the policies for
/// admission of `deploy/chart` ask for `tap` on pods, and for `create` on `pods/packetsocket` where a pod is handed a packet socket.
fn needed(tap: &Tap, exists: bool) -> Vec<Right> {
    let namespace = tap.namespace().map(str::to_owned);
    let of_taps = |verb| {
        let resource = match tap {
            Tap::Namespaced(_) => "podtaps",
            Tap::Cluster(_) => "clusterpodtaps",
        };
        Right { verb, group: podtap_api::GROUP, resource, subresource: None, namespace: namespace.clone() }
    };
    let of_pods = |verb, subresource, namespace| Right { verb, group: "", resource: "pods", subresource, namespace };
    let create = (!exists).then(|| of_taps("create"));
    let tapped = of_pods("tap", None, namespace.clone());
    let pods = tap.mirror().destinations.iter().filter_map(|destination| destination.pod.as_ref());
    let namespaces: BTreeSet<Option<String>> =
        pods.filter(|pod| pod.packet_socket).map(|pod| pod.namespace.clone().or_else(|| namespace.clone())).collect();
    let sockets = namespaces.into_iter().map(|namespace| of_pods("create", Some("packetsocket"), namespace));
    create.into_iter().chain([of_taps("patch"), tapped]).chain(sockets).collect()
}

/// Asks the API server.
pub async fn missing(cluster: &Cluster, tap: &Tap, exists: bool) -> Outcome<Vec<Denial>> {
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let reviews = needed(tap, exists).into_iter().map(|right| {
        let api = &api;
        async move {
            let answer = api.create(&PostParams::default(), &right.review()).await?;
            Outcome::Ok((!answer.status.is_some_and(|status| status.allowed)).then(|| right.denial()))
        }
    });
    Ok(try_join_all(reviews).await?.into_iter().flatten().collect())
}

impl Right {
    fn review(&self) -> SelfSubjectAccessReview {
        let attributes = ResourceAttributes {
            verb: Some(self.verb.to_owned()),
            group: Some(self.group.to_owned()),
            resource: Some(self.resource.to_owned()),
            subresource: self.subresource.map(str::to_owned),
            namespace: self.namespace.clone(),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        };
        SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() }
    }

    fn denial(&self) -> Denial {
        let Self { verb, group, resource, subresource, namespace } = self;
        let subresource = subresource.map(|name| format!("/{name}")).unwrap_or_default();
        let group = if group.is_empty() { String::new() } else { format!(".{group}") };
        let scope =
            namespace.as_ref().map_or("all namespaces".to_owned(), |namespace| format!("the namespace {namespace}"));
        let message = format!("you may not {verb} {resource}{subresource}{group} in {scope}");
        Denial { by: By::Rbac, cause: Cause { reason: String::new(), message } }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn denials(tap: &Tap, exists: bool) -> Vec<String> {
        needed(tap, exists).iter().map(|right| right.denial().cause.message).collect()
    }

    #[test]
    fn what_a_tap_takes() {
        let destinations =
            json!([{"name": "a", "pod": {"name": "x", "packetSocket": true}}, {"name": "b", "node": {"name": "n2"}}]);
        let spec = |targets: Value, destinations: &Value| json!({"metadata": {"name": "t", "namespace": "shop"}, "spec": {"targets": targets, "destinations": destinations}});
        let tap = serde_json::from_value(spec(json!({"podSelector": {}}), &destinations)).expect("a tap");
        assert_eq!(
            denials(&Tap::Namespaced(Box::new(tap)), false),
            [
                "you may not create podtaps.podtap.dev in the namespace shop",
                "you may not patch podtaps.podtap.dev in the namespace shop",
                "you may not tap pods in the namespace shop",
                "you may not create pods/packetsocket in the namespace shop",
            ]
        );
        let destinations = json!([{"name": "a", "pod": {"name": "x", "namespace": "ids", "packetSocket": true}}]);
        let mut tap = spec(json!({"namespaceSelector": {}}), &destinations);
        tap["metadata"] = json!({"name": "t"});
        let tap = serde_json::from_value(tap).expect("a tap");
        assert_eq!(
            denials(&Tap::Cluster(Box::new(tap)), true),
            [
                "you may not patch clusterpodtaps.podtap.dev in all namespaces",
                "you may not tap pods in all namespaces",
                "you may not create pods/packetsocket in the namespace ids",
            ]
        );
    }
}
