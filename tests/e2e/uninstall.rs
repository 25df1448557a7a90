//! What is left after uninstalling, in the API server and in the kernels of the nodes. Each test ends with an installation.

use std::{path::PathBuf, time::Duration};

use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use podtap_tests::{
    cluster::{Cluster, PODTAP_NAMESPACE, Sandbox, namespace_of_node, traces},
    wait::until,
};

use crate::{
    orphans::{WithoutController, delete_helper_pods},
    scene::set_values,
};

const TIMEOUT: Duration = Duration::from_secs(90);

/// A tap from a pod on n1 to n2, and the namespaces where it leaves traces.
struct Tapped {
    sandbox: Sandbox,
    networks: [PathBuf; 3],
}

impl Tapped {
    fn new(test: &str, interface: &str) -> Self {
        let sandbox = Sandbox::alone(test);
        let web = sandbox.pod("web", "n1", "web");
        sandbox.apply(&format!(
            "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: web}}\nspec:\n  \
             targets: {{podNames: [web]}}\n  destinations: [{{node: {{name: n2, interfaceName: {interface}}}}}]\n"
        ));
        sandbox.ready("web");
        let lab = sandbox.lab();
        let networks = [sandbox.network(&web), namespace_of_node(lab, "n1"), namespace_of_node(lab, "n2")];
        let tapped = Self { sandbox, networks };
        assert_ne!(tapped.traces(), [""; 0], "this check sees the tap");
        tapped
    }

    fn traces(&self) -> Vec<String> {
        self.networks.iter().flat_map(|network| traces(network)).collect()
    }
}

fn kubectl(arguments: &[&str]) -> String {
    Cluster::lab().kubectl(arguments, "").unwrap_or_else(|message| panic!("{arguments:?}: {message}"))
}

fn helm(arguments: &[&str]) {
    Cluster::lab().helm(arguments).expect("helm works");
}

/// As `make install` does.
fn install() {
    let lab = Cluster::lab();
    kubectl(&["apply", "-f", lab.top().join("deploy/namespace.yaml").to_str().expect("UTF-8")]);
    let values = format!("image.pullPolicy=Never,image.tag={}", Cluster::image_tag(lab.top()));
    let chart = lab.top().join("deploy/chart/podtap");
    helm(&["install", "podtap", chart.to_str().expect("UTF-8"), "--set", &values, "--wait", "--timeout", "120s"]);
}

fn no_cluster_scoped_object_is_left() {
    for kinds in [
        "customresourcedefinitions",
        "clusterroles",
        "clusterrolebindings",
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
    ] {
        // The garbage collector deletes what belongs to the agents.
        until(&format!("there are no {kinds} of PodTap"), TIMEOUT, || {
            let all = kubectl(&["get", kinds, "-o", "name"]);
            if all.contains("podtap") { Err(all) } else { Ok(()) }
        });
    }
}

/// Not even of an active tap, nor in the pods that it taps.
#[test]
fn uninstalling_leaves_nothing() {
    let _alone = Cluster::alone();
    let tapped = Tapped::new("uninstall", "uni-helm");
    helm(&["uninstall", "podtap", "--wait", "--timeout", "120s"]);
    assert_eq!(tapped.traces(), [""; 0], "in the kernel");
    no_cluster_scoped_object_is_left();
    install();
}

/// What belongs to them would outlive PodTap, and the next installation would take them for its own.
#[test]
fn uninstalling_with_kept_definitions_leaves_no_node_tap() {
    let _alone = Cluster::alone();
    let chart = Cluster::lab().top().join("deploy/chart/podtap");
    let chart = chart.to_str().expect("UTF-8");
    helm(&["upgrade", "podtap", chart, "--reuse-values", "--set", "crds.keep=true", "--wait", "--timeout", "120s"]);
    let tapped = Tapped::new("kept", "uni-kept");
    helm(&["uninstall", "podtap", "--wait", "--timeout", "120s"]);
    assert_eq!(kubectl(&["get", "nodetaps", "-o", "name"]), "");
    assert_eq!(tapped.traces(), [""; 0], "in the kernel");
    until("no role of an agent is left", TIMEOUT, || {
        let all = kubectl(&["get", "clusterroles,clusterrolebindings", "-o", "name"]);
        if all.contains("podtap") { Err(all) } else { Ok(()) }
    });
    install();
}

#[test]
fn deleting_the_manifest_ends_taps_first_and_leaves_nothing() {
    let _alone = Cluster::alone();
    let lab = Cluster::lab();
    // The manifest does not have what an earlier test may have left.
    set_values(lab, "collector.enabled=false").expect("helm works");
    let tapped = Tapped::new("manifest", "uni-plain");
    let manifest = lab.top().join("deploy/install.yaml");
    let manifest = manifest.to_str().expect("UTF-8");
    let delete = ["delete", "-f", manifest, "--ignore-not-found", "--timeout=120s"];
    // Without a controller, no node becomes clean between the two.
    let without = WithoutController::new();
    for attempt in ["the first", "the second"] {
        let refusal = lab.kubectl(&delete, "").expect_err(attempt);
        for words in [
            "PodTap has mirrors on the node",
            "kubectl delete podtap --all --all-namespaces; kubectl delete clusterpodtap --all",
        ] {
            assert!(refusal.contains(words), "{attempt}: {refusal}");
        }
        assert!(lab.get::<Deployment>(PODTAP_NAMESPACE, "podtap-controller").is_some(), "it is needed to end the tap");
    }

    // Deleting its definition has deleted the tap. A controller that starts now ends it.
    drop(without);
    kubectl(&["wait", "--for=delete", "crd/podtaps.podtap.dev", "--timeout=60s"]);
    assert_eq!(tapped.traces(), [""; 0], "in the kernel");

    kubectl(&delete);
    no_cluster_scoped_object_is_left();
    let namespaces = kubectl(&["get", "namespaces", "-o", "name"]);
    assert!(!namespaces.contains(PODTAP_NAMESPACE), "{namespaces}");
    assert_eq!(tapped.traces(), [""; 0], "in the kernel");
    install();
}

#[test]
fn the_namespace_is_not_deleted_while_a_node_mirrors() {
    let _alone = Cluster::alone();
    let tapped = Tapped::new("guard", "uni-guard");
    for object in [
        "namespace/podtap-system",
        "crd/nodetaps.podtap.dev",
        "crd/podtappolicies.podtap.dev",
        "clusterrolebinding/podtap-controller",
        "clusterrole/podtap-controller",
    ] {
        let refusal = Cluster::lab().kubectl(&["delete", object, "--wait=false"], "").expect_err(object);
        assert!(refusal.contains("PodTap has mirrors on the node"), "{object}: {refusal}");
    }
    // These requests have no name of an object.
    for collection in [
        "/api/v1/namespaces/podtap-system/serviceaccounts",
        "/apis/apps/v1/namespaces/podtap-system/deployments",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    ] {
        let path = format!("{collection}?fieldSelector=metadata.name=podtap-controller");
        let refusal = Cluster::lab().kubectl(&["delete", "--raw", &path], "").expect_err(collection);
        assert!(refusal.contains("PodTap has mirrors on the node"), "{collection}: {refusal}");
    }
    tapped.sandbox.ready("web");
}

/// The earlier one went without its hook, and with the objects that knew of the tap.
#[test]
fn a_new_installation_removes_what_an_earlier_one_has_left_behind() {
    let _alone = Cluster::alone();
    let tapped = Tapped::new("leftovers", "uni-left");
    let without = WithoutController::new();
    delete_helper_pods();
    kubectl(&["delete", "validatingadmissionpolicybinding", "podtap-uninstall"]);
    // The API server learns of it a moment later.
    until("nothing is protected", TIMEOUT, || {
        Cluster::lab().kubectl(&["delete", "clusterrole", "podtap-controller", "--dry-run=server"], "")
    });
    let no_finalizers = r#"{"metadata":{"finalizers":null}}"#;
    tapped.sandbox.kubectl(&["patch", "podtap", "web", "--type=merge", "-p", no_finalizers], "").expect("a patch");
    tapped.sandbox.kubectl(&["delete", "podtap", "web"], "").expect("nothing holds it");
    helm(&["uninstall", "podtap", "--no-hooks", "--wait", "--timeout", "120s"]);
    without.forget();
    assert_ne!(tapped.traces(), [""; 0], "nothing has cleaned up");

    install();
    until("the nodes are clean", TIMEOUT, || {
        let left = tapped.traces();
        if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
    });
    until("all nodes are swept", TIMEOUT, || {
        let record: ConfigMap = Cluster::lab().get(PODTAP_NAMESPACE, "podtap-sweep").ok_or("no record")?;
        let nodes = record.data.unwrap_or_default().remove("nodes").unwrap_or_default();
        if nodes.is_empty() { Ok(()) } else { Err(nodes) }
    });
}
