//! Packet sockets that are handed over to a pod, whose programs need no capability for them.

use std::{
    io::IoSliceMut,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use nix::{
    cmsg_space,
    errno::Errno,
    libc,
    sys::socket::{
        AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, listen,
        recv, recvmsg, socket,
    },
};
use podtap_model::{Direction, MAX_PACKET_SOCKET_MESSAGE, PACKET_SOCKET_ADDRESS, PacketSocket, Receiver};
use podtap_tests::{
    capture::Capture,
    net::{Network, Pod, traffic},
    wait::{PATIENCE, uninterrupted, until},
};
use socket2::SockRef;

use crate::scene::{Scene, TAP, VNI, desired, receiver, remote_endpoint, sender};

/// A program that waits for packet sockets in a pod.
struct Consumer {
    listener: OwnedFd,
}

/// A packet socket, and the connection over which it came.
struct Handed {
    interface: String,
    socket: OwnedFd,
    connection: OwnedFd,
}

impl Consumer {
    fn listen(network: &Network) -> Self {
        let listener = network.within(|| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
            bind(listener.as_raw_fd(), &UnixAddr::new_abstract(PACKET_SOCKET_ADDRESS.as_bytes())?)?;
            listen(&listener, Backlog::new(1)?)?;
            Ok::<_, Errno>(listener)
        });
        Self { listener: listener.expect("the address is free") }
    }

    fn accept(&self) -> Handed {
        until("the helper hands over a packet socket", PATIENCE, || self.try_accept())
    }

    fn try_accept(&self) -> Result<Handed, Errno> {
        let connection = own(accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?);
        set_timeout(&connection);
        let mut bytes = [0; MAX_PACKET_SOCKET_MESSAGE];
        let mut space = cmsg_space!(RawFd);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<UnixAddr>(connection.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        let descriptors: Vec<RawFd> = message
            .cmsgs()?
            .filter_map(|message| if let ControlMessageOwned::ScmRights(all) = message { Some(all) } else { None })
            .flatten()
            .collect();
        let [descriptor] = descriptors[..] else { panic!("one descriptor, not {}", descriptors.len()) };
        let length = message.bytes;
        let handed: PacketSocket = serde_json::from_slice(&bytes[..length]).expect("the message is as documented");
        let socket = own(descriptor);
        set_timeout(&socket);
        Ok(Handed { interface: handed.interface.to_string(), socket, connection })
    }
}

#[expect(unsafe_code, reason = "nix returns plain numbers")]
fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just returned it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn set_timeout(socket: &OwnedFd) {
    SockRef::from(socket).set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
}

impl Handed {
    /// Gets the frames of an interface, as far as the filter passes them. That takes no capability.
    #[expect(unsafe_code, reason = "nix binds no packet sockets")]
    fn bind(&self, network: &Network, interface: &str) {
        let index = network.within(|| nix::net::if_::if_nametoindex(interface)).expect("the interface exists");
        // SAFETY: a struct of integers.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).expect("16 bits");
        address.sll_protocol = u16::try_from(libc::ETH_P_ALL).expect("16 bits").to_be();
        address.sll_ifindex = i32::try_from(index).expect("the kernel counts up");
        let length = libc::socklen_t::try_from(size_of_val(&address)).expect("it is short");
        // SAFETY: the address is live and has this length.
        let result = unsafe { libc::bind(self.socket.as_raw_fd(), (&raw const address).cast(), length) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    /// The next frame of at least so many bytes.
    fn next(&self, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; 65_536];
        loop {
            let length = uninterrupted(|| recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty()));
            let length = length.expect("a frame comes in time");
            if length >= size {
                return bytes[..length].to_vec();
            }
        }
    }

    fn has_none(&self) -> bool {
        recv(self.socket.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_DONTWAIT) == Err(Errno::EAGAIN)
    }

    /// Waits until the helper has closed the connection.
    fn wait_for_end(&self) {
        let length = uninterrupted(|| recv(self.connection.as_raw_fd(), &mut [0; 1], MsgFlags::empty()));
        assert_eq!(length.expect("it closes in time"), 0, "it sends nothing else");
    }
}

/// A tap of `web` to an interface in a pod of the other node, which is handed a packet socket.
fn tap(scene: &mut Scene, consumer: &Pod, name: &str) {
    let inside = Receiver { pod: Some(consumer.model()), packet_socket: true, ..receiver(TAP, VNI, name) };
    scene.remote_agent.establish(&desired(vec![], vec![inside]));
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]));
}

/// Sends two pings of a size, which no other traffic has.
fn ping(scene: &Scene, size: usize) {
    traffic::ping(&scene.client, scene.web.addresses[0], size, 2);
}

#[test]
fn a_socket_gets_the_frames_of_its_interface_and_of_no_other() {
    let mut scene = Scene::new();
    let consumer = Pod::start(&scene.remote);
    let network = consumer.network();
    let program = Consumer::listen(network);
    tap(&mut scene, &consumer, "tap0");
    let handed = program.accept();
    assert_eq!(handed.interface, "tap0");
    ping(&scene, 500);
    assert!(handed.has_none(), "it is not bound");

    handed.bind(network, "tap0");
    ping(&scene, 900);
    assert!(handed.next(900).len() < 1000);

    // Bound to another interface, it gets nothing of it.
    let neighbour = scene.remote.client();
    handed.bind(network, "eth0");
    while !handed.has_none() {}
    let others = Capture::start(network.path(), "eth0");
    traffic::ping(&neighbour, consumer.addresses[0], 100, 3);
    until("another socket gets them", PATIENCE, || {
        if others.count(|frame| frame.bytes.len() > 100) >= 6 { Ok(()) } else { Err("not yet") }
    });
    assert!(handed.has_none(), "its filter passes the frames of one interface");
    let detached = SockRef::from(&handed.socket).detach_filter().expect_err("the filter is locked");
    assert_eq!(detached.raw_os_error(), Some(libc::EPERM));
}

#[test]
fn another_socket_is_handed_over_when_the_program_or_the_interface_is_another_one() {
    let mut scene = Scene::new();
    let consumer = Pod::start(&scene.remote);
    let network = consumer.network();
    tap(&mut scene, &consumer, "tap0");
    // The program starts after the tap.
    let program = Consumer::listen(network);
    let first = program.accept();
    drop(first);
    let second = program.accept();
    second.bind(network, "tap0");
    ping(&scene, 900);
    assert!(second.next(900).len() < 1000);

    // The interface is recreated under another name.
    tap(&mut scene, &consumer, "tap1");
    second.wait_for_end();
    let third = program.accept();
    assert_eq!(third.interface, "tap1");
    third.bind(network, "tap1");
    ping(&scene, 700);
    assert!(third.next(700).len() < 800);

    // The tap is deleted.
    scene.remote_agent.establish(&desired(vec![], vec![]));
    third.wait_for_end();
    let other = program.try_accept().err();
    assert_eq!(other, Some(Errno::EAGAIN), "nothing is left to hand over");
}
