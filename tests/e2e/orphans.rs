//! Mirrors that nothing controls any more end by themselves, and the tapped pods do not notice.

use std::time::Duration;

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::ResourceExt as _;
use podtap_api::NodeTap;
use podtap_tests::{
    capture::Capture,
    cluster::{Cluster, PODTAP_NAMESPACE, namespace_of_node, traces},
    wait::until,
};

use crate::scene::{Scene, address, capture, tap};

const TIMEOUT: Duration = Duration::from_secs(60);
/// Generous: the shortest orphan timeout is a minute.
const ORPHANED: Duration = Duration::from_secs(150);

/// No controller runs until this is dropped.
pub struct WithoutController(());

impl WithoutController {
    pub fn new() -> Self {
        scale(0);
        until("the controller has ended", TIMEOUT, || gone("controller"));
        Self(())
    }

    /// It does not return: its Deployment is gone.
    pub fn forget(self) {
        std::mem::forget(self);
    }
}

impl Drop for WithoutController {
    fn drop(&mut self) {
        scale(2);
        let arguments = ["-n", PODTAP_NAMESPACE, "rollout", "status", "deployment/podtap-controller", "--timeout=60s"];
        if let Err(message) = Cluster::lab().kubectl(&arguments, "") {
            eprintln!("{message}");
        }
    }
}

/// Without a controller, nothing creates them again.
pub fn delete_helper_pods() {
    let selector = "app.kubernetes.io/component=helper";
    let arguments = ["-n", PODTAP_NAMESPACE, "delete", "pods", "-l", selector, "--timeout=60s"];
    Cluster::lab().kubectl(&arguments, "").expect("they can be deleted");
    until("the helper pods have ended", TIMEOUT, || gone("helper"));
}

fn scale(replicas: u8) {
    let replicas = format!("--replicas={replicas}");
    let arguments = ["-n", PODTAP_NAMESPACE, "scale", "deployment/podtap-controller", &replicas];
    if let Err(message) = Cluster::lab().kubectl(&arguments, "") {
        eprintln!("{message}");
    }
}

/// Whether no pod of the component is left.
fn gone(component: &str) -> Result<(), String> {
    let pods: Vec<Pod> = Cluster::lab().list(PODTAP_NAMESPACE);
    let is_of = |pod: &&Pod| pod.labels().get("app.kubernetes.io/component").is_some_and(|label| label == component);
    let left: Vec<String> = pods.iter().filter(is_of).map(kube::ResourceExt::name_any).collect();
    if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
}

/// The policy, until this is dropped.
struct Policy(());

impl Policy {
    fn with(spec: &str) -> Self {
        Self::apply(spec);
        Self(())
    }

    fn apply(spec: &str) {
        let policy =
            format!("apiVersion: podtap.dev/v1alpha1\nkind: PodTapPolicy\nmetadata: {{name: default}}\nspec: {spec}\n");
        let arguments = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        Cluster::lab().kubectl(&arguments, &policy).expect("a policy can be changed");
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        Self::apply("{}");
    }
}

/// Sends pings to the web server, which answers all of them. Returns how many new frames each receiver has.
fn ping<const COUNT: usize>(scene: &Scene, receivers: &[Capture; COUNT]) -> [usize; COUNT] {
    let before = receivers.each_ref().map(|receiver| receiver.so_far().len());
    let script = format!("ping -q -c 5 -i 0.2 -W 1 {}", address(&scene.web));
    let output = scene.sandbox.in_pod("client", &script).expect("the web server answers");
    assert!(output.contains(" 0% packet loss"), "{output}");
    std::array::from_fn(|index| receivers[index].so_far().len() - before[index])
}

/// Without a controller and without helper pods, a tap with a duration ends in time, and one without when it was not confirmed for the
/// orphan timeout. In one test, because both wait for a minute.
#[test]
fn orphaned_mirrors_stop_and_go_on_when_they_are_confirmed_again() {
    let _alone = Cluster::alone();
    let scene = Scene::alone("orphan");
    let _policy = Policy::with("{orphanTimeout: 1m}");
    for (name, duration) in [("web", ""), ("timed", "duration: 60s")] {
        scene.sandbox.apply(&format!(
            "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: {name}}}\nspec:\n  \
             targets: {{podNames: [web]}}\n  {duration}\n  \
             destinations: [{{node: {{name: n2, interfaceName: orp-{name}}}}}]\n"
        ));
    }
    let receivers = ["web", "timed"].map(|name| {
        scene.sandbox.ready(name);
        capture(&namespace_of_node(scene.sandbox.lab(), "n2"), &format!("orp-{name}"))
    });
    let status = scene.sandbox.tap("timed").status.expect("a ready tap has a status");
    let end = status.expiration_time.expect("its duration runs").0;
    until("the node has applied the orphan timeout", TIMEOUT, || {
        let nodes: Vec<NodeTap> = Cluster::lab().list_all();
        let node = nodes.iter().find(|node| node.name_any() == "n1").ok_or("no NodeTap")?;
        let observed = node.status.as_ref().and_then(|status| status.observed_generation);
        if node.spec.0.orphan_timeout_seconds == Some(60) && observed == node.metadata.generation {
            Ok(())
        } else {
            Err("not yet")
        }
    });
    until("frames arrive at both", TIMEOUT, || match ping(&scene, &receivers) {
        [0, _] | [_, 0] => Err("none"),
        _ => Ok(()),
    });

    let without = WithoutController::new();
    delete_helper_pods();
    let [running, timed] = ping(&scene, &receivers);
    assert!(running > 0, "helper pods that are gone interrupt nothing");
    assert!(timed > 0 || Timestamp::now() >= end, "the end of the controller is not that of the tap");
    let stopped = until("the mirror stops by itself", ORPHANED, || {
        let mirrored = ping(&scene, &receivers)[1];
        let now = Timestamp::now();
        if mirrored == 0 { Ok(now) } else { Err(format!("it runs at {now}")) }
    });
    // All clocks are this machine's.
    assert!(stopped >= end, "it had stopped at {stopped}, earlier than at {end}");
    until("the other one stops, too", ORPHANED, || {
        // The first ones may have been in flight.
        ping(&scene, &receivers);
        match ping(&scene, &receivers) {
            [0, 0] => Ok(()),
            counts => Err(format!("{counts:?} frames still arrive")),
        }
    });
    drop(without);
    until("frames arrive again", TIMEOUT, || if ping(&scene, &receivers)[0] > 0 { Ok(()) } else { Err("none") });
    scene.sandbox.condition("timed", "Ready", "False", "Expired");
    assert_eq!(ping(&scene, &receivers)[1], 0);
}

#[test]
fn an_administrator_stops_all_taps_at_once() {
    let _alone = Cluster::alone();
    let scene = Scene::alone("suspend-all");
    tap(&scene.sandbox, "n2", "orp-all");
    let policy = Policy::with("{suspendAll: true}");
    let tap = scene.sandbox.condition("web", "Ready", "False", "Suspended");
    let conditions = tap.status.unwrap_or_default().conditions;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready").expect("a condition");
    assert!(ready.message.contains("PodTapPolicy default"), "{}", ready.message);
    until("nothing of the tap is left", TIMEOUT, || {
        let left = traces(&scene.sandbox.network(&scene.web));
        if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
    });
    drop(policy);
    scene.sandbox.ready("web");
    let receivers = [capture(&namespace_of_node(scene.sandbox.lab(), "n2"), "orp-all")];
    until("frames arrive again", TIMEOUT, || if ping(&scene, &receivers)[0] > 0 { Ok(()) } else { Err("none") });
}
