//! Which of the rights that a tap takes the user lacks.

use std::collections::BTreeSet;

use super::report::{By, Denial};
use crate::{
    access::{Right, ask},
    connection::Cluster,
    exit::Outcome,
    pods::Cause,
    tap::Tap,
};

/// The rights that creating or changing a tap takes: server-side apply is a patch, also of what does not exist yet, and the policies for
/// admission of `deploy/chart` ask for `tap` on pods, and for `create` on `pods/packetsocket` where a pod is handed a packet socket.
fn needed(tap: &Tap, exists: bool) -> Vec<Right> {
    let namespace = tap.namespace().map(str::to_owned);
    let resource = match tap {
        Tap::Namespaced(_) => "podtaps",
        Tap::Cluster(_) => "clusterpodtaps",
    };
    let right = |verb, group, resource, namespace| Right { verb, group, resource, namespace, purpose: "the tap" };
    let of_taps = |verb| right(verb, podtap_api::GROUP, resource, namespace.clone());
    let create = (!exists).then(|| of_taps("create"));
    let tapped = right("tap", "", "pods", namespace.clone());
    let pods = tap.mirror().destinations.iter().filter_map(|destination| destination.pod.as_ref());
    let namespaces: BTreeSet<Option<String>> =
        pods.filter(|pod| pod.packet_socket).map(|pod| pod.namespace.clone().or_else(|| namespace.clone())).collect();
    let sockets = namespaces.into_iter().map(|namespace| right("create", "", "pods/packetsocket", namespace));
    create.into_iter().chain([of_taps("patch"), tapped]).chain(sockets).collect()
}

/// Asks the API server.
pub async fn missing(cluster: &Cluster, tap: &Tap, exists: bool) -> Outcome<Vec<Denial>> {
    let answers = ask(cluster, needed(tap, exists)).await?;
    Ok(answers.iter().filter(|answer| !answer.allowed).map(|answer| denial(&answer.right)).collect())
}

fn denial(right: &Right) -> Denial {
    let place = if right.namespace.is_some() { right.place() } else { " in all namespaces".to_owned() };
    Denial { by: By::Rbac, cause: Cause { reason: String::new(), message: format!("you may not {right}{place}") } }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn denials(tap: &Tap, exists: bool) -> Vec<String> {
        needed(tap, exists).iter().map(|right| denial(right).cause.message).collect()
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
