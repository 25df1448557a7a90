//! Deleting a tap leaves nothing behind, anywhere.

use podtap_tests::cluster::{Cluster, Sandbox, namespace_of_node, traces};

#[test]
fn nothing_is_left_when_kubectl_delete_returns() {
    // Alone, because a tap of another test on the same nodes would be taken for a trace.
    let _alone = Cluster::alone();
    let sandbox = Sandbox::alone("delete");
    let pods = [sandbox.pod("one", "n1", "web"), sandbox.pod("two", "n2", "web")];
    let ids = sandbox.pod("ids", "n2", "ids");
    let mut networks: Vec<_> = pods.iter().chain([&ids]).map(|pod| sandbox.network(pod)).collect();
    networks.extend(["n1", "n2"].map(|node| namespace_of_node(sandbox.lab(), node)));
    let found = || networks.iter().flat_map(|network| traces(network)).collect::<Vec<_>>();
    assert_eq!(found(), [""; 0], "before the first tap");
    for round in 0..20 {
        sandbox.apply(
            "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {name: web}\nspec:\n  \
             targets: {podSelector: {matchLabels: {app: web}}}\n  destinations:\n  \
             - node: {name: n1, interfaceName: del-node}\n  - name: ids\n    pod: {name: ids, interfaceName: del-pod}\n",
        );
        sandbox.ready("web");
        // Two sender devices, two receiver devices, clsact on two pods' interfaces and on four devices of ours.
        let present = found();
        assert!(present.len() >= 6, "round {round}: this check sees the tap: {present:?}");
        sandbox.kubectl(&["delete", "podtap", "web"], "").expect("a tap can be deleted");
        assert_eq!(found(), [""; 0], "round {round}");
    }
}
