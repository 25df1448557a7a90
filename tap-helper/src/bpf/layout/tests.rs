//! The Rust structs have the layout that the object's BTF has for the C structs.

use std::mem::offset_of;

use aya_obj::{Object, generated::bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY};
use podtap_model::bounds::SENDER_MEMORY_PER_CPU;
use serde_json::json;

use super::*;
use crate::bpf::{
    constants::{COUNTERS, SENDERS, SLOTS},
    object::{PROBE, RECEIVER, TAP},
};

/// A struct: its size and its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layout {
    name: &'static str,
    size: usize,
    fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    name: String,
    offset: usize,
    size: usize,
}

/// The layout of a Rust struct. Does not compile if a field is missing from the list.
macro_rules! layout {
    ($name:literal, $type:ident { $($field:ident),+ $(,)? }) => {{
        let _ = |$type { $($field: _),+ }: $type| ();
        let field = |name: &str, offset, size| Field { name: name.to_owned(), offset, size };
        let fields = vec![$(
            field(stringify!($field), offset_of!($type, $field), size_of_field(|value: &$type| &value.$field)),
        )+];
        Layout { name: $name, size: size_of::<$type>(), fields }
    }};
}

fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// The structs of an object.
fn rust(object: &[u8]) -> Vec<Layout> {
    if object == RECEIVER {
        return vec![
            layout!("receiver", Receiver { program_hash, ethertype, metadata, forgotten, tap }),
            layout!("pod", PodKey { uid }),
            layout!("pod_probes", PodProbes { last, last_full_size, sent, correction }),
        ];
    }
    vec![
        layout!(
            "config",
            Config {
                program_hash,
                peers_hash,
                bits_per_second,
                packets_per_second,
                sample_seed,
                flags,
                include_count,
                rule_count,
                one_in_flows,
                truncate,
                frame_limit,
                probe_ethertype,
                bytes_per_flow,
                exempt_bytes,
                rules,
            }
        ),
        layout!("rule", Rule { protocol, first_port, last_port, remote }),
        layout!("network", Network { family, address, mask }),
        layout!("counter", Counter { frames, bytes }),
        layout!("peer", Peer { family, address }),
    ]
}

// Kinds of BTF types (include/uapi/linux/btf.h).
const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const TYPEDEF: u32 = 8;

/// A type of BTF.
struct Type {
    kind: u32,
    name: String,
    /// Its size in bytes, or the type that it refers to.
    size_or_reference: usize,
    /// Where its further words begin.
    at: usize,
    /// How many members it has.
    members: usize,
}

/// BTF as in Documentation/bpf/btf.rst of the kernel.
struct Btf {
    bytes: Vec<u8>,
    types: Vec<Type>,
    strings: usize,
}

impl Btf {
    fn parse(bytes: Vec<u8>) -> Self {
        let mut btf = Self { bytes, types: Vec::new(), strings: 0 };
        let header = btf.word(4);
        let (mut at, end) = (header + btf.word(8), header + btf.word(8) + btf.word(12));
        btf.strings = header + btf.word(16);
        while at < end {
            let info = btf.word(at + 4);
            let kind = u32::try_from(info >> 24 & 0x1f).expect("5 bits");
            let members = info & 0xffff;
            let one = Type { kind, name: btf.string(at), size_or_reference: btf.word(at + 8), at: at + 12, members };
            at += 12
                + match kind {
                    // INT, VAR, DECL_TAG
                    1 | 14 | 17 => 4,
                    ARRAY => 12,
                    // STRUCT, UNION, DATASEC, ENUM64
                    4 | 5 | 15 | 19 => members * 12,
                    // ENUM, FUNC_PROTO
                    6 | 13 => members * 8,
                    _ => 0,
                };
            btf.types.push(one);
        }
        btf
    }

    fn word(&self, at: usize) -> usize {
        let bytes = self.bytes[at..].first_chunk().expect("BTF has whole words");
        usize::try_from(u32::from_ne_bytes(*bytes)).expect("32 bits")
    }

    /// The string to which the word at an offset points.
    fn string(&self, at: usize) -> String {
        let start = self.strings + self.word(at);
        let bytes = self.bytes[start..].split(|byte| *byte == 0).next().expect("strings end with 0");
        String::from_utf8(bytes.to_vec()).expect("names are ASCII")
    }

    /// The type with an ID; 0 is `void`.
    fn get(&self, id: usize) -> &Type {
        &self.types[id - 1]
    }

    fn size(&self, id: usize) -> usize {
        let one = self.get(id);
        match one.kind {
            INT | STRUCT => one.size_or_reference,
            TYPEDEF => self.size(one.size_or_reference),
            ARRAY => self.word(one.at + 8) * self.size(self.word(one.at)),
            other => panic!("a field has a type of kind {other}"),
        }
    }

    fn find(&self, name: &str) -> &Type {
        let found = self.types.iter().find(|one| one.kind == STRUCT && one.name == name);
        found.unwrap_or_else(|| panic!("the object has no struct {name}"))
    }

    fn layout(&self, name: &'static str) -> Layout {
        let one = self.find(name);
        let field = |number: usize| {
            let at = one.at + number * 12;
            // Offsets are in bits.
            Field { name: self.string(at), offset: self.word(at + 8) / 8, size: self.size(self.word(at + 4)) }
        };
        Layout { name, size: one.size_or_reference, fields: (0..one.members).map(field).collect() }
    }
}

const OBJECTS: [&[u8]; 2] = [TAP, RECEIVER];

fn btf(object: &[u8]) -> Vec<u8> {
    Object::parse(object).expect("the object is valid").btf.expect("the object has BTF").to_bytes()
}

/// Which fields, or sizes of structs, differ between Rust and C.
fn differences(rust: &[Layout], btf: Vec<u8>) -> Vec<String> {
    let btf = Btf::parse(btf);
    let mut found = Vec::new();
    for ours in rust {
        let theirs = btf.layout(ours.name);
        if (ours.size, ours.fields.len()) != (theirs.size, theirs.fields.len()) {
            found.push(ours.name.to_owned());
        }
        let pairs = ours.fields.iter().zip(&theirs.fields);
        found.extend(pairs.filter(|(a, b)| a != b).map(|(field, _)| format!("{}.{}", ours.name, field.name)));
    }
    found
}

#[test]
fn rust_and_c_agree() {
    for object in OBJECTS {
        assert_eq!(differences(&rust(object), btf(object)), [""; 0]);
        for layout in rust(object) {
            let fields: usize = layout.fields.iter().map(|field| field.size).sum();
            assert_eq!(fields, layout.size, "{} has padding", layout.name);
        }
    }
}

#[test]
fn a_field_that_moves_by_one_byte_in_c_is_noticed() {
    for (object, layout) in OBJECTS.iter().flat_map(|object| rust(object).into_iter().map(move |one| (object, one))) {
        let original = Btf::parse(btf(object));
        for (number, field) in layout.fields.iter().enumerate() {
            let at = original.find(layout.name).at + number * 12 + 8;
            let bits = u32::try_from(original.word(at) + 8).expect("32 bits");
            let mut moved = original.bytes.clone();
            moved[at..at + 4].copy_from_slice(&bits.to_ne_bytes());
            assert_eq!(differences(&rust(object), moved), [format!("{}.{}", layout.name, field.name)]);
        }
    }
}

#[test]
fn a_field_that_moves_by_one_byte_in_rust_is_noticed() {
    for object in OBJECTS {
        for (number, layout) in rust(object).iter().enumerate() {
            for (position, field) in layout.fields.iter().enumerate() {
                let mut moved = rust(object);
                moved[number].fields[position].offset += 1;
                assert_eq!(differences(&moved, btf(object)), [format!("{}.{}", layout.name, field.name)]);
            }
        }
    }
}

#[test]
fn maps_have_these_values() {
    let shape_in = |object: &[u8], name: &str| {
        let object = Object::parse(object).expect("the object is valid");
        let map = &object.maps[name];
        (map.key_size() as usize, map.value_size() as usize, map.max_entries())
    };
    assert_eq!(shape_in(RECEIVER, "receiver"), (4, size_of::<Receiver>(), 1));
    let (key, value, _) = shape_in(RECEIVER, "pod_probes");
    assert_eq!((key, value), (size_of::<PodKey>(), size_of::<PodProbes>()));
    // Those that a probe's program shares.
    for name in ["deadlines", "selection"] {
        assert_eq!(shape_in(PROBE, name), shape_in(TAP, name));
    }
    let shape = |name: &str| shape_in(TAP, name);
    assert_eq!(shape("configs"), (4, size_of::<Config>(), SLOTS));
    assert_eq!(shape("active"), (4, 4, 1));
    assert_eq!(shape("counters"), (4, size_of::<Counter>(), SENDERS * COUNTERS));
    assert_eq!(shape("deadlines"), (4, size_of::<u64>(), SENDERS));
    assert_eq!(shape("peers"), (size_of::<Peer>(), 4, PEERS));
    // The documentation has this number, and `FLOW_TABLE_MEMORY` what it takes.
    assert_eq!(shape("flows").2, 16_384);
}

/// The tap-helper's memory limit has room for what the maps take for each CPU, in units of eight bytes.
#[test]
fn the_maps_take_no_more_for_each_cpu_than_the_limit_assumes() {
    let object = Object::parse(TAP).expect("the object is valid");
    let per_cpu = object.maps.values().filter(|map| map.map_type() == BPF_MAP_TYPE_PERCPU_ARRAY as u32);
    let sizes = per_cpu.map(|map| u64::from(map.value_size()).next_multiple_of(8) * u64::from(map.max_entries()));
    let sum: u64 = sizes.sum();
    let counters = u64::from(SENDERS * COUNTERS) * size_of::<Counter>() as u64;
    assert!(sum > counters, "{sum} bytes: the counters are not counted");
    assert!(sum <= SENDER_MEMORY_PER_CPU, "{sum} bytes");
}

/// A filter that may select a flow at one end of a Service and not at the other reverses which end mirrors.
#[test]
fn the_filter_decides_which_end_mirrors() {
    let flags = |filter: serde_json::Value, peers: &[&str]| {
        let filter: podtap_model::Filter = serde_json::from_value(filter).expect("a filter");
        let program = filter.expression.as_ref().map(|_| crate::fixtures::program());
        let options = podtap_model::MirrorOptions { filter: Some(filter), ..podtap_model::MirrorOptions::default() };
        let peers = peers.iter().map(|peer| peer.parse().expect("an address")).collect();
        let settings = Settings { options, program, peers, ..Settings::default() };
        let config = Config::new(&settings, 0).expect("valid");
        config.flags & (DEDUPLICATE | LOWER_PORT_MIRRORS)
    };
    for same in [json!({}), json!({"include": [{"protocol": "TCP"}, {"cidrs": ["0.0.0.0/0", "::/0"]}]})] {
        assert_eq!(flags(same.clone(), &["10.0.0.1"]), DEDUPLICATE);
        assert_eq!(flags(same, &[]), 0, "without peers, nothing is deduplicated");
    }
    for different in [
        json!({"include": [{"ports": [{"port": 80}]}]}),
        json!({"exclude": [{"protocol": "TCP", "ports": [{"port": 80}]}]}),
        json!({"exclude": [{"cidrs": ["10.0.0.0/8"]}]}),
        json!({"expression": "tcp"}),
    ] {
        assert_eq!(flags(different, &["10.0.0.1"]), DEDUPLICATE | LOWER_PORT_MIRRORS);
    }
}

#[test]
fn addresses_become_peers() {
    let peer = |text: &str| Peer::from(text.parse::<IpAddr>().expect("an address"));
    assert_eq!(peer("10.1.2.3"), Peer { family: 4, address: [[10, 1, 2, 3], [0; 4], [0; 4], [0; 4]] });
    assert_eq!(peer("fd00::1"), Peer { family: 6, address: [[0xfd, 0, 0, 0], [0; 4], [0; 4], [0, 0, 0, 1]] });
    let hash = |peers: &[&str]| {
        let peers: Vec<IpAddr> = peers.iter().map(|text| text.parse().expect("an address")).collect();
        hash_peers(&peers)
    };
    assert_eq!(hash(&[]), 0);
    assert_ne!(hash(&["10.1.2.3"]), hash(&["10.1.2.4"]));
}

#[test]
fn matches_become_rules() {
    let cidr = |text: &str| text.parse::<IpNet>().expect("a CIDR");
    let range = |port, end_port| podtap_model::PortRange { port, end_port };
    let one = Match {
        protocol: Some(Protocol::Tcp),
        ports: vec![range(80, None), range(443, Some(450))],
        cidrs: vec![cidr("10.1.2.3/12"), cidr("fd00::1/65")],
    };
    let ipv4 = Network::from(&one.cidrs[0]);
    assert_eq!((ipv4.family, ipv4.address[0], ipv4.mask[0]), (4, [10, 0, 0, 0], [255, 240, 0, 0]));
    let ipv6 = Network::from(&one.cidrs[1]);
    assert_eq!((ipv6.address, ipv6.mask[2]), ([[0xfd, 0, 0, 0], [0; 4], [0; 4], [0; 4]], [128, 0, 0, 0]));
    let rule = |first_port, last_port, remote| Rule { protocol: 6, first_port, last_port, remote };
    assert_eq!(rules(&one), [rule(80, 80, ipv4), rule(80, 80, ipv6), rule(443, 450, ipv4), rule(443, 450, ipv6)]);

    let icmp = Match { protocol: Some(Protocol::Icmp), ports: vec![], ..one };
    let rule = |remote| Rule { protocol: 1, first_port: 0, last_port: NO_PORT, remote };
    assert_eq!(rules(&icmp), [rule(ipv4)]);
    let everywhere = Network { family: 4, ..Network::default() };
    assert_eq!(rules(&Match { cidrs: vec![], ..icmp }), [rule(everywhere)]);
    let all = Network::from(&cidr("::/0"));
    assert_eq!((all.family, all.mask), (6, [[0; 4]; 4]));
}

#[test]
fn only_uids_are_pods() {
    let key = |text: &[u8]| {
        let mut uid = [0; UID_SIZE as usize];
        uid[..text.len()].copy_from_slice(text);
        PodKey { uid }.pod()
    };
    let uid = "5f0d6c1e-0000-4000-8000-000000000001";
    assert_eq!(key(uid.as_bytes()).as_deref(), Some(uid));
    for forged in [&b""[..], b"\xff\xfe", b"a\0b", b"a b"] {
        assert_eq!(key(forged), None, "{forged:?}");
    }
}
