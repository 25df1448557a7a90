//! Filters and programs of others that see frames before PodTap's filters are reported, and left alone.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use podtap_model::{Direction, SenderStatus};
use podtap_tests::net::Network;

use crate::scene::{Scene, TAP, VNI, desired, remote_endpoint, sender};

fn tapped() -> Scene {
    let mut scene = Scene::new();
    let request = desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]);
    let report = scene.agent.establish(&request);
    assert_eq!(report.senders[0].degraded, [""; 0]);
    scene
}

/// Waits until the sender, which stays active, reports something as degraded that is accepted.
#[track_caller]
fn await_degraded(scene: &mut Scene, accepted: impl Fn(&str) -> bool) -> SenderStatus {
    let report = scene.agent.until("what may hide frames is reported", |report| {
        let degraded = &report.senders[0].degraded;
        degraded.iter().any(|sentence| accepted(sentence)) || degraded.is_empty() && accepted("")
    });
    report.senders[0].clone()
}

#[test]
fn an_earlier_filter_that_ends_classification_is_named() {
    let mut scene = tapped();
    let web = scene.web.network();
    let before = web.mirrors("eth0");
    // One behind ours, and one that lets classification continue, hide nothing.
    web.run("tc filter add dev eth0 egress protocol all prio 40000 u32 match u32 0 0 classid 1:1");
    let words = "tc filter add dev eth0 ingress protocol all prio 2 bpf bytecode";
    let action = "action mirred egress mirror dev lo continue".split(' ');
    let words: Vec<&str> = words.split(' ').chain(["1,6 0 0 4294967295"]).chain(action).collect();
    web.try_run(&words, "").expect("tc accepts the filter");
    web.run("tc filter add dev eth0 ingress protocol ip prio 7 u32 match u32 0 0 classid 1:1");
    let sender = await_degraded(&mut scene, |sentence| sentence.contains("filter of priority 7 (u32) at ingress"));
    assert!(sender.degraded.len() == 1 && sender.degraded[0].contains("eth0"), "{sender:?}");
    assert!(!sender.degraded[0].contains("40000") && !sender.degraded[0].contains("priority 2 "), "{sender:?}");
    let web = scene.web.network();
    assert_eq!(web.mirrors("eth0").len(), before.len() + 1, "the filters stay");
    web.run("tc filter del dev eth0 ingress prio 7");
    await_degraded(&mut scene, str::is_empty);
}

/// The start of `union bpf_attr` for a command of bpf(2). Returns what the command returns.
#[expect(unsafe_code, reason = "neither std nor nix has bpf(2)")]
fn bpf(command: i32, attribute: &[u64]) -> i32 {
    // SAFETY: the kernel reads the attribute, and what it points to, which the callers keep alive.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_ptr(), size_of_val(attribute)) };
    i32::try_from(result).expect("a small number")
}

/// Loads a program of two instructions, `r0 = result; exit`, of a type of `enum bpf_prog_type`. Its name follows the flags for the log and
/// the kernel's version.
#[expect(unsafe_code, reason = "a descriptor from bpf(2)")]
fn load(kind: u64, result: i32, name: [u8; 8]) -> OwnedFd {
    let instructions: [u64; 2] = [u64::from(result.cast_unsigned()) << 32 | 0xb7, 0x95];
    let mut attribute = [0_u64; 8];
    attribute[..3].copy_from_slice(&[kind | 2 << 32, instructions.as_ptr() as u64, c"GPL".as_ptr() as u64]);
    attribute[6] = u64::from_le_bytes(name);
    let program = bpf(5, &attribute);
    assert!(program >= 0, "it loads: {}", std::io::Error::last_os_error());
    // SAFETY: a new descriptor.
    unsafe { OwnedFd::from_raw_fd(program) }
}

/// Attaches a program that lets every frame continue at the tcx hook of the ingress of `eth0` (Linux 6.6).
fn attach_tcx(network: &Network) -> OwnedFd {
    let program = load(3, -1, *b"neighbor");
    let attached = network.within(|| {
        let index = nix::net::if_::if_nametoindex("eth0").expect("the interface exists");
        let fd = u64::try_from(program.as_raw_fd()).expect("a descriptor");
        // BPF_PROG_ATTACH: interface, program, BPF_TCX_INGRESS.
        bpf(8, &[u64::from(index) | fd << 32, 46, 0, 0])
    });
    assert_eq!(attached, 0, "it is attached: {}", std::io::Error::last_os_error());
    program
}

#[test]
fn a_tcx_program_is_named() {
    if podtap_tests::emulated() {
        // The emulated kernel is older than 6.6.
        return;
    }
    let mut scene = tapped();
    let _program = attach_tcx(scene.web.network());
    // No event tells of it, but of this.
    scene.web.network().run("ip link set eth0 alias changed");
    let sender = await_degraded(&mut scene, |sentence| sentence.contains("tcx program neighbor at ingress"));
    assert!(sender.degraded.len() == 1 && sender.degraded[0].contains("eth0"), "{sender:?}");
}

/// Attaches a program that lets every frame pass to `eth0`, until the descriptor is closed.
#[expect(unsafe_code, reason = "a descriptor from bpf(2)")]
fn attach_xdp(network: &Network) -> OwnedFd {
    // `XDP_PASS`.
    let program = load(6, 2, *b"passes\0\0");
    let link = network.within(|| {
        let index = nix::net::if_::if_nametoindex("eth0").expect("the interface exists");
        let fd = u64::try_from(program.as_raw_fd()).expect("a descriptor");
        // BPF_LINK_CREATE: program, interface, BPF_XDP, XDP_FLAGS_SKB_MODE.
        bpf(28, &[fd | u64::from(index) << 32, 0x25 | 2 << 32, 0, 0])
    });
    assert!(link >= 0, "it is attached: {}", std::io::Error::last_os_error());
    // SAFETY: a new descriptor.
    unsafe { OwnedFd::from_raw_fd(link) }
}

#[test]
fn an_xdp_program_is_named() {
    let mut scene = tapped();
    let link = attach_xdp(scene.web.network());
    // No event tells of it, but of this.
    scene.web.network().run("ip link set eth0 alias changed");
    let sender = await_degraded(&mut scene, |sentence| sentence.contains("XDP program at ingress"));
    assert!(sender.degraded.len() == 1 && sender.degraded[0].contains("eth0"), "{sender:?}");
    drop(link);
    scene.web.network().run("ip link set eth0 alias again");
    await_degraded(&mut scene, str::is_empty);
}
