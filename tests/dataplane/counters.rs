//! Counters that the helper reports to the agent.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    time::Duration,
};

use podtap_model::{Count, Direction, DirectionCounters, Request, Response, SenderCounters};
use podtap_tests::{
    net::{Desired, Helper, Network, Pod, Sender, traffic},
    wait::until,
};
use serde_json::{Value, json};

use crate::scene::{Scene, TAP, VNI, desired, options, receiver, remote_endpoint, select_all, sender};

fn request(scene: &Scene, change: impl FnOnce(&mut Sender)) -> Desired {
    let mut sender = sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)]);
    change(&mut sender);
    desired(vec![sender], vec![])
}

fn with_options(sender: &mut Sender) {
    sender.tap.options = options(json!({
        "filter": {"exclude": [{"protocol": "UDP"}]},
        "sample": {"oneInFlows": 2},
        "limit": {"bitsPerSecond": "8M", "bytesPerFlow": "50k"},
        "truncate": {"bytes": 64, "exemptBytes": 100},
    }));
}

/// The counters of the only sender.
#[track_caller]
fn counted(scene: &mut Scene, request: u64) -> SenderCounters {
    let mut response = scene.agent.counters(request);
    assert_eq!(response.senders.len(), 1, "{response:?}");
    let sender = response.senders.remove(0);
    assert_eq!((&*sender.tap_uid, &*sender.pod_uid, &*sender.interface), (TAP, &*scene.web.uid, "eth0"));
    sender
}

fn results(direction: &DirectionCounters) -> Vec<Count> {
    let DirectionCounters {
        mirrored,
        filtered,
        sampled_out,
        rate_limited,
        deduplicated,
        expired,
        cut_off,
        truncated: _,
        oversized: _,
        failed: _,
    } = *direction;
    vec![mirrored, filtered, sampled_out, rate_limited, deduplicated, expired, cut_off]
}

/// All frames and bytes of a direction.
fn seen(direction: Option<DirectionCounters>) -> (u64, u64) {
    let all = results(&direction.expect("the direction is mirrored"));
    (all.iter().map(|count| count.frames).sum(), all.iter().map(|count| count.bytes).sum())
}

/// Frames and bytes that the pod's interface counted: received, sent.
fn interface(network: &Network) -> [(u64, u64); 2] {
    let links = network.json("ip -j -s link show dev eth0");
    let field = |direction: &str, name: &str| links[0]["stats64"][direction][name].as_u64().expect("a number");
    ["rx", "tx"].map(|direction| (field(direction, "packets"), field(direction, "bytes")))
}

fn exchange(scene: &Scene) {
    let web = scene.web.network();
    for address in &scene.web.addresses {
        traffic::tcp(&scene.client, web, *address, 100_000);
        traffic::udp(&scene.client, web, *address, &[0, 100, 1452]);
        traffic::ping(&scene.client, *address, 56, 3);
    }
    for address in scene.client_addresses() {
        traffic::tcp(web, &scene.client, address, 20_000);
    }
}

/// Reads the interface and the counters until both increased equally since `before`, in each direction.
#[track_caller]
fn await_equal(scene: &mut Scene, request: u64, before: [(u64, u64); 2], zero: &SenderCounters) -> SenderCounters {
    until("the counters add up to those of the interface", Duration::from_secs(10), || {
        let now = interface(scene.web.network());
        let counted = counted(scene, request);
        let since = |(now, before): ((u64, u64), (u64, u64))| (now.0 - before.0, now.1 - before.1);
        let shown = [since((now[0], before[0])), since((now[1], before[1]))];
        let sums =
            [since((seen(counted.ingress), seen(zero.ingress))), since((seen(counted.egress), seen(zero.egress)))];
        if shown == sums { Ok(counted) } else { Err(format!("{shown:?} at the interface, {sums:?} counted")) }
    })
}

fn monotonic(one: &SenderCounters, other: &SenderCounters) -> bool {
    let all = |sender: &SenderCounters| -> Vec<Count> {
        let directions = [sender.ingress, sender.egress].into_iter().flatten();
        let all = |counted: DirectionCounters| [results(&counted), vec![counted.truncated, counted.oversized]].concat();
        directions.flat_map(all).collect()
    };
    let (one, other) = (all(one), all(other));
    one.len() == 18 && one.iter().zip(&other).all(|(a, b)| a.frames <= b.frames && a.bytes <= b.bytes)
}

#[test]
fn counters_add_up_to_those_of_the_interface_even_after_a_restart() {
    let mut scene = Scene::new();
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    scene.agent.establish(&request(&scene, with_options));
    let zero = counted(&mut scene, 1);
    let before = interface(scene.web.network());

    exchange(&scene);
    let first = await_equal(&mut scene, 2, before, &zero);
    for direction in [first.ingress, first.egress].into_iter().flatten() {
        assert!(direction.mirrored.frames > 0 && direction.filtered.frames >= 6, "{first:?}");
        assert_eq!(direction.failed, 0, "{first:?}");
        assert!(direction.truncated.frames > 0 && direction.truncated.bytes > 0, "{first:?}");
    }

    scene.helper.kill();
    exchange(&scene);
    scene.helper = Helper::start(&scene.node);
    scene.agent = scene.helper.agent();
    scene.agent.establish(&request(&scene, with_options));
    let second = await_equal(&mut scene, 3, before, &zero);
    assert!(monotonic(&first, &second) && first != second, "{first:?}\n{second:?}");
    // Other programs continue the counters.
    scene.agent.establish(&request(&scene, |sender| {
        with_options(sender);
        select_all(sender);
    }));
    exchange(&scene);
    let third = await_equal(&mut scene, 4, before, &zero);
    assert!(monotonic(&second, &third), "{second:?}\n{third:?}");
}

#[test]
fn requests_for_counters_do_not_disturb_updates_and_reports() {
    let mut scene = Scene::new();
    // Before the first update, no sender exists.
    assert_eq!(scene.agent.counters(1).senders, []);
    // Sent together: the counters include the sender of the update.
    let line = |message: Request| serde_json::to_string(&message).expect("JSON") + "\n";
    let update = line(Request::Apply(request(&scene, |_| ()).update()));
    let messages = update + &line(Request::Counters(2)) + &line(Request::Counters(3));
    scene.agent.send_bytes(messages.as_bytes()).expect("the messages are sent");
    let report = scene.agent.receive().expect("a report");
    assert!(matches!(report, Response::Report(_)), "{report:?}");
    let response = scene.agent.receive().expect("counters");
    let Response::Counters(counters) = response else { panic!("{response:?}") };
    assert_eq!((counters.request, counters.senders.len()), (3, 1), "only the newest pending request gets a response");
    counted(&mut scene, 4);
    assert!(!scene.agent.has_message(), "an unchanged status is not reported again");
}

/// One direction, two taps on one pod, and two pods: each sender has its own counters.
#[test]
fn each_sender_has_its_own() {
    let mut scene = Scene::new();
    let other = Pod::start(&scene.node);
    let senders = vec![
        sender("tap-a", &scene.web, Direction::Ingress, &[remote_endpoint(5001)]),
        sender("tap-b", &scene.web, Direction::Egress, &[remote_endpoint(5002)]),
        sender("tap-b", &other, Direction::Egress, &[remote_endpoint(5002)]),
    ];
    scene.agent.establish(&desired(senders, vec![]));
    traffic::ping(&scene.client, scene.web.addresses[0], 56, 5);
    let answer = scene.agent.counters(1).senders;
    let keys: Vec<_> = answer.iter().map(|sender| (&*sender.tap_uid, &*sender.pod_uid)).collect();
    assert_eq!(keys, [("tap-a", &*scene.web.uid), ("tap-b", &*scene.web.uid), ("tap-b", &*other.uid)]);
    assert!(answer[0].egress.is_none() && seen(answer[0].ingress).0 >= 5, "{answer:?}");
    assert!(answer[1].ingress.is_none() && seen(answer[1].egress).0 >= 5, "{answer:?}");
    assert!(
        answer[2].ingress.is_none() && answer[2].egress.is_some_and(|egress| egress.mirrored.frames < 5),
        "{answer:?}"
    );
}

#[test]
fn truncated_and_oversized_frames_have_their_direction() {
    let mut scene = Scene::with_underlay(1500);
    let udp = json!({"include": [{"protocol": "UDP"}]});
    let mut senders = ["tap-a", "tap-b"].map(|tap| sender(tap, &scene.web, Direction::Both, &[remote_endpoint(VNI)]));
    senders[0].tap.options = options(json!({"filter": udp, "truncate": {"bytes": 64}}));
    senders[1].tap.options = options(json!({"filter": udp}));
    scene.agent.establish(&desired(senders.to_vec(), vec![]));
    let mut request = 0;
    let mut counted = |scene: &mut Scene| {
        request += 1;
        let senders = scene.agent.counters(request).senders;
        let direction = |sender: &SenderCounters, direction: Option<DirectionCounters>| {
            let counted = direction.unwrap_or_else(|| panic!("both directions are mirrored: {sender:?}"));
            (counted.truncated, counted.oversized.frames)
        };
        let of = |sender| [direction(sender, sender.ingress), direction(sender, sender.egress)];
        [of(&senders[0]), of(&senders[1])]
    };
    // With its headers, a datagram has 1514 bytes.
    let (none, truncated) = ((Count::default(), 0), (Count { frames: 3, bytes: 3 * 1450 }, 0));
    let oversized = (Count::default(), 3);
    let mut expect = |scene: &mut Scene, expected: [[(Count, u64); 2]; 2]| {
        until("the datagrams are counted", Duration::from_secs(5), || match counted(scene) {
            found if found == expected => Ok(()),
            found => Err(format!("{found:?}")),
        });
    };
    let ipv4 = |addresses: &[IpAddr]| *addresses.iter().find(|address| address.is_ipv4()).expect("both have one");
    let (pod, client) = (ipv4(&scene.web.addresses), ipv4(&scene.client_addresses()));
    send_datagrams(&scene.client, pod);
    expect(&mut scene, [[truncated, none], [oversized, none]]);
    send_datagrams(scene.web.network(), client);
    expect(&mut scene, [[truncated, truncated], [oversized, oversized]]);
}

/// Sends three datagrams of full size, which are not answered with others.
fn send_datagrams(from: &Network, to: IpAddr) {
    let socket = from.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("a socket can be created");
    for _ in 0..3 {
        socket.send_to(&[7; 1472], (to, 9)).expect("it can be sent");
    }
}

/// The mirrored and the failed frames of the only sender's ingress.
#[track_caller]
fn inspected(scene: &Scene) -> [u64; 2] {
    let (status, output, error) = Helper::once(&scene.node, &["inspect"], "");
    assert!(status.success(), "{error}");
    let found: Value = serde_json::from_str(&output).expect("JSON");
    let [mirrored, failed] = [
        &found[0]["devices"][0]["counters"]["ingress"]["mirrored"]["frames"],
        &found[0]["filters"]
            .as_array()
            .and_then(|all| all.iter().find(|filter| filter["direction"] == "Ingress"))
            .expect("the direction is mirrored")["failed"],
    ];
    [mirrored, failed].map(|count| count.as_u64().expect("a number"))
}

/// A frame that the sender device drops counts once as mirrored, and as failed.
#[test]
fn dropped_mirrored_frames_count_as_failed() {
    let mut scene = Scene::new();
    scene.agent.establish(&request(&scene, |_| ()));
    let vxlan = scene.web.network().vxlan_devices()[0].clone();
    // It would remove the filter.
    scene.helper.kill();
    // Drops frames, as the program there does if it cannot truncate one.
    let words = format!("tc filter add dev {vxlan} egress prio 1 bpf da bytecode");
    let command: Vec<&str> = words.split(' ').chain(["1,6 0 0 2"]).collect();
    scene.web.network().try_run(&command, "").expect("tc accepts the filter");
    // Read only now: frames that the pod's kernel sends by itself would have been mirrored and not dropped before.
    let before = inspected(&scene);
    traffic::ping(&scene.client, scene.web.addresses[0], 56, 5);
    let after = inspected(&scene);
    let [mirrored, failed] = [after[0] - before[0], after[1] - before[1]];
    assert!(failed >= 5, "{before:?} {after:?}");
    assert_eq!(mirrored, failed, "{before:?} {after:?}");
}
