//! Who reads the interfaces of receivers.
//!
//! A capture usually makes the interface promiscuous, and the kernel reports that when it starts. Polling finds the others: packet sockets
//! that are not promiscuous or not bound to an interface (`tcpdump -i any`), and programs that are attached by BPF links.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufRead as _, BufReader},
};

use crate::{
    bpf::tcx_programs,
    netlink::{DROP_PRIORITY, Filter, Hook, Link},
    observe::Observed,
};

/// `/proc/net` of the calling thread's namespace, not of the process.
const PACKET_SOCKETS: &str = "/proc/thread-self/net/packet";
/// Packet sockets of one namespace that are read: a pod can open any number.
const SOCKETS: usize = 4096;
/// `ETH_P_ALL`: a receiver's drop filter comes before sockets of a single protocol.
const ALL_PROTOCOLS: &str = "0003";

/// Whether the kernel has reported that somebody reads an interface.
pub(crate) fn is_read(interface: &Link, observed: &Observed) -> bool {
    let precedes_drop = |filter: &Filter| {
        let id = &filter.id;
        (id.interface, id.hook, id.chain) == (interface.index, Hook::Ingress, 0)
            && id.handle != 0
            && id.priority < DROP_PRIORITY
    };
    interface.promiscuous || interface.xdp || observed.filters.iter().any(precedes_drop)
}

/// What may read interfaces of the calling thread's namespace without a report of the kernel.
#[derive(Debug, Default)]
pub(crate) struct Poll {
    sockets: Vec<PacketSocket>,
    /// There are more sockets than are read.
    too_many: bool,
    /// Interfaces with tcx programs, by their ifindex.
    programs: BTreeSet<u32>,
}

/// A packet socket that receives frames of all protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PacketSocket {
    /// Its ifindex; 0 for all interfaces.
    interface: u32,
    inode: u64,
}

impl Poll {
    /// Reads the packet sockets of the calling thread's namespace, and the programs of some of its interfaces.
    pub(crate) fn read(interfaces: &[(u32, &str)]) -> io::Result<Self> {
        let has_program = |(_, name): &&(u32, &str)| !tcx_programs(name, Hook::Ingress).is_empty();
        let programs = interfaces.iter().filter(has_program).map(|(index, _)| *index).collect();
        let file = match File::open(PACKET_SOCKETS) {
            // The kernel has no packet sockets.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self { programs, ..Self::default() }),
            result => result?,
        };
        let mut found = Self { programs, ..Self::default() };
        for (number, line) in BufReader::new(file).lines().skip(1).enumerate() {
            found.too_many = number == SOCKETS;
            if found.too_many {
                break;
            }
            found.sockets.extend(packet_socket(&line?));
        }
        Ok(found)
    }

    /// Whether something reads an interface, and did at the poll before: a reader may open its socket before it makes the interface
    /// promiscuous.
    pub(crate) fn reads(&self, interface: u32, before: &Self) -> bool {
        let is_here = |socket: &&PacketSocket| [0, interface].contains(&socket.interface);
        let stays = |socket: &PacketSocket| before.sockets.contains(socket);
        self.too_many || self.programs.contains(&interface) || self.sockets.iter().filter(is_here).any(stays)
    }
}

/// A line of `/proc/net/packet` (`packet_seq_show`, `net/packet/af_packet.c`), if the socket receives frames of all protocols.
fn packet_socket(line: &str) -> Option<PacketSocket> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, _, _, protocol, interface, running, _, _, inode] = fields[..] else { return None };
    let receives = (protocol, running) == (ALL_PROTOCOLS, "1");
    receives.then_some(PacketSocket { interface: interface.parse().ok()?, inode: inode.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_running_sockets_of_all_protocols_receive_frames() {
        let line = |protocol: &str, interface: u32, running: u8| {
            packet_socket(&format!(
                "0000000000000000 3      3    {protocol}   {interface}     {running} 0      0      123"
            ))
        };
        assert_eq!(line("0003", 7, 1), Some(PacketSocket { interface: 7, inode: 123 }));
        assert_eq!([line("0003", 7, 0), line("0000", 7, 1), line("0806", 0, 1)], [None; 3]);
        assert_eq!(packet_socket("sk       RefCnt Type Proto  Iface R Rmem   User   Inode"), None);
    }

    #[test]
    fn a_reader_is_one_that_stays() {
        let of = |interface, inode| Poll { sockets: vec![PacketSocket { interface, inode }], ..Poll::default() };
        let none = Poll::default();
        assert!(of(7, 1).reads(7, &of(7, 1)) && of(0, 1).reads(7, &of(0, 1)));
        assert!(!of(7, 1).reads(7, &none), "it may not have made the interface promiscuous yet");
        assert!(!of(7, 1).reads(7, &of(7, 2)) && !of(7, 1).reads(8, &of(7, 1)) && !none.reads(7, &of(7, 1)));
        assert!(Poll { too_many: true, ..Poll::default() }.reads(7, &none));
        assert!(Poll { programs: [7].into(), ..Poll::default() }.reads(7, &none));
    }
}
