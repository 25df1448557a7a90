//! What cannot work, or would harm, is refused with its reason before anything is touched; everything else goes on.

use std::{net::UdpSocket, time::Duration};

use podtap_tests::{
    net::{Pod, Snapshot},
    wait::until,
};
use tap_wire::{Desired, Direction, Reason, Receiver, Report, Sender, State, Status};

use crate::scene::{Captures, Scene, TAP, VNI, desired, near_endpoint, receiver, sender};

/// Wants something beside a tap that works; that one must go on, and this must be refused.
struct Refusal {
    other: Pod,
    scene: Scene,
    before: [Snapshot; 2],
}

impl Refusal {
    /// `harm` prepares the other pod, or the node.
    fn new(harm: impl FnOnce(&Scene, &Pod)) -> Self {
        let scene = Scene::new();
        let other = Pod::start(&scene.node);
        harm(&scene, &other);
        let before = [other.network().snapshot(), scene.node.network().snapshot()];
        Self { other, scene, before }
    }

    #[track_caller]
    fn sender(self, change: impl FnOnce(&mut Sender, &Pod), reason: Reason, text: &str) -> Self {
        let mut refused = sender("tap-b", &self.other, Direction::Both, &[near_endpoint(VNI)]);
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
    fn refused(mut self, mut wanted: Desired, reason: Reason, text: &str) -> Self {
        wanted.senders.push(sender(TAP, &self.scene.web, Direction::Both, &[near_endpoint(VNI)]));
        wanted.receivers.push(receiver(TAP, VNI, "mirror0"));
        self.scene.agent.want(&wanted);
        let report = self.scene.agent.until("one works, one is refused", |report| {
            let states: Vec<State> = statuses(report).iter().map(|status| status.state).collect();
            let done = |state: &State| matches!(state, State::Refused | State::Failed | State::Active);
            states.len() == 3 && states.iter().all(done)
        });
        let refused: Vec<Status> =
            statuses(&report).into_iter().filter(|status| status.state != State::Active).collect();
        assert!(refused.len() == 1 && refused[0].reason == reason, "{refused:?}\n{}", self.scene.helper.log());
        assert!(refused[0].message.contains(text), "{:?}", refused[0]);
        assert_eq!(self.before[0].differences(&self.other.network().snapshot()), [""; 0]);
        let new = self.before[1].differences(&self.scene.node.network().snapshot());
        let accepted = self.scene.node.network().devices_of(TAP);
        assert!(new.iter().all(|line| accepted.iter().any(|device| line.contains(device))), "{new:?}");
        let captures = Captures::start(&self.scene.web, self.scene.node.network(), "mirror0");
        self.scene.traffic();
        captures.same(&self.scene, |_| true);
        self
    }

    /// Once its cause has gone, what was refused is put in place by itself.
    #[track_caller]
    fn cured(mut self, cure: impl FnOnce(&Scene, &Pod)) {
        cure(&self.scene, &self.other);
        self.scene
            .agent
            .until("all is active", |report| statuses(report).iter().all(|status| status.state == State::Active));
    }
}

fn statuses(report: &Report) -> Vec<Status> {
    let senders = report.senders.iter().map(|sender| sender.status.clone());
    senders.chain(report.receivers.iter().map(|receiver| receiver.status.clone())).collect()
}

#[test]
fn an_interface_that_is_not_there() {
    Refusal::new(|_, _| {})
        .sender(|sender, _| sender.interface = "net1".to_owned(), Reason::InterfaceNotFound, "net1, only: eth0")
        .cured(|_, other| other.network().ip("link add net1 type veth peer name net1-far\nlink set net1 up\n"));
}

#[test]
fn the_loopback_interface() {
    Refusal::new(|_, _| {}).sender(|sender, _| sender.interface = "lo".to_owned(), Reason::Invalid, "loopback");
}

#[test]
fn an_address_that_the_pod_does_not_have() {
    Refusal::new(|_, _| {})
        .sender(
            |sender, _| sender.pod.addresses = vec![[10, 88, 0, 250].into()],
            Reason::InterfaceNotFound,
            "10.88.0.250",
        )
        .cured(|_, other| other.network().ip("addr add 10.88.0.250/24 dev eth0\n"));
}

#[test]
fn an_ingress_qdisc() {
    Refusal::new(|_, other| drop(other.network().run("tc qdisc add dev eth0 ingress")))
        .sender(|_, _| {}, Reason::IngressQdisc, "eth0")
        .cured(|_, other| drop(other.network().run("tc qdisc del dev eth0 ingress")));
}

#[test]
fn a_pod_that_receives_its_own_tap() {
    let mut scene = Scene::new();
    let consumer = Receiver { pod: Some(scene.web.wire()), ..receiver(TAP, VNI, "tap0") };
    let before = scene.web.network().snapshot();
    let tapped = sender(TAP, &scene.web, Direction::Both, &[near_endpoint(VNI)]);
    scene.agent.want(&desired(vec![tapped], vec![consumer]));
    let report = scene.agent.until("it is refused", |report| report.receivers[0].status.state == State::Active);
    assert_eq!((report.senders[0].status.state, report.senders[0].status.reason), (State::Refused, Reason::Invalid));
    let new = before.differences(&scene.web.network().snapshot());
    let consumer = scene.web.network().devices_of(TAP);
    assert!(new.iter().all(|line| consumer.iter().any(|device| line.contains(device))), "{new:?}");
    assert_eq!(consumer.iter().filter(|device| !device.starts_with("ptap")).collect::<Vec<_>>(), ["tap0"]);
}

#[test]
fn the_name_of_a_foreign_device_on_the_node() {
    Refusal::new(|scene, _| scene.node.network().ip("link add mirror1 type bridge\n"))
        .receiver(|_, _| {}, Reason::NameTaken, "mirror1")
        .cured(|scene, _| scene.node.network().ip("link del mirror1\n"));
}

#[test]
fn the_name_of_a_foreign_device_in_a_pod() {
    Refusal::new(|_, _| {}).receiver(
        |receiver, other| (receiver.interface_name, receiver.pod) = ("eth0".to_owned(), Some(other.wire())),
        Reason::NameTaken,
        "eth0",
    );
}

#[test]
fn a_udp_port_of_another_program() {
    let mut taken = None;
    let refusal = Refusal::new(|scene, _| {
        taken = Some(scene.node.network().within(|| UdpSocket::bind("0.0.0.0:14444")).expect("the port is free"));
    });
    refusal.receiver(|receiver, _| receiver.port = 14444, Reason::PortTaken, "port").cured(|_, _| drop(taken));
}

/// The one on which all sender devices of the node listen: no tap can be then.
#[test]
fn the_senders_own_udp_port() {
    let mut scene = Scene::new();
    let taken = scene.node.network().within(|| UdpSocket::bind("0.0.0.0:14788")).expect("the port is free");
    let before = scene.web.network().snapshot();
    scene.agent.want(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[near_endpoint(VNI)])], vec![]));
    let report = scene.agent.until("it fails", |report| report.senders[0].status.state == State::Failed);
    assert_eq!(report.senders[0].status.reason, Reason::PortTaken);
    // Between attempts, nothing of them is left.
    until("the pod is as before", Duration::from_secs(5), || {
        let differences = before.differences(&scene.web.network().snapshot());
        if differences.is_empty() { Ok(()) } else { Err(differences.join("\n")) }
    });
    drop(taken);
    scene.agent.until("it works", |report| report.senders[0].status.state == State::Active);
}

#[test]
fn a_udp_port_of_a_foreign_tunnel() {
    Refusal::new(|scene, _| {
        scene
            .node
            .network()
            .ip("link add foreign type vxlan external dstport 14444\nlink set foreign addrgenmode none up\n");
    })
    .receiver(|receiver, _| receiver.port = 14444, Reason::PortTaken, "")
    .cured(|scene, _| scene.node.network().ip("link del foreign\n"));
}

#[test]
fn a_network_identifier_of_a_foreign_tunnel() {
    Refusal::new(|scene, _| {
        scene
            .node
            .network()
            .ip("link add foreign type vxlan id 5002 dstport 14789\nlink set foreign addrgenmode none\n");
    })
    .receiver(|_, _| {}, Reason::PortTaken, "5002");
}

#[test]
fn impossible_wishes() {
    type Change = fn(&mut Sender, &Pod);
    let changes: [(Change, &str); 5] = [
        (|sender, _| sender.destinations.clear(), "0 destinations"),
        (|sender, _| sender.destinations[0].vni = 1 << 24, "VNI"),
        (|sender, _| sender.interface = "0123456789abcdef".to_owned(), "0123456789abcdef"),
        // Users can write the annotation from which it comes: with another pod's UID they would tap that one.
        (|sender, pod| sender.pod.cgroup_uid = Some(pod.uid.clone()), "config.hash"),
        (|sender, _| sender.destinations.push(tap_wire::Endpoint { address: [0u16; 8].into(), port: 1, vni: 1 }), ""),
    ];
    let mut refusal = Refusal::new(|_, _| {});
    for (change, text) in changes {
        refusal = refusal.sender(change, Reason::Invalid, text);
        refusal.before[1] = refusal.scene.node.network().snapshot();
    }
}
