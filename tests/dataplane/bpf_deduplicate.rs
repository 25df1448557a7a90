//! Deduplication, frame by frame: both ends of a flow, each with the programs of the same tap.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podtap_model::{Deduplicate, Handshakes, Match, MirrorOptions, PortRange, Protocol};
use tap_helper::bpf::{Maps, ProgramKind, Programs, Settings};

use crate::{
    bpf_flows::{End, fragments, frame, load, mirrored},
    bpf_frames::Random,
    bpf_scene::filtering,
};

const CLIENT: [u8; 4] = [10, 0, 0, 1];
const SERVER: [u8; 4] = [10, 0, 0, 2];
/// The address of a Service, which no pod has.
const SERVICE: [u8; 4] = [10, 96, 0, 10];

/// As in [`frame`].
fn address(address: [u8; 4], ipv6: bool) -> IpAddr {
    let low = u128::from(u32::from_be_bytes(address));
    if ipv6 { Ipv6Addr::from_bits(0x2001_0db8 << 96 | low).into() } else { Ipv4Addr::from(address).into() }
}

/// The settings of a tap while it mirrors these pods.
fn tapping(settings: &Settings, pods: &[[u8; 4]]) -> Settings {
    let both = |pod: &[u8; 4]| [address(*pod, false), address(*pod, true)];
    let mut peers: Vec<IpAddr> = pods.iter().flat_map(both).collect();
    peers.sort_unstable();
    Settings { peers, ..settings.clone() }
}

/// The programs of client and server, each a peer of the other.
fn both(settings: &Settings) -> [Programs; 2] {
    [CLIENT, SERVER].map(|_| load(&tapping(settings, &[CLIENT, SERVER])))
}

/// A flow as its two ends see it: behind a Service, the server has another address and port than the client uses.
#[derive(Clone, Copy, Debug)]
struct Flow {
    protocol: u8,
    ipv6: bool,
    client: End,
    used: End,
    server: End,
}

impl Flow {
    fn is_direct(&self) -> bool {
        self.used == self.server
    }

    /// Whether client and server mirror a request, or a reply.
    fn mirrored(&self, pods: &[Programs; 2], reply: bool, flags: u8) -> [bool; 2] {
        let at = |end: End, sends: bool, remote: End| {
            let programs = &pods[usize::from(end.address == SERVER)];
            let (from, to) = if reply { (remote, self.client) } else { (self.client, remote) };
            let kind = if sends { ProgramKind::Egress } else { ProgramKind::Ingress };
            mirrored(programs, kind, &frame(self.protocol, from, to, flags, self.ipv6))
        };
        [at(self.client, !reply, self.used), at(self.server, reply, self.server)]
    }
}

fn count(ends: [bool; 2]) -> usize {
    ends.iter().filter(|mirrored| **mirrored).count()
}

/// Flows with every order of ports, directly and through a Service with the same or another port.
fn flows(random: &mut Random, count: usize) -> Vec<Flow> {
    const PORTS: [u16; 6] = [53, 80, 8080, 40_000, 50_000, 65_535];
    let one = |_| {
        let mut port = || random.of(&PORTS);
        let (client, server) = (End { address: CLIENT, port: port() }, End { address: SERVER, port: port() });
        let service = End { address: SERVICE, port: port() };
        let used = random.of(&[server, service, End { port: server.port, ..service }]);
        // ICMP has no ports, and Services do not translate it.
        let protocol = random.of(&[6, 17, 132, 1]);
        let used = if protocol == 1 { server } else { used };
        let (client, server) = if random.one_in(2) && used == server {
            (End { address: SERVER, ..client }, End { address: CLIENT, ..server })
        } else {
            (client, server)
        };
        let used = if used.address == SERVICE { used } else { server };
        Flow { protocol, ipv6: random.one_in(2), client, used, server }
    };
    (0..count).map(one).collect()
}

fn ports(list: &[u16]) -> Vec<PortRange> {
    list.iter().map(|port| PortRange { port: *port, end_port: None }).collect()
}

fn cidrs(list: &[&str]) -> Vec<podtap_model::IpNet> {
    list.iter().map(|cidr| cidr.parse().expect("a CIDR")).collect()
}

/// Filters that look at protocols only, and others.
fn filters() -> [(Settings, bool); 8] {
    let tcp = Match { protocol: Some(Protocol::Tcp), ..Match::default() };
    let any = Match { cidrs: cidrs(&["0.0.0.0/0", "::/0"]), ..Match::default() };
    let web = Match { ports: ports(&[80, 8080]), ..Match::default() };
    let server = Match { cidrs: cidrs(&["10.0.0.2/32", "2001:db8::a00:2/128"]), ..Match::default() };
    let service = Match { cidrs: cidrs(&["10.96.0.0/12"]), ..Match::default() };
    [
        (Settings::default(), true),
        (filtering(vec![tcp.clone()], vec![]), true),
        (filtering(vec![any], vec![tcp.clone()]), true),
        (filtering(vec![web.clone()], vec![]), false),
        (filtering(vec![], vec![web.clone()]), false),
        (filtering(vec![server.clone()], vec![]), false),
        (filtering(vec![], vec![server]), false),
        (filtering(vec![service, tcp], vec![web]), false),
    ]
}

/// Compared with a tap without deduplication: whatever that mirrors, this mirrors; and not twice where both ends see the same, or where
/// the filter does not look at what they see. That holds for each frame by itself, with or without the handshake of its flow.
#[test]
fn every_frame_between_two_tapped_pods_is_mirrored_and_none_twice() {
    let mut random = Random::new(6);
    let (mut once, mut twice) = (0, 0);
    for (settings, protocols_only) in filters() {
        let (plain, ends) = ([load(&settings), load(&settings)], both(&settings));
        for flow in flows(&mut random, 400) {
            for (reply, flags) in [(false, 0x10), (true, 0x18), (false, 2), (true, 0x12), (false, 0x10)] {
                let without = count(flow.mirrored(&plain, reply, flags));
                let with = count(flow.mirrored(&ends, reply, flags));
                // Behind a Service, a port above the client's looks like that of a client.
                let is_typical = flow.is_direct() || flow.server.port < flow.client.port;
                let is_lost = with == 0 && without > 0;
                assert!(with <= without && !(is_lost && (is_typical || protocols_only)), "{flow:?}, {settings:?}");
                let is_exact = flow.is_direct() || protocols_only && is_typical;
                assert!(!is_exact || with < 2, "twice: {flow:?}, {settings:?}");
                (once, twice) = (once + usize::from(with == 1), twice + usize::from(with == 2));
            }
        }
    }
    println!("{once} frames once, {twice} twice");
    assert!(once > 3000 && twice > 300, "{once} frames once, {twice} twice");
}

/// Whatever the filter selects of handshakes and DNS is mirrored as without deduplication, and all else as with it.
#[test]
fn handshakes_are_mirrored_at_both_ends_if_the_tap_says_so() {
    let mut random = Random::new(7);
    let (mut handshakes, mut others) = (0, 0);
    for (settings, _) in filters() {
        let deduplicate = Some(Deduplicate { handshakes: Handshakes::Both });
        let options = MirrorOptions { deduplicate, ..settings.options.clone() };
        let (plain, once) = ([load(&settings), load(&settings)], both(&settings));
        let ends = both(&Settings { options, ..settings.clone() });
        for flow in flows(&mut random, 200) {
            for (reply, flags) in [(false, 2), (true, 0x12), (false, 0x10), (true, 0x11), (true, 4)] {
                // As the client sees the server, and as it is.
                let is_handshake = [flow.used, flow.server].map(|server| {
                    let is_dns = [6, 17].contains(&flow.protocol) && [server.port, flow.client.port].contains(&53);
                    is_dns || flow.protocol == 6 && flags & 2 != 0
                });
                let (without, with) = (flow.mirrored(&plain, reply, flags), flow.mirrored(&once, reply, flags));
                let now = flow.mirrored(&ends, reply, flags);
                for end in 0..2 {
                    let expected = if is_handshake[end] { without[end] } else { with[end] };
                    assert_eq!(now[end], expected, "{flow:?} {reply} {flags} at {end}, {settings:?}");
                    *(if is_handshake[end] { &mut handshakes } else { &mut others }) += usize::from(now[end]);
                }
            }
        }
    }
    println!("{handshakes} of handshakes, {others} others");
    assert!(handshakes > 1000 && others > 1000, "{handshakes} {others}");
}

/// A server on a port above the client's, reached through a Service: the connection is older than the tap.
#[test]
fn an_old_flow_through_a_service_is_not_left_by_both_ends() {
    let ends = both(&Settings::default());
    let client = End { address: CLIENT, port: 40_000 };
    let (used, server) = (End { address: SERVICE, port: 80 }, End { address: SERVER, port: 50_000 });
    for protocol in [6, 17] {
        let flow = Flow { protocol, ipv6: false, client, used, server };
        for reply in [false, true, false] {
            assert!(count(flow.mirrored(&ends, reply, 0x18)) > 0, "{protocol} {reply}");
        }
    }
}

#[test]
fn flows_with_others_are_mirrored_in_full() {
    let programs = load(&tapping(&Settings::default(), &[CLIENT, SERVER]));
    // A pod that is not tapped, a Service, a node, and a peer's IPv4 address as the beginning of an IPv6 address.
    for other in [[10, 0, 0, 3], SERVICE, [192, 168, 0, 1]] {
        for (own, port) in [(80, 40_000), (40_000, 80), (53, 53)] {
            for (protocol, ipv6) in [(6, false), (17, true), (1, false)] {
                let (pod, other) = (End { address: CLIENT, port: own }, End { address: other, port });
                for flags in [2, 0x10] {
                    assert!(mirrored(&programs, ProgramKind::Egress, &frame(protocol, pod, other, flags, ipv6)));
                    assert!(mirrored(&programs, ProgramKind::Ingress, &frame(protocol, other, pod, flags, ipv6)));
                }
            }
        }
    }
    // A group is not the pod's own address.
    let group = frame(17, End { address: SERVER, port: 5353 }, End { address: [224, 0, 0, 251], port: 80 }, 0, false);
    assert!(mirrored(&programs, ProgramKind::Ingress, &group));
    let mut similar = frame(17, End { address: CLIENT, port: 80 }, End { address: SERVER, port: 9000 }, 0, true);
    similar[38..54].copy_from_slice(&[10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert!(mirrored(&programs, ProgramKind::Egress, &similar));
    let counted = programs.maps().counters(0).expect("the counters are readable");
    assert_eq!((counted.ingress.deduplicated.frames, counted.egress.deduplicated.frames), (0, 0));
}

/// An end that does not know the ports of a later fragment does not leave it to the other one, which may know them.
#[test]
fn a_later_fragment_without_its_first_is_mirrored_at_both_ends() {
    for (ipv6, port) in [(false, 80), (false, 4000), (true, 80), (true, 4000)] {
        // From port 999 of the client.
        let [first, later] = fragments(7, port, ipv6);
        let [client, server] = both(&Settings::default());
        let ends = [(client, ProgramKind::Egress), (server, ProgramKind::Ingress)];
        let at_ends = |frame: &[u8]| ends.each_ref().map(|(programs, kind)| mirrored(programs, *kind, frame));
        assert_eq!(count(at_ends(&later)), 2, "neither knows its ports");
        let chosen = at_ends(&first);
        assert_eq!((count(chosen), at_ends(&later)), (1, chosen), "the same end mirrors both");
        assert!(
            mirrored(&both(&Settings::default())[1], ProgramKind::Ingress, &later),
            "only the other end has seen the first"
        );
    }
}

/// Peers come and go while the programs run, and whichever helper runs.
#[test]
fn peers_are_changed_in_place() {
    let (client, server) = (End { address: CLIENT, port: 40_000 }, End { address: SERVER, port: 80 });
    let request = frame(6, client, server, 2, false);
    let at_server = |programs: &Programs| mirrored(programs, ProgramKind::Ingress, &request);
    let with = |pods: &[[u8; 4]]| tapping(&Settings::default(), &[pods, &[SERVER]].concat());
    let mut programs = load(&Settings::default());
    assert!(at_server(&programs));
    let many: Vec<[u8; 4]> =
        (0..500_u16).map(|number| [10, 1, number.to_be_bytes()[0], number.to_be_bytes()[1]]).collect();
    for (pods, mirrors) in
        [(vec![CLIENT], false), (vec![], true), (many.clone(), true), ([many, vec![CLIENT]].concat(), false)]
    {
        let settings = with(&pods);
        programs.maps_mut().configure(&settings).expect("the maps are written");
        assert_eq!(at_server(&programs), mirrors, "{} peers", pods.len());
        // The next helper finds them by the program.
        let [ingress, _, _] = programs.ids().expect("the programs have IDs");
        let mut adopted = Maps::adopt(ingress).expect("the program is ours");
        assert!(adopted.supports(&Settings::default()) && adopted.is_configured(&settings));
        adopted.configure(&with(&[])).expect("the maps are written");
        assert!(at_server(&programs));
        adopted.configure(&settings).expect("the maps are written");
        assert_eq!(at_server(&programs), mirrors);
    }
    // A classifier that was removed by hand is loaded again, with only the clamp left to adopt.
    let [_, _, clamp] = programs.ids().expect("the programs have IDs");
    let loaded = Programs::load(&with(&[CLIENT]), Some(&Maps::adopt(clamp).expect("the program is ours")));
    assert!(!at_server(&loaded.expect("the programs load")));
}
