//! Requests that cannot work, or would do harm, are refused with a reason before anything is changed. Everything else keeps working.

use std::{net::UdpSocket, time::Duration};

use podtap_model::{Direction, Endpoint, NodeStatus, Reason, Receiver, State, Truncate};
use podtap_tests::{
    net::{Desired, Pod, Sender, Snapshot},
    wait::until,
};
use serde_json::{Value, json};

use crate::scene::{Captures, Scene, TAP, VNI, desired, endpoint, local_endpoint, receiver, remote_endpoint, sender};

/// Requests a resource that must be refused, along with a tap that must keep working.
struct Refusal {
    other: Pod,
    scene: Scene,
    before: [Snapshot; 2],
}

impl Refusal {
    /// `prepare` changes the other pod, or the node.
    fn new(prepare: impl FnOnce(&Scene, &Pod)) -> Self {
        let scene = Scene::new();
        let other = Pod::start(&scene.node);
        prepare(&scene, &other);
        let before = [other.network().snapshot(), scene.node.network().snapshot()];
        Self { other, scene, before }
    }

    #[track_caller]
    fn sender(self, change: impl FnOnce(&mut Sender, &Pod), reason: Reason, text: &str) -> Self {
        let mut refused = sender("tap-b", &self.other, Direction::Both, &[local_endpoint(VNI)]);
        change(&mut refused, &self.other);
        self.refused(desired(vec![refused], vec![]), reason, text)
    }

    #[track_caller]
    fn receiver(self, change: impl FnOnce(&mut Receiver, &Pod), reason: Reason, text: &str) -> Self {
        let mut refused = receiver("tap-b", VNI + 1, "mirror1");
        change(&mut refused, &self.other);
        self.refused(desired(vec![], vec![refused]), reason, text)
    }

    #[track_caller]
    fn refused(self, request: Desired, reason: Reason, text: &str) -> Self {
        self.refused_with(request, reason, text, |_| ())
    }

    /// `change` changes the request in JSON.
    #[track_caller]
    fn refused_with(
        mut self,
        mut request: Desired,
        reason: Reason,
        text: &str,
        change: impl FnOnce(&mut Value),
    ) -> Self {
        request.senders.push(sender(TAP, &self.scene.web, Direction::Both, &[local_endpoint(VNI)]));
        request.receivers.push(receiver(TAP, VNI, "mirror0"));
        let mut update = request.update();
        change(&mut update.spec);
        self.scene.agent.apply(update);
        let report = self.scene.agent.until("one sender is refused, the others are active", |report| {
            let states: Vec<State> = statuses(report).iter().map(|(state, ..)| *state).collect();
            let done = |state: &State| matches!(state, State::Refused | State::Failed | State::Active);
            states.len() == 3 && states.iter().all(done)
        });
        let refused: Vec<(State, Reason, String)> =
            statuses(&report).into_iter().filter(|(state, ..)| *state != State::Active).collect();
        assert!(refused.len() == 1 && refused[0].1 == reason, "{refused:?}\n{}", self.scene.helper.log());
        assert!(refused[0].2.contains(text), "{:?}", refused[0]);
        assert_eq!(self.before[0].differences(&self.other.network().snapshot()), [""; 0]);
        let new = self.before[1].differences(&self.scene.node.network().snapshot());
        let accepted = self.scene.node.network().devices_of(TAP);
        assert!(new.iter().all(|line| accepted.iter().any(|device| line.contains(device))), "{new:?}");
        let captures = Captures::start(&self.scene.web, self.scene.node.network(), "mirror0");
        self.scene.traffic();
        captures.same(&self.scene, |_| true);
        self
    }

    /// After `fix` removes the cause, the refused resource becomes active without another request.
    #[track_caller]
    fn fixed(mut self, fix: impl FnOnce(&Scene, &Pod)) {
        fix(&self.scene, &self.other);
        self.scene
            .agent
            .until("everything is active", |report| statuses(report).iter().all(|(state, ..)| *state == State::Active));
    }
}

fn statuses(status: &NodeStatus) -> Vec<(State, Reason, String)> {
    let senders = status.senders.iter().map(|sender| (sender.state, sender.reason, sender.message.clone()));
    let receivers = status.receivers.iter().map(|receiver| (receiver.state, receiver.reason, receiver.message.clone()));
    senders.chain(receivers).collect()
}

#[test]
fn a_missing_interface_is_refused() {
    Refusal::new(|_, _| {})
        .sender(
            |sender, _| sender.tap.interface = Some("net1".parse().expect("a name")),
            Reason::InterfaceNotFound,
            "net1, only: eth0",
        )
        .fixed(|_, other| other.network().ip("link add net1 type veth peer name net1-peer\nlink set net1 up\n"));
}

#[test]
fn the_loopback_interface_is_refused() {
    Refusal::new(|_, _| {}).sender(
        |sender, _| sender.tap.interface = Some("lo".parse().expect("a name")),
        Reason::InvalidSpec,
        "loopback",
    );
}

#[test]
fn an_interface_without_ethernet_headers_is_refused() {
    Refusal::new(|_, other| drop(other.network().run("ip tuntap add mode tun name tun0"))).sender(
        |sender, _| sender.tap.interface = Some("tun0".parse().expect("a name")),
        Reason::InvalidSpec,
        "not an Ethernet interface",
    );
}

/// A pod cannot evade its taps by adding its address to a device that cannot be tapped.
#[test]
fn the_pods_address_on_other_devices_changes_nothing() {
    let mut scene = Scene::new();
    let network = scene.web.network();
    for address in &scene.web.addresses {
        let length = if address.is_ipv6() { 128 } else { 32 };
        network.ip(&format!("addr add {address}/{length} dev lo\n"));
    }
    let tapped = sender(TAP, &scene.web, Direction::Both, &[local_endpoint(VNI)]);
    let report = scene.agent.establish(&desired(vec![tapped], vec![receiver(TAP, VNI, "mirror0")]));
    assert_eq!(report.senders[0].interface.as_deref(), Some("eth0"));
    let captures = Captures::start(&scene.web, scene.node.network(), "mirror0");
    scene.traffic();
    captures.same(&scene, |_| true);
}

#[test]
fn an_address_that_the_pod_lacks_is_refused() {
    Refusal::new(|_, _| {})
        .sender(
            |sender, _| sender.pod.addresses = vec![[10, 88, 0, 250].into()],
            Reason::InterfaceNotFound,
            "10.88.0.250",
        )
        .fixed(|_, other| other.network().ip("addr add 10.88.0.250/24 dev eth0\n"));
}

#[test]
fn an_external_endpoint_at_the_node_itself_is_refused() {
    let outside = Endpoint { port: 4789, ..endpoint([10, 99, 0, 1], 77) };
    Refusal::new(|scene, _| scene.node.network().ip("addr add 10.99.0.1/32 dev lo\n"))
        .sender(
            |sender, _| sender.tap.destinations = vec![outside],
            Reason::ClusterAddress,
            "10.99.0.1 is an address of",
        )
        .fixed(|scene, _| scene.node.network().ip("addr del 10.99.0.1/32 dev lo\n"));
}

#[test]
fn an_external_endpoint_whose_address_moves_to_the_node_is_refused() {
    let mut scene = Scene::new();
    let outside = Endpoint { port: 4789, ..endpoint([10, 99, 0, 1], 77) };
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[outside])], vec![]));
    scene.node.network().ip("addr add 10.99.0.1/32 dev lo\n");
    scene.agent.until("the sender is refused", |status| {
        let sender = &status.senders[0];
        (sender.state, sender.reason) == (State::Refused, Reason::ClusterAddress)
    });
    assert_eq!(scene.web.network().devices_of(TAP), [""; 0]);
}

#[test]
fn a_foreign_ingress_qdisc_is_refused() {
    Refusal::new(|_, other| drop(other.network().run("tc qdisc add dev eth0 ingress")))
        .sender(|_, _| {}, Reason::IngressQdiscConflict, "eth0")
        .fixed(|_, other| drop(other.network().run("tc qdisc del dev eth0 ingress")));
}

#[test]
fn a_pod_that_receives_its_own_tap_is_refused() {
    let mut scene = Scene::new();
    let consumer = Receiver { pod: Some(scene.web.model()), ..receiver(TAP, VNI, "tap0") };
    let before = scene.web.network().snapshot();
    let tapped = sender(TAP, &scene.web, Direction::Both, &[local_endpoint(VNI)]);
    scene.agent.request(&desired(vec![tapped], vec![consumer]));
    let report = scene.agent.until("the receiver is active", |report| report.receivers[0].state == State::Active);
    assert_eq!((report.senders[0].state, report.senders[0].reason), (State::Refused, Reason::InvalidSpec));
    let new = before.differences(&scene.web.network().snapshot());
    let consumer = scene.web.network().devices_of(TAP);
    assert!(new.iter().all(|line| consumer.iter().any(|device| line.contains(device))), "{new:?}");
    assert_eq!(consumer.iter().filter(|device| !device.starts_with("ptap")).collect::<Vec<_>>(), ["tap0"]);
}

#[test]
fn the_name_of_a_foreign_device_on_the_node_is_refused() {
    Refusal::new(|scene, _| scene.node.network().ip("link add mirror1 type bridge\n"))
        .receiver(|_, _| {}, Reason::InterfaceNameConflict, "mirror1")
        .fixed(|scene, _| scene.node.network().ip("link del mirror1\n"));
}

#[test]
fn the_name_of_a_foreign_device_in_a_pod_is_refused() {
    Refusal::new(|_, _| {}).receiver(
        |receiver, other| {
            (receiver.interface_name, receiver.pod) = ("eth0".parse().expect("a name"), Some(other.model()));
        },
        Reason::InterfaceNameConflict,
        "eth0",
    );
}

#[test]
fn a_udp_port_of_another_program_is_refused() {
    let mut taken = None;
    let refusal = Refusal::new(|scene, _| {
        taken = Some(scene.node.network().within(|| UdpSocket::bind("0.0.0.0:14444")).expect("the port is free"));
    });
    refusal.receiver(|receiver, _| receiver.port = 14444, Reason::PortInUse, "port").fixed(|_, _| drop(taken));
}

/// Another program has the UDP port of all sender devices: the node cannot have a tap.
#[test]
fn senders_fail_while_their_udp_port_is_in_use() {
    let mut scene = Scene::new();
    let taken = scene.node.network().within(|| UdpSocket::bind("0.0.0.0:14788")).expect("the port is free");
    let before = scene.web.network().snapshot();
    scene.agent.request(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]));
    let report = scene.agent.until("the sender fails", |report| report.senders[0].state == State::Failed);
    assert_eq!(report.senders[0].reason, Reason::PortInUse);
    // Failed attempts leave nothing behind.
    until("the pod is in its initial state", Duration::from_secs(5), || {
        let differences = before.differences(&scene.web.network().snapshot());
        if differences.is_empty() { Ok(()) } else { Err(differences.join("\n")) }
    });
    drop(taken);
    scene.agent.until("the sender is active", |report| report.senders[0].state == State::Active);
}

#[test]
fn a_udp_port_of_a_foreign_vxlan_device_is_refused() {
    Refusal::new(|scene, _| {
        scene
            .node
            .network()
            .ip("link add foreign type vxlan external dstport 14444\nlink set foreign addrgenmode none up\n");
    })
    .receiver(|receiver, _| receiver.port = 14444, Reason::PortInUse, "")
    .fixed(|scene, _| scene.node.network().ip("link del foreign\n"));
}

#[test]
fn a_vni_of_a_foreign_vxlan_device_is_refused() {
    Refusal::new(|scene, _| {
        scene
            .node
            .network()
            .ip("link add foreign type vxlan id 5002 dstport 14789\nlink set foreign addrgenmode none\n");
    })
    .receiver(|_, _| {}, Reason::PortInUse, "5002");
}

#[test]
fn invalid_requests_are_refused() {
    type Change = fn(&mut Sender, &Pod);
    let changes: [(Change, &str); 3] = [
        (|sender, _| sender.tap.destinations.clear(), "0 destinations"),
        (|sender, _| sender.tap.destinations.push(Endpoint { address: [0u16; 8].into(), ..local_endpoint(1) }), ""),
        (|sender, _| sender.tap.options.truncate = Some(Truncate::default()), "truncate"),
    ];
    let mut refusal = Refusal::new(|_, _| {});
    for (change, text) in changes {
        refusal = refusal.sender(change, Reason::InvalidSpec, text);
        refusal.before[1] = refusal.scene.node.network().snapshot();
    }
}

/// Written as JSON, because no type can represent them.
#[test]
fn undecodable_requests_are_refused() {
    type Change = fn(&mut Value, &podtap_model::Pod);
    let changes: [(Change, &str); 4] = [
        (|spec, _| spec["taps"][0]["destinations"][0]["vni"] = json!(1 << 24), "VXLAN network identifier"),
        (|spec, _| spec["taps"][0]["interface"] = json!("0123456789abcdef"), "0123456789abcdef"),
        (|spec, _| spec["taps"][0]["options"] = json!({"limit": {"bytesPerSource": 1}}), "bytesPerSource"),
        // Users can write the annotation that it comes from. The UID of another pod there would tap that pod.
        (|spec, pod| spec["senders"][0]["pod"]["configHash"] = json!(pod.uid), "config.hash"),
    ];
    let mut refusal = Refusal::new(|_, _| {});
    for (change, text) in changes {
        let refused = sender("tap-b", &refusal.other, Direction::Both, &[local_endpoint(VNI)]);
        let other = refusal.other.model();
        refusal = refusal
            .refused_with(desired(vec![refused], vec![]), Reason::InvalidSpec, text, |spec| change(spec, &other));
        refusal.before[1] = refusal.scene.node.network().snapshot();
    }
}
