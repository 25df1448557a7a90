use podtap_model::{Direction, Endpoint, Instruction, IpNet, Pod, Program, ProgramId, Tap};
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::*;

fn features() -> Features {
    Features { ebpf: Ok(()), clamp: Ok(()), rate_limit: Ok(()), expression: Ok(()), frag_list_safe: true }
}

fn tap(options: &Value) -> Tap {
    let vni = 7.try_into().expect("a VNI");
    Tap {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        uid: "t".parse().expect("a UID"),
        interface: None,
        direction: Direction::Both,
        destinations: vec![Endpoint { address: [10, 66, 0, 2].into(), port: 14789, vni }],
        options: MirrorOptions::deserialize(options).expect("mirror options"),
        program: None,
    }
}

fn sender_of(tap: Tap) -> DesiredSender {
    let pod = Pod {
        namespace: "shop".to_owned(),
        name: "web-0".to_owned(),
        uid: "p".parse().expect("a UID"),
        config_hash: None,
        addresses: vec![],
    };
    DesiredSender { tap: Arc::new(tap), pod, program: None, underlay_mtu: None }
}

fn sender() -> DesiredSender {
    sender_of(tap(&json!({})))
}

fn program() -> Arc<Program> {
    let instructions = vec![Instruction { code: 6, jt: 0, jf: 0, k: 1 }];
    Arc::new(Program { id: ProgramId::from_digest([0; 32]), instructions })
}

/// All options at once.
fn demanding() -> DesiredSender {
    let options = json!({
        "filter": {
            "include": [{"protocol": "TCP", "ports": [{"port": 443, "endPort": 450}], "cidrs": ["10.0.0.0/8"]}],
            "exclude": [{"protocol": "ICMP"}],
            "expression": "less 1000",
        },
        "truncate": {"bytes": 128},
        "sample": {"oneInFlows": 10},
        "limit": {"bitsPerSecond": 5, "packetsPerSecond": 6},
        "oversize": "Truncate",
        "deduplicate": {"podCIDRs": ["10.244.0.0/16", "10.96.0.0/12"], "serviceCIDRs": ["10.96.0.0/12"]},
    });
    DesiredSender { program: Some(program()), underlay_mtu: Some(1400), ..sender_of(tap(&options)) }
}

#[test]
fn all_options_reach_the_programs() {
    let demanding = demanding();
    let paths = Paths { mtu: Some(1500), reach: Reach::Mixed };
    let settings = settings(&demanding, paths, &features());
    let expected = bpf::Settings {
        options: demanding.tap.options.clone(),
        program: Some(program()),
        frame_limit: Some(1364),
        reach: Reach::Mixed,
        linearize: false,
    };
    assert_eq!(settings, expected);
    let networks = ["10.96.0.0/12", "10.244.0.0/16"].map(|text| text.parse::<IpNet>().expect("a CIDR"));
    assert_eq!(settings.peer_networks(), networks, "each network once");
}

#[test]
fn the_narrowest_part_of_the_path_counts() {
    let paths = |mtu| Paths { mtu, ..Paths::default() };
    let limit = |route: Option<u32>, underlay: Option<u32>| {
        settings(&DesiredSender { underlay_mtu: underlay, ..sender() }, paths(route), &features()).frame_limit
    };
    assert_eq!(limit(Some(1500), None), Some(1464));
    assert_eq!(limit(Some(1300), Some(1400)), Some(1264));
    assert_eq!(limit(None, Some(1400)), Some(1364));
    assert_eq!(limit(None, None), None);
    let mut ipv6 = tap(&json!({}));
    ipv6.destinations[0].address = "fd66::2".parse().expect("an address");
    let over_ipv6 = settings(&sender_of(ipv6), paths(Some(1500)), &features());
    assert_eq!((over_ipv6.frame_limit, over_ipv6.options.oversize), (Some(1444), Oversize::Truncate));
    let without_clamp = Features { clamp: Err(Unsupported("old".to_owned())), ..features() };
    assert_eq!(settings(&sender(), paths(Some(1500)), &without_clamp).frame_limit, None);
}

#[test]
fn unsupported_options_are_reported() {
    assert_eq!(degraded(&demanding(), &features()), Vec::<String>::new());
    let without = Features { ebpf: Err(Unsupported("not permitted".to_owned())), ..features() };
    assert_eq!(degraded(&sender(), &without).len(), 1, "oversize frames are fragmented, whatever the options");
    let all = degraded(&demanding(), &without);
    assert_eq!(all.len(), 6, "{all:?}");
    let ending = "the node's kernel does not support it (not permitted).";
    assert!(all.iter().all(|sentence| sentence.ends_with(ending)), "{all:?}");
    let without_clamp = Features { clamp: Err(Unsupported("old".to_owned())), ..features() };
    assert_eq!(degraded(&demanding(), &without_clamp).len(), 1);
}

#[test]
fn options_without_room_are_refused() {
    assert!(check(&demanding()).is_ok());
    let ports: Vec<Value> = (0..16).map(|port| json!({"port": 1 + port})).collect();
    let cidrs: Vec<String> = (0..4).map(|number| format!("10.{number}.0.0/16")).collect();
    let rules = json!({"include": [{"ports": ports, "cidrs": cidrs}], "exclude": [{"protocol": "ICMP"}]});
    let many = sender_of(tap(&json!({"filter": rules})));
    assert!(matches!(check(&many), Err(BpfError::TooManyRules(65))));
}
