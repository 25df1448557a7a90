//! Filters select the same frames in this kernel as in tcpdump and tshark.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use nix::{
    libc,
    sys::{
        pthread::{pthread_kill, pthread_self},
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
    },
};
use podtap_model::Filter;
use podtap_tests::pcap::{File, tcpdump, tshark};
use tap_helper::bpf::{ProgramKind, Programs, Settings};

use crate::{
    bpf_frames::{DISPLAY, Kinds, Language, PCAP, Random, compile, filter, frame},
    bpf_scene::{compiled, filtering, loaded},
};

const PLAIN: Kinds = Kinds { encapsulated: false, truncated: false };
const TRUNCATED: Kinds = Kinds { encapsulated: false, truncated: true };
const ENCAPSULATED: Kinds = Kinds { encapsulated: true, truncated: false };
const ALL: Kinds = Kinds { encapsulated: true, truncated: true };

fn selected(programs: &Programs, kind: ProgramKind, frames: &[Vec<u8>]) -> Vec<usize> {
    let matches = |frame: &Vec<u8>| programs.test_run(kind, frame, &[]).expect("the program runs").0 == -1;
    frames.iter().enumerate().filter(|(_, frame)| matches(frame)).map(|(number, _)| number).collect()
}

/// Compares the given number of filters on the given number of frames. Returns the number of pairs that matched, and of all pairs.
fn compare(
    random: &mut Random,
    (filters, count): (usize, usize),
    kinds: Kinds,
    language: &Language,
    reader: impl Fn(&std::path::Path, &str) -> Vec<usize>,
) -> (usize, usize) {
    let mut programs = loaded(&Settings::default(), None).expect("the programs load");
    let frames: Vec<_> = (0..count).map(|_| frame(random, kinds)).collect();
    let file = File::of(&frames);
    let mut matched = 0;
    for _ in 0..filters {
        let filter = filter(random, kinds.truncated);
        let (kind, side) = random.of(&[(ProgramKind::Ingress, "src"), (ProgramKind::Egress, "dst")]);
        let Filter { include, exclude, .. } = filter.clone();
        programs.maps_mut().configure(&filtering(include, exclude)).expect("the maps are written");
        let expression = language.write(&filter, side);
        let (ours, theirs) = (selected(&programs, kind, &frames), reader(file.path(), &expression));
        if let Some(frame) = (0..count).find(|number| ours.contains(number) != theirs.contains(number)) {
            panic!("{expression}\n{filter:?}\n{kind:?}, ours {}: {:02x?}", ours.contains(&frame), frames[frame]);
        }
        matched += ours.len();
    }
    (matched, filters * count)
}

#[track_caller]
fn assert_selective((matched, pairs): (usize, usize)) {
    println!("{matched} of {pairs} pairs match");
    assert!(matched * 20 > pairs && matched * 20 < pairs * 19, "{matched} of {pairs} match");
}

#[test]
fn filters_select_the_same_frames_as_tcpdump() {
    assert_selective(compare(&mut Random::new(1), (200, 200), PLAIN, &PCAP, tcpdump));
}

#[test]
fn filters_select_the_same_truncated_frames_as_tcpdump() {
    assert_selective(compare(&mut Random::new(2), (100, 200), TRUNCATED, &PCAP, tcpdump));
}

#[test]
fn filters_select_the_same_tagged_and_extended_frames_as_tshark() {
    assert_selective(compare(&mut Random::new(3), (12, 300), ENCAPSULATED, &DISPLAY, tshark));
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
fn expressions_select_the_same_frames_as_tcpdump() {
    let mut random = Random::new(4);
    let frames: Vec<_> = (0..1500).map(|_| frame(&mut random, ALL)).collect();
    let file = File::of(&frames);
    let mut matched = 0;
    for expression in EXPRESSIONS {
        let settings = compiled(compile(expression));
        let programs = loaded(&settings, None).unwrap_or_else(|error| panic!("{expression}: {error}"));
        let (ours, theirs) = (selected(&programs, ProgramKind::Egress, &frames), tcpdump(file.path(), expression));
        assert_eq!(ours, theirs, "{expression}");
        assert!(!ours.is_empty(), "{expression} selects nothing");
        matched += ours.len();
    }
    assert_selective((matched, EXPRESSIONS.len() * frames.len()));
}

/// Almost as long as allowed, as users paste them.
#[test]
fn a_long_expression_loads() {
    let hosts: Vec<_> = (0..180).map(|number| format!("host 10.0.0.{number}")).collect();
    let program = compile(&format!("tcp and ({})", hosts.join(" or ")));
    assert!((450..=512).contains(&program.len()), "{} instructions", program.len());
    loaded(&compiled(program), None).expect("the programs load");
}

extern "C" fn ignore(_: libc::c_int) {}

/// The verifier gives up when a signal is pending, and programs of this size take it several milliseconds.
#[test]
fn programs_load_while_signals_arrive() {
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::SA_RESTART, SigSet::empty());
    #[expect(unsafe_code, reason = "a handler runs anywhere; this one does nothing")]
    // SAFETY: as the reason says.
    let installed = unsafe { sigaction(Signal::SIGUSR1, &action) };
    installed.expect("it can be handled");
    let (loader, is_done) = (pthread_self(), AtomicBool::new(false));
    thread::scope(|scope| {
        let signals = scope.spawn(|| {
            let mut sent = 0;
            while !is_done.load(Ordering::Relaxed) {
                pthread_kill(loader, Signal::SIGUSR1).expect("the thread runs");
                sent += 1;
                // Far less than the verifier needs, and enough for the loader to run.
                thread::sleep(Duration::from_micros(50));
            }
            sent
        });
        let results: Vec<_> = EXPRESSIONS.iter().map(|text| loaded(&compiled(compile(text)), None).map(drop)).collect();
        is_done.store(true, Ordering::Relaxed);
        let sent = signals.join().expect("it does not panic");
        for (expression, result) in EXPRESSIONS.iter().zip(results) {
            result.unwrap_or_else(|error| panic!("{expression}, with {sent} signals: {error}"));
        }
        assert!(sent > EXPRESSIONS.len(), "{sent} signals");
    });
}
