use super::*;
use crate::netlink::captured::{assert_sends, read_back};

fn new(name: &str, vni: u32, ipv6: bool) -> NewVxlan<'_> {
    let vxlan = Vxlan { vni, port: 14788, source_ports: (50000, 50016), learning: false, addresses: 1 };
    NewVxlan { name, vxlan, ipv6, mtu: 65000, group: 7 }
}

/// `ip link add ptap0 mtu 65000 group 7 arp off multicast off netns /run/netns/x type vxlan id 16000001 srcport 50000 50016
/// maxaddress 1 dstport 14788 nolearning`, whose kind of 9 bytes has no terminating zero
#[test]
fn a_vxlan_device() {
    assert_sends(
        RouteNetlinkMessage::NewLink(vxlan_message(&new("ptap0", 16_000_001, false), 4)),
        NLM_F_CREATE | NLM_F_EXCL,
        "80 00 00 00 10 00 05 06  4a 5c 01 6b 00 00 00 00
         00 00 00 00 00 00 00 00  80 00 00 00 80 10 00 00
         08 00 04 00 e8 fd 00 00  08 00 1b 00 07 00 00 00
         08 00 1c 00 04 00 00 00  0a 00 03 00 70 74 61 70
         30 00 00 00 3c 00 12 00  0a 00 01 00 76 78 6c 61
         6e 00 00 00 2c 00 02 00  08 00 0a 00 c3 50 c3 60
         08 00 09 00 01 00 00 00  08 00 01 00 01 24 f4 00
         05 00 07 00 00 00 00 00  06 00 0f 00 39 c4 00 00",
    );
}

/// The same with `id 16000002 remote fd66::2`; that address is zero here, which `ip` does not take.
#[test]
fn a_vxlan_device_over_ipv6() {
    assert_sends(
        RouteNetlinkMessage::NewLink(vxlan_message(&new("ptap6", 16_000_002, true), 4)),
        NLM_F_CREATE | NLM_F_EXCL,
        "94 00 00 00 10 00 05 06  72 5c 01 6b 00 00 00 00
         00 00 00 00 00 00 00 00  80 00 00 00 80 10 00 00
         08 00 04 00 e8 fd 00 00  08 00 1b 00 07 00 00 00
         08 00 1c 00 04 00 00 00  0a 00 03 00 70 74 61 70
         36 00 00 00 50 00 12 00  0a 00 01 00 76 78 6c 61
         6e 00 00 00 40 00 02 00  08 00 0a 00 c3 50 c3 60
         08 00 09 00 01 00 00 00  08 00 01 00 02 24 f4 00
         14 00 10 00 00 00 00 00  00 00 00 00 00 00 00 00
         00 00 00 00 05 00 07 00  00 00 00 00 06 00 0f 00
         39 c4 00 00",
    );
}

/// `ip link set mirror0 alias "podtap.dev/v1 x"`, whose alias of 13 bytes has no terminating zero
#[test]
fn an_alias() {
    assert_sends(
        RouteNetlinkMessage::NewLink(alias_message(4, "podtap.dev/v1 x")),
        0,
        "34 00 00 00 10 00 05 00  4a 5c 01 6b 00 00 00 00
         00 00 00 00 04 00 00 00  00 00 00 00 00 00 00 00
         14 00 14 00 70 6f 64 74  61 70 2e 64 65 76 2f 76
         31 20 78 00",
    );
}

/// `ip link set mirror0 arp off multicast off mtu 65000`, `ip link set mirror0 addrgenmode none`
#[test]
fn autoconf() {
    assert_sends(
        RouteNetlinkMessage::NewLink(no_autoconf_message(4, 65000)),
        0,
        "28 00 00 00 10 00 05 00  4a 5c 01 6b 00 00 00 00
         00 00 00 00 04 00 00 00  80 00 00 00 80 10 00 00
         08 00 04 00 e8 fd 00 00",
    );
    assert_sends(
        RouteNetlinkMessage::NewLink(no_addresses_message(4)),
        0,
        "30 00 00 00 10 00 05 00  4a 5c 01 6b 00 00 00 00
         00 00 00 00 04 00 00 00  00 00 00 00 00 00 00 00
         10 00 1a 00 0c 00 0a 00  05 00 08 00 01 00 00 00",
    );
}

/// `ip link set ptap0 name mirror0`, `ip link set mirror0 up`, `ip link del mirror0`
#[test]
fn name_up_and_deletion() {
    assert_sends(
        RouteNetlinkMessage::NewLink(rename_message(4, "mirror0")),
        0,
        "2c 00 00 00 10 00 05 00  4a 5c 01 6b 00 00 00 00
         00 00 00 00 04 00 00 00  00 00 00 00 00 00 00 00
         0c 00 03 00 6d 69 72 72  6f 72 30 00",
    );
    assert_sends(
        RouteNetlinkMessage::NewLink(up_message(4)),
        0,
        "20 00 00 00 10 00 05 00  4a 5c 01 6b 00 00 00 00
         00 00 00 00 04 00 00 00  01 00 00 00 01 00 00 00",
    );
    assert_sends(
        RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(4).build()),
        0,
        "20 00 00 00 11 00 05 00  4a 5c 01 6b 00 00 00 00
         00 00 00 00 04 00 00 00  00 00 00 00 00 00 00 00",
    );
}

#[test]
fn a_device_is_read() {
    let message = RouteNetlinkMessage::NewLink(vxlan_message(&new("ptap0", 7, false), 4));
    let link = new_link(read_back(&message)).expect("it is a device");
    let vxlan = Some(new("", 7, false).vxlan);
    let expected =
        Link { name: "ptap0".to_owned(), autoconf_disabled: true, mtu: 65000, group: 7, vxlan, ..Link::default() };
    assert_eq!(link, Link { kind: "vxlan".to_owned(), ..expected });
}

#[test]
fn generated_addresses_are_autoconfiguration() {
    let read = |mode| {
        let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)]);
        let device = without_autoconf(LinkUnspec::new_with_index(4));
        let device = device.append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![mode]));
        new_link(read_back(&RouteNetlinkMessage::NewLink(device.build()))).expect("it is a device").autoconf_disabled
    };
    assert!(read(In6AddrGenMode::None) && !read(In6AddrGenMode::Eui64));
}
