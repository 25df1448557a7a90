use super::*;
use crate::netlink::captured::assert_sends;

/// `ethtool -K near tx-checksum-ip-generic off tx-udp-segmentation off`, where the family has number 0x15. That command names the
/// device by its name and wants an answer: here the header, from byte 20 to 35, has its number and wants none.
#[test]
fn settings_are_turned_off() {
    assert_sends(
        turn_message(0x15, 4, &["tx-checksum-ip-generic".to_owned(), "tx-udp-segmentation".to_owned()], false),
        0,
        "6c 00 00 00 15 00 05 00  03 00 00 00 00 00 00 00
         0c 01 00 00 14 00 01 80  08 00 01 00 04 00 00 00
         08 00 03 00 02 00 00 00  44 00 03 80
         40 00 03 80 20 00 01 80  1b 00 02 00 74 78 2d 63
         68 65 63 6b 73 75 6d 2d  69 70 2d 67 65 6e 65 72
         69 63 00 00 1c 00 01 80  18 00 02 00 74 78 2d 75
         64 70 2d 73 65 67 6d 65  6e 74 61 74 69 6f 6e 00",
    );
}

#[test]
fn what_is_named_is_read_back() {
    let message = turn_message(0x15, 4, &["tx-nocache-copy".to_owned(), "rx-gro-list".to_owned()], true);
    assert_eq!(names(&message.attributes, ETHTOOL_A_FEATURES_WANTED), ["tx-nocache-copy", "rx-gro-list"]);
    let wanted = child(&message.attributes, ETHTOOL_A_FEATURES_WANTED).expect("features");
    let bits = child(wanted.value(), ETHTOOL_A_BITSET_BITS).expect("bits");
    let on = children(bits.value()).filter(|bit| child(bit.value(), ETHTOOL_A_BITSET_BIT_VALUE).is_some());
    assert_eq!(on.count(), 2, "both are turned on");
    assert_eq!(names(&message.attributes, ETHTOOL_A_FEATURES_ACTIVE), [""; 0]);
}

#[test]
fn some_settings_change_what_frames_look_like() {
    for name in ["tx-checksum-sctp", "tx-generic-segmentation", "tx-tcp-accecn-segmentation", "tx-gso-list", "rx-gro"] {
        assert!(is_offload(name), "{name}");
    }
    for name in ["rx-checksum", "tx-scatter-gather", "tx-vlan-hw-insert", "highdma", "tx-lockless"] {
        assert!(!is_offload(name), "{name}");
    }
}
