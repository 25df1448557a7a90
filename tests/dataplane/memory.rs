//! The memory that senders take, which the helper's limit has to cover.

use std::net::{IpAddr, Ipv4Addr};

use podtap_model::{Deduplicate, Direction, Limit, MirrorOptions, bounds};
use podtap_tests::net::{Desired, Helper, MemoryCgroup, Node, Pod, Sender};

use crate::scene::{VNI, desired, remote_endpoint, select_all, sender};

const PODS: usize = 12;
const TAPS: [&str; 2] = ["tap-a", "tap-b"];

/// Two taps with every option, and as many peers as possible.
fn senders(pods: &[Pod]) -> Vec<Sender> {
    let peers: Vec<IpAddr> = (0..1024).map(|number| Ipv4Addr::from_bits(0x0a00_0000 + number).into()).collect();
    let both = |(number, pod)| {
        TAPS.map(|tap| {
            // A tap of its own for each, so that none shares its programs.
            let mut sender = sender(&format!("{tap}-{number}"), pod, Direction::Both, &[remote_endpoint(VNI)]);
            sender.tap.options.deduplicate = Some(Deduplicate::default());
            sender.tap.peers.clone_from(&peers);
            select_all(&mut sender);
            sender
        })
    };
    pods.iter().enumerate().flat_map(both).collect()
}

/// How many CPUs the kernel has room for: per-CPU maps have an entry for each.
fn possible_cpus() -> u64 {
    let ranges = std::fs::read_to_string("/sys/devices/system/cpu/possible").expect("the kernel has CPUs");
    let last = ranges.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<u64>().ok());
    last.expect("a range of numbers") + 1
}

/// What each sender takes with these options besides, if it shares its programs with no other.
fn each(options: impl Fn(&mut MirrorOptions)) -> u64 {
    let senders = |pods: &[Pod]| {
        let mut senders = senders(pods);
        for sender in &mut senders {
            options(&mut sender.tap.options);
        }
        senders
    };
    let (node, cgroup) = (Node::new(), MemoryCgroup::new());
    let helper = Helper::start(&node);
    let child = helper.child().expect("it has served its socket");
    cgroup.add(child.cast_unsigned());
    let mut agent = helper.agent();
    let pods: Vec<Pod> = (0..PODS).map(|_| Pod::start(&node)).collect();
    agent.establish(&desired(senders(&pods[..1]), vec![]));
    let before = cgroup.usage();
    // One after the other: the kernel verifies two program sets for each.
    for (generation, count) in (2..).zip(2..=PODS) {
        agent.establish(&Desired { generation, ..desired(senders(&pods[..count]), vec![]) });
    }
    let after = cgroup.usage();
    let count = u64::try_from((PODS - 1) * TAPS.len()).expect("they are few");
    let each = (after - before) / count;
    println!("{before} bytes with one pod, {each} for each sender");
    each
}

#[test]
fn a_sender_takes_no_more_than_the_limit_assumes() {
    let without = each(|_| ());
    assert!(without > 150_000, "{without} bytes: the maps are not counted");
    let cpus = bounds::SENDER_MEMORY_PER_CPU * possible_cpus();
    assert!(without.saturating_sub(cpus) < bounds::SENDER_MEMORY, "{without} bytes, {cpus} of them for CPUs");

    let with = each(|options| {
        options.limit = Some(Limit { bytes_per_flow: Some(65_536.into()), ..Limit::default() });
    });
    let table = with - without;
    assert!((1 << 20..bounds::FLOW_TABLE_MEMORY).contains(&table), "{table} bytes for a flow table");
}
