use tap_wire::{Deduplicate, Endpoint, Filter, Instruction, Limit, Match, Pod, PortRange, Protocol, Truncate};

use super::*;

fn features() -> Features {
    Features { ebpf: Ok(()), clamp: Ok(()), rate_limit: Ok(()), expression: Ok(()), frag_list_safe: true }
}

fn sender() -> Sender {
    let pod = Pod { uid: "p".to_owned(), cgroup_uid: None, addresses: vec![] };
    let to = Endpoint { address: [10, 66, 0, 2].into(), port: 14789, vni: 7 };
    Sender::of_everything("t".to_owned(), pod, vec![to])
}

fn net(address: [u8; 4], prefix: u8) -> Network {
    Network { address: address.into(), prefix }
}

/// Everything that can be wished.
fn demanding() -> Sender {
    let https = Match {
        protocol: Some(Protocol::Tcp),
        ports: vec![PortRange { first: 443, last: 450 }],
        networks: vec![net([10, 0, 0, 0], 8)],
    };
    let expression = vec![Instruction { code: 6, jt: 0, jf: 0, k: 1 }];
    Sender {
        filter: Filter { include: vec![https], exclude: vec![Match::default()], expression },
        truncate: Some(Truncate::Bytes(128)),
        one_in_flows: 10,
        limit: Limit { bits_per_second: 5, packets_per_second: 6 },
        oversize: Oversize::Truncate,
        deduplicate: Some(Deduplicate {
            pod_networks: vec![net([10, 244, 0, 0], 16), net([10, 96, 0, 0], 12)],
            service_networks: vec![net([10, 96, 0, 0], 12)],
        }),
        underlay_mtu: Some(1400),
        ..sender()
    }
}

#[test]
fn everything_arrives() {
    let settings = settings(&demanding(), Some(1500), &features());
    let expected = bpf::Settings {
        include: vec![Match {
            protocol: Some(Protocol::Tcp),
            ports: vec![PortRange { first: 443, last: 450 }],
            networks: vec![net([10, 0, 0, 0], 8)],
        }],
        exclude: vec![Match::default()],
        program: vec![Instruction { code: 6, jt: 0, jf: 0, k: 1 }],
        truncate: Some(Truncate::Bytes(128)),
        one_in_flows: 10,
        limit: Limit { bits_per_second: 5, packets_per_second: 6 },
        oversize: Oversize::Truncate,
        deduplicate: Some(vec![net([10, 96, 0, 0], 12), net([10, 244, 0, 0], 16)]),
        frame_limit: Some(1364),
        linearize: false,
    };
    assert_eq!(settings, expected);
}

#[test]
fn the_narrowest_part_of_the_path_counts() {
    let limit = |route: Option<u32>, underlay: Option<u32>| {
        settings(&Sender { underlay_mtu: underlay, ..sender() }, route, &features()).frame_limit
    };
    assert_eq!(limit(Some(1500), None), Some(1464));
    assert_eq!(limit(Some(1300), Some(1400)), Some(1264));
    assert_eq!(limit(None, Some(1400)), Some(1364));
    assert_eq!(limit(None, None), None);
    let mut ipv6 = sender();
    ipv6.destinations[0].address = "fd66::2".parse().expect("an address");
    let over_ipv6 = settings(&ipv6, Some(1500), &features());
    assert_eq!((over_ipv6.frame_limit, over_ipv6.oversize), (Some(1444), Oversize::Truncate));
    let without_clamp = Features { clamp: Err(Unsupported("old".to_owned())), ..features() };
    assert_eq!(settings(&sender(), Some(1500), &without_clamp).frame_limit, None);
}

#[test]
fn what_cannot_be_done_is_said() {
    assert_eq!(degraded(&demanding(), &features()), Vec::<String>::new());
    let without = Features { ebpf: Err(Unsupported("no right".to_owned())), ..features() };
    assert_eq!(degraded(&sender(), &without).len(), 1, "copies are fragmented, whatever is wanted");
    let all = degraded(&demanding(), &without);
    assert_eq!(all.len(), 6, "{all:?}");
    assert!(all.iter().all(|sentence| sentence.ends_with("the node's kernel cannot do it (no right).")), "{all:?}");
    let without_clamp = Features { clamp: Err(Unsupported("old".to_owned())), ..features() };
    assert_eq!(degraded(&demanding(), &without_clamp).len(), 1);
}

#[test]
fn what_has_no_room_is_refused() {
    assert!(check(&demanding()).is_ok());
    let mut many = demanding();
    many.filter.include[0].ports = vec![PortRange { first: 1, last: 2 }; 16];
    many.filter.include[0].networks = (0..4).map(|number| net([10, number, 0, 0], 16)).collect();
    assert!(matches!(check(&many), Err(BpfError::TooManyRules(65))));
}
