//! A pod that fills its own network namespace loses its tap; other pods keep theirs.

use std::{net::IpAddr, time::Duration};

use podtap_model::{Direction, NodeStatus, Reason, Renewal, SenderStatus, State};
use podtap_tests::{
    capture::Capture,
    net::{NODE_TAP, Network, Pod, now, traffic},
    wait::until,
};

use crate::scene::{Captures, Scene, TAP, VNI, desired, local_endpoint, receiver, remote_endpoint, sender};

/// More than the helper reads of a namespace. A million would be refused in the same way, but the kernel takes minutes to add them.
const FILTERS: usize = 5000;

fn flood(network: &Network) {
    network.run("tc qdisc add dev eth0 clsact");
    let line = "filter add dev eth0 ingress protocol ip prio 7 bpf bytecode \"1,6 0 0 0\"\n";
    network.try_run(&["tc", "-batch", "-"], &line.repeat(FILTERS)).expect("tc adds the filters");
}

fn of<'a>(report: &'a NodeStatus, pod: &Pod) -> &'a SenderStatus {
    report.senders.iter().find(|sender| *sender.pod_uid == *pod.uid).expect("the pod is requested")
}

#[test]
fn of_filters_refuse_one_pod() {
    let mut scene = Scene::new();
    let flooded = Pod::start(&scene.node);
    flood(flooded.network());
    let senders = [&scene.web, &flooded].map(|pod| sender(TAP, pod, Direction::Both, &[local_endpoint(VNI)]));
    scene.agent.request(&desired(senders.to_vec(), vec![receiver(TAP, VNI, "mirror0")]));
    let report = scene.agent.until("the other pod is tapped", |report| {
        let states = [of(report, &scene.web).state, of(report, &flooded).state];
        states == [State::Active, State::Refused] && report.active_receivers == 1
    });
    let refused = of(&report, &flooded);
    assert_eq!(refused.reason, Reason::PodNetworkTooLarge);
    assert!(refused.message.contains("too many objects"), "{}", refused.message);
    assert!(flooded.network().vxlan_devices().is_empty());
    assert_eq!(scene.agent.counters(1).senders.len(), 1);
    let captures = Captures::start(&scene.web, scene.node.network(), "mirror0");
    scene.traffic();
    captures.same(&scene, |_| true);

    flooded.network().run("tc filter del dev eth0 ingress prio 7");
    scene.agent.until("the pod is tapped", |report| of(report, &flooded).state == State::Active);
}

/// A pod that is a router has thousands of routes. Its address says which interface is tapped.
#[test]
fn of_routes_are_no_reason_to_refuse_a_pod() {
    let mut scene = Scene::new();
    let routes = |number: u32| format!("route add blackhole 10.128.{}.{}/32\n", number / 256, number % 256);
    scene.web.network().ip(&(0..5000).map(routes).collect::<String>());
    let request = sender(TAP, &scene.web, Direction::Both, &[local_endpoint(VNI)]);
    scene.agent.establish(&desired(vec![request], vec![receiver(TAP, VNI, "mirror0")]));
    let captures = Captures::start(&scene.web, scene.node.network(), "mirror0");
    scene.traffic();
    captures.same(&scene, |_| true);
}

/// The mirror stays. A helper that starts finds the other pods.
#[test]
fn of_filters_do_not_end_an_established_tap() {
    let mut scene = Scene::new();
    let request = desired(
        vec![sender(TAP, &scene.web, Direction::Both, &[local_endpoint(VNI)])],
        vec![receiver(TAP, VNI, "mirror0")],
    );
    scene.agent.establish(&request);
    let captures = Captures::start(&scene.web, scene.node.network(), "mirror0");
    let line = "filter add dev eth0 ingress protocol ip prio 7 bpf bytecode \"1,6 0 0 0\"\n";
    let added = scene.web.network().try_run(&["tc", "-batch", "-"], &line.repeat(FILTERS));
    added.expect("tc adds the filters");
    scene.agent.until("the tap is refused", |report| report.senders[0].reason == Reason::PodNetworkTooLarge);
    scene.traffic();
    let other = Pod::start(&scene.node);
    let mut both = request.clone();
    both.generation = 2;
    both.senders.push(sender("tap-b", &other, Direction::Both, &[remote_endpoint(VNI)]));
    for _ in 0..2 {
        scene.agent.request(&both);
        scene.agent.until("another pod is tapped", |report| {
            report.observed_generation == Some(2) && of(report, &other).state == State::Active
        });
        scene.helper.kill_child();
        scene.agent = scene.helper.agent();
    }
    captures.same(&scene, |_| true);
}

/// Its filters cannot be found. Other pods of the tap share its programs, and their mirrors are renewed.
#[test]
fn of_filters_do_not_keep_a_mirror_that_is_no_longer_requested() {
    // Payloads of pings: no other frame is as long.
    const WHILE_REQUESTED: usize = 1001;
    const AFTERWARDS: usize = 1002;
    let mut scene = Scene::new();
    let flooded = Pod::start(&scene.node);
    let senders = [&scene.web, &flooded].map(|pod| sender(TAP, pod, Direction::Both, &[local_endpoint(VNI)]));
    let both = desired(senders.to_vec(), vec![receiver(TAP, VNI, "mirror0")]);
    scene.agent.establish(&both);
    let line = "filter add dev eth0 ingress protocol ip prio 7 bpf bytecode \"1,6 0 0 0\"\n";
    let added = flooded.network().try_run(&["tc", "-batch", "-"], &line.repeat(FILTERS));
    added.expect("tc adds the filters");
    scene.agent.until("its namespace is too large", |report| {
        of(report, &flooded).reason == Reason::PodNetworkTooLarge && of(report, &scene.web).state == State::Active
    });
    let capture = Capture::start(scene.node.network().path(), "mirror0");
    let pings = |address: IpAddr, payload: usize| {
        capture.count(|frame| {
            let is_of =
                |at: usize| IpAddr::from(<[u8; 4]>::try_from(&frame.bytes[at..at + 4]).unwrap_or_default()) == address;
            frame.bytes.len() == 42 + payload && (is_of(26) || is_of(30))
        })
    };
    let (web, other) = (scene.web.addresses[0], flooded.addresses[0]);
    let until_mirrored = |address: IpAddr, payload: usize| {
        until("the pings are mirrored", Duration::from_secs(5), || match pings(address, payload) {
            6 => Ok(()),
            count => Err(format!("{count} frames")),
        });
    };
    traffic::ping(&scene.client, other, WHILE_REQUESTED, 3);
    until_mirrored(other, WHILE_REQUESTED);

    let mut one = both.clone();
    (one.generation, one.senders) = (2, vec![both.senders[0].clone()]);
    scene.agent.request(&one);
    scene.agent.until("one pod is no longer requested", |report| report.observed_generation == Some(2));
    traffic::ping(&scene.client, other, AFTERWARDS, 3);
    // Renewals are for the other pod alone. The answer comes after the renewal was processed.
    scene.agent.renew(Renewal { uid: NODE_TAP.to_owned(), now: now() });
    let _ = scene.agent.counters(1);
    traffic::ping(&scene.client, other, AFTERWARDS, 3);
    traffic::ping(&scene.client, web, AFTERWARDS, 3);
    until_mirrored(web, AFTERWARDS);
    assert_eq!(pings(other, AFTERWARDS), 0, "the mirror has stopped at once");
    assert_eq!(flooded.network().vxlan_devices().len(), 1, "nothing was removed");

    flooded.network().run("tc filter del dev eth0 ingress prio 7");
    until("its device is removed", Duration::from_secs(100), || match flooded.network().vxlan_devices().len() {
        0 => Ok(()),
        count => Err(format!("{count} devices")),
    });
    traffic::ping(&scene.client, web, WHILE_REQUESTED, 3);
    until_mirrored(web, WHILE_REQUESTED);
}
