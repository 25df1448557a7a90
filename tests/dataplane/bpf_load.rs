//! The eBPF programs in this kernel: loaded, found again, replaced; nothing of them stays.

use tap_helper::bpf::{Features, Filter, Instruction, Match, Programs, Protocol, Running, Settings, Which, probe};

/// A frame of TCP over IPv4, from port 1000 to 443.
fn frame() -> Vec<u8> {
    let mut frame = vec![0; 14 + 20 + 20];
    (frame[12], frame[14], frame[17], frame[23]) = (8, 0x45, 40, 6);
    frame[34..38].copy_from_slice(&[0x03, 0xe8, 0x01, 0xbb]);
    frame
}

fn only(port: u16) -> Settings {
    let tcp = Match { protocol: Some(Protocol::Tcp), ports: vec![(port, port)], networks: vec![] };
    Settings { filter: Filter { include: vec![tcp], ..Filter::default() }, ..Settings::default() }
}

/// `ret #1` or `ret #0`.
fn always(result: u32) -> Settings {
    let expression = vec![Instruction { code: 6, jt: 0, jf: 0, k: result }];
    Settings { filter: Filter { expression, ..Filter::default() }, ..Settings::default() }
}

#[test]
fn this_kernel_can_do_all_of_it() {
    let found = probe();
    let whole_lists = found.whole_lists;
    assert_eq!(found, Features { ebpf: Ok(()), fit: Ok(()), limit: Ok(()), expression: Ok(()), whole_lists });
}

#[test]
fn settings_take_effect_and_are_found_again() {
    let programs = Programs::load(&only(443), None).expect("they load");
    let matches = |which| programs.try_out(which, &frame(), &[]).expect("it runs").0;
    assert_eq!([matches(Which::Ingress), matches(Which::Egress)], [-1, -1]);
    programs.running().configure(&only(80)).expect("it is written");
    assert_eq!([matches(Which::Ingress), matches(Which::Egress)], [0, 0]);

    for id in programs.ids().expect("they have numbers") {
        let found = Running::adopt(id).expect("it is ours");
        assert!(found.has(&only(80)) && found.runs(&only(443)) && !found.has(&only(443)) && !found.runs(&always(1)));
        let counters = found.counters().expect("they can be read");
        assert_eq!((counters.ingress.mirrored.frames, counters.ingress.filtered.frames), (1, 1));
        assert_eq!((counters.egress.seen().frames, counters.egress.seen().bytes), (2, 108));
    }
}

#[test]
fn another_expression_keeps_the_counters() {
    let first = Programs::load(&Settings::default(), None).expect("they load");
    let run = |programs: &Programs| programs.try_out(Which::Egress, &frame(), &[]).expect("it runs").0;
    assert_eq!(run(&first), -1);
    let second = Programs::load(&always(0), Some(first.running())).expect("they load");
    // Both are there for a moment, each with its own configuration.
    assert_eq!((run(&first), run(&second)), (-1, 0));
    let third = Programs::load(&always(1), Some(second.running())).expect("they load");
    assert_eq!((run(&second), run(&third)), (0, -1));
    // The same settings again: these programs join those that run.
    let fourth = Programs::load(&always(1), Some(third.running())).expect("they load");
    third.running().configure(&Settings { one_in_flows: 1 << 30, ..always(1) }).expect("it is written");
    assert_eq!((run(&third), run(&fourth)), (0, 0));
    let counters = fourth.running().counters().expect("they can be read").egress;
    assert_eq!(
        [counters.mirrored, counters.filtered, counters.sampled_out, counters.seen()].map(|count| count.frames),
        [3, 2, 2, 7]
    );
}

#[test]
fn what_is_wrong_is_said() {
    let many = Match { protocol: None, ports: (0..9).map(|port| (port, port)).collect(), networks: vec![] };
    let filter = Filter { include: vec![many; 8], ..Filter::default() };
    let error = Programs::load(&Settings { filter, ..Settings::default() }, None).expect_err("72 rules");
    assert!(error.to_string().contains("72 rules") && error.to_string().contains("64"), "{error}");
    let filter = Filter { expression: vec![Instruction { code: 0x28, jt: 0, jf: 0, k: 12 }], ..Filter::default() };
    let error = Programs::load(&Settings { filter, ..Settings::default() }, None).expect_err("it does not return");
    assert!(error.to_string().contains("instruction 0 leads beyond the end"), "{error}");
    let error = Running::adopt(u32::MAX).expect_err("there is none");
    assert!(error.to_string().contains("ENOENT") || error.to_string().contains("No such file"), "{error}");
}
