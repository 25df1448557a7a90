use super::*;
use crate::netlink::message::tests::assert_sends;

fn new(name: &str, vni: u32, ipv6: bool) -> NewVxlan<'_> {
    let vxlan = Vxlan { vni, port: 14788, source_ports: (50000, 50016), learning: false };
    NewVxlan { name, vxlan, ipv6, mtu: 65000, group: 7 }
}

/// `ip link add ptap0 mtu 65000 group 7 arp off multicast off netns /run/netns/x type vxlan id 16000001 srcport 50000 50016
/// dstport 14788 nolearning`
#[test]
fn a_tunnel() {
    assert_sends(
        create_message(&new("ptap0", 16_000_001, false), 4),
        "78 00 00 00 10 00 05 06  4a 5c 01 6b 00 00 00 00
         00 00 00 00 00 00 00 00  80 00 00 00 80 10 00 00
         08 00 04 00 e8 fd 00 00  08 00 1b 00 07 00 00 00
         08 00 1c 00 04 00 00 00  0a 00 03 00 70 74 61 70
         30 00 00 00 34 00 12 00  09 00 01 00 76 78 6c 61
         6e 00 00 00 24 00 02 00  08 00 0a 00 c3 50 c3 60
         08 00 01 00 01 24 f4 00  05 00 07 00 00 00 00 00
         06 00 0f 00 39 c4 00 00",
    );
}

/// The same with `id 16000002 remote fd66::2`; that address is zero here, which `ip` does not take.
#[test]
fn a_tunnel_over_ipv6() {
    assert_sends(
        create_message(&new("ptap6", 16_000_002, true), 4),
        "8c 00 00 00 10 00 05 06  72 5c 01 6b 00 00 00 00
         00 00 00 00 00 00 00 00  80 00 00 00 80 10 00 00
         08 00 04 00 e8 fd 00 00  08 00 1b 00 07 00 00 00
         08 00 1c 00 04 00 00 00  0a 00 03 00 70 74 61 70
         36 00 00 00 48 00 12 00  09 00 01 00 76 78 6c 61
         6e 00 00 00 38 00 02 00  08 00 0a 00 c3 50 c3 60
         08 00 01 00 02 24 f4 00  14 00 10 00 00 00 00 00
         00 00 00 00 00 00 00 00  00 00 00 00 05 00 07 00
         00 00 00 00 06 00 0f 00  39 c4 00 00",
    );
}

/// `ip link set mirror0 alias "podtap.dev/v1 x"`
#[test]
fn an_alias() {
    assert_sends(
        alias_message(4, "podtap.dev/v1 x"),
        "34 00 00 00 10 00 05 00  4a 5c 01 6b 00 00 00 00
         00 00 00 00 04 00 00 00  00 00 00 00 00 00 00 00
         13 00 14 00 70 6f 64 74  61 70 2e 64 65 76 2f 76
         31 20 78 00",
    );
}

/// `ip link set mirror0 arp off multicast off mtu 65000`, `ip link set mirror0 addrgenmode none`
#[test]
fn silence() {
    assert_sends(
        silence_message(4, 65000),
        "28 00 00 00 10 00 05 00  4a 5c 01 6b 00 00 00 00
         00 00 00 00 04 00 00 00  80 00 00 00 80 10 00 00
         08 00 04 00 e8 fd 00 00",
    );
    assert_sends(
        no_addresses_message(4),
        "30 00 00 00 10 00 05 00  4a 5c 01 6b 00 00 00 00
         00 00 00 00 04 00 00 00  00 00 00 00 00 00 00 00
         10 00 1a 00 0c 00 0a 00  05 00 08 00 01 00 00 00",
    );
}

/// `ip link set ptap0 name mirror0`, `ip link set mirror0 up`, `ip link del mirror0`
#[test]
fn name_up_and_end() {
    assert_sends(
        rename_message(4, "mirror0"),
        "2c 00 00 00 10 00 05 00  4a 5c 01 6b 00 00 00 00
         00 00 00 00 04 00 00 00  00 00 00 00 00 00 00 00
         0c 00 03 00 6d 69 72 72  6f 72 30 00",
    );
    assert_sends(
        up_message(4),
        "20 00 00 00 10 00 05 00  4a 5c 01 6b 00 00 00 00
         00 00 00 00 04 00 00 00  01 00 00 00 01 00 00 00",
    );
    assert_sends(
        delete_message(4),
        "20 00 00 00 11 00 05 00  4a 5c 01 6b 00 00 00 00
         00 00 00 00 04 00 00 00  00 00 00 00 00 00 00 00",
    );
}
