//! What an administrator finds after installing.

use std::path::Path;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Namespace};
use podtap_tests::cluster::{Cluster, PODTAP_NAMESPACE, Sandbox};

#[test]
fn the_rendered_manifest_is_current() {
    let lab = Cluster::lab();
    let rendered = std::process::Command::new(lab.top().join("deploy/render.sh"))
        .env("HELM", lab.top().join("target/lab/bin/helm"))
        .arg("--stdout")
        .output()
        .expect("the script runs");
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    let committed = std::fs::read(lab.top().join("deploy/install.yaml")).expect("deploy/install.yaml exists");
    assert!(
        rendered.stdout == committed,
        "deploy/install.yaml is not what the chart renders: run `make manifests` and commit"
    );
}

/// An upgrade with a chart that renders no definitions would delete them, and every tap with them.
#[test]
fn the_chart_contains_the_definitions_or_is_told_not_to() {
    let lab = Cluster::lab();
    let chart = lab.top().join("deploy/chart/podtap");
    let render = |chart: &Path, settings: &str| {
        let chart = chart.to_str().expect("UTF-8");
        let names = ["template", "podtap", chart, "--namespace", PODTAP_NAMESPACE];
        lab.tool("helm", &[&names[..], &["--kube-version", "1.33.0", "--set", settings]].concat())
    };
    let definitions = |text: &str| text.matches("\nkind: CustomResourceDefinition\n").count();
    let kept = |text: &str| text.matches("\n    helm.sh/resource-policy: keep\n").count();
    let text = render(&chart, "logJSON=false").expect("the chart can be rendered");
    assert_eq!((definitions(&text), kept(&text)), (4, 0));
    let text = render(&chart, "crds.keep=true").expect("the chart can be rendered");
    assert_eq!((definitions(&text), kept(&text)), (4, 4));
    let text = render(&chart, "crds.enabled=false").expect("the chart can be rendered");
    assert_eq!(definitions(&text), 0);

    let copy = std::env::temp_dir().join(format!("podtap-chart-{}", std::process::id()));
    let copied = std::process::Command::new("cp").arg("-r").arg(&chart).arg(&copy).status().expect("cp runs");
    assert!(copied.success());
    std::fs::remove_dir_all(copy.join("definitions")).expect("the chart has definitions");
    let error = render(&copy, "logJSON=false").expect_err("a chart without definitions");
    assert!(error.contains("definitions/*.yaml"), "{error}");
    assert_eq!(render(&copy, "crds.enabled=false").map(|text| definitions(&text)), Ok(0));
    std::fs::remove_dir_all(&copy).expect("a copy can be removed");
}

#[test]
fn the_image_is_small() {
    let size = std::fs::metadata(Cluster::lab().top().join("target/podtap-image.tar")).expect("make image ran").len();
    // Five programs, not compressed.
    assert!(size < 48 << 20, "{size} bytes");
}

#[test]
fn two_replicas_run_and_meet_the_restricted_standard() {
    let lab = Cluster::lab();
    let controller: Deployment = lab.get(PODTAP_NAMESPACE, "podtap-controller").expect("it is installed");
    assert_eq!(controller.status.as_ref().and_then(|s| s.ready_replicas), Some(2));
    // The API server itself checks: a namespace that enforces `restricted` accepts the controller's pods.
    let sandbox = Sandbox::new("restricted");
    sandbox
        .kubectl(&["label", "namespace", sandbox.namespace(), "pod-security.kubernetes.io/enforce=restricted"], "")
        .expect("a namespace can be labelled");
    let template = controller.spec.as_ref().and_then(|s| s.template.spec.clone()).expect("a deployment has a template");
    let pod =
        serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "controller"}, "spec": template});
    let mut pod = pod;
    // The service account exists only in the other namespace, and is no part of the standard.
    pod["spec"].as_object_mut().expect("an object").retain(|key, _| !key.starts_with("serviceAccount"));
    sandbox.kubectl(&["create", "--dry-run=server", "-f", "-"], &pod.to_string()).expect("the standard is met");
}

#[test]
fn only_the_own_namespace_is_privileged() {
    let namespaces: Vec<Namespace> = Cluster::lab().list_all();
    let own = namespaces.iter().find(|n| n.metadata.name.as_deref() == Some(PODTAP_NAMESPACE)).expect("it exists");
    let label = own.metadata.labels.as_ref().and_then(|l| l.get("pod-security.kubernetes.io/enforce"));
    assert_eq!(label.map(String::as_str), Some("privileged"));
}

/// A tap works in a namespace that enforces `baseline`: tapped pods need no privileges.
#[test]
fn a_baseline_namespace_can_be_tapped() {
    let sandbox = Sandbox::new("baseline");
    sandbox
        .kubectl(&["label", "namespace", sandbox.namespace(), "pod-security.kubernetes.io/enforce=baseline"], "")
        .expect("a namespace can be labelled");
    sandbox.pod("web", "n1", "web");
    sandbox.pod("ids", "n2", "ids");
    sandbox.apply(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {name: web}\nspec:\n  targets: {podNames: [web]}\n  \
         destinations: [{pod: {name: ids, interfaceName: tap0}}]\n",
    );
    sandbox.ready("web");
}

#[test]
fn kubectl_explains_and_prints() {
    let sandbox = Sandbox::new("columns");
    let text = sandbox.kubectl(&["explain", "podtap.spec.destinations"], "").expect("explain works");
    for words in ["one to four destinations", "external", "node", "pod"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    sandbox.pod("web", "n1", "web");
    sandbox.apply(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {name: web}\nspec:\n  targets: {podNames: [web]}\n  \
         destinations: [{node: {name: n2, interfaceName: ins-columns}}]\n",
    );
    sandbox.ready("web");
    let table = sandbox.kubectl(&["get", "ptap"], "").expect("the short name works");
    let mut lines = table.lines();
    let header: Vec<_> = lines.next().expect("a header").split_whitespace().collect();
    assert_eq!(header, ["NAME", "READY", "REASON", "MATCHED", "TAPPED", "DESTINATION", "VNI", "EXPIRES", "AGE"]);
    let row: Vec<_> = lines.next().expect("a row").split_whitespace().collect();
    assert_eq!(row[..6], ["web", "True", "AsExpected", "1", "1", "node/n2:ins-columns"]);
    let wide = sandbox.kubectl(&["get", "ptap", "-o", "wide"], "").expect("wide works");
    assert!(wide.contains("MESSAGE"), "{wide}");
    sandbox.kubectl(&["wait", "--for=condition=Ready", "podtap/web", "--timeout=10s"], "").expect("kubectl wait works");
}
