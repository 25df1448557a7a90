use super::*;
use crate::netlink::captured::assert_sends;

/// `tc qdisc add dev eth0 clsact`, `tc qdisc del dev eth0 clsact`
#[test]
fn clsact() {
    assert_sends(
        RouteNetlinkMessage::NewQueueDiscipline(clsact_message(3)),
        NLM_F_CREATE | NLM_F_EXCL,
        "30 00 00 00 24 00 05 06  4b 5c 01 6b 00 00 00 00
         00 00 00 00 03 00 00 00  00 00 ff ff f1 ff ff ff
         00 00 00 00 0b 00 01 00  63 6c 73 61 63 74 00 00",
    );
    assert_sends(
        RouteNetlinkMessage::DelQueueDiscipline(clsact_message(3)),
        0,
        "30 00 00 00 25 00 05 00  4b 5c 01 6b 00 00 00 00
         00 00 00 00 03 00 00 00  00 00 ff ff f1 ff ff ff
         00 00 00 00 0b 00 01 00  63 6c 73 61 63 74 00 00",
    );
}

/// `tc qdisc del dev eth0 root`
#[test]
fn root() {
    assert_sends(
        RouteNetlinkMessage::DelQueueDiscipline(tc_message(3, TcHandle::ROOT)),
        0,
        "24 00 00 00 25 00 05 00  6c dc 02 6b 00 00 00 00
         00 00 00 00 03 00 00 00  00 00 00 00 ff ff ff ff
         00 00 00 00",
    );
}
