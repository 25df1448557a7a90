//! The kernel that runs is one that docs/install.md says PodTap was tested with, or a newer one.

use std::fs;

use podtap_model::Direction;

use crate::scene::{Scene, TAP, VNI, desired, remote_endpoint, sender};

/// Major and minor number.
type Version = (u32, u32);

fn version(text: &str) -> Option<Version> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The versions in the table.
fn documented() -> Vec<Version> {
    let text =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/install.md")).expect("docs/install.md exists");
    let rows = text.lines().skip_while(|line| !line.starts_with("| kernel |")).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    rows.map(|row| version(row.trim_start_matches(['|', ' '])).expect("a row begins with a version")).collect()
}

#[test]
fn this_kernel_is_documented_and_runs_the_programs() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a kernel has a release");
    let running = version(&release).expect("a release begins with two numbers");
    assert!(documented().iter().any(|tested| *tested <= running), "{} is older than all of them", release.trim());
    let mut scene = Scene::new();
    let request = desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]);
    assert_eq!(scene.agent.establish(&request).features, [("ebpf".to_owned(), true)].into());
    let web = scene.web.network();
    assert_eq!((web.mirrors("eth0").len(), web.programs("eth0").len()), (2, 2));
}
