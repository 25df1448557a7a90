use super::*;
use crate::netlink::captured::{assert_sends, read_back};

fn to(address: &str) -> Endpoint {
    Endpoint { address: address.parse().expect("an address"), port: 14789, vni: 100.try_into().expect("a VNI") }
}

/// `bridge fdb append 00:00:00:00:00:00 dev mirror0 dst 10.66.0.2 port 14789 vni 100 self permanent`, and `del`
#[test]
fn a_destination() {
    assert_sends(
        RouteNetlinkMessage::NewNeighbour(entry(4, to("10.66.0.2"))),
        NLM_F_CREATE | NLM_F_APPEND,
        "40 00 00 00 1c 00 05 0c  4b 5c 01 6b 00 00 00 00
         07 00 00 00 04 00 00 00  c0 00 02 00 0a 00 02 00
         00 00 00 00 00 00 00 00  08 00 01 00 0a 42 00 02
         06 00 06 00 39 c5 00 00  08 00 07 00 64 00 00 00",
    );
    assert_sends(
        RouteNetlinkMessage::DelNeighbour(entry(4, to("10.66.0.2"))),
        0,
        "40 00 00 00 1d 00 05 00  4b 5c 01 6b 00 00 00 00
         07 00 00 00 04 00 00 00  c0 00 02 00 0a 00 02 00
         00 00 00 00 00 00 00 00  08 00 01 00 0a 42 00 02
         06 00 06 00 39 c5 00 00  08 00 07 00 64 00 00 00",
    );
}

/// `bridge fdb append 00:00:00:00:00:00 dev mirror0 dst fd66::2 port 14789 vni 100 self permanent`
#[test]
fn a_destination_of_ipv6() {
    assert_sends(
        RouteNetlinkMessage::NewNeighbour(entry(4, to("fd66::2"))),
        NLM_F_CREATE | NLM_F_APPEND,
        "4c 00 00 00 1c 00 05 0c  4b 5c 01 6b 00 00 00 00
         07 00 00 00 04 00 00 00  c0 00 02 00 0a 00 02 00
         00 00 00 00 00 00 00 00  14 00 01 00 fd 66 00 00
         00 00 00 00 00 00 00 00  00 00 00 02 06 00 06 00
         39 c5 00 00 08 00 07 00  64 00 00 00",
    );
}

/// `bridge fdb del 02:00:00:00:00:77 dev mirror0 self permanent`
#[test]
fn all_entries_of_an_address() {
    assert_sends(
        RouteNetlinkMessage::DelNeighbour(entries(4, [2, 0, 0, 0, 0, 0x77])),
        0,
        "28 00 00 00 1d 00 05 00  4b 5c 01 6b 00 00 00 00
         07 00 00 00 04 00 00 00  c0 00 02 00 0a 00 02 00
         02 00 00 00 00 77 00 00",
    );
}

/// An entry as the kernel would report it.
fn reported(message: NeighbourMessage) -> Option<ForwardingEntry> {
    let RouteNetlinkMessage::NewNeighbour(message) = read_back(&RouteNetlinkMessage::NewNeighbour(message)) else {
        panic!("it is a neighbour")
    };
    read(&message, (1, 1))
}

#[test]
fn what_was_sent_is_read_back() {
    for address in ["10.66.0.2", "fd66::2"] {
        assert_eq!(reported(entry(4, to(address))), Some(ForwardingEntry::Destination(to(address))));
    }
}

#[test]
fn entries_that_differ_in_anything_are_no_destinations() {
    let plain = || entry(4, to("10.66.0.2"));
    let mac = [2, 0, 0, 0, 0, 0x77];
    let mut of_mac = plain();
    of_mac.attributes[0] = NeighbourAttribute::LinkLayerAddress(mac.to_vec());
    assert_eq!(reported(of_mac), Some(ForwardingEntry::Other(mac)));
    let changes: [fn(&mut NeighbourMessage); 5] = [
        |message| message.header.state = NeighbourState::Reachable,
        |message| message.header.flags |= NeighbourFlags::ExtLearned,
        |message| message.attributes[3] = NeighbourAttribute::Vni(0),
        // A group of next hops has no address.
        |message| drop(message.attributes.remove(1)),
        |message| message.attributes.push(NeighbourAttribute::IfIndex(2)),
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut message = plain();
        change(&mut message);
        assert_eq!(reported(message), Some(ForwardingEntry::Other(ZERO)), "change {number}");
    }
}
