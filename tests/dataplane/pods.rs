//! Pods are created, deleted and recreated.

use std::time::Duration;

use podtap_model::{Direction, Reason, Receiver, State};
use podtap_tests::{
    capture::Capture,
    net::{Pod, Sender, traffic},
    wait::until,
};

use crate::scene::{Captures, Scene, TAP, VNI, desired, far_endpoint, near_endpoint, receiver, sender};

/// Part of the desired state before it runs, as soon as it is bound to the node; its addresses are not known then.
#[test]
fn a_recreated_pod_is_mirrored_from_its_first_frame() {
    let mut scene = Scene::new();
    scene.far_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    for round in 0..5 {
        let mut pod = Pod::prepared(&scene.node);
        let mut announced = sender(TAP, &pod, Direction::Both, &[far_endpoint(VNI)]);
        announced.pod.addresses.clear();
        let mut requested = desired(vec![announced.clone()], vec![]);
        requested.generation = 2 * round + 1;
        scene.agent.request(&requested);
        let report =
            scene.agent.until("it is pending", |report| report.observed_generation == Some(requested.generation));
        assert_eq!(report.senders[0].reason, Reason::PodNotRunning);

        let captures = Captures::start(&pod, scene.far.network(), "mirror0");
        // The sandbox's process. A runtime takes a moment until the first container runs.
        pod.run(&scene.node);
        scene.agent.until("it is tapped", |report| report.senders[0].state == State::Active);
        traffic::udp(pod.network(), &scene.client, scene.client_addresses()[0], &[40]);
        // Later the kubelet reports its addresses. That changes nothing.
        requested.senders[0] = Sender { pod: pod.model(), ..announced };
        requested.generation += 1;
        scene.agent.establish(&requested);
        traffic::tcp(&scene.client, pod.network(), pod.addresses[1], 20_000);
        captures.same(&scene, |_| true);
    }
    let devices = scene.helper.log().matches("CreateDevice").count();
    assert_eq!(devices, 5, "one for each pod");
}

#[test]
fn a_pod_that_ends_is_released() {
    let mut scene = Scene::new();
    let mut pod = Pod::start(&scene.node);
    let before = pod.network().snapshot();
    let requested = desired(vec![sender(TAP, &pod, Direction::Both, &[far_endpoint(VNI)])], vec![]);
    scene.agent.establish(&requested);
    pod.stop();
    let report = scene.agent.until("it is pending again", |report| report.senders[0].state == State::Pending);
    assert_eq!(report.senders[0].reason, Reason::PodNotRunning);
    // A runtime may keep the namespace by a mount or a descriptor; the helper must not.
    let log = scene.helper.log();
    assert!(log.contains("pod ended"), "{log}");
    // CRI-O keeps it between two runs of a pod's only container, and the tap may be deleted meanwhile.
    assert_eq!(pod.network().snapshot(), before, "nothing of ours is left in it");
}

/// A pod whose first process ends while another one runs is still the same pod.
#[test]
fn one_of_its_processes_ends() {
    let mut scene = Scene::new();
    let mut pod = Pod::start(&scene.node);
    let requested =
        desired(vec![sender(TAP, &pod, Direction::Both, &[near_endpoint(VNI)])], vec![receiver(TAP, VNI, "m0")]);
    scene.agent.establish(&requested);
    let before = pod.network().vxlan_devices();
    let captures = Captures::start(&pod, scene.node.network(), "m0");
    for _ in 0..3 {
        pod.replace(&scene.node);
        traffic::udp(&scene.client, pod.network(), pod.addresses[0], &[100; 10]);
    }
    captures.same(&scene, |_| true);
    assert_eq!(pod.network().vxlan_devices(), before);
    assert_eq!(scene.helper.log().matches("CreateDevice").count(), 2);
}

#[test]
fn a_host_network_pod_is_refused() {
    let mut scene = Scene::new();
    let pod = Pod::on_host_network(&scene.node);
    let before = scene.node.network().snapshot();
    let mut tapped = sender(TAP, &pod, Direction::Both, &[far_endpoint(VNI)]);
    tapped.pod.addresses = vec![[10, 66, 0, 1].into()];
    scene.agent.request(&desired(vec![tapped], vec![]));
    let report = scene.agent.until("it is refused", |report| report.senders[0].state == State::Refused);
    assert_eq!(report.senders[0].reason, Reason::HostNetwork);
    assert_eq!(before.differences(&scene.node.network().snapshot()), [""; 0]);
}

/// The primary interface is found by the pod's address, any other by its name.
#[test]
fn a_second_interface() {
    let mut scene = Scene::new();
    scene.node.attach(scene.web.network(), "net1");
    let first = sender(TAP, &scene.web, Direction::Both, &[far_endpoint(VNI)]);
    let mut second = sender("tap-b", &scene.web, Direction::Both, &[far_endpoint(7)]);
    second.tap.interface = Some("net1".parse().expect("a name"));
    scene.far_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0"), receiver("tap-b", 7, "mirror1")]));
    let report = scene.agent.establish(&desired(vec![first, second], vec![]));
    let names: Vec<&str> =
        report.senders.iter().map(|sender| sender.interface.as_deref().unwrap_or_default()).collect();
    assert_eq!(names, ["eth0", "net1"]);
    let captures = Captures::start(&scene.web, scene.far.network(), "mirror0");
    let second = Capture::start(scene.web.network().path(), "net1");
    let mirrored = Capture::start(scene.far.network().path(), "mirror1");
    scene.traffic();
    until("the frames of net1 arrive", Duration::from_secs(10), || {
        let difference = podtap_tests::capture::Difference::between(&second.so_far(), &mirrored.so_far());
        if difference.is_none() { Ok(()) } else { Err(difference) }
    });
    captures.same(&scene, |_| true);
}

/// The consumer pod is replaced, and the receiver follows.
#[test]
fn a_consumer_is_recreated() {
    let mut scene = Scene::new();
    for generation in 1..4 {
        let consumer = Pod::start(&scene.node);
        let inside = Receiver { pod: Some(consumer.model()), ..receiver(TAP, VNI, "tap0") };
        let mut requested =
            desired(vec![sender(TAP, &scene.web, Direction::Both, &[near_endpoint(VNI)])], vec![inside]);
        requested.generation = generation;
        scene.agent.establish(&requested);
        let captures = Captures::start(&scene.web, consumer.network(), "tap0");
        scene.traffic();
        captures.same(&scene, |_| true);
    }
}

/// As when a network is attached again to a running pod: another device with the same name and address.
#[test]
fn its_interface_is_replaced() {
    let mut scene = Scene::new();
    let requested = desired(
        vec![sender(TAP, &scene.web, Direction::Both, &[near_endpoint(VNI)])],
        vec![receiver(TAP, VNI, "mirror0")],
    );
    scene.agent.establish(&requested);
    for _ in 0..2 {
        scene.web.network().ip("link del eth0\n");
        let report = scene.agent.until("it is missing", |report| report.senders[0].state == State::Refused);
        assert_eq!(report.senders[0].reason, Reason::InterfaceNotFound);
        assert!(scene.web.network().vxlan_devices().is_empty());
        scene.node.attach(scene.web.network(), "eth0");
        let address = scene.web.addresses[0];
        scene.web.network().ip(&format!("addr add {address}/24 dev eth0\n"));
        scene.agent.until("it is tapped again", |report| report.senders[0].state == State::Active);
        let captures = Captures::start(&scene.web, scene.node.network(), "mirror0");
        // The client has cached the old device's MAC address.
        scene.client.run("ip neigh flush all");
        traffic::tcp(&scene.client, scene.web.network(), address, 20_000);
        captures.same(&scene, |_| true);
    }
}
