//! Loading, adopting and replacing the eBPF programs in this kernel.

use std::{
    os::fd::{FromRawFd as _, OwnedFd},
    time::Duration,
};

use podtap_model::{Instruction, Match, MirrorOptions, PortRange, Protocol, Sample};
use tap_helper::bpf::{BpfError, Maps, Monotonic, ProgramKind, Programs, Settings};

use crate::bpf_scene::{compiled, filtering, loaded};

/// A frame of TCP over IPv4, from port 1000 to 443.
fn frame() -> Vec<u8> {
    let mut frame = vec![0; 14 + 20 + 20];
    (frame[12], frame[14], frame[17], frame[23]) = (8, 0x45, 40, 6);
    frame[34..38].copy_from_slice(&[0x03, 0xe8, 0x01, 0xbb]);
    frame
}

fn only(port: u16) -> Settings {
    let ports = vec![PortRange { port, end_port: None }];
    let tcp = Match { protocol: Some(Protocol::Tcp), ports, cidrs: vec![] };
    filtering(vec![tcp], vec![])
}

/// `ret #1` or `ret #0`.
fn always(result: u32) -> Settings {
    compiled(vec![Instruction { code: 6, jt: 0, jf: 0, k: result }])
}

#[test]
fn programs_mirror_until_their_deadline() {
    // The programs' clock is behind by up to a tick: less than what it takes to load them.
    let past = Monotonic::now();
    let mut programs = Programs::load(&Settings::default(), None).expect("the programs load");
    let run = |programs: &Programs| programs.test_run(ProgramKind::Ingress, &frame(), &[]).expect("the program runs").0;
    assert_eq!(programs.maps().deadline(0).expect("the map is readable"), None);
    assert_eq!(run(&programs), 0, "new programs have no deadline, and mirror nothing");
    for (deadline, result) in [(past.after(Duration::from_secs(60)), -1), (past, 0), (Monotonic::MAX, -1)] {
        programs.maps_mut().set_deadline(0, Some(deadline)).expect("the map is written");
        assert_eq!(run(&programs), result, "{deadline:?}");
    }
    let ids = programs.ids().expect("the programs have IDs");
    let found = ids.map(|id| Maps::adopt(id).and_then(|maps| maps.deadline(0)).expect("the map is readable"));
    assert_eq!(found, [Some(Monotonic::MAX), Some(Monotonic::MAX), None], "the clamp has none");
    let counters = programs.maps().counters(0).expect("the counters are readable").ingress;
    assert_eq!([counters.mirrored, counters.expired, counters.seen()].map(|count| count.frames), [2, 2, 4]);
    // That of another sender, which has its own.
    programs.maps_mut().set_deadline(31, None).expect("the map is written");
    assert_eq!(run(&programs), -1);
    programs.maps_mut().set_deadline(0, None).expect("the map is written");
    programs.maps_mut().set_deadline(31, Some(Monotonic::MAX)).expect("the map is written");
    assert_eq!(run(&programs), 0, "a sender without a deadline mirrors nothing");
    programs.maps_mut().set_deadline(0, Some(Monotonic::MAX)).expect("the map is written");
    // Its successor has the same one.
    let next = Programs::load(&always(1), Some(programs.maps())).expect("the programs load");
    assert_eq!(next.maps().deadline(0).expect("the map is readable"), Some(Monotonic::MAX));
    assert_eq!(run(&next), -1);
}

#[test]
fn settings_take_effect_and_can_be_read_back() {
    let mut programs = loaded(&only(443), None).expect("the programs load");
    let matches = |programs: &Programs| {
        [ProgramKind::Ingress, ProgramKind::Egress]
            .map(|kind| programs.test_run(kind, &frame(), &[]).expect("the program runs").0)
    };
    assert_eq!(matches(&programs), [-1, -1]);
    programs.maps_mut().configure(&only(80)).expect("the maps are written");
    assert_eq!(matches(&programs), [0, 0]);

    for id in programs.ids().expect("the programs have IDs") {
        let found = Maps::adopt(id).expect("the program is ours");
        assert!(found.is_configured(&only(80)) && found.supports(&only(443)));
        assert!(!found.is_configured(&only(443)) && !found.supports(&always(1)));
        let counters = found.counters(0).expect("the counters are readable");
        assert_eq!((counters.ingress.mirrored.frames, counters.ingress.filtered.frames), (1, 1));
        assert_eq!((counters.egress.seen().frames, counters.egress.seen().bytes), (2, 108));
    }
}

#[test]
fn another_expression_keeps_the_counters() {
    let first = loaded(&Settings::default(), None).expect("the programs load");
    let run = |programs: &Programs| programs.test_run(ProgramKind::Egress, &frame(), &[]).expect("the program runs").0;
    assert_eq!(run(&first), -1);
    let second = loaded(&always(0), Some(first.maps())).expect("the programs load");
    // Both are loaded for a moment, each with its own configuration.
    assert_eq!((run(&first), run(&second)), (-1, 0));
    let mut third = loaded(&always(1), Some(second.maps())).expect("the programs load");
    assert_eq!((run(&second), run(&third)), (0, -1));
    // With the same settings, the new programs share the maps of the running ones.
    let fourth = loaded(&always(1), Some(third.maps())).expect("the programs load");
    let options = MirrorOptions { sample: Some(Sample { one_in_flows: 1 << 30 }), ..MirrorOptions::default() };
    third.maps_mut().configure(&Settings { options, ..always(1) }).expect("the maps are written");
    assert_eq!((run(&third), run(&fourth)), (0, 0));
    let counters = fourth.maps().counters(0).expect("the counters are readable").egress;
    assert_eq!(
        [counters.mirrored, counters.filtered, counters.sampled_out, counters.seen()].map(|count| count.frames),
        [3, 2, 2, 7]
    );
}

#[test]
fn errors_are_explained() {
    let ports = (0..9).map(|port| PortRange { port, end_port: None }).collect();
    let many = Match { protocol: None, ports, cidrs: vec![] };
    let error = loaded(&filtering(vec![many; 8], vec![]), None).expect_err("72 rules");
    assert!(error.to_string().contains("72 rules") && error.to_string().contains("64"), "{error}");
    let program = vec![Instruction { code: 0x28, jt: 0, jf: 0, k: 12 }];
    let error = loaded(&compiled(program), None).expect_err("it does not return");
    assert!(error.to_string().contains("instruction 0 leads beyond the end"), "{error}");
    let error = Maps::adopt(u32::MAX).expect_err("no program has this ID");
    assert!(error.to_string().contains("ENOENT") || error.to_string().contains("No such file"), "{error}");
}

/// Loads `return 0`, a classifier without maps, as another tool would. Returns it and its ID.
#[expect(unsafe_code, reason = "neither std nor nix has bpf(2)")]
fn foreign() -> (OwnedFd, u32) {
    // The start of `union bpf_attr` for BPF_PROG_LOAD: type, number of instructions, instructions, license.
    let instructions: [u64; 2] = [0xb7, 0x95];
    let attribute: [u64; 3] = [3 | 2 << 32, instructions.as_ptr() as u64, c"GPL".as_ptr() as u64];
    // SAFETY: the kernel reads the attribute, and the instructions and the license that it points to; all of them are live.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, 5, attribute.as_ptr(), size_of_val(&attribute)) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).expect("it loads");
    // SAFETY: a new descriptor.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("it is open");
    let id = info.lines().find_map(|line| line.strip_prefix("prog_id:")).expect("the kernel shows the ID");
    (program, id.trim().parse().expect("a number"))
}

#[test]
fn a_foreign_program_is_not_adopted() {
    let (_program, id) = foreign();
    assert!(matches!(Maps::adopt(id), Err(BpfError::Foreign(found)) if found == id));
}
