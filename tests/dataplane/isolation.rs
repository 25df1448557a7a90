//! A tap does not affect the pod: nothing enters it through a tap, and its own traffic is unchanged.

use std::net::{SocketAddr, UdpSocket};

use podtap_model::Direction;
use podtap_tests::{
    capture::{Capture, Difference, FrameDirection},
    net::traffic::{self, Connection},
    wait::uninterrupted,
};

use crate::scene::{Captures, Scene, TAP, VNI, desired, endpoint, full_size, receiver, remote_endpoint, sender};

/// Frames for the pod in VXLAN, sent to the UDP port of the sender device with its VNI.
#[test]
fn frames_for_the_sender_device_do_not_reach_the_pod() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_remote(Direction::Both);
    let web = scene.web.network();
    let vxlan = web.vxlan_devices()[0].clone();
    let link = &web.json(&format!("ip -j -d link show dev {vxlan}"))[0];
    let data = &link["linkinfo"]["info_data"];
    let (vni, port) = (data["id"].as_u64().expect("a number"), data["port"].as_u64().expect("a number"));
    let mac = web.json("ip -j link show dev eth0")[0]["address"].as_str().expect("a text").to_owned();

    let at_vxlan = Capture::start(web.path(), &vxlan);
    let listening = web.within(|| UdpSocket::bind("0.0.0.0:7777")).expect("a socket can be created");
    listening.set_nonblocking(true).expect("the option can be set");
    let inner = datagram(&mac, scene.web.addresses[0]);
    let header = [&[8, 0, 0, 0][..], &u32::try_from(vni << 8).expect("24 bits").to_be_bytes()].concat();
    let outside = scene.remote.network().within(|| UdpSocket::bind("10.66.0.2:0")).expect("a socket can be created");
    let to = SocketAddr::new([10, 66, 0, 1].into(), u16::try_from(port).expect("a port"));
    for _ in 0..10 {
        outside.send_to(&[header.as_slice(), &inner].concat(), to).expect("the datagram is sent");
    }
    podtap_tests::wait::until("the frames arrive at the device", std::time::Duration::from_secs(5), || {
        let count = at_vxlan.count(|frame| frame.direction == FrameDirection::In && frame.bytes == inner);
        if count == 10 { Ok(()) } else { Err(format!("{count} frames")) }
    });
    // After these datagrams on the same path, everything else would have been delivered, too.
    traffic::udp(&scene.client, web, scene.web.addresses[0], &[10; 20]);
    let got = uninterrupted(|| listening.recv(&mut [0; 100])).map_err(|error| error.kind());
    assert_eq!(got, Err(std::io::ErrorKind::WouldBlock), "none of the frames is delivered");
    captures.same(&scene, |_| true);
}

/// Ethernet, IPv4 and UDP to port 7777.
fn datagram(mac: &str, to: std::net::IpAddr) -> Vec<u8> {
    let mac: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal")).collect();
    let std::net::IpAddr::V4(to) = to else { panic!("IPv4 is first") };
    let mut ip = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 88, 0, 1];
    ip.extend(to.octets());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).expect("one carry");
    ip[10..12].copy_from_slice(&(!folded).to_be_bytes());
    let udp = [0x12, 0x34, 0x1e, 0x61, 0, 12, 0, 0, b'p', b'a', b's', b's'];
    [mac.as_slice(), &[2, 0, 0, 0, 0, 1, 8, 0], &ip, &udp].concat()
}

/// While taps are created and removed, the same frames leave one end and reach the other, and no connection is lost.
#[test]
fn the_pods_own_traffic_is_unchanged() {
    let mut scene = Scene::new();
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    let tapped = desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]);
    let before = scene.web.network().snapshot();
    let (at_pod, at_client) =
        (Capture::start(scene.web.network().path(), "eth0"), Capture::start(scene.client.path(), "eth0"));
    let mut connection = Connection::open(&scene.client, scene.web.network(), scene.web.addresses[0]);
    for _ in 0..5 {
        connection.exchange(100_000);
        scene.agent.establish(&tapped);
        connection.exchange(100_000);
        traffic::ping(&scene.client, scene.web.addresses[1], full_size(scene.web.addresses[1]), 3);
        scene.agent.request(&desired(vec![], vec![]));
        scene.agent.until("the sender is removed", |report| report.senders.is_empty());
    }
    connection.close();
    assert_eq!(scene.web.network().snapshot().differences(&before), [""; 0], "the pod is in its initial state");
    // The bridge floods multicast to other ports.
    let unicast = |capture: &Capture, direction: FrameDirection| {
        let mut frames = capture.so_far();
        frames.retain(|frame| frame.direction == direction && frame.bytes[0] & 1 == 0);
        frames
    };
    podtap_tests::wait::until("both ends captured the same frames", std::time::Duration::from_secs(5), || {
        for (from, to) in [(&at_pod, &at_client), (&at_client, &at_pod)] {
            let difference = Difference::between(&unicast(from, FrameDirection::Out), &unicast(to, FrameDirection::In));
            if !difference.is_none() {
                return Err(difference.to_string());
            }
        }
        Ok(())
    });
}

/// There is no host at the destination, no route to it, or no receiver on it: only mirrored frames are lost.
#[test]
fn an_unreachable_destination_does_not_affect_the_pod() {
    let mut scene = Scene::new();
    let to = |address: [u8; 4]| [endpoint(address, VNI)];
    for (generation, address) in [(1, [10, 66, 0, 77]), (2, [198, 51, 100, 1]), (3, [10, 66, 0, 2])] {
        let mut tapped = desired(vec![sender(TAP, &scene.web, Direction::Both, &to(address))], vec![]);
        tapped.generation = generation;
        scene.agent.establish(&tapped);
        scene.traffic();
    }
}

/// At most 16 source ports, and thus at most 16 conntrack entries per destination on the node.
#[test]
fn mirrored_frames_have_few_source_ports() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_remote(Direction::Both);
    let underlay = Capture::start(scene.remote.network().path(), "under0");
    for _ in 0..30 {
        traffic::udp(&scene.client, scene.web.network(), scene.web.addresses[0], &[10; 4]);
    }
    captures.same(&scene, |_| true);
    let mut ports: Vec<u16> = underlay
        .stop()
        .iter()
        .filter(|frame| frame.bytes[12..14] == [8, 0] && frame.bytes[23] == 17)
        .map(|frame| u16::from_be_bytes([frame.bytes[34], frame.bytes[35]]))
        .collect();
    ports.sort_unstable();
    ports.dedup();
    assert!(ports.len() > 4 && ports.len() <= 16, "{ports:?}");
    assert!(ports.iter().all(|port| (50000..50016).contains(port)), "{ports:?}");
    // No more frames arrive: the devices send nothing by themselves. IPv6 announcements of the pod's kernel may be mirrored at any time.
    let mut more = Captures::start(&scene.web, scene.remote.network(), "mirror0").receiver.stop();
    more.retain(|frame| !frame.is_announcement());
    assert_eq!(more, []);
}
