//! Sampling, rate limits and fragments: what depends on more than one frame.

use std::{
    thread,
    time::{Duration, Instant},
};

use podtap_model::{Limit, Match, MirrorOptions, PortRange, Protocol, Sample, Truncate};
use podtap_tests::wait::until;
use tap_helper::bpf::{Counters, ProgramKind, Programs, Settings};

use crate::{
    bpf_frames::Random,
    bpf_scene::{filtering, loaded, with},
};

/// One end of a flow.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct End {
    pub address: [u8; 4],
    pub port: u16,
}

/// A datagram, or a segment with the given flags. With `ipv6`, the address is the end of an IPv6 address.
pub fn frame(protocol: u8, from: End, to: End, flags: u8, ipv6: bool) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if ipv6 {
        frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, protocol, 64]);
        for end in [from, to] {
            frame.extend_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0]);
            frame.extend_from_slice(&end.address);
        }
    } else {
        frame.extend_from_slice(&[8, 0, 0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend_from_slice(&from.address);
        frame.extend_from_slice(&to.address);
    }
    frame.extend_from_slice(&from.port.to_be_bytes());
    frame.extend_from_slice(&to.port.to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    frame
}

fn sampling(one_in_flows: u32) -> Settings {
    with(MirrorOptions { sample: Some(Sample { one_in_flows }), ..MirrorOptions::default() })
}

fn limited(bits_per_second: u64, packets_per_second: u64) -> Settings {
    let limit = Limit {
        bits_per_second: Some(bits_per_second.into()),
        packets_per_second: Some(packets_per_second.into()),
        bytes_per_flow: None,
    };
    with(MirrorOptions { limit: Some(limit), ..MirrorOptions::default() })
}

pub fn load(settings: &Settings) -> Programs {
    loaded(settings, None).unwrap_or_else(|error| panic!("{error}"))
}

pub fn mirrored(programs: &Programs, kind: ProgramKind, frame: &[u8]) -> bool {
    programs.test_run(kind, frame, &[]).expect("the program runs").0 == -1
}

fn counters(programs: &Programs) -> Counters {
    programs.maps().counters(0).expect("the counters are readable")
}

#[test]
fn sampling_selects_whole_flows_in_the_right_proportion() {
    let mut random = Random::new(5);
    for (one_in_flows, ipv6) in [(2, false), (10, false), (10, true), (100, true)] {
        let settings = sampling(one_in_flows);
        // On two nodes.
        let (here, there) = (load(&settings), load(&settings));
        let (mut kept, flows) = (0_u32, 10_000);
        for number in 0..flows {
            // Consecutive ports of few addresses, as clients use them.
            let client = End { address: [10, 0, 0, random.of(&[1, 2, 3])], port: 32_768 + number };
            let server = End { address: [10, 9, 0, 1], port: random.of(&[80, 443, 5432]) };
            let protocol = random.of(&[6, 17]);
            let out = frame(protocol, client, server, 2, ipv6);
            let back = frame(protocol, server, client, 0x12, ipv6);
            let results = [
                mirrored(&here, ProgramKind::Egress, &out),
                mirrored(&here, ProgramKind::Ingress, &back),
                mirrored(&there, ProgramKind::Ingress, &out),
                mirrored(&there, ProgramKind::Egress, &back),
            ];
            assert!(results.iter().all(|result| *result == results[0]), "{client:?} {server:?} {results:?}");
            kept += u32::from(results[0]);
        }
        let share = 1.0 / f64::from(one_in_flows);
        let sigma = (f64::from(flows) * share * (1.0 - share)).sqrt();
        let off = (f64::from(kept) - f64::from(flows) * share) / sigma;
        println!("one in {one_in_flows}: {kept} of {flows} flows, {off:.2} sigma off");
        assert!(off.abs() < 3.0, "one in {one_in_flows}: {kept} of {flows}, {off} sigma off");
        let seen = counters(&here);
        assert_eq!((seen.egress.seen().frames, seen.egress.mirrored.frames), (u64::from(flows), u64::from(kept)));
        assert_eq!(seen.egress.sampled_out.frames, u64::from(flows) - u64::from(kept));
    }
}

/// With a seed that is not known, nobody can choose ports that are in no sample.
#[test]
fn the_seed_decides_which_flows_are_in_the_sample() {
    let programs = [7, 8].map(|sample_seed| load(&Settings { sample_seed, ..sampling(4) }));
    let server = End { address: [10, 9, 0, 1], port: 443 };
    let (mut kept, mut both) = ([0_u32; 2], 0_u32);
    let flows = 10_000;
    for number in 0..flows {
        let client = End { address: [10, 0, 0, 1], port: 32_768 + number };
        let frame = frame(6, client, server, 2, false);
        let results = [0, 1].map(|at: usize| mirrored(&programs[at], ProgramKind::Egress, &frame));
        for (count, result) in kept.iter_mut().zip(results) {
            *count += u32::from(result);
        }
        both += u32::from(results == [true; 2]);
    }
    println!("{kept:?} of {flows} flows, {both} in both samples");
    let near = |count: u32, share: f64| {
        let sigma = (f64::from(flows) * share * (1.0 - share)).sqrt();
        (f64::from(count) - f64::from(flows) * share).abs() < 4.0 * sigma
    };
    assert!(kept.iter().all(|count| near(*count, 0.25)) && near(both, 0.0625), "{kept:?} {both}");
}

/// Offers more frames than the limit allows for two seconds. Returns the mirrored frames and bits per second.
fn rate(settings: &Settings, frame: &[u8]) -> (f64, f64) {
    let programs = load(settings);
    // The first burst does not count.
    let first = Instant::now();
    while first.elapsed() < Duration::from_millis(100) {
        mirrored(&programs, ProgramKind::Egress, frame);
    }
    let (before, start) = (counters(&programs), Instant::now());
    let (mut last, mut idle) = (start, Duration::ZERO);
    while start.elapsed() < Duration::from_secs(2) {
        mirrored(&programs, ProgramKind::Egress, frame);
        mirrored(&programs, ProgramKind::Ingress, frame);
        // A bucket catches up after a pause of up to 50 ms. Longer pauses of the test are subtracted.
        idle += last.elapsed().saturating_sub(Duration::from_millis(50));
        last = Instant::now();
    }
    let (after, seconds) = (counters(&programs), start.elapsed().saturating_sub(idle).as_secs_f64());
    let mirrored = |counters: &Counters| {
        let (a, b) = (counters.ingress.mirrored, counters.egress.mirrored);
        (a.frames + b.frames, a.bytes + b.bytes)
    };
    let (before, after) = (mirrored(&before), mirrored(&after));
    let per_second = |count: u64| f64::from(u32::try_from(count).expect("the count is small")) / seconds;
    (per_second(after.0 - before.0), per_second(after.1 - before.1) * 8.0)
}

#[test]
fn both_directions_share_a_rate_limit() {
    let ends = [End { address: [10, 0, 0, 1], port: 1000 }, End { address: [10, 0, 0, 2], port: 2000 }];
    let mut long = frame(17, ends[0], ends[1], 0, false);
    long.resize(1514, 0);
    let within = |what: &str, got: f64, expected: f64| {
        println!("{what}: {got:.0} per second of {expected:.0}");
        assert!((got / expected - 1.0).abs() < 0.05, "{what}: {got} per second of {expected}");
    };
    let limit = limited;
    within("bits", rate(&limit(10_000_000, 0), &long).1, 10e6);
    within("few bits", rate(&limit(1_000_000, 0), &long).1, 1e6);
    within("frames", rate(&limit(0, 1000), &long).0, 1000.0);
    within("both, frames count", rate(&limit(100_000_000, 500), &long).0, 500.0);
    // A truncated frame counts with its truncated length.
    let truncated = Settings {
        options: MirrorOptions {
            truncate: Some(Truncate { bytes: Some(100), ..Truncate::default() }),
            ..limit(1_000_000, 0).options
        },
        ..Settings::default()
    };
    within("truncated frames", rate(&truncated, &long).0, 1e6 / 800.0);
    // Below the limit, every frame is mirrored.
    let programs = load(&limit(100_000_000_000, 100_000_000_000));
    assert!((0..10_000).all(|_| mirrored(&programs, ProgramKind::Egress, &long)));
    assert_eq!(counters(&programs).egress.rate_limited.frames, 0);
}

/// Two fragments of an IPv4 or IPv6 datagram: the first, and a later one.
pub fn fragments(id: u8, port: u16, ipv6: bool) -> [Vec<u8>; 2] {
    let ends = [End { address: [10, 0, 0, 1], port: 999 }, End { address: [10, 0, 0, 2], port }];
    let whole = frame(17, ends[0], ends[1], 0, ipv6);
    [false, true].map(|later| {
        let mut frame = whole.clone();
        if ipv6 {
            frame[20] = 44;
            let header = [17, 0, if later { 5 } else { 0 }, u8::from(!later), 0, 0, 0, id];
            frame.splice(54..54, header);
        } else {
            (frame[19], frame[20], frame[21]) = (id, if later { 0 } else { 0x20 }, if later { 100 } else { 0 });
        }
        if later {
            // In place of the ports.
            let start = if ipv6 { 62 } else { 34 };
            frame[start..].fill(0xaa);
        }
        frame
    })
}

/// Traffic below the limit is mirrored, regardless of its pauses. A burst beyond the limit delays the next frame only as long as needed.
#[test]
fn traffic_below_a_low_limit_is_mirrored() {
    let ends = [End { address: [10, 0, 0, 1], port: 1000 }, End { address: [10, 0, 0, 2], port: 2000 }];
    let short = frame(17, ends[0], ends[1], 0, false);
    let limit = |bits_per_second, packets_per_second| load(&limited(bits_per_second, packets_per_second));
    let programs = limit(0, 5);
    for _ in 0..6 {
        assert!(mirrored(&programs, ProgramKind::Egress, &short));
        thread::sleep(Duration::from_millis(220));
    }
    // A frame of 12,000 bits takes 240 ms at 50,000 bits per second.
    let mut long = short.clone();
    long.resize(1500, 0);
    let programs = limit(50_000, 0);
    assert!(mirrored(&programs, ProgramKind::Egress, &long) && !mirrored(&programs, ProgramKind::Egress, &short));
    until("the bucket has refilled", Duration::from_secs(5), || {
        if mirrored(&programs, ProgramKind::Egress, &short) { Ok(()) } else { Err("not yet") }
    });
    // The highest allowed rate.
    let programs = limit(100_000_000_000, 100_000_000_000);
    for _ in 0..3 {
        assert!((0..10).all(|_| mirrored(&programs, ProgramKind::Egress, &long)));
        thread::sleep(Duration::from_millis(60));
    }
}

#[test]
fn later_fragments_follow_the_first() {
    let port = |port| Match { ports: vec![PortRange { port, end_port: None }], ..Match::default() };
    let load_filter = |include: Vec<Match>, exclude: Vec<Match>| load(&filtering(include, exclude));
    for ipv6 in [false, true] {
        let both = |programs: &Programs, fragments: &[Vec<u8>; 2]| {
            [0, 1].map(|number: usize| mirrored(programs, ProgramKind::Ingress, &fragments[number]))
        };
        let include = load_filter(vec![port(53)], vec![]);
        assert_eq!(both(&include, &fragments(1, 53, ipv6)), [true, true]);
        assert_eq!(both(&include, &fragments(2, 54, ipv6)), [false, false]);
        // If the first fragment was not seen, a later one is mirrored unless other parts of the rule exclude it.
        assert!(mirrored(&include, ProgramKind::Ingress, &fragments(3, 54, ipv6)[1]));
        let exclude = load_filter(vec![], vec![port(53)]);
        assert_eq!(both(&exclude, &fragments(1, 53, ipv6)), [false, false]);
        assert!(mirrored(&exclude, ProgramKind::Ingress, &fragments(3, 53, ipv6)[1]));
        let tcp = Match { protocol: Some(Protocol::Tcp), ..port(53) };
        assert!(!mirrored(&load_filter(vec![tcp], vec![]), ProgramKind::Ingress, &fragments(3, 53, ipv6)[1]));
        // Sampling selects all fragments of a datagram or none.
        let sample = load(&sampling(3));
        for id in 0..100 {
            let [first, later] = both(&sample, &fragments(id, 1000 + u16::from(id), ipv6));
            assert_eq!(first, later, "{id}");
        }
    }
}
