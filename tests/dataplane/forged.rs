//! Only mirrored frames leave a sender device: what processes in the pod send to it is dropped and counted.

use std::{
    io::Write as _,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use podtap_model::Direction;
use podtap_tests::{capture::injector, wait::until};

use crate::scene::Scene;

const FORGED: usize = 20;

/// Frames that the sender device has dropped because they were not mirrored.
#[track_caller]
fn dropped(scene: &mut Scene, request: u64) -> u64 {
    let counters = scene.agent.counters(request);
    counters.senders[0].forged.frames
}

/// Since Linux 5.7, binding a socket to a device needs no capability.
#[test]
fn frames_of_a_socket_that_is_bound_to_the_device_do_not_leave_it() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_remote(Direction::Both);
    let web = scene.web.network();
    let vxlan = web.vxlan_devices()[0].clone();
    let socket = web.within(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket can be created");
    setsockopt(&socket, BindToDevice, &vxlan.into()).expect("the socket can be bound to the device");
    for number in 0..FORGED {
        // The error depends on the kernel.
        let _ =
            socket.send_to(&[b'F'; 100], SocketAddr::from(([10, 99, 0, 1], 7000 + u16::try_from(number).unwrap_or(0))));
    }
    scene.traffic();
    captures.same(&scene, |_| true);
    assert_eq!(dropped(&mut scene, 1), FORGED as u64);
}

/// A packet socket needs `NET_RAW`, which container runtimes grant by default.
#[test]
fn frames_of_a_packet_socket_do_not_leave_the_device() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_remote(Direction::Both);
    let vxlan = scene.web.network().vxlan_devices()[0].clone();
    let mut socket = injector(scene.web.network(), &vxlan);
    // Like a frame that the pod receives: addresses of its own, and a payload of its own.
    let frame = [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5][..], &[b'F'; 100]].concat();
    for _ in 0..FORGED {
        let _ = socket.write(&[&[0; 10], &frame[..]].concat());
        // Between mirrored frames, too.
        podtap_tests::net::traffic::udp(&scene.client, scene.web.network(), scene.web.addresses[0], &[50]);
    }
    scene.traffic();
    captures.same(&scene, |_| true);
    until("all of them are counted", Duration::from_secs(5), || match dropped(&mut scene, 1) {
        count if count == FORGED as u64 => Ok(()),
        count => Err(count.to_string()),
    });
}
