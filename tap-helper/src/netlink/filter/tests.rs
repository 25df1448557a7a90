use rtnetlink::{
    packet_core::DefaultNla,
    packet_route::tc::{TcFilterBpfOption, TcOption},
};

use super::{
    message::{ETH_P_ALL, bpf_message},
    *,
};
use crate::netlink::captured::{assert_sends, read_back};

const COOKIE: [u8; 16] = [b'P', b'T', b'a', b'p', 1, b'i', 0, b'o', 0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77];

fn target(interface: u32, hook: Hook, priority: u16) -> FilterTarget {
    FilterTarget { interface, hook, priority, handle: 0 }
}

/// What is read of a filter, as if the kernel had sent it.
#[track_caller]
fn read_filter(message: TcMessage, target: FilterTarget) -> Filter {
    let RouteNetlinkMessage::NewTrafficFilter(message) = read_back(&RouteNetlinkMessage::NewTrafficFilter(message))
    else {
        panic!("it is a filter")
    };
    read(&message, target.interface, target.hook).expect("it can be read")
}

/// `tc filter add dev mirror0 ingress protocol all prio 1 bpf object-pinned /sys/fs/bpf/podtap action mirred egress redirect dev near
/// cookie 505461700169006f0011223344556677`, which opens it as descriptor 4, where `mirror0` is device 2 and `near` is device 3
#[test]
fn a_redirect() {
    assert_sends(
        RouteNetlinkMessage::NewTrafficFilter(redirect_program_message(
            target(2, Hook::Ingress, REDIRECT_PRIORITY),
            loaded(4, 0, "podtap:[*fsobj]"),
            3,
            &COOKIE,
        )),
        NLM_F_CREATE | NLM_F_EXCL,
        "98 00 00 00 2c 00 05 06  e5 6d 02 6b 00 00 00 00
         00 00 00 00 02 00 00 00  00 00 00 00 f2 ff ff ff
         00 03 01 00 08 00 01 00  62 70 66 00 6c 00 02 00
         4c 00 01 00 48 00 01 00  0b 00 01 00 6d 69 72 72
         65 64 00 00 24 00 02 80  20 00 02 00 00 00 00 00
         00 00 00 00 04 00 00 00  00 00 00 00 00 00 00 00
         01 00 00 00 03 00 00 00  14 00 06 00 50 54 61 70
         01 69 00 6f 00 11 22 33  44 55 66 77 08 00 06 00
         04 00 00 00 14 00 07 00  70 6f 64 74 61 70 3a 5b
         2a 66 73 6f 62 6a 5d 00",
    );
}

/// `tc filter add dev mirror0 ingress protocol all prio 2 bpf direct-action bytecode "1,6 0 0 2"`
#[test]
fn drop_everything() {
    assert_sends(
        RouteNetlinkMessage::NewTrafficFilter(drop_message(target(4, Hook::Ingress, DROP_PRIORITY))),
        NLM_F_CREATE | NLM_F_EXCL,
        "4c 00 00 00 2c 00 05 06  4b 5c 01 6b 00 00 00 00
         00 00 00 00 04 00 00 00  00 00 00 00 f2 ff ff ff
         00 03 02 00 08 00 01 00  62 70 66 00 20 00 02 00
         06 00 04 00 01 00 00 00  0c 00 05 00 06 00 00 00
         02 00 00 00 08 00 08 00  01 00 00 00",
    );
}

/// `tc filter replace dev eth0 ingress protocol all prio 32 handle 1 bpf object-pinned /sys/fs/bpf/podtap
/// action mirred egress mirror dev mirror0 continue cookie 505461700169006f0011223344556677`, which opens it as descriptor 4
#[test]
fn a_program_that_mirrors_in_place_of_another() {
    let target = FilterTarget { handle: 1, ..target(3, Hook::Ingress, 32) };
    assert_sends(
        RouteNetlinkMessage::NewTrafficFilter(mirror_program_message(
            target,
            loaded(4, 0, "podtap:[*fsobj]"),
            4,
            &COOKIE,
        )),
        NLM_F_CREATE,
        "98 00 00 00 2c 00 05 04  4b 5c 01 6b 00 00 00 00
         00 00 00 00 03 00 00 00  01 00 00 00 f2 ff ff ff
         00 03 20 00 08 00 01 00  62 70 66 00 6c 00 02 00
         4c 00 01 00 48 00 01 00  0b 00 01 00 6d 69 72 72
         65 64 00 00 24 00 02 80  20 00 02 00 00 00 00 00
         00 00 00 00 ff ff ff ff  00 00 00 00 00 00 00 00
         02 00 00 00 04 00 00 00  14 00 06 00 50 54 61 70
         01 69 00 6f 00 11 22 33  44 55 66 77 08 00 06 00
         04 00 00 00 14 00 07 00  70 6f 64 74 61 70 3a 5b
         2a 66 73 6f 62 6a 5d 00",
    );
}

/// `tc filter add dev mirror0 egress protocol all prio 3 bpf direct-action object-pinned /sys/fs/bpf/podtap`
#[test]
fn a_program_that_decides() {
    let target = target(4, Hook::Egress, CLAMP_PRIORITY);
    assert_sends(
        RouteNetlinkMessage::NewTrafficFilter(verdict_program_message(target, loaded(4, 0, "podtap:[*fsobj]"))),
        NLM_F_CREATE | NLM_F_EXCL,
        "54 00 00 00 2c 00 05 06  4b 5c 01 6b 00 00 00 00
         00 00 00 00 04 00 00 00  00 00 00 00 f3 ff ff ff
         00 03 03 00 08 00 01 00  62 70 66 00 28 00 02 00
         08 00 06 00 04 00 00 00  14 00 07 00 70 6f 64 74
         61 70 3a 5b 2a 66 73 6f  62 6a 5d 00 08 00 08 00
         01 00 00 00",
    );
}

/// What the kernel says of the first of these, without its action.
#[test]
fn a_program_is_read() {
    let target = FilterTarget { handle: 1, ..target(3, Hook::Ingress, 32) };
    let unknown = TcFilterBpfOption::Other(DefaultNla::new(10, vec![0x7c; 8]));
    let options = [TcFilterBpfOption::ProgName("podtap".to_owned()), TcFilterBpfOption::ProgId(3100), unknown];
    let filter = read_filter(bpf_message(target, options.map(TcOption::Bpf).to_vec()), target);
    assert_eq!((filter.program, filter.classid, filter.drops_all, filter.id.handle), (Some(3100), 0, false, 1));
    let filter = read_filter(verdict_program_message(target, loaded(4, 31, "podtap")), target);
    assert_eq!(filter.classid, 31);
}

/// `tc filter del dev eth0 ingress protocol all prio 32 handle 1 bpf`,
/// `tc filter del dev eth0 ingress chain 7 protocol ip prio 3 handle 800::800 u32`
#[test]
fn removal() {
    let ours = FilterId {
        interface: 3,
        hook: Hook::Ingress,
        chain: 0,
        priority: 32,
        protocol: ETH_P_ALL,
        kind: "bpf".to_owned(),
        handle: 1,
    };
    assert_sends(
        RouteNetlinkMessage::DelTrafficFilter(remove_message(&ours)),
        0,
        "2c 00 00 00 2d 00 05 00  4b 5c 01 6b 00 00 00 00
         00 00 00 00 03 00 00 00  01 00 00 00 f2 ff ff ff
         00 03 20 00 08 00 01 00  62 70 66 00",
    );
    let other =
        FilterId { chain: 7, priority: 3, protocol: 0x0800, kind: "u32".to_owned(), handle: 0x8000_0800, ..ours };
    assert_sends(
        RouteNetlinkMessage::DelTrafficFilter(remove_message(&other)),
        0,
        "34 00 00 00 2d 00 05 00  73 5c 01 6b 00 00 00 00
         00 00 00 00 03 00 00 00  00 08 00 80 f2 ff ff ff
         08 00 03 00 08 00 0b 00  07 00 00 00 08 00 01 00
         75 33 32 00",
    );
}

#[test]
fn what_was_sent_is_read_back() {
    let at = target(3, Hook::Egress, 35);
    let filter = read_filter(mirror_program_message(at, loaded(4, 0, PROGRAM_NAME), 4, &COOKIE), at);
    let counters = Counters::default();
    assert_eq!(
        filter.mirror,
        Some(Mirror { to: 4, as_ours: true, redirects: false, cookie: COOKIE.to_vec(), counters })
    );
    assert_eq!((filter.id.priority, filter.id.protocol, filter.drops_all), (35, ETH_P_ALL, false));
    let at = target(4, Hook::Ingress, DROP_PRIORITY);
    let filter = read_filter(drop_message(at), at);
    assert!(filter.drops_all && filter.mirror.is_none() && filter.program.is_none());
}
