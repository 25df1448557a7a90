//! The rule by which ExtraHop's packet forwarder mirrors each packet once, beside `deduplicate`, on the same frames: see
//! docs/from-extrahop.md.

use podtap_model::{Deduplicate, MirrorOptions};
use podtap_tests::pcap::{File, tcpdump};
use tap_helper::bpf::{ProgramKind, Settings};

use crate::bpf_flows::{End, fragments, frame, load, mirrored};

const ONE: [u8; 4] = [10, 0, 0, 1];
const OTHER: [u8; 4] = [10, 0, 0, 2];
const OUTSIDE: [u8; 4] = [192, 0, 2, 9];
const PODS: &str = "10.0.0.0/24";
const SERVICES: &str = "10.96.0.0/12";

/// The rule in the language of tcpdump, for frames that come to a pod or leave it. `tcpdump` knows the direction of frames only while it
/// captures.
fn rule(kind: ProgramKind) -> String {
    let (ports, addresses) = match kind {
        ProgramKind::Ingress => ("<", ">="),
        ProgramKind::Egress => (">", "<="),
        ProgramKind::Clamp => unreachable!("the clamp mirrors nothing"),
    };
    let by_address = format!("ip[12:4] {addresses} ip[16:4]");
    let by_port = format!("tcp[0:2] {ports} tcp[2:2] or (tcp[0:2] = tcp[2:2] and {by_address})");
    let once = format!("ip[6:2] & 0x1fff != 0 or (not tcp and {by_address}) or (tcp and ({by_port}))");
    format!("not ip or (ip[9] != 4 and not net {SERVICES} and (not net {PODS} or {once}))")
}

/// A tap of both pods.
fn once() -> Settings {
    let mut peers = Vec::new();
    for pod in [ONE, OTHER] {
        let low = u128::from(u32::from_be_bytes(pod));
        peers.push(std::net::Ipv4Addr::from(pod).into());
        peers.push(std::net::Ipv6Addr::from_bits(0x2001_0db8 << 96 | low).into());
    }
    peers.sort_unstable();
    let options = MirrorOptions { deduplicate: Some(Deduplicate::default()), ..MirrorOptions::default() };
    Settings { options, peers, ..Settings::default() }
}

/// A frame, and the pods that see it: whether they send or receive it.
type Seen = (Vec<u8>, &'static [(usize, ProgramKind)]);

/// How often the frames are mirrored: by the rule, and by `deduplicate`.
#[track_caller]
fn mirrored_by(frames: &[Seen]) -> (usize, usize) {
    let file = File::of(&frames.iter().map(|(frame, _)| frame.clone()).collect::<Vec<_>>());
    let chosen = [ProgramKind::Ingress, ProgramKind::Egress].map(|kind| tcpdump(file.path(), &rule(kind)));
    let pods = [load(&once()), load(&once())];
    let (mut by_rule, mut ours) = (0, 0);
    for (number, (frame, seen)) in frames.iter().enumerate() {
        for (pod, kind) in *seen {
            let chosen = &chosen[usize::from(matches!(kind, ProgramKind::Egress))];
            by_rule += usize::from(chosen.contains(&number));
            ours += usize::from(mirrored(&pods[*pod], *kind, frame));
        }
    }
    (by_rule, ours)
}

// Which of the two pods see a frame.
const FROM_ONE: &[(usize, ProgramKind)] = &[(0, ProgramKind::Egress)];
const TO_ONE: &[(usize, ProgramKind)] = &[(0, ProgramKind::Ingress)];
const ONE_TO_OTHER: &[(usize, ProgramKind)] = &[(0, ProgramKind::Egress), (1, ProgramKind::Ingress)];
const OTHER_TO_ONE: &[(usize, ProgramKind)] = &[(1, ProgramKind::Egress), (0, ProgramKind::Ingress)];

/// A request and its response between two ends.
fn exchange(protocol: u8, client: End, server: End, ipv6: bool) -> [Vec<u8>; 2] {
    [frame(protocol, client, server, 0x18, ipv6), frame(protocol, server, client, 0x18, ipv6)]
}

const fn end(address: [u8; 4], port: u16) -> End {
    End { address, port }
}

#[test]
fn between_pods_both_mirror_ipv4_once_and_the_rule_mirrors_ipv6_twice() {
    for (protocol, client, server) in [
        (6, end(ONE, 40_000), end(OTHER, 80)),
        (6, end(ONE, 5000), end(OTHER, 5000)),
        (17, end(ONE, 40_000), end(OTHER, 53)),
        (17, end(ONE, 1000), end(OTHER, 5000)),
    ] {
        for (ipv6, expected) in [(false, (2, 2)), (true, (4, 2))] {
            let [request, response] = exchange(protocol, client, server, ipv6);
            let counts = mirrored_by(&[(request, ONE_TO_OTHER), (response, OTHER_TO_ONE)]);
            assert_eq!(counts, expected, "{protocol} {client:?} {server:?} {ipv6}");
        }
    }
}

#[test]
fn with_the_outside_the_rule_mirrors_nothing_where_the_other_end_would_have_to() {
    let lower = [8, 8, 8, 8];
    for (protocol, client, server, by_rule) in [
        // TCP by port: connections from outside to a lower port are missing.
        (6, end(ONE, 40_000), end(OUTSIDE, 443), 2),
        (6, end(ONE, 40_000), end(lower, 443), 2),
        (6, end(OUTSIDE, 40_000), end(ONE, 80), 0),
        (6, end(OUTSIDE, 1024), end(ONE, 8080), 2),
        // All other packets: by address, whichever end asks.
        (17, end(ONE, 40_000), end(OUTSIDE, 53), 2),
        (17, end(OUTSIDE, 40_000), end(ONE, 53), 2),
        (17, end(ONE, 40_000), end(lower, 53), 0),
        (17, end(lower, 40_000), end(ONE, 53), 0),
    ] {
        let [request, response] = exchange(protocol, client, server, false);
        let seen = if client.address == ONE { [FROM_ONE, TO_ONE] } else { [TO_ONE, FROM_ONE] };
        let counts = mirrored_by(&[(request, seen[0]), (response, seen[1])]);
        assert_eq!(counts, (by_rule, 2), "{protocol} {client:?} {server:?}");
    }
}

#[test]
fn later_fragments_are_mirrored_twice_by_the_rule() {
    let frames = fragments(7, 53, false).map(|frame| (frame, ONE_TO_OTHER));
    assert_eq!(mirrored_by(&frames), (3, 2));
}

#[test]
fn arp_between_pods_is_mirrored_at_both_ends_by_both() {
    let mut arp = vec![0xff; 6];
    arp.extend([2, 0, 10, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 10, 0, 0, 1]);
    arp.extend(ONE);
    arp.extend([0; 6]);
    arp.extend(OTHER);
    arp.resize(60, 0);
    assert_eq!(mirrored_by(&[(arp, ONE_TO_OTHER)]), (2, 2));
}
