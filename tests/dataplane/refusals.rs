//! What cannot work, or would do harm, is refused with a reason before anything is touched; everything else keeps working.

use std::{net::UdpSocket, time::Duration};

use podtap_model::{Direction, Endpoint, NodeStatus, Reason, Receiver, State, Truncate};
use podtap_tests::{
    net::{Desired, Pod, Sender, Snapshot},
    wait::until,
};
use serde_json::{Value, json};

use crate::scene::{Captures, Scene, TAP, VNI, desired, near_endpoint, receiver, sender};

/// Requests something beside a tap that works. That tap must keep working, and the request must be refused.
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
    fn refused(self, requested: Desired, reason: Reason, text: &str) -> Self {
        self.refused_with(requested, reason, text, |_| ())
    }

    /// `change` changes the request after it has become JSON.
    #[track_caller]
    fn refused_with(
        mut self,
        mut requested: Desired,
        reason: Reason,
        text: &str,
        change: impl FnOnce(&mut Value),
    ) -> Self {
        requested.senders.push(sender(TAP, &self.scene.web, Direction::Both, &[near_endpoint(VNI)]));
        requested.receivers.push(receiver(TAP, VNI, "mirror0"));
        let mut update = requested.update();
        change(&mut update.spec);
        self.scene.agent.apply(update);
        let report = self.scene.agent.until("one works, one is refused", |report| {
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

    /// Once the cause is removed, the refused request is retried automatically and succeeds.
    #[track_caller]
    fn cured(mut self, cure: impl FnOnce(&Scene, &Pod)) {
        cure(&self.scene, &self.other);
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
fn an_interface_that_does_not_exist() {
    Refusal::new(|_, _| {})
        .sender(
            |sender, _| sender.tap.interface = Some("net1".parse().expect("a name")),
            Reason::InterfaceNotFound,
            "net1, only: eth0",
        )
        .cured(|_, other| other.network().ip("link add net1 type veth peer name net1-far\nlink set net1 up\n"));
}

#[test]
fn the_loopback_interface() {
    Refusal::new(|_, _| {}).sender(
        |sender, _| sender.tap.interface = Some("lo".parse().expect("a name")),
        Reason::InvalidSpec,
        "loopback",
    );
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
        .sender(|_, _| {}, Reason::IngressQdiscConflict, "eth0")
        .cured(|_, other| drop(other.network().run("tc qdisc del dev eth0 ingress")));
}

#[test]
fn a_pod_that_receives_its_own_tap() {
    let mut scene = Scene::new();
    let consumer = Receiver { pod: Some(scene.web.model()), ..receiver(TAP, VNI, "tap0") };
    let before = scene.web.network().snapshot();
    let tapped = sender(TAP, &scene.web, Direction::Both, &[near_endpoint(VNI)]);
    scene.agent.request(&desired(vec![tapped], vec![consumer]));
    let report = scene.agent.until("it is refused", |report| report.receivers[0].state == State::Active);
    assert_eq!((report.senders[0].state, report.senders[0].reason), (State::Refused, Reason::InvalidSpec));
    let new = before.differences(&scene.web.network().snapshot());
    let consumer = scene.web.network().devices_of(TAP);
    assert!(new.iter().all(|line| consumer.iter().any(|device| line.contains(device))), "{new:?}");
    assert_eq!(consumer.iter().filter(|device| !device.starts_with("ptap")).collect::<Vec<_>>(), ["tap0"]);
}

#[test]
fn the_name_of_a_foreign_device_on_the_node() {
    Refusal::new(|scene, _| scene.node.network().ip("link add mirror1 type bridge\n"))
        .receiver(|_, _| {}, Reason::InterfaceNameConflict, "mirror1")
        .cured(|scene, _| scene.node.network().ip("link del mirror1\n"));
}

#[test]
fn the_name_of_a_foreign_device_in_a_pod() {
    Refusal::new(|_, _| {}).receiver(
        |receiver, other| {
            (receiver.interface_name, receiver.pod) = ("eth0".parse().expect("a name"), Some(other.model()))
        },
        Reason::InterfaceNameConflict,
        "eth0",
    );
}

#[test]
fn a_udp_port_of_another_program() {
    let mut taken = None;
    let refusal = Refusal::new(|scene, _| {
        taken = Some(scene.node.network().within(|| UdpSocket::bind("0.0.0.0:14444")).expect("the port is free"));
    });
    refusal.receiver(|receiver, _| receiver.port = 14444, Reason::PortInUse, "port").cured(|_, _| drop(taken));
}

/// The port on which all sender devices of the node listen: without it, no tap works.
#[test]
fn the_senders_own_udp_port() {
    let mut scene = Scene::new();
    let taken = scene.node.network().within(|| UdpSocket::bind("0.0.0.0:14788")).expect("the port is free");
    let before = scene.web.network().snapshot();
    scene.agent.request(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[near_endpoint(VNI)])], vec![]));
    let report = scene.agent.until("it fails", |report| report.senders[0].state == State::Failed);
    assert_eq!(report.senders[0].reason, Reason::PortInUse);
    // Between attempts, nothing is left of them.
    until("the pod is as before", Duration::from_secs(5), || {
        let differences = before.differences(&scene.web.network().snapshot());
        if differences.is_empty() { Ok(()) } else { Err(differences.join("\n")) }
    });
    drop(taken);
    scene.agent.until("it works", |report| report.senders[0].state == State::Active);
}

#[test]
fn a_udp_port_of_a_foreign_vxlan_device() {
    Refusal::new(|scene, _| {
        scene
            .node
            .network()
            .ip("link add foreign type vxlan external dstport 14444\nlink set foreign addrgenmode none up\n");
    })
    .receiver(|receiver, _| receiver.port = 14444, Reason::PortInUse, "")
    .cured(|scene, _| scene.node.network().ip("link del foreign\n"));
}

#[test]
fn a_vni_of_a_foreign_vxlan_device() {
    Refusal::new(|scene, _| {
        scene
            .node
            .network()
            .ip("link add foreign type vxlan id 5002 dstport 14789\nlink set foreign addrgenmode none\n");
    })
    .receiver(|_, _| {}, Reason::PortInUse, "5002");
}

#[test]
fn invalid_requests() {
    type Change = fn(&mut Sender, &Pod);
    let changes: [(Change, &str); 3] = [
        (|sender, _| sender.tap.destinations.clear(), "0 destinations"),
        (|sender, _| sender.tap.destinations.push(Endpoint { address: [0u16; 8].into(), ..near_endpoint(1) }), ""),
        (|sender, _| sender.tap.options.truncate = Some(Truncate::default()), "truncate"),
    ];
    let mut refusal = Refusal::new(|_, _| {});
    for (change, text) in changes {
        refusal = refusal.sender(change, Reason::InvalidSpec, text);
        refusal.before[1] = refusal.scene.node.network().snapshot();
    }
}

/// What no type of ours can hold, as JSON.
#[test]
fn undecodable_requests() {
    type Change = fn(&mut Value, &podtap_model::Pod);
    let changes: [(Change, &str); 4] = [
        (|spec, _| spec["taps"][0]["destinations"][0]["vni"] = json!(1 << 24), "VXLAN network identifier"),
        (|spec, _| spec["taps"][0]["interface"] = json!("0123456789abcdef"), "0123456789abcdef"),
        (|spec, _| spec["taps"][0]["options"] = json!({"limit": {"bytesPerFlow": 1}}), "bytesPerFlow"),
        // Users can write the annotation that it comes from: the UID of another pod would have that one tapped.
        (|spec, pod| spec["senders"][0]["pod"]["configHash"] = json!(pod.uid), "config.hash"),
    ];
    let mut refusal = Refusal::new(|_, _| {});
    for (change, text) in changes {
        let refused = sender("tap-b", &refusal.other, Direction::Both, &[near_endpoint(VNI)]);
        let other = refusal.other.model();
        refusal = refusal
            .refused_with(desired(vec![refused], vec![]), Reason::InvalidSpec, text, |spec| change(spec, &other));
        refusal.before[1] = refusal.scene.node.network().snapshot();
    }
}
