//! Mirrors keep running without the helper, and the next helper adopts them.

use std::{
    fs,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    path::PathBuf,
    time::Duration,
};

use podtap_model::Direction;
use podtap_tests::{
    net::{Background, Desired, Helper, Network, Node, traffic},
    wait::until,
};

use crate::scene::{Captures, Scene, TAP, VNI, desired, local_endpoint, receiver, remote_endpoint, sender};

/// The device group of PodTap.
const GROUP: u32 = 0x7074_6170;

/// Ifindexes of all devices, and all filters with their handles: they change when one is recreated.
fn identities(network: &Network) -> Vec<String> {
    let links = network.json("ip -j link show");
    let mut all: Vec<String> = links.iter().map(|link| format!("{} {}", link["ifname"], link["ifindex"])).collect();
    all.extend(network.snapshot().lines);
    all
}

#[test]
fn applied_again_nothing_changes() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_remote(Direction::Both);
    let before = identities(scene.web.network());
    let mut same = desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]);
    for generation in 2..6 {
        same.generation = generation;
        scene.agent.establish(&same);
        traffic::ping(&scene.client, scene.web.addresses[0], 100, 2);
    }
    assert_eq!(identities(scene.web.network()), before);
    assert_eq!(scene.helper.log().matches("CreateDevice").count(), 1);
    captures.same(&scene, |_| true);
}

/// The helpers are killed or terminated, with traffic before, in between and after: no frame is missing or duplicate.
#[test]
fn a_new_helper_takes_over_without_a_gap() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_remote(Direction::Both);
    let local = desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]);
    let remote = desired(vec![], vec![receiver(TAP, VNI, "mirror0")]);
    let before = (identities(scene.web.network()), identities(scene.remote.network()));
    for kill in [true, false] {
        traffic::tcp(&scene.client, scene.web.network(), scene.web.addresses[0], 20_000);
        for (helper, node) in [(&mut scene.helper, &scene.node), (&mut scene.remote_helper, &scene.remote)] {
            if kill {
                helper.kill();
            } else {
                helper.terminate();
            }
            assert_eq!(helper.socket().exists(), kill, "a helper that terminates removes its socket");
            traffic::udp(&scene.client, scene.web.network(), scene.web.addresses[0], &[100; 20]);
            *helper = Helper::start(node);
        }
        traffic::tcp(&scene.client, scene.web.network(), scene.web.addresses[0], 20_000);
        (scene.agent, scene.remote_agent) = (scene.helper.agent(), scene.remote_helper.agent());
        scene.agent.establish(&local);
        scene.remote_agent.establish(&remote);
    }
    traffic::tcp(&scene.client, scene.web.network(), scene.web.addresses[0], 20_000);
    assert_eq!((identities(scene.web.network()), identities(scene.remote.network())), before, "nothing was recreated");
    captures.same(&scene, |_| true);
}

/// A tap is damaged while no helper runs.
#[test]
fn a_new_helper_repairs_a_damaged_tap() {
    let mut scene = Scene::new();
    let request = desired(
        vec![sender(TAP, &scene.web, Direction::Both, &[local_endpoint(VNI)])],
        vec![receiver(TAP, VNI, "mirror0")],
    );
    let web = scene.web.network();
    scene.agent.establish(&request);
    let vxlan = web.vxlan_devices()[0].clone();
    let clean = web.snapshot().lines.len();
    for damage in [
        format!("ip link del {vxlan}"),
        format!("ip link set {vxlan} alias podtap.dev/v0-of-another-version"),
        format!("ip link set {vxlan} mtu 1000"),
        "tc qdisc del dev eth0 clsact".to_owned(),
        "tc filter del dev eth0 ingress".to_owned(),
        format!("bridge fdb del 00:00:00:00:00:00 dev {vxlan} dst 10.66.0.1 port 14789 vni {VNI}"),
    ] {
        scene.helper.kill();
        scene.web.network().run(&damage);
        scene.helper = Helper::start(&scene.node);
        scene.agent = scene.helper.agent();
        scene.agent.establish(&request);
        assert_eq!(scene.web.network().mirrors("eth0").len(), 2, "after {damage}");
        assert_eq!(scene.web.network().snapshot().lines.len(), clean, "after {damage}");
        let captures = Captures::start(&scene.web, scene.node.network(), "mirror0");
        scene.traffic();
        captures.same(&scene, |_| true);
    }
}

/// Another program has replaced the tap's programs with one that matches everything.
#[test]
fn a_filter_without_a_program_gets_one() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_remote(Direction::Both);
    let request = desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]);
    scene.helper.kill();
    let web = scene.web.network();
    let vxlan = web.vxlan_devices()[0].clone();
    web.run(&format!("tc filter del dev {vxlan} egress"));
    for mirror in web.mirrors("eth0") {
        let (hook, priority, cookie) = (mirror.hook, mirror.priority, mirror.cookie);
        let filter = format!("tc filter replace dev eth0 {hook} protocol all prio {priority} handle 1 bpf bytecode");
        let action = format!("action mirred egress mirror dev {vxlan} continue cookie {cookie}");
        let words = filter.split(' ').chain(["1,6 0 0 4294967295"]).chain(action.split(' '));
        web.try_run(&words.collect::<Vec<_>>(), "").expect("the filter is replaced");
    }
    let before = identities(web);
    scene.helper = Helper::start(&scene.node);
    scene.agent = scene.helper.agent();
    scene.agent.establish(&request);
    let web = scene.web.network();
    let clamp = format!("filter {vxlan} egress");
    let after: Vec<String> = identities(web).into_iter().filter(|line| !line.starts_with(&clamp)).collect();
    assert_eq!(after, before);
    assert_eq!(web.programs("eth0").len(), 2);
    assert_eq!(web.programs(&vxlan).len(), 1);
    scene.traffic();
    captures.same(&scene, |_| true);
}

#[test]
fn only_one_helper_runs_on_a_node() {
    let mut scene = Scene::new();
    let _captures = scene.tap_to_remote(Direction::Both);
    for run in [Helper::once, Helper::once_in_container] {
        let (status, _, error) = run(&scene.node, &["apply", "FILE"], "{}");
        assert!(!status.success() && error.contains("another tap-helper works on this node"), "{error}");
    }
    assert_eq!(scene.web.network().vxlan_devices().len(), 1);
}

/// Any process of the node's network could take a lock that is a name there, and any process of the node one that is a file it may open.
#[test]
fn nothing_unprivileged_can_keep_a_helper_from_starting() {
    let node = Node::new();
    let name = SocketAddr::from_abstract_name(b"podtap.dev/tap-helper").expect("a name");
    let _socket = node.network().within(|| UnixListener::bind_addr(&name)).expect("the name is free");
    let helper = Helper::start(&node);
    // The file that a helper locks.
    let file = format!("/proc/{}/fd", helper.child().expect("the helper has a child"));
    let targets = fs::read_dir(file).expect("it is running").filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let locked: Vec<PathBuf> = targets.filter(|target| target.ends_with("1/environ")).collect();
    assert_eq!(locked, [PathBuf::from("/proc/1/environ")]);
    let lock = "setpriv --reuid 65534 --regid 65534 --clear-groups flock --nonblock";
    let mut others =
        Background::start(&node, &format!("{lock} /proc/1/environ true || {lock} /proc/1/root/proc/1/environ true"));
    assert!(!others.wait().success(), "an unprivileged process may not open it");
}

/// The helper is killed after a request, at different steps: the next helper converges from any of them.
#[test]
fn a_helper_can_be_killed_at_any_step() {
    let mut scene = Scene::new();
    let before = (scene.web.network().snapshot(), scene.node.network().snapshot());
    let request = desired(
        vec![
            sender(TAP, &scene.web, Direction::Both, &[local_endpoint(VNI), remote_endpoint(VNI + 2)]),
            sender("tap-b", &scene.web, Direction::Ingress, &[local_endpoint(VNI + 1)]),
        ],
        vec![receiver(TAP, VNI, "mirror0"), receiver("tap-b", VNI + 1, "mirror1")],
    );
    let empty = Desired::default();
    for round in 0..24 {
        let before_round = scene.helper.log().matches(": done step=").count();
        scene.agent.request(if round % 3 == 2 { &empty } else { &request });
        // The log shows the executed steps. Each round waits for more of them, or for a report.
        until("the helper has executed the steps", Duration::from_secs(10), || {
            let done = scene.helper.log().matches(": done step=").count() - before_round;
            if done >= round % 8 || scene.agent.has_message() { Ok(()) } else { Err(format!("{done} steps")) }
        });
        scene.helper.kill();
        scene.helper = Helper::start(&scene.node);
        scene.agent = scene.helper.agent();
    }
    scene.agent.establish(&request);
    assert_eq!(scene.web.network().mirrors("eth0").len(), 3);
    let captures = Captures::start(&scene.web, scene.node.network(), "mirror0");
    scene.traffic();
    captures.same(&scene, |_| true);
    scene.agent.request(&empty);
    scene.agent.until("everything is removed", |report| report.senders.is_empty() && report.receivers.is_empty());
    assert_eq!(before.0.differences(&scene.web.network().snapshot()), [""; 0]);
    assert_eq!(before.1.differences(&scene.node.network().snapshot()), [""; 0]);
}

/// While no helper runs, the pod replaces its sender device by one of its own with the same name, settings and marks. The socket of such a
/// device is in the pod: mirrored frames would leave through the pod's own interface, and be mirrored again.
#[test]
fn a_device_that_the_pod_created_is_not_adopted() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_remote(Direction::Both);
    drop(captures);
    scene.helper.kill();
    let web = scene.web.network();
    let device = web.vxlan_devices()[0].clone();
    let link = |network: &Network| network.json(&format!("ip -j -d link show dev {device}"))[0].clone();
    let genuine = link(web);
    let (vni, alias) = (&genuine["linkinfo"]["info_data"]["id"], genuine["ifalias"].as_str().expect("an alias"));
    assert_eq!(genuine["link_netnsid"], 0, "the socket is in another namespace");
    web.ip(&format!(
        "link del {device}\n\
         link add {device} mtu 65000 group {GROUP} arp off multicast off type vxlan id {vni} srcport 50000 50016 maxaddress 1 \
         dstport 14788 nolearning\n\
         link set {device} alias \"{alias}\"\nlink set {device} addrgenmode none up\n"
    ));
    let forged = link(web)["ifindex"].clone();
    scene.helper = Helper::start(&scene.node);
    scene.agent = scene.helper.agent();
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]));
    let now = link(scene.web.network());
    assert_eq!((&now["link_netnsid"], now["ifindex"] != forged), (&genuine["link_netnsid"], true), "{now}");
    let captures = Captures::start(&scene.web, scene.remote.network(), "mirror0");
    scene.traffic();
    captures.same(&scene, |_| true);
}
