//! The kernel features in use are those that docs/install.md documents for this kernel.

use std::fs;

use podtap_model::Direction;
use podtap_tests::net::{Helper, Network};

use crate::scene::{Scene, TAP, VNI, desired, remote_endpoint, sender};

/// A row of the table: classifier, programs, `ebpf`, `clamp`.
type Row = [String; 4];

/// Major and minor number.
type Version = (u32, u32);

fn version(text: &str) -> Option<Version> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The rows by kernel version, and the row of kernels that load no programs.
fn documented() -> (Vec<(Version, Row)>, Row) {
    let text =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/install.md")).expect("docs/install.md exists");
    let lines = text.lines().skip_while(|line| !line.starts_with("| kernel |")).skip(2);
    let (mut kernels, mut locked) = (Vec::new(), None);
    for line in lines.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let row = std::array::from_fn(|at| cells[at + 1].to_owned());
        match version(cells[0]) {
            Some(version) => kernels.push((version, row)),
            None => locked = Some(row),
        }
    }
    (kernels, locked.expect("a row for kernels without eBPF"))
}

/// The features that a tap uses, by its filters in `tc` and by the helper's report.
fn used(scene: &mut Scene) -> Row {
    let request = desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]);
    let features = scene.agent.establish(&request).features;
    let web: &Network = scene.web.network();
    let filters: Vec<_> =
        ["ingress", "egress"].iter().flat_map(|hook| web.json(&format!("tc -j filter show dev eth0 {hook}"))).collect();
    let values = |value: &dyn Fn(&serde_json::Value) -> Option<String>| {
        let mut found: Vec<String> =
            filters.iter().filter(|filter| filter["options"].is_object()).filter_map(value).collect();
        found.dedup();
        found.join(" and ")
    };
    let classifier = values(&|filter| filter["kind"].as_str().map(str::to_owned));
    let programs = values(&|filter| {
        let is_ebpf = filter["options"]["prog"]["id"].is_u64();
        Some(if is_ebpf { "eBPF" } else { "classic" }.to_owned())
    });
    [classifier, programs, features["ebpf"].to_string(), features["clamp"].to_string()]
}

#[test]
fn used_features_are_documented() {
    let (kernels, locked) = documented();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a kernel has a release");
    let running = version(&release).expect("a release begins with two numbers");
    let mut scene = Scene::new();
    let found = used(&mut scene);
    println!("kernel {}: classifier, programs, ebpf, clamp: {found:?}", release.trim());
    // A kernel that is not in the table supports at least what an older one does.
    let row = kernels.iter().filter(|(version, _)| *version <= running).max_by_key(|(version, _)| *version);
    let (_, row) = row.unwrap_or_else(|| panic!("{} is older than all kernels in docs/install.md", release.trim()));
    assert_eq!(found, *row);

    scene.helper.kill();
    scene.helper = Helper::without_ebpf(&scene.node);
    scene.agent = scene.helper.agent();
    let found = used(&mut scene);
    println!("without eBPF: {found:?}");
    assert_eq!(found, locked);
}
