use super::*;
use crate::netlink::message::tests::assert_sends;

fn to(address: &str) -> Destination {
    Destination { address: address.parse().expect("an address"), port: 14789, vni: 100 }
}

/// `bridge fdb append 00:00:00:00:00:00 dev mirror0 dst 10.66.0.2 port 14789 vni 100 self permanent`, and `del`
#[test]
fn a_destination() {
    assert_sends(
        entry(RTM_NEWNEIGH, CREATE | APPEND, 4, to("10.66.0.2")),
        "40 00 00 00 1c 00 05 0c  4b 5c 01 6b 00 00 00 00
         07 00 00 00 04 00 00 00  c0 00 02 00 0a 00 02 00
         00 00 00 00 00 00 00 00  08 00 01 00 0a 42 00 02
         06 00 06 00 39 c5 00 00  08 00 07 00 64 00 00 00",
    );
    assert_sends(
        entry(RTM_DELNEIGH, 0, 4, to("10.66.0.2")),
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
        entry(RTM_NEWNEIGH, CREATE | APPEND, 4, to("fd66::2")),
        "4c 00 00 00 1c 00 05 0c  4b 5c 01 6b 00 00 00 00
         07 00 00 00 04 00 00 00  c0 00 02 00 0a 00 02 00
         00 00 00 00 00 00 00 00  14 00 01 00 fd 66 00 00
         00 00 00 00 00 00 00 00  00 00 00 02 06 00 06 00
         39 c5 00 00 08 00 07 00  64 00 00 00",
    );
}

#[test]
fn what_was_sent_is_read_back() {
    for address in ["10.66.0.2", "fd66::2"] {
        let bytes = entry(RTM_NEWNEIGH, 0, 4, to(address)).finish(1);
        assert_eq!(read(&bytes[super::super::message::HEADER..], (1, 1)), Some(to(address)));
    }
}
