//! Filters select in this kernel what tcpdump and tshark select.

use podtap_model::Filter;
use podtap_tests::pcap::{File, tcpdump, tshark};
use tap_helper::bpf::{ProgramKind, Programs, Settings};

use crate::{
    bpf_frames::{Chance, DISPLAY, Kinds, Language, PCAP, compile, filter, frame},
    bpf_scene::{compiled, filtering},
};

const PLAIN: Kinds = Kinds { wrapped: false, short: false };
const SHORT: Kinds = Kinds { wrapped: false, short: true };
const WRAPPED: Kinds = Kinds { wrapped: true, short: false };
const ALL: Kinds = Kinds { wrapped: true, short: true };

fn selected(programs: &Programs, which: ProgramKind, frames: &[Vec<u8>]) -> Vec<usize> {
    let matches = |frame: &Vec<u8>| programs.test_run(which, frame, &[]).expect("it runs").0 == -1;
    frames.iter().enumerate().filter(|(_, frame)| matches(frame)).map(|(number, _)| number).collect()
}

/// Compares filters on frames, as many of each as given. Returns how many pairs matched, and how many there were.
fn compare(
    chance: &mut Chance,
    (filters, count): (usize, usize),
    kinds: Kinds,
    language: &Language,
    reader: impl Fn(&std::path::Path, &str) -> Vec<usize>,
) -> (usize, usize) {
    let mut programs = Programs::load(&Settings::default(), None).expect("they load");
    let frames: Vec<_> = (0..count).map(|_| frame(chance, kinds)).collect();
    let file = File::of(&frames);
    let mut matched = 0;
    for _ in 0..filters {
        let filter = filter(chance, kinds.short);
        let (which, side) = chance.of(&[(ProgramKind::Ingress, "src"), (ProgramKind::Egress, "dst")]);
        let Filter { include, exclude, .. } = filter.clone();
        programs.maps_mut().configure(&filtering(include, exclude)).expect("it is written");
        let expression = language.write(&filter, side);
        let (ours, theirs) = (selected(&programs, which, &frames), reader(file.path(), &expression));
        if let Some(frame) = (0..count).find(|number| ours.contains(number) != theirs.contains(number)) {
            panic!("{expression}\n{filter:?}\n{which:?}, ours {}: {:02x?}", ours.contains(&frame), frames[frame]);
        }
        matched += ours.len();
    }
    (matched, filters * count)
}

#[track_caller]
fn some_of((matched, pairs): (usize, usize)) {
    println!("{matched} of {pairs} pairs match");
    assert!(matched * 20 > pairs && matched * 20 < pairs * 19, "{matched} of {pairs}");
}

#[test]
fn as_tcpdump_selects() {
    some_of(compare(&mut Chance::new(1), (200, 200), PLAIN, &PCAP, tcpdump));
}

#[test]
fn as_tcpdump_selects_of_short_frames() {
    some_of(compare(&mut Chance::new(2), (100, 200), SHORT, &PCAP, tcpdump));
}

#[test]
fn as_tshark_selects_of_tagged_and_extended_frames() {
    some_of(compare(&mut Chance::new(3), (12, 300), WRAPPED, &DISPLAY, tshark));
}

const EXPRESSIONS: [&str; 27] = [
    "tcp",
    "udp port 80",
    "not port 443",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "tcp[13] == 16",
    "ip[0] & 0xf != 5",
    "ip[6:2] & 0x3fff != 0",
    "ip6[6] == 60 or ip6 proto 6",
    "vlan",
    "vlan 5",
    "vlan and tcp port 80",
    "vlan 5 and vlan 6 and ip",
    "ether host 02:00:00:00:00:01",
    "ether[0] & 1 = 0 and ip[16] >= 192",
    "net 10.0.0.0/8 and not host 10.1.2.3",
    "src net 192.168.0.0/16 or dst net fd00::/16",
    "portrange 79-81 or portrange 8000-9000",
    "icmp[icmptype] == icmp-echo",
    "icmp6 and ip6[40] == 128",
    "greater 70",
    "less 60 and ip",
    "len - 14 > 60 and (len & 1 = 0)",
    "tcp port 80 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)",
    "ip[2:2] / ip[8] > 0",
    "(ip[2:2] * 3) % 7 == 2 or -ip[1] = 0",
    "ether[20:4] << ether[17] > 1000",
    "arp or (sctp and src port 22)",
];

#[test]
fn expressions_select_as_in_tcpdump() {
    let mut chance = Chance::new(4);
    let frames: Vec<_> = (0..1500).map(|_| frame(&mut chance, ALL)).collect();
    let file = File::of(&frames);
    let mut matched = 0;
    for expression in EXPRESSIONS {
        let settings = compiled(compile(expression));
        let programs = Programs::load(&settings, None).unwrap_or_else(|error| panic!("{expression}: {error}"));
        let (ours, theirs) = (selected(&programs, ProgramKind::Egress, &frames), tcpdump(file.path(), expression));
        assert_eq!(ours, theirs, "{expression}");
        assert!(!ours.is_empty(), "{expression} selects nothing");
        matched += ours.len();
    }
    some_of((matched, EXPRESSIONS.len() * frames.len()));
}

/// A long one, as people paste them: almost the limit.
#[test]
fn a_long_expression_loads() {
    let hosts: Vec<_> = (0..180).map(|number| format!("host 10.0.0.{number}")).collect();
    let program = compile(&format!("tcp and ({})", hosts.join(" or ")));
    assert!((450..=512).contains(&program.len()), "{} instructions", program.len());
    Programs::load(&compiled(program), None).expect("it loads");
}
