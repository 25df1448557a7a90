//! A pod with the programs on its interface, without a helper: this file attaches the filters with its own netlink messages.

use std::{
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    sync::Arc,
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use podtap_model::{Filter, Instruction, Match, MirrorOptions, Program, ProgramId};
use podtap_tests::net::Network;
use tap_helper::bpf::{BpfError, Maps, Monotonic, Programs, Settings};

const CREATE: u16 = 0x400;
const REQUEST_WITH_ACK: u16 = 0x5;
const RTM_NEWTFILTER: u16 = 44;

/// A pod and a client, connected by a veth pair. Mirrored frames go to `mirror0` in the pod.
pub struct Scene {
    pub pod: Network,
    pub client: Network,
    pub node: Network,
    pub remote: Network,
    socket: Socket,
}

/// The addresses of pod and client.
pub const POD: [u8; 4] = [10, 88, 0, 1];
pub const CLIENT: [u8; 4] = [10, 88, 0, 2];

impl Scene {
    fn empty() -> Self {
        let [pod, client, node, remote] = std::array::from_fn(|_| Network::new());
        client.ip(&format!("link add eth0 type veth peer name eth0 netns {}\n", pod.path().display()));
        for (network, number) in [(&pod, 1), (&client, 2)] {
            network.ip(&format!(
                "link set eth0 addrgenmode none\naddr add 10.88.0.{number}/24 dev eth0\n\
                 addr add fd88::{number}/64 dev eth0 nodad\nlink set eth0 up\n"
            ));
        }
        let socket = pod.within(|| {
            let mut socket = Socket::new(NETLINK_ROUTE).expect("a socket can be created");
            socket.bind_auto().expect("the socket can be bound");
            socket.connect(&SocketAddr::new(0, 0)).expect("the socket can be connected");
            socket
        });
        pod.run("tc qdisc add dev eth0 clsact");
        Self { pod, client, node, remote, socket }
    }

    /// Mirrored frames go through a veth pair to `mirror0` in the remote network.
    pub fn with_veth() -> Self {
        let scene = Self::empty();
        let remote = scene.remote.path().display();
        scene.pod.ip(&format!("link add mirror0 mtu 65000 type veth peer name mirror0 mtu 65000 netns {remote}\n"));
        for network in [&scene.pod, &scene.remote] {
            network.ip("link set mirror0 addrgenmode none\nlink set mirror0 arp off multicast off up\n");
        }
        scene
    }

    /// Mirrored frames go through VXLAN, over an underlay of the given MTU that shows frames as they are on the wire.
    pub fn with_vxlan(mtu: u32) -> Self {
        let scene = Self::empty();
        let remote = scene.remote.path().display();
        scene.node.ip(&format!("link add under0 mtu {mtu} type veth peer name under0 mtu {mtu} netns {remote}\n"));
        for (network, number) in [(&scene.node, 1), (&scene.remote, 2)] {
            network.run("ethtool -K under0 tso off gso off gro off tx off");
            network.ip(&format!(
                "link set under0 addrgenmode none\naddr add 10.66.0.{number}/24 dev under0\nlink set under0 up\n"
            ));
        }
        // The UDP socket stays in the node's network.
        let pod = scene.pod.path().display();
        scene.node.ip(&format!(
            "link add mirror0 mtu 65000 type vxlan id 100 dstport 14789 local 10.66.0.1 remote 10.66.0.2 noudpcsum\n\
             link set mirror0 netns {pod}\n"
        ));
        scene.remote.ip("link add mirror0 mtu 65000 type vxlan id 100 dstport 14789 local 10.66.0.2 nolearning\n");
        for network in [&scene.pod, &scene.remote] {
            network.ip("link set mirror0 addrgenmode none\nlink set mirror0 arp off multicast off up\n");
        }
        scene.pod.run("tc qdisc add dev mirror0 clsact");
        scene.node.run("ping -q -c 1 -W 5 10.66.0.2");
        scene
    }

    fn index(&self, device: &str) -> u32 {
        self.pod.within(|| nix::net::if_::if_nametoindex(device)).expect("the device exists")
    }

    /// Attaches the programs, in place of previous ones.
    pub fn attach(&self, programs: &Programs) {
        let mirror = self.index("mirror0");
        let eth = self.index("eth0");
        self.filter(eth, 0xffff_fff2, 100, programs.ingress(), Some(mirror));
        self.filter(eth, 0xffff_fff3, 101, programs.egress(), Some(mirror));
    }

    /// Attaches the clamp, in place of a previous one.
    pub fn attach_clamp(&self, programs: &Programs) {
        self.filter(self.index("mirror0"), 0xffff_fff3, 1, programs.clamp(), None);
    }

    /// `tc filter replace dev DEVICE HOOK prio PRIORITY handle 1 protocol all bpf fd PROGRAM`, with `action mirred egress mirror`
    /// to a device and `continue`, or with direct-action.
    fn filter(&self, device: u32, hook: u32, priority: u32, program: BorrowedFd<'_>, to: Option<u32>) {
        let info = priority << 16 | u32::from(3_u16.to_be());
        let mut fixed = vec![0; 4];
        for word in [device, 1, hook, info] {
            fixed.extend_from_slice(&word.to_ne_bytes());
        }
        let fd = u32::try_from(program.as_raw_fd()).expect("descriptors are positive");
        let mut options = [attribute(6, &fd.to_ne_bytes()), attribute(7, b"podtap\0")].concat();
        match to {
            Some(to) => {
                let words = [0, 0, u32::MAX, 0, 0, 2, to];
                let parameters: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                let action = [attribute(1, b"mirred\0"), attribute(2 | 1 << 15, &attribute(2, &parameters))].concat();
                options.extend(attribute(1, &attribute(1, &action)));
            }
            None => options.extend(attribute(8, &1_u32.to_ne_bytes())),
        }
        let body = [fixed, attribute(1, b"bpf\0"), attribute(2, &options)].concat();
        let mut message = u32::try_from(16 + body.len()).expect("the message is short").to_ne_bytes().to_vec();
        message.extend_from_slice(&RTM_NEWTFILTER.to_ne_bytes());
        message.extend_from_slice(&(CREATE | REQUEST_WITH_ACK).to_ne_bytes());
        message.extend_from_slice(&[0; 8]);
        message.extend(body);
        self.socket.send(&message, 0).expect("the message is sent");
        let mut response = Vec::with_capacity(8192);
        self.socket.recv(&mut response, 0).expect("the kernel responds");
        let error = response[16..].first_chunk().map_or(-1, |bytes| i32::from_ne_bytes(*bytes));
        assert_eq!(error, 0, "{}", String::from_utf8_lossy(&response));
    }
}

/// Loads programs that never stop mirroring.
pub fn loaded(settings: &Settings, predecessor: Option<&Maps>) -> Result<Programs, BpfError> {
    let mut programs = Programs::load(settings, predecessor)?;
    programs.maps_mut().set_deadline(0, Some(Monotonic::MAX))?;
    Ok(programs)
}

/// Settings with mirror options.
pub fn with(options: MirrorOptions) -> Settings {
    Settings { options, ..Settings::default() }
}

/// Settings with a filter.
pub fn filtering(include: Vec<Match>, exclude: Vec<Match>) -> Settings {
    with(MirrorOptions { filter: Some(Filter { include, exclude, expression: None }), ..MirrorOptions::default() })
}

/// Settings with a compiled expression.
pub fn compiled(instructions: Vec<Instruction>) -> Settings {
    let program = Program { id: ProgramId::from_digest([0; 32]), instructions };
    Settings { program: Some(Arc::new(program)), ..Settings::default() }
}

/// Sends frames unchanged through an interface.
#[expect(unsafe_code, reason = "std has no packet sockets")]
pub fn inject(network: &Network, device: &str, frames: &[Vec<u8>]) {
    network.within(|| {
        // SAFETY: no pointers.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(socket >= 0, "a packet socket can be created");
        // SAFETY: a new descriptor that nothing else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).expect("a family has 16 bits");
        let index = nix::net::if_::if_nametoindex(device).expect("the device exists");
        address.sll_ifindex = i32::try_from(index).expect("an index is positive");
        let length = u32::try_from(size_of_val(&address)).expect("an address is small");
        for frame in frames {
            let to = (&raw const address).cast();
            // SAFETY: frame and address are live and have the given lengths.
            let sent = unsafe { libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, to, length) };
            assert_eq!(usize::try_from(sent), Ok(frame.len()), "{}", std::io::Error::last_os_error());
        }
    });
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).expect("the message is short");
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
