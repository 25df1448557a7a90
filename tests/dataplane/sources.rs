//! A receiver shows only frames that a tapped pod sent or received: its node drops VXLAN from anyone but the nodes that send to it.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::FromRawFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use podtap_model::{Direction, Endpoint, IpNet, Reason, Receiver, State};
use podtap_tests::{
    capture::{Capture, FrameDirection},
    net::{Desired, Helper, Network, Pod, traffic},
    wait::{PATIENCE, until},
};
use serde_json::Value;

use crate::scene::{Captures, PORT, Scene, TAP, VNI, desired, local_endpoint, receiver, remote_endpoint, sender};

/// A frame with an EtherType for experiments.
const FORGED: &[u8] =
    b"\x02\x00\x00\x00\x00\xaa\x02\x00\x00\x00\x00\xbb\x88\xb5a frame that no tapped pod sent or received";

fn network(text: &str) -> IpNet {
    text.parse().expect("a network")
}

/// Sends forged frames with a VNI as any process in a network can.
fn forge(from: &Network, to: &str, vni: u32) {
    let packet = [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes(), FORGED].concat();
    let to: SocketAddr = to.parse().expect("an address with a port");
    let any: IpAddr = if to.is_ipv6() { [0_u16; 8].into() } else { [0_u8; 4].into() };
    let socket = from.within(|| UdpSocket::bind((any, 0))).expect("a socket can be created");
    socket.set_broadcast(true).expect("the option can be set");
    for _ in 0..5 {
        // After an ICMP error, the next call reports it and sends nothing.
        let _ = socket.send_to(&packet, to).or_else(|_| socket.send_to(&packet, to)).expect("the packet is sent");
    }
}

/// Sends a UDP datagram over IPv6 in two fragments, of which the first has a part of this length.
fn send_in_fragments(from: &Network, to: Ipv6Addr, payload: &[u8], first: usize) {
    let target = SocketAddr::from((to, PORT));
    let probe = from.within(|| UdpSocket::bind("[::]:0")).expect("a socket can be created");
    probe.connect(target).expect("there is a route");
    let Ok(IpAddr::V6(source)) = probe.local_addr().map(|address| address.ip()) else { panic!("it is IPv6") };
    let length = u16::try_from(payload.len() + 8).expect("it is short").to_be_bytes();
    let header = [50000_u16.to_be_bytes(), PORT.to_be_bytes(), length, [0; 2]].concat();
    let mut datagram = [&header, payload].concat();
    let pseudo = [&source.octets()[..], &to.octets(), &[0, 0], &length, &[0, 0, 0, 17]].concat();
    let sum = [pseudo.as_slice(), &datagram].concat().chunks(2).fold(0_u32, |sum, pair| {
        sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]))
    });
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = u16::try_from((folded & 0xffff) + (folded >> 16)).expect("it is folded");
    datagram[6..8].copy_from_slice(&(!folded).to_be_bytes());
    // The kernel adds the IPv6 header before the fragment header.
    #[expect(unsafe_code, reason = "std has no raw sockets")]
    let socket = from.within(|| {
        // SAFETY: a new descriptor or an error.
        let fd = unsafe { libc::socket(libc::AF_INET6, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_FRAGMENT) };
        assert!(fd >= 0, "a raw socket can be created");
        // SAFETY: nothing else owns it.
        unsafe { UdpSocket::from_raw_fd(fd) }
    });
    let number = [7, 7, 7, u8::try_from(first).expect("it is short")];
    for (offset, more, part) in [(0, 1, &datagram[..first]), (first, 0, &datagram[first..])] {
        let position = (u16::try_from(offset).expect("it is short") | more).to_be_bytes();
        let fragment = [&[17, 0][..], &position, &number, part].concat();
        socket.send_to(&fragment, SocketAddr::from((to, 0))).expect("the fragment is sent");
    }
}

fn forged(capture: &Capture) -> usize {
    capture.count(|frame| frame.direction == FrameDirection::In && frame.bytes == FORGED)
}

/// The rules of PodTap's table as `nft` shows them.
fn rules(network: &Network) -> String {
    network.try_run(&["nft", "list", "table", "inet", "podtap"], "").unwrap_or_default()
}

/// The rules without their counters.
fn uncounted(rules: &str) -> Vec<String> {
    let line = |line: &str| line.split_once(" counter ").map_or(line, |(rule, _)| rule).to_owned();
    rules.lines().map(line).collect()
}

/// A tap of `web` to both nodes over IPv4 and IPv6, whose receivers accept only what the other node sends.
fn tapped() -> (Scene, Desired) {
    let mut scene = Scene::new();
    let six = |vni| Receiver { ipv6: true, ..receiver("tap-b", vni, "mirror6") };
    let remote = Desired {
        sources: vec![network("10.66.0.1/32"), network("fd66::1/128")],
        ..desired(vec![], vec![receiver(TAP, VNI, "mirror"), six(VNI + 1)])
    };
    scene.remote_agent.establish(&remote);
    let [four, to_six] = [["10.66.0.2", "10.66.0.1"], ["fd66::2", "fd66::1"]].map(|addresses| {
        addresses.map(|address| Endpoint { address: address.parse().expect("an address"), ..remote_endpoint(VNI) })
    });
    let to_six = [
        Endpoint { vni: (VNI + 1).try_into().expect("a VNI"), ..to_six[0] },
        Endpoint { vni: (VNI + 3).try_into().expect("a VNI"), ..to_six[1] },
    ];
    let four = [four[0], Endpoint { vni: (VNI + 2).try_into().expect("a VNI"), ..four[1] }];
    let local = Desired {
        sources: vec![network("10.66.0.2/32"), network("fd66::2/128")],
        ..desired(
            vec![
                sender(TAP, &scene.web, Direction::Both, &four),
                sender("tap-b", &scene.web, Direction::Both, &to_six),
            ],
            vec![receiver(TAP, VNI + 2, "mirror"), six(VNI + 3)],
        )
    };
    scene.agent.establish(&local);
    (scene, local)
}

/// From a pod of the receiver's node by unicast, broadcast and multicast, and from the node itself. Mirrored frames of the same node and
/// of the other one arrive at the same time.
#[test]
fn forged_frames_do_not_reach_a_receiver() {
    let (mut scene, _) = tapped();
    let at_node = ["mirror", "mirror6"].map(|name| Captures::start(&scene.web, scene.node.network(), name));
    let at_remote = ["mirror", "mirror6"].map(|name| Captures::start(&scene.web, scene.remote.network(), name));
    let other = Pod::start(&scene.node);
    let scope = other.network().json("ip -j link show dev eth0")[0]["ifindex"].clone();
    let (four, six) = (VNI + 2, VNI + 3);
    for (to, vni) in [
        (format!("10.66.0.1:{PORT}"), four),
        (format!("10.88.0.1:{PORT}"), four),
        (format!("10.88.0.255:{PORT}"), four),
        (format!("255.255.255.255:{PORT}"), four),
        (format!("224.0.0.1:{PORT}"), four),
        (format!("[fd66::1]:{PORT}"), six),
        (format!("[fd88::1]:{PORT}"), six),
        (format!("[ff02::1%{scope}]:{PORT}"), six),
    ] {
        forge(other.network(), &to, vni);
    }
    forge(scene.node.network(), &format!("10.66.0.1:{PORT}"), four);
    forge(scene.node.network(), &format!("[fd66::1]:{PORT}"), six);
    let rejected = scene.agent.counters(1).rejected.expect("there are receivers");
    assert_eq!(rejected.frames, 10 * 5, "{}", rules(scene.node.network()));
    scene.traffic();
    for captures in at_node.into_iter().chain(at_remote) {
        assert_eq!(forged(&captures.receiver), 0);
        captures.same(&scene, |_| true);
    }
}

/// Production traffic comes first: whatever port a receiver has, other traffic to it passes from any address.
#[test]
fn other_traffic_to_the_same_port_passes() {
    let (mut scene, _) = tapped();
    let header = |flags: u8, vni: u32, reserved: u8| {
        let vni = vni << 8 | u32::from(reserved);
        [&[flags, 0, 0, 0][..], &vni.to_be_bytes(), FORGED].concat()
    };
    // Of another VNI, of no VXLAN, with reserved bits, shorter than a header. The receiver ignores all of them.
    let complete = header(8, VNI + 2, 0);
    let datagrams =
        [header(8, VNI + 9, 0), header(0, VNI + 2, 0), header(8, VNI + 2, 1), complete[..7].to_vec(), vec![]];
    let node = scene.node.network();
    let seen = "table inet seen { chain input { type filter hook input priority 10; udp dport 14789 counter; }; }";
    node.try_run(&["nft", "-f", "-"], seen).expect("nft accepts it");
    for to in ["10.88.0.1", "[fd88::1]"] {
        let to: SocketAddr = format!("{to}:{PORT}").parse().expect("an address");
        let any: IpAddr = if to.is_ipv6() { [0_u16; 8].into() } else { [0_u8; 4].into() };
        let other = Pod::start(&scene.node);
        let socket = other.network().within(|| UdpSocket::bind((any, 0))).expect("a socket can be created");
        for datagram in &datagrams {
            socket.send_to(datagram, to).expect("the packet is sent");
        }
    }
    let expected = format!("counter packets {} ", 2 * datagrams.len());
    until("all have passed", Duration::from_secs(5), || {
        let table = node.run("nft list table inet seen");
        if table.contains(&expected) { Ok(()) } else { Err(table) }
    });
    assert_eq!(scene.agent.counters(1).rejected.map(|count| count.frames), Some(0));
}

/// IPv6 is reassembled behind the filter: a first fragment that ends before the VNI cannot carry a forged frame past it.
#[test]
fn forged_fragments_do_not_reach_a_receiver() {
    let (mut scene, _) = tapped();
    let other = Pod::start(&scene.node);
    let capture = Capture::start(scene.node.network().path(), "mirror6");
    let packet = [&[8, 0, 0, 0][..], &((VNI + 3) << 8).to_be_bytes(), FORGED, &[0; 64]].concat();
    let to = "fd88::1".parse().expect("an address");
    // 8 bytes are the UDP header, 16 reach to the end of the VXLAN header.
    for first in [8, 16, 24] {
        send_in_fragments(other.network(), to, &packet, first);
    }
    until("the fragments are rejected", Duration::from_secs(5), || {
        let rejected = scene.agent.counters(1).rejected.map_or(0, |count| count.frames);
        if rejected == 3 { Ok(()) } else { Err(rules(scene.node.network())) }
    });
    scene.traffic();
    assert_eq!(capture.count(|frame| frame.bytes.starts_with(FORGED)), 0);
}

/// The table continues to filter without a helper, and the next helper adopts it with its counters.
#[test]
fn nothing_forged_arrives_without_a_helper() {
    let (mut scene, local) = tapped();
    let before = rules(scene.node.network());
    let captures = Captures::start(&scene.web, scene.node.network(), "mirror");
    scene.helper.kill();
    forge(&scene.client, &format!("10.88.0.1:{PORT}"), VNI + 2);
    scene.traffic();
    assert_eq!(forged(&captures.receiver), 0);
    captures.same(&scene, |_| true);
    scene.helper = Helper::start(&scene.node);
    scene.agent = scene.helper.agent();
    scene.agent.establish(&local);
    assert_eq!(scene.agent.counters(1).rejected.map(|count| count.frames), Some(5));
    assert_eq!(uncounted(&rules(scene.node.network())), uncounted(&before), "the table is adopted");
}

/// Another source, a deleted rule, the last receiver.
#[test]
fn the_table_follows_the_receivers() {
    let mut scene = Scene::new();
    let node = scene.remote.network();
    assert_eq!(node.run("nft list tables"), "");
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]));
    let mut remote = Desired { sources: vec![], ..desired(vec![], vec![receiver(TAP, VNI, "mirror")]) };
    scene.remote_agent.establish(&remote);
    let capture = Capture::start(node.path(), "mirror");
    traffic::ping(&scene.client, scene.web.addresses[0], 100, 3);
    let all_rejected = |agent: &mut podtap_tests::net::Agent, request| {
        let rejected = agent.counters(request).rejected.unwrap_or_default().frames;
        if rejected >= 6 { Ok(rejected) } else { Err(rejected) }
    };
    let mut request = 0;
    let rejected = until("the mirrored frames are rejected", Duration::from_secs(10), || {
        request += 1;
        all_rejected(&mut scene.remote_agent, request)
    });
    assert_eq!(capture.so_far().len(), 0);

    remote.sources = vec![network("10.66.0.0/31"), network("fd66::1/128")];
    scene.remote_agent.establish(&remote);
    traffic::ping(&scene.client, scene.web.addresses[0], 100, 3);
    until("the mirrored frames arrive", Duration::from_secs(10), || {
        if capture.so_far().len() >= 6 { Ok(()) } else { Err(capture.so_far().len()) }
    });
    assert_eq!(scene.remote_agent.counters(1000).rejected.map(|count| count.frames), Some(rejected), "it continues");

    let complete = rules(node);
    node.run("nft flush chain inet podtap input");
    assert_ne!(rules(node), complete);
    remote.generation += 1;
    scene.remote_agent.establish(&remote);
    until("the rules are restored", Duration::from_secs(5), || {
        let now = rules(node);
        if uncounted(&now) == uncounted(&complete) { Ok(()) } else { Err(now) }
    });
    // As many rules as before, but not the same.
    let listed = node.run("nft -a list chain inet podtap input");
    let rule = listed.lines().rev().find_map(|line| line.split_once(" drop # handle ")).expect("a rule drops").1;
    node.run(&format!("nft replace rule inet podtap input handle {rule} counter accept"));
    until("the rule is restored without an update", Duration::from_secs(5), || {
        let now = rules(node);
        if uncounted(&now) == uncounted(&complete) { Ok(()) } else { Err(now) }
    });
    node.run("nft delete table inet podtap");
    until("the table is restored without an update", Duration::from_secs(5), || {
        let now = rules(node);
        if uncounted(&now) == uncounted(&complete) { Ok(()) } else { Err(now) }
    });

    scene.remote_agent.request(&desired(vec![], vec![]));
    scene.remote_agent.until("everything is removed", |status| status.receivers.is_empty());
    until("the table is removed", Duration::from_secs(5), || {
        let tables = node.run("nft list tables");
        if tables.is_empty() { Ok(()) } else { Err(tables) }
    });
}

/// A receiver that comes or goes changes the table: those that stay lose no frame by it.
#[test]
fn receivers_that_come_and_go_cost_the_others_no_frame() {
    let mut scene = Scene::new();
    let mut remote =
        Desired { sources: vec![network("10.66.0.1/32")], ..desired(vec![], vec![receiver(TAP, VNI, "mirror")]) };
    scene.remote_agent.establish(&remote);
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]));
    let captures = Captures::start(&scene.web, scene.remote.network(), "mirror");
    let ping = format!("ping -q -l 50 -i 0 -c 2000 -s 100 {}", scene.web.addresses[0]);
    let is_changed = AtomicBool::new(false);
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            // Bounded, in case a change fails.
            let started = Instant::now();
            while !is_changed.load(Ordering::Relaxed) && started.elapsed() < PATIENCE {
                scene.client.run(&ping);
            }
        });
        for change in 0..20 {
            remote.generation += 1;
            if change % 2 == 0 {
                remote.receivers.push(receiver("tap-b", VNI + 1, "other"));
            } else {
                remote.receivers.pop();
            }
            scene.remote_agent.establish(&remote);
        }
        is_changed.store(true, Ordering::Relaxed);
        flood.join().expect("ping does not fail");
    });
    assert_eq!(scene.remote_agent.counters(1).rejected.map(|count| count.frames), Some(0));
    captures.same(&scene, |_| true);
}

/// More than a netlink socket sends at once by default.
#[test]
fn a_receiver_accepts_many_sources() {
    let mut scene = Scene::new();
    // Every other address, so that none can be merged.
    let sources = (0..10_000_u32).map(|number| IpNet::from(IpAddr::from((0x0a80_0000 + 2 * number).to_be_bytes())));
    let remote = Desired { sources: sources.collect(), ..desired(vec![], vec![receiver(TAP, VNI, "mirror")]) };
    scene.remote_agent.establish(&remote);
    assert_eq!(rules(scene.remote.network()).matches("10.128.").count(), 10_000);
}

/// A foreign table is not touched, and does not hide the receivers' filter.
#[test]
fn foreign_tables_stay() {
    let (scene, _) = tapped();
    let node = scene.node.network();
    node.try_run(
        &["nft", "-f", "-"],
        "table inet other { chain input { type filter hook input priority -10; accept; }; }",
    )
    .expect("nft accepts it");
    let foreign = || node.run("nft list table inet other");
    let before = foreign();
    let capture = Capture::start(node.path(), "mirror");
    forge(&scene.client, &format!("10.88.0.1:{PORT}"), VNI + 2);
    let mut scene = scene;
    assert_eq!(scene.agent.counters(1).rejected.map(|count| count.frames), Some(5));
    assert_eq!(forged(&capture), 0);
    scene.agent.request(&desired(vec![], vec![]));
    scene.agent.until("everything is removed", |status| status.receivers.is_empty() && status.senders.is_empty());
    let node = scene.node.network();
    until("only the foreign table is left", Duration::from_secs(5), || {
        let tables = node.run("nft list tables");
        if tables.trim() == "table inet other" { Ok(()) } else { Err(tables) }
    });
    assert_eq!(node.run("nft list table inet other"), before);
}

/// `inspect` shows what was rejected, and `purge` removes the table.
#[test]
fn commands_know_the_table() {
    let (mut scene, _) = tapped();
    forge(&scene.client, &format!("10.88.0.1:{PORT}"), VNI + 2);
    scene.helper.kill();
    let (status, output, error) = Helper::once(&scene.node, &["inspect"], "");
    assert!(status.success(), "{error}");
    let contents: Value = serde_json::from_str(&output).expect("JSON");
    let rejected: Vec<u64> =
        contents.as_array().expect("a list").iter().filter_map(|netns| netns["rejected"]["frames"].as_u64()).collect();
    assert_eq!(rejected, [5]);
    let (status, _, error) = Helper::once(&scene.node, &["purge"], "");
    assert!(status.success(), "{error}");
    assert_eq!(scene.node.network().run("nft list tables"), "");
}

/// The source address that the node's route selects, for the controller: it need not be the one that the Node object shows.
#[test]
fn the_source_address_is_reported() {
    let mut scene = Scene::new();
    let node = scene.node.network();
    node.ip("addr add 10.77.0.9/32 dev under0\nroute add 10.66.0.2/32 dev under0 src 10.77.0.9\n");
    let both = [remote_endpoint(VNI), local_endpoint(VNI + 1)];
    let request =
        desired(vec![sender(TAP, &scene.web, Direction::Both, &both)], vec![receiver(TAP, VNI + 1, "mirror")]);
    let status = scene.agent.establish(&request);
    assert_eq!(status.source_addresses, [IpAddr::from([10, 77, 0, 9])]);
    scene.node.network().ip("route del 10.66.0.2/32\n");
    scene
        .agent
        .until("the other address is reported", |status| status.source_addresses == [IpAddr::from([10, 66, 0, 1])]);
}

/// Networks that cannot be read let no receiver accept everything.
#[test]
fn unreadable_sources_refuse_receivers() {
    let mut scene = Scene::new();
    let mut update = desired(vec![], vec![receiver(TAP, VNI, "mirror")]).update();
    update.spec["sources"] = serde_json::json!(["everybody"]);
    scene.remote_agent.apply(update);
    scene.remote_agent.until("the receiver is refused", |status| {
        status.receivers.iter().all(|r| (r.state, r.reason) == (State::Refused, Reason::InvalidSpec))
            && status.receivers.len() == 1
    });
}
