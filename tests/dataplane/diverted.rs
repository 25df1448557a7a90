//! A pod with `NET_ADMIN` in its own network namespace cannot send mirrored frames elsewhere with forwarding entries of its own.

use std::{
    process::{Child, Command},
    time::Duration,
};

use podtap_model::{Direction, Receiver, State};
use podtap_tests::{
    net::{Helper, Network, Pod},
    wait::until,
};
use serde_json::Value;

use crate::scene::{Captures, Scene, TAP, VNI, desired, local_endpoint, receiver, remote_endpoint, sender};

/// A process that is ended when dropped, even by a failed assertion.
struct Adding(Child);

impl Drop for Adding {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const ZERO: &str = "00:00:00:00:00:00";
const OTHER: &str = "02:00:00:00:00:77";

/// All forwarding entries of a device, with everything that `bridge` shows.
fn entries(network: &Network, device: &str) -> Vec<Value> {
    let mut found = network.try_json(&format!("bridge -j -d fdb show dev {device}")).unwrap_or_default();
    found.sort_unstable_by_key(Value::to_string);
    found
}

#[track_caller]
fn await_entries(network: &Network, device: &str, expected: &[Value], helper: &Helper) {
    until("only the entries of the tap are left", Duration::from_secs(5), || {
        let found = entries(network, device);
        if found == expected { Ok(()) } else { Err(format!("{found:?}\n{}", helper.log())) }
    });
}

fn tapped() -> (Scene, String) {
    let mut scene = Scene::new();
    let _captures = scene.tap_to_remote(Direction::Both);
    let device = scene.web.network().vxlan_devices()[0].clone();
    (scene, device)
}

#[test]
fn the_kernel_refuses_entries_for_other_addresses() {
    let (scene, device) = tapped();
    let web = scene.web.network();
    let before = entries(web, &device);
    let words = format!("bridge fdb add {OTHER} dev {device} dst 10.66.0.9 port 8472 vni 1 self permanent");
    let refused = web.try_run(&words.split(' ').collect::<Vec<_>>(), "");
    assert!(refused.as_ref().is_err_and(|error| error.contains("No space left")), "{refused:?}");
    let vni = &web.json(&format!("ip -j -d link show dev {device}"))[0]["linkinfo"]["info_data"]["id"];
    let words = format!("ip link set {device} type vxlan id {vni} maxaddress 10");
    let refused = web.try_run(&words.split(' ').collect::<Vec<_>>(), "");
    assert!(refused.as_ref().is_err_and(|error| error.contains("Cannot change limit")), "{refused:?}");
    assert_eq!(entries(web, &device), before);
}

/// Further remotes of the zero address, one of which looks like the destination.
#[test]
fn other_destinations_are_removed() {
    let (scene, device) = tapped();
    let web = scene.web.network();
    let before = entries(web, &device);
    for entry in [
        "dst 10.66.0.9 port 8472 vni 1 self permanent".to_owned(),
        format!("dst 10.66.0.2 port 14788 vni {VNI} self permanent"),
        format!("dst 10.66.0.2 port 14789 vni {VNI} via lo self permanent"),
    ] {
        web.run(&format!("bridge fdb append {ZERO} dev {device} {entry}"));
        await_entries(web, &device, &before, &scene.helper);
    }
}

/// While no helper runs, the entry of the destination is replaced by others.
#[test]
fn the_next_helper_restores_the_entries() {
    let (mut scene, device) = tapped();
    let before = entries(scene.web.network(), &device);
    let to = format!("dst 10.66.0.2 port 14789 vni {VNI}");
    for entry in [
        format!("{OTHER} dev {device} {to} self permanent"),
        // It ages.
        format!("{ZERO} dev {device} {to} self dynamic"),
        format!("{ZERO} dev {device} {to} self permanent router"),
    ] {
        scene.helper.kill();
        let web = scene.web.network();
        web.run(&format!("bridge fdb del {ZERO} dev {device} self permanent"));
        web.run(&format!("bridge fdb append {entry}"));
        scene.helper = Helper::start(&scene.node);
        scene.agent = scene.helper.agent();
        scene
            .agent
            .establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]));
        await_entries(scene.web.network(), &device, &before, &scene.helper);
    }
}

/// Nothing is to leave a receiver's device, in whichever namespace it is.
#[test]
fn entries_of_receivers_are_removed() {
    let mut scene = Scene::new();
    let consumer = Pod::start(&scene.node);
    let receiver = Receiver { pod: Some(consumer.model()), ..receiver(TAP, VNI, "tap0") };
    let tapped = sender(TAP, &scene.web, Direction::Both, &[local_endpoint(VNI)]);
    scene.agent.establish(&desired(vec![tapped], vec![receiver]));
    let network = consumer.network();
    let device = network.vxlan_devices()[0].clone();
    for mac in [OTHER, ZERO] {
        network.run(&format!("bridge fdb add {mac} dev {device} dst 10.66.0.9 port 8472 vni 1 self permanent"));
        await_entries(network, &device, &[], &scene.helper);
    }
}

/// The helper slows down then. What it observed last is not reported as active while it may not be true.
#[test]
fn a_program_that_keeps_adding_entries_is_reported() {
    let (mut scene, device) = tapped();
    let before = entries(scene.web.network(), &device);
    let web = scene.web.network();
    let add = format!("bridge fdb append {ZERO} dev {device} dst 10.66.0.9 port 8472 vni 1 self permanent");
    // Slowly enough that the helper can restore the entries in between.
    let script = format!("for _ in $(seq 300); do {add} 2>/dev/null; sleep 0.05; done");
    let adding = web.within(|| Command::new("sh").args(["-c", &script]).spawn()).expect("sh runs");
    let adding = Adding(adding);
    let report = scene.agent.until("the sender is not active", |report| report.senders[0].state != State::Active);
    drop(adding);
    assert!(report.senders[0].message.contains("keeps changing"), "{report:?}");
    scene.agent.until("the sender is active again", |report| report.senders[0].state == State::Active);
    await_entries(scene.web.network(), &device, &before, &scene.helper);
}

/// It would delay, drop or repeat mirrored frames after they were counted.
#[test]
fn a_root_qdisc_of_the_sender_device_is_removed() {
    let (scene, device) = tapped();
    let web = scene.web.network();
    let qdiscs = || web.json(&format!("tc -j qdisc show dev {device}"));
    let before = qdiscs();
    for _ in 0..2 {
        web.run(&format!("tc qdisc add dev {device} root pfifo limit 1"));
        until("the device has no queue", Duration::from_secs(5), || {
            let now = qdiscs();
            if now == before { Ok(()) } else { Err(format!("{now:?}\n{}", scene.helper.log())) }
        });
    }
    let captures = Captures::start(&scene.web, scene.remote.network(), "mirror0");
    scene.traffic();
    captures.same(&scene, |_| true);
}
