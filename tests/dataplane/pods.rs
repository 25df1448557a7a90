//! Pods start, end and are recreated.

use std::time::Duration;

use podtap_model::{Direction, Reason, Receiver, State};
use podtap_tests::{
    capture::Capture,
    net::{Pod, Sender, traffic},
    wait::until,
};

use crate::scene::{Captures, Scene, TAP, VNI, desired, local_endpoint, receiver, remote_endpoint, sender};

/// The pod is requested before it runs, as the controller does once it is bound. Its addresses are unknown then.
#[test]
fn a_recreated_pod_is_mirrored_from_its_first_frame() {
    let mut scene = Scene::new();
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    for round in 0..5 {
        let mut pod = Pod::prepared(&scene.node);
        let mut bound = sender(TAP, &pod, Direction::Both, &[remote_endpoint(VNI)]);
        bound.pod.addresses.clear();
        let mut request = desired(vec![bound.clone()], vec![]);
        request.generation = 2 * round + 1;
        scene.agent.request(&request);
        let report = scene
            .agent
            .until("the request is processed", |report| report.observed_generation == Some(request.generation));
        assert_eq!(report.senders[0].reason, Reason::PodNotRunning);

        let captures = Captures::start(&pod, scene.remote.network(), "mirror0");
        // The sandbox's process. Runtimes start containers later.
        pod.run(&scene.node);
        scene.agent.until("the pod is tapped", |report| report.senders[0].state == State::Active);
        traffic::udp(pod.network(), &scene.client, scene.client_addresses()[0], &[40]);
        // The addresses that the kubelet reports later change nothing.
        request.senders[0] = Sender { pod: pod.model(), ..bound };
        request.generation += 1;
        scene.agent.establish(&request);
        traffic::tcp(&scene.client, pod.network(), pod.addresses[1], 20_000);
        captures.same(&scene, |_| true);
    }
    let devices = scene.helper.log().matches("CreateDevice").count();
    assert_eq!(devices, 5, "one device is created per pod");
}

#[test]
fn a_pod_that_ends_is_released() {
    let mut scene = Scene::new();
    let mut pod = Pod::start(&scene.node);
    let before = pod.network().snapshot();
    let request = desired(vec![sender(TAP, &pod, Direction::Both, &[remote_endpoint(VNI)])], vec![]);
    scene.agent.establish(&request);
    pod.stop();
    let report = scene.agent.until("the sender is pending", |report| report.senders[0].state == State::Pending);
    assert_eq!(report.senders[0].reason, Reason::PodNotRunning);
    // The runtime may keep the namespace alive by a mount or a descriptor. The helper must not.
    let log = scene.helper.log();
    assert!(log.contains("pod ended"), "{log}");
    // CRI-O keeps it between two runs of a pod's only container, and the tap may be deleted meanwhile.
    assert_eq!(pod.network().snapshot(), before, "nothing of PodTap is left in the namespace");
}

/// The first process of the pod ends, while another one keeps running.
#[test]
fn a_tap_survives_the_end_of_a_process() {
    let mut scene = Scene::new();
    let mut pod = Pod::start(&scene.node);
    let request =
        desired(vec![sender(TAP, &pod, Direction::Both, &[local_endpoint(VNI)])], vec![receiver(TAP, VNI, "m0")]);
    scene.agent.establish(&request);
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
    let mut tapped = sender(TAP, &pod, Direction::Both, &[remote_endpoint(VNI)]);
    tapped.pod.addresses = vec![[10, 66, 0, 1].into()];
    scene.agent.request(&desired(vec![tapped], vec![]));
    let report = scene.agent.until("the sender is refused", |report| report.senders[0].state == State::Refused);
    assert_eq!(report.senders[0].reason, Reason::HostNetwork);
    assert_eq!(before.differences(&scene.node.network().snapshot()), [""; 0]);
}

/// The primary interface is found by the pod's address, others by name.
#[test]
fn a_secondary_interface_can_be_tapped() {
    let mut scene = Scene::new();
    scene.node.attach(scene.web.network(), "net1");
    let first = sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)]);
    let mut second = sender("tap-b", &scene.web, Direction::Both, &[remote_endpoint(7)]);
    second.tap.interface = Some("net1".parse().expect("a name"));
    scene
        .remote_agent
        .establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0"), receiver("tap-b", 7, "mirror1")]));
    let report = scene.agent.establish(&desired(vec![first, second], vec![]));
    let names: Vec<&str> =
        report.senders.iter().map(|sender| sender.interface.as_deref().unwrap_or_default()).collect();
    assert_eq!(names, ["eth0", "net1"]);
    let captures = Captures::start(&scene.web, scene.remote.network(), "mirror0");
    let second = Capture::start(scene.web.network().path(), "net1");
    let mirrored = Capture::start(scene.remote.network().path(), "mirror1");
    scene.traffic();
    until("the frames of net1 arrive", Duration::from_secs(10), || {
        let difference = podtap_tests::capture::Difference::between(&second.so_far(), &mirrored.so_far());
        if difference.is_none() { Ok(()) } else { Err(difference) }
    });
    captures.same(&scene, |_| true);
}

/// The receiver follows its pod when that is recreated.
#[test]
fn a_receiver_follows_a_recreated_pod() {
    let mut scene = Scene::new();
    for generation in 1..4 {
        let consumer = Pod::start(&scene.node);
        let inside = Receiver { pod: Some(consumer.model()), ..receiver(TAP, VNI, "tap0") };
        let mut request = desired(vec![sender(TAP, &scene.web, Direction::Both, &[local_endpoint(VNI)])], vec![inside]);
        request.generation = generation;
        scene.agent.establish(&request);
        let captures = Captures::start(&scene.web, consumer.network(), "tap0");
        scene.traffic();
        captures.same(&scene, |_| true);
    }
}

/// Another device with the same name and address, as when a network is attached to a running pod again.
#[test]
fn a_tap_follows_a_recreated_interface() {
    let mut scene = Scene::new();
    let request = desired(
        vec![sender(TAP, &scene.web, Direction::Both, &[local_endpoint(VNI)])],
        vec![receiver(TAP, VNI, "mirror0")],
    );
    scene.agent.establish(&request);
    for _ in 0..2 {
        scene.web.network().ip("link del eth0\n");
        let report = scene.agent.until("the interface is missing", |report| report.senders[0].state == State::Refused);
        assert_eq!(report.senders[0].reason, Reason::InterfaceNotFound);
        assert!(scene.web.network().vxlan_devices().is_empty());
        scene.node.attach(scene.web.network(), "eth0");
        let address = scene.web.addresses[0];
        scene.web.network().ip(&format!("addr add {address}/24 dev eth0\n"));
        scene.agent.until("the pod is tapped again", |report| report.senders[0].state == State::Active);
        let captures = Captures::start(&scene.web, scene.node.network(), "mirror0");
        // The client's neighbour table has the old MAC address.
        scene.client.run("ip neigh flush all");
        traffic::tcp(&scene.client, scene.web.network(), address, 20_000);
        captures.same(&scene, |_| true);
    }
}
