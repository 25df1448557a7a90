//! Packet sockets for programs without capabilities: opened in the network namespace of their pod, and
//! [handed over](podtap_model::PacketSocket).

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, IoSlice},
    mem,
    os::fd::{AsFd as _, OwnedFd},
    sync::Mutex,
    time::{Duration, Instant},
};

use nix::libc;
use podtap_model::{InterfaceName, PACKET_SOCKET_ADDRESS, PacketSocket};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, netdevice::name_to_index, recv, sendmsg, socket_with,
};
use tracing::{debug, info, warn};

use super::{Node, pace::Pace};
use crate::{
    failure::Status,
    logs::Repeated,
    namespace::{NamespaceId, within_each},
    resource::Resource,
    socket_filter::{attach, jump, lock, statement},
};

/// How often the helper tries to hand sockets over, and checks those that it has: a program that starts waits no longer.
const PAUSE: Duration = Duration::from_millis(200);

/// The packet sockets of the receivers.
#[derive(Debug, Default)]
pub(super) struct PacketSockets {
    handed: BTreeMap<Resource, Handed>,
    pace: Pace,
    failures: Repeated,
}

/// A packet socket that a program has.
#[derive(Debug)]
struct Handed {
    netns: NamespaceId,
    /// The ifindex of the interface whose frames it gets.
    interface: u32,
    /// Either end closes it.
    connection: OwnedFd,
}

/// A receiver whose pod has a packet socket, or is to have one.
struct Job<'a> {
    resource: Resource,
    netns: NamespaceId,
    interface: &'a InterfaceName,
    known: Option<Handed>,
}

impl Node {
    /// When to check the packet sockets next; none without any.
    pub(super) fn packet_sockets_due_at(&self) -> Option<Instant> {
        let mut receivers = self.desired.iter().flat_map(|desired| &desired.receivers);
        let any = receivers.any(|receiver| receiver.packet_socket) || !self.packet_sockets.handed.is_empty();
        any.then(|| self.packet_sockets.pace.due_at())
    }

    /// Hands packet sockets to the programs that wait for them, if that is due. What belongs to a receiver that is gone is closed, which
    /// tells the program.
    pub(super) fn hand_over_packet_sockets(&mut self, now: Instant) {
        if self.packet_sockets_due_at().is_none() || !self.packet_sockets.pace.is_due(now) {
            return;
        }
        let mut known = mem::take(&mut self.packet_sockets.handed);
        let receivers = self.desired.iter().flat_map(|desired| &desired.receivers);
        let mut jobs = Vec::new();
        for receiver in receivers.filter(|receiver| receiver.packet_socket) {
            let resource = Resource::receiver(receiver);
            let Some(state) = self.resources.get(&resource).filter(|state| state.status == Status::ACTIVE) else {
                continue;
            };
            let Some(netns) = self.netns.get(&state.netns) else { continue };
            let known = known.remove(&resource).filter(|handed| handed.netns == state.netns);
            let job = Job { resource, netns: state.netns, interface: &receiver.interface_name, known };
            jobs.push((&*netns.namespace, job));
        }
        let results = Mutex::new(Vec::new());
        let run = |job: Job<'_>| {
            let (resource, result) = (job.resource.clone(), job.run());
            results.lock().expect("no thread panics while it holds the lock").push((resource, result));
        };
        if !jobs.is_empty()
            && let Err(error) = within_each(jobs, run)
        {
            warn!(%error, "cannot open packet sockets");
        }
        for (resource, result) in results.into_inner().expect("no thread has panicked") {
            match result {
                Ok(handed) => {
                    self.packet_sockets.handed.insert(resource, handed);
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    debug!(?resource, "no program waits for a packet socket");
                }
                Err(error) => {
                    if let Some(failures) = self.packet_sockets.failures.failed(now) {
                        warn!(%error, failures, "cannot hand over a packet socket");
                    }
                }
            }
        }
        // A pause between two checks, however long they take.
        self.packet_sockets.pace.wait_until(Instant::now() + PAUSE);
    }
}

impl Job<'_> {
    /// Keeps the socket that the program has, or hands over another one. To be called in the namespace.
    fn run(self) -> io::Result<Handed> {
        let Self { resource: _, netns, interface, known } = self;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let connection = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let index = name_to_index(&connection, interface)?;
        if let Some(known) = known.filter(|known| known.interface == index && is_open(&known.connection)) {
            return Ok(known);
        }
        connect(&connection, &SocketAddrUnix::new_abstract_name(PACKET_SOCKET_ADDRESS.as_bytes())?)?;
        // Bound to nothing: it gets no frames. Not earlier: the kernel takes milliseconds to close one (`packet_release`,
        // net/packet/af_packet.c).
        let packets = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        attach(&packets, &only_from(index))?;
        lock(&packets)?;
        let message = serde_json::to_vec(&PacketSocket { interface: interface.clone() })?;
        let descriptors = [packets.as_fd()];
        let mut space = [mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("no room for a descriptor"));
        }
        sendmsg(&connection, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL)?;
        info!(%interface, "handed a packet socket to the pod");
        Ok(Handed { netns, interface: index, connection })
    }
}

/// Whether the program has not closed its end. It sends nothing.
fn is_open(connection: &OwnedFd) -> bool {
    matches!(recv(connection, &mut [0_u8; 1], RecvFlags::DONTWAIT), Err(rustix::io::Errno::AGAIN))
}

/// A socket filter that passes the frames of one interface.
fn only_from(interface: u32) -> [libc::sock_filter; 4] {
    let index = (libc::SKF_AD_OFF + libc::SKF_AD_IFINDEX).cast_unsigned();
    [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, index),
        jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, interface, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
        statement(libc::BPF_RET | libc::BPF_K, 0),
    ]
}
