use rtnetlink::{LinkUnspec, packet_core::DefaultNla, packet_route::tc::TcHandle};

use super::*;
use crate::netlink::captured::decoded;

fn bytes(message: &RouteNetlinkMessage) -> Vec<u8> {
    let mut bytes = vec![0; NetlinkSerializable::buffer_len(message)];
    message.serialize(&mut bytes);
    bytes
}

fn strictly(message_type: u16, payload: &[u8]) -> Result<RouteNetlinkMessage, String> {
    let mut header = NetlinkHeader::default();
    header.message_type = message_type;
    RouteNetlinkMessage::deserialize(&header, payload).map_err(|error| error.to_string())
}

/// `ip link set eth1 alias $'\xff'`: with the crate's own message, the device is missing from a dump.
#[test]
fn an_alias_that_is_not_utf8_hides_no_device() {
    let alias = LinkAttribute::Other(DefaultNla::new(IFLA_IFALIAS, vec![0xff, 0]));
    let device = LinkUnspec::new_with_index(3).name("eth1").append_extra_attribute(alias).build();
    let payload = bytes(&RouteNetlinkMessage::NewLink(device));
    assert!(strictly(RTM_NEWLINK, &payload).is_err());
    let RouteNetlinkMessage::NewLink(read) = decoded(RTM_NEWLINK, &payload) else { panic!("it is a device") };
    let expected = [LinkAttribute::IfName("eth1".to_owned()), LinkAttribute::IfAlias("\u{fffd}".to_owned())];
    assert_eq!((read.header.index, read.attributes.as_slice()), (3, expected.as_slice()));
}

/// `tc filter add ... bpf object-file NAME` with a name that is not UTF-8: with the crate's own message, the filter is missing, and a
/// clsact that looks empty would be removed with it.
#[test]
fn a_name_that_is_not_utf8_hides_no_filter() {
    const TCA_BPF_NAME: u16 = 7;
    let mut message = TcMessage::with_index(3);
    message.header.handle = TcHandle::from(1);
    let name = TcFilterBpfOption::Other(DefaultNla::new(TCA_BPF_NAME, vec![0xff, 0]));
    let options = vec![TcOption::Bpf(name), TcOption::Bpf(TcFilterBpfOption::ProgId(7))];
    message.attributes = vec![TcAttribute::Kind("bpf".to_owned()), TcAttribute::Options(options)];
    let payload = bytes(&RouteNetlinkMessage::NewTrafficFilter(message));
    assert!(strictly(RTM_NEWTFILTER, &payload).is_err());
    let RouteNetlinkMessage::NewTrafficFilter(read) = decoded(RTM_NEWTFILTER, &payload) else {
        panic!("it is a filter")
    };
    let expected = TcAttribute::Options(vec![TcOption::Bpf(TcFilterBpfOption::ProgId(7))]);
    assert_eq!(read.attributes, [TcAttribute::Kind("bpf".to_owned()), expected]);
}

/// Attributes of a foreign kind of device, which a newer kernel may give another form.
#[test]
fn settings_of_other_drivers_are_not_read() {
    let info = [(IFLA_INFO_KIND, b"bond".to_vec()), (IFLA_INFO_DATA, vec![5, 0, 1, 0, 9, 0, 0, 0])];
    let info = info.map(|(kind, value)| LinkInfo::Other(DefaultNla::new(kind, value)));
    let device = LinkUnspec::new_with_index(3).append_extra_attribute(LinkAttribute::LinkInfo(info.to_vec())).build();
    let RouteNetlinkMessage::NewLink(read) = decoded(RTM_NEWLINK, &bytes(&RouteNetlinkMessage::NewLink(device))) else {
        panic!("it is a device")
    };
    assert_eq!(read.attributes, [LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bond)])]);
}

/// Of several hops, `struct rtnexthop` each, the first.
#[test]
fn a_route_over_several_hops_is_read() {
    let hop = |index: u8| [8, 0, 0, 0, index, 0, 0, 0];
    let mut message = RouteMessage::default();
    message.attributes = vec![RouteAttribute::Other(DefaultNla::new(RTA_MULTIPATH, [hop(3), hop(4)].concat()))];
    let RouteNetlinkMessage::NewRoute(read) = decoded(RTM_NEWROUTE, &bytes(&RouteNetlinkMessage::NewRoute(message)))
    else {
        panic!("it is a route")
    };
    let [RouteAttribute::MultiPath(hops)] = read.attributes.as_slice() else { panic!("{:?}", read.attributes) };
    assert_eq!(hops.iter().map(|hop| hop.interface_index).collect::<Vec<_>>(), [3]);
}

/// Whatever arrives, reading it ends and does not panic.
#[test]
fn malformed_messages_are_harmless() {
    for attributes in [&[0u8; 0][..], &[1], &[3, 0, 1, 0], &[8, 0, 1, 0, 1], &[0, 0, 0, 0, 5, 0, 2, 0, 1], &[255; 40]] {
        assert_eq!(children(attributes).filter(|attribute| attribute.kind() == 2).count(), 0);
        for message_type in [RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWNEIGH, RTM_NEWQDISC, RTM_NEWTFILTER] {
            let mut header = NetlinkHeader::default();
            header.message_type = message_type;
            let _ = Message::deserialize(&header, attributes);
            let _ = Message::deserialize(&header, &[&[0; 20], attributes].concat());
        }
    }
}
