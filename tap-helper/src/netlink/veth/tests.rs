use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::RouteNetlinkMessage,
};

use super::*;
use crate::netlink::captured::assert_sends;

/// `ip link add near mtu 65000 group 7 arp off multicast off type veth peer name far mtu 65000 group 7 arp off multicast off`,
/// whose kind of 8 bytes has no terminating zero, so that its message has 4 bytes less
#[test]
fn a_pair() {
    assert_sends(
        RouteNetlinkMessage::NewLink(pair_message(NewPair { names: ["near", "far"], mtu: 65000, group: 7 })),
        NLM_F_CREATE | NLM_F_EXCL,
        "7c 00 00 00 10 00 05 06  da 67 01 6b 00 00 00 00
         00 00 00 00 00 00 00 00  80 00 00 00 80 10 00 00
         08 00 04 00 e8 fd 00 00  08 00 1b 00 07 00 00 00
         09 00 03 00 6e 65 61 72  00 00 00 00 40 00 12 00
         09 00 01 00 76 65 74 68  00 00 00 00 30 00 02 00
         2c 00 01 00 00 00 00 00  00 00 00 00 80 00 00 00
         80 10 00 00 08 00 04 00  e8 fd 00 00 08 00 1b 00
         07 00 00 00 08 00 03 00  66 61 72 00",
    );
}
