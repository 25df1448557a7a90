//! A pod that is the destination of taps.

use std::{
    fs::File,
    io::{IoSlice, Write as _},
    mem::MaybeUninit,
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
};

use podtap_model::PACKET_SOCKET_ADDRESS;
use podtap_tests::{
    capture::{injector, locked},
    net::Network,
    wait::{PATIENCE, until},
};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, sendmsg, socket_with,
};

use crate::views::identity;

pub const WEB: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
pub const CART: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// How the receiver of a tap is called.
pub const RECEIVER: &str = "ptap4096";

/// The network namespace of a pod, with receivers whose frames a test writes.
pub struct Pod {
    pub network: Network,
}

impl Pod {
    pub fn new() -> Self {
        let pod = Self { network: Network::new() };
        pod.add(RECEIVER);
        pod
    }

    pub fn add(&self, receiver: &str) {
        let tap = format!("x{receiver}");
        self.network.ip(&format!("link add {receiver} type veth peer name {tap}\n"));
        for device in [receiver, &tap] {
            self.network.set(&format!("ipv6/conf/{device}/disable_ipv6"), "1");
            self.network.ip(&format!("link set {device} mtu 65535 up\n"));
        }
    }

    pub fn injector(&self, receiver: &str) -> Injector {
        Injector(injector(&self.network, &format!("x{receiver}")))
    }

    /// Hands a socket over, as the tap-helper does, and returns when it is captured with. It ends with the connection.
    pub fn hand_over(&self, receiver: &str) -> OwnedFd {
        let connection = self.send(&format!(r#"{{"interface":"{receiver}"}}"#), &[locked(&self.network, receiver)]);
        self.until_captured(receiver);
        connection
    }

    pub fn until_captured(&self, receiver: &str) {
        until("the interface has a reader", PATIENCE, || {
            let links = self.network.json(&format!("ip -j -d link show dev {receiver}"));
            if links[0]["promiscuity"] == 1 { Ok(()) } else { Err(format!("{links:?}")) }
        });
    }

    /// Sends a message to where sockets are handed over.
    pub fn send(&self, message: &str, descriptors: &[OwnedFd]) -> OwnedFd {
        self.network.within(|| {
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
            let socket = socket.expect("a socket");
            let address = SocketAddrUnix::new_abstract_name(PACKET_SOCKET_ADDRESS.as_bytes()).expect("an address");
            connect(&socket, &address).expect("it listens");
            let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(&descriptors)));
            sendmsg(&socket, &[IoSlice::new(message.as_bytes())], &mut control, SendFlags::empty())
                .expect("it is sent");
            socket
        })
    }
}

/// Writes frames that a receiver gets.
pub struct Injector(File);

impl Injector {
    pub fn frame(&mut self, frame: &[u8]) {
        // After an empty virtio_net_hdr.
        self.0.write_all(&[&[0; 10], frame].concat()).expect("the device takes it");
    }

    pub fn frames(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            self.frame(frame);
        }
    }
}

/// A frame of a probe: of the EtherType, and no metadata.
pub fn probe() -> Vec<u8> {
    let mut probe = identity("web", WEB);
    probe[14] = 1;
    probe
}
